"""Which frames of a video are sampled: the rules of qwen-vl-utils and of transformers' video processors, as a table.

A rule sees a video as upstream does, as a number of frames at a constant rate, and answers with indices. Each is written with
the float expressions of its source in their order, so that its answer is the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

BY_TIME = "time"
"""The name of mmrope's own way, `Video.sample`, which is no rule of indices: even times, and the frames on show then."""


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """What is asked of a rule. The defaults are qwen-vl-utils' constants (0.0.14, vision_process.py).

    Example:
        >>> from mmrope.preprocess.sampling import FrameChoice
        >>> FrameChoice(fps=1.0).max_frames
        768
    """

    fps: float = 2.0
    """Sampled frames a second."""
    num_frames: int | None = None
    """Or how many sampled frames; `fps` then has no effect."""
    min_frames: int = 4
    max_frames: int = 768
    start: float | None = None
    """Seconds from the first frame, where the part that is sampled begins; None for the video's begin."""
    end: float | None = None
    temporal_patch_size: int = 2


class SampledFrames(NamedTuple):
    """A rule's answer.

    Example:
        >>> from mmrope.preprocess.sampling import FrameChoice, SAMPLING_RULES
        >>> sampled = SAMPLING_RULES["qwen_vl_utils"](100, 25.0, FrameChoice(fps=1.0))
        >>> sampled.indices.tolist(), sampled.fps
        ([0, 33, 66, 99], 1.0)
    """

    indices: np.ndarray
    """int64 [n], which do not decrease."""
    fps: float
    """Sampled frames a second, as upstream states them."""


def check_count(count: int, total: int, asked: str, multiple: int = 1) -> None:
    """The law of every way of sampling: a number of frames that is asked for is there, and no frame is taken twice. A number
    that follows from frames a second is at most that of the frames by itself.

    Args:
        count: of sampled frames, of which `asked` is what was said.
        total: of frames that there are.
        multiple: of which a rule makes the number that is asked for.

    Raises:
        ValueError: fewer frames than asked for.

    Example:
        >>> from mmrope.preprocess.sampling import check_count
        >>> check_count(64, 64, "num_frames=64")
    """
    if count > total:
        raise ValueError(
            f"{asked} is more than the {total} frames that can be taken: some would be taken twice; ask for "
            f"{total - total % multiple} at most, or for times=[...]"
        )


def _qwen_vl_utils(total: int, rate: float, choice: FrameChoice) -> SampledFrames:
    """qwen-vl-utils 0.0.14, vision_process.py: calculate_video_frame_range, smart_nframes and _read_video_decord."""
    patch, first, last = choice.temporal_patch_size, 0, total - 1
    if choice.start is not None or choice.end is not None:
        end_of_video = total / rate
        if choice.start is not None:
            first = math.ceil(max(0.0, min(choice.start, end_of_video)) * rate)
        if choice.end is not None:
            last = min(math.floor(max(0.0, min(choice.end, end_of_video)) * rate), total - 1)
        if first >= last:
            raise ValueError(
                f"video_start={_said(choice.start, 0)} to video_end={_said(choice.end, end_of_video)} is less than two frames "
                f"of a video of {end_of_video:.2f} s ({total} frames at {rate:g} a second); choose a longer part"
            )
        total = last - first + 1
    if choice.num_frames is not None:
        count, asked = round(choice.num_frames / patch) * patch, f"nframes={choice.num_frames:g}"
        check_count(count, total, asked, patch)
    else:
        least = math.ceil(choice.min_frames / patch) * patch
        most = math.floor(min(choice.max_frames, total) / patch) * patch
        wanted = min(min(max(total / rate * choice.fps, least), most), total)
        count, asked = math.floor(wanted / patch) * patch, f"fps={choice.fps:g}, at most {choice.max_frames:g} frames,"
    if not patch <= count <= total:
        raise ValueError(
            f"{asked} comes to {count} sampled frames, a multiple of {patch}, of a video of {total} frames; they must be "
            f"{patch} to {total}: change nframes, fps or max_frames, or say num_frames= or times=, which are not rounded"
        )
    indices = _float32_linspace(first, last, count)
    return SampledFrames(indices, count / max(total, 1e-6) * rate)


def _said(seconds: float | None, otherwise: float) -> str:
    return f"{otherwise if seconds is None else seconds:g}"


