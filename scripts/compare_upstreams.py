"""Where upstreams place tokens otherwise than the reference, each shown by the smallest input that was found.

    python scripts/compare_upstreams.py [--vllm FOLDER] [--write]

Every case is tried on every family that the upstream has and that the case applies to: inputs from the smallest on, until
what the upstream gives is not what the reference gives. The upstream is the installed transformers (4.57, or 5.20 to 5.24,
which place alike), or with --vllm the position functions of vLLM 0.33's source, in its folder model_executor/models. --write
puts what was found into scripts/results, and the tables of all versions that are there into docs/differences.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from reports import read_result, replace_marked, write_result  # noqa: E402

from mmrope import (  # noqa: E402
    FAMILIES,
    Family,
    RotaryEmbedding,
    RotarySpec,
    Segment,
    family,
    position_ids,
    segments_from_inputs,
)
from mmrope.positions import AudioInVideo, Canvas, rope_deltas  # noqa: E402
from mmrope.preprocess.text import IMAGE_PAD, VIDEO_PAD, VISION_START  # noqa: E402
from tests.support import upstream as hugging_face  # noqa: E402
from tests.support.upstream_ids import (  # noqa: E402
    CACHE,
    IN_TRANSFORMERS,
    TOKENS,
    TRANSFORMERS,
    VLLM,
    as_inputs,
    get_rope_index,
    transformers_ids,
    upstream_class,
    upstream_self,
    vllm_ids,
    with_tokens,
)

PAGE, RESULTS = ROOT / "docs" / "differences.md", ROOT / "scripts" / "results"
TITLES = {"transformers-4.57": "transformers 4.57.1", "transformers-5.23": "transformers 5.24.0", "vllm-0.33": "vLLM 0.33.0"}
V5 = TRANSFORMERS.startswith("transformers-5")
MOST = 72  # characters of an error's message that are shown
Inputs = dict[str, Any]
Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, help="vLLM's folder model_executor/models")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = results(vllm(asked.vllm) if asked.vllm else transformers())
    print("\n".join(table(found)))
    if asked.write:
        write_result(RESULTS / f"compare_upstreams_{found['upstream']}.json", found)
        for name, lines in page(load()).items():
            replace_marked(PAGE, name, lines)


# --- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """A batch, and what is done to what a processor makes of it."""

    batch: list[list[Segment]]
    words: str = ""
    """What is done to it."""
    change: Callable[[Inputs], Inputs] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of the checkpoint."""
    prompt: list[int] | None = None
    """Of each row the tokens of the prompt: what follows was generated."""

    def inputs(self, rule: Family) -> Inputs:
        made = as_inputs(self.batch, rule, types=V5)
        return self.change(made) if self.change else made

    @property
    def tokens(self) -> int:
        return sum(s.length for row in self.batch for s in row)

    def __str__(self) -> str:
        rows = str(self.batch[0] if len(self.batch) == 1 else self.batch)
        facts = [f"{name}={value}" for name, value in self.facts.items()]
        return "; ".join([rows, *facts, *filter(None, [self.words])])


@dataclass(frozen=True)
class Ids:
    """What an input got."""

    ids: np.ndarray  # [A, B, S]
    deltas: np.ndarray  # [B]
    batch: list[list[Segment]]
    axes: str

    def of(self, i: int) -> np.ndarray:
        """[A, n] of segment i of the first row."""
        start = sum(s.length for s in self.batch[0][:i])
        return self.ids[:, 0, start : start + self.batch[0][i].length]


@dataclass(frozen=True)
class Case:
    """One way to differ: the inputs that may show it, from the smallest on, and what to look at."""

    name: str
    about: str
    applies: Callable[[Family], bool]
    inputs: Callable[[Family], Iterable[Input]]
    look: Callable[[Ids], str]
    void: tuple[str, ...] = ()
    """Not tried where one of these cases was found, which would be found again."""
    odd: Callable[[Ids], bool] = lambda ids: False
    """Shown where the reference gives the same, too."""
    by_rule: bool = True
    """Whether a revision in the table of families can state it."""
    smaller: Callable[[Input], Iterable[Input]] | None = None
    """The inputs are long ones to begin with: the shorter ones of such an input, from the smallest on."""
    from_first: bool = False
    """Look at tokens from the first on that differs."""


