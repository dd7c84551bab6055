"""Random rows for laws: what hypothesis draws, and the slow definition that the builder is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrope import FAMILIES, Family, Segment, family
from mmrope.positions import AudioInVideo, Canvas, canvas, omni, research
from tests.support import cases
from tests.support.upstream_ids import processor_order

# at these steps, products with the usual rates land on or next to whole numbers
SECONDS = (0.04, 0.1, 0.3, 0.5, 0.7, 0.83, 1.0, 1.001, 1.5, 2.0, 2 / 3, 2 / 29.97, 10.0)
FLOAT32_SECONDS = tuple(float(np.float32(s)) for s in SECONDS)  # as processors hand them on in tensors
STRIDES = {"hope": 0.75, "v2pe": 1 / 16}  # where users state it
RULES = [family(key, stride=STRIDES[row.name]) if row.name in STRIDES else row for key, row in sorted(FAMILIES.items())]
BY_KEY = {rule.key: rule for rule in RULES}

small = st.integers(1, 5)
seconds = st.sampled_from(SECONDS)
texts = st.integers(0, 7).map(Segment.text)
pads = st.integers(0, 3).map(Segment.pad)
images = st.builds(lambda h, w: Segment.image(h=h, w=w), small, small)
crops = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def times(draw: st.DrawFn, t: int) -> dict[str, Any]:
    """Seconds per grid, or the time of each grid."""
    if draw(st.booleans()):
        return {"seconds_per_grid": draw(seconds)}
    return {"times": np.cumsum([draw(seconds) for _ in range(t)]).tolist()}


@st.composite
def videos(draw: st.DrawFn, family: Family) -> Segment:
    """With the time of each grid only by reference rules: no upstream takes that."""
    t = draw(st.integers(1, 9))
    timed = draw(times(t)) if not family.revision else {"seconds_per_grid": draw(seconds)}
    return Segment.video(t=t, h=draw(small), w=draw(small), **timed)


@st.composite
def canvases(draw: st.DrawFn) -> Segment:
    rows, columns = draw(st.sampled_from(((0, 0), (1, 2), (2, 1), (2, 3), (3, 1))))
    slices = [draw(crops) for _ in range(rows * columns)]
    return Canvas.make(h=draw(small), w=draw(small), slices=slices, columns=columns, newlines=draw(st.integers(0, 2)))


@st.composite
def sounds_in_videos(draw: st.DrawFn, choices: Sequence[float]) -> Segment:
    t, h, w, audio = draw(st.integers(1, 5)), draw(small), draw(small), draw(st.integers(1, 130))
    return AudioInVideo.make(t=t, h=h, w=w, audio=audio, seconds_per_grid=draw(st.sampled_from(choices)))


_MEDIA: dict[str, st.SearchStrategy[Segment]] = {
    "image": images,
    "frame": st.builds(lambda h, w: Segment.frame(h=h, w=w), small, small),
    "audio": st.integers(1, 20).map(Segment.audio),
    "audio_in_video": sounds_in_videos(SECONDS),
    "canvas": canvases(),
}


def media(family: Family) -> st.SearchStrategy[Segment]:
    """Any of the media that the family places."""
    return st.one_of([videos(family) if kind == "video" else _MEDIA[kind] for kind in family.media])


@st.composite
def customs(draw: st.DrawFn, family: Family) -> Segment:
    """Tokens at stated places."""
    n = draw(st.integers(0, 4))
    ids = [draw(st.lists(st.integers(-3, 9), min_size=n, max_size=n)) for _ in family.axes]
    return Segment.custom(np.array(ids, dtype=np.int64).reshape(len(family.axes), n), advance=draw(st.integers(0, 9)))


def rows(family: Family, *, most: int = 8, padding: bool = True, custom: bool = True) -> st.SearchStrategy[list[Segment]]:
    """Rows of up to `most` segments; media may touch and stand first or last, padding may be anywhere."""
    kinds = texts | media(family)
    kinds = kinds | customs(family) if custom else kinds
    return st.lists(kinds | pads if padding else kinds, max_size=most)


@st.composite
def long_rows(draw: st.DrawFn, family: Family) -> list[Segment]:
    """Rows of many segments, most of which are alike and equally far apart."""
    row: list[Segment] = []
    for _ in range(draw(st.integers(1, 3))):
        pair = [draw(texts), draw(media(family)), *draw(st.lists(texts, max_size=1))]
        row += pair * draw(st.integers(1, 12))
    return row


def any_rows(family: Family, **options: Any) -> st.SearchStrategy[list[Segment]]:
    return st.one_of(rows(family, **options), rows(family, **options), long_rows(family))


def law(test: Callable[..., None]) -> Any:
    """A test (rule, data) as a law that holds for every row of the table, a few cases each; scripts/fuzz_positions.py tries more."""
    every_row = [pytest.param(rule, id=key) for key, rule in sorted(BY_KEY.items())]
    return pytest.mark.parametrize("rule", every_row)(settings(max_examples=cases(4))(given(data=st.data())(test)))


def length(row: Sequence[Segment]) -> int:
    return sum(segment.length for segment in row)


# --- what processors make ---------------------------------------------------------------------------------------------


def processed(family: Family, *, most: int = 8) -> st.SearchStrategy[list[Segment]]:
    """Rows that a processor can say: videos state evenly spaced seconds or none, frames are a family's only videos."""
    kinds = [kind for kind in family.media if not (kind == "frame" and "video" in family.media)]
    width = st.integers(1 + family.row_token, 6)  # with the token at a row's end
    timed = st.builds(
        lambda t, h, w, s: Segment.video(t=t, h=h, w=w, seconds_per_grid=s if family.uses_seconds else None),
        *(st.integers(1, 9), small, width, st.sampled_from(FLOAT32_SECONDS)),
    )
    strategies = {
        **_MEDIA,
        "video": timed,
        "audio_in_video": sounds_in_videos(FLOAT32_SECONDS),
        "image": st.builds(lambda h, w: Segment.image(h=h, w=w), small, width),
        "frame": st.builds(lambda h, w: Segment.frame(h=h, w=w), small, width),
    }
    return st.lists(texts | pads | st.one_of([strategies[kind] for kind in kinds]), max_size=most)


