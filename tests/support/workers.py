"""What the workers of test_isolation.py run. Every one of them imports this file, so it imports little."""

from __future__ import annotations

import multiprocessing
import re
import time

from mmrope.preprocess.errors import MediaError


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


def returned_there_alone():
    if multiprocessing.parent_process() is None:
        raise ValueError("it is of no use here")
    return Unloadable()


class Unloadable:
    def __reduce__(self):
        return returned_there_alone, ()
