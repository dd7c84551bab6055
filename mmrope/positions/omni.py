"""Audio inside video, whole: the Qwen Omni models interleave the tokens of a video with those of its audio.

Its segment, how it is found among the tokens, and how it is placed. Nothing else in positions/ knows of it: the families that
have it name its reading and its placement in their rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions.rules import Family, Reading, Run, check_positive
from mmrope.positions.segments import MEDIA, Segment
from mmrope.positions.stated import several, whole

AUDIO_IN_VIDEO = "audio_in_video"
_VIDEO = MEDIA["video"].token_type
_MEDIA = (_VIDEO, MEDIA["audio"].token_type)
_LENGTHS = ("audio_seqlens", "audio_feature_lengths", MEDIA["audio"].grids)


# --- the segment ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class AudioInVideo(Segment):
    """A video and its audio, interleaved by time, with the two start and the two end markers around them; made by `make`.

    Example:
        >>> from mmrope import position_ids
        >>> from mmrope.positions import AudioInVideo
        >>> both = AudioInVideo.make(t=2, h=1, w=2, audio=5, seconds_per_grid=1.0)
        >>> both.length  # 4 of video, 5 of audio, 4 markers
        13
        >>> position_ids([both], "qwen2_5_omni").next.tolist()
        [7]
    """

    audio_tokens: int = 0
    """Tokens of its audio."""
    runs: tuple[int, ...] = ()
    """How its tokens lie, where that is known: so many of the video, of its audio, of the video, ..."""

    @classmethod
    def make(
        cls,
        *,
        t: int,
        h: int,
        w: int,
        audio: int,
        seconds_per_grid: float | None = None,
        times: Iterable[float] | None = None,
        runs: Iterable[int] = (),
    ) -> AudioInVideo:
        """A video of t x h x w tokens and its audio of `audio` tokens. `runs` may state how the tokens lie.

        Raises:
            ValueError: sizes and times that cannot be, runs that are not these tokens.

        Example:
            >>> from mmrope.positions import AudioInVideo
            >>> AudioInVideo.make(t=2, h=1, w=2, audio=3, seconds_per_grid=1.0, runs=(2, 2, 2, 1)).runs
            (2, 2, 2, 1)
        """
        return cls(AUDIO_IN_VIDEO, (t, h, w), seconds_per_grid, times, audio_tokens=audio, runs=runs)  # pyright: ignore[reportArgumentType]

    def __post_init__(self) -> None:
        audio = whole(self.audio_tokens, f"{self._what}: audio", least=1)
        runs = tuple(whole(n, f"{self._what}: each size", least=int(i > 0)) for i, n in enumerate(several(self.runs, "runs")))
        object.__setattr__(self, "audio_tokens", audio)
        object.__setattr__(self, "runs", runs)
        Segment.__post_init__(self)  # which counts all of its tokens
        if runs and (sum(runs[::2]), sum(runs[1::2])) != (math.prod(self.grid), audio):
            raise ValueError(
                f"{self._what}: runs have {sum(runs[::2])} tokens of the video and {sum(runs[1::2])} of its audio, but there "
                f"are {math.prod(self.grid)} and {audio}"
            )

    @property
    def length(self) -> int:
        """Tokens."""
        return math.prod(self.grid) + self.audio_tokens + 4

    @property
    def size(self) -> str:
        """Its token grid and its audio, in words for tables."""
        return f"{super(AudioInVideo, self).size}, audio {self.audio_tokens}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The media that it is of."""
        return "video", "audio"

    @property
    def _what(self) -> str:
        return "AudioInVideo.make"

    @property
    def has_time(self) -> bool:
        """Whether its ids may depend on seconds."""
        return True

    def _more(self) -> list[str]:
        return [f"audio={self.audio_tokens}"]


