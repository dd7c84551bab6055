"""Placements that are functions: what no field of a Family can say. Each is of a paper, and named by its family's row.

A placement takes a segment, the id that it begins at and the family, and returns the ids [A, n] of its tokens and the id at
which text continues.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mmrope.positions.rules import Family
from mmrope.positions.segments import Segment


def vrope(segment: Segment, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """VRoPE: four coordinates, along both diagonals in both directions; each frame takes h + w - 1 ids."""
    t, h, w = segment.grid
    span = h + w - 1
    i, j = np.arange(h)[:, None], np.arange(w)
    diagonals = np.stack([a + b for a in (i, i[::-1]) for b in (j, j[::-1])])[:, None]  # [4, 1, h, w]
    ids = diagonals + (start + span * np.arange(t))[:, None, None]  # [4, t, h, w]
    return ids.reshape(4, -1), start + span * t


def around_its_place(segment: Segment, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """HunyuanImage-3: an image of n tokens takes n ids, as text would, and its grid is centred on them on both axes."""
    _, h, w = segment.grid
    n = segment.length
    y, x = start + (n - h) // 2 + np.arange(h)[:, None], start + (n - w) // 2 + np.arange(w)
    return np.stack(np.broadcast_arrays(y, x)).reshape(2, -1), start + n


def circle(segment: Segment, start: Any, family: Family, *, radius: float = 10.0, alpha: float = 0.5) -> tuple[np.ndarray, Any]:
    """Circle-RoPE: an image's tokens lie on a circle in the plane at right angles to the line of text, whose points have the
    same id on all axes, so that all are equally far from each token of text. The angle is a mean, with weight `alpha`, of
    the token's angle around the image's centre and of its place in the order of tokens, both spread over a whole turn."""
    _, h, w = segment.grid
    y, x = np.arange(h)[:, None] - (h - 1) / 2, np.arange(w) - (w - 1) / 2
    around = np.arctan2(*np.broadcast_arrays(y, x))  # [h, w]
    spread = around.max() - around.min()
    if spread > 0:
        around = (around - around.min()) / spread * (2 * math.pi)
    angle = alpha * around + (1 - alpha) * (np.arange(h * w).reshape(h, w) / (h * w) * (2 * math.pi))
    u, v = radius * np.cos(angle).reshape(-1), radius * np.sin(angle).reshape(-1)
    # (x, y, z) = u (-1, 1, 0) / sqrt 2 + v (-1, -1, 2) / sqrt 6, and the axes w, h, t are x, y, z
    ids = np.stack([2 * v / math.sqrt(6), u / math.sqrt(2) - v / math.sqrt(6), -u / math.sqrt(2) - v / math.sqrt(6)])
    number = np.float64 if isinstance(start, np.float64) else np.float32  # the first past 2^24
    ids = (ids + start).astype(number)
    return ids, ids.max() + number(1)
