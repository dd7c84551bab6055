"""What untrusted bytes may do, by kind: the laws that scripts/fuzz.py searches for what breaks them, and tests/test_fuzz.py tries
on the corpus.

A target takes bytes. It works, or raises a ValueError (a MediaError is one); what its properties say holds where it works.
Nothing here needs atheris: bytes are JSON, a file, or decisions (`Choices`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import pickle
import re
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

import mmrope
from mmrope import (
    Family,
    RotarySpec,
    Segment,
    Span,
    VideoTiming,
    check,
    collate,
    diff,
    explain,
    pack,
    position_ids,
    segments_from_inputs,
    segments_from_spans,
)
from mmrope.positions import (
    AudioInVideo,
    Canvas,
    Reading,
    Row,
    append,
    decode_position_ids,
    fingerprint,
    hf_position_ids,
    keep,
    patch_position_ids,
    shard_index,
    truncate,
)
from mmrope.preprocess import ByteTokenizer, FileTokenizer, WordTokenizer
from mmrope.preprocess.chat import CHATML, AnswerEdge, Control, conversation_pieces
from mmrope.preprocess.messages import items_of, media_items, source_of
from tests.support import ROOT
from tests.support.mutants import LIMITS, verdict

CORPUS = ROOT / "tests" / "corpus"
FEW, MANY = 400, 4_000
"""Tokens of rows that are placed token by token, and of rows that are placed whole."""


def broken(target: str, data: bytes) -> str | None:
    """How the bytes break the law, as a traceback; None if they keep it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)  # numpy's, of numbers that overflow
        try:
            TARGETS[target](data)
        except ValueError:
            return None
        except KeyboardInterrupt:
            raise
        except BaseException:  # a panic of Rust is no Exception
            return _PLACES.sub('File "', traceback.format_exc())
    return None


_PLACES = re.compile(rf'File "(?:{re.escape(str(ROOT))}/|.*/site-packages/|.*/lib/python[\d.]+/)')
"""Where on a machine files are, which says nothing of what is wrong."""


def signature(how: str) -> str:
    """What findings have in common that are one: the kind of error and where it arose, in eight digits."""
    lines = how.strip().splitlines()
    [*_, error] = ["", *(line for line in lines if re.match(r"[A-Za-z_][\w.]*(:|$)", line))]
    places = [line.split(", line ")[0] + line.split(", in ")[-1] for line in lines if line.startswith("  File ")]
    return hashlib.sha256("\n".join([*places[-3:], error.split(":")[0]]).encode()).hexdigest()[:8]


# --- media ------------------------------------------------------------------------------------------------------------


def images(data: bytes) -> None:
    """An image is opened or refused, by the values stored and by its profile, and as a film; its pixels are the same from a path
    and from bytes."""
    _media("profile, animated", data)


def videos(data: bytes) -> None:
    """The same of a film: its times, the first frame, one in the middle and the last."""
    _media("film.bin", data)


def _media(name: str, data: bytes) -> None:
    with TemporaryDirectory() as folder, patch.object(Image, "MAX_IMAGE_PIXELS", LIMITS.max_image_pixels):
        what, how = verdict(name, data, os.path.join(folder, "file"))
    assert what != "bug", how


# --- JSON -------------------------------------------------------------------------------------------------------------


def _folder(values: Any, folder: str) -> None:
    """Files by name: a text as it stands, anything else as JSON."""
    for name, value in values.items():
        if name.endswith((".json", ".jinja")) and name.replace("_", "").replace(".", "").isascii() and "/" not in name[:40]:
            text = value if isinstance(value, str) else json.dumps(value)
            Path(folder, name[:40]).write_bytes(text.encode("utf-8", "surrogatepass"))


