"""The door from processors: rows survive the way through tokens and grids, transformers agrees, and what is wrong is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrope import (
    Segment,
    Span,
    VideoTiming,
    check,
    collate,
    diff,
    family,
    pack,
    position_ids,
    segments_from_inputs,
    segments_from_spans,
)
from mmrope.adapters.transformers import with_positions
from mmrope.positions import AudioInVideo, TokenIds, append, convert_ids, decode_position_ids, fingerprint, keep, rope_deltas
from tests.support import cases
from tests.support.strategies import BY_KEY, SECONDS, padded, processed, upstream_batches
from tests.support.upstream_ids import (
    IN_TRANSFORMERS,
    TOKENS,
    TRANSFORMERS,
    as_inputs,
    transformers_ids,
    upstream_class,
    upstream_self,
    with_tokens,
)

READABLE = sorted({row.name for row in BY_KEY.values()})


def joined(row, rule):
    """Neighbouring texts as one, and neighbouring padding: a processor's output cannot tell them apart; nor sounds, where a
    family counts their tokens like text. How the tokens of audio in video lie is left out."""
    alike = ("text", "pad") if rule.reading.states_audio else ("text", "pad", "audio")
    out = []
    for segment in row:
        if out and segment.kind in alike and segment.kind == out[-1].kind:
            out[-1] = Segment(segment.kind, (1, 1, out[-1].length + segment.length))
        elif segment.length:
            out.append(dataclasses.replace(segment, runs=()) if isinstance(segment, AudioInVideo) else segment)
    return out


@pytest.mark.parametrize("name", READABLE)
@settings(max_examples=cases(20))
@given(data=st.data())
def test_rows_come_back_from_a_processors_output(name, data):
    """Also media that touch, stand first or last, rows of media alone, empty rows, and padding on any side."""
    rule = with_tokens(name)
    batch = data.draw(padded(processed(rule)))
    found = segments_from_inputs(as_inputs(batch, rule), rule)
    assert [joined(row, rule) for row in found] == [joined(row, rule) for row in batch]


@st.composite
def stamped_films(draw):
    """A row of films in frames, some with equal gaps, some touching, and their patch grids for qwen3_vl."""
    row, grids, gap = [], [], st.integers(0, 2)
    for _ in range(draw(st.integers(1, 4))):
        t, h, w = draw(st.integers(1, 6)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
        grids.append([t, 2 * h, 2 * w])
        for _ in range(t):
            row += [Segment.text(n)] if (n := draw(gap)) else []
            row.append(Segment.frame(h=h, w=w))
    return [*row, Segment.text(1)], grids


@settings(max_examples=cases(100))
@given(films=st.lists(stamped_films(), min_size=1, max_size=3))
def test_frames_that_are_alike_are_one_item_as_in_rows_by_hand(films):
    """Read from the grids of whole films, as processors give them, the items are those of the segments one by one."""
    rows = collate([row for row, _ in films])
    types = [[2 * (s.kind == "frame") for s in row for _ in range(s.length)] for row in rows]
    mask = [[int(s.kind != "pad") for s in row for _ in range(s.length)] for row in rows]
    inputs = {"input_ids": types, "mm_token_type_ids": types, "attention_mask": mask}
    inputs["video_grid_thw"] = [grid for _, grids in films for grid in grids]
    found = segments_from_inputs(inputs, "qwen3_vl")
    assert [row.items for row in found] == [row.items for row in rows]


@pytest.mark.parametrize("name", [name for name in READABLE if with_tokens(name).checkpoint.token_ids != TokenIds()])
@settings(max_examples=cases(20))
@given(data=st.data())
def test_rows_come_back_from_token_ids_alone(name, data):
    """What processors of transformers 4 return: media are found by their token ids, frames of GLM by the markers around them."""
    rule = with_tokens(name)
    batch = data.draw(upstream_batches(rule))
    found = segments_from_inputs(as_inputs(batch, rule, types=False), rule)
    assert [joined(row, rule) for row in found] == [joined(row, rule) for row in batch]


@st.composite
def upstream_case(draw, name):
    """A revision of the installed transformers, with facts of some checkpoint, and a batch that it can place."""
    rule = with_tokens(f"{name}@{TRANSFORMERS}")
    if rule.uses_seconds:
        rule = family(rule, ids_per_second=draw(st.sampled_from((2, 4, 13, 25))))
    if "canvas" in rule.media:
        rule = family(rule, spatial_merge=draw(st.sampled_from((2, 4))))
    return rule, draw(upstream_batches(rule))


def deltas_of(rule, positions):
    """rope_deltas [B] by the convention of a revision: padding counts in transformers 4.57, but not for the Omni models."""
    padded = rule.revision == "transformers-4.57" and not rule.reading.states_audio
    return rope_deltas(positions, length="padded" if padded else "unpadded")[:, 0]


def assert_ids_equal_transformers(rule, batch, seconds_as_list=False):
    """Bit for bit, from what the processor returns."""
    inputs = as_inputs(batch, rule)
    if seconds_as_list and "second_per_grid_ts" in inputs:  # transformers rounds a list and a tensor differently
        inputs["second_per_grid_ts"] = inputs["second_per_grid_ts"].astype(np.float64).tolist()
    expected, deltas = transformers_ids(rule, inputs)
    # NeoMME's processor hands out position ids itself, so there is no output of it to read
    positions = position_ids(batch if rule.name == "neomme" else segments_from_inputs(inputs, rule), rule)
    assert positions.ids.dtype == expected.dtype
    np.testing.assert_array_equal(positions.ids, expected)
    if rule.name not in ("neomme", "glm_image"):  # which return no deltas, or zeros
        np.testing.assert_array_equal(deltas_of(rule, positions), deltas)


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
@settings(max_examples=cases(40))
@given(data=st.data())
def test_ids_equal_transformers_on_random_batches(name, data):
    """Differential: its revision, on what it can place."""
    assert_ids_equal_transformers(*data.draw(upstream_case(name)), data.draw(st.booleans()))


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


def test_generated_tokens_are_text_whatever_their_ids():
    """A policy may write the token of an image, which then has no grid."""
    rule = with_tokens("qwen2_5_vl")
    batch = [[Segment.text(2), Segment.image(h=2, w=2), Segment.text(6)]]
    inputs = as_inputs(batch, rule, types=False)
    inputs["input_ids"][0, 9] = TOKENS.image
    with pytest.raises(
        ValueError, match=r"row 0: the 1 image tokens at 9..9 are more than the 1 grid.* say so with prompt_lengths"
    ):
        segments_from_inputs(inputs, rule)
    assert segments_from_inputs(inputs, rule, prompt_lengths=[8]) == batch
    for wrong in ([8, 8], [1.5], 8, [-3], [13]):
        with pytest.raises(ValueError, match=r"prompt_lengths must be 1 whole numbers from 0 to 12, the columns of each row's"):
            segments_from_inputs(inputs, rule, prompt_lengths=wrong)


TIMING = VideoTiming(frame_indices=range(0, 24, 3), original_fps=24.0, sampled_fps=8.0)  # 8 frames, 4 grids, 0.25 s apart


def test_timings_stand_for_seconds_per_grid():
    types = np.array([[2] * 16])
    inputs = {"input_ids": types, "mm_token_type_ids": types, "video_grid_thw": [[4, 4, 4]]}
    rule = family("qwen2_5_vl", ids_per_second=8)
    assert segments_from_inputs(inputs, rule, video_timings=[TIMING]) == [[Segment.video(t=4, h=2, w=2, seconds_per_grid=0.25)]]
    shown = dataclasses.replace(TIMING, timestamps=(0, 1, 2, 3, 5, 6, 7.5, 9))
    [row] = segments_from_inputs(inputs, rule, video_timings=[shown])
    assert row == [Segment.video(t=4, h=2, w=2, times=[0, 2, 5, 7.5])]
    assert position_ids(row, rule).ids[0, 0, ::4].tolist() == [0, 16, 40, 60]
    for timings, message in (
        ([], r"there are 0 video_timings for 1 video\(s\)"),
        ([TIMING, TIMING], r"there are 2 video_timings for 1 video\(s\)"),
        (TIMING, r"video_timings must be a list of VideoTiming"),
        ([{"fps": 2}], r"video_timings must be a list of VideoTiming \(VideoTiming.from_metadata makes them\), got"),
        (
            [VideoTiming(frame_indices=range(6), sampled_fps=2)],
            r"video 0 has 4 temporal grids, but its timing lists 6 sampled frames, which make 3",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            segments_from_inputs(inputs, rule, video_timings=timings)
    stated = {**inputs, "second_per_grid_ts": [0.25]}
    assert segments_from_inputs(stated, rule, video_timings=[TIMING]) == segments_from_inputs(stated, rule)
    with pytest.raises(
        ValueError, match=r"video 0: second_per_grid_ts says 2 s a grid, its timing 0.25 s: leave one of them out"
    ):
        segments_from_inputs({**inputs, "second_per_grid_ts": [2.0]}, rule, video_timings=[TIMING])
    with pytest.raises(ValueError, match=r"there are 1 video_timings, but the inputs have no video_grid_thw"):
        segments_from_inputs({"input_ids": types}, rule, video_timings=[TIMING])


def test_timings_are_checked_where_frames_are_split_too():
    inputs = as_inputs([[Segment.frame(h=2, w=2), Segment.text(1), Segment.frame(h=2, w=2)]], family("qwen3_vl"))
    inputs["video_grid_thw"] = [[2, 4, 4]]
    four = VideoTiming(frame_indices=range(4), sampled_fps=2)
    assert len(segments_from_inputs(inputs, "qwen3_vl", video_timings=[four])[0]) == 3
    with pytest.raises(ValueError, match=r"video 0 has 2 temporal grids, but its timing lists 8 sampled frames, which make 4"):
        segments_from_inputs(inputs, "qwen3_vl", video_timings=[TIMING])


def test_hunyuans_images_stand_with_and_without_their_markers():
    """Its processor's run of image tokens may hold the begin and the end marker, which are placed like text."""
    rule = with_tokens("hunyuan_vl")
    types = np.array([[0, *[1] * 8, 0]])
    inputs = {"input_ids": np.zeros_like(types), "mm_token_type_ids": types, "image_grid_thw": [[1, 4, 4]]}
    [row] = segments_from_inputs(inputs, rule)
    assert row == [Segment.text(1), Segment.text(1), Segment.image(h=2, w=3), Segment.text(1), Segment.text(1)]
    assert position_ids(row, rule).ids[:, 0, 2:8].tolist() == [
        [2, 3, 4, 5, 6, 7],
        [0, 1, 2, 0, 1, 2],
        [0, 0, 0, 1, 1, 1],
        [0] * 6,
    ]
    inputs["image_grid_thw"] = [[1, 4, 6]]
    message = r"the 8 image tokens at 1..8 are .*|the 8 image tokens at 1..8 do not fit their grids: image 0 needs"
    with pytest.raises(ValueError, match=message) as error:
        segments_from_inputs({**inputs, "image_grid_thw": [[1, 8, 8]]}, rule)
    assert "with a token at each row's end" in str(error.value)
    assert segments_from_inputs(inputs, rule)[0] == [Segment.text(1), Segment.image(h=2, w=4), Segment.text(1)]


