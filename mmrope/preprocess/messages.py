"""Messages as people write them, brought to one form: Hugging Face's, OpenAI's and vLLM's, and qwen-vl-utils'.

An item of a content comes out with its type, one source and its options: {"type": "video", "video": "clip.mp4", "fps": 1.0}.
"""

from __future__ import annotations

import base64
import binascii
import numbers
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from mmrope.preprocess.errors import MediaError

Messages = Sequence[Mapping[str, Any]]
"""A conversation: [{"role": "user", "content": "a text" or [items]}, ...]."""

ITEM_TYPES = MappingProxyType(
    {
        "text": "text",
        "image": "image",
        "video": "video",
        "image_url": "image",
        "video_url": "video",
        "input_text": "text",
        "output_text": "text",
        "input_image": "image",
    }
)
"""What "type" may say, and what it is here. The last five are OpenAI's and vLLM's."""

SOURCE_KEYS = MappingProxyType(
    {
        "image": ("image",),
        "image_url": ("image",),
        "video": ("video",),
        "video_url": ("video",),
        "path": ("image", "video"),
        "url": ("image", "video"),
        "base64": ("image", "video"),
        "grid": ("image", "video"),
    }
)
"""Keys that may hold an item's file, or state its size, and the kinds of media that they are for."""
_TELLING = {key: kinds[0] for key, kinds in SOURCE_KEYS.items() if len(kinds) == 1} | {"text": "text"}
"""What an item without "type" is, by its source."""

OPTION_KEYS = MappingProxyType(
    {
        "min_pixels": ("image", "video"),
        "max_pixels": ("image", "video"),
        "resized_height": ("image", "video"),
        "resized_width": ("image", "video"),
        "total_pixels": ("video",),
        "fps": ("video",),
        "nframes": ("video",),
        "min_frames": ("video",),
        "max_frames": ("video",),
        "video_start": ("video",),
        "video_end": ("video",),
        "sample_fps": ("video",),
        "raw_fps": ("video",),
        "num_frames": ("video",),
        "times": ("video",),
        "detail": ("image", "video"),
        "uuid": ("image", "video"),
    }
)
"""Options of an item, and the kinds of media that they are for: docs/media.md says what each means."""

SIZE_KEYS = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
"""qwen-vl-utils' keys of sizes: an item with one of them is resized as qwen-vl-utils does it."""
SAMPLING_KEYS = ("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end")
"""qwen-vl-utils' keys of sampling: a video with one of them is sampled as qwen-vl-utils does it."""

_WITHOUT_EFFECT = ("detail", "uuid")
_NOT_NEGATIVE = ("min_pixels", "max_pixels", "video_start", "video_end")
_LARGEST = int(sys.float_info.max)
_POSITIVE = ("total_pixels", "resized_height", "resized_width", "nframes", "max_frames", "min_frames", "sample_fps", "raw_fps")

MESSAGE_KEYS = (
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "function_call",
)
"""What a message may have, as chat templates read it; one that a template names may be there for it, too."""


