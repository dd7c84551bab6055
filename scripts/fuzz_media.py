"""Looks for files that break what reads them: each mutant of a small sound file is to be opened, or refused with a MediaError.

    python scripts/fuzz_media.py [--images 200000] [--videos 3000] [--seed 0] [--keep FOLDER]
    python scripts/fuzz_media.py --images 1000000 --videos 20000

The second is the full run. The law and the mutations are those of tests/support/mutants.py; a process that crashes, hangs or
takes too much memory is ended, and the mutant that did it is named. What breaks the law is printed, and saved to --keep with
the reason.
The table of what came of how many is written to scripts/results. The same seed makes the same mutants.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import av
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.mutants import MEGABYTES, Findings, Kind, image_seeds, mutants, tried, video_seeds  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--videos", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the mutants that break the law")
    asked = parser.parse_args()
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    versions = ", ".join(f"{name} {version(name)}" for name in ("mmrope", "pillow", "pillow-heif", "av"))
    lines = [f"seed {asked.seed}; {versions} (libavcodec {ffmpeg}); {time.strftime('%Y-%m-%d')}"]
    failed = False
    runs: tuple[tuple[Kind, int, Callable[[], dict[str, bytes]]], ...]
    runs = ("images", asked.images, image_seeds), ("videos", asked.videos, video_seeds)
    for kind, number, seeds in runs:
        if number:
            began = time.perf_counter()
            found = search(kind, seeds(), number, asked.seed)
            lines += table(kind, found, time.perf_counter() - began)
            failed |= bool(found.broken) or found.megabytes >= MEGABYTES
            report(kind, found, asked.keep)
    path = ROOT / "scripts" / "results" / "fuzz_media.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    raise SystemExit(failed)


def search(kind: Kind, seeds: dict[str, bytes], number: int, seed: int) -> Findings:
    found = Findings()
    with tqdm(total=number, desc=kind, unit="file", disable=None) as bar:
        for done, found in tried(mutants(seeds, seed, number), kind):
            bar.update(done)
            bar.set_postfix(broken=len(found.broken), megabytes=round(found.megabytes), refresh=False)
    return found


def table(kind: Kind, found: Findings, seconds: float) -> list[str]:
    """Images by format, videos by seed."""
    groups: dict[str, Counter[str]] = {}
    for name, counts in found.counts.items():
        group = groups.setdefault(name.partition(",")[0], Counter())
        group.update(counts)
    groups["all"] = sum(found.counts.values(), Counter())
    lines = ["", f"| {kind} of | mutants | opened | refused | broke the law |", "|---|---|---|---|---|"]
    for name, counts in groups.items():
        broken = ", ".join(f"{n:,} {what}" for what, n in counts.items() if what not in ("opened", "refused")) or "0"
        lines.append(f"| {name} | {counts.total():,} | {counts['opened']:,} | {counts['refused']:,} | {broken} |")
    return [*lines, "", f"At most {found.megabytes:.0f} MB beyond the imports (bar: {MEGABYTES}); {seconds:.0f} s."]


def report(kind: Kind, found: Findings, folder: Path | None) -> None:
    for n, (name, content, how) in enumerate(found.broken):
        print(f"a mutant of {name} broke the law: {how}", file=sys.stderr)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            stem = f"{kind}-{n:04}-{name.replace(' ', '_')}"
            (folder / stem).write_bytes(content)
            (folder / f"{stem}.txt").write_text(how)


if __name__ == "__main__":
    main()
