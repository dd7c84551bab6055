"""Fills tests/references/<family>.json with what upstreams compute.

    python scripts/make_references.py [--authors FOLDER] [--vllm FOLDER] [--sglang FOLDER]

The installed transformers fills its own revision; run it in one environment for each version. `--vllm` is the folder
model_executor/models of vLLM's source, `--sglang` the package's folder of SGLang's, `--authors` one that holds the authors'
repositories as owner/name, at the commits that the table of families names. Tables of the reference rule (revision "") that
were made by hand stay as they are, and must be what the authors' code computes; the others are computed by it. Rows are never
changed: a new case needs a name, rows, and `"expected": {}` or a table by hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from drift import sglang_module  # noqa: E402

from mmrope import FAMILIES, Family, Segment  # noqa: E402
from tests.adapters.test_serving import sglang_request  # noqa: E402
from tests.support.authors import AUTHORS, TOUCHING, authors_ids  # noqa: E402
from tests.support.reference_format import segment  # noqa: E402
from tests.support.upstream_ids import IN_TRANSFORMERS, TRANSFORMERS, VLLM, as_inputs, transformers_ids, vllm_ids, with_tokens  # noqa: E402

INSTALLED = f"transformers {version('transformers')}, torch {version('torch')}"
Rows = list[list[Segment]]


def by_transformers(family: Family, rows: Rows) -> dict[str, Any]:
    """What the installed transformers computes for rows: ids and rope_deltas."""
    ids, deltas = transformers_ids(family, as_inputs(rows, family, types=not TRANSFORMERS.endswith("-4.57")))
    return {"ids": ids.tolist(), **({} if family.name == "neomme" else {"rope_deltas": deltas.tolist()})}


def by_vllm(folder: Path, family: Family, rows: Rows) -> dict[str, Any]:
    """What vLLM computes for each row by itself, without padding."""
    return {"ids": _row_by_row(family, rows, lambda row: vllm_ids(folder, family, row)[0])}


def by_sglang(folder: Path, family: Family, rows: Rows) -> dict[str, Any]:
    """What SGLang computes for each row by itself, without padding."""
    module = sglang_module(folder)

    def ids_of(row: Any) -> np.ndarray:
        function, arguments = sglang_request([row], family)
        return getattr(module, function)(**arguments)[0][:, 0].numpy()

    return {"ids": _row_by_row(family, rows, ids_of)}


def by_authors(folder: Path, family: Family, rows: Rows) -> dict[str, Any]:
    """What the authors' code computes for each row by itself, without padding."""
    return {"ids": _row_by_row(family, rows, lambda row: authors_ids(folder, family, row))}


def _row_by_row(family: Family, rows: Rows, ids_of: Any) -> Any:
    made = np.full((len(family.axes), len(rows), sum(s.length for s in rows[0])), family.pad_value, dtype=family.dtype)
    for b, row in enumerate(rows):
        real = np.concatenate([np.full(s.length, s.kind != "pad") for s in row])
        made[:, b, real] = ids_of([s for s in row if s.kind != "pad"])
    return made.tolist()


def reference_by_transformers(family: Family, rows: Rows) -> dict[str, Any]:
    """The reference of families whose rule is that of transformers' own code, with the reference's padding."""
    made = np.array(by_transformers(family, rows)["ids"], dtype=family.dtype)
    for b, row in enumerate(rows):
        made[:, b, np.concatenate([np.full(s.length, s.kind == "pad") for s in row])] = family.pad_value
    return {"ids": made.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--sglang", type=Path)
    given = parser.parse_args()
    for path in sorted((ROOT / "tests" / "references").glob("*.json")):
        reference = json.loads(path.read_text())
        name = reference["family"]
        upstreams: dict[str, tuple[str, Any]] = {}
        if name in IN_TRANSFORMERS:
            upstreams[TRANSFORMERS] = (f"by scripts/make_references.py, {INSTALLED}", by_transformers)
        if name in IN_TRANSFORMERS and f"transformers {version('transformers')}," in FAMILIES[name].source:
            upstreams[""] = (f"by hand, and by scripts/make_references.py, {INSTALLED}", reference_by_transformers)
        if given.authors and name in AUTHORS:
            source = FAMILIES[name].source
            by_hand = any(case["expected"].get("", {}).get("by_hand") for case in reference["cases"])
            upstreams[""] = (
                f"{'by hand, and ' * by_hand}by scripts/make_references.py from the authors' code: {source}",
                lambda family, rows: by_authors(given.authors, family, rows),
            )
        if given.vllm and name in VLLM:
            upstreams["vllm-0.33"] = (
                "by scripts/make_references.py from vLLM 0.33.0's source",
                lambda family, rows: by_vllm(given.vllm, family, rows),
            )
        if given.sglang and f"{name}@sglang-0.5" in FAMILIES:
            upstreams["sglang-0.5"] = (
                "by scripts/make_references.py from SGLang 0.5.23's source",
                lambda family, rows: by_sglang(given.sglang, family, rows),
            )
        for revision, (how, make) in upstreams.items():
            reference.setdefault("made", {})[revision] = how
            family = with_tokens(f"{name}@{revision}" if revision else name, **reference.get("facts", {}))
            for case in reference["cases"]:
                fill(case, revision, family, make)
        path.write_text(compact(reference))
        print(f"{path.name}: {len(reference['cases'])} cases, {', '.join(filter(None, reference['made']))}")


def fill(case: dict[str, Any], revision: str, family: Family, make: Any) -> None:
    """Fills a case's table of a revision; one that was made by hand (it says where text goes on) must be the same."""
    rows = [[segment(*item) for item in row] for row in case["rows"]]
    touch = any(
        a.kind not in ("text", "pad") and b.kind not in ("text", "pad") for row in rows for a, b in itertools.pairwise(row)
    )
    if touch and (revision or family.name not in TOUCHING):
        return  # upstreams need text between media: they raise, or place all like text
    kinds = {s.kind for row in rows for s in row}
    if not kinds <= {"text", "pad", *family.media}:
        return
    if revision.startswith("sglang") and {"video", "audio_in_video"} <= kinds:
        return  # it is told once for all whether videos have their audio in them
    table = case["expected"].get(revision, {})
    made = make(family, rows)
    if not table.get("by_hand"):
        case["expected"][revision] = made
    elif not np.allclose(table["ids"], made["ids"], rtol=0, atol=1e-5 if family.name == "circle_rope" else 0):
        raise SystemExit(
            f"{family}, {case['name']}: the table made by hand is not what {family.source} computes: {made['ids']}"
        )


def compact(value: Any) -> str:
    """JSON with lists of numbers on one line."""
    text = json.dumps(value, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"


if __name__ == "__main__":
    main()
