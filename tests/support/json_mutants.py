"""Damaged folders: mutants of the JSON files of sound ones, and the law that their readers keep.

The law: a folder is read, and what it says works, or it is refused with a ValueError that names the file. Nothing else is
raised, within `SECONDS` of a processor's time and `MEGABYTES`.
"""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import signal
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrope import VLM, Processor, family_from_config, rotary_from_config
from mmrope.dumps import read_dump
from mmrope.preprocess import PatchConfig
from mmrope.preprocess.text import WordTokenizer
from mmrope.vlm import DecoderConfig, GenerationConfig, VisionConfig, VLMConfig
from tests.support import ROOT
from tests.support.mutants import megabytes as megabytes

SECONDS, MEGABYTES = 2.0, 1_000
"""What an image takes that a folder's fewest pixels enlarge to the most that they may be, 2^24: 820 MB."""
NAN, HUGE = float("nan"), 10**30
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 0.5, -0.0, 1e-320, 1e308, NAN, float("inf"), HUGE, -HUGE, 10**400, 2**31, 600_000),
    *("", "x", "x" * 5000, "0", "null", "\ud800", "\0", [], {}, [[]], [None], [0, 0], [1, 2, 3], [NAN] * 3, ["x"], [{}]),
    *({"x": 1}, {"default": {}}, [[[1, 2], [3]], {}], ["x" * 2000] * 9, list(range(1000))),
)
"""What a value becomes. In files, NaN and Infinity are written as Python writes and reads them."""
NAMES = ("x", "", "__class__", "access")
"""What a key becomes."""

# --- mutants ----------------------------------------------------------------------------------------------------------

Path_ = tuple[Any, ...]


