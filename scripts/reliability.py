"""docs/reliability.md: what mmrope has withstood, from the result files of what was tried; and two of these results.

    python scripts/reliability.py                          write the page
    python scripts/reliability.py faults                   run the tests that break things, whole, and count what they did
    python scripts/reliability.py shuffled [--runs 10]     run all tests in other orders, beside two busy processes, or with
                                                           --busy 0 beside what is busy already

Results are in scripts/results, and are written as they come; what is there of this commit is not run again. Everything else
on the page is of scripts/fuzz.py, fuzz_configs.py, fuzz_media.py, fuzz_positions.py and mutate.py.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reports import read_result, replace_marked, row, write_result

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "reliability.md", ROOT / "scripts" / "results"
FAULTS_PATH, SHUFFLED_PATH = RESULTS / "faults.json", RESULTS / "shuffled.json"
FAULTS = {
    "training: processes killed": ["tests/vlm/test_train.py", "-k", "killed_again_and_again"],
    "training: checkpoints damaged": ["tests/vlm/test_train.py", "-k", "damaged"],
    "saving: each step fails, disks are full": ["tests/test_folders.py", "-k", "save or saving or disk"],
    "bulk work: items that crash, hang, and raise": [
        "tests/preprocess/test_isolation.py",
        "-k",
        "not sandbox and not come_back",
    ],
    "bulk work: ways out of the sandbox": ["tests/preprocess/test_isolation.py", "-k", "sandbox"],
    "the lab: torn results": ["tests/lab/test_lab.py", "-k", "torn"],
}
"""What is broken, and the tests that break it. They say what they tried by `record_property("tried", ...)`."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("page", "faults", "shuffled"), default="page")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--busy", type=int, default=2, help="processes that do nothing but compute")
    asked = parser.parse_args()
    bad = faults() if asked.what == "faults" else shuffled(asked.runs, asked.busy) if asked.what == "shuffled" else 0
    replace_marked(PAGE, "scorecard", page())
    return int(bad > 0)


def commit() -> str:
    """Of what is tried."""
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


# --- what is run here -------------------------------------------------------------------------------------------------


def tested(*arguments: str, proof: bool) -> dict[str, Any]:
    """What came of a run of the tests."""
    environment = {**os.environ, **({"MMROPE_PROOF": "1"} if proof else {})}
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={path}", "--override-ini=junit_family=xunit1", *arguments]
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
        suite = ElementTree.parse(path).getroot().find("testsuite")
    assert suite is not None
    bad = [case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None]
    return {
        "commit": commit(),
        "date": str(date.today()),
        "seconds": round(time.monotonic() - began),
        "load": round(os.getloadavg()[2], 1),
        "exit code": code,
        "tests": int(suite.attrib["tests"]) - int(suite.attrib["skipped"]),
        "skipped": int(suite.attrib["skipped"]),
        "failed": [f"{case.attrib['classname']}::{case.attrib['name']}" for case in bad],
        "tried": [each.attrib["value"] for each in suite.iter("property") if each.attrib["name"] == "tried"],
    }


def faults() -> int:
    """Runs what is missing of this commit; how many parts failed."""
    found = read_result(FAULTS_PATH) if FAULTS_PATH.is_file() else {}
    found = {name: found[name] for name in FAULTS if name in found}
    for name, tests in FAULTS.items():
        if name not in found or (found[name]["commit"], found[name]["exit code"]) != (commit(), 0):
            found[name] = tested(*tests, "-p", "no:randomly", proof=True)
            write_result(FAULTS_PATH, found)
            print(name, found[name], flush=True)
    return sum(part["exit code"] != 0 for part in found.values())


def shuffled(runs: int, busy: int) -> int:
    """Runs all tests, each time in the order of another seed, beside processes that do nothing but compute."""
    found = read_result(SHUFFLED_PATH, "commit", "runs") if SHUFFLED_PATH.is_file() else {}
    if found.get("commit") != commit():
        found = {"commit": commit(), "cores": os.cpu_count(), "runs": {}}
    for seed in range(1, runs + 1):
        if str(seed) in found["runs"]:
            continue
        with ExitStack() as others:
            for _ in range(busy):
                process = others.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                others.callback(process.kill)
            found["runs"][str(seed)] = tested("-n", "auto", "--dist", "worksteal", f"--randomly-seed={seed}", proof=False)
        write_result(SHUFFLED_PATH, found)
        print(seed, found["runs"][str(seed)], flush=True)
    return sum(run["exit code"] != 0 for run in found["runs"].values())


# --- the page ---------------------------------------------------------------------------------------------------------


