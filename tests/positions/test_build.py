"""The laws of position IDs, over every row of the table, and tables computed by hand."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrope import FAMILIES, Segment, family, pack, patch_position_ids, position_ids
from mmrope.positions import AudioInVideo, Row, convert_ids, decode_position_ids, fingerprint, rope_deltas
from mmrope.positions.build import _bounds, largest_ids, plan
from tests.support.strategies import any_rows, images, law, length, long_rows, pad_of, rows, slow_position_ids, small


def same_ids(one, other, rule):
    """Equal, bit for bit; Circle-RoPE's come from sines, whose last bits are the library's."""
    assert one.dtype == other.dtype == rule.dtype
    if rule.name == "circle_rope":
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    else:
        np.testing.assert_array_equal(one, other)


@law
def test_ids_are_those_of_the_definition(rule, data):
    row = data.draw(any_rows(rule))
    ids, following = slow_position_ids(row, rule)
    positions = position_ids(row, rule)
    same_ids(positions.ids[:, 0], ids, rule)
    same_ids(positions.next, np.array([following], dtype=rule.dtype), rule)
    assert positions.mask[0].tolist() == [s.kind != "pad" for s in row for _ in range(s.length)]


@law
def test_text_alone_counts_up_on_every_axis(rule, data):
    n = data.draw(st.integers(0, 50))
    positions = position_ids([Segment.text(n)], rule)
    np.testing.assert_array_equal(positions.ids, np.broadcast_to(np.arange(n), (len(rule.axes), 1, n)))
    assert positions.next.tolist() == [n]


@law
def test_chunks_put_together_are_the_whole(rule, data):
    row = data.draw(any_rows(rule))
    n = length(row)
    cuts = sorted(data.draw(st.lists(st.integers(0, n + 5), max_size=4)))
    whole = position_ids(row, rule, stop=n + 5)
    chunks = [position_ids(row, rule, start=a, stop=b) for a, b in zip([0, *cuts], [*cuts, n + 5], strict=True)]
    np.testing.assert_array_equal(np.concatenate([c.ids for c in chunks], axis=-1), whole.ids)
    np.testing.assert_array_equal(np.concatenate([c.mask for c in chunks], axis=-1), whole.mask)
    assert all(c.next == whole.next for c in chunks)
    buffer = np.empty((len(rule.axes), 1, n + 5), dtype=np.float32 if rule.fractional else np.int32)
    for a, b in zip([0, *cuts], [*cuts, n + 5], strict=True):
        position_ids(row, rule, start=a, stop=b, out=buffer[..., a:b])
    np.testing.assert_array_equal(buffer, whole.ids)


@law
def test_decoding_equals_rebuilding_from_the_longer_row(rule, data):
    row, steps = data.draw(any_rows(rule)), data.draw(st.integers(0, 6))
    n = length(row)
    past = position_ids(row, rule, start=n, stop=n + steps)
    longer = position_ids([*row, Segment.text(steps)], rule)
    np.testing.assert_array_equal(past.ids, longer.ids[..., n:])
    assert past.mask.all()
    assert (longer.next == past.next + np.array(steps, dtype=rule.dtype)).all()


@law
def test_padding_moves_no_token(rule, data):
    row, pad = data.draw(any_rows(rule, padding=False)), data.draw(st.integers(0, 5))
    bare = position_ids(row, rule)
    for padded in ([Segment.pad(pad), *row], [*row, Segment.pad(pad)]):
        positions = position_ids(padded, rule)
        np.testing.assert_array_equal(positions.ids[:, positions.mask], bare.ids[:, bare.mask])
        assert (positions.ids[:, ~positions.mask] == pad_of(row, rule)).all()
        assert positions.next == bare.next


@law
def test_rows_do_not_affect_each_other(rule, data):
    """But for HunYuan in transformers, where images are counted through the batch."""
    batch = data.draw(st.lists(st.one_of(rows(rule), long_rows(rule)), min_size=1, max_size=4))
    longest = max(map(length, batch))
    batch = [[*row, Segment.pad(longest - length(row))] for row in batch]
    together = position_ids(batch, rule)
    before = 0
    for b, row in enumerate(batch):
        alone = position_ids(row, rule)
        if rule.ordinal == "batch":
            same_ids(together.ids[:, b], slow_position_ids(row, rule, before)[0], rule)
            before += sum(segment.kind == "image" for segment in row)
        elif rule.pad_value_without_vision is not None:  # what padding carries is said of a batch
            np.testing.assert_array_equal(together.ids[:, b, together.mask[b]], alone.ids[:, 0, alone.mask[0]])
        else:
            np.testing.assert_array_equal(together.ids[:, b], alone.ids[:, 0])
        np.testing.assert_array_equal(together.mask[b], alone.mask[0])
        assert together.next[b] == alone.next[0]


@law
def test_an_image_is_a_video_of_one_frame(rule, data):
    """Where a family has both."""
    image, seconds = data.draw(images), data.draw(st.sampled_from((0.5, 1.0)))
    _, h, w = image.grid
    other_forms = {
        "frame": Segment.frame(h=h, w=w),
        "video": Segment.video(t=1, h=h, w=w, seconds_per_grid=seconds),
    }
    for kind in set(rule.media) & set(other_forms):
        around = [Segment.text(2), None, Segment.text(2)]
        one, other = (position_ids([s or vision for s in around], rule) for vision in (image, other_forms[kind]))
        np.testing.assert_array_equal(one.ids, other.ids)
        assert one.next == other.next


@law
def test_dtypes_and_buffers_hold_the_same_ids(rule, data):
    row, wide = data.draw(any_rows(rule)), data.draw(st.booleans())
    dtype = {True: (np.float32, np.float64), False: (np.int32, np.int64)}[rule.fractional][wide]
    expected = position_ids(row, rule, dtype=dtype)
    assert expected.ids.dtype == dtype
    np.testing.assert_array_equal(expected.ids.astype(rule.dtype), position_ids(row, rule).ids)
    axes = len(rule.axes)
    buffer = np.full((length(row) + 2, axes, 2), -7, dtype=dtype)  # tokens first: every axis of the view is strided
    out = buffer[1:-1].transpose(1, 2, 0)[:, :1]  # [A, 1, S]
    positions = position_ids(row, rule, out=out)
    assert positions.ids is out
    np.testing.assert_array_equal(out, expected.ids)
    assert (buffer[[0, -1]] == -7).all()
    assert (buffer[:, :, 1] == -7).all()


@law
def test_text_is_after_all_that_was_before_by_the_reference_rule(rule, data):
    """But for the diagonal layouts, whose h and w reach past their t, for what goes on after audio in video, for canvases whose
    crops differ in size, which are laid out by the first, and for Isaac, whose text goes on behind the time alone."""
    if rule.revision or rule.couple or (rule.origin == "zero" and rule.advance == "time"):
        return
    row = data.draw(rows(rule, padding=False, custom=False))
    ids = position_ids(row, rule).ids[:, 0]
    begin = 0
    for segment in row:
        if isinstance(segment, AudioInVideo) or len(set(getattr(segment, "slices", ()))) > 1:
            return
        if segment.kind == "text" and segment.length:
            assert ids[0, begin] > ids[:, :begin].max(initial=-1)
        begin += segment.length


@law
def test_even_times_equal_seconds_per_grid(rule, data):
    if "video" not in rule.media or rule.revision:
        return
    t, h, w, seconds = (data.draw(part) for part in (st.integers(1, 6), small, small, st.sampled_from((0.25, 0.5, 1.0, 1.5))))
    even = Segment.video(t=t, h=h, w=w, seconds_per_grid=seconds)
    stated = Segment.video(t=t, h=h, w=w, times=[7 + i * seconds for i in range(t)])  # only differences count
    one, other = (position_ids([Segment.text(2), video, Segment.text(1)], rule) for video in (even, stated))
    np.testing.assert_array_equal(one.ids, other.ids)


@given(small, small)
def test_on_a_circle_all_are_equally_far_from_text(h, w):
    """Circle-RoPE's purpose: no token of text is nearer to one token of an image than to another."""
    ids = position_ids([Segment.text(3), Segment.image(h=h, w=w), Segment.text(3)], "circle_rope").ids[:, 0].astype(float)
    text, image = np.concatenate([ids[:, :3], ids[:, -3:]], axis=1), ids[:, 3:-3]
    distance = np.linalg.norm(text[:, :, None] - image[:, None], axis=0)  # [text, image]
    np.testing.assert_allclose(distance, np.broadcast_to(distance[:, :1], distance.shape), rtol=0, atol=1e-4)