def test_a_decode_step_is_of_one_token():
    for following in ([5, 9], position_ids([[Segment.text(5)], [Segment.text(5)]], "qwen2_vl").next):
        ids = decode_position_ids(following, "qwen2_vl")
        assert ids.tolist() == [[[5], [following[1]]]] * 3


def test_the_marker_after_media_stands_by_itself_where_ids_are_fractions():
    """As upstream adds it up: Qwen3-Omni."""
    rule = with_tokens("qwen3_omni_moe")
    [row] = segments_from_inputs(as_inputs([[Segment.text(6), Segment.image(h=2, w=2), Segment.text(5)]], rule), rule)
    assert [(s.kind, s.length) for s in row] == [("text", 6), ("image", 4), ("text", 1), ("text", 4)]


@pytest.mark.parametrize(("media", "pad"), [([], 1), ([Segment.image(h=1, w=2), Segment.text(2)], 0)])
def test_padding_of_qwen3_omni_depends_on_whether_there_is_vision(media, pad):
    rule = with_tokens(f"qwen3_omni_moe@{TRANSFORMERS}")
    batch = [[Segment.text(3), *media], [Segment.text(2), Segment.pad(1 + sum(part.length for part in media))]]
    inputs = as_inputs(batch, rule)
    ids = position_ids(segments_from_inputs(inputs, rule), rule).ids
    np.testing.assert_array_equal(ids, transformers_ids(rule, inputs)[0])
    assert (ids[:, 1, 2:] == pad).all()


