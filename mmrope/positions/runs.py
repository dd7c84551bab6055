"""What the doors in share: tokens by type -> runs of one type -> media, cut by their grids -> rows of segments.

Here tokens and grids that do not belong together are refused, with the row, the item and its tokens in the message.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions.rules import Family
from mmrope.positions.segments import AUDIO, AUDIO_IN_VIDEO, FRAME, IMAGE, PAD, TEXT, VIDEO, Row, Segment

# types of tokens as in mm_token_type_ids, and two more
T_PADDING, T_TEXT, T_IMAGE, T_VIDEO, T_AUDIO, T_BOTH = -1, 0, 1, 2, 3, 4
"""The last: a video with its sound."""
MEDIA_TYPES = {T_IMAGE: "image", T_VIDEO: "video", T_AUDIO: "audio"}


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Runs:
    """The stretches of one token type in each row, in the order of the batch; together they are all its tokens."""

    type: np.ndarray  # [n]
    start: np.ndarray  # [n], token of the batch
    length: np.ndarray  # [n]
    tokens: int
    """Tokens of each row."""
    sound: Mapping[int, tuple[int, ...]]
    """For a run of video with its sound: so many tokens of the video, of its sound, of the video, ..."""

    @classmethod
    def of(cls, types: np.ndarray, mask: np.ndarray | None, family: Family) -> Runs:
        """The longest runs of token types [B, S], padding where the mask [B, S] is 0; None for no padding."""
        batch, tokens = types.shape
        flat = np.ascontiguousarray(types).reshape(-1)
        changes = flat[1:] != flat[:-1]
        if mask is not None:
            mask = np.ascontiguousarray(mask).reshape(-1)
            changes |= mask[1:] != mask[:-1]
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
        known = {T_TEXT, T_IMAGE, T_VIDEO, T_AUDIO} if "audio" in family.media else {T_TEXT, T_IMAGE, T_VIDEO}
        held = set(kind.tolist())
        if not held <= known:
            names = ", ".join(f"{n} ({('text', 'image', 'video', 'audio')[n]})" for n in sorted(known))
            raise ValueError(f"mm_token_type_ids holds {sorted(held)}; {family} knows {names}")
        if mask is not None:
            kind = np.where(mask[start] == 0, T_PADDING, kind)
        return cls(kind, start, length, tokens, {})

    @classmethod
    def tiled(cls, kind: Any, length: Any, tokens: int, sound: Mapping[int, tuple[int, ...]]) -> Runs:
        """Runs of these types [n] and lengths [n], one after the other."""
        kind, length = np.array(kind, dtype=np.int64), np.array(length, dtype=np.int64)
        return cls(kind, length.cumsum() - length, length, tokens, sound)

    def split(self, parts: np.ndarray, length: np.ndarray) -> Runs:
        """Each run in so many parts [n], of these lengths [sum of parts]."""
        index = np.repeat(np.arange(len(parts)), parts)
        before = parts.cumsum() - parts
        return Runs.tiled(self.type[index], length, self.tokens, {int(before[run]): lie for run, lie in self.sound.items()})

    def counts(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """The runs that hold media of this kind, and how many of their tokens are its."""
        if not self.sound or kind == T_IMAGE:
            mine = (self.type == kind).nonzero()[0]
            return mine, self.length[mine]
        mine = ((self.type == kind) | (self.type == T_BOTH)).nonzero()[0]
        part = slice(0, None, 2) if kind == T_VIDEO else slice(1, None, 2)
        held = [sum(self.sound[i][part]) if i in self.sound else int(self.length[i]) for i in mine.tolist()]
        return mine, np.array(held, dtype=np.int64)

    def at(self, run: int, name: str) -> str:
        """A run of media for messages."""
        row, start = divmod(int(self.start[run]), self.tokens)
        length = int(self.length[run])
        return f"row {row}: the {length} {name} tokens at {start}..{start + length - 1}"


def with_sound_in_video(runs: Runs, begins_at: Callable[[int], bool]) -> Runs:
    """Where runs of video and of sound touch and `begins_at` says of the first token (of the batch) that it is a video with its
    sound, the two are interleaved: one run, with the two markers before it and the two after."""
    same_row = runs.start[1:] % max(runs.tokens, 1) != 0
    touches = ((runs.type[1:] >= T_VIDEO) & (runs.type[:-1] >= T_VIDEO) & same_row).tolist()  # run n and run n + 1
    if not any(touches):
        return runs
    kind, start, length = runs.type.tolist(), runs.start.tolist(), runs.length.tolist()
    merged: list[tuple[int, int]] = []
    sound: dict[int, tuple[int, ...]] = {}
    i = 0
    while i < len(kind):
        j = i
        while j < len(touches) and touches[j]:
            j += 1
        if j == i or not begins_at(start[i]):
            merged += [(kind[n], length[n]) for n in range(i, j + 1) if length[n]]
        else:
            row, first = divmod(start[i], runs.tokens)
            last = first + sum(length[i : j + 1]) - 1
            room_before = first >= 2 and merged and merged[-1][0] == T_TEXT and merged[-1][1] >= 2
            room_after = runs.tokens - last > 2 and kind[j + 1] == T_TEXT and length[j + 1] >= 2
            if not (room_before and room_after):
                raise ValueError(
                    f"row {row}: the video and its sound at {first}..{last} do not stand between their two start and two end "
                    "markers; was the row truncated, or a marker masked?"
                )
            before = merged.pop()[1] - 2
            merged += [(T_TEXT, before)] if before else []
            sound[len(merged)] = tuple(length[i : j + 1]) if kind[i] == T_VIDEO else (0, *length[i : j + 1])
            merged.append((T_BOTH, last - first + 1 + 4))
            length[j + 1] -= 2
        i = j + 1
    kinds, lengths = zip(*merged, strict=True)
    return Runs.tiled(kinds, lengths, runs.tokens, sound)


def with_end_markers_apart(runs: Runs) -> Runs:
    """The token after media as a run of its own. Fractional ids are rounded at every step, and upstream counts the end marker
    by itself: as one with the text after it, ids would differ in the last bit."""
    apart = np.zeros(len(runs.type), dtype=bool)
    apart[1:] = (runs.type[1:] == T_TEXT) & (runs.type[:-1] >= T_IMAGE) & (runs.type[:-1] != T_BOTH)
    apart &= (runs.start % max(runs.tokens, 1) != 0) & (runs.length > 1)
    parts = 1 + apart.astype(np.int64)
    length = np.repeat(runs.length, parts)
    marker = (parts.cumsum() - parts)[apart]
    length[marker], length[marker + 1] = 1, length[marker + 1] - 1
    return runs.split(parts, length)


# --- media ------------------------------------------------------------------------------------------------------------


_NO_GRIDS, _NONE = np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class RunMedia:
    """The images, the videos or the sounds of a batch as token grids; a family that splits frames has one grid a frame."""

    key: str
    """What the grids come from, for messages."""
    grid: np.ndarray  # [n, 3]
    tokens: np.ndarray  # [n]
    item: np.ndarray  # [n], the row of the processor's grids that a grid came from
    seconds: np.ndarray | None = None  # [n]
    times: Sequence[tuple[float, ...] | None] = ()
    """Of each video, where they are stated one by one."""

    @classmethod
    def of(
        cls,
        key: str,
        grid: np.ndarray | None = None,
        *,
        seconds: np.ndarray | None = None,
        times: Sequence[tuple[float, ...] | None] = (),
        split: bool = False,
    ) -> RunMedia:
        """The media of these token grids [n, 3]; `split`: of their frames."""
        if grid is None:
            return cls(key, _NO_GRIDS, _NONE, _NONE)
        item = np.arange(len(grid))
        if split:
            item = np.repeat(item, grid[:, 0])
            grid = grid[item]
            grid[:, 0] = 1
        return cls(key, grid, grid.prod(axis=1), item, seconds, times)

    @classmethod
    def sounds(cls, key: str, tokens: np.ndarray) -> RunMedia:
        """Sounds of these numbers of tokens [n]."""
        return cls.of(key, np.stack([np.ones_like(tokens), np.ones_like(tokens), tokens], axis=1))

    def time_of(self, i: int) -> tuple[float | None, tuple[float, ...] | None]:
        """The seconds per grid of video i, and the times of its grids, as far as they are stated."""
        times = self.times[i] if len(self.times) else None
        seconds = None if self.seconds is None or np.isnan(self.seconds[i]) else float(self.seconds[i])
        return seconds, times

    def which(self, i: int, name: str) -> str:
        """Grid i for messages."""
        frame = i - int(np.searchsorted(self.item, self.item[i]))
        split = (self.item == self.item[i]).sum() > 1
        return f"{name} {self.item[i]}" + (f", frame {frame}" if split else "")

    @property
    def items(self) -> int:
        """Rows of the processor's grids."""
        return int(self.item[-1]) + 1 if len(self.item) else 0


