"""The command line: `mmrope ids`, `ask`, `families`, `formats`, `doctor`, `show`, `check`, `diff`, `lab`.

What a command needs is imported inside it: help, --version and shell completion load neither numpy nor torch.
"""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mmrope import __version__
from mmrope.arguments import (
    DUMPS,
    TEXT,
    InOrder,
    between,
    drawable,
    family_names,
    folder,
    item_of,
    known_device,
    must_be_there,
    read_config,
    short,
)
from mmrope.extras import BROUGHT_BY, needed_for

if TYPE_CHECKING:
    from mmrope.positions import Positions
    from mmrope.preprocess.parts import Part
    from mmrope.preprocess.processor import Processor
    from mmrope.preprocess.text import Tokenizer

# --- errors: one line on stderr, exit code 2 --------------------------------------------------------------------------

_UsageError: Any = typer.BadParameter.__base__  # of the click inside typer, which has no public name


class _Commands(TyperGroup):
    """Commands whose errors are said in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _errors_in_one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _errors_in_one_line(ctx):
            return super().invoke(ctx)


@contextmanager
def _errors_in_one_line(ctx: Any) -> Iterator[None]:
    """What a user can put right: other exceptions are bugs, and keep their traceback."""
    try:
        with needed_for("it"):
            yield
    except BrokenPipeError:  # `mmrope families | head`: typer ends without a word
        raise
    except _UsageError as error:
        if error.format_message().startswith("Usage:"):  # the help of a command without arguments
            raise
        _fail(error.ctx or ctx, error.format_message())
    except OSError as error:
        _fail(ctx, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
    except (ValueError, ImportError) as error:
        _fail(ctx, error)


def _fail(ctx: Any, error: object, code: int = 2) -> NoReturn:
    command = " ".join(filter(None, [ctx.command_path, ctx.invoked_subcommand]))
    typer.echo(f"{command}: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(code) from None


def _need(*modules: str) -> None:
    """That these modules are there: whoever lacks several is told so once."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        extras = " ".join(f"'{extra}'" for extra in dict.fromkeys(BROUGHT_BY[module] for module in missing))
        raise ImportError(f"it needs {', '.join(missing)}: pip install {extras}")


# --- the commands -----------------------------------------------------------------------------------------------------

app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
lab = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode=None, help="Experiments that compare encodings.")
app.add_typer(lab, name="lab")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mmrope {__version__}")
        raise typer.Exit


@app.callback()
def mmrope(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    plugin: Annotated[
        Path | None,
        typer.Option(help="A Python file to run first, which registers families of your own (register_family)."),
    ] = None,
) -> None:
    """The position layer of multimodal transformers."""
    if plugin is not None:
        must_be_there(plugin, {".py"})
        runpy.run_path(str(plugin))


