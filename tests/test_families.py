from __future__ import annotations

import dataclasses
import json

import pytest
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

from mmrope import FAMILIES, Segment, family, family_from_config

RELEASED_QWEN2_5_VL = {  # the keys of a released config.json that matter here
    "model_type": "qwen2_5_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"spatial_merge_size": 2, "tokens_per_second": 2, "temporal_patch_size": 2},
}


def test_every_row_says_where_it_is_from_and_whose_it_is():
    for key, row in FAMILIES.items():
        assert str(row) == key == row.key
        assert row.source
        assert row.name in FAMILIES, f"{key} is a revision of a family without a reference"
        assert family(key) is not None
        assert family(row) == row


def test_facts_belong_to_checkpoints_and_rules_do_not_change_by_them():
    row = family("qwen2_5_vl", ids_per_second=4, spatial_merge=3)
    assert (row.ids_per_second, row.spatial_merge, row.advance) == (4, 3, "max")
    assert family(row, ids_per_second=8).ids_per_second == 8
    with pytest.raises(ValueError, match=r"qwen2_5_vl: 'advance' is not a checkpoint's fact .*dataclasses.replace"):
        family("qwen2_5_vl", advance="spatial")
    with pytest.raises(ValueError, match=r"qwen2_vl: ids_per_second belongs to the families whose time is in seconds"):
        family("qwen2_vl", ids_per_second=4)
    with pytest.raises(ValueError, match=r"ids_per_second must be a positive number, got -1"):
        family("qwen2_5_vl", ids_per_second=-1)
    with pytest.raises(ValueError, match=r"advance must be one of .* got 'sideways'"):
        dataclasses.replace(family("qwen2_vl"), advance="sideways")
    for wrong in (0, "2", 2.0):
        with pytest.raises(ValueError, match=r"spatial_merge must be a whole number of patches, at least 1, got"):
            family("qwen2_vl", spatial_merge=wrong)


def test_patch_grids_become_token_grids():
    row = family("qwen2_5_vl")
    assert row.image((1, 8, 12)) == Segment.image(h=4, w=6)
    assert row.video([4, 8, 12], seconds_per_grid=1) == Segment.video(t=4, h=4, w=6, seconds_per_grid=1.0)
    with pytest.raises(ValueError, match=r"patch grid 0 is 1 x 5 x 6, but qwen2_5_vl merges 2 x 2 .* multiples of 2"):
        row.image((1, 5, 6))
    with pytest.raises(ValueError, match=r"an image has one temporal grid, got patch grid \(2, 4, 4\); use Family.video"):
        row.image((2, 4, 4))
    with pytest.raises(ValueError, match=r"whole numbers \[n, 3\]"):
        row.image((1.0, 4.0, 4.5))
    with pytest.raises(ValueError, match=r"qwen3_vl splits videos: .*Segment.frame\(h=4, w=6\) alternately, 4 times"):
        family("qwen3_vl").video((4, 8, 12))


@pytest.mark.parametrize("revision", [None, "transformers-5.23"])
def test_a_config_gives_the_family_and_its_facts(revision, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_QWEN2_5_VL))
    for config in (RELEASED_QWEN2_5_VL, tmp_path, tmp_path / "config.json", str(tmp_path)):
        row = family_from_config(config, revision)
        assert (row.name, row.revision) == ("qwen2_5_vl", revision or "")
        assert (row.ids_per_second, row.spatial_merge) == (2, 2)
        assert (row.image_token_id, row.video_token_id) == (151655, 151656)


def test_transformers_config_objects():
    config = Qwen2_5_VLConfig(vision_config={"tokens_per_second": 3, "spatial_merge_size": 4})
    row = family_from_config(config)
    assert (row.key, row.ids_per_second, row.spatial_merge) == ("qwen2_5_vl", 3, 4)
    assert family_from_config(Qwen2VLConfig()).key == "qwen2_vl"
    assert family_from_config(Qwen3VLConfig(), "transformers-5.23").key == "qwen3_vl@transformers-5.23"


def test_configs_that_say_too_little_are_refused(tmp_path):
    without = {**RELEASED_QWEN2_5_VL, "vision_config": {"spatial_merge_size": 2}}
    with pytest.raises(
        ValueError, match=r"no vision_config.tokens_per_second. Class defaults differ .* mmrope does not\s+guess"
    ):
        family_from_config(without)
    with pytest.raises(ValueError, match=r"no vision_config.spatial_merge_size"):
        family_from_config({"model_type": "qwen2_vl"})
    with pytest.raises(ValueError, match=r"model_type 'llama'; the families are qwen2_5_vl, qwen2_vl, qwen3_vl"):
        family_from_config({"model_type": "llama"})
    with pytest.raises(ValueError, match=r"unknown family 'qwen2_5_vl@transformers-9'"):
        family_from_config(RELEASED_QWEN2_5_VL, "transformers-9")
    with pytest.raises(ValueError, match=r"no config at .*config.json"):
        family_from_config(tmp_path)
    with pytest.raises(ValueError, match=r"config must be a Hugging Face config, a dict or a path, got int"):
        family_from_config(3)