def _object(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except RecursionError:  # of this file, which is the target's own
        values = None
    if not isinstance(values, dict):
        raise ValueError("the bytes are no JSON object")
    return values


def _each(*functions: Callable[[], Any]) -> None:
    """Each of these works or is refused, whatever the others do."""
    for function in functions:
        try:
            function()
        except ValueError:
            continue


def tokenizers(data: bytes) -> None:
    """A folder of a tokenizer, and a "text"; "words" of a WordTokenizer."""
    values = _object(data)
    text = values.pop("text", "")
    text = text if isinstance(text, str) else repr(text)
    words = values.pop("words", None)
    words = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    _each(
        lambda: _nothing_lost(ByteTokenizer(), text),
        lambda: _nothing_lost(WordTokenizer(tuple(words)), text),
        lambda: _read_tokenizer(values, text),
    )


def _nothing_lost(tokenizer: Any, text: str) -> None:
    tokens, offsets = tokenizer.encode(text), tokenizer.offsets(text)
    assert tokenizer.decode(tokens) == text
    _check_offsets(tokens, offsets, text)
    assert {i for begin, end in offsets for i in range(begin, end)} == set(range(len(text)))


def _check_offsets(tokens: Sequence[int], offsets: Sequence[tuple[int, int]], text: str) -> None:
    assert len(tokens) == len(offsets)
    assert all(0 <= begin <= end <= len(text) for begin, end in offsets), offsets


def _read_tokenizer(values: dict[str, Any], text: str) -> None:
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        _folder(values, one)
        tokenizer = FileTokenizer.from_folder(one)
        tokens = tokenizer.encode(text)
        _check_offsets(tokens, tokenizer.offsets(text), text)
        assert isinstance(tokenizer.decode(tokens), str)
        assert isinstance(tokenizer.decode(tokens, special=True), str)
        added = {token for token in tokenizer.special.values() if token != tokenizer._unknown}
        assert added.isdisjoint(tokens), "a text became an added token"
        assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokens
        tokenizer.save(other)
        saved = FileTokenizer.from_folder(other)
        assert (saved.encode(text), saved.special, saved.pad_token) == (tokens, tokenizer.special, tokenizer.pad_token)


def configs(data: bytes) -> None:
    """A folder of a checkpoint; besides its files "spec", "family" and "vlm" as mmrope writes them."""
    from mmrope.preprocess.pretrained import read_settings  # here: with torch, which the other targets start without
    from mmrope.vlm.config import VLMConfig
    from mmrope.vlm.released import released_config
    from mmrope.vlm.sampling import generation_config

    values = _object(data)
    config, generation = values.get("config.json"), values.get("generation_config.json")
    config = None if isinstance(config, str) else config  # which would be a path
    generation = generation if isinstance(generation, dict) else {}

    def read() -> None:
        with TemporaryDirectory() as folder:
            _folder(values, folder)
            _each(lambda: mmrope.family_from_config(folder), lambda: mmrope.rotary_from_config(folder))
            _check_settings(read_settings(folder))

    _each(
        lambda: _check_family(mmrope.family_from_config(config)),
        lambda: _check_spec(mmrope.rotary_from_config(config)),
        lambda: _check_vlm(released_config(config, generation)) if isinstance(config, dict) else None,
        lambda: generation_config(generation),
        lambda: _check_family(Family.from_dict(values["family"])) if "family" in values else None,
        lambda: _check_spec(RotarySpec.from_dict(values["spec"])) if "spec" in values else None,
        lambda: _check_vlm(VLMConfig.from_dict(values["vlm"])) if "vlm" in values else None,
        read,
    )


def _check_family(family: Family) -> None:
    """It is the same from JSON, and places rows or refuses them."""
    assert Family.from_dict(json.loads(json.dumps(family.to_dict()))) == family
    assert pickle.loads(pickle.dumps(family)) == family
    for row in (
        [Segment.text(2), Segment.image(h=2, w=3), Segment.text(1)],
        [Segment.video(t=2, h=1, w=2, seconds_per_grid=1)],
    ):
        _each(lambda row=row: position_ids(row, family), lambda: family.rotary_spec())


def _check_spec(spec: RotarySpec | None) -> None:
    if spec is None:
        return
    stated = spec.to_dict()
    assert RotarySpec.from_dict(json.loads(json.dumps(stated))) == spec
    assert np.isfinite(spec.inv_freq).all(), "frequencies that are no numbers"
    assert math.isfinite(spec.attention_factor), "an attention factor that is no number"
    assert 2 * len(spec.inv_freq) <= spec.head_dim


def _check_vlm(config: Any) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()
    assert config.vision.rotary.head_dim > 0


def _check_settings(settings: Mapping[str, Any]) -> None:
    from mmrope import Processor

    Processor(**settings)


def conversations(data: bytes) -> None:
    """ "messages" as people write them, by the "template" (that of mmrope's own models by default), with "variables"."""
    values = _object(data)
    messages, template, variables = values.get("messages"), values.get("template", CHATML), values.get("variables", {})
    for item in media_items(messages):
        [again] = items_of([item])
        assert again == item
        _each(lambda item=item: source_of(item) if "base64" in item or item["type"] in item else None)
    if not isinstance(template, str) or not isinstance(variables, dict):
        raise ValueError("a template is a text, and variables are named")
    tokenizer, prompt = ByteTokenizer(), bool(values.get("prompt"))
    for answers in (False, True):
        pieces = conversation_pieces(
            template, messages, tokenizer, variables=variables, add_generation_prompt=prompt, answers=answers
        )
        assert all(isinstance(piece, (str, AnswerEdge)) for piece in pieces)
        assert all(str(piece) in tokenizer.special for piece in pieces if isinstance(piece, Control))
        if template == CHATML:
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            assert text == _chatml(messages, prompt), text
            wanted = 2 * len(messages) + 3 * len(media_items(messages)) + prompt
            assert sum(isinstance(piece, Control) for piece in pieces) == wanted, pieces


def _chatml(messages: Sequence[Mapping[str, Any]], prompt: bool) -> str:
    """What CHATML writes, without Jinja."""
    text = ""
    for message in messages:
        content = "".join(
            item["text"] if item["type"] == "text" else f"<|vision_start|><|{item['type']}_pad|><|vision_end|>"
            for item in items_of(message.get("content"))
        )
        text += f"<|im_start|>{message['role']}\n{content}<|im_end|>\n"
    return text + "<|im_start|>assistant\n" * prompt


# --- segments ---------------------------------------------------------------------------------------------------------


class Choices:
    """Decisions, read from bytes: equal bytes are equal decisions, and where they end all are the first."""

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)

    def below(self, n: int) -> int:
        return next(self._bytes, 0) % n

    def of(self, options: Sequence[Any]) -> Any:
        return options[self.below(len(options))]

    def some(self, make: Callable[[], Any], most: int) -> list[Any]:
        return [make() for _ in range(self.below(most + 1))]

    def whole(self, least: int = 0) -> Any:
        """Mostly a small number; now and then one that is large, negative, or none."""
        n = self.below(256)
        return least + n % 7 if n < 240 else EXTREMES[n - 240]

    def seconds(self) -> Any:
        n = self.below(256)
        return SECONDS[n % len(SECONDS)] if n < 240 else EXTREMES[n - 240]


