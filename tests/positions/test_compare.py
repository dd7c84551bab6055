"""Tables of ids side by side, and checks that say what wrong ids are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

import mmrope
from mmrope import Segment, check, collate, diff, family, hf_position_ids, pack, position_ids
from mmrope.positions import WrongPositions, fingerprint
from tests.positions.test_batches import batches
from tests.support.strategies import any_rows, law, length, rows
from tests.support.upstream_ids import as_inputs

TEXT, PAD, IMAGE = Segment.text, Segment.pad, Segment.image(h=2, w=3)
VIDEO = Segment.video(t=6, h=2, w=3, seconds_per_grid=1.0)
ROWS = collate([[TEXT(3), VIDEO, TEXT(5)], [PAD(9), TEXT(30), IMAGE, TEXT(1)]], pad_side="left")  # 2 x 46, 2 and 9 of padding
RULE = family("qwen2_5_vl")


# --- check ------------------------------------------------------------------------------------------------------------


@law
def test_right_ids_pass_in_every_form(rule, data):
    rows = collate(data.draw(batches(rule)), pad_side=data.draw(st.sampled_from(("left", "right"))))
    positions, packed = position_ids(rows, rule), pack(rows, rule)
    for ids in (positions.ids, hf_position_ids(positions), packed.ids, hf_position_ids(packed)):
        check(ids, rows, rule)


@law
def test_one_wrong_id_is_found(rule, data):
    row = data.draw(any_rows(rule, padding=False))
    if not length(row):
        return
    positions = position_ids(row, rule)
    axis, token = data.draw(st.integers(0, len(rule.axes) - 1)), data.draw(st.integers(0, length(row) - 1))
    positions.ids[axis, 0, token] += 1
    with pytest.raises(
        ValueError, match=rf"1 of {length(row):,} tokens differ, first token {token} \(segment \d+, .*\): {rule.axes[axis]} is "
    ):
        check(positions.ids, row, rule)


def test_a_processors_batch_is_read():
    inputs = as_inputs(ROWS, RULE)
    check(position_ids(ROWS, RULE).ids, inputs, RULE)
    with pytest.raises(ValueError, match="not those of qwen2_5_vl"):
        check(position_ids(ROWS, RULE).ids + 1, inputs, RULE)


def wrong(ids, rows=ROWS, rule=RULE):
    with pytest.raises(ValueError, match="position_ids are not those of") as caught:
        check(ids, rows, rule)
    return str(caught.value)


def test_lost_ids_are_recognised():
    """The silent fall-back to one dimension, by place in the row and by column."""
    positions = position_ids(ROWS, RULE)
    one = np.broadcast_to(positions.text_ids, positions.ids.shape)
    assert "They are 1D ids: every axis counts the tokens of the row, as for text alone" in wrong(one)
    columns = np.broadcast_to(np.arange(one.shape[2]), one.shape)
    assert "They are 1D ids: every axis counts the columns of the row, padding included" in wrong(columns)
    rows = [[TEXT(2), IMAGE], [TEXT(3)]]
    run_on = np.broadcast_to(np.arange(11), (3, 11))
    assert "They are 1D ids that run on from one row into the next" in wrong(run_on, rows)


@law
def test_1d_ids_are_recognised_in_every_family(rule, data):
    """Also where one row of a batch lost its ids, and another did not."""
    media = [s for s in data.draw(rows(rule, padding=False, custom=False)) if s.kind != "text"]
    lost, kept = [TEXT(2), *media, TEXT(3)], [TEXT(4)]
    right = position_ids(collate([lost, kept]), rule)
    one = np.where(np.arange(2)[:, None] == 0, right.text_ids, right.ids).astype(rule.dtype)
    if (one == right.ids)[:, right.mask].all():  # families that are 1D
        return
    with pytest.raises(WrongPositions, match="They are 1D ids: every axis counts the tokens of the row"):
        check(one, collate([lost, kept]), rule)


@law
def test_shifts_are_recognised_in_every_family(rule, data):
    row, pad = data.draw(any_rows(rule, padding=False)), data.draw(st.integers(1, 9))
    if not length(row):
        return
    padded = [PAD(pad), *row]
    with pytest.raises(
        WrongPositions, match=rf"shifted by {pad}: its left padding was counted|They are 1D ids|They are those of"
    ):
        check((position_ids(padded, rule).ids + pad).astype(rule.dtype), padded, rule)


def test_ids_of_the_wrong_shape_that_are_1d():
    """[B, S], also where B is the number of axes."""
    for count in (2, 3, 4):
        rows = collate([[TEXT(2), IMAGE]] * count)
        with pytest.raises(WrongPositions, match=r"one number a token: 1D ids"):
            check(np.zeros((count, 8), dtype=np.int64), rows, RULE)


def test_packs_are_checked_by_their_boundaries():
    """As a trainer dumps them: one row, the token types of all, and where sequences begin; filled up or not."""
    rows = [[TEXT(3), IMAGE, TEXT(2)], [TEXT(2), IMAGE], [IMAGE, TEXT(4)]]
    packed, filled = pack(rows, "qwen2_vl"), pack(rows, "qwen2_vl", multiple_of=8)
    joined = as_inputs([[part for row in rows for part in row]], family("qwen2_vl"))
    del joined["attention_mask"]
    for ids in (packed.ids, hf_position_ids(packed), packed):
        check(ids, joined, "qwen2_vl", cu_seqlens=packed.cu_seqlens)
        check(ids, {**joined, "cu_seqlens": packed.cu_seqlens}, "qwen2_vl")  # its own
    check(hf_position_ids(packed), joined, "qwen2_vl")  # which its text positions state
    for ids in (packed.ids, packed):
        with pytest.raises(WrongPositions, match=r"begin anew|run on|no known"):
            check(ids, joined, "qwen2_vl")
    parts = [part for row, n in zip(rows, (5, 0, 6), strict=True) for part in (*row, PAD(n))]
    inputs = as_inputs([parts], family("qwen2_vl"))
    for ids in (filled.ids, hf_position_ids(filled), filled):
        check(ids, inputs, "qwen2_vl", cu_seqlens=filled.cu_seqlens_padded)
    check(filled, rows, "qwen2_vl")
    with pytest.raises(ValueError, match=r"cu_seqlens cut through segment 1, Segment.image\(h=2, w=3\) at 3\.\.8"):
        check(packed.ids, joined, "qwen2_vl", cu_seqlens=[0, 5, 29])
    with pytest.raises(ValueError, match="cu_seqlens end at 9, but the inputs are 1 x 29 tokens"):
        check(packed.ids, joined, "qwen2_vl", cu_seqlens=[0, 9])


def test_a_row_whose_text_positions_count_through_is_no_pack():
    ids = hf_position_ids(position_ids(ROWS[:1], RULE))
    ids[1:, 0, -1] += 5
    assert "it is a pack" not in wrong(ids, ROWS[:1])


def test_fractional_ids_may_be_rounded_once_more():
    """Decoding adds to an id that was rounded; a processor sees one text."""
    video = Segment.video(t=5, h=4, w=4, seconds_per_grid=2 / 29.97)
    cut, whole = [TEXT(10), video, TEXT(43), TEXT(200)], [TEXT(10), video, TEXT(243)]
    ids = position_ids(cut, "qwen3_omni_moe").ids
    assert (ids != position_ids(whole, "qwen3_omni_moe").ids).any()
    check(ids, whole, "qwen3_omni_moe")
    ids[0, 0, -1] += 0.001
    with pytest.raises(WrongPositions):
        check(ids, whole, "qwen3_omni_moe")


def test_known_revisions_are_named():
    ids = position_ids(ROWS, "qwen2_5_vl@transformers-5.23").ids
    said = wrong(ids)
    assert "5 of 81 tokens differ, first row 0, token 41 (segment 3, Segment.text(5)): t is 6, expected 14" in said
    assert "They are those of qwen2_5_vl@transformers-5.23 (text after a video starts at its start + max(h, w)" in said
    assert "They are those of qwen2_vl" in wrong(position_ids(ROWS, "qwen2_vl").ids)
    fractional = [Segment.text(2), Segment.video(t=2, h=1, w=1, seconds_per_grid=0.1), TEXT(2)]
    assert "They are those of qwen3_omni_moe" in wrong(position_ids(fractional, "qwen3_omni_moe").ids, fractional)


def test_the_facts_of_the_table_are_recognised():
    checkpoint = family("qwen2_5_vl", ids_per_second=25)
    said = wrong(position_ids(ROWS, "qwen2_5_vl").ids, rule=checkpoint)
    assert "They are those of qwen2_5_vl (the facts of the table, not the checkpoint's)" in said


def test_counted_padding_is_recognised():
    positions = position_ids(ROWS, RULE)
    shifted = positions.ids + np.argmax(positions.mask, axis=1)[:, None]
    said = wrong(shifted)
    assert (
        "row 0: All ids of the row are shifted by 2: its left padding was counted; row 1: All ids of the row are shifted by 9"
        in said
    )
    assert "All ids of the row are shifted by 7: were other tokens before them?" in wrong(positions.ids + 7)
    inside = [TEXT(2), IMAGE, TEXT(3), PAD(2), TEXT(5)]
    counted = position_ids(inside, RULE).ids.copy()
    counted[..., -5:] += 2
    assert "Up to there all is right: the padding before it was counted" in wrong(counted, inside)


def test_sequences_that_run_on_are_recognised():
    rows = [[TEXT(3), IMAGE, TEXT(2)], [TEXT(2), IMAGE]]
    run_on = position_ids([segment for row in rows for segment in row], RULE).ids[:, 0]
    assert "They run on from one sequence into the next: each begins at 0" in wrong(run_on, rows)


def test_a_wrong_time_step_is_recognised():
    ids = position_ids([TEXT(3), Segment.video(t=6, h=2, w=3, seconds_per_grid=2.0), TEXT(5)], RULE).ids
    said = wrong(ids, [TEXT(3), VIDEO, TEXT(5)])
    assert "first token 9 (segment 1, Segment.video(t=6, h=2, w=3, seconds_per_grid=1.0)): t is 7, expected 5" in said
    assert (
        "The video's grids lie 0, 4, 8, 12, 16, 20 ids after its first, expected 0, 2, 4, 6, 8, 10: a wrong time step" in said
    )


def test_a_wrong_advance_is_recognised():
    ids = position_ids([TEXT(3), VIDEO, TEXT(5)], RULE).ids
    ids[..., 39:] -= 3
    said = wrong(ids, [TEXT(3), VIDEO, TEXT(5)])
    assert "t is 11, expected 14. Up to there all is right: what follows the video starts at the wrong id (the advance)" in said


def test_what_is_nothing_known_is_said_to_be_so():
    ids = position_ids(ROWS, RULE).ids
    ids[1, 0, -7] += 5
    assert "They are of no known revision and no known mistake" in wrong(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((2, 46)), r"position_ids are \[2, 46\], one number a token: 1D ids\. qwen2_5_vl has 3 axes: \[3, 2, 46\]"),
        (np.zeros((2, 3, 46)), r"position_ids must be \[3, 2, 46\] \(axes thw, rows, tokens\), or with a row of text positions in front, got \[2, 3, 46\]"),
        (np.zeros((3, 2, 44)), r"position_ids are \[3, 2, 44\], but the inputs are \[3, 2, 46\] .*, 81 of the tokens real: neither the batch nor its rows packed"),
        (np.zeros(4), r"position_ids must be .*, got \[4\]"),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be(ids, message):
    with pytest.raises(ValueError, match=message):
        check(ids, ROWS, RULE)


def test_a_wrong_text_row_is_found():
    positions = position_ids(ROWS, RULE)
    check(np.concatenate([np.arange(46)[None, None].repeat(2, axis=1), positions.ids]), ROWS, RULE)  # columns do as well
    with pytest.raises(ValueError, match="have 4 rows: the first must hold the text positions"):
        check(np.concatenate([positions.ids[:1], positions.ids]), ROWS, RULE)


def test_options_that_go_with_a_batch():
    with pytest.raises(ValueError, match="prompt_lengths and video_timings go with a processor's batch"):
        check(position_ids(ROWS, RULE).ids, ROWS, RULE, prompt_lengths=[1, 1])


# --- diff -------------------------------------------------------------------------------------------------------------


@law
def test_equal_tables_have_no_difference(rule, data):
    rows = collate(data.draw(batches(rule)))
    positions, packed = position_ids(rows, rule), pack(rows, rule, multiple_of=3)
    assert diff(positions, position_ids(rows, rule)) is None
    assert diff(positions.ids, positions) is None
    assert diff(packed, packed.ids) is None


@law
def test_the_first_difference_is_found(rule, data):
    rows = collate(data.draw(batches(rule)))
    positions = position_ids(rows, rule)
    real = np.argwhere(positions.mask)
    if not len(real):
        return
    some = data.draw(st.lists(st.integers(0, len(real) - 1), min_size=1, max_size=3, unique=True))
    other = positions.ids.copy()
    for b, t in real[some]:
        other[-1, b, t] += 1
    found = diff(positions, other)
    b, t = real[min(some)]
    assert (found.row, found.token, found.axis, found.tokens, found.of) == (b, t, rule.axes[-1], len(some), len(real))
    assert (found.a, found.b) == (positions.ids[-1, b, t], other[-1, b, t])
    starts = np.cumsum([0, *(s.length for s in rows[b])])
    assert starts[found.segment] <= t < starts[found.segment + 1]
    assert found.what == rows[b][found.segment]


def test_a_difference_says_where_it_is():
    a, b = position_ids(ROWS, RULE), position_ids(ROWS, "qwen2_5_vl@transformers-5.23")
    assert str(diff(a, b)) == "5 of 81 tokens differ, first row 0, token 41 (segment 3, Segment.text(5)): t is 14 and 6"
    assert str(diff(a.ids, b.ids)) == "5 of 92 tokens differ, first row 0, token 41: 0 is 14 and 6"
    packed = pack([[TEXT(3)], [TEXT(2)]], RULE)
    other = packed.ids.copy()
    other[1, 4] = 8
    assert str(diff(packed, other)) == "1 of 5 tokens differ, first row 1, token 1: h is 1 and 8"
    past = position_ids(ROWS, RULE, start=46, stop=48)
    assert str(diff(past, past.ids + 1)) == "4 of 4 tokens differ, first row 0, token 46: t is 19 and 20"


def test_padding_does_not_count_and_a_mask_says_what_does():
    ids = position_ids(ROWS, RULE)
    some = np.zeros_like(ids.mask)
    some[:, 9:12] = True
    assert diff(ids, ids.ids + 1, mask=some).of == 6
    other = np.where(ids.mask, ids.ids, 99)
    assert diff(ids, other) is None
    assert diff(ids.ids, other) is not None
    assert diff(ids.ids, other, mask=ids.mask.astype(int)) is None


def test_fingerprints_are_of_the_ids_whatever_holds_them():
    large = np.array([[[2**24, 2**24 + 1, 2**31 - 1]]])
    assert fingerprint(large) == fingerprint(large.astype(np.float64)) == fingerprint(large.astype(np.int32))
    assert fingerprint(large) != fingerprint(np.array([[[2**24, 2**24 + 2, 2**31 - 1]]]))
    assert fingerprint(np.array([[[0.0, 0.5]]])) == fingerprint(np.array([[[-0.0, 0.5]]], dtype=np.float32))
    assert fingerprint(np.array([[[0.0, 1.0]]])) == fingerprint(np.array([[[-0.0, 1.0]]])) == fingerprint(np.array([[[0, 1]]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], [[1]]), r"a has shape \[1, 1, 2\] and b \[1, 1, 1\] \(axes, rows, tokens\): only tables of the same tokens and axes can be compared; a row of text positions in front is not an axis"),
        (([1], [[1]]), r"position ids must be numbers \[A, B, S\] or \[A, T\], got int64 \[1\]"),
        (([["a"]], [[1]]), "position ids must be numbers"),
        (([[1]], [[1]], [[1, 1]]), r"mask has shape \(1, 2\), the tokens \(1, 1\)"),
        (([[1]], [[1]], [[-1e9]]), r"mask must be 1 at real tokens and 0 at padding.* additive masks \(0, -inf\)"),
    ],
)  # fmt: skip
def test_diff_refuses(arguments, message):
    a, b, *mask = arguments
    with pytest.raises(ValueError, match=message):
        diff(a, b, mask=mask[0] if mask else None)


# --- fingerprint ------------------------------------------------------------------------------------------------------


@law
def test_a_fingerprint_is_of_the_tokens_alone(rule, data):
    """Not of padding, place in a batch or a pack, or dtype."""
    batch = data.draw(batches(rule))
    if rule.ordinal == "batch":
        batch = batch[:1]
    alone = [fingerprint(position_ids(row, rule))[0] for row in batch]
    for side in ("left", "right"):
        assert fingerprint(position_ids(collate(batch, pad_side=side, multiple_of=4), rule)) == alone
    narrow = np.float32 if rule.fractional else np.int32
    assert fingerprint(pack(batch, rule, multiple_of=4, dtype=narrow)) == alone


@law
def test_other_ids_have_another_fingerprint(rule, data):
    row = data.draw(any_rows(rule, padding=False))
    positions = position_ids(row, rule)
    before = fingerprint(positions)
    if length(row):
        positions.ids[0, 0, data.draw(st.integers(0, length(row) - 1))] += 1
        assert fingerprint(positions) != before


@law
def test_arrays_have_the_fingerprints_of_what_they_hold(rule, data):
    """What an engine computed, without any value of this library."""
    rows = collate(data.draw(batches(rule)), pad_side=data.draw(st.sampled_from(("left", "right"))))
    positions, packed = position_ids(rows, rule), pack(rows, rule)
    assert fingerprint(positions.ids, mask=positions.mask.astype(int)) == fingerprint(positions)
    if rule.ordinal != "batch":
        assert fingerprint(packed.ids, cu_seqlens=packed.cu_seqlens) == fingerprint(positions)


def test_fingerprint_refuses():
    with pytest.raises(ValueError, match=r"cu_seqlens end at 4, but ids \[3, 1, 5\] are no pack of so many tokens"):
        fingerprint(np.zeros((3, 5)), cu_seqlens=[0, 4])
    with pytest.raises(ValueError, match="additive masks"):
        fingerprint(np.zeros((3, 1, 2)), mask=[[0, -1e9]])
    with pytest.raises(ValueError, match="explain takes what position_ids returned, which knows its segments, got Packed"):
        mmrope.explain(pack(ROWS, RULE))


def test_fingerprints_stay_what_they_are():
    """The same in every version and language; made with hashlib alone, as the docstring says."""
    import hashlib
    import struct

    ids = [[0, 1, 2, 2, 2, 2, 2, 2, 5], [0, 1, 2, 2, 2, 3, 3, 3, 5], [0, 1, 2, 3, 4, 2, 3, 4, 5]]
    by_hand = hashlib.sha256(b"\x03" + b"".join(struct.pack("<d", x) for axis in ids for x in axis)).hexdigest()[:16]
    assert fingerprint(position_ids([TEXT(2), IMAGE, TEXT(1)], "qwen2_vl")) == [by_hand] == ["ec9af204e95f9d61"]
