"""What a row of the table of families says: where a family of models puts its tokens.

A `Family` is a placement rule. What else is known of its models stands beside it: `rotary`, how they rotate by the ids,
`checkpoint`, what their configs state, and `reading`, how their media are found among the tokens. Almost every rule is said by
the fields; one that is not has a function in `place`, which is given a segment and where it begins. families.py holds the rows,
and `register_family` adds yours.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np

from mmrope.positions.segments import MAX_TOKENS, Row, Segment, whole_grid, whole_grids
from mmrope.positions.stated import numbers, whole
from mmrope.positions.timing import MAX_STEP, Time, VideoTiming, check_steps, one_clock, time_steps
from mmrope.records import Keys, Must, Positive, hints_of, is_number, made, shown

if TYPE_CHECKING:
    import mmrope

Advance = Literal["max", "spatial", "time", "tokens"]
Origin = Literal["next", "zero"]
Ordinal = Literal["row", "batch"]
Dtype = Literal["int64", "float32"]
Layout = Literal["contiguous", "interleaved", "alternating", "balanced", "axial", "by_channel"]
Pairing = Literal["half", "adjacent", "block_half"]


def _check_fields(record: Any, what: Any) -> None:
    """That each field is of the type that it is declared with. Dicts become such as nobody writes to: a row is everyone's."""
    for name, hint in hints_of(type(record)).items():
        value = made(hint, getattr(record, name), f"{what}: {name}")
        object.__setattr__(record, name, MappingProxyType(value) if isinstance(value, dict) else value)


def check_positive(what: Any, name: str, value: Any) -> None:
    """A positive number, or None."""
    if value is not None and not (is_number(value) and 0 < value <= MAX_STEP):
        raise ValueError(f"{what}: {name} must be a positive number, got {shown(value)}; at most {MAX_STEP:,}")


def _fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record with such a dict, which has no pickle, as a plain one."""
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _remade(cls: type, values: dict[str, Any]) -> Any:
    return cls(**values)


# --- what is known of the models --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids of the special tokens that say where media are: from a checkpoint's config, for inputs without token types.

    Example:
        >>> import mmrope
        >>> from mmrope.positions import TokenIds
        >>> family = mmrope.family("qwen2_vl", token_ids=TokenIds(image=9))
        >>> inputs = {"input_ids": [[5, 9, 9, 7]], "image_grid_thw": [[1, 2, 4]]}  # without mm_token_type_ids
        >>> [segment.kind for segment in mmrope.segments_from_inputs(inputs, family)[0]]
        ['text', 'image', 'text']
    """

    image: int | None = None
    video: int | None = None
    audio: int | None = None
    vision_start: int | None = None
    audio_start: int | None = None
    video_start: int | None = None
    video_end: int | None = None
    image_start: int | None = None
    image_end: int | None = None
    slice_start: int | None = None
    slice_end: int | None = None
    newline: int | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value is not None:
                whole(value, f"token_ids.{f.name}", least=0, of=", the id of a token")


