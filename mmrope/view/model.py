"""Figures of the small model: where it looks, and how it learned. Needs matplotlib: pip install 'mmrope[viz]'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrope.view.figure import new_figure


def plot_looks(pixels: np.ndarray, weights: np.ndarray, *, title: str = "", most_frames: int = 16) -> Any:
    """An image or the frames of a video, and over them, a row a layer, where the layer's head that looked hardest looked.

    Args:
        pixels: uint8 [T, H, W, 3].
        weights: [layers, heads, T, rows, columns], shares of attention.
        title: such as the question and its answer.
        most_frames: of a video, the first.

    Returns:
        The matplotlib figure.

    Example:
        >>> import numpy as np
        >>> from mmrope.view import plot_looks
        >>> pixels, weights = np.zeros((1, 8, 8, 3), np.uint8), np.full((2, 4, 1, 2, 2), 0.1)  # 2 layers of 4 heads
        >>> figure = plot_looks(pixels, weights, title="How many?")
        >>> [ax.get_title() for ax in figure.axes]
        ['seen', 'layer 1, head 1: 40%', 'layer 2, head 1: 40%']
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
    """A training's loss over its steps, and beside it its exact answers by kind of question, if it counted them.

    Args:
        log: the entries of a training's log.jsonl.

    Returns:
        The matplotlib figure.

    Example:
        >>> from mmrope.view import plot_training
        >>> log = [{"step": step, "loss": 1 / step, "exact": {"count": step / 100}} for step in (50, 100)]
        >>> [ax.get_ylabel() for ax in plot_training(log).axes]
        ['loss', 'exact answers, %']
    """
    kinds = list(dict.fromkeys(kind for entry in log for kind in entry.get("exact", ())))
    figure = new_figure(11 if kinds else 6, 4)
    loss, *rest = figure.subplots(1, 2 if kinds else 1, squeeze=False)[0]
    loss.plot([entry["step"] for entry in log], [entry["loss"] for entry in log], color="black")
    loss.set(xlabel="step", ylabel="loss", yscale="log")
    for exact in rest:
        for kind in kinds:
            points = [(entry["step"], 100 * entry["exact"][kind]) for entry in log if kind in entry.get("exact", ())]
            exact.plot(*zip(*points, strict=True), label=kind)
        exact.set(xlabel="step", ylabel="exact answers, %", ylim=(0, 101))
        exact.legend(frameon=False, fontsize=8, ncols=2)
    return figure
