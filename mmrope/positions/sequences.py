"""A row's later life: turns are appended, it is cut to a length, padded or packed with others, pruned, and dealt to ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from mmrope.positions.build import (
    Positions,
    Rows,
    batch_of,
    cast,
    check_fits,
    check_same,
    output,
    plan,
    position_ids,
    widest,
    write_row,
)
from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family
from mmrope.positions.segments import MEDIA, Item, Row, Segment, pad, text, token_mask
from mmrope.positions.stated import MOST_AT_ONCE, choice, numbers, whole, whole_numbers

Policy = Literal["error", "drop_media", "before_media"]
Markers = tuple[int, int] | Mapping[str, tuple[int, int]]
"""Text tokens (before, after) that go with each of the media, or the same by kind of segment."""
PER_MEDIUM = MappingProxyType(
    {
        **{key: kind.name for kind in MEDIA.values() for key in (kind.pixels, kind.grids)},
        **{"second_per_grid_ts": "video", "video_second_per_grid": "video", "audio_seqlens": "audio"},
    }
)
"""Keys of model inputs that have a value, or patches, for each of the media along their first dimension, and which kind."""
Scheme = Literal["contiguous", "zigzag", "zigzag_per_sequence", "ulysses"]


# --- longer and shorter -----------------------------------------------------------------------------------------------


def append(row: Row | Iterable[Segment], segments: Row | Iterable[Segment]) -> Row:
    """The row with more segments after it: the answer that was generated, then the next turn with its media.

    Ids of the tokens that were there do not change, so a cache of keys stays valid: compute the new ones alone, by
    `position_ids(longer, family, start=row.length)`.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.positions import Row, append
        >>> row = Row.of([Segment.text(2), Segment.image(h=2, w=2)])
        >>> longer = append(row, [Segment.text(3)])
        >>> position_ids(longer, "qwen2_vl", start=row.length).ids[:, 0].tolist()  # the new tokens alone
        [[4, 5, 6], [4, 5, 6], [4, 5, 6]]
    """
    return Row.join([Row.of(row), Row.of(segments)])


@dataclass(frozen=True, eq=False)
class Truncated:
    """A row that was cut to a length, and what remains of it.

    Example:
        >>> from mmrope import Segment
        >>> from mmrope.positions import truncate
        >>> row = [Segment.text(3), Segment.image(h=2, w=2), Segment.text(4)]
        >>> cut = truncate(row, 8)
        >>> cut.row.length, cut.tokens.tolist(), cut.media["image"].tolist()
        (8, [0, 1, 2, 3, 4, 5, 6, 7], [0])
    """

    row: Row
    tokens: np.ndarray
    """[n] int64, the tokens of the old row that are left: `input_ids[tokens]`, `labels[tokens]`, ..."""
    media: dict[str, np.ndarray]
    """For "image", "video", "audio", "canvas" and "custom", as far as the row had any, which of them are left [k] int64:
    `image_grid_thw[media["image"]]`. A video with its audio is one of the videos and one of the audios. "frame" where nothing
    had to be cut and it was not stated which frames are a video's."""
    length: int
    """Tokens of the row before."""
    counts: dict[str, int]
    """How many media of each kind it had."""

    def cut(self, inputs: Mapping[str, Any], family: Family | str | None = None) -> dict[str, Any]:
        """The model inputs of the row, cut as it was: tokens, and pixels, grids and seconds of the media that are left.

        Args:
            inputs: arrays or tensors of this one row, [S] or [1, S] where they have a value for each token; what has neither
                that nor anything of media stays.
            family: whose ids `position_ids` are, if there are any: what follows media that went moves up.

        Raises:
            ValueError: inputs of other rows, `position_ids` without a family.

        Example:
            >>> import numpy as np
            >>> from mmrope import Segment
            >>> from mmrope.positions import truncate
            >>> row = [Segment.text(3), Segment.image(h=2, w=2), Segment.text(2), Segment.image(h=4, w=4), Segment.text(2)]
            >>> grids, pixels = np.array([[1, 4, 4], [1, 8, 8]]), np.zeros((80, 1176))
            >>> inputs = {"input_ids": np.arange(27), "image_grid_thw": grids, "pixel_values": pixels}
            >>> short = truncate(row, 12, policy="drop_media", markers=(1, 1)).cut(inputs)
            >>> short["input_ids"].tolist(), short["image_grid_thw"].tolist(), short["pixel_values"].shape
            ([0, 1, 2, 3, 4, 5, 6, 7, 26], [[1, 4, 4]], (16, 1176))
        """
        length, cut = self.length, {}
        # of the widest dtype; theirs is made of it where they are written
        family = None if family is None else find_family(family)
        positions = family and position_ids(self.row, family, dtype=widest(family))
        if np.shape(inputs["input_ids"]) not in ((length,), (1, length)):
            raise ValueError(
                f"input_ids are {list(np.shape(inputs['input_ids']))}, but the row that was cut has {length} tokens"
            )
        for key, value in inputs.items():
            if key in ("position_ids", "next_position"):
                if positions is None:
                    raise ValueError(
                        f"the inputs have {key}, which are others in a row that was cut: say whose, cut(inputs, family)"
                    )
                if key == "position_ids" and len(value) != len(positions.ids):
                    raise ValueError(
                        f"position_ids must be {len(positions.ids)} rows ({positions.family.axes}), got {len(value)}"
                    )
                made = positions.next if key == "next_position" else positions.ids
                cut[key] = _like(made.reshape(*np.shape(value)[:-1], -1) if np.ndim(value) else made[0], value)
            elif key == "video_timestamps" or key in PER_MEDIUM:
                cut[key] = self._left(key, value, inputs)
            elif np.shape(value)[:1] == (length,):
                cut[key] = value[self.tokens]
            elif np.shape(value)[:2] == (1, length):
                cut[key] = value[:, self.tokens]
            else:
                cut[key] = value
        return cut

    def _left(self, key: str, value: Any, inputs: Mapping[str, Any]) -> Any:
        """What of a value for each of the media belongs to those that are left."""
        kind = PER_MEDIUM.get(key, "video")
        left, count = self.media.get(kind), self.counts.get(kind, 0)
        if left is None:  # there are none, or frames, and all of them stay
            return value
        if key not in (MEDIA["image"].pixels, MEDIA["video"].pixels, "video_timestamps"):
            sizes = np.ones(len(value), dtype=int)
        elif isinstance(value, (list, tuple)):
            return [value[n] for n in left]
        else:  # patches of each grid; times of each frame, of temporal grids of so many
            grids = np.asarray(inputs[MEDIA[kind].grids]).reshape(-1, 3)
            sizes = grids[:, 0] * len(value) // max(1, grids[:, 0].sum()) if key == "video_timestamps" else grids.prod(axis=1)
        if len(sizes) != count or sizes.sum() != len(value):
            raise ValueError(f"{key} has {len(value)} entries for {len(sizes)} {kind}s, but the row that was cut had {count}")
        return value[np.flatnonzero(np.isin(np.repeat(np.arange(count), sizes), left))]


