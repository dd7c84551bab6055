"""The files of a saved model: whether they are those that were saved is known before one of them is parsed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrope.files import replacing, to_json

MANIFEST_NAME = "manifest.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of weights in formats that are not read."""
_AGAIN = "copy the folder again, or save the model again with save_pretrained"
_WORDS = {"bytes": "its size in bytes", "sha256": "its SHA-256"}


def write_manifest(folder: str | Path, names: Sequence[str]) -> None:
    """Writes `manifest.json`: the SHA-256 and the size in bytes of each of these files of the folder, as they are now."""
    files = {name: _entry((Path(folder) / name).read_bytes()) for name in names}
    with replacing(Path(folder) / MANIFEST_NAME) as path:
        path.write_text(to_json({"files": files}), encoding="utf-8")


def verify(folder: str | Path, names: Sequence[str]) -> dict[str, bytes]:
    """The contents of these files of the folder, which are those that the manifest describes.

    Parse what is returned, and do not read the files again: they may be others by then. A manifest tells damage and mixed-up
    files; it comes with the files, and says nothing about who made them.

    Raises:
        ValueError: a file is missing or differs from its manifest, or there is no manifest that describes it.
    """
    folder = Path(folder)
    for name in (*names, MANIFEST_NAME):
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}: a model is saved with save_pretrained")
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8
        raise ValueError(f"{folder / MANIFEST_NAME} is not a manifest ({error}); {_AGAIN}") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    contents = {}
    for name in names:
        expected = files.get(name) if isinstance(files, dict) else None
        if not isinstance(expected, dict) or set(expected) != {"sha256", "bytes"}:
            raise ValueError(f"{folder / name} is not in the manifest ({MANIFEST_NAME}), with its sha256 and bytes; {_AGAIN}")
        content = (folder / name).read_bytes()
        for key, value in _entry(content).items():
            if expected[key] != value:
                raise ValueError(
                    f"{folder / name} differs from its manifest: {_WORDS[key]} is {value}, not {expected[key]!r}. It was "
                    f"changed or damaged after it was saved, or the saving was interrupted; {_AGAIN}"
                )
        contents[name] = content
    return contents


def refuse_pickles(folder: str | Path, name: str) -> None:
    """Raises ValueError if a folder has weights as pickles instead of the safetensors file of this name."""
    pickles = sorted(path.name for path in Path(folder).glob("*") if path.suffix in PICKLES)
    if pickles and not (Path(folder) / name).is_file():
        raise ValueError(
            f"{folder} has {pickles[0]} and no {name}: weights are read from safetensors only, pickles can run code; convert it"
        )


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
