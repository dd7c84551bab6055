"""Coverage-guided fuzzing: looks for bytes that break the laws of tests/support/targets.py, and keeps what it learned.

    python scripts/fuzz.py [--seconds 300] [--processes 2] [--targets images segments ...]
    python scripts/fuzz.py --seconds 7200 --results scripts/results/fuzz.json --continue
    python scripts/fuzz.py --corpus

Every target runs in processes of its own for its part of the time: what crashes native code, hangs or takes too much memory
ends its process alone, and the next continues with what there is. The corpus that grows is in out/fuzz/corpus, the inputs that
break the law are in out/fuzz/findings, each with its reason beside it. The results are written as they come in; --continue
counts the seconds that they have already. Findings of earlier runs are tried again, and said to be mended if they keep the law.
The exit status is 1 if there is one that does not.

--corpus makes tests/corpus anew, of seeds, of what was learned and of the findings that are mended: what libFuzzer needs for
all that it has seen of the code, the smallest files first. All of it needs atheris, which has wheels for Linux on x86-64.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scripts.reports import read_result, write_result  # noqa: E402

OUT, CORPUS = ROOT / "out" / "fuzz", ROOT / "tests" / "corpus"
TARGETS = {
    "images": 16_384,
    "videos": 65_536,
    "tokenizers": 32_768,
    "configs": 32_768,
    "conversations": 16_384,
    "segments": 512,
}
"""The most bytes of an input."""
JSON = ("tokenizers", "configs", "conversations")
"""Those whose bytes are an object of JSON."""
PARSERS = {"images": ["PIL"], "videos": [], "tokenizers": [], "configs": [], "conversations": ["jinja2"], "segments": []}
"""Of whose Python libFuzzer is told, too, what of it was run."""
SECONDS, MEGABYTES = 25, 2_048
"""For one input: after so long it hangs; so much memory, its imports included, is too much."""
KEPT, FILE = 64_000, 12_288
"""Bytes of a target in tests/corpus, and of a file there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="in all")
    parser.add_argument("--processes", type=int, default=2, help="at a time")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--results", type=Path, default=OUT / "results.json")
    parser.add_argument("--continue", action="store_true", dest="goes_on", help="a run that was interrupted")
    parser.add_argument("--corpus", action="store_true", help="make tests/corpus anew")
    asked = parser.parse_args()
    version("atheris")  # raises where it is not installed
    if asked.corpus:
        for target in asked.targets:
            renew(target)
        return
    results = Results(asked.results, asked.goes_on)
    for target in asked.targets:
        results.add(target)  # what a run with another file of results has found
    each = asked.seconds * asked.processes / len(asked.targets)
    with ThreadPoolExecutor(asked.processes) as pool:
        list(pool.map(results.retry, [finding for finding in results.findings if finding["target"] in asked.targets]))
        results.write(now=True)
        list(pool.map(lambda target: fuzz(target, each, results), asked.targets))
    for target in asked.targets:
        row = results.rows[target]
        edges, features = (f"{row[f'{name}_at_start']} to {row[name]}" for name in ("edges", "features"))
        print(
            f"{target}: {row['seconds']:.0f} s, {row['executions']:,} executions, edges {edges}, features {features}, "
            f"{row['new_in_corpus']} new in the corpus"
        )
    broken = [finding for finding in results.findings if finding["target"] in asked.targets and not finding["mended"]]
    for finding in broken:
        print(
            f"{finding['target']} breaks its law on {finding['input']}: {finding['what']} ({finding['where']})", file=sys.stderr
        )
    raise SystemExit(bool(broken))


# --- results ----------------------------------------------------------------------------------------------------------


