"""Training on padded rows and on packs: tokens a second, and memory, of VLM and of transformers' models on mmrope's ids.

    python scripts/bench_train.py [--models qwen3_vl ...] [--count 12] [--rounds 3] [--threads 2] [--budget 2048] [--out FILE]

Conversations of 50 to 1,000 tokens, those of more than 600 with an image of 500, in a random order. "Padded" are as many rows
in their order as fit into the budget, padded to the longest of them; "packed" what pack_batches makes of the same stream.
Counted are real tokens, forward and backward, in float32, by the processor's time of all threads together (which others' work
on the machine disturbs less than the clock's), each way once in every round, in turns. Models have released widths, two layers
in each half, a vocabulary of 8,192 and random weights. Memory is by how much the fullest batch raises what a process of its own
has at most (VmHWM). The losses of all ways are compared. The table is also written to scripts/results.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import bench_vlm  # noqa: E402
from bench_vlm import MODELS, load, save  # noqa: E402
from reports import cpu, replace_marked, row, write_result  # noqa: E402

from mmrope import Segment, position_ids  # noqa: E402
from mmrope.adapters.transformers import with_positions  # noqa: E402
from mmrope.preprocess import pack_batches  # noqa: E402

WAYS = ("transformers, padded", "transformers, packed", "mmrope, padded", "mmrope, packed", "mmrope, packed, recomputed")
IMAGE = (20, 25)
VOCABULARY = 8192
bench_vlm._TEXT["vocab_size"] = VOCABULARY


def rows(name: str, count: int) -> list[dict[str, Any]]:
    """What a processor gives for each of so many conversations, labels included."""
    from tests.support.upstream_ids import TEXT, as_inputs, with_tokens

    family, made = with_tokens(name), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        length = int(torch.randint(50, 1001, (), generator=generator))
        shown = [Segment.image(h=IMAGE[0], w=IMAGE[1]), Segment.text(10)] if length > 600 else []
        segments = [[Segment.text(10), *shown, Segment.text(length - 10 - 510 * bool(shown))]]
        inputs = {key: torch.as_tensor(value) for key, value in as_inputs(segments, family).items()}
        text = torch.randint(1000, VOCABULARY, inputs["input_ids"].shape, generator=generator)
        inputs["input_ids"] = torch.where(inputs["input_ids"] == TEXT, text, inputs["input_ids"])
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["mm_token_type_ids"] != 0, -100)
        inputs["position_ids"] = torch.from_numpy(position_ids(segments, family).ids)
        if shown:
            inputs["pixel_values"] = torch.randn(4 * IMAGE[0] * IMAGE[1], 6 * MODELS[name][3] ** 2, generator=generator)
        made.append(inputs)
    return made


def padded(stream: list[dict[str, Any]], budget: int) -> Iterator[dict[str, Any]]:
    """As many rows as fit, in their order, on one length."""
    group: list[dict[str, Any]] = []
    for one in [*stream, None]:
        longest = max((r["input_ids"].shape[1] for r in [*group, one] if r is not None), default=0)
        if group and (one is None or (len(group) + 1) * longest > budget):
            yield _padded(group)
            group = []
        if one is not None:
            group.append(one)


def _padded(group: list[dict[str, Any]]) -> dict[str, Any]:
    length = max(one["input_ids"].shape[1] for one in group)
    fills = {"input_ids": 0, "attention_mask": 0, "mm_token_type_ids": 0, "labels": -100, "position_ids": 0}

    def filled(value: torch.Tensor, by: int) -> torch.Tensor:
        return torch.nn.functional.pad(value, (0, length - value.shape[-1]), value=by)

    batch = {k: torch.cat([filled(one[k], by) for one in group], dim=int(k == "position_ids")) for k, by in fills.items()}
    for key in ("pixel_values", "image_grid_thw"):
        if parts := [one[key] for one in group if key in one]:
            batch[key] = torch.cat(parts)
    return batch


def batches(way: str, name: str, count: int, budget: int) -> list[dict[str, Any]]:
    """What a way's model is called with."""
    from tests.support.upstream_ids import with_tokens

    stream, family = rows(name, count), with_tokens(name)
    made: list[dict[str, Any]] = list(padded(stream, budget) if "padded" in way else pack_batches(stream, max_tokens=budget))
    return [with_positions(batch, family) for batch in made] if way.startswith("transformers") else made