def cut(runs: Runs, media: RunMedia, kind: int, family: Family) -> Runs:
    """The runs of media of a kind, cut by the sizes of their grids: each run then holds one grid.

    RunMedia may touch: what counts is that each run's end, in media tokens of the whole batch, is the end of a grid.

    Raises:
        ValueError: tokens that are not those of the grids.
    """
    if family.markers and kind == T_IMAGE:
        runs = _with_markers_apart(runs, media.tokens, family.markers)
    mine, held = runs.counts(kind)
    tokens, name = media.tokens, MEDIA_TYPES[kind]
    if len(held) == len(tokens) and (held == tokens).all():
        return runs
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
    grids = np.bincount(np.searchsorted(run_ends, grid_ends), minlength=len(mine))
    for run, count in zip(mine.tolist(), grids.tolist(), strict=True):
        if count > 1 and run in runs.sound:
            raise ValueError(
                f"{runs.at(run, 'video and audio')} hold {count} grids of {name}, but are one video with its sound"
            )
    parts = np.ones_like(runs.length)
    parts[mine] = grids
    length, whole = np.repeat(runs.length, parts), np.repeat(runs.type, parts) == kind
    grid_of = np.repeat(np.isin(np.arange(len(parts)), mine), parts).cumsum() - 1  # those of video with sound keep their length
    length[whole] = tokens[grid_of[whole]]
    return runs.split(parts, length)


