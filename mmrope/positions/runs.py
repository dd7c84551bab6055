"""What the doors in share: tokens by type -> runs of one type -> media, cut by their grids -> rows of segments.

Here tokens and grids that do not belong together are refused, with the row, the item and its tokens in the message.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
    """The longest stretches of one token type in each row, in the order of the batch."""

    type: np.ndarray  # [n]
    start: np.ndarray  # [n], token of the batch
    length: np.ndarray  # [n]
    tokens: int
    """Tokens of each row."""
    sound: Mapping[int, tuple[int, ...]]
    """For a run of video with its sound: so many tokens of the video, of its sound, of the video, ..."""

    @classmethod
    def of(cls, types: np.ndarray, mask: np.ndarray | None, family: Family) -> Runs:
        batch, tokens = types.shape
        flat = np.ascontiguousarray(types).reshape(-1)
        changes = flat[1:] != flat[:-1]
        if mask is not None and (mask == 1).all():
            mask = None
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
            kind = cls._masked(kind, mask[start])
        return cls(kind, start, length, tokens, {})

    @staticmethod
    def _masked(kind: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if ((mask != 0) & (mask != 1)).any():
            raise ValueError(
                "attention_mask must be 1 at real tokens and 0 at padding; packed sequences (1, 1, 2, 2, ...) and additive "
                "masks (0, -inf) say something else: give rows one by one, each with its own mask"
            )
        return np.where(mask == 0, T_PADDING, kind)

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
    sound, the two are interleaved up to the end markers: one run, with the two start and the two end markers."""
    same_row = runs.start[1:] % max(runs.tokens, 1) != 0
    touches = ((runs.type[1:] >= T_VIDEO) & (runs.type[:-1] >= T_VIDEO) & same_row).tolist()  # run n and run n + 1
    if not any(touches):
        return runs
    kind, start, length = runs.type.tolist(), runs.start.tolist(), runs.length.tolist()
    merged: list[tuple[int, int, int]] = []
    sound: dict[int, tuple[int, ...]] = {}
    i = 0
    while i < len(kind):
        j = i
        while j < len(touches) and touches[j]:
            j += 1
        begin, end = start[i], start[j] + length[j]
        if j == i or begin % runs.tokens < 2 or not begins_at(begin):
            merged += [(kind[n], start[n], length[n]) for n in range(i, j + 1) if length[n]]
        else:
            if -end % runs.tokens < 2 or kind[j + 1] != T_TEXT:
                row, first = divmod(begin, runs.tokens)
                raise ValueError(
                    f"row {row}: the video and its sound at {first}..{first + end - begin - 1} are not followed by their two "
                    "end markers; was the row truncated?"
                )
            last_kind, last_start, last_length = merged.pop()
            if last_length > 2:
                merged.append((last_kind, last_start, last_length - 2))
            sound[len(merged)] = tuple(length[i : j + 1]) if kind[i] == T_VIDEO else (0, *length[i : j + 1])
            merged.append((T_BOTH, begin - 2, end + 2 - (begin - 2)))
            start[j + 1], length[j + 1] = start[j + 1] + 2, length[j + 1] - 2
        i = j + 1
    kinds, starts, lengths = (np.array(column) for column in zip(*merged, strict=True))
    return Runs(kinds, starts, lengths, runs.tokens, sound)


def with_end_markers_apart(runs: Runs) -> Runs:
    """The token after media as a run of its own. Fractional ids are rounded at every step, and upstream counts the end marker
    by itself: as one with the text after it, ids would differ in the last bit."""
    after = (runs.type[1:] == T_TEXT) & (runs.type[:-1] >= T_IMAGE) & (runs.type[:-1] != T_BOTH)
    split = np.flatnonzero(after & (runs.start[1:] % max(runs.tokens, 1) != 0) & (runs.length[1:] > 1)) + 1
    length, start = runs.length.copy(), runs.start.copy()
    length[split] -= 1
    start[split] += 1
    shifted = {run + int((split <= run).sum()): lie for run, lie in runs.sound.items()}
    return Runs(
        np.insert(runs.type, split, T_TEXT),
        np.insert(start, split, runs.start[split]),
        np.insert(length, split, 1),
        runs.tokens,
        shifted,
    )


# --- media ------------------------------------------------------------------------------------------------------------


_NO_GRIDS, _NONE = np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Media:
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
    ) -> Media:
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
    def sounds(cls, key: str, tokens: np.ndarray) -> Media:
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