def upstream_rows(family: Family, without: str = "") -> st.SearchStrategy[list[Segment]]:
    """Rows that upstreams can place: text around each medium, with room for its markers."""
    if family.name == "neomme":  # one document a sample, after two tokens
        document = st.builds(lambda h, w: [Segment.text(2), Segment.image(h=h, w=w)], small, st.integers(2, 6))
        return document | st.integers(1, 9).map(lambda n: [Segment.text(n)])
    media = processed(family).map(lambda row: [s for s in row if s.kind not in ("text", "pad", without)])
    gap = st.integers(2, 6).map(Segment.text)
    return st.tuples(gap, media, st.lists(gap, min_size=8, max_size=8)).map(
        lambda drawn: [drawn[0], *(part for pair in zip(drawn[1], drawn[2], strict=False) for part in pair)]
    )


def crowded_rows() -> st.SearchStrategy[list[Segment]]:
    """Rows with images of one or two tiles of 256 tokens between texts, all that V2PE's own code places."""
    gap = st.integers(2, 6).map(Segment.text)
    tiles = st.sampled_from((16, 32)).map(lambda w: Segment.image(h=16, w=w))
    return st.lists(st.tuples(tiles, gap), min_size=1, max_size=3).flatmap(
        lambda pairs: gap.map(lambda first: [first, *(part for pair in pairs for part in pair)])
    )


def generated_rows() -> st.SearchStrategy[list[Segment]]:
    """Rows of a text and then images, the last of which is to be made, all that OmniGen2's own code places."""
    images = st.lists(_MEDIA["image"], min_size=1, max_size=4)
    return st.tuples(st.integers(1, 9).map(Segment.text), images).map(lambda drawn: [drawn[0], *drawn[1]])


AUTHORS_ROWS = {"v2pe": crowded_rows, "omnirope": generated_rows}
"""Families whose authors' code takes only such rows."""


@st.composite
def upstream_batches(draw: st.DrawFn, family: Family) -> list[list[Segment]]:
    """Batches of such rows, padded on one side. Of videos with and without their sound, upstreams take one kind in a batch."""
    without = draw(st.sampled_from(("video", "audio_in_video"))) if "audio_in_video" in family.media else ""
    return draw(padded(upstream_rows(family, without)))


@st.composite
def padded(draw: st.DrawFn, rows: st.SearchStrategy[list[Segment]]) -> list[list[Segment]]:
    """A batch of up to four rows, padded to one length on one side."""
    batch = draw(st.lists(rows, min_size=1, max_size=4))
    longest, left = max(map(length, batch)), draw(st.booleans())
    pads = [[Segment.pad(longest - length(row))] for row in batch]
    return [pad + row if left else row + pad for pad, row in zip(pads, batch, strict=True)]


# --- the definition, token by token -----------------------------------------------------------------------------------


def pad_of(row: Sequence[Segment], family: Family) -> int:
    """What padding carries in a batch of this row."""
    blind = all(segment.kind in ("text", "pad", "audio", "custom") for segment in row)
    return family.pad_value_without_vision if blind and family.pad_value_without_vision is not None else family.pad_value


