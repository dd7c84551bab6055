"""Where mmrope can be installed: beside which newest packages, on which systems, for which Pythons. Nothing is installed.

Asks `uv pip compile`, and writes scripts/results/resolve.md: python scripts/resolve.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from reports import row, write_result

ROOT = Path(__file__).parents[1]
UV = (sys.executable, "-m", "uv")

PEERS = ("vllm", "sglang", "transformers", "llamafactory", "ms-swift", "trl", "verl", "gradio==5.*", "gradio==6.*")
SHOWN = ("torch", "av", "pillow", "numpy")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
LINUX = "x86_64-manylinux_2_34"  # SGLang has no wheels for an older glibc
SYSTEMS = {
    "Linux, x86-64": "x86_64-manylinux_2_28",
    "Linux, ARM": "aarch64-manylinux_2_28",
    "macOS 14, ARM": "aarch64-apple-darwin",
    "macOS 14, Intel": "x86_64-apple-darwin",
    "Windows, x86-64": "x86_64-pc-windows-msvc",
}


def resolve(*arguments: str, python: str, system: str, wanted: Sequence[str] = ()) -> dict[str, str] | str:
    """The version of each package, or in a line why there is no solution."""
    options = [
        "--python-version",
        python,
        "--python-platform",
        system,
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--color=never",
    ]
    done = subprocess.run(
        [*UV, "pip", "compile", *arguments, "-", *options],
        input="\n".join(wanted),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},
    )
    if done.returncode == 0:
        return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, flags=re.MULTILINE))
    reason = " ".join(done.stderr.split())
    if "No solution found" not in reason:
        raise RuntimeError(reason)  # such as no network, which says nothing of mmrope
    return "no solution: " + reason.partition("cause: ")[2].partition(" hint:")[0]


def versions(found: dict[str, str] | str) -> list[str]:
    """Cells of a row."""
    return [found.get(name, "-") for name in SHOWN] if isinstance(found, dict) else [found, *[""] * (len(SHOWN) - 1)]


def newest(peer: str, python: str) -> str:
    """A package at its newest version for this Python; "" if there is none."""
    found = resolve("--no-deps", python=python, system=LINUX, wanted=[peer])
    return "==".join(next(iter(found.items()))) if isinstance(found, dict) else ""


def main() -> None:
    version = subprocess.run([*UV, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    lines = [
        f"uv {version}, {date.today()}; made by `python scripts/resolve.py`, which installs nothing.",
        "",
        "`mmrope[torch,media]` beside the newest version of a package, each alone; Linux, x86-64, glibc 2.34:",
        "",
        row("beside", "Python", *SHOWN),
        row(*["---"] * (2 + len(SHOWN))),
    ]
    for peer in PEERS:
        python = "3.11" if newest(peer, "3.11") == newest(peer, "3.12") else "3.12"
        pinned = newest(peer, python)
        extras = ("--extra=torch", "--extra=media")
        found = resolve("pyproject.toml", *extras, python=python, system=LINUX, wanted=[pinned])
        lines.append(row(pinned, python, *versions(found)))
        print(lines[-1], flush=True)
    lines += [
        "",
        "`mmrope[all]` alone, from wheels only. For Macs with Intel processors torch has no wheels after 2.2: there `[all]`",
        "leaves out what needs torch, and `[torch]`, asked for by name, has no solution.",
        "",
        row("system", "Python", *SHOWN),
        row(*["---"] * (2 + len(SHOWN))),
    ]
    for name, system in SYSTEMS.items():
        for python in PYTHONS:
            found = resolve("pyproject.toml", "--extra=all", "--only-binary=:all:", python=python, system=system)
            lines.append(row(name, python, *versions(found)))
            print(lines[-1], flush=True)
    write_result(ROOT / "scripts/results/resolve.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