# --- how it is found --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OmniReading(Reading):
    """Audio has as many tokens as its encoder makes of the frames of its spectrogram; where a video and audio touch behind
    their two start markers, they are one."""

    frames_to_tokens: Callable[[np.ndarray], np.ndarray]
    """Frames of spectrograms [audios] -> tokens [audios]."""
    seconds_per_chunk: float | None = None
    """Seconds of video, then of its audio, and so on, for the families that interleave the two in chunks."""
    marker_apart: bool = False
    """The token after media is placed by itself: upstream counts the end marker alone, and fractional ids are rounded at every
    step, so that as one with the text after it they would differ in the last bit."""

    def __post_init__(self) -> None:
        check_positive("the reading of audio in video", "seconds_per_chunk", self.seconds_per_chunk)

    @property
    def keys(self) -> tuple[str, ...]:
        return _LENGTHS

    @property
    def states_audio(self) -> bool:
        return True

    def audio_tokens(self, host: Mapping[str, np.ndarray], given: Mapping[str, Any], family: Family) -> list[int] | None:
        key = next((key for key in _LENGTHS if key in host), None)
        if key is None:
            if given.get(MEDIA["audio"].pixels) is not None:
                raise ValueError(
                    f"inputs have {MEDIA['audio'].pixels} but no {_LENGTHS[-1]}: the lengths of the audio are needed"
                )
            return []
        frames = _frames(host[key], key)
        for other in _LENGTHS:
            if other in host and not np.array_equal(_frames(host[other], other), frames):
                raise ValueError(f"{key} and {other} disagree on the lengths of the audio: pass one of them")
        tokens = self.frames_to_tokens(frames)
        if (tokens < 1).any():
            i = int(np.argmax(tokens < 1))
            raise ValueError(f"{key}: audio {i} has {frames[i]} frames, which make no token")
        return tokens.tolist()

    def overlaps(self, one: str, other: str, family: Family) -> bool:
        return AUDIO_IN_VIDEO in family.media and {one, other} == {"video", "audio"}

    def begins_by_ids(self, ids: np.ndarray, family: Family) -> Callable[[int], bool]:
        """Behind the start marker of vision and that of audio."""
        known, flat = family.checkpoint.token_ids, ids.reshape(-1)

        def begins(token: int) -> bool:
            if known.vision_start is None or known.audio_start is None:
                raise ValueError(
                    f"row {token // ids.shape[1]}: video and audio tokens touch from {token % ids.shape[1]} on. Whether that "
                    "is audio in video is seen by the ids of the markers, which family_from_config(model.config) reads (on "
                    "the command line --config)"
                )
            return bool(flat[token - 2] == known.vision_start and flat[token - 1] == known.audio_start)

        return begins

    def joined(self, runs: list[Run], begins: Callable[[int], bool], tokens: int, family: Family) -> list[Run]:
        runs, made, i = list(runs), [], 0
        while i < len(runs):
            kind, start, stop = runs[i]
            j = i + 1  # behind the last of the media that touch
            while kind in _MEDIA and j < len(runs) and runs[j][0] in _MEDIA and runs[j][1] % tokens:
                j += 1
            if j > i + 1 and AUDIO_IN_VIDEO in family.media and begins(start):
                lie, stop = tuple(b - a for _, a, b in runs[i:j]), runs[j - 1][2]
                room_before = start % tokens >= 2 and bool(made) and made[-1][0] == 0 and start - made[-1][1] >= 2
                room_after = stop % tokens > 0 and runs[j][0] == 0 and runs[j][2] - stop >= 2
                if not (room_before and room_after):
                    raise ValueError(
                        f"row {start // tokens}: the video and its audio at {start % tokens}..{(stop - 1) % tokens} do not "
                        "stand between their two start and two end markers; was the row truncated, or a marker masked?"
                    )
                begin, (_, _, end) = made.pop()[1], runs[j]
                made += [(0, begin, start - 2)] * (begin < start - 2)
                made.append((_Both(lie if kind == _VIDEO else (0, *lie), tokens), start - 2, stop + 2))
                runs[j : j + 1] = [(0, stop + 2, end)] * (stop + 2 < end)
            else:
                made += runs[i:j]
            i = j
        return _with_markers_apart(made, tokens) if self.marker_apart else made


def _with_markers_apart(runs: list[Run], tokens: int) -> list[Run]:
    """The text token after media as a run of its own."""
    made: list[Run] = []
    for kind, start, stop in runs:
        after_media = made and made[-1][0] in (MEDIA["image"].token_type, *_MEDIA) and start % tokens
        if kind == 0 and after_media and stop - start > 1:
            made += [(0, start, start + 1), (0, start + 1, stop)]
        else:
            made.append((kind, start, stop))
    return made


@dataclass(frozen=True)
class _Both:
    """The type of a run that holds a video and its audio."""

    lie: tuple[int, ...]
    tokens: int
    """Of each row of the batch."""

    def segment(self, start: int, take: Callable[[str, int, str], tuple[tuple[int, int, int], Any]]) -> Segment:
        """The segment.

        Args:
            start: its first token in the batch.
            take: (kind of media, its tokens, where) -> the next grid of that kind, and its time.
        """
        video, audio = sum(self.lie[::2]), sum(self.lie[1::2])
        (row, at), whole = divmod(start, self.tokens), video + audio + 4
        where = f"row {row}: the {whole} video and audio tokens at {at}..{at + whole - 1}"
        grid, time = take("video", video, where)
        take("audio", audio, where)
        seconds, times = (None, time) if isinstance(time, tuple) else (time, None)
        return AudioInVideo(AUDIO_IN_VIDEO, grid, seconds, times, audio_tokens=audio, runs=self.lie)