@law
def test_rows_and_families_survive_pickling(rule, data):
    row = data.draw(any_rows(rule))
    held, again = Row.of(row), pickle.loads(pickle.dumps((rule, Row.of(row))))
    assert again == (rule, held)
    np.testing.assert_array_equal(position_ids(again[1], again[0]).ids, position_ids(row, rule).ids)


# --- tables computed by hand ------------------------------------------------------------------------------------------


def test_image_by_hand():
    positions = position_ids([Segment.text(4), Segment.image(h=2, w=3), Segment.text(2)], "qwen2_vl")
    assert positions.ids[:, 0].tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8],
        [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8],
    ]
    assert positions.next.tolist() == [9]


@pytest.mark.parametrize(
    ("name", "seconds", "video_t", "text"),
    [
        # 4 text tokens, a video of 8 grids of 2 x 2 tokens, 3 text tokens; 4 ids a second
        ("qwen2_vl", 1.0, [4, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14]),
        ("qwen2_vl@transformers-5.23", 1.0, [4, 5, 6, 7, 8, 9, 10, 11], [6, 7, 8]),
        ("qwen2_5_vl", 1.0, [4, 8, 12, 16, 20, 24, 28, 32], [33, 34, 35]),
        ("qwen2_5_vl@transformers-5.23", 1.0, [4, 8, 12, 16, 20, 24, 28, 32], [6, 7, 8]),
        ("qwen2_5_vl", 0.5, [4, 6, 8, 10, 12, 14, 16, 18], [19, 20, 21]),
        ("qwen2_5_vl", 0.3, [4, 5, 6, 7, 8, 10, 11, 12], [13, 14, 15]),
        ("qwen2_5_vl", 0.7, [4, 6, 9, 12, 15, 18, 20, 23], [24, 25, 26]),
    ],
)
def test_video_by_hand(name, seconds, video_t, text):
    rule = family(name, ids_per_second=4) if "2_5" in name else family(name)
    video = Segment.video(t=8, h=2, w=2, seconds_per_grid=seconds)
    ids = position_ids([Segment.text(4), video, Segment.text(3)], rule).ids[:, 0]
    assert ids[0, 4:36:4].tolist() == video_t
    assert ids[1, 4:8].tolist() == [4, 4, 5, 5]
    assert ids[2, 4:8].tolist() == [4, 5, 4, 5]
    assert ids[:, 36:].tolist() == [text] * 3


