"""A real video: its true times, the IDs that they become, and where the answer's tokens go.

python samples/video_ids.py [--device cpu] [video]
"""

import argparse
from pathlib import Path

import torch

import mmrope
from mmrope import Segment

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("video", nargs="?", default=Path(__file__).with_name("clip.mp4"))
options = parser.parse_args()

# Two frames a second; two frames make one temporal grid. The times are the file's own, not frame index / frame rate.
processor = mmrope.Processor(family="qwen2_5_vl", fps=2.0, video_pixels=(4 * 28 * 28, 64 * 28 * 28))
inputs = processor([{"role": "user", "content": [{"type": "video", "video": options.video}]}])
print("frames at", [round(s, 3) for s in inputs["video_timestamps"][0].tolist()], "s")
print(
    "patch grid",
    inputs["video_grid_thw"].tolist(),
    "with",
    inputs["second_per_grid_ts"].tolist(),
    "s from grid to grid",
)

# The same rows of segments can be had from any Hugging Face processor's output.
[row] = mmrope.segments_from_inputs(inputs, processor.family)
positions = mmrope.position_ids(row, processor.family)
print(mmrope.explain(positions))

# A step of the time axis is floor(i * seconds * ids per second), so 1 s between grids is 2 ids in Qwen2.5-VL.
video = next(segment for segment in row if segment.kind == "video")
text = [Segment.text(4), video, Segment.text(4)]
for name in ("qwen2_5_vl", "qwen2_5_vl@transformers-5.23"):
    both = mmrope.position_ids(text, name)
    t = both.ids[0, 0].tolist()
    print(f"{name:29} t of the grids {sorted(set(t[4:-4]))}, of the text after it {t[-4:]}")

# Decoding needs no model and no hidden state: the answer's tokens are the slice past the end of the row.
answer = mmrope.position_ids(row, processor.family, start=row.length, stop=row.length + 3)
print("the next three tokens take ids", answer.ids[0, 0].tolist(), "on every axis")
print(f"as tensors on {options.device}:", {name: list(x.shape) for name, x in answer.torch(options.device).items()})
