"""Files that are there whole or not at all, what is written to them as JSON, and whether they are as a manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write to, moves it into place after, and removes it if writing failed. What is
    in place is on the disk: a machine that stops leaves the old file or the new one."""
    with replacing_all(path.parent, [path.name]) as [temporary]:
        yield temporary


@contextmanager
def replacing_all(folder: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """The same for several files of a folder, which are moved in this order when all of them are on the disk. Let the first
    describe the others: whoever is interrupted then leaves the old files, or some that are not as the first says. What a
    process that was killed had not moved is removed by the next that writes the same files on this machine."""
    begins = [f".{name}.{platform.node()}." for name in names]
    temporaries = [folder / f"{begin}{os.getpid()}.{threading.get_native_id()}" for begin in begins]
    for path in folder.iterdir():
        if begin := next((begin for begin in begins if path.name.startswith(begin)), None):
            pid = path.name.removeprefix(begin).partition(".")[0]
            if pid.isdecimal() and not _runs(int(pid)):
                path.unlink(missing_ok=True)
    try:
        yield temporaries
        for temporary in temporaries:
            flush(temporary)
        for temporary, name in zip(temporaries, names, strict=True):
            os.replace(temporary, folder / name)
        flush(folder)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 is one
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def replacing_described(folder: Path, names: Sequence[str], others: Mapping[str, Any]) -> Iterator[list[Path]]:
    """The same, with a manifest of these files and what it says of others, which is moved first."""
    with replacing_all(folder, [MANIFEST_NAME, *names]) as [manifest, *paths]:
        yield paths
        entries = {name: entry(path) for name, path in zip(names, paths, strict=True)}
        manifest.write_text(to_json({"files": {**others, **entries}}), encoding="utf-8")


def write_texts(folder: Path, contents: Mapping[str, str]) -> None:
    """Writes files of a folder by their names: all of them or none, whatever the disk does; see `replacing_all`. If the folder
    has a manifest, it describes them, too.

    Raises:
        ValueError: the manifest cannot be read.
    """
    others, names = described(folder), list(contents)
    with replacing_described(folder, names, others) if others else replacing_all(folder, names) as paths:
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_text(content, encoding="utf-8")


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # which has no such thing for folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(values: Any) -> str:
    """As indented JSON; numpy's numbers, which settings are often computed with, are numbers."""
    return json.dumps(values, indent=2, default=_number) + "\n"


def _number(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r}, a {type(value).__name__}, cannot be written as JSON")


MOST_BYTES = 64 * 2**20
"""Of a JSON file: the largest tokenizer.json and index of released models have half of it."""
_DEEPEST = 100


def read_text(path: Path, *, anew: bool = False) -> str:
    """The text of a file of settings.

    Args:
        anew: whether it is read to be written anew, and need not be as the folder's manifest says.

    Raises:
        ValueError: more than `MOST_BYTES`, not as the folder's manifest says, or no UTF-8.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and files of settings have at most {MOST_BYTES:,}")
    try:
        return (path.read_bytes() if anew else _as_described(path)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def read_old(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds which is to be written anew; nothing where there is none."""
    return json_object(read_text(path, anew=True).removeprefix("\ufeff"), str(path)) if path.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: it holds something else, is larger than `MOST_BYTES`, or is nested deeper than a config ever is.
    """
    return json_object(read_text(path).removeprefix("\ufeff"), str(path))


def json_object(text: str, name: str) -> dict[str, Any]:
    """The object that a text of JSON holds.

    Raises:
        ValueError: it holds something else, or is nested deeper than a config ever is.

    Example:
        >>> from mmrope.files import json_object
        >>> json_object('{"model_type": "qwen2_vl"}', "config.json")
        {'model_type': 'qwen2_vl'}
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or nested beyond Python's own depth
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} must hold an object, got {type(values).__name__}")
    for key, value in values.items():
        level = [value]
        for _ in range(_DEEPEST):
            level = [item for each in level if isinstance(each, (dict, list)) for item in _items(each)]
        if level:
            raise ValueError(f"{name}: {key} is nested deeper than {_DEEPEST} levels, which no such file is")
    return values


def _items(values: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return values.values() if isinstance(values, dict) else values


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the name of a file before what is said to be wrong with its values, where it is not said already."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


# --- manifests --------------------------------------------------------------------------------------------------------

MANIFEST_NAME = "manifest.json"
AGAIN = "copy the folder again, or save it again with save_pretrained"
_WORDS = {"bytes": "its size in bytes", "sha256": "its SHA-256"}


def described(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says of its files, by their names; nothing where it has none.

    Raises:
        ValueError: it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        files = read_object(path).get("files") if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{error}; {AGAIN}") from error
    return files if isinstance(files, dict) else {}


def entry(content: Path | bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    if isinstance(content, bytes):
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": content.stat().st_size, "sha256": digest.hexdigest()}


def check_described(path: Path, expected: Any, content: bytes | None = None) -> None:
    """That a file, or this content of it, is as its manifest's entry says.

    Raises:
        ValueError: it is not, or that is no entry.
    """
    if not isinstance(expected, dict) or set(expected) != {"sha256", "bytes"}:
        raise ValueError(f"{path} is not among the files of the manifest ({MANIFEST_NAME}), with its sha256 and bytes; {AGAIN}")
    for key, value in entry(path if content is None else content).items():
        if expected[key] != value:
            raise ValueError(
                f"{path} differs from its manifest: {_WORDS[key]} is {value}, not {expected[key]!r}. It was changed or damaged "
                f"after it was saved, or the saving was interrupted; {AGAIN}"
            )


def _as_described(path: Path) -> bytes:
    """The content of a file, which is what the folder's manifest says if it lists the file."""
    content, files = path.read_bytes(), {} if path.name == MANIFEST_NAME else described(path.parent)
    if path.name in files:
        check_described(path, files[path.name], content)
    return content
