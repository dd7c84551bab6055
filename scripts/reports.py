"""What scripts report: tables between two marks of a document, and on which device they were measured."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from pathlib import Path


def replace_marked(path: Path, name: str, lines: Iterable[str]) -> None:
    """Puts lines between `<!-- name -->` and `<!-- end of name -->` in a document that has both."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    match = re.fullmatch(f"(.*{begin}).*({end}.*)", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    if not match:
        raise ValueError(f"{path} has no marks {begin.strip()} and {end} to write between")
    path.write_text(match[1] + "\n" + "".join(f"{line}\n" for line in lines) + "\n" + match[2], encoding="utf-8")


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def cpu() -> str:
    """The model name of the CPU."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "unknown CPU")


def device_name(device: str) -> str:
    """A GPU's name, or the CPU's kind and the threads that torch uses of it."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"a CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
