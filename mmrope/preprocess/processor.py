"""Messages with text, images and videos to model inputs: Hugging Face's keys and shapes, and the position IDs.

messages -> parts (what the model reads, in order, each a Segment) -> tokens, positions, pixels
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmrope.positions.build import position_ids
from mmrope.positions.families import FACTS
from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family, TokenIds
from mmrope.positions.segments import Segment
from mmrope.preprocess import text
from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.patches import PRESETS, PatchConfig, frame_size, image_size, patchify, resize

if TYPE_CHECKING:
    from mmrope.preprocess.video import Backend

Messages = Sequence[Mapping[str, Any]]
CONFIG_NAME = "processor_config.json"


@dataclass(frozen=True, eq=False)
class Part:
    """A stretch of the input that is one segment: what its tokens are, and the media behind it."""

    segment: Segment
    tokens: Sequence[int]
    """Text: its tokens. Media: the placeholder, once per token."""
    media: _Media | None = None
    """The image, or the video; of a video that is split into frames, at its first frame."""

    @property
    def label(self) -> str:
        """The part for human eyes: its text, or the name of its file."""
        if self.segment.kind in ("text", "pad"):
            return text.decode(self.tokens, special=self.segment.kind == "text")
        return Path(self.media.name).name if self.media else ""


@dataclass(frozen=True, eq=False)
class _Media:
    """An image or a video that has been measured, but not resized yet."""

    patch_grid: tuple[int, int, int]
    name: str
    source: Any
    """PIL image, Video, or None where only the size is known."""
    indices: np.ndarray | None = None  # of the sampled frames
    seconds: np.ndarray | None = None  # their presentation times
    seconds_per_grid: float = 0.0


class ModelInputs(dict[str, Any]):
    """A processor's output: a dict of tensors, with `.to(device)`."""

    def to(self, device: Any) -> ModelInputs:
        """The same with every tensor on `device`."""
        return ModelInputs({key: value.to(device) if hasattr(value, "to") else value for key, value in self.items()})


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Turns messages into model inputs. Its fields are its settings; `dataclasses.replace` changes one.

    Messages are Hugging Face's: `{"role": "user", "content": [{"type": "text", "text": "Describe"},
    {"type": "image", "image": "photo.jpg"}, {"type": "video", "video": "clip.mp4"}]}`. Images and videos are paths, bytes,
    binary files or uint8 arrays (an array of frames needs "fps"); images also PIL images. Instead of a file, "grid" states a
    size in tokens, (h, w) or (t, h, w) with "fps", for positions without pixels (`parts` only).
    """

    family: Family | str = "qwen2_5_vl"
    patches: PatchConfig | None = None
    """How pixels become patches; None for the family's own way (mmrope.preprocess.patches.PRESETS)."""
    image_pixels: tuple[int, int] | None = None
    """Fewest and most pixels of a resized image; None for those of `patches`."""
    video_pixels: tuple[int, int] | None = None
    """Fewest and most pixels of a resized video frame; None for those of `patches`."""
    fps: float = 2.0
    """Frames looked at per second of video."""
    min_frames: int = 4
    max_frames: int = 768
    padding_side: Literal["left", "right"] = "left"
    background: tuple[int, int, int] = (255, 255, 255)
    """What shows through transparent pixels, RGB."""
    video_backend: Backend = "auto"
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", find_family(self.family))
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {self.padding_side!r}")
        config = self.patches or PRESETS.get(self._family.name)
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
        config = self.patches or PRESETS.get(self._family.name)
        if config is None:
            raise ValueError(
                f"how {self.family} cuts pixels into patches is not known here (known: {', '.join(PRESETS)}); "
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
            the sampled frames, in seconds from its first frame) and, for families that place by time, `second_per_grid_ts`.

        Raises:
            MediaError: a file that cannot be used.
            ValueError: messages of another form.
        """
        import torch

        conversations = [messages] if _is_conversation(messages) else list(messages)
        if not conversations:
            raise ValueError("messages must hold at least one conversation")
        batch = [self.conversation(c, add_generation_prompt=add_generation_prompt) for c in conversations]  # type: ignore[arg-type]
        length = max(sum(part.segment.length for part in parts) for parts in batch)
        padded = [self._pad(parts, length) for parts in batch]
        tokens = np.array([[token for part in parts for token in part.tokens] for parts in padded], dtype=np.int64)
        positions = position_ids([[part.segment for part in parts] for parts in padded], self._family)
        types = np.where(tokens == text.IMAGE_PAD, 1, np.where(tokens == text.VIDEO_PAD, 2, 0))
        inputs = ModelInputs(input_ids=torch.from_numpy(tokens), mm_token_type_ids=torch.from_numpy(types))
        inputs.update(positions.torch())
        media = [(part.segment.kind, part.media) for parts in batch for part in parts if part.media]
        images = [item for kind, item in media if kind == "image"]
        videos = [item for kind, item in media if kind != "image"]
        if images:
            inputs["pixel_values"] = torch.cat([self._image_patches(image) for image in images])
            inputs["image_grid_thw"] = torch.tensor([image.patch_grid for image in images])
        if videos:
            inputs["pixel_values_videos"] = torch.cat([self._video_patches(video) for video in videos])
            inputs["video_grid_thw"] = torch.tensor([video.patch_grid for video in videos])
            inputs["video_timestamps"] = [torch.from_numpy(video.seconds) for video in videos]
            if self._family.uses_seconds:
                inputs["second_per_grid_ts"] = torch.tensor([video.seconds_per_grid for video in videos])
        return inputs

    def decode(self, tokens: Any) -> str | list[str]:
        """The text of generated tokens: [n] gives a string, [B, n] a list of strings. Special tokens are left out."""
        rows = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
        if rows and isinstance(rows[0], Sequence):
            return [text.decode(row) for row in rows]
        return text.decode(rows)

    # --- messages to parts ------------------------------------------------------------------------------------------------

    def conversation(self, messages: Messages, *, add_generation_prompt: bool | None = None) -> list[Part]:
        """The parts of one conversation, in the chat format of the Qwen models (without their default system message)."""
        if not messages:
            raise ValueError("a conversation needs at least one message")
        items: list[Part] = []
        for message in messages:
            if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
                got = f"keys {sorted(message)}" if isinstance(message, Mapping) else repr(message)
                raise ValueError(f"a message is a dict with 'role' and 'content', got {got}")
            items.append(_text_part([text.IM_START, *text.encode(f"{message['role']}\n")]))
            items.extend(self.parts(message["content"]))
            items.append(_text_part([text.IM_END, *text.encode("\n")]))
        if add_generation_prompt or (add_generation_prompt is None and messages[-1]["role"] != "assistant"):
            items.append(_text_part([text.IM_START, *text.encode("assistant\n")]))
        return _join_texts(items)

    def parts(self, content: str | Iterable[Mapping[str, Any]]) -> list[Part]:
        """The parts of a message's content: text, and media between their markers. Files are opened and measured here,
        their pixels are resized in `__call__`."""
        items: list[Part] = []
        for item in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind not in ("text", "image", "video"):
                raise ValueError(f"content has the types text, image and video, got {kind!r} in {_brief(item)}")
            known = {"text": {"text"}, "image": {"image", "grid"}, "video": {"video", "grid", "fps"}}[kind]
            given = {key for key in item if key != "type"}
            if not given <= known or not given & (known - {"fps"}):
                raise ValueError(f"content of type {kind!r} takes {' or '.join(sorted(known))}, got {_brief(item)}")
            make = {"text": self._text, "image": self._image, "video": self._video}[kind]
            items.extend(make(item))
        return _join_texts(items)

    def _text(self, item: Mapping[str, Any]) -> list[Part]:
        if not isinstance(item["text"], str):
            raise ValueError(f"text must be a string, got {_brief(item)}")
        return [_text_part(text.encode(item["text"]))]

    def _image(self, item: Mapping[str, Any]) -> list[Part]:
        if "grid" in item:
            media = _Media((1, *self._patch_grid(item, "hw")), "", None)
        else:
            # Pillow and FFmpeg are loaded once there is a file
            from mmrope.preprocess.image import load_image, source_name

            image = load_image(item["image"], background=self.background, limits=self.limits)
            size = image_size(image.height, image.width, self._patches, self.limits)
            grid = self._checked_grid(1, size)
            media = _Media(grid, source_name(item["image"]), image)
        segment = self._family.image(media.patch_grid)
        if segment.kind == "canvas":  # its markers belong to it
            return [Part(segment, [text.VISION_START, *[text.IMAGE_PAD] * (segment.length - 2), text.VISION_END], media)]
        part = Part(segment, [text.IMAGE_PAD] * segment.length, media)
        return [_text_part([text.VISION_START]), part, _text_part([text.VISION_END])]

    def _video(self, item: Mapping[str, Any]) -> list[Part]:
        media, times = self._measure_video(item)
        t, h, w = self._family.token_grids([media.patch_grid], video=True)[0].tolist()
        patch, start, end = self._family.frames_per_grid, _text_part([text.VISION_START]), _text_part([text.VISION_END])
        if not self._family.split_frames:
            segment = self._family.video(media.patch_grid, seconds_per_grid=media.seconds_per_grid)
            return [start, Part(segment, [text.VIDEO_PAD] * segment.length, media), end]
        parts: list[Part] = []
        for i in range(t):
            # the time stamp of a temporal patch is the mean of its first and last frame's (Qwen3-VL's processor)
            stamp = (times[i * patch] + times[(i + 1) * patch - 1]) / 2
            frame = Segment.frame(h=h, w=w)
            parts += [_text_part(text.encode(f"<{float(stamp):.1f} seconds>")), start]
            parts += [Part(frame, [text.VIDEO_PAD] * frame.length, media if i == 0 else None), end]
        return parts

    def _measure_video(self, item: Mapping[str, Any]) -> tuple[_Media, list[Fraction]]:
        """A video's patch grid and times: those at which it is looked at, filled up to whole temporal patches."""
        patch = self._family.frames_per_grid
        if "grid" in item:
            grid = self._patch_grid(item, "thw")
            if not item.get("fps", 0) > 0:
                raise ValueError(
                    f"a video grid needs fps, the frames sampled per second, as a positive number: got {_brief(item)}"
                )
            step = 1 / Fraction(str(item["fps"]))
            times = [k * step for k in range(grid[0] * patch)]
            return _Media(grid, "", None, seconds_per_grid=_seconds_per_grid(step, patch * self._family.temporal_merge)), times
        from mmrope.preprocess.video import open_video

        video = open_video(item["video"], fps=item.get("fps"), limits=self.limits)
        times = video.sample(fps=self.fps, min_frames=self.min_frames, max_frames=self.max_frames)
        indices = video.frames_at(times)
        step = times[1] - times[0] if len(times) > 1 else 1 / Fraction(str(self.fps))
        grid = self._checked_grid(len(times), frame_size(video.height, video.width, len(times), self._patches, self.limits))
        times += times[-1:] * (-len(times) % patch)
        return _Media(grid, video.name, video, indices, video.seconds[indices], _seconds_per_grid(step, patch)), times

    def _patch_grid(self, item: Mapping[str, Any], axes: str) -> tuple[Any, ...]:
        """A grid that is stated in tokens, in patches."""
        grid = tuple(item["grid"])
        if len(grid) != len(axes) or not all(isinstance(n, int) and n > 0 for n in grid):
            raise ValueError(f"grid is the size in tokens ({', '.join(axes)}), got {_brief(item)}")
        self._check_tokens(math.prod(grid), f"grid {'x'.join(map(str, grid))} states")
        f, (*t, h, w) = self._family, grid
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

    # --- pixels -----------------------------------------------------------------------------------------------------------

    def _image_patches(self, image: _Media) -> Any:
        frame = resize(np.asarray(_source(image))[None], self._size(image))  # [1, 3, height, width]
        return patchify([frame] * self._patches.temporal_patch_size, self._patches)  # [P, patch_dim]

    def _video_patches(self, video: _Media) -> Any:
        frames = _source(video).decode(video.indices, backend=self.video_backend).frames
        return patchify((resize(frame[None], self._size(video)) for frame in frames), self._patches)  # [P, patch_dim]

    def _size(self, media: _Media) -> tuple[int, int]:
        _, h, w = media.patch_grid
        return h * self._patches.patch_size, w * self._patches.patch_size

    def _pad(self, parts: list[Part], length: int) -> list[Part]:
        missing = length - sum(part.segment.length for part in parts)
        if not missing:
            return parts
        padding = Part(Segment.pad(missing), [text.PAD] * missing)
        return [padding, *parts] if self.padding_side == "left" else [*parts, padding]

    # --- files ------------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the settings to `processor_config.json` in a folder. Limits are the machine's and are not saved."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "limits"}
        facts = {fact: getattr(self._family, fact) for fact in FACTS if self._family.has(fact)}
        facts["token_ids"] = dataclasses.asdict(self._family.token_ids)
        settings |= {
            "family": self._family.key,
            "family_facts": facts,
            "patches": self.patches and dataclasses.asdict(self.patches),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Processor:
        """The processor that `save_pretrained` wrote, with some settings changed."""
        path = Path(folder) / CONFIG_NAME
        if not path.is_file():
            raise ValueError(f"no {CONFIG_NAME} in {folder}: a processor is saved with save_pretrained")
        settings = json.loads(path.read_text(encoding="utf-8"), object_hook=_with_tuples)
        facts = settings.pop("family_facts")
        settings["family"] = find_family(settings["family"], **{**facts, "token_ids": TokenIds(**facts["token_ids"])})
        settings["patches"] = settings["patches"] and PatchConfig(**settings["patches"])
        return cls(**{**settings, **changes})


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _source(media: _Media) -> Any:
    if media.source is None:
        raise ValueError("an item with 'grid' has positions but no pixels; give the file instead")
    return media.source


def _is_conversation(messages: Any) -> bool:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(
            f"messages must be a list of {{'role', 'content'}} dicts or a list of such lists, got {type(messages).__name__}"
        )
    return all(isinstance(message, Mapping) for message in messages) and len(messages) > 0


def _text_part(tokens: Sequence[int]) -> Part:
    return Part(Segment.text(len(tokens)), tokens)


def _join_texts(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts as one part."""
    joined: list[Part] = []
    for part in parts:
        if joined and part.segment.kind == joined[-1].segment.kind == "text":
            joined[-1] = _text_part([*joined[-1].tokens, *part.tokens])
        else:
            joined.append(part)
    return joined


def _seconds_per_grid(step: Fraction, temporal_patch_size: int) -> float:
    # float32, as processors hand it on in a tensor: ids from the inputs then equal ids from the parts
    return float(np.float32(float(step * temporal_patch_size)))


def _brief(item: Any) -> str:
    if not isinstance(item, Mapping):
        return repr(item)
    return str(
        {key: value if isinstance(value, (str, int, float, tuple)) else type(value).__name__ for key, value in item.items()}
    )