def slow_position_ids(row: Sequence[Segment], family: Family, media_before: int = 0) -> tuple[np.ndarray, Any]:
    """ids [A, S] and next, token by token, as the rules read."""
    number = np.dtype(family.dtype).type
    axes = len(family.axes)
    ids: list[tuple[Any, ...]] = []
    p, pad = number(0), pad_of(row, family)
    for segment in row:
        kind, w = segment.kind, segment.grid[2]
        if kind == "pad":
            ids += [(pad,) * axes] * segment.length
        elif kind == "text":
            ids += [(number(i) + p,) * axes for i in range(w)]
            p = p + number(w)
        elif kind == "custom":
            ids += [tuple(number(segment.ids[a][i]) + p for a in range(axes)) for i in range(segment.length)]
            p = p + number(segment.advance)
        elif kind == "audio":
            ids += [(number(i) + p,) * axes for i in range(w)]
            p = number(w - 1) + p + number(1)
        elif kind in family.place:
            block, p = SLOW_PLACEMENTS[family.place[kind]](segment, p, family)
            ids += block
        else:
            block, extent = _slow_grid(segment, p, family, media_before)
            ids += block
            p = p + extent + number(1)
            media_before += 1
    return np.array(ids, dtype=family.dtype).reshape(-1, axes).T, p


