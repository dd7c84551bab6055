"""Would the tests see a mistake? Makes small ones in mmrope's code, one at a time, and runs the tests that reach them.

    python scripts/mutate.py [--count 200] [--seed 0] [--folders positions encodings preprocess adapters] [--again]

It needs coverage.py, which the extra `dev` brings, and fork: Linux or macOS.

A mutation is drawn at random: a folder after the other, in it a place in the code. A comparison, a sum, a product, an `and` is
another, a number is one more, a condition is turned round, a `raise` is left out.

Which tests run a line is measured once, on a few cases of each test and on all that are quick, and kept in out/mutate:
remove it to measure anew. A line that runs while a module is imported is reached by the tests of its module's file and
folder, too, and by all that run what its module has. For each mutation, tests that are newer than the measurement run first,
then those that reach its line, a case of each, the fastest first, in one process, until one fails. What survives a minute of
tests and is not explained is tried at the end with the others, and with the cases that were not measured.

A mutation is caught by a test that fails with it, fails again by itself, and passes without it; or that takes more than ten
times as long as it was measured, and passes in a quarter of that without it. Those that change nothing are listed with the
reason, which equivalent_mutants.json beside this script has.

The work is done in copies. What comes of each is saved at once in scripts/results/mutations.json, as a table in
mutations.md, and a run that was stopped continues. With --again, what survived is tried again, in the code as it is now.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import gc
import hashlib
import importlib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scripts.reports import read_result, write_result  # noqa: E402

RESULTS, EQUIVALENT, OUT = ROOT / "scripts" / "results", ROOT / "scripts" / "equivalent_mutants.json", ROOT / "out" / "mutate"
FOLDERS = ("positions", "encodings", "preprocess", "adapters", "checkpoints", "vlm", "view", "lab")
ALSO = ("checkpoints",)
"""Tests that are about the others' code, too."""
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.Mult},
}
CASES, QUICK = 4, 0.15  # of each test are measured; all of those that take less than so many seconds
SOON = 60.0  # seconds of tests that run first
TIMES, COMPUTING, WAITING = (
    10.0,
    20.0,
    240.0,
)  # a test that never ends takes more than so many times its time, and these seconds
MEMORY = 12 << 30  # a mistake may ask for all that there is
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
NOT_BEFORE = {"pytest", "_pytest", "pluggy", "hypothesis", "xdist", "execnet", "pytest_randomly", "coverage"}
"""What pytest loads itself, once a process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", nargs="+", default=FOLDERS[:4], choices=FOLDERS)
    parser.add_argument("--again", action="store_true", help="also those that survived")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    OUT.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(OUT / "copies", ignore_errors=True)
    tests = [f"tests/{folder}" for folder in dict.fromkeys([*options.folders, *ALSO])]
    _load_others(tests)
    for folder in tests:
        _measure(folder)
    report = _report(options.count, options.seed, options.folders)
    rows: list[dict[str, Any]] = report["mutations"]
    for row in rows:
        if options.again and not row["caught"]:
            row["caught"] = None
    for whole in (False, True):
        todo = [
            n
            for n, row in enumerate(rows)
            if row["caught"] is None or (whole and _outcome(row) == "survived" and not row["whole"])
        ]
        for n, caught in _tried(rows, todo, whole):
            rows[n] |= {"caught": caught, "whole": whole}
            print(n, *rows[n].values(), flush=True)
            _write(report)
    _write(report)


# --- mutations --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a mistake is made: its number in the file, and what is known by the text of its line, wherever that moves."""

    number: int
    line: int
    text: str
    what: str
    lines: range
    """Those of its statement, or of the statement's head."""


def places(code: str) -> list[Place]:
    """Every place that a mutation can be made at. Where a line and what is done to it occur again, `what` says which it is."""
    found, seen, text = [], Counter[tuple[str, str]](), code.splitlines()
    for number, (node, _, statement) in enumerate(_sites(ast.parse(code))):
        key = text[node.lineno - 1].strip(), _what(node)
        seen[key] += 1
        body = getattr(statement, "body", None)
        end = body[0].lineno if body else (statement.end_lineno or 0) + 1
        lines = range(statement.lineno, max(end, statement.lineno + 1))
        found.append(Place(number, node.lineno, key[0], key[1] + (f", no. {seen[key]}" if seen[key] > 1 else ""), lines))
    return found


