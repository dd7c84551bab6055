"""What a model reads, in its order: text and media as parts, each a Segment, with the tokens that stand for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from mmrope.positions.rules import Family
from mmrope.positions.segments import Segment
from mmrope.preprocess.chat import CHATML, AnswerEdge, Control, Piece
from mmrope.preprocess.measure import Media
from mmrope.preprocess.text import FileTokenizer, Tokenizer

# --- how media stand in the text --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MediaText:
    """Which tokens stand for media in a family's text, and what its processor writes between the frames of a video.

    Example:
        >>> from mmrope.preprocess.parts import FAMILY_TEXT
        >>> FAMILY_TEXT["glm4v"].image, FAMILY_TEXT["glm4v"].stamp(3.0, 3.5)
        ('<|image|>', '3')
    """

    image: str = "<|image_pad|>"
    video: str = "<|video_pad|>"
    frame: str = "<|video_pad|>"
    """The token of which the frames of a video consist, where a family splits videos."""
    image_markers: tuple[str, str] = ("<|vision_start|>", "<|vision_end|>")
    """What stands around an image."""
    video_markers: tuple[str, str] = ("<|vision_start|>", "<|vision_end|>")
    """What stands around a video."""
    frame_markers: tuple[str, str] = ("<|vision_start|>", "<|vision_end|>")
    """What stands around a frame of a video."""
    stamp: Callable[[float, float], str] | None = None
    """The text of a frame's time, from the seconds of the first and the last frame of its temporal patch; None where it is
    not known."""
    stamp_first: bool = True
    """Whether it stands before its frame, or after it."""
    keeps_video_markers: bool = True
    """Whether the markers that a template writes around a video stay around its frames, which have their own."""
    chat_template: str | None = None
    """How conversations are written without a checkpoint's own template; None where that is not known."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """All names of tokens."""
        return (self.image, self.video, self.frame, *self.image_markers, *self.video_markers, *self.frame_markers)


_QWEN2_VL = MediaText(chat_template=CHATML)
_QWEN3_VL = MediaText(chat_template=CHATML, stamp=lambda first, last: f"<{(first + last) / 2:.1f} seconds>")
_GLM4V = MediaText(
    image="<|image|>",
    video="<|video|>",
    frame="<|image|>",
    image_markers=("<|begin_of_image|>", "<|end_of_image|>"),
    video_markers=("<|begin_of_video|>", "<|end_of_video|>"),
    frame_markers=("<|begin_of_image|>", "<|end_of_image|>"),
    stamp=lambda first, last: str(int(first)),
    stamp_first=False,
)
FAMILY_TEXT = MappingProxyType(
    {
        "qwen2_vl": _QWEN2_VL,
        "qwen2_5_vl": _QWEN2_VL,
        "qwen3_vl": _QWEN3_VL,
        "qwen3_vl@transformers-4.57": replace(_QWEN3_VL, keeps_video_markers=False),
        "qwen3_vl_moe": _QWEN3_VL,
        "qwen3_vl_moe@transformers-4.57": replace(_QWEN3_VL, keeps_video_markers=False),
        "glm4v": _GLM4V,
        "glm4v_moe": _GLM4V,
        "glm46v": replace(_GLM4V, stamp=lambda first, last: f"{first:.1f} seconds"),
    }
)
"""By family, and by family and revision where that writes otherwise: what transformers' processors write (processing_*.py,
5.24.0; 4.57.6). Qwen3-VL's of 4.57 takes away the markers of a video that the template writes, which later ones leave."""


def media_text(family: Family, special: Collection[str]) -> MediaText:
    """How media stand in the text of a family, in the tokens of a tokenizer.

    A tokenizer that lacks the family's names and has Qwen's, as mmrope's own have, stands in with those.

    Args:
        family: the family.
        special: the names of the tokenizer's special tokens.

    Raises:
        ValueError: the tokenizer has neither.
    """
    row = FAMILY_TEXT.get(str(family)) or FAMILY_TEXT.get(family.name) or MediaText()
    if set(row.tokens) <= set(special):
        return row
    own = MediaText()
    if missing := sorted(set(own.tokens) - set(special)):
        wanted = sorted(set(row.tokens) - set(special))
        raise ValueError(f"the tokenizer has no {', '.join(wanted)}, the tokens of images and videos of {family} ({missing=})")
    names = ("image", "video", "frame", "image_markers", "video_markers", "frame_markers")
    return replace(row, **{name: getattr(own, name) for name in names})


