"""How near VLM is to transformers' models: random ones of every family and option that it runs, weights drawn wide.

    python scripts/prove_vlm.py [--batches 40]

Logits of batches of text, images and several videos, padded on either side, on the ids that transformers' models make; greedy
tokens of single rows, with a penalty on repetition, and of batches, without (transformers counts padding as what was said).
The table is written into docs/model.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from reports import cpu, replace_marked, row

from mmrope import VLM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import released  # noqa: E402
from tests.support.upstream_ids import TRANSFORMERS  # noqa: E402

NEW = 256


@torch.no_grad()
def logits_apart(name: str, upstream: Any, model: VLM, batches: int) -> float:
    """The largest difference of a real token's logits, in standard deviations of all."""
    worst = 0.0
    for seed in range(batches):
        side = "left" if seed % 2 else "right"
        inputs = released.batch(name, seed=seed, rows=1 + seed % 4, side=side, revision=f"@{TRANSFORMERS}")
        real = inputs["attention_mask"].bool()
        expected = upstream(**released.without_positions(inputs)).logits[real]
        worst = max(worst, ((model(**inputs).logits[real] - expected).abs().max() / expected.std()).item())
    return worst


@torch.no_grad()
def rows_equal(name: str, upstream: Any, model: VLM, batches: int) -> tuple[int, int]:
    """Of how many rows all greedy tokens are equal, and of how many in all."""
    equal = total = 0
    for seed in range(batches):
        inputs = released.batch(name, seed=100 + seed, rows=1 + seed % 3, revision=f"@{TRANSFORMERS}")
        penalty, length = 1.3 if seed % 3 == 0 else 1.0, inputs["input_ids"].shape[1]
        options = {"max_new_tokens": NEW, "repetition_penalty": penalty}
        expected = upstream.generate(**released.without_positions(inputs), do_sample=False, **options)[:, length:]
        tokens = model.generate(**inputs, **options)
        equal, total = equal + int((tokens == expected).all(dim=1).sum()), total + len(tokens)
    return equal, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    batches = parser.parse_args().batches
    found: dict[str, list[tuple[str, float, int, int]]] = {name: [] for name in released.OPTIONS}
    for name, option in released.CASES:
        upstream = released.upstream(name, option)
        with tempfile.TemporaryDirectory() as folder:
            model = released.ours(upstream, Path(folder))
            apart = logits_apart(name, upstream, model, batches)
            equal, total = rows_equal(name, upstream, model, max(1, batches // 8))
        found[name].append((option, apart, equal, total))
        print(name, *found[name][-1], flush=True)
    head = [
        f"`scripts/prove_vlm.py`, {batches} batches an option, float32; transformers {version('transformers')}, torch "
        f"{version('torch')}, {cpu()}, {date.today()}:",
        "",
        row("family", "options", "logits apart at most, in standard deviations", f"rows of {NEW} equal greedy tokens"),
        row("---", "---", "---", "---"),
    ]
    families = [
        row(
            name,
            ", ".join(option for option, *_ in rows),
            f"{max(apart for _, apart, _, _ in rows):.1e}",
            f"{sum(equal for *_, equal, _ in rows)} of {sum(total for *_, total in rows)}",
        )
        for name, rows in found.items()
    ]
    replace_marked(ROOT / "docs" / "model.md", "near", [*head, *families])


if __name__ == "__main__":
    main()
