"""VLM against transformers' SDPA on a CPU: the same random weights at released widths, one thread, in turns, tokens checked.

    python scripts/bench_vlm.py [--models qwen2_vl ...] [--dtypes float32 bfloat16] [--layers 4] [--rounds 3] [--out FILE]

A model has a released one's widths and vocabulary, and `--layers` layers in each half. Half of a prompt's tokens are of images,
500 each; of 8,000 none. Both libraries load the folder that transformers saves, and write by their own greedy generate():
"prefill" is from the call to the first token, the position ids included, which mmrope computes outside of its model; "a token"
is from one token to the next, over 64. Their tokens are compared. Times are the processor's, which others' work on the machine
disturbs less than the clock's. Memory is that of a process of its own, with 32 tokens after 4,000: VmHWM counts pages of mapped
files, too, which the system may drop; RssAnon does not. The table is also written to scripts/results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reports import cpu, row, write_result  # noqa: E402

from mmrope import VLM, Segment, collate, position_ids, segments_from_inputs  # noqa: E402

_SPECIAL = {"image_token_id": 200, "video_token_id": 201, "vision_start_token_id": 202, "vision_end_token_id": 203}
_TEXT = {"vocab_size": 151936, "max_position_embeddings": 32768, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
_QWEN2 = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
_QWEN3 = {"head_dim": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}}
_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
_DEEP = {"hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2048, "num_position_embeddings": 2304}
# hidden size, heads, key heads and MLP of the decoder, and what else it has; the vision encoder; its patches' side
MODELS: dict[str, tuple[tuple[int, int, int, int], dict[str, Any], dict[str, Any], int]] = {
    "qwen2_vl": ((1536, 12, 2, 8960), _QWEN2, {"embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 1536}, 14),
    "qwen2_5_vl": (
        (2048, 16, 2, 11008),
        _QWEN2,
        {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048, "window_size": 112},
        14,
    ),
    "qwen3_vl": ((2048, 16, 8, 6144), _QWEN3, _DEEP, 16),
    "qwen3_vl_moe": ((2048, 32, 4, 6144), {**_QWEN3, **_EXPERTS}, _DEEP, 16),
}
PROMPTS = {  # tokens of each row, and images in it
    "1,000 tokens": ([1000], 1),
    "4 rows of 700 to 1,000 tokens": ([1000, 900, 800, 700], 1),
    "4,000 tokens": ([4000], 4),
    "8,000 tokens": ([8000], 0),  # once
}
NEW = 64
SIDES = ("transformers", "mmrope")
PACKAGES = ("torch", "transformers", "safetensors")


def save(name: str, folder: str, layers: int, dtype: torch.dtype) -> None:
    """A random model, as transformers saves it."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    (hidden, heads, kv, wide), more, vision, side = MODELS[name]
    moe = name.endswith("moe")
    text = {**_TEXT, **more, "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv}
    text |= {"intermediate_size": wide, "num_hidden_layers": min(layers, 2) if moe else layers}
    vision = {**vision, "depth": layers, "num_heads": 16, "patch_size": side}
    if name == "qwen2_5_vl":
        vision["fullatt_block_indexes"] = [layers - 1]
    elif name.startswith("qwen3"):
        vision["deepstack_visual_indexes"] = list(range(min(3, layers - 1, text["num_hidden_layers"])))
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, text_config=text, vision_config=vision, tie_word_embeddings=not moe, **_SPECIAL)
    AutoModelForImageTextToText.from_config(config, dtype=dtype).save_pretrained(folder)


def load(side: str, folder: str, dtype: torch.dtype) -> Any:
    if side == "mmrope":
        return VLM.from_pretrained(folder)
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


def prompt(name: str, lengths: list[int], images: int) -> dict[str, Any]:
    """What a processor gives for random rows, padded on the left."""
    from tests.support.upstream_ids import TEXT, as_inputs, with_tokens

    shown = [Segment.image(h=20, w=25), Segment.text(10)] * images
    rows = [[Segment.text(10), *shown, Segment.text(length - 10 - 510 * images)] for length in lengths]
    made = {k: torch.as_tensor(v) for k, v in as_inputs(collate(rows, pad_side="left"), with_tokens(name)).items()}
    text = torch.randint(1000, 100_000, made["input_ids"].shape)
    made["input_ids"] = torch.where(made["input_ids"] == TEXT, text, made["input_ids"])
    if images:
        made["pixel_values"] = torch.randn(int(made["image_grid_thw"].prod(-1).sum()), 6 * MODELS[name][3] ** 2)
    return made