def learn(model: Any, batch: Mapping[str, Any]) -> tuple[float, int]:
    """Forward and backward; the sum of the losses of its labels, and how many these are."""
    count = int((batch["labels"][:, 1:] != -100).sum())  # the first tokens of a pack's sequences are -100
    loss = model(**batch).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.item() * count, count


def prepared(way: str, folder: str) -> Any:
    model = load(way.partition(",")[0], folder, torch.float32).train()
    if "recomputed" in way:
        model.gradient_checkpointing_enable()
    return model


def peak() -> int:
    """Bytes that this process had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(name: str, folder: str, args: argparse.Namespace) -> Iterator[str]:
    """A row of the table for each way."""
    made = {way: batches(way, name, args.count, args.budget) for way in WAYS}
    models = {way: prepared(way, folder) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    losses = {}
    real = sum(int(one["attention_mask"].sum()) for one in made["mmrope, padded"])
    for n in range(args.rounds):
        for way in WAYS[:: 1 if n % 2 == 0 else -1]:
            begun = time.process_time()
            parts = [learn(models[way], batch) for batch in made[way]]
            times[way].append(time.process_time() - begun)
            losses[way] = sum(loss for loss, _ in parts) / sum(count for _, count in parts)
    del models
    for way in WAYS:
        slots = sum(batch["input_ids"].numel() for batch in made[way])
        command = [sys.executable, __file__, "--child", way, "--folder", folder, "--models", name]
        command += ["--count", str(args.count), "--budget", str(args.budget), "--threads", str(args.threads)]
        memory = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        least, median = (real / f(times[way]) for f in (min, statistics.median))
        compared = f"{real / min(times[way]) / (real / min(times['transformers, padded'])):.2f}"
        cells = (
            f"{real / slots:.0%}",
            f"{least:,.0f} / {median:,.0f}",
            compared,
            f"{memory / 2**20:,.0f}",
            f"{losses[way]:.6f}",
        )
        yield row(f"{name}: {way}", *cells)


def child(way: str, name: str, folder: str, args: argparse.Namespace) -> None:
    """Prints by how much the fullest batch raises what the process has at most."""
    made, model = batches(way, name, args.count, args.budget), prepared(way, folder)
    before = peak()
    learn(model, max(made, key=lambda batch: batch["input_ids"].numel()))
    print(peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["qwen3_vl"])
    parser.add_argument("--count", type=int, default=12, help="conversations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=int, default=2048, help="tokens of a batch")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "bench_train.md")
    parser.add_argument("--card", action="store_true", help="write the table into docs/training.md, too")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        return child(args.child, args.models[0], args.folder, args)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [f"{cpu()}, {args.threads} threads; Python {sys.version.split()[0]}, {packages}; {date.today()}", ""]
    lines += [f"{args.count} conversations, batches of at most {args.budget} tokens, {args.rounds} rounds.", ""]
    lines += [
        row(
            "way",
            "real tokens of all",
            "real tokens a second of processor time, least / median",
            "times as fast",
            "MiB",
            "loss",
        )
    ]
    lines += [row(*["---"] * 6)]
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            save(name, folder, 2, torch.float32)
            for line in measure(name, folder, args):
                print(line, flush=True)
                lines.append(line)
        write_result(args.out, "\n".join(lines) + "\n")
    if args.card:
        replace_marked(ROOT / "docs" / "training.md", "figures", [f"`scripts/bench_train.py`, {lines[0]}", *lines[1:]])
    return None


if __name__ == "__main__":
    main()
