"""What figures share: colours, a place to draw in, and files. Needs matplotlib: pip install 'mmrope[viz]'."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmrope.extras import needed_for

COLORS = ("#d1495b", "#2e86ab", "#3a9d5d", "#8a5fbf", "#e08e45", "#666666")
AXIS_COLORS = MappingProxyType({"t": "#d1495b", "h": "#2e86ab", "w": "#3a9d5d", "p": "#d1495b", "i": "#8a5fbf"})
KIND_COLORS = MappingProxyType(
    {
        **{"text": "#ffffff", "pad": "#dddddd", "custom": "#f0f0f0"},
        **{"image": "#fdf0d5", "canvas": "#fdf0d5", "frame": "#e8e4f3", "video": "#e8e4f3", "audio_in_video": "#e8e4f3"},
        **{"audio": "#e2f0e9"},
    }
)


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of this size in inches. It is not pyplot's, which would keep every figure of a process."""
    with needed_for("a figure"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def save(figure_or_axes: Any, path: str | Path) -> None:
    """Writes a figure to a file, by its ending (png, svg, pdf), in a folder that is made if need be.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.view import plot_ids, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(plot_ids(position_ids([Segment.text(3)], "qwen2_vl")), f"{folder}/ids.svg")
        ...     print([path.name for path in Path(folder).iterdir()])
        ['ids.svg']
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    getattr(figure_or_axes, "figure", figure_or_axes).savefig(path, dpi=130)
