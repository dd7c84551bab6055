"""What runs in the processes of `isolated`: a function, under limits of time and memory."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

STATM = Path("/proc/self/statm")
"""Where Linux says how large a process is, in pages."""


def work(pipe: Connection, code: bytes, seconds: float, memory: int | None) -> None:
    """What a worker does until its pipe is closed: pickled items in, pickled (value, kind, error) out.

    Its first message is empty if it is ready, and otherwise why it cannot be.
    """
    faulthandler.disable()  # a crash is told by its exit code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # of the pipe: nobody is there any more
        try:
            function = pickle.loads(code)
        except Exception as error:
            pipe.send_bytes(said(error).encode(errors="replace"))
            return
        if STATM.is_file():
            _limit(memory)  # from here on: what was imported does not count
        pipe.send_bytes(b"")  # ready
        try:
            while True:
                pipe.send_bytes(_answer(function, pipe.recv_bytes(), seconds))
        except MemoryError as error:  # the item is too large to arrive, or nothing is left to answer with
            pipe.send_bytes(pickle.dumps((None, "memory", said(error))))


def _end_with_parent() -> None:
    """A parent that was killed ends nobody, and a worker amid an item does not look at its pipe."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _limit(memory: int | None) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would be as large as the process
    if memory is not None:
        # of data, not of address space: libraries that are mapped, such as torch's 3 GB, are no memory that anyone eats
        limit = int(STATM.read_text().split()[5]) * resource.getpagesize() + memory
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _answer(function: Callable[[Any], Any], payload: bytes, seconds: float) -> bytes:
    """Pickled as plain bytes: torch's shared memory would go with a worker that is killed."""
    if alarm := getattr(signal, "setitimer", None):
        # the system ends the process then, even if native code holds the GIL and the parent is busy or gone
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        alarm(signal.ITIMER_REAL, seconds + 1)
    try:
        return pickle.dumps((function(pickle.loads(payload)), "", ""))
    except Exception as error:
        failure = None, "memory" if _wants_memory(error) else "refused", said(error)
    finally:
        if alarm:
            alarm(signal.ITIMER_REAL, 0)
    return pickle.dumps(failure)


def _wants_memory(error: BaseException | None) -> bool:
    """MemoryError, or what libraries say in its place or make of it."""
    while error is not None and not isinstance(error, MemoryError) and os.strerror(errno.ENOMEM) not in str(error):
        error = error.__cause__ or error.__context__
    return error is not None


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
