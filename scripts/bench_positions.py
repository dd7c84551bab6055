"""Position IDs against transformers' get_rope_index and vLLM's loop: the same inputs, one thread, in turns, ids checked equal.

    python scripts/bench_positions.py [--rounds 15] [--vllm FOLDER]

The inputs are a processor's: int64 tensors, with an attention mask. "From inputs" counts all from there to the ids, the scan
for media included; "from segments" takes the rows that a processor or a server knows already; "spans" is the call of vLLM's
models, from placeholder ranges to ids and their delta. The limit of the first is to read the token types and the mask once and
to write the table once, of the second to write it; both are measured as plain numpy calls, and "x" is how many times longer
mmrope takes. The table is also written to scripts/results.

vLLM's loop stands here in our own words, since vLLM is not installed beside: it walks over the placeholders, and joins an array
for each text and each image. Its ids are checked against mmrope's. With FOLDER, the unpacked wheel of vLLM, its own function is
timed in turns with ours, both from the same list of placeholders.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reports import cpu, row, write_result  # noqa: E402

from mmrope import Segment, Span, family, position_ids, segments_from_inputs  # noqa: E402
from mmrope.adapters.vllm import get_mrope_input_positions  # noqa: E402
from mmrope.positions import decode_position_ids  # noqa: E402
from tests.support.upstream_ids import TRANSFORMERS, as_inputs, function_of, get_rope_index  # noqa: E402

Rows = list[list[Segment]]
VLLM = "vLLM's loop"
WARM = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
Times = tuple[float, float]


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    rows: Rows
    aim: float
    """Times as fast as transformers, from inputs."""
    padding: int = 0
    """Tokens of padding that the rows get on the left."""


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
        Case("1 x 512, one image", "qwen2_vl", images(512, 1, 1, (12, 16), numbers), 11),
        Case("1 x 32k, 8 images", "qwen2_vl", images(32_768, 8, 1, (20, 40), numbers), 65),
        Case("32 x 8k, 4 images each", "qwen2_vl", images(8_192, 4, 32, (20, 40), numbers), 45),
        Case("32 x 8k, 4 images each, padded", "qwen2_vl", images(8_192, 4, 32, (20, 40), numbers), 45, padding=512),
        Case("64 x 2k, 2 images each", "qwen2_vl", images(2_048, 2, 64, (16, 24), numbers), 45),
        Case("1 x 1M, 1,000 images", "qwen2_vl", images(1_048_576, 1_000, 1, (16, 36), numbers), 28),
        Case("16 x 1M, 1,000 images each", "qwen2_vl", images(1_048_576, 1_000, 1, (16, 36), numbers) * 16, 28),
        Case("Qwen2.5-VL video of 768 frames", "qwen2_5_vl", [video], 90),
        Case("Qwen3-VL video of 768 frames", "qwen3_vl", [[Segment.text(50), *stamped, Segment.text(50)]], 60),
        Case("8 x 8k, text alone", "qwen2_vl", [[Segment.text(8_192)]] * 8, 110),
    ]


def vllm_loop(tokens: int, placeholders: list[tuple[int, tuple[int, int, int]]]) -> tuple[torch.Tensor, int]:
    """What vLLM's Qwen2-VL computes of a prompt, from (offset, token grid) of its images."""
    parts: list[np.ndarray] = []
    done = 0
    for offset, (t, h, w) in placeholders:
        words = offset - done
        first = int(parts[-1].max()) + 1 if parts else 0
        parts.append(np.broadcast_to(np.arange(words), (3, words)) + first)  # [3, words]
        parts.append(np.indices((t, h, w)).reshape(3, -1) + words + first)  # [3, t h w]
        done = offset + t * h * w
    if done < tokens:
        first = int(parts[-1].max()) + 1 if parts else 0
        parts.append(np.broadcast_to(np.arange(tokens - done), (3, tokens - done)) + first)
    ids = np.concatenate(parts, axis=1)  # [3, tokens]
    return torch.from_numpy(ids), int(ids.max()) + 1 - tokens


