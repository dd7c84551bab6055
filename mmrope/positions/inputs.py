"""The entry points: what a processor returned, or the placeholder spans that a server keeps, to rows of segments.

Both make runs of it, stretches of tokens of one type, and for each kind of media a queue of its grids, in the order of the
batch. `_rows` then walks over the runs and takes from the queues what each holds. Every check of inputs stands here, once: what
does not belong together is refused with the row, the item and its tokens in the message.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmrope.positions.families import READING_KEYS
from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family, Reading, Run
from mmrope.positions.segments import MEDIA, Item, Row, add_frame, text, token_mask, whole_grid
from mmrope.positions.stated import numbers, several, whole
from mmrope.positions.timing import VideoTiming, check_seconds, no_clock, one_clock
from mmrope.records import shown

_SECONDS = ("second_per_grid_ts", "video_second_per_grid")
_GRIDS = {kind: MEDIA[kind].grids for kind in ("image", "video")}
_TYPE_OF = {kind.name: kind.token_type for kind in MEDIA.values()}
_KIND_OF = {kind.token_type: kind.name for kind in MEDIA.values()}
_PADDING, _TEXT = -1, 0
_TYPES = {_TEXT, *_KIND_OF}
_TYPES_WITHOUT_AUDIO, _ALL_TYPES = _TYPES - {_TYPE_OF["audio"]}, _TYPES | {_PADDING}
INPUTS = (
    *("input_ids", "attention_mask", "mm_token_type_ids", "images_per_sample"),
    *(*_GRIDS.values(), *_SECONDS, *READING_KEYS),
)
"""What is read of a processor's output, besides what readings of others read."""
_KEYS_OF = {
    "image": {MEDIA["image"].pixels, _GRIDS["image"]},
    "video": {MEDIA["video"].pixels, _GRIDS["video"], *_SECONDS},
    "audio": {MEDIA["audio"].pixels, *READING_KEYS},
}


# --- a processor's output ---------------------------------------------------------------------------------------------


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
            `video_second_per_grid` [videos] in seconds, `audio_seqlens` [audios] or `feature_attention_mask`
            [audios, frames], `target_sizes` and `target_sizes_videos` [crops, 2]. Other keys are
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
    family = family if isinstance(family, Family) else find_family(family)
    if not isinstance(inputs, Mapping):
        raise ValueError(f"inputs must be a processor's output (a dict), got {type(inputs).__name__}")
    if not (
        video_timings is None
        or (isinstance(video_timings, Sequence) and all(isinstance(timing, VideoTiming) for timing in video_timings))
    ):
        raise ValueError(
            f"video_timings must be a list of VideoTiming (VideoTiming.from_metadata makes them), got {shown(video_timings)}"
        )
    reading = family.reading
    special = type(reading) is not Reading
    keys = dict.fromkeys((*INPUTS, *reading.keys)) if special else INPUTS
    host = on_host({key: value for key in keys if (value := inputs.get(key)) is not None}, sync)
    types, mask = _token_types(host, inputs, family, prompt_lengths)
    batch, tokens = types.shape
    if special:
        rows = reading.rows(host, inputs, types, mask, family, timed=video_timings is not None)
        if rows is not None:
            return rows
    runs = _runs(types, mask, family)
    if special:
        runs = reading.joined(runs, reading.begins_by_ids(host["input_ids"], family), tokens, family)
    held = {kind for kind, _, _ in runs}
    held |= _TYPES if not held <= _ALL_TYPES else set()  # a run of several kinds
    queues = {}
    for kind, keys in _KEYS_OF.items():
        if _TYPE_OF[kind] in held or not keys.isdisjoint(inputs) or (kind == "video" and video_timings):
            if kind == "image":
                queues[kind] = _images(host, inputs, family, runs, types.shape)
            elif kind == "video":
                queues[kind] = _videos(host, inputs, family, video_timings)
            else:
                queues[kind] = _audio(host, inputs, family)
    return _rows(runs, queues, family, batch, tokens)