def test_the_order_of_float32_operations_is_part_of_the_rule():
    # (i * seconds) * rate and i * (rate * seconds) round differently; with 2 or 4 ids a second, powers of two, they agree
    found = []
    for rate in (13, 25):
        for seconds in np.arange(1, 200) / 100:
            row = [Segment.video(t=64, h=1, w=1, seconds_per_grid=seconds)]
            one, other = (
                position_ids(row, family(name, ids_per_second=rate)).ids[0, 0]
                for name in ("qwen2_5_vl", "qwen2_5_vl@transformers-5.23")
            )
            found += [(rate, seconds, i) for i in np.flatnonzero(one != other)]
    assert found, "the two rules never differ: is one of them computed in another order than it says?"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "name", "options", "message"),
    [
        (
            [Segment.video(t=2, h=1, w=1)],
            "qwen2_5_vl",
            {},
            r"segment 0 is Segment.video\(t=2, h=1, w=1\).*places videos by time: state seconds_per_grid",
        ),
        (
            [Segment.text(1), Segment.video(t=2, h=1, w=1, seconds_per_grid=1)],
            "qwen3_vl",
            {},
            r"segment 1 .* splits videos into frames: list text",
        ),
        ([Segment.frame(h=1, w=1)], "qwen2_vl", {}, r"segment 0 .* places videos whole: use Segment.video"),
        ([[Segment.text(1)], [Segment.frame(h=1, w=1)]], "qwen2_vl", {}, r"row 1, segment 0"),
        (
            [[Segment.text(1)], [Segment.text(3)]],
            "qwen2_vl",
            {},
            r"rows have 1, 3 tokens; .* collate\(rows\) fills them up to 3",
        ),
        (
            [Segment.text(3)],
            "qwen2_vl",
            {"start": 2, "stop": 1},
            r"0 <= start <= stop, got start=2, stop=1 for 3 tokens",
        ),
        ([Segment.text(3)], "qwen2_vl", {"start": -1}, r"0 <= start"),
        ([Segment.text(3)], "qwen2_vl", {"stop": 1.5}, r"stop must be a whole number of tokens, got 1.5"),
        ([Segment.text(3)], "qwen2_vl", {"dtype": "float32"}, r"position ids are int64 or int32, not float32"),
        (
            [Segment.text(3)],
            "qwen2_vl",
            {"out": np.zeros((3, 1, 4), int)},
            r"out must be a numpy array of shape \(3, 1, 3\)",
        ),
        ([Segment.text(3)], "qwen2_vl", {"out": [0, 0, 0]}, r"out must be a numpy array"),
        (
            [Segment.text(3)],
            "qwen2_vl",
            {"out": np.broadcast_to(np.zeros((3, 1, 1), int), (3, 1, 3))},
            r"with memory for each element, got \(3, 1, 3\) with strides \(8, \d, 0\)",
        ),
        ("qwen2_vl", [Segment.text(3)], {}, r"family must be a Family or its name, got list; the rows come first"),
        ([Segment.text(3)], "qwen2_vl", {"out": np.zeros((3, 1, 3), np.float32)}, r"not float32"),
        (
            [Segment.text(3)],
            "qwen2_vl",
            {"out": np.zeros((3, 1, 3), np.int32), "dtype": "int64"},
            r"dtype=int64 and out of int32 disagree",
        ),
        (
            [Segment.video(t=2, h=1, w=1, times=[0, 2e9])],
            "qwen2_5_vl",
            {"dtype": "int32"},
            r"position id 4,000,000,000 does not fit int32",
        ),
        (
            [Segment.video(t=2**31 - 1, h=1, w=1, seconds_per_grid=1e9)],
            family("qwen2_5_vl", ids_per_second=1e3),
            {},
            r"a video's time ids go more than 1,099,511,627,776 up: its seconds, ids per second or stride are too large",
        ),
        ("text", "qwen2_vl", {}, r"rows must be a list of Segments or a list of such lists, got str"),
        ([[Segment.text(1)], Segment.text(1)], "qwen2_vl", {}, r"item 0 is \[Segment.text\(1\)\]"),
        ([Segment.text(3)], "qwen9_vl", {}, r"unknown family 'qwen9_vl'. Did you mean 'qwen3_vl'\? Known: rope, qwen2_vl, "),
    ],
)
def test_what_cannot_be_right_is_refused(rows, name, options, message):
    with pytest.raises(ValueError, match=message):
        position_ids(rows, name, **options)


