"""Position IDs against transformers' get_rope_index: the same inputs, one thread, in turns, ids checked equal.

    python scripts/bench_positions.py [--rounds 15]

The inputs are a processor's: int64 tensors, with an attention mask. "From inputs" counts all from there to the ids, the scan
for media included; "from segments" takes the rows that a processor or a server knows already. The limit of the first is to read
the token types and the mask once and to write the table once, of the second to write it; both are measured as plain numpy
calls, and "x" is how many times longer mmrope takes. The table is also written to scripts/results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reports import cpu, row  # noqa: E402

from mmrope import Segment, family, position_ids, segments_from_inputs  # noqa: E402
from tests.support.upstream_ids import TRANSFORMERS, as_inputs, get_rope_index  # noqa: E402

Rows = list[list[Segment]]


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    rows: Rows
    aim: float
    """Times as fast as transformers, from inputs."""


def images(tokens: int, count: int, rows: int, sides: tuple[int, int], numbers: np.random.Generator) -> Rows:
    """Rows of so many tokens, with images of different sizes between texts."""
    made = []
    for _ in range(rows):
        sizes = numbers.integers(*sides, size=(count, 2)).tolist()
        text = tokens - sum(h * w for h, w in sizes)
        gaps = [text // (count + 1)] * count + [text - text // (count + 1) * count]
        row = [part for gap, (h, w) in zip(gaps, sizes, strict=False) for part in (Segment.text(gap), Segment.image(h=h, w=w))]
        made.append([*row, Segment.text(gaps[-1])])
    return made


def cases() -> list[Case]:
    numbers = np.random.default_rng(0)
    stamped = [part for i in range(384) for part in (Segment.text(9 + len(str(i))), Segment.frame(h=13, w=14))]
    video = [Segment.text(50), Segment.video(t=384, h=13, w=14, seconds_per_grid=1.0), Segment.text(50)]
    return [
        Case("1 x 32k, 8 images", "qwen2_vl", images(32_768, 8, 1, (20, 40), numbers), 150),
        Case("32 x 8k, 4 images each", "qwen2_vl", images(8_192, 4, 32, (20, 40), numbers), 45),
        Case("1 x 1M, 1,000 images", "qwen2_vl", images(1_048_576, 1_000, 1, (16, 36), numbers), 28),
        Case("Qwen2.5-VL video of 768 frames", "qwen2_5_vl", [video], 500),
        Case("Qwen3-VL video of 768 frames", "qwen3_vl", [[Segment.text(50), *stamped, Segment.text(50)]], 90),
        Case("1 x 512, one image", "qwen2_vl", images(512, 1, 1, (12, 16), numbers), 3),
        Case("8 x 8k, text alone", "qwen2_vl", [[Segment.text(8_192)]] * 8, 20),
    ]


def ways(case: Case) -> dict[str, Callable[[], Any]]:
    """What is timed. All but the limits compute the ids, which are checked here."""
    rule = family(f"{case.family}@{TRANSFORMERS}")
    inputs: dict[str, Any] = {key: torch.as_tensor(value) for key, value in as_inputs(case.rows, rule).items()}
    unmasked = {key: value for key, value in inputs.items() if key != "attention_mask"}
    theirs = get_rope_index(rule, inputs)
    rows = segments_from_inputs(inputs, rule)
    wide = position_ids(rows, rule).ids
    narrow = wide.astype(np.int32)
    assert np.array_equal(wide, theirs()[0].numpy()), case.name
    types, mask = inputs["mm_token_type_ids"].numpy(), inputs["attention_mask"].numpy()

    def limit() -> None:
        types.max()
        mask.max()
        wide.fill(0)

    return {
        "transformers": theirs,
        "transformers, no mask": get_rope_index(rule, unmasked),
        "inputs": lambda: position_ids(segments_from_inputs(inputs, rule), rule),
        "inputs, no mask": lambda: position_ids(segments_from_inputs(unmasked, rule), rule),
        "segments": lambda: position_ids(rows, rule),
        "segments, int32, out": lambda: position_ids(rows, rule, out=narrow),
        "limit of inputs": limit,
        "limit of segments": lambda: wide.fill(0),
    }


def measure(timed: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """(least, median) seconds of each, taken in turns; short ones several times in a turn."""
    repeats = {}
    for name, call in timed.items():
        call()
        begun = time.perf_counter()
        call()
        repeats[name] = max(1, round(2e-3 / (time.perf_counter() - begun)))
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, call in timed.items():
            begun = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            found[name].append((time.perf_counter() - begun) / repeats[name])
    return {name: (min(times), statistics.median(times)) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "transformers"))
    above = [
        f"{cpu()}, one thread; Python {sys.version.split()[0]}, {packages}; {time.strftime('%Y-%m-%d')}",
        "",
        "Milliseconds, least / median of the turns; times as fast as transformers (with a mask) by the medians.",
        "",
        row(
            "case",
            "tokens",
            "transformers",
            "from inputs",
            "times as fast",
            "aim",
            "no mask: transformers",
            "mmrope",
            "times as fast",
        ),
        row(*["---"] * 9),
    ]
    below = [
        "",
        row(
            "case",
            "from segments",
            "times as fast",
            "int32, into a buffer",
            "times as fast",
            "limit of inputs",
            "limit of segments",
        ),
        row(*["---"] * 7),
    ]
    for case in cases():
        tokens = sum(segment.length for segments in case.rows for segment in segments)
        m = measure(ways(case), rounds)
        ms = {name: f"{least * 1e3:.3f} / {median * 1e3:.3f}" for name, (least, median) in m.items()}
        fast = {name: f"{m['transformers'][1] / median:.1f}" for name, (_, median) in m.items()}
        bare = f"{m['transformers, no mask'][1] / m['inputs, no mask'][1]:.1f}"
        limits = {of: f"{ms[f'limit of {of}']}: {m[of][1] / m[f'limit of {of}'][1]:.1f} x" for of in ("inputs", "segments")}
        above.append(
            row(
                *(case.name, f"{tokens:,}", ms["transformers"], ms["inputs"], f"**{fast['inputs']}**", f"{case.aim:g}"),
                *(ms["transformers, no mask"], ms["inputs, no mask"], bare),
            )
        )
        narrow = "segments, int32, out"
        below.append(
            row(case.name, ms["segments"], fast["segments"], ms[narrow], fast[narrow], limits["inputs"], limits["segments"])
        )
    text = "\n".join(above + below) + "\n"
    print(text)
    results = ROOT / "scripts" / "results" / "bench_positions.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text(text)


if __name__ == "__main__":
    main()
