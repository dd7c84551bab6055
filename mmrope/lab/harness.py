"""An experiment: variants, each trained from several seeds and measured, and one small file that says what came out and how."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrope import __version__
from mmrope.files import naming, read_object, replacing
from mmrope.records import Keys, shown
from mmrope.vlm.train import Training, make_optimizers, update
from mmrope.vlm.weights import check_device

Metrics = dict[str, float]
"""What is measured of a variant, by name."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question about encodings, and how it is put to models."""

    name: str
    question: str
    setting: str
    """In words, for readers."""
    paper: str
    """What has been reported."""
    variants: tuple[str, ...]
    full: Mapping[str, Any]
    """The settings of `cell`."""
    quick: Mapping[str, Any]
    """Those that make it run in seconds: a test of the code, not of encodings."""
    cell: Callable[[str, int, Cell], Metrics] | Callable[[int, Cell], Mapping[str, Metrics]]
    """Trains a variant from a seed, and measures it; or with `together` all variants of a seed."""
    together: bool = False
    """Whether the variants of a seed share what was trained."""
    x: str
    """What the names of metrics are numbers of; empty where they are not numbers."""
    y: str
    """What is measured."""
    log: bool = False
    """Whether a figure's axes are logarithmic."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a variant is trained with."""

    settings: Mapping[str, Any]
    device: str
    say: Callable[[str], None] = lambda line: None

    def __getattr__(self, name: str) -> Any:
        try:
            return self.settings[name]
        except KeyError:
            raise AttributeError(f"the experiment has no setting {name!r}") from None


def run(
    experiment: Experiment,
    path: str | Path,
    *,
    quick: bool = False,
    seeds: int = 3,
    device: str = "cpu",
    variants: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Runs what is missing of an experiment, and writes after every cell: killed, it goes on there.

    Args:
        path: the JSON file of the results, which may be there from before.
        quick: the settings for seconds.
        seeds: from 0 on.
        variants: some of the experiment's; all by default.
        say: is given a line of progress now and then.

    Returns:
        The results, as in the file: settings, versions, device and date, and by variant and seed the metrics and the seconds.

    Raises:
        ValueError: the file's results are of other settings or versions, no seed, a device that is not there, or a variant that
            the experiment does not have.
    """
    if seeds < 1:
        raise ValueError(f"{experiment.name} needs at least one seed, got {seeds}: ask for three")
    path, settings = Path(path), dict(experiment.quick if quick else experiment.full)
    if unknown := [name for name in variants if name not in experiment.variants]:
        raise ValueError(f"{experiment.name} has the variants {'; '.join(experiment.variants)}, not {'; '.join(unknown)}")
    about = {
        "experiment": experiment.name,
        "settings": json.loads(json.dumps(settings)),
        "mmrope": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _device_name(device),
    }

    def there() -> dict[str, Any]:
        if not path.is_file():
            return {**about, "date": str(date.today()), "cells": {}}
        results = results_of(path)
        if other := [key for key, value in about.items() if results.get(key) != value]:
            raise ValueError(
                f"{path} has results with {', '.join(f'{key} {results.get(key)}' for key in other)}, now asked for "
                f"{', '.join(f'{key} {about[key]}' for key in other)}: name another file, or delete it"
            )
        return results

    results, asked = there(), variants or experiment.variants
    for seed in range(seeds):
        missing = [variant for variant in asked if str(seed) not in results["cells"].get(variant, {})]
        for some in [missing] if experiment.together and missing else [[variant] for variant in missing]:
            where = f"{experiment.name}, {'' if experiment.together else f'{some[0]}, '}seed {seed}"

            def tell(line: str, where: str = where) -> None:
                say(f"{where}: {line}")

            began, cell = time.perf_counter(), Cell(settings=settings, device=device, say=tell)
            torch.manual_seed(seed)
            made: Any = experiment.cell(seed, cell) if experiment.together else {some[0]: experiment.cell(*some, seed, cell)}  # pyright: ignore[reportCallIssue]
            seconds = round((time.perf_counter() - began) / len(some), 1)
            results = there()  # with what another run may have written meanwhile
            for variant in some:
                results["cells"].setdefault(variant, {})[str(seed)] = {"metrics": made[variant], "seconds": seconds}
                tell(f"{variant}: " + ", ".join(f"{name} {value:.4g}" for name, value in made[variant].items()))
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def results_of(path: Path) -> dict[str, Any]:
    """The results in a file that `run` wrote.

    Raises:
        ValueError: it is torn, or holds something else.
    """
    try:
        results = read_object(path)
    except ValueError as error:
        raise ValueError(f"{path} has no results of an experiment: {error}") from None
    with naming(Path(f"{path} has no results of an experiment")):
        keys = Keys(results)
        for name in ("experiment", "mmrope", "torch", "python", "device", "date"):
            keys(name, str)
        keys("settings", dict)
        cells = keys("cells", dict)
        for variant in cells:
            for seed, cell in Keys(cells, "cells")(variant, dict).items():
                of_cell = Keys(cell, f"cells.{variant}.{seed}")
                of_cell("seconds", float)
                metrics = of_cell("metrics", dict)
                if not metrics or not all(isinstance(value, (int, float)) for value in metrics.values()):
                    raise ValueError(f"{of_cell.path('metrics')} must be numbers by name, got {shown(metrics)}")
    return results


def _device_name(device: str) -> str:
    check_device(device)
    kind = torch.device(device).type
    return torch.cuda.get_device_name(device) if kind == "cuda" else f"{kind.upper()} ({platform.machine()})"


def spread(results: Mapping[str, Any], variant: str, metric: str) -> tuple[float, float, float] | None:
    """The mean, the least and the most of a metric over seeds; None where a variant has none."""
    cells = results["cells"].get(variant, {}).values()
    values = [cell["metrics"][metric] for cell in cells if metric in cell["metrics"]]
    return (statistics.mean(values), min(values), max(values)) if values else None


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    muon_lr: float = 5e-3,
    adam_lr: float = 2e-3,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains by `loss(step)`, with the optimizers and the schedule of the library's own training."""
    training = Training(steps=steps, muon_lr=muon_lr, adam_lr=adam_lr, warmup=min(50, steps // 4))
    optimizers = make_optimizers(model, training)
    model.train()
    for step in range(steps):
        value = loss(step)
        value.backward()
        update(model, optimizers, training, training.lr_share(step))
        if (step + 1) % 100 == 0:
            say(f"step {step + 1} of {steps}, loss {value.item():.3f}")
    model.eval()
