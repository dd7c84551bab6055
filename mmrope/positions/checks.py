"""Are these the right ids, and if not, what are they? For the first batches of every run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions import build
from mmrope.positions.batches import Packed, pack
from mmrope.positions.build import Positions, Rows, batch_of
from mmrope.positions.compare import segment_of
from mmrope.positions.families import FACTS, FAMILIES, departures
from mmrope.positions.families import family as find_family
from mmrope.positions.inputs import on_host, segments_from_inputs
from mmrope.positions.rules import Family
from mmrope.positions.segments import AUDIO_IN_VIDEO, PAD, TEXT, VIDEO, Row, Segment
from mmrope.positions.shards import running_totals
from mmrope.positions.timing import VideoTiming


class WrongPositions(ValueError):
    """The position IDs are not those that were asked for.

    Example:
        >>> import numpy as np
        >>> from mmrope import Segment, check
        >>> from mmrope.positions import WrongPositions
        >>> try:
        ...     check(np.zeros((3, 1, 3), dtype=int), [Segment.text(3)], "qwen2_vl")
        ... except WrongPositions as error:
        ...     print(str(error).partition(":")[0])
        position_ids are not those of qwen2_vl
    """


def check(
    position_ids: Positions | Packed | Any,
    inputs: Mapping[str, Any] | Rows,
    family: Family | str,
    *,
    cu_seqlens: Sequence[int] | np.ndarray | None = None,
    prompt_lengths: Sequence[int] | None = None,
    video_timings: Sequence[VideoTiming] | None = None,
    sync: bool = False,
) -> None:
    """Returns if these are the family's ids of the inputs' real tokens. If not, it raises and says what they are instead: 1D
    ids, a known revision's, shifted by padding, run on from one sequence into the next, with another advance or time step.

    Fractional ids may be off by two roundings of float32, whole numbers by nothing.

    Args:
        position_ids: [A, B, S]; or [A, T] of the rows packed one after the other; or either with the row of text positions in
            front, [1 + A, B, S] or [1 + A, 1, T], as transformers takes it; or what `position_ids` or `pack` returned.
        inputs: a processor's batch, as `segments_from_inputs` reads it, or rows of segments.
        family: a Family, or its name.
        cu_seqlens: of inputs that are packed, [1, T], where each sequence begins, and the end.
        prompt_lengths, video_timings, sync: as in `segments_from_inputs`; `sync` also lets `position_ids` be on a GPU.

    Raises:
        WrongPositions: other ids.
        ValueError: ids that are not of these inputs' shape, and inputs that `segments_from_inputs` refuses.

    Example:
        >>> from mmrope import Segment, check, position_ids
        >>> row = [Segment.text(2), Segment.video(t=4, h=1, w=1), Segment.text(1)]
        >>> check(position_ids(row, "qwen2_vl"), row, "qwen2_vl")
        >>> check(position_ids(row, "qwen2_vl@transformers-5.23"), row, "qwen2_vl")
        Traceback (most recent call last):
            ...
        mmrope.positions.checks.WrongPositions: position_ids are not those of qwen2_vl: 1 of 7 tokens differ, ...
    """
    family = find_family(family)
    if isinstance(inputs, Mapping):
        timing: dict[str, Any] = {"prompt_lengths": prompt_lengths, "video_timings": video_timings}
        rows: Sequence[Row] = segments_from_inputs(inputs, family, sync=sync, **timing)
    elif prompt_lengths is not None or video_timings is not None:
        raise ValueError("prompt_lengths and video_timings go with a processor's batch; rows of segments say both themselves")
    else:
        rows = batch_of(inputs)
    if cu_seqlens is not None:
        rows = _sequences(rows, running_totals(cu_seqlens))
    if isinstance(position_ids, Packed):
        position_ids = position_ids.ids[:, position_ids.mask]
    elif isinstance(position_ids, Positions):
        position_ids = position_ids.ids
    ids = on_host({"position_ids": position_ids}, sync)["position_ids"]
    if len({row.length for row in rows}) == 1 and np.array_equal(ids, build.position_ids(rows, family).ids):
        return  # the usual case, padding included
    expected = pack(rows, family)
    given, text = _as_packed(ids, rows, expected)
    found = _Comparison(rows, expected, given)
    if found.wrong.any():
        raise WrongPositions(found.explained(text))
    if text is not None and not any(np.array_equal(text, order) for order in (expected.text_ids, found.columns)):
        raise WrongPositions(
            f"position_ids have {len(family.axes) + 1} rows: the first must hold the text positions, 0, 1, 2, ... in each "
            f"sequence, and the other {len(family.axes)} the ids ({family.axes}); these are right, but the first is not"
        )


def _sequences(rows: Sequence[Row], totals: np.ndarray) -> list[Row]:
    """The sequences of a packed row, which begin at these tokens."""
    if len(rows) != 1 or totals[-1] != rows[0].length:
        raise ValueError(
            f"cu_seqlens end at {totals[-1]}, but the inputs are {len(rows)} x {rows[0].length} tokens: a pack is one row, and "
            "they end with it"
        )
    [row] = rows
    ends = row.lengths.cumsum()
    found = []
    for a, b in itertools.pairwise(totals.tolist()):
        parts = []
        for i in range(int(np.searchsorted(ends, a, side="right")), len(row)):
            start, end = int(ends[i] - row.lengths[i]), int(ends[i])
            if start >= b:
                break
            n = min(end, b) - max(start, a)
            if n < end - start and row.kind[i] not in (TEXT, PAD):
                raise ValueError(f"cu_seqlens cut through segment {i}, {row[i]!r} at {start}..{end - 1}")
            whole = row[i]
            parts.append(whole if n == end - start else Segment(whole.kind, (1, 1, n)))
        found.append(Row.of(parts))
    return found


def _as_packed(given: np.ndarray, rows: Sequence[Row], expected: Packed) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids [A, T] of the real tokens, row by row, and the text positions [T] if they are there."""
    axes, tokens = expected.ids.shape
    lengths = {row.length for row in rows}
    batch = (len(rows), max(lengths))
    asked = f"[{axes}, {batch[0]}, {batch[1]}] (axes {expected.family.axes}, rows, tokens)"
    if given.ndim == 2:
        if len(given) not in (axes, axes + 1) or (given.shape == batch and given.shape[1] != tokens):
            raise WrongPositions(
                f"position_ids are {list(given.shape)}, one number a token: 1D ids. {expected.family} has {axes} axes: {asked}"
            )
        given = given[:, None]  # [A, 1, T]
    if given.ndim != 3 or given.shape[0] not in (axes, axes + 1):
        raise ValueError(f"position_ids must be {asked}, or with a row of text positions in front, got {list(given.shape)}")
    if lengths == {given.shape[2]} and len(rows) == given.shape[1]:
        given = given.reshape(len(given), -1).take(expected.index, axis=1)  # [A, T]
    elif given.shape[1:] == (1, tokens):
        given = given[:, 0]
    elif given.shape[1] == 1 and len(rows) > 1 and given.shape[2] == sum(row.length for row in rows):
        given = given[:, 0].take(expected.index, axis=1)  # a pack with what its sequences are filled up by
    else:
        raise ValueError(
            f"position_ids are {list(given.shape)}, but the inputs are {asked}, {tokens} of the tokens real: neither the batch "
            "nor its rows packed one after the other (in Python, of sequences that are filled up, pass the Packed itself)"
        )
    return (given[1:], given[0]) if len(given) > axes else (given, None)


