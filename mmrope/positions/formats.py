"""Position IDs in the shapes that others want: which dimension is which, and the row of text positions in front."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from mmrope.positions.build import Positions, cast, largest_ids, plan, real_tokens
from mmrope.positions.segments import token_mask
from mmrope.positions.sequences import Packed
from mmrope.positions.stated import choice, numbers, whole
from mmrope.records import shown

IdsLayout = Literal["axes_first", "batch_first", "text_row_first", "batch_text_row", "packed"]
_SHAPES = {
    "axes_first": "[A, B, S]",
    "batch_first": "[B, A, S]",
    "text_row_first": "[1 + A, B, S]",
    "batch_text_row": "[B, 1 + A, S]",
    "packed": "[A, T]",
}


def hf_position_ids(positions: Positions | Packed, *, text_row: bool = True) -> np.ndarray:
    """The form that transformers' models read: [1 + A, B, S], and [1 + A, 1, T] of a pack.

    Row 0 holds the text positions, by which transformers makes the causal mask and finds the sequences of a pack; pass no
    `attention_mask` with a pack. The other rows are t, h, w. Without the text row, [A, B, S]: models then mask by
    `attention_mask` alone.

    Example:
        >>> from mmrope import Segment, hf_position_ids, position_ids
        >>> positions = position_ids([Segment.text(1), Segment.image(h=1, w=2), Segment.text(1)], "qwen2_vl")
        >>> hf_position_ids(positions)[:, 0].tolist()  # text positions, t, h, w
        [[0, 1, 2, 3], [0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    """
    if not isinstance(positions, (Positions, Packed)):
        raise ValueError(f"hf_position_ids takes what position_ids or pack returned, got {type(positions).__name__}")
    ids, text = (positions.ids, positions.text_ids)
    if isinstance(positions, Packed):
        ids, text = ids[:, None], text[None]  # [A, 1, T], [1, T]
    return np.concatenate([cast(text[None], ids.dtype, "text positions"), ids]) if text_row else ids  # [1 + A, B, S]


def convert_ids(
    ids: Any, source: IdsLayout, target: IdsLayout, *, axes: int = 3, mask: Any = None, text_ids: Any = None
) -> np.ndarray:
    """Position IDs from one layout to another. Both are named; nothing is read from shapes, which cannot tell three axes from
    a batch of three.

    Args:
        ids: the ids, an array or a CPU tensor.
        source, target: "axes_first" [A, B, S]; "batch_first" [B, A, S], for code that slices batches along dimension 0;
            "text_row_first" [1 + A, B, S], with the row of text positions that transformers reads; "batch_text_row"
            [B, 1 + A, S], the same by batch; "packed" [A, T].
        axes: A.
        mask: [B, S], True or 1 at real tokens. To "packed" the real tokens are taken row by row, from "packed" they are put
            there, with 0 between them. Without it a pack is a batch of one row.
        text_ids: [B, S], the row of text positions, where the target has one and the source has none; by default counted by
            `mask`.

    Raises:
        ValueError: an unknown layout, a shape that is not the source's, a target that cannot be made of what is given.

    Example:
        >>> import numpy as np
        >>> from mmrope.positions import convert_ids
        >>> ids = np.zeros((3, 8, 100), dtype=int)  # [A, B, S]
        >>> convert_ids(ids, "axes_first", "batch_first").shape
        (8, 3, 100)
        >>> convert_ids(ids, "axes_first", "text_row_first", mask=np.ones((8, 100), dtype=bool)).shape
        (4, 8, 100)
    """
    choice(source, "source", get_args(IdsLayout))
    choice(target, "target", get_args(IdsLayout))
    ids, axes = numbers(ids, "ids"), whole(axes, "axes", least=1, of="")
    if mask is not None:
        stated = token_mask(mask, np.shape(mask) if source == "packed" else _tokens(ids, source), "mask")
        mask = np.ones(np.shape(mask), dtype=bool) if stated is None else stated
    table, text = _from(ids, source, axes, mask)  # [A, B, S], [B, S]
    if text_ids is not None and target not in ("text_row_first", "batch_text_row"):
        raise ValueError(f"{target!r} has no row of text positions: leave text_ids out")
    if target in ("text_row_first", "batch_text_row"):
        text = _text_row(text, mask, text_ids, table, source, target)
        table = np.concatenate([cast(text[None], table.dtype, "text positions"), table])  # [1 + A, B, S]
    if target == "packed":
        if mask is None and table.shape[1] != 1:
            raise ValueError(f"{_rows(table)} do not make a pack by themselves: pass mask [B, S], which says what is padding")
        return table[:, 0] if mask is None else table[:, mask]  # [A, T]
    return table.swapaxes(0, 1) if target.startswith("batch") else table


def _from(ids: np.ndarray, source: IdsLayout, axes: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """ids [A, B, S], and the text row [B, S] of a source that has one."""
    rows = axes + (source in ("text_row_first", "batch_text_row"))
    dim = 1 if source.startswith("batch") else 0
    if ids.ndim != (2 if source == "packed" else 3) or ids.shape[dim] != rows:
        raise ValueError(
            f"{source!r} ids of {axes} axes are {_SHAPES[source]} with {rows} at dimension {dim}, got {list(ids.shape)}"
        )
    if source == "packed":
        if mask is None:
            return ids[:, None], None  # [A, 1, T]
        if mask.ndim != 2 or mask.sum() != ids.shape[1]:
            raise ValueError(f"mask {list(mask.shape)} has {mask.sum()} real tokens, the pack {ids.shape[1]}")
        table = np.zeros((axes, *mask.shape), dtype=ids.dtype)
        table[:, mask] = ids
        return table, None
    table = ids.swapaxes(0, 1) if dim else ids
    return (table[1:], table[0]) if rows > axes else (table, None)


def _text_row(
    text: np.ndarray | None, mask: np.ndarray | None, stated: Any, table: np.ndarray, source: IdsLayout, target: IdsLayout
) -> np.ndarray:
    if stated is not None and text is not None:
        raise ValueError(f"{source!r} has a row of text positions already; leave text_ids out")
    if stated is not None:
        stated = numbers(stated, "text_ids")
        if stated.shape != table.shape[1:]:
            raise ValueError(f"text_ids has shape {list(stated.shape)}, but there are {_rows(table)}")
        return stated
    if text is not None:
        return text
    if mask is None:
        raise ValueError(f"{target!r} needs the text positions, which {source!r} has not: pass mask [B, S], or text_ids")
    return np.where(mask, mask.cumsum(axis=1) - 1, 0)


def _tokens(ids: np.ndarray, source: IdsLayout) -> tuple[int, ...]:
    """(B, S) of ids [A, B, S] or [B, A, S]."""
    return ids.shape[:1] + ids.shape[2:] if source.startswith("batch") else ids.shape[1:]


def _rows(table: np.ndarray) -> str:
    return f"{table.shape[1]} rows of {table.shape[2]} tokens"


def rope_deltas(positions: Positions, *, length: Literal["padded", "unpadded"]) -> np.ndarray:
    """[B, 1], what transformers calls `rope_deltas`: the largest id and one, less the length of the row. Frameworks keep it to
    decode by (delta + tokens before); versions differ in what they count, and a delta of the one is wrong in the other:

    "padded" counts padding (transformers 4.57, all but the Omni models), "unpadded" real tokens (transformers 5; the Omni
    models in both). Without padding they are the same; of a slice they are what they are of the whole. (GLM-Image returns
    zeros.)

    By the reference rules text continues after the largest id, so that the delta leads to `next`. By rules that do not (those
    of transformers 5.23 after long videos), it does not: decode by `next`.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.positions import rope_deltas
        >>> positions = position_ids([Segment.pad(2), Segment.text(3), Segment.image(h=4, w=4)], "qwen2_vl")
        >>> rope_deltas(positions, length="padded").tolist(), rope_deltas(positions, length="unpadded").tolist()
        ([[-14]], [[-12]])
    """
    if not isinstance(length, str) or length not in ("padded", "unpadded"):
        raise ValueError(f"length must be 'padded' (transformers 4) or 'unpadded' (transformers 5), got {shown(length)}")
    if not isinstance(positions, Positions):
        raise ValueError(f"rope_deltas takes what position_ids returned, got {type(positions).__name__}")
    rows = positions.rows
    counts = [row.length if length == "padded" else real_tokens(row) for row in rows]
    dtype = positions.next.dtype
    largest = cast(np.array(largest_ids(plan(rows, positions.family), positions.family)), dtype)  # [B]
    return (largest + 1 - cast(np.array(counts), dtype, "tokens"))[:, None]  # [B, 1]
