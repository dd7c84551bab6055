"""xPos: relative, fading, and not keeping norms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrope.encodings import XPos


def score(xpos, q, k, p, r):
    turned, _ = xpos.rotate(q, q, torch.tensor([[[p]]]))
    _, other = xpos.rotate(k, k, torch.tensor([[[r]]]))
    return (turned * other).sum()


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(2, 1, 1, 1, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(-1000, 1000), st.sampled_from((0, 500)))
def test_scores_depend_on_the_distance_alone(vectors, p, r, shift, center):
    xpos = XPos(64, center=center)
    one, other = (score(xpos, *vectors, p + s, r + s) for s in (0, shift))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(vectors.norm()) * max(1, abs(float(one))))


def factors(xpos, position):
    """[P]: what each pair of a query at this position is multiplied by, seen in the lengths of pairs."""
    x = torch.ones(1, 1, 1, 64, dtype=torch.float64)
    rotated, _ = xpos.rotate(x, x, position[None, None, None])
    return (rotated.unflatten(-1, (2, 32)).norm(dim=-2)[0, 0, 0] / 2**0.5).numpy()


def test_the_factors_are_the_papers():
    zeta = factors(XPos(64), torch.tensor(512))
    np.testing.assert_allclose(zeta[[0, 1, 31]], [0.285714, 0.308036, 0.977679], rtol=1e-5)


@given(st.floats(-30_000, 30_000, width=32), st.sampled_from((0, 1.5, 500)), st.booleans())
def test_factors_are_right_at_any_position_without_float64(position, center, whole):
    """To float32's digits, however large the exponent."""
    position = round(position) if whole else position
    ids = torch.tensor(position, dtype=torch.int64 if whole else torch.float32)
    zeta = (np.arange(0, 64, 2) / 64 + 0.4) / 1.4
    made = factors(XPos(64, center=center), ids)
    wanted = zeta ** ((position - center) / 512)
    fits = (wanted > 1e-30) & (wanted < 1e30)
    np.testing.assert_allclose(made[fits], wanted[fits], rtol=1e-6)


def test_fractional_positions_have_the_gradient_of_rotation_and_factor():
    xpos, q = XPos(8, scale_base=4), torch.randn(1, 1, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[[0.5, 3.25, 7.75]]], dtype=torch.float64, requires_grad=True)
    total = lambda ids: (xpos.rotate(q, q, ids)[0] * torch.arange(8.0)).sum()  # noqa: E731
    [mine] = torch.autograd.grad(total(ids), ids)
    step = torch.zeros_like(ids)
    for n in range(3):
        step.zero_()[0, 0, n] = 1e-3
        slope = (total(ids + step) - total(ids - step)) / 2e-3
        torch.testing.assert_close(mine[0, 0, n], slope, rtol=1e-3, atol=1e-3)


def test_scores_fade_with_distance_and_norms_are_not_kept():
    """Pair by pair: zeta^(distance / 512) times the rotation's score."""
    xpos = XPos(64)
    one = torch.zeros(1, 1, 1, 64, dtype=torch.float64)
    one[..., 31] = 1  # the slowest pair, its rotation is all but none
    assert score(xpos, one, one, 512, 0) == pytest.approx(0.977679 * np.cos(512 * 1e4 ** (-62 / 64)), rel=1e-5)
    turned, inverse = xpos.rotate(one, one, torch.tensor([[[512]]]))
    assert turned.norm() == pytest.approx(0.977679, rel=1e-5)
    assert inverse.norm() == pytest.approx(1 / 0.977679, rel=1e-5)


def test_keys_of_a_cache_keep_the_center(vectors):
    q, k = (x.expand(1, 1, 4, 64) for x in vectors)
    xpos = XPos(64, center=2)
    whole, keys = xpos.rotate(q, k, torch.arange(4)[None, None])
    last, again = xpos.rotate(q[:, :, 3:], k, torch.tensor([[[3]]]), key_position_ids=torch.arange(4)[None, None])
    torch.testing.assert_close(last, whole[:, :, 3:])
    torch.testing.assert_close(again, keys)


def test_refusals():
    with pytest.raises(ValueError, match="scale_base must be a positive number, got 0"):
        XPos(64, scale_base=0)


def test_casts_and_moves_do_not_touch_the_factors(vectors):
    xpos, ids = XPos(64), torch.tensor([[[8000]]])
    wanted = xpos.rotate(*vectors, ids)
    torch.testing.assert_close(XPos(64).to(torch.bfloat16).rotate(*vectors, ids), wanted)
    with torch.device("meta"):
        away = XPos(64)
    torch.testing.assert_close(away.to_empty(device="cpu").rotate(*vectors, ids), wanted)
