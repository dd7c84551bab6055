"""The doors in: what a processor returns, or token ids with placeholder spans, turned into rows of segments.

Every check of inputs is here: tokens and grids that do not belong together are refused, with the row, the item and the
tokens in the message.

tokens -> runs of one type -> media, cut by their grids -> rows
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family
from mmrope.positions.segments import (
    AUDIO,
    AUDIO_IN_VIDEO,
    FRAME,
    IMAGE,
    MAX_SECONDS,
    PAD,
    TEXT,
    VIDEO,
    Row,
    Segment,
    whole_grids,
)
from mmrope.positions.timing import VideoTiming

_PADDING, _TEXT, _IMAGE, _VIDEO, _AUDIO, _BOTH = -1, 0, 1, 2, 3, 4  # as mm_token_type_ids; padding; video with its sound
_NAMES = {_IMAGE: "image", _VIDEO: "video", _AUDIO: "audio"}

_GRIDS = {_IMAGE: "image_grid_thw", _VIDEO: "video_grid_thw"}
_SECONDS = ("second_per_grid_ts", "video_second_per_grid")
_SOUNDS = ("audio_seqlens", "audio_feature_lengths", "feature_attention_mask")
_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", *_GRIDS.values(), *_SECONDS, *_SOUNDS, "images_per_sample")
_MEDIA = ("pixel_values", "pixel_values_videos", "input_features", *_GRIDS.values())


def segments_from_inputs(
    inputs: Mapping[str, Any],
    family: Family | str,
    *,
    prompt_lengths: Sequence[int] | None = None,
    video_timings: Sequence[VideoTiming] | None = None,
    sync: bool = False,
) -> list[Row]:
    """The rows of segments of a Hugging Face processor's batch.

    Args:
        inputs: what the processor returned, with `input_ids` [B, S] and, as far as there are any, `attention_mask` [B, S]
            (padding on any side), `mm_token_type_ids` [B, S] (0 text, 1 image, 2 video, 3 audio; processors of transformers
            5), `image_grid_thw` and `video_grid_thw` [n, 3] in the order of the batch, `second_per_grid_ts` or
            `video_second_per_grid` [videos] in seconds, `audio_seqlens` [sounds] or `feature_attention_mask`
            [sounds, frames], `images_per_sample` [B], `target_sizes` and `target_sizes_videos` [crops, 2]. Other keys are
            left alone. Arrays, lists or CPU tensors.
        family: a Family, or its name. Without `mm_token_type_ids` (processors of transformers 4) media are found by the
            token ids that `family_from_config` reads.
        prompt_lengths: for each row the columns of the prompt; what comes after is generated, and text whatever its ids.
        video_timings: for each video when its frames are shown, instead of seconds per grid.
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
    if "canvas" in family.media:
        from mmrope.positions.canvases import canvas_rows

        return canvas_rows(inputs, family, prompt_lengths=prompt_lengths, sync=sync)
    host = {key: to_host(inputs[key], key, sync) for key in _KEYS if inputs.get(key) is not None}
    types, mask = token_types(host, inputs, family)
    if prompt_lengths is not None:
        types = _prompts_only(types, prompt_lengths)
    runs = _Runs.of(types, mask, family)
    if "audio_in_video" in family.media:
        runs = _with_sound_in_video(runs, host["input_ids"], family)
    if family.fractional and family.audio_tokens:
        runs = _with_end_markers_apart(runs)
    media = {kind: _media(kind, host, inputs, family, video_timings) for kind in (_IMAGE, _VIDEO, _AUDIO)}
    if "images_per_sample" in host:
        media[_IMAGE] = _without_targets(runs, media[_IMAGE], host["images_per_sample"], len(types))
    return _rows(runs, media, family, len(types))