def _size(grid: np.ndarray, kind: int, family: Family) -> str:
    t, h, w = grid.tolist()
    if kind == T_AUDIO:
        return f"by {family}'s audio encoder"
    row_token = ", with a token at each row's end" if family.row_token else ""
    return f"{t} x {h} x {w} after merge {family.spatial_merge}{row_token}"


def _with_markers_apart(runs: Runs, tokens: np.ndarray, markers: int) -> Runs:
    """Where runs of images hold the markers around them, too, these as text: run by run where each holds one image, and where
    images touch by the tokens of all."""
    mine, held = runs.counts(T_IMAGE)
    if len(mine) == len(tokens):
        marked, images = held == tokens + markers, np.ones_like(mine)
    elif held.sum() == tokens.sum() + markers * len(tokens):
        ends = np.searchsorted(held.cumsum(), (tokens + markers).cumsum())
        marked, images = np.ones(len(mine), dtype=bool), np.bincount(ends, minlength=len(mine))
        if (np.bincount(ends, tokens + markers, minlength=len(mine)) != held).any():
            return runs  # the tokens are as many, but not run by run: a grid is missing
    else:
        return runs
    around, sizes = markers // 2, iter(tokens.tolist())
    pieces = {
        run: [part for _ in range(count) for part in ((T_TEXT, around), (T_IMAGE, next(sizes)), (T_TEXT, markers - around))]
        for run, count in zip(mine.tolist(), images.tolist(), strict=True)
    }
    for run in mine[~marked].tolist():
        del pieces[run]
    plain = zip(runs.type.tolist(), runs.length.tolist(), strict=True)
    made = [part for run, whole in enumerate(plain) for part in pieces.get(run, [whole])]
    kinds, lengths = zip(*made, strict=True) if made else ((), ())
    return Runs.tiled(kinds, lengths, runs.tokens, {})


# --- rows -------------------------------------------------------------------------------------------------------------


_KIND_OF_TYPE = np.array([TEXT, IMAGE, VIDEO, AUDIO, AUDIO_IN_VIDEO, PAD], dtype=np.int8)  # by token type; -1 is the last


def rows_of(runs: Runs, media: Mapping[int, RunMedia], family: Family, batch: int) -> list[Row]:
    """One segment for each run of text or padding, and one for each grid in a run of media; then cut into rows."""
    held = set(runs.type.tolist())
    held |= {T_VIDEO, T_AUDIO} if T_BOTH in held else set()
    media = {kind: items for kind, items in media.items() if kind in held or items.items}
    for kind, items in media.items():
        runs = cut(runs, items, kind, family)
    kinds = _KIND_OF_TYPE[runs.type]
    grid = np.empty((len(kinds), 3), dtype=np.int64)
    grid[:, :2], grid[:, 2] = 1, runs.length
    seconds = np.full(len(kinds), np.nan)
    special: dict[int, Segment] = {}
    for kind, items in media.items():
        mine = runs.counts(kind)[0]
        grid[mine] = items.grid
        if items.seconds is not None:
            seconds[mine] = items.seconds
        for i, times in zip(mine.tolist(), items.times, strict=False):
            if times is not None:
                special[i] = Segment("video", tuple(grid[i].tolist()), None, times)
    if runs.sound:
        special |= _sound_in_video(runs, media)
    for i in runs.sound:
        grid[i] = 1, 1, runs.length[i]
    if family.split_frames:
        kinds[kinds == VIDEO] = FRAME
    for column in (kinds, grid, seconds):
        column.flags.writeable = False
    if batch == 1:
        return [Row(kinds, grid, seconds, tuple(special.items()))]
    edges = runs.start.searchsorted(np.arange(batch + 1) * runs.tokens).tolist()
    return [
        Row(kinds[a:b], grid[a:b], seconds[a:b], tuple((i - a, s) for i, s in special.items() if a <= i < b))
        for a, b in itertools.pairwise(edges)
    ]


def _sound_in_video(runs: Runs, media: Mapping[int, RunMedia]) -> dict[int, Segment]:
    """The segments of videos with their sound, by run."""
    videos, sounds = media[T_VIDEO], media[T_AUDIO]
    video_of, sound_of = ({run: n for n, run in enumerate(runs.counts(kind)[0].tolist())} for kind in (T_VIDEO, T_AUDIO))
    found = {}
    for run, lie in runs.sound.items():
        grid, time = tuple(videos.grid[video_of[run]].tolist()), videos.time_of(video_of[run])
        audio = int(sounds.tokens[sound_of[run]])
        found[run] = Segment("audio_in_video", grid, *time, audio_tokens=audio, runs=lie)
    return found