@dataclass(frozen=True, eq=False)
class _Cut:
    """How the runs that hold media of a kind are cut into grids."""

    runs: np.ndarray
    grids: np.ndarray | None = None
    """[n] grids in each of these runs; None for one in each, without markers."""
    markers: int = 0
    """Tokens around each grid that are placed like text."""

    def only_grid_of(self, runs: Runs, name: str) -> Callable[[int], int]:
        """For a run that must hold one grid, its number."""
        counts = np.ones_like(self.runs) if self.grids is None else self.grids
        held = dict(zip(self.runs.tolist(), zip(counts.tolist(), counts.cumsum().tolist(), strict=True), strict=True))

        def grid(run: int) -> int:
            count, end = held[run]
            if count != 1:
                raise ValueError(
                    f"{runs.at(run, 'video and audio')} hold {count} grids of {name}, but are a video with its sound"
                )
            return end - 1

        return grid


def _cut(runs: Runs, media: Media, kind: int, family: Family) -> _Cut:
    """Cuts the runs of media by the sizes of their grids, so a run must end where a grid ends.

    Media may touch: what counts is that each run's end, in media tokens of the whole batch, is the end of a grid.
    """
    mine, held = runs.counts(kind)
    tokens, markers = media.tokens, 0
    if family.markers and kind == T_IMAGE and held.sum() == tokens.sum() + family.markers * len(tokens):
        tokens, markers = tokens + family.markers, family.markers
    if not markers and len(held) == len(tokens) and (held == tokens).all():
        return _Cut(mine)
    name = MEDIA_TYPES[kind]
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
    if kind == T_AUDIO:
        return f"by {family}'s audio encoder"
    return f"{t} x {h} x {w} after merge {family.spatial_merge}" + (
        ", with a token at each row's end" if family.row_token else ""
    )


# --- rows -------------------------------------------------------------------------------------------------------------


_KIND_OF_TYPE = np.array([TEXT, IMAGE, VIDEO, AUDIO, AUDIO_IN_VIDEO, PAD], dtype=np.int8)  # by token type; -1 is the last


def rows_of(runs: Runs, media: Mapping[int, Media], family: Family, batch: int) -> list[Row]:
    """One segment for each run of text or padding, and one for each grid in a run of media; then cut into rows."""
    held = set(runs.type.tolist())
    held |= {T_VIDEO, T_AUDIO} if T_BOTH in held else set()
    media = {kind: items for kind, items in media.items() if kind in held or items.items}
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


def _special_of_sound(runs: Runs, media: Mapping[int, Media], cuts: Mapping[int, _Cut]) -> dict[int, Segment]:
    """The segments of videos with their sound."""
    videos, sounds = media[T_VIDEO], media[T_AUDIO]
    video_of, sound_of = (cuts[kind].only_grid_of(runs, MEDIA_TYPES[kind]) for kind in (T_VIDEO, T_AUDIO))
    found = {}
    for run, lie in runs.sound.items():
        video, sound = video_of(run), sound_of(run)
        grid, time = tuple(videos.grid[video].tolist()), videos.time_of(video)
        found[run] = Segment("audio_in_video", grid, *time, audio_tokens=int(sounds.tokens[sound]), runs=lie)
    return found


def _rows_of_touching_media(
    runs: Runs, media: Mapping[int, Media], cuts: Mapping[int, _Cut], family: Family, batch: int
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
            used[T_VIDEO], used[T_AUDIO] = used[T_VIDEO] + 1, used[T_AUDIO] + 1
        elif kind in (T_TEXT, T_PADDING):
            row.append(Segment.text(length) if kind == T_TEXT else Segment.pad(length))
        else:
            marker = [Segment.text(cuts[kind].markers // 2)] if cuts[kind].markers else []
            for n in range(used[kind], used[kind] + held[kind, run]):
                row += [*marker, _segment(media[kind], n, kind, family), *marker]
            used[kind] += held[kind, run]
    return [Row.of(row) for row in rows]


def _segment(media: Media, n: int, kind: int, family: Family) -> Segment:
    grid = tuple(media.grid[n].tolist())
    if kind == T_VIDEO and not family.split_frames:
        return Segment("video", grid, *media.time_of(n))
    return Segment({T_IMAGE: "image", T_VIDEO: "frame", T_AUDIO: "audio"}[kind], grid)
