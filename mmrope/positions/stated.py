"""What users state: whole numbers, numbers, arrays of them, words to choose from. Each is checked here, once, so that every
refusal says what was asked for and what was given, in words of our own."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmrope.records import shown

LARGEST = 2**62
"""Numbers stay below, so that sums of two are still of 64 bits."""
MOST_AT_ONCE = 2**40
"""Ids, of 8 TiB: more fit in no memory."""


def whole(value: Any, what: str, *, least: int | None = None, of: str = " of tokens") -> int:
    """A number of tokens, or of anything else that is counted."""
    try:
        count = operator.index(_no_bool(value))
    except (TypeError, ValueError):  # ValueError: of an array of several numbers, which is none
        raise ValueError(f"{what} must be a whole number{of}, got {shown(value)}") from None
    if least is not None and count < least:
        raise ValueError(f"{what} must be at least {least}, got {count}")
    if not abs(count) < LARGEST:
        raise ValueError(f"{what} must be below 2^62, got {shown(count)}")
    return count


def whole_numbers(
    values: Any, what: str, *, count: int | None = None, least: int | None = None, of: str = " of tokens"
) -> tuple[int, ...]:
    """Several of them, `count` if that is stated."""
    found = tuple(whole(value, f"{what}: each", least=least, of=of) for value in several(values, what))
    if count is not None and len(found) != count:
        raise ValueError(f"{what} must be {count} whole numbers, got {shown(values)}")
    return found


def several(values: Any, what: str, asked: str = "a list") -> list[Any]:
    """A list of whatever it is."""
    if (
        not isinstance(values, Iterable)
        or isinstance(values, (str, bytes))
        or (isinstance(values, np.ndarray) and not values.ndim)
    ):
        raise ValueError(f"{what} must be {asked}, got {shown(values)}")
    return list(values)


def numbers(value: Any, what: str, kinds: str = "iuf", shape: str = "", *, asked: str = "") -> np.ndarray:
    """An array of numbers: of whole ones by the `kinds` "iu", of those with fractions by "iuf", and of bools with "b". What was
    `asked` for is said by its shape, or in other words."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RuntimeError):  # ragged, no numbers, on another device
        array = None
    if array is None or array.dtype.kind not in kinds:
        given = shown(value) if array is None else f"{array.dtype} {list(array.shape)}"
        asked = asked or f"{'' if 'f' in kinds else 'whole '}numbers{shape}"
        raise ValueError(f"{what} must be {asked}, an array or lists of equal lengths on the host, got {given}")
    if array.dtype.itemsize == 8 and array.dtype.kind in "iu" and array.size:
        # a step of decoding waits for this: ufuncs take half of the time of methods, and an item less
        least, most = (
            (array.item(),) * 2 if array.ndim == 0 else (np.minimum.reduce(array, None), np.maximum.reduce(array, None))
        )
        if not -LARGEST < least <= most < LARGEST:
            raise ValueError(f"{what} must be below 2^62, got {shown(max(abs(int(least)), abs(int(most))))}")
    return array


def choice(value: Any, what: str, allowed: Sequence[str]) -> None:
    """Refuses what is none of the words to choose from."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{what} must be one of {tuple(allowed)}, got {shown(value)}")


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise TypeError
    return value
