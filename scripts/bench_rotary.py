"""Rotating queries and keys, and building their tables, against transformers: the same inputs, in turns, results checked equal.

    python scripts/bench_rotary.py [--device cpu|cuda] [--rounds 9]

28 query and 4 key heads of 128 channels, M-RoPE. On the CPU with one thread; the limit is a copy of the same bytes into memory
that is there. On a GPU also the kernel, torch.compile of transformers' function, gradients, and decoding under a CUDA graph;
there the limit is a copy, too. The table is also written to scripts/results.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from bench_positions import cpu, row
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as upstream

from mmrope import RotaryEmbedding, RotarySpec, apply_rotary

ROOT = Path(__file__).parents[1]
N, K, D = 28, 4, 128
SECTIONS = [16, 24, 24]
Calls = dict[str, Callable[[], Any]]


def modules(device: str) -> tuple[Any, RotaryEmbedding]:
    """transformers' rotary module, and ours."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": SECTIONS}
    config: Any = Qwen2_5_VLTextConfig(hidden_size=N * D, num_attention_heads=N, num_key_value_heads=K, rope_parameters=rope)
    ours = RotaryEmbedding(RotarySpec.mrope(D, theta=1e6, sections=SECTIONS)).to(device)
    return upstream.Qwen2_5_VLRotaryEmbedding(config).to(device), ours


def ids_of(tokens: int, device: str) -> torch.Tensor:
    """[3, 1, S]: text, an image, text."""
    ids = torch.arange(tokens).repeat(3, 1, 1)
    side = int(min(tokens // 2, 4096) ** 0.5)
    ids[1, 0, : side * side] = torch.arange(side).repeat_interleave(side)
    ids[2, 0, : side * side] = torch.arange(side).repeat(side)
    return ids.to(device)


def rotations(tokens: int, dtype: torch.dtype, device: str) -> Calls:
    theirs, ours = modules(device)
    ids = ids_of(tokens, device)
    q, k = (torch.randn(1, heads, tokens, D, device=device).to(dtype) for heads in (N, K))
    cos, sin = ours(ids)
    wide_cos, wide_sin = theirs(q, ids)
    copies = torch.empty_like(q), torch.empty_like(k)
    eager = upstream.apply_rotary_pos_emb
    there, here = eager(q, k, wide_cos, wide_sin), apply_rotary(q, k, cos, sin)
    for one, other in zip(there, here, strict=True):
        torch.testing.assert_close(one, other, atol=5e-2 if dtype == torch.bfloat16 else 2e-3, rtol=2e-2)
    calls: Calls = {
        "transformers, eager": lambda: eager(q, k, wide_cos, wide_sin),
        "mmrope": lambda: apply_rotary(q, k, cos, sin),
        "mmrope, in place": lambda: apply_rotary(q, k, cos, sin, inplace=True),
        "copy": lambda: (copies[0].copy_(q), copies[1].copy_(k)),
    }
    if device == "cuda":
        compiled = torch.compile(eager)
        calls |= {
            "transformers, compiled": lambda: compiled(q, k, wide_cos, wide_sin),
            "mmrope, kernel from ids": lambda: ours.rotate(q, k, ids, backend="triton"),
            "mmrope, kernel from tables": lambda: ours.rotate(q, k, ids.double(), backend="triton"),
            "transformers, eager, forward and backward": lambda: both_ways(lambda a, b: eager(a, b, wide_cos, wide_sin), q, k),
            "mmrope, kernel, forward and backward": lambda: both_ways(
                lambda a, b: ours.rotate(a, b, ids, backend="triton"), q, k
            ),
        }
    return calls


def both_ways(turn: Callable[..., Any], q: torch.Tensor, k: torch.Tensor) -> Any:
    leaves = [x.detach().requires_grad_() for x in (q, k)]
    return torch.autograd.grad(turn(*leaves), leaves, (q, k))


def tables(tokens: int, device: str) -> Calls:
    theirs, ours = modules(device)
    ids, like = ids_of(tokens, device), torch.zeros(1, device=device)
    return {"transformers' module": lambda: theirs(like, ids), "mmrope": lambda: ours(ids)}


def decoding(tokens: int) -> Calls:
    """Rotations of a few tokens, recorded in CUDA graphs."""
    found = {}
    for name, call in rotations(tokens, torch.bfloat16, "cuda").items():
        if "both ways" in name or "compiled" in name:
            continue
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        found[name] = graph.replay
    return found


def measure(calls: Calls, rounds: int, device: str) -> dict[str, tuple[float, float]]:
    """(least, median) seconds of each, taken in turns."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    repeats, found = {}, {name: [] for name in calls}
    for name, call in calls.items():
        call()
        wait()
        begun = time.perf_counter()
        call()
        wait()
        repeats[name] = max(1, round(5e-3 / (time.perf_counter() - begun)))
    for _ in range(rounds):
        for name, call in calls.items():
            wait()
            begun = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            wait()
            found[name].append((time.perf_counter() - begun) / repeats[name])
    return {name: (min(times), statistics.median(times)) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    device = asked.device
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu()}, one thread"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "triton", "transformers"))
    lines = [f"{name}; Python {sys.version.split()[0]}, {packages}; {time.strftime('%Y-%m-%d')}", ""]
    lines += [
        f"Milliseconds, least / median of {asked.rounds} turns; times as fast as transformers' eager code by the least.",
        "",
    ]
    lines += [row("case", "what", "ms", "times as fast", "of a copy's speed"), row(*["---"] * 5)]
    lengths = (4096,) if device == "cpu" else (1024, 8192, 32768, 131072)
    eager = "transformers, eager"
    cases: list[tuple[str, Callable[[], Calls], str]] = [
        (f"rotate, {tokens:,} tokens, {str(dtype)[6:]}", functools.partial(rotations, tokens, dtype, device), eager)
        for tokens in lengths
        for dtype in (torch.float32, torch.bfloat16)
    ]
    cases.append(("tables, 131,072 tokens", lambda: tables(131_072, device), "transformers' module"))
    for tokens in (1, 8, 64) if device == "cuda" else ():
        replay = functools.partial(decoding, tokens)
        cases.append((f"decode, {tokens} tokens, CUDA graph, bfloat16", replay, eager))
    with torch.no_grad() if device == "cpu" else torch.enable_grad():
        for case, make, base in cases:
            found = measure(make(), asked.rounds, device)
            for what, (least, median) in found.items():
                of_copy = f"{found['copy'][0] / least:.0%}" if "copy" in found else ""
                ms = f"{least * 1e3:.3f} / {median * 1e3:.3f}"
                lines.append(row(case, what, ms, f"{found[base][0] / least:.2f}", of_copy))
    text = "\n".join(lines) + "\n"
    print(text)
    (ROOT / "scripts" / "results" / f"bench_rotary_{device}.md").write_text(text)


if __name__ == "__main__":
    main()
