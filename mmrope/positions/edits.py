"""A row, changed: a new turn appended, or cut to a length without cutting through media."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mmrope.positions.segments import FRAME, PAD, TEXT, Row, Segment, whole

Policy = Literal["error", "drop_media", "before_media"]
Markers = tuple[int, int] | Mapping[str, tuple[int, int]]
"""Text tokens (before, after) that go with each of the media, or the same by kind of segment."""


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
    `image_grid_thw[media["image"]]`. A video with its sound is one of the videos and one of the sounds. "frame" where nothing
    had to be cut and it was not stated which frames are a video's."""


def truncate(
    row: Row | Iterable[Segment],
    length: int,
    *,
    policy: Policy = "error",
    markers: Markers | None = None,
    frames: Sequence[int] | None = None,
) -> Truncated:
    """The row cut to at most `length` tokens. Images, videos and sounds stay whole, or go.

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
    if policy not in get_args(Policy):
        raise ValueError(f"policy must be {', '.join(map(repr, get_args(Policy)))}, got {policy!r}")
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    fits = row.length <= length
    items = _items(row, frames, fits)
    ends = row.lengths.cumsum()
    kept = np.ones(row.length, dtype=bool)
    here = np.ones(len(items), dtype=bool)
    if not fits:
        kept = np.repeat(row.kind != PAD, row.lengths)  # padding goes first
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
    gone = [i for (_, a, b), left in zip(items, here, strict=True) if not left for i in range(a, b)]
    return Truncated(_remaining(row, kept, gone), np.flatnonzero(kept), media)


def _items(row: Row, frames: Sequence[int] | None, fits: bool) -> list[tuple[str, int, int]]:
    """(kind, first segment, behind the last) of each of the media; a video in frames is one, where it is known which."""
    items, at = [], 0
    single = np.flatnonzero((row.kind != PAD) & (row.kind != TEXT) & (row.kind != FRAME)).tolist()
    for i in single:
        kind = row[i].kind
        items.append(("video+audio" if kind == "audio_in_video" else kind, i, i + 1))
    places = np.flatnonzero(row.kind == FRAME).tolist()
    if frames is not None:
        counts = [whole(n, "frames") for n in frames]
        if sum(counts) != len(places) or min(counts, default=1) < 1:
            raise ValueError(f"frames {counts} are {sum(counts)} frames in all, but the row has {len(places)}")
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
    before, after = (whole(n, "markers") for n in (markers[name] if isinstance(markers, Mapping) else markers))
    for count, i, side in ((before, a - 1, "before"), (after, b, "after")):
        there = int(row.grid[i, 2]) if 0 <= i < len(row) and row.kind[i] == TEXT else 0
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


def _remaining(row: Row, kept: np.ndarray, gone: list[int]) -> Row:
    """The segments of the tokens that are left; text and padding may have become shorter, and media without tokens go by
    number."""
    before, ends = np.concatenate([[0], kept.cumsum()]), row.lengths.cumsum()
    lengths = before[ends] - before[ends - row.lengths]
    stays = (lengths > 0) | (row.lengths == 0)
    stays[gone] = False
    which = np.flatnonzero(stays)
    left = row.only(which)
    grid = left.grid.copy()
    flat = (left.kind == TEXT) | (left.kind == PAD)
    grid[flat, 2] = lengths[which][flat]
    return Row.of_columns(left.kind, grid, left.seconds, left.special)
