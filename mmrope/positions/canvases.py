"""The door in for MiniCPM-V: pictures as thumbnails with detail crops, found by the markers around them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from mmrope.positions.rules import Family
from mmrope.positions.runs import T_IMAGE, T_VIDEO
from mmrope.positions.segments import Row, Segment

SIZES = {T_IMAGE: "target_sizes", T_VIDEO: "target_sizes_videos"}


def canvas_rows(host: Mapping[str, np.ndarray], types: np.ndarray, mask: np.ndarray | None, family: Family) -> list[Row]:
    """The rows of a batch whose images and frames are canvases; see `segments_from_inputs`.

    A crop is a run of image or video tokens. It is a detail of the picture before it where a slice marker stands in front of
    it, and otherwise the thumbnail of a new one (transformers 5.23.0, models/minicpmv4_7, _group_visual_frames).

    Args:
        host: the inputs; `input_ids` [B, S], `target_sizes` and `target_sizes_videos` [crops, 2].
        types: of each token [B, S], as in mm_token_type_ids.
        mask: [B, S], 0 at padding.
    """
    markers = family.token_ids
    if None in (markers.image_start, markers.image_end, markers.slice_start, markers.slice_end, markers.newline):
        raise ValueError(
            f"{family} is read by the ids of its markers (image_start_id, image_end_id, slice_start_id, slice_end_id, "
            "newline_id of its config): take it from family_from_config(model.config)"
        )
    sizes = {kind: _Crops(host.get(key), key, family) for kind, key in SIZES.items()}
    rows = []
    for b, (ids, kinds) in enumerate(zip(host["input_ids"], types, strict=True)):
        real = np.ones(len(ids), dtype=bool) if mask is None else mask[b].astype(bool)
        segments = list(_segments(ids[real].tolist(), kinds[real].tolist(), sizes, family, f"row {b}"))
        rows.append(_with_padding(segments, real))
    for crops in sizes.values():
        crops.end()
    return rows


class _Crops:
    """The token grids (h, w) of crops, handed out in their order."""

    def __init__(self, sizes: np.ndarray | None, key: str, family: Family) -> None:
        self.key, self.family, self.used = key, family, 0
        patches = np.zeros((0, 2), dtype=np.int64) if sizes is None else sizes.reshape(-1, sizes.shape[-1])
        if patches.shape[1] != 2 or patches.dtype.kind not in "iu":
            raise ValueError(f"{key} must be whole numbers [crops, 2] (h, w), got {patches.dtype} {list(patches.shape)}")
        with_t = np.concatenate([np.ones_like(patches[:, :1]), patches], axis=1)
        self.grids = [tuple(grid) for grid in family.token_grids(with_t, f"{key} row")[:, 1:].tolist()]

    def next(self, tokens: int, where: str) -> tuple[int, int]:
        """The grid of the next crop, which has this many tokens."""
        if self.used == len(self.grids):
            raise ValueError(f"{where} are more than the {len(self.grids)} crop(s) of {self.key}; is one missing?")
        h, w = self.grids[self.used]
        if h * w != tokens:
            raise ValueError(
                f"{where} do not fit crop {self.used} of {self.key}: it needs {h * w} ({h} x {w} after merge "
                f"{self.family.spatial_merge}). Was the row truncated, or made with another downsample_mode?"
            )
        self.used += 1
        return h, w

    def end(self) -> None:
        """Refuses crops that no tokens stand for."""
        if self.used < len(self.grids):
            raise ValueError(f"{self.key} has {len(self.grids)} crops, but the tokens end before crop {self.used}")


def _segments(ids: list[int], kinds: list[int], sizes: Mapping[int, _Crops], family: Family, where: str) -> Iterator[Segment]:
    """The segments of a row without its padding."""
    m = family.token_ids
    runs = [(kind, [i for i, _ in run]) for kind, run in itertools.groupby(enumerate(kinds), key=lambda pair: pair[1])]
    crops = [(kind, run[0], run[-1] + 1) for kind, run in runs if kind]
    done, n = 0, 0
    while n < len(crops):
        details = n + 1
        while details < len(crops) and ids[crops[details][1] - 1] == m.slice_start:
            details += 1
        picture, n = crops[n:details], details
        begin = picture[0][1] - 1
        _expect(ids, begin, m.image_start, where, "the marker before a picture")
        (h, w), *slices = [
            sizes[kind].next(stop - start, f"{where}: the {stop - start} crop tokens at {start}..{stop - 1}")
            for kind, start, stop in picture
        ]
        at, breaks = picture[0][2], []
        _expect(ids, at, m.image_end, where, "the marker after a thumbnail")
        at += 1
        for k, (_, start, stop) in enumerate(picture[1:]):
            if k and ids[at : at + 1] == [m.newline]:
                at, breaks = at + 1, [*breaks, k]
            _expect(ids, at, m.slice_start, where, "the marker before a detail crop")
            if at + 1 != start:
                raise ValueError(f"{where}: tokens {at + 1}..{start - 1} stand between a marker and its crop")
            _expect(ids, stop, m.slice_end, where, "the marker after a detail crop")
            at = stop + 1
        columns = breaks[0] if breaks else len(slices)
        if breaks != list(range(columns, len(slices), columns or 1)) or (columns and len(slices) % columns):
            raise ValueError(
                f"{where}: a newline stands after {', '.join(map(str, breaks))} of the {len(slices)} detail crops from token "
                f"{picture[1][1]} on, but one is needed after each row of {columns}"
            )
        newlines = next((i for i in range(at, len(ids)) if ids[i] != m.newline), len(ids)) - at
        if begin > done:
            yield Segment.text(begin - done)
        yield Segment.canvas(h=h, w=w, slices=slices, columns=columns, newlines=newlines)
        done = at + newlines
    if done < len(ids):
        yield Segment.text(len(ids) - done)


def _expect(ids: list[int], at: int, token: int | None, where: str, what: str) -> None:
    if not 0 <= at < len(ids) or ids[at] != token:
        found = ids[at] if 0 <= at < len(ids) else "nothing"
        raise ValueError(f"{where}: token {at} should be {what} ({token}), but is {found}; was the row truncated?")


def _with_padding(segments: list[Segment], real: np.ndarray) -> Row:
    """The row with padding where the mask has it, which must not be inside a segment."""
    row: list[Segment] = []
    rest = list(segments)
    for is_real, run in itertools.groupby(real.tolist()):
        left = len(list(run))
        if not is_real:
            row.append(Segment.pad(left))
            continue
        while left:
            segment = rest.pop(0)
            if segment.length > left:
                if segment.kind != "text":
                    raise ValueError(f"padding stands inside {segment!r}")
                rest.insert(0, Segment.text(segment.length - left))
                segment = Segment.text(left)
            row.append(segment)
            left -= segment.length
    return Row.of(row)
