"""A row's later life: it grows, and is cut to a length, for every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrope import Segment, position_ids, segments_from_inputs
from mmrope.positions import AudioInVideo, Row, append, truncate
from tests.support import cases
from tests.support.strategies import any_rows, law, length, rows, upstream_rows
from tests.support.upstream_ids import as_inputs, with_tokens

TEXT, IMAGE, SOUND = Segment.text, Segment.image(h=2, w=3), Segment.audio(4)


# --- append -----------------------------------------------------------------------------------------------------------


@law
def test_a_row_that_grew_is_the_longer_row(rule, data):
    row, turn = data.draw(any_rows(rule)), data.draw(rows(rule))
    longer = append(row, turn)
    assert longer == [*row, *turn]
    whole = position_ids(longer, rule)
    np.testing.assert_array_equal(whole.ids[..., : length(row)], position_ids(row, rule).ids)
    rebuilt = position_ids([*row, *turn], rule)
    np.testing.assert_array_equal(whole.ids, rebuilt.ids)
    assert whole.next == rebuilt.next


@law
def test_a_conversation_goes_on_where_it_was(rule, data):
    """Prompt, generated text, next turn with media, more text: each computed alone, by slices of what the row had become."""
    row, turn = data.draw(any_rows(rule)), data.draw(rows(rule))
    steps, more = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    n = length(row)
    pieces = [position_ids(row, rule).ids, position_ids(row, rule, start=n, stop=n + steps).ids]
    answered = append(row, [TEXT(steps)])
    asked = append(answered, turn)
    pieces.append(position_ids(asked, rule, start=answered.length).ids)
    pieces.append(position_ids(asked, rule, start=asked.length, stop=asked.length + more).ids)
    rebuilt = position_ids([*row, TEXT(steps), *turn, TEXT(more)], rule)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=-1), rebuilt.ids)


@law
def test_next_alone_is_enough_to_decode(rule, data):
    """Who holds `next` and nothing else has the ids of step k: next + k on every axis."""
    row, steps = data.draw(any_rows(rule)), data.draw(st.integers(1, 6))
    n = length(row)
    positions = position_ids(row, rule)
    np.testing.assert_array_equal(
        position_ids(row, rule, start=n, stop=n + steps).ids,
        np.broadcast_to(positions.next[None, :, None] + np.arange(steps, dtype=rule.dtype), (len(rule.axes), 1, steps)),
    )


@law
def test_text_may_be_one_segment_or_several(rule, data):
    """Bit for bit for whole numbers; fractional ids are rounded where a segment begins, so in their last bit they may differ."""
    row, a, b = data.draw(rows(rule)), data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    one, two = (position_ids([*row, *texts], rule) for texts in ([TEXT(a + b)], [TEXT(a), TEXT(b)]))
    if rule.fractional:
        np.testing.assert_allclose(one.ids, two.ids, rtol=2**-23, atol=0)
        np.testing.assert_allclose(one.next, two.next, rtol=2**-23, atol=0)
    else:
        np.testing.assert_array_equal(one.ids, two.ids)
        assert one.next == two.next


# --- truncate ---------------------------------------------------------------------------------------------------------


def media_in(row):
    """What there is of each kind: a video with its sound is both."""
    names = {"frame": ["video"], "audio_in_video": ["video", "audio"]}
    return [kind for s in row if s.kind not in ("text", "pad") for kind in names.get(s.kind, [s.kind])]


def marked(data, rule):
    """A row whose media have a token of text before and after them; frames are videos of one frame."""
    row = [s for s in data.draw(any_rows(rule, padding=False)) if s.kind != "text"]
    texts = data.draw(st.lists(st.integers(2, 6), min_size=len(row) + 1, max_size=len(row) + 1))
    return [TEXT(texts[0]), *(part for s, n in zip(row, texts[1:], strict=True) for part in (s, TEXT(n)))]


def cut(row, limit, policy):
    return truncate(row, limit, policy=policy, markers=(1, 1), frames=[1] * sum(s.kind == "frame" for s in row))


@law
def test_what_is_left_is_whole_and_short_enough(rule, data):
    row = marked(data, rule)
    limit = data.draw(st.integers(0, length(row) + 2))
    for policy in ("drop_media", "before_media"):
        left = cut(row, limit, policy)
        assert left.row.length == len(left.tokens) <= limit
        assert (np.diff(left.tokens) > 0).all()
        kinds = [s.kind for s in row for _ in range(s.length)]
        assert [s.kind for s in left.row for _ in range(s.length)] == [kinds[t] for t in left.tokens]
        assert all(s in row for s in left.row if s.kind != "text")
        counted = {kind: media_in(left.row).count(kind) for kind in media_in(left.row)}
        assert {kind: len(which) for kind, which in left.media.items() if len(which)} == counted
        position_ids(left.row, rule)


@law
def test_a_row_that_fits_stays_as_it_is(rule, data):
    row = marked(data, rule)
    for policy in ("error", "drop_media", "before_media"):
        left = cut(row, length(row), policy)
        assert left.row == row
        assert left.tokens.tolist() == list(range(length(row)))
        for kind in set(media_in(row)):
            assert left.media[kind].tolist() == list(range(media_in(row).count(kind)))


@law
def test_before_media_keeps_a_beginning(rule, data):
    """And its ids: those of the same tokens of the whole."""
    row = marked(data, rule)
    left = cut(row, data.draw(st.integers(0, length(row))), "before_media")
    n = left.row.length
    assert left.tokens.tolist() == list(range(n))
    np.testing.assert_array_equal(position_ids(left.row, rule).ids, position_ids(row, rule, stop=n).ids)


@law
def test_dropped_media_are_as_if_they_had_never_been(rule, data):
    row = marked(data, rule)
    left = cut(row, data.draw(st.integers(0, length(row))), "drop_media")
    starts, gone, seen = np.cumsum([0, *(s.length for s in row)]), set(), dict.fromkeys(left.media, 0)
    for i, s in enumerate(row):
        kinds = media_in([s])  # none of text, both of a video with its sound
        gone |= {i for kind in kinds if seen[kind] not in left.media[kind]}
        for kind in kinds:
            seen[kind] += 1
    without, at = [], []
    for i, s in enumerate(row):
        if i in gone:
            continue
        head, tail = (i - 1 in gone), (i + 1 in gone)  # its first and last token were markers
        if s.kind == "text":
            without.append(TEXT(s.length - head - tail))
            at += range(starts[i] + head, starts[i + 1] - tail)
        else:
            without.append(s)
            at += range(starts[i], starts[i + 1])
    assert left.tokens.tolist() == at[: left.row.length]
    np.testing.assert_array_equal(position_ids(left.row, rule).ids, position_ids(without, rule, stop=left.row.length).ids)


CASES = {  # (length, policy): tokens that are left, images that are left
    (19, "error"): (range(19), [0, 1]),
    (18, "error"): (range(18), [0, 1]),
    (18, "drop_media"): (range(18), [0, 1]),
    (17, "drop_media"): ([*range(10), 18], [0]),  # the end marker of the second does not fit
    (17, "before_media"): (range(10), [0]),
    (9, "drop_media"): (range(9), [0]),
    (8, "drop_media"): ([0, 9, 18], []),
    (2, "drop_media"): ([0, 9], []),
    (8, "before_media"): ([0], []),
    (0, "drop_media"): ([], []),
}
ROW = [TEXT(2), IMAGE, TEXT(3), IMAGE, TEXT(2)]  # text 0 1, image 2..7, text 8 9 10, image 11..16, text 17 18


@pytest.mark.parametrize("case", CASES, ids=str)
def test_by_hand(case):
    limit, policy = case
    tokens, images = CASES[case]
    left = truncate(ROW, limit, policy=policy, markers=(1, 1) if policy != "error" else None)
    assert left.tokens.tolist() == list(tokens)
    assert left.media["image"].tolist() == images


def test_a_later_image_may_take_the_place_of_one_that_did_not_fit():
    row = [TEXT(2), Segment.image(h=9, w=9), TEXT(2), IMAGE, TEXT(2)]
    left = truncate(row, 12, policy="drop_media", markers=(1, 1))
    assert left.row == [TEXT(1), TEXT(1), IMAGE, TEXT(2)]
    assert left.media["image"].tolist() == [1]


def test_padding_goes_first():
    row = [Segment.pad(6), TEXT(2), IMAGE, TEXT(3), Segment.pad(2)]
    for policy in ("error", "drop_media", "before_media"):
        left = truncate(row, 12, policy=policy, markers=(1, 1))
        assert left.row == row[1:4]
        assert left.tokens.tolist() == list(range(6, 17))
        assert left.media["image"].tolist() == [0]


def test_what_stands_right_behind_media_may_close_them():
    row = [TEXT(2), IMAGE, TEXT(3)]
    with pytest.raises(
        ValueError, match=r"at 8 the image at 2\.\.7 \(segment 1\) would lose the text that closes it\. Allow more"
    ):
        truncate(row, 8)
    assert truncate(row, 9).row == [TEXT(2), IMAGE, TEXT(1)]
    assert truncate(row, 8, markers=(0, 0)).row == row[:2]
    assert truncate(row[:2], 8).row == row[:2]
    assert truncate([*row[:2], Segment.pad(3)], 8).row == row[:2]


def test_a_video_in_frames_goes_whole():
    frame = Segment.frame(h=2, w=2)
    video = [TEXT(5), frame, TEXT(3), frame]
    row = [TEXT(2), IMAGE, *video, TEXT(3), IMAGE, *video, TEXT(3)]
    left = truncate(row, 36, policy="drop_media", markers={"image": (1, 1), "video": (4, 1)}, frames=[2, 2])
    assert [len(left.media[kind]) for kind in ("image", "video")] == [2, 1]
    assert left.row == [TEXT(2), IMAGE, *video[:3], frame, TEXT(3), IMAGE, TEXT(1), TEXT(2)]
    assert left.media["video"].tolist() == [0]


def test_a_video_with_its_sound_counts_as_both():
    both = AudioInVideo.make(t=2, h=1, w=2, audio=3, seconds_per_grid=1.0)
    row = [TEXT(1), Segment.video(t=1, h=1, w=1, seconds_per_grid=1.0), SOUND, both, TEXT(1)]
    left = truncate(row, 9, policy="drop_media", markers=(0, 0))
    assert {kind: which.tolist() for kind, which in left.media.items()} == {"video": [0], "audio": [0]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"length": 12}), r'the row has 19 tokens; at 12 the image at 11\.\.16 \(segment 3\) would be cut\. Allow more tokens, make the media smaller, or choose policy="drop_media" or "before_media"'),
        (({"length": 1}), r"at 1 the image at 2\.\.7 \(segment 1\) would be lost, and 1 more\. Allow more"),
        (({"length": 12, "policy": "drop_media"}), r"at 12 the image at 11\.\.16 \(segment 3\) would be cut\. The text tokens that open and close it go with it: state how many, markers=\(1, 1\)"),
        (({"length": 12, "policy": "before_media", "markers": (3, 4)}), r"the image at 2\.\.7 should have 3 markers before it, but there are 2 text tokens"),
        (({"length": 12, "policy": "before_media", "markers": {"video": (1, 1)}}), "the row has a image, but markers are stated of video; add 'image'"),
        (({"length": 12, "policy": "drop"}), "policy must be one of .*'before_media'.*, got 'drop'"),
        (({"length": -1}), "length must be at least 0, got -1"),
        (({"length": 1.5}), "length must be a whole number of tokens, got 1.5"),
        (({"length": 12, "policy": "drop_media", "markers": (2, 2)}), r"the markers of the image from 9 on and of what is before it \(up to 9\) are the same text tokens"),
        (({"length": 12, "frames": [2]}), r"frames \[2\] are 2 frames in all, but the row has 0"),
    ],
)  # fmt: skip
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        truncate(ROW, **arguments)


def test_frames_have_to_be_told_apart():
    with pytest.raises(ValueError, match=r"the row has 1 frames, and does not say of which videos: pass frames=\[\.\.\.\]"):
        truncate([TEXT(1), Segment.frame(h=1, w=1)], 1)
    assert truncate([TEXT(1), Segment.frame(h=1, w=1)], 2).media["frame"].tolist() == [0]


@given(st.lists(st.integers(0, 3), max_size=5))
def test_joined_rows_are_their_segments(counts):
    parts = [Row.of([TEXT(n), IMAGE, Segment.video(t=1, h=1, w=1, times=[0.5])][: n + 1]) for n in counts]
    assert Row.join(parts) == [segment for part in parts for segment in part]


# --- its inputs -------------------------------------------------------------------------------------------------------

CUTTABLE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "ernie4_5_vl_moe", "paddleocr_vl", "qwen2_5_omni", "qwen3_omni_moe")
PIXELS = {"image_grid_thw": "pixel_values", "video_grid_thw": "pixel_values_videos"}


@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@settings(max_examples=cases(20))
@given(data=st.data())
def test_inputs_are_cut_as_their_row(name, make, data):
    """Tokens, pixels, grids, seconds and ids are those of the row that is left, as a processor would give them for it."""
    rule = with_tokens(name)
    row = data.draw(upstream_rows(rule, "audio_in_video"))
    inputs = {key: np.asarray(value) for key, value in as_inputs([row], rule).items()}
    for grids, key in PIXELS.items():
        if grids in inputs:  # of each patch the number of its image or video
            inputs[key] = np.repeat(np.arange(len(inputs[grids])), inputs[grids].prod(axis=1))[:, None]
    positions = position_ids(row, rule)
    whole = {**inputs, "labels": inputs["input_ids"] + 1, "position_ids": positions.ids, "next_position": positions.next}
    whole = {key: make(value) for key, value in whole.items()} | {"task": "caption"}
    flat = {**whole, **{key: whole[key][0] for key in ("input_ids", "labels", "attention_mask", "mm_token_type_ids")}}
    flat["position_ids"] = whole["position_ids"][:, 0]
    left = cut(row, data.draw(st.integers(1, length(row) + 2)), "drop_media")
    for given_ in (whole, flat):
        short = left.cut(given_, rule)
        assert all(type(short[key]) is type(given_[key]) for key in given_)
        batch = {key: value[None] if key in inputs and np.ndim(value) == 1 else value for key, value in short.items()}
        if left.row.length:
            [found] = segments_from_inputs({key: batch[key] for key in inputs if len(batch[key])}, rule)
            assert found.length == left.row.length
            assert [s for s in found if s.kind != "text"] == [s for s in left.row if s.kind != "text"]
        right = position_ids(left.row, rule)
        np.testing.assert_array_equal(np.asarray(short["position_ids"]).reshape(right.ids.shape), right.ids)
        np.testing.assert_array_equal(np.asarray(short["next_position"]), right.next)
        np.testing.assert_array_equal(np.asarray(short["labels"]).ravel(), np.asarray(short["input_ids"]).ravel() + 1)
        assert short["task"] == "caption"
        for grids, key in PIXELS.items():
            if grids in inputs:
                kept = left.media["image" if grids.startswith("image") else "video"] if len(left.tokens) < length(row) else None
                kept = np.arange(len(inputs[grids])) if kept is None else kept
                assert np.unique(np.asarray(short[key])).tolist() == kept.tolist()
                assert len(short[key]) == np.asarray(short[grids]).prod(axis=1).sum()


def test_times_of_frames_are_cut_in_either_form():
    row = [TEXT(1), Segment.video(t=2, h=1, w=1), TEXT(2), Segment.video(t=1, h=2, w=2), TEXT(1)]
    left = truncate(row, 6, policy="before_media", markers=(0, 0))
    inputs = {"input_ids": np.arange(10), "video_grid_thw": np.array([[2, 2, 2], [1, 4, 4]])}
    times = [np.arange(4.0), np.arange(2.0)]
    assert [part.tolist() for part in left.cut({**inputs, "video_timestamps": times})["video_timestamps"]] == [[0, 1, 2, 3]]
    flat = left.cut({**inputs, "video_timestamps": np.concatenate(times)})  # a Processor's row()
    assert flat["video_timestamps"].tolist() == [0, 1, 2, 3]
    assert flat["video_grid_thw"].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": np.arange(8)}, r"input_ids are \[8\], but the row that was cut has 9 tokens"),
        ({"position_ids": np.zeros((3, 9))}, "the inputs have position_ids, which are others in a row that was cut: say whose"),
        ({"image_grid_thw": np.ones((2, 3))}, "image_grid_thw has 2 entries for 2 images, but the row that was cut had 1"),
        ({"pixel_values": np.zeros((7, 5))}, "pixel_values has 7 entries for 1 images, but the row that was cut had 1"),
    ],
)
def test_inputs_of_other_rows_are_not_cut(changes, message):
    left = truncate([TEXT(2), IMAGE, TEXT(1)], 2, policy="drop_media", markers=(1, 0))
    inputs = {"input_ids": np.arange(9), "image_grid_thw": np.array([[1, 4, 6]]), "pixel_values": np.zeros((24, 5))}
    assert left.cut(inputs)["pixel_values"].shape == (0, 5)
    with pytest.raises(ValueError, match=message):
        left.cut({**inputs, **changes})
    with pytest.raises(ValueError, match=r"position_ids must be 3 rows \(thw\), got 4"):
        left.cut({**inputs, "position_ids": np.zeros((4, 9))}, "qwen2_vl")
