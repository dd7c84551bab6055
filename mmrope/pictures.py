"""Figures of position IDs. Needs matplotlib: pip install mmrope[viz]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrope.positions.build import Positions
from mmrope.positions.compare import Placed, placed

AXIS_COLORS = {"t": "#d1495b", "h": "#2e86ab", "w": "#3a9d5d", "p": "#d1495b", "i": "#8a5fbf"}
KIND_COLORS = {
    **{"text": "#ffffff", "pad": "#dddddd", "custom": "#f0f0f0"},
    **{"image": "#fdf0d5", "canvas": "#fdf0d5", "frame": "#e8e4f3", "video": "#e8e4f3", "audio_in_video": "#e8e4f3"},
    **{"audio": "#e2f0e9"},
}


def plot_ids(
    positions: Positions, *, row: int = 0, names: Sequence[str] | None = None, title: str | None = None, ax: Any = None
) -> Any:
    """Every token's id on every axis: one curve an axis over the tokens of a row, media shaded.

    Args:
        positions: the whole of a row, not a slice.
        names: what to call the segments; by default image 0, video 0, ...
        ax: matplotlib axes to draw into; a new figure if None.

    Returns:
        The matplotlib axes.
    """
    ax = ax if ax is not None else new_figure(11, 4.2).subplots()
    items = placed(positions, row)
    ids = positions.ids[:, row]
    tokens = range(positions.start, positions.start + ids.shape[1])
    for item, name in zip(items, names or _names(items), strict=True):
        begin, end = item.start - 0.5, item.start + item.segment.length - 0.5
        ax.axvspan(begin, end, color=KIND_COLORS[item.segment.kind], zorder=0, linewidth=0)
        if item.segment.kind not in ("text", "pad", "frame", "custom"):
            ax.annotate(
                name,
                ((begin + end) / 2, 1.01),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=9,
            )
    # the first axis is drawn last and thickest: in text all axes agree, and the last moves the most
    for n, axis in enumerate(reversed(positions.family.axes)):
        style = {"linewidth": 0.7 + 0.4 * n, "zorder": n + 1, "color": AXIS_COLORS.get(axis), "drawstyle": "steps-mid"}
        ax.plot(tokens, ids[positions.family.axes.index(axis)], label=axis, **style)
    ax.margins(x=0)
    ax.set(xlabel="token", ylabel="position id")
    ax.legend(*(list(reversed(part)) for part in ax.get_legend_handles_labels()), loc="upper left", frameon=False, ncols=4)
    ax.set_title(title or f"{positions.family}", loc="left", fontsize=10, pad=22)
    return ax


def plot_rules(rules: Sequence[Positions], *, title: str | None = None) -> Any:
    """The same row by several rules, one above the other, on one scale; text that shares its ids with a video is marked.

    Returns:
        The matplotlib figure.
    """
    figure = new_figure(11, 3.1 * len(rules))
    axes = figure.subplots(len(rules), 1, sharex=True, sharey=True, squeeze=False)
    for positions, ax in zip(rules, axes[:, 0], strict=True):
        plot_ids(positions, ax=ax)
        shared = overlapping_text(positions)
        if shared:
            ax.plot(shared, positions.ids[0, 0, shared], "o", color="black", markersize=3.5, zorder=5, label="_shared")
            ax.annotate(
                f"{len(shared)} text tokens share\ntheir ids with the video",
                (shared[0], positions.ids[0, 0, shared[0]]),
                xytext=(-12, 34),
                textcoords="offset points",
                ha="right",
                fontsize=9,
                arrowprops={"arrowstyle": "->"},
            )
        if ax is not axes[-1, 0]:
            ax.set_xlabel("")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def overlapping_text(positions: Positions, row: int = 0) -> list[int]:
    """Text tokens after a video whose id on the first axis (time) is not above every one of that video."""
    axis = positions.family.axes[0]
    shared, largest = [], -1.0
    for item in placed(positions, row):
        tokens = range(item.start, item.start + item.segment.length)
        if item.segment.kind == "text":
            shared += [token for token in tokens if item.ids[axis][0] + token - item.start <= largest]
        elif item.segment.kind in ("video", "audio_in_video"):
            largest = max(largest, item.ids[axis][1])
    return shared


def plot_looks(pixels: np.ndarray, weights: np.ndarray, *, title: str = "", most_frames: int = 16) -> Any:
    """An image or the frames of a video, and over them, a row a layer, where the layer's head that looked hardest looked.

    Args:
        pixels: uint8 [T, H, W, 3].
        weights: [layers, heads, T, rows, columns], shares of attention.
        title: such as the question and its answer.
        most_frames: of a video, the first.

    Returns:
        The matplotlib figure.
    """
    layers, _, frames = weights.shape[:3]
    frames = min(frames, most_frames)
    hardest = weights[:, :, :frames].max(axis=(2, 3, 4)).argmax(axis=1)  # [layers]
    across = 1 + layers if frames == 1 else frames
    down = 1 if frames == 1 else 1 + layers
    shape = pixels.shape[1] / pixels.shape[2]
    size = 2.6 if frames == 1 else 1.0
    figure = new_figure(size * across, size * shape * down + 0.5)
    panels = figure.subplots(down, across, squeeze=False).reshape(1 + layers, frames)
    extent = (0, weights.shape[4], weights.shape[3], 0)
    for frame in range(frames):
        for layer, ax in enumerate(panels[:, frame], start=-1):
            ax.set(xticks=[], yticks=[])
            ax.imshow(pixels[frame], extent=extent, interpolation="nearest")
            name = "seen"
            if layer >= 0:
                share = weights[layer, hardest[layer], frame]  # [rows, columns]
                ax.imshow(np.ones_like(share), extent=extent, cmap="autumn", vmin=0.6, vmax=1.6, alpha=0.6 * share)
                name = f"layer {layer + 1}, head {hardest[layer] + 1}"
            if frame == 0 and frames == 1:
                ax.set_title(name if layer < 0 else f"{name}: {weights[layer, hardest[layer]].sum():.0%}", fontsize=9)
            elif frame == 0:
                ax.set_ylabel(name.replace(", ", "\n"), fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_training(log: Sequence[Mapping[str, Any]]) -> Any:
    """A training's loss, and its exact answers by kind of question, over its steps.

    Args:
        log: the entries of a training's log.jsonl.

    Returns:
        The matplotlib figure.
    """
    figure = new_figure(11, 4)
    loss, exact = figure.subplots(1, 2)
    loss.plot([entry["step"] for entry in log], [entry["loss"] for entry in log], color="black")
    loss.set(xlabel="step", ylabel="loss", yscale="log")
    for kind in dict.fromkeys(kind for entry in log for kind in entry["exact"]):
        points = [(entry["step"], 100 * entry["exact"][kind]) for entry in log if kind in entry["exact"]]
        exact.plot(*zip(*points, strict=True), label=kind)
    exact.set(xlabel="step", ylabel="exact answers, %", ylim=(0, 101))
    exact.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def save(figure_or_axes: Any, path: str | Path) -> None:
    """Writes a figure to a file, by its ending (png, svg, pdf), in a folder that is made if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    getattr(figure_or_axes, "figure", figure_or_axes).savefig(path, dpi=130)


def _names(items: Sequence[Placed]) -> list[str]:
    counts: dict[str, int] = {}
    names = []
    for item in items:
        kind, (t, h, w) = item.segment.kind, item.segment.grid
        size = f"{h} x {w}" if t == 1 else f"{t} x {h} x {w}"
        names.append(f"{kind} {counts.get(kind, 0)}: {size}")
        counts[kind] = counts.get(kind, 0) + 1
    return names


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of this size in inches. It is not pyplot's, which would keep every figure of a process."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("figures need matplotlib: pip install mmrope[viz]") from None
    return Figure(figsize=(width, height), layout="constrained")
