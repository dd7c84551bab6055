"""Rotary embeddings of towers and of diffusion models, against their own code."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Gemma4VisionConfig, Kimi_K25VisionConfig, PixtralVisionConfig, Qwen2VLConfig
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.kimi_k25 import modeling_kimi_k25
from transformers.models.pixtral.modeling_pixtral import PixtralVisionRotaryEmbedding
from transformers.models.qwen2_vl import modeling_qwen2_vl

from mmrope import RotaryEmbedding, patch_position_ids
from mmrope.encodings import PRESETS, preset
from tests.support import ROOT

REFERENCES = [json.loads(path.read_text()) for path in sorted((ROOT / "tests" / "references" / "rotary").glob("*.json"))]
CASES = {name: case for reference in REFERENCES for name, case in reference["cases"].items()}
BY_MODULES = ("qwen2_vl_vision", "pixtral", "dinov3", "gemma4_vision")
"""Presets whose upstream is installed: tests below run it."""


@pytest.mark.parametrize("name", CASES)
def test_vectors_rotate_as_upstream(name):
    case = CASES[name]
    spec, ids = preset(case["preset"]), torch.tensor(np.array(case["ids"]))[:, None]
    x = torch.sin(torch.arange(spec.head_dim, dtype=torch.float32)).expand(1, 1, ids.shape[2], -1)
    rotated = RotaryEmbedding(spec).rotate(x, x, ids)[0][0, 0, :, case.get("channels", slice(None))]
    torch.testing.assert_close(rotated, torch.tensor(case["rotated"]), atol=case.get("tolerance", 3e-6), rtol=0)


def test_all_presets_are_shown_equal_to_their_upstream():
    assert {case["preset"] for case in CASES.values()} | set(BY_MODULES) == set(PRESETS)


@pytest.mark.parametrize(
    ("name", "options", "before"),
    [("moonvit", {}, 0), ("croco", {}, 0), ("rope_vit_axial", {}, 0), ("vggt", {"offset": 1}, 2)],
)
def test_ids_of_patches(name, options, before):
    ids = patch_position_ids([[1, 4, 5]], order="raster", **options)
    if preset(name).axes == "wh":
        ids = ids[[1, 0]]
    theirs = np.array(CASES[name]["ids"])
    np.testing.assert_array_equal(theirs[:, before:], ids)
    assert not theirs[:, :before].any()


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
        with pytest.raises(ValueError, match=r"normalize (must be one of|goes with)"):
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


def test_gemma4s_tower():
    config = Gemma4VisionConfig()
    image = np.zeros((16 * 6, 16 * 9, 3), dtype=np.uint8)
    positions = Gemma4ImageProcessorPil()(image, do_resize=False, return_tensors="pt")["image_position_ids"]  # [1, P, 2]
    ids = positions[0].T  # [2, P]
    np.testing.assert_array_equal(ids[:, :54], patch_position_ids([[1, 6, 9]], order="raster")[[1, 0]])
    assert (ids[:, 54:] == -1).all()
    x = torch.sin(torch.arange(ids.shape[1] * 64, dtype=torch.float32)).reshape(1, -1, 1, 64)
    cos, sin = modeling_gemma4.Gemma4VisionRotaryEmbedding(config)(x, positions)
    theirs = modeling_gemma4.apply_multidimensional_rope(x, cos, sin, positions)
    ours, _ = RotaryEmbedding(preset("gemma4_vision")).rotate(x, x, ids[:, None], heads=-2)
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0)


def test_moonvit_in_transformers_pairs_halves():
    ids = torch.tensor(patch_position_ids([[2, 4, 6]], order="raster"))  # [2, P]
    x = torch.sin(torch.arange(48 * 72, dtype=torch.float32)).reshape(48, 1, 72)
    tables = modeling_kimi_k25.Kimi_K25VisionRotaryEmbedding(Kimi_K25VisionConfig())(x, ids.T)
    theirs, _ = modeling_kimi_k25.apply_rotary_pos_emb_vision(x, x, *tables)
    ours, _ = RotaryEmbedding(replace(preset("moonvit"), pairing="half")).rotate(x, x, ids, heads=-2)
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0)


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
