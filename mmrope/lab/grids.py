"""M-RoPE against flat ids on grids: which allocation of frequencies finds the symbol above, also in grids of other sizes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrope.encodings.spec import RotarySpec
from mmrope.lab.encodings import Encoding, Rotary
from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.lab.reader import Reader, sizes
from mmrope.positions.build import position_ids
from mmrope.positions.segments import Segment


class Flat(Rotary):
    """1D RoPE: a token's id is its place in the row."""

    def turn(self, ids: Tensor):
        """By places alone."""
        return super().turn(torch.arange(ids.shape[2], device=ids.device).expand(1, *ids.shape[1:]))


class Axial(Rotary):
    """2D RoPE, each axis with a spectrum of its own: h and w of the ids."""

    def turn(self, ids: Tensor):
        """By rows and columns."""
        return super().turn(ids[1:])


ALLOCATIONS: Mapping[str, Callable[[int, float], Encoding]] = MappingProxyType(
    {
        "1D": lambda head_dim, theta: Flat(RotarySpec.rope(head_dim, theta=theta)),
        "contiguous": lambda head_dim, theta: Rotary(RotarySpec.mrope(head_dim, theta=theta, sections=_shares(head_dim, 4))),
        "interleaved": lambda head_dim, theta: Rotary(
            RotarySpec.mrope(head_dim, theta=theta, sections=_shares(head_dim, 6), layout="interleaved")
        ),
        "VideoRoPE": lambda head_dim, theta: Rotary(
            RotarySpec.mrope(head_dim, theta=theta, sections=_shares(head_dim, 4), layout="alternating")
        ),
        "axial": lambda head_dim, theta: Axial(RotarySpec.axial(head_dim, theta=theta)),
    }
)
"""By name: the encoding of heads of a size, at a base."""
BASES = (1e2, 1e4)


def _shares(head_dim: int, of_time: int) -> tuple[int, int, int]:
    """Pairs of t, h, w: `of_time` sixteenths for time, the rest in halves, as the released models have them."""
    time = head_dim // 2 * of_time // 16
    space = (head_dim // 2 - time) // 2
    return head_dim // 2 - 2 * space, space, space


def ids_of(h: int, w: int) -> Tensor:
    """[3, 1, h w] of an image by itself."""
    return torch.from_numpy(position_ids([Segment.image(h=h, w=w)], "qwen2_vl").ids)


def cell(variant: str, seed: int, cell: Cell) -> Metrics:
    """Accuracy by grid, of models that saw one size, and of those that saw several."""
    name, theta = variant.split(", base ")
    metrics: Metrics = {}
    for prefix, trained in (("", cell.trained[:1]), ("share, trained on several widths at ", cell.trained)):
        torch.manual_seed(seed)
        encoding = ALLOCATIONS[name](cell.hidden // cell.heads, float(theta))
        model = Reader(encoding, sizes(cell.hidden, cell.heads, cell.layers), cell.symbols).to(cell.device)
        random = torch.Generator().manual_seed(seed)

        def loss(step: int, model: Reader = model, trained: list = trained, random: torch.Generator = random) -> Tensor:
            logits, above = _read(model, trained[step % len(trained)], cell.batch, random, cell)
            return F.cross_entropy(logits.flatten(0, 1), above.flatten())

        fit(model, loss, cell.steps, say=cell.say)
        for h, w in cell.tested:
            with torch.no_grad():
                logits, above = _read(model, (h, w), cell.count, torch.Generator().manual_seed(10**6), cell)
            metrics[f"{prefix}{h}x{w}"] = (logits.argmax(dim=-1) == above).float().mean().item()
    return metrics


def _read(model: Reader, size: tuple[int, int], batch: int, random: torch.Generator, cell: Cell) -> tuple[Tensor, Tensor]:
    """Logits of all but the first row, and the symbols above."""
    h, w = size
    symbols = torch.randint(0, cell.symbols, (batch, h * w), generator=random).to(cell.device)
    logits = model(symbols, ids_of(h, w).expand(-1, batch, -1).to(cell.device))
    return logits[:, w:], symbols[:, :-w]


EXPERIMENT = Experiment(
    name="grids",
    question="Which ids, and which allocation of frequencies to axes, let a model find its way in grids of other sizes?",
    setting="Grids of random symbols, row by row; at each cell a causal model of one layer says which symbol is above. "
    "Trained on 6 x 6 alone, or on widths from 4 to 6, and tested on others. M-RoPE's three axes as the released models "
    "share them out, in heads of 32 channels.",
    paper="MRoPE-I (arXiv 2510.23095), table 5: interleaved 64.95, whole heads for an axis 64.63, VideoRoPE's allocation "
    "63.31. No paper shows the base beside it.",
    variants=tuple(f"{name}, base {theta:g}" for theta in BASES for name in ALLOCATIONS),
    full={
        **{"hidden": 64, "heads": 2, "layers": 1, "symbols": 32, "batch": 32, "steps": 400, "count": 64},
        **{"trained": [[6, 6], [6, 5], [6, 4]], "tested": [[6, 6], [8, 6], [6, 8], [12, 12], [16, 16]]},
    },
    quick={
        **{"hidden": 64, "heads": 2, "layers": 1, "symbols": 8, "batch": 4, "steps": 4, "count": 4},
        **{"trained": [[3, 3], [3, 2]], "tested": [[3, 3], [4, 4]]},
    },
    cell=cell,
    x="",
    y="share of symbols that are right",
)
