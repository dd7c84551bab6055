"""Position IDs in the shapes that others want, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from mmrope import Segment, collate, hf_position_ids, pack, position_ids
from mmrope.positions import convert_ids, rope_deltas
from tests.positions.test_batches import batches
from tests.support.strategies import any_rows, law, rows

LAYOUTS = ("axes_first", "batch_first", "text_row_first", "batch_text_row", "packed")


@law
def test_all_layouts_hold_the_same_ids(rule, data):
    """From any to any: the ids and, where both have them, the text positions come back."""
    rows = collate(data.draw(batches(rule)), pad_side=data.draw(st.sampled_from(("left", "right"))))
    positions = position_ids(rows, rule)
    axes, mask = len(rule.axes), positions.mask
    text = np.where(mask, positions.text_ids, 0)
    ids = np.where(mask, positions.ids, 0)
    forms = {
        "axes_first": ids,
        "batch_first": ids.transpose(1, 0, 2),
        "text_row_first": np.concatenate([text[None].astype(ids.dtype), ids]),
        "batch_text_row": np.concatenate([text[None].astype(ids.dtype), ids]).transpose(1, 0, 2),
        "packed": ids[:, mask],
    }
    for source in LAYOUTS:
        for target in LAYOUTS:
            made = convert_ids(forms[source], source, target, axes=axes, mask=mask)
            np.testing.assert_array_equal(made, forms[target], err_msg=f"{source} to {target}")


@law
def test_the_form_of_transformers(rule, data):
    """The text row in front; and its inverse."""
    rows = collate(data.draw(batches(rule)))
    positions, packed = position_ids(rows, rule), pack(rows, rule, multiple_of=data.draw(st.integers(1, 4)))
    for value, ids, text in (
        (positions, positions.ids, positions.text_ids),
        (packed, packed.ids[:, None], packed.text_ids[None]),
    ):
        form = hf_position_ids(value)
        assert form.shape == (1 + len(rule.axes), *text.shape)
        np.testing.assert_array_equal(form[0], text)
        np.testing.assert_array_equal(form[1:], ids)
        np.testing.assert_array_equal(hf_position_ids(value, text_row=False), ids)
        np.testing.assert_array_equal(convert_ids(form, "text_row_first", "axes_first", axes=len(rule.axes)), ids)


@law
def test_deltas_lead_to_the_next_id_where_text_goes_on_after_the_largest(rule, data):
    """By either convention; test_references and test_inputs compare them with those of transformers."""
    batch = data.draw(st.lists(rows(rule, custom=False), min_size=1, max_size=3))
    batch = collate(batch, pad_side=data.draw(st.sampled_from(("left", "right"))))
    positions = position_ids(batch, rule)
    padded, unpadded = (rope_deltas(positions, length=length) for length in ("padded", "unpadded"))
    assert padded.shape == unpadded.shape == (len(batch), 1)
    real = positions.mask.sum(axis=1)
    np.testing.assert_allclose(padded[:, 0] + batch[0].length, unpadded[:, 0] + real, rtol=3e-6)
    largest = np.where(positions.mask, positions.ids, -1).max(axis=(0, 2), initial=-1)  # [B]
    np.testing.assert_allclose(unpadded[:, 0] + real, largest + 1, rtol=3e-6 if rule.fractional else 0)
    if rule.advance == "max" and rule.origin == "next" and not rule.place:
        tolerance = 3e-6 if rule.fractional else 0  # the difference of two float32 is rounded
        np.testing.assert_allclose(unpadded[:, 0] + real, positions.next, rtol=tolerance)
    part = position_ids(batch, rule, start=data.draw(st.integers(0, batch[0].length)))
    np.testing.assert_array_equal(rope_deltas(part, length="padded"), padded)
    np.testing.assert_array_equal(rope_deltas(part, length="unpadded"), unpadded)


def test_three_rows_of_three_tokens_are_not_guessed_at():
    square = np.arange(27).reshape(3, 3, 3)
    np.testing.assert_array_equal(convert_ids(square, "batch_first", "axes_first"), square.transpose(1, 0, 2))
    np.testing.assert_array_equal(convert_ids(square, "axes_first", "axes_first"), square)


def test_torch_tensors_of_the_host_are_taken():
    import torch

    ids = torch.arange(24).reshape(3, 2, 4)
    assert convert_ids(ids, "axes_first", "batch_first").shape == (2, 3, 4)


def test_text_positions_may_be_stated():
    ids = np.zeros((3, 1, 4), dtype=np.int64)
    form = convert_ids(ids, "axes_first", "text_row_first", text_ids=[[0, 1, 0, 1]])
    assert form[0].tolist() == [[0, 1, 0, 1]]
    assert convert_ids(ids[:, 0], "packed", "text_row_first", text_ids=[[0, 1, 0, 1]]).shape == (4, 1, 4)


IDS, FOUR = np.zeros((3, 2, 5), dtype=np.int64), np.zeros((4, 2, 5), dtype=np.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IDS, "abs", "packed"), r"source must be one of \('axes_first', 'batch_first', 'text_row_first', 'batch_text_row', 'packed'\), got 'abs'"),
        ((IDS, "axes_first", "4"), "target must be"),
        ((FOUR, "axes_first", "batch_first"), r"'axes_first' ids of 3 axes are \[A, B, S\] with 3 at dimension 0, got \[4, 2, 5\]"),
        ((IDS, "batch_first", "axes_first"), r"'batch_first' ids of 3 axes are \[B, A, S\] with 3 at dimension 1, got \[3, 2, 5\]"),
        ((IDS, "text_row_first", "axes_first"), r"'text_row_first' ids of 3 axes are \[1 \+ A, B, S\] with 4 at dimension 0, got \[3, 2, 5\]"),
        ((IDS, "packed", "axes_first"), r"'packed' ids of 3 axes are \[A, T\] with 3 at dimension 0, got \[3, 2, 5\]"),
        ((IDS, "axes_first", "packed"), r"2 rows of 5 tokens do not make a pack by themselves: pass mask \[B, S\]"),
        ((IDS, "axes_first", "text_row_first"), r"'text_row_first' needs the text positions, which 'axes_first' has not: pass mask \[B, S\], or text_ids"),
        ((IDS, "axes_first", "batch_first", {"mask": np.ones((2, 4))}), r"mask has shape \(2, 4\), the tokens \(2, 5\)"),
        ((IDS, "axes_first", "packed", {"mask": np.where(np.arange(5) < 3, 0.0, -1e9) + np.zeros((2, 1))}), "additive masks"),
        ((IDS, "axes_first", "batch_first", {"text_ids": IDS[0]}), "'batch_first' has no row of text positions: leave text_ids out"),
        ((IDS[:, 0], "packed", "axes_first", {"mask": [[1, 1, 0]]}), r"mask \[1, 3\] has 2 real tokens, the pack 5"),
        ((FOUR, "text_row_first", "batch_text_row", {"text_ids": FOUR[0]}), "'text_row_first' has a row of text positions already; leave text_ids out"),
        ((IDS, "axes_first", "text_row_first", {"text_ids": [[0]]}), r"text_ids has shape \[1, 1\], but there are 2 rows of 5 tokens"),
    ],
)  # fmt: skip
def test_refusals(arguments, message):
    positional = [a for a in arguments if not isinstance(a, dict)]
    options = next((a for a in arguments if isinstance(a, dict)), {})
    with pytest.raises(ValueError, match=message):
        convert_ids(*positional, **options)


def test_the_convention_has_to_be_named():
    with pytest.raises(
        ValueError, match=r"length must be 'padded' \(transformers 4\) or 'unpadded' \(transformers 5\), got 'real'"
    ):
        rope_deltas(position_ids([Segment.text(1)], "qwen2_vl"), length="real")
    with pytest.raises(ValueError, match="rope_deltas takes what position_ids returned, got Packed"):
        rope_deltas(pack([Segment.text(1)], "qwen2_vl"), length="padded")


@law
def test_a_slice_is_the_slice_of_the_form(rule, data):
    row = data.draw(any_rows(rule))
    n = sum(s.length for s in row)
    start = data.draw(st.integers(0, n))
    np.testing.assert_array_equal(
        hf_position_ids(position_ids(row, rule, start=start)), hf_position_ids(position_ids(row, rule))[..., start:]
    )