@dataclass(frozen=True, kw_only=True)
class RotaryFacts:
    """How the models of a family rotate by the ids; `RotarySpec.from_family` makes it a spec.

    Example:
        >>> import mmrope
        >>> rotary = mmrope.family("qwen2_vl").rotary
        >>> rotary.layout, rotary.sections, rotary.theta
        ('contiguous', (16, 24, 24), 1000000.0)
    """

    layout: Layout = "contiguous"
    """How the axes share the pairs: "contiguous" t..t h..h w..w, "interleaved" t h w t h w ... then t, "alternating" h w h w
    ... then t, "balanced" each next pair to the axis that has the smallest part of its own, and the last to t; "axial"
    contiguous, each axis with a spectrum of its own; "by_channel" contiguous over channels instead of pairs, which is no
    rotation."""
    sections: tuple[int, ...] = ()
    """Pairs per axis, of the released checkpoints; empty where one axis has all."""
    section_order: str = ""
    """The order in which a config lists the sections, where it is not that of `axes`."""
    still: str = ""
    """Axes whose pairs are not rotated at all."""
    theta: Positive = 1e4
    pairing: Pairing = "half"
    rotary_fraction: Annotated[float, Must("a share of the channels, at most 1", lambda x: 2**-16 <= x <= 1)] = 1.0
    ntk: Positive | None = None
    """By what theta is stretched for longer contexts (NTK-aware scaling), where checkpoints are."""
    released: str = ""
    """The released config that says so, and where it is quoted; empty where no released config was at hand: then
    they are from transformers' code, or those of the family that it was made after, and may not be a checkpoint's."""

    def __post_init__(self) -> None:
        _check_fields(self, "rotary")
        check_positive("rotary", "theta", self.theta)
        check_positive("rotary", "ntk", self.ntk)
        if not 0 < self.rotary_fraction <= 1:
            raise ValueError(f"rotary: rotary_fraction must be above 0 and at most 1, got {self.rotary_fraction!r}")

    @property
    def said_by(self) -> str:
        """Where the facts are from, in words."""
        return f"as in {self.released}" if self.released else "unverified: no released config was at hand"


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """What the configs of a family's models state, and where.

    Example:
        >>> import mmrope
        >>> mmrope.family("qwen2_5_vl").checkpoint.config["ids_per_second"]
        'vision_config.tokens_per_second'
    """

    config: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Facts of a checkpoint -> where its config states them ("a.b|c": a.b, or else c; "?" at the end: may be missing)."""
    model_types: tuple[str, ...] = ()
    """What its configs call it, besides its name."""
    only_if: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Of model types whose rule depends on the config: where it must say what (a path as in `config`) to be of this family."""
    token_ids: TokenIds = TokenIds()
    """Of the checkpoint at hand; the rows of the table know none."""
    recurrent: bool = False
    """Whether some layers carry a state from token to token (linear attention), so that sequences of a pack run into each other
    unless their kernels are told the boundaries."""

    def __post_init__(self) -> None:
        _check_fields(self, "checkpoint")

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), _fields_of(self))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a family's media are found among the tokens of a processor's output: by token types, each run of them cut by the
    sizes of its grids. A kind of media that is read otherwise has a reading of its own.

    Example:
        >>> import mmrope
        >>> mmrope.family("hunyuan_vl").reading.markers
        2
    """

    markers: int = 0
    """Tokens of an image's run around its grid that are placed like text."""
    targets: bool = False
    """Its processor lists the grids of images that are yet to be made, too, behind those of each prompt."""

    def __post_init__(self) -> None:
        _check_fields(self, "reading")

    @property
    def keys(self) -> tuple[str, ...]:
        """What it reads of a processor's output besides tokens and grids."""
        return ()

    @property
    def states_audio(self) -> bool:
        """Whether inputs state the lengths of audio; otherwise an audio is what its run of tokens is."""
        return False

    def rows(
        self,
        host: Mapping[str, np.ndarray],
        given: Mapping[str, Any],
        types: np.ndarray,
        mask: np.ndarray | None,
        family: Family,
        *,
        timed: bool,
    ) -> list[Row] | None:
        """The rows of a batch, where the core's way does not apply.

        Args:
            host: the inputs as arrays; `given` as they came.
            types: [B, S] as in mm_token_type_ids; `mask` [B, S] is False at padding, None where there is none.
            timed: whether timings of videos were given, too.
        """
        return None

    def audio_tokens(self, host: Mapping[str, np.ndarray], given: Mapping[str, Any], family: Family) -> list[int] | None:
        """Tokens of each audio, where inputs state them."""
        return None

    def overlaps(self, one: str, other: str, family: Family) -> bool:
        """Whether the spans of two kinds of media may overlap, their tokens interleaved."""
        return False

    def joined(self, runs: list[Run], begins: Callable[[int], bool], tokens: int, family: Family) -> list[Run]:
        """The runs of a batch, with those that are placed as one joined.

        Args:
            begins: whether a token of the batch is the first of such runs.
            tokens: of each row.
        """
        return runs

    def begins_by_ids(self, ids: np.ndarray, family: Family) -> Callable[[int], bool]:
        """`begins` for the token ids of a batch [B, S]."""
        return lambda token: False

    def image(self, h: int, w: int) -> Segment:
        """The segment of an image of h x w tokens."""
        return Segment.image(h=h, w=w)


