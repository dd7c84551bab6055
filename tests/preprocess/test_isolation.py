"""Bulk work: every item gets its outcome, in order, whatever the others do to their process."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from mmrope import MediaError
from mmrope.preprocess import isolation
from mmrope.preprocess.isolation import AHEAD, Outcome, isolated
from tests.support.workers import (
    Unpicklable,
    doubled,
    fail_for_want_of_memory,
    hang_in_native_code,
    hang_in_python,
    obey,
    refuse,
    returned_there_alone,
    slept,
    take,
    tensors,
)

MB = 1 << 20
HANGS = [hang_in_python, hang_in_native_code, functools.partial(time.sleep, 1000)]
CRASHES = {
    "the process was killed by SIGSEGV": functools.partial(signal.raise_signal, signal.SIGSEGV),
    "the process was killed by SIGABRT": os.abort,
    "the process ended with exit code 3": functools.partial(os._exit, 3),
}


def outcomes(function, items, **options):
    found = list(isolated(function, items, **{"seconds": 20, **options}))
    assert multiprocessing.active_children() == []
    return found


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_without_failures_it_is_a_plain_loop(workers):
    items = [3, "ab", 2.5, [1], *range(30)]
    expected = [Outcome(i, item, doubled(item)) for i, item in enumerate(items)]
    assert outcomes(doubled, items, workers=workers) == expected


def test_outcomes_wait_for_their_turn():
    items = [0.4, 0, 0, 0.2, 0, 0, 0, 0, 0, 0]
    assert [outcome.value for outcome in outcomes(slept, items, workers=2)] == items
    assert outcomes(doubled, []) == []


def test_what_hangs_is_ended_at_its_limit_and_the_others_succeed(tmp_path):
    items = [1, HANGS[0], HANGS[1], 2, HANGS[2], 3]
    start = time.monotonic()
    found = outcomes(obey, items, seconds=0.7, workers=2, quarantine=tmp_path / "bad.jsonl")
    assert time.monotonic() - start < 8
    assert [outcome.value for outcome in found] == [2, None, None, 4, None, 6]
    for outcome in found:
        if callable(outcome.item):
            assert (outcome.kind, outcome.error) == ("timeout", "ended after its limit of 0.7 s")
        else:
            assert (outcome.kind, outcome.error) == ("", "")


def test_a_crash_is_named():
    items = [part for crash in CRASHES.values() for part in (crash, 1)]
    found = outcomes(obey, items)
    assert [(outcome.kind, outcome.error) for outcome in found[::2]] == [("crash", how) for how in CRASHES]
    assert [outcome.value for outcome in found[1::2]] == [2] * len(CRASHES)


def test_who_wants_too_much_memory_is_refused():
    hog = functools.partial(take, 3 << 30)
    nested = fail_for_want_of_memory
    spoken = functools.partial(refuse, RuntimeError("DefaultCPUAllocator: Error code 12 (Cannot allocate memory)"))
    too_large = bytes(150 * MB)
    small = functools.partial(len, bytes(20 * MB))
    found = outcomes(obey, [hog, 1, nested, spoken, too_large, small], memory=128 * MB)
    assert [outcome.kind for outcome in found] == ["memory", "", "memory", "memory", "memory", ""]
    assert found[0].error == "MemoryError: "
    assert found[2].error == "MediaError: cat.png cannot be read"
    assert found[5].value == 20 * MB
    assert [outcome.value for outcome in outcomes(take, [200 * MB], memory=None)] == [200 * MB]


def test_errors_are_reasons(tmp_path):
    errors = [MediaError("cat.png is no image"), ValueError("no"), OSError(2, "gone"), KeyError("k"), RecursionError("deep")]
    items = [functools.partial(refuse, error) for error in errors]
    items += [Unpicklable(), 5, functools.partial(open, os.devnull)]
    path = tmp_path / "bad.jsonl"
    path.write_text('{"item": "of an earlier run"}\n')
    found = outcomes(obey, items, quarantine=path)
    assert [outcome.error for outcome in found] == [
        "MediaError: cat.png is no image",
        "ValueError: no",
        "FileNotFoundError: [Errno 2] gone",
        "KeyError: 'k'",
        "RecursionError: deep",
        "the item cannot be pickled: TypeError: a socket is no data",
        "",
        "TypeError: cannot pickle '_io.TextIOWrapper' object",
    ]
    assert {outcome.kind for outcome in found if outcome.error} == {"refused"}
    assert found[6].value == 10
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"item": "of an earlier run"}
    assert lines[1:] == [
        {"item": str(outcome.item)[:500], "index": outcome.index, "kind": outcome.kind, "error": outcome.error}
        for outcome in found
        if outcome.kind
    ]


def test_the_quarantine_is_written_at_once(tmp_path):
    path = tmp_path / "bad.jsonl"
    items = ["\udcff" + "x" * 600, 3]  # a file name that is not UTF-8
    run = isolated(functools.partial(operator.add, 1), iter(items), quarantine=path)
    assert next(run).kind == "refused"
    line = json.loads(path.read_text())
    assert line["item"] == items[0][:500]
    assert (line["index"], line["kind"]) == (0, "refused")
    assert line["error"] == "TypeError: unsupported operand type(s) for +: 'int' and 'str'"
    assert next(run).value == 4
    assert list(run) == []


def test_tensors_go_by_value():
    import torch

    found = outcomes(tensors, [1000])
    for outcome in found:
        for key, expected in tensors(outcome.item).items():
            assert torch.equal(outcome.value[key], expected)
            assert outcome.value[key].dtype == expected.dtype
            assert not outcome.value[key].is_shared()


# --- laziness and endings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_items_are_read_as_they_are_needed(workers):
    read = []
    run = isolated(doubled, (read.append(n) or n for n in itertools.count()), workers=workers)
    assert read == []
    for taken, outcome in enumerate(itertools.islice(run, 40), start=1):
        assert outcome == Outcome(taken - 1, taken - 1, 2 * (taken - 1))
        assert len(read) <= taken + AHEAD * workers
    assert multiprocessing.active_children()
    run.close()
    assert multiprocessing.active_children() == []


def test_a_slow_item_does_not_let_the_others_run_away():
    read = []
    run = isolated(slept, (read.append(n) or 0.5 * (n == 0) for n in itertools.count()), workers=2)
    assert next(run).value == 0.5
    assert len(read) <= 1 + AHEAD * 2
    run.close()


def test_who_takes_the_outcomes_may_be_away():
    """What was done in time is no timeout, and a worker ends itself when nobody else does."""
    run = isolated(obey, [1, functools.partial(slept, 0.2), hang_in_native_code, 2], seconds=0.4)
    assert next(run).value == 2
    time.sleep(0.7)
    assert next(run).value == 0.2
    (process,) = multiprocessing.active_children()
    process.join(5)
    assert process.exitcode == -signal.SIGALRM
    assert next(run).kind == "timeout"
    assert next(run).value == 4
    run.close()


def test_errors_here_leave_no_worker():
    def items():
        yield 1
        raise KeyError("the list of files is gone")

    with pytest.raises(KeyError, match="gone"):
        outcomes(doubled, items())
    assert multiprocessing.active_children() == []
    run = isolated(doubled, [1, 2, 3])
    next(run)
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("hang", ["time.sleep, [1000]", "functools.partial(re.match, '(a+)+$'), ['a' * 40 + 'b']"])
def test_workers_do_not_outlive_a_parent_that_is_killed(hang):
    code = f"import functools, re, time; from mmrope.preprocess.isolation import isolated; next(isolated({hang}, seconds=3))"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        children = _soon(lambda: {pid for pid in _children(parent.pid) if "multiprocessing.spawn" in _command(pid)})
        time.sleep(0.7)  # it works by now
        assert all(_command(pid) for pid in children)
        parent.kill()
    assert _soon(lambda: not any(_command(pid) for pid in children))


def _soon(condition):
    end = time.monotonic() + 20
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _command(pid):
    """The command line of a process; empty if it is gone, also of one whose exit nobody took note of."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_progress_is_shown_with_failures(capfd):
    outcomes(obey, [1, functools.partial(refuse, ValueError("no")), 2], progress=True)
    captured = capfd.readouterr()
    assert "3/3" in captured.err
    assert "failed=1" in captured.err
    outcomes(obey, [1])
    assert capfd.readouterr() == ("", "")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": lambda item: item}, r"function must be picklable, defined at the top level of a module: .*<lambda>"),
        ({"items": "cat.png"}, r"items must be several, for example a list of paths, got str"),
        ({"items": 3}, r"items must be several, .* got int"),
        ({"seconds": 0}, r"seconds must be the time limit of an item, above 0 and at most 1e\+06, got 0"),
        ({"seconds": float("nan")}, r"seconds .* got nan"),
        ({"seconds": float("inf")}, r"seconds .* got inf"),
        ({"seconds": None}, r"seconds .* got None"),
        ({"workers": 0}, r"workers must be a whole number of processes, at least 1, got 0"),
        ({"workers": 1.5}, r"workers .* got 1.5"),
        ({"memory": 4}, r"memory must be bytes, at least 1 MiB \(1 << 20\), or None for no limit, got 4"),
        ({"memory": 1e9}, r"memory .* got 1000000000.0"),
        ({"quarantine": "nowhere/bad.jsonl"}, r"quarantine must be a file in a folder that exists, got 'nowhere/bad.jsonl'"),
        ({"quarantine": "/"}, r"quarantine .* got '/'"),
    ],
)
def test_options_are_checked_before_anything_starts(change, message):
    with pytest.raises(ValueError, match=message):
        isolated(**{"function": doubled, "items": [1], **change})


