"""The door from processors: rows survive the way through tokens and grids, transformers agrees, and what is wrong is said."""

from __future__ import annotations

from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SECONDS, as_inputs, families, length, rows
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from mmrope import Segment, family, position_ids, segments_from_inputs

UPSTREAM = {"qwen2_vl": Qwen2VLModel, "qwen2_5_vl": Qwen2_5_VLModel, "qwen3_vl": Qwen3VLModel}


def joined(row):
    """Neighbouring texts as one, and neighbouring padding: a processor's output cannot tell them apart."""
    out = []
    for segment in row:
        if out and segment.kind in ("text", "pad") and segment.kind == out[-1].kind:
            out[-1] = Segment(segment.kind, (1, 1, out[-1].length + segment.length))
        elif segment.length:
            out.append(segment)
    return out


@st.composite
def batches(draw, rule):
    batch = draw(st.lists(rows(rule), min_size=1, max_size=4))
    longest = max(map(length, batch))
    left = draw(st.booleans())
    pads = [[Segment.pad(longest - length(row))] for row in batch]
    return [pad + row if left else row + pad for pad, row in zip(pads, batch, strict=True)]


@given(st.data())
def test_rows_come_back_from_a_processors_output(data):
    """Also media that touch, stand first or last, rows of media alone, empty rows, and padding on any side."""
    rule = data.draw(families)
    batch = data.draw(batches(rule))
    found = segments_from_inputs(as_inputs(batch, rule), rule)
    assert [list(row) for row in found] == [joined(row) for row in batch]


def transformers_ids(name, inputs, rule):
    """get_rope_index of the installed transformers, without building a model."""
    model = UPSTREAM[name]
    vision = SimpleNamespace(spatial_merge_size=rule.spatial_merge, tokens_per_second=rule.ids_per_second)
    self = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    self.get_vision_position_ids = MethodType(model.get_vision_position_ids, self)
    takes_seconds = name == "qwen2_5_vl"
    tensors = {key: value if key == "second_per_grid_ts" else torch.as_tensor(value) for key, value in inputs.items()}
    if not takes_seconds:
        tensors.pop("second_per_grid_ts", None)
    return model.get_rope_index(self, **tensors)


@pytest.mark.parametrize("name", UPSTREAM)
@settings(max_examples=500)
@given(data=st.data())
def test_ids_equal_transformers_on_random_batches(name, data):
    """Differential: its revision, on what it can place: media with text between them, and no row all of padding."""
    rate = data.draw(st.sampled_from((2, 4, 13, 25)))
    rule = family(f"{name}@transformers-5.23", **({"ids_per_second": rate} if name == "qwen2_5_vl" else {}))
    batch = []
    for row in data.draw(st.lists(rows(rule, padding=False), min_size=1, max_size=4)):
        apart = [part for segment in row for part in (segment, Segment.text(1))]
        batch.append([Segment.text(1), *apart])
    longest = max(map(length, batch))
    left = data.draw(st.booleans())
    pads = [[Segment.pad(longest - length(row))] for row in batch]
    batch = [pad + row if left else row + pad for pad, row in zip(pads, batch, strict=True)]
    inputs = as_inputs(batch, rule)
    if data.draw(st.booleans()) and "second_per_grid_ts" in inputs:  # transformers rounds a list and a tensor differently
        inputs["second_per_grid_ts"] = torch.tensor(inputs["second_per_grid_ts"].tolist())
    positions = position_ids(segments_from_inputs(inputs, rule), rule)
    expected, deltas = transformers_ids(name, inputs, rule)
    np.testing.assert_array_equal(positions.ids, expected.numpy())
    largest = np.where(positions.mask, positions.ids, -1).max(axis=(0, 2))
    np.testing.assert_array_equal(largest + 1 - positions.mask.sum(axis=1), deltas[:, 0].numpy())


def test_text_alone_needs_neither_types_nor_grids():
    inputs = {"input_ids": np.zeros((2, 5), int), "attention_mask": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]}
    found = segments_from_inputs(inputs, "qwen2_vl")
    assert found[0] == [Segment.pad(2), Segment.text(3)]
    assert found[1] == [Segment.text(5)]
    assert [len(row) for row in segments_from_inputs({"input_ids": np.zeros((2, 0), int)}, "qwen2_vl")] == [0, 0]


def test_lists_and_tensors_are_welcome():
    types = [[0, 1, 1, 1, 1, 0]]
    for make in (lambda x: x, np.array, torch.tensor):
        inputs = {
            "input_ids": make(types),
            "mm_token_type_ids": make(types),
            "image_grid_thw": make([[1, 4, 4]]),
            "video_grid_thw": None,
        }
        [row] = segments_from_inputs(inputs, "qwen2_vl")
        assert row == [Segment.text(1), Segment.image(h=2, w=2), Segment.text(1)]