def mutated(code: str, number: int) -> str:
    """The code with the mutation of this number."""
    tree = ast.parse(code)
    node, parent, _ = list(_sites(tree))[number]
    if isinstance(node, ast.Raise):
        for _, block in ast.iter_fields(parent):
            if isinstance(block, list) and node in block:
                block[:] = [ast.copy_location(ast.Pass(), node) if each is node else each for each in block]
    elif isinstance(node, (ast.If, ast.IfExp)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Constant):
        node.value += 1  # pyright: ignore[reportOperatorIssue]
    elif isinstance(node, ast.Compare):
        node.ops[:1] = [OTHER[_operator(node)]()]  # pyright: ignore[reportArgumentType, reportCallIssue]
    else:
        node.op = OTHER[_operator(node)]()  # pyright: ignore[reportAttributeAccessIssue]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _sites(tree: ast.AST) -> Iterator[tuple[Any, ast.AST, ast.stmt]]:
    """(node, its parent, the statement that it is in or is) of every place."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        operator = isinstance(node, (ast.Compare, ast.BoolOp, ast.BinOp)) and _operator(node) in OTHER
        number = isinstance(node, ast.Constant) and type(node.value) is int
        if operator or number or isinstance(node, (ast.If, ast.IfExp, ast.Raise)):
            statement = node
            while not isinstance(statement, ast.stmt):
                statement = parents[statement]
            yield node, parents[node], statement


def _operator(node: ast.Compare | ast.BoolOp | ast.BinOp) -> type[ast.AST]:
    return type(node.ops[0] if isinstance(node, ast.Compare) else node.op)


def _what(node: Any) -> str:
    if isinstance(node, ast.Raise):
        return "raise left out"
    if isinstance(node, (ast.If, ast.IfExp)):
        return "condition turned round"
    if isinstance(node, ast.Constant):
        return f"{node.value} -> {node.value + 1}"  # pyright: ignore[reportOperatorIssue]
    return f"{_operator(node).__name__} -> {OTHER[_operator(node)].__name__}"


# --- pytest, in a process that has what others wrote already ----------------------------------------------------------


def _load_others(tests: list[str]) -> None:
    """Imports the modules of others that the tests need, which takes longer than most tests, and from here on once."""
    names = OUT / "modules.json"
    if not names.is_file():
        _pytest(ROOT, [*tests, "--collect-only"], _Modules(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in json.loads(names.read_text()):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


@dataclass(eq=False)
class _Modules:
    """A plugin that writes down the names of the modules of others."""

    path: Path

    def pytest_unconfigure(self) -> None:
        known = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
        others = [name for name, path in known.items() if "site-packages" in path and not _early(name)]
        self.path.write_text(json.dumps(others))


def _early(name: str) -> bool:
    return name.partition(".")[0] in NOT_BEFORE or name.startswith("_hypothesis")


def _pytest(place: Path, arguments: list[str], plugin: object) -> int:
    """The exit code of pytest in a copy of the repository; less than 0: the signal that ended it."""
    if not (pid := os.fork()):
        code = 70
        try:
            os.setsid()  # the processes that tests start end with it
            os.chdir(place)
            sys.path[0] = os.environ["PYTHONPATH"] = str(place)
            for standard in (1, 2):
                os.dup2(os.open(OUT / f"{place.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), standard)
            import resource  # not on every system, and the tests read this file

            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            _end_after(5.0)
            off = [f"-pno:{name}" for name in ("randomly", "xdist", "cacheprovider")]
            code = pytest.main([*off, "-Wignore::pytest.PytestAssertRewriteWarning", *arguments], plugins=[plugin])
        except BaseException:  # whatever it is, it is in the log
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(code))
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def _end_after(seconds: float, share: float = 1.0) -> None:
    """Ends this process if what begins now takes much longer than these seconds. How long it computes counts, as a busy machine
    does not change that; what waits for ever computes nothing, and has longer."""
    signal.setitimer(signal.ITIMER_PROF, share * (COMPUTING + TIMES * seconds))
    signal.setitimer(signal.ITIMER_REAL, share * (WAITING + TIMES * seconds))


# --- which tests run a line -------------------------------------------------------------------------------------------


def _measure(tests: str) -> None:
    """Of the tests in a folder, a few cases each, and then the other cases of those that are quick."""
    path = OUT / tests.replace("/", "-")
    if path.with_suffix(".json").is_file():
        return
    path.with_suffix(".coverage").unlink(missing_ok=True)
    measured: dict[str, Any] = {"seconds": {}}
    for _ in range(2):
        code = _pytest(ROOT, [tests], _Measure(path, measured["seconds"]))
        if code not in (0, 1, 5):
            raise SystemExit(f"pytest ended with {code}: {OUT / ROOT.name}.log says why")
        measured = json.loads(path.with_suffix(".part").read_text())
    path.with_suffix(".part").rename(path.with_suffix(".json"))


class _Measure:
    """A plugin that runs tests and writes down which lines each runs and how long it takes."""

    def __init__(self, path: Path, seconds: dict[str, float | None]) -> None:
        self.path, self.seconds = path, seconds

    def pytest_configure(self) -> None:
        import coverage

        self.coverage = coverage.Coverage(
            self.path.with_suffix(".coverage"), source=["mmrope"], config_file=False, messages=False
        )
        self.coverage.set_option("run:relative_files", True)
        self.coverage.load()
        self.coverage.start()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        tests: dict[str, list[pytest.Item]] = {}
        for item in items:
            tests.setdefault(_function(item.nodeid), []).append(item)
        if not self.seconds:
            self.seconds = dict.fromkeys(item.nodeid for item in items)
            chosen = [found[n * (len(found) - 1) // (CASES - 1)] for found in tests.values() for n in range(CASES)]
        else:
            means = _means(self.seconds)
            quick = (found for test, found in tests.items() if means.get(test, QUICK) < QUICK)
            chosen = [item for found in quick for item in found if self.seconds[item.nodeid] is None]
        items[:] = dict.fromkeys(chosen)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.skipped:
            self.seconds[report.nodeid] = (self.seconds[report.nodeid] or 0.0) + report.duration

    def pytest_unconfigure(self) -> None:
        self.coverage.stop()
        self.coverage.save()
        self.path.with_suffix(".part").write_text(json.dumps({"seconds": self.seconds, "code": _digests()}))


def _function(test: str) -> str:
    return test.partition("[")[0]


def _means(seconds: dict[str, float | None]) -> dict[str, float]:
    """By test, of the cases that were measured."""
    known: dict[str, list[float]] = {}
    for test, took in seconds.items():
        if took is not None:
            known.setdefault(_function(test), []).append(took)
    return {test: mean(took) for test, took in known.items()}


def _digests() -> dict[str, str]:
    """Of the files of code and tests."""
    files = (path for folder in ("mmrope", "tests") for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Reach:
    """What was measured."""

    def __init__(self) -> None:
        self.parts = [
            (path.with_suffix(".coverage"), json.loads(path.read_text())) for path in sorted(OUT.glob("tests-*.json"))
        ]
        measured = {test: seconds for _, part in self.parts for test, seconds in part["seconds"].items()}
        means, self.now = _means(measured), _digests()
        folders = {test.partition("::")[0].rpartition("/")[0] for test in measured}
        known = {file: digest for _, part in self.parts for file, digest in part["code"].items()}
        changed = (file for file, digest in self.now.items() if known.get(file) != digest)
        self.changed = [file for file in changed if file.rpartition("/")[0] in folders and "/test_" in file]
        """Files with tests that were not measured, or were others."""
        self.measured = {test for test, seconds in measured.items() if seconds is not None}
        self.seconds = {test: means.get(_function(test), 1.0) if took is None else took for test, took in measured.items()}
        """Of every test; of a case that was not measured those of the others."""

    def tests(self, file: str, lines: range, *, whole: bool) -> list[str]:
        """Those that reach these lines of a file, a case of each test after the other, the fastest first: as many as take no
        longer than SOON; with `whole` the rest, and the cases that were not measured."""
        from coverage import CoverageData

        in_file, in_lines = set[str](), set[str]()
        own = f"tests/{Path(file).parent.name}/test_{Path(file).stem}.py"
        for path, part in self.parts:
            data = CoverageData(str(path))
            data.read()
            contexts = data.contexts_by_lineno(file)
            in_file.update(*contexts.values())
            if part["code"].get(file) == self.now[file]:  # else the lines are others'
                in_lines.update(*(contexts.get(line, ()) for line in lines))
        others = set[str]()
        if "" in in_lines or not in_lines:
            others = in_file | {test for test in self.measured if test.startswith(own.rpartition("/")[0] + "/")}
        reached, turn = [], Counter[str]()
        for test in sorted((in_lines | others) & set(self.seconds), key=self.seconds.__getitem__):
            turn[_function(test)] += 1
            place = 0 if test in in_lines else 1 if test.startswith(own) else 2
            reached.append((place, turn[_function(test)], self.seconds[test], test))
        reached = [test for *_, test in sorted(reached)]
        soon = sum(total <= SOON for total in itertools.accumulate(self.seconds[test] for test in reached))
        if not whole:
            return reached[:soon]
        functions = {_function(test) for test in reached}
        cases = (test for test in self.seconds if test not in self.measured and _function(test) in functions)
        return reached[soon:] + sorted(cases, key=self.seconds.__getitem__)


# --- the trial --------------------------------------------------------------------------------------------------------


def _tried(rows: list[dict[str, Any]], todo: list[int], whole: bool) -> Iterator[tuple[int, str]]:
    """(number, what caught it) of the mutations to do, as they come: a process for each core."""
    (tasks, give), (results, tell) = os.pipe(), os.pipe()
    lanes = []
    for _ in range(os.cpu_count() or 1):
        if not (pid := os.fork()):
            try:
                os.close(give)
                lane = _Lane()
                while number := os.read(tasks, 4):
                    n = int.from_bytes(number, "big")
                    os.write(tell, json.dumps([n, lane.caught(rows[n], whole=whole)]).encode() + b"\n")
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)
        lanes.append(pid)
    for end in (tasks, tell):
        os.close(end)
    with os.fdopen(give, "wb") as queue:
        queue.write(b"".join(n.to_bytes(4, "big") for n in todo))
    with os.fdopen(results) as told:
        for line in told:
            n, caught = json.loads(line)
            yield n, caught
    for pid in lanes:
        os.waitpid(pid, 0)


class _Lane:
    """A copy of the repository, and what runs in it."""

    def __init__(self) -> None:
        self.place, self.reach, self.flaky = OUT / "copies" / str(os.getpid()), Reach(), set[str]()
        self.clock = 0
        ignored = shutil.ignore_patterns(".venv*", ".git", "out", "__pycache__", ".pytest_cache", ".hypothesis")
        shutil.copytree(ROOT, self.place, ignore=ignored)
        (self.place / ".venv").symlink_to(ROOT / ".venv")  # which a test of adapters looks for

    def caught(self, row: dict[str, Any], *, whole: bool) -> str:
        """What catches a mutation, or that its code is gone; "" if nothing does."""
        before = (self.place / row["file"]).read_text()
        place = next((place for place in places(before) if (place.text, place.what) == (row["text"], row["mutation"])), None)
        if place is None:
            return GONE
        after = mutated(before, place.number)
        tests = self.reach.tests(row["file"], place.lines, whole=whole)
        changed = [] if whole else self.reach.changed
        while True:
            self._write(row["file"], after)
            test, never_ends = self._first_failure([*changed, *tests], fresh=not whole)
            again = test and (never_ends or self._first_failure([test])[0])
            self._write(row["file"], before)
            if not test:
                return ""
            if again and not self._first_failure([test], share=0.25 if never_ends else 1.0)[0]:
                return "never ends: " * never_ends + "not collected: " * ("::" not in test) + test
            if "::" not in test or test in self.flaky:
                raise RuntimeError(f"{test} cannot be run: {OUT / self.place.name}.log says why")
            self.flaky.add(test)

    def _write(self, file: str, code: str) -> None:
        """Python takes a compiled file for another's if the times are in the same second."""
        (self.place / file).write_text(code)
        self.clock += 1
        os.utime(self.place / file, (self.clock, self.clock))

    def _first_failure(self, tests: list[str], *, fresh: bool = False, share: float = 1.0) -> tuple[str, bool]:
        """The test that fails, or the file that cannot be imported, and whether it never ended; "" if all pass."""
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        log = self.place.with_suffix(".txt")
        log.unlink(missing_ok=True)
        watch = _Watch(
            log, {test: n for n, test in enumerate(tests) if test not in self.flaky}, self.reach.seconds, fresh, share
        )
        code = _pytest(self.place, ["-x", *files], watch)
        lines = [line.split(" ", 1) for line in log.read_text().splitlines()] if log.is_file() else []
        failed = [test for word, test in lines if word == "failed" and test not in self.flaky]
        if failed or code in (0, 1, 5):
            return (failed[0] if failed else ""), False
        return (lines[-1][1] if lines else files[0]), -code in (signal.SIGPROF, signal.SIGALRM)


