"""MiniCPM-V's pictures, read by their markers: what is wrong among them is said. The rest is in test_inputs.py."""

from __future__ import annotations

import numpy as np
import pytest

from mmrope import Segment, family, position_ids, segments_from_inputs
from mmrope.positions import Canvas
from tests.support.upstream_ids import TOKENS, as_inputs, with_tokens

RULE = with_tokens("minicpmv4_7")
CROPS = Canvas.make(h=2, w=2, slices=[(1, 2), (1, 3)], columns=1, newlines=1)
ROW = [Segment.text(2), CROPS, Segment.text(3), Canvas.make(h=1, w=2), Segment.text(1)]
INPUTS = as_inputs([ROW], RULE)
# tokens 2..7 are the thumbnail and its markers, 8..11 a crop, 12 a newline, 13..17 a crop, 18 a newline, 19..21 text


def changed(at, token):
    ids = INPUTS["input_ids"].copy()
    ids[0, at] = token
    return {"input_ids": ids}


def test_pictures_side_by_side_and_frames_of_videos():
    """Frames are canvases, too: their tokens are of type 2, and their sizes are listed apart."""
    frames = as_inputs([ROW], RULE)
    types = frames["mm_token_type_ids"]
    types[0, 22:] *= 2
    frames["input_ids"][types == 2] = TOKENS.video
    frames["target_sizes"], frames["target_sizes_videos"] = frames["target_sizes"][:3], frames["target_sizes"][3:]
    assert segments_from_inputs(frames, RULE) == [ROW]
    assert segments_from_inputs({k: v for k, v in INPUTS.items() if k != "mm_token_type_ids"}, RULE) == [ROW]


def test_padding_is_kept_out_of_pictures():
    padded = [[Segment.pad(2), *ROW], [*ROW, Segment.pad(2)]]
    inputs = as_inputs(padded, RULE)
    assert segments_from_inputs(inputs, RULE) == padded
    inputs["attention_mask"][0, 9] = 0
    with pytest.raises(ValueError, match=r"row 0: |padding stands inside"):
        segments_from_inputs(inputs, RULE)


def test_generated_pictures_are_text():
    rows = segments_from_inputs({**INPUTS, "target_sizes": INPUTS["target_sizes"][:3]}, RULE, prompt_lengths=[20])
    assert [segment.kind for segment in rows[0]] == ["text", "canvas", "text"]
    assert position_ids(rows, RULE).ids.shape == (3, 1, sum(segment.length for segment in ROW))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed(12, TOKENS.slice_start), r"row 0: token 12 should be|row 0: tokens 13..13 stand between a marker and its crop"),
        ({"attention_mask": np.full_like(INPUTS["input_ids"], 2)}, r"attention_mask must be 1 at real tokens and 0 at padding"),
        ({"image_grid_thw": [[1, 2, 2]]}, r"image_grid_thw given, but minicpmv4_7 places pictures and frames by target_sizes and"),
        ({"target_sizes": None, "pixel_values": 0}, r"inputs have pixel_values but no target_sizes: the sizes of the media are needed"),
        (changed(2, 9), r"row 0: token 2 should be the marker before a picture \(210\), but is 9; was the row truncated"),
        (changed(7, 9), r"row 0: token 7 should be the marker after a thumbnail \(211\), but is 9"),
        (changed(17, 9), r"row 0: token 17 should be the marker after a detail crop \(213\), but is 9"),
        ({"target_sizes": np.array([[8, 8], [4, 8]])}, r"row 0: the 3 crop tokens at 14..16 are more than the 2 crop\(s\) of target_sizes"),
        ({"target_sizes": np.array([[8, 8], [4, 12], [4, 12], [4, 8]])}, r"row 0: the 2 crop tokens at 9..10 do not fit crop 1 of target_sizes: it needs 3 \(1 x 3 after merge 4\)"),
        ({"target_sizes": np.concatenate([INPUTS["target_sizes"]] * 2)}, r"target_sizes has 8 crops, but the tokens end before crop 4"),
        ({"target_sizes": np.array([[8, 8, 1]])}, r"target_sizes must be whole numbers \[crops, 2\] \(h, w\), got int64 \[1, 3\]"),
        ({"target_sizes": np.array([[7, 8]] * 4)}, r"target_sizes row 0 is 1 x 7 x 8, but minicpmv4_7 merges 4 x 4 patches to a token"),
        ({"target_sizes": None}, r"row 0: the 4 crop tokens at 3..6 are more than the 0 crop\(s\) of target_sizes"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        segments_from_inputs({**INPUTS, **changes}, RULE)


@pytest.mark.parametrize(("columns", "message"), [
    ([2, 0, 2, 2], r"a newline stands after 2, 4 of the 6 detail crops from token 7 on, but one is needed after each row of 2"),
    ([2, 3, 1], r"a newline stands after 2, 5 of the 6 detail crops"),
    ([4, 2], r"a newline stands after 4 of the 6 detail crops"),
])  # fmt: skip
def test_crops_stand_in_rows_of_one_length(columns, message):
    """A newline that is missing or misplaced: what follows would be taken for a token of the picture."""
    m, crop = TOKENS, [TOKENS.slice_start, TOKENS.image, TOKENS.slice_end]
    rows = [crop * n for n in columns]
    if columns[1] == 0:  # the second newline is missing
        rows = [rows[0], rows[2] + rows[3]]
        message = message.replace("2, 4 of", "2 of")
    ids = [7, m.image_start, m.image, m.image_end, m.newline, 8]
    details = [token for row in rows for token in (*row, m.newline)][:-1]
    inputs = {"input_ids": [ids[:4] + details + [8, 8]], "target_sizes": [[4, 4]] * 7}
    with pytest.raises(ValueError, match=message.replace("token 7", "token 5")):
        segments_from_inputs(inputs, RULE)


def test_timings_are_of_no_use():
    with pytest.raises(ValueError, match=r"video_timings given, but minicpmv4_7 places pictures and frames by"):
        segments_from_inputs(INPUTS, RULE, video_timings=[])


def test_the_ids_of_the_markers_are_needed():
    with pytest.raises(ValueError, match=r"minicpmv4_7 is read by the ids of its markers .*take it from family_from_config"):
        segments_from_inputs(INPUTS, family("minicpmv4_7"))
    assert TOKENS.image_start == 210