def truncate(
    row: Row | Iterable[Segment],
    length: int,
    *,
    policy: Policy = "error",
    markers: Markers | None = None,
    frames: Sequence[int] | None = None,
) -> Truncated:
    """The row cut to at most `length` tokens. Images, videos and audios stay whole, or go.

    Args:
        row: a Row, or a list of Segments. If it is too long, its padding goes first.
        length: the most tokens that it may keep.
        policy: what to do about media that would be cut or lost. "error" refuses; what is cut then is text alone.
            "drop_media" leaves out those that do not fit, with their markers, lets what follows move up, and cuts text at the
            end. "before_media" cuts the row before the first that does not fit, with its markers.
        markers: text tokens (before, after) that open and close each of the media and go with it: (1, 1) for Qwen-VL's
            <|vision_start|> and <|vision_end|>; or one such pair for each kind: {"image": (1, 1), "video": (7, 1)}, where the
            first of a video in frames also counts the time stamp before its first frame. Needed as soon as media are left out,
            and to cut right behind one.
        frames: of rows that are too long and have videos in frames, how many frames each video has, in order
            (`video_grid_thw[:, 0]`): a video goes with all its frames and the time stamps between them. A canvas goes by
            itself, also if it is the frame of a video.

    Raises:
        ValueError: media do not fit and the policy is "error", unstated markers or frames, markers that are not there.

    Example:
        >>> from mmrope import Segment
        >>> from mmrope.positions import truncate
        >>> row = [Segment.text(3), Segment.image(h=2, w=2), Segment.text(2), Segment.image(h=4, w=4), Segment.text(2)]
        >>> cut = truncate(row, 12, policy="drop_media", markers=(1, 1))
        >>> cut.tokens.tolist(), cut.media["image"].tolist()
        ([0, 1, 2, 3, 4, 5, 6, 7, 26], [0])
    """
    row, length = Row.of(row), whole(length, "length")
    choice(policy, "policy", get_args(Policy))
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    fits = row.length <= length
    items = _items(row, frames, fits)
    ends = row.lengths.cumsum()
    kept = np.ones(row.length, dtype=bool)
    here = np.ones(len(items), dtype=bool)
    if not fits:
        kept = np.repeat([kind != "pad" for kind, _, _, _ in row.singles], row.lengths)  # padding goes first
        starts = ends - row.lengths
        spans = [(int(starts[a]), int(ends[b - 1])) for _, a, b in items]
        around = spans if markers is None else _with_markers(row, items, spans, markers)
        place = np.concatenate([[0], kept.cumsum()])  # of each token among the real ones
        # unless markers are stated, what stands right behind media may close them
        needed = [int(place[end] + (markers is None and place[end] < place[-1])) for _, end in around]
        lost = [n for n, end in enumerate(needed) if end > length]
        if lost and (policy == "error" or markers is None):
            raise ValueError(_refusal(policy, items[lost[0]], spans[lost[0]], len(lost), place, length))
        if lost and policy == "before_media":
            kept[around[lost[0]][0] :] = False
            here[lost[0] :] = False
        moved = 0
        for n in lost if policy == "drop_media" else ():
            start, end = around[n]
            if needed[n] - moved > length:
                moved += int(kept[start:end].sum())
                kept[start:end], here[n] = False, False
        kept &= kept.cumsum() <= length
    media: dict[str, np.ndarray] = {}
    for kind in dict.fromkeys(kind for item, _, _ in items for kind in item.split("+")):
        media[kind] = np.flatnonzero([h for (item, _, _), h in zip(items, here, strict=True) if kind in item.split("+")])
    gone = {i for (_, a, b), left in zip(items, here, strict=True) if not left for i in range(a, b)}
    counts = {kind: sum(kind in item.split("+") for item, _, _ in items) for kind in media}
    return Truncated(_remaining(row, kept, gone), np.flatnonzero(kept), media, row.length, counts)


