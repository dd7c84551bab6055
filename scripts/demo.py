"""The whole path on real input, in under a minute: files -> position IDs -> rotations -> a small model's answers.

python scripts/demo.py [--device cpu] [--out out]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reports import device_name
from tqdm import tqdm

import mmrope
from mmrope.positions.compare import placed
from mmrope.view.figure import save
from mmrope.view.ids import overlapping_text, plot_ids, plot_rules
from mmrope.view.model import plot_looks
from mmrope.vlm.assistant import Assistant
from mmrope.vlm.looks import looked_at

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
ASKED = [  # about held-out handwriting, with the truth
    ("grid.png", "What is at row 2, column 3?", "8"),
    ("grid.png", "Read row 3.", "0 3 2 8"),
    ("grid.png", "Where is the 5?", "row 2, column 1"),
    ("grid.png", "How many 8s are there?", "3"),
    ("digits.mp4", "List the digits.", "9 7 5 4"),
    ("digits.mp4", "What is shown at 2.0 s?", "7"),
    ("digits.mp4", "Which digit comes after the 5?", "4"),
    ("digits.mp4", "When does the 5 appear?", "2.5 s"),
]


def asked(name: str, question: str) -> list[dict[str, Any]]:
    """A question about a sample."""
    kind = "video" if name.endswith(".mp4") else "image"
    return [{"role": "user", "content": [{"type": kind, kind: SAMPLES / name}, {"type": "text", "text": question}]}]


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

    def inputs(self) -> None:
        """What a model reads: the same ids, with tokens and pixels"""
        inputs = self.processor(QUESTION)
        assert (inputs["position_ids"].numpy() == self.positions.ids).all()
        for name, value in inputs.items():
            if hasattr(value, "shape"):
                say(f"{name:22} {list(value.shape)}")

    def answers(self) -> None:
        """A small model, trained on such ids, reads handwritten digits that it was not trained on"""
        self.assistant = Assistant.from_pretrained(device=self.device)
        million = sum(p.numel() for p in self.assistant.model.parameters()) / 1e6
        say(f"{million:.1f} million parameters on {device_name(self.device)}; grid.png has 3 rows of 4 cells, digits.mp4 7.6 s")
        begin, right = time.perf_counter(), 0
        for name, question, truth in ASKED:
            answer = self.assistant.answer(asked(name, question))
            right += answer == truth
            say(f"{name:11} {question:32} {answer:28} {'right' if answer == truth else f'WRONG, it is {truth}'}")
        say(f"{right} of {len(ASKED)} right, in {time.perf_counter() - begin:.1f} s; mmrope ask samples/grid.png asks more")

    def looks(self) -> None:
        """Where the decoder looked for its answers"""
        for name, question, _ in (ASKED[0], ASKED[-1]):
            messages = asked(name, question)
            [looked] = looked_at(self.assistant.model, self.assistant.processor, messages)
            title = f"{question} {self.assistant.answer(messages)}"
            path = self.out / f"looked-{Path(name).stem}.png"
            save(plot_looks(looked.pixels, looked.weights, title=title), path)
            say(f"wrote {path}")

    def collapse(self) -> None:
        """Text alone: M-RoPE is 1D RoPE, measured"""
        import torch

        vlm, processor = self.assistant.model, self.assistant.processor
        inputs = processor([{"role": "user", "content": "Text alone has the same id on every axis, 0, 1, 2, ..."}]).to(
            self.device
        )
        ids = inputs["position_ids"]
        n = ids.shape[-1]
        flat = torch.arange(n, device=self.device)[None, None]  # [1, 1, S]
        spec = vlm.config.rotary
        assert spec.spectra is not None
        theta, _ = spec.spectra.of[0]
        rope = mmrope.RotaryEmbedding(mmrope.RotarySpec.rope(spec.head_dim, theta=theta)).to(self.device)
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
    steps: list[Callable[[], Any]] = [demo.ids, demo.picture, demo.rules, demo.inputs, demo.answers, demo.looks, demo.collapse]
    with tqdm(steps, bar_format="{n_fmt}/{total_fmt} steps, {elapsed} {bar:30}", leave=False, disable=None) as bar:
        for n, step in enumerate(bar, 1):
            tqdm.write(f"\n{n}. {step.__doc__}")
            step()
    tqdm.write(f"\ndone in {time.perf_counter() - begin:.1f} s; pictures are in {options.out}/")


if __name__ == "__main__":
    main()
