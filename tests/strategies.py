"""Random rows for laws: what hypothesis draws, and the slow definition that the builder is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mmrope import FAMILIES, Family, Segment

# at these steps, products with the usual rates land on or next to whole numbers
SECONDS = (0.1, 0.3, 0.5, 0.7, 0.83, 1.0, 1.001, 1.5, 2.0, 2 / 3, 10.0)

families = st.sampled_from(sorted(FAMILIES)).map(FAMILIES.__getitem__)
small = st.integers(1, 5)
texts = st.integers(0, 7).map(Segment.text)
pads = st.integers(0, 3).map(Segment.pad)
images = st.builds(lambda h, w: Segment.image(h=h, w=w), small, small)


def media(family: Family) -> st.SearchStrategy[Segment]:
    """An image or what the family makes of a video."""
    if family.split_frames:
        return images | st.builds(lambda h, w: Segment.frame(h=h, w=w), small, small)
    videos = st.builds(
        lambda t, h, w, s: Segment.video(t=t, h=h, w=w, seconds_per_grid=s),
        st.integers(1, 9),
        small,
        small,
        st.sampled_from(SECONDS),
    )
    return images | videos


def rows(family: Family, *, most: int = 8, padding: bool = True) -> st.SearchStrategy[list[Segment]]:
    """Rows of up to `most` segments; media may touch and stand first or last, padding may be anywhere."""
    return st.lists(texts | media(family) | pads if padding else texts | media(family), max_size=most)


@st.composite
def family_and_row(draw: st.DrawFn, **options: Any) -> tuple[Family, list[Segment]]:
    family = draw(families)
    return family, draw(rows(family, **options))


def length(row: Sequence[Segment]) -> int:
    return sum(segment.length for segment in row)


def slow_position_ids(row: Sequence[Segment], family: Family) -> tuple[np.ndarray, int]:
    """ids [A, S] and next, token by token, as the rules read: the definition."""
    ids: list[tuple[int, int, int]] = []
    p = 0
    for segment in row:
        t, h, w = segment.grid
        if segment.kind == "pad":
            ids += [(family.pad_value,) * 3] * segment.length
        elif segment.kind == "text":
            ids += [(p + i, p + i, p + i) for i in range(w)]
            p += w
        else:
            block = [(p + slow_step(i, segment, family), p + j, p + k) for i in range(t) for j in range(h) for k in range(w)]
            ids += block
            p = max(max(token) for token in block) + 1 if family.advance == "max" else p + max(h, w)
    return np.array(ids, dtype=np.int64).reshape(-1, 3).T, p


def slow_step(i: int, segment: Segment, family: Family) -> int:
    """The id that temporal grid i lies after grid 0."""
    f = np.float32
    if not family.uses_seconds:
        return i
    if segment.kind != "video":
        return 0
    assert segment.seconds_per_grid is not None
    assert family.ids_per_second is not None
    if family.time == "seconds":
        return math.floor((f(i) * f(segment.seconds_per_grid)) * f(family.ids_per_second))
    return math.floor(f(i) * f(segment.seconds_per_grid * family.ids_per_second))


def as_inputs(batch: Sequence[Sequence[Segment]], family: Family) -> dict[str, np.ndarray]:
    """A processor's output for these rows, which must be of one length."""
    types, mask, images, videos, seconds = [], [], [], [], []
    m = family.spatial_merge
    for row in batch:
        types.append([{"image": 1, "video": 2, "frame": 2}.get(s.kind, 0) for s in row for _ in range(s.length)])
        mask.append([int(s.kind != "pad") for s in row for _ in range(s.length)])
        for s in row:
            t, h, w = s.grid
            if s.kind == "image":
                images.append([t, h * m, w * m])
            elif s.kind in ("video", "frame"):
                videos.append([t, h * m, w * m])
                seconds.append(s.seconds_per_grid or 1.0)
    inputs = {
        "input_ids": np.array(types, dtype=np.int64),
        "attention_mask": np.array(mask, dtype=np.int64),
        "mm_token_type_ids": np.array(types, dtype=np.int64),
    }
    if images:
        inputs["image_grid_thw"] = np.array(images)
    if videos:
        inputs["video_grid_thw"] = np.array(videos)
        inputs["second_per_grid_ts"] = np.array(seconds)
    return inputs
