"""How each family of models places tokens and allocates frequencies: one table, a row a family and revision.

A row without a revision is the reference: the rule that the released weights were trained with. `@transformers-5.23` is
what that version of transformers computes instead. To add a family, add a row here and its expected ids in
tests/references/; nothing else in the library names a family.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mmrope.positions.segments import Segment, whole_grids

Time = Literal["index", "constant", "seconds", "seconds_rate_first"]
Advance = Literal["max", "spatial"]
Layout = Literal["contiguous", "interleaved"]
Pairing = Literal["half", "adjacent"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A row of the table: where a family of models puts its tokens, and which axis turns which frequency.

    Change a fact with `family(name, ids_per_second=4)`, anything else with `dataclasses.replace`.
    """

    name: str
    revision: str = ""
    """Whose rule it is; empty for the reference."""
    source: str
    """Where the rule stands: paper section, or file and version."""

    # where is each token
    axes: str = "thw"
    dtype: str = "int64"
    pad_value: int = 0
    """What padding tokens carry."""
    spatial_merge: int = 2
    """Patches per token along h and along w."""
    split_frames: bool = False
    """A video is a list of frames with text time stamps between them, and each frame is placed like an image."""
    time: Time = "index"
    """The step of temporal grid i: "index" i; "constant" 0; "seconds" floor((i * seconds) * ids_per_second), and
    "seconds_rate_first" floor(i * (ids_per_second * seconds)), both in float32 in this order."""
    ids_per_second: float | None = None
    """Ids a second, for the families whose time is in seconds (`tokens_per_second` of a config)."""
    advance: Advance = "max"
    """Where text goes on after vision that starts at p: "max" the largest id of the block on any axis + 1; "spatial"
    p + max(h, w), whatever the length of the video."""

    # how the model feels it
    layout: Layout
    """How the axes share the pairs: "contiguous" t..t h..h w..w, "interleaved" t h w t h w ... then t."""
    sections: tuple[int, ...]
    """Pairs per axis, of the released checkpoints."""
    theta: float
    pairing: Pairing = "half"
    rotary_fraction: float = 1.0

    # a checkpoint's token ids, from its config
    image_token_id: int | None = None
    video_token_id: int | None = None

    def __post_init__(self) -> None:
        for field, allowed in (("time", Time), ("advance", Advance), ("layout", Layout), ("pairing", Pairing)):
            if getattr(self, field) not in get_args(allowed):
                raise ValueError(f"{self}: {field} must be one of {get_args(allowed)}, got {getattr(self, field)!r}")
        if not isinstance(self.spatial_merge, int) or self.spatial_merge < 1:
            raise ValueError(f"{self}: spatial_merge must be a whole number of patches, at least 1, got {self.spatial_merge!r}")
        if self.uses_seconds != (self.ids_per_second is not None):
            raise ValueError(
                f"{self}: ids_per_second belongs to the families whose time is in seconds "
                f"(time={self.time!r}, ids_per_second={self.ids_per_second!r})"
            )
        if self.ids_per_second is not None and not (math.isfinite(self.ids_per_second) and self.ids_per_second > 0):
            raise ValueError(f"{self}: ids_per_second must be a positive number, got {self.ids_per_second!r}")

    @property
    def uses_seconds(self) -> bool:
        """Whether a video's ids depend on its seconds, so that it must state them."""
        return self.time in ("seconds", "seconds_rate_first")

    @property
    def key(self) -> str:
        """The name with its revision, as `family` takes it."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def image(self, patch_grid: Sequence[int]) -> Segment:
        """The segment of an image, from its patch grid (a row of `image_grid_thw`, [3])."""
        t, h, w = self.token_grids([patch_grid])[0].tolist()
        if t != 1:
            raise ValueError(f"{self}: an image has one temporal grid, got patch grid {tuple(patch_grid)}; use Family.video")
        return Segment.image(h=h, w=w)

    def video(
        self, patch_grid: Sequence[int], *, seconds_per_grid: float | None = None, times: Sequence[float] | None = None
    ) -> Segment:
        """The segment of a video, from its patch grid (a row of `video_grid_thw`, [3])."""
        t, h, w = self.token_grids([patch_grid])[0].tolist()
        if self.split_frames:
            raise ValueError(
                f"{self} splits videos: list text (the time stamp) and Segment.frame(h={h}, w={w}) alternately, {t} times"
            )
        return Segment.video(t=t, h=h, w=w, seconds_per_grid=seconds_per_grid, times=times)

    def token_grids(self, patch_grids: Any, what: str = "patch grid") -> np.ndarray:
        """Token grids [n, 3] of patch grids [n, 3]: h and w divided by the spatial merge, which must divide them."""
        grids, m = whole_grids(patch_grids, f"{self}: {what}s"), self.spatial_merge
        bad = (grids < 1).any(axis=1) | (grids[:, 1:] % m != 0).any(axis=1)
        if bad.any():
            i = int(np.argmax(bad))
            t, h, w = grids[i].tolist()
            raise ValueError(
                f"{what} {i} is {t} x {h} x {w}, but {self} merges {m} x {m} patches to a token: h and w must be positive "
                f"multiples of {m}. Was it made with another merge size, or is it a token grid already?"
            )
        return grids // [1, m, m]

    def __str__(self) -> str:
        return self.key


# --- the table -----------------------------------------------------------------------------------------------------

_QWEN_TRAINING = "QwenLM/Qwen3-VL at commit 9658872, qwen-vl-finetune/qwenvl/data/rope2d.py"

_QWEN2_VL = Family(
    name="qwen2_vl",
    source=f"Qwen2-VL paper (arXiv 2409.12191), section 2.1; {_QWEN_TRAINING}, get_rope_index_2",
    layout="contiguous",
    sections=(16, 24, 24),
    theta=1e6,
)
_QWEN2_5_VL = dataclasses.replace(
    _QWEN2_VL,
    name="qwen2_5_vl",
    source=f"Qwen2.5-VL paper (arXiv 2502.13923), section 2.1.2; {_QWEN_TRAINING}, get_rope_index_25",
    time="seconds",
    ids_per_second=2.0,
)
_QWEN3_VL = Family(
    name="qwen3_vl",
    source=f"{_QWEN_TRAINING}, get_rope_index_3",
    split_frames=True,
    layout="interleaved",
    sections=(24, 20, 20),
    theta=5e6,
)


def _transformers_5_23(row: Family, **changes: Any) -> Family:
    source = f"transformers 5.23.0, models/{row.name}/modeling_{row.name}.py, get_rope_index"
    return dataclasses.replace(row, revision="transformers-5.23", source=source, advance="spatial", **changes)


FAMILIES: dict[str, Family] = {
    row.key: row
    for row in (
        _QWEN2_VL,
        _transformers_5_23(_QWEN2_VL),
        _QWEN2_5_VL,
        _transformers_5_23(_QWEN2_5_VL, time="seconds_rate_first"),
        _QWEN3_VL,
        _transformers_5_23(_QWEN3_VL),
    )
}
"""Every family and revision, by name."""

FACTS = ("spatial_merge", "ids_per_second", "image_token_id", "video_token_id")
"""The fields of a Family that belong to a checkpoint rather than to the rule."""


def family(name: str | Family, **facts: Any) -> Family:
    """The row `name` ("qwen2_5_vl", or "qwen2_5_vl@transformers-5.23" for an upstream's rule), with a checkpoint's own facts.

    Facts are `spatial_merge`, `ids_per_second`, `image_token_id`, `video_token_id`. For a checkpoint at hand,
    `family_from_config` reads them.

    Raises:
        ValueError: unknown name, unknown fact, or a fact that this family does not have.
    """
    if isinstance(name, Family):
        row = name
    elif name in FAMILIES:
        row = FAMILIES[name]
    else:
        near = difflib.get_close_matches(str(name), FAMILIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown family {name!r}.{hint} Known: {', '.join(FAMILIES)}")
    for fact in facts:
        if fact not in FACTS:
            raise ValueError(
                f"{row}: {fact!r} is not a checkpoint's fact ({', '.join(FACTS)}); "
                "to change the rule itself use dataclasses.replace"
            )
    return dataclasses.replace(row, **facts) if facts else row


def family_from_config(config: Any, revision: str | None = None) -> Family:
    """The family of a checkpoint, with the facts that its config states.

    Args:
        config: a Hugging Face config object, its dict, or the path of a `config.json` or of the folder that holds it.
        revision: whose rule to use, for example "transformers-5.23"; None for the reference.

    Raises:
        ValueError: the model type is not in the table, or the config lacks a fact that the family needs.
    """
    config = config_dict(config)
    name = config.get("model_type")
    rows = {row.name for row in FAMILIES.values()}
    if name not in rows:
        raise ValueError(
            f"config has model_type {name!r}; the families are {', '.join(sorted(rows))}. "
            "A full config is needed, not its text or vision part"
        )
    row = family(f"{name}@{revision}" if revision else name)
    vision = config.get("vision_config") or {}
    facts = {"spatial_merge": _fact(vision, row, "spatial_merge_size")}
    if row.uses_seconds:
        facts["ids_per_second"] = _fact(vision, row, "tokens_per_second")
    for token in ("image_token_id", "video_token_id"):
        facts[token] = config.get(token)
    return family(row, **facts)


def _fact(vision: Mapping[str, Any], row: Family, key: str) -> Any:
    if vision.get(key) is None:
        raise ValueError(
            f"{row}: config has no vision_config.{key}. Class defaults differ between versions of transformers, "
            "so mmrope does not guess: add it, or use mmrope.family() and state it"
        )
    return vision[key]


def config_dict(config: Any) -> dict[str, Any]:
    """A config as a dict: from a Hugging Face config object, a dict, or a path."""
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, (str, Path)):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"no config at {path}: give a config.json, its folder, a dict or a config object")
        return json.loads(path.read_text(encoding="utf-8"))
    if hasattr(config, "to_dict"):
        return config.to_dict()
    raise ValueError(f"config must be a Hugging Face config, a dict or a path, got {type(config).__name__}")
