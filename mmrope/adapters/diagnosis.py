"""Whether the stacks that are installed place tokens as the weights were trained: by their code, and the table's rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmrope.adapters.upstreams import UPSTREAMS, Code, codes, families_of_code, installed
from mmrope.checkpoints.configs import family_from_config
from mmrope.positions.build import position_ids
from mmrope.positions.families import FAMILIES, departures, family
from mmrope.positions.omni import AudioInVideo
from mmrope.positions.rules import SAME_CODE, Family, fact_of
from mmrope.positions.segments import Segment


@dataclass(frozen=True)
class Finding:
    """What an installed upstream does with a family.

    Example:
        >>> from mmrope.adapters.diagnosis import Finding
        >>> print(Finding("vllm", "0.33.0", "qwen3_vl", "as the weights were trained"))
        vllm 0.33.0, qwen3_vl: as the weights were trained
    """

    upstream: str
    version: str
    family: str
    says: str
    """What it does, in words."""
    example: str = ""
    """The smallest conversation that it places otherwise; empty where it places all as the weights were trained."""
    hurts: str = ""
    mend: str = ""
    right: bool = True
    """False where ids are others, or not known."""

    def __str__(self) -> str:
        more = [("", self.example), ("it hurts ", self.hurts), ("mend it: ", self.mend)]
        lines = [f"{self.upstream} {self.version}, {self.family}: {self.says}"]
        return "\n".join([*lines, *(f"    {before}{text}" for before, text in more if text)])


def doctor(model: Any = None) -> list[Finding]:
    """For each installed upstream (transformers, vLLM, SGLang) and each family that it places: whether its ids are those that
    the weights were trained with, and if not, the smallest conversation that differs, whom it hurts, and the line that mends
    it. Upstreams are neither imported nor run: their position code is known by its source.

    Args:
        model: a checkpoint's config, or the path of its folder: its family alone. By default all families.

    Raises:
        ValueError: a config that cannot be read, or is of no family.

    Example:
        >>> from mmrope.adapters import doctor
        >>> config = {"model_type": "qwen2_vl", "vision_config": {"spatial_merge_size": 2}}
        >>> [finding.right for finding in doctor(config) if finding.upstream == "transformers"]
        [False]
    """
    wanted = None if model is None else family_from_config(model).name
    found = []
    for upstream in UPSTREAMS:
        there = installed(upstream)
        if there is None:
            continue
        version, folder = there
        mine = list(codes(upstream, folder))
        for code in mine:
            names = [name for name in code.families if name in FAMILIES and wanted in (None, name)]
            found += [_finding(code, version, name) for name in names]
        stated = f"{upstream}-{version.rpartition('.')[0]}"
        present = {code.name for code in mine}
        gone = (
            {}
            if stated in SAME_CODE or any(row.revision == stated for row in FAMILIES.values())
            else families_of_code(upstream)
        )
        for name, families in gone.items():
            if name not in present and wanted in (None, *families):
                found.append(Finding(upstream, version, name, "has no position code where it was known to be", right=False))
    return found


def report(findings: list[Finding]) -> Iterator[str]:
    """The findings as lines, what is right at the end, and upstreams that are not installed."""
    for finding in findings:
        if not finding.right or finding.example:
            yield f"{finding}\n"
    for upstream in UPSTREAMS:
        mine = [finding for finding in findings if finding.upstream == upstream]
        if not mine:
            there = installed(upstream)
            yield (
                f"{upstream} is not installed"
                if there is None
                else f"{upstream} {there[0]} has no code that is known to place it"
            )
            continue
        for says in dict.fromkeys(finding.says for finding in mine if finding.right):
            names = ", ".join(finding.family for finding in mine if finding.right and finding.says == says)
            yield f"{upstream} {mine[0].version}: {says}: {names}"


_AS_TRAINED = "as the weights were trained"
_HURTS = {  # facts by which rules differ -> whom it hurts
    "center": "whoever gives images: all of their ids are others",
    "advance": "whoever asks about long videos or trains on them, and whoever compares a trainer with a server: text after a "
    "video stands inside its time",
    "time": "whoever asks when something happens in a video: its time ids are others",
    "dtype": "whoever asks when something happens in a video: fractions of ids are cut off",
    "place": "whoever gives videos with audio: some of their tokens are at each other's times",
    "ordinal": "whoever gives several images in a batch: an image's number depends on the rows before its own",
    "layout": "all that look at images: its rotary embedding is no rotation",
    "media": "whoever gives what it does not place",
}


def _mend(upstream: str, version: str, reference: Family, theirs: Family) -> str:
    """The line by which an upstream places as the reference; where there is none, why."""
    if upstream == "sglang":
        return "mmrope.adapters.sglang.get_rope_index in the place of MRotaryEmbedding.get_rope_index"
    if upstream == "vllm":
        if reference.fractional:
            return "there is none: its ids are whole numbers, and fractions were trained with"
        if reference.center:
            return "there is none: its tables begin at 0, and centred ids may lie below"
        if reference.uses_seconds and not theirs.uses_seconds:
            return "there is none: it hands no seconds to the function that places"
        return "a model class whose get_mrope_input_positions calls mmrope.adapters.vllm's: samples/vllm_model.py"
    ids = "**mmrope.adapters.transformers.with_positions(inputs, model.config)"
    if version.startswith("4."):
        return f"model({ids}), and decode by hand (docs/sequences.md): generate of transformers 4 drops ids"
    model = "model.thinker" if reference.reading.states_audio else "model"
    rotary = "; RotaryInPlace for its rotation" if theirs.rotary.layout != reference.rotary.layout else ""
    return (
        f"mmrope.adapters.transformers.generate({model}, inputs) in place of {model}.generate(**inputs); in training "
        f"PositionCollator(collate, model.config) around the collator{rotary}"
    )


_OF_A_SERVER = "authors' code was not at hand"  # as the source of a row says it


def _finding(code: Code, version: str, name: str) -> Finding:
    reference = family(name)
    if code.rule is None:
        says = f"places by code that is no rule of the table ({code.path.name}): scripts/drift.py runs it beside those that are"
        return Finding(code.upstream, version, name, says, right=False)
    theirs = FAMILIES.get(f"{name}@{code.rule}", reference)
    words = departures(theirs)
    facts = [fact for fact in _HURTS if fact_of(theirs, fact) != fact_of(reference, fact)]
    if not facts:
        says = (
            _AS_TRAINED
            if _OF_A_SERVER not in reference.source
            else "as the reference, which is a server's: no authors' code was at hand"
        )
        if code.upstream != "transformers" and "audio_in_video" in reference.media:
            words = [*words, "audio in video was not compared"]
        return Finding(code.upstream, version, name, ", but ".join([says, *words]))
    return Finding(
        code.upstream,
        version,
        name,
        "; ".join(words),
        example=_example(reference, theirs),
        hurts=_HURTS[facts[0]],
        mend=_mend(code.upstream, version, reference, theirs),
        right=False,
    )


def _example(reference: Family, theirs: Family) -> str:
    """The smallest conversation that two rules place otherwise, and its first token that differs."""
    left_out = ""
    for rows in _conversations(reference):
        shown = (", ".join(map(str, rows)) if len(rows) > 1 else str(rows[0])).replace("Segment.", "")
        split = [[part for segment in row for part in _as_they_have_it(segment, theirs)] for row in rows]
        kinds = {segment.kind for row in split for segment in row} - {"text", *theirs.media}
        if kinds:
            left_out = left_out or f"{shown}: {', '.join(sorted(kinds)).replace('_', ' ')} is not placed"
            continue
        right, given = position_ids(rows, reference).ids, position_ids(split, theirs).ids  # [A, B, S]
        differ = (right != given).any(axis=0)  # [B, S]
        if differ.any():
            b, token = divmod(int(differ.argmax()), differ.shape[1])
            axis = int((right[:, b, token] != given[:, b, token]).argmax())
            row = f" of row {b}" if len(rows) > 1 else ""
            return (
                f"{shown}: token {token}{row} has {reference.axes[axis]} {given[axis, b, token]:.9g}, and "
                f"{right[axis, b, token]:.9g} "
                + ("by the reference" if _OF_A_SERVER in reference.source else "where the weights were trained")
            )
    return left_out or "it depends on how a processor laid the tokens: docs/differences.md has an example"


def _as_they_have_it(segment: Segment, theirs: Family) -> list[Segment]:
    """A segment, or of an upstream that cuts videos into frames its frames, which touch."""
    if segment.kind != "video" or "video" in theirs.media or "frame" not in theirs.media:
        return [segment]
    t, h, w = segment.grid
    return [Segment.frame(h=h, w=w)] * t


def _conversations(rule: Family) -> Iterator[list[list[Segment]]]:
    """Text around media, from the smallest on, and two rows of an image each."""
    ends = rule.row_token
    grids = [(1, 1 + ends), (1, 2 + ends), (2, 2 + ends), (2, 3 + ends)]
    seconds = (1.0, 0.5, 1.5, 0.08, 0.3) if rule.uses_seconds else (None,)
    media: list[Segment] = []
    if "image" in rule.media:
        media += [Segment.image(h=h, w=w) for h, w in grids]
    if "video" in rule.media:
        times = [1, 2, 3, 4, 12, 26]
        media += [Segment.video(t=t, h=h, w=w, seconds_per_grid=s) for t in times for h, w in grids[:2] for s in seconds]
    if "audio_in_video" in rule.media:
        media += [
            AudioInVideo.make(t=t, h=1, w=1, audio=n, seconds_per_grid=s)
            for t in (2, 4, 11)
            for n in (5, 20, 55)
            for s in (0.1, 0.10000000149011612, 0.8, 1.0)  # the second is the first as a float32 tensor has it
        ]
    for medium in sorted(media, key=lambda segment: segment.length):
        yield [[Segment.text(1), medium, Segment.text(1)]]
    if "image" in rule.media:
        h, w = grids[0]
        yield [[Segment.text(1), Segment.image(h=h, w=w)]] * 2
