"""Rows put together: padded, packed, pruned. Nothing of that changes the ids of a real token, in any family."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import strategies as st

from mmrope import Segment, collate, pack, position_ids
from mmrope.positions import AudioInVideo, keep
from tests.support.strategies import any_rows, law, length, slow_position_ids

TEXT, IMAGE, PAD = Segment.text, Segment.image(h=2, w=3), Segment.pad

batches = lambda rule: st.lists(any_rows(rule), min_size=1, max_size=4)  # noqa: E731


def alone(row, rule):
    """The ids [A, n] of a row's real tokens."""
    positions = position_ids(row, rule)
    return positions.ids[:, positions.mask]


def separate(batch, rule):
    """The ids of each row alone; but HunYuan in transformers counts images through the batch."""
    found, before = [], 0
    for row in batch:
        if rule.ordinal == "batch":
            ids = slow_position_ids(row, rule, before)[0]
            found.append(ids[:, [s.kind != "pad" for s in row for _ in range(s.length)]])
            before += sum(s.kind == "image" for s in row)
        else:
            found.append(alone(row, rule))
    return found


# --- collate ----------------------------------------------------------------------------------------------------------


@law
def test_pad_side_and_multiple_change_no_real_token(rule, data):
    batch = data.draw(batches(rule))
    side, multiple = data.draw(st.sampled_from(("left", "right"))), data.draw(st.integers(1, 9))
    rows = collate(batch, pad_side=side, multiple_of=multiple)
    positions = position_ids(rows, rule)
    longest = max(map(length, batch))
    assert positions.ids.shape[2] == -(-longest // multiple) * multiple
    for b, (row, ids) in enumerate(zip(batch, separate(batch, rule), strict=True)):
        np.testing.assert_array_equal(positions.ids[:, b, positions.mask[b]], ids)
        assert positions.next[b] == position_ids(row, rule).next[0]
        real = [s.kind != "pad" for s in row for _ in range(s.length)]
        gap = [False] * (positions.ids.shape[2] - len(real))
        assert positions.mask[b].tolist() == (gap + real if side == "left" else real + gap)
    assert (positions.ids[:, ~positions.mask] == rule.pad_value).all()


@law
def test_text_positions_count_real_tokens(rule, data):
    rows = collate(data.draw(batches(rule)), pad_side=data.draw(st.sampled_from(("left", "right"))))
    n = length(rows[0])
    start = data.draw(st.integers(0, n + 3))
    stop = data.draw(st.integers(start, n + 5))
    whole, part = position_ids(rows, rule, stop=n + 5), position_ids(rows, rule, start=start, stop=stop)
    for mask, text in zip(whole.mask, whole.text_ids, strict=True):
        assert text[mask].tolist() == list(range(mask.sum()))
        assert (text[~mask] == rule.pad_value).all()
    np.testing.assert_array_equal(part.text_ids, whole.text_ids[:, start:stop])


def test_the_value_of_padding_is_a_convention():
    from mmrope import family

    rule = dataclasses.replace(family("qwen2_vl"), pad_value=1)
    assert position_ids(collate([[TEXT(1)], [TEXT(3)]]), rule).ids[0].tolist() == [[0, 1, 1], [0, 1, 2]]


# --- pack -------------------------------------------------------------------------------------------------------------


@law
def test_packed_is_separate(rule, data):
    batch, multiple = data.draw(batches(rule)), data.draw(st.integers(1, 9))
    packed = pack(batch, rule, multiple_of=multiple)
    expected = separate(batch, rule)
    assert packed.ids.dtype == rule.dtype
    assert packed.cu_seqlens.tolist() == np.cumsum([0, *(ids.shape[1] for ids in expected)]).tolist()
    assert (np.diff(packed.cu_seqlens_padded) % multiple == 0).all()
    for b, (ids, start, end) in enumerate(zip(expected, packed.cu_seqlens_padded, packed.cu_seqlens_padded[1:], strict=False)):
        n = ids.shape[1]
        assert end - start == -(-n // multiple) * multiple
        np.testing.assert_array_equal(packed.ids[:, start : start + n], ids)
        assert (packed.ids[:, start + n : end] == rule.pad_value).all()
        assert packed.mask[start:end].tolist() == [True] * n + [False] * (end - start - n)
        assert packed.text_ids[start:end].tolist() == list(range(end - start))
        assert (packed.sequence_index[start:end] == b).all()
        assert packed.next[b] == position_ids(batch[b], rule).next[0]
    assert packed.max_seqlen == max(np.diff(packed.cu_seqlens_padded))


@law
def test_a_pack_is_the_batch_without_its_padding(rule, data):
    rows = collate(data.draw(batches(rule)), pad_side=data.draw(st.sampled_from(("left", "right"))))
    positions, packed = position_ids(rows, rule), pack(rows, rule)
    np.testing.assert_array_equal(packed.ids, positions.ids[:, positions.mask])
    np.testing.assert_array_equal(packed.text_ids, positions.text_ids[positions.mask])
    np.testing.assert_array_equal(packed.index, np.flatnonzero(positions.mask))


@law
def test_tokens_go_where_their_ids_go(rule, data):
    batch, multiple = data.draw(batches(rule)), data.draw(st.integers(1, 5))
    packed = pack(batch, rule, multiple_of=multiple)
    names = [[f"{b}.{t}" for t in range(length(row))] for b, row in enumerate(batch)]
    real = [[name for name, s in zip(row, (s for s in segments for _ in range(s.length)), strict=True) if s.kind != "pad"]
            for row, segments in zip(names, batch, strict=True)]  # fmt: skip
    taken = packed.take([np.array(row, dtype=object) for row in names], fill="-")
    for row, start, end in zip(real, packed.cu_seqlens_padded, packed.cu_seqlens_padded[1:], strict=False):
        assert taken[start:end].tolist() == row + ["-"] * (end - start - len(row))


def test_int32_and_float64():
    packed = pack([[TEXT(2), IMAGE], [TEXT(1)]], "qwen2_vl", dtype=np.int32)
    assert packed.ids.dtype == np.int32
    assert packed.ids[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 0]
    sound = [AudioInVideo.make(t=2, h=1, w=1, audio=5, seconds_per_grid=0.1)]
    wide = pack([sound], "qwen3_omni_moe", dtype=np.float64)
    assert wide.ids.dtype == np.float64
    np.testing.assert_array_equal(wide.ids.astype(np.float32), pack([sound], "qwen3_omni_moe").ids)


def test_a_pack_says_what_it_is():
    packed = pack([[TEXT(2), IMAGE], [PAD(2), TEXT(1)]], "qwen2_vl", multiple_of=4)
    assert repr(packed) == "Packed(qwen2_vl: 3 axes thw, 2 sequences, 12 tokens, int64, cu_seqlens [0, 8, 9])"
    assert packed.cu_seqlens.dtype == packed.cu_seqlens_padded.dtype == packed.sequence_index.dtype == np.int32
    assert packed.cu_seqlens_padded.tolist() == [0, 8, 12]
    assert packed.index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, -1, -1, -1]
    assert packed.take([np.arange(8), np.arange(8, 11)], fill=-100)[-4:].tolist() == [10, -100, -100, -100]


def test_empty_packs():
    packed = pack([[], [PAD(3)]], "qwen2_vl")
    assert (packed.ids.shape, packed.cu_seqlens.tolist(), packed.max_seqlen, packed.next.tolist()) == (
        (3, 0),
        [0, 0, 0],
        0,
        [0, 0],
    )
    assert packed.take([[], [1, 2, 3]], fill=0).tolist() == []


# --- keep -------------------------------------------------------------------------------------------------------------


@law
def test_what_remains_stays_where_it_was(rule, data):
    rows = collate(data.draw(batches(rule)))
    positions = position_ids(rows, rule)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=positions.mask.size, max_size=positions.mask.size)), dtype=bool)
    mask = mask.reshape(positions.mask.shape)
    pruned = keep(positions, mask)
    left = mask & positions.mask
    for b, (start, end) in enumerate(zip(pruned.cu_seqlens, pruned.cu_seqlens[1:], strict=False)):
        np.testing.assert_array_equal(pruned.ids[:, start:end], positions.ids[:, b, left[b]])
        assert pruned.text_ids[start:end].tolist() == list(range(left[b].sum()))
    np.testing.assert_array_equal(pruned.next, positions.next)
    np.testing.assert_array_equal(pruned.take(np.arange(mask.size).reshape(mask.shape), fill=-1), np.flatnonzero(left))