def of_vllm(folder: Path) -> Callable[[int, list[tuple[int, tuple[int, int, int]]]], tuple[torch.Tensor, int]]:
    """Its own function, behind the reading of features."""
    path = folder / "vllm" / "model_executor" / "models" / "qwen2_vl.py"
    function = function_of(path, "get_mrope_input_positions", "Qwen2VLForConditionalGeneration")

    def call(tokens: int, placeholders: list[tuple[int, tuple[int, int, int]]]) -> tuple[torch.Tensor, int]:
        model = SimpleNamespace(iter_mm_grid_thw=lambda _: ((offset, *grid, 1.0) for offset, grid in placeholders))
        return function(model, range(tokens), [])

    return call


def against_itself(folder: Path, rounds: int) -> list[str]:
    """vLLM's function beside its loop in our words, of the cases that have it: a line each."""
    theirs, lines = of_vllm(folder), []
    for case in cases():
        if len(case.rows) > 1 or case.family != "qwen2_vl":
            continue
        tokens, images = placeholders_of(case.rows[0])
        (ids, delta), ours = theirs(tokens, images), vllm_loop(tokens, images)
        assert torch.equal(ids, ours[0]), case.name
        assert delta == ours[1], case.name
        m = measure(
            {"theirs": lambda t=tokens, i=images: theirs(t, i), "ours": lambda t=tokens, i=images: vllm_loop(t, i)}, rounds
        )
        least, median = (m["ours"][k] / m["theirs"][k] for k in (0, 1))
        lines.append(f"{case.name}: the loop in our words takes {least:.2f} / {median:.2f} of the time of vLLM's own function.")
    return lines


def placeholders_of(row: list[Segment]) -> tuple[int, list[tuple[int, tuple[int, int, int]]]]:
    """The tokens of a row, and offset and token grid of its images."""
    offsets = itertools.accumulate((segment.length for segment in row), initial=0)
    return sum(segment.length for segment in row), [
        (at, s.grid) for at, s in zip(offsets, row, strict=False) if s.kind == "image"
    ]


def ways(case: Case) -> dict[str, Callable[[], Any]]:
    """What is timed. All but the limits compute the ids, which are checked here."""
    rule = family(f"{case.family}@{TRANSFORMERS}")
    batch = [[Segment.pad(case.padding), *row] if case.padding else row for row in case.rows]
    inputs: dict[str, Any] = {key: torch.as_tensor(value) for key, value in as_inputs(batch, rule).items()}
    if case.family == "qwen3_vl":  # its frames are of one video
        t, h, w = inputs["video_grid_thw"].amax(dim=0).tolist()
        inputs["video_grid_thw"] = torch.tensor([[len(inputs["video_grid_thw"]) * t, h, w]])
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

    peers: dict[str, Callable[[], Any]] = {"transformers": theirs}
    [row, *others] = case.rows
    if not others and case.family == "qwen2_vl":
        count, images = placeholders_of(row)
        spans = [Span(at, h * w, (1, 2 * h, 2 * w)) for at, (_, h, w) in images]
        tokens = [0] * count
        ids, delta = get_mrope_input_positions(tokens, spans, rule)
        theirs_ids, theirs_delta = vllm_loop(len(tokens), images)
        assert torch.equal(ids, theirs_ids), case.name
        assert delta == theirs_delta, case.name
        peers[VLLM] = lambda: vllm_loop(len(tokens), images)
        peers["spans"] = lambda: get_mrope_input_positions(tokens, spans, rule)
    return {
        **peers,
        "transformers, no mask": get_rope_index(rule, unmasked),
        "inputs": lambda: position_ids(segments_from_inputs(inputs, rule), rule),
        "inputs, no mask": lambda: position_ids(segments_from_inputs(unmasked, rule), rule),
        "segments": lambda: position_ids(rows, rule),
        "segments, int32, out": lambda: position_ids(rows, rule, out=narrow),
        "limit of inputs": limit,
        "limit of segments": lambda: wide.fill(0),
    }


