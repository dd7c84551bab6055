"""The table of families: their models on mmrope's ids and rotations against themselves, by the installed transformers.

    python scripts/prove_families.py [--write]

Tiny models with random weights in float32 on the CPU. --write puts the table into scripts/results, and those of all versions
that are there into docs/adapters.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from reports import read_result, replace_marked, write_result  # noqa: E402

from tests.support import tiny_models  # noqa: E402
from tests.support.proof import proven  # noqa: E402
from tests.support.upstream_ids import TRANSFORMERS  # noqa: E402

PAGE, RESULTS = ROOT / "docs" / "adapters.md", ROOT / "scripts" / "results"
COLUMNS = ("ids", "rotary", "logits", "generate", "packed")


def table(found: dict[str, Any]) -> Iterator[str]:
    """A table in Markdown, with what it was measured with."""
    yield f"{found['upstream'].replace('-', ' ')}, torch {found['torch']}, {found['date']}:"
    yield ""
    yield f"| family | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---|' * len(COLUMNS)}"
    for name, row in found["families"].items():
        cells = (
            "equal" if row[key] is True else f"{row[key]:.0e}" if isinstance(row[key], float) else row[key] for key in COLUMNS
        )
        yield f"| `{name}` | {' | '.join(map(str, cells))} |"
    yield ""


def pages() -> Iterator[str]:
    """Those of all result files."""
    for path in sorted(RESULTS.glob("prove_families_*.json"), reverse=True):
        yield from table(read_result(path, "families"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    found: dict[str, Any] = {
        "upstream": f"transformers-{transformers.__version__}",
        "torch": torch.__version__,
        "date": str(date.today()),
    }
    found["families"] = {name: proven(name) for name in tiny_models.MODELS}
    print("\n".join(table(found)))
    if asked.write:
        write_result(RESULTS / f"prove_families_{TRANSFORMERS}.json", found)
        replace_marked(PAGE, "families", pages())


if __name__ == "__main__":
    main()
