"""Rotary embeddings of towers and of diffusion models, against their own code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import PixtralVisionConfig, Qwen2VLConfig
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding
from transformers.models.pixtral.modeling_pixtral import PixtralVisionRotaryEmbedding
from transformers.models.qwen2_vl import modeling_qwen2_vl

from mmrope import PRESETS, RotaryEmbedding, patch_position_ids, preset, rotate

REFERENCES = json.loads((ROOT / "tests" / "references" / "rotary" / "diffusers.json").read_text())


@pytest.mark.parametrize("name", REFERENCES["cases"])
def test_vectors_turn_as_in_diffusers(name):
    case, spec = REFERENCES["cases"][name], preset(name)
    cos, sin = RotaryEmbedding(spec)(torch.tensor(case["ids"])[:, None])
    x = torch.sin(torch.arange(spec.head_dim, dtype=torch.float32)).expand(1, 1, cos.shape[1], -1)
    turned = rotate(x, cos, sin, pairing=spec.pairing)[0, 0]
    torch.testing.assert_close(turned, torch.tensor(case["turned"]), atol=3e-6, rtol=0)


def test_dinov3_turns_by_normalized_coordinates():
    module = DINOv3ViTRopePositionEmbedding(DINOv3ViTConfig(hidden_size=384, num_attention_heads=6, patch_size=16)).eval()
    for h, w in ((4, 4), (3, 7)):
        cos, sin = module(torch.zeros(1, 3, 16 * h, 16 * w))
        ids = torch.tensor(patch_position_ids([[1, h, w]], order="raster", normalize="separate"))
        ours = RotaryEmbedding(preset("dinov3"))(ids)
        for one, other in zip((cos, sin), ours, strict=True):
            torch.testing.assert_close(one, torch.cat([other, other], dim=-1), atol=2e-6, rtol=0)
    np.testing.assert_allclose(2 * np.pi / preset("dinov3").inv_freq[[0, 1, 2, 15]], [1, 1.33352, 1.77828, 74.989], rtol=1e-5)


def test_normalized_coordinates_by_hand():
    ids = patch_position_ids([[1, 4, 2]], order="raster", normalize="separate")
    np.testing.assert_allclose(ids[:, ::2][0], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(ids[1, :2], [-0.5, 0.5])
    assert ids.dtype == np.float32
    np.testing.assert_allclose(patch_position_ids([[1, 4, 2]], order="raster", normalize="max")[1, :2], [-0.75, -0.25])
    np.testing.assert_allclose(patch_position_ids([[1, 4, 2]], order="raster", normalize="min")[0, ::2], [-0.5, 0.5, 1.5, 2.5])
    assert patch_position_ids([[1, 1, 2]], order="raster", offset=1).tolist() == [[1, 1], [1, 2]]
    for wrong in ({"normalize": "x"}, {"normalize": "max", "offset": 1}, {"normalize": "max", "axes": "thw"}):
        with pytest.raises(ValueError, match="normalize must be 'separate', 'max' or 'min', of axes 'hw' without an offset"):
            patch_position_ids([[1, 2, 2]], **wrong)


def test_pixtral_deals_one_spectrum_out():
    config = PixtralVisionConfig(hidden_size=256, num_attention_heads=4, image_size=128, patch_size=16)
    ids = torch.tensor(patch_position_ids([[1, 4, 3]], order="raster"))  # [2, P]
    cos, _ = PixtralVisionRotaryEmbedding(config)(torch.zeros(1), ids[None])
    ours, _ = RotaryEmbedding(preset("pixtral"))(ids)
    torch.testing.assert_close(cos[0], torch.cat([ours, ours], dim=-1), atol=1e-6, rtol=0)


def test_qwen2_vls_tower():
    config = Qwen2VLConfig().vision_config
    ids = torch.tensor(patch_position_ids([[1, 4, 6]]))
    tables = modeling_qwen2_vl.Qwen2VLVisionRotaryEmbedding(config)(torch.zeros(1), ids[None])
    ours = RotaryEmbedding(preset("qwen2_vl_vision"))(ids)
    for one, other in zip(tables, ours, strict=True):
        torch.testing.assert_close(one[0], torch.cat([other, other], dim=-1), atol=1e-6, rtol=0)


def test_rope_vits_frequencies():
    spec = preset("rope_vit_axial")
    np.testing.assert_allclose(spec.inv_freq[[0, 1, 2, 15]], [1, 0.74989, 0.56234, 0.0133352], rtol=1e-5)
    assert spec.axis_letters == "w" * 16 + "h" * 16


def test_all_presets_say_where_they_are_from():
    for name, row in PRESETS.items():
        assert row.source
        assert row.ids
        spec = preset(name)
        assert spec.rotary_dim == spec.head_dim
    with pytest.raises(ValueError, match="unknown preset 'wam'; known are qwen2_vl_vision, pixtral"):
        preset("wam")