def _like(values: np.ndarray, other: Any) -> Any:
    """Values as an array or a tensor, as another is."""
    if not hasattr(other, "new_tensor"):
        return cast(values, np.asarray(other).dtype)
    import torch

    made = torch.from_numpy(np.ascontiguousarray(values)).to(other.dtype)
    check_same(values, made.double().numpy(), made.dtype)
    return made.to(other.device)


def _items(row: Row, frames: Sequence[int] | None, fits: bool) -> list[tuple[str, int, int]]:
    """(kind, first segment, behind the last) of each of the media; a video in frames is one, where it is known which."""
    items, at = [], 0
    places = [i for i, (kind, _, _, _) in enumerate(row.singles) if kind == "frame"]
    for i, (kind, _, _, more) in enumerate(row.singles):
        if kind not in ("text", "pad", "frame"):
            items.append(("+".join(more.parts) if isinstance(more, Segment) else kind, i, i + 1))
    if frames is not None:
        counts = whole_numbers(frames, "frames")
        if sum(counts) != len(places) or min(counts, default=1) < 1:
            raise ValueError(f"frames {list(counts)} are {sum(counts)} frames in all, but the row has {len(places)}")
        for count in counts:
            items.append(("video", places[at], places[at + count - 1] + 1))
            at += count
    elif fits:
        items += [("frame", i, i + 1) for i in places]
    elif places:
        raise ValueError(
            f"the row has {len(places)} frames, and does not say of which videos: pass frames=[...], how many each video has"
        )
    return sorted(items, key=lambda item: item[1])


