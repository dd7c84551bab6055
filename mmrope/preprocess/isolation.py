"""Bulk work on strangers' files: a function runs on each item in a process that can be killed.

item --pickle--> worker (limits of time and memory, a sandbox) --plain data--> Outcome, in the order of the items
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.spawn
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mmrope.extras import needed_for
from mmrope.preprocess import isolation_worker, sandbox
from mmrope.preprocess.isolation_data import from_data
from mmrope.preprocess.isolation_worker import LONGEST, STATUS, TOO_MUCH_SHARED, Assignment, receive, said, send

AHEAD = 4  # items read per worker before the first of them is given back: a slow one does not stop the others
MOST_SECONDS = 1e6
START_SECONDS = 300.0  # for a worker to start and to import the function's module
_Heard: TypeAlias = "queue.SimpleQueue[tuple[_Worker, bytearray | None]]"
MOST_LEFT = 1024  # descriptors that items may leave open in a worker, and no more than a quarter of what it may have
MOST_THREADS_LEFT = 16 + 2 * (os.cpu_count() or 1)  # two libraries that keep one for each core fit
EXIT_SECONDS = 5.0  # for a killed process to be gone; one that waits for a dead disk may stay


@dataclass(frozen=True)
class Outcome:
    """What came of an item: its value, or why there is none.

    Example:
        >>> from mmrope.preprocess import Outcome
        >>> outcomes = [Outcome(0, "a.jpg", value=(48, 64)), Outcome(1, "b.jpg", error="took over 60 s", kind="timeout")]
        >>> [outcome.value for outcome in outcomes if not outcome.error]
        [(48, 64)]
    """

    index: int
    item: Any
    value: Any = None
    error: str = ""
    """The reason; empty if all went well."""
    kind: Literal["", "refused", "timeout", "memory", "crash"] = ""
    """refused: the function raised an error, the item cannot be pickled, the value is no plain data; empty if all went well."""


def isolated(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    seconds: float = 60.0,
    memory: int | None = 4 << 30,
    workers: int = 1,
    sandboxed: bool = False,
    quarantine: str | Path | None = None,
    progress: bool = False,
) -> Generator[Outcome, None, None]:
    """The outcome of function(item) for each item, in order; an item that hangs, crashes or fails does not stop the others.

    Limits hold against accidents. A sandbox holds, too, against a decoder that a file has taken over: it can open no socket,
    write no file, start or signal no process and look into none; what files it may read, it can read, and return. Without one,
    processes that the function starts itself are neither limited nor ended. When the generator ends or is closed, its workers
    are killed, and what they were at is lost. A worker in which items leave descriptors or threads, of which later ones could
    have too few, is replaced between two items (Linux only). It works in the workers of a DataLoader, too.

    Args:
        function: at the top level of a module, which workers import: a script needs `if __name__ == "__main__":`. What it
            returns must be plain data, since no code of a worker runs here: None, numbers, texts, bytes, numpy's arrays,
            torch's tensors, and lists, tuples, sets and dicts of them. What it prints goes to stderr, in a sandbox nowhere.
        items: picklable; an endless iterator will do. At most 4 per worker are read ahead of the outcomes taken.
        seconds: of wall-clock time for an item, from when a worker has it: starting and importing do not count.
        memory: bytes that a worker may take beyond what it had when it was ready (Linux only). Shared memory that it maps
            counts, and what the function imports itself: torch takes 0.8 GB. None for no limit, which functions that use
            CUDA need.
        workers: processes at a time.
        sandboxed: Linux with libseccomp, and `mmrope[sandbox]`. Where the kernel has no Landlock, a worker can look into other
            processes: a warning says so, and `mmrope.preprocess.sandbox.lacking()`. No GPU can be used in it. mmrope's own
            libraries are imported before it is closed; others the function's module should import at its top, since many
            cannot be within.
        quarantine: a file; each failure is appended as it happens, a line of JSON (item cut to 500 characters). If it cannot
            be written, a warning says so, once.
        progress: shows a bar on stderr, with the number of failures.

    Raises:
        ValueError: options out of range, a function that cannot be pickled, a memory limit or a sandbox where there can be
            none.
        RuntimeError: workers cannot start, for example since the function's module cannot be imported there.

    Example:
        >>> import math
        >>> from mmrope.preprocess import isolated
        >>> [(outcome.item, outcome.value, outcome.kind) for outcome in isolated(math.sqrt, [4.0, -1.0, 9.0], memory=None)]
        [(4.0, 2.0, ''), (-1.0, None, 'refused'), (9.0, 3.0, '')]
    """
    if isinstance(items, (str, bytes)) or not (hasattr(items, "__iter__") or hasattr(items, "__getitem__")):
        raise ValueError(f"items must be several, for example a list of paths, got {type(items).__name__}")
    if not isinstance(seconds, (int, float)) or not 0 < seconds <= MOST_SECONDS:
        raise ValueError(f"seconds must be the time limit of an item, above 0 and at most {MOST_SECONDS:g}, got {seconds!r}")
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a whole number of processes, at least 1, got {workers!r}")
    if memory is not None and (not isinstance(memory, int) or memory < 1 << 20):
        raise ValueError(f"memory must be bytes, at least 1 MiB (1 << 20), or None for no limit, got {memory!r}")
    if memory is not None and not STATUS.is_file():
        raise ValueError(f"memory={memory} cannot be kept to on this system, only on Linux; memory=None sets no limit")
    if sandboxed and (why := sandbox.why_not()):
        raise ValueError(f"sandboxed=True cannot be kept to: {why}")
    if sandboxed and (what := sandbox.lacking()):
        warnings.warn(f"the sandbox is not whole: {what}", stacklevel=2)
    if quarantine is not None and (not Path(quarantine).absolute().parent.is_dir() or Path(quarantine).is_dir()):
        raise ValueError(f"quarantine must be a file in a folder that exists, got {str(quarantine)!r}")
    if getattr(sys, "frozen", False):
        raise ValueError("isolated starts workers by Python, and a frozen program has none that could: run it by Python")
    if isolation_worker.importing:
        raise RuntimeError('workers import the script that calls isolated: guard what it does by if __name__ == "__main__":')
    try:
        code = pickle.dumps(function)
    except Exception as error:
        raise ValueError(f"function must be picklable, defined at the top level of a module: {said(error)}") from error
    parent = multiprocessing.spawn.get_preparation_data("isolated")
    parent = {key: value for key, value in parent.items() if key not in ("authkey", "start_method")}  # which are not theirs
    task = Assignment(parent, code, seconds, memory, sandboxed)
    bar = {"total": len(items) if isinstance(items, Sized) else None, "unit": "item", "disable": not progress}
    return _run(lambda heard: _Worker(task, heard), iter(items), workers, quarantine, bar)


def _run(
    start: Callable[[_Heard], _Worker], items: Iterator[Any], workers: int, quarantine: str | Path | None, bar: dict[str, Any]
) -> Generator[Outcome, None, None]:
    with needed_for("isolated"):
        from tqdm import tqdm

    pool: list[_Worker] = []
    heard: _Heard = queue.SimpleQueue()
    waiting: dict[int, Outcome] = {}  # for their turn
    read = given = failed = 0
    item, end = None, object()
    shown = tqdm(**bar)

    def done(outcome: Outcome) -> None:
        nonlocal quarantine
        waiting[outcome.index] = outcome
        if outcome.kind and quarantine is not None:
            line = {"item": _described(outcome.item), "index": outcome.index, "kind": outcome.kind, "error": outcome.error}
            try:
                with open(quarantine, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                warnings.warn(f"{quarantine} is written no more, and the run continues: {said(error)}", stacklevel=3)
                quarantine = None

    try:
        while item is not end or given < read:
            # a worker that died after its last item goes, too: the next item would be blamed for it
            for worker in pool:
                if worker.job is None and worker.process.poll() is not None:
                    worker.end()
            pool = [worker for worker in pool if not worker.ended]
            while read - given < AHEAD * workers and sum(w.job is not None for w in pool) < workers:
                if item is end or (item := next(items, end)) is end:
                    break
                job, read = Outcome(read, item), read + 1
                try:
                    payload = pickle.dumps(item)
                except Exception as error:
                    done(replace(job, kind="refused", error=f"the item cannot be pickled: {said(error)}"))
                    continue
                if (free := next((w for w in pool if w.job is None), None)) is None:
                    pool.append(free := start(heard))
                free.take(job, payload)
            due = given in waiting  # seen before the workers are heard: those that are free have something to do by then
            busy = [w for w in pool if w.job is not None]
            left = min((w.deadline for w in busy), default=0.0) - time.monotonic()
            # whoever takes the outcomes may have been away for long: what was said by then was in time, and goes first
            for worker, message in _said_by_now(heard, 0 if due else left):
                if outcome := worker.hear(message):
                    done(outcome)
            for worker in busy:
                if worker.job is not None and time.monotonic() >= worker.deadline:
                    done(worker.late())
            if due:
                outcome = waiting.pop(given)
                given, failed = given + 1, failed + (outcome.kind != "")
                shown.set_postfix(failed=failed, refresh=False)
                shown.update()
                yield outcome
    finally:
        shown.close()
        for worker in pool:
            worker.end()


def _said_by_now(heard: _Heard, seconds: float) -> Iterator[tuple[_Worker, bytearray | None]]:
    """All messages that are there; if there are none, the first within these seconds."""
    with contextlib.suppress(queue.Empty):
        yield heard.get(timeout=seconds) if seconds > 0 and heard.empty() else heard.get_nowait()
        while True:
            yield heard.get_nowait()


def _described(item: Any) -> str:
    """An item as at most 500 characters; its own text may fail."""
    try:
        return str(item[:500] if isinstance(item, (str, bytes, bytearray)) else item)[:500]
    except Exception as error:
        return f"a {type(item).__name__}, whose text raises {type(error).__name__}"


_START = "import sys; sys.path[:] = sys.argv[1:]; {}from mmrope.preprocess.isolation_worker import work; work()"
"""Nothing is imported before the path is the parent's: the current folder, first of that of -c, may hold untrusted files."""
_SEPARATE = "from mmrope.preprocess.sandbox import separate; separate(); "
"""Before numpy is imported, which starts threads."""


