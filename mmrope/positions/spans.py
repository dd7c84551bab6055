"""The door in for placeholder spans: where a server keeps media among its token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family
from mmrope.positions.runs import (
    MEDIA_TYPES,
    T_AUDIO,
    T_IMAGE,
    T_VIDEO,
    RunMedia,
    Runs,
    rows_of,
    with_end_markers_apart,
    with_sound_in_video,
)
from mmrope.positions.segments import MAX_SECONDS, Row, whole
from mmrope.positions.timing import VideoTiming

_TYPES = {name: kind for kind, name in MEDIA_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Span:
    """Where an image, a video or a sound stands in a prompt: what vLLM calls a placeholder range.

    Example:
        >>> import mmrope
        >>> image = mmrope.Span(offset=4, length=24, grid=(1, 8, 12))  # patch grids
        >>> video = mmrope.Span(offset=30, length=48, grid=(2, 8, 12), kind="video", seconds_per_grid=1.0)
        >>> row = mmrope.segments_from_spans(80, [image, video], "qwen2_5_vl")
        >>> [(segment.kind, segment.length) for segment in row]
        [('text', 4), ('image', 24), ('text', 2), ('video', 48), ('text', 2)]
    """

    offset: int
    """The first of its tokens."""
    length: int
    """Its tokens, with those that stand between its parts (time stamps, markers)."""
    grid: tuple[int, int, int] | None = None
    """The patch grid (t, h, w), a row of `image_grid_thw` or `video_grid_thw`; none of a sound."""
    kind: Literal["image", "video", "audio"] = "image"
    embed: Sequence[bool] | None = None
    """[length] which of its tokens are of the medium (vLLM's `is_embed`); None for all. The others are placed like text."""
    seconds_per_grid: float | None = None
    """Of a video: seconds from one temporal grid to the next."""
    timing: VideoTiming | None = None
    """Of a video, instead: when its frames are shown."""

    def __post_init__(self) -> None:
        for name in ("offset", "length"):
            object.__setattr__(self, name, whole(getattr(self, name), f"a span's {name}"))


def segments_from_spans(token_count: int, spans: Sequence[Span | tuple[Any, ...]], family: Family | str) -> Row:
    """The row of segments of a prompt, from the spans of its media.

    Args:
        token_count: tokens of the prompt; those in no span are text.
        spans: Spans, or tuples (offset, length, grid, ...) of their fields, in the order of their offsets. A sound whose span
            overlaps a video's is the sound of that video, where the family interleaves the two; the two start markers stand
            before its first token, the two end markers after its last. MiniCPM's canvases are read from inputs alone.
        family: a Family, or its name.

    Returns:
        The Row, for `position_ids(row, family)`.

    Raises:
        ValueError: spans out of order or beyond the prompt, tokens claimed twice, a span whose tokens are not those of its
            grid, grids or times that are missing or impossible, media that the family does not place.

    Example:
        >>> import mmrope
        >>> row = mmrope.segments_from_spans(10, [mmrope.Span(offset=2, length=6, grid=(1, 4, 6))], "qwen2_vl")
        >>> [(segment.kind, segment.grid) for segment in row]
        [('text', (1, 1, 2)), ('image', (1, 2, 3)), ('text', (1, 1, 2))]
    """
    family = find_family(family)
    if whole(token_count, "token_count") < 0:
        raise ValueError(f"token_count must be the tokens of the prompt, got {token_count}")
    spans = [_span(span, n) for n, span in enumerate(spans)]
    types = np.zeros((1, token_count), dtype=np.int8)
    sound_in_video: set[int] = set()
    before: Span | None = None
    for n, span in enumerate(spans):
        where = f"span {n} ({span.kind} at {span.offset}..{span.offset + span.length - 1})"
        mine = _tokens(span, family, token_count, where)
        if before is not None and span.offset < before.offset:
            raise ValueError(f"{where} begins before span {n - 1}: spans must be in the order of their offsets")
        if before is not None and span.offset < before.offset + before.length:
            if {span.kind, before.kind} != {"audio", "video"} or "audio_in_video" not in family.media:
                raise ValueError(f"{where} overlaps span {n - 1} ({before.kind}), and {family} interleaves no such media")
            sound_in_video.add(int(min((types[0, before.offset :] != 0).argmax() + before.offset, mine[0])))
        if types[0, mine].any():
            raise ValueError(f"{where} takes tokens that span {n - 1} has, too: their embed masks overlap")
        types[0, mine] = _TYPES[span.kind]
        before = span
    runs = Runs.of(types, None, family)
    if sound_in_video:
        runs = with_sound_in_video(runs, sound_in_video.__contains__)
    if family.fractional and family.audio_tokens:
        runs = with_end_markers_apart(runs)
    return rows_of(runs, {kind: _media(kind, spans, family) for kind in MEDIA_TYPES}, family, 1)[0]


def _span(span: Span | tuple[Any, ...], n: int) -> Span:
    if isinstance(span, Span):
        return span
    if not isinstance(span, tuple):
        raise ValueError(f"span {n} must be a Span or a tuple (offset, length, grid), got {span!r}")
    return Span(*span)


def _tokens(span: Span, family: Family, token_count: int, where: str) -> np.ndarray:
    """The tokens of a span that are of its medium, as indices into the prompt; checked by its grid."""
    places = {"video" if kind == "frame" else kind for kind in family.media} & set(_TYPES)
    if span.kind not in places:
        raise ValueError(f"{where}: {family} places {', '.join(sorted(places)) or 'no media'} by spans")
    if span.offset < 0 or span.length < 1 or span.offset + span.length > token_count:
        raise ValueError(f"{where} is not within the {token_count} tokens of the prompt; was the prompt truncated?")
    mine = np.arange(span.length)
    if span.embed is not None:
        embed = np.asarray(span.embed, dtype=bool)
        if embed.shape != (span.length,):
            raise ValueError(f"{where}: embed must be {span.length} booleans, one a token, got shape {embed.shape}")
        mine = embed.nonzero()[0]
    if not len(mine):
        raise ValueError(f"{where}: no token is of the {span.kind}: embed is false everywhere")
    if span.kind != "video" and (span.seconds_per_grid is not None or span.timing is not None):
        raise ValueError(f"{where}: only a video has seconds_per_grid or timing")
    if span.kind == "audio":
        if span.grid is not None:
            raise ValueError(f"{where}: a sound has no grid, but as many tokens as it has")
        return mine + span.offset
    if span.grid is None:
        raise ValueError(f"{where} has no grid: state its patch grid (t, h, w)")
    grid = family.token_grids([span.grid], f"{where}: patch grid", video=span.kind == "video")[0]
    if span.kind == "image" and grid[0] != 1:
        raise ValueError(f"{where}: patch grid {tuple(span.grid)} has {grid[0]} temporal grids; an image has one")
    needed = int(grid.prod())
    if len(mine) not in (needed, needed + family.markers * (span.kind == "image")):
        t, h, w = grid.tolist()
        raise ValueError(
            f"{where}: patch grid {tuple(span.grid)} needs {needed} tokens ({t} x {h} x {w} after merge "
            f"{family.spatial_merge}), but the span has {len(mine)}. Were tokens pruned, or was it made with another "
            "merge size?"
        )
    return mine + span.offset


def _media(kind: int, spans: Sequence[Span], family: Family) -> RunMedia:
    mine = [(n, span) for n, span in enumerate(spans) if span.kind == MEDIA_TYPES[kind]]
    key = f"the {MEDIA_TYPES[kind]} spans"
    if not mine:
        return RunMedia.of(key)
    if kind == T_AUDIO:
        return RunMedia.sounds(key, np.array([span.length if span.embed is None else sum(span.embed) for _, span in mine]))
    grid = family.token_grids([span.grid for _, span in mine], key, video=kind == T_VIDEO)
    if kind == T_IMAGE:
        return RunMedia.of(key, grid)
    times = [_times(span, family, f"span {n}") for n, span in mine]
    if family.split_frames:
        return RunMedia.of(key, grid, split=True)
    seconds = np.array([np.nan if s is None else s for s, _ in times])
    return RunMedia.of(key, grid, seconds=seconds, times=[t for _, t in times])


def _times(span: Span, family: Family, where: str) -> tuple[float | None, tuple[float, ...] | None]:
    """seconds_per_grid or the time of each grid of a video's span."""
    assert span.grid is not None
    if span.seconds_per_grid is not None and span.timing is not None:
        raise ValueError(f"{where}: give seconds_per_grid or timing, not both")
    if span.timing is not None:
        return family.grid_seconds(span.timing, span.grid[0], where)
    if span.seconds_per_grid is None and family.uses_seconds:
        raise ValueError(
            f"{where}: {family} places videos by time: give seconds_per_grid or timing, one of them; there is no default"
        )
    if span.seconds_per_grid is not None and not 0 < span.seconds_per_grid <= MAX_SECONDS:
        raise ValueError(
            f"{where}: seconds_per_grid must be positive seconds (at most {MAX_SECONDS:g}), got {span.seconds_per_grid}"
        )
    return span.seconds_per_grid, None