def to_host(value: Any, key: str, sync: bool) -> np.ndarray:
    """An input as a numpy array, copied from a GPU only when told to."""
    device = getattr(value, "device", None)
    if device is not None and getattr(device, "type", "cpu") != "cpu":
        if not sync:
            raise ValueError(
                f"{key} is on {device}: reading it waits for the device. Compute positions from the processor's host tensors, "
                "before .to(device), or pass sync=True to copy"
            )
        value = value.cpu()
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{key} is ragged: pad the rows to one length, or pass them one at a time") from None
    except TypeError:  # numpy has no bfloat16
        array = None
    if array is None or array.dtype == np.float16:
        raise ValueError(
            f"{key} is {getattr(value, 'dtype', type(value).__name__)}, in which 0.7 is no longer 0.7: pass what the processor "
            "returned, before .to(dtype)"
        )
    return array


# --- tokens -----------------------------------------------------------------------------------------------------------


def token_types(
    host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family
) -> tuple[np.ndarray, np.ndarray | None]:
    """The type of each token [B, S], and the attention mask [B, S] if there is one."""
    if "input_ids" not in host:
        raise ValueError("inputs have no input_ids: pass what the processor returned, whole")
    ids, types, mask = host["input_ids"], host.get("mm_token_type_ids"), host.get("attention_mask")
    if ids.ndim != 2:
        raise ValueError(
            f"input_ids must be [batch, tokens], got shape {ids.shape}; a single row needs a leading dimension of 1"
        )
    for key in ("mm_token_type_ids", "attention_mask"):
        if key in host and host[key].shape != ids.shape:
            raise ValueError(f"{key} has shape {host[key].shape}, input_ids {ids.shape}: they must be the same")
    if types is None:
        types = _types_by_ids(ids, family)
    if types is None:
        given = [key for key in _MEDIA if inputs.get(key) is not None]
        if given:
            raise ValueError(
                f"inputs have {', '.join(given)} but no mm_token_type_ids, which say where the media are. Processors of "
                "transformers 5 return them (return_mm_token_type_ids=True); for those of transformers 4 take the family from "
                "family_from_config(model.config), which knows the token ids of the media"
            )
        types = np.zeros(ids.shape, dtype=np.int8)
    return types, mask


def _types_by_ids(ids: np.ndarray, family: Family) -> np.ndarray | None:
    """Token types [B, S] int8 by the ids of the media tokens, where the family knows them."""
    known = family.token_ids
    if known.image is None and known.video is None and known.audio is None:
        return None
    types = np.zeros(ids.shape, dtype=np.int8)
    for kind, token in ((_IMAGE, known.image), (_VIDEO, known.video), (_AUDIO, known.audio)):
        if token is not None:
            types[ids == token] = kind
    if known.video_start is not None and known.video_end is not None:  # GLM writes a video's frames with the image token
        in_video = (ids == known.video_start).cumsum(axis=1) > (ids == known.video_end).cumsum(axis=1)
        types[(types == _IMAGE) & in_video] = _VIDEO
    return types


def _prompts_only(types: np.ndarray, prompt_lengths: Sequence[int]) -> np.ndarray:
    lengths = np.asarray(prompt_lengths)
    if lengths.shape != (len(types),) or lengths.dtype.kind not in "iu":
        raise ValueError(f"prompt_lengths must be {len(types)} whole numbers, the columns of each row's prompt, got {lengths}")
    return np.where(np.arange(types.shape[1]) < lengths[:, None], types, 0)


