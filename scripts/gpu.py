"""All that a GPU has to show, by one command that needs nothing installed.

    PYTHONPATH=. python3 scripts/gpu.py [tests] [bench] [model] [released] [--out FOLDER] [--seconds 240] [--dry]

Runs under any python3 that has torch 2.6 or newer, triton and pytest: without a virtual environment, without a network. Parts
can be named; all by default:

    tests   the kernel's tests and those of rotations on the GPU
    bench   scripts/bench_rotary.py's cases, what matters most first, until the time is up
    model   where einops, safetensors, Pillow and scikit-learn import: the small model's answers, CPU against GPU
    released  Qwen3-VL-2B's sizes with random weights in bfloat16: prefill and decoding, beside transformers if it is there

Ends within --seconds, writes FOLDER/gpu.json after every part and every case, and FOLDER/gpu.md, a table, which it also prints
last. --dry runs the same parts on a CPU, in Triton's interpreter and at tiny sizes: not for figures, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NEEDED = ("einops", "safetensors", "PIL", "sklearn")  # by the small model
DRY_TESTS = "one_rounding_at_most or one_graph"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "out")
    parser.add_argument("--seconds", type=float, default=240.0, help="all parts together end within these")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes")
    asked = parser.parse_args()
    unknown = sorted(set(asked.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    import torch

    if not asked.dry and not torch.cuda.is_available():
        print("scripts/gpu.py needs a CUDA GPU, and torch finds none here; --dry runs it on a CPU", file=sys.stderr)
        return 2
    begun = time.time()
    asked.until = begun + asked.seconds
    asked.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"dry": asked.dry, "torch": torch.__version__, "python": platform.python_version()}
    found |= {"device": "a CPU" if asked.dry else torch.cuda.get_device_name(), "date": time.strftime("%Y-%m-%d")}

    def save() -> None:
        found["seconds"] = round(time.time() - begun, 1)
        (asked.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")

    for name in asked.parts or PARTS:
        try:
            PARTS[name](asked, found, save)
        except Exception:  # the parts that follow are worth having, too; the failure is told, and counts
            found.setdefault("failed", {})[name] = traceback.format_exc()
            print(found["failed"][name], file=sys.stderr)
        save()
    text = "\n".join(summary(found)) + "\n"
    (asked.out / "gpu.md").write_text(text)
    print(text)
    return 1 if found.get("failed") else 0


def tests(asked: argparse.Namespace, found: dict[str, Any], save: Callable[[], None]) -> None:
    """By pytest, in a process of its own; without tests/conftest.py, which needs what `make test` installs."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "MMROPE_REQUIRE_GPU": "" if asked.dry else "1"}
    if not asked.dry:
        variables.pop("TRITON_INTERPRET", None)
    files = ["tests/encodings/test_kernel.py", *([] if asked.dry else ["tests/encodings/test_gpu.py"])]
    chosen = ["-k", DRY_TESTS] if asked.dry else []
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-o",
        "filterwarnings=",
        *files,
        *chosen,
    ]
    limit = max(1.0, min(120.0, asked.until - time.time()))
    try:
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=limit, check=False)
        said, code = (done.stdout + done.stderr).splitlines(), done.returncode
    except subprocess.TimeoutExpired as error:
        said, code = [*str(error.stdout or b"", "utf-8", "replace").splitlines(), f"stopped after {limit:.0f} s"], 124
    wanted = [
        line for line in said if line.startswith(("FAILED", "ERROR", "stopped")) or " passed" in line or " failed" in line
    ]
    found["tests"] = {"exit code": code, "summary": [line[:300] for line in wanted[-30:]]}
    if code:
        found.setdefault("failed", {})["tests"] = "\n".join(said[-60:])
        print("\n".join(said[-60:]), file=sys.stderr)


def bench(asked: argparse.Namespace, found: dict[str, Any], save: Callable[[], None]) -> None:
    """In this process; the model keeps 40 s."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import bench_rotary
    import torch

    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    found["bench"] = rows

    def report(made: list[dict[str, Any]]) -> None:
        rows.extend(made)
        save()

    if asked.dry:
        bench_rotary.run(bench_rotary.cpu_cases("warm", quick=True), "cpu", 1, asked.until - 40, report)
    else:
        bench_rotary.run(bench_rotary.gpu_cases(), "cuda", 7, asked.until - 40, report)
    broken = [f"{each['case']}: {each['what']}" for each in rows if each["what"].startswith("failed")]
    if broken:
        found.setdefault("failed", {})["bench"] = "\n".join(broken)
    found["heading"] = bench_rotary.heading("cpu" if asked.dry else "cuda")


def model(asked: argparse.Namespace, found: dict[str, Any], save: Callable[[], None]) -> None:
    """The shipped model reads grids of held-out handwriting; questions are the same on both devices."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        found["model"] = {"left out": f"{', '.join(missing)} cannot be imported here"}
        return
    if time.time() > asked.until - 15:
        found["model"] = {"left out": "the time was up"}
        return
    import torch

    from mmrope.preprocess.processor import Processor
    from mmrope.vlm.assistant import small_model
    from mmrope.vlm.evaluate import examine, exams
    from mmrope.vlm.model import VLM

    processor, exam = Processor.from_pretrained(small_model(), padding_side="left"), exams()[0]  # grids: images alone
    answers = {}
    for device in ("cpu", "cpu" if asked.dry else "cuda"):
        vlm = VLM.from_pretrained(small_model(), device=device, dtype=torch.float32)
        begun = time.time()
        right = examine(vlm, processor, exam, count=4 if asked.dry else 40)
        answers.setdefault(f"{device}, float32", {"right": right, "seconds": round(time.time() - begun, 2)})
    found["model"] = answers
    counts = [each["right"] for each in answers.values()]
    if any(count != counts[0] for count in counts):
        found.setdefault("failed", {})["model"] = f"answers differ: {answers}"


