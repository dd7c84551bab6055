"""Writes the crafted media files of the tests into a folder, with a table of what must come of each.

    python scripts/make_media.py FOLDER

For looking at them, and for trying other readers on them. The table, outcomes.md, says in short what is seen when a file is
opened, or with which message it is refused; tests/support/crafted.py says it in full.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.crafted import CRAFTED, Crafted, Film, Picture, long_film  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made if it is not there; files of the same names are replaced")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["| file | bytes | outcome |", "|---|---|---|"]
    for crafted in tqdm(CRAFTED, unit="file", disable=None):
        source = crafted.written(folder)
        size = f"{source.stat().st_size:,}" if isinstance(source, Path) else "a name alone"
        lines.append("| {} | {} | {} |".format(*(cell.replace("|", "\\|") for cell in (crafted.name, size, said(crafted)))))
    path = long_film(folder / "ten hours.mkv", 36_000)
    lines.append(f"| {path.name} | {path.stat().st_size:,} | 36,000 frames, one a second |")
    (folder / "outcomes.md").write_text("\n".join(lines) + "\n")
    print(f"{len(lines) - 2} files and outcomes.md in {folder}")


def said(crafted: Crafted) -> str:
    outcome = crafted.outcome
    if isinstance(outcome, Picture):
        first = ", its first frame" if outcome.animation == "first" else ""
        return f"image of {outcome.size[1]} x {outcome.size[0]}{first}"
    if isinstance(outcome, Film):
        lost = len(set(outcome.lost))
        return (
            f"{len(outcome.times_ms)} frames of {outcome.size[0]} x {outcome.size[1]}, "
            f"the last at {outcome.times_ms[-1]:.0f} ms" + (f"; {lost} cannot be decoded" if lost else "")
        )
    how = {"image": "as an image", "video": "as a video", "frames": "when its frames are decoded"}[outcome.by]
    return f"refused {how}: `{outcome.pattern}`"


if __name__ == "__main__":
    main()
