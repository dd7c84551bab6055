"""The doors in: what a processor returns, turned into rows of segments. Every input check is here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions.families import Family
from mmrope.positions.families import family as find_family
from mmrope.positions.segments import FRAME, IMAGE, MAX_SECONDS, PAD, TEXT, VIDEO, Row

_PADDING, _TEXT, _IMAGE, _VIDEO = -1, 0, 1, 2  # token types as mm_token_type_ids has them, and padding


def segments_from_inputs(inputs: Mapping[str, Any], family: Family | str, *, sync: bool = False) -> list[Row]:
    """The rows of segments of a Hugging Face processor's batch.

    Args:
        inputs: what the processor returned, with `input_ids` [B, S] and, as far as there are any, `attention_mask` [B, S]
            (padding on any side), `mm_token_type_ids` [B, S] (0 text, 1 image, 2 video), `image_grid_thw` and
            `video_grid_thw` [n, 3] in the order of the batch, `second_per_grid_ts` [videos] in seconds. Other keys are
            left alone. Arrays, lists or CPU tensors.
        family: a Family, or its name.
        sync: copy GPU tensors to the host, once per tensor; each copy waits for the GPU.

    Returns:
        One Row per batch row, for `position_ids(rows, family)`.

    Raises:
        ValueError: tokens and grids that do not belong together, missing or impossible grids or times, GPU tensors without
            `sync`. The message names the row, the item and its tokens.
    """
    family = find_family(family)
    if not isinstance(inputs, Mapping):
        raise ValueError(f"inputs must be a processor's output (a dict), got {type(inputs).__name__}")
    host = {key: _host(inputs[key], key, sync) for key in _KEYS if inputs.get(key) is not None}
    types = _token_types(host, inputs)
    runs = _Runs.of(types)
    media = {_IMAGE: _media(host, inputs, family, _IMAGE), _VIDEO: _media(host, inputs, family, _VIDEO)}
    for kind in (_IMAGE, _VIDEO):
        _check_grids_fill_runs(runs, media[kind], kind, family)
    return _rows(runs, media, family, len(types))


_KEYS = (
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
)


def _host(value: Any, key: str, sync: bool) -> np.ndarray:
    """An input as a numpy array, copied from a GPU only when told to."""
    device = getattr(value, "device", None)
    if device is not None and getattr(device, "type", "cpu") != "cpu":
        if not sync:
            raise ValueError(
                f"{key} is on {device}: reading it waits for the device. Compute positions from the processor's host tensors, "
                "before .to(device), or pass sync=True to copy"
            )
        value = value.cpu()
    if str(getattr(value, "dtype", "")) in ("torch.bfloat16", "torch.float16"):
        raise ValueError(
            f"{key} is {value.dtype}, in which 0.7 is no longer 0.7: pass what the processor returned, before .to(dtype)"
        )
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{key} is ragged: pad the rows to one length, or pass them one at a time") from None


# --- tokens -----------------------------------------------------------------------------------------------------------


def _token_types(host: Mapping[str, np.ndarray], inputs: Mapping[str, Any]) -> np.ndarray:
    """[B, S] int8: _PADDING, _TEXT, _IMAGE or _VIDEO for each token."""
    types = host.get("mm_token_type_ids")
    if "input_ids" not in host:
        raise ValueError("inputs have no input_ids: pass what the processor returned, whole")
    shape = host["input_ids"].shape
    if len(shape) != 2:
        raise ValueError(f"input_ids must be [batch, tokens], got shape {shape}; a single row needs a leading dimension of 1")
    if types is None:
        media = [key for key in inputs if key.endswith("_grid_thw") or key.startswith("pixel_values")]
        if any(inputs[key] is not None for key in media):
            raise ValueError(
                f"inputs have {', '.join(media)} but no mm_token_type_ids, which say where the media are. Processors of "
                "transformers 5 return them (return_mm_token_type_ids=True)"
            )
        types = np.zeros(shape, dtype=np.int8)
    for key in ("mm_token_type_ids", "attention_mask"):
        if key in host and host[key].shape != shape:
            raise ValueError(f"{key} has shape {host[key].shape}, input_ids {shape}: they must be the same")
    if types.size and not 0 <= types.min() <= types.max() <= _VIDEO:
        found = sorted(set(types.ravel().tolist()))
        raise ValueError(f"mm_token_type_ids holds {found}; known are 0 (text), 1 (image) and 2 (video)")
    types = types.astype(np.int8, copy=True)
    if "attention_mask" in host:
        mask = host["attention_mask"]
        if mask.dtype != bool and not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                "attention_mask must be 1 at real tokens and 0 at padding; packed sequences (1, 1, 2, 2, ...) and additive "
                "masks (0, -inf) say something else: give rows one by one, each with its own mask"
            )
        types[~mask.astype(bool)] = _PADDING
    return types


@dataclass(frozen=True, eq=False)
class _Runs:
    """The longest stretches of one token type in each row, in the order of the batch."""

    type: np.ndarray  # [n]
    row: np.ndarray  # [n]
    start: np.ndarray  # [n], token of the row
    length: np.ndarray  # [n]

    @classmethod
    def of(cls, types: np.ndarray) -> _Runs:
        batch, tokens = types.shape
        begins = np.ones((batch, tokens), dtype=bool)
        np.not_equal(types[:, 1:], types[:, :-1], out=begins[:, 1:])
        at = np.flatnonzero(begins)  # every row begins a run
        length = np.diff(at, append=batch * tokens)
        tokens = max(tokens, 1)
        return cls(types.ravel()[at], at // tokens, at % tokens, length)


# --- media ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Media:
    """The images or the videos of a batch as token grids; a family that splits frames has one grid a frame."""

    key: str
    grid: np.ndarray  # [n, 3]
    seconds: np.ndarray  # [n], NaN where not stated
    item: np.ndarray  # [n], the row of the processor's grid that it came from

    def which(self, i: int, name: str, family: Family) -> str:
        """Grid i for messages."""
        frame = i - int(np.searchsorted(self.item, self.item[i]))
        return f"{name} {self.item[i]}" + (f", frame {frame}" if name == "video" and family.split_frames else "")


def _media(host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family, kind: int) -> _Media:
    key, pixels = ("image_grid_thw", "pixel_values") if kind == _IMAGE else ("video_grid_thw", "pixel_values_videos")
    if key not in host and inputs.get(pixels) is not None:
        raise ValueError(f"inputs have {pixels} but no {key}: the sizes of the media are needed")
    grid = host.get(key, np.zeros((0, 3), dtype=np.int64))
    merged = family.token_grids(grid, f"{key} row")
    if kind == _IMAGE and (grid[:, 0] != 1).any():
        i = int(np.argmax(grid[:, 0] != 1))
        raise ValueError(f"{key} row {i} has {grid[i, 0]} temporal grids; an image has one, a video belongs in video_grid_thw")
    seconds = np.full(len(grid), np.nan)
    if kind == _VIDEO and "second_per_grid_ts" in host:
        seconds = _seconds(host["second_per_grid_ts"], len(grid))
    elif kind == _VIDEO and family.uses_seconds and len(grid):
        raise ValueError(
            f"{family} places videos by time, but the inputs have no second_per_grid_ts for {len(grid)} video(s). Pass what "
            "the processor returned, or temporal patch size / sampled frames per second for each video; there is no default"
        )
    frames = merged[:, 0] if kind == _VIDEO and family.split_frames else np.ones(len(grid), dtype=np.int64)
    item = np.repeat(np.arange(len(grid)), frames)
    merged = merged[item]
    if kind == _VIDEO and family.split_frames:
        merged[:, 0] = 1
    return _Media(key, merged, seconds[item], item)


def _seconds(values: np.ndarray, videos: int) -> np.ndarray:
    seconds = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(seconds) != videos:
        raise ValueError(
            f"second_per_grid_ts has {len(seconds)} value(s) for {videos} video(s) of video_grid_thw: one each is needed"
        )
    if not ((seconds > 0) & (seconds <= MAX_SECONDS)).all():
        raise ValueError(f"second_per_grid_ts must be positive seconds (at most {MAX_SECONDS:g}), got {seconds.tolist()}")
    return seconds


def _check_grids_fill_runs(runs: _Runs, media: _Media, kind: int, family: Family) -> None:
    """A run of media tokens is cut by the sizes of its grids, so it must end where a grid ends.

    Media may touch: what counts is that each run's end, in media tokens of the whole batch, is the end of a grid.
    """
    mine = np.flatnonzero(runs.type == kind)
    run_ends, grid_ends = np.cumsum(runs.length[mine]), np.cumsum(media.grid.prod(axis=1))
    fits = np.isin(run_ends, grid_ends)
    name = "image" if kind == _IMAGE else "video"
    if not fits.all():
        j = int(np.argmin(fits))
        run = mine[j]
        row, start, length = int(runs.row[run]), int(runs.start[run]), int(runs.length[run])
        at = f"row {row}: the {length} {name} tokens at {start}..{start + length - 1}"
        i = int(np.searchsorted(grid_ends, run_ends[j]))  # the grid that passes the run's end
        if i == len(grid_ends):
            raise ValueError(
                f"{at} are more than the {len(set(media.item.tolist()))} grid(s) of {media.key} have room for; "
                f"is a row of {media.key} missing, or did a {name} token get into the text?"
            )
        t, h, w = media.grid[i].tolist()
        before = int(grid_ends[i] - t * h * w) - int(run_ends[j] - length)  # tokens of this run that earlier grids take
        left = length - before
        raise ValueError(
            f"{at} do not fit their grids: {media.which(i, name, family)} needs {t * h * w} tokens "
            f"({t} x {h} x {w} after merge {family.spatial_merge}), but {left} are left for it. "
            f"Was the row truncated through the {name}, or made with another image size?"
        )
    used = int(np.searchsorted(grid_ends, run_ends[-1] if len(run_ends) else 0, side="right"))
    if used < len(media.grid):
        which = media.which(used, name, family)
        raise ValueError(
            f"{media.key} has {len(set(media.item.tolist()))} row(s), but the {name} tokens end before {which}, "
            "which has none. Pass the grids of exactly these rows, in their order"
        )


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(runs: _Runs, media: dict[int, _Media], family: Family, batch: int) -> list[Row]:
    """One segment for each run of text or padding, and one for each grid in a run of media; then cut into rows."""
    count = np.ones(len(runs.type), dtype=np.int64)
    for kind, items in media.items():
        mine = np.flatnonzero(runs.type == kind)
        owner = np.searchsorted(np.cumsum(runs.length[mine]), np.cumsum(items.grid.prod(axis=1)))
        count[mine] = np.bincount(owner, minlength=len(mine))
    run = np.repeat(np.arange(len(runs.type)), count)  # [segments], the run that a segment belongs to
    types = runs.type[run]
    grid = np.ones((len(run), 3), dtype=np.int64)
    grid[:, 2] = runs.length[run]
    seconds = np.full(len(run), np.nan)
    kinds = np.where(types == _PADDING, PAD, TEXT).astype(np.int8)
    for kind, items in media.items():  # grids come in the order of the batch, and so do the segments
        grid[types == kind], seconds[types == kind] = items.grid, items.seconds
        kinds[types == kind] = IMAGE if kind == _IMAGE else FRAME if family.split_frames else VIDEO
    if family.split_frames:
        seconds[:] = np.nan
    cuts = np.searchsorted(runs.row[run], np.arange(batch + 1))
    return [Row(kinds[a:b], grid[a:b], seconds[a:b]) for a, b in itertools.pairwise(cuts)]
