"""Films: the same cell a frame before, and needles so many frames back, in films longer than those of the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrope.lab.encodings import Rotary
from mmrope.lab.grids import ALLOCATIONS
from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.lab.reader import Reader, sizes
from mmrope.positions.build import position_ids
from mmrope.positions.segments import Segment

Task = Callable[[int, torch.Generator, Cell], tuple[Tensor, int, Tensor]]
"""Films of so many frames: rows of symbols [B, S], from which of them on something is asked at each, and the answers."""


def film_ids(t: int, frame: tuple[int, int], rule: str = "qwen2_vl") -> Tensor:
    """[3, 1, t h w + 1] of a film with a token of text behind it."""
    h, w = frame
    return torch.from_numpy(position_ids([Segment.video(t=t, h=h, w=w), Segment.text(1)], rule).ids)


def cell(variant: str, seed: int, cell: Cell) -> Metrics:
    """Accuracy by frames, of the same cell a frame before, and of needles; and the largest id."""
    allocation, _, diagonal = variant.partition(", ")
    rule = "videorope" if diagonal else "qwen2_vl"
    metrics: Metrics = {}
    for learned, tests in ((_before, {"": _before}), (_needle, needles(periods(rule, cell)))):
        model = _trained(learned, allocation, rule, seed, cell)
        for name, task in tests.items():
            for t in cell.tested:
                random, right = torch.Generator().manual_seed(10**6), []
                for _ in range(cell.count // cell.batch):
                    with torch.no_grad():
                        logits, answers = _read(model, task, t, rule, random, cell)
                    right.append((logits.argmax(dim=-1) == answers).float().flatten())
                metrics[f"{name}{t}"] = torch.cat(right).mean().item()
    for t in cell.tested:
        h, w = cell.frame
        metrics[f"largest id at {t}"] = float(t * h * w if variant == "1D" else film_ids(t, cell.frame, rule).max())
    return metrics


def _trained(task: Task, allocation: str, rule: str, seed: int, cell: Cell) -> Reader:
    """On films of half the frames to all of them."""
    torch.manual_seed(seed)
    encoding = ALLOCATIONS[allocation](cell.hidden // cell.heads, 1e4)
    symbols = cell.symbols + cell.frames  # the last ones ask how many frames back
    model = Reader(encoding, sizes(cell.hidden, cell.heads, cell.layers), symbols).to(cell.device)
    random = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        logits, answers = _read(model, task, cell.frames - step % (cell.frames // 2 + 1), rule, random, cell)
        return F.cross_entropy(logits.flatten(0, 1), answers.flatten())

    fit(model, loss, cell.steps, say=cell.say)
    return model


def _read(model: Reader, task: Task, t: int, rule: str, random: torch.Generator, cell: Cell) -> tuple[Tensor, Tensor]:
    """Logits where something is asked, and the answers."""
    rows, start, answers = task(t, random, cell)
    ids = film_ids(t, cell.frame, rule)[..., : rows.shape[1]].expand(-1, len(rows), -1)  # [3, B, S]
    return model(rows.to(cell.device), ids.to(cell.device))[:, start:], answers.to(cell.device)


def _before(t: int, random: torch.Generator, cell: Cell) -> tuple[Tensor, int, Tensor]:
    """At every cell from the second frame on: what it showed a frame before."""
    cells = cell.frame[0] * cell.frame[1]
    shown = torch.randint(0, cell.symbols, (cell.batch, t * cells), generator=random)
    return shown, cells, shown[:, :-cells]


# --- needles ----------------------------------------------------------------------------------------------------------


def periods(rule: str, cell: Cell) -> Tensor:
    """[pairs] float, after how many frames each pair that contiguous M-RoPE gives to time is back where it was."""
    encoding = ALLOCATIONS["contiguous"](cell.hidden // cell.heads, 1e4)
    assert isinstance(encoding, Rotary)
    spec, ids = encoding.rotary.spec, film_ids(2, (1, 1), rule)[0, 0]
    return 2 * math.pi / torch.from_numpy(spec.inv_freq[spec.axis == 0]) / (ids[1] - ids[0])


def needles(periods: Tensor) -> dict[str, Task]:
    """By the name of their metric: films in which a needle is looked for."""
    return {
        "needles found at ": _needle,
        "among periodic distractors at ": partial(_among, periods=periods, periodic=True),
        "among other distractors at ": partial(_among, periods=periods, periodic=False),
    }


def _needle(t: int, random: torch.Generator, cell: Cell) -> tuple[Tensor, int, Tensor]:
    """Every frame but the needle is blank by an even chance."""
    return _ask(torch.rand(cell.batch, t, generator=random) < 0.5, _back(t, random, cell), random, cell)


def _among(t: int, random: torch.Generator, cell: Cell, *, periods: Tensor, periodic: bool) -> tuple[Tensor, int, Tensor]:
    """As many frames as the training had are as they were there. Of those before them all are blank but distractors: whole
    periods of a pair of time from the needle, or as many elsewhere."""
    back = _back(t, random, cell)
    gaps = (t - back) - torch.arange(t)  # [B, t], of every frame from the needle
    turns = gaps[..., None] / periods  # [B, t, pairs]
    # frames from the nearest whole period
    off = ((turns - turns.round()).abs() * periods).masked_fill(turns < 0.5, math.inf).amin(dim=-1)  # [B, t]
    early = torch.arange(t) < t - cell.frames
    alike, unlike = early & (off <= 0.5), early & (off > 1)
    count = torch.minimum(alike.sum(dim=1), unlike.sum(dim=1)).clamp_max(cell.distractors)
    order = torch.rand(gaps.shape, generator=random).masked_fill(~(alike if periodic else unlike), 2.0).argsort(dim=1)
    chosen = torch.zeros_like(alike).scatter(1, order, torch.arange(t) < count[:, None])
    late = (torch.rand(gaps.shape, generator=random) < 0.5) & ~early
    return _ask(late | chosen, back, random, cell)


def _back(t: int, random: torch.Generator, cell: Cell) -> Tensor:
    """[B, 1], how many frames back the needle is: up to as many as a film of the training has."""
    return torch.randint(1, min(t, cell.frames) + 1, (cell.batch, 1), generator=random)


def _ask(there: Tensor, back: Tensor, random: torch.Generator, cell: Cell) -> tuple[Tensor, int, Tensor]:
    """Films that show something in the frames `there` [B, t] and in the needle's; then a token that says how many frames back:
    what was in the first cell of that frame? Symbol 0 is blank."""
    batch, t = there.shape
    shown = torch.randint(1, cell.symbols, (batch, t, cell.frame[0] * cell.frame[1]), generator=random)
    shown = shown * there.scatter(1, t - back, True)[..., None]
    rows = torch.cat([shown.flatten(1), cell.symbols + back - 1], dim=1)  # [B, t h w + 1]
    return rows, rows.shape[1] - 1, shown[:, :, 0].gather(1, t - back)


EXPERIMENT = Experiment(
    name="films",
    question="What finds a frame again in films that are longer than those of the training?",
    setting="Films of random symbols, 2 x 2 cells a frame. At each cell a causal model says what the same cell showed a "
    "frame before; or, asked after the film, what the first cell showed n frames back, n up to 8, so that the needle itself "
    "is never further than in the training: a needle among frames of which half are blank; or with at most three distractors "
    "before the last 8 frames, all others there blank: at whole periods of M-RoPE's pairs of time from the needle (6.3, "
    "11.2, 19.9 and 35.3 ids), or as many elsewhere; of films of 8 frames there are none before. Trained on 4 to 8 frames, "
    "tested on up to 40. With Qwen2-VL's ids, one a frame, and with VideoRoPE's diagonal ones, two a frame, whose rows and "
    "columns go along with time. Beside it the largest id that occurs.",
    paper="Qwen2-VL (arXiv 2409.12191), figure 5: accuracy holds from 8K to 80K tokens when trained on 16K, without a 1D "
    "model beside it. VideoRoPE (2502.05173), table 3, needles among distractors: VideoRoPE 87.1, M-RoPE 74.7, 1D 30.2.",
    variants=("1D", *(f"{name}{ids}" for ids in ("", ", diagonal ids") for name in ("contiguous", "interleaved", "VideoRoPE"))),
    full={
        **{"hidden": 64, "heads": 2, "layers": 2, "symbols": 24, "batch": 32, "steps": 1200, "count": 512},
        **{"frame": [2, 2], "frames": 8, "tested": [8, 12, 16, 24, 32, 40], "distractors": 3},
    },
    quick={
        **{"hidden": 64, "heads": 2, "layers": 1, "symbols": 8, "batch": 4, "steps": 4, "count": 4},
        **{"frame": [2, 2], "frames": 4, "tested": [4, 12], "distractors": 3},
    },
    cell=cell,
    x="frames",
    y="share of symbols that are right",
)
