"""The command line: `mmrope ids`, `ask`, `families`, `show`, `check`, `diff`, `lab`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn
from zipfile import BadZipFile

import numpy as np
import typer
from typer.core import TyperCommand

import mmrope.positions as places
from mmrope.positions import FAMILIES, Positions, explain, family, position_ids
from mmrope.positions.compare import placed
from mmrope.positions.families import departures
from mmrope.positions.inputs import INPUTS
from mmrope.preprocess.patches import PRESETS

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The position layer of multimodal transformers.",
)

lab = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Experiments that compare encodings.")
app.add_typer(lab, name="lab")

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif"}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"}


class _InOrder(TyperCommand):
    """Keeps --image and --video in their places among the texts and files, by making them positional with a mark that no
    argument of a shell can contain."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._marked(args)))

    @staticmethod
    def _marked(args: list[str]) -> Iterator[str]:
        rest = iter(args)
        for arg in rest:
            option, _, value = arg.partition("=")
            if option not in ("--image", "--video"):
                yield arg
            elif value or (value := next(rest, "")):
                yield f"\0{option[2:]} {value}"
            else:
                yield arg  # without a value: the parser says so


@app.command(cls=_InOrder)
def ids(
    parts: Annotated[list[str], typer.Argument(help="Texts, image files and video files, in their order.", show_default=False)],
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="HxW", help="An image of H x W tokens, without a file; in its place among the parts."),
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(metavar="TxHxW@FPSfps", help="A video of T x H x W tokens, sampled at FPS frames a second."),
    ] = None,
    family_name: Annotated[
        str, typer.Option("--family", help="A family, or a family and revision such as qwen2_5_vl@transformers-5.23.")
    ] = "qwen2_5_vl",
    fps: Annotated[float, typer.Option(help="Frames a second to sample video files at.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the ids of every token.")] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Draw every token's ids into this file (png, svg, pdf).", show_default=False)
    ] = None,
) -> None:
    """Show where each token of a mixed input sits: t, h and w ids, segment by segment.

    Sizes are in tokens of the language model (patches after the merge); text counts one token a byte.
    """
    try:
        content = [_content(part) for part in parts]
        made = _parts(content, family_name, fps)
        positions = position_ids([part.segment for part in made], family_name)
        labels = [part.label for part in made]
        if figure is not None:
            from mmrope.view.figure import save
            from mmrope.view.ids import plot_ids

            save(plot_ids(positions), figure)
    except (ValueError, OSError) as error:
        _fail("ids", error, 2)
    if as_json:
        typer.echo(json.dumps(_as_dict(positions, labels)))
    else:
        typer.echo(explain(positions, labels=[[_short(label) for label in labels]]))
        typer.echo(f"\ntext counts a token a byte{_cut_note(made, family_name)}")
    if figure is not None:
        typer.echo(f"wrote {figure}", err=True)


@app.command()
def ask(
    parts: Annotated[
        list[str],
        typer.Argument(help="Image and video files, then the question; without one, a conversation.", show_default=False),
    ],
    model: Annotated[
        Path | None, typer.Option(help="The folder of a saved model; by default the one that is shipped.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")] = "auto",
    temperature: Annotated[float, typer.Option(help="0 for the likeliest answer.")] = 0.0,
    figure: Annotated[
        Path | None, typer.Option(help="Draw where the decoder looked in the last image.", show_default=False)
    ] = None,
) -> None:
    """Ask a small model about images and videos. The one that is shipped reads handwritten digits; see its card.

    mmrope ask samples/grid.png "What is at row 2, column 3?"
    """
    try:
        media = [_content(part) for part in parts]
        given = [media.pop()["text"]] if media[-1]["type"] == "text" else None
        if any(item["type"] == "text" for item in media):
            raise ValueError("files come first, then one question; put it in quotes, and check that the files are there")
        from mmrope.vlm.assistant import Assistant, Chat
        from mmrope.vlm.tasks import QUESTIONS, is_known

        assistant = (
            Assistant.from_pretrained(device=device) if model is None else Assistant.from_pretrained(model, device=device)
        )
        chat = Chat(assistant, media)
        for question in given or _typed():
            if model is None and not is_known(question):
                typer.echo(f"the shipped model has learned these questions alone: {'  '.join(QUESTIONS)}", err=True)
            for piece in chat.stream(question, temperature=temperature):
                typer.echo(piece, nl=False)
            typer.echo()
        if figure is not None and chat.messages:
            from mmrope.view.figure import save
            from mmrope.view.model import plot_looks
            from mmrope.vlm.attention import looked_at

            *asked, answer = chat.messages
            looks = looked_at(assistant.model, assistant.processor, asked)
            if not looks:
                raise ValueError("--figure draws where the decoder looked in a file: give one")
            title = f"{asked[-1]['content'][-1]['text']} {answer['content']}"
            save(plot_looks(looks[-1].pixels, looks[-1].weights, title=title), figure)
            typer.echo(f"wrote {figure}", err=True)
    except (ValueError, OSError) as error:
        _fail("ask", error, 2)