def test_hunyuans_runs_differ_as_they_may_in_transformers():
    """Some of its runs with markers, some without; and images that touch, all the one way or all the other."""
    types = np.array([[0, *[1] * 8, 0, *[1] * 6, 0]])
    inputs = {"input_ids": types, "mm_token_type_ids": types, "image_grid_thw": np.array([[1, 4, 4], [1, 4, 4]])}
    for name in ("hunyuan_vl", "hunyuan_vl@transformers-5.23"):
        rule = with_tokens(name)
        rows = segments_from_inputs(inputs, rule)
        assert [s.kind for s in rows[0]] == ["text", "text", "image", "text", "text", "image", "text"]
    expected, _ = transformers_ids(rule, inputs)
    np.testing.assert_array_equal(position_ids(rows, rule).ids, expected)
    touching = np.array([[1] * 16])
    [row] = segments_from_inputs({**inputs, "input_ids": touching, "mm_token_type_ids": touching}, rule)
    assert [(s.kind, s.length) for s in row] == [("text", 1), ("image", 6), ("text", 1)] * 2
    touching = np.array([[1] * 12])
    [row] = segments_from_inputs({**inputs, "input_ids": touching, "mm_token_type_ids": touching}, rule)
    assert [(s.kind, s.length) for s in row] == [("image", 6)] * 2


