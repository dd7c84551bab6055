"""Configs as released: which family a checkpoint is of, and the facts that its config states."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

from mmrope.checkpoints.models import MODELS, PARTS, text_part
from mmrope.files import naming, read_object
from mmrope.positions.families import FAMILIES, family
from mmrope.positions.rules import Family, TokenIds, fact_of, packages_families
from mmrope.positions.timing import MAX_STEP
from mmrope.records import Few, Must, made


def name_of(model_type: str | None) -> str:
    """The family of a model type of Hugging Face configs; empty if there is none in the table."""
    packages_families()
    for row in FAMILIES.values():
        if row.checkpoint.config and model_type in (row.name, *row.checkpoint.model_types):
            return row.name
    return ""


def family_of(model_type: str | None, revision: str | None = None) -> Family:
    """The row of a model type; that of a text config means its family.

    Raises:
        ValueError: it is not in the table.
    """
    stated = str(model_type)
    name = name_of(stated) or name_of(stated.removesuffix("_text"))
    if not name:
        raise ValueError(unknown(stated, {}))
    return family(f"{name}@{revision}" if revision else name)


def unknown(stated: Any, config: Mapping[str, Any]) -> str:
    """Why no family is of a config, and what to do."""
    part = text_part(config)
    names = {str(stated), *PARTS.get(str(stated), {}).values(), *([str(part[1]["model_type"])] if part is not None else [])}
    plain = "mmrope.family('rope'), and mmrope.rotary_from_config reads how they rotate"
    if any(name in MODELS and not MODELS[name].axes for name in names):
        return (
            f"config has model_type {stated!r}, whose tokens have one position each, in text and media alike: that is {plain}"
        )
    known = sorted(
        {name for row in FAMILIES.values() if row.checkpoint.config for name in (row.name, *row.checkpoint.model_types)}
    )
    whole = " A full config is needed, not its text or vision part." if str(stated).endswith(("_text", "_vision")) else ""
    return (
        f"config has model_type {stated!r}, which is not in the table of families.{whole} Models that give each token one "
        f"position, in text and media alike, are {plain}. Known are {', '.join(known)}"
    )


def family_from_config(config: Any, revision: str | None = None) -> Family:
    """The family of a checkpoint, with the facts that its config states.

    Args:
        config: a Hugging Face config object, its dict, or the path of a `config.json` or of the folder that holds it. Of the
            Omni models the whole config or the thinker's.
        revision: whose rule to use, for example "transformers-5.23"; None for the reference.

    Raises:
        ValueError: the model type is not in the table, or the config lacks a fact that the family needs.

    Example:
        >>> import mmrope
        >>> config = {"model_type": "qwen2_5_vl", "vision_config": {"spatial_merge_size": 2, "tokens_per_second": 4}}
        >>> family = mmrope.family_from_config(config)
        >>> family.key, family.ids_per_second
        ('qwen2_5_vl', 4)
    """
    with of_file(config):
        return _family(config, config_dict(config), revision)


def _family(given: Any, config: dict[str, Any], revision: str | None) -> Family:
    name = name_of(config.get("model_type"))
    if not name:
        inner = text_part(config)
        if inner is not None and name_of(inner[1].get("model_type")):  # a wrapper, as ColQwen2's vlm_config
            return _family(inner[1], inner[1], revision)
        raise ValueError(unknown(config.get("model_type"), config))
    row = family(f"{name}@{revision}" if revision else name)
    for paths, wanted in row.checkpoint.only_if.items():
        found = _stated(config, f"{paths}?", row)
        if found != wanted:
            raise ValueError(
                f"{row}: its rule is that of configs with {paths} {wanted!r}, and this one has {found!r}. {_OTHERWISE}"
            )
    left = _class_defaults(given)
    facts: dict[str, Any] = {}
    tokens: dict[str, int] = {}
    for fact, paths in row.checkpoint.config.items():
        if not fact.startswith("token_ids.") and not row.has(fact):
            continue
        value = _stated(config, paths, row)
        if value is not None and fact.startswith("token_ids."):
            tokens[fact.removeprefix("token_ids.")] = value
            try:
                TokenIds(**tokens)
            except ValueError as error:
                raise ValueError(f"{_where(config, paths)}: {error}") from None
        elif value is not None:
            meant = _DOWNSAMPLING.get(value, value) if isinstance(value, str) else value
            meant = made(_FACTS.get(fact, _RATE), meant, _where(config, paths))
            if left and value == _stated(left, paths, row) and meant != fact_of(row, fact):
                raise ValueError(
                    f"{row}: the config object has {paths} {value!r}, which is the class default, and released checkpoints "
                    f"have {fact_of(row, fact)!r}: the config may not state it at all. Pass the config.json, or state {fact} "
                    "in mmrope.family()"
                )
            facts[fact] = meant
    return family(row, **facts, token_ids=TokenIds(**tokens))


def _class_defaults(config: Any) -> dict[str, Any]:
    """What the class of a config object takes for what a config does not state; nothing of a dict, which states all it has."""
    if not hasattr(config, "to_dict"):
        return {}
    return type(config)().to_dict()


_OTHERWISE = (
    "Ming's models without it give each token one position, mmrope.family('rope'), and those with '3D' are placed as "
    "mmrope.family('qwen2_vl')"
)
_RATE = Annotated[float, Must(f"a positive number of at most {MAX_STEP}", lambda x: 0 < x <= MAX_STEP)]
_FACTS: dict[str, Any] = dict.fromkeys(("spatial_merge", "temporal_merge", "frames_per_grid"), Few)
_DOWNSAMPLING: dict[Any, Any] = {"16x": 4, "4x": 2}  # MiniCPM-V's downsample_mode, as patches merged along a side


def _stated(config: Mapping[str, Any], paths: str, row: Family) -> Any:
    """What the config says at the first of these paths that it has."""
    if (path := _where(config, paths)) or paths.endswith("?"):
        return _at(config, path)
    raise ValueError(
        f"{row}: config has no {' and no '.join(paths.split('|'))}. Class defaults differ between versions of transformers, "
        "so mmrope does not guess: add it to the config, or in Python use mmrope.family() and state it"
    )


def _where(config: Mapping[str, Any], paths: str) -> str:
    """The first of these paths that a config has; empty if it has none."""
    return next((path for path in paths.removesuffix("?").split("|") if _at(config, path) is not None), "")


def _at(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def of_file(config: Any) -> AbstractContextManager[None]:
    """Puts the name of a config's file, where it is one, before what is wrong with it."""
    if not isinstance(config, (str, Path)):
        return nullcontext()
    path = Path(config)
    return naming(path / "config.json" if path.is_dir() else path)


def config_dict(config: Any) -> dict[str, Any]:
    """A config as a dict: from a Hugging Face config object, a dict, or a path."""
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, (str, Path)):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"no config at {path}: give a config.json, its folder, a dict or a config object")
        return read_object(path)
    if hasattr(config, "to_dict"):
        return config.to_dict()
    raise ValueError(f"config must be a Hugging Face config, a dict or a path, got {type(config).__name__}")