def _typed() -> Iterator[str]:
    """Questions from the terminal, until an empty line or its end."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


@app.command()
def families() -> None:
    """List every family with the source of its rule, and what upstreams compute instead, by revision."""
    for key, row in FAMILIES.items():
        if not row.revision:
            facts = f"axes {row.axes}; {', '.join(row.media)}".replace("_", " ")
            typer.echo(f"{key:<22}{facts}\n{'':<22}{row.source}")
        else:
            typer.echo(f"  @{row.revision:<19}{'; '.join(departures(row)) or 'the same ids'}\n{'':<22}{row.source}")


class Figure(str, Enum):
    """What `mmrope show` draws."""

    frequencies = "frequencies"
    decay = "decay"
    scaling = "scaling"
    alibi = "alibi"


@app.command()
def show(
    what: Annotated[Figure, typer.Argument(help="frequencies of each pair, decay with distance, scaling, or alibi.")],
    figure: Annotated[Path, typer.Option(help="The file to draw into (png, svg, pdf).")] = Path("encoding.png"),
    family_name: Annotated[str, typer.Option("--family", help="Whose rotary embedding.")] = "qwen2_vl",
    preset_name: Annotated[str, typer.Option("--preset", help="Or a preset, such as wan.", show_default=False)] = "",
    heads: Annotated[int, typer.Option(help="Heads, for alibi.")] = 8,
) -> None:
    """Draw what an encoding does: the wavelengths of its pairs by axis, how scores fall with distance, what scalings leave of
    the frequencies, how ALiBi fades."""
    try:
        from mmrope.encodings.presets import preset
        from mmrope.encodings.spec import RotarySpec
        from mmrope.view import encodings as figures
        from mmrope.view.figure import save

        spec = preset(preset_name) if preset_name else RotarySpec.from_family(family_name)
        title = preset_name or family_name
        if what is Figure.frequencies:
            drawn = figures.plot_frequencies(spec, title=f"{title}: {spec!r}")
        elif what is Figure.decay:
            drawn = figures.plot_decay(spec, title=f"{title}: the score of equal vectors, some distance apart")
        elif what is Figure.scaling:
            drawn = figures.plot_scalings(spec, title=f"{title}: what scalings by 8 leave of each frequency")
        else:
            from mmrope.encodings.alibi import alibi_slopes

            drawn = figures.plot_alibi(alibi_slopes(heads).tolist())
        save(drawn, figure)
    except (ValueError, OSError) as error:
        _fail("show", error, 2)
    typer.echo(f"wrote {figure}", err=True)


@app.command()
def check(
    dump: Annotated[Path, typer.Argument(help="A .json, .npz or .safetensors file with a batch and its position_ids.")],
    family_name: Annotated[str, typer.Option("--family", help="A family, or a family and revision.")] = "",
    config: Annotated[
        Path | None, typer.Option(help="A checkpoint's config.json instead, for its own facts.", show_default=False)
    ] = None,
) -> None:
    """Say whether position_ids are those of a processor's batch (input_ids, mm_token_type_ids, image_grid_thw, ...; cu_seqlens
    of a packed one), and what they are if not. Ends with 0 if they are, with 1 if they are others, else with 2."""
    try:
        if bool(family_name) == (config is not None):
            raise ValueError("name the family (--family qwen2_5_vl) or the checkpoint's config (--config config.json)")
        rule = family(family_name) if config is None else places.family_from_config(config)
        batch = _dump(dump)
        rows = places.segments_from_inputs(batch, rule)
        places.check(batch["position_ids"], rows, rule, cu_seqlens=batch.get("cu_seqlens"))
    except places.WrongPositions as error:
        _fail("check", error, 1)
    except (ValueError, OSError) as error:
        _fail("check", error, 2)
    typer.echo(f"{dump}: the ids of {rule}")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A .json, .npz or .safetensors file with position_ids.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Show the first difference between two tables of position_ids. Tokens count where the files' attention_mask says so, and
    all if there is none. Ends with 0 if they are equal, with 1 if they differ, with 2 if they cannot be compared."""
    try:
        one, other = _dump(a), _dump(b)
        masks = [batch["attention_mask"] for batch in (one, other) if "attention_mask" in batch]
        found = places.diff(one["position_ids"], other["position_ids"], mask=masks[0] if masks else None)
        if len(masks) == 2 and not np.array_equal(masks[0], masks[1]):
            raise ValueError(f"{a} and {b} have different attention masks: they are not of the same tokens")
    except (ValueError, OSError) as error:
        _fail("diff", error, 2)
    typer.echo(str(found) if found else "no difference")
    raise typer.Exit(1 if found else 0)


@lab.command("list")
def lab_list() -> None:
    """The experiments, and what each asks."""
    from mmrope.lab import experiments

    for experiment in experiments():
        typer.echo(f"{experiment.name:12}{experiment.question}")