def page() -> Iterator[str]:
    """The tables, from the results that are there."""
    for title, head, rows in (
        ("Load held", ("what", "under", "how often", "what came of it", "date"), load()),
        ("Faults survived", ("what is broken", "tried", "tests", "failed", "date"), broken()),
        ("Bad inputs tried", ("area", "how", "inputs", "broke a law", "found and mended", "date"), inputs()),
        (
            "Would the tests see a mistake?",
            ("200 small mistakes at random: in", "caught", "change nothing", "in code that is gone", "not caught"),
            mutants(),
        ),
    ):
        if lines := [row(*cells) for cells in rows]:
            yield from (f"## {title}", "", row(*head), row(*["---"] * len(head)), *lines, "")


def load() -> Iterator[tuple[str, ...]]:
    """The tests in any order, on a busy machine."""
    if SHUFFLED_PATH.is_file():
        found = read_result(SHUFFLED_PATH, "runs", "cores")
        runs = list(found["runs"].values())
        failed = sum(run["exit code"] != 0 for run in runs)
        seconds, busy = [run["seconds"] for run in runs], [run["load"] for run in runs]
        under = f"another order each time, {found['cores']} cores with a load of {min(busy)} to {max(busy)}"
        came = f"{failed} runs failed; {min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes each"
        yield f"all {runs[-1]['tests']:,} tests", under, f"{len(runs)} runs", came, runs[-1]["date"]


def broken() -> Iterator[tuple[str, ...]]:
    """What the tests say that break things."""
    for name, part in (read_result(FAULTS_PATH) if FAULTS_PATH.is_file() else {}).items():
        failed = str(len(part["failed"])) + (f", exit code {part['exit code']}" if part["exit code"] else "")
        yield name, "; ".join(part["tried"]) or "-", f"{part['tests']:,}", failed, part["date"]


def inputs() -> Iterator[tuple[str, ...]]:
    """Of the fuzzers, guided by coverage and blind."""
    if (path := RESULTS / "fuzz.json").is_file():
        found = read_result(path, "targets", "findings", "date")
        for name, target in found["targets"].items():
            of_it = [finding for finding in found["findings"] if finding["target"] == name]
            done = [finding for finding in of_it if finding["mended"]]
            huge = sum("MemoryError" in finding["what"] for finding in done)  # ids that were asked for, and fit in no memory
            mended = f"{len(done) - huge}" + (f"; {huge} asked for too much, and are no fault" if huge else "")
            edges = f"{target['edges_at_start']:,} to {target['edges']:,} edges"
            how = f"guided by coverage, {target['seconds'] / 60:.0f} minutes: {edges}"
            yield name, how, f"{target['executions']:,}", str(len(of_it) - len(done)), mended, found["date"]
    if (path := RESULTS / "fuzz_configs.json").is_file():
        found = read_result(path, "mutants", "readers", "all", "date")
        wrong = sum(count for kind, count in found["all"].items() if kind not in ("read", "refused", "unnamed"))
        other = f"{100 * found['all'].get('unnamed', 0) / found['mutants']:.1f}% refused by another key that they contradict"
        how = (
            f"mutated files of settings, by {len(found['readers'])} readers; {other}; the slowest {found['slowest_seconds']} s"
        )
        yield "folders", how, f"{found['mutants']:,}", str(wrong), "-", found["date"]
    if (path := RESULTS / "fuzz_media.md").is_file():
        day, *tables = re.findall(
            r"\d{4}-\d{2}-\d{2}|^\| (?:images|videos) of |^\| all .*", path.read_text(encoding="utf-8"), re.M
        )
        for kind, total in zip(tables[::2], tables[1::2], strict=True):
            cells = [cell.strip() for cell in total.strip("|").split("|")]
            yield kind.split()[1], "mutated files, read as a path and as bytes", cells[1], cells[-1], "-", day
    for path in sorted(RESULTS.glob("fuzz_positions_*.md")):
        text = path.read_text(encoding="utf-8")
        day, laws = re.findall(r"\d{4}-\d{2}-\d{2}", text)[0], re.findall(r"^\| test_\S+ \| ([\d,]+) \| (\w+)", text, re.M)
        if laws:
            total = sum(int(cases.replace(",", "")) for cases, _ in laws)
            how = f"{len(laws)} laws of ids, over all families"
            yield "positions", how, f"{total:,}", str(sum(holds != "yes" for _, holds in laws)), "-", day


def mutants() -> Iterator[tuple[str, ...]]:
    """Of scripts/mutate.py."""
    if (path := RESULTS / "mutations.json").is_file():
        found = read_result(path, "by_folder")
        for name, part in found["by_folder"].items():
            yield name, *(f"{part[key]:,}" for key in ("caught", "equivalent", "gone", "survived"))


if __name__ == "__main__":
    sys.exit(main())
