"""Writes the tables of what released checkpoints say into docs/encodings.md, from the table of families and from models.json.

python scripts/write_facts.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reports import replace_marked, row  # noqa: E402

from mmrope import FAMILIES, RotarySpec  # noqa: E402
from mmrope.checkpoints import MODELS  # noqa: E402
from mmrope.checkpoints.models import MADE_FROM  # noqa: E402


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
    page = ROOT / "docs" / "encodings.md"
    replace_marked(page, "facts", families())
    replace_marked(page, "models", models())


if __name__ == "__main__":
    main()
