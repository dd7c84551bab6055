"""The examples of docstrings: all run, every public name ends with one, and so do the methods that people look up first."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest
import torch

import mmrope
from tests.support import public

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
# users import these modules by name; they have no list of names in an __init__.pyi
MODULES = ["mmrope.prompting", "mmrope.adapters"]
MODULES += [f"mmrope.adapters.{name}" for name in ("attention", "replace", "rotary", "sglang", "transformers", "vllm")]
METHODS = {
    "mmrope.Segment": "text pad image frame video audio custom",
    "mmrope.Positions": "torch",
    "mmrope.Family": "image video replace to_dict from_dict rotary_spec",
    "mmrope.positions.AudioInVideo": "make",
    "mmrope.positions.Canvas": "make",
    "mmrope.VideoTiming": "from_metadata",
    "mmrope.positions.Row": "of join",
    "mmrope.positions.Packed": "take",
    "mmrope.RotarySpec": "rope nope axial mrope from_family scaled at_length to_dict from_dict",
    "mmrope.RotaryEmbedding": "forward rotate norm_rotate shift backend_for",
    "mmrope.encodings.Scaling": "to_dict from_dict",
    "mmrope.encodings.LearnedEmbedding": "resized",
    "mmrope.encodings.MixedRotary": "rotate",
    "mmrope.encodings.XPos": "rotate",
    "mmrope.Processor": "__call__ row normalize decode conversation parts save_pretrained from_pretrained",
    "mmrope.preprocess.ModelInputs": "to",
    "mmrope.preprocess.Video": "frames_at sample timing decode",
    "mmrope.VLM": "forward generate stream save_pretrained from_pretrained",
    "mmrope.vlm.VLMConfig": "to_dict from_dict",
    "mmrope.vlm.KVCache": "extend",
    "mmrope.vlm.Assistant": "from_pretrained stream answer",
    "mmrope.vlm.Chat": "answer stream",
}
"""Of public classes, the methods whose docstrings end with an example, too."""


def with_docstring() -> dict[str, object]:
    """Full name -> public function, class or method that must have an example. Constants, such as FAMILIES, need none."""
    found = {}
    for package, names in public.names().items():
        found |= {f"{package}.{name}": getattr(import_module(package), name) for name in names}
    for module in map(import_module, MODULES):
        own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
        found |= {f"{module.__name__}.{name}": value for name, value in own.items() if not name.startswith("_")}
    found = {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isroutine(value)}
    return found | {
        f"{name}.{method}": getattr(found[name], method) for name, methods in METHODS.items() for method in methods.split()
    }


NAMES = with_docstring()
FILES = sorted(
    info.name
    for info in pkgutil.walk_packages(mmrope.__path__, "mmrope.")
    if not info.name.startswith(("mmrope.cli", "mmrope.lab"))
)


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors of examples are small: on a busy machine threads would wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _nothing_is_written(tmp_path, monkeypatch):
    """Examples leave the working folder as it was: readers run them in theirs."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def examples_of(value: object, name: str, *, recurse: bool) -> list[doctest.DocTest]:
    # each docstring by itself, without its module's names: an example imports what it needs
    finder = doctest.DocTestFinder(recurse=recurse, exclude_empty=True)
    return [test for test in finder.find(value, name, globs={"__name__": "__main__"}) if test.examples]


def run(test: doctest.DocTest) -> None:
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(test, out=said.append)
    assert not result.failed, "".join(said)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_ends_with_an_example(name):
    tests = examples_of(NAMES[name], name, recurse=False)
    assert tests, f"the docstring of {name} has no example"
    [test] = tests
    after = doctest.DocTestParser().parse(test.docstring)[-1]  # an example, or the text behind the last one
    assert not str(after).strip(), f"the docstring of {name} does not end with its example: {after}"
    run(test)


@pytest.mark.parametrize("file", FILES)
def test_other_docstrings(file):
    """Of what is not public, and of methods that are not in the list."""
    known = {getattr(inspect.unwrap(value), "__doc__", None) for value in NAMES.values()}
    for test in examples_of(import_module(file), file, recurse=True):
        if test.docstring not in known:
            run(test)
