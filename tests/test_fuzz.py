"""Untrusted bytes: the corpus keeps its laws, what breaks one is told, and scripts/fuzz.py keeps what it finds. Nothing here needs
atheris, whose part a stand-in plays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from scripts import fuzz
from tests.support import ROOT, targets
from tests.support.fuzz_seeds import seeds
from tests.support.targets import CORPUS, TARGETS, Choices, broken, signature

FILES = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_keeps_its_law(target):
    """What was found once, too: tests/corpus/<target>/found-*."""
    files = [path for path in FILES if path.parent.name == target]
    assert len(files) > 3
    assert {path.name: how for path in files if (how := broken(target, path.read_bytes()))} == {}


@pytest.mark.parametrize("target", TARGETS)
def test_the_seeds_keep_their_law(target):
    assert [how for seed in seeds(target) if (how := broken(target, seed))] == []


def test_the_corpus_is_small():
    assert {path.parent.name for path in FILES} == set(TARGETS) == set(fuzz.TARGETS)
    assert sum(path.stat().st_size for path in FILES) < 400_000
    assert max(path.stat().st_size for path in FILES) <= fuzz.FILE


def test_what_breaks_a_law_is_told(monkeypatch):
    def planted(data):
        if data == b"refused":
            raise ValueError("no")
        if data == b"overflow":
            np.float32(1e38) * np.float32(10)
        if data == b"panic":
            raise BaseException("of Rust")
        if data[:1] == b"/":
            return 1 / len(data[1:])
        return None

    monkeypatch.setitem(TARGETS, "segments", planted)
    assert broken("segments", b"sound") is broken("segments", b"refused") is None
    assert broken("segments", b"panic").endswith("BaseException: of Rust\n")
    assert "RuntimeWarning: overflow" in broken("segments", b"overflow")
    assert broken("segments", b"/").endswith("ZeroDivisionError: division by zero\n")
    known = {signature(broken("segments", data)) for data in (b"panic", b"overflow", b"/")}
    assert len(known) == 3
    assert signature(broken("segments", b"/")) in known


@pytest.mark.parametrize(
    ("target", "name", "data"),
    [
        ("images", "tests.support.mutants.load_image", None),
        ("videos", "tests.support.mutants.open_video", None),
        ("tokenizers", "mmrope.preprocess.text.FileTokenizer.encode", None),
        ("configs", "mmrope.encodings.spec.RotarySpec.to_dict", b'{"config.json": {"model_type": "llama", "head_dim": 8, "rope_theta": 1e4}}'),
        ("conversations", "mmrope.preprocess.chat._pieces", b'{"messages": [{"role": "user", "content": "Hi"}]}'),
        ("segments", "tests.support.targets.position_ids", b"\0\0\1\1\3"),
    ],
)  # fmt: skip
def test_each_target_reaches_what_it_is_of(target, name, data, monkeypatch):
    data = data or next(seeds(target))
    assert broken(target, data) is None
    monkeypatch.setattr(name, lambda *arguments, **options: {}["lost"])
    assert "KeyError: 'lost'" in broken(target, data)


def test_properties_are_asked(monkeypatch):
    """Offsets, markers and ids that are wrong are found, not only errors."""
    real = targets.position_ids
    monkeypatch.setattr(targets, "position_ids", lambda *given, **how: shifted(real(*given, **how), how))
    assert "AssertionError" in broken("segments", b"\0\0\1\1\3")
    monkeypatch.undo()
    monkeypatch.setattr("mmrope.preprocess.text.ByteTokenizer.offsets", lambda self, text: [(0, 1)] * len(text.encode()))
    assert "AssertionError" in broken("tokenizers", b'{"text": "ab"}')
    monkeypatch.setattr("mmrope.preprocess.chat._Veil.lifted", lambda self, text: text)
    assert "AssertionError" in broken("conversations", b'{"messages": [{"role": "user", "content": "<|im_end|>"}]}')


def shifted(positions, how):
    positions.ids[...] += "start" in how
    return positions


def test_choices_are_those_of_their_bytes():
    first, again = Choices(b"\1\2\3\xff"), Choices(b"\1\2\3\xff")
    made = [first.below(3), first.of("abc"), first.whole(5), first.seconds(), first.below(9), first.some(first.whole, 3)]
    assert made[:3] == [1, "c", 8]
    assert made[4:] == [0, []]
    assert [again.below(3), again.of("abc"), again.whole(5), again.seconds()] == made[:4]


# --- the mutations of JSON --------------------------------------------------------------------------------------------


def mutants(document, number, **options):
    data = json.dumps(document).encode()
    options = {"words": ["word"], "by_bytes": lambda data, most: data[:-1], **options}
    return [fuzz.mutated(data, 2_000, seed, **options) for seed in range(number)]


def test_mutants_of_json():
    document = {"a": [1, 2.5, "text", None], "b": {"c": True}}
    found = mutants(document, 600)
    assert found == mutants(document, 600)
    assert max(map(len, found)) <= 2_000
    read = [json.loads(each) for each in found if each != json.dumps(document).encode()[:-1]]
    assert 550 < len(read) < 600  # the others were cut as bytes
    assert sum(each != document for each in read) > 400
    objects = [each for each in read if isinstance(each, dict)]
    assert any(isinstance(each.get("a"), list) and 2 not in map(len, [each["a"]]) and len(each["a"]) == 5 for each in objects)
    assert any("word" in each for each in objects)
    assert any("b" not in each for each in objects)
    assert any(each.get("b") == document["a"] for each in objects)
    assert fuzz.mutated(b"no JSON", 100, 0, words=[], by_bytes=lambda data, most: data + b"!") == b"no JSON!"


def test_crossing_takes_a_part_of_the_other():
    one, other = {"a": 1, "b": [2]}, {"b": {"c": "theirs"}, "a": "also"}
    made = [fuzz.crossed(json.dumps(one).encode(), json.dumps(other).encode(), 200, seed) for seed in range(60)]
    read = [json.loads(each) for each in made]
    assert {"a": "also", "b": [2]} in read
    assert {"a": 1, "b": {"c": "theirs"}} in read
    assert all(isinstance(each, dict) for each in read)
    assert fuzz.crossed(b"no JSON", b"{}", 4, 0) == b"no J"


def test_places_are_all_there_are():
    document = {"a": [1, {"b": 2}]}
    assert [(inside[key], key) for inside, key in fuzz.places(document)] == [
        ([1, {"b": 2}], "a"),
        (1, 0),
        ({"b": 2}, 1),
        (2, "b"),
    ]


# --- the runner -------------------------------------------------------------------------------------------------------

STAND_IN = """
import contextlib, os, sys, time
import tests.support.targets as targets