@dataclass(frozen=True)
class Upstream:
    """An upstream that is at hand."""

    name: str
    families: Sequence[str]
    ids: Callable[[Family, Input], tuple[np.ndarray, np.ndarray]]
    takes: Callable[[Input], bool]
    more: Callable[[], Iterable[Record]]
    """What is measured in other ways."""


def transformers() -> Upstream:
    return Upstream(
        TRANSFORMERS,
        IN_TRANSFORMERS,
        lambda rule, given: transformers_ids(rule, given.inputs(rule)),
        lambda given: True,
        lambda: [*of_a_model(), *(of_glm_image() if V5 else ()), *(of_hunyuan() if V5 else ())],
    )


def vllm(models: Path) -> Upstream:
    def ids(rule: Family, given: Input) -> tuple[np.ndarray, np.ndarray]:
        found, delta = vllm_ids(models, rule, given.batch[0])
        return found[:, None], np.array([delta])

    def takes(given: Input) -> bool:
        """vLLM gets spans, a row at a time and without padding, and no processor's output that could be wrong. Its sound in
        video lies between placeholders of its own."""
        kinds = {s.kind for row in given.batch for s in row}
        return given.change is None and len(given.batch) == 1 and not kinds & {"pad", "audio_in_video"}

    return Upstream("vllm-0.33", sorted(VLLM), ids, takes, lambda: ())


def results(upstream: Upstream) -> Record:
    """What was found: a record for each case and family that differ, and by case the families that do not."""
    records: list[Record] = []
    equal: dict[str, list[str]] = {}
    for case in CASES:
        for name in upstream.families:
            rule = with_tokens(name)
            if not case.applies(rule) or any(r["case"] in case.void and r["family"] == name for r in records):
                continue
            given = [x for x in case.inputs(rule) if upstream.takes(x)]
            found = first(case, name, given, upstream)
            if found:
                records.append(found)
            elif given:
                equal.setdefault(case.name, []).append(name)
    made_with = {package: version(package).split("+")[0] for package in ("numpy", "torch")}
    return {"upstream": upstream.name, "made_with": made_with, "different": [*records, *upstream.more()], "equal": equal}


def first(case: Case, name: str, given: Iterable[Input], upstream: Upstream) -> Record | None:
    """The record of the smallest input that differs."""
    found = ((x, record) for x in given if (record := compared(case, name, x, upstream)))
    if not case.smaller:
        return next((record for _, record in found), None)
    best, tokens = None, math.inf
    for long, _ in found:
        for x in case.smaller(long):
            if x.tokens >= tokens:
                break
            if record := compared(case, name, x, upstream):
                best, tokens = record, x.tokens
                break
    return best


def compared(case: Case, name: str, given: Input, upstream: Upstream) -> Record | None:
    """A record if the upstream and the reference differ."""
    rule = family(with_tokens(name), **given.facts)
    theirs = attempt(given, rule, lambda: upstream.ids(rule, given))
    ours = attempt(given, rule, lambda: placed(rule, given, upstream))
    odd = isinstance(theirs, Ids) and case.odd(theirs)
    start = 0
    if case.from_first and isinstance(theirs, Ids) and isinstance(ours, Ids):
        differ = (theirs.ids != ours.ids).any(axis=(0, 1))
        start = int(differ.argmax()) if differ.any() else 0
    shown = [told(case, x, start) for x in (theirs, ours)]
    if shown[0] == shown[1] and not odd:
        return None
    key, by_revision = f"{name}@{upstream.name}", None
    if case.by_rule and key in FAMILIES and isinstance(theirs, Ids) and isinstance(ours, Ids):
        revised = family(with_tokens(key), **given.facts)
        by_revision = told(case, attempt(given, revised, lambda: placed(revised, given, upstream)), start) == shown[0]
    return record(case.name, name, str(given), shown[0], shown[1], by_revision)


def record(case: str, name: str, given: str, upstream: str, reference: str, by_revision: bool | None = None) -> Record:
    found = {"case": case, "family": name, "input": given, "upstream": upstream, "reference": reference}
    return {**found, "by_revision": by_revision}