Run = tuple[Any, int, int]
"""(type, first token, behind the last): a stretch of tokens of a batch of one type, as in mm_token_type_ids; -1 is padding. Of
runs that a reading joined the type is an object of its own, whose `segment` makes the segment."""


class Placement(Protocol):
    """A function that places a kind of segments: (segment, the id that it begins at, family) -> (ids [A, n] of its tokens, the
    id at which text continues). Ids are whole numbers where the family's are.

    Example:
        >>> import numpy as np
        >>> import mmrope
        >>> def as_one(segment, start, family):  # every token of an image has one id
        ...     return np.full((3, segment.length), start), start + 1
        >>> mine = mmrope.Family(name="as_one", source="mine", media=("image",), place={"image": as_one})
        >>> mmrope.position_ids([mmrope.Segment.image(h=2, w=2), mmrope.Segment.text(2)], mine).ids[0, 0].tolist()
        [0, 0, 0, 0, 1, 2]
    """

    def __call__(self, segment: Any, start: Any, family: Family, /) -> tuple[np.ndarray, Any]:
        """The ids, and the next."""
        ...


# --- where tokens are -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class Family:
    """A row of the table: where a family of models puts its tokens.

    `mmrope.family(name, ids_per_second=4)` states a fact of a checkpoint, `replace` makes a rule of your own of it.

    Example:
        >>> import mmrope
        >>> mine = mmrope.family("qwen2_vl").replace(name="mine", stride=2)  # time ids two apart
        >>> mmrope.position_ids([mmrope.Segment.video(t=3, h=1, w=1)], mine).ids[0, 0].tolist()
        [0, 2, 4]
    """

    name: str
    revision: str = ""
    """Whose rule it is; empty for the reference."""
    source: str
    """Where the rule stands: paper section, or file and version."""

    axes: str = "thw"
    """One letter an axis: t, h, w are a token's place in its grid, p counts the tokens of the row, i the media of the row;
    other letters are filled by `place`."""
    dtype: Dtype = "int64"
    """float32 where ids are fractional."""
    pad_value: int = 0
    """What padding tokens carry."""
    pad_value_without_vision: int | None = None
    """What they carry in batches without images and videos, where that is another value."""
    media: tuple[str, ...] = ("image", "video")
    """The kinds of segments that it places besides text, padding and custom ones."""
    spatial_merge: int = 2
    """Patches per token along h and along w."""
    temporal_merge: int = 1
    """Temporal grids of a video per token along t."""
    frames_per_grid: int = 2
    """Frames that the processor makes one temporal grid of (`temporal_patch_size`)."""
    row_token: bool = False
    """A token more ends each row of an image, and stands in column w."""
    time: Time = "index"
    """The step of temporal grid i: "index" i * stride; "seconds" floor((i * seconds) * ids_per_second), "seconds_rate_first"
    floor(i * (ids_per_second * seconds)), "fractional_seconds" as "seconds" without floor, all in float32 in this order;
    "seconds_float64" floor(i * (seconds * ids_per_second)) in float64; "whole_seconds" i * floor(seconds) * ids_per_second."""
    ids_per_second: float | None = None
    """Ids a second, for the families whose time is in seconds (`tokens_per_second`, `position_id_per_seconds` of a config)."""
    stride: float | None = 1
    """Ids from one temporal grid to the next ("index"), on axis p from one vision token to the next; None where authors leave
    it to the user, who states it."""
    origin: Origin = "next"
    """Where h and w of vision are counted from: the next id, or zero."""
    center: bool = False
    """h and w are counted from the middle of the grid, (n - 1) // 2."""
    couple: bool = False
    """The time step is added to h and w, too."""
    advance: Advance = "max"
    """Where text continues after vision that starts at p: "max" the largest step on any axis + 1 further; "spatial" at
    p + max(h, w), however long the video; "time" the last t + 1; "tokens" as many ids further as there are tokens, times
    stride."""
    ordinal: Ordinal = "row"
    """Over what axis i counts the media."""
    place: Mapping[str, Placement] = field(default_factory=dict, hash=False)
    """Functions for the kinds of segments that these fields cannot place."""

    reading: Reading = Reading()
    """How its media are found among the tokens."""
    rotary: RotaryFacts = RotaryFacts()
    """How the model rotates by the ids."""
    checkpoint: CheckpointFacts = CheckpointFacts()
    """What configs state."""

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and isinstance(self.revision, str) and self.name):
            raise ValueError(f"a family needs a name, got name={shown(self.name)}, revision={shown(self.revision)}")
        _check_fields(self, self)
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"{self}: axes must be different letters, one for each row of ids, got {self.axes!r}")
        if unplaceable := sorted({"text", "pad", "custom"} & {*self.media, *self.place}):
            raise ValueError(f"{self}: every family places {', '.join(unplaceable)} alike; leave them out of media and place")
        unknown = sorted(set(self.place) - set(self.media))
        if unknown:
            raise ValueError(f"{self}: place has functions for {unknown}, which are not among its media {self.media}")
        by_fields = {"image", "frame", "video", "audio"} if set(self.axes) <= set("thwpi") else {"audio"}
        unplaced = set(self.media) - by_fields - set(self.place)
        if unplaced:
            raise ValueError(
                f"{self}: no field says where {sorted(unplaced)} go on the axes {self.axes}: name functions in place"
            )
        for name in ("spatial_merge", "temporal_merge", "frames_per_grid"):
            whole(getattr(self, name), f"{self}: {name}", least=1, of="")
        if self.uses_seconds != (self.ids_per_second is not None):
            raise ValueError(
                f"{self}: ids_per_second belongs to the families whose time is in seconds "
                f"(time={self.time!r}, ids_per_second={self.ids_per_second!r})"
            )
        check_positive(self, "ids_per_second", self.ids_per_second)
        check_positive(self, "stride", self.stride)
        for name in ("pad_value", "pad_value_without_vision"):
            value = getattr(self, name)
            if value is not None and abs(value) > MAX_STEP:
                raise ValueError(f"{self}: {name} must be at most {MAX_STEP:,} either way, got {value!r}")
        if not self.fractional and self.stride is not None and self.stride != int(self.stride):
            raise ValueError(f"{self}: its ids are whole numbers, so stride must be one, got {self.stride!r}")

    @functools.cached_property
    def uses_seconds(self) -> bool:
        """Whether a video's ids depend on its seconds, so that it must state them."""
        return self.time != "index"

    @functools.cached_property
    def split_frames(self) -> bool:
        """Whether a video is a list of frames with text time stamps between them, and each frame is placed like an image."""
        return "frame" in self.media and "video" not in self.media

    @functools.cached_property
    def plain(self) -> bool:
        """Whether its images are placed the usual way: t, h, w counted from the next id, in whole numbers."""
        return self.axes == "thw" and self.origin == "next" and not (self.center or self.couple or self.fractional)

    @functools.cached_property
    def fractional(self) -> bool:
        """Whether ids may be fractions."""
        return self.dtype.startswith("float")

    @functools.cached_property
    def key(self) -> str:
        """The name with its revision, as `mmrope.family` takes it."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def replace(self, *, name: str, **changes: Any) -> Family:
        """A rule of your own, with another name and other fields; those of `rotary`, `checkpoint` and `reading`, too.

        Raises:
            ValueError: the name of this family, unknown fields, values that a family cannot have.

        Example:
            >>> import mmrope
            >>> mine = mmrope.family("qwen3_vl").replace(name="mine", advance="spatial", theta=1e6)
            >>> mine.key, mine.advance, mine.rotary.theta
            ('mine', 'spatial', 1000000.0)
        """
        if name == self.name:
            raise ValueError(f"a changed rule has a name of its own, not that of {self}: name the new one otherwise")
        return changed(self, **{"revision": "", "source": f"{self}, changed", "name": name, **changes})

    def to_dict(self) -> dict[str, Any]:
        """A family as plain JSON: a row of the table by its name and its checkpoint's facts, a rule of your own whole, with its
        functions by the name of a registered family that has them.

        Raises:
            ValueError: a function or a reading that no registered family has: a file holds no code.

        Example:
            >>> import mmrope
            >>> mmrope.family("qwen2_5_vl", ids_per_second=4).to_dict()
            {'name': 'qwen2_5_vl', 'facts': {'ids_per_second': 4}}
        """
        known = None if self.key in OWN else REGISTRY.get(self.key)
        if known is not None:
            facts = {fact: fact_of(self, fact) for fact in FACTS if known.has(fact)}
            changed_facts = {fact: value for fact, value in facts.items() if value != fact_of(known, fact)}
            if changed(known, **changed_facts) == self:
                return {"name": self.key, "facts": {fact: _plain(value) for fact, value in changed_facts.items()}}
        return {"rule": {f.name: _plain(getattr(self, f.name), f.name) for f in dataclasses.fields(self)}}

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> Family:
        """What `to_dict` made, equal to it.

        Raises:
            ValueError: keys that are missing or unknown, a family or a function that is not registered.

        Example:
            >>> import mmrope
            >>> stated = mmrope.family("qwen2_vl").replace(name="mine", stride=2).to_dict()
            >>> mmrope.Family.from_dict(stated).stride
            2
        """
        keys = Keys(stated)
        if set(stated) == {"name", "facts"}:
            row, facts = registered(keys("name", str)), keys("facts", dict)
            hints = {name: hint for record in _records(row) for name, hint in hints_of(type(record)).items()}
            said = {fact: made(hints.get(fact, Any), value, f"facts.{fact}") for fact, value in facts.items()}
            return with_facts(row, said)
        known = {f.name for f in dataclasses.fields(cls)}
        rule = keys("rule", dict) if set(stated) == {"rule"} else {}
        if set(rule) != known:
            differ = sorted(known ^ set(rule)) if rule else sorted(stated)
            raise ValueError(
                f"a family as JSON has the keys name and facts, or rule with {sorted(known)}; look at {shown(differ)}"
            )
        return cls(**{name: _unplain(value, name) for name, value in rule.items()})

    def rotary_spec(self) -> mmrope.RotarySpec:
        """How its released models rotate by the ids: `RotarySpec.from_family`.

        Raises:
            ValueError: one whose upstream does not rotate pairs.

        Example:
            >>> import mmrope
            >>> mmrope.family("qwen3_vl").rotary_spec()
            RotarySpec(head_dim 128, 64 pairs: t 24, h 20, w 20; pairing half)
        """
        import mmrope  # positions know nothing of rotations but this

        return mmrope.RotarySpec.from_family(self)

    def has(self, fact: str) -> bool:
        """Whether a fact of checkpoints means something to the family."""
        vision = not {"image", "frame", "video"}.isdisjoint(self.media) or bool(self.place)
        means = {
            "spatial_merge": vision,
            "temporal_merge": "video" in self.media,
            "frames_per_grid": not {"frame", "video"}.isdisjoint(self.media),
            "ids_per_second": self.uses_seconds,
            "stride": self.stride != 1,
            "token_ids": True,
        }
        return means[fact] if fact in means else getattr(self.reading, fact, None) is not None

    def steps(self, i: np.ndarray, seconds: Any, times: Sequence[float] | None = None) -> np.ndarray:
        """The ids that temporal grids `i` of a video lie after its first: int64, or float32 where ids are fractional.

        Args:
            i: indices of temporal grids, whole numbers of any shape.
            seconds: from one temporal grid to the next, a number or an array like `i`; unused where time is an index.
            times: instead, the seconds of each of the video's temporal grids.
        """
        i = numbers(i, "i, the indices of temporal grids,", "iu")
        if not self.uses_seconds:
            return check_steps(i * ((self.stride or 0) if self.fractional else int(self.stride or 0)))
        return time_steps(self.time, i, seconds, times, float(self.ids_per_second or 0), fractional=self.fractional)

    def image(self, patch_grid: Sequence[int]) -> Segment:
        """The segment of an image, from its patch grid (a row of `image_grid_thw`, [3]).

        Example:
            >>> import mmrope
            >>> mmrope.family("qwen2_vl").image((1, 8, 12)).grid  # a row of image_grid_thw; two patches a token on each side
            (1, 4, 6)
        """
        _, h, w = self.token_grid(whole_grid(patch_grid, "a patch grid"))
        return self.reading.image(h, w)

    def video(
        self,
        patch_grid: Sequence[int],
        *,
        seconds_per_grid: float | None = None,
        times: Sequence[float] | None = None,
        timing: VideoTiming | None = None,
    ) -> Segment:
        """The segment of a video, from its patch grid (a row of `video_grid_thw`, [3]) and its times: seconds from one
        temporal grid to the next, or of each temporal grid (after the temporal merge), or a VideoTiming.

        Example:
            >>> import mmrope
            >>> segment = mmrope.family("qwen2_5_vl").video((4, 8, 12), seconds_per_grid=0.5)
            >>> segment.grid, segment.seconds_per_grid
            ((4, 4, 6), 0.5)
        """
        t, h, w = self.token_grid(whole_grid(patch_grid, "a patch grid"), video=True)
        if self.split_frames:
            raise ValueError(
                f"{self} splits videos: list text (the time stamp) and Segment.frame(h={h}, w={w}) alternately, {t} times"
            )
        if timing is not None:
            one_clock(times if seconds_per_grid is None else seconds_per_grid, timing, "a video", "times or a timing")
            seconds_per_grid, times = self.grid_seconds(timing, patch_grid[0], f"the video of patch grid {tuple(patch_grid)}")
        return Segment.video(t=t, h=h, w=w, seconds_per_grid=seconds_per_grid, times=times)

    def grid_seconds(self, timing: VideoTiming, grids: int, what: str) -> tuple[float | None, tuple[float, ...] | None]:
        """seconds_per_grid and times, one of which is None, of a video with `grids` temporal patch grids.

        Raises:
            ValueError: the timing is that of another number of frames.
        """
        if not isinstance(timing, VideoTiming):
            raise ValueError(f"timing must be a VideoTiming, got {shown(timing)}")
        frames_per_token = self.frames_per_grid * self.temporal_merge
        expected = timing.grids(frames_per_token) * self.temporal_merge  # the last is filled up
        if expected != grids:
            raise ValueError(
                f"{what} has {grids} temporal grids, but its timing lists {len(timing.frame_indices)} sampled frames, "
                f"which make {expected} at {self.frames_per_grid} frames a grid: "
                "pass the timing of the frames that this processor was given"
            )
        seconds = timing.seconds_per_grid(frames_per_token)
        return seconds, None if seconds is not None else timing.grid_times(frames_per_token)

    def token_grids(self, patch_grids: Any, what: str = "patch grid", *, video: bool = False) -> list[tuple[int, int, int]]:
        """Token grids (t, h, w) of patch grids [n, 3]: see `token_grid`."""
        grids = whole_grids(patch_grids, f"{what}s").tolist()
        return [self.token_grid(grid, what, i, video=video) for i, grid in enumerate(grids)]

    def token_grid(
        self, patch_grid: Sequence[int], what: str = "patch grid", number: int = 0, *, video: bool = False
    ) -> tuple[int, int, int]:
        """The token grid (t, h, w) of a patch grid: h and w divided by the spatial merge, and t of a video by the temporal
        merge, which must divide them. An image has one temporal grid."""
        (t, h, w), m = patch_grid, self.spatial_merge
        if t < 1 or h < m or w < m or h % m or w % m:
            raise ValueError(
                f"{what} {number} is {t} x {h} x {w}, but {self} merges {m} x {m} patches to a token: h and w must be positive "
                f"multiples of {m}. Was it made with another merge size, or is it a token grid already?"
            )
        if not video and t != 1:
            raise ValueError(
                f"{what} {number} has {t} temporal grids; an image has one, a video belongs in video_grid_thw (Family.video)"
            )
        if video and t % self.temporal_merge and t != 1:
            raise ValueError(
                f"{what} {number} has {t} temporal grids, but {self} merges {self.temporal_merge} of a video's to a token: the "
                "processor fills them up to a multiple"
            )
        h, w = h // m, w // m + self.row_token
        t = max(t // self.temporal_merge, 1) if video else t
        if t * h * w > MAX_TOKENS:
            raise ValueError(f"{what} {number} has {t} x {h} x {w} tokens, more than {MAX_TOKENS:,}, the most of one segment")
        return t, h, w

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), _fields_of(self))

    def __str__(self) -> str:
        return self.key

    def __repr__(self) -> str:
        return f"Family({self.key!r})"


# --- facts and changes ------------------------------------------------------------------------------------------------

FACTS = (
    *("spatial_merge", "temporal_merge", "frames_per_grid", "ids_per_second", "stride"),
    *("token_ids", "seconds_per_chunk"),
)
"""What belongs to a checkpoint rather than to the rule."""
_RECORDS = ("rotary", "checkpoint", "reading")


def _records(row: Family) -> tuple[Any, ...]:
    return (row, *(getattr(row, name) for name in _RECORDS))


def fact_of(row: Family, fact: str) -> Any:
    """A field of a family, or of one of its records; None if it has none of this name."""
    holder = next((x for x in _records(row) if hasattr(x, fact)), None)
    return getattr(holder, fact, None)


def changed(row: Family, **changes: Any) -> Family:
    """A row with other fields; those of its records by their own names."""
    own = {f.name for f in dataclasses.fields(row)}
    for record in _RECORDS:
        value = changes.get(record, getattr(row, record))
        mine = {f.name: changes.pop(f.name) for f in dataclasses.fields(value) if f.name in changes}
        if mine:
            changes[record] = dataclasses.replace(value, **mine)
    if unknown := sorted(set(changes) - own):
        raise ValueError(
            f"{row}: a family has no {', '.join(unknown)}; it has {', '.join(sorted(own))} and those of its records"
        )
    return dataclasses.replace(row, **changes) if changes else row


def with_facts(row: Family, facts: Mapping[str, Any]) -> Family:
    """A row with a checkpoint's own facts."""
    for fact in facts:
        if fact not in FACTS:
            raise ValueError(
                f"{row}: {fact!r} is not a checkpoint's fact ({', '.join(FACTS)}); to change the rule itself use "
                "Family.replace(name=..., ...)"
            )
        if not row.has(fact):
            raise ValueError(f"{row} has no {fact}: it places {', '.join(row.media)} without; leave it out")
    return changed(row, **facts)