def is_conversation(messages: Any) -> bool:
    """Whether it is one conversation, rather than a list of them."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(
            f"messages must be a list of {{'role', 'content'}} dicts or a list of such lists, got {type(messages).__name__}"
        )
    return all(isinstance(message, Mapping) for message in messages) and len(messages) > 0


def items_of(content: Any) -> list[Mapping[str, Any]]:
    """A message's content as a list of items in one form, checked: text has "type" and "text"; media have "type", one source
    ("image", "video", "base64" or "grid") and their options. What comes out may go in again. None, where a message has nothing
    but tool calls, is no item.

    Raises:
        ValueError: another form, an unknown key, or keys that contradict each other.

    Example:
        >>> from mmrope.preprocess.messages import items_of
        >>> items_of([{"image_url": {"url": "cat.jpg", "detail": "auto"}, "max_pixels": 50176}, {"text": "What is it?"}])
        [{'type': 'image', 'image': 'cat.jpg', 'max_pixels': 50176}, {'type': 'text', 'text': 'What is it?'}]
    """
    if content is None:
        return []
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(f"content must be a text or a list of items, got {brief(content)}")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_item(item) for item in content]


def _item(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"content has the types text, image and video, got None in {brief(given)}")
    # tables, such as those of `datasets`, give every item every key: None where it has none
    item = {key: value for key, value in given.items() if value is not None}
    stated = item.pop("type", None)
    told = {_TELLING[key] for key in item if key in _TELLING}
    kind = ITEM_TYPES.get(stated) if isinstance(stated, str) else None
    if stated is None and len(told) == 1:
        [kind] = told
    if kind is None:
        close = _nearest(stated, ITEM_TYPES) if isinstance(stated, str) else ""
        raise ValueError(f"content has the types text, image and video, got {stated!r} in {brief(given)}{close}")
    if kind == "text":
        if set(item) != {"text"} or not isinstance(item["text"], str):
            raise ValueError(f"text must be a string, got {brief(given)}")
        return {"type": "text", **item}
    known = [key for key, kinds in (SOURCE_KEYS | OPTION_KEYS).items() if kind in kinds]
    for key in item:
        if key not in known:
            whose = (SOURCE_KEYS | OPTION_KEYS).get(key)
            why = f": it is for content of type {whose[0]!r}" if whose else _nearest(key, known)
            raise ValueError(f"content of type {kind!r} has no key {key!r}{why or _listed(known)}; got {brief(given)}")
    sources = [key for key in item if key in SOURCE_KEYS]
    if len(sources) != 1:
        takes = ", ".join(key for key, kinds in SOURCE_KEYS.items() if kind in kinds)
        raise ValueError(f"content of type {kind!r} takes one of {takes}, got {brief(given)}")
    [key] = sources
    source = item.pop(key)
    if key in ("image_url", "video_url"):
        source, item = _address(key, source, item, given)
    if item.get("detail") not in (None, "auto", "high"):
        raise ValueError(
            f"detail={item['detail']!r} means a size that depends on the server; say max_pixels= instead, or leave it out "
            "('auto' and 'high' have no effect)"
        )
    options = {name: _as_number(name, value) for name, value in item.items() if name not in _WITHOUT_EFFECT}
    _check_options(options, given, grid=key == "grid")
    return {"type": kind, (key if key in ("base64", "grid") else kind): source, **options}


def _address(key: str, source: Any, item: dict[str, Any], given: Any) -> tuple[Any, dict[str, Any]]:
    """OpenAI's form of a URL: as it is, or {"url": ..., "detail": ...}."""
    if not isinstance(source, Mapping):
        return source, item
    inner = {name: value for name, value in source.items() if value is not None}
    if "url" not in inner or not set(inner) <= {"url", *OPTION_KEYS} or set(inner) & set(item):
        raise ValueError(f"{key} is a URL or {{'url': ...}}, each option once, got {brief(inner)} in {brief(given)}")
    return inner.pop("url"), item | inner


def _as_number(key: str, value: Any) -> Any:
    """The value of an option; a number may be written as a text, as Qwen3-VL's README writes "sample_fps": "1"."""
    if key in (*SIZE_KEYS, *SAMPLING_KEYS, "sample_fps", "raw_fps") and isinstance(value, str):
        if re.fullmatch(r"\d+", value.strip()):
            return int(value)
        if re.fullmatch(r"\d*\.\d+|\d+\.", value.strip()):
            return float(value)
    return value


def _check_options(options: Mapping[str, Any], given: Any, *, grid: bool) -> None:
    """Refuses values of another kind, and options that contradict each other."""
    for key in (*_NOT_NEGATIVE, *_POSITIVE):
        value, least = options.get(key, 1), "at least 0" if key in _NOT_NEGATIVE else "above 0"
        number = isinstance(value, numbers.Real) and not isinstance(value, bool) and value < _LARGEST  # nor NaN
        if not number or value < 0 or (value == 0 and key in _POSITIVE):
            raise ValueError(f"{key} must be a number {least}, got {value!r} in {brief(given)}")
    if ("resized_height" in options) != ("resized_width" in options):
        raise ValueError(f"resized_height and resized_width go together: say both, got {brief(given)}")
    if grid and set(options) - {"fps"}:
        raise ValueError(f"an item with 'grid' states its size: it may have fps, and no other option, got {brief(given)}")
    own = [key for key in ("nframes", "num_frames", "times") if key in options]
    own += [key for key in ("fps",) if key in options and "nframes" in options]
    if len(own) > 1:
        raise ValueError(f"a video is sampled by {' or '.join(own)}, one of them, got {brief(given)}")
    bounds = [key for key in ("min_frames", "max_frames", "video_start", "video_end") if key in options]
    if bounds and set(own) & {"num_frames", "times"}:
        raise ValueError(f"{own[0]} says by itself what is sampled: leave out {', '.join(bounds)}, got {brief(given)}")


