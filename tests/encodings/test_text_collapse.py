"""Text alone: M-RoPE is 1D RoPE, bit for bit: its ids, its angles, its rotations and the model's logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrope import FAMILIES, VLM, Processor, RotaryEmbedding, RotarySpec, Segment, position_ids
from mmrope.vlm import VLMConfig

LENGTH = 300


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_count_up_on_every_axis(name):
    ids = position_ids([Segment.text(LENGTH)], FAMILIES[name]).ids  # [A, 1, S]
    assert (ids == np.arange(LENGTH)).all()


def test_exceptions_are_few_and_named():
    """HoPE's time pairs stand still, so its text is not turned as by 1D RoPE, nor OmniRoPE's, whose axes have spectra of their
    own; what transformers does for HunYuan is no rotation."""
    assert {key for key, row in FAMILIES.items() if row.rotary.layout == "axial"} == {"omnirope"}
    assert {key for key, row in FAMILIES.items() if row.rotary.still} == {"hope"}
    hope = RotarySpec.from_family("hope")
    assert hope.axis_letters == "hw" * 24 + "t" * 16
    assert (hope.inv_freq[48:] == 0).all()
    assert (hope.inv_freq[:48] > 0).all()
    assert {key for key, row in FAMILIES.items() if row.rotary.layout == "by_channel"} == {"hunyuan_vl@transformers-5.23"}
    with pytest.raises(
        ValueError, match=r"'by_channel' gives the two channels of a pair to different axes .* that is no rotation"
    ):
        RotarySpec.from_family("hunyuan_vl@transformers-5.23")


@pytest.mark.parametrize(
    "name", [key for key, row in FAMILIES.items() if not row.rotary.still and row.rotary.layout not in ("by_channel", "axial")]
)
def test_angles_and_rotations(name):
    row = FAMILIES[name]
    spec = RotarySpec.from_family(row)
    flat_spec = RotarySpec.rope(spec.head_dim, theta=row.rotary.theta, rotary_dim=spec.rotary_dim, pairing=row.rotary.pairing)
    flat_spec = flat_spec if spec.scaling is None else flat_spec.scaled(spec.scaling)
    ids = position_ids([Segment.text(LENGTH)], row).torch()["position_ids"]  # [A, 1, S]
    flat = ids[:1]  # [1, 1, S]
    q, k = torch.randn(1, 4, LENGTH, spec.head_dim), torch.randn(1, 2, LENGTH, spec.head_dim)
    for angles in ("exact", "hf"):
        rope, rope_1d = RotaryEmbedding(spec, angles=angles), RotaryEmbedding(flat_spec, angles=angles)
        for one, other in zip(
            (*rope(ids), *rope.rotate(q, k, ids)), (*rope_1d(flat), *rope_1d.rotate(q, k, flat)), strict=True
        ):
            assert torch.equal(one, other)


@given(st.permutations("t" * 4 + "h" * 7 + "w" * 5), st.integers(-(2**31), 2**31 - 1))
def test_any_allocation_at_any_position(axis, position):
    letters = "".join(axis)
    mrope, rope = RotaryEmbedding(RotarySpec.mrope(32, axis=letters)), RotaryEmbedding(RotarySpec.rope(32))
    same = torch.full((3, 1, 1), position)
    assert all(torch.equal(a, b) for a, b in zip(mrope(same), rope(same[:1]), strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_logits(layout, dtype):
    torch.manual_seed(0)
    spec = RotarySpec.mrope(32, theta=1e4, sections=(6, 5, 5), layout=layout)
    model = VLM(VLMConfig(rotary=spec)).to(dtype).eval()
    inputs = Processor()([[{"role": "user", "content": "Where is each token?"}], [{"role": "user", "content": "Here"}]])
    ids = inputs["position_ids"]
    with torch.no_grad():
        logits = model(**inputs).logits
        model.decoder.rotary = RotaryEmbedding(RotarySpec.rope(model.config.decoder.head_dim, theta=1e4))
        flat = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)[None]  # [1, B, S]
        assert torch.equal(ids, flat.expand_as(ids))
        assert torch.equal(model(**{**inputs, "position_ids": flat}).logits, logits)