def _with_markers(
    row: Row, items: list[tuple[str, int, int]], spans: list[tuple[int, int]], markers: Markers
) -> list[tuple[int, int]]:
    """The tokens of the media with their markers."""
    around = [_around(row, item, span, markers) for item, span in zip(items, spans, strict=True)]
    for (_, end), (start, _), (name, _, _) in zip(around, around[1:], items[1:], strict=False):
        if start < end:
            raise ValueError(
                f"the markers of the {name.partition('+')[0]} from {start} on and of what is before it (up to {end - 1}) are "
                "the same text tokens; state markers that belong to one of the media alone"
            )
    return around


def _around(row: Row, item: tuple[str, int, int], span: tuple[int, int], markers: Markers) -> tuple[int, int]:
    """The tokens of one of the media with its markers."""
    kind, a, b = item
    name = kind.partition("+")[0]
    if isinstance(markers, Mapping) and name not in markers:
        raise ValueError(f"the row has a {name}, but markers are stated of {', '.join(markers) or 'nothing'}; add {name!r}")
    before, after = whole_numbers(markers[name] if isinstance(markers, Mapping) else markers, "markers", count=2)
    singles = list(row.singles)
    for count, i, side in ((before, a - 1, "before"), (after, b, "after")):
        there = singles[i][2] if 0 <= i < len(singles) and singles[i][0] == "text" else 0
        if not 0 <= count <= there:
            raise ValueError(
                f"the {name} at {span[0]}..{span[1] - 1} should have {count} markers {side} it, but there are "
                f"{there} text tokens"
            )
    return span[0] - before, span[1] + after


def _refusal(
    policy: Policy, item: tuple[str, int, int], span: tuple[int, int], count: int, place: np.ndarray, length: int
) -> str:
    start, end = (int(place[token]) for token in span)
    where = "would be lost" if start >= length else "would be cut" if length < end else "would lose the text that closes it"
    others = f", and {count - 1} more" if count > 1 else ""
    instead = 'Allow more tokens, make the media smaller, or choose policy="drop_media" or "before_media"'
    if policy != "error":
        instead = (
            "The text tokens that open and close it go with it: state how many, markers=(1, 1) for one before and one after "
            "each of the media, (0, 0) for none"
        )
    return (
        f"the row has {place[-1]} tokens; at {length} the {item[0].replace('+', ' with its ')} at {span[0]}..{span[1] - 1} "
        f"(segment {item[1]}) {where}{others}. {instead}"
    )


def _remaining(row: Row, kept: np.ndarray, gone: set[int]) -> Row:
    """The segments of the tokens that are left; text and padding may have become shorter, and media without tokens go by
    number."""
    before, ends = np.concatenate([[0], kept.cumsum()]), row.lengths.cumsum()
    lengths = (before[ends] - before[ends - row.lengths]).tolist()
    left: list[Item] = []
    for i, (item, n) in enumerate(zip(row.singles, lengths, strict=True)):
        if i not in gone and (n or not item[2]):
            left.append({"text": text, "pad": pad}[item[0]](n) if item[0] in ("text", "pad") else item)
    return Row.of_items(left)


# --- together ---------------------------------------------------------------------------------------------------------