def check_message_key(key: str) -> None:
    """Refuses a key of a message that is none, with the nearest that is."""
    if key not in MESSAGE_KEYS:
        raise ValueError(f"a message has no key {key!r}{_nearest(key, MESSAGE_KEYS) or _listed(MESSAGE_KEYS)}")


def _nearest(key: Any, known: Iterable[str]) -> str:
    close = get_close_matches(str(key), list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _listed(known: Iterable[str]) -> str:
    return f" (known: {', '.join(known)})"


def media_items(messages: Messages) -> list[Mapping[str, Any]]:
    """The images and videos of a conversation, in their order, as `items_of` has them; its form is checked."""
    if not isinstance(messages, Sequence):
        raise ValueError(f"a conversation is a list of messages, got {brief(messages)}")
    if not messages:
        raise ValueError("a conversation needs at least one message")
    found: list[Mapping[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f"a message is a dict with 'role' and 'content', got {message!r}")
        said = {key for key, value in message.items() if value is not None}
        calls = "tool_calls" in said or "function_call" in said
        if "role" not in said or ("content" not in said and not calls):
            raise ValueError(
                f"a message is a dict with 'role' and 'content', got keys {sorted(said)} (content may be missing beside "
                "tool_calls)"
            )
        if not isinstance(message["role"], str):
            raise ValueError(f"a role is a string, such as 'user', got {message['role']!r}")
        found += [item for item in items_of(message.get("content")) if item["type"] != "text"]
    return found


# --- sources ----------------------------------------------------------------------------------------------------------


def source_of(item: Mapping[str, Any]) -> Any:
    """The file, array or list of frames of an item of `items_of`."""
    if "base64" in item:
        try:
            return base64.b64decode(item["base64"], validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise MediaError(f"the base64 of a {item['type']} cannot be read: {error}") from None
    source = item[item["type"]]
    if item["type"] == "video":
        if is_jpeg_list(source):
            _, _, frames = source.partition(",")
            return [f"data:image/jpeg;base64,{frame}" for frame in frames.split(",")]
        if isinstance(source, (list, tuple)):
            return [_stored(frame) for frame in source]
    return _stored(source)


def is_jpeg_list(source: Any) -> bool:
    """Whether it is vLLM's list of frames: data:video/jpeg;base64, and JPEG files with commas between them (vLLM 0.33,
    multimodal/media/video.py)."""
    return isinstance(source, str) and re.match(r"data:video/jpeg\s*;\s*base64,", source, re.IGNORECASE) is not None


def _stored(source: Any) -> Any:
    if isinstance(source, Mapping) and set(source) == {"bytes", "path"}:  # how `datasets` stores a file
        return source["path"] if source["bytes"] is None else source["bytes"]
    return source


def shared(item: Mapping[str, Any]) -> Any:
    """What names the object behind an item that threads must not read at once: an open file, a PIL image, or a list, which may
    hold the same images as another. None where there is nothing of the kind."""
    source = item.get(item["type"])
    if isinstance(source, (list, tuple)):
        return "lists"
    return id(source) if hasattr(source, "read") or hasattr(source, "getexif") else None


def brief(item: Any) -> str:
    """An item for an error message, without its pixels."""
    if not isinstance(item, Mapping):
        return repr(item)

    def short(value: Any) -> Any:
        if isinstance(value, str):
            return value if len(value) <= 80 else f"{value[:77]}..."
        return value if isinstance(value, (int, float, tuple)) else type(value).__name__

    return str({key: short(value) for key, value in item.items()})