SECONDS = (1.0, 0.5, 0.04, 0.1, 0.3, 0.83, 2 / 3, 2.0, 1.001, 10.0)
EXTREMES: tuple[Any, ...] = (
    *(-1, 0, 255, 65_537, 2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**64),
    *(0.5, math.nan, math.inf, True, None, "2", np.float32(3)),
)


@functools.cache
def _rules() -> list[Family]:
    from tests.support.strategies import RULES  # here: with torch, which the other targets start without

    return RULES


@functools.cache
def _plain() -> list[Family]:
    """Families whose media are found by token types and grids alone."""
    return [
        rule for rule in _rules() if type(rule.reading) is Reading and not rule.reading.markers and not rule.reading.targets
    ]


def segments(data: bytes) -> None:
    """Rows of segments and what is made of them, and inputs that may not belong together."""
    choices = Choices(data)
    part = choices.of((_rows, _rows, _inputs, _inputs, _spans, _tables))
    with suppress(MemoryError):  # of ids that were asked for: rows of 2^31 tokens are allowed, and larger than this process
        part(choices)


def _segment(choices: Choices, family: Family) -> Segment:
    kind = choices.of(("text", "pad", "custom", *family.media, *family.media, "image"))
    n, h, w = choices.whole(), choices.whole(1), choices.whole(1)
    if kind in ("text", "pad", "audio"):
        return getattr(Segment, kind)(n)
    if kind in ("image", "frame"):
        return getattr(Segment, kind)(h=h, w=w)
    if kind == "canvas":
        columns = choices.below(3)
        slices = [(choices.whole(1), choices.whole(1)) for _ in range(columns * choices.below(3))]
        return Canvas.make(h=h, w=w, slices=slices, columns=columns, newlines=choices.below(3))
    if kind == "audio_in_video":
        return AudioInVideo.make(t=n, h=h, w=w, audio=choices.whole(1), seconds_per_grid=choices.seconds())
    if kind == "video":
        clock, times = choices.below(4), None
        if clock == 1:
            seconds = [choices.of(SECONDS) for _ in range(n if type(n) is int and n < 9 else 3)]
            times = choices.of((np.cumsum(seconds).tolist(), np.cumsum(seconds), [choices.seconds() for _ in seconds], n))
        return Segment.video(t=n, h=h, w=w, seconds_per_grid=choices.seconds() if clock > 1 else None, times=times)
    size = choices.below(4)
    table = [[choices.whole() for _ in range(size)] for _ in family.axes]
    return Segment.custom(choices.of((table, table, table[:1], n)), advance=choices.whole())