# --- families by name -------------------------------------------------------------------------------------------------

SAME_CODE: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("transformers-5.20", "transformers-5.21", "transformers-5.22", "transformers-5.24"), "transformers-5.23")
)
"""Versions of upstreams -> the one by which the table names their rules, as they place alike (scripts/drift.py)."""
REGISTRY: dict[str, Family] = {}
"""Every family and revision by its key: the rows of families.py, and what `register_family` added."""
OWN: set[str] = set()
"""The keys of the latter."""


def register_family(family: Family) -> Family:
    """Makes a family of your own known by its name: to `mmrope.family`, the command line, `Processor`, and to models that are
    saved with it and loaded where it is registered, too. A package does the same by an entry point of the group
    "mmrope.families" that names the Family.

    Raises:
        ValueError: a name that is taken.

    Example:
        >>> import mmrope
        >>> mine = mmrope.register_family(mmrope.family("qwen2_vl").replace(name="mine_of_the_docs", stride=2))
        >>> mmrope.family("mine_of_the_docs").stride
        2
    """
    if not isinstance(family, Family):
        raise ValueError(f"register_family takes a Family, got {type(family).__name__}")
    if REGISTRY.get(family.key, family) != family:
        raise ValueError(f"the name {family.key!r} is taken by another family: {REGISTRY[family.key].source}")
    if family.key not in REGISTRY:
        REGISTRY[family.key] = family
        OWN.add(family.key)
    return family


