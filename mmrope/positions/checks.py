"""Are these the right ids, and if not, what are they? For the first batches of every run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmrope.positions import build
from mmrope.positions.batches import Packed, pack
from mmrope.positions.build import Rows, batch_of
from mmrope.positions.compare import segment_of
from mmrope.positions.families import FACTS, FAMILIES, departures
from mmrope.positions.families import family as find_family
from mmrope.positions.inputs import on_host, segments_from_inputs
from mmrope.positions.rules import Family
from mmrope.positions.segments import PAD, TEXT, VIDEO, Row
from mmrope.positions.timing import VideoTiming


def check(
    position_ids: Any,
    inputs: Mapping[str, Any] | Rows,
    family: Family | str,
    *,
    prompt_lengths: Sequence[int] | None = None,
    video_timings: Sequence[VideoTiming] | None = None,
    sync: bool = False,
) -> None:
    """Returns if these are the family's ids of the inputs' real tokens. If not, it raises and says what they are instead: 1D
    ids, a known revision's, shifted by padding, run on from one sequence into the next, with another advance or time step.

    Args:
        position_ids: [A, B, S]; or [A, T] of the rows packed one after the other; or either with the row of text positions in
            front, [1 + A, B, S] or [1 + A, 1, T], as transformers takes it.
        inputs: a processor's batch, as `segments_from_inputs` reads it, or rows of segments.
        family: a Family, or its name.
        prompt_lengths, video_timings, sync: as in `segments_from_inputs`; `sync` also lets `position_ids` be on a GPU.

    Raises:
        ValueError: other ids, and inputs that `segments_from_inputs` refuses.
    """
    family = find_family(family)
    if isinstance(inputs, Mapping):
        rows = segments_from_inputs(
            inputs, family, prompt_lengths=prompt_lengths, video_timings=video_timings, sync=sync
        )  # fmt: skip
    elif prompt_lengths is not None or video_timings is not None:
        raise ValueError("prompt_lengths and video_timings go with a processor's batch; rows of segments say both themselves")
    else:
        rows = batch_of(inputs)
    ids = on_host({"position_ids": position_ids}, sync)["position_ids"]
    if len({row.length for row in rows}) == 1 and np.array_equal(ids, build.position_ids(rows, family).ids):
        return  # the usual case, padding included
    expected = pack(rows, family)
    given, text = _as_packed(ids, rows, expected)
    wrong = given != expected.ids  # [A, T]
    if wrong.any():
        raise ValueError(_explained(given, expected, wrong, rows))
    if text is not None and not any(np.array_equal(text, order) for order in (expected.text_ids, _columns(expected, rows))):
        raise ValueError(
            f"position_ids have {len(family.axes) + 1} rows: the first must hold the text positions, 0, 1, 2, ... in each "
            f"sequence, and the other {len(family.axes)} the ids ({family.axes}); these are right, but the first is not"
        )


def _as_packed(given: np.ndarray, rows: Sequence[Row], expected: Packed) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids [A, T] of the real tokens, row by row, and the text positions [T] if they are there."""
    axes, tokens = expected.ids.shape
    lengths = {row.length for row in rows}
    asked = f"[{axes}, {len(rows)}, {max(lengths)}] (axes {expected.family.axes}, rows, tokens)"
    if given.ndim == 2:
        if len(given) not in (axes, axes + 1):
            raise ValueError(
                f"position_ids are {list(given.shape)}, one number a token: 1D ids. {expected.family} has {axes} axes: {asked}"
            )
        given = given[:, None]  # [A, 1, T]
    if given.ndim != 3 or given.shape[0] not in (axes, axes + 1):
        raise ValueError(f"position_ids must be {asked}, or with a row of text positions in front, got {list(given.shape)}")
    if lengths == {given.shape[2]} and len(rows) == given.shape[1]:
        given = given.reshape(len(given), -1).take(expected.index, axis=1)  # [A, T]
    elif given.shape[1:] == (1, tokens):
        given = given[:, 0]
    else:
        raise ValueError(
            f"position_ids are {list(given.shape)}, but the inputs are {asked}, {tokens} of the tokens real: neither the batch "
            "nor its rows packed one after the other"
        )
    return (given[1:], given[0]) if len(given) > axes else (given, None)


def _columns(expected: Packed, rows: Sequence[Row]) -> np.ndarray:
    """[T] the column of each real token in its row, padding counted."""
    starts = np.repeat([0, *itertools.accumulate(row.length for row in rows)][:-1], np.diff(expected.cu_seqlens))
    return expected.index - starts


# --- what they are instead --------------------------------------------------------------------------------------------