def by_mmrope(model: VLM, name: str, inputs: Mapping[str, Any], new: int) -> tuple[list[list[int]], list[float]]:
    times, tokens = [time.process_time()], []
    placed = position_ids(segments_from_inputs(inputs, name), name).torch()
    for step in model.stream(**{**inputs, **placed}, max_new_tokens=new, temperature=0.0):
        times.append(time.process_time())
        tokens.append(step)
    return tokens, times


def by_transformers(model: Any, name: str, inputs: Mapping[str, Any], new: int) -> tuple[list[list[int]], list[float]]:
    times, tokens = [time.process_time()], []

    def put(value: torch.Tensor) -> None:
        if value.ndim == 1:  # first comes the prompt, [B, S]
            times.append(time.process_time())
            tokens.append(value.tolist())

    watch = SimpleNamespace(put=put, end=lambda: None)
    model.generate(**inputs, max_new_tokens=new, do_sample=False, streamer=watch)
    return tokens, times


RUNS = {"transformers": by_transformers, "mmrope": by_mmrope}
"""Each step's tokens, and the moments of the call and of each of them."""


def compared(models: Mapping[str, Any], inputs: Mapping[str, Any], tokens: Mapping[str, list[list[int]]]) -> str:
    """Whether both wrote the same, or where they part and by how much the first prefers its token."""
    theirs, ours = (tokens[side] for side in SIDES)
    step = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b), None)
    if step is None:
        return "the same"
    said = models["transformers"].generate(
        **inputs, max_new_tokens=step + 1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    logits = said.logits[step]  # [B, vocab]
    gap = max(float(z[a] - z[b]) for z, a, b in zip(logits, theirs[step], ours[step], strict=True))
    return f"the same before {step + 1}, there a gap of logits of {gap:.1e}, whose deviation is {logits.std():.1f}"


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {side: [] for side in calls}
    for n in range(rounds):
        for side in list(calls)[:: 1 if n % 2 == 0 else -1]:
            found[side].append(calls[side]())
    return found


def seconds(call: Callable[[], Any]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def line(case: str, found: Mapping[str, list[float]]) -> str:
    """A row of the table: least / median of both, and how many times as fast mmrope is by each."""
    least, median = ([f(found[side]) for side in SIDES] for f in (min, statistics.median))
    cells = [f"{a * 1e3:,.1f} / {b * 1e3:,.1f}" for a, b in zip(least, median, strict=True)]
    text = row(case, *cells, f"{least[0] / least[1]:.2f}", f"{median[0] / median[1]:.2f}")
    print(text, flush=True)
    return text


def measure(name: str, folder: str, dtype: torch.dtype, rounds: int) -> list[str]:
    case, patch = f"{name}, {str(dtype).removeprefix('torch.')}", MODELS[name][3]
    loading = in_turns({side: lambda side=side: seconds(lambda: load(side, folder, dtype)) for side in SIDES}, rounds)
    lines = [line(f"{case}: loading", loading)]
    models = {side: load(side, folder, dtype) for side in SIDES}
    for side in SIDES:
        RUNS[side](models[side], name, prompt(name, [600], 1), 2)  # pages of files are mapped at the first use
    for shown, t, h, w in (("an image of 1024 x 768", 1, 768, 1024), ("8 x 448 x 448 of video", 8, 448, 448)):
        grid = torch.tensor([[t, h // (2 * patch) * 2, w // (2 * patch) * 2]])
        lines.append(line(f"{case}: vision encoder, {shown}", vision(models, patch, grid, dtype, rounds)))
    for shown, (lengths, images) in PROMPTS.items():
        first, after, same = writing(name, models, prompt(name, lengths, images), rounds if images else 1)
        lines += [line(f"{case}: prefill, {shown}", first), line(f"{case}: a token after {shown} (tokens: {same})", after)]
    return lines


def vision(
    models: Mapping[str, Any], patch: int, grid: torch.Tensor, dtype: torch.dtype, rounds: int
) -> dict[str, list[float]]:
    pixels = torch.randn(int(grid.prod()), 6 * patch**2).to(dtype)
    encode: dict[str, Callable[[], torch.Tensor]] = {
        "transformers": lambda: models["transformers"].model.visual(pixels, grid_thw=grid).pooler_output,
        "mmrope": lambda: models["mmrope"].vision(pixels, grid),
    }
    if len(pixels) < 5000:
        a, b = (encode[side]().float() for side in SIDES)
        assert (a - b).norm() < (1e-4 if dtype == torch.float32 else 5e-2) * a.norm()
    return in_turns({side: lambda side=side: seconds(encode[side]) for side in SIDES}, rounds)


def writing(
    name: str, models: Mapping[str, Any], inputs: Mapping[str, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], str]:
    """Seconds to the first token, from each to the next, and whether the tokens are the same."""
    made = in_turns({side: lambda side=side: RUNS[side](models[side], name, inputs, NEW) for side in SIDES}, rounds)
    same = compared(models, inputs, {side: made[side][0][0] for side in SIDES})
    steps = {side: [[b - a for a, b in pairwise(times)] for _, times in made[side]] for side in SIDES}
    first = {side: [step[0] for step in steps[side]] for side in SIDES}
    return first, {side: [x for step in steps[side] for x in step[1:]] for side in SIDES}, same


def memory(name: str, folder: str, dtype: torch.dtype) -> list[str]:
    torch.save(prompt(name, [4000], 4), Path(folder) / "inputs")
    case, found = str(dtype).removeprefix("torch."), {}
    for side in SIDES:
        command = [sys.executable, __file__, "--child", side, "--folder", folder, "--models", name, "--dtypes", case]
        found[side] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    lines = []
    for shown in found["mmrope"]:
        theirs, ours = (found[side][shown] / 1024 for side in SIDES)
        lines.append(row(f"{name}, {case}: MiB, {shown}", f"{theirs:,.0f}", f"{ours:,.0f}", f"{theirs / ours:.2f}", ""))
    print("\n".join(lines), flush=True)
    return lines


def child(side: str, name: str, folder: str, dtype: torch.dtype) -> None:
    """Prints what memory a process takes that loads a model and writes 32 tokens after 4,000."""
    inputs = torch.load(Path(folder) / "inputs")
    if side == "transformers":
        from transformers import AutoModelForImageTextToText  # noqa: F401
    before, peak, done = status("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load(side, folder, dtype)
    loaded = status("RssAnon")
    RUNS[side](model, name, inputs, 32)
    done.set()
    watcher.join()
    found = {"RssAnon before loading": before, "RssAnon after": loaded, "RssAnon at most": peak[0], "VmHWM": status("VmHWM")}
    print(json.dumps(found))


def status(key: str) -> int:
    """KiB, of this process."""
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)).split()[1])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--layers", type=int, default=4, help="of each half; 2 of the decoder's with experts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "bench_vlm.md")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        return child(args.child, args.models[0], args.folder, getattr(torch, args.dtypes[0]))
    packages = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    lines = [f"{cpu()}, one thread; Python {sys.version.split()[0]}, {packages}; {time.strftime('%Y-%m-%d')}", ""]
    lines += [
        f"Milliseconds of processor time, least / median of {args.rounds} turns, of a token over all; {args.layers} layers in "
        "each half, but 2 in the decoder with experts. Times as fast: transformers' by mmrope's.",
        "",
        row("case", "transformers", "mmrope", "by the least", "by the median"),
        row(*["---"] * 5),
    ]
    for name in args.models:
        for dtype in (getattr(torch, d) for d in args.dtypes):
            with tempfile.TemporaryDirectory() as folder:
                save(name, folder, args.layers, dtype)
                lines += measure(name, folder, dtype, args.rounds)
                lines += memory(name, folder, dtype)
            write_result(args.out, "\n".join(lines) + "\n")
    return None


if __name__ == "__main__":
    main()
