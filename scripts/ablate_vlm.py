"""What each encoding gives the small model on pictures of sizes that it was trained on, and that it never saw.

python scripts/ablate_vlm.py [--variants interleaved contiguous flat no_vision_rope] [--seeds 3] [--steps 1500]

Each variant is trained from scratch on pictures alone, by the same schedule, and asked the same fresh questions. Killed, it
goes on where it was. The results are printed as a table, and kept in scripts/results/ablate_vlm.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from marked import replace_marked
from torch import Tensor, nn
from tqdm import tqdm

from mmrope import VLM, VLMConfig
from mmrope.vlm.data import FULL, Mix, small_config, task_processor
from mmrope.vlm.evaluate import examine, exams
from mmrope.vlm.model import VLMOutput
from mmrope.vlm.train import Training, train

RESULTS = Path(__file__).parent / "results" / "ablate_vlm.json"
PICTURES = (
    (0.20, Mix(images=1, side=1, tokens=16, batch=4)),
    (0.40, Mix(images=1, side=2, tokens=60, batch=2)),
    (0.60, Mix(images=1, side=3, strips=4, tokens=100)),
    (1.00, dataclasses.replace(FULL, images=1, several=0, films=0, sums=0)),
)
SIZES = ("2 x 2 to 5 x 5", "6 x 6", "3 x 9")


class FlatIds(VLM):
    """1D RoPE: whatever the ids are, every token is at its place in the row, on every axis."""

    def forward(
        self, *, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any
    ) -> VLMOutput:
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        places = (real.cumsum(-1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]  # [B, S]
        return super().forward(
            input_ids=input_ids, position_ids=places.expand_as(position_ids), attention_mask=attention_mask, **rest
        )


class NoRotation(nn.Module):
    """In the place of a RotaryEmbedding: cos and sin of no rotation at all."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(ids)
        return torch.ones_like(cos), torch.zeros_like(sin)


def contiguous(config: VLMConfig) -> VLM:
    """The axes' channels one after the other, as Qwen2-VL has them."""
    return VLM(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, layout="contiguous")))


def no_vision_rope(config: VLMConfig) -> VLM:
    """The encoder's patches have no order but that of their four places in a token."""
    model = VLM(config)
    model.vision.rotary = NoRotation(model.vision.rotary)  # pyright: ignore[reportAttributeAccessIssue]
    return model


VARIANTS: dict[str, Callable[[VLMConfig], VLM]] = {
    "interleaved": VLM,
    "contiguous": contiguous,
    "flat": FlatIds,
    "no_vision_rope": no_vision_rope,
}


def table(results: dict[str, Any]) -> Iterator[str]:
    """Means over the seeds, with the least and the most, in Markdown."""
    kinds = ("at", "row", "where", "many")
    yield f"| encoding | size | {' | '.join(kinds)} |"
    yield f"|---|---|{'---|' * len(kinds)}"
    for variant, seeds in results["variants"].items():
        for size in SIZES:
            cells = []
            for kind in kinds:
                shares = [100 * right / of for right, of in (run[size][kind] for run in seeds.values())]
                spread = f" ({min(shares):.0f} to {max(shares):.0f})" if len(shares) > 1 else ""
                cells.append(f"{statistics.mean(shares):.1f}{spread}")
            yield f"| {variant} | {size} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--count", type=int, default=400, help="questions of each kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    right, left = (task_processor(padding_side=side, threads=1) for side in ("right", "left"))
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"CPU ({platform.machine()})"
    about = {"steps": options.steps, "count": options.count, "device": device, "torch": torch.__version__}
    results: dict[str, Any] = {**about, "date": str(date.today()), "variants": {}}
    for seed in range(options.seeds):
        for variant in options.variants:
            torch.manual_seed(seed)
            model = VARIANTS[variant](small_config(right))
            training = Training(steps=options.steps, seed=seed)
            folder = options.out / f"{variant}-{seed}"
            with tqdm(total=options.steps, desc=f"{variant}, seed {seed}", disable=None) as bar:

                def say(entry: dict[str, Any], bar: Any = bar) -> None:
                    bar.update(entry["step"] - bar.n)

                train(model, right, training, folder, device=options.device, schedule=PICTURES, say=say)
            scores = {exam.name: examine(model, left, exam, count=options.count) for exam in exams() if exam.name in SIZES}
            results["variants"].setdefault(variant, {})[str(seed)] = scores
            options.results.write_text(json.dumps(results, indent=1) + "\n")
            tqdm.write(f"{variant}, seed {seed}: {scores}")
    lines = list(table(results))
    print("\n".join(lines))
    if options.results == RESULTS:
        about = f"{options.count} questions a kind, {device}, torch {torch.__version__}, {date.today()}."
        replace_marked(Path(__file__).parents[1] / "docs" / "model.md", "ablation", [*lines, "", about])


if __name__ == "__main__":
    main()