def collate(rows: Rows, *, pad_side: Literal["left", "right"] = "right", multiple_of: int = 1) -> list[Row]:
    """The rows at one length, with padding: a batch for `position_ids(rows, family)`, which gives [A, B, S].

    Padding carries `family.pad_value`: 0, as in transformers 5. Who needs another writes it by the mask (transformers 4 has 1),
    `positions.ids[:, ~positions.mask] = 1`; models do not read it.

    Args:
        rows: a Row, a list of Segments, or a list of these. Padding that they have stays where it is.
        pad_side: where padding goes, "right" for training, "left" for generation.
        multiple_of: the length is made a multiple of this.

    Raises:
        ValueError: an unknown side, a multiple below 1.

    Example:
        >>> from mmrope import Segment, collate, position_ids
        >>> rows = collate([[Segment.text(2)], [Segment.text(1), Segment.image(h=1, w=3)]], pad_side="left")
        >>> position_ids(rows, "qwen2_vl").ids[0].tolist()  # t of both rows
        [[0, 0, 0, 1], [0, 1, 1, 1]]
    """
    batch = batch_of(rows)
    choice(pad_side, "pad_side", ("left", "right"))
    length = _up(max(row.length for row in batch), _multiple(multiple_of))
    fills = [(pad(length - row.length),) if row.length < length else () for row in batch]
    parts = zip(fills, batch, strict=True)
    return [Row(fill + row.items if pad_side == "left" else row.items + fill, length) for fill, row in parts]