def on_host(given: Mapping[str, Any], sync: bool) -> dict[str, np.ndarray]:
    """Inputs as numpy arrays; from a GPU only when told to, and then all at once."""
    away = {key: value for key, value in given.items() if type(value) is not np.ndarray and _is_away(value)}
    if away and not sync:
        raise ValueError(
            f"{', '.join(away)} are on {next(iter(away.values())).device}: reading them waits for the device. Compute "
            "positions from the processor's host tensors, before .to(device), or pass sync=True to copy, once"
        )
    return {key: _array(value, key) for key, value in ({**given, **_copied(away)} if away else given).items()}


def _is_away(value: Any) -> bool:
    return not getattr(value, "is_cpu", True)  # which tensors alone have


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
        array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)  # a tensor, in half the time
    except ValueError:
        raise ValueError(f"{key} is ragged: pad the rows to one length, or pass them one at a time") from None
    except TypeError:  # numpy has no bfloat16
        array = None
    if array is None or array.dtype.char == "e":  # float16
        raise ValueError(
            f"{key} is {getattr(value, 'dtype', type(value).__name__)}, in which neither 0.7 nor 4,097 can be written: pass "
            "what was computed, before .to(dtype)"
        )
    return array


# --- tokens -----------------------------------------------------------------------------------------------------------