@dataclass(eq=False)
class _Watch:
    """A plugin that runs the tests that are asked for, in their order, and writes down how far they are."""

    log: Path
    order: dict[str, int]
    seconds: dict[str, float]
    fresh: bool
    """Whether tests that were never measured run, too, before the others."""
    share: float

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = {item.nodeid: -1 for item in items if self.fresh and item.nodeid not in self.seconds} | self.order
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say("begins", nodeid)
        _end_after(self.seconds.get(nodeid, 1.0), self.share)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._say("failed", report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._say("failed", report.nodeid)

    def _say(self, word: str, test: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{word} {test}\n")


# --- what comes of it -------------------------------------------------------------------------------------------------

GONE = "gone"


def _report(count: int, seed: int, folders: list[str]) -> dict[str, Any]:
    """What was begun with these options, or what they draw."""
    path, asked = RESULTS / "mutations.json", {"count": count, "seed": seed, "folders": list(folders)}
    begun = read_result(path, "mutations") if path.is_file() else {}
    if {key: begun.get(key) for key in asked} == asked:
        return begun
    rng, drawn = random.Random(seed), []
    for n, folder in enumerate(folders):
        found = [
            {"file": str(path.relative_to(ROOT)), "line": place.line, "text": place.text, "mutation": place.what}
            for path in sorted((ROOT / "mmrope" / folder).glob("*.py"))
            for place in places(path.read_text())
        ]
        drawn.append(rng.sample(found, (count - n + len(folders) - 1) // len(folders)))
    turns = [row for turn in itertools.zip_longest(*drawn) for row in turn if row]
    return {**asked, "mutations": [{**row, "caught": None, "whole": False} for row in turns]}


def _write(report: dict[str, Any]) -> None:
    rows = report["mutations"]
    kinds = ("caught", "equivalent", "gone", "survived", "not tried")
    by_folder = {
        folder: Counter(_outcome(row) for row in rows if row["file"].split("/")[1] == folder) for folder in report["folders"]
    }
    figures = {kind: sum(counts[kind] for counts in by_folder.values()) for kind in kinds}
    report |= {
        **figures,
        "by_folder": {folder: {kind: counts[kind] for kind in kinds} for folder, counts in by_folder.items()},
        "date": str(date.today()),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("mmrope", "pytest", "coverage", "numpy", "torch")},
        },
    }
    report["mutations"] = report.pop("mutations")  # the figures stand before them
    write_result(RESULTS / "mutations.json", report)
    versions = "".join(f"{name} {number}; " for name, number in report["versions"].items())
    lines = [
        f"Of {len(rows)} mutations {', '.join(f'{number} {kind}' for kind, number in figures.items())}. Seed {report['seed']}; "
        f"{report['date']}; {versions}made by `python scripts/mutate.py`.",
        *_table(
            "by folder", ["folder", *kinds], [[folder, *counts.values()] for folder, counts in report["by_folder"].items()]
        ),
    ]
    for kind, last in (("survived", ""), ("equivalent", "why it changes nothing"), ("gone", ""), ("caught", "by")):
        chosen = [
            [
                row["file"],
                row["line"],
                row["mutation"],
                f"`{row['text'][:90]}`",
                row["caught"] or _explained().get(_key(row), ""),
            ]
            for row in rows
            if _outcome(row) == kind
        ]
        lines += _table(kind, ["file", "line", "mutation", "in", last], chosen) if chosen else []
    write_result(RESULTS / "mutations.md", "\n".join(lines) + "\n")


def _outcome(row: dict[str, Any]) -> str:
    if row["caught"]:
        return "gone" if row["caught"] == GONE else "caught"
    return "not tried" if row["caught"] is None else "equivalent" if _key(row) in _explained() else "survived"


@functools.cache
def _explained() -> dict[tuple[str, str, str], str]:
    """Why mutations change nothing."""
    return {_key(row): row["why"] for row in json.loads(EQUIVALENT.read_text())}


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["file"], row["text"], row["mutation"]


def _table(title: str, head: list[str], rows: list[list[Any]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [
        "",
        f"## {title.capitalize()}",
        "",
        *("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells),
    ]


if __name__ == "__main__":
    main()