def _slow_grid(segment: Segment, p: Any, family: Family, media_before: int) -> tuple[list[tuple[Any, ...]], Any]:
    """ids of an image, frame or video, and how far before the next id the largest that counts lies."""
    number = np.dtype(family.dtype).type
    t, h, w = segment.grid
    steps = [slow_step(i, segment, family) for i in range(t)]
    origin = p if family.origin == "next" else number(0)
    block, n = [], 0
    for i in range(t):
        for j in range(h):
            for k in range(w):
                shift = steps[i] if family.couple else number(0)
                in_order = p + number(n) if family.stride == 1 else p - number(1) + number(family.stride * (n + 1))
                place = {
                    "t": steps[i] + p,
                    "h": number(j - (h - 1) // 2 if family.center else j) + shift + origin,
                    "w": number(k - (w - 1) // 2 if family.center else k) + shift + origin,
                    "p": in_order,
                    "i": media_before,
                }
                block.append(tuple(place[axis] for axis in family.axes))
                n += 1
    if family.advance == "max":
        extent = max(steps[-1], number(h - 1), number(w - 1))
    elif family.advance == "spatial":
        extent = number(max(h, w) - 1)
    elif family.advance == "time":
        extent = steps[-1]
    else:
        extent = number(math.ceil(n * family.stride) - 1)
    return block, extent


def slow_step(i: int, segment: Segment, family: Family) -> Any:
    """The id that temporal grid i lies after grid 0."""
    f = np.float32
    number = np.dtype(family.dtype).type
    if segment.kind in ("image", "frame"):
        return number(0)
    if not family.uses_seconds:
        return number(i * family.stride)
    rate = family.ids_per_second
    if segment.times is not None:
        exact = f(segment.times[i] - segment.times[0]) * f(rate)
        return exact if family.fractional else math.floor(exact)
    s = segment.seconds_per_grid
    if family.time == "seconds":
        return math.floor((f(i) * f(s)) * f(rate))
    if family.time == "seconds_rate_first":
        return math.floor(f(i) * f(s * rate))
    if family.time == "seconds_float64":
        return math.floor(i * (float(f(s)) * rate))
    if family.time == "whole_seconds":
        return math.floor(i * math.floor(s) * rate)
    assert family.time == "fractional_seconds"
    return (f(i) * f(s)) * f(rate)


def _slow_sound_in_video(segment: Segment, p: Any, family: Family) -> tuple[list[tuple[Any, ...]], Any]:
    number = np.dtype(family.dtype).type
    t, h, w = segment.grid
    shared = family.reading.seconds_per_chunk is not None
    start = p + number(1 if shared else 2)
    video = [
        (slow_step(i, segment, family) + start, number(j) + start, number(k) + start)
        for i in range(t)
        for j in range(h)
        for k in range(w)
    ]
    audio = [(number(i) + start,) * 3 for i in range(segment.audio_tokens)]
    order = processor_order(segment, family)
    if not shared and family.revision:  # by get_rope_index: by the ids themselves
        order, v, a = [], 0, 0
        while v < len(video) and a < len(audio):
            order.append(video[v][0] <= audio[a][0])
            v, a = v + order[-1], a + (not order[-1])
        order += [True] * (len(video) - v) + [False] * (len(audio) - a)
    v, a = iter(video), iter(audio)
    inside = [next(v) if is_video else next(a) for is_video in order]
    if shared:
        size = int(family.ids_per_second * family.reading.seconds_per_chunk)
        chunk_of: list[tuple[int, int]] = []
        for which, part in ((0, video), (1, audio)):
            chunk = 1
            for token in part:
                if token[0] - start >= chunk * size:
                    chunk += 1
                chunk_of.append((chunk, which))
        last_chunk = max(chunk_of)
        end = max(max(token) for token, chunk in zip(video + audio, chunk_of, strict=True) if chunk == last_chunk) + 1
        return [(p,) * 3, (p,) * 3, *inside, (end,) * 3, (end,) * 3], end + 1
    left = next(n for n in range(len(order)) if order[len(order) - 1 - n] != order[-1]) if len(set(order)) > 1 else len(order)
    end = number(max(max(token) for token in inside[-left:])) + number(1)
    markers = [(number(n) + q,) * 3 for q in (p, end) for n in range(2)]
    return [*markers[:2], *inside, *markers[2:]], markers[3][0] + number(1)


def _slow_canvas(segment: Segment, c: Any, family: Family) -> tuple[list[tuple[int, int, int]], Any]:
    _, h, w = segment.grid
    rows = len(segment.slices) // segment.columns if segment.slices else 0
    crop_h, crop_w = segment.slices[0] if rows else (0, 0)
    height, width = (rows * crop_h, segment.columns * crop_w) if rows else (h, w)

    def stretched(i: int, n: int, size: int) -> int:
        if n == 1:
            return 0
        f = np.float32
        step = f(size - 1) / f(n - 1)
        return round(float(step * f(i) if i < n // 2 else f(size - 1) - step * f(n - 1 - i)))

    halo = max(c - 1, 0)
    ids = [(c, halo, halo)]
    ids += [(c, c + stretched(i, h, height), c + stretched(j, w, width)) for i in range(h) for j in range(w)]
    ids.append((c, c + height, c + width))
    for n, (a, b) in enumerate(segment.slices):
        top, left = n // segment.columns * crop_h, n % segment.columns * crop_w
        if n and n % segment.columns == 0:
            ids.append((c, c + n // segment.columns * crop_h - 1, c + segment.columns * crop_w))
        ids.append((c, c + top, c + left))
        ids += [(c, c + top + i, c + left + j) for i in range(a) for j in range(b)]
        ids.append((c, c + top + a - 1, c + left + b - 1))
    ids += [(c, c, c)] * segment.newlines
    return ids, c + max(height, width) + 1


def _slow_vrope(segment: Segment, p: Any, family: Family) -> tuple[list[tuple[Any, ...]], Any]:
    t, h, w = segment.grid
    span, ids = h + w - 1, []
    for i in range(t):
        for j in range(h):
            for k in range(w):
                q = p + i * span
                ids.append((q + j + k, q + j + w - 1 - k, q + h - 1 - j + k, q + h - 1 - j + w - 1 - k))
    return ids, p + t * span


def _slow_around(segment: Segment, p: Any, family: Family) -> tuple[list[tuple[Any, ...]], Any]:
    _, h, w = segment.grid
    top, left = p + (h * w - h) // 2, p + (h * w - w) // 2
    return [(top + j, left + k) for j in range(h) for k in range(w)], p + h * w


def _slow_circle(segment: Segment, p: Any, family: Family) -> tuple[list[tuple[Any, ...]], Any]:
    """By the steps of the paper: angles, the circle, its plane."""
    _, h, w = segment.grid
    number = np.dtype(family.dtype).type
    around = [math.atan2(j - (h - 1) / 2, k - (w - 1) / 2) for j in range(h) for k in range(w)]
    low, high = min(around), max(around)
    found = []
    for n, angle in enumerate(around):
        spread = (angle - low) / (high - low) * 2 * math.pi if high > low else angle
        theta = 0.5 * spread + 0.5 * (n / (h * w) * 2 * math.pi)
        x, y = 10 * math.cos(theta), 10 * math.sin(theta)
        u, v = np.array([-1, 1, 0]) / math.sqrt(2), np.array([-1, -1, 2]) / math.sqrt(6)
        w_id, h_id, t_id = x * u + y * v
        found.append(tuple(number(float(x) + float(p)) for x in (t_id, h_id, w_id)))
    return found, max(x for token in found for x in token) + number(1)


SLOW_PLACEMENTS = {
    omni.audio_in_video_by_chunk: _slow_sound_in_video,
    omni.audio_in_video_by_time: _slow_sound_in_video,
    omni.get_rope_index_by_chunk: _slow_sound_in_video,
    omni.get_rope_index_by_time: _slow_sound_in_video,
    canvas.on_canvas: _slow_canvas,
    research.vrope: _slow_vrope,
    research.circle: _slow_circle,
    research.around_its_place: _slow_around,
}
