"""An image between two texts: from its size to position IDs, from IDs to rotated queries and keys.

python samples/image_ids.py [--device cpu]
"""

import argparse

import torch

import mmrope
from mmrope import Segment

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
device = parser.parse_args().device

# A processor cuts a 112 x 168 pixel image into 8 x 12 patches; the family merges 2 x 2 of them into a token.
family = mmrope.family("qwen2_vl")
image = family.image((1, 8, 12))
print(f"patch grid 1 x 8 x 12 -> {image}, {image.length} tokens")

# Five tokens of text, the image, three more of text. Every token gets a time, a height and a width.
positions = mmrope.position_ids([Segment.text(5), image, Segment.text(3)], family)
for axis, ids in zip(family.axes, positions.ids[:, 0], strict=True):
    print(axis, *(f"{i:2}" for i in ids))
print(mmrope.explain(positions))

# The image spans ids 5 to 10, so text goes on at 11, not at 29: long images cost few positions.
assert positions.ids[0, 0, 5 + image.length] == 11

# How the model feels it: 64 pairs of channels, of which t turns the first 16, h the next 24, w the rest.
spec = mmrope.RotarySpec.mrope(head_dim=128, theta=1e6, sections=(16, 24, 24))
rope = mmrope.RotaryEmbedding(spec).to(device)
tokens = positions.ids.shape[-1]
q = torch.randn(1, 8, tokens, 128, device=device)  # [B, N, S, D]
k = torch.randn(1, 2, tokens, 128, device=device)  # [B, K, S, D]: grouped-query attention has fewer keys
turned_q, turned_k = rope.rotate(q, k, positions.torch(device)["position_ids"])
print(f"{spec}: turned q {list(turned_q.shape)} and k {list(turned_k.shape)} on {device}")
print(f"norms changed by at most {(turned_q.norm(dim=-1) / q.norm(dim=-1) - 1).abs().max().item():.1e}: it is a rotation")
