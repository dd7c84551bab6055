from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from transformers import CONFIG_MAPPING, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

from mmrope import FAMILIES, Segment, VideoTiming, family, family_from_config, position_ids
from mmrope.positions import Canvas, TokenIds
from mmrope.positions.families import departures
from tests.support.upstream_ids import IN_TRANSFORMERS

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
    with pytest.raises(ValueError, match=r"qwen2_5_vl: 'advance' is not a checkpoint's fact .*Family.replace"):
        family("qwen2_5_vl", advance="spatial")
    with pytest.raises(ValueError, match=r"qwen2_vl has no ids_per_second: it places image, video without; leave it out"):
        family("qwen2_vl", ids_per_second=4)
    with pytest.raises(ValueError, match=r"ids_per_second must be a positive number, got -1"):
        family("qwen2_5_vl", ids_per_second=-1)
    with pytest.raises(ValueError, match=r"advance must be one of .* got 'sideways'"):
        dataclasses.replace(family("qwen2_vl"), advance="sideways")
    with pytest.raises(ValueError, match=r"videorope: its ids are whole numbers, so stride must be one, got 0.5"):
        family("videorope", stride=0.5)
    with pytest.raises(
        ValueError, match=r"qwen2_vl: no field says where \['picture'\] go on the axes thw: name functions in place"
    ):
        dataclasses.replace(family("qwen2_vl"), media=("picture",))
    for wrong in (0, "2", 2.0):
        with pytest.raises(ValueError, match=r"spatial_merge must be (a whole number|at least 1), got"):
            family("qwen2_vl", spatial_merge=wrong)
    assert family("qwen2_vl", spatial_merge=np.int64(3)).spatial_merge == 3


def test_the_largest_token_grids():
    """2^31 - 1 tokens, which is a prime number."""
    row = family("qwen2_vl")
    assert row.token_grid((1, 2, 2 * (2**31 - 1))) == (1, 1, 2**31 - 1)
    for t, h, w in ((1, 1, 2**31), (1, 2**16, 2**15), (2**16, 1, 2**15), (2, 2**15, 2**15)):
        with pytest.raises(ValueError, match=rf"{t} x {h} x {w} tokens, more than 2,147,483,647"):
            row.token_grid((t, 2 * h, 2 * w), video=True)


def test_patch_grids_become_token_grids():
    row = family("qwen2_5_vl")
    assert row.image((1, 8, 12)) == Segment.image(h=4, w=6)
    assert row.video([4, 8, 12], seconds_per_grid=1) == Segment.video(t=4, h=4, w=6, seconds_per_grid=1.0)
    with pytest.raises(ValueError, match=r"patch grid 0 is 1 x 5 x 6, but qwen2_5_vl merges 2 x 2 .* multiples of 2"):
        row.image((1, 5, 6))
    with pytest.raises(ValueError, match=r"patch grid 0 has 2 temporal grids; an image has one, .*\(Family.video\)"):
        row.image((2, 4, 4))
    with pytest.raises(ValueError, match=r"a patch grid must be three whole numbers \(t, h, w\), got \(1.0, 4.0, 4.5\)"):
        row.image((1.0, 4.0, 4.5))
    with pytest.raises(ValueError, match=r"a patch grid must be three whole numbers \(t, h, w\), got \(4, 4\)"):
        row.image((4, 4))
    with pytest.raises(ValueError, match=r"grids must be whole numbers \[n, 3\] \(t, h, w\), got float64 \[1, 3\]"):
        row.token_grids([(1.0, 4.0, 4.5)], "grid")
    with pytest.raises(ValueError, match=r"qwen3_vl splits videos: .*Segment.frame\(h=4, w=6\) alternately, 4 times"):
        family("qwen3_vl").video((4, 8, 12))
    timing = VideoTiming(frame_indices=range(8), sampled_fps=4)
    assert row.video((4, 8, 12), timing=timing) == Segment.video(t=4, h=4, w=6, seconds_per_grid=0.5)
    with pytest.raises(
        ValueError, match=r"the video of patch grid \(5, 8, 12\) has 5 temporal grids, but its timing lists 8 sampled"
    ):
        row.video((5, 8, 12), timing=timing)
    with pytest.raises(
        ValueError, match=r"a video: give seconds_per_grid \(evenly spaced grids\) or times or a timing, not both"
    ):
        row.video((4, 8, 12), timing=timing, seconds_per_grid=1)
    ernie = family("ernie4_5_vl_moe")  # two temporal grids of one frame each make a token
    assert ernie.video((4, 8, 12)) == Segment.video(t=2, h=4, w=6)
    assert ernie.video((1, 8, 12)) == Segment.video(t=1, h=4, w=6)
    with pytest.raises(
        ValueError, match=r"patch grid 0 has 3 temporal grids, but ernie4_5_vl_moe merges 2 of a video's to a token"
    ):
        ernie.video((3, 8, 12))
    assert family("hunyuan_vl").image((1, 8, 12)) == Segment.image(h=4, w=7)
    assert family("minicpmv4_7").image((1, 8, 12)) == Canvas.make(h=2, w=3)


