"""Position IDs side by side and for human eyes: are these the right ones, where do two tables differ, what got each segment.

`check` is for the first batches of every run: of ids that are wrong it says what they are instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions import build
from mmrope.positions.build import Positions, Rows, batch_of, plan, position_ids, widest
from mmrope.positions.families import FAMILIES, departures
from mmrope.positions.families import family as find_family
from mmrope.positions.inputs import on_host, segments_from_inputs
from mmrope.positions.rules import FACTS, Family, fact_of
from mmrope.positions.segments import Row, Segment, pad, token_mask
from mmrope.positions.sequences import Packed, pack, running_totals, sequences_of
from mmrope.positions.stated import numbers
from mmrope.positions.timing import VideoTiming, rounded


@dataclass(frozen=True)
class Placed:
    """A segment and the ids it got."""

    segment: Segment
    start: int
    """Its first token in the row."""
    ids: dict[str, tuple[float, float]]
    """For each axis the smallest and the largest id; empty for padding and for empty text."""
    next: float
    """The id that text after it starts at."""


def placed(positions: Positions, row: int = 0) -> list[Placed]:
    """Each segment of a row, with its ids, whatever slice of the row `positions` covers."""
    family, segments = positions.family, Row(tuple(positions.rows[row].singles), positions.rows[row].length)
    [(places, last, length)] = plan([segments], family)
    ids = (
        positions.ids[:, row]
        if _is_whole(positions, length)
        else position_ids(segments, family, dtype=widest(family)).ids[:, 0]
    )
    following = [*(first for _, _, _, _, first, _, _ in places), last][1:]  # also of a row without segments
    items = []
    for segment, (_, _, _, start, _, _, _), after in zip(segments, places, following, strict=True):
        mine = ids[:, start : start + segment.length]
        has_ids = segment.kind != "pad" and segment.length > 0
        bounds = zip(mine.min(axis=1).tolist(), mine.max(axis=1).tolist(), strict=True) if has_ids else ()
        items.append(Placed(segment, start, dict(zip(family.axes, bounds, strict=False)), after))
    return items


def _is_whole(positions: Positions, length: int) -> bool:
    return positions.start == 0 and positions.ids.shape[-1] >= length


def explain(positions: Positions, *, labels: Sequence[Sequence[str]] | None = None) -> str:
    """A table of every segment: its tokens, its token grid, its ids on each axis (first..last), and the id that the text
    after it starts at. Of models whose released configs were not at hand it says that how they rotate is unverified.

    Args:
        positions: what `position_ids` returned.
        labels: for each row what its segments hold, for a last column.

    Example:
        >>> from mmrope import Segment, explain, position_ids
        >>> print(explain(position_ids([Segment.text(2), Segment.image(h=2, w=3), Segment.text(1)], "qwen2_vl")))
        qwen2_vl: 9 tokens, text continues at 6
        tokens  kind   grid   t     h     w     next
        0..1    text   2      0..1  0..1  0..1  2
        2..7    image  2 x 3  2     2..3  2..4  5
        8       text   1      5     5     5     6
    """
    if not isinstance(positions, Positions):
        raise ValueError(f"explain takes what position_ids returned, which knows its segments, got {type(positions).__name__}")
    tables = []
    for b in range(len(positions.rows)):
        items = placed(positions, b)
        lines = [
            ("tokens", "kind", "grid", *positions.family.axes, "next"),
            *(_cells(item, positions.family.axes) for item in items),
        ]
        if labels:
            lines = [(*line, label) for line, label in zip(lines, ["content", *labels[b]], strict=True)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        length = sum(item.segment.length for item in items)
        title = f"row {b}, " if len(positions.rows) > 1 else ""
        table = [f"{title}{positions.family}: {length} tokens, text continues at {_number(positions.next[b])}"]
        table += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        tables.append("\n".join(table))
    rotary, of_models = positions.family.rotary, positions.family.checkpoint.config
    if of_models and not rotary.released:
        tables.append(f"how {positions.family.name} rotates by these ids is {rotary.said_by}")
    return "\n\n".join(tables)


def _cells(item: Placed, axes: str) -> tuple[str, ...]:
    tokens = _range(item.start, item.start + item.segment.length - 1) if item.segment.length else "-"
    ids = [_range(*item.ids[axis]) if axis in item.ids else "-" for axis in axes]
    return (tokens, item.segment.kind.replace("_", " "), item.segment.size, *ids, _number(item.next))


def _range(first: float, last: float) -> str:
    return _number(first) if first == last else f"{_number(first)}..{_number(last)}"


def _number(x: float) -> str:
    return str(int(x)) if x == int(x) else f"{x:.2f}"


# --- two tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Where two tables of ids first differ, by row, then by token.

    Example:
        >>> from mmrope import Segment, diff, position_ids
        >>> row = [Segment.text(2), Segment.video(t=4, h=1, w=1), Segment.text(1)]
        >>> found = diff(position_ids(row, "qwen2_vl"), position_ids(row, "qwen2_vl@transformers-5.23"))
        >>> found.token, found.axis, found.a, found.b
        (6, 't', 6, 3)
    """

    row: int
    token: int
    axis: str
    """Its letter, or the number of its row of ids where no family says it."""
    a: float
    b: float
    tokens: int
    """How many tokens differ."""
    of: int
    """How many were compared."""
    segment: int | None = None
    """The segment of the row that the token is of, where that is known."""
    what: Segment | None = None

    def __str__(self) -> str:
        where = f"row {self.row}, token {self.token}"
        if self.segment is not None:
            where += f" (segment {self.segment}, {self.what!r})"
        return f"{self.tokens:,} of {self.of:,} tokens differ, first {where}: {self.axis} is {self.a:.9g} and {self.b:.9g}"


