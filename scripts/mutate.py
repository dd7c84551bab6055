"""Would the tests see a mistake? Makes small ones in mmrope's code, one at a time, and runs the tests of the folder each is in.

    python scripts/mutate.py [--count 40] [--seed 0] [--folders positions encodings ...]

A mutation is drawn at random: a folder after the other, in it a place in the code. A comparison, a sum, a product, an `and` is
another, a number is one more, a condition is turned round, a `raise` is left out. It is caught if a test fails. The work is
done in a copy; what comes of each is saved to scripts/results/mutations.md at once, survivors with their lines.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

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
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "mutations.md")
    options = parser.parse_args()
    rng, rows, sound = random.Random(options.seed), [], set()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "mmrope"
        ignored = shutil.ignore_patterns(".venv*", ".git", "out", "__pycache__", ".pytest_cache", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=ignored)
        (copy / ".venv").symlink_to(ROOT / ".venv")  # which a test of adapters looks for
        for n in range(options.count):
            folder = options.folders[n % len(options.folders)]
            if folder not in sound:
                if _fails(copy, folder, ""):
                    raise SystemExit(f"the tests of mmrope/{folder} fail without a mutation: mend them first")
                sound.add(folder)
            files = sorted((copy / "mmrope" / folder).glob("*.py"))
            sites = [(path, site) for path in files for site in range(len(list(_sites(ast.parse(path.read_text())))))]
            path, site = rng.choice(sites)
            before = path.read_text()
            after, line, what = mutated(before, site)
            path.write_text(after)
            caught = _fails(copy, folder, path.stem)
            path.write_text(before)
            text = before.splitlines()[line - 1].strip().replace("|", "\\|")
            rows.append((str(path.relative_to(copy)), line, what, text[:90], caught))
            print(n + 1, *rows[-1], flush=True)
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


def _fails(copy: Path, folder: str, module: str) -> bool:
    """Whether a test fails, or never ends: those of the module first, then those of its folder."""
    first = copy / "tests" / folder / f"test_{module}.py"
    rest = (
        [f"tests/{folder}"] if folder else [str(path.relative_to(copy)) for path in sorted((copy / "tests").glob("test_*.py"))]
    )
    for tests in ([str(first.relative_to(copy))] if first.is_file() else [], [*rest, *ALSO.get(folder, ())]):
        if not tests:
            continue
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n",
            "2",
            "--dist",
            "worksteal",
            "-p",
            "no:cacheprovider",
            *tests,
        ]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        try:
            done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return True
        if done.returncode:
            return True
    return False


def _write(path: Path, rows: list[tuple[str, int, str, str, bool]], seed: int) -> None:
    caught = sum(row[-1] for row in rows)
    lines = [
        f"{caught} of {len(rows)} mutations caught; seed {seed}; Python {platform.python_version()}; {date.today()}; "
        "made by `python scripts/mutate.py`.",
        "",
        "| file | line | mutation | in | |",
        "|---|---|---|---|---|",
        *(
            f"| {file} | {line} | {what} | `{text}` | {'caught' if seen else '**survived**'} |"
            for file, line, what, text, seen in rows
        ),
    ]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