def measure(timed: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """(least, median) seconds of each, taken in turns; short ones several times in a turn, after once that does not count. Of
    what takes seconds three turns are enough."""
    repeats = {}
    for name, call in timed.items():
        call()
        begun = time.perf_counter()
        call()
        repeats[name] = max(1, round(2e-3 / (time.perf_counter() - begun)))
        rounds = min(rounds, 3) if time.perf_counter() - begun > 1 else rounds
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, call in timed.items():
            call()
            begun = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            found[name].append((time.perf_counter() - begun) / repeats[name])
    return {name: (min(times), statistics.median(times)) for name, times in found.items()}


def measured(rounds: int, folder: Path | None) -> dict[str, Any]:
    """All times, as they are in this process' memory, and notes."""
    found: dict[str, Any] = {case.name: measure(ways(case), rounds) for case in cases()}
    found["decode"] = measure({"decode": decode_step(64), "delta and length": delta_and_length(64)}, rounds)
    found["notes"] = against_itself(folder, rounds) if folder else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--vllm", type=Path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="measure in this process' memory, and print the times alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.json:
        print(json.dumps(measured(args.rounds, args.vllm)))
        return
    again = [sys.executable, __file__, *sys.argv[1:], "--json"]
    warm, fresh = (
        json.loads(subprocess.run(again, check=True, env={**os.environ, **memory}, stdout=subprocess.PIPE).stdout)
        for memory in (WARM, {})
    )
    text = "\n".join(table(warm, fresh))
    print(text)
    results = ROOT / "scripts" / "results" / "bench_positions.md"
    write_result(results, text)


def table(warm: dict[str, Any], fresh: dict[str, Any]) -> list[str]:
    """The report, in lines."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "transformers"))
    lines = [
        f"{cpu()}, one thread; Python {sys.version.split()[0]}, {packages}; {time.strftime('%Y-%m-%d')}",
        "",
        "Microseconds, least / median of the turns; times as fast by the medians. The aim is from inputs with a mask, over",
        "transformers; spans are held against vLLM's loop, the fastest peer. Memory is warm, as in a loop that runs for hours;",
        '"fresh" is with what malloc does by default, which gives large arrays back to the system each time.',
        "",
        row(
            *("case", "tokens", "transformers", "from inputs", "times as fast", "fresh", "aim", "no mask", "vLLM's loop"),
            *("spans", "times as fast", "fresh"),
        ),
        row(*["---"] * 12),
    ]
    below = [
        "",
        row("case", "from segments", "int32, into a buffer", "limit of inputs", "limit of segments"),
        row(*["---"] * 5),
    ]
    for case in cases():
        tokens = sum(segment.length for segments in case.rows for segment in segments) + case.padding * len(case.rows)
        m = warm[case.name]
        us = {name: f"{least * 1e6:,.1f} / {median * 1e6:,.1f}" for name, (least, median) in m.items()}
        fast = [f"{x[case.name]['transformers'][1] / x[case.name]['inputs'][1]:.1f}" for x in (warm, fresh)]
        served = [f"{x[case.name][VLLM][1] / x[case.name]['spans'][1]:.1f}" if VLLM in m else "" for x in (warm, fresh)]
        lines.append(
            row(
                *(case.name, f"{tokens:,}", us["transformers"], us["inputs"], *fast, f"{case.aim:g}", us["inputs, no mask"]),
                *(us.get(VLLM, ""), us.get("spans", ""), *served),
            )
        )
        limits = [f"{us[f'limit of {of}']}: {m[of][1] / m[f'limit of {of}'][1]:.1f} x" for of in ("inputs", "segments")]
        below.append(row(case.name, us["segments"], us["segments, int32, out"], *limits))
    decode = [f"{name} {least * 1e6:.1f} / {median * 1e6:.1f}" for name, (least, median) in warm["decode"].items()]
    return [*lines, *below, "", f"A decode step of 64 rows: {', '.join(decode)}.", "", *warm["notes"], ""]


def decode_step(rows: int) -> Callable[[], Any]:
    following, step = np.arange(rows) + 500, np.arange(rows)
    rule = family("qwen2_vl")
    return lambda: decode_position_ids(following, rule, step=step)


def delta_and_length(rows: int) -> Callable[[], Any]:
    """What servers do: a delta of each request, and its length."""
    deltas, lengths = np.arange(rows) - 300, np.arange(rows) + 800
    return lambda: np.broadcast_to(deltas + lengths, (3, rows)).copy()


if __name__ == "__main__":
    main()
