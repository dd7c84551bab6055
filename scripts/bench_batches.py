"""What collating, packing, pruning, sharding and checking cost beside computing the ids: 64 mixed rows, one thread.

    python scripts/bench_batches.py [--rounds 25]

All in turns in one process, results checked equal. The peer is what trainers do with transformers: get_rope_index for each
row by itself, then torch.cat. The table is also written to scripts/results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import bench_positions as bench  # first: it sets one thread
import numpy as np
import torch
from reports import write_result

from mmrope import Segment, check, collate, family, hf_position_ids, pack, position_ids, segments_from_inputs
from mmrope.positions import Row, fingerprint, keep, shard_index

FAMILY = "qwen2_5_vl"


def mixed_rows(count: int, numbers: np.random.Generator) -> list[Row]:
    """Rows of 6k to 8k tokens: text, up to seven images, and a video in two of five."""
    rows = []
    for _ in range(count):
        parts = []
        for _ in range(int(numbers.integers(0, 8))):
            h, w = numbers.integers(10, 30, size=2).tolist()
            parts += [Segment.text(int(numbers.integers(5, 200))), Segment.image(h=h, w=w)]
        if numbers.random() < 0.4:
            video = Segment.video(t=int(numbers.integers(4, 16)), h=8, w=12, seconds_per_grid=1.0)
            parts += [Segment.text(20), video]
        rest = int(numbers.integers(6_000, 8_193)) - sum(part.length for part in parts)
        rows.append(Row.of([*parts, Segment.text(max(rest, 1))]))
    return rows


def ways(rows: list[Row]) -> dict[str, Callable[[], Any]]:
    rule = family(FAMILY)
    collated = collate(rows)
    positions, packed = position_ids(collated, rule), pack(rows, rule)
    assert np.array_equal(packed.ids, positions.ids[:, positions.mask])
    inputs = [bench.as_inputs([row], rule) for row in rows]
    calls = [bench.get_rope_index(rule, {k: torch.as_tensor(v) for k, v in one.items()}) for one in inputs]
    tokens = [np.arange(row.length) for row in rows]
    pruned = np.random.default_rng(0).random(positions.mask.shape) < 0.5
    totals = pack(rows, rule, multiple_of=16).cu_seqlens_padded

    def everything() -> None:
        made = pack(rows, rule)
        _ = made.text_ids, made.sequence_index

    return {
        "ids of the collated batch": lambda: position_ids(collated, rule),
        "ids row by row": lambda: [position_ids(row, rule) for row in rows],
        "collate": lambda: collate(rows),
        "pack: ids, index, cu_seqlens": lambda: pack(rows, rule),
        "pack, with text_ids and sequence_index": everything,
        "pack, to multiples of 16": lambda: pack(rows, rule, multiple_of=16),
        "packed.take (token ids)": lambda: packed.take(tokens, fill=0),
        "hf_position_ids of a pack": lambda: hf_position_ids(packed),
        "keep (half of the tokens)": lambda: keep(positions, pruned),
        "shard_index, zigzag per sequence, 8 ranks": lambda: shard_index(totals, size=8, rank=3, scheme="zigzag_per_sequence"),
        "check, from segments": lambda: check(positions.ids, collated, rule),
        "fingerprint": lambda: fingerprint(positions),
        "processor's output to a pack": lambda: pack([segments_from_inputs(one, rule)[0] for one in inputs], rule),
        "transformers row by row, torch.cat": lambda: torch.cat([call()[0] for call in calls], dim=2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = mixed_rows(64, np.random.default_rng(0))
    tokens = sum(row.length for row in rows)
    found = bench.measure(ways(rows), rounds)
    base = found["ids of the collated batch"][1]
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "transformers"))
    lines = [
        f"{bench.cpu()}, one thread; Python {sys.version.split()[0]}, {packages}; {time.strftime('%Y-%m-%d')}",
        "",
        f"64 mixed rows, {tokens:,} tokens ({64 * max(row.length for row in rows):,} when padded), {FAMILY}.",
        "",
        bench.row("step", "least / median ms", "times the ids of the batch", "ns a token"),
        bench.row(*["---"] * 4),
    ]
    for name, (least, median) in found.items():
        cells = (name, f"{least * 1e3:.3f} / {median * 1e3:.3f}", f"{median / base:.2f}", f"{median / tokens * 1e9:.2f}")
        lines.append(bench.row(*cells))
    text = "\n".join(lines) + "\n"
    print(text)
    write_result(bench.ROOT / "scripts" / "results" / "bench_batches.md", text)


if __name__ == "__main__":
    main()