def test_ids_past_the_end_must_fit_too():
    row = [Segment.video(t=2, h=1, w=1, times=[0, (2**31 - 200) / 2])]
    assert position_ids(row, "qwen2_5_vl", stop=10, dtype="int32").ids.max() < 2**31
    with pytest.raises(ValueError, match="does not fit int32"):
        position_ids(row, "qwen2_5_vl", start=2, stop=300, dtype="int32")


FULL = 2**31 - 1


@pytest.mark.parametrize(
    ("name", "row", "start"),
    [
        ("qwen2_5_vl@transformers-5.23", [Segment.text(1), Segment.video(t=4, h=1, w=1, seconds_per_grid=1e9)], 0),
        ("qwen2_vl@transformers-5.23", [Segment.text(FULL - 60), Segment.video(t=300, h=1, w=1)], FULL - 60),
        ("videorope", [Segment.text(FULL - 45), Segment.video(t=20, h=40, w=1)], FULL - 45),
        ("vrope", [Segment.text(FULL - 45), Segment.video(t=20, h=40, w=1)], FULL - 45),
        ("qwen2_vl", [Segment.custom([[-(2**40)]] * 3, advance=1)], 0),
        ("qwen2_vl", [Segment.text(FULL), Segment.text(5)], FULL),
    ],
)
def test_what_does_not_fit_int32_is_refused_wherever_it_is(name, row, start):
    assert position_ids(row, name, start=start).ids.dtype == np.int64
    with pytest.raises(ValueError, match=r"position id -?[\d,]+ does not fit int32; ask for int64"):
        position_ids(row, name, start=start, dtype=np.int32)


