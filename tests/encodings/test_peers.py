"""Other libraries' rotations: equal where they are right, and by name where they are not."""

from __future__ import annotations

import warnings

import mpmath
import pytest
import torch
from rotary_embedding_torch import RotaryEmbedding as Lucidrains
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, apply_rot_embed_cat

from mmrope import RotaryEmbedding, RotarySpec, patch_position_ids
from mmrope.checkpoints import rotary_from_config
from mmrope.encodings import XPos
from mmrope.encodings.presets import _dinov3
from tests.encodings.test_spec import APART, PER_LAYER, upstream_case
from tests.support.upstream_ids import IN_TRANSFORMERS

with warnings.catch_warnings():  # of back ends of Liger that are not there
    warnings.simplefilter("ignore")
    from liger_kernel.ops.qwen2vl_mrope import LigerQwen2VLMRopeFunction
    from liger_kernel.ops.rope import LigerRopeFunction

COUNT = torch.arange(6)[None, None]
close = {"atol": 2e-6, "rtol": 0}


@pytest.fixture(scope="module")
def vectors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 6, 32, generator=generator), torch.randn(2, 2, 6, 32, generator=generator)


def wide(table):
    return torch.cat([table, table], dim=-1)


def test_rotary_embedding_torch(vectors):
    q, _ = vectors
    ours, _ = RotaryEmbedding(RotarySpec.rope(32, pairing="adjacent")).rotate(q, q, COUNT)
    torch.testing.assert_close(Lucidrains(dim=32).rotate_queries_or_keys(q), ours, **close)


def test_rotary_embedding_torchs_xpos_is_centred_on_the_middle(vectors):
    q, _ = vectors
    theirs = Lucidrains(dim=32, use_xpos=True).rotate_queries_and_keys(q, q)
    torch.testing.assert_close(theirs, XPos(32, center=3, pairing="adjacent").rotate(q, q, COUNT), **close)


def test_timms_axial_rotary(vectors):
    q, _ = vectors
    ids = torch.tensor(patch_position_ids([[1, 2, 3]], order="raster"))[:, None]
    theirs = apply_rot_embed_cat(q, RotaryEmbeddingCat(32, in_pixels=False, feat_shape=(2, 3), temperature=1e4).get_embed())
    torch.testing.assert_close(theirs, RotaryEmbedding(RotarySpec.axial(32, pairing="adjacent")).rotate(q, q, ids)[0], **close)


def test_timms_dinov3():
    ids = torch.tensor(patch_position_ids([[1, 2, 3]], order="raster", normalize="separate"))
    cos, sin = RotaryEmbedding(_dinov3(32))(ids)
    theirs = RotaryEmbeddingDinoV3(32, temperature=100, feat_shape=(2, 3)).get_embed()
    torch.testing.assert_close(theirs, torch.cat([wide(sin), wide(cos)], dim=-1), **close)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ligers_kernels_in_the_interpreter(vectors):
    """Its M-RoPE, which takes contiguous sections alone, and its RoPE."""
    q, k = vectors
    ids = torch.randint(0, 99, (3, 2, 6), generator=torch.Generator().manual_seed(1))
    plain = RotaryEmbedding(RotarySpec.rope(32, theta=1e6))
    tables = [plain(ids[axis : axis + 1]) for axis in range(3)]
    cos, sin = (torch.stack([wide(pair[n]) for pair in tables]) for n in (0, 1))  # [3, B, S, D]
    ours = RotaryEmbedding(RotarySpec.mrope(32, theta=1e6, sections=(4, 6, 6)))
    theirs = LigerQwen2VLMRopeFunction.apply(q.clone(), k.clone(), cos, sin, [4, 6, 6])
    for one, other in zip(theirs, ours.rotate(q, k, ids), strict=True):
        torch.testing.assert_close(one, other, **close)
    text = LigerRopeFunction.apply(q.clone(), k.clone(), *(wide(table) for table in plain(COUNT)))
    for one, other in zip(text, plain.rotate(q, k, COUNT), strict=True):
        torch.testing.assert_close(one, other, **close)


def test_float32_angles_are_wrong_far_out():
    """transformers, Liger, timm and rotary-embedding-torch multiply positions and frequencies in float32."""
    position = 1_000_003
    theirs = Lucidrains(dim=32)(torch.tensor([float(position)]))[0, ::2].cos()
    spec = RotarySpec.rope(32)
    cos, _ = RotaryEmbedding(spec)(torch.tensor([[[position]]]))
    exact = torch.tensor([float(mpmath.cos(mpmath.mpf(float(f)) * position)) for f in spec.inv_freq])
    assert (cos[0, 0] - exact).abs().max() < 1e-6
    assert (theirs - exact).abs().max() > 1e-3


def test_xpos_of_a_cache_has_another_centre_in_rotary_embedding_torch(vectors):
    """It centres queries on the middle of the queries and keys on the middle of the keys: a step by a cache does not score what
    the whole scores."""
    q, _ = vectors
    there = Lucidrains(dim=32, use_xpos=True)
    whole_q, whole_k = there.rotate_queries_and_keys(q, q)
    step_q, step_k = there.rotate_queries_with_cached_keys(q[:, :, -1:], q)
    theirs = (step_q * step_k[:, :, -1:]).sum(-1) / (whole_q[:, :, -1:] * whole_k[:, :, -1:]).sum(-1)
    ours = XPos(32, center=3, pairing="adjacent")
    whole = ours.rotate(q, q, COUNT)
    step = ours.rotate(q[:, :, -1:], q, COUNT[..., -1:], key_position_ids=COUNT)
    torch.testing.assert_close((step[0] * step[1][:, :, -1:]).sum(-1), (whole[0][:, :, -1:] * whole[1][:, :, -1:]).sum(-1))
    assert (theirs - 1).abs().max() > 1e-3


ORIGINAL = {"original_max_position_embeddings": 4096}
SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, **ORIGINAL},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "longrope": {"factor": 4.0, "short_factor": [1.5] * 8, "long_factor": [2.5] * 8, **ORIGINAL},
}
UNSCALED = {"cosmos3_edge", "ernie4_5_vl_moe"}  # whose own code refuses scalings
FAMILIES_WITH_MODULES = sorted(set(IN_TRANSFORMERS) - {"hunyuan_vl", APART, *PER_LAYER})


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("name", FAMILIES_WITH_MODULES)
def test_scaled_families_turn_as_transformers_own_modules(name, kind):
    """Bit for bit, one axis moved at a time; attention factors included."""
    if name in UNSCALED and kind != "default":
        with pytest.raises(Exception, match=r"rope"):  # of upstream's own kinds
            upstream_case(name, rope_type=kind, **SCALINGS[kind])
        return
    config, module = upstream_case(name, rope_type=kind, **SCALINGS[kind])
    spec = rotary_from_config(config)
    rope, length = RotaryEmbedding(spec, angles="hf"), {"length": 4} if spec.needs_length else {}
    for axis in range(3):
        ids = torch.zeros(3, 1, 1, dtype=torch.long)
        ids[axis] = 3
        for theirs, ours in zip(module(torch.zeros(1), ids), rope(ids, **length), strict=True):
            assert torch.equal(theirs[..., ::2] if spec.pairing == "adjacent" else theirs[..., : ours.shape[-1]], ours)
