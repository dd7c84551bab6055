"""Bulk work: every item gets its outcome, in order, whatever the others do to their process."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import math
import operator
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, byte_string_dtypes, scalar_dtypes, unicode_string_dtypes

from mmrope import MediaError, Processor
from mmrope.preprocess import isolation, sandbox
from mmrope.preprocess.isolation import AHEAD, Outcome, isolated
from mmrope.preprocess.isolation_data import from_data, to_data
from tests.support import cases
from tests.support.workers import (
    ESCAPES,
    LANDLOCKED,
    IsolatedRows,
    Mute,
    Nameless,
    Unpicklable,
    answer,
    answer_and_stop,
    deep,
    doubled,
    escape,
    fail_for_want_of_memory,
    hang_in_native_code,
    hang_in_python,
    leak_descriptors,
    leak_threads,
    no_data,
    obey,
    own_cause,
    refuse,
    sandbox_again,
    share,
    share_without_descriptors,
    slept,
    take,
    tensors,
)

MB = 1 << 20
MEANT = "return None, numbers, texts, bytes, arrays, tensors, and lists, tuples, sets and dicts of them"
HANGS = [hang_in_python, hang_in_native_code, functools.partial(time.sleep, 1000)]
CRASHES = {
    "the process was killed by SIGSEGV": functools.partial(signal.raise_signal, signal.SIGSEGV),
    "the process was killed by SIGABRT": os.abort,
    "the process ended with exit code 3": functools.partial(os._exit, 3),
}


def children():
    """The workers that live."""
    return [pid for pid in _children(os.getpid()) if "isolation_worker" in _command(pid)]


def outcomes(function, items, **options):
    found = list(isolated(function, items, **{"seconds": 20, **options}))
    assert children() == []
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


def test_what_hangs_is_ended_at_its_limit_and_the_others_succeed(tmp_path, record_property):
    record_property("tried", f"{len(HANGS)} hangs, {len(CRASHES)} crashes, 5 ways to want too much memory, 13 exceptions")
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
    no_stack = functools.partial(refuse, BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)))  # of FFmpeg's threads
    found = outcomes(obey, [hog, 1, nested, spoken, too_large, small, no_stack], memory=128 * MB)
    assert [outcome.kind for outcome in found] == ["memory", "", "memory", "memory", "memory", "", "memory"]
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
        f"ValueError: a _io.TextIOWrapper cannot be sent: {MEANT}",
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
    assert children()
    run.close()
    assert children() == []


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
    assert _soon(lambda: not children())
    assert next(run).kind == "timeout"
    assert next(run).value == 4
    run.close()


def test_errors_here_leave_no_worker():
    def items():
        yield 1
        raise KeyError("the list of files is gone")

    with pytest.raises(KeyError, match="gone"):
        outcomes(doubled, items())
    assert children() == []
    run = isolated(doubled, [1, 2, 3])
    next(run)
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt)
    assert children() == []


@pytest.mark.parametrize("hang", ["time.sleep, [1000]", "functools.partial(re.match, '(a+)+$'), ['a' * 40 + 'b']"])
def test_workers_do_not_outlive_a_parent_that_is_killed(hang):
    code = f"import functools, re, time; from mmrope.preprocess.isolation import isolated; next(isolated({hang}, seconds=3))"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        children = _soon(lambda: {pid for pid in _children(parent.pid) if "isolation_worker" in _command(pid)})
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
    monkeypatch.setattr(isolation, "STATUS", tmp_path / "status")
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
        "import os\nfrom mmrope.preprocess import isolation_worker\nif isolation_worker.importing: os._exit(7)\ndef function(item): return item\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import deadly

    with pytest.raises(RuntimeError, match=r"a worker ended with exit code 7 before it was ready: can the function's module"):
        outcomes(deadly.function, [1, 2])
    monkeypatch.setattr(isolation, "START_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match=r"a worker hung before it was ready"):
        outcomes(doubled, [1])
    assert children() == []


def test_a_value_that_is_no_data_is_refused():
    found = outcomes(obey, [no_data, functools.partial(deep, 100_000), 1])
    assert [outcome.kind for outcome in found] == ["refused", "refused", ""]
    assert found[0].error == f"ValueError: a tests.support.workers.NoData cannot be sent: {MEANT}"
    assert found[1].error.startswith("RecursionError")


# --- what comes back --------------------------------------------------------------------------------------------------

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
KEYS = st.none() | st.booleans() | st.integers(1 - 2**64, 2**64 - 1) | st.floats() | st.text() | st.binary()
DATA = st.recursive(
    NUMBERS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner) | st.sets(KEYS) | st.frozensets(KEYS)
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=cases(60))
@given(DATA)
def test_data_comes_back_as_it_is(value):
    assert told(from_data(to_data(value))) == told(value)


def told(value):
    """A value as what is equal if kinds are, too, and nan with nan."""
    if isinstance(value, dict):
        return "dict", [(told(key), told(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [told(item) for item in value]
    return (type(value), sorted(map(repr, value))) if isinstance(value, (set, frozenset)) else repr(value)


@settings(deadline=None, max_examples=cases(40))
@given(
    arrays(scalar_dtypes() | unicode_string_dtypes() | byte_string_dtypes(), array_shapes(min_dims=0, min_side=0, max_dims=4)),
    st.booleans(),
)
def test_arrays_come_back_as_they_are(array, fortran):
    array = np.asfortranarray(array) if fortran else array
    (back,) = from_data(to_data([array]))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable
    assert back.flags.aligned


def bytes_of(tensor):
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "complex64", "float8_e4m3fn"])
def test_tensors_come_back_as_they_are(dtype):
    import torch

    for tensor in (torch.tensor(3), torch.zeros(0, 4), torch.arange(60).reshape(3, 4, 5).transpose(0, 2)):
        tensor = tensor.to(getattr(torch, dtype))
        back = from_data(to_data({"x": tensor}))["x"]
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        assert bytes_of(back) == bytes_of(tensor)


@settings(deadline=None, max_examples=cases(500))
@given(st.data())
def test_what_was_not_packed_is_refused(data):
    sound = to_data({"rows": [1, "a", (2.5, None)], "pixels": np.arange(12).reshape(3, 4), "raw": b"abc"})
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        from_data(sound[: data.draw(st.integers(0, len(sound)))])


@pytest.mark.parametrize(
    "outline",
    [
        ["array", "|O", [1]],
        ["array", "<f8", [1 << 62]],
        ["array", "<f8", [-1]],
        ["array", "<f8", 3],
        ["array", "<f8,<f8", [1]],
        ["tensor", "load", [1], ["array", "|u1", [1]]],
        ["set", ["list"]],
        ["set", ["tuple", 1]],
        ["set", 1 << 64],
        ["dict", [["complex", 1.0, 2.0], 1]],
        ["dict", [["frozenset", 1], 1]],
        ["text", "|u1", [1]],
        ["call", "os.system", "true"],
        [],
        [[]],
        {},
    ],
)
def test_outlines_that_nobody_packs_are_refused(outline):
    text = json.dumps(outline).encode()
    if outline == {}:
        assert from_data(bytearray(struct.pack(">Q", len(text)) + text)) == {}  # data, too
        return
    with pytest.raises(ValueError, match="these are no such data"):
        from_data(bytearray(struct.pack(">Q", len(text)) + text))


def test_what_takes_long_to_read_is_not_sent():
    """Keys whose hashes a sender can make one, and outlines of more objects than bytes."""
    for key in ((1, 2), 2**64, 1j, frozenset([1]), np.complex64(1), np.longdouble(1), np.timedelta64(1, "s")):
        with pytest.raises(
            ValueError, match=rf"a {type(key).__name__} cannot be sent as a key: return dicts and sets of numbers"
        ):
            to_data({key: 1})
    for text in ("é" * 5000, "\udcff" * 2000, "x" * 1024, "x" * 1025, "\0" * 3000):
        assert from_data(to_data([text, {text: text}])) == [text, {text: text}]
    with pytest.raises(
        ValueError, match=r"a value of so many parts cannot be sent, 80,0\d\d,\d+ bytes without arrays and texts"
    ):
        to_data(["x" * 1000] * 79_700)
    with pytest.raises(ValueError, match=r"these are no such data: ValueError: an outline of 67,108,865 bytes"):
        from_data(bytearray(struct.pack(">Q", 2**26 + 1)))


def test_a_worker_cannot_run_code_here(tmp_path):
    """Not even one that a file has taken over: what it sends is read as data."""
    marker = tmp_path / "ran"
    evil = pickle.dumps(functools.partial(os.system, f"touch {marker}"))
    code = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    messages = [code, evil, b"", b"\xff" * 100, struct.pack(">Q", 1 << 60), bytes(to_data((1, 2, 3)))]
    messages += [bytes(to_data(odd)) for odd in ((1, np.array(["a", "b"]), ""), (1, "", 3), (1, "gone", ""), (1, ""))]
    found = outcomes(obey, [4, *(functools.partial(answer, message) for message in messages)], seconds=5)
    assert not marker.exists()
    assert found[0].value == 8
    assert {outcome.kind for outcome in found[1:]} == {"crash"}
    assert found[1].error.startswith("the process answered with what is no value: ValueError: these are no such data: ")


def test_a_worker_that_says_more_than_it_is_asked_waits(tmp_path):
    """Unasked answers are neither read nor kept: memory here stays as it is. Who is not listened to ends no run, either."""
    flood = functools.partial(answer, bytes(to_data(("x" * 50_000, "", ""))), 2000, 0)
    before = _resident()
    found = outcomes(obey, [1, flood, 2, 3], seconds=3)
    assert _resident() - before < 50 * MB
    assert (found[0].value, len(found[1].value)) == (2, 50_000)
    large = bytes(5 * MB)  # more than a pipe holds
    found = outcomes(obey, [functools.partial(answer_and_stop, bytes(to_data((1, "", "")))), large, 4], seconds=2)
    assert found[0].value == 1
    assert found[1].kind in ("", "timeout")  # by the time it is stopped it may have the item
    assert found[2].value == 8


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- nothing ends a run -----------------------------------------------------------------------------------------------


def test_no_exception_ends_a_run(tmp_path):
    items = [Nameless(), own_cause, functools.partial(refuse, Mute()), functools.partial(sys.exit, 3), 4]
    items += [functools.partial(refuse, KeyboardInterrupt()), functools.partial(refuse, GeneratorExit()), 5]
    found = outcomes(obey, items, quarantine=tmp_path / "bad.jsonl")
    assert [outcome.kind for outcome in found] == ["refused"] * 3 + ["crash", "", "crash", "crash", ""]
    assert found[0].error == found[2].error == "Mute: (its text raises RuntimeError)"
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 5, 6]
    assert lines[0]["item"] == "a Nameless, whose text raises KeyError"


def test_a_quarantine_that_cannot_be_written_ends_no_run(tmp_path):
    items = [functools.partial(refuse, ValueError("no")), 1, functools.partial(refuse, ValueError("no")), 2]
    with pytest.warns(
        UserWarning, match=r"/dev/full is written no more, and the run continues: OSError: .*No space left"
    ) as seen:
        found = outcomes(obey, items, quarantine="/dev/full")
    assert len(seen) == 1
    assert [outcome.value for outcome in found] == [None, 2, None, 4]
    assert found[0].error == "ValueError: no"


def test_shared_memory_counts():
    (found, small) = outcomes(obey, [functools.partial(share, 300 * MB), 3], memory=128 * MB)
    assert found.kind == "memory"
    assert found.error == f"took more than {128 * MB} bytes, shared memory with the rest"
    assert small.value == 6


def test_who_has_no_descriptors_left_is_watched(tmp_path):
    (found,) = outcomes(obey, [functools.partial(share_without_descriptors, 300 * MB)], memory=128 * MB)
    assert found.kind == "memory"


@pytest.fixture
def few_descriptors():
    """256 for this process and its workers."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("sandboxed", [False, True])