def released(asked: argparse.Namespace, found: dict[str, Any], save: Callable[[], None]) -> None:
    """Milliseconds of reading 4,000 tokens, half of them of images, and of a token after them; the least of three."""
    missing = [name for name in ("einops", "safetensors") if find_spec(name) is None]
    if missing or time.time() > asked.until - 30:
        found["released"] = {"left out": f"{', '.join(missing)} cannot be imported here" if missing else "the time was up"}
        return
    import torch

    from mmrope import Segment, position_ids
    from mmrope.vlm.model import VLM
    from mmrope.vlm.released import released_config, renaming

    path = ROOT / "tests" / "references" / "checkpoints" / "qwen_vl.json"
    values = json.loads(path.read_text())["Qwen/Qwen3-VL-2B-Instruct"]["config"]
    if asked.dry:
        values["text_config"] |= {"num_hidden_layers": 3, "hidden_size": 256, "intermediate_size": 512}
        values["vision_config"] |= {"depth": 3, "out_hidden_size": 256, "deepstack_visual_indexes": [0, 1, 2]}
    device, new, side = ("cpu", 3, 4) if asked.dry else ("cuda", 64, 32)
    torch.manual_seed(0)
    with torch.device(device):
        models: dict[str, Any] = {"mmrope": VLM(released_config(values)).to(torch.bfloat16).eval()}
    images = [Segment.text(2), Segment.image(h=side, w=side), Segment.text(2), Segment.image(h=side, w=side)]
    row = [*images, Segment.text(2 * side**2)]
    inputs = position_ids(row, models["mmrope"].config.family).torch(device)
    tokens = [10] * 2 + [values["image_token_id"]] * side**2
    inputs["input_ids"] = torch.tensor([tokens * 2 + [10] * (2 * side**2)], device=device)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == values["image_token_id"]).int()
    inputs["image_grid_thw"] = torch.tensor([[1, 2 * side, 2 * side]] * 2, device=device)
    inputs["pixel_values"] = torch.randn(8 * side**2, 1536, device=device, dtype=torch.bfloat16)
    given = {key: value for key, value in inputs.items() if key not in ("position_ids", "next_position")}
    calls: dict[str, Callable[[int], Any]] = {"mmrope": lambda n: models["mmrope"].generate(**inputs, max_new_tokens=n)}
    if find_spec("transformers") is not None:
        from transformers import AutoConfig, AutoModelForImageTextToText

        kind = values.pop("model_type")
        theirs = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **values)).to(device, torch.bfloat16).eval()
        ours, rename = models["mmrope"].state_dict(), renaming(kind)
        with torch.no_grad():
            for name, weight in theirs.named_parameters():
                weight.copy_(ours[rename(name)].view_as(weight))
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        calls["transformers"] = lambda n: theirs.generate(**given, max_new_tokens=n, **options)[
            :, inputs["input_ids"].shape[1] :
        ]
    least: dict[str, dict[int, float]] = {name: {} for name in calls}
    written = {name: call(new) for name, call in calls.items()}
    for _ in range(3):
        for name, call in calls.items():
            for n in (1, new):
                begun = time.perf_counter()
                call(n).tolist()
                least[name][n] = min(least[name].get(n, 1e9), time.perf_counter() - begun)
    figures: dict[str, Any] = {
        name: {"prefill, ms": round(t[1] * 1e3, 1), "a token, ms": round((t[new] - t[1]) / (new - 1) * 1e3, 2)}
        for name, t in least.items()
    }
    if "transformers" in written:  # in bfloat16 equal logits may part; how far they go together is told
        same = (written["mmrope"] == written["transformers"][:, : written["mmrope"].shape[1]]).long().cumprod(1).sum()
        figures["equal tokens"] = f"{int(same)} of {new}"
    found["released"] = figures


PARTS: dict[str, Callable[[argparse.Namespace, dict[str, Any], Callable[[], None]], None]] = {
    "tests": tests,
    "bench": bench,
    "model": model,
    "released": released,
}


def summary(found: dict[str, Any]) -> list[str]:
    """One short table, last."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from bench_rotary import table

    lines = [found.get("heading", f"{found['device']}; torch {found['torch']}; {found['date']}"), ""]
    lines += ["(A dry run: tiny sizes on a CPU, not for figures.)", ""] if found["dry"] else []
    lines += [*table(found["bench"]), ""] if found.get("bench") else []
    lines += [f"tests: {'; '.join(found['tests']['summary'][-3:]) or found['tests']['exit code']}"] if "tests" in found else []
    lines += [f"model: {json.dumps(found['model'])}"] if "model" in found else []
    lines += [f"released: {json.dumps(found['released'])}"] if "released" in found else []
    lines += [f"FAILED: {', '.join(found['failed'])}"] if found.get("failed") else []
    return [*lines, f"{found['seconds']} s"]


if __name__ == "__main__":
    sys.exit(main())
