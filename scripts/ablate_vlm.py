"""What each encoding gives the small model on pictures of sizes that it was trained on, and that it never saw.

python scripts/ablate_vlm.py [--variants interleaved contiguous flat no_vision_rope] [--seeds 0 1 2] [--steps 1500] [--card]

Each variant is trained from scratch on pictures alone, by the same schedule, and asked the same fresh questions. Killed, it
goes on where it was. Results are added to those in --results; --card writes their table into docs/small.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from reports import device_name, read_result, replace_marked, write_result
from tqdm import tqdm

from mmrope.vlm.data import FULL, ExactAnswers, Mix, TaskBatches, small_config, task_processor
from mmrope.vlm.evaluate import examine, exams
from mmrope.vlm.train import Training, train
from mmrope.vlm.variants import VARIANTS

GUIDE = Path(__file__).parents[1] / "docs" / "small.md"
RESULTS = Path(__file__).parent / "results" / "ablate_vlm.json"
PICTURES = (
    (0.20, Mix(images=1, side=1, tokens=16, batch=4)),
    (0.40, Mix(images=1, side=2, tokens=60, batch=2)),
    (0.60, Mix(images=1, side=3, strips=4, tokens=100)),
    (1.00, dataclasses.replace(FULL, images=1, several=0, films=0, sums=0)),
)
SIZES, KINDS = ("2 x 2 to 5 x 5", "6 x 6", "3 x 9"), ("at", "row", "where", "many")


def table(results: dict[str, Any]) -> Iterator[str]:
    """Means over the seeds, with the least and the most, in Markdown."""
    yield f"| encoding | size | {' | '.join(KINDS)} |"
    yield f"|---|---|{'---|' * len(KINDS)}"
    for variant, seeds in results["variants"].items():
        for size in SIZES:
            cells = []
            for kind in KINDS:
                shares = [100 * right / of for right, of in (run[size][kind] for run in seeds.values())]
                spread = f" ({min(shares):.0f} to {max(shares):.0f})" if len(shares) > 1 else ""
                cells.append(f"{statistics.mean(shares):.1f}{spread}")
            yield f"| {variant} | {size} | {' | '.join(cells)} |"
    seeds = sorted({seed for runs in results["variants"].values() for seed in runs})
    yield ""
    yield f"{results['steps']} steps, seeds {', '.join(seeds)}, {results['count']} questions a kind; {results['device']}, torch"
    yield f"{results['torch']}, {results['date']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--count", type=int, default=400, help="questions of each kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--card", action="store_true", help="write the table into docs/small.md")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    right, left = (task_processor(padding_side=side, threads=1) for side in ("right", "left"))
    about = {"steps": options.steps, "count": options.count, "torch": torch.__version__}
    results: dict[str, Any] = {**about, "device": device_name(options.device), "date": str(date.today()), "variants": {}}
    if options.results.is_file():
        results = read_result(options.results, *about, "variants")
        if other := {key: results[key] for key in about if results[key] != about[key]}:
            raise SystemExit(f"{options.results} has results with {other}, not {about}: name another file with --results")
    for seed in options.seeds:
        for variant in options.variants:
            if str(seed) in results["variants"].get(variant, {}):
                continue
            torch.manual_seed(seed)
            model = VARIANTS[variant](small_config(right))
            training = Training(steps=options.steps, seed=seed)
            batches = TaskBatches(right, count=options.steps, seed=seed, schedule=PICTURES)
            folder = options.out / f"{variant}-{seed}"
            with tqdm(total=options.steps, desc=f"{variant}, seed {seed}", disable=None) as bar:

                def say(entry: dict[str, Any], bar: Any = bar) -> None:
                    bar.update(entry["step"] - bar.n)

                more = {"processor": right, "device": options.device, "about": batches.about, "score": ExactAnswers()}
                train(model, batches, training, folder, say=say, **more)
            scores = {
                exam.name: examine(model, left, exam, kinds=KINDS, count=options.count)
                for exam in exams()
                if exam.name in SIZES
            }
            results["variants"].setdefault(variant, {})[str(seed)] = scores
            write_result(options.results, results)
            tqdm.write(f"{variant}, seed {seed}: {scores}")
    lines = list(table(results))
    print("\n".join(lines))
    if options.card:
        replace_marked(GUIDE, "ablation", lines)


if __name__ == "__main__":
    main()
