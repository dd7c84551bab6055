"""What runs in the processes of `isolated`: a function, under limits of time and memory, and in a sandbox if one is asked for.

Messages are bytes, each after its length. The first that a worker reads is its task, and each after it an item, pickled; the
first that it writes is empty if it is ready, and otherwise why it cannot be, and each after it what came of an item, as data.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import multiprocessing.spawn
import os
import pickle
import queue
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from mmrope.preprocess import sandbox
from mmrope.preprocess.isolation_data import to_data

STATUS = Path("/proc/self/status")
"""Where Linux says how much memory a process has."""
TOO_MUCH_SHARED = 101
"""The exit code of a worker whose shared memory, which the system does not limit, is too large with the rest."""
_LENGTH = struct.Struct(">Q")
_AT_ONCE = 1 << 24  # bytes: memory for a message is taken as it comes, not as its length says
LONGEST = 10_000  # characters of what an error says
importing = False  # the modules of the function; what they start would start them again


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do with items."""

    parent: dict[str, Any]
    """What multiprocessing tells the processes that it spawns: folders, the main module."""
    function: bytes
    """Pickled."""
    seconds: float
    memory: int | None
    sandboxed: bool


def work() -> None:
    """What a worker does until nobody writes to its standard input."""
    source, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the function prints is no answer
    faulthandler.disable()  # a crash is told by its exit code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    jobs: queue.SimpleQueue[bytearray | MemoryError] = queue.SimpleQueue()
    task: Assignment = pickle.loads(receive(source))
    threading.Thread(target=_listen, args=(source, jobs), daemon=True).start()
    with contextlib.suppress(OSError):  # nobody is there any more
        try:
            function = _prepared(task)
        except Exception as error:
            send(answers, str(error).encode(errors="replace"))
            return
        send(answers, b"")
        while True:
            job = jobs.get()
            if isinstance(job, MemoryError):  # it was too large to arrive
                send(answers, to_data((None, "memory", said(job))))
                return
            try:
                send(answers, _answer(function, job, task.seconds))
            except MemoryError as error:  # nothing is left to answer with
                send(answers, to_data((None, "memory", said(error))))
                return


def _prepared(task: Assignment) -> Callable[[Any], Any]:
    """The function; from here on limits hold, and what was imported for it does not count."""
    global importing
    importing = True
    try:
        multiprocessing.spawn.prepare(task.parent)
        function = pickle.loads(task.function)
    except Exception as error:
        raise ImportError(f"it cannot load the function, {said(error)}: can its module be imported there?") from error
    importing = False
    if task.sandboxed:
        for module, libraries in sandbox.LIBRARIES.items():
            for library in filter(find_spec, libraries if module in sys.modules else ()):
                import_module(library)
        tempfile.gettempdir()  # libraries ask for it, and it is found by writing to it
    if STATUS.is_file():
        _limit(task.memory)
    if task.sandboxed:
        for printed in (1, 2):  # the parent's terminal, or its log
            os.dup2(os.open(os.devnull, os.O_WRONLY), printed)
        try:
            sandbox.enter()
        except OSError as error:
            raise OSError(f"the kernel, or the container around it, allows no sandbox: {said(error)}") from error
    return function


def _listen(source: IO[bytes], jobs: queue.SimpleQueue[bytearray | MemoryError]) -> None:
    """Reads items, and ends a worker whose parent is gone: one amid an item would not notice."""
    try:
        while True:
            jobs.put(receive(source))
    except (EOFError, OSError):
        os._exit(1)
    except MemoryError as error:
        jobs.put(error)


def receive(file: IO[bytes], most: float = float("inf")) -> bytearray:
    """A message.

    Raises:
        EOFError: there is none, it is not whole, or it has more than `most` bytes.
    """
    start = file.read(_LENGTH.size)
    if len(start) < _LENGTH.size or (length := _LENGTH.unpack(start)[0]) > most:
        raise EOFError
    message = bytearray()
    while len(message) < length:
        if not (part := file.read(min(_AT_ONCE, length - len(message)))):
            raise EOFError
        message += part
    return message


def send(file: IO[bytes], message: bytes | bytearray) -> None:
    """Writes a message."""
    file.write(_LENGTH.pack(len(message)))
    file.write(message)
    file.flush()


def _limit(memory: int | None) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would be as large as the process
    if memory is not None:
        # of data, not of address space: libraries that are mapped, such as torch's 3 GB, are no memory that anyone eats
        status = STATUS.open(encoding="utf-8")  # kept open: who has no descriptors left is watched, too
        limit = _taken(status, "VmData") + memory
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        most = limit + _taken(status, "RssShmem")
        threading.Thread(target=_watch, args=(status, most), daemon=True).start()


def _watch(status: IO[str], limit: int) -> None:
    """Shared memory is no data to the system. Who cannot be watched any more is ended, too."""
    try:
        while _taken(status, "VmData", "RssShmem") <= limit:
            time.sleep(0.05)
    finally:
        os._exit(TOO_MUCH_SHARED)


def _taken(status: IO[str], *kinds: str) -> int:
    """Bytes of memory of these kinds that this process has."""
    status.seek(0)
    lines = (line.split() for line in status.read().splitlines())
    return sum(int(words[1]) << 10 for words in lines if words and words[0].removesuffix(":") in kinds)


def _answer(function: Callable[[Any], Any], payload: bytearray, seconds: float) -> bytearray:
    if alarm := getattr(signal, "setitimer", None):
        # the system ends the process then, even if native code holds the GIL and the parent is busy or gone
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        alarm(signal.ITIMER_REAL, seconds + 1)
    try:
        return to_data((function(pickle.loads(payload)), "", ""))
    except Exception as error:
        failure = None, "memory" if _wants_memory(error) else "refused", said(error)
    finally:
        if alarm:
            alarm(signal.ITIMER_REAL, 0)
    return to_data(failure)


_NO_MEMORY = (os.strerror(errno.ENOMEM), os.strerror(errno.EAGAIN), "can't start new thread")
"""EAGAIN is what the system says where a thread has no room for its stack."""


def _wants_memory(error: BaseException | None) -> bool:
    """MemoryError, or what libraries say in its place or make of it."""
    for _ in range(100):  # of an error whose cause is itself, too
        if error is None or isinstance(error, MemoryError) or any(words in said(error) for words in _NO_MEMORY):
            return error is not None
        error = error.__cause__ or error.__context__
    return False


def said(error: BaseException) -> str:
    """What an error says; it may be anyone's, and its own text may fail."""
    try:
        text = str(error)[:LONGEST]
    except Exception as problem:
        text = f"(its text raises {type(problem).__name__})"
    return f"{type(error).__name__}: {text}"
