"""Items as people write them come out in one form."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmrope import Processor
from mmrope.preprocess.messages import items_of, media_items

IMAGE, VIDEO = {"type": "image", "image": "a.jpg"}, {"type": "video", "video": "a.mp4"}
FORMS = [
    ({"image": "a.jpg"}, IMAGE),
    ({"type": "image", "path": "a.jpg"}, IMAGE),
    ({"type": "image", "url": "a.jpg"}, IMAGE),
    ({"image_url": "a.jpg"}, IMAGE),
    ({"type": "image", "image_url": "a.jpg"}, IMAGE),
    ({"type": "image_url", "image_url": {"url": "a.jpg", "detail": "high"}}, IMAGE),
    ({"type": "image_url", "image_url": {"url": "a.jpg", "detail": None}, "uuid": "1"}, IMAGE),
    ({"type": "image_url", "image_url": {"url": "a.jpg", "max_pixels": 9}}, {**IMAGE, "max_pixels": 9}),
    ({"type": "input_image", "image_url": "a.jpg", "detail": "auto"}, IMAGE),
    ({"video": "a.mp4", "fps": 1.0, "image": None}, {**VIDEO, "fps": 1.0}),
    ({"type": "video_url", "video_url": {"url": "a.mp4"}}, VIDEO),
    ({"type": "video", "video_url": "a.mp4", "total_pixels": 9.5}, {**VIDEO, "total_pixels": 9.5}),
    (
        {"video": ["a.jpg"], "sample_fps": "1", "max_frames": "8"},
        {"type": "video", "video": ["a.jpg"], "sample_fps": 1, "max_frames": 8},
    ),
    ({"text": "Hi"}, {"type": "text", "text": "Hi"}),
    ({"type": "input_text", "text": "Hi"}, {"type": "text", "text": "Hi"}),
]


@pytest.mark.parametrize(("given", "expected"), FORMS)
def test_forms(given, expected):
    [item] = items_of([given])
    assert item == expected
    assert items_of([item]) == [item]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": "a", "video": "b"}, r"content has the types text, image and video, got None"),
        ({"path": "a"}, r"content has the types text, image and video, got None"),
        ({"type": "vidoe", "video": "a"}, r"got 'vidoe' .*: did you mean 'video'\?"),
        ({"image": "a", "fps": 2}, r"content of type 'image' has no key 'fps': it is for content of type 'video'"),
        ({"image": "a", "resize_height": 2}, r"has no key 'resize_height': did you mean 'resized_height'\?"),
        ({"image_url": {"uri": "a"}}, r"image_url is a URL or \{'url': \.\.\.\}"),
        ({"image_url": {"url": "a", "max_pixels": 4}, "max_pixels": 5}, r"each option once"),
        ({"image": "a", "url": "b"}, r"takes one of image, image_url, path, url, base64, grid"),
        ({"text": "a", "image": "b"}, r"content has the types text, image and video, got None"),
        ({"image": "a", "max_pixels": True}, r"max_pixels must be a number at least 0, got True"),
        ({"image": "a", "max_pixels": 10**400}, r"max_pixels must be a number at least 0, got 10+ in"),
        ({"image": "a", "max_pixels": float("inf")}, r"max_pixels must be a number at least 0, got inf"),
        ({"image": "a", "max_pixels": float("nan")}, r"max_pixels must be a number at least 0, got nan"),
        ({"type": "video", "grid": (1, 2, 2), "fps": 1, "nframes": 2}, r"an item with 'grid' states its size"),
    ],
)
def test_forms_that_are_none(item, message):
    with pytest.raises(ValueError, match=message):
        items_of([item])


def test_keys_of_messages():
    """Those that chat templates read may be there; content may be missing beside tool calls alone."""
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    messages = [
        {"role": "user", "content": [IMAGE], "name": "Ann", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "refusal": None},
        {"role": "tool", "content": "a cat", "tool_call_id": "1"},
    ]
    assert media_items(messages) == [IMAGE]
    with pytest.raises(ValueError, match=r"a message is a dict with 'role' and 'content', got keys \['name', 'role'\]"):
        media_items([{"role": "user", "content": None, "name": "Ann"}])
    with pytest.raises(ValueError, match=r"a message has no key 'tool_cals': did you mean 'tool_calls'\?"):
        Processor()([{"role": "assistant", "content": "", "tool_cals": [call]}])


def test_file_urls(samples, tmp_path):
    (tmp_path / "a cat.jpg").write_bytes((samples / "cat.jpg").read_bytes())
    Image.new("RGB", (56, 56)).save(tmp_path / "100%25.jpg")
    grid = Processor().measure({"image": samples / "cat.jpg"}).patch_grid
    for url in (f"file://{tmp_path}/a cat.jpg", f"file://{tmp_path}/a%20cat.jpg", f"FILE://localhost{tmp_path}/a%20cat.jpg"):
        assert Processor().measure({"image": url}).patch_grid == grid
    assert Processor().measure({"image": f"file://{tmp_path}/100%25.jpg"}).patch_grid == (1, 4, 4)  # as it is written
    with pytest.raises(ValueError, match=r"none.jpg: no such file"):
        Processor().measure({"image": f"file://{tmp_path}/none.jpg"})
    frames = [f"file://{tmp_path}/a cat.jpg"] * 3
    assert Processor().measure({"video": frames}).patch_grid[0] == 2
    assert Processor().measure({"video": f"file://{samples}/clip.mp4"}).patch_grid[0] == 8


def jpeg(value):
    file = io.BytesIO()
    Image.new("RGB", (56, 56), (value,) * 3).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_frame_list_of_vllm():
    """Taken whole, a frame a second unless the item says otherwise."""
    url = "data:video/jpeg;base64," + ",".join(jpeg(60 * n) for n in range(4))
    for item in ({"type": "video_url", "video_url": {"url": url}}, {"video": url}):
        media = Processor(sampling="time").measure(item, pixels=True)
        assert [float(time) for time in media.times] == [0, 1, 2, 3]
        assert media.patches[:: len(media.patches) // 2, 0].tolist() == pytest.approx([0, 120], abs=2)
    assert [float(time) for time in Processor().measure({"video": url, "fps": 4}).times] == [0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match=r"is not base64"):
        Processor().measure({"video": "data:video/jpeg;base64,!,!"})


def test_frames_as_datasets_stores_them(samples):
    frame = {"bytes": (samples / "cat.jpg").read_bytes(), "path": None}
    assert Processor().measure({"video": [frame, frame], "sample_fps": 1}).seconds_per_grid == 2


def test_arrays_in_items():
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 84, 3), np.uint8)
    processor = Processor()
    expected = processor.measure({"type": "video", "video": frames}, pixels=True).patches
    for other in (np.moveaxis(frames, 3, 1), frames.astype(np.float32), frames.astype(np.int64), frames / 255):
        assert (processor.measure({"type": "video", "video": other}, pixels=True).patches == expected).all()