def test_no_item_is_blamed_for_what_others_left_open(sandboxed, few_descriptors, monkeypatch):
    items, room = [1] * 500, 256 // 4
    found = outcomes(leak_descriptors, items, sandboxed=sandboxed)
    assert [outcome.error for outcome in found if outcome.error] == []
    assert len({outcome.value for outcome in found}) == -(-len(items) // (room + 1))
    assert len({outcome.value for outcome in outcomes(leak_descriptors, [room, 0, 0, 1, 0, 0], sandboxed=sandboxed)}) == 2
    monkeypatch.setattr(isolation, "_held", lambda process: None)  # as it was
    assert "Too many open files" in outcomes(leak_descriptors, items, sandboxed=sandboxed)[-1].error


def test_no_item_is_blamed_for_threads_that_others_left(monkeypatch):
    monkeypatch.setattr(isolation, "MOST_THREADS_LEFT", room := 40)  # whatever this machine has of cores
    items, memory = [1] * 500, 2 * room * (8 << 20)  # the usual size of a stack
    found = outcomes(leak_threads, items, memory=memory)
    assert [outcome.error for outcome in found if outcome.error] == []
    assert len({outcome.value for outcome in found}) == -(-len(items) // (room + 1))
    monkeypatch.setattr(isolation, "_held", lambda process: None)  # as it was
    assert {outcome.error for outcome in outcomes(leak_threads, items, memory=memory)} > {""}


@pytest.mark.parametrize("name", ["json.py", "numpy.py", "mmrope.py", "sitecustomize.py"])
def test_the_current_folder_is_not_imported(name, tmp_path, monkeypatch):
    (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert outcomes(math.sqrt, [4.0], memory=None)[0].value == 2
    assert not (tmp_path / "ran").exists()


def test_a_frozen_program_is_told(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ValueError, match="isolated starts workers by Python, and a frozen program has none"):
        isolated(doubled, [1])


def test_it_works_in_the_workers_of_a_data_loader():
    import torch

    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(IsolatedRows(3), batch_size=None, num_workers=1, multiprocessing_context=context)
        assert [row.tolist() for row in loader] == [[0, 2], [2, 4], [4, 6]]


def test_a_script_without_its_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import math\nfrom mmrope.preprocess import isolated\nprint(list(isolated(math.sqrt, [4.0])))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert 'guard what it does by if __name__ == "__main__":' in done.stderr
    script.write_text(
        "from mmrope.preprocess import isolated\ndef half(x): print('said'); return x / 2\n"
        "if __name__ == '__main__': print([outcome.value for outcome in isolated(half, [4.0])])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[2.0]\n", "said\n")


# --- the sandbox ------------------------------------------------------------------------------------------------------

REFUSED = "PermissionError: [Errno 1] Operation not permitted"


@pytest.fixture(scope="module")
def tried_in_a_sandbox(tmp_path_factory):
    """What comes of each of ESCAPES there, and without it."""
    folder = tmp_path_factory.mktemp("sandbox")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        items = [(name, str(folder), victim.pid) for name in ESCAPES]
        inside = {outcome.item[0]: outcome for outcome in outcomes(escape, items, sandboxed=True, memory=None, workers=2)}
        assert victim.poll() is None
        assert list(folder.iterdir()) == []
        outside = {outcome.item[0]: outcome for outcome in outcomes(escape, items, memory=None, workers=2)}
    finally:
        victim.kill()
        victim.wait()
    return inside, outside


@pytest.mark.parametrize("name", ESCAPES)
def test_a_sandbox_lets_nothing_out(name, tried_in_a_sandbox):
    inside, outside = tried_in_a_sandbox
    if name in LANDLOCKED:
        if lacking := sandbox.lacking():
            pytest.skip(lacking)
        assert inside[name].error.startswith("PermissionError: [Errno 13]")
        assert outside[name].kind == ""
        return
    assert inside[name].kind == "refused"
    assert "Errno 1]" in inside[name].error or "Errno 38]" in inside[name].error, inside[name].error
    assert "Errno 1]" not in outside[name].error, "it is refused without a sandbox, too, so the test says nothing"


THREADED = """
import os, queue, threading
from tests.support.workers import parents_environment
asked, answers = queue.SimpleQueue(), queue.SimpleQueue()

def serve():
    while True:
        try:
            answers.put(asked.get()())
        except OSError as error:
            answers.put(str(error))

threading.Thread(target=serve, daemon=True).start()
open(f"{FOLDER}/a/{os.getpid()}", "w").close()
os.rename(f"{FOLDER}/a/{os.getpid()}", f"{FOLDER}/b/{os.getpid()}")

def function(item):
    asked.put(parents_environment)
    return answers.get()
"""


def test_threads_of_before_look_into_no_process(tmp_path, monkeypatch):
    """Of a module that starts one, and writes files, as it is imported."""
    if lacking := sandbox.lacking():
        pytest.skip(lacking)
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "threaded.py").write_text(THREADED.replace("{FOLDER}", str(tmp_path)))
    monkeypatch.syspath_prepend(tmp_path)
    import threaded

    (inside,) = outcomes(threaded.function, [1], sandboxed=True)
    assert "[Errno 13] Permission denied: '/proc/" in inside.value
    (outside,) = outcomes(threaded.function, [1])
    assert outside.value > 100
    assert len(list((tmp_path / "b").iterdir())) == 3


def test_a_sandbox_that_is_not_whole_is_said(monkeypatch):
    monkeypatch.setattr(sandbox, "_landlock", lambda: 0)
    with pytest.warns(
        UserWarning, match=r"the sandbox is not whole: the kernel has no Landlock.*memory, the environment"
    ) as seen:
        isolated(doubled, [1], sandboxed=True)
    assert seen[0].filename == __file__
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not sandbox.lacking():
            isolated(doubled, [1], sandboxed=True)
        isolated(doubled, [1])


def test_a_sandbox_is_entered_before_threads():
    if lacking := sandbox.lacking():
        pytest.skip(lacking)
    code = "import threading; threading.Thread(target=__import__('time').sleep, args=(2,), daemon=True).start()\n"
    code += "from mmrope.preprocess.sandbox import separate; separate()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "OSError: a sandbox cannot be made: something that Python imports at its start has started threads" in done.stderr


def test_files_are_decoded_in_a_sandbox_as_outside(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": kind, kind: f"samples/{name}"}, {"type": "text", "text": "What?"}]}
            ]
        }
        for kind, name in (("image", "cat.jpg"), ("video", "clip.mp4"), ("image", "missing.jpg"))
    ]
    processor = Processor()
    plain, boxed = (outcomes(processor.row, rows, sandboxed=sandboxed) for sandboxed in (False, True))
    assert [outcome.kind for outcome in boxed] == ["", "", "refused"]
    assert [outcome.error for outcome in boxed] == [outcome.error for outcome in plain]
    for one, other in zip(plain[:2], boxed, strict=False):
        assert set(one.value) == set(other.value)
        for key, array in one.value.items():
            np.testing.assert_array_equal(array, other.value[key])