@functools.cache
def packages_families() -> None:
    """Registers the families of installed packages, once: entry points of the group "mmrope.families"."""
    for point in entry_points(group="mmrope.families"):
        register_family(point.load())


def registered(key: str) -> Family:
    """The family of this key.

    Raises:
        ValueError: there is none.
    """
    if key not in REGISTRY:
        packages_families()
    name, _, revision = key.partition("@")
    if key not in REGISTRY and revision in SAME_CODE:
        key = f"{name}@{SAME_CODE[revision]}"
    if key not in REGISTRY:
        raise ValueError(_unknown(key))
    return REGISTRY[key]


def _unknown(key: str) -> str:
    name, _, revision = key.partition("@")
    if name in REGISTRY:
        has = [row.revision for row in REGISTRY.values() if row.name == name and row.revision]
        return f"family {name} has no revision {revision!r}; it has {', '.join(has) or 'none'}, and the reference, {name!r}"
    near = difflib.get_close_matches(key, REGISTRY, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if "/" in key or "\\" in key:
        hint = " That looks like a checkpoint: mmrope.family_from_config(its config.json, or the folder) finds its family."
    known = ", ".join(dict.fromkeys(row.name for row in REGISTRY.values()))
    return (
        f"unknown family {key!r}.{hint} Known: {known}. One of your own is made known by register_family. Models that give "
        "each token one position, text and media alike (Llama, LLaVA, InternVL, Gemma 3, Pixtral, ...), are 'rope'; how they "
        "rotate is said by mmrope.rotary_from_config"
    )


def _plain(value: Any, name: str = "") -> Any:
    """A field's value as JSON has it; functions and readings by the name of a row that has them in the same place."""
    if name == "place":
        return {kind: _row_with(function, lambda row, kind=kind: row.place.get(kind)) for kind, function in value.items()}
    if name == "reading":
        of = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not callable(getattr(value, f.name))}
        return {
            "of": _row_with(
                value, lambda row: dataclasses.replace(row.reading, **of) if type(row.reading) is type(value) else None
            ),
            **of,
        }
    if isinstance(value, (TokenIds, RotaryFacts, CheckpointFacts)):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.generic):
        return value.item()
    return dict(value) if isinstance(value, Mapping) else value


def _unplain(value: Any, name: str) -> Any:
    """A field of a rule from JSON."""
    at = f"rule.{name}"
    if name == "place":
        found = {kind: registered(key).place.get(kind) for kind, key in made(Mapping[str, str], value, at).items()}
        if missing := [kind for kind, function in found.items() if function is None]:
            raise ValueError(f"{at}.{missing[0]} names the family {value[missing[0]]}, which has no function for it")
        return found
    if name == "reading":
        reading = registered(Keys(value, at)("of", str)).reading
        hints, given = hints_of(type(reading)), {key: item for key, item in value.items() if key != "of"}
        if unknown := sorted(set(given) - set(hints)):
            raise ValueError(f"{at}.{unknown[0]} is not known; known are {', '.join(hints)}")
        return dataclasses.replace(reading, **{key: made(hints[key], item, f"{at}.{key}") for key, item in given.items()})
    return made(hints_of(Family)[name], value, at)


def _row_with(value: Any, of: Callable[[Family], Any]) -> str:
    for key, row in REGISTRY.items():
        if of(row) == value:
            return key
    raise ValueError(
        f"{value!r} is of no registered family, and a file holds no code: it cannot be saved. register_family makes its family "
        "known, here and where it is loaded"
    )