def test_int32_is_refused_for_what_is_asked_for_alone():
    """The rest of the row may be larger."""
    row = [Segment.text(3), Segment.video(t=4, h=1, w=1, seconds_per_grid=1e9)]
    assert position_ids(row, "qwen2_5_vl", stop=2, dtype=np.int32).ids[0, 0].tolist() == [0, 1]


@law
def test_bounds_are_those_of_the_ids(rule, data):
    """What is checked for int32: no id of the touched segments is outside, and for whole rows the largest is reached."""
    row = data.draw(any_rows(rule, padding=False))
    if rule.fractional or not length(row):
        return
    start = data.draw(st.integers(0, length(row)))
    stop = data.draw(st.integers(start, length(row) + 3))
    ids = position_ids(row, rule, start=start, stop=stop).ids
    [(placed, _, _)] = plan([Row.of(row)], rule)
    for place in placed:
        kind, _, n, token, *_ = place
        mine = position_ids(row, rule, start=token, stop=token + n).ids
        smallest, largest = _bounds(place, rule)
        assert kind == "pad" or not n or (smallest <= mine.min() and mine.max() <= largest)
    assert largest_ids(plan([Row.of(row)], rule), rule)[0] <= max(position_ids(row, rule).ids.max(), 0) + ("i" in rule.axes)
    assert ids.shape[-1] == stop - start


def test_one_row_and_no_rows():
    row = [Segment.text(2)]
    for form in (row, Row.of(row), [row], [Row.of(row)], (Segment.text(2),)):
        assert position_ids(form, "qwen2_vl").ids.shape == (3, 1, 2)
    assert position_ids([], "qwen2_vl").ids.shape == (3, 1, 0)
    assert position_ids([[], []], "qwen2_vl", stop=2).ids.tolist() == [[[0, 1], [0, 1]]] * 3


def test_positions_show_themselves():
    positions = position_ids([[Segment.text(5)], [Segment.text(5)]], "qwen2_vl", start=2)
    assert repr(positions) == "Positions(qwen2_vl: 3 axes thw, 2 x 3 tokens from 2, int64, next [5, 5])"


