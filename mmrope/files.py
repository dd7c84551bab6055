"""Files that are there whole or not at all, what is written to them as JSON, and whether they are as a manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, which holds files alone; what had its name goes when the new one is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    try:
        yield temporary
        for file in (*temporary.iterdir(), temporary):
            flush(file)
        remove(path)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, or a file if there is one, or a link and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def to_json(values: Any, *, allow_nan: bool = True) -> str:
    """As indented JSON; numpy's numbers, which settings are often computed with, are numbers."""
    return json.dumps(values, indent=2, default=_number, allow_nan=allow_nan) + "\n"


def _number(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r}, a {type(value).__name__}, cannot be written as JSON")


class Size(NamedTuple):
    """The most that a file of settings may have."""

    bytes: int
    parts: int
    """Of JSON: brackets and commas, for each of which Python takes up to 250 bytes."""


SETTINGS = Size(4 * 2**20, 2**18)
"""Configs, chat templates, manifests: one that names 21,000 classes, and each of them back, has 44,000 parts in 2 MiB."""
TABLES = Size(64 * 2**20, 2**22)
"""What names each token or weight: the largest tokenizer.json and index that are released have half of it."""
_DEEPEST = 100


def read_text(path: Path, most: Size = SETTINGS, *, anew: bool = False) -> str:
    """The text of a file of settings.

    Args:
        anew: whether it is read to be written anew, and need not be as the folder's manifest says.

    Raises:
        ValueError: more than `most.bytes`, not as the folder's manifest says, or no UTF-8.
    """
    if (size := path.stat().st_size) > most.bytes:
        raise ValueError(f"{path} has {size:,} bytes, and such a file has at most {most.bytes:,}")
    try:
        return (path.read_bytes() if anew else _as_described(path)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def read_old(path: Path, most: Size = SETTINGS) -> dict[str, Any]:
    """The object that a JSON file holds which is to be written anew; nothing where there is none."""
    return json_object(read_text(path, most, anew=True).removeprefix("\ufeff"), str(path), most) if path.is_file() else {}


def read_object(path: Path, most: Size = SETTINGS) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: it holds something else, is larger than `most`, or is nested deeper than a config ever is.
    """
    return json_object(read_text(path, most).removeprefix("\ufeff"), str(path), most)


def json_object(text: str, name: str, most: Size = SETTINGS) -> dict[str, Any]:
    """The object that a text of JSON holds.

    Raises:
        ValueError: it holds something else, has more than `most.parts`, or is nested deeper than a config ever is.

    Example:
        >>> from mmrope.files import json_object
        >>> json_object('{"model_type": "qwen2_vl"}', "config.json")
        {'model_type': 'qwen2_vl'}
    """
    if (parts := sum(map(text.count, "[{,"))) > most.parts:  # before Python makes objects of them
        raise ValueError(f"{name} has {parts:,} brackets and commas, and such a file has at most {most.parts:,}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or nested beyond Python's own depth
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} must hold an object, got {type(values).__name__}")
    for key, value in values.items():
        level, depth = [value], 0
        while level and depth < _DEEPEST:
            level, depth = [item for each in level if isinstance(each, (dict, list)) for item in _items(each)], depth + 1
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