def test_a_missing_grid_of_hunyuan_is_not_taken_for_markers():
    """Two runs of two tokens are as many as a marked image of two."""
    types = np.array([[0, 1, 1, 0, 1, 1]])
    inputs = {"input_ids": types, "mm_token_type_ids": types, "image_grid_thw": np.array([[1, 2, 2]])}
    with pytest.raises(ValueError, match=r"row 0: the 2 image tokens at 4..5 are more than the 1 grid\(s\)"):
        segments_from_inputs(inputs, with_tokens("hunyuan_vl"))


def test_images_that_are_made_are_placed_by_appending_them():
    """GLM-Image: transformers keeps the ids of tokens to come on the model; here they are the row, made longer."""
    rule = with_tokens("glm_image@transformers-5.23")
    types = np.zeros((1, 4), dtype=int)
    grids = [[1, 4, 6], [1, 2, 3]]
    inputs = {
        "input_ids": types,
        "mm_token_type_ids": types,
        "image_grid_thw": np.array(grids),
        "images_per_sample": np.array([2]),
    }
    model, tensors = upstream_self(rule), {key: torch.as_tensor(value) for key, value in inputs.items()}
    del tensors["mm_token_type_ids"]
    upstream_class(rule).get_rope_index(model, **tensors)
    [row] = segments_from_inputs(inputs, rule)
    longer = [*row, *(rule.image(grid) for grid in reversed(grids)), Segment.text(1)]
    np.testing.assert_array_equal(position_ids(longer, rule, start=4).ids[:, 0], model._cached_decode_position_ids[0])


