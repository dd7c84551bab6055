"""The door for placeholder spans: the same rows as from a processor's tokens, and what is wrong is said by span."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrope import Segment, Span, VideoTiming, family, position_ids, segments_from_inputs, segments_from_spans
from mmrope.positions.segments import MEDIA
from tests.positions.test_inputs import joined
from tests.support import cases
from tests.support.strategies import BY_KEY, processed, upstream_rows
from tests.support.upstream_ids import as_inputs, with_tokens

NAMES = sorted({row.name for row in BY_KEY.values() if "canvas" not in row.media})


def spans_of(row, rule):
    """The spans of a row; of a video that is split into frames one for all, with the text between them, as vLLM has it."""
    spans, offset, m = [], 0, rule.spatial_merge
    for s in row:
        t, h, w = s.grid
        grid = (t * (rule.temporal_merge if s.kind == "video" else 1), h * m, (w - rule.row_token) * m)
        if s.kind in ("image", "video"):
            spans.append(Span(offset, s.length, grid, s.kind, seconds_per_grid=s.seconds_per_grid))
        elif s.kind == "frame":
            spans.append(Span(offset, s.length, grid, "video"))
        elif s.kind == "audio":
            spans.append(Span(offset, s.length, kind="audio"))
        offset += s.length
    return offset, spans


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=cases(20))
@given(data=st.data())
def test_rows_come_back_from_spans(name, data):
    """Also media that touch, stand first or last, and rows of media alone."""
    rule = BY_KEY[name]
    row = [s for s in data.draw(processed(rule)) if s.kind not in ("pad", "audio_in_video")]
    assert joined(segments_from_spans(*spans_of(row, rule), rule), rule) == joined(row, rule)


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_omni_moe"])
@given(data=st.data())
def test_spans_that_overlap_are_a_video_with_its_sound(name, data):
    """The same rows as from token ids, with the masks of vLLM's is_embed."""
    rule = with_tokens(name)
    row = data.draw(upstream_rows(rule, "video"))
    inputs = as_inputs([row], rule)
    types, offset, spans = inputs["mm_token_type_ids"][0], 0, []
    for s in row:
        t, h, w = s.grid
        if s.kind == "audio_in_video":
            begin, count = offset + 1, s.length - 2  # its markers are the sound's; the video's stand outside
            inside = types[begin : begin + count]
            spans.append(Span(begin, count, (t, 2 * h, 2 * w), "video", inside == 2, s.seconds_per_grid))
            spans.append(Span(begin, count, None, "audio", inside == 3))
        elif s.kind != "text":
            spans += spans_of([Segment.text(offset), s], rule)[1]
        offset += s.length
    assert segments_from_spans(offset, spans, rule) == segments_from_inputs(inputs, rule)[0]


def test_a_split_video_is_one_span_with_its_time_stamps():
    row = [Segment.text(3), *[Segment.frame(h=2, w=2), Segment.text(2)] * 3]
    embed = np.array([True] * 4 + ([False] * 2 + [True] * 4) * 2)
    found = segments_from_spans(21, [Span(3, 16, (3, 4, 4), "video", embed)], "qwen3_vl")
    assert found == row
    assert position_ids(found, "qwen3_vl").next == position_ids(row, "qwen3_vl").next


def test_a_timing_stands_for_seconds():
    timing = VideoTiming(frame_indices=range(0, 40, 10), original_fps=20, sampled_fps=2)
    [video] = segments_from_spans(8, [Span(0, 8, (2, 4, 4), "video", timing=timing)], "qwen2_5_vl")
    assert video == Segment.video(t=2, h=2, w=2, seconds_per_grid=1.0)


def test_spans_may_be_tuples():
    assert segments_from_spans(11, [(3, 4, (1, 4, 4)), (9, 2, (1, 2, 4))], "qwen2_vl") == segments_from_spans(
        11, [IMAGE, OTHER], "qwen2_vl"
    )


def test_a_video_with_its_sound_stands_between_markers():
    def both(offset):
        return [
            Span(offset, 4, (2, 2, 2), "video", [True, True, False, False], 1.0),
            Span(offset, 4, None, "audio", [False, False, True, True]),
        ]

    assert [s.kind for s in segments_from_spans(12, both(4), "qwen2_5_omni")] == ["text", "audio_in_video", "text"]
    for offset, tokens in ((0, 9), (1, 9), (4, 9)):
        with pytest.raises(
            ValueError, match=r"the video and its audio at .* do not stand between their two start and two end markers"
        ):
            segments_from_spans(tokens, both(offset), "qwen2_5_omni")


def test_text_alone_and_no_tokens():
    assert segments_from_spans(5, [], "qwen2_vl") == [Segment.text(5)]
    assert segments_from_spans(0, [], "qwen2_vl") == []


IMAGE, OTHER = Span(3, 4, (1, 4, 4)), Span(9, 2, (1, 2, 4))


