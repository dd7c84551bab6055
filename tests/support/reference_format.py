"""The rows of tests/references/*.json, whose format references/README.md describes, as segments and back."""

from __future__ import annotations

from typing import Any

from mmrope import Segment
from mmrope.positions import AudioInVideo, Canvas


def segment(kind: str, size: Any, *more: Any) -> Segment:
    """A segment from a row of a reference."""
    if kind in ("text", "pad", "audio"):
        return Segment(kind, (1, 1, size))
    grid = tuple(size)
    if kind == "video":
        return Segment(kind, grid, *more)
    if kind == "audio_in_video":
        seconds, audio = more
        return AudioInVideo(kind, grid, seconds, audio_tokens=audio)
    if kind == "canvas":
        slices, columns, newlines = more
        return Canvas(kind, grid, slices=tuple(map(tuple, slices)), columns=columns, newlines=newlines)
    return Segment(kind, grid, *more)


def as_json(segment: Segment) -> list[Any]:
    """The same the other way."""
    kind, grid = segment.kind, list(segment.grid)
    if kind in ("text", "pad", "audio"):
        return [kind, grid[2]]
    if kind == "audio_in_video":
        return [kind, grid, segment.seconds_per_grid, segment.audio_tokens]
    if kind == "canvas":
        return [kind, grid, [list(crop) for crop in segment.slices], segment.columns, segment.newlines]
    return [kind, grid] if segment.seconds_per_grid is None else [kind, grid, segment.seconds_per_grid]
