"""The few placements that are not rows: sound within video, MiniCPM-V's canvas, VRoPE, Circle-RoPE.

Each takes a segment, the id that it begins at and the family, and returns the ids [A, n] of its tokens and the id that text
after it takes. A row of the table names the ones that it needs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrope.positions.segments import Segment

if TYPE_CHECKING:
    from mmrope.positions.rules import Family


# --- the Qwen Omni models: sound, alone and within video --------------------------------------------------------------


def qwen2_5_omni_audio_tokens(frames: np.ndarray) -> np.ndarray:
    """Tokens of a sound of `frames` spectrogram frames (transformers 5.23.0, models/qwen2_5_omni, get_rope_index)."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def qwen3_omni_audio_tokens(frames: np.ndarray, window: int = 50) -> np.ndarray:
    """The same for Qwen3-Omni, whose encoder takes `2 * window` frames at a time, 13 tokens each (transformers 5.23.0,
    models/qwen3_omni_moe, _get_feat_extract_output_lengths)."""
    rest = (frames % (2 * window) - 1) // 2 + 1
    return ((rest - 1) // 2 + 1 - 1) // 2 + 1 + frames // (2 * window) * 13


def audio_in_video_by_chunk(segment: Segment, start: Any, family: Family, *, by_runs: bool = True) -> tuple[np.ndarray, Any]:
    """Qwen2.5-Omni: both start markers share an id; then come a chunk of the video, a chunk of its sound, and so on, both
    counted from the same id; then both end markers, which share the id after the largest of the last chunk.

    `by_runs`: a segment that states its runs is laid out by them, and not by its times.
    """
    video, audio = _video_and_audio(segment, start + 1, family)
    order, last = (
        _order_by_runs(segment)
        if by_runs and segment.runs
        else _order_by_chunk(video[0] - (start + 1), audio[0] - (start + 1), family)
    )
    ids = np.concatenate([video, audio], axis=1)[:, order]
    end = int(ids[:, -last:].max()) + 1
    markers = np.ones((3, 2), dtype=ids.dtype)
    return np.concatenate([markers * start, ids, markers * end], axis=1), end + 1


def audio_in_video_by_time(segment: Segment, start: Any, family: Family, *, by_runs: bool = True) -> tuple[np.ndarray, Any]:
    """Qwen3-Omni: the tokens of the video and of its sound by their times, the video's first where they are equal; the
    markers count like text. Ids are float32 and added up in upstream's order; text goes on after the largest id of what was
    appended last, which is a single token or what was left of the longer.

    `by_runs`: as the tokens lie, in the order of the processor, which compares float64 times from 0. Otherwise as
    get_rope_index has it, which compares float32 ids: where times are equal but for rounding, it takes one for the other.
    """
    one, two = np.float32(1), np.arange(2, dtype=np.float32)
    begin = np.float32(start)
    video, audio = _video_and_audio(segment, begin + np.float32(2), family)
    if not by_runs:
        order, last = _order_by_time(video[0], audio[0])
    elif segment.runs:
        order, last = _order_by_runs(segment)
    else:
        t, h, w = segment.grid
        times = np.array(segment.times) - segment.times[0] if segment.times else np.arange(t) * (segment.seconds_per_grid or 0)
        order, last = _order_by_time(np.repeat(times * (family.ids_per_second or 0), h * w), np.arange(segment.audio_tokens))
    ids = np.concatenate([video, audio], axis=1)[:, order]
    end = ids[:, -last:].max() + one
    markers = [np.broadcast_to(two + marker, (3, 2)) for marker in (begin, end)]
    return np.concatenate([markers[0], ids, markers[1]], axis=1), markers[1].max() + one


def get_rope_index_by_chunk(segment: Segment, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """`audio_in_video_by_chunk` as transformers' get_rope_index has it."""
    return audio_in_video_by_chunk(segment, start, family, by_runs=False)


def get_rope_index_by_time(segment: Segment, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """`audio_in_video_by_time` as transformers' get_rope_index has it."""
    return audio_in_video_by_time(segment, start, family, by_runs=False)


def _video_and_audio(segment: Segment, start: Any, family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a video [3, t * h * w] and of its sound [3, audio tokens], both from `start` on."""
    t, h, w = segment.grid
    dtype = np.dtype(family.dtype)
    steps = family.steps(np.arange(t), segment.seconds_per_grid, segment.times)
    video = np.empty((3, t, h, w), dtype=dtype)
    video[0], video[1], video[2] = steps[:, None, None], np.arange(h)[:, None], np.arange(w)
    audio = np.empty((3, segment.audio_tokens), dtype=dtype)
    audio[:] = np.arange(segment.audio_tokens)
    return video.reshape(3, -1) + dtype.type(start), audio + dtype.type(start)


def _order_by_runs(segment: Segment) -> tuple[np.ndarray, int]:
    """The order of the tokens of [video, audio], and how many the last run has."""
    is_video = np.repeat(np.arange(len(segment.runs)) % 2 == 0, segment.runs)
    order = np.empty(len(is_video), dtype=np.int64)
    order[is_video] = np.arange(is_video.sum())
    order[~is_video] = np.arange(is_video.sum(), len(order))
    return order, segment.runs[-1]


def _order_by_chunk(video_t: np.ndarray, audio_t: np.ndarray, family: Family) -> tuple[np.ndarray, int]:
    """The order of the tokens of [video, audio], and how many the last chunk has; times count from 0."""
    ids_per_chunk = int((family.ids_per_second or 0) * (family.seconds_per_chunk or 0))
    parts = []
    for begin, times in ((0, video_t), (len(video_t), audio_t)):
        edges, chunk = [], 1
        for i, time in enumerate(times.tolist()):
            if time >= chunk * ids_per_chunk:  # one edge a token, however far the time jumps
                edges.append(i)
                chunk += 1
        parts.append(np.split(np.arange(begin, begin + len(times)), edges))
    video, audio = parts
    chunks = [part[j] for j in range(max(len(video), len(audio))) for part in (video, audio) if j < len(part)]
    return np.concatenate(chunks), len(chunks[-1])


def _order_by_time(video_t: np.ndarray, audio_t: np.ndarray) -> tuple[np.ndarray, int]:
    """The order of the tokens of [video, audio] merged by time, and how many are left of the longer at the end."""
    before = np.searchsorted(audio_t, video_t, side="left")  # tokens of sound before each token of the video
    order = np.insert(np.arange(len(audio_t)) + len(video_t), before, np.arange(len(video_t)))
    left = len(audio_t) - int(before[-1])
    return order, left or int((before == len(audio_t)).sum())


# --- MiniCPM-V: a thumbnail and detail crops on one canvas ------------------------------------------------------------


def canvas(segment: Segment, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """MiniCPM-V 4.7: all tokens of a picture have one t; the detail crops tile a canvas, over which the thumbnail is
    stretched, and the markers stand at corners (transformers 5.23.0, models/minicpmv4_7, get_rope_index)."""
    _, h, w = segment.grid
    rows = len(segment.slices) // segment.columns if segment.slices else 0
    slice_h, slice_w = segment.slices[0] if segment.slices else (0, 0)
    height, width = (rows * slice_h, segment.columns * slice_w) if rows else (h, w)
    halo = max(start - 1, 0) - start
    hw = [_point(halo, halo), _grid(_stretched(h, height), _stretched(w, width)), _point(height, width)]
    for n, (this_h, this_w) in enumerate(segment.slices):
        row, column = divmod(n, segment.columns)
        top, left = row * slice_h, column * slice_w
        if n and column == 0:
            hw.append(_point(top - 1, width))  # the newline, past the right edge of the row that it ends
        hw += [_point(top, left), _grid(top + np.arange(this_h), left + np.arange(this_w))]
        hw.append(_point(top + this_h - 1, left + this_w - 1))
    hw.append(np.zeros((2, segment.newlines), dtype=np.int64))
    h_and_w = np.concatenate(hw, axis=1)
    return start + np.concatenate([np.zeros_like(h_and_w[:1]), h_and_w]), start + max(height, width) + 1


def _point(h: int, w: int) -> np.ndarray:
    return np.array([[h], [w]], dtype=np.int64)


def _grid(h: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(h[:, None], w)).reshape(2, -1)


def _stretched(n: int, size: int) -> np.ndarray:
    """n coordinates from 0 to size - 1, evenly spaced and rounded: torch.linspace(0, size - 1, n).round(), in float32 and
    counted from both ends, as torch does."""
    if n == 1:
        return np.zeros(1, dtype=np.int64)
    i, last = np.arange(n, dtype=np.float32), np.float32(size - 1)
    step = last / np.float32(n - 1)
    return np.where(i < n // 2, step * i, last - step * i[::-1]).round().astype(np.int64)


# --- research ---------------------------------------------------------------------------------------------------------


def vrope(segment: Segment, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """VRoPE: four coordinates, along both diagonals in both directions; each frame takes h + w - 1 ids."""
    t, h, w = segment.grid
    span = h + w - 1
    i, j = np.arange(h)[:, None], np.arange(w)
    diagonals = np.stack([a + b for a in (i, i[::-1]) for b in (j, j[::-1])])[:, None]  # [4, 1, h, w]
    ids = diagonals + (start + span * np.arange(t))[:, None, None]  # [4, t, h, w]
    return ids.reshape(4, -1), start + span * t


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
    ids = (ids + start).astype(np.float32)
    return ids, ids.max() + np.float32(1)