def test_grids_of_images_that_are_yet_to_be_made_are_left_out():
    """GLM-Image's processor lists the grids of the images to generate, too, behind those of the prompt."""
    rule = with_tokens("glm_image")
    types = np.array([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    inputs = {
        **{"input_ids": types * TOKENS.image, "mm_token_type_ids": types},
        **{"image_grid_thw": [[1, 1, 2], [1, 4, 4], [1, 8, 8]], "images_per_sample": [2, 1]},
    }
    one, two = segments_from_inputs(inputs, rule)
    assert one == [Segment.text(1), Segment.image(h=1, w=2), Segment.text(3)]
    assert two == [Segment.text(6)]
    with pytest.raises(
        ValueError, match=r"images_per_sample is \[1, 1\], but there are 2 row\(s\) and 3 rows of image_grid_thw"
    ):
        segments_from_inputs({**inputs, "images_per_sample": [1, 1]}, rule)


OMNI = [Segment.text(2), AudioInVideo.make(t=2, h=1, w=2, audio=30, seconds_per_grid=1.0), Segment.text(1)]


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_sound_in_video_is_seen_by_its_markers(name):
    rule = with_tokens(name)
    inputs = as_inputs([OMNI], rule, types=False)
    [row] = segments_from_inputs(inputs, rule)
    assert row[1].runs[0] > 0
    assert joined(row, rule) == OMNI
    np.testing.assert_array_equal(position_ids(row, rule).ids, position_ids(OMNI, rule).ids)
    typed = as_inputs([OMNI], rule)
    with pytest.raises(
        ValueError, match=r"row 0: video and audio tokens touch from 4 on. Whether that is audio in video is seen by"
    ):
        segments_from_inputs(typed, name)  # the family without the checkpoint's token ids
    with pytest.raises(
        ValueError, match=r"row 0: the video and its audio at 4..37 do not stand between their two start and two end markers"
    ):
        segments_from_inputs(
            {k: v[:, :-3] if k == "input_ids" else v for k, v in inputs.items() if k != "attention_mask"}, rule
        )
    with pytest.raises(ValueError, match=r"audio_seqlens: audio 0 has 0 frames, which make no token"):
        segments_from_inputs({**inputs, "audio_seqlens": [0]}, rule)
    with pytest.raises(ValueError, match=r"do not fit their grids: audio 0 needs \d+ tokens \(by qwen\d_\w+'s audio encoder\)"):
        segments_from_inputs({**inputs, "audio_seqlens": [999]}, rule)
    lengths = {**without(inputs, "audio_seqlens"), "input_features": [0.0]}
    with pytest.raises(ValueError, match=r"input_features but no feature_attention_mask: the lengths of the audio are needed"):
        segments_from_inputs(lengths, rule)
    frames = int(inputs["audio_seqlens"][0])
    mask = np.arange(3000)[None] < frames
    assert segments_from_inputs({**lengths, "feature_attention_mask": mask}, rule) == [row]


OMNI_ROW = {"video_grid_thw": [[2, 2, 2]], "video_second_per_grid": [1.0], "audio_seqlens": [8]}


@pytest.mark.parametrize(
    ("ids", "mask", "more"),
    [
        ([9, 202, 206, 201, 205, 201, 205, 207, 0, 0], [1] * 8 + [0] * 2, {}),  # cut after the first end marker, then padded
        (
            [9, 202, 206, 201, 205, 201, 205, 207, 200, 8],
            [1] * 10,
            {"image_grid_thw": [[1, 2, 2]]},
        ),  # one end marker, then an image
        ([9, 202, 206, 201, 205, 201, 205, 207, 203, 9], [1, 1, 0] + [1] * 7, {}),  # a start marker is masked
        ([202, 206, 201, 205, 201, 205], [1] * 6, {}),  # no end markers
    ],
)
def test_sound_in_video_without_its_markers_is_refused(ids, mask, more):
    inputs = {"input_ids": [ids], "attention_mask": [mask], **OMNI_ROW, **more}
    with pytest.raises(
        ValueError, match=r"row 0: the video and its audio at \d..\d do not stand between their two start and two end"
    ):
        segments_from_inputs(inputs, with_tokens("qwen2_5_omni"))


def test_one_row_holds_one_video_and_one_sound_together():
    types = [[0, 0, *[2, 3] * 4, 0, 0]]
    inputs = {
        **{"input_ids": [[202, 206, *[201, 205] * 4, 207, 203]], "mm_token_type_ids": types, "audio_seqlens": [16]},
        **{"video_grid_thw": [[1, 2, 4], [1, 2, 4]], "video_second_per_grid": [1.0, 1.0]},
    }
    with pytest.raises(
        ValueError, match=r"row 0: the 12 video and audio tokens at 0..11 hold 2 grids of video, but are one video"
    ):
        segments_from_inputs(inputs, with_tokens("qwen2_5_omni"))


def test_media_are_found_by_token_ids_when_a_config_states_them():
    """What processors of transformers 4 return, and what a trainer that drops mm_token_type_ids keeps."""
    inputs = without({**IMAGE, "input_ids": np.where(IMAGE["mm_token_type_ids"] == 1, 200, 7)}, "mm_token_type_ids")
    assert segments_from_inputs(inputs, with_tokens("qwen2_vl")) == segments_from_inputs(IMAGE, "qwen2_vl")
    with pytest.raises(ValueError, match=r"image_grid_thw but no mm_token_type_ids.*take the family from family_from_config"):
        segments_from_inputs(inputs, "qwen2_vl")
    dropped = without(inputs, "image_grid_thw")  # the wrapper lost the grids: no silent fall-back to 1D
    with pytest.raises(ValueError, match=r"the 4 image tokens at 2..5 are more than the 0 grid"):
        segments_from_inputs(dropped, with_tokens("qwen2_vl"))


@pytest.mark.parametrize("name", [name for name in READABLE if name not in ("rope", "minicpmv4_7")])
@settings(max_examples=cases(12))
@given(data=st.data())
def test_inputs_that_do_not_belong_together_are_refused(name, data):
    """Valid inputs, with one thing wrong: a grid too many, too few, too large, a row cut through a medium, seconds lost."""
    rule = with_tokens(name)
    batch = data.draw(padded(processed(rule)))
    inputs = as_inputs(batch, rule)
    inputs.pop("images_per_sample", None)
    keys = [key for key in ("image_grid_thw", "video_grid_thw") if key in inputs]
    if not keys:
        return
    key = data.draw(st.sampled_from(keys))
    grids = inputs[key]
    wrong = data.draw(st.sampled_from(("more", "fewer", "larger", "cut", "seconds")))
    if wrong == "more":
        inputs[key] = np.concatenate([grids, grids[:1]])
        for seconds in ("second_per_grid_ts", "video_second_per_grid"):
            if seconds in inputs and key == "video_grid_thw":
                inputs[seconds] = np.concatenate([inputs[seconds], inputs[seconds][:1]])
    elif wrong == "fewer":
        if rule.reading.markers:  # HunYuan: a second image of two tokens may as well be the first one's markers
            return
        inputs[key] = grids[:-1]
        for seconds in ("second_per_grid_ts", "video_second_per_grid"):
            if seconds in inputs and key == "video_grid_thw":
                inputs[seconds] = inputs[seconds][:-1]
    elif wrong == "larger":
        inputs[key] = grids * (1, 2, 1)
    elif wrong == "cut":
        kind = 1 if key == "image_grid_thw" else 2
        last = np.flatnonzero(inputs["mm_token_type_ids"].reshape(-1) == kind)[-1]
        inputs["mm_token_type_ids"].reshape(-1)[last] = 0
    elif rule.uses_seconds and key == "video_grid_thw":
        inputs.pop("second_per_grid_ts", None)
        inputs.pop("video_second_per_grid", None)
    else:
        return
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
        segments_from_inputs(inputs, rule)


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
        ({**IMAGE, "attention_mask": np.ones((1, 1, 14, 14))}, "qwen2_vl", r"attention_mask has shape \(1, 1, 14, 14\), the tokens \(1, 14\)"),
        ({**IMAGE, "mm_token_type_ids": np.full((1, 14), 3)}, "qwen2_vl", r"mm_token_type_ids holds \[3\]; qwen2_vl knows 0 \(text\), 1 \(image\), 2 \(video\)$"),
        ({**IMAGE, "mm_token_type_ids": np.full((1, 14), 256)}, "qwen2_vl", r"mm_token_type_ids holds \[256\]"),
        ({**VIDEO, "second_per_grid_ts": [1e39]}, "qwen2_5_vl", r"must be positive seconds \(at most 1e\+09\)"),
        ({**IMAGE, "attention_mask": [[1] * 7 + [2] * 7]}, "qwen2_vl", r"attention_mask must be 1 at real tokens and 0 at padding.*; packed sequences"),
        ({**IMAGE, "attention_mask": [[-np.inf] * 3 + [0.0] * 11]}, "qwen2_vl", r"attention_mask must be 1 at real tokens and 0 at padding.* additive masks"),
        ({**VIDEO, "second_per_grid_ts": torch.tensor([0.7], dtype=torch.bfloat16)}, "qwen2_5_vl", r"second_per_grid_ts is torch.bfloat16, in which neither 0.7 nor 4,097 can be written: pass what was computed, before .to\(dtype\)"),
        ({"input_ids": [[1, 2], [3]]}, "qwen2_vl", r"input_ids is ragged: pad the rows to one length"),
        ([1, 2], "qwen2_vl", r"inputs must be a processor's output \(a dict\), got list"),
        (without(VIDEO, "second_per_grid_ts"), "qwen2_5_vl", r"places videos by time: the inputs have no second_per_grid_ts for 1 video"),
        ({**VIDEO, "second_per_grid_ts": [1.0, 1.0]}, "qwen2_5_vl", r"second_per_grid_ts has 2 value\(s\) for 1 video"),
        ({**VIDEO, "second_per_grid_ts": [float("nan")]}, "qwen2_5_vl", r"second_per_grid_ts of video 0 must be positive seconds .*, got nan"),
        ({**VIDEO, "second_per_grid_ts": [-1.0]}, "qwen2_5_vl", r"must be positive seconds"),
        ({**SPLIT, "second_per_grid_ts": [float("nan")]}, "qwen3_vl", r"must be positive seconds"),
        ({**VIDEO, "second_per_grid_ts": ["1"]}, "qwen2_5_vl", r"second_per_grid_ts must be numbers of seconds, got <U1"),
        (without({**VIDEO, "mm_token_type_ids": np.zeros((1, 10), int)}, "video_grid_thw"), "qwen2_5_vl", r"inputs have second_per_grid_ts but no video_grid_thw"),
        ({**IMAGE, "mm_token_type_ids": IMAGE["mm_token_type_ids"] * 1.0}, "qwen2_vl", r"mm_token_type_ids must be whole numbers, got float64"),
        ({"input_ids": [[1]], "audio_seqlens": [4.7]}, "qwen2_5_omni", r"audio_seqlens must be whole numbers \[audios\], got float64 \[1\]"),
        ({"input_ids": [[1]], "feature_attention_mask": [1, 1]}, "qwen2_5_omni", r"feature_attention_mask must be whole numbers \[audios, frames\], got int64 \[2\]"),
        ({"input_ids": [[1]], "audio_seqlens": [4], "feature_attention_mask": [[1] * 5]}, "qwen2_5_omni", r"audio_seqlens and feature_attention_mask disagree on the lengths of the audio"),
        ({"input_ids": [[1]], "audio_seqlens": [4]}, "qwen2_vl", r"inputs have audio_seqlens, which qwen2_vl does not read: it places image, video"),
        ({**SPLIT, "video_grid_thw": [[2, 4, 6]]}, "qwen3_vl", r"the 4 video tokens at 1..4 do not fit their grids: video 0, frame 0 needs 6 tokens"),
        ({**SPLIT, "video_grid_thw": [[3, 4, 4]]}, "qwen3_vl", r"video_grid_thw has 1 row\(s\), but the video tokens end before video 0, frame 2, which has none"),
        ({**VIDEO, "attention_mask": np.array([[1, 1, 1, 0, 0, 1, 1, 1, 1, 1]])}, "qwen2_5_vl", r"the 2 video tokens at 1..2 do not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(inputs, name, message):
    with pytest.raises(ValueError, match=message):
        segments_from_inputs(inputs, name)


@pytest.mark.parametrize("side", ["types", "ids"])
def test_token_types_and_ids_are_of_the_same_tokens(side):
    """Padded on different sides, by a collator that knows one of them: accepted, each image would be other tokens."""
    rule = with_tokens("qwen2_vl")
    ids, types = [0] * 4 + [1] * 6 + [TOKENS.image] * 4 + [1] * 2, [0] * 6 + [1] * 4 + [0] * 6
    if side == "ids":
        types = [0] * 10 + [1] * 4 + [0] * 2
    inputs = {"input_ids": [ids], "mm_token_type_ids": [types], "image_grid_thw": [[1, 4, 4]]}
    if side == "ids":
        assert [s.kind for s in segments_from_inputs(inputs, rule)[0]] == ["text", "image", "text"]
        return
    message = r"row 0, token 6: mm_token_type_ids say image, but its id, 1, is of text in qwen2_vl's checkpoint"
    for call in (segments_from_inputs, with_positions, lambda inputs, rule: check(np.zeros((3, 1, 16), int), inputs, rule)):
        with pytest.raises(ValueError, match=message):
            call({key: np.array(value) for key, value in inputs.items()}, rule)


def test_a_mask_may_be_of_floats():
    """As LLaMA-Factory's is; models of transformers take it, too."""
    row = {"input_ids": [[5, 6, 7]], "attention_mask": np.array([[0.0, 1.0, 1.0]], np.float32)}
    assert [(s.kind, s.length) for s in segments_from_inputs(row, "qwen2_vl")[0]] == [("pad", 1), ("text", 2)]
    row["attention_mask"] += 1
    with pytest.raises(ValueError, match="attention_mask must be 1 at real tokens"):
        segments_from_inputs(row, "qwen2_vl")


@pytest.mark.parametrize(
    "mask",
    [np.zeros((1, 14), np.float32), np.array([[0.0] * 13 + [-np.inf]]), np.array([[1] * 13 + [2]]), np.full((1, 14), 0.5)],
)
def test_a_mask_is_one_everywhere(mask):
    """The same masks are taken, and refused, by all that take one."""
    ids = np.zeros((3, 1, 14), int)
    for call in (
        lambda: segments_from_inputs({**IMAGE, "attention_mask": mask}, "qwen2_vl"),
        lambda: diff(ids, ids, mask=mask),
        lambda: fingerprint(ids, mask=mask),
        lambda: keep(position_ids([Segment.text(14)], "qwen2_vl"), mask),
        lambda: convert_ids(ids, "axes_first", "packed", mask=mask),
    ):
        with pytest.raises(ValueError, match="mask must be 1 at real tokens and 0 at padding, or True and False"):
            call()


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        (
            [[1, 2**40, 2**40]],
            r"image_grid_thw row 0 has 1 x \d+ x \d+ tokens, more than 2,147,483,647, the most of one segment",
        ),
        ([["1", "4", "4"]], r"image_grid_thw rows must be whole numbers \[n, 3\] .*, got <U1 \[1, 3\]"),
        ([[1, 0, 4]], r"image_grid_thw row 0 is 1 x 0 x 4"),
    ],
)
def test_grids_that_no_arithmetic_holds(grids, message):
    with pytest.raises(ValueError, match=message):
        segments_from_inputs({**IMAGE, "image_grid_thw": grids}, "qwen2_vl")


def test_a_batch_has_a_row():
    with pytest.raises(ValueError, match=r"got shape \(0, 5\); .* a batch has at least one"):
        segments_from_inputs({"input_ids": np.zeros((0, 5), int)}, "qwen2_vl")


def test_the_message_names_row_and_item_of_a_batch():
    two = {
        "input_ids": np.zeros((2, 6), int),
        "mm_token_type_ids": np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]),
        "image_grid_thw": [[1, 4, 4], [1, 4, 6]],
    }
    with pytest.raises(ValueError, match=r"row 1: the 4 image tokens at 2..5 .* image 1 needs 6 tokens"):
        segments_from_inputs(two, "qwen2_vl")


