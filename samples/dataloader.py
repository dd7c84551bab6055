"""Position ids in the workers of a DataLoader: files in, model inputs out, no model in sight.

python samples/dataloader.py [--device cpu]
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import mmrope
from mmrope.adapters.transformers import PositionCollator

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
device = parser.parse_args().device
samples = Path(__file__).parent


def conversation(*files):
    """A question about files."""
    kinds = {".jpg": "image", ".png": "image", ".mp4": "video"}
    items = [{"type": kinds[Path(file).suffix], kinds[Path(file).suffix]: samples / file} for file in files]
    return [{"role": "user", "content": [*items, {"type": "text", "text": "What is shown?"}]}]


if __name__ == "__main__":  # workers that are spawned read this file again
    processor = mmrope.Processor(
        family="qwen3_vl", video_pixels=(4 * 32 * 32, 8 * 32 * 32), image_pixels=(64 * 64, 16 * 32 * 32)
    )
    data: Any = [
        conversation("cat.jpg"),
        conversation("clip.mp4"),
        conversation("coffee.jpg", "cat.jpg"),
        conversation("grid.png", "clip.mp4"),
    ]

    # Any function from a list of examples to a processor's batch can be wrapped; here it is mmrope's own processor.
    collator = PositionCollator(processor, processor.family, packed=True)
    print(f"the collator is {len(pickle.dumps(collator)):,} bytes, and holds no model")

    expected = [collator(data[:2]), collator(data[2:])]
    for start in ("fork", "spawn"):
        loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=collator, multiprocessing_context=start)
        for batch, here in zip(loader, expected, strict=True):
            assert all(torch.equal(batch[key], value) for key, value in here.items() if isinstance(value, torch.Tensor))
            on_device = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
            print(start, {key: list(value.shape) for key, value in on_device.items() if key in ("input_ids", "position_ids")})