def attempt(given: Input, rule: Family, ids: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Ids | str:
    try:
        return Ids(*ids(), given.batch, rule.axes)
    except Exception as error:  # whatever an upstream does is what is asked here
        return fault(error, rule.key)


def told(case: Case, outcome: Ids | str, start: int) -> str:
    if isinstance(outcome, str) or not start:
        return outcome if isinstance(outcome, str) else case.look(outcome)
    rest = case.look(Ids(outcome.ids[..., start : start + 3], outcome.deltas, [[Segment.text(3)]], outcome.axes))
    return f"tokens {start} to {start + 2}: {rest}"


def fault(error: Exception, it: str = "") -> str:
    """An error in a few words; mmrope's are refusals, and name the family, which is `it`."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    refused = trace and trace.tb_frame.f_globals.get("__name__", "").startswith("mmrope.")
    message = " ".join(str(error).replace(it, "it").split() if it else str(error).split())
    message = message if len(message) <= MOST else message[:MOST].rsplit(" ", 1)[0] + " ..."
    return ": ".join(filter(None, ["refused" if refused else type(error).__name__, message]))


def placed(rule: Family, given: Input, upstream: Upstream) -> tuple[np.ndarray, np.ndarray]:
    """mmrope's ids, read from what a processor returned where there is such a thing; and the deltas that lead from the tokens
    in the cache, padding included, to where text goes on."""
    if rule.name == "neomme" or upstream.name != TRANSFORMERS:
        positions = position_ids(given.batch, rule)
    else:
        positions = position_ids(segments_from_inputs(given.inputs(rule), rule, prompt_lengths=given.prompt), rule)
    return positions.ids, rope_deltas(positions, length="padded")[:, 0]


# --- what to look at --------------------------------------------------------------------------------------------------


def number(x: Any) -> str:
    return f"{float(x):.6g}"


def token(ids: Any) -> str:
    """A token's ids [A]: one number where its axes agree."""
    ids = [number(x) for x in ids]
    return ids[0] if len(set(ids)) == 1 else f"({', '.join(ids)})"


def all_ids(found: Ids) -> str:
    """Row by row, padding as dots; axis by axis where they differ."""
    rows = []
    for b, row in enumerate(found.batch):
        real = [s.kind != "pad" for s in row for _ in range(s.length)][: found.ids.shape[2]]
        axes = [" ".join(number(x) if r else "." for x, r in zip(axis, real, strict=True)) for axis in found.ids[:, b]]
        named = [f"{name} {axis}" for name, axis in zip(found.axes, axes, strict=True)]
        rows.append(axes[0] if len(set(axes)) == 1 else ", ".join(named))
    return " / ".join(rows)


def last_row(found: Ids) -> str:
    return "last row: " + all_ids(Ids(found.ids[:, -1:], found.deltas[-1:], found.batch[-1:], found.axes))


def after(found: Ids) -> str:
    return f"text after it starts at {token(found.of(2)[:, 0])}, ids in it go to {number(found.of(1).max())}"


def time_ids(found: Ids) -> str:
    _, h, w = found.batch[0][1].grid
    return f"t of its grids: {' '.join(number(x) for x in found.of(1)[0, :: h * w])}"


def padding(found: Ids) -> str:
    return f"padding carries {token(found.of(0)[:, 0])}"


def delta(found: Ids) -> str:
    return f"rope_deltas {number(found.deltas[0])}"


def stands_inside(found: Ids) -> bool:
    """Text after the medium stands on ids that it holds."""
    return bool(found.of(2)[:, 0].max() <= found.of(1).max())


# --- the inputs -------------------------------------------------------------------------------------------------------

TEXT = Segment.text(1)
FPS = (1, 2, 24, 25, 30, 3, 4, 5, 6, 8, 10, 12, 12.5, 15, 16, 20, 24 / 1.001, 30 / 1.001, 48, 50, 60)


def has(*kinds: str) -> Callable[[Family], bool]:
    return lambda rule: any(kind in rule.media for kind in kinds)


def pictured(rule: Family) -> bool:
    """Has images, in rows that may hold anything else."""
    return has("image", "canvas")(rule) and rule.name != "neomme"


def by_grids(rule: Family) -> bool:
    """Each image has a row of image_grid_thw, and nothing else has."""
    return pictured(rule) and "canvas" not in rule.media and not rule.reading.targets


def by_runs(rule: Family) -> bool:
    """Media are runs of tokens, and no marker around them is part of the rule."""
    return by_grids(rule) and not rule.reading.states_audio


def timed(rule: Family) -> bool:
    return rule.uses_seconds


def always(rule: Family) -> bool:
    return True


def sizes(*most: int) -> list[tuple[int, ...]]:
    """Grids up to these sizes, by tokens, then by the first size, and so on."""
    return sorted(itertools.product(*(range(1, n + 1) for n in most)), key=lambda grid: (math.prod(grid), grid))


def picture(rule: Family, h: int = 1, w: int = 1) -> Segment:
    return Canvas.make(h=h, w=w) if "canvas" in rule.media else Segment.image(h=h, w=w + rule.row_token)


def around(rule: Family, *media: Segment) -> list[Segment]:
    """A row of media and the text that they need around them: room for the markers that the family counts."""
    text = Segment.text(2) if rule.name == "neomme" or (rule.reading.states_audio and len(media) > 1) else TEXT
    row = [part for medium in media for part in (text, medium)]
    return [TEXT, *row[1:], TEXT] if rule.reading.states_audio else row


def video(rule: Family, t: int, h: int = 1, w: int = 1, every: float = 1.0) -> Input:
    return Input([[TEXT, Segment.video(t=t, h=h, w=w, seconds_per_grid=every if rule.uses_seconds else None), TEXT]])


def films(rate: float | None = None) -> Callable[[Family], Iterator[Input]]:
    """Videos of usual frame rates, two frames a grid, 32 grids; at the released rate of ids, or at another."""
    facts = {"ids_per_second": rate} if rate else {}
    return lambda rule: (Input(video(rule, 32, every=2 / fps).batch, facts=facts) for fps in FPS)


def films_with_sound(rule: Family) -> Iterator[Input]:
    """The same, of one token a grid, with audio as long as the video."""
    for fps in FPS:
        each = 2 / fps * (rule.ids_per_second or 0)  # tokens of audio while a grid is shown
        yield with_sound(rule, int(100 / (1 + each)), 2 / fps)


def with_sound(rule: Family, t: int, every: float, h: int = 1, w: int = 1, sound: int = 0) -> Input:
    sound = sound or max(1, round(t * every * (rule.ids_per_second or 0)))
    return Input([[TEXT, AudioInVideo.make(t=t, h=h, w=w, audio=sound, seconds_per_grid=every), TEXT]])


def shorter(given: Input) -> Iterator[Input]:
    """The same video with fewer grids, and as much less of its audio."""
    _, whole, _ = given.batch[0]
    for t in range(1, whole.grid[0] + 1):
        sound = round(getattr(whole, "audio_tokens", 0) * t / whole.grid[0])
        if whole.kind == "video" or sound:
            sizes = {"t": t, "h": whole.grid[1], "w": whole.grid[2], "seconds_per_grid": whole.seconds_per_grid}
            cut = Segment.video(**sizes) if whole.kind == "video" else AudioInVideo.make(**sizes, audio=sound)
            yield Input([[TEXT, cut, TEXT]], facts=given.facts)


def but(key: str) -> dict[str, Any]:
    """Without a key."""
    return {"words": f"without {key}", "change": lambda inputs: {k: v for k, v in inputs.items() if k != key}}


def seconds_key(rule: Family) -> str:
    return "video_second_per_grid" if rule.reading.states_audio else "second_per_grid_ts"


def grids(rule: Family, *tokens: tuple[float, float]) -> dict[str, Any]:
    """With other grids, of so many tokens."""
    value = np.array([[1, int(h * rule.spatial_merge), int(w * rule.spatial_merge)] for h, w in tokens])
    return {"words": f"image_grid_thw={value.tolist()}", "change": lambda inputs: {**inputs, "image_grid_thw": value}}


def _by_token(inputs: Inputs, change: Callable[[str, np.ndarray], np.ndarray]) -> Inputs:
    return {k: change(k, v) if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v for k, v in inputs.items()}


CUT = {"words": "without its last token", "change": lambda inputs: _by_token(inputs, lambda _, value: value[:, :-1])}
_STRAY = {"input_ids": TOKENS.image, "mm_token_type_ids": 1, "attention_mask": 1}
STRAY = {  # types are those that a processor gives to such a token
    "words": "its last token, which was generated, is an image's",
    "change": lambda inputs: _by_token(inputs, lambda k, v: np.concatenate([v[:, :-1], [[_STRAY[k]]]], axis=1)),
}


def one(*media: Callable[[Family], Segment], **how: Any) -> Callable[[Family], list[Input]]:
    """A row with these media."""
    return lambda rule: [Input([around(rule, *(medium(rule) for medium in media))], **how)]


def growing(row: Callable[[Family, int, int], list[Segment]]) -> Callable[[Family], Iterator[Input]]:
    """A row with grids of 1 x 1 tokens, 1 x 2, 2 x 1 and 2 x 2."""
    return lambda rule: (Input([row(rule, h, w)]) for h, w in sizes(2, 2))


def padded(rule: Family) -> list[Input]:
    return [Input([[Segment.pad(1), *around(rule, picture(rule))]])]


def with_a_row_of_padding(rule: Family) -> list[Input]:
    row = around(rule, picture(rule))
    return [Input([row, [Segment.pad(sum(s.length for s in row))]])]


def with_grids(*tokens: tuple[float, float]) -> Callable[[Family], list[Input]]:
    """A row with an image of one token, and these grids."""
    return lambda rule: [Input([around(rule, picture(rule))], **grids(rule, *tokens))]


CASES = (
    # --- videos and their time
    Case("text after a video", "where text goes on after a video", has("video"),
         lambda rule: (video(rule, *grid) for grid in sizes(4, 3, 3)), after),
    Case("whole seconds", "a video of 1 second a grid", timed, lambda rule: [video(rule, 2)], time_ids),
    Case("fractions of a second", "a video of half a second a grid", timed,
         lambda rule: [video(rule, 2, every=0.5)], time_ids),
    Case("rounding", "videos of usual frame rates, at the checkpoints' ids a second", timed, films(), time_ids,
         void=("whole seconds", "fractions of a second"), smaller=shorter),
    Case("rounding at 25 ids a second", "the same, where a config says 25", timed, films(25), time_ids,
         void=("whole seconds", "fractions of a second", "rounding"), smaller=shorter),
    Case("no seconds", "a video whose seconds are missing", timed,
         lambda rule: [Input(video(rule, 2, every=0.5).batch, **but(seconds_key(rule)))], time_ids, void=("whole seconds",)),
    Case("dtype", "the type of ids", always, lambda rule: [Input([[Segment.text(2)]])], lambda found: str(found.ids.dtype)),
    # --- audio in video
    Case("text after audio in video", "where text goes on after a video with its audio", has("audio_in_video"),
         lambda rule: (with_sound(rule, 1, 1.0, h, w, sound) for h, w, sound in sizes(2, 5, 2)), after, odd=stands_inside),
    Case("order of audio in video", "the order of a video's tokens and its audio's, at usual frame rates",
         has("audio_in_video"), films_with_sound, all_ids, smaller=shorter, from_first=True),
    # --- padding
    Case("padding with media", "what padding carries", has("image", "canvas"), padded, padding),
    Case("padding of text", "what padding carries in a batch without media", always,
         lambda rule: [Input([[Segment.pad(1), TEXT]])], padding),
    Case("rope_deltas with padding", "the delta of a padded row", pictured, padded, delta, by_rule=False),
    Case("rope_deltas", "the delta of a row without padding", pictured,
         growing(lambda rule, h, w: around(rule, picture(rule, h, w))), delta, by_rule=False),
    Case("a row of padding", "a batch filled up with an empty row", pictured, with_a_row_of_padding, all_ids),
    Case("no attention_mask", "a batch without a mask", pictured,
         lambda rule: [Input([row], **but("attention_mask")) for row in ([TEXT], around(rule, picture(rule)))], all_ids),
    # --- tokens and grids
    Case("images that touch", "two images with no token between", by_runs,
         growing(lambda rule, h, w: [TEXT, *[picture(rule, h, w)] * 2, TEXT]), all_ids),
    Case("frames that touch", "two frames with no token between", has("frame"),
         growing(lambda _, h, w: [TEXT, *[Segment.frame(h=h, w=w)] * 2, TEXT]), all_ids),
    Case("an image without its start marker", "a row that begins with an image", by_runs,
         growing(lambda rule, h, w: [picture(rule, h, w), TEXT]), all_ids),
    Case("a grid too few", "two images, one grid", by_grids,
         lambda rule: one(picture, picture, **grids(rule, (1, 1)))(rule), all_ids),
    Case("a grid too many", "one image, two grids", by_grids, with_grids((1, 1), (1, 1)), all_ids),
    Case("a grid of another size", "an image of one token, the grid of one of two", by_grids, with_grids((1, 2)), all_ids),
    Case("a grid that the merge does not divide", "an image of one token, and patches for more", by_grids,
         with_grids((1.5, 1.5)), all_ids),
    Case("a row cut inside an image", "a row that was truncated", by_grids,
         lambda rule: [Input([[TEXT, picture(rule, 1, 2)]], **CUT)], all_ids),
    Case("a generated image token", "an answer with a token in it that stands for an image", by_grids,
         lambda rule: [Input([[TEXT, picture(rule), Segment.text(2)]], prompt=[2 + picture(rule).length], **STRAY)], all_ids),
    # --- batches
    Case("a row after another", "two rows with an image each", by_grids,
         lambda rule: [Input([around(rule, picture(rule))] * 2)], last_row),
    Case("no images_per_sample", "two rows with an image each, where the images of a row are not counted",
         lambda rule: rule.reading.targets,
         lambda rule: [Input([[TEXT, picture(rule, *size), TEXT] for size in ((1, 2), (2, 1))], **but("images_per_sample"))],
         last_row, by_rule=False),
)  # fmt: skip
MORE = {  # measured in other ways
    "decoding after a long video": "where the first token of the answer stands",
    "decoding after an image": "the same",
    "decoding with padding": "the same",
    "decoding after a prompt that ends on an image": "the same",
    "no mm_token_type_ids": "a model called without the types of tokens",
    "a call after another": "a model called with embeddings alone, after another call",
    "images to be made": "where the ids of an image to be made are kept",
    "rotation": "whether a head keeps its length when it is turned",
}


# --- what is measured in other ways -----------------------------------------------------------------------------------


def of_a_model() -> Iterator[Record]:
    """Where a tiny Qwen2.5-VL goes on, by generate() and by loops written by hand; and what it makes of less input."""
    model = hugging_face.model()
    if not V5:  # its layers ask the config by another name
        for layer in model.model.language_model.layers:
            layer.self_attn.rope_scaling = {"mrope_section": [2, 3, 3]}
    rule, image = with_tokens("qwen2_5_vl"), Segment.image(h=1, w=2)
    for case, row in (
        ("decoding after a long video", [TEXT, Segment.video(t=2, h=1, w=1, seconds_per_grid=1.0), TEXT]),
        ("decoding after an image", [TEXT, image, TEXT]),
        ("decoding with padding", [Segment.pad(1), TEXT, image, TEXT]),
        ("decoding after a prompt that ends on an image", [TEXT, image]),
    ):
        inputs, ways = model_inputs(row), loops()
        shown = [f"{way} {_goes_on(model, inputs, call)}" for way, call in ways.items()]
        after = number(position_ids(segments_from_inputs(as_inputs([row], rule), rule), rule).next[0])
        if any(not words.endswith(f" {after}") for words in shown):
            yield record(case, rule.name, str(row), "; ".join(shown), f"next {after}")
    inputs = model_inputs([TEXT, Segment.image(h=2, w=2), TEXT])
    types = inputs.pop("mm_token_type_ids", None)
    if types is not None:
        theirs, ours = _seen(model, lambda: model(**inputs)), position_ids([TEXT, Segment.image(h=2, w=2), TEXT], rule).ids
        given = f"{[TEXT, Segment.image(h=2, w=2), TEXT]}; the model called without mm_token_type_ids"
        yield record("no mm_token_type_ids", rule.name, given, _whole(theirs), _whole(ours))
        inputs["mm_token_type_ids"] = types
    embeddings = model.get_input_embeddings()(torch.full((1, 2), 10))
    _seen(model, lambda: model(**inputs))  # leaves its delta on the model
    theirs = _seen(model, lambda: model(inputs_embeds=embeddings))
    given = f"{[Segment.text(2)]}; as inputs_embeds, after a call with {[TEXT, Segment.image(h=2, w=2), TEXT]}"
    if _whole(theirs) != "0 1":
        yield record("a call after another", rule.name, given, _whole(theirs), "0 1")


def model_inputs(row: list[Segment]) -> Inputs:
    """What a processor makes of a row, in the tokens of the tiny model, with random pixels."""
    made = {key: torch.as_tensor(value) for key, value in as_inputs([row], with_tokens("qwen2_5_vl")).items()}
    for ours, its in ((TOKENS.image, IMAGE_PAD), (TOKENS.video, VIDEO_PAD), (TOKENS.vision_start, VISION_START)):
        made["input_ids"][made["input_ids"] == ours] = its
    for key, pixels in (("image_grid_thw", "pixel_values"), ("video_grid_thw", "pixel_values_videos")):
        if key in made:
            made[pixels] = torch.zeros((int(made[key].prod()), 3 * 2 * 14 * 14))
    return made if V5 else {key: value for key, value in made.items() if key != "mm_token_type_ids"}


def loops() -> dict[str, Callable[[Any, Inputs], Any]]:
    """Ways to go on after a prompt: each ends with the call of the model that places the first token of the answer."""

    def loop(more: Callable[[Inputs], Inputs]) -> Callable[[Any, Inputs], Any]:
        def run(model: Any, inputs: Inputs) -> Any:
            cache = model(**inputs, use_cache=True).past_key_values
            return model(input_ids=torch.full((1, 1), 10), **{CACHE: cache}, **more(inputs))

        return run

    def longer(inputs: Inputs) -> torch.Tensor:
        return torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)

    ways = {
        "generate()": lambda model, inputs: model.generate(**inputs, max_new_tokens=2, do_sample=False),
        "a loop": loop(lambda inputs: {}),
        "a loop with attention_mask": loop(lambda inputs: {"attention_mask": longer(inputs)}),
    }
    if not V5:
        position = lambda inputs: torch.tensor([inputs["input_ids"].shape[1]])  # noqa: E731
        ways["a loop with cache_position"] = loop(lambda inputs: {"cache_position": position(inputs)})
    return ways