def test_gpu_tensors_are_copied_when_told_to_and_all_at_once(monkeypatch):
    """Stood in for by CPU tensors that say that they are away; tests/encodings/test_gpu.py has real ones."""
    inputs = {
        **{
            "input_ids": torch.zeros(1, 10, dtype=torch.int32),
            "mm_token_type_ids": torch.tensor(VIDEO["mm_token_type_ids"]).T.T,
        },
        **{"attention_mask": torch.ones(1, 10, dtype=torch.bool), "video_grid_thw": torch.tensor([[2, 4, 4]])},
        **{"second_per_grid_ts": torch.tensor([0.7]), "image_grid_thw": torch.zeros(0, 3, dtype=torch.int64)},
    }
    expected = segments_from_inputs(inputs, "qwen2_5_vl")
    copies = []
    copy = torch.Tensor.cpu
    monkeypatch.setattr("mmrope.positions.inputs._is_away", lambda value: True)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(tensor.numel()) or copy(tensor))
    with pytest.raises(
        ValueError, match=r"input_ids, attention_mask, .* are on cpu: reading them waits .* pass sync=True to copy, once"
    ):
        segments_from_inputs(inputs, "qwen2_5_vl")
    assert segments_from_inputs(inputs, "qwen2_5_vl", sync=True) == expected
    assert copies == [40 + 80 + 10 + 24 + 4]  # bytes