# --- vision towers ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), max_size=4), st.integers(1, 3))
def test_patches_in_blocks_are_the_raster_reordered(grids, merge):
    grids = [(t, h * merge, w * merge) for t, h, w in grids]
    raster = patch_position_ids(grids, axes="thw", order="raster")
    blocks = patch_position_ids(grids, axes="thw", order="blocks", merge=merge)
    assert raster.T.tolist() == [[i, j, k] for t, h, w in grids for i in range(t) for j in range(h) for k in range(w)]
    # each run of merge * merge patches is one block of the grid
    if len(grids):
        corners = blocks.T.reshape(-1, merge * merge, 3)  # [tokens, m * m, 3]
        assert (corners // [1, merge, merge] == (corners // [1, merge, merge])[:, :1]).all()
    assert sorted(map(tuple, blocks.T.tolist())) == sorted(map(tuple, raster.T.tolist()))
    np.testing.assert_array_equal(patch_position_ids(grids, order="blocks", merge=merge), blocks[1:])


def test_patches_equal_transformers():
    import torch
    from transformers.vision_utils import get_vision_position_ids

    grids = torch.tensor([[1, 4, 6], [3, 2, 8], [1, 2, 2]])
    for axes, temporal in (("hw", False), ("thw", True)):
        expected = get_vision_position_ids(grids, 2, include_temporal=temporal)
        assert patch_position_ids(grids, axes=axes).T.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_thw": [[1, 3, 4]]}, r"patch grid 0 is 1 x 3 x 4; order='blocks' with merge=2 needs h and w"),
        ({"grid_thw": [[1, 4, 4]], "axes": "wh"}, r"axes must be one of \('hw', 'thw'\)"),
        ({"grid_thw": [[1, 4, 4]], "order": "zigzag"}, r"order must be one of \('raster', 'blocks'\)"),
        ({"grid_thw": [[1.5, 4.7, 4.2]]}, r"grid_thw must be whole numbers \[n, 3\] \(t, h, w\), got float64 \[1, 3\]"),
        ({"grid_thw": [1, 4, 4]}, r"grid_thw must be whole numbers \[n, 3\]"),
        ({"grid_thw": [[1, 4, 4]], "merge": 0}, r"merge must be at least 1, got 0"),
    ],
)
def test_impossible_patches_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        patch_position_ids(**options)


@pytest.mark.parametrize("name", sorted(name for name, row in FAMILIES.items() if row.fractional and not row.revision))
def test_fractional_ids_are_not_rounded_into_each_other(name):
    """float32 has whole numbers up to 2^24; past it neighbours would share an id, silently."""
    row_of_table = FAMILIES[name]
    fractional = family(name, stride=0.5) if row_of_table.stride is None else family(name)
    fits, row = [Segment.text(2**24)], [Segment.text(2**24 + 4)]
    assert position_ids(fits, fractional, start=2**24 - 2).ids[0, 0].tolist() == [2**24 - 2, 2**24 - 1]
    assert position_ids(fits, fractional, start=2**24 - 2).next.tolist() == [2**24]
    with pytest.raises(ValueError, match="position id 16,777,217 does not fit float32"):  # the next
        position_ids([Segment.text(2**24 + 1)], fractional, stop=3)
    with pytest.raises(ValueError, match=r"position id 16,777,2\d\d does not fit float32; ask for float64"):
        position_ids(row, fractional, start=2**24 - 2, stop=2**24 + 3)
    with pytest.raises(ValueError, match="does not fit float32"):
        pack([row], fractional)
    wide = position_ids(row, fractional, start=2**24 - 2, stop=2**24 + 3, dtype=np.float64)
    assert wide.ids[0, 0].tolist() == list(range(2**24 - 2, 2**24 + 3))
    assert wide.next.tolist() == [2**24 + 4]


FRACTIONAL = ["qwen3_omni_moe", family("hope", stride=0.75), family("v2pe", stride=1 / 256), "circle_rope"]


