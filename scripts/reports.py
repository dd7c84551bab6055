"""What scripts report: results in files, tables between two marks of a document, and on which device they were measured."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmrope.files import read_object, replacing, to_json


def write_result(path: Path, result: str | dict[str, Any]) -> None:
    """Writes a result, a text or an object, whole: a run that is stopped leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_text(result if isinstance(result, str) else to_json(result), encoding="utf-8")


def read_result(path: Path, *needed: str) -> dict[str, Any]:
    """An object that `write_result` wrote, with at least these keys.

    Raises:
        ValueError: it is torn, or another's.
    """
    results = read_object(path)
    if missing := [key for key in needed if key not in results]:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: it is not a result of this script; delete it, or name another file"
        )
    return results


def replace_marked(path: Path, name: str, lines: Iterable[str]) -> None:
    """Puts lines between `<!-- name -->` and `<!-- end of name -->` in a document that has both."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    match = re.fullmatch(f"(.*{begin}).*({end}.*)", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    if not match:
        raise ValueError(f"{path} has no marks {begin.strip()} and {end} to write between")
    write_result(path, match[1] + "\n" + "".join(f"{line}\n" for line in lines) + "\n" + match[2])


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
