"""Bulk work on strangers' files: a function runs on each item in a process that can be killed.

item --pickle--> worker (limits of time and memory) --pickle--> Outcome, in the order of the items
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from mmrope.extras import needed_for
from mmrope.preprocess.isolation_worker import STATM, said, work

AHEAD = 4  # items read per worker before the first of them is given back: a slow one does not stop the others
MOST_SECONDS = 1e6
START_SECONDS = 300.0  # for a worker to start and to import the function's module
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
    """refused: the function raised an error, or the item or the value cannot be pickled; empty if all went well."""


def isolated(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    seconds: float = 60.0,
    memory: int | None = 4 << 30,
    workers: int = 1,
    quarantine: str | Path | None = None,
    progress: bool = False,
) -> Generator[Outcome, None, None]:
    """The outcome of function(item) for each item, in order; an item that hangs, crashes or fails does not stop the others.

    It holds against accidents and is no sandbox; processes that the function starts itself are neither limited nor ended.
    When the generator ends or is closed, its workers are killed, and what they were at is lost.

    Args:
        function: at the top level of a module, which workers import: a script needs `if __name__ == "__main__":`.
        items: picklable; an endless iterator will do. At most 4 per worker are read ahead of the outcomes taken.
        seconds: of wall-clock time for an item, from when a worker has it: starting and importing do not count.
        memory: bytes that a worker may take beyond what it had when it was ready (Linux only). What the function imports
            itself counts: torch takes 0.8 GB. None for no limit, which functions that use CUDA need.
        workers: processes at a time.
        quarantine: a file; each failure is appended as it happens, a line of JSON (item cut to 500 characters).
        progress: shows a bar on stderr, with the number of failures.

    Raises:
        ValueError: options out of range, a function that cannot be pickled, a memory limit where there can be none.
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
    if memory is not None and not STATM.is_file():
        raise ValueError(f"memory={memory} cannot be kept to on this system, only on Linux; memory=None sets no limit")
    if quarantine is not None and (not Path(quarantine).absolute().parent.is_dir() or Path(quarantine).is_dir()):
        raise ValueError(f"quarantine must be a file in a folder that exists, got {str(quarantine)!r}")
    try:
        code = pickle.dumps(function)
    except Exception as error:
        raise ValueError(f"function must be picklable, defined at the top level of a module: {said(error)}") from error
    bar = {"total": len(items) if isinstance(items, Sized) else None, "unit": "item", "disable": not progress}
    return _run(lambda: _Worker(code, seconds, memory), iter(items), workers, quarantine, bar)


def _run(
    start: Callable[[], _Worker], items: Iterator[Any], workers: int, quarantine: str | Path | None, bar: dict[str, Any]
) -> Generator[Outcome, None, None]:
    with needed_for("isolated"):
        from tqdm import tqdm

    pool: list[_Worker] = []
    waiting: dict[int, Outcome] = {}  # for their turn
    read = given = failed = 0
    item, end = None, object()
    shown = tqdm(**bar)

    def done(outcome: Outcome) -> None:
        waiting[outcome.index] = outcome
        if outcome.kind and quarantine is not None:
            line = {"item": str(outcome.item)[:500], "index": outcome.index, "kind": outcome.kind, "error": outcome.error}
            with open(quarantine, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    try:
        while item is not end or given < read:
            # a worker that died after its last item goes, too: the next item would be blamed for it
            pool = [w for w in pool if not w.pipe.closed and (w.job is not None or w.process.is_alive())]
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
                    pool.append(free := start())
                free.take(job, payload)
            due = given in waiting  # seen before the pipes are read: workers that are free have something to do by then
            busy = [w for w in pool if w.job is not None]
            left = min((w.deadline for w in busy), default=0.0) - time.monotonic()
            # whoever takes the outcomes may have been away for long: what lies in a pipe was in time, and goes first
            ready = wait([w.pipe for w in busy], timeout=0 if due else max(0, left))
            for worker in busy:
                if worker.pipe in ready or time.monotonic() >= worker.deadline:
                    outcome = worker.hear(worker.pipe in ready)
                    if outcome is not None:
                        done(outcome)
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


class _Worker:
    """A process, its pipe, and its job, which is sent when the process says that it is ready."""

    def __init__(self, code: bytes, seconds: float, memory: int | None) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads, such as torch's, may deadlock
        self.seconds, self.ready = seconds, False
        self.job: Outcome | None = None
        self.payload = b""
        self.deadline = time.monotonic() + START_SECONDS
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, code, seconds, memory), daemon=True)
        self.process.start()
        theirs.close()

    def take(self, job: Outcome, payload: bytes) -> None:
        self.job, self.payload = job, payload
        if self.ready:
            with contextlib.suppress(OSError):  # a worker that died is found dead when its pipe is read
                self.pipe.send_bytes(payload)
            self.payload, self.deadline = b"", time.monotonic() + self.seconds

    def hear(self, spoke: bool) -> Outcome | None:
        """The outcome of the job, from what the process sent or how it ended; None if it was only now ready for the job."""
        job, message = self.job, None
        assert job is not None
        if spoke:
            with contextlib.suppress(EOFError, OSError):  # it died
                message = self.pipe.recv_bytes()
        if message is None:
            return self._ended(job, late=not spoke)
        if not self.ready:
            if message:
                raise RuntimeError(f"a worker cannot load the function, {message.decode()}: can its module be imported there?")
            self.ready = True
            return self.take(job, self.payload)
        self.job = None
        try:
            value, kind, error = pickle.loads(message)
        except Exception as problem:
            value, kind, error = None, "refused", f"the value cannot be unpickled here: {said(problem)}"
        if kind == "memory":
            self.end()  # what it still holds may leave too little for others
        return replace(job, value=value, kind=kind, error=error)

    def _ended(self, job: Outcome, *, late: bool) -> Outcome:
        self.process.join(0 if late else EXIT_SECONDS)
        code = self.process.exitcode
        self.end()
        signals = {-number: number.name for number in signal.Signals}
        how = f"was killed by {signals.get(code, -code)}" if code and code < 0 else f"ended with exit code {code}"
        if not self.ready:
            raise RuntimeError(
                f"a worker {'hung' if code is None else how} before it was ready: can the function's module be imported in a "
                'new process, and is what a script does guarded by `if __name__ == "__main__":`?'
            )
        if (code is None and late) or how.endswith("SIGALRM"):  # its own alarm, while nobody listened
            return replace(job, kind="timeout", error=f"ended after its limit of {self.seconds:g} s")
        return replace(job, kind="crash", error=f"the process {how}")

    def end(self) -> None:
        self.job = None
        self.process.kill()  # native code may hold the GIL; anything milder would wait for it
        self.process.join(EXIT_SECONDS)
        self.pipe.close()
