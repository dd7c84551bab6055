"""The whole path on real input, in under a minute: files -> position IDs -> rotations -> a small model's output.

python scripts/demo.py [--device cpu] [--out out]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

import mmrope
from mmrope.pictures import overlapping_text, plot_ids, plot_rules, save
from mmrope.positions.compare import placed

SAMPLES = Path(__file__).parents[1] / "samples"
QUESTION = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Look at"},
            {"type": "image", "image": SAMPLES / "cat.jpg"},
            {"type": "text", "text": "and"},
            {"type": "image", "image": SAMPLES / "coffee.jpg"},
            {"type": "text", "text": ", then"},
            {"type": "video", "video": SAMPLES / "clip.mp4"},
            {"type": "text", "text": "What is shown at 2.5 s?"},
        ],
    }
]


class Demo:
    """One step after the other; each leaves what the next needs."""

    def __init__(self, device: str, out: Path) -> None:
        self.device, self.out = device, out
        # small images and frames: the point is the positions, and a CPU is enough
        self.processor = mmrope.Processor(
            family="qwen2_5_vl", image_pixels=(56 * 56, 160 * 28 * 28), video_pixels=(4 * 28 * 28, 64 * 28 * 28)
        )

    def ids(self) -> None:
        """Where is each token: two photographs, a video and text in one conversation"""
        parts = self.processor.conversation(QUESTION)
        self.positions = mmrope.position_ids([part.segment for part in parts], "qwen2_5_vl")
        say(mmrope.explain(self.positions, labels=[[part.label.replace("\n", " ") for part in parts]]))
        say("t, h, w: first..last id on each axis. next: the id that the text after a segment takes.")

    def picture(self) -> None:
        """Every token's t, h and w, drawn"""
        self.out.mkdir(parents=True, exist_ok=True)
        save(plot_ids(self.positions), self.out / "ids.png")
        say(f"wrote {self.out / 'ids.png'}")

    def rules(self) -> None:
        """The same video by the rule that the weights were trained with, and by transformers 5.23's"""
        video = next(s for s in self.positions.rows[0] if s.kind == "video")
        row = [mmrope.Segment.text(10), video, mmrope.Segment.text(20)]
        both = [mmrope.position_ids(row, name) for name in ("qwen2_5_vl", "qwen2_5_vl@transformers-5.23")]
        for positions in both:
            _, shown, text = placed(positions)
            first, last = shown.ids["t"]
            say(
                f"{positions.family!s:29} video t {first}..{last}, text after it from {text.ids['t'][0]}: "
                f"{len(overlapping_text(positions))} text tokens inside the video's time"
            )
        save(plot_rules(both), self.out / "rules.png")
        say(f"wrote {self.out / 'rules.png'}")

    def model(self) -> None:
        """A small vision-language model reads exactly these ids"""
        import torch

        inputs = self.processor(QUESTION).to(self.device)
        assert (inputs["position_ids"].cpu().numpy() == self.positions.ids).all()
        torch.manual_seed(0)
        self.vlm = mmrope.VLM().to(self.device, torch.bfloat16 if self.device == "cuda" else torch.float32).eval()
        begin = time.perf_counter()
        answer = self.processor.decode(self.vlm.generate(**inputs, max_new_tokens=16, temperature=1.0))[0]
        took = time.perf_counter() - begin
        million = sum(p.numel() for p in self.vlm.parameters()) / 1e6
        say(
            f"{million:.1f} million parameters on {device_name(self.device)}: "
            f"{inputs['input_ids'].shape[1]} tokens read, 16 written in {took:.2f} s"
        )
        say(f"RANDOM WEIGHTS, not trained, so the answer is noise: {answer!r}")

    def collapse(self) -> None:
        """Text alone: M-RoPE is 1D RoPE, measured"""
        import torch

        inputs = self.processor([{"role": "user", "content": "Text alone has the same id on every axis, 0, 1, 2, ..."}]).to(
            self.device
        )
        ids, vlm = inputs["position_ids"], self.vlm
        n = ids.shape[-1]
        flat = torch.arange(n, device=self.device)[None, None]  # [1, 1, S]
        spec = vlm.config.decoder.rotary
        rope = mmrope.RotaryEmbedding(mmrope.RotarySpec.rope(spec.head_dim, theta=vlm.config.decoder.theta)).to(self.device)
        angles = [(a - b).abs().max() for a, b in zip(vlm.decoder.rotary(ids), rope(flat), strict=True)]
        with torch.no_grad():
            logits = vlm(**inputs).logits
            vlm.decoder.rotary = rope
            logits_1d = vlm(**{**inputs, "position_ids": flat}).logits
        for name, difference in (
            ("ids", (ids - flat).abs().max()),
            ("cos and sin", torch.stack(angles).max()),
            ("logits", (logits - logits_1d).abs().max()),
        ):
            say(f"largest difference in {name:12} over {n} tokens: {difference.item():g}")
            assert difference.item() == 0


def say(text: str) -> None:
    tqdm.write("\n".join(f"   {line}" for line in text.splitlines()))


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"the CPU, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    begin = time.perf_counter()
    tqdm.write("mmrope demo: files to position IDs to a small model (loading torch takes some seconds)")
    import torch

    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    demo = Demo(device, options.out)
    steps: list[Callable[[], Any]] = [demo.ids, demo.picture, demo.rules, demo.model, demo.collapse]
    with tqdm(steps, bar_format="{n_fmt}/{total_fmt} steps, {elapsed} {bar:30}", leave=False, disable=None) as bar:
        for n, step in enumerate(bar, 1):
            tqdm.write(f"\n{n}. {step.__doc__}")
            step()
    tqdm.write(f"\ndone in {time.perf_counter() - begin:.1f} s; pictures are in {options.out}/")


if __name__ == "__main__":
    main()