def test_all_kept_is_a_pack():
    rows = collate([[TEXT(2), IMAGE], [TEXT(4)]])
    positions = position_ids(rows, "qwen2_vl")
    one, other = keep(positions, np.ones((2, 8), dtype=bool)), pack(rows, "qwen2_vl")
    for name in ("ids", "cu_seqlens", "cu_seqlens_padded", "next", "index", "text_ids", "sequence_index", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# --- refusals ---------------------------------------------------------------------------------------------------------


ROWS = [[TEXT(2), IMAGE], [TEXT(1)]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: collate(ROWS, pad_side="both"), "pad_side must be one of .*'left', 'right'.*, got 'both'"),
        (lambda: collate(ROWS, multiple_of=0), "multiple_of must be at least 1, got 0"),
        (lambda: pack(ROWS, "qwen2_vl", multiple_of=1.5), "multiple_of must be a whole number of tokens, got 1.5"),
        (lambda: pack(ROWS, "qwen2_vl", dtype=np.int16), "position ids are int64 or int32, not int16"),
        (lambda: pack([[Segment.video(t=1, h=1, w=1, times=[0.0])]], "qwen3_vl"), "splits videos into frames"),
        (lambda: pack([[Segment.custom([[0]] * 3, advance=2**40), IMAGE]], "qwen2_vl", dtype=np.int32), r"position id 1,099,511,627,778 does not fit int32; ask for int64"),
        (lambda: pack([[Segment.text(2**31 - 1)]] * 2, "qwen2_vl"), r"4,294,967,294 tokens in one pack are more than cu_seqlens \(int32\) can say; pack fewer rows"),
        (lambda: pack(ROWS, "qwen2_vl").take([[1], [1] * 8], fill=0), r"there are values for rows of \[1, 8\] tokens, but the rows that were packed have \[8, 1\]"),
        (lambda: keep(position_ids(ROWS[0], "qwen2_vl"), [True] * 8), r"mask has shape \(8,\), the tokens \(1, 8\): it must be \[rows, tokens\] like them"),
        (lambda: keep(position_ids(ROWS[0], "qwen2_vl"), [[2] * 8]), r"mask must be 1 at real tokens .* It is int64"),
        (lambda: keep(position_ids(ROWS[0], "qwen2_vl", start=4), [[True] * 4]), r"these positions are the slice 4\.\.\d+ of rows of 8 tokens: what was kept before"),
    ],
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
