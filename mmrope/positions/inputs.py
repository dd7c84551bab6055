"""The door in for what a Hugging Face processor returns: a batch of tensors, turned into rows of segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmrope.positions.canvases import SIZES, canvas_rows
from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family
from mmrope.positions.runs import (
    T_AUDIO,
    T_IMAGE,
    T_VIDEO,
    RunMedia,
    Runs,
    rows_of,
    with_end_markers_apart,
    with_sound_in_video,
)
from mmrope.positions.segments import MAX_SECONDS, Row, whole_grids
from mmrope.positions.timing import VideoTiming

_GRIDS = {T_IMAGE: "image_grid_thw", T_VIDEO: "video_grid_thw"}
_SECONDS = ("second_per_grid_ts", "video_second_per_grid")
_SOUNDS = ("audio_seqlens", "audio_feature_lengths", "feature_attention_mask")
INPUTS = (  # what is read of a processor's output
    *("input_ids", "attention_mask", "mm_token_type_ids", "images_per_sample"),
    *(*_GRIDS.values(), *_SECONDS, *_SOUNDS, *SIZES.values()),
)
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
            [sounds, frames], `target_sizes` and `target_sizes_videos` [crops, 2]. Other keys are
            left alone. Arrays, lists or CPU tensors.
        family: a Family, or its name. Without `mm_token_type_ids` (processors of transformers 4) media are found by the
            token ids that `family_from_config` reads.
        prompt_lengths: for each row the columns of the prompt; what comes after is generated, and text whatever its ids.
        video_timings: for each video when its frames are shown, instead of seconds per grid.
        sync: copy GPU tensors to the host, all in one transfer, which waits for the GPU.

    Returns:
        One Row per batch row, for `position_ids(rows, family)`. Of processors that also list the grids of images to be made
        (GLM-Image: `images_per_sample` [B]), the rows end with the prompt; to place what is made, append `family.image(grid)`
        of those grids, the last first.

    Raises:
        ValueError: tokens and grids that do not belong together, missing or impossible grids or times, GPU tensors without
            `sync`. The message names the row, the item and its tokens.

    Example:
        >>> from mmrope import position_ids, segments_from_inputs
        >>> inputs = {"input_ids": [[5, 6, 9, 9, 7]], "mm_token_type_ids": [[0, 0, 1, 1, 0]], "image_grid_thw": [[1, 2, 4]]}
        >>> [row] = segments_from_inputs(inputs, "qwen2_vl")
        >>> [(segment.kind, segment.length) for segment in row]
        [('text', 2), ('image', 2), ('text', 1)]
        >>> position_ids(row, "qwen2_vl").ids[2, 0].tolist()  # w
        [0, 1, 2, 3, 4]
    """
    family = find_family(family)
    if not isinstance(inputs, Mapping):
        raise ValueError(f"inputs must be a processor's output (a dict), got {type(inputs).__name__}")
    host = on_host({key: inputs[key] for key in INPUTS if inputs.get(key) is not None}, sync)
    types, mask = _token_types(host, inputs, family)
    if prompt_lengths is not None:
        types = _prompts_only(types, prompt_lengths)
    if "canvas" in family.media:
        _check_canvas_inputs(host, inputs, family, video_timings)
        return canvas_rows(host, types, mask, family)
    runs = Runs.of(types, mask, family)
    if "audio_in_video" in family.media:
        runs = with_sound_in_video(runs, _sound_in_video_by_ids(host["input_ids"], family))
    if family.fractional and family.audio_tokens:
        runs = with_end_markers_apart(runs)
    media = {kind: _media(kind, host, inputs, family, video_timings) for kind in (T_IMAGE, T_VIDEO)}
    media[T_AUDIO] = _sounds(host, inputs, family, runs)
    if family.targets and "images_per_sample" in host:
        media[T_IMAGE] = _without_targets(runs, media[T_IMAGE], host["images_per_sample"], len(types))
    return rows_of(runs, media, family, len(types))


