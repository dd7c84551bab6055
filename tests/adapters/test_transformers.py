"""transformers' get_rope_index, answered by mmrope: same arguments, same returns."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmrope
from mmrope import Segment
from mmrope.adapters.transformers import RopeIndex, _media_after
from mmrope.positions import AudioInVideo
from tests.positions.test_inputs import upstream_case
from tests.support import cases
from tests.support.strategies import upstream_batches
from tests.support.upstream_ids import (
    IN_TRANSFORMERS,
    TRANSFORMERS,
    as_inputs,
    get_rope_index,
    rope_index_arguments,
    upstream_class,
    with_tokens,
)

VERSION = TRANSFORMERS.removeprefix("transformers-")
WITH_THE_METHOD = sorted(set(IN_TRANSFORMERS) - {"neomme"})  # its processor writes the ids


@pytest.mark.parametrize("name", WITH_THE_METHOD)
def test_the_signature_is_the_methods(name):
    rule = with_tokens(f"{name}@{TRANSFORMERS}")
    theirs = [p for p in inspect.signature(upstream_class(rule).get_rope_index).parameters.values() if p.name != "self"]
    ours = list(inspect.signature(RopeIndex(rule, VERSION)).parameters.values())
    assert [(p.name, p.kind) for p in ours] == [(p.name, p.kind) for p in theirs]
    optional = [p.name for p in theirs if p.default is not inspect.Parameter.empty]
    assert {p.name: p.default for p in ours if p.name in optional and p.name != "input_ids"} == {
        p.name: p.default for p in theirs if p.name in optional and p.name != "input_ids"
    }


@pytest.mark.parametrize("name", WITH_THE_METHOD)
@settings(max_examples=cases(15))
@given(data=st.data())
def test_returns_equal_the_methods(name, data):
    """Ids and deltas with their shapes and dtypes, by place and by name."""
    rule, batch = data.draw(upstream_case(name))
    inputs = as_inputs(batch, rule)
    expected = get_rope_index(rule, inputs)()
    arguments = rope_index_arguments(rule, inputs)
    if data.draw(st.booleans()):
        order = list(inspect.signature(RopeIndex(rule, VERSION)).parameters)
        found = RopeIndex(rule, VERSION)(
            *(arguments.get(key, False if key == "use_audio_in_video" else None) for key in order if key != "kwargs")
        )
    else:
        found = RopeIndex(rule, VERSION)(**arguments)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    mask = torch.as_tensor(inputs["attention_mask"]).bool()  # the Omni models pad with 1 or 0, by whether there are grids
    torch.testing.assert_close(found[0][:, mask], expected[0][:, mask], rtol=0, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("version", ["4.57", "5.23", "5.24.0"])
@pytest.mark.parametrize(
    "name", sorted({row.name for row in mmrope.FAMILIES.values() if row.revision.startswith("transformers")} - {"neomme"})
)
@settings(max_examples=cases(10))
@given(data=st.data())
def test_the_reference_by_the_same_call(name, version, data):
    """The rule that weights were trained with, in the signature of either version."""
    if version == "4.57" and f"{name}@transformers-{version}" not in mmrope.FAMILIES:
        with pytest.raises(
            ValueError, match=rf"transformers {version} has no get_rope_index of {name}; 5.20, .*5.23, 5.24 have"
        ):
            RopeIndex(with_tokens(name), version)
        return
    rule = with_tokens(name)
    batch = data.draw(upstream_batches(rule))
    inputs = as_inputs(batch, rule)
    index = pickle.loads(pickle.dumps(RopeIndex(rule, version)))
    arguments = {key: torch.as_tensor(value) for key, value in inputs.items()}
    if "video_second_per_grid" in arguments:
        arguments["second_per_grids"] = arguments.pop("video_second_per_grid")
    known = inspect.signature(index).parameters
    if "use_audio_in_video" in known:
        arguments["use_audio_in_video"] = True
    ids, deltas = index(**{key: value for key, value in arguments.items() if key in known or "kwargs" in known})
    positions = mmrope.position_ids(mmrope.segments_from_inputs(inputs, rule), rule)
    np.testing.assert_array_equal(ids.numpy(), positions.ids)
    counted = positions.mask.sum(axis=1) if version != "4.57" or rule.reading.states_audio else positions.mask.shape[1]
    if not rule.reading.targets:
        largest = np.where(positions.mask, positions.ids, -1).max(axis=(0, 2))
        np.testing.assert_array_equal(deltas[:, 0].numpy(), (largest + 1 - counted).astype(rule.dtype))


def test_a_config_or_a_name_will_do():
    assert RopeIndex("qwen2_vl").family == mmrope.family("qwen2_vl")
    config = {"model_type": "qwen2_vl", "vision_config": {"spatial_merge_size": 4}}
    assert RopeIndex(config).family.spatial_merge == 4
    with pytest.raises(ValueError, match=r"transformers 5.24 has no get_rope_index of neomme"):
        RopeIndex("neomme")


def test_a_narrow_dtype_stays():
    rule = with_tokens("qwen2_vl")
    inputs = {
        key: torch.as_tensor(value) for key, value in as_inputs([[Segment.text(3), Segment.image(h=2, w=2)]], rule).items()
    }
    inputs["input_ids"] = inputs["input_ids"].int()
    ids, deltas = RopeIndex(rule)(**inputs)
    assert (ids.dtype, deltas.dtype) == (torch.int32, torch.int64)


def test_after_a_cache_media_keep_what_is_new_of_each_kind():
    image, video = Segment.image(h=1, w=2), Segment.video(t=1, h=1, w=2, seconds_per_grid=1.0)
    row = [Segment.text(1), image, video, Segment.text(1), image, Segment.text(1), video]
    grids = torch.tensor([[1, 2, 4]] * 2)
    inputs = {"image_grid_thw": grids, "video_grid_thw": grids, "second_per_grid_ts": torch.tensor([1.0, 2.0])}
    assert _media_after(0, [row], inputs) == {}
    left = _media_after(9, [row], inputs)  # both images are in the cache, and the first video
    assert left["image_grid_thw"] is None
    assert (left["video_grid_thw"].tolist(), left["second_per_grid_ts"].tolist()) == ([[1, 2, 4]], [2.0])
    assert _media_after(1, [[Segment.text(1), video, image]], {**inputs, "image_grid_thw": grids[:1]}) == {}


def test_a_model_that_cuts_its_inputs_is_refused():
    model = torch.nn.Linear(1, 1)
    model.config = {"model_type": "qwen2_vl", "vision_config": {"spatial_merge_size": 2}}
    assert RopeIndex(model).family.name == "qwen2_vl"
    with pytest.raises(ValueError, match=r"the model is wrapped in DataParallel, which cuts .*Start a process for each GPU"):
        RopeIndex(torch.nn.DataParallel(model))


def test_refusals():
    rule = with_tokens("qwen2_5_omni")
    row = [Segment.text(2), AudioInVideo.make(t=2, h=1, w=2, seconds_per_grid=1.0, audio=30), Segment.text(2)]
    inputs = {key: torch.as_tensor(value) for key, value in as_inputs([row], rule).items()}
    given = {
        "second_per_grids": inputs["video_second_per_grid"],
        **{k: inputs[k] for k in ("input_ids", "video_grid_thw", "audio_seqlens")},
    }
    with pytest.raises(
        ValueError, match="row 0 has audio in a video by its markers, but use_audio_in_video is not set: pass True"
    ):
        RopeIndex(rule)(**given)
    assert RopeIndex(rule)(**given, use_audio_in_video=True)[0].shape == (3, 1, inputs["input_ids"].shape[1])
    with pytest.raises(ValueError, match=r"transformers 4.44 is not known, nor installed: known are 4.57, 5.20, "):
        RopeIndex(rule, "4.44")
    with pytest.raises(ValueError, match="input_ids must be a tensor"):
        RopeIndex(rule)([[1, 2]])
    with pytest.raises(TypeError, match="unexpected keyword argument 'mm_token_type_ids'"):
        RopeIndex(rule)(input_ids=inputs["input_ids"], mm_token_type_ids=None)
    with pytest.raises(
        ValueError, match=r"transformers 4.57 has no get_rope_index of videorope, and no version that is known here has"
    ):
        RopeIndex(mmrope.family("videorope"), "4.57")
    with pytest.raises(ValueError, match=r"downsample_mode is '4x', but the family merges 4 x 4 patches .* spatial_merge="):
        RopeIndex(with_tokens("minicpmv4_7"))(torch.ones(1, 3, dtype=torch.long), downsample_mode="4x")
