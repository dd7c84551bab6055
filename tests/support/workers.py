"""What the workers of test_isolation.py run. Every one of them imports this file, so it imports little."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import io
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from mmrope.preprocess.errors import MediaError
from mmrope.preprocess.isolation_worker import send


def doubled(item):
    return item * 2


def slept(seconds):
    time.sleep(seconds)
    return seconds


def hang_in_native_code():
    re.match(r"(a+)+$", "a" * 40 + "b")  # holds the GIL for years


def hang_in_python():
    while True:
        pass


def refuse(error):
    raise error


def take(size):
    return len(bytearray(size))


def fail_for_want_of_memory():
    try:
        take(3 << 30)
    except MemoryError as error:
        raise MediaError("cat.png cannot be read") from error


def obey(item):
    """An item that is a call is done, any other is doubled."""
    return item() if callable(item) else item * 2


def tensors(size):
    import torch

    return {"whole": torch.arange(size).double().sqrt(), "part": torch.arange(size)[::3].bfloat16()}


class Unpicklable:
    def __reduce__(self):
        raise TypeError("a socket is no data")


class NoData:
    """What no worker can send."""


def no_data():
    return NoData()


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def share(size):
    """Takes shared memory, which is no data to the system, and holds it."""
    import mmap

    shared = mmap.mmap(-1, size)
    for at in range(0, size, 4096):
        shared[at] = 1
    time.sleep(20)


def share_without_descriptors(size):
    """The same, after all descriptors were taken, and some of them given back."""
    files = []
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    time.sleep(0.3)
    for file in files:
        os.close(file)
    share(size)


def answer(message, times=1, then=20):
    """Writes answers of its own: as a decoder would that a file has taken over."""
    for file in gc.get_objects():
        if isinstance(file, io.BufferedWriter) and not file.closed and file.fileno() > 2:
            for _ in range(times):
                send(file, message)
    time.sleep(then)


def answer_and_stop(message):
    """Answers, and is stopped: nobody reads what is sent to it."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    answer(message)


LEAKED = []


def leak_descriptors(number):
    LEAKED.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(number))
    return os.getpid()


def leak_threads(number):
    for _ in range(number):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    return os.getpid()


class Mute(Exception):
    """An error whose text raises."""

    def __str__(self):
        raise RuntimeError("no text")


class Nameless:
    """An item whose text raises."""

    def __call__(self):
        raise Mute

    def __repr__(self):
        raise KeyError("no text")


def own_cause():
    error, other = ValueError("one"), ValueError("other")
    error.__cause__, other.__cause__ = other, error
    raise error


