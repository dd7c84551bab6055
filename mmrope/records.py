"""Records made of plain values, as JSON has them: each value must be of the type that its field is declared with.

What is wrong is refused with the path of its key: `decoder.num_heads must be a whole number of at least 1, got 'x'`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

MOST = 2**31 - 1
"""Of whole numbers: no size, token or index of a model is larger."""


class Must(NamedTuple):
    """What a value must be besides its type, in words and as a test."""

    be: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Must("a whole number of at least 1", lambda n: 1 <= n <= MOST)]
Natural = Annotated[int, Must("a whole number of at least 0", lambda n: 0 <= n <= MOST)]
Few = Annotated[int, Must("a whole number from 1 to 64", lambda n: 1 <= n <= 64)]
"""Patches of a token along a side, frames of a temporal grid: what is made once for an image is made so many times."""
Layers = Annotated[int, Must("a whole number from 1 to 1000", lambda n: 1 <= n <= 1000)]
"""Each is a module: a million of them would take minutes and gigabytes to be made, whatever their size."""
Positive = Annotated[float, Must("a positive number", lambda x: x > 0)]

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlong = 3, 60, 60, 40


def shown(value: Any) -> str:
    """A value in a message: of long and deep ones the beginning, of arrays the shape."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype} {list(value.shape)}"
    return _SHOWN.repr(value.item() if isinstance(value, np.generic) else value)


def is_number(value: Any) -> bool:
    """A finite number that a float holds; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return abs(int(value)) < 2**1023 if isinstance(value, numbers.Integral) else math.isfinite(value)


def made(hint: Any, value: Any, at: str) -> Any:
    """A plain value as what a type hint says: lists become tuples, objects the records that the hint names.

    Args:
        at: the path of the value's key, for messages.

    Raises:
        ValueError: it is not of this type.

    Example:
        >>> from mmrope.records import Count, made
        >>> made(tuple[Count, ...] | None, [2, 3], "sizes")
        (2, 3)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        if not _fits(args[0], value) or not args[1].holds(value):
            raise ValueError(f"{at} must be {args[1].be}, got {shown(value)}")
        return made(args[0], value, at)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in args:
            return None
        *others, last = [arg for arg in args if arg is not types.NoneType]
        fits = next((arg for arg in others if _fits(arg, value)), last)
        return made(fits, value, at)
    if origin is typing.Literal:
        if not any(type(value) is type(arg) and value == arg for arg in args):
            raise ValueError(f"{at} must be one of {args}, got {shown(value)}")
        return value
    if origin in (tuple, list, collections.abc.Sequence):
        of_each = len(args) if origin is tuple and args[-1] is not Ellipsis else None
        if not isinstance(value, (list, tuple)) or of_each not in (None, len(value)):
            raise ValueError(f"{at} must be a list{f' of {of_each}' if of_each else ''}, got {shown(value)}")
        return tuple(made(args[n if of_each else 0], item, f"{at}[{n}]") for n, item in enumerate(value))
    if origin in (dict, collections.abc.Mapping):
        if odd := [key for key in _object(value, at) if not isinstance(key, str)]:
            raise ValueError(f"{at} must be an object by names, got the name {shown(odd[0])}")
        return {key: made(args[1], item, path(at, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast("type", hint)):
        return record(typing.cast("type", hint), value, at)
    if not _fits(hint, value):
        raise ValueError(f"{at} must be {_WORDS.get(hint, getattr(hint, '__name__', hint))}, got {shown(value)}")
    return int(value) if hint is int else value


_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", dict: "an object"}


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the kind of a hint."""
    if typing.get_origin(hint) is Annotated:
        return _fits(typing.get_args(hint)[0], value)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return is_number(value)
    if hint is dict or dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping) or (hint is not dict and isinstance(value, typing.cast("type", hint)))
    kind: Any = typing.get_origin(hint) or hint
    if getattr(kind, "_is_protocol", False):  # of a function
        return callable(value)
    return isinstance(value, (list, tuple) if kind in (tuple, list) else kind)


def record(cls: type, values: Any, at: str = "", *, keys: Mapping[str, str] | None = None) -> Any:
    """A dataclass from plain values by the names of its fields.

    Args:
        at: the path of `values`.
        keys: by field the path that it was read at, where that is another.

    Raises:
        ValueError: values of another type, unknown keys, missing ones, or values that the dataclass refuses.

    Example:
        >>> from dataclasses import dataclass
        >>> from mmrope.records import Count, record
        >>> @dataclass
        ... class Sizes:
        ...     layers: Count = 1
        >>> record(Sizes, {"layers": 2})
        Sizes(layers=2)
        >>> record(Sizes, {"layers": "many"}, "decoder")
        Traceback (most recent call last):
        ValueError: decoder.layers must be a whole number of at least 1, got 'many'
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = hints_of(cls)
    values = _object(values, at or "it")
    if unknown := [key for key in values if key not in fields]:
        raise ValueError(f"{path(at, unknown[0])} is not known; known are {', '.join(fields)}")
    nothing = dataclasses.MISSING
    for name, field in fields.items():
        if name not in values and field.default is nothing and field.default_factory is nothing:
            raise ValueError(f"{path(at, name)} is missing")
    found = {key: made(hints[key], value, (keys or {}).get(key) or path(at, key)) for key, value in values.items()}
    try:
        return cls(**found)
    except ValueError as error:
        raise ValueError(f"{at}: {error}" if at else str(error)) from error


def check_fields(self: Any) -> None:
    """For `__post_init__` of a frozen dataclass: that each of its fields is of its type; lists become tuples."""
    hints = hints_of(type(self))
    for field in dataclasses.fields(self):
        object.__setattr__(self, field.name, made(hints[field.name], getattr(self, field.name), field.name))


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The types of a dataclass' fields."""
    return typing.get_type_hints(cls, include_extras=True)


def path(at: str, key: Any) -> str:
    """The path of a key in what is at a path."""
    return f"{at}.{key if isinstance(key, str) and 0 < len(key) < 200 else shown(key)}".removeprefix(".")


def _object(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{at} must be an object, got {shown(value)}")
    return value


class Keys:
    """The values of an object, of which each is checked when it is asked for.

    Example:
        >>> from mmrope.records import Count, Keys
        >>> text = Keys({"hidden_size": 64}, "text_config")
        >>> text("hidden_size", Count), text("head_dim", Count, None)
        (64, None)
        >>> text("num_attention_heads", Count)
        Traceback (most recent call last):
        ValueError: text_config.num_attention_heads is missing
    """

    def __init__(self, values: Any, at: str = "") -> None:
        self.values, self.at = _object(values, at or "it"), at

    def __call__(self, key: str, hint: Any, *default: Any) -> Any:
        """The value of a key; what is missing, or null, is the default where there is one."""
        if default and self.values.get(key) is None:
            return default[0]
        if key not in self.values:
            raise ValueError(f"{self.path(key)} is missing")
        return made(hint, self.values[key], self.path(key))

    def path(self, key: str) -> str:
        """Of a key."""
        return path(self.at, key)

    def part(self, key: str) -> Keys:
        """An object within; empty where it is missing."""
        value = self.values.get(key)
        return Keys({} if value is None else value, self.path(key))