def diff(a: Positions | Packed | Any, b: Positions | Packed | Any, *, mask: Any = None) -> Difference | None:
    """The first difference between two tables of position IDs, by row and token; None if there is none.

    Args:
        a, b: what `position_ids` or `pack` returned, or arrays [A, B, S] or [A, T]. Where one of them says what is padding, it
            does not count unless the other has a token there.
        mask: [B, S], True or 1 at the tokens that count; the others do not.

    Raises:
        ValueError: shapes that cannot be compared.

    Example:
        >>> from mmrope import Segment, diff, position_ids
        >>> row = [Segment.text(2), Segment.video(t=4, h=1, w=1), Segment.text(1)]
        >>> print(diff(position_ids(row, "qwen2_vl"), position_ids(row, "qwen2_vl@transformers-5.23")))
        1 of 7 tokens differ, first row 0, token 6 (segment 2, Segment.text(1)): t is 6 and 3
    """
    (ids_a, mask_a), (ids_b, mask_b) = _table(a), _table(b)
    if ids_a.shape != ids_b.shape:
        raise ValueError(
            f"a has shape {list(ids_a.shape)} and b {list(ids_b.shape)} (axes, rows, tokens): "
            "only tables of the same tokens and axes can be compared; a row of text positions in front is not an axis"
        )
    masks = [m for m in (mask_a, mask_b) if m is not None]
    real = np.logical_or.reduce(masks) if masks else np.ones(ids_a.shape[1:], dtype=bool)
    if mask is not None:
        stated = token_mask(np.atleast_2d(numbers(mask, "mask", "buif")), ids_a.shape[1:], "mask")
        real = real if stated is None else real & stated
    wrong = (ids_a != ids_b) & real  # [A, B, S]
    if not wrong.any():
        return None
    tokens = np.logical_or.reduce(wrong, axis=0)  # [B, S]
    row, token = (int(i) for i in np.unravel_index(int(np.argmax(tokens)), tokens.shape))
    axis = int(np.argmax(wrong[:, row, token]))
    values = (x[axis, row, token].item() for x in (ids_a, ids_b))
    found = Difference(row, token, str(axis), *values, tokens=int(tokens.sum()), of=int(real.sum()))
    for x in (a, b):
        if isinstance(x, Positions):
            token, segments = token + x.start, x.rows[row]
            segment = segment_of(segments, token)
            what = None if segment is None else segments[segment]
            return dataclasses.replace(found, token=token, axis=x.family.axes[axis], segment=segment, what=what)
        if isinstance(x, Packed):
            row = int(np.searchsorted(x.cu_seqlens_padded, token, side="right")) - 1
            token -= int(x.cu_seqlens_padded[row])
            return dataclasses.replace(found, row=row, token=token, axis=x.family.axes[axis])
    return found