@dataclass(frozen=True, eq=False)
class _Runs:
    """The longest stretches of one token type in each row, in the order of the batch."""

    type: np.ndarray  # [n]
    start: np.ndarray  # [n], token of the batch
    length: np.ndarray  # [n]
    tokens: int
    """Tokens of each row."""
    sound: Mapping[int, tuple[int, ...]]
    """For a run of video with its sound: so many tokens of the video, of its sound, of the video, ..."""

    @classmethod
    def of(cls, types: np.ndarray, mask: np.ndarray | None, family: Family) -> _Runs:
        batch, tokens = types.shape
        flat = np.ascontiguousarray(types).reshape(-1)
        changes = flat[1:] != flat[:-1]
        if mask is not None:
            mask = np.ascontiguousarray(mask).reshape(-1)
            masks = mask[1:] != mask[:-1]
            if masks.any():
                changes |= masks
            elif mask.size and mask[0] == 1:
                mask = None
        if batch > 1 and tokens:
            changes[tokens - 1 :: tokens] = True
        inner = changes.nonzero()[0]
        start = np.zeros(len(inner) + bool(flat.size), dtype=np.int64)
        start[1:] = inner
        start[1:] += 1
        length = np.empty_like(start)
        length[:-1] = inner + 1
        length[-1:] = flat.size
        length -= start
        kind = flat[start]
        known = range(_AUDIO + 1 if "audio" in family.media else _VIDEO + 1)
        if kind.size and (kind.min() < 0 or kind.max() >= len(known)):
            names = ", ".join(f"{n} ({('text', 'image', 'video', 'audio')[n]})" for n in known)
            raise ValueError(f"mm_token_type_ids holds {sorted(set(kind.tolist()))}; {family} knows {names}")
        if mask is not None:
            kind = cls._masked(kind, mask[start])
        return cls(kind, start, length, tokens, {})

    @staticmethod
    def _masked(kind: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if ((mask != 0) & (mask != 1)).any():
            raise ValueError(
                "attention_mask must be 1 at real tokens and 0 at padding; packed sequences (1, 1, 2, 2, ...) and additive "
                "masks (0, -inf) say something else: give rows one by one, each with its own mask"
            )
        return np.where(mask == 0, _PADDING, kind)

    def counts(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """The runs that hold media of this kind, and how many of their tokens are its."""
        if not self.sound or kind == _IMAGE:
            mine = (self.type == kind).nonzero()[0]
            return mine, self.length[mine]
        mine = ((self.type == kind) | (self.type == _BOTH)).nonzero()[0]
        part = slice(0, None, 2) if kind == _VIDEO else slice(1, None, 2)
        held = [sum(self.sound[i][part]) if i in self.sound else int(self.length[i]) for i in mine.tolist()]
        return mine, np.array(held, dtype=np.int64)

    def at(self, run: int, name: str) -> str:
        """A run of media for messages."""
        row, start = divmod(int(self.start[run]), self.tokens)
        length = int(self.length[run])
        return f"row {row}: the {length} {name} tokens at {start}..{start + length - 1}"


def _with_sound_in_video(runs: _Runs, ids: np.ndarray, family: Family) -> _Runs:
    """Where a video's start marker is followed by a sound's, the two are interleaved up to the end markers: one run, with the
    two markers before it and the two after."""
    same_row = runs.start[1:] % max(runs.tokens, 1) != 0
    touches = ((runs.type[1:] >= _VIDEO) & (runs.type[:-1] >= _VIDEO) & same_row).tolist()  # run n and run n + 1
    if not any(touches):
        return runs
    known, flat = family.token_ids, ids.reshape(-1)
    if known.vision_start is None or known.audio_start is None:
        raise ValueError(
            f"{runs.at(touches.index(True), 'video')} touch audio tokens: whether that is sound in video is seen by the ids of the "
            "markers, which family_from_config(model.config) reads"
        )
    kind, start, length = runs.type.tolist(), runs.start.tolist(), runs.length.tolist()
    merged: list[tuple[int, int, int]] = []
    sound: dict[int, tuple[int, ...]] = {}
    i = 0
    while i < len(kind):
        j = i
        while j < len(touches) and touches[j]:
            j += 1
        begin, end = start[i], start[j] + length[j]
        marked = begin % runs.tokens >= 2 and flat[begin - 2] == known.vision_start and flat[begin - 1] == known.audio_start
        if j == i or not marked:
            merged += [(kind[n], start[n], length[n]) for n in range(i, j + 1) if length[n]]
        else:
            if -end % runs.tokens < 2 or kind[j + 1] != _TEXT:
                raise ValueError(f"{runs.at(i, 'video')} and their sound end without two end markers; was the row truncated?")
            last_kind, last_start, last_length = merged.pop()
            if last_length > 2:
                merged.append((last_kind, last_start, last_length - 2))
            sound[len(merged)] = tuple(length[i : j + 1]) if kind[i] == _VIDEO else (0, *length[i : j + 1])
            merged.append((_BOTH, begin - 2, end + 2 - (begin - 2)))
            start[j + 1], length[j + 1] = start[j + 1] + 2, length[j + 1] - 2
        i = j + 1
    kinds, starts, lengths = (np.array(column) for column in zip(*merged, strict=True))
    return _Runs(kinds, starts, lengths, runs.tokens, sound)


def _with_end_markers_apart(runs: _Runs) -> _Runs:
    """The token after media as a run of its own. Fractional ids are rounded at every step, and upstream counts the end marker
    by itself: as one with the text after it, ids would differ in the last bit."""
    after = (runs.type[1:] == _TEXT) & (runs.type[:-1] >= _IMAGE) & (runs.type[:-1] != _BOTH)
    split = np.flatnonzero(after & (runs.start[1:] % max(runs.tokens, 1) != 0) & (runs.length[1:] > 1)) + 1
    length, start = runs.length.copy(), runs.start.copy()
    length[split] -= 1
    start[split] += 1
    shifted = {run + int((split <= run).sum()): lie for run, lie in runs.sound.items()}
    return _Runs(
        np.insert(runs.type, split, _TEXT),
        np.insert(start, split, runs.start[split]),
        np.insert(length, split, 1),
        runs.tokens,
        shifted,
    )


# --- media ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Media:
    """The images, the videos or the sounds of a batch as token grids; a family that splits frames has one grid a frame."""

    key: str
    grid: np.ndarray  # [n, 3]
    tokens: np.ndarray  # [n], of a grid and its markers
    item: np.ndarray  # [n], the row of the processor's grids that it came from
    seconds: np.ndarray | None = None  # [n]
    times: Sequence[tuple[float, ...] | None] = ()
    """Of each video, where they are stated one by one."""

    def which(self, i: int, name: str) -> str:
        """Grid i for messages."""
        frame = i - int(np.searchsorted(self.item, self.item[i]))
        split = len(self.item) > 1 and (self.item == self.item[i]).sum() > 1
        return f"{name} {self.item[i]}" + (f", frame {frame}" if split else "")

    @property
    def items(self) -> int:
        """Rows of the processor's grids."""
        return int(self.item[-1]) + 1 if len(self.item) else 0


_NONE, _NO_GRIDS = np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.int64)


def _media(
    kind: int,
    host: Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
    family: Family,
    timings: Sequence[VideoTiming] | None,
) -> _Media:
    if kind == _AUDIO:
        return _sounds(host, inputs, family)
    key, pixels = _GRIDS[kind], "pixel_values" if kind == _IMAGE else "pixel_values_videos"
    if key not in host:
        if inputs.get(pixels) is not None:
            raise ValueError(f"inputs have {pixels} but no {key}: the sizes of the media are needed")
        if kind == _VIDEO and timings:
            raise ValueError(f"there are {len(timings)} video_timings, but the inputs have no {key}")
        return _Media(key, _NO_GRIDS, _NONE, _NONE)
    patches = host[key]
    grid = family.token_grids(patches, f"{key} row", video=kind == _VIDEO)
    if kind == _IMAGE:
        if grid[:, 0].max(initial=1) > 1:
            i = int(np.argmax(grid[:, 0] != 1))
            raise ValueError(f"{key} row {i} has {grid[i, 0]} temporal grids; an image has one, a video belongs in video_grid_thw")
        return _Media(key, grid, grid.prod(axis=1), np.arange(len(grid)))
    if family.split_frames:
        item = np.repeat(np.arange(len(grid)), grid[:, 0])
        _check_timings(timings, whole_grids(patches, key), family)
        grid = grid[item]
        grid[:, 0] = 1
        return _Media(key, grid, grid.prod(axis=1), item)
    seconds, times = _video_times(host, whole_grids(patches, key), family, timings)
    return _Media(key, grid, grid.prod(axis=1), np.arange(len(grid)), seconds, times)


def _check_timings(timings: Sequence[VideoTiming] | None, patches: np.ndarray, family: Family) -> list[Any]:
    """For each video its seconds per grid and times, by its timing."""
    if timings is None:
        return []
    if len(timings) != len(patches):
        raise ValueError(f"there are {len(timings)} video_timings for {len(patches)} video(s) of video_grid_thw: one each is needed")
    return [family.grid_seconds(t, int(g[0]), f"video {i}") for i, (t, g) in enumerate(zip(timings, patches, strict=True))]


def _video_times(
    host: Mapping[str, np.ndarray], patches: np.ndarray, family: Family, timings: Sequence[VideoTiming] | None
) -> tuple[np.ndarray | None, Sequence[tuple[float, ...] | None]]:
    if timings is not None:
        stated = _check_timings(timings, patches, family)
        seconds = np.array([np.nan if s is None else s for s, _ in stated], dtype=np.float64)
        return seconds, [times for _, times in stated]
    key = next((key for key in _SECONDS if key in host), None)
    if key is not None:
        return _seconds(host[key], key, len(patches)), ()
    if family.uses_seconds and len(patches):
        raise ValueError(
            f"{family} places videos by time, but the inputs have no second_per_grid_ts for {len(patches)} video(s). Pass what "
            "the processor returned, or temporal patch size / sampled frames per second for each video, or video_timings; "
            "there is no default"
        )
    return None, ()


def _seconds(values: np.ndarray, key: str, videos: int) -> np.ndarray:
    seconds = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(seconds) != videos:
        raise ValueError(f"{key} has {len(seconds)} value(s) for {videos} video(s) of video_grid_thw: one each is needed")
    if not ((seconds > 0) & (seconds <= MAX_SECONDS)).all():
        raise ValueError(f"{key} must be positive seconds (at most {MAX_SECONDS:g}), got {seconds.tolist()}")
    return seconds


def _sounds(host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family) -> _Media:
    """The sounds as grids (1, 1, tokens)."""
    key = next((key for key in _SOUNDS if key in host), None)
    if key is None:
        if "audio" in family.media and inputs.get("input_features") is not None:
            raise ValueError("inputs have input_features but no feature_attention_mask: the lengths of the sounds are needed")
        return _Media("feature_attention_mask", _NO_GRIDS, _NONE, _NONE)
    if family.audio_tokens is None:
        raise ValueError(f"inputs have {key}, but how many tokens {family} makes of a sound is not known: it takes none")
    lengths = host[key].sum(axis=-1) if key == "feature_attention_mask" else host[key].reshape(-1)
    tokens = family.audio_tokens(np.asarray(lengths, dtype=np.int64))
    if (tokens < 1).any():
        i = int(np.argmax(tokens < 1))
        raise ValueError(f"{key}: sound {i} has {lengths[i]} frames, which make no token")
    grid = np.ones((len(tokens), 3), dtype=np.int64)
    grid[:, 2] = tokens
    return _Media(key, grid, tokens, np.arange(len(tokens)))


def _without_targets(runs: _Runs, media: _Media, per_sample: np.ndarray, batch: int) -> _Media:
    """The grids of the images in the prompts; those behind them in a sample are of images that are yet to be generated."""
    counts = per_sample.reshape(-1)
    if len(counts) != batch or counts.sum() != len(media.grid):
        raise ValueError(
            f"images_per_sample is {counts.tolist()}, but there are {batch} row(s) and {len(media.grid)} rows of {media.key}"
        )
    mine, held = runs.counts(_IMAGE)
    there = np.bincount(runs.start[mine] // runs.tokens, weights=held, minlength=batch)
    before = media.tokens.cumsum() - media.tokens
    sample = np.repeat(np.arange(batch), counts)
    first = before[np.minimum(np.cumsum(counts) - counts, len(before) - 1)]
    kept = before - first[sample] < there[sample]
    return _Media(media.key, media.grid[kept], media.tokens[kept], media.item[kept])


@dataclass(frozen=True, eq=False)
class _Cut:
    """How the runs that hold media of a kind are cut into grids."""

    runs: np.ndarray
    grids: np.ndarray | None = None
    """Grids in each of these runs; None for one in each, without markers."""
    markers: int = 0
    """Tokens around each grid that are placed like text."""


def _cut(runs: _Runs, media: _Media, kind: int, family: Family) -> _Cut:
    """Cuts the runs of media by the sizes of their grids, so a run must end where a grid ends.

    Media may touch: what counts is that each run's end, in media tokens of the whole batch, is the end of a grid.
    """
    mine, held = runs.counts(kind)
    tokens, markers = media.tokens, 0
    if family.markers and kind == _IMAGE and held.sum() == tokens.sum() + family.markers * len(tokens):
        tokens, markers = tokens + family.markers, family.markers
    if not markers and len(held) == len(tokens) and (held == tokens).all():
        return _Cut(mine)
    name = _NAMES[kind]
    run_ends, grid_ends = np.cumsum(held), np.cumsum(tokens)
    fits = np.isin(run_ends, grid_ends)
    if not fits.all():
        j = int(np.argmin(fits))
        at = runs.at(mine[j], name)
        i = int(np.searchsorted(grid_ends, run_ends[j]))  # the grid that passes the run's end
        if i == len(grid_ends):
            raise ValueError(
                f"{at} are more than the {media.items} grid(s) of {media.key} have room for; "
                f"is a row of {media.key} missing, or did a {name} token get into the text? (Of generated tokens say so with "
                "prompt_lengths)"
            )
        before = int(grid_ends[i] - tokens[i]) - int(run_ends[j] - held[j])  # tokens of this run that earlier grids take
        raise ValueError(
            f"{at} do not fit their grids: {media.which(i, name)} needs {tokens[i]} tokens "
            f"({_size(media.grid[i], kind, family)}), but {held[j] - before} are left for it. "
            f"Was the row truncated through the {name}, or made with another size?"
        )
    used = int(np.searchsorted(grid_ends, run_ends[-1] if len(run_ends) else 0, side="right"))
    if used < len(tokens):
        raise ValueError(
            f"{media.key} has {media.items} row(s), but the {name} tokens end before {media.which(used, name)}, "
            "which has none. Pass the grids of exactly these rows, in their order"
        )
    return _Cut(mine, np.bincount(np.searchsorted(run_ends, grid_ends), minlength=len(mine)), markers)


def _size(grid: np.ndarray, kind: int, family: Family) -> str:
    t, h, w = grid.tolist()
    if kind == _AUDIO:
        return f"by {family}'s audio encoder"
    return f"{t} x {h} x {w} after merge {family.spatial_merge}" + (", with a token at each row's end" if family.row_token else "")


# --- rows -------------------------------------------------------------------------------------------------------------


_KIND_OF_TYPE = np.array([TEXT, IMAGE, VIDEO, AUDIO, AUDIO_IN_VIDEO, PAD], dtype=np.int8)  # by token type; -1 is the last


def _rows(runs: _Runs, media: Mapping[int, _Media], family: Family, batch: int) -> list[Row]:
    """One segment for each run of text or padding, and one for each grid in a run of media; then cut into rows."""
    cuts = {kind: _cut(runs, items, kind, family) for kind, items in media.items()}
    if any(cut.grids is not None for cut in cuts.values()):
        return _rows_of_touching_media(runs, media, cuts, family, batch)
    kinds = _KIND_OF_TYPE[runs.type]
    grid = np.empty((len(kinds), 3), dtype=np.int64)
    grid[:, :2], grid[:, 2] = 1, runs.length
    seconds = np.full(len(kinds), np.nan)
    special = _special_of_sound(runs, media, cuts) if runs.sound else {}
    for kind, items in media.items():
        mine = cuts[kind].runs
        if not len(mine):
            continue
        grid[mine] = items.grid
        if items.seconds is not None:
            seconds[mine] = items.seconds
        for i, times in zip(mine.tolist(), items.times, strict=False):
            if times is not None and i not in special:
                special[i] = Segment("video", tuple(grid[i].tolist()), None, times)
    for i in runs.sound:
        grid[i] = 1, 1, special[i].length
    if family.split_frames:
        kinds[kinds == VIDEO] = FRAME
    if batch == 1:
        return [Row(kinds, grid, seconds, tuple(special.items()))]
    edges = runs.start.searchsorted(np.arange(batch + 1) * runs.tokens).tolist()
    return [
        Row(kinds[a:b], grid[a:b], seconds[a:b], tuple((i - a, s) for i, s in special.items() if a <= i < b))
        for a, b in itertools.pairwise(edges)
    ]


def _special_of_sound(runs: _Runs, media: Mapping[int, _Media], cuts: Mapping[int, _Cut]) -> dict[int, Segment]:
    """The segments of videos with their sound."""
    videos, sounds = media[_VIDEO], media[_AUDIO]
    video_of, sound_of = ({run: n for n, run in enumerate(cuts[kind].runs.tolist())} for kind in (_VIDEO, _AUDIO))
    found = {}
    for run, lie in runs.sound.items():
        video, sound = video_of[run], sound_of[run]
        times = videos.times[video] if len(videos.times) else None
        seconds = None if videos.seconds is None or times is not None else float(videos.seconds[video])
        grid = tuple(videos.grid[video].tolist())
        found[run] = Segment("audio_in_video", grid, seconds, times, audio_tokens=int(sounds.tokens[sound]), runs=lie)
    return found


def _rows_of_touching_media(
    runs: _Runs, media: Mapping[int, _Media], cuts: Mapping[int, _Cut], family: Family, batch: int
) -> list[Row]:
    """The same where a run holds several grids, or a grid has markers around it: segment by segment."""
    held: dict[tuple[int, int], int] = {}
    for kind, cut in cuts.items():
        grids = [1] * len(cut.runs) if cut.grids is None else cut.grids.tolist()
        held |= {(kind, run): n for run, n in zip(cut.runs.tolist(), grids, strict=True)}
    special = _special_of_sound(runs, media, cuts) if runs.sound else {}
    used = dict.fromkeys(media, 0)
    rows: list[list[Segment]] = [[] for _ in range(batch)]
    columns = runs.type.tolist(), runs.start.tolist(), runs.length.tolist()
    for run, (kind, start, length) in enumerate(zip(*columns, strict=True)):
        row = rows[start // runs.tokens]
        if run in special:
            row.append(special[run])
            used[_VIDEO], used[_AUDIO] = used[_VIDEO] + 1, used[_AUDIO] + 1
        elif kind in (_TEXT, _PADDING):
            row.append(Segment.text(length) if kind == _TEXT else Segment.pad(length))
        else:
            marker = [Segment.text(cuts[kind].markers // 2)] if cuts[kind].markers else []
            for n in range(used[kind], used[kind] + held[kind, run]):
                row += [*marker, _segment(media[kind], n, kind, family), *marker]
            used[kind] += held[kind, run]
    return [Row.of(row) for row in rows]


def _segment(media: _Media, n: int, kind: int, family: Family) -> Segment:
    grid = tuple(media.grid[n].tolist())
    if kind == _VIDEO and not family.split_frames:
        times = media.times[n] if len(media.times) else None
        return Segment("video", grid, None if media.seconds is None or times else float(media.seconds[n]), times)
    return Segment({_IMAGE: "image", _VIDEO: "frame", _AUDIO: "audio"}[kind], grid)