def test_no_memory_limit_is_promised_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(isolation, "STATM", tmp_path / "statm")
    with pytest.raises(ValueError, match=r"memory=4294967296 cannot be kept to on this system, only on Linux; memory=None"):
        isolated(doubled, [1])
    assert outcomes(doubled, [1], memory=None)[0].value == 2


def test_a_function_that_workers_cannot_have_ends_the_run(monkeypatch, tmp_path):
    module = types.ModuleType("known_here_alone")
    monkeypatch.setitem(sys.modules, "known_here_alone", module)
    exec("def function(item): return item", vars(module))
    with pytest.raises(
        RuntimeError, match=r"cannot load the function, ModuleNotFoundError: No module named 'known_here_alone'"
    ):
        outcomes(module.function, [1, 2])
    (tmp_path / "deadly.py").write_text(
        "import multiprocessing, os\nif multiprocessing.parent_process(): os._exit(7)\ndef function(item): return item\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import deadly

    with pytest.raises(RuntimeError, match=r"a worker ended with exit code 7 before it was ready: can the function's module"):
        outcomes(deadly.function, [1, 2])
    monkeypatch.setattr(isolation, "START_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match=r"a worker hung before it was ready"):
        outcomes(doubled, [1])
    assert multiprocessing.active_children() == []


def test_a_value_that_does_not_arrive_is_refused():
    (found,) = outcomes(obey, [returned_there_alone])
    assert (found.kind, found.value) == ("refused", None)
    assert found.error == "the value cannot be unpickled here: ValueError: it is of no use here"