@pytest.mark.parametrize("revision", [None, "transformers-5.23"])
def test_a_config_gives_the_family_and_its_facts(revision, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_QWEN2_5_VL))
    for config in (RELEASED_QWEN2_5_VL, tmp_path, tmp_path / "config.json", str(tmp_path)):
        row = family_from_config(config, revision)
        assert (row.name, row.revision) == ("qwen2_5_vl", revision or "")
        assert (row.ids_per_second, row.spatial_merge) == (2, 2)
        assert row.checkpoint.token_ids == TokenIds(image=151655, video=151656)


def test_transformers_config_objects():
    config = Qwen2_5_VLConfig(vision_config={"tokens_per_second": 3, "spatial_merge_size": 4})
    row = family_from_config(config)
    assert (row.key, row.ids_per_second, row.spatial_merge) == ("qwen2_5_vl", 3, 4)
    assert family_from_config(Qwen2VLConfig()).key == "qwen2_vl"
    assert family_from_config(Qwen3VLConfig(), "transformers-5.23").key == "qwen3_vl@transformers-5.23"


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_every_family_reads_the_config_of_its_own_class(name):
    """Every path of the table, against the attributes of transformers' config object."""
    config = CONFIG_MAPPING[name]()
    if name == "qwen2_5_vl":  # class defaults that are not the released checkpoints' are refused
        config.vision_config.tokens_per_second = 2
    if name == "qwen3_omni_moe":
        config.thinker_config.position_id_per_seconds = 13
    row = family_from_config(config)
    assert row.name == name
    thinker = getattr(config, "thinker_config", config)
    vision = getattr(thinker, "vision_config", None)
    if hasattr(vision, "spatial_merge_size") and name != "glm_image":  # whose tower's merge is not the language model's
        assert row.spatial_merge == vision.spatial_merge_size
    if row.temporal_merge > 1:
        assert row.temporal_merge == vision.temporal_merge_size
    if hasattr(vision, "temporal_patch_size") and name not in (
        "glm_image",
        "hunyuan_vl",
        "cosmos3_edge",
    ):  # which place no videos
        assert row.frames_per_grid == vision.temporal_patch_size
    if row.uses_seconds and name != "paddleocr_vl":
        rate = getattr(thinker, "position_id_per_seconds", None) or vision.tokens_per_second
        assert row.ids_per_second == rate
    stated = {f"{k}": getattr(thinker, k) for k in dir(thinker) if k.endswith(("_token_id", "_token_index"))}
    for field in dataclasses.fields(TokenIds):
        value = getattr(row.checkpoint.token_ids, field.name)
        if value is not None:
            assert value in (stated.get(f"{field.name}_token_id"), stated.get(f"{field.name}_token_index")), field.name
    if name == "qwen2_5_omni":
        assert row.reading.seconds_per_chunk == thinker.seconds_per_chunk
        assert family_from_config(thinker) == row  # the thinker's own config says it, too


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("qwen2_vl", {"stride": 3}),
        ("qwen3_vl", {"temporal_merge": 2}),
        ("hunyuan_vl", {"stride": 2}),
        ("qwen2_vl", {"seconds_per_chunk": 2.0}),
        ("glm_image", {"frames_per_grid": 7}),
    ],
)
def test_facts_that_a_family_has_no_use_for_are_refused(name, facts):
    [fact] = facts
    with pytest.raises(ValueError, match=rf"{name} has no {fact}: it places .* without; leave it out"):
        family(name, **facts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ordinal": "sideways"}, r"ordinal must be one of \('row', 'batch'\), got 'sideways'"),
        ({"dtype": "int8"}, r"dtype must be one of \('int64', 'float32'\), got 'int8'"),
        ({"place": {"vido": len}}, r"place has functions for \['vido'\], which are not among its media \('image', 'video'\)"),
        ({"axes": "abc"}, r"no field says where \['image', 'video'\] go on the axes abc: name functions in place"),
        ({"media": ("image", "audio_in_video")}, r"no field says where \['audio_in_video'\] go on the axes thw"),
        ({"stride": "0.5"}, r"stride must be a finite number, got '0.5'"),
        ({"stride": -1}, r"stride must be a positive number, got -1"),
        ({"spatial_merge": "2"}, r"spatial_merge must be a whole number, got '2'"),
    ],
)
def test_rows_that_say_nonsense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(family("qwen2_vl"), **changes)


