"""The rules of the house: what imports what, and what the package shows."""

from __future__ import annotations

import ast
import contextlib
import graphlib
import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from importlib import import_module

import pytest

import mmrope
from mmrope.extras import BROUGHT_BY
from scripts import mutate
from tests.conftest import pytest_runtest_teardown
from tests.support import ROOT, public

PACKAGE = ROOT / "mmrope"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "torch",
    "torchvision",
    "PIL",
    "pillow_heif",
    "simplejpeg",
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
ORDER = [
    "extras",
    "records",
    "files",
    "prompting",
    "positions",
    "encodings",
    "checkpoints",
    "preprocess",
    "vlm",
    "adapters",
    "view",
    "lab",
    "dumps",
    "arguments",
    "cli",
    "__main__",
]


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


def test_no_module_imports_itself_by_way_of_others():
    """Also for types, and also in functions."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        packages = {package for package in found if any(other.startswith(f"{package}.") for other in found & set(modules))}
        graph[name] = (found & set(modules)) - packages - {name}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_one_name_means_one_thing():
    """Functions, classes and constants of all modules; commands are named as what they call, experiments have two parts each."""
    places = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [getattr(node, "name", "")] + [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if name and not name.startswith("_") and path.name != "cli.py" and name not in ("EXPERIMENT", "cell"):
                    places.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_file_but_the_table_names_a_family():
    names = {row.name for row in mmrope.FAMILIES.values()}
    for path in FILES:
        if path.parent.name == "lab" or path.name in (
            "families.py",
            "patches.py",
            "measure.py",
            "parts.py",
            "cli.py",
            "data.py",
            "released.py",
        ):  # the tables; three name a default
            continue
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & names, f"{path.name} asks for a family's name"


TABLES_THAT_GROW = {"REGISTRY"}  # by register_family; FAMILIES shows it


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if "MappingProxyType" in path.read_text() or ": dict[" in path.read_text()],
    ids=lambda path: path.stem,
)
def test_tables_cannot_be_written_to(path):
    """An assignment would change what everyone gets."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    module = import_module(name.removesuffix(".__init__"))
    tables = {key: value for key, value in vars(module).items() if key.isupper() and not key.startswith("_")}
    writable = [key for key, value in tables.items() if isinstance(value, dict) and key not in TABLES_THAT_GROW]
    assert not writable


def test_the_public_names_are_those_of_the_list():
    """tests/references/public_names.txt was reviewed when it changed: a name that goes, or a parameter, breaks its users."""
    assert public.lines() == public.FILE.read_text().splitlines(), (
        "the public names changed; docs/stability.md says what may: then write the list anew, python -m tests.support.public"
    )


def test_every_public_name_is_documented():
    for package, names in public.names().items():
        for name in names:
            value = getattr(import_module(package), name)
            assert inspect.getdoc(value) or isinstance(value, Mapping), f"{package}.{name}"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'mmrope' has no attribute 'Rope'"):
        mmrope.Rope  # noqa: B018


def test_names_are_kept_after_their_first_use():
    code = "import mmrope; assert 'Segment' not in vars(mmrope); mmrope.Segment; assert 'Segment' in vars(mmrope)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_an_extra_would_bring_is_named():
    """In a Python that has numpy alone."""
    code = f"""
        import sys

        class Nothing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {sorted(BROUGHT_BY)}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Nothing())
        import mmrope, mmrope.encodings, mmrope.preprocess, mmrope.view, mmrope.vlm

        p = mmrope.position_ids([mmrope.Segment.text(3), mmrope.Segment.image(h=2, w=2)], "qwen2_vl")
        assert p.ids[1, 0].tolist() == [0, 1, 2, 3, 3, 4, 4]
        mmrope.check(p.ids, p.rows, "qwen2_vl")
        mmrope.RotarySpec.from_family("qwen2_vl").scaled(mmrope.YaRN(4.0, 32768))
        talk = [{{"role": "user", "content": "hello"}}]
        for asked in [
            lambda: mmrope.RotaryEmbedding,
            lambda: mmrope.VLM,
            lambda: mmrope.preprocess.load_image,
            lambda: p.torch(),
            lambda: mmrope.Processor()(talk),
            lambda: mmrope.Processor().parts([{{"type": "video", "video": "clip.mp4"}}]),
            lambda: mmrope.view.plot_ids(p),
        ]:
            try:
                asked()
            except ImportError as error:
                print(error)

        import inspect
        for package in (mmrope, mmrope.positions, mmrope.encodings, mmrope.preprocess, mmrope.view, mmrope.vlm):
            inspect.getmembers(package)  # as help() does
            exec(f"from {{package.__name__}} import *", {{}})
        assert "RotaryEmbedding" not in dir(mmrope) and "RotarySpec" in dir(mmrope) and "__version__" in dir(mmrope)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "mmrope.RotaryEmbedding needs torch: pip install 'mmrope[torch]'",
        "mmrope.VLM needs torch: pip install 'mmrope[torch]'",
        "mmrope.preprocess.load_image needs PIL: pip install 'mmrope[media]'",
        "Positions.torch needs torch: pip install 'mmrope[torch]'",
        "a processor's output needs torch: pip install 'mmrope[torch]'",
        "a video needs av: pip install 'mmrope[media]'",
        "a figure needs matplotlib: pip install 'mmrope[viz]'",
    ]


def test_every_module_of_others_is_brought_by_an_extra():
    used_where_the_user_has_them = {"torchcodec", "kernels", "pyarrow"}
    allowed = {"mmrope", "numpy", *used_where_the_user_has_them, *sys.stdlib_module_names}
    for path in FILES:
        assert {module.split(".")[0] for module in imports(path, top_level_only=False)} <= allowed | set(BROUGHT_BY), path


def test_mutations_that_are_explained_are_of_code_that_stands():
    for row in json.loads(mutate.EQUIVALENT.read_text()):
        there = {(place.text, place.what) for place in mutate.places((ROOT / row["file"]).read_text())}
        assert (row["text"], row["mutation"]) in there, row


def test_a_mutation_changes_one_place():
    code = "def f(a, b):\n    if a < b and a != 1:\n        raise ValueError(a + 3)\n    return a\n"
    made = {place.what: mutate.mutated(code, place.number) for place in mutate.places(code)}
    assert {what: "".join(new.split("\n")) for what, new in made.items()} == {
        "condition turned round": "def f(a, b):    if not (a < b and a != 1):        raise ValueError(a + 3)    return a",
        "And -> Or": "def f(a, b):    if a < b or a != 1:        raise ValueError(a + 3)    return a",
        "Lt -> LtE": "def f(a, b):    if a <= b and a != 1:        raise ValueError(a + 3)    return a",
        "NotEq -> Eq": "def f(a, b):    if a < b and a == 1:        raise ValueError(a + 3)    return a",
        "1 -> 2": "def f(a, b):    if a < b and a != 2:        raise ValueError(a + 3)    return a",
        "raise left out": "def f(a, b):    if a < b and a != 1:        pass    return a",
        "Add -> Sub": "def f(a, b):    if a < b and a != 1:        raise ValueError(a - 3)    return a",
        "3 -> 4": "def f(a, b):    if a < b and a != 1:        raise ValueError(a + 4)    return a",
    }


def test_versions_agree():
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