def _seen(model: Any, call: Callable[[], Any]) -> np.ndarray | str:
    """The ids [3, B, S] that the language model's last call turned by, or what went wrong."""
    seen: list[torch.Tensor] = []
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    try:
        with torch.no_grad():
            call()
    except Exception as error:  # as above
        return fault(error)
    finally:
        hook.remove()
    return seen[-1].numpy()


def _goes_on(model: Any, inputs: Inputs, call: Callable[[Any, Inputs], Any]) -> str:
    ids = _seen(model, lambda: call(model, inputs))
    return ids if isinstance(ids, str) else token(ids[:, 0, -1])


def _whole(ids: np.ndarray | str) -> str:
    return ids if isinstance(ids, str) else all_ids(Ids(ids, np.zeros(1), [[Segment.text(ids.shape[2])]], "thw"))


def of_glm_image() -> Iterator[Record]:
    """Which ids the model holds for the image that it is to make, before and after another call."""
    rule = with_tokens("glm_image")
    cls, model, held = upstream_class(rule), upstream_self(rule), []
    for h, w in ((1, 2), (1, 1)):
        ids = torch.as_tensor(as_inputs([[TEXT]], rule)["input_ids"])
        cls.get_rope_index(model, ids, torch.tensor([[1, h, w]]), images_per_sample=torch.tensor([1]))
        held.append(_whole(model._cached_decode_position_ids.permute(1, 0, 2).numpy()))
    ours = position_ids([TEXT, Segment.image(h=1, w=2)], rule, start=1).ids
    given = f"{[TEXT]}; image_grid_thw=[[1, 1, 2]] of the image to be made; then a call with [[1, 1, 1]]"
    theirs = f"the model holds {held[0]}; after the other call {held[1]}"
    yield record("images to be made", rule.name, given, theirs, f"append the image to the row: {_whole(ours)}")