@pytest.mark.parametrize("rule", FRACTIONAL, ids=str)
@pytest.mark.parametrize("below", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("kind", ["text", "image", "audio", "video", "audio_in_video"])
def test_whole_ids_past_2_24_are_exact_in_float64_at_every_door(rule, below, kind):
    """Past a row's media, text continues by ones; a row that begins 2^24 higher has ids 2^24 higher."""
    rule = family(rule)
    if kind not in ("text", *rule.media):
        return
    first = 2**24 - below
    media = {
        "text": lambda: Segment.text(3),
        "image": lambda: Segment.image(h=3, w=5),
        "audio": lambda: Segment.audio(9),
        "video": lambda: Segment.video(t=4, h=2, w=2, seconds_per_grid=1.0),
        "audio_in_video": lambda: AudioInVideo.make(t=3, h=1, w=2, audio=7, seconds_per_grid=1.0),
    }[kind]()
    low = position_ids(
        [Segment.text(1024), media, Segment.text(60)], rule, start=1023, stop=1024 + media.length + 64, dtype=np.float64
    )
    row = [Segment.text(first), media, Segment.text(60)]
    stop = first + media.length + 64
    high = position_ids(row, rule, start=first - 1, stop=stop, dtype=np.float64)
    tolerance = {"circle_rope": 2, "v2pe": 1, "hope": 1}.get(rule.name, 0)  # fractions are rounded as float32 has them
    np.testing.assert_allclose(high.ids - low.ids, first - 1024, rtol=0, atol=tolerance)
    text = high.ids[0, 0, -64:]
    assert (np.diff(text) == 1).all()
    assert high.next[0] == text[-5] + 1
    tensors = high.torch()
    assert tensors["position_ids"][0, 0, -64:].tolist() == text.tolist()
    assert tensors["next_position"].tolist() == high.next.tolist()
    assert decode_position_ids(high.next, rule, step=1, count=3)[0, 0].tolist() == text[-3:].tolist()
    np.testing.assert_array_equal(
        rope_deltas(high, length="padded")[0], high.ids[..., : 1 + media.length + 60].max() + 1 - (stop - 4)
    )
    with pytest.raises(ValueError, match=r"position id 16,777,\d\d\d does not fit float32; ask for float64"):
        position_ids(row, rule, start=first - 1)
    with pytest.raises(ValueError, match="does not fit float32; ask for float64"):
        decode_position_ids(high.next.astype(np.float32), rule, count=2)
    assert fingerprint(high) != fingerprint(high.ids + 1)


def test_decode_steps_in_float32_are_exact_or_refused():
    narrow = np.array([2**24 - 2], np.float32)
    assert decode_position_ids(narrow, "qwen3_omni_moe", count=3)[0, 0].tolist() == [2**24 - 2, 2**24 - 1, 2**24]
    for following, more in (
        (narrow, {"count": 4}),
        (np.float32([5]), {"step": 2**24}),
        (np.float32([5.5]), {"step": 2**23, "count": 2}),
    ):
        with pytest.raises(ValueError, match=r"position id [\d,]+ does not fit float32; ask for float64"):
            decode_position_ids(following, "qwen3_omni_moe", **more)
        wide = decode_position_ids(following.astype(np.float64), "qwen3_omni_moe", **more)[0, 0]
        assert (np.diff(wide) == 1).all()
    with pytest.raises(ValueError, match="following must be finite ids"):
        decode_position_ids(np.float32([np.nan]), "qwen3_omni_moe")


def test_text_positions_that_float32_cannot_hold_are_refused():
    """Of V2PE ids may be small where text positions are large."""
    ids = np.zeros((1, 1, 3), np.float32)
    with pytest.raises(ValueError, match=r"text positions up to 16,777,217 do not fit float32"):
        convert_ids(ids, "axes_first", "text_row_first", axes=1, text_ids=[[0, 1, 2**24 + 1]])
    held = convert_ids(ids.astype(float), "axes_first", "text_row_first", axes=1, text_ids=[[0, 1, 2**24 + 1]])
    assert held[0].tolist() == [[0, 1, 2**24 + 1]]


def test_a_function_that_computes_in_float32_past_2_24_is_refused():
    def place(segment, start, family):
        return (np.full((3, segment.length), start)).astype(np.float32), start + 1

    rule = family("circle_rope").replace(name="mine", place={"image": place})
    with pytest.raises(ValueError, match="compute in the dtype of the id that the segment begins at"):
        position_ids([Segment.text(2**24 + 1), Segment.image(h=1, w=1)], rule, start=2**24, dtype=np.float64)
