"""Looks for folders that break what reads them: each mutant of a JSON file of a sound folder is to be read, or refused with a
ValueError that names the file; and the key that was changed, or what it contradicts (those that name another key are counted).

    python scripts/fuzz_configs.py [--mutants 100000] [--seed 0] [--keep FOLDER]

The law, the mutations and the readers are those of tests/support/json_mutants.py. What breaks the law is printed, and saved to
--keep. The table of what came of how many is written to scripts/results. The same seed makes the same mutants.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reports import write_result  # noqa: E402

from tests.support.json_mutants import MEGABYTES, SECONDS, Findings, megabytes, readers, tried  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the mutants that break the law")
    asked = parser.parse_args()
    found, began = Findings(), time.perf_counter()
    with TemporaryDirectory() as folder:
        every = readers(Path(folder))
        for reader in every:
            tried(reader, 20, asked.seed - 1, Findings())  # what is loaded on first use is not a mutant's
        before = megabytes()
        for n, reader in enumerate(tqdm(every, unit="reader", disable=None)):
            tried(reader, asked.mutants * (n + 1) // len(every) - asked.mutants * n // len(every), asked.seed, found)
        more = megabytes() - before
    rows = {name: dict(sorted(counts.items())) for name, counts in found.counts.items()}
    total = sum(found.counts.values(), start=type(next(iter(found.counts.values())))())
    made = {
        "seed": asked.seed,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("mmrope", "tokenizers", "safetensors", "torch")},
        "mutants": total.total(),
        "seconds": round(time.perf_counter() - began),
        "slowest_seconds": round(found.seconds, 2),
        "megabytes": round(more),
        "bars": {"seconds": SECONDS, "megabytes": MEGABYTES},
        "all": dict(sorted(total.items())),
        "readers": rows,
    }
    write_result(ROOT / "scripts" / "results" / "fuzz_configs.json", made)
    print(json.dumps(made, indent=1))
    for n, (name, at, content, how) in enumerate(found.broken):
        print(f"a mutant of {name} at {at} broke the law: {how}", file=sys.stderr)
        if asked.keep is not None:
            asked.keep.mkdir(parents=True, exist_ok=True)
            (asked.keep / f"{n:04}.json").write_bytes(content)
            (asked.keep / f"{n:04}.txt").write_text(f"{name} at {at}: {how}\n")
    raise SystemExit(bool(found.broken) or more >= MEGABYTES)


if __name__ == "__main__":
    main()
