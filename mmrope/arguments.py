"""How the command line's arguments are read: texts, files and sizes in their order, options, and files that must be there."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from mmrope.extras import needed_for
from mmrope.preprocess.formats import IMAGE_FORMATS

IMAGES = {ending for row in IMAGE_FORMATS for ending in row.endings}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"}
DUMPS = {".json", ".npz", ".safetensors"}
FIGURES = (".png", ".svg", ".pdf", ".jpg")

# --- the parts of an input, in their order ----------------------------------------------------------------------------


class InOrder(TyperCommand):
    """Keeps --text, --image and --video in their places among the texts and files. It makes them positional, with a mark that
    no argument of a shell can contain."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._marked(args)))

    def _marked(self, args: Sequence[str]) -> Iterator[str]:
        valued = {name for param in self.params if not getattr(param, "is_flag", False) for name in param.opts}
        of_parts = valued & {"--text", "--image", "--video"}
        rest = iter(args)
        for arg in rest:
            option, equals, value = arg.partition("=")
            if arg == "--":
                yield arg
                yield from rest
            elif option not in of_parts:
                yield arg
                if arg in valued:  # what follows is its value, whatever it looks like
                    yield from islice(rest, 1)
            elif equals or (value := next(rest, None)) is not None:
                yield f"\0{option[2:]} {value}"
            else:
                yield arg  # without a value: the parser says so


TEXT = typer.Option(metavar="TEXT", help="A text, whatever it looks like; in its place among the parts.")


def item_of(part: str) -> dict[str, Any]:
    """A part of the command line as an item of a message."""
    if part.startswith("\0"):
        kind, _, value = part[1:].partition(" ")
        return _text(value) if kind == "text" else _size(kind, value)
    path, instead = Path(part), f"(for the text itself: --text {shlex.quote(short(part))})"
    suffix = path.suffix.lower()
    if _is(path, "file"):
        if suffix not in IMAGES | VIDEOS:
            endings = " ".join(sorted(IMAGES | VIDEOS))
            raise ValueError(f"{part} is a file, but not of a known kind ({endings}) {instead}")
        kind = "video" if suffix in VIDEOS or _is_animation(path) else "image"
        return {"type": kind, kind: part}
    if part and _is(path, "folder"):
        raise ValueError(f"{part} is a folder: name the files in it {instead}")
    if "://" in part and not re.search(r"\s", part):
        raise ValueError(f"{short(part)} is a URL: download it and name the file {instead}")
    if suffix in IMAGES | VIDEOS or re.fullmatch(r"\S*([/\\]\S*|\.[A-Za-z][A-Za-z0-9]{1,4})", part):
        raise ValueError(f"{short(part)}: no such file{_nearest(path, IMAGES | VIDEOS)} {instead}")
    return _text(part)


def _text(text: str) -> dict[str, Any]:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the shell that are no UTF-8
        raise ValueError(f"{text!a} is no UTF-8 text") from None
    return {"type": "text", "text": text}


def _is(path: Path, what: str) -> bool:
    try:
        return path.is_file() if what == "file" else path.is_dir()
    except OSError:  # too long for a name, or in a folder that may not be searched
        return False


def _is_animation(path: Path) -> bool:
    with needed_for("an image"):
        from mmrope.preprocess.image import is_animation  # Pillow is loaded once there is a file

    return is_animation(path)


def _nearest(path: Path, endings: set[str]) -> str:
    """The file with a name most like that of a missing one, as the end of a sentence."""
    from difflib import get_close_matches

    try:
        files = [file for file in path.parent.iterdir() if file.suffix.lower() in endings]
    except OSError:
        return f"; there is no folder {path.parent}"
    files.sort(key=lambda file: file.suffix.lower() == path.suffix.lower())  # of equal names the one with the same ending
    names = {file.stem.lower(): file for file in files}
    near = get_close_matches(path.stem.lower(), names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


_MOST_TOKENS = 128_000  # of an image or a video, as by the limits of files


def _size(kind: str, size: str) -> dict[str, Any]:
    """The value of --image or --video as an item of a message."""
    number, fps = r"([1-9]\d{0,5})", r"(\d{1,4}(?:\.\d{1,6})?)"
    pattern, example = rf"{number}x{number}", "the size in tokens, such as 16x24"
    if kind == "video":
        pattern = rf"{number}x{number}x{number}@{fps}(?:fps)?"
        example = "the size in tokens and the sampled frames a second, such as 8x16x24@2"
    match = re.fullmatch(pattern, size, re.ASCII | re.IGNORECASE)
    if not match or (kind == "video" and float(match[4]) == 0):
        raise ValueError(f"--{kind} takes {example}, got {short(size)!r}")
    grid = tuple(int(n) for n in match.groups()[: 2 if kind == "image" else 3])
    if math.prod(grid) > _MOST_TOKENS:
        raise ValueError(f"--{kind} {size} is {math.prod(grid):,} tokens: the most of one {kind} is {_MOST_TOKENS:,}")
    return {"type": kind, "grid": grid} | ({"fps": float(match[4])} if kind == "video" else {})


def short(text: str, most: int = 44) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= most else f"{text[: most - 12]} … {text[-9:]}"


# --- options ------------------------------------------------------------------------------------------------------------


def between(least: float, most: float) -> Callable[[Any], Any]:
    """A check of an option's number."""

    def check(value: Any) -> Any:
        if value is not None and not least <= value <= most:  # nor NaN
            raise typer.BadParameter(f"{value:g} is not from {least:g} to {most:g}")
        return value

    return check


def drawable(path: Path | None) -> Path | None:
    """A figure's file: what cannot be one is said before anything is computed."""
    if path is None:
        return None
    if path.suffix.lower() not in FIGURES:
        raise typer.BadParameter(f"a figure's file ends in {', '.join(FIGURES)}, got {str(path)!r}")
    if _is(path, "folder"):
        raise typer.BadParameter(f"{path} is a folder: name a file in it")
    folder(path.parent)
    return path


def folder(path: Path) -> Path:
    """A folder to write into, which may have to be made."""
    for part in (path, *path.parents):
        if _is(part, "file"):
            raise typer.BadParameter(f"{part} is a file, not a folder")
    return path


def known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?", name):
        raise typer.BadParameter(f"cannot use the device {name!r}: give cpu, cuda, cuda:1, mps, xpu or auto")
    return name


def family_names(incomplete: str) -> list[str]:
    """For shell completion."""
    from mmrope.positions import FAMILIES

    return [key for key in FAMILIES if key.startswith(incomplete)]


# --- files that are read whole ------------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    from mmrope.files import read_object

    path = path / "config.json" if _is(path, "folder") else path
    must_be_there(path, {".json"})
    return read_object(path)


def must_be_there(path: Path, endings: set[str]) -> None:
    if _is(path, "folder"):
        raise ValueError(f"{path} is a folder: name the file in it")
    if not _is(path, "file"):
        raise ValueError(f"{path}: no such file{_nearest(path, endings)}")