def on_host(given: Mapping[str, Any], sync: bool) -> dict[str, np.ndarray]:
    """Inputs as numpy arrays; from a GPU only when told to, and then all at once."""
    away = {key: value for key, value in given.items() if _is_away(value)}
    if away and not sync:
        raise ValueError(
            f"{', '.join(away)} are on {next(iter(away.values())).device}: reading them waits for the device. Compute "
            "positions from the processor's host tensors, before .to(device), or pass sync=True to copy, once"
        )
    return {key: _array(value, key) for key, value in ({**given, **_copied(away)} if away else given).items()}


def _is_away(value: Any) -> bool:
    return getattr(getattr(value, "device", None), "type", "cpu") != "cpu"


def _copied(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a device on the host, by one transfer of their bytes."""
    import torch

    # the widest first, so that each begins at a multiple of its width
    order = sorted(tensors, key=lambda key: -tensors[key].element_size())
    sizes = [tensors[key].numel() * tensors[key].element_size() for key in order]
    packed = torch.cat([tensors[key].contiguous().reshape(-1).view(torch.uint8) for key in order]).cpu()  # [bytes]
    parts = packed.split(sizes)
    return {key: part.view(tensors[key].dtype).reshape(tensors[key].shape) for key, part in zip(order, parts, strict=True)}


def _array(value: Any, key: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{key} is ragged: pad the rows to one length, or pass them one at a time") from None
    except TypeError:  # numpy has no bfloat16
        array = None
    if array is None or array.dtype == np.float16:
        raise ValueError(
            f"{key} is {getattr(value, 'dtype', type(value).__name__)}, in which neither 0.7 nor 4,097 can be written: pass "
            "what was computed, before .to(dtype)"
        )
    return array


# --- tokens -----------------------------------------------------------------------------------------------------------


def _token_types(
    host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family
) -> tuple[np.ndarray, np.ndarray | None]:
    """The type of each token [B, S], and the attention mask [B, S] of zeros and ones; None where all are ones."""
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
                "family_from_config(model.config) (on the command line --config), which knows the token ids of the media"
            )
        types = np.zeros(ids.shape, dtype=np.int8)
    if types.dtype.kind not in "iu":
        raise ValueError(f"mm_token_type_ids must be whole numbers, got {types.dtype}")
    if mask is not None and (mask == 1).all():
        mask = None
    elif mask is not None and ((mask != 0) & (mask != 1)).any():
        raise ValueError(
            "attention_mask must be 1 at real tokens and 0 at padding; packed sequences (1, 1, 2, 2, ...) and additive "
            "masks (0, -inf) say something else: give rows one by one, each with its own mask"
        )
    return types, mask


def _types_by_ids(ids: np.ndarray, family: Family) -> np.ndarray | None:
    """Token types [B, S] int8 by the ids of the media tokens, where the family knows them."""
    known = family.token_ids
    if known.image is None and known.video is None and known.audio is None:
        return None
    types = np.zeros(ids.shape, dtype=np.int8)
    for kind, token in ((T_IMAGE, known.image), (T_VIDEO, known.video), (T_AUDIO, known.audio)):
        if token is not None:
            types[ids == token] = kind
    if known.video_start is not None and known.video_end is not None:  # GLM writes a video's frames with the image token
        in_video = (ids == known.video_start).cumsum(axis=1) > (ids == known.video_end).cumsum(axis=1)
        types[(types == T_IMAGE) & in_video] = T_VIDEO
    return types


def _prompts_only(types: np.ndarray, prompt_lengths: Sequence[int]) -> np.ndarray:
    lengths = np.asarray(prompt_lengths)
    batch, tokens = types.shape
    if lengths.shape != (batch,) or lengths.dtype.kind not in "iu" or ((lengths < 0) | (lengths > tokens)).any():
        raise ValueError(
            f"prompt_lengths must be {batch} whole numbers from 0 to {tokens}, the columns of each row's prompt, got {lengths}"
        )
    return np.where(np.arange(types.shape[1]) < lengths[:, None], types, 0)


def _sound_in_video_by_ids(ids: np.ndarray, family: Family) -> Callable[[int], bool]:
    """Whether a token of the batch is the first of a video with its sound: the start marker of video, then that of sound."""
    known, flat = family.token_ids, ids.reshape(-1)

    def begins_at(token: int) -> bool:
        if known.vision_start is None or known.audio_start is None:
            raise ValueError(
                f"row {token // ids.shape[1]}: video and audio tokens touch from {token % ids.shape[1]} on. Whether that is "
                "sound in video is seen by the ids of the markers, which family_from_config(model.config) reads (on the "
                "command line --config)"
            )
        return bool(flat[token - 2] == known.vision_start and flat[token - 1] == known.audio_start)

    return begins_at


def _check_canvas_inputs(
    host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family, timings: Sequence[VideoTiming] | None
) -> None:
    other = [key for key in _GRIDS.values() if key in host]
    if other or timings is not None:
        what = ", ".join(other) or "video_timings"
        raise ValueError(
            f"{what} given, but {family} places pictures and frames by {' and '.join(SIZES.values())}, without times"
        )
    for pixels, key in (("pixel_values", SIZES[T_IMAGE]), ("pixel_values_videos", SIZES[T_VIDEO])):
        if inputs.get(pixels) is not None and key not in host:
            raise ValueError(f"inputs have {pixels} but no {key}: the sizes of the media are needed")


# --- media ------------------------------------------------------------------------------------------------------------


def _media(
    kind: int,
    host: Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
    family: Family,
    timings: Sequence[VideoTiming] | None,
) -> RunMedia:
    key, pixels = _GRIDS[kind], "pixel_values" if kind == T_IMAGE else "pixel_values_videos"
    if key not in host:
        if inputs.get(pixels) is not None:
            raise ValueError(f"inputs have {pixels} but no {key}: the sizes of the media are needed")
        if kind == T_VIDEO and timings:
            raise ValueError(f"there are {len(timings)} video_timings, but the inputs have no {key}")
        stated = [name for name in _SECONDS if name in host and host[name].size]
        if kind == T_VIDEO and stated:
            raise ValueError(f"inputs have {stated[0]} but no {key}: the sizes of the videos are needed")
        return RunMedia.of(key)
    grid = family.token_grids(host[key], f"{key} row", video=kind == T_VIDEO)
    if kind == T_VIDEO:
        seconds, times = _video_times(host, whole_grids(host[key], key), family, timings)
        return RunMedia.of(key, grid, seconds=seconds, times=times, split=family.split_frames)
    if grid[:, 0].max(initial=1) > 1:
        i = int(np.argmax(grid[:, 0] != 1))
        raise ValueError(f"{key} row {i} has {grid[i, 0]} temporal grids; an image has one, a video belongs in video_grid_thw")
    return RunMedia.of(key, grid)


def _video_times(
    host: Mapping[str, np.ndarray], patches: np.ndarray, family: Family, timings: Sequence[VideoTiming] | None
) -> tuple[np.ndarray | None, Sequence[tuple[float, ...] | None]]:
    """Seconds per grid [videos], or for each video the times of its grids; nothing where the family has no use for them."""
    keys = [key for key in _SECONDS if key in host]
    if len(keys) > 1:
        raise ValueError(f"inputs have {' and '.join(keys)}: one of them is needed, seconds from one temporal grid to the next")
    seconds = _seconds(host[keys[0]], keys[0], len(patches)) if keys else None
    times: Sequence[tuple[float, ...] | None] = ()
    if timings is not None:
        stated, (seconds, times) = seconds, _times_by_timings(timings, patches, family)
        differ = abs(seconds - stated) > 1e-3 * stated if stated is not None else np.zeros(0)
        if stated is not None and differ.any():
            i = int(np.argmax(differ))
            raise ValueError(
                f"video {i}: {keys[0]} says {stated[i]:g} s a grid, its timing {seconds[i]:g} s: leave one of them out"
            )
    if family.split_frames:
        return None, ()
    if seconds is None and family.uses_seconds and len(patches):
        raise ValueError(
            f"{family} places videos by time, but the inputs have no second_per_grid_ts for {len(patches)} video(s). Pass what "
            "the processor returned, or temporal patch size / sampled frames per second for each video, or video_timings; "
            "there is no default"
        )
    return seconds, times


def _times_by_timings(
    timings: Sequence[VideoTiming], patches: np.ndarray, family: Family
) -> tuple[np.ndarray, list[tuple[float, ...] | None]]:
    """Seconds per grid [videos], NaN of those for which there are times instead."""
    if not isinstance(timings, Sequence) or not all(isinstance(timing, VideoTiming) for timing in timings):
        raise ValueError(f"video_timings must be a list of VideoTiming (VideoTiming.from_metadata makes them), got {timings!r}")
    if len(timings) != len(patches):
        raise ValueError(
            f"there are {len(timings)} video_timings for {len(patches)} video(s) of video_grid_thw: one each is needed"
        )
    stated = [
        family.grid_seconds(timing, int(grid[0]), f"video {i}")
        for i, (timing, grid) in enumerate(zip(timings, patches, strict=True))
    ]
    return np.array([np.nan if s is None else s for s, _ in stated]), [times for _, times in stated]


def _seconds(values: np.ndarray, key: str, videos: int) -> np.ndarray:
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{key} must be numbers of seconds, got {values.dtype}")
    seconds = values.astype(np.float64).reshape(-1)
    if len(seconds) != videos:
        raise ValueError(f"{key} has {len(seconds)} value(s) for {videos} video(s) of video_grid_thw: one each is needed")
    if not ((seconds > 0) & (seconds <= MAX_SECONDS)).all():
        raise ValueError(f"{key} must be positive seconds (at most {MAX_SECONDS:g}), got {seconds.tolist()}")
    return seconds


def _sounds(host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family, runs: Runs) -> RunMedia:
    """The sounds as grids (1, 1, tokens). Where a family counts their tokens like text, a sound is what its run is."""
    key = next((key for key in _SOUNDS if key in host), None)
    if "audio" in family.media and family.audio_tokens is None:
        return RunMedia.sounds("audio tokens", runs.counts(T_AUDIO)[1])
    if key is None:
        if "audio" in family.media and inputs.get("input_features") is not None:
            raise ValueError("inputs have input_features but no feature_attention_mask: the lengths of the sounds are needed")
        return RunMedia.of("feature_attention_mask")
    if family.audio_tokens is None:
        raise ValueError(f"inputs have {key}, but {family} places {', '.join(family.media)} and no audio")
    lengths = _sound_lengths(host[key], key)
    for other in _SOUNDS:
        if other in host and not np.array_equal(_sound_lengths(host[other], other), lengths):
            raise ValueError(f"{key} and {other} disagree on the lengths of the sounds: pass one of them")
    tokens = family.audio_tokens(lengths)
    if (tokens < 1).any():
        i = int(np.argmax(tokens < 1))
        raise ValueError(f"{key}: sound {i} has {lengths[i]} frames, which make no token")
    return RunMedia.sounds(key, tokens)


def _sound_lengths(values: np.ndarray, key: str) -> np.ndarray:
    """Frames of each sound's spectrogram."""
    if values.dtype.kind not in "iub" or (key == "feature_attention_mask" and values.ndim != 2):
        raise ValueError(
            f"{key} must be whole numbers {'[sounds, frames]' if key == 'feature_attention_mask' else '[sounds]'}, "
            f"got {values.dtype} {list(values.shape)}"
        )
    return (values.sum(axis=1) if key == "feature_attention_mask" else values.reshape(-1)).astype(np.int64)


def _without_targets(runs: Runs, media: RunMedia, per_sample: np.ndarray, batch: int) -> RunMedia:
    """The grids of the images in the prompts; those behind them in a sample are of images that are yet to be generated."""
    counts = per_sample.reshape(-1)
    if len(counts) != batch or counts.sum() != len(media.grid):
        raise ValueError(
            f"images_per_sample is {counts.tolist()}, but there are {batch} row(s) and {len(media.grid)} rows of {media.key}"
        )
    if not len(media.grid):
        return media
    mine, held = runs.counts(T_IMAGE)
    there = np.bincount(runs.start[mine] // runs.tokens, weights=held, minlength=batch)
    before = media.tokens.cumsum() - media.tokens
    sample = np.repeat(np.arange(batch), counts)
    first = before[np.minimum(np.cumsum(counts) - counts, len(before) - 1)]
    kept = before - first[sample] < there[sample]
    return RunMedia(media.key, media.grid[kept], media.tokens[kept], media.item[kept])
