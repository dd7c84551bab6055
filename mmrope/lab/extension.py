"""Context extension: one RoPE model, and what PI, NTK and YaRN make of it past its length, at once and after more training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrope.encodings.scaling import NTK, PI, DynamicNTK, YaRN, ntk_by_parts
from mmrope.encodings.spec import RotarySpec
from mmrope.lab import length as texts
from mmrope.lab.encodings import Rotary, counted
from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.lab.reader import Reader
from mmrope.lab.text import source, windows

METHODS: Mapping[str, Callable[[RotarySpec, float, int], RotarySpec]] = MappingProxyType(
    {
        "none": lambda spec, factor, trained: spec,
        "PI": lambda spec, factor, trained: spec.scaled(PI(factor)),
        "NTK": lambda spec, factor, trained: spec.scaled(NTK(factor)),
        "dynamic NTK": lambda spec, factor, trained: spec.scaled(DynamicNTK(trained, 1.0)),
        "NTK-by-parts": lambda spec, factor, trained: spec.scaled(ntk_by_parts(factor, trained)),
        "YaRN": lambda spec, factor, trained: spec.scaled(YaRN(factor, trained)),
    }
)
"""By name: the rotary embedding of a model of this length, extended by a factor."""
KEY, DIGITS = b"# key ", 4


def cell(seed: int, cell: Cell) -> dict[str, Metrics]:
    """Perplexity and passkeys found, by method and length; and both after more training on longer windows."""
    base = texts.make("rope", cell)
    texts.trained(base, seed, cell, steps=cell.steps, length=cell.length, batch=cell.batch)
    _learn_keys(base, seed, cell, cell.length, cell.key_steps)
    made: dict[str, Metrics] = {}
    for method in METHODS:
        metrics = made[method] = {}
        for length in cell.lengths:
            model = extended(base, method, length, cell)
            metrics[str(length)], _ = texts.perplexities(model, length, cell)
            metrics[f"passkeys found at {length}"] = passkeys_found(model, length, cell)
        longer = max(cell.tuned)
        tuned = extended(base, method, longer, cell)
        _learn_keys(tuned, seed + 1, cell, longer, cell.tune_steps, lr_share=0.2)
        for length in cell.tuned:
            metrics[f"perplexity, tuned at {length}"], _ = texts.perplexities(tuned, length, cell)
            metrics[f"passkeys found, tuned at {length}"] = passkeys_found(tuned, length, cell)
        cell.say(f"{method} measured")
    return made


def extended(base: Reader, method: str, length: int, cell: Cell) -> Reader:
    """A copy whose rotary embedding is extended to a length."""
    model = copy.deepcopy(base)
    assert isinstance(model.encoding, Rotary)
    factor = max(1.0, length / cell.length)
    spec = model.encoding.rotary.spec
    model.encoding = Rotary(METHODS[method](spec, factor, cell.length) if factor > 1 else spec).to(cell.device)
    return model


# --- passkeys ---------------------------------------------------------------------------------------------------------


def with_keys(rows: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows [n, length] with a key at a random place, which is asked for at the end; and the key [n, DIGITS]."""
    n, length = rows.shape
    digits = torch.randint(48, 58, (n, DIGITS), generator=random)
    cue = torch.tensor(list(KEY)).expand(n, -1)
    line = torch.cat([torch.full((n, 1), 10), cue, digits, torch.full((n, 1), 10)], dim=1)
    rows = rows.clone()
    end = torch.cat([torch.full((n, 1), 10), cue, digits], dim=1)
    rows[:, length - end.shape[1] :] = end
    at = torch.randint(0, length - end.shape[1] - line.shape[1], (n,), generator=random)
    rows.scatter_(1, at[:, None] + torch.arange(line.shape[1]), line)
    return rows, digits


def _learn_keys(model: Reader, seed: int, cell: Cell, length: int, steps: int, *, lr_share: float = 1.0) -> None:
    """On windows half of which ask for a key; the key counts as much as all the text."""
    text, random = source(), torch.Generator().manual_seed(seed + 1000)
    batch = max(2, cell.batch * cell.length // length)

    def loss(step: int) -> Tensor:
        rows = windows(text, torch.randint(0, len(text) - length, (batch,), generator=random), length)
        rows[::2], _ = with_keys(rows[::2], random)
        rows = rows.to(cell.device)
        logits = model(rows[:, :-1], counted(batch, length - 1, cell.device))
        each = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(batch, -1)
        return each.mean() + each[::2, -DIGITS:].mean()

    fit(model, loss, steps, muon_lr=5e-3 * lr_share, adam_lr=2e-3 * lr_share, say=cell.say)


@torch.no_grad()
def passkeys_found(model: Reader, length: int, cell: Cell) -> float:
    """The share of keys of which every digit is the likeliest, given those before it."""
    text, random, found = source(test=True), torch.Generator().manual_seed(length), []
    for _ in range(cell.keys // 8):
        rows = windows(text, torch.randint(0, len(text) - length, (8,), generator=random), length)
        rows, digits = with_keys(rows, random)
        logits = model(rows[:, :-1].to(cell.device), counted(8, length - 1, cell.device))
        found.append((logits[:, -DIGITS:].argmax(dim=-1).cpu() == digits).all(dim=1))
    return torch.cat(found).float().mean().item()


EXPERIMENT = Experiment(
    name="extension",
    question="What do PI, NTK and YaRN give a model past the length that it was trained on?",
    setting="The RoPE model of the experiment `length`, trained on 128 bytes and taught to find a passkey of four digits "
    "within them; its rotary embedding extended by test length / 128. Perplexity as there; passkeys that are found whole; both "
    "at once, and after a short training on 512 bytes.",
    paper="PI (arXiv 2306.15595), table 3: perplexity of LLaMA-7B past its length above 1,000 without, 16.10 at 4x by PI at "
    "once, 7.12 after 200 steps. YaRN (2309.00071), table 1, Llama-2-7B tuned to 8,192: PI 3.34, NTK 3.59, YaRN 3.35 at 8,192.",
    variants=tuple(METHODS),
    full={
        **{"hidden": 96, "heads": 4, "layers": 3, "length": 128, "batch": 16, "steps": 800},
        **{"lengths": [128, 256, 512, 1024], "windows": 24, "key_steps": 600, "keys": 128},
        **{"tuned": [128, 512], "tune_steps": 100},
    },
    quick={
        **{"hidden": 32, "heads": 2, "layers": 1, "length": 64, "batch": 4, "steps": 4},
        **{"lengths": [64, 128], "windows": 2, "key_steps": 4, "keys": 8, "tuned": [128], "tune_steps": 2},
    },
    cell=cell,
    together=True,
    x="bytes in a window",
    y="perplexity",
    log=True,
)