@pytest.mark.parametrize("seconds", SECONDS)
def test_seconds_may_be_lists_float32_or_float64(seconds):
    """As a tensor, seconds are float32, and the ids are those of the float64 list (the rule rounds to float32 first)."""
    types = np.array([[2] * 12])
    inputs = {"input_ids": types, "mm_token_type_ids": types, "video_grid_thw": [[12, 2, 2]]}
    ids = [
        position_ids(segments_from_inputs({**inputs, "second_per_grid_ts": value}, "qwen2_5_vl"), "qwen2_5_vl").ids
        for value in ([seconds], torch.tensor([seconds]), np.array([seconds]))
    ]
    assert (ids[0] == ids[1]).all()
    assert (ids[0] == ids[2]).all()


# --- refusals ---------------------------------------------------------------------------------------------------------

IMAGE = {  # two texts around an image of 2 x 2 tokens, and one of 2 x 3
    "input_ids": np.zeros((1, 14), int),
    "mm_token_type_ids": np.array([[0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0]]),
    "image_grid_thw": np.array([[1, 4, 4], [1, 4, 6]]),
}
VIDEO = {
    "input_ids": np.zeros((1, 10), int),
    "mm_token_type_ids": np.array([[0, 2, 2, 2, 2, 2, 2, 2, 2, 0]]),
    "video_grid_thw": np.array([[2, 4, 4]]),
    "second_per_grid_ts": [1.0],
}
SPLIT = {
    **VIDEO,
    "input_ids": np.zeros((1, 11), int),
    "mm_token_type_ids": np.array([[0, 2, 2, 2, 2, 0, 2, 2, 2, 2, 0]]),
}


def without(inputs, *keys):
    return {key: value for key, value in inputs.items() if key not in keys}