def test_token_types_of_a_kind_without_an_id_are_held_against_the_others():
    rule = family("qwen2_vl", token_ids=TokenIds(image=9))
    inputs = {"input_ids": [[1, 9, 9, 1]], "mm_token_type_ids": [[0, 2, 2, 0]], "video_grid_thw": [[1, 2, 4]]}
    with pytest.raises(ValueError, match="token 1: mm_token_type_ids say video, but its id, 9, is of image"):
        segments_from_inputs(inputs, rule)
    assert segments_from_inputs({**inputs, "input_ids": [[1, 8, 8, 1]]}, rule)[0][1].kind == "video"


def test_a_pack_of_the_next_tokens_ids_is_checked_as_one():
    rows = [[Segment.text(3), Segment.image(h=2, w=2)], [Segment.text(4)]]
    check(pack(rows, "qwen2_vl", start=1), rows, "qwen2_vl")
    with pytest.raises(ValueError, match="position_ids are not those of qwen2_vl"):
        check(dataclasses.replace(pack(rows, "qwen2_vl"), start=1), rows, "qwen2_vl")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: segments_from_inputs({"input_ids": [["1", "9"]]}, "qwen2_vl"), "input_ids must be whole numbers, got <U1"),
        (lambda: segments_from_inputs({"input_ids": [[1.5, 9.0]]}, "qwen2_vl"), "input_ids must be whole numbers, got float64"),
        (lambda: segments_from_inputs({"input_ids": [[1]]}, "qwen2_vl", video_timings=5), "video_timings must be a list"),
        (lambda: append([Segment.text(2)], Segment.text(3)), r"a row must be a list of Segments, got Segment.text\(3\)"),
        (lambda: Segment.custom([[0]], advance="x"), "advance must be a finite number, .* got 'x'"),
        (lambda: Span(0, 4, (1, 4, 4), "video", timing=3), "a span's timing must be a VideoTiming, got 3"),
        (lambda: segments_from_spans(10, [(2,)], "qwen2_vl"), "span 0 must be a Span or a tuple"),
        (lambda: segments_from_spans(9, [Span(0, 4, (1, 4, 4), embed=["no"] * 4)], "qwen2_vl"), "embed must be 4 booleans"),
        (lambda: segments_from_spans(9, [Span(0, 4, (1, 4, 4), embed=[0.5] * 4)], "qwen2_vl"), "embed must be 4 booleans"),
        (lambda: decode_position_ids([5, 6], "qwen2_vl", step=[2.9, 1.0]), "step must be whole numbers, .*, got float64"),
        (lambda: decode_position_ids([5, 6], "qwen2_vl", step=[1]), "following must be the next id .*"),
        (lambda: decode_position_ids([5.5], "qwen2_vl"), "following must be the next id .* float64"),
        (lambda: decode_position_ids(["5"], "qwen2_vl"), "following must be the next id .*"),
    ],
)
def test_what_is_no_number_is_refused_in_our_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_decode_step_has_the_axes_of_its_family():
    assert decode_position_ids([5, 6], "hunyuan_vl", step=2, count=3).shape == (4, 2, 3)
    assert decode_position_ids(np.float32([5.5]), "qwen3_omni_moe").dtype == np.float32