@dataclass(frozen=True, eq=False, repr=False)
class Packed:
    """Sequences one after the other, without padding between their tokens: position IDs, and where each sequence is.

    Boundaries are stated, and never to be found in the ids: those of media come back to smaller numbers within a sequence.

    Example:
        >>> from mmrope import Segment, pack
        >>> packed = pack([[Segment.text(3)], [Segment.text(1), Segment.image(h=2, w=2)]], "qwen2_vl")
        >>> packed.ids[0].tolist(), packed.text_ids.tolist()
        ([0, 1, 2, 0, 1, 1, 1, 1], [0, 1, 2, 0, 1, 2, 3, 4])
        >>> packed.cu_seqlens.tolist(), packed.max_seqlen
        ([0, 3, 8], 5)
    """

    ids: np.ndarray
    """[A, T], one row of ids per axis of the family."""
    cu_seqlens: np.ndarray
    """[B + 1] int32, running totals of the sequences' real tokens: what varlen attention takes."""
    cu_seqlens_padded: np.ndarray
    """[B + 1] int32, where each sequence begins in the pack, and the end: the same, unless sequences are filled up to a
    multiple."""
    next: np.ndarray
    """[B] the id that text after each sequence takes."""
    index: np.ndarray
    """[T] int64, the token that each slot holds, counted through all tokens of the rows; -1 where a sequence is filled up."""
    row_lengths: tuple[int, ...]
    """[B] tokens of each row, padding included: what `index` counts through."""
    family: Family
    start: int = 0
    """The token of each sequence whose ids its first slot holds."""

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest sequence, with what it is filled up by."""
        return int(np.diff(self.cu_seqlens_padded).max(initial=0))

    @property
    def mask(self) -> np.ndarray:
        """[T] bool, True at real tokens."""
        return self.index >= 0

    @property
    def text_ids(self) -> np.ndarray:
        """[T] int64, the place of each token in its sequence: the order of causal attention. It goes on through what a sequence
        is filled up by, so that who looks for boundaries in it (transformers does) finds none there."""
        counted, places = np.arange(self.start, self.start + self.max_seqlen), np.empty(len(self.index), dtype=np.int64)
        for start, end in itertools.pairwise(self.cu_seqlens_padded.tolist()):
            places[start:end] = counted[: end - start]
        return places

    @property
    def sequence_index(self) -> np.ndarray:
        """[T] int32, the sequence of each token: tokens attend to those of equal number. It goes on through what a sequence is
        filled up by."""
        return np.repeat(np.arange(len(self.next), dtype=np.int32), np.diff(self.cu_seqlens_padded))

    def take(self, values: Any, fill: Any) -> np.ndarray:
        """Any value of each token (its id, its label) in the order of the pack: [T, ...].

        Args:
            values: [B, S, ...], or for each row [n, ...], of the rows that were packed, padding included.
            fill: what fills sequences up.

        Example:
            >>> from mmrope import Segment, pack
            >>> packed = pack([[Segment.text(2), Segment.pad(1)], [Segment.text(3)]], "qwen2_vl", multiple_of=4)
            >>> packed.take([[11, 12, 0], [21, 22, 23]], fill=-100).tolist()
            [11, 12, -100, -100, 21, 22, 23, -100]
        """
        parts = [np.asarray(part) for part in values]
        lengths = [len(part) for part in parts]
        if lengths != list(self.row_lengths):
            raise ValueError(
                f"there are values for rows of {lengths} tokens, but the rows that were packed have {list(self.row_lengths)}"
            )
        flat = np.concatenate(parts)
        taken = flat[self.index] if len(flat) else np.full((len(self.index), *flat.shape[1:]), fill, dtype=flat.dtype)
        taken[~self.mask] = fill
        return taken

    def __repr__(self) -> str:
        axes, tokens = self.ids.shape
        return (
            f"Packed({self.family}: {axes} axes {self.family.axes}, {len(self.next)} sequences, {tokens} tokens, "
            f"{self.ids.dtype}, cu_seqlens {self.cu_seqlens.tolist()})"
        )


def pack(rows: Rows, family: Family | str, *, multiple_of: int = 1, start: int = 0, dtype: Any = None) -> Packed:
    """The rows one after the other in a single table, each with the ids that it has alone.

    Args:
        rows: a Row, a list of Segments, or a list of these, of any lengths. Padding in them is left out.
        family: a Family, or its name.
        multiple_of: each sequence is filled up to a multiple of this, as context parallelism needs (twice the number of
            ranks). These slots carry `family.pad_value`.
        start: the token of each sequence whose ids its first slot holds, as of `position_ids`: 1 for the ids of the next token,
            which multi-token prediction embeds beside it; behind the last token, those of text.
        dtype: int64 (default) or int32; float32 (default) or float64 for families whose ids are fractional.

    Raises:
        ValueError: rows that the family cannot place, a multiple below 1, ids that do not fit the dtype.

    Example:
        >>> from mmrope import Segment, pack
        >>> packed = pack([[Segment.text(3)], [Segment.text(2), Segment.image(h=1, w=2)]], "qwen2_vl")
        >>> packed.ids.tolist()
        [[0, 1, 2, 0, 1, 2, 2], [0, 1, 2, 0, 1, 2, 2], [0, 1, 2, 0, 1, 2, 3]]
        >>> packed.cu_seqlens.tolist()
        [0, 3, 7]
    """
    family = find_family(family)
    batch = batch_of(rows)
    multiple = _multiple(multiple_of)
    begin = whole(start, "start", least=0)
    real = [Row.of_items(item for item in row.items if item[0] != "pad") for row in batch]
    lengths = [row.length for row in real]
    padded = [_up(length, multiple) for length in lengths]
    starts = _totals(padded)
    ids = output(None, dtype, (len(family.axes), int(starts[-1])), family)  # [A, T]
    plans, none = plan(real, family), np.zeros(0, dtype=bool)  # without padding there is no mask to write
    for (placed, following, length), at, end in zip(plans, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        check_fits([(placed, following, length)], family, ids.dtype, begin, begin + length)
        write_row(ids[:, at : at + length], none, placed, following, length, family, begin, begin + length)
        ids[:, at + length : end] = family.pad_value
    following = np.array([following for _, following, _ in plans], ids.dtype if family.fractional else np.int64)  # [B]
    index = _index(batch, lengths, padded)
    row_lengths = tuple(row.length for row in batch)
    return Packed(ids, _totals(lengths), starts, following, index, row_lengths, family, begin)


def keep(positions: Positions, mask: Any) -> Packed:
    """The tokens that remain when others are pruned (of videos, say), with the ids that they had.

    A token that remains stays where it was, and text continues at `next`, as if nothing were gone. `text_ids` counts the tokens
    that remain: the place in a cache and the order of causal attention. So decoding step k has the ids `next + k` and the place
    `n + k`, where n is how many remain.

    Args:
        positions: what `position_ids` returned.
        mask: [B, S], True or 1 at the tokens to keep. Padding goes in any case.

    Raises:
        ValueError: a mask of another shape or kind, or a slice of the rows: what was kept before it is not known. Prune whole
            rows, and slice what remains.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.positions import keep
        >>> positions = position_ids([Segment.text(1), Segment.image(h=2, w=2), Segment.text(1)], "qwen2_vl")
        >>> kept = keep(positions, [[True, True, False, False, True, True]])
        >>> kept.ids.tolist(), kept.text_ids.tolist(), kept.next.tolist()
        ([[0, 1, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]], [0, 1, 2, 3], [4])
    """
    if not isinstance(positions, Positions):
        raise ValueError(f"keep takes what position_ids returned, got {type(positions).__name__}")
    tokens = positions.mask.shape[1]
    if positions.start or any(tokens != row.length for row in positions.rows):
        raise ValueError(
            f"these positions are the slice {positions.start}..{positions.start + tokens - 1} of rows of "
            f"{positions.rows[0].length} tokens: what was kept before, or where text continues, is not known of it. Prune "
            "whole rows, then slice what remains"
        )
    stated = token_mask(mask, positions.mask.shape, "mask")
    wanted = positions.mask if stated is None else stated & positions.mask  # [B, S]
    totals = _totals(wanted.sum(axis=1).tolist())
    index = np.flatnonzero(wanted)
    ids = positions.ids.reshape(len(positions.ids), -1).take(index, axis=1)  # [A, T]
    lengths = (wanted.shape[1],) * len(wanted)
    return Packed(ids, totals, totals, positions.next, index, lengths, positions.family)


def sequences_of(rows: Sequence[Row], totals: np.ndarray) -> list[Row]:
    """The sequences of a packed row, which begin at these tokens [B + 1].

    Raises:
        ValueError: several rows, totals that end elsewhere, or that cut through media.
    """
    if len(rows) != 1 or totals[-1] != rows[0].length:
        raise ValueError(
            f"cu_seqlens end at {totals[-1]}, but the inputs are {len(rows)} x {rows[0].length} tokens: a pack is one row, and "
            "they end with it"
        )
    [row] = rows
    found = []
    for a, b in itertools.pairwise(totals.tolist()):
        parts, end = [], 0
        for i, item in enumerate(row.singles):
            start, end = end, end + item[2]
            n = min(end, b) - max(start, a)
            if n <= 0:
                continue
            if n < item[2] and item[0] not in ("text", "pad"):
                raise ValueError(f"cu_seqlens cut through segment {i}, {row[i]!r} at {start}..{end - 1}")
            parts.append(item if n == item[2] else {"text": text, "pad": pad}[item[0]](n))
        found.append(Row.of_items(parts))
    return found


def _index(rows: Sequence[Row], lengths: Sequence[int], padded: Sequence[int]) -> np.ndarray:
    """[T] the tokens that a pack holds of rows with so many real ones; -1 where sequences are filled up."""
    if sum(lengths) == sum(row.length for row in rows):
        taken = np.arange(sum(lengths))
    else:
        segments = [(kind != "pad", n) for row in rows for kind, _, n, _ in row.items]
        is_real, tokens = zip(*segments, strict=True)
        taken = np.flatnonzero(np.repeat(is_real, tokens))
    if sum(padded) == len(taken):
        return taken
    index = np.full(sum(padded), -1)
    in_turns = [n for length, whole in zip(lengths, padded, strict=True) for n in (length, whole - length)]
    index[np.repeat(np.tile([True, False], len(lengths)), in_turns)] = taken
    return index


def _totals(lengths: Sequence[int]) -> np.ndarray:
    """[B + 1] int32 running totals, from 0."""
    totals = list(itertools.accumulate(lengths, initial=0))
    if totals[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{totals[-1]:,} tokens in one pack are more than cu_seqlens (int32) can say; pack fewer rows")
    return np.array(totals, dtype=np.int32)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _multiple(value: Any) -> int:
    multiple = whole(value, "multiple_of")
    if multiple < 1:
        raise ValueError(f"multiple_of must be at least 1, got {multiple}")
    return multiple


# --- by rank ----------------------------------------------------------------------------------------------------------


def shard_index(cu_seqlens: int | Sequence[int] | np.ndarray, *, size: int, rank: int, scheme: Scheme) -> np.ndarray:
    """The tokens that a rank holds: one index for ids (`ids[..., index]`), tokens, labels and masks alike.

    Position IDs are computed for whole sequences first and sharded then, by this index. All ranks hold equally many tokens;
    together they hold each once, so `np.argsort(np.concatenate(indices))` puts what was gathered by rank back in order.

    Args:
        cu_seqlens: the tokens, or running totals of the tokens of packed sequences: `packed.cu_seqlens_padded`. Only
            "zigzag_per_sequence" looks at more than the last.
        size: ranks.
        rank: this one, from 0.
        scheme: "contiguous", the rank-th of `size` equal parts; "ulysses", the same, for tokens outside attention, where
            all-to-all trades tokens for heads; "zigzag", of 2 * size equal parts the rank-th from the front and the rank-th
            from the back, which gives causal ring attention equal work on all ranks (Megatron-LM's
            get_batch_on_this_cp_rank); "zigzag_per_sequence", the same in each packed sequence (transformer-engine's
            thd_get_partitioned_indices).

    Returns:
        [T / size] int64.

    Raises:
        ValueError: tokens that do not divide into equal parts (pack with multiple_of=2 * size), a rank that is not there,
            totals that fall.

    Example:
        >>> from mmrope.positions import shard_index
        >>> shard_index(8, size=2, rank=0, scheme="zigzag").tolist()
        [0, 1, 6, 7]
        >>> shard_index(8, size=2, rank=1, scheme="zigzag").tolist()
        [2, 3, 4, 5]
    """
    choice(scheme, "scheme", get_args(Scheme))
    size, rank = whole(size, "size"), whole(rank, "rank")
    if not 0 <= rank < size:
        raise ValueError(f"rank must be from 0 to size - 1, got rank {rank} of size {size}")
    totals = running_totals(cu_seqlens)
    if totals[-1] > MOST_AT_ONCE:
        raise ValueError(f"cu_seqlens end at {totals[-1]:,} tokens, more than {MOST_AT_ONCE:,}")
    if scheme in ("contiguous", "ulysses"):
        part = _part(int(totals[-1]), size, "the tokens", scheme)
        return np.arange(rank * part, (rank + 1) * part)
    if scheme == "zigzag":
        totals = totals[[0, -1]]
    parts = [
        _part(length, 2 * size, f"sequence {b}" if scheme == "zigzag_per_sequence" else "the tokens", scheme)
        for b, length in enumerate(np.diff(totals).tolist())
    ]
    front = [start + rank * part for start, part in zip(totals[:-1].tolist(), parts, strict=True)]
    back = [start + (2 * size - 1 - rank) * part for start, part in zip(totals[:-1].tolist(), parts, strict=True)]
    pieces = [np.arange(a, a + part) for pair, part in zip(zip(front, back, strict=True), parts, strict=True) for a in pair]
    return np.concatenate(pieces) if pieces else np.arange(0)


def running_totals(cu_seqlens: Any) -> np.ndarray:
    """[B + 1] int64, where sequences begin, and the end; of a number, of one sequence of so many tokens."""
    totals = numbers(cu_seqlens, "cu_seqlens", "iu", " [B + 1]")
    if totals.ndim > 1 or not totals.size:
        raise ValueError(
            f"cu_seqlens must be a number of tokens, or running totals [B + 1], got {totals.dtype} {list(totals.shape)}"
        )
    totals = np.array([0, totals]) if totals.ndim == 0 else totals.astype(np.int64)
    if totals[0] != 0 or (np.diff(totals) < 0).any():
        raise ValueError(f"cu_seqlens must begin with 0 and never fall, got {totals.tolist()}")
    return totals


def _part(tokens: int, parts: int, what: str, scheme: str) -> int:
    if tokens % parts:
        raise ValueError(
            f"{scheme!r} cuts {what} into {parts} equal parts, but {tokens} tokens are no multiple of {parts}: pack with "
            f"multiple_of={parts}"
        )
    return tokens // parts
