"""Messages with text, images and videos to model inputs: Hugging Face's keys and shapes, and the position IDs.

messages -> media (opened, measured, cut into patches; several at a time) -> parts (what the model reads, in order, each a
Segment) -> tokens, positions, pixels
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmrope.extras import needed_for
from mmrope.files import replacing, to_json
from mmrope.positions.build import position_ids
from mmrope.positions.families import Family
from mmrope.positions.families import family as find_family
from mmrope.positions.segments import MEDIA, Segment
from mmrope.positions.timing import VideoTiming
from mmrope.preprocess.access import Access
from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.messages import Messages, brief, is_conversation, items_of, media_items, shared, source_of
from mmrope.preprocess.patches import (
    FAMILY_PATCHES,
    PatchConfig,
    frame_size,
    image_patches,
    image_size,
    normalize,
    video_patches,
)
from mmrope.preprocess.pretrained import CONFIG_NAME, read_settings
from mmrope.preprocess.text import ByteTokenizer, FileTokenizer, Tokenizer, WordTokenizer

if TYPE_CHECKING:
    import torch

    from mmrope.preprocess.image import Animation, Color
    from mmrope.preprocess.video import VideoBackend

_PROCESS = os.getpid()
"""The process that loaded this module: another one that runs it is a fork."""
_CHOICES = {
    "padding_side": ("left", "right"),
    "pixels": ("float32", "uint8"),
    "animation": ("refuse", "first"),
    "color": ("stored", "srgb"),
    "video_backend": ("auto", "pyav", "decord", "torchcodec"),
    "damaged": ("refuse", "keep"),
    "aspect": ("stored", "square"),
}
_MOST_THREADS = 8  # of which each may use all of torch's
_STAMPED = ("qwen3_vl", "qwen3_vl_moe")
"""Families that split videos, whose text between frames is known here."""


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


@dataclass(frozen=True, eq=False)
class Media:
    """An image or a video that has been opened and measured.

    Example:
        >>> import numpy as np
        >>> from mmrope import Processor
        >>> image = np.zeros((56, 84, 3), np.uint8)
        >>> [media] = [part.media for part in Processor().parts([{"type": "image", "image": image}]) if part.media]
        >>> media.kind, media.patch_grid
        ('image', (1, 4, 6))
    """

    kind: Literal["image", "video"]
    patch_grid: tuple[int, int, int]
    """(t, h, w) in patches."""
    name: str = ""
    """Of its file; empty where only the size is known."""
    times: Sequence[Fraction] = ()
    """When a video is looked at, in seconds from its first frame, filled up to whole temporal grids."""
    seconds_per_grid: float | None = None
    """From one temporal grid to the next; None where a video was looked at at uneven times, which `timing` has."""
    timing: VideoTiming | None = None
    seconds: np.ndarray | None = None
    """The presentation times of the frames that are seen then, in seconds from the first frame of the file."""
    patches: torch.Tensor | None = None
    """uint8 [P, values], its pixels, if they were asked for."""
    damage: str = ""
    """What is missing of a damaged film of which what is left was taken."""


class _Marker(str):
    """A special token by name. A plain string is text, whatever it looks like."""


_IM_START, _IM_END = _Marker("<|im_start|>"), _Marker("<|im_end|>")
_VISION = (MEDIA["image"], MEDIA["video"])
_VISION_START, _VISION_END = _Marker("<|vision_start|>"), _Marker("<|vision_end|>")


class ModelInputs(dict[str, Any]):
    """A processor's output: a dict of tensors, with `.to(device)`.

    Example:
        >>> from mmrope import Processor
        >>> inputs = Processor()([{"role": "user", "content": "Hello"}])
        >>> sorted(inputs)
        ['attention_mask', 'input_ids', 'mm_token_type_ids', 'next_position', 'position_ids']
    """

    def to(self, device: Any) -> ModelInputs:
        """The same with every tensor on `device`.

        Example:
            >>> from mmrope import Processor
            >>> inputs = Processor()([{"role": "user", "content": "Hello"}]).to("cpu")
            >>> inputs["input_ids"].device.type
            'cpu'
        """
        return ModelInputs({key: value.to(device) if hasattr(value, "to") else value for key, value in self.items()})


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Turns messages into model inputs. Its fields are its settings; `dataclasses.replace` changes one. It can be pickled, and
    holds no open file: workers may have one each.

    Messages are Hugging Face's: `{"role": "user", "content": [{"type": "text", "text": "Describe"},
    {"type": "image", "image": "photo.jpg"}, {"type": "video", "video": "clip.mp4"}]}`. The file may also be under "path",
    "url" or "base64". Images are what `mmrope.preprocess.image.load_image` takes: paths, bytes, binary files, PIL images,
    arrays, tensors. Videos are paths, bytes or binary files of videos and animations, arrays of frames or lists of images.
    A video's item may say "fps" (looks a second; of arrays and lists, which have no clock, the frames a second that they
    hold), "num_frames", or "times" (seconds from its first frame) for itself. Instead of a file, "grid" states a size in
    tokens, (h, w) or (t, h, w) with "fps", for positions without pixels (`parts` only).

    Example:
        >>> import numpy as np
        >>> from mmrope import Processor
        >>> content = [{"type": "image", "image": np.zeros((56, 84, 3), np.uint8)}, {"type": "text", "text": "What is it?"}]
        >>> inputs = Processor(family="qwen2_vl")([{"role": "user", "content": content}])
        >>> inputs["image_grid_thw"].tolist(), tuple(inputs["pixel_values"].shape), tuple(inputs["position_ids"].shape)
        ([[1, 4, 6]], (24, 1176), (3, 1, 38))
    """

    family: Family | str = "qwen2_5_vl"
    patches: PatchConfig | None = None
    """How pixels become patches; None for the family's own way (mmrope.preprocess.patches.FAMILY_PATCHES)."""
    image_pixels: tuple[int, int] | None = None
    """Fewest and most pixels of a resized image; None for those of `patches`."""
    video_pixels: tuple[int, int] | None = None
    """Fewest and most pixels of a resized video frame; None for those of `patches`."""
    fps: float = 2.0
    """Looks at a video per second."""
    num_frames: int | None = None
    """Looks at a video, evenly spread, instead of `fps`."""
    min_frames: int = 4
    max_frames: int = 768
    padding_side: Literal["left", "right"] = "left"
    background: tuple[int, int, int] = (255, 255, 255)
    """What shows through transparent pixels, RGB."""
    animation: Animation = "refuse"
    """What becomes of an animated file that is given as an image: "refuse" it, or take its "first" frame. Given as a video it
    is a film."""
    color: Color = "stored"
    """"stored": values as files hold them, as the models' own processors read them; "srgb": images and animations converted by
    their ICC profile, and films with a high dynamic range as a display shows them."""
    pixels: Literal["float32", "uint8"] = "float32"
    """pixel_values as models read them, or as bytes, an eighth of the size for images, to be turned into the former on the
    device by `normalize`, or by a model that does it itself, as `mmrope.VLM`."""
    video_backend: VideoBackend = "auto"
    damaged: Literal["refuse", "keep"] = "refuse"
    """What becomes of a film that is cut off or has packets that cannot be decoded: it is refused, or what is left is taken;
    `Media.damage` says what is missing."""
    aspect: Literal["stored", "square"] = "stored"
    """Frames as they are stored, as the models' own processors take them, or with pixels that are not square (DVDs, broadcasts)
    as wide as a screen shows them."""
    tokenizer: Tokenizer = ByteTokenizer()
    threads: int | None = None
    """Media that are prepared at a time; None for as many as torch uses (one in the workers of a DataLoader), 8 at most."""
    limits: Limits = Limits()
    access: Access = Access()
    """Which paths and URLs may be opened."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", find_family(self.family))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}")
        for name in ("image_pixels", "video_pixels", "background"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))  # as it comes back from a file
        for name in ("image_pixels", "video_pixels"):
            if (bounds := getattr(self, name)) is not None and not (len(bounds) == 2 and 0 <= bounds[0] <= bounds[1] > 0):
                raise ValueError(f"{name} must be the fewest and the most, got {bounds}")
        if not (isinstance(self.fps, numbers.Real) and 0 < self.fps < math.inf and 1 <= self.min_frames <= self.max_frames):
            raise ValueError(
                "fps must be positive and 1 <= min_frames <= max_frames, got "
                f"fps={self.fps!r}, min_frames={self.min_frames}, max_frames={self.max_frames}"
            )
        if self.num_frames is not None:
            self._check_count(self.num_frames)
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background must be red, green and blue from 0 to 255, got {self.background}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, or None for as many as torch uses, got {self.threads}")
        config = self.patches or FAMILY_PATCHES.get(self._family.name)
        if config and self._family.spatial_merge != config.merge_size:
            raise ValueError(
                f"{self.family} merges {self._family.spatial_merge} x {self._family.spatial_merge} patches, "
                f"but patches.merge_size is {config.merge_size}: they must agree"
            )
        if config and self._family.frames_per_grid != config.temporal_patch_size:
            raise ValueError(
                f"{self.family} makes a temporal grid of {self._family.frames_per_grid} frames, "
                f"but patches.temporal_patch_size is {config.temporal_patch_size}: they must agree"
            )

    @property
    def _family(self) -> Family:
        return find_family(self.family)

    @property
    def _patches(self) -> PatchConfig:
        """The patch settings with this processor's own pixel bounds."""
        config = self.patches or FAMILY_PATCHES.get(self._family.name)
        if config is None:
            raise ValueError(
                f"how {self.family} cuts pixels into patches is not known here (known: {', '.join(FAMILY_PATCHES)}); "
                "say it with patches=PatchConfig(...)"
            )
        own = {"image_pixels": self.image_pixels, "video_pixels": self.video_pixels}
        return dataclasses.replace(config, **{key: value for key, value in own.items() if value is not None})

    # --- messages to inputs -----------------------------------------------------------------------------------------------

    def __call__(self, messages: Messages | Sequence[Messages], *, add_generation_prompt: bool | None = None) -> ModelInputs:
        """Model inputs of one conversation, or of a batch of conversations.

        Args:
            messages: a list of messages, or a list of such lists.
            add_generation_prompt: end with the beginning of an assistant's turn; by default when the last message is not
                the assistant's.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` [B, S]; `position_ids` [A, B, S] and `next_position` [B],
            all int64. With images `pixel_values` [patches, patch_dim] float32 and `image_grid_thw` [images, 3]; with
            videos `pixel_values_videos`, `video_grid_thw`, `video_timestamps` (per video the presentation times of
            the sampled frames, in seconds from its first frame) and, for families that place by time, `second_per_grid_ts`
            (left out if a video was looked at at uneven "times": no single number says where its frames are). With
            pixels="uint8" the pixels are bytes, and those of images lack the copies that fill a temporal patch:
            [patches, patch_dim / temporal_patch_size].

        Raises:
            MediaError: a file that cannot be used.
            ValueError: messages of another form.
            ImportError: torch is not installed (`parts` works without).

        Example:
            >>> from mmrope import Processor
            >>> conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Good morning")]
            >>> inputs = Processor()(conversations)  # a batch, padded on the left
            >>> inputs["attention_mask"].sum(dim=1).tolist(), inputs["next_position"].tolist()
            ([21, 31], [21, 31])
        """
        with needed_for("a processor's output"):
            import torch

        conversations: list[Any] = [messages] if is_conversation(messages) else list(messages)
        if not conversations:
            raise ValueError("messages must hold at least one conversation")
        items = [item for conversation in conversations for item in media_items(conversation)]
        media = self._prepare(items)
        upcoming = iter(media)
        batch = [self._conversation(c, upcoming, add_generation_prompt) for c in conversations]
        length = max(sum(part.segment.length for part in parts) for parts in batch)
        padded = [self._pad(parts, length) for parts in batch]
        tokens = np.array([[token for part in parts for token in part.tokens] for parts in padded], dtype=np.int64)
        positions = position_ids([[part.segment for part in parts] for parts in padded], self._family)
        special = self.tokenizer.special
        types = np.zeros_like(tokens)
        for kind in _VISION:
            types[tokens == special[f"<|{kind.name}_pad|>"]] = kind.token_type
        inputs = ModelInputs(input_ids=torch.from_numpy(tokens), mm_token_type_ids=torch.from_numpy(types))
        inputs.update(positions.torch())
        for kind in _VISION:
            if mine := [item for item in media if item.kind == kind.name]:
                inputs[kind.pixels] = self._pixels(mine)
                inputs[kind.grids] = torch.tensor([item.patch_grid for item in mine])
        if videos := [item for item in media if item.kind == "video"]:
            inputs["video_timestamps"] = [torch.from_numpy(video.seconds) for video in videos]
            if self._family.uses_seconds and all(video.seconds_per_grid is not None for video in videos):
                inputs["second_per_grid_ts"] = torch.tensor([video.seconds_per_grid for video in videos])
        return inputs

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row of a data set to the model inputs of its conversation: `dataset.map(processor.row)` with `datasets`,
        webdataset and Ray Data, whose workers get a pickled copy.

        Args:
            row: its messages are under "messages". Of other keys those that begin with "__" (webdataset's) are handed on.

        Returns:
            What `__call__` returns for this conversation, as numpy arrays without the dimension of the batch. Every row has
            the same keys and types, as tables want it: without images, pixel_values is [0, width]. video_timestamps of all
            videos are one array, each filled up to whole temporal grids with its last.

        Raises:
            ValueError: no messages, and what `__call__` raises.

        Example:
            >>> from mmrope import Processor
            >>> inputs = Processor().row({"messages": [{"role": "user", "content": "Hello"}]})
            >>> inputs["position_ids"].shape, inputs["pixel_values"].shape
            ((3, 24), (0, 1176))
        """
        if "messages" not in row:
            raise ValueError(f"a row has its conversation under 'messages'; this one has {', '.join(map(str, row))}")
        inputs, dim = self([row["messages"]]), self._patches.patch_dim
        made = {key: value.numpy() for key, value in inputs.items() if key != "video_timestamps"}
        made |= {key: made[key][0] for key in ("input_ids", "attention_mask", "mm_token_type_ids", "next_position")}
        made["position_ids"] = made["position_ids"][:, 0]  # [A, S]
        width = dim if self.pixels == "float32" else dim // self._patches.temporal_patch_size
        without: dict[str, np.ndarray] = {kind.grids: np.zeros((0, 3), np.int64) for kind in _VISION}
        without |= {kind.pixels: np.zeros((0, width if kind.name == "image" else dim), self.pixels) for kind in _VISION}
        if self._family.uses_seconds:
            without["second_per_grid_ts"] = np.zeros(0, np.float32)
        patch = self._patches.temporal_patch_size
        filled = [np.pad(times, (0, -len(times) % patch), mode="edge") for times in inputs.get("video_timestamps", [])]
        made["video_timestamps"] = np.concatenate([np.zeros(0), *filled])
        kept = {key: value for key, value in row.items() if str(key).startswith("__")}
        return kept | without | made

    def normalize(self, inputs: Mapping[str, Any]) -> ModelInputs:
        """Inputs with pixels as models read them, float32 [patches, patch_dim], from those that were made with pixels="uint8":
        on whatever device they are by now.

        Example:
            >>> import numpy as np
            >>> from mmrope import Processor
            >>> processor = Processor(pixels="uint8")
            >>> content = [{"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}]
            >>> inputs = processor([{"role": "user", "content": content}])
            >>> [(x["pixel_values"].dtype, tuple(x["pixel_values"].shape)) for x in (inputs, processor.normalize(inputs))]
            [(torch.uint8, (16, 588)), (torch.float32, (16, 1176))]
        """
        return ModelInputs(
            {
                key: normalize(value, self._patches) if key in [kind.pixels for kind in _VISION] else value
                for key, value in inputs.items()
            }
        )

    def decode(self, tokens: Any) -> str | list[str]:
        """The text of generated tokens: [n] gives a string, [B, n] a list of strings. Special tokens are left out.

        Example:
            >>> from mmrope import Processor
            >>> Processor().decode([72, 105, 258])  # token 258 is <|im_end|>
            'Hi'
        """
        rows = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
        if rows and isinstance(rows[0], Sequence):
            return [self.tokenizer.decode(row) for row in rows]
        return self.tokenizer.decode(rows)

    # --- messages to parts ------------------------------------------------------------------------------------------------

    def conversation(self, messages: Messages, *, add_generation_prompt: bool | None = None) -> list[Part]:
        """The parts of one conversation, in the chat format of the Qwen models (without their default system message).

        Example:
            >>> from mmrope import Processor
            >>> parts = Processor().conversation([{"role": "user", "content": [{"type": "image", "grid": (2, 3)}]}])
            >>> [(part.segment.kind, part.segment.length) for part in parts]
            [('text', 7), ('image', 6), ('text', 14)]
        """
        return self._conversation(messages, map(self._measure, media_items(messages)), add_generation_prompt)

    def parts(self, content: str | Iterable[Mapping[str, Any]]) -> list[Part]:
        """The parts of a message's content: text, and media between their markers. Files are opened and measured, their
        pixels are made in `__call__`.

        Example:
            >>> import mmrope
            >>> content = [{"type": "text", "text": "See"}, {"type": "video", "grid": (2, 1, 3), "fps": 2}]
            >>> row = [part.segment for part in mmrope.Processor().parts(content)]
            >>> print(mmrope.explain(mmrope.position_ids(row, "qwen2_5_vl")))
            qwen2_5_vl: 11 tokens, text continues at 8
            tokens  kind   grid                  t     h     w     next
            0..3    text   4                     0..3  0..3  0..3  4
            4..9    video  2 x 1 x 3, 1 s apart  4..6  4     4..6  7
            10      text   1                     7     7     7     8
        """
        items = items_of(content)
        return self._joined(self._pieces(items, map(self._measure, (item for item in items if item["type"] != "text"))))

    def _conversation(self, messages: Messages, media: Iterator[Media], add_generation_prompt: bool | None) -> list[Part]:
        pieces: list[str | Part] = []
        for message in messages:
            pieces += [_IM_START, f"{message['role']}\n", *self._pieces(items_of(message["content"]), media), _IM_END, "\n"]
        if add_generation_prompt or (add_generation_prompt is None and messages[-1]["role"] != "assistant"):
            pieces += [_IM_START, "assistant\n"]
        return self._joined(pieces)

    def _pieces(self, items: Iterable[Mapping[str, Any]], media: Iterator[Media]) -> list[str | Part]:
        """What the items of a content become: texts, markers, and media, which come from `media` in their order."""
        pieces: list[str | Part] = []
        for item in items:
            if item["type"] == "text":
                pieces.append(item["text"])
            else:
                pieces += self._image(next(media)) if item["type"] == "image" else self._video(next(media))
        return pieces

    def _image(self, media: Media) -> list[str | Part]:
        segment, special = self._family.image(media.patch_grid), self.tokenizer.special
        tokens = [special["<|image_pad|>"]] * segment.length
        if type(segment) is not Segment:  # a kind of its own: its markers belong to it
            tokens[0], tokens[-1] = special[_VISION_START], special[_VISION_END]
            return [Part(segment, tokens, Path(media.name).name, media)]
        return [_VISION_START, Part(segment, tokens, Path(media.name).name, media), _VISION_END]

    def _video(self, media: Media) -> list[str | Part]:
        family, pad, name = self._family, self.tokenizer.special["<|video_pad|>"], Path(media.name).name
        if not family.split_frames:
            timing = media.timing if family.uses_seconds else None
            segment = family.video(media.patch_grid, seconds_per_grid=media.seconds_per_grid, timing=timing)
            return [_VISION_START, Part(segment, [pad] * segment.length, name, media), _VISION_END]
        if family.name not in _STAMPED:
            raise ValueError(
                f"the text that {family} puts between the frames of a video is not known here (known: {', '.join(_STAMPED)}); "
                "give the frames as images, with texts between them"
            )
        t, h, w = family.token_grids([media.patch_grid], video=True)[0]
        patch, frame, pieces = family.frames_per_grid, Segment.frame(h=h, w=w), []
        for i in range(t):
            # the time stamp of a temporal patch is the mean of its first and last frame's (Qwen3-VL's processor)
            stamp = (media.times[i * patch] + media.times[(i + 1) * patch - 1]) / 2
            part = Part(frame, [pad] * frame.length, name if i == 0 else "", media if i == 0 else None)
            pieces += [f"<{float(stamp):.1f} seconds>", _VISION_START, part, _VISION_END]
        return pieces

    def _joined(self, pieces: Iterable[str | Part]) -> list[Part]:
        """Pieces as parts: texts and markers that stand next to each other become one, texts are read as a whole."""
        parts: list[Part] = []
        tokens: list[int] = []
        label = text = ""
        for piece in [*pieces, None]:
            if isinstance(piece, str) and not isinstance(piece, _Marker):
                text += piece
                label += piece
                continue
            tokens, text = [*tokens, *self.tokenizer.encode(text)] if text else tokens, ""
            if isinstance(piece, _Marker):
                tokens = [*tokens, self.tokenizer.special[piece]]
                label += piece
                continue
            if tokens:
                parts.append(Part(Segment.text(len(tokens)), tokens, label))
                tokens, label = [], ""
            if piece is not None:
                parts.append(piece)
        return parts

    def _pad(self, parts: list[Part], length: int) -> list[Part]:
        missing = length - sum(part.segment.length for part in parts)
        if not missing:
            return parts
        padding = Part(Segment.pad(missing), [self.tokenizer.special["<|pad|>"]] * missing)
        return [padding, *parts] if self.padding_side == "left" else [*parts, padding]

    # --- media ------------------------------------------------------------------------------------------------------------

    def _prepare(self, items: Sequence[Mapping[str, Any]]) -> list[Media]:
        """The media of items, with their pixels. What threads must not share goes through one of them, in turn."""
        groups: dict[Any, list[int]] = {}
        for n, item in enumerate(items):
            groups.setdefault(shared(item) or (n,), []).append(n)
        made: dict[int, Media] = {}

        def prepare(group: list[int]) -> None:
            for n in group:
                made[n] = self._measure(items[n], pixels=True)

        self._together(prepare, list(groups.values()))
        return [made[n] for n in range(len(items))]

    def _together(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """The function of each item, several at a time: decoding and resizing leave Python's lock."""
        import torch

        if os.getpid() != _PROCESS:
            # a fork has none of its parent's threads, and torch would wait for them for ever; DataLoader does the same
            torch.set_num_threads(1)
        threads = min(self.threads or min(torch.get_num_threads(), _MOST_THREADS), len(items))
        if threads < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))

    def _pixels(self, media: Sequence[Media]) -> torch.Tensor:
        """The patches of all media, one after the other: [P, values]."""
        import torch

        patches: list[torch.Tensor] = [item.patches for item in media if item.patches is not None]
        if self.pixels == "uint8":
            return torch.cat(patches)
        # written to their places right away: what is joined is four bytes a value, and often twice
        out = torch.empty(sum(map(len, patches)), self._patches.patch_dim)
        places = out.split([len(item) for item in patches])
        self._together(lambda n: normalize(patches[n], self._patches, out=places[n]), range(len(patches)))
        return out

    def _measure(self, item: Mapping[str, Any], *, pixels: bool = False) -> Media:
        """An item's image or video: its patch grid, its times, and with `pixels` its patches."""
        if "grid" in item:
            media = self._stated(item)
            if pixels:
                raise ValueError("an item with 'grid' has positions but no pixels; give the file instead")
            return media
        return self._measure_image(item, pixels) if item["type"] == "image" else self._measure_video(item, pixels)

    @property
    def _options(self) -> dict[str, Any]:
        """What images and videos are opened with."""
        return {"background": self.background, "color": self.color, "limits": self.limits, "access": self.access}

    def _measure_image(self, item: Mapping[str, Any], pixels: bool) -> Media:
        with needed_for("an image"):
            from mmrope.preprocess.image import load_image, source_name  # Pillow is loaded once there is a file

        source, config = source_of(item), self._patches
        image = load_image(source, animation=self.animation, **self._options)
        size = image_size(image.shape[0], image.shape[1], config, self.limits)
        grid = self._checked_grid(1, size)
        patches = image_patches(image, size, config) if pixels else None
        return Media("image", grid, source_name(source), patches=patches)

    def _measure_video(self, item: Mapping[str, Any], pixels: bool) -> Media:
        with needed_for("a video"):
            from mmrope.preprocess.video import has_own_clock, open_video  # and FFmpeg

        source, config = source_of(item), self._patches
        clock = None if has_own_clock(source) else item.get("fps")
        video = open_video(source, fps=clock, damaged=self.damaged, **self._options)
        times = self._looks(item, video, clock)
        indices, patch = video.frames_at(times), config.temporal_patch_size
        width = round(video.width * video.pixel_aspect) if self.aspect == "square" else video.width
        size = frame_size(video.height, width, len(times), config, self.limits)
        grid = self._checked_grid(len(times), size)
        patches = None
        if pixels:
            frames = video.decode(indices, backend=self.video_backend).frames
            patches = video_patches(frames, len(indices), size, config)
        steps = {b - a for a, b in itertools.pairwise(times)} or {1 / Fraction(str(self.fps))}
        even = _seconds_per_grid(steps.pop(), patch) if len(steps) == 1 and steps != {0} else None
        since = tuple(float(time - times[0]) for time in times)
        timing = VideoTiming(frame_indices=tuple(indices.tolist()), timestamps=since) if even is None else None
        filled = [*times, *times[-1:] * (-len(times) % patch)]
        return Media("video", grid, video.name, filled, even, timing, video.seconds[indices], patches, video.damage)

    def _looks(self, item: Mapping[str, Any], video: Any, clock: float | None) -> list[Fraction]:
        """The times at which a video is looked at: as its item says, or as this processor does."""
        own = {
            key: item[key] for key in ("fps", "num_frames", "times") if key in item and not (key == "fps" and clock is not None)
        }
        if len(own) > 1:
            raise ValueError(f"a video is looked at by {' or '.join(own)}, one of them, got {brief(item)}")
        if "times" in own:
            given = own["times"]
            if isinstance(given, str) or not hasattr(given, "__iter__") or not all(isinstance(t, numbers.Real) for t in given):
                raise ValueError(f"times must be a list of seconds, got {given!r}")
            times = [Fraction(repr(float(time))) for time in given]
            if not times or any(b < a for a, b in itertools.pairwise(times)) or times[0] < 0 or times[-1] > video.duration:
                raise ValueError(
                    f"times must be seconds from the video's first frame that do not decrease, up to its end at "
                    f"{float(video.duration):g}, got {own['times']}"
                )
            return times
        if "num_frames" in own or (self.num_frames is not None and not own):
            count = own.get("num_frames", self.num_frames)
            self._check_count(count)
            return video.sample(num_frames=count)
        return video.sample(fps=own.get("fps", self.fps), min_frames=self.min_frames, max_frames=self.max_frames)

    def _check_count(self, frames: Any) -> None:
        if not isinstance(frames, (int, np.integer)) or frames < 1:
            raise ValueError(f"num_frames must be a whole number, at least 1, got {frames!r}")
        if frames > self.limits.max_visual_tokens:  # each makes tokens
            raise MediaError(
                f"num_frames={frames} is more than Limits(max_visual_tokens={self.limits.max_visual_tokens}) lets a video have"
            )

    def _stated(self, item: Mapping[str, Any]) -> Media:
        """An item that states its size in tokens."""
        if item["type"] == "image":
            return Media("image", (1, *self._patch_grid(item, "hw")))
        grid, patch = self._patch_grid(item, "thw"), self._family.frames_per_grid
        fps = item.get("fps")
        if not isinstance(fps, (int, float)) or not 0 < fps < math.inf:
            raise ValueError(f"a video grid needs fps, the frames sampled per second, as a positive number: got {brief(item)}")
        step = 1 / Fraction(str(item["fps"]))
        times = [k * step for k in range(grid[0] * patch)]
        return Media("video", grid, "", times, _seconds_per_grid(step, patch * self._family.temporal_merge))

    def _patch_grid(self, item: Mapping[str, Any], axes: str) -> tuple[Any, ...]:
        """A grid that is stated in tokens, in patches."""
        grid: tuple[Any, ...] = tuple(item["grid"]) if isinstance(item["grid"], (tuple, list)) else ()
        if len(grid) != len(axes) or not all(isinstance(n, int) and n > 0 for n in grid):
            raise ValueError(f"grid is the size in tokens ({', '.join(axes)}), got {brief(item)}")
        self._check_tokens(math.prod(grid), f"grid {'x'.join(map(str, grid))} states")
        f, (*t, h, w) = self._family, grid
        if w <= f.row_token:
            raise ValueError(f"each row of an image of {f} ends in a token of its own: w must be at least 2, got {brief(item)}")
        return (*(n * f.temporal_merge for n in t), h * f.spatial_merge, (w - f.row_token) * f.spatial_merge)

    def _checked_grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """The patch grid of frames of this size in pixels (height, width)."""
        p = self._patches
        grid = -(-frames // p.temporal_patch_size), size[0] // p.patch_size, size[1] // p.patch_size
        tokens = math.prod(grid) // p.merge_size**2
        self._check_tokens(tokens, f"{frames} frame(s) of {size[1]} x {size[0]} pixels make")
        return grid

    def _check_tokens(self, tokens: int, what: str) -> None:
        if tokens > self.limits.max_visual_tokens:
            raise MediaError(
                f"{what} {tokens:,} tokens, the limit is {self.limits.max_visual_tokens:,}; "
                "lower fps, max_frames, image_pixels or video_pixels, or raise Limits(max_visual_tokens=...)"
            )

    # --- files ------------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the settings to `processor_config.json` in a folder, and a tokenizer that is not the bytes; each file is moved
        into place when it is complete, the settings last. Limits, access and threads are the machine's and are not saved.

        Raises:
            ValueError: a tokenizer or a family that cannot be saved; nothing was written.

        Example:
            >>> import tempfile
            >>> from mmrope import Processor
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Processor(fps=1.0).save_pretrained(folder)
            ...     print(Processor.from_pretrained(folder).fps)
            1.0
        """
        kept = {field.name for field in dataclasses.fields(self)} - {"limits", "access", "threads", "tokenizer"}
        settings = {name: getattr(self, name) for name in sorted(kept)}
        settings["family"] = self._family.to_dict()
        settings["patches"] = self.patches and dataclasses.asdict(self.patches)
        if Family.from_dict(json.loads(to_json(settings["family"]))) != self._family:
            raise ValueError(f"{self.family} does not come back from JSON as it is, so the processor is not saved")
        kinds = {ByteTokenizer: "bytes", WordTokenizer: "words", FileTokenizer: "file"}
        settings["tokenizer"] = kinds.get(type(self.tokenizer))
        if isinstance(self.tokenizer, WordTokenizer):
            settings["words"] = self.tokenizer.words
        if settings["tokenizer"] is None:
            raise ValueError(f"a tokenizer of type {type(self.tokenizer).__name__} cannot be saved here; save it by itself")
        content = to_json(settings)
        Path(folder).mkdir(parents=True, exist_ok=True)
        if isinstance(self.tokenizer, FileTokenizer):
            self.tokenizer.save(folder)
        with replacing(Path(folder) / CONFIG_NAME) as path:
            path.write_text(content, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Processor:
        """The processor of a folder, with some settings changed: one that `save_pretrained` wrote, or a Hugging Face
        checkpoint, of which `preprocessor_config.json`, `video_preprocessor_config.json`, `processor_config.json`,
        `config.json` and `tokenizer.json` are read, as far as they are there. Without a tokenizer, text becomes bytes.

        Raises:
            ValueError: nothing of these, or settings that mmrope does not know.

        Example:
            >>> import tempfile
            >>> from mmrope import Processor
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Processor(family="qwen3_vl", max_frames=64).save_pretrained(folder)
            ...     processor = Processor.from_pretrained(folder, padding_side="right")
            >>> processor.max_frames, processor.padding_side
            (64, 'right')
        """
        settings = {**read_settings(folder), **changes}
        if "family" not in settings:
            raise ValueError(
                f"{folder} does not say which family it is of; say it: from_pretrained(folder, family='qwen2_5_vl')"
            )
        return cls(**settings)


def _seconds_per_grid(step: Fraction, temporal_patch_size: int) -> float:
    # float32, as processors hand it on in a tensor: ids from the inputs then equal ids from the parts
    return float(np.float32(float(step * temporal_patch_size)))
