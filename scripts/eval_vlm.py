"""Asks the small model fresh questions about held-out handwriting, and prints how many it answers right.

python scripts/eval_vlm.py [--model FOLDER] [--count 1000] [--seed 1] [--device cpu] [--json FILE] [--card]
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path

import torch
from reports import device_name, replace_marked, write_result
from tqdm import tqdm

from mmrope import VLM, Processor
from mmrope.vlm.assistant import small_model
from mmrope.vlm.evaluate import examine, exams, score_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=small_model())
    parser.add_argument("--count", type=int, default=1000, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    parser.add_argument("--card", action="store_true", help="and the table into the model's card, README.md")
    options = parser.parse_args()
    model = VLM.from_pretrained(options.model, device=options.device, dtype=torch.float32)
    processor = Processor.from_pretrained(options.model, padding_side="left")
    results, began = {}, time.perf_counter()
    for exam in tqdm(exams(), unit="exam", disable=None):
        results[exam.name] = examine(model, processor, exam, count=options.count, seed=options.seed)
    device = device_name(options.device)
    about = (
        f"{options.count} questions a kind, seed {options.seed}, float32, {device}, torch {torch.__version__}, {date.today()}."
    )
    lines = [*score_table(results), "", about]
    print("\n".join(lines))
    print(f"{time.perf_counter() - began:.0f} s")
    if options.card:
        replace_marked(options.model / "README.md", "results", lines)
    if options.json:
        settings = {"count": options.count, "seed": options.seed, "device": device, "torch": torch.__version__}
        write_result(options.json, settings | {"date": str(date.today()), "results": results})


if __name__ == "__main__":
    main()