def of_hunyuan() -> Iterator[Record]:
    """By how much a vector's length changes when it is turned at an image's last token."""
    from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLTextConfig
    from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLRotaryEmbedding, apply_rotary_pos_emb

    rule, spec = with_tokens("hunyuan_vl"), RotarySpec.from_family("hunyuan_vl")
    rope = {"rope_type": "default", "rope_theta": rule.rotary.theta, "mrope_section": list(rule.rotary.sections)}
    theirs = HunYuanVLRotaryEmbedding(HunYuanVLTextConfig(head_dim=spec.head_dim, rope_parameters=rope))
    ours = RotaryEmbedding(spec)
    for h, w in sizes(3, 3):
        row = [TEXT, picture(rule, h, w)]
        ids, _ = get_rope_index(rule, as_inputs([row], rule))()
        x = torch.ones((1, 1, ids.shape[2], spec.head_dim))
        turned = [apply_rotary_pos_emb(x, x, *theirs(x, ids))[0], ours.rotate(x, x, ids)[0]]
        lengths = [f"its last token's has {y.norm(dim=-1)[0, 0, -1] / x[0, 0, 0].norm():.3f} of its length" for y in turned]
        if lengths[0] != lengths[1]:
            yield record("rotation", rule.name, f"{row}; a head of ones", lengths[0], lengths[1])
            return


