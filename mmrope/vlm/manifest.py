"""A saved model's manifest: whether its files are those that were saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrope.files import read_object, replacing, to_json

MANIFEST_NAME = "manifest.json"
_AGAIN = "copy the folder again, or save the model again with save_pretrained"
_WORDS = {"bytes": "its size in bytes", "sha256": "its SHA-256"}


def write_manifest(folder: str | Path, names: Sequence[str]) -> None:
    """Writes `manifest.json`: the SHA-256 and the size in bytes of each of these files of the folder, as they are now."""
    with replacing(Path(folder) / MANIFEST_NAME) as path:
        path.write_text(manifest_of({name: Path(folder) / name for name in names}), encoding="utf-8")


def manifest_of(files: Mapping[str, Path]) -> str:
    """What a manifest says of files by their names, which may be elsewhere as yet."""
    return to_json({"files": {name: _entry(path) for name, path in files.items()}})


def verify(folder: str | Path, names: Sequence[str]) -> bool:
    """That these files of the folder are those that its manifest describes, where it has one.

    A manifest tells damage and mixed-up files; it comes with the files, and says nothing about who made them.

    Returns:
        Whether it has one.

    Raises:
        ValueError: a file is missing, differs from the manifest, or is not described by it.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_NAME).is_file():
        return False
    try:
        manifest = read_object(folder / MANIFEST_NAME)
    except ValueError as error:
        raise ValueError(f"{error}; {_AGAIN}") from error
    files = manifest.get("files")
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}: a model is saved with save_pretrained")
        expected = files.get(name) if isinstance(files, dict) else None
        if not isinstance(expected, dict) or set(expected) != {"sha256", "bytes"}:
            raise ValueError(
                f"{folder / name} is not among the files of the manifest ({MANIFEST_NAME}), with its sha256 and bytes; {_AGAIN}"
            )
        for key, value in _entry(folder / name).items():
            if expected[key] != value:
                raise ValueError(
                    f"{folder / name} differs from its manifest: {_WORDS[key]} is {value}, not {expected[key]!r}. It was "
                    f"changed or damaged after it was saved, or the saving was interrupted; {_AGAIN}"
                )
    return True


def verify_all(folder: str | Path, needed: Sequence[str]) -> None:
    """That a folder has a manifest, and every file that it describes, as it describes it: these at the least.

    Raises:
        ValueError: it has none, files that differ, or not all that are needed.
    """
    path = Path(folder) / MANIFEST_NAME
    files = read_object(path).get("files") if path.is_file() else None
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{folder} has no {MANIFEST_NAME} that describes its files")
    if strange := [name for name in files if not is_plain_name(name)]:
        raise ValueError(f"{path} describes {strange[0]!r}, which is no file of the folder")
    if missing := [name for name in needed if name not in files]:
        raise ValueError(f"{path} does not describe {missing[0]}: something else was saved to the folder")
    verify(folder, list(files))


def is_plain_name(name: str) -> bool:
    """Whether it is the name of a file, which does not lead out of its folder."""
    return Path(name).name == name and "\0" not in name and len(name.encode(errors="replace")) < 256


def _entry(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