class IsolatedRows:
    """A data set whose rows are made by `isolated`."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        import numpy as np

        from mmrope.preprocess.isolation import isolated

        if index >= self.count:
            raise IndexError
        return np.array([outcome.value for outcome in isolated(doubled, [index, index + 1])])


def sandbox_again():
    from mmrope.preprocess import sandbox

    sandbox.enter()


# --- ways out of a sandbox: each does what it says and ends, or raises ---------------------------------------------------


def escape(way):
    name, folder, victim = way
    done = ESCAPES[name](folder, victim)
    if isinstance(done, int) and done < 0:  # of a call without a wrapper in Python
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call(number, *arguments):
    """A call of the system by its number on x86-64, and what it returns."""
    arguments = [ctypes.c_long(part) if isinstance(part, int) else part for part in arguments]
    return ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)


def closed(file):
    """A descriptor is closed; of a call that failed it is returned."""
    return file if file < 0 else os.close(file)


def _forked(folder, victim):
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)


def _written(folder, victim):
    with open(f"{folder}/file", "w") as file:
        file.write("here")
    os.remove(f"{folder}/file")


def _memory_of_another(folder, victim):
    """process_vm_writev: refused outside, too, for what it is told to write, but not for want of permission."""
    return call(311, victim, None, 0, None, 0, 1)


def _pipe_of(process):
    """A pipe of another process: what goes through it can be taken, or read with it."""
    for number in os.listdir(f"/proc/{process}/fd"):
        try:
            file = os.open(f"/proc/{process}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a socket, which nobody can open so
                raise
            continue
        found = stat.S_ISFIFO(os.fstat(file).st_mode)
        os.close(file)
        if found:
            return
    raise LookupError("it has no pipe")


def _other_worker():
    parent = os.getppid()
    workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(
        pid for pid in workers if int(pid) != os.getpid() and "isolation_worker" in Path(f"/proc/{pid}/cmdline").read_text()
    )


def _byte_of(process):
    """A byte of its memory."""
    file = os.open(f"/proc/{process}/mem", os.O_RDONLY)
    start = Path(f"/proc/{process}/maps").read_text().split("-")[0]
    assert len(os.pread(file, 1, int(start, 16))) == 1
    os.close(file)


def parents_environment(item=None):
    return len(Path(f"/proc/{os.getppid()}/environ").read_bytes())


LANDLOCKED = {  # what lies in /proc
    "a pipe of the parent": lambda folder, victim: _pipe_of(os.getppid()),
    "a pipe of another worker": lambda folder, victim: _pipe_of(_other_worker()),
    "the environment of the parent": lambda folder, victim: parents_environment() and None,
    "the memory of the parent": lambda folder, victim: _byte_of(os.getppid()),
    "the memory of another worker": lambda folder, victim: _byte_of(_other_worker()),
    "addresses of another": lambda folder, victim: Path(f"/proc/{victim}/maps").read_text() and None,
}
ESCAPES = {
    "a socket": lambda folder, victim: socket.socket().close(),
    "a UDP socket": lambda folder, victim: socket.socket(type=socket.SOCK_DGRAM).close(),
    "a UNIX socket": lambda folder, victim: socket.socket(socket.AF_UNIX).close(),
    "a pair of sockets": lambda folder, victim: [end.close() for end in socket.socketpair()],
    "a name looked up": lambda folder, victim: call(41, 2, 2, 0),
    "a file to write": _written,
    "a file to append to": lambda folder, victim: os.close(os.open(os.devnull, os.O_WRONLY | os.O_APPEND)),
    "a file to read and write": lambda folder, victim: os.close(os.open(os.devnull, os.O_RDWR)),
    "an old way to write": lambda folder, victim: closed(call(2, os.devnull.encode(), 1)),
    "openat2": lambda folder, victim: call(437, -100, os.devnull.encode(), (ctypes.c_uint64 * 3)(), 24),
    "a folder": lambda folder, victim: (os.mkdir(f"{folder}/new"), os.rmdir(f"{folder}/new")),
    "a file without a name": lambda folder, victim: os.close(os.memfd_create("name")),
    "a link": lambda folder, victim: (os.symlink("x", f"{folder}/link"), os.remove(f"{folder}/link")),
    "a file removed": lambda folder, victim: tempfile.TemporaryFile(dir=folder).close(),
    "a file of others changed": lambda folder, victim: os.chmod(folder, 0o700),
    "a process": _forked,
    "a program": lambda folder, victim: subprocess.run(["true"], check=True),
    "a program by itself": lambda folder, victim: call(59, b"/nowhere", None, None),
    "a signal": lambda folder, victim: os.kill(victim, 0),
    "a signal to a thread": lambda folder, victim: call(234, victim, victim, 0),
    "a signal by a descriptor": lambda folder, victim: call(424, os.pidfd_open(victim), 0, None, 0),
    "another's memory": _memory_of_another,
    "limits of another": lambda folder, victim: resource.prlimit(victim, resource.RLIMIT_NOFILE) and None,
    "its own limits": lambda folder, victim: call(302, 0, resource.RLIMIT_NOFILE, (ctypes.c_uint64 * 2)(64, 64), None),
    "shared memory of System V": lambda folder, victim: call(29, 0, 4096, 0o600),
    "io_uring": lambda folder, victim: closed(call(425, 1, (ctypes.c_uint8 * 120)())),
    "another namespace": lambda folder, victim: call(272, 0),
    **LANDLOCKED,
    "its filter": lambda folder, victim: call(317, 2, 0, ctypes.byref(ctypes.c_uint32(0x7FFF0000))),
}
