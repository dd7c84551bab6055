"""Encodings as text, for a terminal: the numbers of the figures in encodings.py. Needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmrope.encodings.spec import RotarySpec
from mmrope.view.encodings import mean_score, usual_scalings

_MOST_ROWS = 17
"""Of a table whose rows change slowly."""


def frequencies_table(spec: RotarySpec) -> str:
    """Every pair of channels: the axes that rotate it, its frequency, and the ids of a whole turn."""
    axis = np.atleast_2d(spec.axis)  # [K, P], or [1, P] where all heads have the same axes
    lines = [("pair", "axis", "inv_freq", "wavelength")]
    for pair, frequency in enumerate(spec.inv_freq.tolist()):
        letters = "".join(spec.axes[a] for a in np.unique(axis[:, pair]))
        lines.append((str(pair), letters, f"{frequency:.6g}", f"{2 * math.pi / frequency:,.2f}" if frequency else "-"))
    return _aligned(lines)


def decay_table(spec: RotarySpec) -> str:
    """The score of equal vectors some ids apart, relative to distance 0: on each axis alone, and on all at once, as in text."""
    distance = 2 ** np.arange(13)
    alone = list(spec.axes) if len(spec.axes) > 1 else []
    columns = [mean_score(spec, distance, axes) for axes in [*alone, spec.axes]]
    lines = [("distance", *(f"{axis} alone" for axis in alone), "all axes" if alone else "score")]
    lines += [(str(d), *(f"{x:.3f}" for x in scores)) for d, *scores in zip(distance, *columns, strict=True)]
    return _aligned(lines)


def scalings_table(spec: RotarySpec, *, original: int = 4096) -> str:
    """What scalings by 8 leave of the frequencies of some pairs, from 1 (kept) to 1/8 (divided by all of it)."""
    scalings = usual_scalings(original)
    moving = np.flatnonzero(spec.inv_freq)
    left = {name: spec.scaled(scaling).inv_freq[moving] / spec.inv_freq[moving] for name, scaling in scalings.items()}
    lines = [("pair", f"turns in {original:,} ids", *scalings)]
    for n in np.unique(np.linspace(0, len(moving) - 1, _MOST_ROWS).round().astype(int)):
        turns = original * spec.inv_freq[moving[n]] / (2 * math.pi)
        lines.append((str(moving[n]), f"{turns:.4g}", *(f"{ratios[n]:.3f}" for ratios in left.values())))
    return _aligned(lines)


def alibi_table(slopes: Sequence[float]) -> str:
    """The slope of each head, and the factor exp(-slope * distance) that it leaves of attention weights at some distances."""
    distances = 4 ** np.arange(6)
    lines = [("head", "slope", *(f"at {d:,}" for d in distances))]
    lines += [(str(n), f"{slope:.6g}", *(f"{math.exp(-slope * d):.4f}" for d in distances)) for n, slope in enumerate(slopes)]
    return _aligned(lines)


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Lines of cells as a table, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)
