"""Films: the same cell a frame before, and a frame so far back, in films longer than those of the training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrope.lab.grids import ALLOCATIONS
from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.lab.reader import Reader, sizes
from mmrope.positions.build import position_ids
from mmrope.positions.segments import Segment


def film(t: int, h: int, w: int, *, asked: bool) -> tuple[Tensor, int]:
    """Ids [3, 1, S] of a film, with a token of text behind it if something is asked; and the largest id."""
    row = [Segment.video(t=t, h=h, w=w), Segment.text(int(asked))]
    ids = position_ids(row, "qwen2_vl").ids
    return torch.from_numpy(ids), int(ids.max())


def cell(variant: str, seed: int, cell: Cell) -> Metrics:
    """Accuracy by frames: of the same cell a frame before; "needle at n": of a frame so far back; and the largest id."""
    metrics: Metrics = {}
    h, w = cell.frame
    for name, read in (("", _before), ("needle at ", _needle)):
        torch.manual_seed(seed)
        encoding = ALLOCATIONS[variant](cell.hidden // cell.heads, 1e4)
        symbols = cell.symbols + cell.frames
        model = Reader(encoding, sizes(cell.hidden, cell.heads, cell.layers), symbols).to(cell.device)
        random = torch.Generator().manual_seed(seed)

        def loss(step: int, model: Reader = model, read=read, random: torch.Generator = random) -> Tensor:
            logits, right = read(model, cell.frames, cell.batch, random, cell)
            return F.cross_entropy(logits.flatten(0, 1), right.flatten())

        fit(model, loss, cell.steps, say=cell.say)
        for t in cell.tested:
            random, right = torch.Generator().manual_seed(10**6), []
            for _ in range(cell.count // cell.batch):
                with torch.no_grad():
                    logits, symbols_there = read(model, t, cell.batch, random, cell)
                right.append((logits.argmax(dim=-1) == symbols_there).float().flatten())
            metrics[f"{name}{t}"] = torch.cat(right).mean().item()
    for t in cell.tested:
        flat = variant == "1D"
        metrics[f"largest id at {t}"] = float(t * h * w if flat else film(t, h, w, asked=True)[1])
    return metrics


def _before(model: Reader, t: int, batch: int, random: torch.Generator, cell: Cell) -> tuple[Tensor, Tensor]:
    """At every cell from the second frame on: what it showed a frame before."""
    h, w = cell.frame
    shown = torch.randint(0, cell.symbols, (batch, t * h * w), generator=random).to(cell.device)
    ids, _ = film(t, h, w, asked=False)
    logits = model(shown, ids.expand(-1, batch, -1).to(cell.device))
    return logits[:, h * w :], shown[:, : -h * w]


def _needle(model: Reader, t: int, batch: int, random: torch.Generator, cell: Cell) -> tuple[Tensor, Tensor]:
    """After the film, a token that says how many frames back, up to as many as a film of the training has: what was in the
    first cell of that frame? In longer films there are frames at distances that some pairs cannot tell from the right one."""
    h, w = cell.frame
    shown = torch.randint(0, cell.symbols, (batch, t * h * w), generator=random)
    back = torch.randint(1, cell.frames + 1, (batch, 1), generator=random)
    row = torch.cat([shown, cell.symbols + back - 1], dim=1).to(cell.device)
    ids, _ = film(t, h, w, asked=True)
    logits = model(row, ids.expand(-1, batch, -1).to(cell.device))[:, -1:]
    return logits, shown.gather(1, (t - back) * h * w).to(cell.device)


EXPERIMENT = Experiment(
    name="films",
    question="What finds a frame again in films that are longer than those of the training?",
    setting="Films of random symbols, 2 x 2 cells a frame, with Qwen2-VL's ids. At each cell a causal model says what the same "
    "cell showed a frame before; or, asked after the film, what the first cell showed n frames back (a needle among frames "
    "that look alike). Trained on 8 frames, tested on up to 40. Beside it the largest id that occurs.",
    paper="Qwen2-VL (arXiv 2409.12191), figure 5: accuracy holds from 8K to 80K tokens when trained on 16K, without a 1D model "
    "beside it. VideoRoPE (2502.05173), table 3, needles among distractors: VideoRoPE 87.1, M-RoPE 74.7, 1D 30.2.",
    variants=("1D", "contiguous", "interleaved", "VideoRoPE"),
    full={
        **{"hidden": 64, "heads": 2, "layers": 2, "symbols": 24, "batch": 32, "steps": 800, "count": 512},
        **{"frame": [2, 2], "frames": 8, "tested": [8, 12, 16, 24, 32, 40]},
    },
    quick={
        **{"hidden": 64, "heads": 2, "layers": 1, "symbols": 8, "batch": 4, "steps": 4, "count": 4},
        **{"frame": [2, 2], "frames": 3, "tested": [3, 6]},
    },
    cell=cell,
    x="frames",
    y="share of symbols that are right",
)
