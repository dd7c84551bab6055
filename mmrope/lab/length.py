"""Train short, test long: what encodings do past the length that they were trained on (ALiBi's experiment)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrope.lab.encodings import OF_TEXT, Encoding, counted
from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.lab.reader import Reader, sizes
from mmrope.lab.text import VOCABULARY, source, windows

LAST = 64  # tokens that are also counted by themselves, with all of a window before them


def make(encoding: str, cell: Cell) -> Reader:
    """An untrained model."""
    built: Encoding = OF_TEXT[encoding](cell.hidden, cell.heads, cell.hidden // cell.heads, cell.length)
    return Reader(built, sizes(cell.hidden, cell.heads, cell.layers), VOCABULARY).to(cell.device)


def trained(model: Reader, seed: int, cell: Cell, *, steps: int, length: int, batch: int) -> None:
    """On random windows of the library's source."""
    text, random = source(), torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        starts = torch.randint(0, len(text) - length - 1, (batch,), generator=random)
        rows = windows(text, starts, length + 1).to(cell.device)
        logits = model(rows[:, :-1], counted(batch, length, cell.device))
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    fit(model, loss, steps, say=cell.say)


@torch.no_grad()
def perplexities(model: Reader, length: int, cell: Cell) -> tuple[float, float]:
    """Of the same tokens at every length: of parts of a text, each cut into windows of this length, and of the last 64 tokens
    before places in it, with a window of this length before them."""
    text, longest, device = source(test=True), max(cell.lengths), cell.device
    parts = longest + torch.arange(cell.windows)[:, None] * ((len(text) - 2 * longest - 1) // cell.windows)  # all over the text
    cut = _losses(model, windows(text, (parts + torch.arange(0, longest, length)).flatten(), length + 1), device)
    ends = (parts + torch.arange(longest // 4, longest + 1, longest // 4)).flatten()
    last = _losses(model, windows(text, ends - length, length + 1), device)[:, -LAST:]
    return math.exp(cut.mean().item()), math.exp(last.mean().item())


def _losses(model: Reader, rows: Tensor, device: str, most: int = 8192) -> Tensor:
    """[n, length] of each token, some rows at a time."""
    length, parts = rows.shape[1] - 1, []
    for some in rows.split(max(1, most // length)):
        logits = model(some[:, :-1].to(device), counted(len(some), length, device))
        parts.append(
            F.cross_entropy(logits.flatten(0, 1).float(), some[:, 1:].to(device).flatten(), reduction="none").view(
                len(some), -1
            )
        )
    return torch.cat(parts).cpu()


def cell(variant: str, seed: int, cell: Cell) -> Metrics:
    """Perplexity at every length; and of the last 64 tokens alone."""
    model = make(variant, cell)
    trained(model, seed, cell, steps=cell.steps, length=cell.length, batch=cell.batch)
    metrics: Metrics = {}
    for length in cell.lengths:
        if variant == "learned" and length > cell.length:
            continue  # there are no embeddings of later places
        metrics[str(length)], metrics[f"perplexity of the last 64 at {length}"] = perplexities(model, length, cell)
    return metrics


EXPERIMENT = Experiment(
    name="length",
    question="Which encodings read texts that are longer than those that they were trained on?",
    setting="Byte-level models of the Python standard library's source, trained on windows of 128 bytes and tested on up to "
    "1,024: perplexity of the same bytes of held-out files, cut into windows of each length (of 192 and 384 the last one "
    "goes on a little further); and of the last 64 bytes before fixed places, with as many before them as the window has, "
    "which leaves out the tokens that have little to go by because they are early in a window. Learned embeddings end where "
    "training did.",
    paper="ALiBi (arXiv 2108.12409), table 2, WikiText-103, trained on 512, perplexity at 512 / 1,012 / 2,512 / 15,512: "
    "sinusoidal 20.05 / 43.54 / 132.41 / 406.01, rotary 20.07 / 21.37 / 31.58 / 79.25, ALiBi 19.73 / 18.73 / 18.41 / 18.31.",
    variants=tuple(OF_TEXT),
    full={
        **{"hidden": 96, "heads": 4, "layers": 3, "length": 128, "batch": 16, "steps": 800},
        **{"lengths": [128, 192, 256, 384, 512, 1024], "windows": 24},
    },
    quick={
        **{"hidden": 32, "heads": 2, "layers": 1, "length": 64, "batch": 4, "steps": 8},
        **{"lengths": [64, 128], "windows": 2},
    },
    cell=cell,
    x="bytes in a window",
    y="perplexity",
    log=True,
)