# --- what they are instead --------------------------------------------------------------------------------------------

_LOST = "They are 1D ids: every axis counts {}, as for text alone. Were position_ids lost on the way to the model?"
_NOTHING = "They are of no known revision and no known mistake"


@dataclass(frozen=True, eq=False)
class _Comparison:
    """Ids [A, T] of the real tokens of rows, beside those that they should be."""

    rows: Sequence[Row]
    expected: Packed
    given: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """[A, T] bool."""
        return self._differ(self.given, self.expected.ids)

    def _differ(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # where text is cut into segments, fractional ids are rounded once more
        return np.abs(a - b) > 2**-22 * np.abs(b) if self.expected.family.fractional else np.not_equal(a, b)

    @property
    def columns(self) -> np.ndarray:
        """[T] the column of each real token in its row, padding counted."""
        starts = [0, *itertools.accumulate(row.length for row in self.rows)][:-1]
        return self.expected.index - np.repeat(starts, np.diff(self.expected.cu_seqlens))

    def explained(self, text: np.ndarray | None) -> str:
        family, wrong = self.expected.family, self.wrong
        tokens = np.logical_or.reduce(wrong, axis=0)  # [T]
        slot = int(np.argmax(tokens))
        b, token = self._place(slot)
        axis = int(np.argmax(wrong[:, slot]))
        i = segment_of(self.rows[b], token)
        assert i is not None
        where = f"row {b}, " if len(self.rows) > 1 else ""
        said = (
            f"position_ids are not those of {family}: {int(tokens.sum()):,} of {len(tokens):,} tokens differ, first {where}"
            f"token {token} (segment {i}, {self.rows[b][i]!r}): {family.axes[axis]} is {self.given[axis, slot]:.9g}, expected "
            f"{self.expected.ids[axis, slot]:.9g}. "
        )
        if text is not None and len(self.rows) == 1 and (np.diff(text) != 1).any():
            return said + "Their text positions begin anew within the row, so it is a pack: state its cu_seqlens"
        return said + self._what(np.unique(np.searchsorted(self.expected.cu_seqlens, np.flatnonzero(tokens), side="right") - 1))

    def _place(self, slot: int) -> tuple[int, int]:
        """The row of a real token, and its column there."""
        b = int(np.searchsorted(self.expected.cu_seqlens, slot, side="right")) - 1
        return b, int(self.columns[slot])

    def _what(self, rows: np.ndarray) -> str:
        """What the ids of these rows are, each by itself."""
        left, found = rows.tolist(), {}
        for words, ids in self._mistakes():
            mine = [b for b in left if not self._differ(self._of(b, self.given), self._of(b, ids)).any()]
            if mine:
                found[words] = mine
                left = [b for b in left if b not in mine]
        for b in list(left):
            words = self._shifted(b)
            if words:
                found.setdefault(words, []).append(b)
                left.remove(b)
        others = self._families(same=False) if left else iter(())
        names: dict[int, str] = {}
        for words, ids in others:
            for b in left:
                if b not in names and not self._differ(self._of(b, self.given), self._of(b, ids)).any():
                    names[b] = words
        for b in left:
            local, name = self._local(b), names.get(b)
            words = f"{local} {name}, too" if local and name else local or name
            found.setdefault(words or _NOTHING, []).append(b)
        if len(found) == 1:
            return next(iter(found))
        return "; ".join(f"row {', '.join(map(str, some))}: {words}" for words, some in found.items())

    def _of(self, b: int, ids: np.ndarray) -> np.ndarray:
        """The ids [A, n] of row b."""
        a, end = self.expected.cu_seqlens[b : b + 2]
        return np.broadcast_to(ids, self.given.shape)[:, a:end]

    def _mistakes(self) -> Iterator[tuple[str, np.ndarray]]:
        """(what it would be, ids): what ids usually are when they are wrong."""
        yield _LOST.format("the tokens of the row"), self.expected.text_ids
        yield _LOST.format("the columns of the row, padding included"), self.columns
        if len(self.rows) > 1:
            yield "They are 1D ids that run on from one row into the next", np.arange(self.given.shape[1])
            joined = pack(Row.join(self.rows), self.expected.family).ids
            yield "They run on from one sequence into the next: each begins at 0", joined
        yield from self._families(same=True)

    def _families(self, *, same: bool) -> Iterator[tuple[str, np.ndarray]]:
        """The ids by other revisions of the family, or by other families."""
        family = self.expected.family
        for row in FAMILIES.values():
            if len(row.axes) != len(family.axes) or (row.name == family.name) != same:
                continue
            shared = [fact for fact in FACTS if fact != "token_ids" and row.has(fact) and family.has(fact)]
            for facts in ({fact: getattr(family, fact) for fact in shared}, {}):
                try:
                    ids = pack(self.rows, find_family(row, **facts)).ids
                except ValueError:  # a family that does not place such rows, or with such facts, did not place these
                    continue
                words = "; ".join(departures(row)) or "the facts of the table, not the checkpoint's" * (row.key == family.key)
                yield f"They are those of {row.key}" + (f" ({words})" if words else ""), ids

    def _shifted(self, b: int) -> str | None:
        """Whether all ids of the row are off by the same."""
        given, expected = self._of(b, self.given), self._of(b, self.expected.ids)
        shift = given.flat[0] - expected.flat[0]
        if self._differ(given, expected + shift).any():
            return None
        row = self.rows[b]
        before = int(row.lengths[: int(np.argmax((row.kind != PAD) & (row.lengths > 0)))].sum())
        why = "its left padding was counted" if shift == before else "were other tokens before them?"
        return f"All ids of the row are shifted by {shift:g}: {why}"

    def _local(self, b: int) -> str | None:
        """What the first difference of the row says."""
        family, row = self.expected.family, self.rows[b]
        slot = int(self.expected.cu_seqlens[b]) + int(np.argmax(np.logical_or.reduce(self._of(b, self.wrong), axis=0)))
        token, axis = self._place(slot)[1], int(np.argmax(self.wrong[:, slot]))
        i = segment_of(row, token)
        assert i is not None
        kind, start = row.kind[i], int(row.lengths[:i].sum())
        if kind == AUDIO_IN_VIDEO:
            return "The video and its sound are laid out by other times (seconds per grid, ids per second)"
        if kind == VIDEO and family.axes[axis] == "t":
            t, h, w = row.grid[i].tolist()
            first = slot - (token - start)
            steps = [ids[axis, first : first + t * h * w : h * w] - ids[axis, first] for ids in (self.given, self.expected.ids)]
            shown = [", ".join(f"{step:g}" for step in some[:6].tolist()) + (", ..." if t > 6 else "") for some in steps]
            return (
                f"The video's grids lie {shown[0]} ids after its first, expected {shown[1]}: a wrong time step. Were the "
                "seconds per grid those of the frames as they were sampled, and the ids per second the checkpoint's?"
            )
        before = next((j for j in range(i - 1, -1, -1) if row.lengths[j]), None)
        if token == start and before is not None and row.kind[before] == PAD:
            return "Up to there all is right: the padding before it was counted"
        if token == start and before is not None and row.kind[before] != TEXT:
            name = row[before].kind.replace("_", " ")
            return f"Up to there all is right: what follows the {name} starts at the wrong id (the advance)"
        return None