class Results:
    """What came of each target, in a file that always holds what there is."""

    def __init__(self, path: Path, goes_on: bool) -> None:
        before = read_result(path, "targets", "findings") if path.exists() else {"targets": {}, "findings": []}
        self.path, self.lock, self.written = path, threading.RLock(), 0.0
        self.rows: dict[str, dict[str, Any]] = before["targets"] if goes_on else {}
        self.findings: list[dict[str, Any]] = before["findings"]

    def retry(self, finding: dict[str, Any]) -> None:
        """Whether a finding of an earlier run is mended."""
        kept = OUT / "findings" / finding["input"]
        if kept.exists():
            finding["mended"] = tried(finding["target"], kept) is None

    def add(self, target: str) -> None:
        """The findings of a target that are new."""
        for reason in sorted((OUT / "findings").glob(f"{target}-*.txt")):
            with self.lock:
                known = [finding for finding in self.findings if finding["input"] == reason.stem]
                if not known:
                    how = reason.read_text().strip()
                    frames = re.findall(r'File "(mmrope/[^"]*)", line (\d+)', how)
                    stated = {"target": target, "input": reason.stem, "what": how.splitlines()[-1][:300], "mended": False}
                    where = ":".join(frames[-1]) if frames else ""
                    self.findings.append({**stated, "where": where, "found": time.strftime("%Y-%m-%d")})

    def write(self, *, now: bool = False) -> None:
        with self.lock:
            if not now and time.monotonic() - self.written < 5:
                return
            self.written = time.monotonic()
            names = ("mmrope", "atheris", "pillow", "av", "tokenizers", "jinja2", "numpy")
            stated = {
                "date": time.strftime("%Y-%m-%d"),
                "python": sys.version.split()[0],
                "versions": {name: version(name) for name in names},
                "targets": self.rows,
                "findings": self.findings,
            }
            write_result(self.path, stated)


# --- a target ---------------------------------------------------------------------------------------------------------

_STATUS = re.compile(r"#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+) corp: (\d+)/")


def fuzz(target: str, seconds: float, results: Results) -> None:
    """Runs a target until its time is up, in one process after the other."""
    corpus, given, findings = OUT / "corpus" / target, OUT / "seeds" / target, OUT / "findings"
    for folder in (corpus, given, findings, CORPUS / target):
        folder.mkdir(parents=True, exist_ok=True)
    write_seeds(target, given)
    numbers = ("seconds", "executions", "edges_at_start", "edges", "features_at_start", "features", "new_in_corpus")
    row = results.rows.setdefault(target, dict.fromkeys(numbers, 0))
    before, had = row["new_in_corpus"], len(list(corpus.iterdir()))
    while (left := seconds - row["seconds"]) > 1:
        began, done, spent = time.monotonic(), row["executions"], row["seconds"]
        options = [
            f"-timeout={SECONDS}",
            f"-rss_limit_mb={MEGABYTES}",
            f"-max_len={TARGETS[target]}",
            "-close_fd_mask=3",
            "-len_control=0",
        ]
        folders = [str(corpus), str(CORPUS / target), str(given)]
        process = child(target, [*folders, f"-artifact_prefix={findings}/{target}-", *options], left)
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines = [*lines[-60:], line]
            if line.startswith("INFO: Seed"):  # what is imported before does not count
                began = time.monotonic()
            row["seconds"] = spent + time.monotonic() - began
            if status := _STATUS.search(line):
                executions, what, edges, features, _ = status.groups()
                row["executions"], row["edges"], row["features"] = done + int(executions), int(edges), int(features)
                if what == "INITED" and not row["edges_at_start"]:
                    row["edges_at_start"], row["features_at_start"] = int(edges), int(features)
                row["new_in_corpus"] = before + len(list(corpus.iterdir())) - had
                results.write()
        row["seconds"] = spent + time.monotonic() - began
        if process.wait():
            artifact = re.search(r"Test unit written to (.*)", "".join(lines))
            if artifact is None:
                raise RuntimeError(f"the fuzzer of {target} ended with {process.returncode}:\n{''.join(lines)}")
            crashed(target, Path(artifact[1]), "".join(lines))
        results.add(target)
        results.write(now=True)


def child(target: str, arguments: list[str], seconds: float = 0) -> subprocess.Popen[str]:
    limit = [f"-max_total_time={max(1, int(seconds))}"] if seconds else []
    command = [sys.executable, __file__, "--fuzz", target, *arguments, *limit]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace")


