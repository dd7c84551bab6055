"""The position step of a model, exported: ids to rotated queries and keys, for prompts and for decoding, of any size.

python samples/export_positions.py [--device cpu]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.export import Dim, export, load, save

import mmrope
from mmrope import Segment

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
device = parser.parse_args().device


class Positions(torch.nn.Module):
    """Queries and keys, turned to their places. What depends on the data (where media are) was computed before, on the host."""

    def __init__(self, spec):
        super().__init__()
        self.rotary = mmrope.RotaryEmbedding(spec)

    def forward(self, q, k, position_ids):
        """q [B, N, S, D], k [B, K, S, D], position_ids [3, B, S]."""
        return self.rotary.rotate(q, k, position_ids, backend="torch")


class Decoding(torch.nn.Module):
    """The same for tokens after a prompt: `following` [B] is the next id of each row, and stays what it is; `step` counts."""

    def __init__(self, spec):
        super().__init__()
        self.positions = Positions(spec)

    def forward(self, q, k, following, step):
        """q [B, N, S, D], k [B, K, S, D] of S new tokens; following [B], step [1] int64."""
        new = torch.arange(q.shape[2], device=q.device) + step  # [S]
        ids = following[:, None] + new  # [B, S]
        return self.positions(q, k, ids.expand(3, -1, -1))


rows = [[Segment.text(4), Segment.image(h=3, w=4), Segment.text(2)], [Segment.text(9)]]
positions = mmrope.position_ids(mmrope.collate(rows, pad_side="left"), "qwen2_5_vl")
ids, following = torch.tensor(positions.ids, device=device), torch.tensor(positions.next, device=device)
spec = mmrope.RotarySpec.from_family("qwen2_5_vl")
q, k = torch.randn(2, 8, ids.shape[2], 128, device=device), torch.randn(2, 2, ids.shape[2], 128, device=device)
batch, tokens = Dim("batch", min=1, max=64), Dim("tokens", min=1, max=131072)
heads = {0: batch, 2: tokens}


def exported(module, inputs, shapes, path):
    """Through a file, as a runtime would have it."""
    save(export(module.to(device), inputs, dynamic_shapes=shapes), path)
    return load(path).module()


with tempfile.TemporaryDirectory() as folder:
    prompt = exported(Positions(spec), (q, k, ids), (heads, heads, {1: batch, 2: tokens}), Path(folder) / "prompt.pt2")
    step = torch.zeros(1, dtype=torch.int64, device=device)
    decoding = exported(
        Decoding(spec), (q, k, following, step), (heads, heads, {0: batch}, None), Path(folder) / "decoding.pt2"
    )

rotary = mmrope.RotaryEmbedding(spec).to(device)
for size in (1, 5):  # other sizes than those that were traced
    x, y = torch.randn(3, 8, size, 128, device=device), torch.randn(3, 2, size, 128, device=device)
    some = torch.randint(0, 10**6, (3, 3, size), device=device)
    later = (some[0, :, :1] + 7 + torch.arange(size, device=device)).expand(3, -1, -1)  # [3, B, S]
    for name, found, ids in (
        ("prompt", prompt(x, y, some), some),
        ("decoding", decoding(x, y, some[0, :, 0], step + 7), later),
    ):
        q, k = rotary.rotate(x, y, ids, backend="torch")
        print(f"{name}, {size} new tokens: queries differ from eager by {(found[0] - q).abs().max():.1e}")
        assert torch.allclose(found[0], q, rtol=0, atol=1e-5)
        assert torch.allclose(found[1], k, rtol=0, atol=1e-5)