# --- the page ---------------------------------------------------------------------------------------------------------


def load() -> dict[str, Record]:
    """The results that are there, by version."""
    paths = {name: RESULTS / f"compare_upstreams_{name}.json" for name in TITLES}
    return {name: read_result(path, "upstream") for name, path in paths.items() if path.exists()}


def page(found: Mapping[str, Record]) -> dict[str, list[str]]:
    """The lines between each two marks of the page."""
    return {"at a glance": glance(found), **{name: table(result) for name, result in found.items()}}


def glance(found: Mapping[str, Record]) -> list[str]:
    """The families that differ, by case and version."""
    lines = [f"| case | what it is | {' | '.join(TITLES[name] for name in found)} |", "|---" * (2 + len(found)) + "|"]
    for case, about in {**{case.name: case.about for case in CASES}, **MORE}.items():
        cells = []
        for result in found.values():
            raises, silent = (
                [r["family"] for r in result["different"] if r["case"] == case and bool(RAISED.match(r["upstream"])) is loud]
                for loud in (True, False)
            )
            parts = [families(result, case, silent)] if silent else []
            parts += [f"{families(result, case, raises)} (fails)"] if raises else []
            cells.append("; ".join(parts) or ("-" if case in result["equal"] else ""))
        lines.append(f"| {case} | {about} | {' | '.join(cells)} |")
    return lines


def table(result: Record) -> list[str]:
    """The differences of a version, families that differ alike in one line."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for r in result["different"]:
        alike.setdefault((r["case"], r["input"], r["upstream"], r["reference"], r["by_revision"]), []).append(r["family"])
    lines = ["| | family | smallest input | it gives | the reference gives | revision |", "|---|---|---|---|---|---|"]
    for (case, given, upstream, reference, by_revision), names in alike.items():
        row, _, rest = given.replace("Segment.", "").partition("; ")
        cells = [case, families(result, case, names), f"`{row}`" + (f"; {rest}" if rest else ""), upstream, reference]
        lines.append(f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} | {YES[by_revision]} |")
    return lines


YES = {True: "yes", False: "no", None: ""}
RAISED = re.compile(r"\w+(Error|Iteration)\b")


def families(result: Record, case: str, names: Sequence[str]) -> str:
    """These families, or which of those that the case was tried on they are not, whichever is shorter."""
    tried = {r["family"] for r in result["different"] if r["case"] == case} | set(result["equal"].get(case, ()))
    others = sorted(tried - set(names))
    if len(tried) > 4 and len(others) < len(names):
        return "all" + (f" but {', '.join(f'`{name}`' for name in others)}" if others else "")
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    main()