def crashed(target: str, artifact: Path, said: str) -> None:
    """An input that ended its process, with the reason: as Python tells it if it is tried alone, or as libFuzzer said."""
    how = tried(target, artifact) or f"{said}not when it is tried alone"
    artifact.with_name(f"{artifact.name}.txt").write_text(how)


def tried(target: str, path: Path) -> str | None:
    """How an input breaks the law, in a process of its own; None if it keeps it."""
    command = [sys.executable, __file__, "--try", target, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return None if done.returncode == 0 else done.stdout or f"ended with {done.returncode}\n{done.stderr[-4000:]}"


# --- inside a process -------------------------------------------------------------------------------------------------


def confined() -> None:
    """This process ends with the one that started it, and takes no more memory than it should."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = taken + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def try_one(target: str, path: str) -> None:
    from tests.support.targets import broken

    broken(target, b"{}")  # imports the rest
    confined()
    faulthandler.enable()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    how = broken(target, Path(path).read_bytes())
    print(how or "", end="")
    raise SystemExit(how is not None)


def fuzz_one(target: str, *arguments: str) -> None:
    """libFuzzer with these arguments. What breaks the law is kept, the smallest input of each kind, and the search goes on."""
    atheris: Any = import_module("atheris")  # which is not everywhere
    with atheris.instrument_imports(include=["mmrope", "tests", *PARSERS[target]]):
        from tests.support import targets

        targets.broken(target, b"{}")  # imports the rest
        confined()
        findings = OUT / "findings"

        def test(data: bytes) -> None:
            how = targets.broken(target, data)
            if how is not None:
                kept = findings / f"{target}-{targets.signature(how)}"
                if not kept.exists() or len(data) < kept.stat().st_size:
                    kept.write_bytes(data)
                    kept.with_name(f"{kept.name}.txt").write_text(how)

        options: dict[str, Callable[..., bytes]] = {}
        if target in JSON:
            words = vocabulary(target)
            options["custom_mutator"] = functools.partial(mutated, words=words, by_bytes=lambda *given: atheris.Mutate(*given))
            options["custom_crossover"] = crossed
        atheris.Setup([os.environ.get("FUZZ_AGAIN", __file__), *arguments], test, **options)
        atheris.Fuzz()


# --- JSON -------------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 255, 65_536, 2**31, 2**63, 2**64, 10**400, 0.5, 1e-300, 1e308, -0.0),
    *(float("nan"), float("inf"), "", " ", "0", "1", "null", "\ud800", "\0", "é", "🙂", "<|im_end|>", "[" * 20_000),
    *(
        [],
        {},
        [[]],
        [0, 0, 0],
        {"": 0},
        "{{ messages }}",
        "{% for m in messages %}{{ m }}{% endfor %}",
        "{{ m.content | tojson }}",
    ),
]


def mutated(data: bytes, most: int, seed: int, *, words: list[str], by_bytes: Callable[[bytes, int], bytes]) -> bytes:
    """The object with some of its values changed; now and then other bytes."""
    chance = random.Random(seed)
    try:
        values = {"": json.loads(data)}
    except (ValueError, RecursionError):
        return by_bytes(data, most)
    if chance.random() < 0.02:
        return by_bytes(data, most)
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        inside, key = chance.choice(list(places(values)))
        change(values, inside, key, chance, words, by_bytes)
    made = json.dumps(values[""]).encode()
    return made if len(made) <= most else data


def change(values: Any, inside: Any, key: Any, chance: random.Random, words: list[str], by_bytes: Any) -> None:
    """Changes what stands at a place: it goes, becomes another value, one of elsewhere, twice, shorter, or is changed."""
    value: Any = inside[key]
    how = chance.randrange(8)
    if how == 0 and inside is not values:
        del inside[key]
    elif how == 1:
        inside[key] = copied(chance.choice(ODD))
    elif how == 2:
        other, place = chance.choice(list(places(values)))
        inside[key] = copied(other[place])
    elif how == 3 and isinstance(inside, list):
        inside.insert(key, copied(value))
    elif how == 3 and inside is not values:
        inside[chance.choice([*words, *inside])] = inside.pop(key) if chance.random() < 0.5 else copied(chance.choice(ODD))
    elif how == 4 and isinstance(value, (list, str)):
        front: Any = value[: chance.randrange(len(value) + 1)]
        inside[key] = front + value[chance.randrange(len(value) + 1) :]
    elif how == 5:
        inside[key] = chance.choice([[value], {chance.choice(words): value}, str(value), chance.choice(words)])
    elif isinstance(value, str):
        at, piece = chance.randrange(len(value) + 1), chance.choice([*words, "{{", "}}", "{%", "%}", "|", "<|", "\ud83d"])
        inside[key] = value[:at] + piece + value[at:]
        if how == 6:
            inside[key] = by_bytes(value.encode("utf-8", "replace"), len(value) + 16).decode("utf-8", "replace")
    elif isinstance(value, (int, float)):
        inside[key] = chance.choice(
            [value + 1, value - 1, -value, value * 2, value // 2 if value == value else 0, 1.0 * (value % 97)]
        )


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def places(values: Any) -> Iterator[tuple[Any, Any]]:
    """(what it stands in, its key or index) of everything in it."""
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], (dict, list)):
            yield from places(values[key])


def crossed(one: bytes, other: bytes, most: int, seed: int) -> bytes:
    """The first, with a part of the second in the place of one of its own: of equal key, if there is such a place."""
    chance = random.Random(seed)
    try:
        values, others = {"": json.loads(one)}, {"": json.loads(other)}
    except (ValueError, RecursionError):
        return one[:most]
    theirs = list(places(others))
    inside, key = chance.choice(list(places(values)))
    source, place = chance.choice([found for found in theirs if found[1] == key] or theirs)
    inside[key] = source[place]
    made = json.dumps(values[""]).encode()
    return made if len(made) <= most else one[:most]


def vocabulary(target: str) -> list[str]:
    """The names and short texts of the corpus."""
    found = {"content"}
    for path in (CORPUS / target).iterdir():
        found |= {text for text in re.findall(r'"((?:[^"\\]|\\.)*)"', path.read_text(errors="replace")) if len(text) < 40}
    return sorted(found)


# --- corpus -----------------------------------------------------------------------------------------------------------


def write_seeds(target: str, folder: Path) -> None:
    from tests.support.fuzz_seeds import seeds

    for n, content in enumerate(seeds(target)):
        (folder / f"seed-{n}").write_bytes(content)


def renew(target: str) -> None:
    """Makes a target's folder of tests/corpus anew."""
    kept = CORPUS / target
    with TemporaryDirectory() as folder:
        given, made, again = (Path(folder) / name for name in ("given", "made", "again"))
        given.mkdir()
        made.mkdir()
        write_seeds(target, given)
        for path in [*(OUT / "corpus" / target).glob("*"), *kept.glob("*")]:
            shutil.copy(path, given)
        for path in given.iterdir():
            if path.stat().st_size > FILE:
                path.unlink()
        mended = [
            (f"found-{path.name.rpartition('-')[2]}", path.read_bytes())
            for path in [*(OUT / "findings").glob(f"{target}-*"), *kept.glob("found-*")]
            if path.suffix != ".txt" and path.stat().st_size <= FILE and tried(target, path) is None
        ]
        again.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" --fuzz {target} "$@"\n')
        again.chmod(0o755)
        os.environ["FUZZ_AGAIN"] = str(again)  # libFuzzer starts itself anew to merge
        process = child(target, ["-merge=1", f"-max_len={FILE}", str(made), str(given)])
        _, said = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the corpus of {target} could not be merged:\n{said[-4000:]}")
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        total = 0
        for path in sorted(made.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
            total += path.stat().st_size
            if total <= KEPT:
                shutil.copy(path, kept / path.name[:12])
        for name, content in mended:
            (kept / name).write_bytes(content)
    files = list(kept.iterdir())
    print(f"{target}: {len(files)} files, {sum(path.stat().st_size for path in files):,} bytes")


if __name__ == "__main__":
    inside: dict[str, Callable[..., None]] = {"--try": try_one, "--fuzz": fuzz_one}
    if sys.argv[1:] and sys.argv[1] in inside:
        inside[sys.argv[1]](*sys.argv[2:])
    else:
        main()
