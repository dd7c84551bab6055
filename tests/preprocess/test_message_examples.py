"""Messages as READMEs write them: tests/references/messages/examples.json has the forms that users of Qwen and vLLM are shown."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from PIL import Image

from mmrope import Processor
from tests.support import ROOT
from tests.support.films import film

EXAMPLES = json.loads((ROOT / "tests" / "references" / "messages" / "examples.json").read_text(encoding="utf-8"))
SIZES = {"image_pixels": (56 * 56, 40 * 28 * 28), "video_pixels": (4 * 28 * 28, 20 * 28 * 28)}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Puts files that are there in the place of those that the examples name."""
    path = tmp_path_factory.mktemp("media")
    Image.effect_noise((210, 140), 90).convert("RGB").save(path / "image.jpg")
    film(path / "video.mp4", [40 * n for n in range(60)])
    encoded = base64.b64encode((path / "image.jpg").read_bytes()).decode()

    def changed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: changed(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [changed(item, key) for item in value]
        if isinstance(value, str) and key in ("image", "video", "url", "image_url", "video_url"):
            if "/9j/..." in value:
                return value.replace("/9j/...", encoded)
            file = path / ("video.mp4" if value.endswith(".mp4") else "image.jpg")
            return f"file://{file}" if value.startswith("file://") else str(file)
        return value

    return changed


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_examples_of_readmes_are_taken_as_they_are(name, number, here):
    messages = EXAMPLES[number]["messages"]
    items = [item for m in messages if isinstance(m["content"], list) for item in m["content"] if "text" not in item]
    processor = Processor(family=name, **SIZES)
    if any(set(item) == {"type"} for item in items):  # its files go to the processor by themselves
        with pytest.raises(ValueError, match=r"content of type 'image' takes one of image, image_url, path, url, base64, grid"):
            processor(messages)
        return
    inputs = processor(here(messages))
    images = sum("image" in item.get("type", "") or "image" in item for item in items)
    assert len(inputs.get("image_grid_thw", [])) == images
    assert len(inputs.get("video_grid_thw", [])) == len(items) - images
    if any(item.get("resized_width") == 420 for item in items):
        side = 14 if name == "qwen2_5_vl" else 16
        # multiples of a token's side, as qwen-vl-utils rounds them
        expected = [1, round(280 / (2 * side)) * 2, round(420 / (2 * side)) * 2]
        assert inputs["image_grid_thw"].tolist() == [expected]