@app.command(cls=InOrder, no_args_is_help=True)
def ids(
    parts: Annotated[list[str], typer.Argument(help="Texts, image files and video files, in their order.", show_default=False)],
    text: Annotated[list[str] | None, TEXT] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="HxW", help="An image of H x W tokens, without a file; in its place among the parts."),
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(metavar="TxHxW@FPS", help="A video of T x H x W tokens, sampled at FPS frames a second."),
    ] = None,
    family_name: Annotated[
        str | None,
        typer.Option(
            "--family",
            help="A family, or a family and revision such as qwen2_5_vl@transformers-5.23 (`mmrope families` lists them); "
            "qwen2_5_vl by default.",
            autocompletion=family_names,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a checkpoint instead: its tokens, written by its chat template as a user's message, and its "
            "way with files."
        ),
    ] = None,
    stride: Annotated[
        float | None, typer.Option(help="The stride of hope and v2pe, which their users choose.", show_default=False)
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Frames a second to sample video files at; 2 by default, or the checkpoint's.", callback=between(0.001, 1000)
        ),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print every token, with its number and ids.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the ids of every token.")] = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Also draw every token's ids into this file (png, svg, pdf, jpg).", callback=drawable),
    ] = None,
) -> None:
    """Show where each token of a mixed input sits: its t, h and w ids, segment by segment.

    \b
    mmrope ids "Describe" photo.jpg "then" clip.mp4 "and compare."
    mmrope ids "text" --image 16x24 --video 8x16x24@2
    mmrope ids --model path/to/Qwen3-VL-8B-Instruct photo.jpg "Describe it." --tokens

    A part is a file if there is a file of that name. It is also taken for a file, and an error if there is none, if it ends
    like an image or a video (.jpg, .mp4), or if it is one word with a slash or with an ending of 2 to 5 characters
    (photos/cat, notes.txt). Everything else is a text. A text that looks like a file goes after --text.

    Without --model, a text counts one token a byte. Sizes are in tokens of the language model (patches after the merge).
    """
    from mmrope.positions import explain, family, position_ids
    from mmrope.preprocess.text import TOKENIZER_NAME

    if model is not None and (family_name is not None or stride is not None):
        raise ValueError("--model says the family: leave --family and --stride out")
    content = [item_of(part) for part in parts]
    media = [item for item in content if item["type"] != "text"]
    files = any("grid" not in item for item in media)
    processor = (
        _processor("qwen2_5_vl" if family_name is None else family_name, stride, fps, files)
        if model is None
        else _of_checkpoint(model, fps)
    )
    rule = family(processor.family)
    if any(item["type"] == "video" for item in media) and not {"video", "frame"} & set(rule.media):
        raise ValueError(f"{rule.name} places {' and '.join(rule.media)}, and no videos")
    made = processor.parts(content) if model is None else processor.conversation([{"role": "user", "content": content}])
    positions = position_ids([part.segment for part in made], rule)
    numbers = [token for part in made for token in part.tokens]
    if figure is not None:
        from mmrope.view.figure import save
        from mmrope.view.ids import plot_ids

        save(plot_ids(positions), figure)
    if as_json:
        labels = [part.label for part in made]
        typer.echo(json.dumps(_as_dict(positions, labels) | ({"input_ids": numbers} if model or tokens else {})))
    else:
        typer.echo(explain(positions, labels=[[short(part.label) for part in made]]))
        if tokens:
            typer.echo(f"\n{_token_table(numbers, positions, processor.tokenizer)}")
        if model is None:
            side = processor.patch_size if files else 0
            cut = f"; files are cut into {side} x {side} pixel patches, as by {rule.name}'s processor" if files else ""
            typer.echo(f"\ntext counts a token a byte{cut}")
        else:
            bytewise = (
                "" if (model / TOKENIZER_NAME).is_file() else f" (text counts a token a byte: no {TOKENIZER_NAME} is there)"
            )
            typer.echo(f"\n{len(numbers):,} tokens as {model} writes them{bytewise}:\n{_chat_text(made)}")
    if figure is not None:
        typer.echo(f"wrote {figure}", err=True)


def _processor(family_name: str, stride: float | None, fps: float | None, files: bool) -> Processor:
    """How a family prepares files, with a token a byte of text."""
    from mmrope.positions import family
    from mmrope.preprocess.patches import FAMILY_PATCHES
    from mmrope.preprocess.processor import Processor

    rule = family(family_name) if stride is None else family(family_name, stride=stride)
    if files and rule.name not in FAMILY_PATCHES:
        raise ValueError(
            f"how {rule.name} cuts files into patches is not known here (known: {', '.join(FAMILY_PATCHES)}); "
            "state sizes instead: --image 16x24, --video 8x16x24@2"
        )
    return Processor(family=rule) if fps is None else Processor(family=rule, fps=fps)


def _of_checkpoint(folder: Path, fps: float | None) -> Processor:
    from mmrope.preprocess.processor import Processor

    if not folder.is_dir():
        raise ValueError(f"--model takes the folder of a checkpoint, got {folder}")
    return Processor.from_pretrained(folder) if fps is None else Processor.from_pretrained(folder, fps=fps)


def _chat_text(parts: Sequence[Part]) -> str:
    """What is read, with each run of placeholders as its number."""
    shown = []
    for part in parts:
        name = f" of {part.label}" if part.label else ""
        shown.append(part.label if part.segment.kind == "text" else f"[{len(part.tokens)} tokens{name}]")
    return "".join(shown)


