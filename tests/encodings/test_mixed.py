"""RoPE-Mixed: learned frequencies that mix the axes."""

from __future__ import annotations

import pytest
import torch

from mmrope import RotaryEmbedding, RotarySpec, patch_position_ids
from mmrope.encodings import MixedRotary, rotate


def mixed(**options):
    return MixedRotary(32, 3, generator=torch.Generator().manual_seed(0), **options)


def test_frequencies_begin_on_two_lines_at_right_angles():
    weight = mixed().weight.detach()
    assert weight.shape == (3, 16, 2)
    magnitude = 10.0 ** (-4 * torch.arange(8) / 32)
    torch.testing.assert_close(weight.norm(dim=-1), magnitude.repeat(2).expand(3, 16))
    first, second = weight[:, :8], weight[:, 8:]
    torch.testing.assert_close((first * second).sum(-1), torch.zeros(3, 8), atol=1e-6, rtol=0)
    directions = first / magnitude[:, None]
    torch.testing.assert_close(directions, directions[:, :1].expand_as(directions))


def test_scores_depend_on_the_way_from_one_patch_to_another():
    module = mixed()
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 3, 12, 32)
    ids = torch.tensor(patch_position_ids([[1, 3, 4]], order="raster"))[:, None]
    one, other = (
        (a @ b.mT) for a, b in (module.rotate(q, k, ids), module.rotate(q, k, ids + torch.tensor([5, -9])[:, None, None]))
    )
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    turned, _ = module.rotate(q, k, ids)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))


def test_one_axis_a_pair_is_axial():
    module = mixed()
    spec = RotarySpec.axial(32, pairing="adjacent")
    with torch.no_grad():
        module.weight.zero_()
        for pair, (axis, frequency) in enumerate(zip(spec.axis.tolist(), spec.inv_freq.tolist(), strict=True)):
            module.weight[:, pair, axis] = frequency
    torch.manual_seed(0)
    q, ids = torch.randn(2, 3, 7, 32), torch.randint(0, 30, (2, 2, 7))
    cos, sin = RotaryEmbedding(spec)(ids)
    torch.testing.assert_close(module.rotate(q, q, ids)[0], rotate(q, cos, sin, pairing="adjacent"), atol=1e-5, rtol=0)


def test_it_learns():
    module = mixed()
    q = torch.randn(1, 3, 5, 32)
    module.rotate(q, q, torch.randint(0, 9, (2, 1, 5)))[0].square().sum().backward()
    assert module.weight.grad.shape == module.weight.shape
    loss = module.rotate(q, q, torch.randint(1, 9, (2, 1, 5)))[0][..., 0].sum()
    assert torch.autograd.grad(loss, module.weight)[0].abs().max() > 0


def test_three_axes():
    assert mixed(axes="thw").weight.shape == (3, 16, 3)
    torch.testing.assert_close(mixed(axes="thw").weight.norm(dim=-1)[:, :8], (10.0 ** (-4 * torch.arange(8) / 32)).expand(3, 8))


def test_refusals():
    with pytest.raises(ValueError, match="head_dim must be a multiple of 4, two lines of frequencies, got 30"):
        MixedRotary(30, 2)
    with pytest.raises(ValueError, match=r"position_ids must be \[2, B, S\] or \[2, T\] for the axes 'hw', got \[3, 1, 5\]"):
        mixed()(torch.zeros(3, 1, 5))


def test_autocast_does_not_touch_the_angles():
    module, ids = mixed(), torch.randint(0, 64, (2, 1, 9))
    wanted = module(ids)
    with torch.autocast("cpu", torch.bfloat16):
        made = module(ids)
    assert made[0].dtype == torch.float32
    torch.testing.assert_close(made, wanted)
