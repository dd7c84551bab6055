"""Conversations as people write them, drawn at random: system messages, tools, images and videos, several turns."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrope.preprocess import open_video

_TEXTS = (
    "What is it?", "Describe   the\n\nimage.", "\nHello", " a cat", "Größe 3,5 m²", "数える", "def f(x):\n    return x[0]\n", "🙂", "e\u0301",
    "1234567890", "Let's\r\ngo.", "A < B > C | D", "{{ messages }} {% raw %}", "<tool>", "it's 100%", "x" * 30, "\t\ttabs", ".",
)  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather of a <place>.", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}}},
    {"type": "function", "function": {"name": "zoom", "description": "Größer", "parameters": {"type": "object", "properties": {"box": {"type": "array", "items": {"type": "number"}}}}}},
]  # fmt: skip


def conversation(draw: random.Random, films: list[Path], *, tools: bool, reasoning: bool = False) -> list[dict[str, Any]]:
    """A conversation that ends with the user's or a tool's message, or an answer; with tools that are called, and answers that
    have their reasoning in a key of its own or in their text."""
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.5:
        messages.append({"role": "system", "content": draw.choice([_text(draw), [{"type": "text", "text": _text(draw)}]])})
    for _ in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": _content(draw, films)})
        if tools and draw.random() < 0.4:
            arguments = draw.choice([{"place": _text(draw)}, {"box": [0.5, 1]}])
            call = {
                "type": "function",
                "id": "1",
                "function": {"name": draw.choice(["weather", "zoom"]), "arguments": arguments},
            }
            messages.append(
                {"role": "assistant", "content": draw.choice(["", _text(draw)]), "tool_calls": [call] * draw.randint(1, 2)}
            )
            messages.append({"role": "tool", "content": _text(draw)})
        if draw.random() < 0.8:
            answer = {"role": "assistant", "content": draw.choice([_text(draw), [{"type": "text", "text": _text(draw)}]])}
            if reasoning and draw.random() < 0.3:
                answer["reasoning_content"] = _text(draw)
            elif reasoning and draw.random() < 0.3:
                answer["content"] = f"<think>\n{_text(draw)}\n</think>\n\n{_text(draw)}"
            messages.append(answer)
    return messages


def _text(draw: random.Random) -> str:
    return draw.choice([" ", "", "\n"]).join(draw.choices(_TEXTS, k=draw.randint(1, 4)))


def _content(draw: random.Random, films: list[Path]) -> Any:
    if draw.random() < 0.2:
        return _text(draw)
    items: list[dict[str, Any]] = []
    for _ in range(draw.randint(1, 4)):
        kind = draw.choices(["text", "image", "video"], weights=[4, 3, 2 if films else 0])[0]
        if kind == "text":
            items.append({"type": "text", "text": _text(draw)})
        elif kind == "image":
            size = draw.randint(20, 120), draw.randint(20, 120), 3
            items.append({"type": "image", "image": Image.fromarray(np.full(size, draw.randint(0, 255), np.uint8))})
        else:
            items.append({"type": "video", "video": str(draw.choice(films))})
    return items


def for_transformers(conversations: list[list[dict[str, Any]]]) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """The same with decoded videos, which transformers decodes with torchcodec alone, and what it is to be told of them."""
    metadata: list[dict[str, Any]] = []

    def item(given: dict[str, Any]) -> dict[str, Any]:
        if given["type"] != "video":
            return given
        video = open_video(given["video"])
        frames = np.stack(list(video.decode(range(len(video.pts))).frames))  # [T, H, W, 3]
        fps = len(frames) / float(video.duration)
        metadata.append({"fps": fps, "total_num_frames": len(frames), "duration": len(frames) / fps, "frames_indices": list(range(len(frames)))})  # fmt: skip
        return {"type": "video", "video": frames}

    made = [
        [{**m, "content": [item(i) for i in m["content"]]} if isinstance(m.get("content"), list) else m for m in conversation]
        for conversation in conversations
    ]
    options = {"do_sample_frames": True, "fps": 2, "padding": True}
    return made, options | ({"video_metadata": metadata} if metadata else {})