def _token_table(numbers: Sequence[int], positions: Positions, tokenizer: Tokenizer) -> str:
    """A line a token: its place, its number, its text, its ids."""
    axes, ids = positions.family.axes, positions.ids[:, 0].T.tolist()  # [S, A]
    rows = [["token", "number", "text", *axes]]
    for n, (number, place) in enumerate(zip(numbers, ids, strict=True)):
        rows.append([str(n), str(number), repr(tokenizer.decode([number], special=True)), *map(str, place)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _as_dict(positions: Positions, labels: list[str]) -> dict[str, Any]:
    from mmrope.positions.compare import placed

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


class DType(str, Enum):
    """In what numbers a model computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command(cls=InOrder, no_args_is_help=True)
def ask(
    parts: Annotated[
        list[str],
        typer.Argument(help="Image and video files, then the question; without one, a conversation.", show_default=False),
    ],
    text: Annotated[list[str] | None, TEXT] = None,
    model: Annotated[
        Path | None, typer.Option(help="The folder of a released checkpoint, or of a saved model; by default the shipped one.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, ..., or auto: a GPU if there is one.", callback=known_device)
    ] = "auto",
    dtype: Annotated[DType | None, typer.Option(help="Of the weights; by default that of the files.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 for the likeliest answer; by default the model's own.", callback=between(0, 100))
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 512,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw where the decoder looked in the last file (png, svg, pdf, jpg).", callback=drawable),
    ] = None,
) -> None:
    """Ask a model about images and videos.

    \b
    mmrope ask samples/grid.png "What is at row 2, column 3?"
    mmrope ask --model Qwen3-VL-4B-Instruct photo.jpg "What is on the table?"

    Checkpoints of Qwen2-VL, Qwen2.5-VL and Qwen3-VL are run as they are downloaded. The model that is shipped reads handwritten
    digits, and adds. It knows ten questions, and nothing else of the world.

    In a conversation, a line may begin with the names of more files.
    """
    media = [item_of(part) for part in parts]
    given = [media.pop()["text"]] if media[-1]["type"] == "text" else None
    if any(item["type"] == "text" for item in media):
        raise ValueError("files come first, then one question, in quotes")
    if figure is not None and not media:
        raise ValueError("--figure draws where the decoder looked in a file: give one")
    _need("torch", "einops", "safetensors", *(["mmrope_small"] if model is None else []))
    import torch

    from mmrope.vlm.assistant import Assistant, Chat
    from mmrope.vlm.looks import check_looks

    assistant = Assistant.from_pretrained(model, device=device, dtype=None if dtype is None else getattr(torch, dtype.value))
    if figure is not None:
        check_looks(assistant.model, assistant.processor)
    chat, noted = Chat(assistant, media), set[str]()
    for more, question in [([], given[0])] if given else _typed():
        try:
            if not question.strip():
                raise ValueError("the question is empty")
            if model is None and (note := _doubt(assistant, [*media, *more], question)) and note not in noted:
                typer.echo(note, err=True)
                noted.add(note)
            for piece in chat.stream(question, media=more, temperature=temperature, max_new_tokens=max_new_tokens):
                typer.echo(piece, nl=False)
            typer.echo()
            media = [*media, *more]
        except ValueError as error:
            if given:
                raise
            typer.echo(str(error), err=True)  # and the conversation goes on
    if figure is not None and chat.messages:
        from mmrope.view.figure import save
        from mmrope.view.model import plot_looks
        from mmrope.vlm.looks import looked_at

        *asked, answer = chat.messages
        look = looked_at(assistant.model, assistant.processor, asked)[-1]
        save(plot_looks(look.pixels, look.weights, title=f"{asked[-1]['content'][-1]['text']} {answer['content']}"), figure)
        typer.echo(f"wrote {figure}", err=True)


def _typed() -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Questions from the terminal, each after the files that its line begins with, until an empty line or its end."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        try:
            words = shlex.split(line)  # names of files may be quoted
        except ValueError:  # an apostrophe
            words = line.split()
        files = list(takewhile(lambda word: Path(word).is_file(), words))
        yield [item_of(word) for word in files], " ".join(words[len(files) :]) if files else line


def _doubt(assistant: Any, media: Sequence[dict[str, Any]], question: str) -> str:
    """Why an answer of the shipped model would be a guess; empty where none is known."""
    from mmrope.vlm.tasks import FILM_KINDS, IMAGE_KINDS, QUESTIONS, is_like_handwriting, kind_of

    if (kind := kind_of(question)) is None:
        return f"the shipped model has learned these questions alone: {'  '.join(QUESTIONS)}"
    for medium, kinds in (("image", IMAGE_KINDS), ("video", FILM_KINDS)):
        if kind in kinds and all(item["type"] != medium for item in media):
            return f"the answer is a guess: no {medium} is given, and the question is about one"
    if media and not is_like_handwriting(assistant.processor([{"role": "user", "content": media}])):
        return "the answer is a guess: the shipped model has learned handwritten digits alone, dark on light paper"
    return ""


@app.command()
def families() -> None:
    """List every family with its source, and what upstreams compute instead, by revision."""
    from mmrope.positions import FAMILIES
    from mmrope.positions.families import departures

    for key, row in FAMILIES.items():
        if not row.revision:
            facts = f"axes {row.axes}; {', '.join(row.media)}".replace("_", " ")
            typer.echo(f"{key:<22}{facts}\n{'':<22}{row.source}")
        else:
            typer.echo(f"  @{row.revision:<19}{'; '.join(departures(row)) or 'the same ids'}\n{'':<22}{row.source}")


@app.command()
def formats() -> None:
    """List the images, animations and videos that are opened, what needs another extra, and what is refused and why."""
    from mmrope.preprocess.formats import listed

    with needed_for("the list of codecs"):
        from mmrope.preprocess.probe import CODECS, CONTAINERS

    typer.echo(listed(CONTAINERS, CODECS))


@app.command()
def doctor(
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint's folder or config.json: its family alone.", show_default=False)
    ] = None,
) -> None:
    """Whether the installed transformers, vLLM and SGLang place tokens as the weights were trained.

    For each that does not: the smallest conversation that differs, whom it hurts, and the line that mends it. Nothing of them
    is imported or run: their position code is known by its source. The exit code is 1 if anything is otherwise or not known.
    """
    from mmrope.adapters.diagnosis import doctor, report

    findings = doctor(None if model is None else read_config(model))
    typer.echo("\n".join(report(findings)))
    if not findings or not all(finding.right for finding in findings):
        raise typer.Exit(1)


class Shown(str, Enum):
    """What `mmrope show` shows."""

    frequencies = "frequencies"
    decay = "decay"
    scaling = "scaling"
    alibi = "alibi"


@app.command(no_args_is_help=True)
def show(
    what: Annotated[
        Shown,
        typer.Argument(
            metavar="WHAT",
            help="frequencies: the wavelength of each pair of channels, and its axis; decay: how scores fall with distance; "
            "scaling: what PI, NTK, YaRN, ... leave of the frequencies; alibi: how its heads fade.",
        ),
    ],
    family_name: Annotated[
        str, typer.Option("--family", help="Whose rotary embedding.", show_default="qwen2_vl", autocompletion=family_names)
    ] = "",
    preset_name: Annotated[str, typer.Option("--preset", help="A preset instead, such as wan.", show_default=False)] = "",
    heads: Annotated[int | None, typer.Option(help="Heads, for alibi; 8 by default.", callback=between(1, 1024))] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw it into this file instead (png, svg, pdf, jpg).", callback=drawable)
    ] = None,
) -> None:
    """Show what an encoding does, as a table or as a figure.

    \b
    mmrope show frequencies --family qwen3_vl
    mmrope show decay --figure out/decay.png
    """
    from mmrope.positions import family
    from mmrope.view import encodings, tables

    shown: Any
    if what is Shown.alibi:
        from mmrope.encodings.alibi import alibi_slopes

        if family_name or preset_name:
            raise ValueError("ALiBi has heads alone: leave --family and --preset out")
        name, shown = f"ALiBi, {heads or 8} heads", alibi_slopes(heads or 8).tolist()
    else:
        if heads is not None:
            raise ValueError("--heads is for alibi alone")
        from mmrope.encodings.presets import preset
        from mmrope.encodings.spec import RotarySpec

        if family_name and preset_name:
            raise ValueError("give --family or --preset, not both")
        name = preset_name or family_name or "qwen2_vl"
        shown = preset(name) if preset_name else RotarySpec.from_family(name)
        if what is Shown.scaling and shown.spectra is None:
            raise ValueError(f"{name} states its frequencies one by one: scalings are of those that a base gives")
    about, table, plot = {
        Shown.frequencies: ("the pairs of channels", tables.frequencies_table, encodings.plot_frequencies),
        Shown.decay: ("the score of equal vectors, some distance apart", tables.decay_table, encodings.plot_decay),
        Shown.scaling: ("what scalings by 8 leave of each frequency", tables.scalings_table, encodings.plot_scalings),
        Shown.alibi: ("the factor of attention weights at a distance", tables.alibi_table, encodings.plot_alibi),
    }[what]
    if what is not Shown.alibi and not preset_name:
        about += f" ({family(name).rotary.said_by})"
    if figure is None:
        typer.echo(f"{name}: {about}\n\n{table(shown)}")
    else:
        from mmrope.view.figure import save

        save(plot(shown, title=f"{name}: {about}"), figure)
        typer.echo(f"wrote {figure}", err=True)


@app.command(no_args_is_help=True)
def check(
    context: typer.Context,
    dump: Annotated[Path, typer.Argument(help="A .json, .npz or .safetensors file with a batch and its position_ids.")],
    family_name: Annotated[
        str, typer.Option("--family", help="A family, or a family and revision.", autocompletion=family_names)
    ] = "",
    config: Annotated[Path | None, typer.Option(help="A checkpoint's config.json instead, for its own facts.")] = None,
) -> None:
    """Say whether position_ids are those of a processor's batch, and what they are if not.

    The file has input_ids, mm_token_type_ids, image_grid_thw, ... as the processor returned them, of a packed batch also
    cu_seqlens, and with generated tokens prompt_lengths. The exit code is 0 if the ids are right, 1 if they are others, 2 if
    they cannot be checked.
    """
    from mmrope import positions
    from mmrope.checkpoints import family_from_config
    from mmrope.positions.compare import WrongPositions

    if bool(family_name) == (config is not None):
        raise ValueError("name the family (--family qwen2_5_vl) or the checkpoint's config (--config config.json)")
    rule = positions.family(family_name) if config is None else family_from_config(read_config(config))
    batch = _dump(dump)
    rows = positions.segments_from_inputs(batch, rule, prompt_lengths=batch.get("prompt_lengths"))
    try:
        positions.check(batch["position_ids"], rows, rule, cu_seqlens=batch.get("cu_seqlens"))
    except WrongPositions as error:
        _fail(context, error, 1)
    typer.echo(f"{dump}: " + (f"the ids of {rule}" if batch["position_ids"].size else "no tokens, so nothing is wrong"))


@app.command(no_args_is_help=True)
def diff(
    a: Annotated[Path, typer.Argument(help="A .json, .npz or .safetensors file with position_ids.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Show the first difference between two tables of position_ids.

    Tokens count where the files' attention_mask says so, and all if there is none. The exit code is 0 if the tables are equal,
    1 if they differ, 2 if they cannot be compared.
    """
    from mmrope import positions

    one, other = _dump(a), _dump(b)
    masks = [batch["attention_mask"] for batch in (one, other) if "attention_mask" in batch]
    found = positions.diff(one["position_ids"], other["position_ids"], mask=masks[0] if masks else None)
    if len(masks) == 2 and masks[0].tolist() != masks[1].tolist():
        raise ValueError(f"{a} and {b} have different attention masks: they are not of the same tokens")
    nothing = "no difference" if one["position_ids"].size else "no difference: both are without tokens"
    typer.echo(str(found) if found else nothing)
    raise typer.Exit(1 if found else 0)


def _dump(path: Path) -> dict[str, Any]:
    from mmrope.dumps import read_dump

    must_be_there(path, DUMPS)
    return read_dump(path)


@lab.command("list")
def lab_list() -> None:
    """The experiments, and what each asks."""
    _need("torch", "einops", "safetensors")
    from mmrope.lab import experiments

    for experiment in experiments():
        typer.echo(f"{experiment.name:12}{experiment.question}")


@lab.command("run", no_args_is_help=True)
def lab_run(
    name: Annotated[str, typer.Argument(help="One of `mmrope lab list`.")],
    quick: Annotated[bool, typer.Option(help="In seconds, to see that it works: its numbers mean nothing.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds of each variant, from 0 on.", callback=between(1, 1000))] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...", callback=known_device)] = "cpu",
    variant: Annotated[list[str] | None, typer.Option(help="Some of the variants; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="A folder for the results and the figure.", callback=folder)] = Path("out/lab"),
) -> None:
    """Train and measure what is missing in OUT, and write a table and a figure. If it is stopped, it continues there."""
    _need("torch", "einops", "safetensors", "matplotlib")
    from mmrope.lab import experiments
    from mmrope.lab.harness import run
    from mmrope.lab.report import plot, table
    from mmrope.view.figure import save

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
