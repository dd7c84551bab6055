"""Results of experiments as tables and figures. Figures need matplotlib: pip install 'mmrope[viz]'.

A metric is named "256", or "passkey at 256": what stands before " at " is one table and one panel of the figure.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from mmrope.lab.harness import Experiment, spread
from mmrope.view.figure import COLORS, new_figure


def groups_of(experiment: Experiment, results: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By what is measured, the metrics' names by where: all in the order in which they were measured."""
    found: dict[str, dict[str, str]] = {}
    for variant in _measured(experiment, results):
        for cell in results["cells"][variant].values():
            for metric in cell["metrics"]:
                what, _, where = metric.rpartition(" at ")
                found.setdefault(what or experiment.y, {})[where] = metric
    return found


def table(experiment: Experiment, results: Mapping[str, Any]) -> Iterator[str]:
    """Means over seeds, with the least and the most, in Markdown; and how they came about."""
    for what, metrics in groups_of(experiment, results).items():
        yield f"| {what} | {' | '.join(metrics)} |"
        yield f"|---|{'---|' * len(metrics)}"
        for variant in _measured(experiment, results):
            cells = [spread(results, variant, metric) for metric in metrics.values()]
            if any(cells):
                yield f"| {variant} | {' | '.join('-' if cell is None else _cell(*cell) for cell in cells)} |"
        yield ""
    counts = sorted({len(cells) for cells in results["cells"].values()})
    minutes = sum(cell["seconds"] for cells in results["cells"].values() for cell in cells.values()) / 60
    made = ", ".join(f"{name} {results[name]}" for name in ("mmrope", "torch", "python"))
    yield f"{' or '.join(map(str, counts))} seeds, {minutes:.0f} minutes on {results['device']}, {made}, {results['date']};"
    yield ", ".join(f"{key} {value}" for key, value in results["settings"].items()) + "."


def _measured(experiment: Experiment, results: Mapping[str, Any]) -> list[str]:
    return [variant for variant in experiment.variants if variant in results["cells"]]


def _cell(mean: float, least: float, most: float) -> str:
    return f"{mean:.3g}" if least == most else f"{mean:.3g} ({least:.3g} to {most:.3g})"


def plot(experiment: Experiment, results: Mapping[str, Any]) -> Any:
    """A panel for each thing that was measured: means and spreads over seeds, as lines over numbers or as bars."""
    groups = groups_of(experiment, results)
    rows, columns = math.ceil(len(groups) / 2), min(2, len(groups))
    size = (9, 5) if columns == 1 else (12, 3.8 * rows + 1)
    figure = new_figure(*size)
    panels = figure.subplots(rows, columns, squeeze=False)
    for ax, (what, metrics) in zip(panels.flat, groups.items(), strict=False):
        known = {
            variant: {where: found for where, metric in metrics.items() if (found := spread(results, variant, metric))}
            for variant in _measured(experiment, results)
        }
        draw = _lines if experiment.x else _bars
        draw(ax, {variant: found for variant, found in known.items() if found}, list(metrics), _looks(experiment))
        ax.set_ylabel(what)
        ax.set_xlabel(experiment.x)
        if experiment.log:
            ax.set_xscale("log", base=2)
        if experiment.log and what == experiment.y:
            ax.set_yscale("log")
        if experiment.x:
            ax.set_xticks([int(where) for where in metrics], metrics)
    for ax in panels.flat[len(groups) :]:
        ax.set_axis_off()
    figure.suptitle(textwrap.fill(experiment.question, 90), fontsize=11)
    handles = (pair for ax in panels.flat for pair in zip(*ax.get_legend_handles_labels(), strict=True))
    labels = {label: handle for handle, label in handles}
    ordered = [variant for variant in _measured(experiment, results) if variant in labels]
    kinds = len({variant.partition(",")[0] for variant in ordered})
    figure.legend([labels[name] for name in ordered], ordered, fontsize=8, loc="outside lower center", ncols=min(kinds, 6))
    return figure


Spread = tuple[float, float, float]


def _looks(experiment: Experiment) -> dict[str, tuple[str, int]]:
    """By variant a colour, for what stands before the comma of its name, and a number, for what is behind it."""
    kinds = list(dict.fromkeys(variant.partition(",")[0] for variant in experiment.variants))
    turns = list(dict.fromkeys(variant.partition(",")[2] for variant in experiment.variants))
    parts = {variant: variant.partition(",") for variant in experiment.variants}
    return {variant: (COLORS[kinds.index(kind) % len(COLORS)], turns.index(turn)) for variant, (kind, _, turn) in parts.items()}


def _lines(ax: Any, known: dict[str, dict[str, Spread]], places: list[str], looks: dict[str, tuple[str, int]]) -> None:
    for variant, found in known.items():
        x, (mean, least, most) = [int(where) for where in found], zip(*found.values(), strict=True)
        color, turn = looks[variant]
        ax.plot(x, mean, ("-", "--", ":")[turn % 3], marker="o", markersize=4, color=color, label=variant)
        ax.fill_between(x, least, most, color=color, alpha=0.15, linewidth=0)


def _bars(ax: Any, known: dict[str, dict[str, Spread]], places: list[str], looks: dict[str, tuple[str, int]]) -> None:
    width = 0.8 / len(known)
    for n, (variant, found) in enumerate(known.items()):
        mean, least, most = zip(*found.values(), strict=True)
        around = [[m - a for m, a in zip(mean, least, strict=True)], [b - m for m, b in zip(mean, most, strict=True)]]
        color, turn = looks[variant]
        ax.bar(
            [places.index(where) + n * width for where in found],
            mean,
            width,
            yerr=around,
            color=color,
            hatch=(None, "////", "....")[turn % 3],
            edgecolor="white",
            linewidth=0.3,
            label=variant,
            error_kw={"linewidth": 0.8},
        )
    ax.set_xticks([i + 0.4 for i in range(len(places))], places, rotation=30, ha="right")
