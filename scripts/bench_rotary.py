"""Rotating queries and keys against the strongest peers that import: the same inputs, in turns, results checked equal.

    python scripts/bench_rotary.py [--device cpu|cuda] [--rounds 9] [--quick]

28 query and 4 key heads of 128 channels, M-RoPE, as [B, N, S, D] views of [B, S, N, D] memory, which models have. Peers are
transformers' function and module, eager and compiled, and Liger's kernel where it imports; the limit is a copy of the bytes.

On the CPU with one thread, in two processes: with warm memory (the allocator keeps what it has, as in a loop that runs for
hours) and cold (each large tensor is fresh from the system, as glibc hands it out by default). On a GPU also the kernel, the
fused norm, gradients, decoding under a CUDA graph, and a vision tower. Writes scripts/results/bench_rotary_DEVICE.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from reports import cpu, row, write_result

from mmrope.encodings.rotary import RotaryEmbedding, apply_rotary
from mmrope.encodings.spec import RotarySpec

ROOT = Path(__file__).parents[1]
N, K, D = 28, 4, 128
SECTIONS = [16, 24, 24]
WARM = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
Calls = dict[str, Callable[[], Any]]
Case = tuple[str, Callable[[], Calls]]
"""Its name, and what makes its calls; ratios are to the first."""

upstream: Any = None
if find_spec("transformers") is not None:
    upstream = import_module("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")


def theirs(device: str) -> Any:
    """transformers' rotary module of Qwen2.5-VL; since 5.x its tables have the axes shared out already."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": SECTIONS}
    config = upstream.Qwen2_5_VLTextConfig(
        hidden_size=N * D, num_attention_heads=N, num_key_value_heads=K, rope_parameters=rope
    )
    return upstream.Qwen2_5_VLRotaryEmbedding(config).to(device)


def ours() -> RotaryEmbedding:
    return RotaryEmbedding(RotarySpec.mrope(D, theta=1e6, sections=SECTIONS))


