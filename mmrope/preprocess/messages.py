"""Messages in the Hugging Face form, checked: what they hold, in its order."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from mmrope.preprocess.errors import MediaError

Messages = Sequence[Mapping[str, Any]]
"""A conversation: [{"role": "user", "content": "a text" or [items]}, ...]."""

_SOURCES = {"image": ("image", "path", "url", "base64"), "video": ("video", "path", "url", "base64")}
"""The keys of an item that may hold its file."""


def is_conversation(messages: Any) -> bool:
    """Whether it is one conversation, rather than a list of them."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(
            f"messages must be a list of {{'role', 'content'}} dicts or a list of such lists, got {type(messages).__name__}"
        )
    return all(isinstance(message, Mapping) for message in messages) and len(messages) > 0


def items_of(content: Any) -> list[Mapping[str, Any]]:
    """A message's content as a list of items, which are checked."""
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(f"content must be a text or a list of items, got {brief(content)}")
    items: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    # tables, such as those of `datasets`, give every item every key: None where it has none
    items = [{k: v for k, v in item.items() if v is not None} if isinstance(item, Mapping) else item for item in items]
    for item in items:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind not in ("text", "image", "video"):
            raise ValueError(f"content has the types text, image and video, got {kind!r} in {brief(item)}")
        if kind == "text":
            if set(item) != {"type", "text"} or not isinstance(item["text"], str):
                raise ValueError(f"text must be a string, got {brief(item)}")
            continue
        sources = {*_SOURCES[kind], "grid"}
        options = {"fps", "num_frames", "times"} if kind == "video" else set()
        given = set(item) - {"type"}
        if not given <= sources | options or len(given & sources) != 1:
            takes = f"one of {', '.join(sorted(sources))}" + (f", and may have {', '.join(sorted(options))}" if options else "")
            raise ValueError(f"content of type {kind!r} takes {takes}, got {brief(item)}")
    return items


def _said(message: Mapping[str, Any]) -> set[str]:
    return {key for key, value in message.items() if value is not None}


def media_items(messages: Messages) -> list[Mapping[str, Any]]:
    """The images and videos of a conversation, in their order; its form is checked."""
    if not isinstance(messages, Sequence):
        raise ValueError(f"a conversation is a list of messages, got {brief(messages)}")
    if not messages:
        raise ValueError("a conversation needs at least one message")
    found: list[Mapping[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping) or _said(message) != {"role", "content"}:
            got = f"keys {sorted(_said(message))}" if isinstance(message, Mapping) else repr(message)
            raise ValueError(f"a message is a dict with 'role' and 'content', got {got}")
        if not isinstance(message["role"], str):
            raise ValueError(f"a role is a string, such as 'user', got {message['role']!r}")
        found += [item for item in items_of(message["content"]) if item["type"] != "text"]
    return found


def source_of(item: Mapping[str, Any]) -> Any:
    """An item's file."""
    [key] = set(item) & set(_SOURCES[item["type"]])
    if isinstance(item[key], Mapping) and set(item[key]) == {"bytes", "path"}:  # how `datasets` stores a file
        return item[key]["path"] if item[key]["bytes"] is None else item[key]["bytes"]
    if key != "base64":
        return item[key]
    try:
        return base64.b64decode(item[key], validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise MediaError(f"the base64 of a {item['type']} cannot be read: {error}") from None


def shared(item: Mapping[str, Any]) -> Any:
    """What names the object behind an item that threads must not read at once: an open file, a PIL image, or a list, which may
    hold the same images as another. None where there is nothing of the kind."""
    [key] = set(item) & {*_SOURCES[item["type"]], "grid"}
    source = item[key]
    if isinstance(source, (list, tuple)):
        return "lists"
    return id(source) if hasattr(source, "read") or hasattr(source, "getexif") else None


def brief(item: Any) -> str:
    """An item for an error message, without its pixels."""
    if not isinstance(item, Mapping):
        return repr(item)
    return str(
        {key: value if isinstance(value, (str, int, float, tuple)) else type(value).__name__ for key, value in item.items()}
    )