@lab.command("run")
def lab_run(
    name: Annotated[str, typer.Argument(help="One of `mmrope lab list`.")],
    quick: Annotated[bool, typer.Option(help="In seconds, to see that it works: its numbers mean nothing.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds of each variant, from 0 on.")] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    variant: Annotated[list[str] | None, typer.Option(help="Some of the variants; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="A folder for the results, the table and the figure.")] = Path("out/lab"),
) -> None:
    """Trains and measures what is missing in OUT, and writes a table and a figure. Killed, it goes on where it was."""
    from mmrope.lab import experiments
    from mmrope.lab.harness import run
    from mmrope.lab.report import plot, table
    from mmrope.view.figure import save

    try:
        known = {experiment.name: experiment for experiment in experiments()}
        if name not in known:
            raise ValueError(f"there is no experiment {name!r}; there are {', '.join(known)}")
        path = out / f"{name}{'-quick' if quick else ''}.json"
        results = run(
            known[name],
            path,
            quick=quick,
            seeds=seeds,
            device=device,
            variants=tuple(variant or ()),
            say=lambda line: typer.echo(line, err=True),
        )
        typer.echo("\n".join(table(known[name], results)))
        save(plot(known[name], results), path.with_suffix(".png"))
        typer.echo(f"wrote {path} and {path.with_suffix('.png')}", err=True)
    except (ValueError, OSError) as error:
        _fail("lab", error, 2)


def _fail(command: str, error: Exception, code: int) -> NoReturn:
    typer.echo(f"mmrope {command}: {error}", err=True)
    raise typer.Exit(code) from None


_KEYS = {"position_ids", "cu_seqlens", *INPUTS}


def _dump(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, with position_ids among them."""
    readers = {".json": _read_json, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise ValueError(f"{path} is no {', '.join(readers)} file")
    try:
        arrays = readers[path.suffix](path)
    except (ValueError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if "position_ids" not in arrays:
        raise ValueError(f"{path} has no position_ids; of what is read it has {', '.join(arrays) or 'nothing'}")
    return arrays


def _read_json(path: Path) -> dict[str, np.ndarray]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError('it must hold an object, such as {"input_ids": [[...]], "position_ids": [[[...]]]}')
    return {key: np.array(values[key]) for key in _KEYS & set(values) if values[key] is not None}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in _KEYS & set(file)}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in _KEYS & set(file.keys())}
    except (SafetensorError, TypeError) as error:  # TypeError: of a dtype that numpy has not
        raise ValueError(error) from None


def _content(part: str) -> dict[str, Any]:
    """A part of the command line as an item of a message."""
    if part.startswith("\0"):
        kind, _, size = part[1:].partition(" ")
        return _size(kind, size)
    path = Path(part)
    suffix = path.suffix.lower()
    kind = "image" if suffix in IMAGES else "video" if suffix in VIDEOS else None
    there = _is_there(path)
    if kind is None and there:
        raise ValueError(f"{part} is a file, but not of a known kind ({' '.join(sorted(IMAGES | VIDEOS))})")
    if kind is None or (" " in part and not there):  # "Look at photo.jpg" is a sentence
        return {"type": "text", "text": part}
    if kind == "image" and there:
        from mmrope.preprocess.image import is_animation  # Pillow is loaded once there is a file

        kind = "video" if is_animation(path) else kind
    return {"type": kind, kind: part}


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long for a name: a text
        return False


def _size(kind: str, size: str) -> dict[str, Any]:
    if kind == "image":
        match = re.fullmatch(r"(\d+)x(\d+)", size)
        if not match:
            raise ValueError(f"--image takes the size in tokens, as in 16x24, got {size!r}")
        return {"type": "image", "grid": tuple(map(int, match.groups()))}
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)@(\d+(?:\.\d+)?)fps", size)
    if not match:
        raise ValueError(f"--video takes the size in tokens and the sampled frames a second, as in 8x16x24@2fps, got {size!r}")
    t, h, w, fps = match.groups()
    return {"type": "video", "grid": (int(t), int(h), int(w)), "fps": float(fps)}


def _parts(content: Iterable[dict[str, Any]], family_name: str, fps: float) -> list[Any]:
    from mmrope.preprocess.processor import Processor

    return Processor(family=family_name, fps=fps).parts(content)


def _cut_note(parts: Iterable[Any], family_name: str) -> str:
    if not any(part.media and part.media.name for part in parts):
        return ""
    name = family(family_name).name
    side = PRESETS[name].patch_size
    return f"; files are cut into {side} x {side} pixel patches, as by {name}'s processor"


def _short(text: str, most: int = 44) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= most else f"{text[: most - 12]} … {text[-9:]}"


def _as_dict(positions: Positions, labels: list[str]) -> dict[str, Any]:
    items = placed(positions)
    return {
        "family": str(positions.family),
        "source": positions.family.source,
        "axes": positions.family.axes,
        "tokens": positions.ids.shape[-1],
        "next": positions.next[0].item(),
        "segments": [
            {
                "kind": item.segment.kind,
                "label": label,
                "start": item.start,
                "length": item.segment.length,
                "grid": item.segment.grid,
                "seconds_per_grid": item.segment.seconds_per_grid,
                "ids": item.ids,
                "next": item.next,
            }
            for item, label in zip(items, labels, strict=True)
        ],
        "position_ids": positions.ids[:, 0].tolist(),
    }
