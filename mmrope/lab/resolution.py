"""Resolution: encoders that are trained on small images read larger ones (RoPE-Mixed's and LieRE's question)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mmrope.encodings.absolute import LearnedEmbedding, SinusoidalEmbedding
from mmrope.encodings.mixed import MixedRotary
from mmrope.encodings.spec import RotarySpec
from mmrope.lab.encodings import Added, Encoding, Rotary, Turned
from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.lab.reader import Reader, sizes
from mmrope.positions.build import patch_position_ids

DISC_COLORS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=torch.float32)
DISCS = 4
RADIUS, SHAFT, HEAD = 0.07, 0.16, 0.04  # of a disc, an arrow's length and its head's radius, in shares of the image
CLEAR = 1 / 6  # between the arrow and what it points at: a patch of the training
ASIDE = math.radians(60)  # of the other discs from the arrow's direction, at least
PATCH = 4  # pixels along a patch


class Learned(Added):
    """A learned embedding for each patch of a side x side image."""

    embedding: LearnedEmbedding

    def __init__(self, side: int, hidden: int) -> None:
        super().__init__(LearnedEmbedding(side * side, hidden))
        self.side = side

    def added(self, ids: Tensor) -> Tensor:
        """Of the patches in raster order; those of larger images are resized, bicubic."""
        side = math.isqrt(ids.shape[2])
        embedding = self.embedding
        if side != self.side:
            embedding = embedding.resized((self.side, self.side), (side, side))
        return embedding(torch.arange(side * side, device=ids.device)).expand(ids.shape[1], -1, -1)


class Sinusoidal(Added):
    """Half of the channels for rows, half for columns, as in MAE."""

    def __init__(self, hidden: int) -> None:
        super().__init__(SinusoidalEmbedding(hidden // 2))

    def added(self, ids: Tensor) -> Tensor:
        """By rows and columns."""
        return torch.cat([self.embedding(axis) for axis in ids], dim=-1)


ENCODINGS: Mapping[str, Callable[[int, int, int, int], Encoding]] = MappingProxyType(
    {
        "learned": lambda side, hidden, heads, head_dim: Learned(side, hidden),
        "sinusoidal": lambda side, hidden, heads, head_dim: Sinusoidal(hidden),
        "axial, base 100": lambda side, hidden, heads, head_dim: Rotary(RotarySpec.axial(head_dim, theta=100.0)),
        "axial, base 10000": lambda side, hidden, heads, head_dim: Rotary(RotarySpec.axial(head_dim)),
        "mixed": lambda side, hidden, heads, head_dim: Turned(MixedRotary(head_dim, heads)),
        "normalised": lambda side, hidden, heads, head_dim: Rotary(RotarySpec.axial(head_dim, theta=100.0)),
        "none": lambda side, hidden, heads, head_dim: Encoding(),
    }
)
"""By name: the encoding of an encoder that is trained on side x side patches."""


def scenes(count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arrows [n, 2] (row, column of their tails), directions [n, 2], discs [n, 4, 2], and the colours [n, 4] of these: the
    first is what the arrow points at, at least a patch of the training away; others may be nearer. In shares of the image."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    while sum(len(tail) for tail, _, _ in parts) < count:
        places = 0.08 + 0.84 * torch.rand(32 * count, 1 + DISCS, 2, generator=random)
        tail, discs = places[:, 0], places[:, 1:]
        away = discs - tail[:, None]
        far = away.norm(dim=-1)  # [32 n, 4]
        direction = away / far[..., None]
        aside = (direction[:, 1:] * direction[:, :1]).sum(dim=-1) < math.cos(ASIDE)
        apart = (discs[:, :, None] - discs[:, None]).norm(dim=-1) > 2.5 * RADIUS
        fits = aside.all(dim=1) & (apart | torch.eye(DISCS, dtype=torch.bool)).flatten(1).all(dim=1)
        along = (away * direction[:, :1]).sum(dim=-1, keepdim=True).clamp(0, SHAFT) * direction[:, :1]
        fits &= ((away - along).norm(dim=-1) > HEAD + 1.2 * RADIUS).all(dim=1) & (far[:, 0] > SHAFT + HEAD + CLEAR + RADIUS)
        parts.append((tail[fits], direction[fits, 0], discs[fits]))
    tail, towards, discs = (torch.cat(part)[:count] for part in zip(*parts, strict=True))
    colors = torch.rand(count, len(DISC_COLORS), generator=random).argsort(dim=1)[:, :DISCS]
    return tail, towards, discs, colors


def draw(tail: Tensor, towards: Tensor, discs: Tensor, color: Tensor, side: int) -> Tensor:
    """Patches [n, side * side, 3 * PATCH ** 2] of the scenes, with as many pixels as that takes."""
    pixels = side * PATCH
    at = (torch.arange(pixels) + 0.5) / pixels
    place = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1)  # [H, W, 2]

    def inked(distance: Tensor, radius: float) -> Tensor:
        return (0.5 + (radius - distance) * pixels).clamp(0, 1)

    disc = inked((place - discs[:, :, None, None]).norm(dim=-1), RADIUS)  # [n, 4, H, W]
    image = (disc[..., None] * DISC_COLORS[color][:, :, None, None]).sum(dim=1)  # [n, H, W, 3]
    from_tail = place - tail[:, None, None]
    along = (from_tail * towards[:, None, None]).sum(dim=-1).clamp(0, SHAFT)  # [n, H, W]
    shaft = inked((from_tail - along[..., None] * towards[:, None, None]).norm(dim=-1), 0.02)
    head = inked((from_tail - SHAFT * towards[:, None, None]).norm(dim=-1), HEAD)
    grey = torch.maximum(0.5 * shaft, head)[..., None]
    image = image * (1 - grey) + grey
    return rearrange(image, "n (h p) (w q) c -> n (h w) (p q c)", p=PATCH, q=PATCH)


def patch_ids(variant: str, side: int) -> Tensor:
    """[2, 1, S], rows and columns of the patches; normalised, from -1 to 1 in an image, in full turns, as in DINOv3."""
    normalize, unit = ("separate", 2 * math.pi) if variant == "normalised" else (None, 1)
    ids = patch_position_ids([(1, side, side)], axes="hw", order="raster", normalize=normalize)
    return torch.from_numpy(ids)[:, None] * unit


def cell(variant: str, seed: int, cell: Cell) -> Metrics:
    """Accuracy by patches along an image's side."""
    side = cell.sides[0]
    encoding = ENCODINGS[variant](side, cell.hidden, cell.heads, cell.hidden // cell.heads)
    config = sizes(cell.hidden, cell.heads, cell.layers)
    model = Reader(encoding, config, len(DISC_COLORS), features=3 * PATCH**2, causal=False).to(cell.device)
    random = torch.Generator().manual_seed(seed)

    def read(count: int, side: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        scene = scenes(count, random)
        ids = patch_ids(variant, side).expand(-1, count, -1).to(cell.device)
        logits = model(draw(*scene, side).to(cell.device), ids).mean(dim=1)  # [n, colours]
        return logits, scene[-1][:, 0].to(cell.device)

    def loss(step: int) -> Tensor:
        return F.cross_entropy(*read(cell.batch, side, random))

    fit(model, loss, cell.steps, say=cell.say)
    metrics: Metrics = {}
    for side in cell.sides:
        test, right = torch.Generator().manual_seed(10**6), []
        for _ in range(cell.count // cell.batch):
            with torch.no_grad():
                logits, color = read(cell.batch, side, test)
            right.append((logits.argmax(dim=-1) == color).float())
        metrics[str(side)] = torch.cat(right).mean().item()
    return metrics


EXPERIMENT = Experiment(
    name="resolution",
    question="Which encodings let an encoder read images that are larger than those of its training?",
    setting="Scenes of an arrow and four discs of different colours; which colour does it point at? The disc is at least a "
    "patch of the training away from the arrow, and others may be nearer: the disc nearest to its tip is the right one in a "
    "third of the scenes. Drawn with as many pixels as asked for, patches of 4 x 4 pixels, an encoder without a causal mask, "
    "the mean of its logits over the patches. Trained on 6 x 6 patches, tested on 9 x 9 and 15 x 15, as LieRE's goes from "
    "108 to 276 pixels. Learned embeddings are resized, bicubic; sinusoidal, axial and mixed ones go on past the trained "
    "places; normalised coordinates (DINOv3's) stay within them; with none a model has the patches alone.",
    paper="RoPE-Mixed (arXiv 2403.13298), from 224 to 384 pixels, DeiT-III-S, points of ImageNet: learned -1.0, axial -0.9, "
    "mixed +0.9. LieRE (2406.10322), table 3, arrows, from 108 to 276 pixels: learned 45.1 to 40.1, axial 46.4 to 48.6, "
    "mixed 100 to 88.6.",
    variants=tuple(ENCODINGS),
    full={"hidden": 96, "heads": 3, "layers": 4, "batch": 64, "steps": 1000, "sides": [6, 9, 15], "count": 1024},
    quick={"hidden": 32, "heads": 2, "layers": 1, "batch": 4, "steps": 4, "sides": [3, 5], "count": 4},
    cell=cell,
    x="patches along a side",
    y="share of arrows that are read right",
)