def _held(process: int) -> tuple[int, int] | None:
    """The numbers of descriptors and threads of a process; None if it is gone, or the system does not say."""
    try:
        return len(os.listdir(f"/proc/{process}/fd")), len(os.listdir(f"/proc/{process}/task"))
    except OSError:
        return None


class _Worker:
    """A process, and its job, which is sent when the process says that it is ready. A thread talks with it: it sends a message,
    and puts the answer to what was `heard`; a process that does not listen, or says more than it was asked, waits alone.

    It is no multiprocessing.Process, since those of a DataLoader may not start any, and since what they say is pickled.
    """

    def __init__(self, task: Assignment, heard: _Heard) -> None:
        self.task, self.ready, self.ended = task, False, False
        self.job: Outcome | None = None
        self.most: tuple[int, int] | None = None
        self.payload = b""
        self.deadline = time.monotonic() + START_SECONDS
        python = multiprocessing.spawn.get_executable()
        flags: list[str] = subprocess._args_from_interpreter_flags()  # pyright: ignore[reportAttributeAccessIssue]
        start = _START.format(_SEPARATE if task.sandboxed else "")
        command = [python, *flags, "-c", start, *map(str, task.parent["sys_path"])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._talk, args=(heard,), daemon=True).start()
        self.messages.put(pickle.dumps(task))

    def _talk(self, heard: _Heard) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(EOFError, OSError), self.process.stdout as answers, self.process.stdin as messages:
            while (message := self.messages.get()) is not None:
                with contextlib.suppress(OSError):  # it died, perhaps with an answer
                    send(messages, message)
                heard.put((self, receive(answers, self.task.memory or float("inf"))))  # no larger than what it may take
        heard.put((self, None))

    def take(self, job: Outcome, payload: bytes) -> None:
        self.job, self.payload = job, payload
        if self.ready:
            self.messages.put(payload)
            self.payload, self.deadline = b"", time.monotonic() + self.task.seconds

    def hear(self, message: bytearray | None) -> Outcome | None:
        """The outcome of the job, from what the process said, None for its end; None if it was only now ready for the job."""
        if self.ended:
            return None
        job = self.job
        assert job is not None
        if message is None:
            outcome = self._gone(job)
            self.end()
            return outcome
        if not self.ready:
            if message:
                raise RuntimeError(f"a worker cannot be made ready: {message.decode()}")
            self.ready, self.most = True, self._room()
            return self.take(job, self.payload)
        self.job = None
        try:
            value, kind, error = from_data(message)
            if kind not in ("", "refused", "memory") or not isinstance(error, str):
                raise ValueError("these are no outcome")
        except (TypeError, ValueError, MemoryError) as problem:
            self.end()  # it is no longer what was started
            return replace(job, kind="crash", error=f"the process answered with what is no value: {said(problem)}")
        if kind == "memory" or self._leaks():
            self.end()  # what it still holds may leave too little for others
        return replace(job, value=value, kind=kind, error=error[:LONGEST])

    def _room(self) -> tuple[int, int] | None:
        """The descriptors and threads that it may have between items; None where the system does not say what it has."""
        if (held := _held(self.process.pid)) is None:
            return None
        import resource  # which Linux has

        left = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, MOST_LEFT)
        return held[0] + left, held[1] + MOST_THREADS_LEFT

    def _leaks(self) -> bool:
        """Whether items have left it with more; by what the system says, not the process."""
        if self.most is None:
            return False
        held = _held(self.process.pid)
        return held is None or held[0] > self.most[0] or held[1] > self.most[1]

    def _gone(self, job: Outcome) -> Outcome:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(EXIT_SECONDS)
        code = self.process.poll()
        signals = {-number: number.name for number in signal.Signals}
        how = f"was killed by {signals.get(code, -code)}" if code and code < 0 else f"ended with exit code {code}"
        if code is None:
            how = "closed its pipe, or wrote more than it may take of memory"
        if not self.ready:
            raise RuntimeError(
                f"a worker {how} before it was ready: can the function's module be imported in a new process, and is what a "
                'script does guarded by `if __name__ == "__main__":`?'
            )
        if how.endswith("SIGALRM"):  # its own alarm, while nobody listened
            return self._timeout(job)
        if code == TOO_MUCH_SHARED:
            return replace(job, kind="memory", error=f"took more than {self.task.memory} bytes, shared memory with the rest")
        return replace(job, kind="crash", error=f"the process {how}")

    def _timeout(self, job: Outcome) -> Outcome:
        return replace(job, kind="timeout", error=f"ended after its limit of {self.task.seconds:g} s")

    def late(self) -> Outcome:
        """The outcome of a job whose time is over."""
        job = self.job
        assert job is not None
        self.end()
        if not self.ready:
            raise RuntimeError("a worker hung before it was ready: can the function's module be imported in a new process?")
        return self._timeout(job)

    def end(self) -> None:
        self.job, self.ended = None, True
        self.process.kill()  # native code may hold the GIL; anything milder would wait for it
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk may stay
            self.process.wait(EXIT_SECONDS)
        self.messages.put(None)