@pytest.mark.parametrize(
    ("spans", "name", "message"),
    [
        ([Span(8, 4, (1, 4, 4))], "qwen2_vl", r"span 0 \(image at 8..11\) is not within the 11 tokens of the prompt; was the prompt truncated"),
        ([Span(-1, 4, (1, 4, 4))], "qwen2_vl", r"span 0 \(image at -1..2\) is not within"),
        ([Span(3, 0, (1, 4, 4))], "qwen2_vl", r"is not within"),
        ([OTHER, IMAGE], "qwen2_vl", r"span 1 \(image at 3..6\) begins before span 0: spans must be in the order of their offsets"),
        ([IMAGE, Span(6, 4, (1, 4, 4))], "qwen2_vl", r"span 1 \(image at 6..9\) overlaps span 0 \(image\), and qwen2_vl interleaves no such media"),
        ([Span(3, 4, (1, 4, 4), "video", seconds_per_grid=1.0), Span(5, 3, kind="audio")], "qwen2_5_omni", r"span 1 \(audio at 5..7\) takes tokens that span 0 has, too: their embed masks overlap"),
        ([Span(3, 5, (1, 4, 4))], "qwen2_vl", r"span 0 \(image at 3..7\): patch grid \(1, 4, 4\) needs 4 tokens \(1 x 2 x 2 after merge 2\), but the span has 5. Were tokens pruned"),
        ([Span(3, 4, (1, 5, 4))], "qwen2_vl", r"span 0 \(image at 3..6\): patch grid 0 is 1 x 5 x 4, but qwen2_vl merges 2 x 2"),
        ([Span(3, 8, (2, 4, 4))], "qwen2_vl", r"patch grid 0 has 2 temporal grids; an image has one"),
        ([Span(3, 4)], "qwen2_vl", r"span 0 \(image at 3..6\) has no grid: state its patch grid"),
        ([Span(3, 4, (1, 4, 4), embed=[True] * 3)], "qwen2_vl", r"embed must be 4 booleans, one a token, got bool \[3\]"),
        ([Span(3, 4, (1, 4, 4), embed=[False] * 4)], "qwen2_vl", r"no token is of the image: embed is false everywhere"),
        ([Span(3, 4, (1, 4, 4), "video")], "qwen2_5_vl", r"span 0: qwen2_5_vl places videos by time: give seconds_per_grid or timing, one of them; there is no default"),
        ([Span(3, 4, (1, 4, 4), "video", seconds_per_grid=float("nan"))], "qwen2_5_vl", r"span 0: seconds_per_grid must be positive seconds \(at most 1e\+09\), got nan"),
        ([Span(3, 4, (1, 4, 4), "video", timing=VideoTiming(frame_indices=range(9), sampled_fps=1))], "qwen2_5_vl", r"span 0 has 1 temporal grids, but its timing lists 9 sampled frames"),
        ([Span(3, 4, (1, 4, 4), seconds_per_grid=1.0)], "qwen2_vl", r"span 0 \(image at 3..6\): only a video has seconds_per_grid or timing"),
        ([Span(3, 4, (1, 4, 4), "video", seconds_per_grid=1.0, timing=VideoTiming(frame_indices=[0, 1], sampled_fps=1))], "qwen2_vl", r"span 0: give seconds_per_grid \(evenly spaced grids\) or timing, not both"),
        ([Span(3, 4, (1, 4, 4), "audio")], "qwen2_5_omni", r"an audio has no grid, but as many tokens as it has"),
        ([Span(3, 4, kind="audio")], "qwen2_vl", r"span 0 \(audio at 3..6\): qwen2_vl places image, video by spans"),
        ([Span(3, 4, (1, 4, 4), kind=["image"])], "qwen2_vl", r"span 0 \(\['image'\] at 3..6\): qwen2_vl places image, video by spans"),
        ([Span(3, 4, (1, 4, 4), kind="picture")], "qwen2_vl", r"span 0 \(picture at 3..6\): qwen2_vl places image, video by spans"),
        ([Span(3, 4, (1, 4, 4))], "minicpmv4_7", r"minicpmv4_7 places no media by spans"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(spans, name, message):
    with pytest.raises(ValueError, match=message):
        segments_from_spans(11, spans, name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: segments_from_spans(10.0, [], "qwen2_vl"), r"token_count must be a whole number of tokens, got 10.0"),
        (lambda: Span(2.0, 1), r"a span's offset must be a whole number of tokens, got 2.0"),
        (
            lambda: segments_from_spans(9, [{"offset": 3}], "qwen2_vl"),
            r"span 0 must be a Span or a tuple \(offset, length, grid, ...\)",
        ),
    ],
)
def test_numbers_are_whole(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_prompt_has_tokens():
    with pytest.raises(ValueError, match=r"token_count must be the tokens of the prompt, got -1"):
        segments_from_spans(-1, [], "qwen2_vl")
    assert set(MEDIA) == {"image", "video", "audio"}
    assert family("qwen2_vl").media == ("image", "video")