def _float32_linspace(first: int, last: int, count: int) -> np.ndarray:
    """torch.linspace(first, last, count).round(), int64 [count]: single precision, from both ends to the middle, each value
    with one rounding, as torch's kernel on every processor with fused multiply-add."""
    if count == 1:
        return np.array([first], dtype=np.int64)
    a, b = np.float32(first), np.float32(last)
    step = np.float64(np.float32(np.float32(b - a) / np.float32(count - 1)))
    k = np.arange(count)
    values = np.where(k < count // 2, np.float64(a) + step * k, np.float64(b) - step * (count - 1 - k))
    return np.round(values.astype(np.float32)).astype(np.int64)


def _qwen2_vl(total: int, rate: float, choice: FrameChoice) -> SampledFrames:
    """transformers 5.24.0, Qwen2VLVideoProcessor.sample_frames."""
    patch = choice.temporal_patch_size
    if choice.num_frames is not None:
        count = round(choice.num_frames / patch) * patch
        check_count(count, total, f"num_frames={choice.num_frames}", patch)
    else:
        most = math.floor(min(choice.max_frames, total) / patch) * patch
        count = math.floor(min(max(total / rate * choice.fps, choice.min_frames), most, total) / patch) * patch
    if not 0 < count <= total:
        raise ValueError(
            f"Qwen2VLVideoProcessor samples frames in multiples of {patch}: {count} of a video of {total} frames is not "
            "possible; change fps, num_frames or max_frames"
        )
    step, k, lanes = total / count, np.arange(count), 8
    # torch.arange: single precision, eight values at a time from a first one that is rounded, two of these groups at once and
    # what is left over by itself; where it makes one value more than `count`, that is no frame's index
    grouped = (step * (k // lanes * lanes)).astype(np.float32) + step * (k % lanes)
    values = np.where(k < count // (2 * lanes) * (2 * lanes), grouped, step * k)
    return _stated(values.astype(np.float32), total, rate)


def _qwen3_vl(total: int, rate: float, choice: FrameChoice) -> SampledFrames:
    """transformers 5.24.0, Qwen3VLVideoProcessor.sample_frames, which takes some frames twice to come to num_frames."""
    count = choice.num_frames
    if count is not None:
        check_count(count, total, f"num_frames={count}")
    else:
        count = min(max(int(total / rate * choice.fps), choice.min_frames), choice.max_frames, total)
    return _stated(np.linspace(0, total - 1, count).round(), total, rate)


def _glm4v(total: int, rate: float, choice: FrameChoice) -> SampledFrames:
    """transformers 5.24.0, Glm4vVideoProcessor.sample_frames: it knows neither num_frames nor min_frames and max_frames."""
    longest, fps, last, duration = 300, choice.fps, total - 1, total / rate
    if duration <= longest:
        count = max(math.floor(duration * fps), 1)
        indices = [min(last, math.ceil(i * rate / fps)) for i in range(count)]
    elif (count := int(longest * fps)) >= total:
        indices = list(range(total))
    else:
        indices = [min(last, math.ceil(t * rate)) for t in np.linspace(0, duration, count)]
    return _stated(_even_number(dict.fromkeys(indices)), total, rate)


def _glm46v(total: int, rate: float, choice: FrameChoice) -> SampledFrames:
    """transformers 5.24.0, Glm46VVideoProcessor.sample_frames: how many frames a second follows from the duration alone."""
    duration, patch = total / rate, choice.temporal_patch_size
    counted = min(duration, 2400)
    fps = 3 if counted <= 30 else 1 if counted <= 300 else 0.5
    wanted = min(int(counted * fps * patch), 640)
    if not wanted:
        raise ValueError(f"Glm46VVideoProcessor samples nothing of a video of {duration:.3f} s; say num_frames= or times=")
    if total < wanted:
        indices = np.linspace(0, total - 1, wanted, dtype=int).tolist()
    else:
        indices, reached, between, spacing = [], 0.0, 1 / (patch * fps), 1 / rate
        for i in range(total):
            if i * spacing >= reached:
                reached += between
                indices.append(i)
                if reached >= int(duration):
                    break
    if len(indices) < wanted:
        indices = np.linspace(indices[0], indices[-1], wanted, dtype=int).tolist()
    elif len(indices) > wanted:
        indices = np.linspace(0, total - 1, wanted, dtype=int).tolist()
    return _stated(_even_number(dict.fromkeys(indices)), total, rate)


def _even_number(indices: Mapping[int, None]) -> list[int]:
    """The indices, the last one twice if that makes their number even."""
    found = list(indices)
    return found + found[-1:] * (len(found) % 2)


def _stated(indices: np.ndarray | list[int], total: int, rate: float) -> SampledFrames:
    """With the rate of transformers' VideoMetadata.sampled_fps."""
    found = np.asarray(indices).astype(np.int64)
    return SampledFrames(found, len(found) / total * rate)


SAMPLING_RULES: Mapping[str, Callable[[int, float, FrameChoice], SampledFrames]] = MappingProxyType(
    {
        "qwen_vl_utils": _qwen_vl_utils,
        "Qwen2VLVideoProcessor": _qwen2_vl,
        "Qwen3VLVideoProcessor": _qwen3_vl,
        "Glm4vVideoProcessor": _glm4v,
        "Glm46VVideoProcessor": _glm46v,
    }
)
"""By name: a rule takes the number of frames of a video, its average frames a second, and what is asked."""
SAMPLINGS = (BY_TIME, *SAMPLING_RULES)
"""What `Processor.sampling` may be."""
HAS_NUM_FRAMES = ("Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor")
"""Rules with an own way to sample a stated number of frames; by the others they are spread evenly in time."""
