"""Figures of encodings: what each pair of channels turns by, how attention falls with distance, what scalings do. Needs
matplotlib: pip install 'mmrope[viz]'. The numbers are numpy's; nothing here is needed to compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrope.encodings.scaling import NTK, PI, Llama3, Scaling, YaRN, ntk_by_parts
from mmrope.encodings.spec import RotarySpec
from mmrope.view.figure import COLORS, new_figure


def plot_frequencies(spec: RotarySpec, *, title: str | None = None, ax: Any = None) -> Any:
    """The wavelength of every pair, in ids, by the axis that turns it. Pairs that stand still are not drawn.

    Returns:
        The matplotlib axes.

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.view import plot_frequencies
        >>> ax = plot_frequencies(RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24)))
        >>> [line.get_label() for line in ax.lines]
        ['t', 'h', 'w']
    """
    ax = _axes(ax)
    axis, pairs = np.atleast_2d(spec.axis), np.arange(len(spec.inv_freq))
    with np.errstate(divide="ignore"):
        wavelength = 2 * math.pi / spec.inv_freq.astype(np.float64)
    for a, letter in enumerate(spec.axes):
        mine = (axis == a).any(axis=0) & np.isfinite(wavelength)
        ax.plot(pairs[mine], wavelength[mine], "o", markersize=4, color=COLORS[a], label=letter)
    ax.set_yscale("log")
    ax.set(xlabel="pair of channels", ylabel="ids in a turn (wavelength)")
    return _finish(ax, title or repr(spec))


def mean_score(spec: RotarySpec, distance: np.ndarray, axes: str | None = None) -> np.ndarray:
    """[n] the score of a query with the same key at these distances [n] on the axes, over its score at distance 0: the mean
    of cos(distance * frequency) over pairs."""
    turning = np.isin(np.atleast_2d(spec.axis)[0], [spec.axes.index(letter) for letter in axes or spec.axes])
    angle = np.asarray(distance, dtype=np.float64)[:, None] * np.where(turning, spec.inv_freq, 0)
    return np.cos(angle).mean(axis=1)


def plot_decay(spec: RotarySpec, *, most: int = 4096, title: str | None = None, ax: Any = None) -> Any:
    """How the score of equal vectors falls with the distance on each axis, and on all at once, as in text.

    Returns:
        The matplotlib axes.

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.view import plot_decay
        >>> ax = plot_decay(RotarySpec.axial(64, axes="hw"))
        >>> [line.get_label() for line in ax.lines]
        ['h alone', 'w alone', 'all axes']
    """
    ax = _axes(ax)
    distance = np.unique(np.geomspace(1, most, 400).astype(np.int64))
    parts = list(spec.axes) if len(spec.axes) > 1 else []
    for letter, color in zip(parts, COLORS, strict=False):
        ax.plot(distance, mean_score(spec, distance, letter), color=color, label=f"{letter} alone")
    ax.plot(distance, mean_score(spec, distance), color="black", linewidth=1, label="all axes" if parts else "score")
    ax.set_xscale("log")
    ax.set(xlabel="distance in ids", ylabel="score / score at distance 0")
    return _finish(ax, title or f"Equal vectors, some distance apart: {spec!r}")


def usual_scalings(original: int) -> dict[str, Scaling]:
    """The scalings by 8 that are compared by default."""
    return {
        "PI": PI(8.0),
        "NTK": NTK(8.0),
        "NTK-by-parts, YaRN (released)": ntk_by_parts(8.0, original),
        "YaRN (the paper's ramp)": YaRN(8.0, original, ramp="rotations"),
        "Llama 3": Llama3(8.0, original),
    }


def plot_scalings(
    spec: RotarySpec,
    scalings: Mapping[str, Scaling] | None = None,
    *,
    original: int = 4096,
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """What scalings leave of every frequency, from 1 (kept) to 1 / factor (divided), over the turns that a pair makes within
    the original length.

    Args:
        scalings: by name; PI, NTK, NTK-by-parts, YaRN by the paper's ramp and Llama 3, eight times as far, by default.
        original: the length that the turns are counted in.

    Returns:
        The matplotlib axes.

    Example:
        >>> from mmrope import RotarySpec, YaRN
        >>> from mmrope.view import plot_scalings
        >>> ax = plot_scalings(RotarySpec.rope(64), {"YaRN": YaRN(4.0, 4096)})
        >>> [line.get_label() for line in ax.lines]
        ['YaRN']
    """
    ax = _axes(ax)
    if scalings is None:
        scalings = usual_scalings(original)
    turns = original * spec.inv_freq / (2 * math.pi)
    for (name, scaling), color in zip(scalings.items(), COLORS, strict=False):
        ax.plot(turns, spec.scaled(scaling).inv_freq / spec.inv_freq, ".-", markersize=4, color=color, label=name)
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.set(xlabel=f"turns within {original:,} ids (fast pairs on the left)", ylabel="frequency / unscaled frequency")
    return _finish(ax, title or "What is left of the frequencies of each pair")


def plot_alibi(slopes: Sequence[float], *, most: int = 512, title: str | None = None, ax: Any = None) -> Any:
    """What ALiBi leaves of the weight of a key at some distance, exp(-slope * distance), head by head.

    Returns:
        The matplotlib axes.

    Example:
        >>> from mmrope.encodings import alibi_slopes
        >>> from mmrope.view import plot_alibi
        >>> ax = plot_alibi(alibi_slopes(4).tolist())
        >>> [line.get_label() for line in ax.lines]
        ['head 0: 0.25', 'head 1: 0.0625', 'head 2: 0.0156', 'head 3: 0.00391']
    """
    ax = _axes(ax)
    distance = np.arange(most)
    for n, slope in enumerate(slopes):
        ax.plot(distance, np.exp(-slope * distance), color=COLORS[n % len(COLORS)], label=f"head {n}: {slope:.3g}")
    ax.set(xlabel="distance in tokens", ylabel="factor of the attention weight")
    return _finish(ax, title or f"ALiBi, {len(slopes)} heads")


def _axes(ax: Any) -> Any:
    return ax if ax is not None else new_figure(8, 4).subplots()


def _finish(ax: Any, title: str) -> Any:
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8)
    ax.set_title(title, loc="left", fontsize=10)
    return ax
