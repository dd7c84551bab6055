"""Results of experiments as tables and figures. Figures need matplotlib: pip install mmrope[viz]."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from mmrope.figures import COLORS
from mmrope.lab.harness import Experiment, spread
from mmrope.pictures import pyplot


def metrics_of(results: Mapping[str, Any]) -> list[str]:
    """The names of all metrics, in the order in which they were measured."""
    found: dict[str, None] = {}
    for cells in results["cells"].values():
        for cell in cells.values():
            found.update(dict.fromkeys(cell["metrics"]))
    return list(found)


def table(experiment: Experiment, results: Mapping[str, Any]) -> Iterator[str]:
    """Means over seeds, with the least and the most, in Markdown; and how they came about."""
    metrics = metrics_of(results)
    yield f"| | {' | '.join(metrics)} |"
    yield f"|---|{'---|' * len(metrics)}"
    for variant in _measured(experiment, results):
        cells = (spread(results, variant, metric) for metric in metrics)
        yield f"| {variant} | {' | '.join('-' if cell is None else _cell(*cell) for cell in cells)} |"
    seeds = max(len(cells) for cells in results["cells"].values())
    minutes = sum(cell["seconds"] for cells in results["cells"].values() for cell in cells.values()) / 60
    yield ""
    yield f"{seeds} seeds, {minutes:.0f} minutes on {results['device']}, torch {results['torch']}, {results['date']}; "
    yield ", ".join(f"{key} {value}" for key, value in results["settings"].items()) + "."


def _measured(experiment: Experiment, results: Mapping[str, Any]) -> list[str]:
    return [variant for variant in experiment.variants if variant in results["cells"]]


def _cell(mean: float, least: float, most: float) -> str:
    return f"{mean:.3g}" if least == most else f"{mean:.3g} ({least:.3g} to {most:.3g})"


def plot(experiment: Experiment, results: Mapping[str, Any]) -> Any:
    """Means over seeds, with a band from the least to the most: lines over the metrics whose names are numbers, or bars."""
    figure, ax = pyplot().subplots(figsize=(9, 5), layout="constrained")
    kinds = list(dict.fromkeys(variant.partition(",")[0] for variant in experiment.variants))
    turns = list(dict.fromkeys(variant.partition(",")[2] for variant in experiment.variants))

    def look(variant: str) -> tuple[str, int]:
        """A colour for what stands before the comma of a name, and a number for what is behind it."""
        kind, _, turn = variant.partition(",")
        return COLORS[kinds.index(kind) % len(COLORS)], turns.index(turn)

    metrics = metrics_of(results)
    if experiment.x:
        metrics = [metric for metric in metrics if metric.isdigit()]
        ticks = [int(metric) for metric in metrics]
        for variant in _measured(experiment, results):
            known = [(int(metric), found) for metric in metrics if (found := spread(results, variant, metric)) is not None]
            x, (mean, least, most) = [at for at, _ in known], zip(*(found for _, found in known), strict=True)
            color, turn = look(variant)
            ax.plot(x, mean, ("-", "--", ":")[turn % 3], marker="o", markersize=4, color=color, label=variant)
            ax.fill_between(x, least, most, color=color, alpha=0.15, linewidth=0)
        ax.set_xlabel(experiment.x)
        if experiment.log:
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(ticks, metrics)
    else:
        width = 0.8 / len(results["cells"])
        for n, variant in enumerate(_measured(experiment, results)):
            found = [spread(results, variant, metric) or (0.0, 0.0, 0.0) for metric in metrics]
            mean, least, most = zip(*found, strict=True)
            around = [[m - a for m, a in zip(mean, least, strict=True)], [b - m for m, b in zip(mean, most, strict=True)]]
            at = [i + n * width for i in range(len(metrics))]
            shade, turn = look(variant)
            hatch = (None, "////", "....")[turn % 3]
            ax.bar(
                at,
                mean,
                width,
                yerr=around,
                color=shade,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.3,
                label=variant,
                error_kw={"linewidth": 0.8},
            )
        ax.set_xticks([i + 0.4 for i in range(len(metrics))], metrics, rotation=30, ha="right")
    ax.set_ylabel(experiment.y)
    ax.set_title(textwrap.fill(experiment.question, 80), fontsize=11)
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(kinds))
    return figure