def places(values: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The path of every value within another."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*at, key)
        if isinstance(value, (dict, list)) and len(at) < 20:
            yield from places(value, (*at, key))


def value_at(values: Any, at: Path_) -> Any:
    for key in at:
        values = values[key]
    return values


def _replaced(values: Any, draw: random.Random, at: Path_) -> Any:
    value_at(values, at[:-1])[at[-1]] = copy.deepcopy(draw.choice(VALUES))
    return values


def _scaled(values: Any, draw: random.Random, at: Path_) -> Any:
    value = value_at(values, at)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        made: Any = draw.choice([-value, value + 1, value - 1, value * 1_000_000, float(value), value / 3, str(value)])
    elif isinstance(value, str):
        made = draw.choice([value + "x", value[1:], value.upper(), value * 50, [value], value[::-1]])
    else:
        made = draw.choice(
            [[value], {"x": value}, [value] * 3, [*value] * 3 if isinstance(value, (list, dict)) else None, str(value)]
        )
    value_at(values, at[:-1])[at[-1]] = made
    return values


def _removed(values: Any, draw: random.Random, at: Path_) -> Any:
    del value_at(values, at[:-1])[at[-1]]
    return values


def _renamed(values: Any, draw: random.Random, at: Path_) -> Any:
    holder = value_at(values, at[:-1])
    if isinstance(holder, dict):
        holder[draw.choice([f"{at[-1]}_", *NAMES])] = holder.pop(at[-1])
    else:
        holder.insert(at[-1], copy.deepcopy(holder[at[-1]]))
    return values


def _moved(values: Any, draw: random.Random, at: Path_) -> Any:
    """To another place, where a value of the same name, or any, may have been."""
    value = copy.deepcopy(value_at(values, at))
    other = draw.choice([path for path in places(values) if path[: len(at)] != at] or [at])
    holder = value_at(values, other[:-1])
    if isinstance(holder, dict):
        holder[at[-1] if draw.random() < 0.5 and isinstance(at[-1], str) else other[-1]] = value
    else:
        holder[other[-1]] = value
    return values


def _other_kind(values: Any, draw: random.Random, at: Path_) -> Any:
    """A list in place of an object, and the other way round."""
    value = value_at(values, at)
    items = list(value.values()) if isinstance(value, dict) else [value]
    made: Any = {str(n): item for n, item in enumerate(value)} if isinstance(value, list) else items
    value_at(values, at[:-1])[at[-1]] = made
    return values


def _deep(values: Any, draw: random.Random, at: Path_) -> Any:
    value_at(values, at[:-1])[at[-1]] = _DEEP[draw.randrange(len(_DEEP))]
    return values


_DEPTHS = (20, 200, 900, 5_000)
_DEEP = tuple(f"@deep{n}" for n in range(2 * len(_DEPTHS)))
"""What stands for nested lists and objects until the document is written."""


def _text(values: Any) -> str:
    text = json.dumps(values)
    for n, name in enumerate(_DEEP):
        depth, kind = _DEPTHS[n // 2], ("[", "]") if n % 2 else ('{"x": ', "}")
        text = text.replace(f'"{name}"', kind[0] * depth + "1" + kind[1] * depth)
    return text


_CHANGES = (_replaced,) * 8 + (_scaled,) * 4 + (_removed,) * 2 + (_renamed, _moved, _moved, _other_kind, _deep)


def _cut(text: str, draw: random.Random) -> bytes:
    return text.encode()[: draw.randrange(len(text))]


def _brackets(text: str, draw: random.Random) -> bytes:
    n, kind = draw.choice([100, 950, 5_000, 100_000]), draw.choice(["[", '{"x":'])
    close = {"[": "]", '{"x":': "}"}[kind] if draw.random() < 0.5 else ""
    inner = kind * n + "1" * bool(close) + close * n
    return (inner if draw.random() < 0.5 else f'{{"x": {inner}, {text[1:]}').encode()


def _flipped(text: str, draw: random.Random) -> bytes:
    data = bytearray(text.encode())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _doubled(text: str, draw: random.Random) -> bytes:
    """A key twice, with values of two kinds."""
    keys = re.findall(r'"[A-Za-z_]+":', text)
    return f"{text[:-1]}, {draw.choice(keys)} 1}}".encode() if keys else b"{}"


_TEXTS: tuple[Callable[[str, random.Random], bytes], ...] = (
    *(_cut, _brackets, _flipped, _flipped, _doubled),
    *(lambda text, draw, code=code: text.encode(code) for code in ("utf-16", "utf-8-sig", "utf-32", "utf-16-le")),
    lambda text, draw: draw.choice(["[]", "1", "null", '"x"', "", "{}", "\0", "[" + text + "]", text + text]).encode(),
    lambda text, draw: b"\xff\xfe" + text.encode(),
    lambda text, draw: (text[:-1] + ', "x": ' + "9" * 5000 + "}").encode(),
)


def mutant(values: dict[str, Any], draw: random.Random) -> tuple[bytes, Path_]:
    """A document's bytes after one to three changes, and the path of the one; () where it is not one value that was changed."""
    if draw.random() < 0.08:
        return draw.choice(_TEXTS)(json.dumps(values), draw), ()
    values, first = copy.deepcopy(values), ()
    changes = draw.choice([1, 1, 1, 1, 2, 3])
    for _ in range(changes):
        found = list(places(values))
        if not found:
            break
        at = draw.choice(found)
        change = draw.choice(_CHANGES)
        first = at if changes == 1 and change is not _moved else ()
        values = change(values, draw, at)
    return _text(values).encode(), first


# --- folders and their readers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """What is read of a folder one of whose files is mutated."""

    name: str
    folder: Path
    file: str
    use: Callable[[Path], Any]
    documents: tuple[dict[str, Any], ...]
    """Sound contents of the file."""
    written: Callable[[bytes], bytes] = bytes
    """From a mutant to the file's content."""


SMALL: dict[str, Any] = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8}
TINY = VLMConfig(
    vision=VisionConfig(patches=PatchConfig(patch_size=2), **SMALL),
    decoder=DecoderConfig(num_kv_heads=1, head_dim=16, **SMALL),
    family="qwen2_vl",
    generation=GenerationConfig(temperature=0.5),
)
CONFIGS = [entry["config"] for entry in json.loads((ROOT / "tests/references/configs/released.json").read_text())]
CHECKPOINTS = list(json.loads((ROOT / "tests/references/checkpoints/qwen_vl.json").read_text()).values())


def _config(folder: Path) -> None:
    family_from_config(folder)


def _rotary(folder: Path) -> None:
    for layer_type in (None, "full_attention", "sliding_attention"):
        try:
            rotary_from_config(folder, layer_type=layer_type)
        except ValueError as error:
            if "say which by layer_type" not in str(error) or layer_type == "sliding_attention":
                raise
        else:
            return


@torch.no_grad()
def _model(folder: Path) -> None:
    model = VLM.from_pretrained(folder)
    ids = torch.tensor([[1, 2, 3]])
    places = torch.arange(3).expand(len(model.config.rotary.axes), 1, 3)
    assert model(input_ids=ids, position_ids=places).logits.isfinite().all(), "logits are not finite"


def _processor(folder: Path) -> None:
    processor = Processor.from_pretrained(folder)
    assert (processor.threads, processor.limits, processor.access) == (None, Processor().limits, Processor().access)
    image = np.arange(56 * 84 * 3, dtype=np.uint8).reshape(56, 84, 3)
    content: list[dict[str, Any]] = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    try:
        inputs = processor([{"role": "user", "content": content}])
    except ValueError:
        return  # of a template, or bounds that no image fits
    pixels = inputs["pixel_values"]
    assert pixels.dtype == torch.uint8 or pixels.isfinite().all(), "pixels are not finite"


def _dump(folder: Path) -> None:
    read_dump(folder / "dump.json")


def _reads(reader: Reader) -> Reader:
    """A reader with those of its documents that it reads."""
    target = reader.folder / reader.file
    before, sound = target.read_bytes(), []
    for document in reader.documents:
        target.write_bytes(reader.written(json.dumps(document).encode()))
        if _verdict(reader, ())[0] == "read":
            sound.append(document)
    target.write_bytes(before)
    assert sound
    assert _verdict(reader, ())[0] == "read", (reader.name, _verdict(reader, ()))
    return replace(reader, documents=tuple(sound))


def readers(base: Path) -> list[Reader]:
    """Makes sound folders in an empty one, and says who reads them."""
    from tests.support import checkpoints, tiny_models

    found: list[Reader] = []

    def add(name: str, folder: Path, file: str, use: Callable[[Path], Any], *more: dict[str, Any]) -> None:
        stated = json.loads((folder / file).read_text())
        found.append(Reader(name, folder, file, use, (stated, *more)))

    def made(name: str) -> Path:
        (base / name).mkdir()
        return base / name

    config = made("config")
    (config / "config.json").write_text(json.dumps(CONFIGS[0]))
    whole = [checkpoint["config"] for checkpoint in CHECKPOINTS]
    add("family_from_config", config, "config.json", _config, *CONFIGS, *whole)
    add("rotary_from_config", config, "config.json", _rotary, *CONFIGS, *whole)

    torch.manual_seed(0)
    own = made("own")
    VLM(TINY).save_pretrained(own)
    shutil.copytree(own, base / "checked")
    add("VLM, manifest.json", base / "checked", "manifest.json", _model)
    (own / "manifest.json").unlink()
    add("VLM, own config.json", own, "config.json", _model)
    weights = (own / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", weights[:8])[0]

    def with_header(content: bytes) -> bytes:
        return struct.pack("<Q", len(content)) + content + weights[end:]

    found.append(
        Reader("VLM, safetensors header", own, "model.safetensors", _model, (json.loads(weights[8:end]),), with_header)
    )
    for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
        folder = made(kind)
        model = tiny_models.model(kind)
        model.generation_config.suppress_tokens = None
        model.save_pretrained(folder, max_shard_size="100KB" if kind == "qwen3_vl" else "1GB")
        add(f"VLM, {kind} config.json", folder, "config.json", _model)
    generation = tuple(checkpoint["generation_config"] for checkpoint in CHECKPOINTS if checkpoint["generation_config"])
    add("VLM, generation_config.json", base / "qwen2_vl", "generation_config.json", _model, *generation)
    add("VLM, index.json", base / "qwen3_vl", "model.safetensors.index.json", _model)

    folder = made("processor")
    Processor(family="qwen2_vl", chat_template="{{ messages[0].content[1].text }}").save_pretrained(folder)
    add("Processor, own", folder, "processor_config.json", _processor)
    folder = made("words")
    changed = Processor().family.replace(name="mine", stride=None)  # type: ignore[union-attr]
    Processor(family=changed, patches=PatchConfig(), tokenizer=WordTokenizer((" row", "a"))).save_pretrained(folder)
    add("Processor, own with words", folder, "processor_config.json", _processor)
    for name in ("qwen2_vl", "qwen3_vl", "glm4v"):
        checkpoints.folder(made(f"of_{name}"), name, form="json")
        folder = base / f"of_{name}"
        add(f"Processor, {name} preprocessor_config.json", folder, "preprocessor_config.json", _processor)
        if name != "qwen2_vl":
            add(f"Processor, {name} video_preprocessor_config.json", folder, "video_preprocessor_config.json", _processor)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "config.json"):
        add(f"Processor, {file}", base / "of_qwen2_vl", file, _processor)
    named = base / "of_qwen3_vl"
    (named / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<|endoftext|>"}, "additional_special_tokens": ["<|im_end|>"]}))  # fmt: skip
    add("Processor, special_tokens_map.json", named, "special_tokens_map.json", _processor)
    five = shutil.copytree(base / "of_glm4v", base / "five")
    stated = {f"{kind}_processor": json.loads((five / file).read_text()) for kind, file in (("image", "preprocessor_config.json"), ("video", "video_preprocessor_config.json"))}  # fmt: skip
    (five / "processor_config.json").write_text(json.dumps(stated))
    add("Processor, transformers 5 processor_config.json", five, "processor_config.json", _processor)

    dump = made("dump")
    (dump / "dump.json").write_text(json.dumps({"input_ids": [[1, 2]], "position_ids": [[[0, 1]]], "attention_mask": [[1, 1]]}))
    add("mmrope check, dump.json", dump, "dump.json", _dump)
    return [_reads(reader) for reader in found]


@dataclass
class Findings:
    """What came of mutants."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By reader."""
    broken: list[tuple[str, Path_, bytes, str]] = field(default_factory=list)
    """(reader, path, content, how) of those that broke the law."""
    unnamed: list[tuple[str, Path_, str]] = field(default_factory=list)
    """Of refusals of a changed value: those whose message has no key of the path."""
    seconds: float = 0.0
    """The most of one mutant."""


def tried(reader: Reader, number: int, seed: int, found: Findings) -> None:
    """Tries a number of mutants of a reader's documents."""
    draw = random.Random(f"{reader.name} {seed}")
    counts = found.counts.setdefault(reader.name, Counter())
    target = reader.folder / reader.file
    before = target.read_bytes()
    signal.signal(signal.SIGPROF, _too_long)
    try:
        for _ in range(number):
            content, at = mutant(draw.choice(reader.documents), draw)
            target.write_bytes(reader.written(content))
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, 10 * SECONDS)
            what, how = _verdict(reader, at)
            signal.setitimer(signal.ITIMER_PROF, 0)
            taken = time.process_time() - began
            found.seconds = max(found.seconds, taken)
            if taken > SECONDS:
                what, how = "slow", f"{taken:.1f} s"
            counts[what] += 1
            if what == "unnamed":
                found.unnamed.append((reader.name, at, how))
            elif what not in ("read", "refused"):
                found.broken.append((reader.name, at, content, how))
    finally:
        target.write_bytes(before)


PLACED = re.compile(
    r"line \d+ column \d+|is not JSON|is damaged, or no safetensors file|are not those of its config.json|"
    rf"\b({'|'.join(filter(None, NAMES))})(=| is|'| has|:)"
)
"""Of refusals that name another place than the key that was changed: where the text breaks off, whose weights contradict the
whole config, and what the key was renamed to."""


def _too_long(*_: Any) -> None:
    raise TimeoutError("it hangs")


def _verdict(reader: Reader, at: Path_) -> tuple[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.use(reader.folder)
        except ValueError as error:
            if type(error) is not ValueError:
                return type(error).__name__, repr(error)
            message = str(error)
            if str(reader.folder) not in message:
                return "file not named", message
            if at and not any(key in message for key in at if isinstance(key, str)) and not PLACED.search(message):
                return "unnamed", message
            return "refused", message
        except Exception as error:
            import traceback

            last = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(f.filename).name}:{f.lineno}" for f in last if "/mmrope/" in f.filename][-2:]
            return type(error).__name__, f"{str(error)[:200]} at {ours}"
    return "read", ""