@pytest.mark.parametrize(
    ("inputs", "name", "message"),
    [
        # on the first six, transformers 5.23 says StopIteration, TypeError or a shape mismatch, or answers wrongly without a word
        (without(IMAGE, "image_grid_thw"), "qwen2_vl", r"row 0: the 4 image tokens at 2..5 are more than the 0 grid\(s\) of image_grid_thw"),
        ({**IMAGE, "image_grid_thw": [[1, 4, 4]]}, "qwen2_vl", r"row 0: the 6 image tokens at 7..12 are more than the 1 grid"),
        ({**IMAGE, "image_grid_thw": [[1, 4, 4], [1, 8, 6]]}, "qwen2_vl", r"row 0: the 6 image tokens at 7..12 do not fit their grids: image 1 needs 12 tokens \(1 x 4 x 3 after merge 2\), but 6 are left for it. Was the row truncated"),
        ({**IMAGE, "image_grid_thw": [[1, 4, 4], [1, 4, 6], [1, 4, 4]]}, "qwen2_vl", r"image_grid_thw has 3 row\(s\), but the image tokens end before image 2, which has none"),
        ({**IMAGE, "image_grid_thw": [[1, 5, 5], [1, 4, 6]]}, "qwen2_vl", r"image_grid_thw row 0 is 1 x 5 x 5, but qwen2_vl merges 2 x 2"),
        ({**IMAGE, "image_grid_thw": [[1, 4, 6], [1, 4, 4]]}, "qwen2_vl", r"the 4 image tokens at 2..5 do not fit their grids: image 0 needs 6 tokens"),
        # and the rest
        ({**IMAGE, "image_grid_thw": [[1, 2, 2]] * 10 + [[1, 4, 4]]}, "qwen2_vl", r"image_grid_thw has 11 row\(s\), but the image tokens end before image 10"),
        ({**IMAGE, "image_grid_thw": [[1, 4, 4], [1, 2, 2], [1, 4, 6]]}, "qwen2_vl", r"image 2 needs 6 tokens .* but 5 are left"),
        ({**IMAGE, "image_grid_thw": [[2, 4, 4], [1, 4, 6]]}, "qwen2_vl", r"image_grid_thw row 0 has 2 temporal grids; an image has one"),
        ({**IMAGE, "image_grid_thw": [4, 4]}, "qwen2_vl", r"image_grid_thw rows must be whole numbers \[n, 3\]"),
        ({**IMAGE, "image_grid_thw": [[1, 4.5, 4]]}, "qwen2_vl", r"whole numbers"),
        (without(IMAGE, "mm_token_type_ids"), "qwen2_vl", r"image_grid_thw but no mm_token_type_ids, which say where the media are"),
        ({**without(IMAGE, "image_grid_thw"), "pixel_values": [0.0]}, "qwen2_vl", r"inputs have pixel_values but no image_grid_thw"),
        (without(IMAGE, "input_ids"), "qwen2_vl", r"inputs have no input_ids"),
        ({**IMAGE, "input_ids": np.zeros(14, int)}, "qwen2_vl", r"input_ids must be \[batch, tokens\], got shape \(14,\)"),
        ({**IMAGE, "mm_token_type_ids": np.zeros((1, 13), int)}, "qwen2_vl", r"mm_token_type_ids has shape \(1, 13\), input_ids \(1, 14\)"),
        ({**IMAGE, "attention_mask": np.ones((1, 1, 14, 14))}, "qwen2_vl", r"attention_mask has shape \(1, 1, 14, 14\)"),
        ({**IMAGE, "mm_token_type_ids": np.full((1, 14), 3)}, "qwen2_vl", r"mm_token_type_ids holds \[3\]; known are 0 \(text\)"),
        ({**IMAGE, "mm_token_type_ids": np.full((1, 14), 256)}, "qwen2_vl", r"mm_token_type_ids holds \[256\]"),
        ({**VIDEO, "second_per_grid_ts": [1e39]}, "qwen2_5_vl", r"must be positive seconds \(at most 1e\+09\)"),
        ({**IMAGE, "attention_mask": [[1] * 7 + [2] * 7]}, "qwen2_vl", r"attention_mask must be 1 at real tokens and 0 at padding; packed sequences"),
        ({**IMAGE, "attention_mask": [[-np.inf] * 3 + [0.0] * 11]}, "qwen2_vl", r"attention_mask must be 1 at real tokens and 0 at padding; .* additive masks"),
        ({**VIDEO, "second_per_grid_ts": torch.tensor([0.7], dtype=torch.bfloat16)}, "qwen2_5_vl", r"second_per_grid_ts is torch.bfloat16, in which 0.7 is no longer 0.7: pass what the processor returned, before .to\(dtype\)"),
        ({"input_ids": [[1, 2], [3]]}, "qwen2_vl", r"input_ids is ragged: pad the rows to one length"),
        ([1, 2], "qwen2_vl", r"inputs must be a processor's output \(a dict\), got list"),
        (without(VIDEO, "second_per_grid_ts"), "qwen2_5_vl", r"places videos by time, but the inputs have no second_per_grid_ts for 1 video"),
        ({**VIDEO, "second_per_grid_ts": [1.0, 1.0]}, "qwen2_5_vl", r"second_per_grid_ts has 2 value\(s\) for 1 video"),
        ({**VIDEO, "second_per_grid_ts": [float("nan")]}, "qwen2_5_vl", r"second_per_grid_ts must be positive seconds .*, got \[nan\]"),
        ({**VIDEO, "second_per_grid_ts": [-1.0]}, "qwen2_5_vl", r"must be positive seconds"),
        ({**SPLIT, "video_grid_thw": [[2, 4, 6]]}, "qwen3_vl", r"the 4 video tokens at 1..4 do not fit their grids: video 0, frame 0 needs 6 tokens"),
        ({**SPLIT, "video_grid_thw": [[3, 4, 4]]}, "qwen3_vl", r"video_grid_thw has 1 row\(s\), but the video tokens end before video 0, frame 2, which has none"),
        ({**VIDEO, "attention_mask": np.array([[1, 1, 1, 0, 0, 1, 1, 1, 1, 1]])}, "qwen2_5_vl", r"the 2 video tokens at 1..2 do not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(inputs, name, message):
    with pytest.raises(ValueError, match=message):
        segments_from_inputs(inputs, name)


def test_the_message_names_row_and_item_of_a_batch():
    two = {
        "input_ids": np.zeros((2, 6), int),
        "mm_token_type_ids": np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]),
        "image_grid_thw": [[1, 4, 4], [1, 4, 6]],
    }
    with pytest.raises(ValueError, match=r"row 1: the 4 image tokens at 2..5 .* image 1 needs 6 tokens"):
        segments_from_inputs(two, "qwen2_vl")


class OnDevice:
    """What a GPU tensor looks like to the door; tests/test_gpu.py has real ones."""

    def __init__(self, array):
        self.array, self.device, self.copies = array, torch.device("cuda", 0), 0

    def cpu(self):
        self.copies += 1
        return self.array


def test_gpu_tensors_are_copied_when_told_to_and_once():
    inputs = {key: OnDevice(value) for key, value in IMAGE.items()}
    with pytest.raises(ValueError, match=r"input_ids is on cuda:0: reading it waits .* pass sync=True to copy"):
        segments_from_inputs(inputs, "qwen2_vl")
    [row] = segments_from_inputs(inputs, "qwen2_vl", sync=True)
    assert row[1] == Segment.image(h=2, w=2)
    assert {value.copies for value in inputs.values()} == {1}