def test_a_function_that_places_wrongly_is_refused():
    def short(segment, start, family):
        return np.zeros((3, 1), dtype=np.int64), start

    row = dataclasses.replace(family("qwen2_vl"), place={"image": short})
    with pytest.raises(
        ValueError, match=r"qwen2_vl: short returned int64 \[3, 1\] and 0 for .* returns \(ids, next\): ids int64 \[3, 6\]"
    ):
        position_ids([Segment.image(h=2, w=3)], row)


def test_released_ernie_configs_have_a_name_of_their_own():
    config = {"model_type": "ernie4_5_moe_vl", "spatial_conv_size": 2, "temporal_conv_size": 2, "im_patch_id": 100295}
    row = family_from_config(config)
    assert (row.key, row.temporal_merge, row.checkpoint.token_ids.image) == ("ernie4_5_vl_moe", 2, 100295)


def test_token_ids_are_whole_numbers():
    """A string would find no token, and media would be text."""
    with pytest.raises(ValueError, match=r"token_ids.image must be a whole number, the id of a token, got '151655'"):
        family_from_config({**RELEASED_QWEN2_5_VL, "image_token_id": "151655"})


def test_the_canvas_reads_how_much_it_merges():
    config = {"model_type": "minicpmv4_7", "image_start_id": 1, "newline_id": 5}
    assert family_from_config({**config, "downsample_mode": "4x"}).spatial_merge == 2
    row = family_from_config({**config, "downsample_mode": "16x"})
    assert row.spatial_merge == 4
    assert row.checkpoint.token_ids == TokenIds(image_start=1, newline=5)


def test_departures_are_what_an_upstream_does_otherwise():
    assert departures(family("qwen2_5_vl@transformers-4.57")) == [
        "time ids are i * floor(seconds) * ids_per_second",
        "padding carries 1",
    ]
    assert departures(family("qwen3_vl@transformers-5.23")) == []


@pytest.mark.parametrize("key", [key for key, row in FAMILIES.items() if row.revision])
def test_every_departure_has_words(key):
    """A field that a revision changes is said, so that `mmrope families` leaves nothing out."""
    row, reference = family(key), family(family(key).name)
    changed = {field.name for field in dataclasses.fields(row) if getattr(row, field.name) != getattr(reference, field.name)}
    follow = {"revision", "source", "ids_per_second", "seconds_per_chunk"}  # the last two go with time and media
    follow |= {"place"} if "media" in changed else set()
    assert len(departures(row)) == len(changed - follow)


def test_what_a_released_config_leaves_out():
    """Qwen2.5-VL-32B's has no spatial_merge_size: every version of transformers takes 2."""
    config = {**RELEASED_QWEN2_5_VL, "vision_config": {"hidden_size": 1280, "tokens_per_second": 2}}
    assert family_from_config(config) == family_from_config(RELEASED_QWEN2_5_VL)


def test_configs_that_say_too_little_are_refused(tmp_path):
    without = {**RELEASED_QWEN2_5_VL, "vision_config": {"spatial_merge_size": 2}}
    with pytest.raises(
        ValueError, match=r"no vision_config.tokens_per_second. Class defaults differ .* mmrope does not\s+guess"
    ):
        family_from_config(without)
    with pytest.raises(ValueError, match=r"no vision_config.spatial_merge_size"):
        family_from_config({"model_type": "glm4v"})
    with pytest.raises(
        ValueError,
        match=r"model_type 'llama', whose tokens have one position each",
    ):
        family_from_config({"model_type": "llama"})
    with pytest.raises(
        ValueError, match=r"'qwen2_5_vl_text', which is not .* A full config is needed, not its text or vision part.* Known are"
    ):
        family_from_config({"model_type": "qwen2_5_vl_text"})
    with pytest.raises(
        ValueError,
        match=r"family qwen2_5_vl has no revision 'transformers-9'; it has transformers-5.23, transformers-4.57, vllm-0.33, and the",
    ):
        family_from_config(RELEASED_QWEN2_5_VL, "transformers-9")
    with pytest.raises(ValueError, match=r"no config at .*config.json"):
        family_from_config(tmp_path)
    with pytest.raises(ValueError, match=r"config must be a Hugging Face config, a dict or a path, got int"):
        family_from_config(3)
