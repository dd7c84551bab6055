"""Runs every long proof whole, one after the other, and saves what came of each: `make test` has a fixed sample of them.

    python scripts/proof.py [--out out/proof] [--again]

Parts that this commit has passed are not run again: killed, it goes on where it was. A folder at a time, so that a part is at
most an hour or so of two cores; everything takes about a day. out/proof/proof.json has the exit code, the seconds and
the last lines of each part, and out/proof/NAME.log all that it said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from reports import read_result, write_result

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable
TESTS = ("positions", "encodings", "adapters", "preprocess", "vlm", "lab", "view")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "proof")
    parser.add_argument("--again", action="store_true", help="also what is done")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "proof.json"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    results = read_result(path) if path.is_file() and not options.again else {}
    for name, command in parts().items():
        if (done := results.get(name)) and done["commit"] == commit and done["exit code"] == 0:
            continue
        began = time.monotonic()
        with (options.out / f"{name}.log").open("w+") as log:
            environment = {**os.environ, "MMROPE_PROOF": "1"}
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode
            log.seek(0)
            said = log.read().splitlines()[-3:]
        results[name] = {
            "commit": commit,
            "exit code": code,
            "seconds": round(time.monotonic() - began),
            "date": str(date.today()),
            "said": said,
        }
        write_result(path, results)
        print(f"{name}: exit code {code} after {results[name]['seconds']} s: {' '.join(said)}", flush=True)
    return int(any(result["exit code"] for result in results.values()))


def parts() -> dict[str, list[str]]:
    """By name, what is run."""
    pytest = [PYTHON, "-m", "pytest", "-n", "auto", "--dist", "worksteal"]
    return {
        "families": [PYTHON, "scripts/prove_families.py"],
        "fuzz_positions": [PYTHON, "scripts/fuzz_positions.py"],
        "fuzz_media": [PYTHON, "scripts/fuzz_media.py"],
        "fuzz_configs": [PYTHON, "scripts/fuzz_configs.py"],
        **{f"tests_{folder}": [*pytest, f"tests/{folder}"] for folder in TESTS},
    }


if __name__ == "__main__":
    sys.exit(main())