# --- parts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """A stretch of the input that is one segment: what its tokens are, and the media behind it.

    Example:
        >>> from mmrope import Processor
        >>> parts = Processor().parts([{"type": "text", "text": "See"}, {"type": "image", "grid": (2, 3)}])
        >>> [(part.segment.kind, part.segment.length) for part in parts]
        [('text', 4), ('image', 6), ('text', 1)]
    """

    segment: Segment
    tokens: Sequence[int]
    """Text: its tokens. Media: the placeholder, once per token."""
    label: str = ""
    """The part for human eyes: its text, or the name of its file."""
    media: Media | None = None
    """The image, or the video; of a video that is split into frames, at its first frame."""
    answered: Sequence[bool] = ()
    """Of each token of a text whether it is the assistant's; empty where that was not asked, and of media."""


class PartWriter:
    """Makes parts of texts, special tokens and media as they come. Texts that stand next to each other are read as one."""

    def __init__(self, family: Family, tokenizer: Tokenizer) -> None:
        self.family, self.tokenizer = family, tokenizer
        self.text = media_text(family, tokenizer.special)
        self._check_tokens()
        self._special = frozenset(tokenizer.special.values())
        self.parts: list[Part] = []
        self._tokens: list[int] = []
        self._answered: list[bool] = []
        self._label = self._plain = ""
        self._edges: list[tuple[int, bool]] = []  # where in the open text an answer begins (or ends)
        self._depth = 0  # of answers within answers, as the open text begins
        self._skips = ""

    def write(self, pieces: Iterable[Piece], media: Iterable[Media]) -> list[Part]:
        """The parts of a conversation, whose placeholders are the media in their order.

        Raises:
            ValueError: placeholders and media that do not belong together.
        """
        media, text = list(media), self.text
        queues = {kind: iter([item for item in media if item.kind == kind]) for kind in ("image", "video")}
        kinds = {text.image: "image", text.video: "video"}
        written = [kinds[piece] for piece in pieces if isinstance(piece, Control) and piece in kinds]
        for kind in ("image", "video"):
            if written.count(kind) != (given := sum(item.kind == kind for item in media)):
                raise ValueError(
                    f"the chat template writes {written.count(kind)} {kind}(s) and the messages have {given}: it does not "
                    "place them, or writes their placeholder itself"
                )
        for piece in pieces:
            if isinstance(piece, AnswerEdge):
                self.edge(piece)
            elif not isinstance(piece, Control):
                self.plain(piece)
            elif piece in kinds:
                self.medium(next(queues[kinds[piece]]))
            else:
                self.control(piece)
        parts = self.done()
        placeholders = {self.tokenizer.special[name] for name in kinds}
        for part in parts:
            if part.segment.kind == "text" and not placeholders.isdisjoint(part.tokens):
                raise ValueError(f"the tokenizer makes placeholders of images or videos of the text {part.label[:80]!r}")
        return parts

    def _check_tokens(self) -> None:
        """That each placeholder has an id of its own, and the one that the checkpoint's config states."""
        special, known = self.tokenizer.special, self.family.checkpoint.token_ids
        ids = {"image": special[self.text.image], "video": special[self.text.video]}
        if ids["image"] == ids["video"]:
            raise ValueError(f"the tokenizer gives {self.text.image} and {self.text.video} one id, {ids['image']}")
        for kind, token in ids.items():
            if isinstance(self.tokenizer, FileTokenizer) and (stated := getattr(known, kind)) not in (None, token):
                raise ValueError(
                    f"the tokenizer gives the {kind}s of {self.family} the id {token}, the checkpoint's config.json {stated}: "
                    "they are not of one checkpoint"
                )

    def plain(self, text: str) -> None:
        """A text."""
        self._plain += text
        self._label += text

    def edge(self, edge: AnswerEdge) -> None:
        """The beginning or the end of an answer."""
        self._edges.append((len(self._plain), edge is AnswerEdge.BEGIN))

    def control(self, name: str) -> None:
        """A special token."""
        self._read()
        if name == self._skips:
            self._skips = ""
            return
        self._tokens.append(self.tokenizer.special[name])
        self._answered.append(self._depth > 0)
        self._label += name

    def medium(self, media: Media) -> None:
        """An image or a video, in place of its placeholder: what stands around it has been written, or is to be."""
        label = Path(media.name).name
        if media.kind == "image":
            self._media(self.family.image(media.patch_grid), self.text.image, media, label)
        elif self.family.split_frames:
            self._frames(media)
        else:
            timing = media.timing if self.family.uses_seconds else None
            segment = self.family.video(media.patch_grid, seconds_per_grid=media.seconds_per_grid, timing=timing)
            self._media(segment, self.text.video, media, label)

    def marked(self, media: Media) -> None:
        """An image or a video between its markers."""
        begin, end = self.text.image_markers if media.kind == "image" else self.text.video_markers
        self.control(begin)
        self.medium(media)
        self.control(end)

    def done(self) -> list[Part]:
        """All parts."""
        self._close()
        return self.parts

    def _read(self) -> None:
        """The open text as tokens."""
        spans, begin = [], 0
        for at, begins in [*self._edges, (len(self._plain), False)]:
            if self._depth and begin < at:
                spans.append((begin, at))
            begin = at
            self._depth += 1 if begins else -1
        self._depth += 1  # of the end of the text, which is the end of no answer
        if self._plain:
            tokens = self.tokenizer.encode(self._plain)
            if not isinstance(self.tokenizer, FileTokenizer) and not self._special.isdisjoint(tokens):
                raise ValueError(f"the tokenizer makes special tokens of the text {self._plain[:80]!r}: its encode must not")
            self._tokens += tokens
            if spans:
                offsets = self.tokenizer.offsets(self._plain)
                if len(offsets) != len(tokens):
                    raise ValueError(
                        f"the tokenizer gives {len(offsets)} offsets for {len(tokens)} tokens: one for each is needed"
                    )
                self._answered += [any(a < end and b > begin for begin, end in spans) for a, b in offsets]
        self._answered += [False] * (len(self._tokens) - len(self._answered))
        self._plain, self._edges = "", []

    def _close(self) -> None:
        """The text so far as a part."""
        self._read()
        if self._tokens:
            self.parts.append(Part(Segment.text(len(self._tokens)), self._tokens, self._label, answered=self._answered))
        self._tokens, self._answered, self._label = [], [], ""

    def _media(self, segment: Segment, name: str, media: Media | None, label: str = "") -> None:
        tokens = [self.tokenizer.special[name]] * segment.length
        if type(segment) is not Segment:  # a kind of its own: its markers belong to it
            begin, end = self.text.image_markers
            tokens[0], tokens[-1] = self.tokenizer.special[begin], self.tokenizer.special[end]
            self._take_markers(begin, end)
        self._close()
        self.parts.append(Part(segment, tokens, label, media))

    def _take_markers(self, begin: str, end: str) -> None:
        """Takes away the marker that was just written, and the one that is to come."""
        self._read()
        if not self._tokens or self._tokens[-1] != self.tokenizer.special[begin]:
            raise ValueError(f"{self.family} needs {begin} before its media, which the chat template does not write")
        self._tokens.pop()
        self._answered.pop()
        self._label = self._label.removesuffix(begin)
        self._skips = end

    def _frames(self, media: Media) -> None:
        family, text, label = self.family, self.text, Path(media.name).name
        if text.stamp is None:
            known = ", ".join(name for name, row in FAMILY_TEXT.items() if row.stamp is not None)
            raise ValueError(
                f"the text that {family} puts between the frames of a video is not known here (known: {known}); "
                "give the frames as images, with texts between them"
            )
        if not text.keeps_video_markers:
            self._take_markers(*text.video_markers)
        t, h, w = family.token_grids([media.patch_grid], video=True)[0]
        patch, segment = family.frames_per_grid, Segment.frame(h=h, w=w)
        for i in range(t):
            stamp = text.stamp(float(media.times[i * patch]), float(media.times[(i + 1) * patch - 1]))
            if text.stamp_first:
                self.plain(stamp)
            self.control(text.frame_markers[0])
            self._media(segment, text.frame, media if i == 0 else None, label if i == 0 else "")
            self.control(text.frame_markers[1])
            if not text.stamp_first:
                self.plain(stamp)
