"""Would the tests see a mistake? Makes small ones in mmrope's code, one at a time, and runs the tests of the folder each is in.

    python scripts/mutate.py [--count 40] [--seed 0] [--folders positions encodings ...]

A mutation is drawn at random: a folder after the other, in it a place in the code. A comparison, a sum, a product, an `and` is
another, a number is one more, a condition is turned round, a `raise` is left out. It is caught by a test that fails with it,
fails again by itself, and passes without it. The work is done in a copy; what comes of each is saved at once to
scripts/results/mutations.md, survivors with their lines, and a run that was stopped continues.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("positions", "encodings", "preprocess", "vlm", "adapters", "view", "lab", "")
ALSO = {"positions": ["tests/adapters"], "encodings": ["tests/adapters"], "": ["tests/vlm/test_small.py"]}
"""Tests outside a folder that are about it, too."""
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.Mult},
}
SECONDS = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", nargs="+", default=FOLDERS, choices=FOLDERS)
    parser.add_argument("--again", action="store_true", help="also those that survived the run that was stopped")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "mutations.md")
    options = parser.parse_args()
    rng, done = random.Random(options.seed), ROOT / "out" / f"mutations-{options.seed}.json"
    rows = json.loads(done.read_text()) if done.is_file() else []  # of a run that was stopped
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "mmrope"
        ignored = shutil.ignore_patterns(".venv*", ".git", "out", "__pycache__", ".pytest_cache", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=ignored)
        (copy / ".venv").symlink_to(ROOT / ".venv")  # which a test of adapters looks for
        for n in range(options.count):
            folder = options.folders[n % len(options.folders)]
            files = sorted((copy / "mmrope" / folder).glob("*.py"))
            sites = [(path, site) for path in files for site in range(len(list(_sites(ast.parse(path.read_text())))))]
            path, site = rng.choice(sites)
            if n < len(rows) and (rows[n][-1] or not options.again):
                continue
            before = path.read_text()
            after, line, what = mutated(before, site)
            caught = _caught(copy, folder, path, before, after)
            text = before.splitlines()[line - 1].strip().replace("|", "\\|")
            rows[n : n + 1] = [[str(path.relative_to(copy)), line, what, text[:90], caught]]
            print(n + 1, *rows[n], flush=True)
            done.parent.mkdir(exist_ok=True)
            done.write_text(json.dumps(rows))
            _write(options.out, rows, options.seed)


def _sites(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    """(node, its parent) of every place that a mutation can be made at."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        operator = isinstance(node, (ast.Compare, ast.BoolOp, ast.BinOp)) and _operator(node) in OTHER
        number = isinstance(node, ast.Constant) and type(node.value) is int
        if operator or number or isinstance(node, (ast.If, ast.IfExp, ast.Raise)):
            yield node, parents[node]


def _operator(node: ast.Compare | ast.BoolOp | ast.BinOp) -> type[ast.AST]:
    return type(node.ops[0] if isinstance(node, ast.Compare) else node.op)


def mutated(code: str, site: int) -> tuple[str, int, str]:
    """The code with its mutation of this number, the line, and what was done."""
    tree = ast.parse(code)
    node, parent = list(_sites(tree))[site]
    assert isinstance(node, (ast.stmt, ast.expr))
    assert parent is not None
    if isinstance(node, ast.Raise):
        what = "raise left out"
        for _, block in ast.iter_fields(parent):
            if isinstance(block, list) and node in block:
                block[block.index(node)] = ast.copy_location(ast.Pass(), node)
    elif isinstance(node, (ast.If, ast.IfExp)):
        what = "condition turned round"
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        what = f"{node.value} -> {node.value + 1}"
        node.value += 1
    else:
        assert isinstance(node, (ast.Compare, ast.BoolOp, ast.BinOp))
        new = OTHER[_operator(node)]()
        what = f"{_operator(node).__name__} -> {type(new).__name__}"
        if isinstance(node, ast.Compare):
            assert isinstance(new, ast.cmpop)
            node.ops[0] = new
        else:
            node.op = new  # pyright: ignore[reportAttributeAccessIssue]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n", node.lineno, what


def _caught(copy: Path, folder: str, path: Path, before: str, after: str) -> str:
    """The test that catches the mutation of a file, "" if none does: those of the module are tried first, then those of its
    folder."""
    first = copy / "tests" / folder / f"test_{path.stem}.py"
    rest = [f"tests/{folder}"] if folder else [str(p.relative_to(copy)) for p in sorted((copy / "tests").glob("test_*.py"))]
    flaky: list[str] = []
    try:
        for tests in ([str(first.relative_to(copy))] if first.is_file() else [], [*rest, *ALSO.get(folder, ())]):
            while tests:
                path.write_text(after)
                test = _first_failure(copy, [*tests, *(f"--deselect={name}" for name in flaky)])
                if not test:
                    break
                if test in _LOST:
                    return test
                again = _first_failure(copy, [test])
                path.write_text(before)
                if again and not _first_failure(copy, [test]):
                    return test
                flaky.append(test)
        return ""
    finally:
        path.write_text(before)


_LOST = ("never ends", "cannot be imported")


def _first_failure(copy: Path, tests: list[str]) -> str:
    """The test that fails, or why none could run; "" if all pass."""
    at_once = ["-n", "2", "--dist", "worksteal"] if len(tests) > 1 or "::" not in tests[0] else ["-n", "0"]
    command = [sys.executable, "-m", "pytest", "-x", *at_once, "-p", "no:cacheprovider", "-rfE", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return _LOST[0]
    if done.returncode == 0:
        return ""
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", done.stdout, flags=re.MULTILINE)
    return failed[0] if failed else _LOST[1]


def _write(path: Path, rows: list[list[Any]], seed: int) -> None:
    caught = sum(bool(row[-1]) for row in rows)
    lines = [
        f"{caught} of {len(rows)} mutations caught; seed {seed}; Python {platform.python_version()}; {date.today()}; "
        "made by `python scripts/mutate.py`.",
        "",
        "| file | line | mutation | in | caught by |",
        "|---|---|---|---|---|",
        *(
            f"| {file} | {line} | {what} | `{text}` | {seen.partition('::')[2] or seen or '**nothing**'} |"
            for file, line, what, text, seen in rows
        ),
    ]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