def test_tensors_are_computed_in_a_sandbox():
    import torch

    (found,) = outcomes(torch.linalg.inv, [4 * torch.eye(300)], sandboxed=True)
    assert found.error == ""
    assert torch.equal(found.value, torch.eye(300) / 4)


def test_limits_hold_in_a_sandbox():
    items = [1, *HANGS[:2], functools.partial(share, 300 * MB), functools.partial(take, 3 << 30), *CRASHES.values(), 2]
    found = outcomes(obey, items, sandboxed=True, seconds=2, memory=128 * MB, workers=2)
    kinds = ["", "timeout", "timeout", "memory", "memory", *["crash"] * len(CRASHES), ""]
    assert [outcome.kind for outcome in found] == kinds
    assert [outcome.error for outcome in found if outcome.kind == "crash"] == list(CRASHES)


def test_a_sandbox_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(
        ValueError, match=r"sandboxed=True cannot be kept to: a sandbox is made by Linux alone, and this is darwin"
    ):
        isolated(doubled, [1], sandboxed=True)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(ImportError, match=r"a sandbox needs pyseccomp: pip install 'mmrope\[sandbox\]'"):
        isolated(doubled, [1], sandboxed=True)


def test_a_sandbox_is_for_good(record_property):
    record_property("tried", f"{len(ESCAPES)} ways out, each of which works without it")
    (found,) = outcomes(obey, [sandbox_again], sandboxed=True)
    assert found.error.startswith("OSError: ")