def _row(choices: Choices, family: Family, most: int = 6) -> list[Segment]:
    """Of those segments that there can be."""
    row: list[Segment] = []
    for _ in range(choices.below(most + 1)):
        _each(lambda: row.append(_segment(choices, family)))
    return row * choices.of((1, 1, 1, 2, 5))


def _equal(a: Any, b: Any) -> None:
    np.testing.assert_array_equal(a, b)


def _rows(choices: Choices) -> None:
    family = choices.of(_rules())
    row, more = _row(choices, family), _row(choices, family, 2)
    packed_row, tokens = Row.of(row), sum(segment.length for segment in row)
    assert (packed_row.length, len(packed_row)) == (tokens, len(row))
    assert list(packed_row) == row
    assert Row.of(packed_row[:]) == packed_row == append(packed_row[:1], packed_row[1:])
    start = choices.below(8) * max(1, tokens // 8)
    if any(math.prod(segment.grid[1:]) > MANY and segment.kind not in ("text", "pad", "audio") for segment in row):
        return  # one temporal grid is made whole, whatever the window
    window = position_ids(row, family, start=start, stop=start + choices.below(9))  # whatever the row's length
    assert window.ids.shape[2] <= 8
    decoded = decode_position_ids(window.next, family, count=3)
    _equal(position_ids(row, family, start=tokens, stop=tokens + 3).ids, decoded)
    longer = append(row, more)
    if longer.length > MANY:
        return
    whole = position_ids(row, family)
    real = whole.mask[0]  # padding carries another value where there is no vision
    _equal(position_ids(longer, family).ids[..., :tokens][..., real], whole.ids[..., real])
    inside = slice(start, min(start + window.ids.shape[2], tokens))
    _equal(window.ids[..., : max(0, inside.stop - start)], whole.ids[..., inside])
    assert diff(whole, position_ids(packed_row, family)) is None
    check(whole, row, family)
    assert explain(whole).count("\n") >= len(row)
    out = np.full_like(whole.ids, 77)
    assert position_ids(row, family, out=out).ids is out or not out.size
    _equal(out, whole.ids)
    if tokens <= FEW:
        from tests.support.strategies import slow_position_ids

        ids, following = slow_position_ids(row, family)
        np.testing.assert_allclose(whole.ids[:, 0], ids, rtol=0, atol=1e-5 * bool(family.place) * family.fractional)
        assert abs(whole.next[0] - following) <= 1e-5 * bool(family.place), (whole.next, following)
    _batches(choices, family, [packed_row, longer])


def _batches(choices: Choices, family: Family, rows: list[Row]) -> None:
    """Padded, packed, pruned, dealt to ranks and cut, tokens have the ids that they have alone."""
    side, multiple = choices.of(("left", "right")), choices.whole(1)
    alone = [position_ids(row, family) for row in rows]
    if family.ordinal == "row":
        batch = collate(rows, pad_side=side, multiple_of=1 + choices.below(8))
        together = position_ids(batch, family)
        for b, one in enumerate(alone):
            _equal(together.ids[:, b, together.mask[b]], one.ids[:, 0, one.mask[0]])
        assert fingerprint(together) == [found for one in alone for found in fingerprint(one)]
        check(hf_position_ids(together), batch, family)
        mask = np.array([[choices.below(2) for _ in range(min(40, together.mask.shape[1]))]] * len(batch), dtype=bool)
        mask = np.resize(mask, together.mask.shape) if mask.size else together.mask
        _equal(keep(together, mask).ids, together.ids[:, together.mask & mask])
        packed = pack(rows, family, multiple_of=multiple)
        _equal(packed.ids[:, packed.mask], np.concatenate([one.ids[:, 0, one.mask[0]] for one in alone], axis=1))
        _equal(packed.next, np.concatenate([one.next for one in alone]))
        _shards(choices, packed.cu_seqlens_padded)
    policy = choices.of(("error", "drop_media", "before_media"))
    frames = [1] * sum(segment.kind == "frame" for segment in rows[1])
    cut = truncate(rows[1], choices.whole(), policy=policy, frames=frames, markers=choices.of((None, (0, 0), (1, 1), (0, 2))))
    assert cut.row.length == len(cut.tokens)
    assert (np.diff(cut.tokens) > 0).all()
    short = position_ids(cut.row, family)
    if policy == "before_media" and not any(segment.kind == "pad" for segment in rows[1]) and family.ordinal == "row":
        _equal(short.ids, position_ids(rows[1], family).ids[..., : cut.row.length])


def _shards(choices: Choices, totals: np.ndarray) -> None:
    scheme = choices.of(("contiguous", "zigzag", "zigzag_per_sequence", "ulysses"))
    size = choices.of((1, 2, 3, 4))
    parts = [shard_index(totals, size=size, rank=rank, scheme=scheme) for rank in range(size)]
    _equal(np.sort(np.concatenate(parts)), np.arange(totals[-1]))


def _sound(choices: Choices, family: Family) -> tuple[list[Segment], dict[str, Any]]:
    """A row as a processor makes it, and its inputs."""
    row: list[Segment] = [Segment.text(1 + choices.below(3))]
    inputs: dict[str, Any] = {"image_grid_thw": [], "video_grid_thw": [], "second_per_grid_ts": []}
    m, tm = family.spatial_merge, family.temporal_merge
    for _ in range(choices.below(4)):
        kind = choices.of(("image", "video"))
        t, h, w = 1 + choices.below(3), 1 + choices.below(3), 1 + family.row_token + choices.below(3)
        if kind == "image" and "image" in family.media:
            row.append(Segment.image(h=h, w=w))
            inputs["image_grid_thw"].append([1, h * m, (w - family.row_token) * m])
        elif kind == "video" and "video" in family.media:
            seconds = float(np.float32(choices.of(SECONDS))) if family.uses_seconds else None
            row.append(Segment.video(t=t, h=h, w=w, seconds_per_grid=seconds))
            inputs["video_grid_thw"].append([t * tm, h * m, (w - family.row_token) * m])
            inputs["second_per_grid_ts"] += [seconds] if family.uses_seconds else []
        elif kind == "video" and "frame" in family.media:
            row += [segment for _ in range(t) for segment in (Segment.frame(h=h, w=w), Segment.text(2))][:-1]
            inputs["video_grid_thw"].append([t, h * m, (w - family.row_token) * m])
        row += choices.of(([], [], [Segment.text(2)]))
    types = {"image": 1, "video": 2, "frame": 2}
    line = [types.get(segment.kind, 0) for segment in row for _ in range(segment.length)]
    inputs = {key: value for key, value in inputs.items() if value}
    return row, {"input_ids": [[10] * len(line)], "mm_token_type_ids": [line], **inputs}


def _joined(row: Sequence[Segment]) -> list[Segment]:
    """Neighbouring texts as one: tokens cannot tell them apart."""
    out: list[Segment] = []
    for segment in row:
        if out and segment.kind == out[-1].kind == "text":
            out[-1] = Segment.text(out[-1].length + segment.length)
        else:
            out.append(segment)
    return out


def _inputs(choices: Choices) -> None:
    """Rows come back from inputs, with their ids; inputs that were changed are refused, or are rows of as many tokens."""
    family = choices.of(_plain())
    row, inputs = _sound(choices, family)
    [found] = segments_from_inputs(inputs, family)
    assert _joined(found) == _joined(row), (found, row)
    placed = position_ids(found, family)
    check(placed.ids, inputs, family)
    family = choices.of((family, *_plain()))
    changed = {key: choices.of((list, np.array, np.array))(value) for key, value in inputs.items()}
    changed["attention_mask"] = [[choices.of((1, 1, 1, 0, True))] * len(inputs["input_ids"][0])]
    for _ in range(1 + choices.below(3)):
        key = choices.of([*changed, "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "pixel_values"])
        changed[key] = _damaged(choices, changed.get(key, [[1, 2, 2]]))
    rows = segments_from_inputs(changed, family)
    shape = np.shape(changed["input_ids"])
    assert [each.length for each in rows] == [shape[1]] * shape[0]
    assert position_ids(rows, family).ids.shape[1:] == shape


def _damaged(choices: Choices, value: Any) -> Any:
    """Values of an input with something else in them."""
    try:
        array = np.array(value)
    except ValueError:
        return value
    how = choices.below(8)
    if how == 0:
        return choices.of(EXTREMES)
    if how == 1:
        kind = choices.of(("int8", "uint8", "int32", "float32", "float16", "bool", "U3", "object"))
        try:
            with np.errstate(all="ignore"):
                return array.astype(kind)
        except (TypeError, ValueError, OverflowError):
            return value
    if how == 2 and array.ndim:
        return array[choices.below(3) :]
    if how == 3 and array.ndim:
        return array[..., : choices.below(8)]
    if how == 4:
        return np.concatenate([array, array]) if array.ndim else array
    if how == 5:
        return array[None]
    flat = array.astype(object).reshape(-1).tolist()
    for _ in range(1 + choices.below(4)):
        if flat:
            flat[choices.below(len(flat))] = choices.whole()
    return np.array(flat, dtype=object).reshape(array.shape).tolist()


def _spans(choices: Choices) -> None:
    """Spans of any kind are refused, or are a row of as many tokens; those of a row are that row."""
    family = choices.of(_plain())
    row, _ = _sound(choices, family)
    spans, offset, m = [], 0, family.spatial_merge
    for segment in row:
        t, h, w = segment.grid
        grid = (t * (family.temporal_merge if segment.kind == "video" else 1), h * m, (w - family.row_token) * m)
        if segment.kind != "text":
            kind = "video" if segment.kind == "frame" else segment.kind
            spans.append(Span(offset, segment.length, grid, kind, seconds_per_grid=segment.seconds_per_grid))
        offset += segment.length
    found = segments_from_spans(offset, spans, family)
    assert _joined(found) == _joined(row), (found, row)
    count, wild = choices.of((offset, choices.whole())), []
    for span in (*spans, *spans[: choices.below(2)]):
        values = {name: getattr(span, name) for name in ("offset", "length", "grid", "kind", "embed", "seconds_per_grid")}
        name = choices.of(list(values))
        few = [choices.whole() for _ in range(3)]
        mask = [choices.below(2) for _ in range(span.length)]
        values[name] = choices.of((choices.whole(), choices.seconds(), few, mask, "video", "audio"))
        wild.append(Span(**values))
    assert segments_from_spans(count, wild, family).length == count


def _tables(choices: Choices) -> None:
    """Timings, and the ids of patches."""
    indices = choices.some(choices.whole, 6)
    fps, total = choices.of((None, choices.seconds())), choices.of((None, choices.whole()))
    metadata = {"frames_indices": indices, "fps": fps, "total_num_frames": total}
    grids = [[choices.whole(1), choices.whole(1), choices.whole(1)] for _ in range(choices.below(3))]
    merge, offset, order = choices.whole(1), choices.whole(), choices.of(("raster", "blocks"))

    def timed() -> None:
        timing = VideoTiming.from_metadata(metadata)
        assert len(timing.seconds) == len(indices)
        assert list(timing.seconds) == sorted(timing.seconds)
        for frames in (1, 2):
            assert len(timing.grid_times(frames)) == timing.grids(frames)
            assert (timing.seconds_per_grid(frames) or 1) > 0
        rule = choices.of(_plain())
        segment = rule.video([timing.grids(rule.temporal_merge) * rule.temporal_merge, 2, 2], timing=timing)
        position_ids([segment], rule)

    def patches() -> None:
        if math.prod(math.prod(n if isinstance(n, int) else 1 for n in grid) for grid in grids) > 10 * MANY:
            return
        ids = patch_position_ids(grids, axes=choices.of(("hw", "thw")), order=order, merge=merge, offset=offset)
        assert ids.shape[1] == sum(map(math.prod, grids))

    _each(timed, patches)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function for function in (images, videos, tokenizers, configs, conversations, segments)
}
JSON = ("tokenizers", "configs", "conversations")
"""Targets whose bytes are a JSON object."""