def _table(x: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """ids [A, B, S], and which tokens are real [B, S], where that is known."""
    if isinstance(x, Positions):
        return x.ids, x.mask
    if isinstance(x, Packed):
        return x.ids[:, None], x.mask[None]
    ids = numbers(x, "position ids", shape=" [A, B, S] or [A, T]")
    if ids.ndim not in (2, 3):
        raise ValueError(f"position ids must be numbers [A, B, S] or [A, T], got {ids.dtype} {list(ids.shape)}")
    return (ids if ids.ndim == 3 else ids[:, None]), None


def segment_of(row: Row, token: int) -> int | None:
    """The segment that a token of the row is of; None past its end."""
    segment = int(np.searchsorted(row.lengths.cumsum(), token, side="right"))
    return segment if segment < len(row) else None


def fingerprint(
    positions: Positions | Packed | Any, *, mask: Any = None, cu_seqlens: Sequence[int] | np.ndarray | None = None
) -> list[str]:
    """A hash of the ids of each row: equal if and only if the ids of its real tokens are, whatever its padding, its place in a
    batch or a pack, and its dtype. For trainers and servers to compare what they compute.

    Args:
        positions: what `position_ids` or `pack` returned; or what another program computed, [A, B, S] or [A, T], without a row
            of text positions in front.
        mask: of an array, [B, S], True or 1 at real tokens; all are by default.
        cu_seqlens: of an array that is packed, where each sequence begins, and the end.

    It is the first 16 hexadecimal digits of the SHA-256 of: the number of axes as one byte, then axis by axis the ids of the
    real tokens as little-endian float64, which holds whole numbers below 2^53; if some of the row are fractions, all up to 2^24
    are rounded to float32 first.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.positions import fingerprint
        >>> short, padded = [Segment.text(3)], [Segment.pad(5), Segment.text(3)]
        >>> fingerprint(position_ids(short, "qwen2_vl"))
        ['f93b2e2a62ccef37']
        >>> fingerprint(position_ids(padded, "qwen2_vl"))
        ['f93b2e2a62ccef37']
    """
    ids, real = _table(positions)
    cuts = [0, ids.shape[2]]
    if isinstance(positions, Packed):
        cuts = positions.cu_seqlens_padded.tolist()
    elif cu_seqlens is not None:
        cuts = running_totals(cu_seqlens).tolist()
    if (ids.shape[1] != 1 and len(cuts) > 2) or cuts[-1] != ids.shape[2]:
        raise ValueError(f"cu_seqlens end at {cuts[-1]}, but ids {list(ids.shape)} are no pack of so many tokens")
    if mask is not None:
        stated = token_mask(np.atleast_2d(numbers(mask, "mask", "buif")), ids.shape[1:], "mask")
        real = stated if real is None else real if stated is None else real & stated
    real = np.ones(ids.shape[1:], dtype=bool) if real is None else real
    return [_hash(ids[:, b, a:z][:, real[b, a:z]]) for b in range(ids.shape[1]) for a, z in itertools.pairwise(cuts)]


def _hash(ids: np.ndarray) -> str:
    exact = ids.astype("<f8")
    if (exact != np.trunc(exact)).any():
        exact = rounded(exact).astype("<f8")
    exact = exact + 0.0  # of which -0.0 is 0.0
    return hashlib.sha256(bytes([len(ids)]) + exact.tobytes()).hexdigest()[:16]


# --- are they right? --------------------------------------------------------------------------------------------------


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
            front, [1 + A, B, S] or [1 + A, 1, T], as transformers takes it; or what `position_ids` or `pack` returned. Of any
            batch that mmrope made, padded or packed: check(batch["position_ids"], batch, family).
        inputs: a processor's batch, as `segments_from_inputs` reads it, or rows of segments.
        family: a Family, or its name.
        cu_seqlens: of inputs that are packed, [1, T], where each sequence begins, and the end. Without it a pack has its own
            (inputs["cu_seqlens"]), or is one whose text positions begin anew with each sequence: then these are believed, and
            ids are right or wrong by them.
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
        mmrope.positions.compare.WrongPositions: position_ids are not those of qwen2_vl: 1 of 7 tokens differ, ...
    """
    family = find_family(family)
    if isinstance(inputs, Mapping):
        timing: dict[str, Any] = {"prompt_lengths": prompt_lengths, "video_timings": video_timings}
        rows: Sequence[Row] = segments_from_inputs(inputs, family, sync=sync, **timing)
    elif prompt_lengths is not None or video_timings is not None:
        raise ValueError("prompt_lengths and video_timings go with a processor's batch; rows of segments say both themselves")
    else:
        rows = batch_of(inputs)
    start = 0
    if isinstance(position_ids, Packed):
        start, position_ids = position_ids.start, position_ids.ids[:, position_ids.mask]
    elif isinstance(position_ids, Positions):
        position_ids = position_ids.ids
    ids = on_host({"position_ids": position_ids}, sync)["position_ids"]
    if cu_seqlens is None and isinstance(inputs, Mapping):
        cu_seqlens = inputs.get("cu_seqlens")
        if cu_seqlens is None and len(rows) == 1 and inputs.get("attention_mask") is None:
            held = {key: inputs[key] for key in ("input_ids", "labels") if inputs.get(key) is not None}
            rows = _by_text_row(ids, on_host(held, sync), rows[0], family)
    if cu_seqlens is not None:
        rows = sequences_of(rows, running_totals(on_host({"cu_seqlens": cu_seqlens}, sync)["cu_seqlens"]))
    if len({row.length for row in rows}) == 1 and np.array_equal(
        ids, build.position_ids(rows, family, dtype=widest(family)).ids
    ):
        return  # the usual case, padding included
    expected = pack(rows, family, start=start, dtype=widest(family))
    given, text = _as_packed(ids, rows, expected)
    found = _Comparison(rows, expected, given)
    if found.wrong.any():
        raise WrongPositions(found.explained(text))
    if text is not None and not any(np.array_equal(text, order) for order in (expected.text_ids, found.columns)):
        raise WrongPositions(
            f"position_ids have {len(family.axes) + 1} rows: the first must hold the text positions, 0, 1, 2, ... in each "
            f"sequence, and the other {len(family.axes)} the ids ({family.axes}); these are right, but the first is not"
        )


def _by_text_row(ids: np.ndarray, inputs: Mapping[str, np.ndarray], row: Row, family: Family) -> list[Row]:
    """The sequences of a row without a mask, by the text positions in front of its ids, by which transformers tells them apart;
    what fills one up to a multiple, token 0 with the ids of padding and nothing to learn, is padding."""
    if ids.shape != (len(family.axes) + 1, 1, row.length) or not row.length:
        return [row]
    begins = ids[0, 0] == 0
    starts = np.flatnonzero(begins)
    if not begins[0] or (ids[0, 0] != np.arange(row.length) - starts[begins.cumsum() - 1]).any():
        return [row]  # these are no text positions, which is said where they are compared
    filled = (inputs["input_ids"][0] == 0) & (ids[1:, 0] == family.pad_value).all(axis=0)  # [T]
    if (labels := inputs.get("labels")) is not None:
        filled &= labels[0] == -100
        if (learned := starts[1:][labels[0, starts[1:]] != -100]).size:
            raise WrongPositions(
                f"the text positions begin anew at token {learned[0]}, whose label is learned from the token before it: it is "
                "not the first of a sequence, or its label should be -100"
            )
    cuts = []
    for start, end in itertools.pairwise([*starts.tolist(), row.length]):
        real = np.flatnonzero(~filled[start:end])
        cuts += [start, start + int(real[-1]) + 1 if real.size else end]
    parts = sequences_of([row], np.array([*cuts, row.length]))  # of each sequence its tokens, and what fills it up
    return [Row.join([one, Row.of_items([pad(fill.length)])]) for one, fill in zip(parts[::2], parts[1::2], strict=True)]


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
        if not self.expected.family.fractional:
            return np.not_equal(a, b)
        return np.abs(a - b) > np.minimum(2**-22 * np.abs(b), 0.5)  # never a whole id

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
            joined = pack(Row.join(self.rows), self.expected.family, dtype=self.expected.ids.dtype).ids
            yield "They run on from one sequence into the next: each begins at 0", joined
        yield from self._families(same=True)

    def _families(self, *, same: bool) -> Iterator[tuple[str, np.ndarray]]:
        """The ids by other revisions of the family, or by other families."""
        family = self.expected.family
        for row in FAMILIES.values():
            if len(row.axes) != len(family.axes) or (row.name == family.name) != same:
                continue
            shared = [fact for fact in FACTS if fact != "token_ids" and row.has(fact) and family.has(fact)]
            for facts in ({fact: fact_of(family, fact) for fact in shared}, {}):
                try:
                    ids = pack(self.rows, other := find_family(row, **facts), dtype=widest(other)).ids
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
        before = sum(n for _, _, n, _ in itertools.takewhile(lambda item: item[0] == "pad" or not item[2], row.singles))
        why = "its left padding was counted" if shift == before else "were other tokens before them?"
        return f"All ids of the row are shifted by {shift:g}: {why}"

    def _local(self, b: int) -> str | None:
        """What the first difference of the row says."""
        family, row = self.expected.family, self.rows[b]
        slot = int(self.expected.cu_seqlens[b]) + int(np.argmax(np.logical_or.reduce(self._of(b, self.wrong), axis=0)))
        token, axis = self._place(slot)[1], int(np.argmax(self.wrong[:, slot]))
        i = segment_of(row, token)
        assert i is not None
        singles = list(row.singles)
        (kind, (t, h, w), _, more), start = singles[i], sum(n for _, _, n, _ in singles[:i])
        if isinstance(more, Segment) and more.has_time:
            return f"The {' and the '.join(more.parts)} are laid out by other times (seconds per grid, ids per second)"
        if kind == "video" and family.axes[axis] == "t":
            first = slot - (token - start)
            steps = [ids[axis, first : first + t * h * w : h * w] - ids[axis, first] for ids in (self.given, self.expected.ids)]
            shown = [", ".join(f"{step:g}" for step in some[:6].tolist()) + (", ..." if t > 6 else "") for some in steps]
            return (
                f"The video's grids lie {shown[0]} ids after its first, expected {shown[1]}: a wrong time step. Were the "
                "seconds per grid those of the frames as they were sampled, and the ids per second the checkpoint's?"
            )
        before = next((kind for kind, _, n, _ in reversed(singles[:i]) if n), "text")
        if token == start and before == "pad":
            return "Up to there all is right: the padding before it was counted"
        if token == start and before != "text":
            name = before.replace("_", " ")
            return f"Up to there all is right: what follows the {name} starts at the wrong id (the advance)"
        return None