def _frames(values: np.ndarray, key: str) -> np.ndarray:
    """[audios] frames of each spectrogram."""
    by_mask = key == _LENGTHS[-1]
    if values.dtype.kind not in "iub" or (by_mask and values.ndim != 2):
        raise ValueError(
            f"{key} must be whole numbers {'[audios, frames]' if by_mask else '[audios]'}, got {values.dtype} "
            f"{list(values.shape)}"
        )
    return (values.sum(axis=1) if by_mask else values.reshape(-1)).astype(np.int64)


# --- how it is placed -------------------------------------------------------------------------------------------------


def qwen2_5_omni_audio_tokens(frames: np.ndarray) -> np.ndarray:
    """Tokens of an audio of `frames` spectrogram frames (transformers 5.23.0, models/qwen2_5_omni, get_rope_index)."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def qwen3_omni_audio_tokens(frames: np.ndarray, window: int = 50) -> np.ndarray:
    """The same for Qwen3-Omni, whose encoder takes `2 * window` frames at a time, 13 tokens each (transformers 5.23.0,
    models/qwen3_omni_moe, _get_feat_extract_output_lengths)."""
    rest = (frames % (2 * window) - 1) // 2 + 1
    return ((rest - 1) // 2 + 1 - 1) // 2 + 1 + frames // (2 * window) * 13


def audio_in_video_by_chunk(
    segment: AudioInVideo, start: Any, family: Family, *, by_runs: bool = True
) -> tuple[np.ndarray, Any]:
    """Qwen2.5-Omni: both start markers share an id; then come a chunk of the video, a chunk of its audio, and so on, both
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


def audio_in_video_by_time(
    segment: AudioInVideo, start: Any, family: Family, *, by_runs: bool = True
) -> tuple[np.ndarray, Any]:
    """Qwen3-Omni: the tokens of the video and of its audio by their times, the video's first where they are equal; the
    markers count like text. Ids are float32 and added up in upstream's order; text goes on after the largest id of what was
    appended last, which is a single token or what was left of the longer.

    `by_runs`: as the tokens lie, in the order of the processor, which compares float64 times from 0. Otherwise as
    get_rope_index has it, which compares float32 ids: where times are equal but for rounding, it takes one for the other.
    """
    number = np.float64 if isinstance(start, np.float64) else np.float32  # the first past 2^24
    one, two, begin = number(1), np.arange(2, dtype=number), number(start)
    video, audio = _video_and_audio(segment, begin + number(2), family)
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


def get_rope_index_by_chunk(segment: AudioInVideo, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """`audio_in_video_by_chunk` as transformers' get_rope_index has it."""
    return audio_in_video_by_chunk(segment, start, family, by_runs=False)


def get_rope_index_by_time(segment: AudioInVideo, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """`audio_in_video_by_time` as transformers' get_rope_index has it."""
    return audio_in_video_by_time(segment, start, family, by_runs=False)


def _video_and_audio(segment: AudioInVideo, start: Any, family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a video [3, t * h * w] and of its audio [3, audio tokens], both from `start` on."""
    t, h, w = segment.grid
    dtype = start.dtype
    steps = family.steps(np.arange(t), segment.seconds_per_grid, segment.times)
    video = np.empty((3, t, h, w), dtype=dtype)
    video[0], video[1], video[2] = steps[:, None, None], np.arange(h)[:, None], np.arange(w)
    audio = np.empty((3, segment.audio_tokens), dtype=dtype)
    audio[:] = np.arange(segment.audio_tokens)
    return video.reshape(3, -1) + start, audio + start


def _order_by_runs(segment: AudioInVideo) -> tuple[np.ndarray, int]:
    """The order of the tokens of [video, audio], and how many the last run has."""
    is_video = np.repeat(np.arange(len(segment.runs)) % 2 == 0, segment.runs)
    order = np.empty(len(is_video), dtype=np.int64)
    order[is_video] = np.arange(is_video.sum())
    order[~is_video] = np.arange(is_video.sum(), len(order))
    return order, segment.runs[-1]


def _order_by_chunk(video_t: np.ndarray, audio_t: np.ndarray, family: Family) -> tuple[np.ndarray, int]:
    """The order of the tokens of [video, audio], and how many the last chunk has; times count from 0."""
    assert isinstance(family.reading, OmniReading)
    ids_per_chunk = int((family.ids_per_second or 0) * (family.reading.seconds_per_chunk or 0))
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
    before = np.searchsorted(audio_t, video_t, side="left")  # audio tokens before each token of the video
    order = np.insert(np.arange(len(audio_t)) + len(video_t), before, np.arange(len(video_t)))
    left = len(audio_t) - int(before[-1])
    return order, left or int((before == len(audio_t)).sum())