def _explained(given: np.ndarray, expected: Packed, wrong: np.ndarray, rows: Sequence[Row]) -> str:
    family = expected.family
    tokens = np.logical_or.reduce(wrong, axis=0)  # [T]
    slot = int(np.argmax(tokens))
    b = int(np.searchsorted(expected.cu_seqlens, slot, side="right")) - 1
    token = int(_columns(expected, rows)[slot])
    axis = int(np.argmax(wrong[:, slot]))
    i = segment_of(rows[b], token)
    assert i is not None
    where = f"row {b}, " if len(rows) > 1 else ""
    what = _what(given, expected, rows) or _local(given, expected, rows[b], slot, token, i, axis)
    return (
        f"position_ids are not those of {family}: {int(tokens.sum()):,} of {len(tokens):,} tokens differ, first {where}token "
        f"{token} (segment {i}, {rows[b][i]!r}): {family.axes[axis]} is {given[axis, slot]:.9g}, expected "
        f"{expected.ids[axis, slot]:.9g}. {what}"
    )


def _what(given: np.ndarray, expected: Packed, rows: Sequence[Row]) -> str | None:
    """What the ids are as a whole, if they are something known."""
    for words, ids in _suspects(expected, rows):
        if np.array_equal(given, np.broadcast_to(ids, given.shape)):
            return words
    cuts = expected.cu_seqlens.tolist()
    shifts = [np.unique(given[:, a:b] - expected.ids[:, a:b]) for a, b in itertools.pairwise(cuts) if b > a]
    if all(len(shift) == 1 for shift in shifts):
        lefts = [_left_padding(row) for row, a, b in zip(rows, cuts, cuts[1:], strict=False) if b > a]
        why = "left padding was counted" if [shift.item() for shift in shifts] == lefts else "were other tokens before them?"
        return f"All ids of a row are shifted by the same, {', '.join(f'{shift.item():g}' for shift in shifts)}: {why}"
    return None


def _left_padding(row: Row) -> int:
    real = np.flatnonzero(row.kind != PAD)
    return int(row.lengths[: real[0]].sum()) if len(real) else row.length


def _suspects(expected: Packed, rows: Sequence[Row]) -> Iterator[tuple[str, np.ndarray]]:
    """(what it would be, ids): what ids usually are when they are wrong."""
    family = expected.family
    lost = "They are 1D ids: every axis counts {}, as for text alone. Were position_ids lost on the way to the model?"
    yield lost.format("the tokens of the row"), expected.text_ids
    yield lost.format("the columns of the row, padding included"), _columns(expected, rows)
    if len(rows) > 1:
        yield "They are 1D ids that run on from one row into the next", np.arange(expected.ids.shape[1])
        yield "They run on from one sequence into the next: each begins at 0", pack(Row.join(rows), family).ids
    others = [row for row in FAMILIES.values() if len(row.axes) == len(family.axes)]
    for row in sorted(others, key=lambda row: (row.name != family.name, row.revision)):
        shared = [fact for fact in FACTS if fact != "token_ids" and row.has(fact) and family.has(fact)]
        for facts in ({fact: getattr(family, fact) for fact in shared}, {}):
            try:
                ids = pack(rows, find_family(row, **facts)).ids
            except ValueError:  # a family that does not place such rows, or with such facts, did not place these
                continue
            words = "; ".join(departures(row)) or "the facts of the table, not the checkpoint's" * (row.key == family.key)
            yield f"They are those of {row.key}" + (f" ({words})" if words else ""), ids


def _local(given: np.ndarray, expected: Packed, row: Row, slot: int, token: int, i: int, axis: int) -> str:
    """What the first difference says."""
    starts = row.lengths.cumsum() - row.lengths
    media = np.flatnonzero((row.kind[:i] != TEXT) & (row.kind[:i] != PAD))
    if row.kind[i] == TEXT and len(media) and token == starts[i]:
        before = row[int(media[-1])]
        return f"Up to there all is right: text after the {before.kind.replace('_', ' ')} starts at the wrong id (the advance)"
    if row.kind[i] == VIDEO and expected.family.axes[axis] == "t":
        t, h, w = row.grid[i].tolist()
        first = slot - (token - int(starts[i]))
        steps = [ids[axis, first : first + t * h * w : h * w] - ids[axis, first] for ids in (given, expected.ids)]
        shown = [", ".join(f"{step:g}" for step in some[:6].tolist()) + (", ..." if t > 6 else "") for some in steps]
        return (
            f"The video's grids lie {shown[0]} ids after its first, expected {shown[1]}: a wrong time step. Were the seconds "
            "per grid those of the frames as they were sampled, and the ids per second the checkpoint's?"
        )
    return "They are of no known revision and no known mistake"
