"""A saved model's manifest: whether its files are those that were saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmrope.files import MANIFEST_NAME, check_described, described, entry, read_object, replacing, to_json


def write_manifest(folder: str | Path, names: Sequence[str]) -> None:
    """Writes `manifest.json`: the SHA-256 and the size in bytes of each of these files of the folder, as they are now."""
    with replacing(Path(folder) / MANIFEST_NAME) as path:
        path.write_text(to_json({"files": {name: entry(Path(folder) / name) for name in names}}), encoding="utf-8")


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
    files = described(folder)
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}: a model is saved with save_pretrained")
        check_described(folder / name, files.get(name))
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