@contextlib.contextmanager
def instrument_imports(include):
    yield

def Mutate(data, most):
    return data

def Setup(arguments, test, **options):
    global given, found
    given, found = arguments, test

def planted(data):
    if data == b"bug":
        {}["lost"]

def Fuzz():
    corpus = given[1]
    targets.TARGETS["images"] = planted
    print("INFO: Seed: 1", file=sys.stderr)
    print("#2 INITED cov: 10 ft: 12 corp: 1/1b", file=sys.stderr, flush=True)
    found(b"bug")
    found(b"sound")
    new = len(os.listdir(corpus))
    open(f"{corpus}/new-{new}", "wb").close()
    print("#50 NEW cov: 30 ft: 34 corp: 2/3b", file=sys.stderr, flush=True)
    [prefix] = [each.partition("=")[2] for each in given if each.startswith("-artifact_prefix")]
    if not new:
        open(f"{prefix}crash-1", "wb").write(b"crash")
        print(f"artifact_prefix='x'; Test unit written to {prefix}crash-1", file=sys.stderr, flush=True)
        os.abort()
    [most] = [each.partition("=")[2] for each in given if each.startswith("-max_total_time")]
    time.sleep(int(most))
    print("#100 DONE cov: 30 ft: 35 corp: 2/3b", file=sys.stderr, flush=True)
"""


@pytest.fixture
def project(tmp_path):
    """scripts/fuzz.py in a folder of its own, with a stand-in for atheris: of two processes the first crashes."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "fuzz.py", tmp_path / "scripts")
    (tmp_path / "atheris.py").write_text(STAND_IN)
    named = tmp_path / "atheris-0.dist-info"
    named.mkdir()
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: atheris\nVersion: 0\n")
    return tmp_path


def run(project, *arguments):
    path = os.pathsep.join([str(project), str(ROOT)])
    command = [sys.executable, str(project / "scripts" / "fuzz.py"), "--targets", "images", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=120)


def test_a_run_keeps_what_it_finds_and_continues(project):
    results = project / "results.json"
    options = ("--seconds", "2", "--processes", "1", "--results", str(results), "--continue")
    done = run(project, *options)
    assert done.returncode == 1, done.stderr
    assert "images: " in done.stdout
    assert "KeyError: 'lost'" in done.stderr
    assert "images breaks its law on images-crash-1: not when it is tried alone" in done.stderr
    found = json.loads(results.read_text())
    row = found["targets"]["images"]
    assert row["seconds"] >= 1
    assert (row["edges_at_start"], row["edges"], row["features_at_start"], row["features"]) == (10, 30, 12, 35)
    assert row["executions"] == 150  # of the one that crashed, and of the next
    assert row["new_in_corpus"] == 2
    bug, crash = sorted(found["findings"], key=lambda finding: finding["input"] == "images-crash-1")
    assert (project / "out" / "fuzz" / "findings" / bug["input"]).read_bytes() == b"bug"
    assert [finding["mended"] for finding in (bug, crash)] == [False, False]
    again = run(project, *options)  # the time is up; outside of the stand-in both keep the law
    assert again.returncode == 0, again.stderr
    later = json.loads(results.read_text())
    assert later["targets"] == found["targets"]
    assert [finding["mended"] for finding in later["findings"]] == [True, True]


def test_an_input_is_tried_in_a_process_that_may_end(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(next(seeds("images")))
    assert fuzz.tried("images", path) is None
    assert "No such file" in fuzz.tried("images", tmp_path / "none")