def inputs(batch: int, tokens: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k [B, N, S, D] and ids [3, B, S]: an image, then text."""
    ids = torch.arange(tokens).repeat(3, batch, 1)
    side = int(min(tokens // 2, 4096) ** 0.5)
    ids[1, :, : side * side] = torch.arange(side).repeat_interleave(side)
    ids[2, :, : side * side] = torch.arange(side).repeat(side)
    q, k = (torch.randn(batch, tokens, heads, D, device=device).to(dtype).transpose(1, 2) for heads in (N, K))
    return q, k, ids.to(device)


def check_equal(calls: Calls, names: tuple[str, str]) -> None:
    """That two of the calls say the same, in front, where transformers' float32 angles are right; in place: see the tests."""
    if all(name in calls for name in names):
        for one, other in zip(*(calls[name]() for name in names), strict=True):
            half, front = one.dtype != torch.float32, (..., slice(4096), slice(None))
            torch.testing.assert_close(one[front], other[front], atol=5e-2 if half else 2e-3, rtol=2e-2)


def from_tables(batch: int, tokens: int, dtype: torch.dtype, device: str, compiled: bool = False) -> Calls:
    """Tables made before."""
    q, k, ids = inputs(batch, tokens, dtype, device)
    cos, sin = ours()(ids)
    copies = torch.empty_like(q), torch.empty_like(k)
    calls: Calls = {}
    wide = theirs(device)(q, ids) if upstream is not None else ()
    if upstream is not None:
        calls["transformers, eager"] = lambda: upstream.apply_rotary_pos_emb(q, k, *wide)
        if compiled:
            turn = torch.compile(upstream.apply_rotary_pos_emb, dynamic=False)
            calls["transformers, compiled"] = lambda: turn(q, k, *wide)
    calls["mmrope"] = lambda: apply_rotary(q, k, cos, sin)
    check_equal(calls, ("transformers, eager", "mmrope"))
    if compiled:
        mine = torch.compile(apply_rotary, dynamic=False)
        calls["mmrope, compiled"] = lambda: mine(q, k, cos, sin)
    if device == "cuda":
        from mmrope.encodings.kernel import rotate_by_tables

        calls["mmrope, kernel"] = lambda: rotate_by_tables(q, k, cos, sin, heads=-3, distance=D // 2)
        if find_spec("liger_kernel") is not None and upstream is not None:
            from liger_kernel.transformers.rope import liger_rotary_pos_emb

            calls["Liger (in place)"] = lambda: liger_rotary_pos_emb(q, k, *wide)
    calls["mmrope, in place"] = lambda: apply_rotary(q, k, cos, sin, inplace=True)
    calls["copy"] = lambda: (copies[0].copy_(q), copies[1].copy_(k))
    return calls


def from_ids(batch: int, tokens: int, dtype: torch.dtype, device: str, compiled: bool = False) -> Calls:
    """Ids to rotated q and k: what the first layer of a model does."""
    q, k, ids = inputs(batch, tokens, dtype, device)
    rope, calls = ours(), {}
    if upstream is not None:
        module = theirs(device)

        def all_of_theirs(q: torch.Tensor, k: torch.Tensor, ids: torch.Tensor) -> Any:
            return upstream.apply_rotary_pos_emb(q, k, *module(q, ids))

        calls["transformers, eager"] = lambda: all_of_theirs(q, k, ids)
        if compiled:
            turn = torch.compile(all_of_theirs, dynamic=False)
            calls["transformers, compiled"] = lambda: turn(q, k, ids)
    calls["mmrope"] = lambda: rope.rotate(q, k, ids, backend="torch")
    check_equal(calls, ("transformers, eager", "mmrope"))
    if compiled:
        mine = torch.compile(lambda q, k, ids: rope.rotate(q, k, ids, backend="torch"), dynamic=False)
        calls["mmrope, compiled"] = lambda: mine(q, k, ids)
    if device == "cuda":
        calls["mmrope, kernel"] = lambda: rope.rotate(q, k, ids, backend="triton")
        check_equal(calls, ("mmrope", "mmrope, kernel"))
        calls["mmrope, kernel, in place"] = lambda: rope.rotate(q, k, ids, backend="triton", inplace=True)
    else:
        calls["mmrope, in place"] = lambda: rope.rotate(q, k, ids, inplace=True)
    copies = torch.empty_like(q), torch.empty_like(k)
    calls["copy"] = lambda: (copies[0].copy_(q), copies[1].copy_(k))
    return calls


def both_ways(tokens: int, dtype: torch.dtype, device: str) -> Calls:
    """Forward and backward, from ids."""
    q, k, ids = inputs(1, tokens, dtype, device)
    rope, turns = ours(), dict[str, Any]()
    if upstream is not None:
        wide = theirs(device)(q, ids)
        turns["transformers, eager"] = lambda q, k: upstream.apply_rotary_pos_emb(q, k, *wide)
        turns["transformers, compiled"] = torch.compile(turns["transformers, eager"], dynamic=False)
    turns["mmrope"] = lambda q, k: rope.rotate(q, k, ids, backend="torch")
    if device == "cuda":
        turns["mmrope, kernel"] = lambda q, k: rope.rotate(q, k, ids, backend="triton")

    def run(turn: Callable[..., Any]) -> Any:
        leaves = [x.detach().requires_grad_() for x in (q, k)]
        with torch.enable_grad():
            return torch.autograd.grad(turn(*leaves), leaves, (q, k))

    return {name: (lambda turn=turn: run(turn)) for name, turn in turns.items()}


def norms(tokens: int, dtype: torch.dtype, device: str, backward: bool) -> Calls:
    """QK-RMSNorm and rotation, from ids."""
    q, k, ids = inputs(1, tokens, dtype, device)
    q_weight, k_weight = (torch.ones(D, device=device, dtype=dtype) for _ in range(2))
    rope = ours()

    def apart(q: torch.Tensor, k: torch.Tensor, backend: Any) -> Any:
        q = torch.nn.functional.rms_norm(q, (D,), q_weight, 1e-6)
        return rope.rotate(q, torch.nn.functional.rms_norm(k, (D,), k_weight, 1e-6), ids, backend=backend)

    compiled = torch.compile(lambda q, k: apart(q, k, "torch"), dynamic=False)
    turns: dict[str, Callable[..., Any]] = {
        "norm and rotate, eager": lambda q, k: apart(q, k, "torch"),
        "the same, compiled": compiled,
    }
    if device == "cuda":
        turns["norm, then the kernel"] = lambda q, k: apart(q, k, "triton")
        turns["the kernel with the norm"] = lambda q, k: rope.norm_rotate(q, k, q_weight, k_weight, ids, backend="triton")
    else:
        turns["mmrope, norm_rotate"] = lambda q, k: rope.norm_rotate(q, k, q_weight, k_weight, ids, backend="torch")
    if not backward:
        return {name: (lambda turn=turn: turn(q, k)) for name, turn in turns.items()}

    def run(turn: Callable[..., Any]) -> Any:
        leaves = [x.detach().requires_grad_() for x in (q, k)]
        with torch.enable_grad():
            return torch.autograd.grad(turn(*leaves), leaves, (q, k))

    return {name: (lambda turn=turn: run(turn)) for name, turn in turns.items()}


def vision(patches: int, dtype: torch.dtype, device: str, compiled: bool = True) -> Calls:
    """Qwen2-VL's tower: 16 heads of 80 channels, h and w, packed [T, N, D]."""
    side = int(patches**0.5)
    ids = torch.stack([torch.arange(side * side) // side, torch.arange(side * side) % side]).to(device)
    q, k = (torch.randn(side * side, 16, 80, device=device).to(dtype) for _ in range(2))
    rope = RotaryEmbedding(RotarySpec.axial(80))
    cos, sin = rope(ids)
    wide = torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)
    calls: Calls = {}
    if upstream is not None:
        turn = upstream.apply_rotary_pos_emb_vision
        calls["transformers, eager"] = lambda: turn(q, k, *wide)
        if compiled:
            made = torch.compile(turn, dynamic=False)
            calls["transformers, compiled"] = lambda: made(q, k, *wide)
    calls["mmrope"] = lambda: rope.rotate(q, k, ids, heads=-2, backend="torch")
    check_equal(calls, ("transformers, eager", "mmrope"))
    if device == "cuda":
        calls["mmrope, kernel"] = lambda: rope.rotate(q, k, ids, heads=-2, backend="triton")
    copies = torch.empty_like(q), torch.empty_like(k)
    calls["copy"] = lambda: (copies[0].copy_(q), copies[1].copy_(k))
    return calls


def tables(tokens: int, device: str) -> Calls:
    ids, like, rope = inputs(1, tokens, torch.float32, "cpu")[2].to(device), torch.zeros(1, device=device), ours()
    calls: Calls = {}
    if upstream is not None:
        module = theirs(device)
        calls["transformers, eager"] = lambda: module(like, ids)
    return calls | {"mmrope": lambda: rope(ids)}


def replayed(calls: Calls) -> Calls:
    """Recorded in CUDA graphs."""
    found = {}
    for name, call in calls.items():
        if "compiled" in name:
            continue
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        found[name] = graph.replay
    return found


def named(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def cpu_cases(memory: str, quick: bool) -> Iterator[Case]:
    """With cold memory alone what is large enough for it to matter."""
    kinds = (torch.float32, torch.bfloat16)
    small, middle, long = ((1, 8), 16, 32) if quick else ((1, 8, 64), 512, 4096)
    for dtype in kinds:
        if memory == "warm":
            for batch in small:
                yield f"tables, {batch} x 1, {named(dtype)}", lambda b=batch, d=dtype: from_tables(b, 1, d, "cpu")
            yield f"tables, 64, {named(dtype)}", lambda d=dtype: from_tables(1, 64, d, "cpu")
        yield f"tables, {middle}, {named(dtype)}", lambda d=dtype: from_tables(1, middle, d, "cpu")
        yield f"tables, {long}, {named(dtype)}", lambda d=dtype: from_tables(1, long, d, "cpu", compiled=not quick)
        if memory == "warm":
            for batch in small:
                yield f"ids, {batch} x 1, {named(dtype)}", lambda b=batch, d=dtype: from_ids(b, 1, d, "cpu")
            yield f"ids, 64, {named(dtype)}", lambda d=dtype: from_ids(1, 64, d, "cpu")
        yield f"ids, {middle}, {named(dtype)}", lambda d=dtype: from_ids(1, middle, d, "cpu")
        yield f"ids, {long}, {named(dtype)}", lambda d=dtype: from_ids(1, long, d, "cpu", compiled=not quick)
        if not quick:
            yield f"forward and backward, {long}, {named(dtype)}", lambda d=dtype: both_ways(long, d, "cpu")
            if memory == "warm":
                yield f"tables, 131072, {named(dtype)}", lambda d=dtype: from_tables(1, 131_072, d, "cpu")
    if memory == "warm":
        yield "vision, 1024 patches, bfloat16", lambda: vision(64 if quick else 1024, torch.bfloat16, "cpu", compiled=not quick)
        yield "only the tables, 131072", lambda: tables(64 if quick else 131_072, "cpu")


def gpu_cases() -> Iterator[Case]:
    """What matters most comes first, should time run out."""
    bf16, kind = torch.bfloat16, "cuda"
    for tokens in (8192, 32_768, 1024, 131_072):
        yield f"ids, {tokens}, bfloat16", lambda t=tokens: from_ids(1, t, bf16, kind, compiled=True)
    for tokens in (1, 8, 64):
        yield f"decode, {tokens} x 1, bfloat16, CUDA graph", lambda t=tokens: replayed(from_ids(t, 1, bf16, kind))
    for tokens in (8192, 32_768):
        yield f"norm and rotate, {tokens}, bfloat16", lambda t=tokens: norms(t, bf16, kind, backward=False)
        yield f"norm and rotate, {tokens}, bfloat16, both ways", lambda t=tokens: norms(t, bf16, kind, backward=True)
        yield f"both ways, {tokens}, bfloat16", lambda t=tokens: both_ways(t, bf16, kind)
    yield "tables, 8192, bfloat16", lambda: from_tables(1, 8192, bf16, kind, compiled=True)
    yield "vision, 16384 patches, bfloat16", lambda: vision(16_384, bf16, kind)
    yield "ids, 8192, float32", lambda: from_ids(1, 8192, torch.float32, kind, compiled=True)
    yield "only the tables, 131072", lambda: tables(131_072, kind)


def measure(calls: Calls, rounds: int, device: str) -> dict[str, tuple[float, float]]:
    """(least, median) seconds of each, taken in turns."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    repeats, found = {}, {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(2):
            call()
        wait()
        begun = time.perf_counter()
        call()
        wait()
        repeats[name] = max(1, min(500, round(5e-3 / (time.perf_counter() - begun))))
    for _ in range(rounds):
        for name, call in calls.items():
            wait()
            begun = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            wait()
            found[name].append((time.perf_counter() - begun) / repeats[name])
    return {name: (min(times), statistics.median(times)) for name, times in found.items()}


def run(
    cases: Iterator[Case], device: str, rounds: int, until: float = float("inf"), report: Callable[[Any], None] = print
) -> None:
    """Measures one case after the other and reports each: {"case", "what", "least", "median"} in seconds, for every call."""
    with torch.no_grad():
        for case, make in cases:
            if time.time() > until:
                report([{"case": case, "what": "not reached: the time was up", "least": None, "median": None}])
                continue
            try:
                found = measure(make(), rounds if "131072" not in case or device == "cuda" else 3, device)
            except (RuntimeError, AssertionError, ValueError) as error:  # the other cases are worth having, too; it is told
                report([{"case": case, "what": f"failed: {str(error).splitlines()[0]}", "least": None, "median": None}])
                continue
            report([{"case": case, "what": what, "least": least, "median": median} for what, (least, median) in found.items()])
            torch.compiler.reset()


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown, with ratios to the first call of each case and to a copy."""
    lines = [row("case", "what", "ms, least / median", "times as fast", "of a copy's speed"), row(*["---"] * 5)]
    for each in rows:
        mine = {other["what"]: other["least"] for other in rows if other["case"] == each["case"]}
        if each["least"] is None:
            lines.append(row(each["case"], each["what"], "", "", ""))
            continue
        of_copy = f"{mine['copy'] / each['least']:.0%}" if "copy" in mine else ""
        ms, ratio = f"{each['least'] * 1e3:.4g} / {each['median'] * 1e3:.4g}", next(iter(mine.values())) / each["least"]
        lines.append(row(each["case"], each["what"], ms, f"{ratio:.2f}", of_copy))
    return lines


def heading(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu()}, one thread"
    found = []
    for package in ("torch", "triton", "transformers", "liger-kernel"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return f"{name}; Python {sys.version.split()[0]}, {', '.join(found)}; {time.strftime('%Y-%m-%d')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; nothing is written")
    parser.add_argument("--memory", choices=("warm", "cold"), help="(a process of this script's own)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if asked.memory:  # in a process that was started for it: rows as JSON, a line a case
        run(cpu_cases(asked.memory, asked.quick), "cpu", asked.rounds, report=lambda rows: print(json.dumps(rows), flush=True))
        return
    lines = [heading(asked.device), "", f"Least and median of {asked.rounds} turns; ratios by the least.", ""]
    if asked.device == "cuda":
        rows: list[dict[str, Any]] = []
        run(gpu_cases(), "cuda", asked.rounds, report=rows.extend)
        lines += table(rows)
    else:
        for memory, variables in (("warm", WARM), ("cold", {})):
            given = [a for a in sys.argv[1:] if a.startswith("--quick")]
            command = [sys.executable, __file__, "--rounds", str(asked.rounds), "--memory", memory, *given]
            done = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
            made = [each for line in done.stdout.splitlines() if line.startswith("[") for each in json.loads(line)]
            lines += [f"## {memory.capitalize()} memory", "", *table(made), ""]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if not asked.quick:
        write_result(ROOT / "scripts" / "results" / f"bench_rotary_{asked.device}.md", text)


if __name__ == "__main__":
    main()
