"""Writes the README's table of families, and those of what released checkpoints say into docs/encodings.md, from the table of
families and from models.json.

python scripts/write_facts.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reports import replace_marked, row  # noqa: E402

from mmrope import FAMILIES, Family, RotarySpec  # noqa: E402
from mmrope.checkpoints import MODELS  # noqa: E402
from mmrope.checkpoints.models import MADE_FROM  # noqa: E402
from mmrope.positions.families import departures  # noqa: E402


def families() -> Iterator[str]:
    """How each family of released models rotates, and where that is from."""
    yield row("family", "theta", "pairs by axis", "layout", "pairs are", "rotated channels", "as in")
    yield row(*["---"] * 7)
    for family in FAMILIES.values():
        facts = family.rotary
        if family.revision or not family.checkpoint.config:
            continue
        spec = RotarySpec.from_family(family)
        stretch = f", stretched by {facts.ntk:g}" if facts.ntk else ""
        yield row(
            f"`{family.name}`",
            f"{facts.theta:g}{stretch}",
            ", ".join(f"{axis} {n}" for axis, n in zip(family.axes, facts.sections, strict=True)),
            facts.layout,
            facts.pairing,
            f"{spec.rotary_dim} of {spec.head_dim}",
            facts.said_by.removeprefix("as in "),
        )


def placing() -> Iterator[str]:
    """How each family places, families that place alike in one line, and which upstreams depart from it."""
    yield row("family", "a video is", "its time ids", "text after media starts at", "upstreams that differ")
    yield row(*["---"] * 5)
    alike: dict[tuple[str, ...], list[str]] = {}
    for family in FAMILIES.values():
        if not family.revision:
            alike.setdefault((_video(family), _time(family), _after(family), _upstreams(family)), []).append(f"`{family.name}`")
    for cells, names in alike.items():
        yield row(", ".join(names), *cells)


_BY_FUNCTION = {  # of families whose media a function places
    "vrope": ("four diagonals", "h + w - 1 a frame", "behind its last frame"),
    "circle": ("-", "images lie on a circle around the line of text", "largest id + 1"),
    "on_canvas": (
        "frames, each a thumbnail with detail crops on one canvas",
        "one per frame",
        "start + max(h, w) + 1 of the canvas",
    ),
    "around_its_place": ("-", "images are centred on the ids that their tokens would have as text", "one id a token"),
}


def _function(family: Family) -> tuple[str, str, str] | None:
    names = [getattr(function, "__name__", "") for function in family.place.values()]
    return next((_BY_FUNCTION[name] for name in names if name in _BY_FUNCTION), None)


def _video(family: Family) -> str:
    if found := _function(family):
        return found[0]
    if family.axes == "p":
        return "tokens"
    if "video" not in family.media:
        axes = "" if family.axes == "thw" else f" (axes {', '.join(family.axes)})"
        ends = ", with a token at each row's end" if family.row_token else ""
        return ("frames, each placed as an image" if "frame" in family.media else f"{family.media[0]}s alone") + ends + axes
    words = ["one block"]
    words += [f"{family.temporal_merge} temporal grids a token"] if family.temporal_merge > 1 else []
    words += ["centred"] if family.center else []
    words += ["h and w move with time"] if family.couple else []
    words += ["or interleaved with its audio"] if "audio_in_video" in family.media else []
    return ", ".join(words) + ("; or frames, each placed as an image" if "frame" in family.media else "")


def _time(family: Family) -> str:
    if found := _function(family):
        return found[1]
    if family.uses_seconds:
        whole = "floor({})" if family.time != "fractional_seconds" else "{}"
        return whole.format("index x seconds x ids per second")
    stride = "" if family.stride == 1 else f"{family.stride or 'stride (users state it)'} x "
    if family.axes == "p" and family.stride != 1:
        return f"{stride}token"
    zero = "; h and w are counted from 0" if family.origin == "zero" else ""
    if "video" in family.media and family.axes == "thw":
        return f"{stride}grid index{zero}"
    return ("one per frame" if "frame" in family.media and family.axes == "thw" else "-") + zero


def _after(family: Family) -> str:
    if found := _function(family):
        return found[2]
    if family.advance == "max" and family.axes in ("thw", "hw"):
        return "largest id + 1" if family.origin == "next" else "start + max(h, w)"
    return {"time": "last t + 1", "tokens": "one id a token" if family.stride == 1 else "stride a token"}.get(
        family.advance, "-"
    )


def _upstreams(family: Family) -> str:
    rows = [row for row in FAMILIES.values() if row.name == family.name and row.revision]
    said = [
        f"{row.revision.replace('-', ' ').replace('vllm', 'vLLM')}: {'; '.join(words)}"
        for row in rows
        if (words := departures(row))
    ]
    return ". ".join(said) or ("none" if rows else "")


def models() -> Iterator[str]:
    """How many models of text and audio are read, by what their code does."""
    read = {name: model for name, model in MODELS.items() if not model.axes}
    yield f"{len(read)} model types of {MADE_FROM} are read, besides the families:"
    yield ""
    yield row("what their code does", "model types")
    yield row("---", "---")
    kinds = {
        "turns neighbours": lambda m: m.pairing == "adjacent",
        "rotates a part of each head (`partial_rotary_factor`)": lambda m: m.partial,
        "rotates a part of its own (`qk_rope_head_dim`)": lambda m: m.width == "apart",
        "has frequencies by type of layer": lambda m: m.layers,
        "does not rotate some layers": lambda m: m.still or m.no_rope_layers,
        "multiplies scores by YaRN's second factor": lambda m: m.score,
        "multiplies queries by a temperature": lambda m: m.temperature,
    }
    for words, holds in kinds.items():
        yield row(words, ", ".join(f"`{name}`" for name, model in read.items() if holds(model)))


def main() -> None:
    replace_marked(ROOT / "README.md", "families", placing())
    page = ROOT / "docs" / "encodings.md"
    replace_marked(page, "facts", families())
    replace_marked(page, "models", models())


if __name__ == "__main__":
    main()
