"""The rules of the house: what imports what, and what the package shows."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT, pytest_runtest_teardown

import mmrope

PACKAGE = ROOT / "mmrope"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "torch",
    "torchvision",
    "PIL",
    "pillow_heif",
    "av",
    "decord",
    "einops",
    "matplotlib",
    "transformers",
    "vllm",
    "tqdm",
    "typer",
}
# from top to bottom the way that data takes: a folder imports itself and what stands above it
ORDER = ["prompting", "positions", "encodings", "preprocess", "vlm", "adapters", "pictures", "figures", "lab", "cli"]


def imports(path, *, top_level_only):
    """Modules that a file imports: at module level alone, or anywhere; not for type checking alone."""
    tree = ast.parse(path.read_text())
    found, queue = set(), list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif not top_level_only or not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            queue += list(ast.iter_child_nodes(node))
        elif isinstance(node, ast.ClassDef):
            queue += node.body
    return found


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["mmrope", "mmrope.positions", "mmrope.encodings.spec"])
def test_positions_load_numpy_alone(module):
    assert not loaded_by(f"import {module}") & HEAVY


@pytest.mark.parametrize("path", sorted((PACKAGE / "positions").glob("*.py")), ids=lambda path: path.name)
def test_positions_import_numpy_and_the_standard_library(path):
    allowed = set(sys.stdlib_module_names) | {"numpy", "mmrope"}
    anywhere = {module.split(".")[0] for module in imports(path, top_level_only=False)}
    at_once = {module.split(".")[0] for module in imports(path, top_level_only=True)}
    assert at_once <= allowed
    assert anywhere <= allowed | {"torch"}  # Positions.torch


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_upstreams_are_never_imported(path):
    assert not {module.split(".")[0] for module in imports(path, top_level_only=False)} & {
        "transformers",
        "vllm",
        "sglang",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_upwards(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for module in imports(path, top_level_only=False):
        if module.startswith("mmrope."):
            assert ORDER.index(module.split(".")[1]) <= ORDER.index(room), f"{path.name} imports {module}"


def test_no_file_but_the_table_names_a_family():
    names = {row.name for row in mmrope.FAMILIES.values()}
    for path in FILES:
        if path.parent.name == "lab" or path.name in (
            "families.py",
            "patches.py",
            "processor.py",
            "cli.py",
            "data.py",
        ):  # the tables; three name a default
            continue
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & names, f"{path.name} asks for a family's name"


def test_every_public_name_is_there_and_documented():
    for name in mmrope.__all__:
        assert getattr(mmrope, name).__doc__ or name == "FAMILIES", name
    assert set(mmrope.__all__) == set(dir(mmrope))
    with pytest.raises(AttributeError, match="module 'mmrope' has no attribute 'Rope'"):
        mmrope.Rope  # noqa: B018


def test_versions_agree():
    assert f'version = "{mmrope.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {mmrope.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_pins_are_names_and_versions_alone():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert "==" in line
        assert "/" not in line


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="needs Linux's scheduler")
def test_no_worker_keeps_the_priority_that_the_encoder_of_av1_takes():
    with contextlib.suppress(PermissionError):  # of others than root, to whom the encoder's attempt is refused, too
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    pytest_runtest_teardown()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
