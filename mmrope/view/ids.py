"""Figures of position IDs. Needs matplotlib: pip install 'mmrope[viz]'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrope.positions.build import Positions
from mmrope.positions.compare import Placed, placed
from mmrope.view.figure import AXIS_COLORS, KIND_COLORS, new_figure


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

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.view import plot_ids
        >>> ax = plot_ids(position_ids([Segment.text(3), Segment.image(h=2, w=3)], "qwen2_vl"))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('token', 'position id')
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

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.view import plot_rules
        >>> row = [Segment.text(3), Segment.video(t=8, h=1, w=2), Segment.text(3)]
        >>> figure = plot_rules([position_ids(row, name) for name in ("qwen2_vl", "qwen2_vl@transformers-5.23")])
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['qwen2_vl', 'qwen2_vl@transformers-5.23']
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


def _names(items: Sequence[Placed]) -> list[str]:
    counts: dict[str, int] = {}
    names = []
    for item in items:
        kind, (t, h, w) = item.segment.kind, item.segment.grid
        size = f"{h} x {w}" if t == 1 else f"{t} x {h} x {w}"
        names.append(f"{kind} {counts.get(kind, 0)}: {size}")
        counts[kind] = counts.get(kind, 0) + 1
    return names