def _token_types(
    host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family, prompt_lengths: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The type of each token [B, S], and the attention mask [B, S] as bool; None where all tokens are real."""
    if "input_ids" not in host:
        raise ValueError("inputs have no input_ids: pass what the processor returned, whole")
    ids, types = host["input_ids"], host.get("mm_token_type_ids")
    if ids.dtype.kind not in "iu" and ids.size:
        raise ValueError(f"input_ids must be whole numbers, got {ids.dtype}: pass what the processor returned, not text")
    if ids.ndim != 2 or not len(ids):
        raise ValueError(
            f"input_ids must be [batch, tokens], got shape {ids.shape}; a single row needs a leading dimension of 1, and a "
            "batch has at least one"
        )
    mask = token_mask(host["attention_mask"], ids.shape, "attention_mask") if "attention_mask" in host else None
    if types is not None and types.shape != ids.shape:
        raise ValueError(f"mm_token_type_ids has shape {types.shape}, input_ids {ids.shape}: they must be the same")
    if types is not None and types.dtype.kind not in "iu":
        raise ValueError(f"mm_token_type_ids must be whole numbers, got {types.dtype}")
    by_ids = _types_by_ids(ids, family)
    if types is None and by_ids is None:
        if given := [
            key for key in (*(kind.pixels for kind in MEDIA.values()), *_GRIDS.values()) if inputs.get(key) is not None
        ]:
            raise ValueError(
                f"inputs have {', '.join(given)} but no mm_token_type_ids, which say where the media are. Processors of "
                "transformers 5 return them (return_mm_token_type_ids=True); for those of transformers 4 take the family from "
                "family_from_config(model.config) (on the command line --config), which knows the token ids of the media"
            )
        types = np.zeros(ids.shape, dtype=np.int8)
    elif types is None:
        types, by_ids = by_ids, None
    assert types is not None
    if prompt_lengths is not None:
        prompts = _prompts(prompt_lengths, ids.shape)
        types, by_ids = np.where(prompts, types, _TEXT), None if by_ids is None else np.where(prompts, by_ids, _TEXT)
    if by_ids is not None:
        _check_agreement(types, by_ids, ids, mask, family)
    return types, mask


def _types_by_ids(ids: np.ndarray, family: Family) -> np.ndarray | None:
    """Token types [B, S] by the ids of the media tokens, where the family knows any."""
    known = family.checkpoint.token_ids
    tokens = {number: token for kind, number in _TYPE_OF.items() if (token := getattr(known, kind)) is not None}
    if not tokens:
        return None
    found = np.zeros(ids.shape, dtype=np.int8)
    for kind, token in tokens.items():
        found[ids == token] = kind
    if known.video_start is not None and known.video_end is not None:  # GLM writes a video's frames with the image token
        in_video = (ids == known.video_start).cumsum(axis=1) > (ids == known.video_end).cumsum(axis=1)
        found[(found == _TYPE_OF["image"]) & in_video] = _TYPE_OF["video"]
    return found


def _check_agreement(types: np.ndarray, by_ids: np.ndarray, ids: np.ndarray, mask: np.ndarray | None, family: Family) -> None:
    """Refuses token types that are not those of the token ids: padded on the other side, say."""
    differ = types != by_ids
    if family.reading.markers:  # a run may hold the markers around an image, whose ids are others
        differ &= by_ids != _TEXT
    elif family.checkpoint.token_ids.video_start is not None:  # by which images and videos are told apart, if they are there
        differ = (types == _TEXT) != (by_ids == _TEXT)
    for name, kind in _TYPE_OF.items():
        if getattr(family.checkpoint.token_ids, name) is None:  # ids do not tell
            differ &= (types != kind) | (by_ids != _TEXT)
    differ = differ if mask is None else differ & mask
    if differ.any():
        row, token = (int(i) for i in np.unravel_index(int(np.argmax(differ)), differ.shape))
        names = {_TEXT: "text", **_KIND_OF}
        raise ValueError(
            f"row {row}, token {token}: mm_token_type_ids say {names.get(int(types[row, token]), types[row, token])}, but its "
            f"id, {ids[row, token]}, is of {names[int(by_ids[row, token])]} in {family}'s checkpoint. Were they padded on "
            "different sides, or cut at different places?"
        )


def _prompts(prompt_lengths: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """[B, S] whether a token is of its row's prompt."""
    (batch, tokens), lengths = (
        shape,
        numbers(
            prompt_lengths,
            "prompt_lengths",
            "iu",
            asked=f"{shape[0]} whole numbers from 0 to {shape[1]}, the columns of each row's prompt",
        ),
    )
    if lengths.shape != (batch,) or ((lengths < 0) | (lengths > tokens)).any():
        raise ValueError(
            f"prompt_lengths must be {batch} whole numbers from 0 to {tokens}, the columns of each row's prompt, got {lengths}"
        )
    return np.arange(tokens) < lengths[:, None]


def _runs(types: np.ndarray, mask: np.ndarray | None, family: Family) -> list[Run]:
    """The stretches of one token type in each row, in the order of the batch; together they are all its tokens."""
    batch, tokens = types.shape
    flat, real = types.reshape(-1), None if mask is None else mask.reshape(-1)  # [B S]
    if not flat.size:
        return []
    changes = flat[1:] != flat[:-1]
    if real is not None:
        changes |= real[1:] != real[:-1]
    if batch > 1:
        changes[tokens - 1 :: tokens] = True
    starts = changes.nonzero()[0] + 1  # [runs - 1], of all but the first
    begins, kinds = [0, *starts.tolist()], [flat[0].item(), *flat[starts].tolist()]
    held, known = set(kinds), _TYPES if "audio" in family.media else _TYPES_WITHOUT_AUDIO
    if not held <= known:
        names = ", ".join(f"{n} ({_KIND_OF.get(n, 'text')})" for n in sorted(known))
        raise ValueError(f"mm_token_type_ids holds {sorted(held)}; {family} knows {names}")
    if real is not None:
        kinds = [kind if is_real else _PADDING for kind, is_real in zip(kinds, real[begins].tolist(), strict=True)]
    return list(zip(kinds, begins, [*begins[1:], flat.size], strict=True))


# --- media ------------------------------------------------------------------------------------------------------------


class _Queue:
    """The grids of a kind of media, handed out in the order of the batch; a family that splits frames takes frame by frame."""

    def __init__(
        self,
        kind: str,
        key: str,
        grids: Sequence[tuple[int, int, int]] = (),
        times: Sequence[Any] = (),
        *,
        family: Family,
        whole_runs: bool = False,
    ) -> None:
        """`times` are each video's seconds per grid or the times of its grids; of `whole_runs`, a run is what its length is."""
        self.kind, self.key, self.grids, self.times, self.family = kind, key, grids, times, family
        self.whole_runs, self.splits = whole_runs, kind == "video" and family.split_frames
        self.item = self.frame = 0
        self.marked: Iterator[int] = itertools.repeat(0)

    def take(self, items: list[Item], tokens: int, at: str | tuple[int, int, int]) -> None:
        """Appends what a run of so many tokens holds; `at` is the run for messages, or its type, first token and row length."""
        if self.whole_runs:
            items.append((self.kind, (1, 1, tokens), tokens, None))
            return
        left, markers = tokens, next(self.marked)
        around = markers // 2
        while left:
            if self.item == len(self.grids):
                raise ValueError(
                    f"{_where(at, tokens)} are more than the {len(self.grids)} grid(s) of {self.key} have room for; is a row "
                    f"of {self.key} missing, or did a {self.kind} token get into the text? (Of generated tokens say so with "
                    "prompt_lengths)"
                )
            t, h, w = grid = self.grids[self.item]
            n = h * w if self.splits else t * h * w
            if n + markers > left:
                raise ValueError(
                    f"{_where(at, tokens)} do not fit their grids: {self._which()} needs {n} tokens ({self._size()}), but "
                    f"{left} are left for it. Was the row truncated through the {self.kind}, or made with another size?"
                )
            left -= n + markers
            if self.splits:
                add_frame(items, (1, h, w))
                self.frame += 1
                if self.frame < t:
                    continue
            elif markers:
                items += [text(around), (self.kind, grid, n, None), text(markers - around)]
            else:
                items.append((self.kind, grid, n, self.times[self.item] if self.times else None))
            self.item, self.frame = self.item + 1, 0

    def alike(self, items: list[Item], runs: Sequence[Run], i: int, edge: int) -> int:
        """Takes, from run i on, the video's frames that are as the last one and equally far apart, as one item with it; returns
        the run behind them. The row ends at `edge`."""
        kind, (count, h, w), tokens, between = items[-1]
        n, taken = h * w, 0
        frames = self.grids[self.item][0] if self.frame else 0  # none are left of it behind its last
        while self.frame + taken < frames and i + 1 < len(runs):
            (gap_kind, start, end), (next_kind, _, stop) = runs[i], runs[i + 1]
            if (gap_kind, next_kind) != (_TEXT, _TYPE_OF["video"]) or stop > edge or stop - end != n:
                break
            if kind == "frame":
                kind, between = "frames", end - start
            elif end - start != between:
                break
            taken, i = taken + 1, i + 2
        if taken:
            items[-1] = (kind, (count + taken, h, w), tokens + taken * (n + between), between)
            self.frame += taken
            if self.frame == frames:
                self.item, self.frame = self.item + 1, 0
        return i

    def one(self, tokens: int, where: str) -> tuple[tuple[int, int, int], Any]:
        """The next grid, whose tokens these are, and its time."""
        items: list[Item] = []
        self.take(items, tokens, where)
        if len(items) != 1:
            raise ValueError(
                f"{where} hold {len(items)} grids of {self.kind}, but are one {self.kind} of those that are joined"
            )
        return items[0][1], items[0][3]

    def mark(self, lengths: Sequence[int]) -> None:
        """Finds which runs, of these lengths, hold the markers around their images, too: run by run where each holds one image,
        and where images touch by the tokens of all."""
        extra, sizes = self.family.reading.markers, [t * h * w for t, h, w in self.grids]
        if len(lengths) == len(sizes):
            self.marked = iter([extra * (n == size + extra) for n, size in zip(lengths, sizes, strict=True)])
        elif sum(lengths) == sum(sizes) + extra * len(sizes):
            ends = set(itertools.accumulate(size + extra for size in sizes))
            self.marked = itertools.repeat(extra * (set(itertools.accumulate(lengths)) <= ends))

    def end(self) -> None:
        """Refuses grids that no tokens stand for."""
        if self.item < len(self.grids) and not self.whole_runs:
            raise ValueError(
                f"{self.key} has {len(self.grids)} row(s), but the {self.kind} tokens end before {self._which()}, which has "
                "none. Pass the grids of exactly these rows, in their order"
            )

    def _which(self) -> str:
        """The next grid for messages."""
        frame = f", frame {self.frame}" if self.splits and self.grids[self.item][0] > 1 else ""
        return f"{self.kind} {self.item}{frame}"

    def _size(self) -> str:
        if self.kind == "audio":
            return f"by {self.family}'s audio encoder"
        t, h, w = self.grids[self.item]
        row_token = ", with a token at each row's end" if self.family.row_token else ""
        return f"{1 if self.splits else t} x {h} x {w} after merge {self.family.spatial_merge}{row_token}"


def _missing(inputs: Mapping[str, Any], kind: str) -> None:
    if inputs.get(MEDIA[kind].pixels) is not None:
        raise ValueError(f"inputs have {MEDIA[kind].pixels} but no {_GRIDS[kind]}: the sizes of the media are needed")


def _images(
    host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family, runs: Sequence[Run], shape: tuple[int, int]
) -> _Queue:
    key = _GRIDS["image"]
    if key not in host:
        _missing(inputs, "image")
        return _Queue("image", key, family=family)
    grids = family.token_grids(host[key], f"{key} row")
    if family.reading.targets and "images_per_sample" in host:
        grids = _without_targets(grids, host["images_per_sample"], runs, shape)
    return _Queue("image", key, grids, family=family)


def _without_targets(
    grids: list[tuple[int, int, int]], per_sample: np.ndarray, runs: Sequence[Run], shape: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """The grids of the images in the prompts; those behind them in a sample are of images that are yet to be generated."""
    counts = per_sample.reshape(-1).tolist()
    batch, tokens = shape
    if len(counts) != batch or sum(counts) != len(grids):
        raise ValueError(
            f"images_per_sample is {counts}, but there are {batch} row(s) and {len(grids)} rows of {_GRIDS['image']}"
        )
    there = [0] * batch
    for kind, start, stop in runs:
        if kind == _TYPE_OF["image"]:
            there[start // tokens] += stop - start
    kept, upcoming = [], iter(grids)
    for count, left in zip(counts, there, strict=True):
        for t, h, w in itertools.islice(upcoming, count):
            if left > 0:
                kept.append((t, h, w))
            left -= t * h * w
    return kept


def _videos(
    host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family, timings: Sequence[VideoTiming] | None
) -> _Queue:
    key = _GRIDS["video"]
    stated = [name for name in _SECONDS if name in host and host[name].size]
    if key not in host:
        _missing(inputs, "video")
        if timings:
            raise ValueError(f"there are {len(timings)} video_timings, but the inputs have no {key}")
        if stated:
            raise ValueError(f"inputs have {stated[0]} but no {key}: the sizes of the videos are needed")
        return _Queue("video", key, family=family)
    grids = family.token_grids(host[key], f"{key} row", video=True)
    times = _video_times(host, family, timings)
    return _Queue("video", key, grids, times, family=family)


def _video_times(
    host: Mapping[str, np.ndarray], family: Family, timings: Sequence[VideoTiming] | None
) -> Sequence[float | tuple[float, ...] | None]:
    """Of each video its seconds per grid, or the times of its grids; checked also where the family has no use for them."""
    patches = host[_GRIDS["video"]]
    keys = [key for key in _SECONDS if key in host]
    if len(keys) > 1:
        raise ValueError(f"inputs have {' and '.join(keys)}: one of them is needed, seconds from one temporal grid to the next")
    seconds = _seconds(host[keys[0]], keys[0], len(patches)) if keys else None
    if timings is None:
        if seconds is None and family.uses_seconds and len(patches):
            raise no_clock(
                family,
                f"the inputs have no second_per_grid_ts for {len(patches)} video(s). Pass what the processor returned, or "
                "temporal patch size / sampled frames per second for each video, or video_timings",
            )
        return seconds or ()
    if len(timings) != len(patches):
        raise ValueError(
            f"there are {len(timings)} video_timings for {len(patches)} video(s) of {_GRIDS['video']}: one each is needed"
        )
    times: list[Any] = []
    for i, (timing, grid) in enumerate(zip(timings, patches.tolist(), strict=True)):
        even, of_grids = family.grid_seconds(timing, grid[0], f"video {i}")
        if seconds is not None and even is not None and abs(even - seconds[i]) > 1e-3 * seconds[i]:
            raise ValueError(f"video {i}: {keys[0]} says {seconds[i]:g} s a grid, its timing {even:g} s: leave one of them out")
        times.append(of_grids if even is None else even)
    return times


def _seconds(values: np.ndarray, key: str, videos: int) -> list[float]:
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{key} must be numbers of seconds, got {values.dtype}")
    seconds = values.reshape(-1).tolist()
    if len(seconds) != videos:
        raise ValueError(f"{key} has {len(seconds)} value(s) for {videos} video(s) of {_GRIDS['video']}: one each is needed")
    return [check_seconds(value, f"{key} of video {i}") for i, value in enumerate(seconds)]


def _audio(host: Mapping[str, np.ndarray], inputs: Mapping[str, Any], family: Family) -> _Queue:
    """The audio as grids (1, 1, tokens). Where a family counts its tokens like text, an audio is what its run is."""
    lengths = family.reading.audio_tokens(host, inputs, family)
    if lengths is not None:
        return _Queue("audio", MEDIA["audio"].grids, [(1, 1, n) for n in lengths], family=family)
    if "audio" not in family.media and (given := [key for key in READING_KEYS if key in host]):
        raise ValueError(f"inputs have {given[0]}, which {family} does not read: it places {', '.join(family.media)}")
    return _Queue("audio", "audio tokens", family=family, whole_runs=True)


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(runs: Sequence[Run], queues: Mapping[str, _Queue], family: Family, batch: int, tokens: int) -> list[Row]:
    """The rows of a batch of `tokens` each: of every run its text, its padding, or the media that it holds."""
    rows: list[Row] = []
    items: list[Item] = []
    edge = tokens
    by_type = {_TYPE_OF[kind]: queue.take for kind, queue in queues.items()}
    if family.reading.markers and "image" in queues:
        queues["image"].mark([stop - start for kind, start, stop in runs if kind == _TYPE_OF["image"]])
    i, in_frames = 0, _TYPE_OF["video"] if family.split_frames else None
    while i < len(runs):
        kind, start, stop = runs[i]
        i += 1
        if start == edge:
            rows.append(Row(tuple(items), tokens))
            items, edge = [], edge + tokens
        if kind in (_TEXT, _PADDING):
            items.append(("text" if kind == _TEXT else "pad", (1, 1, stop - start), stop - start, None))
        elif kind in by_type:
            by_type[kind](items, stop - start, (kind, start, tokens))
            if kind == in_frames:
                i = queues["video"].alike(items, runs, i, edge)
        else:
            segment = kind.segment(start, lambda name, n, where: queues[name].one(n, where))
            items.append((segment.kind, segment.grid, segment.length, segment))
    for queue in queues.values():
        queue.end()
    return [*rows, Row(tuple(items), tokens)] if tokens else [Row((), 0)] * batch


def _where(at: str | tuple[int, int, int], n: int) -> str:
    """A run of n tokens of media for messages."""
    if isinstance(at, str):
        return at
    kind, start, tokens = at
    row, first = divmod(start, tokens)
    return f"row {row}: the {n} {_KIND_OF[kind]} tokens at {first}..{first + n - 1}"


# --- placeholder spans ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """Where an image, a video or an audio stands in a prompt: what vLLM calls a placeholder range.

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
    """The patch grid (t, h, w), a row of `image_grid_thw` or `video_grid_thw`; none of an audio."""
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
        if self.timing is not None and not isinstance(self.timing, VideoTiming):
            raise ValueError(f"a span's timing must be a VideoTiming, got {self.timing!r}")


def segments_from_spans(token_count: int, spans: Sequence[Span | tuple[Any, ...]], family: Family | str) -> Row:
    """The row of segments of a prompt, from the spans of its media.

    Args:
        token_count: tokens of the prompt; those in no span are text.
        spans: Spans, or tuples (offset, length, grid, ...) of their fields, in the order of their offsets. An audio whose span
            overlaps a video's is the audio of that video, where the family interleaves the two; the two start markers stand
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
    family = family if isinstance(family, Family) else find_family(family)
    if whole(token_count, "token_count") < 0:
        raise ValueError(f"token_count must be the tokens of the prompt, got {token_count}")
    stated = [span if isinstance(span, Span) else _span(span, n) for n, span in enumerate(several(spans, "spans"))]
    runs: list[Run] = []
    grids: dict[str, list[Any]] = {}
    times: list[Any] = []
    begins: set[int] = set()
    done = 0  # behind the last token that is in a run
    before: Span | None = None
    for n, span in enumerate(stated):
        mine = _span_runs(span, n, family, token_count)
        grids.setdefault(span.kind, []).append(_span_grid(span, n, mine, family))
        if span.kind == "video":
            times.append(_span_time(span, n, family))
        if span.offset < done and before is not None:
            runs, first = _interleaved(runs, mine, n, span, before, family)
            begins.add(first)
            done = max(done, span.offset + span.length)
        else:
            for run in ((_TEXT, done, span.offset), *mine):
                _add_run(runs, run)
            done = span.offset + span.length
        before = span
    _add_run(runs, (_TEXT, done, token_count))
    if type(family.reading) is not Reading:
        runs = family.reading.joined(runs, begins.__contains__, max(token_count, 1), family)
    queues = {
        kind: _Queue(kind, f"the {kind} spans", mine, times if kind == "video" else (), family=family)
        for kind, mine in grids.items()
    }
    return _rows(runs, queues, family, 1, token_count)[0]


def _add_run(runs: list[Run], run: Run) -> None:
    """Appends a run; text that goes on from text is one run with it."""
    kind, start, stop = run
    if runs and kind == runs[-1][0] == _TEXT:
        runs[-1] = (_TEXT, runs[-1][1], stop)
    elif start < stop:
        runs.append(run)


def _span(span: Any, n: int) -> Span:
    if not isinstance(span, tuple) or not 2 <= len(span) <= 7:
        raise ValueError(f"span {n} must be a Span or a tuple (offset, length, grid, ...) of its fields, got {span!r}")
    return Span(*span)


def _called(span: Span, n: int) -> str:
    """A span for messages."""
    return f"span {n} ({span.kind} at {span.offset}..{span.offset + span.length - 1})"


def _span_runs(span: Span, n: int, family: Family, token_count: int) -> list[Run]:
    """The runs of a span: of its medium, and of the text that stands between its parts."""
    known = isinstance(span.kind, str) and span.kind in MEDIA
    if not known or (span.kind not in family.media and (span.kind != "video" or "frame" not in family.media)):
        places = {"video" if kind == "frame" else kind for kind in family.media} & set(MEDIA)
        raise ValueError(f"{_called(span, n)}: {family} places {', '.join(sorted(places)) or 'no media'} by spans")
    offset, length = span.offset, span.length
    if offset < 0 or length < 1 or offset + length > token_count:
        raise ValueError(f"{_called(span, n)} is not within the {token_count} tokens of the prompt; was the prompt truncated?")
    if span.kind == "audio" and span.grid is not None:
        raise ValueError(f"{_called(span, n)}: an audio has no grid, but as many tokens as it has")
    if span.kind != "video" and (span.seconds_per_grid is not None or span.timing is not None):
        raise ValueError(f"{_called(span, n)}: only a video has seconds_per_grid or timing")
    kind = _TYPE_OF[span.kind]
    if span.embed is None:
        return [(kind, offset, offset + length)]
    embed = numbers(span.embed, f"{_called(span, n)}: embed", "biu", asked=f"{length} booleans, one a token")
    if embed.shape != (length,) or ((embed != 0) & (embed != 1)).any():
        raise ValueError(
            f"{_called(span, n)}: embed must be {length} booleans, one a token, got {embed.dtype} {list(embed.shape)}"
        )
    if not embed.any():
        raise ValueError(f"{_called(span, n)}: no token is of the {span.kind}: embed is false everywhere")
    starts = [0, *((embed[1:] != embed[:-1]).nonzero()[0] + 1).tolist()]
    is_mine = embed[starts].tolist()
    return [
        (kind if mine else _TEXT, offset + start, offset + stop)
        for mine, start, stop in zip(is_mine, starts, [*starts[1:], length], strict=True)
    ]


def _span_grid(span: Span, n: int, runs: Sequence[Run], family: Family) -> tuple[int, int, int]:
    """The token grid of a span, whose tokens these are."""
    held = sum(stop - start for kind, start, stop in runs if kind)
    if span.kind == "audio":
        return 1, 1, held
    if span.grid is None:
        raise ValueError(f"{_called(span, n)} has no grid: state its patch grid (t, h, w)")
    try:
        t, h, w = family.token_grid(whole_grid(span.grid, "patch grid"), video=span.kind == "video")
    except ValueError as error:
        raise ValueError(f"{_called(span, n)}: {error}") from None
    if held != t * h * w and (span.kind != "image" or held != t * h * w + family.reading.markers):
        raise ValueError(
            f"{_called(span, n)}: patch grid {tuple(span.grid)} needs {t * h * w} tokens ({t} x {h} x {w} after merge "
            f"{family.spatial_merge}), but the span has {held}. Were tokens pruned, or was it made with another merge size?"
        )
    return t, h, w


def _span_time(span: Span, n: int, family: Family) -> float | tuple[float, ...] | None:
    """seconds_per_grid or the time of each grid of a video's span."""
    one_clock(span.seconds_per_grid, span.timing, f"span {n}", "timing")
    if span.timing is not None:
        assert span.grid is not None
        even, of_grids = family.grid_seconds(span.timing, span.grid[0], f"span {n}")
        return of_grids if even is None else even
    if span.seconds_per_grid is None:
        if family.uses_seconds:
            raise no_clock(f"span {n}: {family}", "give seconds_per_grid or timing, one of them")
        return None
    return check_seconds(span.seconds_per_grid, f"span {n}: seconds_per_grid")


def _interleaved(
    runs: list[Run], mine: Sequence[Run], n: int, span: Span, before: Span, family: Family
) -> tuple[list[Run], int]:
    """The runs of two spans that overlap, and the first token that is of either."""
    if span.offset < before.offset:
        raise ValueError(f"{_called(span, n)} begins before span {n - 1}: spans must be in the order of their offsets")
    if not family.reading.overlaps(span.kind, before.kind, family):
        raise ValueError(f"{_called(span, n)} overlaps span {n - 1} ({before.kind}), and {family} interleaves no such media")
    stop = max(before.offset + before.length, span.offset + span.length)
    types = np.zeros(stop - before.offset, dtype=np.int8)
    kept = [(kind, start, min(end, before.offset)) for kind, start, end in runs if start < before.offset]
    for kind, start, end in runs:
        types[max(start - before.offset, 0) : max(end - before.offset, 0)] = kind
    for kind, start, end in mine:
        if kind and types[start - before.offset : end - before.offset].any():
            raise ValueError(f"{_called(span, n)} takes tokens that span {n - 1} has, too: their embed masks overlap")
        if kind:
            types[start - before.offset : end - before.offset] = kind
    first = before.offset + int(np.argmax(types != 0))
    starts = [0, *((types[1:] != types[:-1]).nonzero()[0] + 1).tolist()]
    for a, b in zip(starts, [*starts[1:], len(types)], strict=True):
        _add_run(kept, (int(types[a]), a + before.offset, b + before.offset))
    return kept, first
