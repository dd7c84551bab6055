"""From messages to model inputs: Hugging Face's keys, shapes and values, and positions that agree with them."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

from mmrope import (
    FAMILIES,
    Family,
    MediaError,
    Processor,
    Segment,
    VideoTiming,
    family,
    family_from_config,
    position_ids,
    segments_from_inputs,
)
from mmrope.positions import TokenIds
from mmrope.positions.rules import changed as changed_row
from mmrope.preprocess import CHATML, Access, Limits, PatchConfig, isolated, pack_batches, text
from mmrope.preprocess.patches import FAMILY_PATCHES, frame_size, image_size
from mmrope.preprocess.video import open_video
from tests.support import cases, upstream
from tests.support.films import film

LARGE = {"image_pixels": (900 * 32 * 32, 1000 * 32 * 32)}
SMALL = {"image_pixels": (56 * 56, 60 * 28 * 28), "video_pixels": (4 * 28 * 28, 20 * 28 * 28)}


def user(*items):
    return [{"role": "user", "content": list(items)}]


def said(words):
    return {"type": "text", "text": words}


@pytest.fixture
def mixed(samples):
    """A batch of unequal conversations: two images, a video, text alone."""
    cat, coffee = ({"type": "image", "image": samples / name} for name in ("cat.jpg", "coffee.jpg"))
    clip = {"type": "video", "video": samples / "clip.mp4"}
    return [
        user(said("Compare"), cat, coffee),
        user(clip, said("When is the 5 shown?")),
        [{"role": "user", "content": "Hi"}],
    ]


# --- against Hugging Face's processor ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"), [("qwen2_vl", SMALL), ("qwen2_5_vl", SMALL), ("qwen3_vl", {}), ("qwen2_vl", {}), ("qwen3_vl", LARGE)]
)
def test_keys_shapes_and_values_are_those_of_the_upstream_processor(name, sizes, mixed, samples):
    ours = Processor(family=name, sampling="time", **sizes)(mixed)
    upstream_processor = upstream.processor(name, **sizes)
    prompts = [upstream_processor.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m in mixed]
    video = open_video(samples / "clip.mp4")
    frames = np.stack(list(video.decode(range(0, 64, 4)).frames))  # two a second
    metadata = {"fps": 8.0, "total_num_frames": 64, "frames_indices": list(range(0, 64, 4)), "duration": 8.0}
    theirs = upstream_processor(
        text=prompts,
        images=[[Image.open(samples / "cat.jpg"), Image.open(samples / "coffee.jpg")], [], []],
        videos=[[], [frames], []],
        video_metadata=[metadata],
        padding=True,
        return_tensors="pt",
    )
    added = {"position_ids", "next_position", "video_timestamps"}
    assert set(ours) == set(theirs) - {"video_metadata"} | added
    for key in set(ours) - added:
        assert ours[key].dtype == theirs[key].dtype or key == "second_per_grid_ts", key
        torch.testing.assert_close(ours[key], torch.as_tensor(theirs[key]).to(ours[key].dtype), rtol=0, atol=1e-6)
    assert ours["position_ids"].shape == (3, *theirs["input_ids"].shape)


def test_positions_go_into_a_model_of_transformers(mixed):
    """The family of the config's model, its ids into its forward: with its own rule's ids the logits are its own."""
    inputs = Processor(**SMALL)(mixed)
    model = upstream.model()
    given_keys = {
        key: value for key, value in inputs.items() if key not in ("position_ids", "next_position", "video_timestamps")
    }
    theirs = family("qwen2_5_vl@transformers-5.23")
    ids = position_ids(segments_from_inputs(inputs, theirs), theirs).torch()["position_ids"]
    with torch.no_grad():
        expected = model(**given_keys).logits
        assert torch.equal(model(**given_keys, position_ids=ids).logits, expected)
        reference = model(**given_keys, position_ids=inputs["position_ids"]).logits
    real = inputs["attention_mask"].bool()
    apart = (reference - expected)[real].abs().amax(dim=-1)
    after_video = (inputs["mm_token_type_ids"] == 2).cumsum(-1)[real] == (inputs["mm_token_type_ids"] == 2).sum()
    assert apart[after_video].max() > 1e-4  # text after a long video sits elsewhere by the reference rule
    assert apart[~after_video].max() == 0


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [key for key, row in FAMILIES.items() if row.name in FAMILY_PATCHES and not row.name.startswith("glm")]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_those_of_the_inputs(name, side, mixed):
    """The ids that come with the inputs are the ids that anyone computes from the inputs."""
    inputs = Processor(family=name, padding_side=side, **SMALL)(mixed)
    positions = position_ids(segments_from_inputs(inputs, name), name)
    assert torch.equal(inputs["position_ids"], torch.from_numpy(positions.ids))
    assert torch.equal(inputs["next_position"], torch.from_numpy(positions.next))
    assert torch.equal(inputs["attention_mask"].bool(), torch.from_numpy(positions.mask))
    assert bool(inputs["attention_mask"][:, 0 if side == "right" else -1].all())


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_conversations_one_by_one(side, mixed):
    processor = Processor(padding_side=side, **SMALL)
    together = processor(mixed)
    real = together["attention_mask"].bool()
    alone = [processor(conversation) for conversation in mixed]
    for key in ("input_ids", "mm_token_type_ids"):
        assert torch.equal(together[key][real], torch.cat([inputs[key][0] for inputs in alone]))
    assert torch.equal(together["position_ids"][:, real], torch.cat([inputs["position_ids"][:, 0] for inputs in alone], dim=1))
    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        assert torch.equal(together[key], torch.cat([inputs[key] for inputs in alone if key in inputs]))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.sampled_from((0.5, 1.0, 2.0, 24.0, 29.97)))
def test_sizes_alone_give_the_positions_of_files(h, w, t, fps):
    """A video stated as a grid, and an array of frames of that size sampled at that rate."""
    for name in ("qwen2_5_vl", "qwen3_vl"):
        side = FAMILY_PATCHES[name].factor
        frames = np.zeros((2 * t, side * h, side * w, 3), np.uint8)
        processor = Processor(family=name, fps=fps, min_frames=1, image_pixels=(1, 10**9), video_pixels=(1, 10**9))
        stated = processor.parts(
            [said("a"), {"type": "video", "grid": (t, h, w), "fps": fps}, {"type": "image", "grid": (h, w)}]
        )
        real = processor.parts(
            [said("a"), {"type": "video", "video": frames, "fps": fps}, {"type": "image", "image": frames[0]}]
        )
        assert [part.segment for part in stated] == [part.segment for part in real]
        assert [part.label for part in stated][0::2] == [part.label for part in real][0::2]


# --- videos -----------------------------------------------------------------------------------------------------------


def test_uneven_films_are_looked_at_evenly(tmp_path):
    """Frames that last unequally long: looked at every half second, seen as often as they are on show."""
    path = film(tmp_path / "uneven.mp4", [0, 264, 561, 825, 1790, 3390])
    inputs = Processor(sampling="time", **SMALL)(user({"type": "video", "video": path}))
    assert inputs["video_grid_thw"].tolist() == [[4, 4, 6]]  # 96 x 64 pixels in steps of 28, in patches of 14
    assert inputs["second_per_grid_ts"].tolist() == [1.0]
    assert inputs["video_timestamps"][0].tolist() == pytest.approx([0, 0.264, 0.825, 0.825, 1.79, 1.79, 1.79])
    steps = inputs["position_ids"][0, 0][inputs["mm_token_type_ids"][0] == 2].unique()
    assert (steps - steps[0]).tolist() == [0, 2, 4, 6]


def test_frames_behind_text_time_stamps(samples):
    """Qwen3-VL: each temporal patch stands alone behind the mean time of its frames."""
    processor = Processor(family="qwen3_vl", sampling="time", **SMALL)
    parts = processor.parts([{"type": "video", "video": samples / "clip.mp4"}])
    frames = [part for part in parts if part.segment.kind == "frame"]
    assert len(frames) == 8
    assert sum(part.media is not None for part in frames) == 1
    stamps = [part.label for part in parts if part.segment.kind == "text"]
    assert [s.replace("<|vision_start|>", "").replace("<|vision_end|>", "") for s in stamps] == [
        "<0.2 seconds>", "<1.2 seconds>", "<2.2 seconds>", "<3.2 seconds>",
        "<4.2 seconds>", "<5.2 seconds>", "<6.2 seconds>", "<7.2 seconds>", "",
    ]  # fmt: skip
    inputs = processor(user({"type": "video", "video": samples / "clip.mp4"}))
    assert inputs["video_grid_thw"][:, 0].tolist() == [8]
    assert len(inputs["pixel_values_videos"]) == inputs["video_grid_thw"].prod()
    assert "second_per_grid_ts" not in inputs


def test_the_right_frames_become_pixels(samples):
    """clip.mp4 has another colour each second: temporal patch n, of two frames, shows second n."""
    from PIL import ImageColor

    config = PatchConfig(mean=(0, 0, 0), std=(1, 1, 1))
    inputs = Processor(patches=config, sampling="time", **SMALL)(user({"type": "video", "video": samples / "clip.mp4"}))
    t, h, w = inputs["video_grid_thw"][0].tolist()
    corners = inputs["pixel_values_videos"].reshape(t, h * w, 3, 2, 14, 14)[:, 0, :, :, 2:6, 2:6]  # [T, 3, frames, 4, 4]
    colours = ("#b03030", "#30a030", "#3050c0", "#c0a020", "#a030a0", "#20a0a0", "#707070", "#e07020")
    for second in range(8):
        expected = torch.tensor(ImageColor.getrgb(colours[second])) / 255
        for frame in range(2):
            assert (corners[second, :, frame].mean(dim=(-1, -2)) - expected).abs().max() < 0.03


def test_backends_give_the_same_inputs(samples):
    content = user({"type": "video", "video": samples / "clip.mp4"})
    one, other = (Processor(video_backend=backend, **SMALL)(content) for backend in ("decord", "pyav"))
    assert torch.equal(one["pixel_values_videos"], other["pixel_values_videos"])


def test_videos_are_looked_at_as_their_item_says(samples):
    clip = samples / "clip.mp4"  # 8 s, 8 frames a second

    def looked(**options):
        inputs = Processor(sampling="time", **SMALL)(user({"type": "video", "video": clip, **options}))
        return inputs, inputs["video_timestamps"][0].tolist()

    assert looked(fps=1)[1] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert looked(fps=1)[0]["second_per_grid_ts"].tolist() == [2.0]
    assert looked(num_frames=5)[1] == pytest.approx([0, 1.5, 3.125, 4.75, 6.375])  # the frames on show at 0, 1.6, 3.2, ...
    assert looked(num_frames=5)[0]["second_per_grid_ts"].tolist() == pytest.approx([3.2])
    assert looked(times=[0.5, 2.5, 4.5])[0]["second_per_grid_ts"].tolist() == [4.0]
    inputs, seconds = looked(times=[0, 0.3, 5, 7.99])
    assert seconds == [0, 0.25, 5, 7.875]
    assert "second_per_grid_ts" not in inputs
    steps = inputs["position_ids"][0, 0][inputs["mm_token_type_ids"][0] == 2].unique()
    assert (steps - steps[0]).tolist() == [0, 10]  # the second temporal patch begins 5 s later, at 2 ids a second
    timings = [VideoTiming(frame_indices=(0, 2, 40, 63), timestamps=(0, 0.3, 5, 7.99))]
    rows = segments_from_inputs(inputs, "qwen2_5_vl", video_timings=timings)
    np.testing.assert_array_equal(position_ids(rows, "qwen2_5_vl").ids, inputs["position_ids"])
    still, seconds = looked(times=[2, 2])  # the same moment twice: no time passes from one to the next
    assert seconds == [2, 2]
    assert still["video_grid_thw"][0, 0] == 1
    assert Processor(num_frames=3, **SMALL)(user({"type": "video", "video": clip}))["video_timestamps"][0].tolist() == [
        0,
        2.625,
        5.25,
    ]
    parts = Processor(family="qwen3_vl", **SMALL).parts([{"type": "video", "video": clip, "times": [1, 2, 7]}])
    assert [part.label for part in parts][::2] == [
        "<|vision_start|><1.5 seconds><|vision_start|>",
        "<|vision_end|><7.0 seconds><|vision_start|>",
        "<|vision_end|><|vision_end|>",
    ]
    first = Processor(family="qwen3_vl@transformers-4.57", **SMALL).parts([{"type": "video", "video": clip, "times": [1, 2]}])
    assert [part.label for part in first][::2] == ["<1.5 seconds><|vision_start|>", "<|vision_end|>"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": []}, r"times must be seconds from the video's first frame that do not decrease, up to its end at 8, got"),
        ({"times": [2, 1]}, r"that do not decrease"),
        ({"times": [-1]}, r"from the video's first frame"),
        ({"times": [8.5]}, r"up to its end at 8"),
        ({"times": [1], "fps": 2}, r"a video is sampled by fps or times, one of them"),
        ({"num_frames": 0}, r"num_frames must be a whole number, at least 1, got 0"),
        ({"fps": 0}, r"fps must be positive"),
        ({"fps": "two"}, r"fps must be positive"),
        ({"num_frames": "4"}, r"num_frames must be a whole number, at least 1, got '4'"),
        ({"num_frames": 2.5}, r"num_frames must be a whole number, at least 1, got 2.5"),
        ({"num_frames": 10**9}, r"num_frames=1000000000 is more than Limits\(max_visual_tokens=128000\) lets a video have"),
        ({"times": 3}, r"times must be a list of seconds, got 3"),
        ({"times": "12"}, r"times must be a list of seconds, got '12'"),
        ({"times": [None]}, r"times must be a list of seconds, got \[None\]"),
    ],
)
def test_looks_that_cannot_be_are_refused(options, message, samples):
    with pytest.raises(ValueError, match=message):
        Processor()(user({"type": "video", "video": samples / "clip.mp4", **options}))


def test_animations_and_lists_of_images_are_videos(tmp_path):
    first, *rest = [Image.fromarray(np.full((56, 84, 3), 60 * n, np.uint8)) for n in range(4)]
    first.save(tmp_path / "film.gif", save_all=True, append_images=rest, duration=500)
    processor = Processor(patches=PatchConfig(mean=(0, 0, 0), std=(1, 1, 1)), sampling="time", **SMALL)
    inputs = processor(user({"type": "video", "video": tmp_path / "film.gif"}))
    same = processor(user({"type": "video", "video": [first, *rest], "fps": 2.0}))
    assert inputs["video_timestamps"][0].tolist() == [0, 0.5, 1, 1.5]
    for key in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "position_ids"):
        assert torch.equal(inputs[key], same[key])
    with pytest.raises(MediaError, match=r"has 4 frames: give it as a video"):
        processor(user({"type": "image", "image": tmp_path / "film.gif"}))
    still = Processor(animation="first", **SMALL)(user({"type": "image", "image": tmp_path / "film.gif"}))
    assert still["image_grid_thw"].tolist() == [[1, 4, 6]]


def test_where_files_come_from(samples, tmp_path):
    """A path, a URL's bytes in base64, a data URL; and only from where they may."""
    data = (samples / "cat.jpg").read_bytes()
    code = base64.b64encode(data).decode()
    expected = Processor(**SMALL)(user({"type": "image", "image": samples / "cat.jpg"}))["pixel_values"]
    for item in (
        {"image": {"bytes": data, "path": None}},  # as `datasets` stores files
        {"image": {"bytes": None, "path": str(samples / "cat.jpg")}},
        {"path": str(samples / "cat.jpg")},
        {"base64": code},
        {"url": f"data:image/jpeg;base64,{code}"},
        {"image": data},
    ):
        assert torch.equal(Processor(**SMALL)(user({"type": "image", **item}))["pixel_values"], expected)
    with pytest.raises(MediaError, match=r"example.org/cat.jpg is a URL, and URLs are off"):
        Processor()(user({"type": "image", "url": "https://example.org/cat.jpg"}))
    with pytest.raises(MediaError, match=r"the base64 of a image cannot be read"):
        Processor()(user({"type": "image", "base64": "ä"}))
    confined = Processor(access=Access(root=tmp_path))
    for item in ({"type": "image", "image": samples / "cat.jpg"}, {"type": "video", "video": samples / "clip.mp4"}):
        with pytest.raises(MediaError, match=r"is not inside .*Access\(root=...\)"):
            confined(user(item))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads, mixed):
    one, other = (Processor(threads=n, **SMALL)(mixed) for n in (1, threads))
    assert set(one) == set(other)
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else key == "video_timestamps"


@pytest.mark.parametrize("kind", ["path", "bytes", "file", "PIL image", "list"])
def test_one_source_in_many_places(kind, samples):
    """An open file or an image that is loaded when it is used has a state: no two threads read it at once, and it can be used
    again."""
    path, image = samples / "clip.mp4", samples / "cat.jpg"
    alone = Processor(**SMALL)(user({"type": "image", "image": image}))["pixel_values"]
    for _ in range(5):
        with open(image, "rb") as file, Image.open(image) as opened:
            source = {"path": image, "bytes": image.read_bytes(), "file": file, "PIL image": opened, "list": opened}[kind]
            item = {"type": "image", "image": source}
            if kind == "list":
                item = {"type": "video", "video": [source, source], "fps": 2.0}
            processor = Processor(threads=4, **SMALL)
            inputs = processor([user(item)] * 6)
            again = processor(user(item))
        if kind == "list":
            assert len(torch.unique(inputs["pixel_values_videos"].view(6, -1), dim=0)) == 1
        else:
            assert torch.equal(inputs["pixel_values"], alone.repeat(6, 1))
            assert torch.equal(again["pixel_values"], alone)
    with open(path, "rb") as file:
        one, other = (Processor(**SMALL)(user({"type": "video", "video": file})) for _ in range(2))
    assert torch.equal(one["pixel_values_videos"], other["pixel_values_videos"])


def test_bytes_instead_of_floats(mixed):
    """An eighth of the bytes for images, a quarter for videos; normalised later they are the same."""
    floats, processor = Processor(**SMALL)(mixed), Processor(pixels="uint8", **SMALL)
    packed = processor(mixed)
    assert packed["pixel_values"].nbytes * 8 == floats["pixel_values"].nbytes
    assert packed["pixel_values_videos"].nbytes * 4 == floats["pixel_values_videos"].nbytes
    later = processor.normalize(packed)
    for key in ("pixel_values", "pixel_values_videos", "position_ids"):
        assert torch.equal(later[key], floats[key])


# --- rows of data sets ------------------------------------------------------------------------------------------------


def test_rows_of_datasets(samples, mixed):
    """`datasets` fills items with None where another item has a key, and keeps arrays as lists."""
    rows = [{"messages": messages} for messages in mixed]
    for row in rows:
        for message in row["messages"]:
            if isinstance(message["content"], str):
                message["content"] = [said(message["content"])]
            for item in message["content"]:
                item.update({key: str(value) for key, value in item.items()})
    processor = Processor(pixels="uint8", **SMALL)
    table = datasets.Dataset.from_list(rows)
    done = table.map(processor.row, remove_columns=["messages"])
    for made, row in zip(done, rows, strict=True):
        expected = processor([row["messages"]])
        assert made["input_ids"] == expected["input_ids"][0].tolist()
        assert made["position_ids"] == expected["position_ids"][:, 0].tolist()
        assert made["image_grid_thw"] == expected.get("image_grid_thw", torch.zeros(0, 3)).tolist()
        assert len(made["pixel_values"]) == len(expected.get("pixel_values", []))
        assert made["video_timestamps"] == [t for times in expected.get("video_timestamps", []) for t in times.tolist()]
    assert len({tuple(sorted(processor.row(row))) for row in rows}) == 1
    for order in ([2, 2, 0, 1], [1, 1, 2, 0], [0, 0, 1, 2]):  # the first rows that are written set the types
        table = datasets.Dataset.from_list([rows[n] for n in order])
        made = table.map(processor.row, remove_columns=["messages"], writer_batch_size=2)
        assert [len(row["pixel_values_videos"]) > 0 for row in made] == [n == 1 for n in order]


def kinds_of_rows(samples):
    """A text, an image, a video, a video at uneven times, and all: as `datasets` and Parquet have them, every key in every item."""
    image, video = {"type": "image", "image": str(samples / "cat.jpg")}, {"type": "video", "video": str(samples / "clip.mp4")}
    uneven, short = {**video, "times": [0.0, 0.5, 3.0, 4.0]}, {**video, "num_frames": 3}
    contents = [[said("Hi")], [image], [short, said("What?")], [uneven], [image, short, image, said("Compare")]]
    return [{"id": f"row {n}", "messages": user(*content)} for n, content in enumerate(contents)]


@pytest.mark.parametrize("settings", [{"pixels": "uint8"}, {}, {"family": "qwen3_vl", **LARGE}])
def test_tables_have_one_schema_whatever_their_rows_hold(settings, samples, tmp_path):
    """One row a file, read together; by `datasets`, too, whatever the order."""
    processor, rows = Processor(**{**SMALL, **settings}), kinds_of_rows(samples)
    whole = pa.Table.from_pylist(rows)
    for n in range(len(rows)):
        made = processor.table(whole.slice(n, 1))
        assert made.schema == processor.table(whole.slice(0, 0)).schema
        pq.write_table(made, tmp_path / f"{n}.parquet")
    stored = pq.read_table(tmp_path)
    assert stored.schema.equals(made.schema)
    assert stored["id"].to_pylist() == [row["id"] for row in rows]
    for stored_row, row in zip(stored.to_pylist(), rows, strict=True):
        expected = processor.row(row)
        assert set(stored_row) == set(expected)
        for key in set(expected) - {"id"}:
            assert stored_row[key] == expected[key].tolist(), key
            dtype, ndim = processor._column_types[key]
            assert (expected[key].dtype, np.ndim(expected[key])) == (dtype, ndim)
    mapped = (
        datasets.Dataset(whole)
        .with_format("arrow")
        .map(processor.table, batched=True, batch_size=2, remove_columns=["messages"])
    )
    assert mapped.data.table.select(made.column_names).schema.remove_metadata() == made.schema
    assert mapped.with_format(None)[2]["id"] == "row 2"
    [pack] = pack_batches(stored.to_pylist(), max_tokens=100_000)
    [same] = pack_batches(map(processor.row, rows), max_tokens=100_000)
    assert pack.keys() == same.keys()
    assert all(torch.equal(pack[key], same[key]) for key in pack)


def test_a_row_keeps_what_else_it_has(samples):
    """All but the messages; what is made takes the place of a key of the same name, and a pack has no use for the rest."""
    processor = Processor(**SMALL)
    messages, others = user(said("Hi")), {"id": 3, "__key__": "k", "tags": ["a"], "input_ids": "old", "source": None}
    made = processor.row({"messages": messages, **others})
    assert {key: made[key] for key in ("id", "__key__", "tags", "source")} == {
        "id": 3,
        "__key__": "k",
        "tags": ["a"],
        "source": None,
    }
    assert made["input_ids"].tolist() == processor([messages])["input_ids"][0].tolist()
    assert "messages" not in made
    assert next(pack_batches([{**made, "tags": "a"}], max_tokens=100))["input_ids"][0].tolist() == made["input_ids"].tolist()
    with pytest.raises(ValueError, match=r"row 0: tags is not known here: take it out"):
        next(pack_batches([made], max_tokens=100))
    with pytest.raises(ValueError, match=r"has its conversations in the column 'messages'; this one has text"):
        processor.table(pa.table({"text": ["a"]}))
    with pytest.raises(ValueError, match=r"has its conversations in the column 'messages'; this one has list"):
        processor.table([{"messages": messages}])


def test_rows_of_datasets_by_several_processes(samples):
    """They are forks, of a process whose torch has run with several threads."""
    processor, threads = Processor(**SMALL), torch.get_num_threads()
    rows = [{"messages": user({"type": "image", "image": str(samples / f"{name}.jpg")})} for name in ("cat", "coffee") * 2]
    torch.set_num_threads(2)
    try:
        expected = [processor.row(row) for row in rows]
        table = datasets.Dataset.from_list(rows).map(processor.row, num_proc=2, remove_columns=["messages"])
    finally:
        torch.set_num_threads(threads)
    assert [row["input_ids"] for row in table] == [row["input_ids"].tolist() for row in expected]
    assert [len(row["pixel_values"]) for row in table] == [len(row["pixel_values"]) for row in expected]


def as_messages(sample):
    """A webdataset sample as a row."""
    item = {"type": "image", "image": sample["jpg"]}
    return {"__key__": sample["__key__"], "messages": user(item, said(sample["txt"].decode()))}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's own
def test_rows_of_webdataset(samples, tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard.tar")) as writer:
        for name in ("cat", "coffee"):
            writer.write({"__key__": name, "jpg": (samples / f"{name}.jpg").read_bytes(), "txt": b"What is it?"})
    processor = Processor(**SMALL)
    shards = webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False)
    rows = list(shards.map(as_messages).map(processor.row))
    assert [row["__key__"] for row in rows] == ["cat", "coffee"]
    expected = processor(user({"type": "image", "image": samples / "cat.jpg"}, said("What is it?")))
    np.testing.assert_array_equal(rows[0]["pixel_values"], expected["pixel_values"])
    np.testing.assert_array_equal(rows[0]["position_ids"], expected["position_ids"][:, 0])


def test_rows_go_to_other_processes_and_bad_files_do_not_stop_them(samples, tmp_path):
    """A pickled processor in a process that can be killed: the damaged file is put aside, with its reason."""
    (tmp_path / "bad.jpg").write_bytes((samples / "cat.jpg").read_bytes()[:5000])
    rows = [
        {"messages": user({"type": "image", "image": str(f)})}
        for f in (samples / "cat.jpg", tmp_path / "bad.jpg", samples / "coffee.jpg")
    ]
    processor = pickle.loads(pickle.dumps(Processor(**SMALL)))
    outcomes = list(isolated(processor.row, rows, quarantine=tmp_path / "quarantine.jsonl"))
    assert [outcome.kind for outcome in outcomes] == ["", "refused", ""]
    np.testing.assert_array_equal(outcomes[2].value["pixel_values"], processor.row(rows[2])["pixel_values"])
    [line] = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert "bad.jpg is damaged and cannot be decoded as JPEG" in json.loads(line)["error"]
    with pytest.raises(ValueError, match=r"a row has its conversation under 'messages'; this one has text"):
        processor.row({"text": "a"})


# --- Hugging Face's folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sizes"), [("qwen2_vl", SMALL), ("qwen2_5_vl", {}), ("qwen3_vl", LARGE)])
def test_settings_of_a_checkpoint_are_read(name, sizes, tmp_path, mixed):
    """What transformers saves: the same pixels, grids and tokens, the tokenizer's included."""
    theirs = upstream.processor(name, **sizes)
    theirs.save_pretrained(tmp_path)
    ours = Processor.from_pretrained(tmp_path, fps=2.0)
    own = Processor(family=name, sampling=ours.sampling, **sizes)
    assert ours.family.name == name
    read, made = ours(mixed), own(mixed)
    assert set(read) == set(made)
    for key, value in made.items():
        assert torch.equal(read[key], value) if isinstance(value, torch.Tensor) else key == "video_timestamps"
    assert ours.tokenizer.encode("<|im_end|>é") == list("<|im_end|>é".encode())
    assert ours.decode([72, 105, text.IM_END]) == "Hi"
    assert ours.tokenizer.decode([72, text.IM_END], special=True) == "H<|im_end|>"
    again = pickle.loads(pickle.dumps(ours))
    for copied in (again, copy.deepcopy(ours)):
        assert copied.tokenizer.encode("<|im_end|>é") == list("<|im_end|>é".encode())
    again.save_pretrained(tmp_path / "own")
    loaded = Processor.from_pretrained(tmp_path / "own")
    assert torch.equal(loaded(mixed)["input_ids"], made["input_ids"])
    assert dataclasses.replace(loaded, tokenizer=ours.tokenizer) == ours


QWEN2_VL = {  # as the released checkpoints have it
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}
QWEN3_VL = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def test_files_of_released_checkpoints(tmp_path):
    def read(image, video=None, **changes):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(image))
        (tmp_path / "video_preprocessor_config.json").unlink(missing_ok=True)
        if video:
            (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
        return Processor.from_pretrained(tmp_path, **changes)

    qwen2 = read(QWEN2_VL)
    assert (qwen2.family.name, qwen2._patches.image_pixels) == ("qwen2_vl", (3136, 12845056))
    assert qwen2._patches.video_pixels == (3136, 12845056)  # as transformers: a video without settings has the image's
    video = {
        **QWEN3_VL,
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    del video["image_processor_type"]
    qwen3 = read(QWEN3_VL, video)
    assert (qwen3.family.name, qwen3._patches) == ("qwen3_vl", FAMILY_PATCHES["qwen3_vl"])
    glm = read(
        {
            **QWEN2_VL,
            "min_pixels": 12544,
            "max_pixels": 11760000,
            "image_processor_type": "Glm4vImageProcessor",
            "processor_class": "Glm4vProcessor",
        }
    )
    assert (glm.family.name, image_size(2000, 3000, glm._patches)) == ("glm4v", image_size(2000, 3000, FAMILY_PATCHES["glm4v"]))
    assert glm._patches.whole_video_pixels == FAMILY_PATCHES["glm4v"].whole_video_pixels  # which its files leave out
    unnamed = {key: value for key, value in QWEN2_VL.items() if key != "processor_class"}
    assert read(unnamed, family="qwen2_5_vl").family.name == "qwen2_5_vl"
    for broken, message in [
        (unnamed, r"does not say which family it is of; say it"),
        ({**QWEN2_VL, "crop_pct": 0.9}, r"/preprocessor_config.json: crop_pct is 0.9, and mmrope does not know it"),
        ({**QWEN2_VL, "do_resize": False}, r"do_resize is False, but mmrope knows True only"),
        ({**QWEN2_VL, "resample": 2}, r"resample is 2, but mmrope knows 3 only"),
        (
            {**QWEN2_VL, "image_processor_type": "CLIPImageProcessor"},
            r"image_processor_type is 'CLIPImageProcessor', which is not known here",
        ),
        ({**QWEN2_VL, "size": {"height": 224}}, r"size must have shortest_edge and longest_edge"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(broken)
    with pytest.raises(
        ValueError, match=r"/video_preprocessor_config.json: patch_size is 14, images have 16: they must agree here"
    ):
        read(QWEN3_VL, {**video, "patch_size": 14})
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config.json is not JSON"):
        Processor.from_pretrained(tmp_path)
    read(QWEN2_VL)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has a tokenizer, but no tokenizer.json"):
        Processor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        Processor.from_pretrained(tmp_path)


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
@given(frames=st.integers(2, 40), height=st.integers(28, 2000), width=st.integers(28, 2000), least=st.integers(1, 200))
@settings(max_examples=cases(60))
def test_videos_of_a_checkpoint_are_as_large_as_there(name, capped, frames, height, width, least):
    """Whatever the bounds, and whether frames share a budget or not."""
    make = {"qwen2_vl": Qwen2VLVideoProcessor, "qwen3_vl": Qwen3VLVideoProcessor}[name]
    side = 28 if name == "qwen2_vl" else 32
    size = {"shortest_edge": least * side * side, "longest_edge": 4 * least * side * side * (1 if name == "qwen2_vl" else 20)}
    theirs = make(size=size, cap_pixels_per_frame=capped)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        image = QWEN2_VL if name == "qwen2_vl" else QWEN3_VL
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(image))
        config = Processor.from_pretrained(folder)._patches
    video = torch.empty(1, frames, 3, height, width, dtype=torch.uint8, device="meta")
    options = {"factor": config.factor, "temporal_factor": 2, "cap_pixels_per_frame": capped, "resample": None}
    assert frame_size(height, width, frames, config) == tuple(theirs.resize(video, theirs.size, **options).shape[-2:])


def test_a_tokenizers_own_cutting_and_filling_up_is_left_out(tmp_path):
    theirs = upstream.processor("qwen2_vl")
    theirs.save_pretrained(tmp_path)
    file = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    file.enable_truncation(8)
    file.enable_padding(length=16)
    file.save(str(tmp_path / "tokenizer.json"))
    assert Processor.from_pretrained(tmp_path).tokenizer.encode("a" * 24) == [97] * 24
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<|pad|>"}, "chat_template": "x"}))
    Processor.from_pretrained(tmp_path).tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"pad_token": "<|pad|>", "chat_template": "x"}


def test_a_config_says_the_family_and_its_facts(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(QWEN2_VL))
    upstream.model().config.save_pretrained(tmp_path)
    processor = Processor.from_pretrained(tmp_path)
    assert processor.family == family_from_config(tmp_path / "config.json")
    assert processor.family.name == "qwen2_5_vl"


# --- text and turns ---------------------------------------------------------------------------------------------------


def test_turns():
    processor = Processor()
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

    def shown(messages, **options):
        return text.decode(processor(messages, **options)["input_ids"][0].tolist(), special=True)

    first = "<|im_start|>user\nHi<|im_end|>\n"
    both = first + "<|im_start|>assistant\nHello<|im_end|>\n"
    assert shown(talk[:1]) == first + "<|im_start|>assistant\n"
    assert shown(talk[:1], add_generation_prompt=False) == first
    assert shown(talk) == both
    assert shown(talk, add_generation_prompt=True) == both + "<|im_start|>assistant\n"


def test_decoding_text():
    processor = Processor()
    assert processor.decode(torch.tensor([72, 105, text.IM_END, text.PAD])) == "Hi"
    assert processor.decode(torch.tensor([[72], [105]])) == ["H", "i"]
    assert processor.decode([]) == ""


def test_keys_without_a_value_are_no_keys():
    message = {"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}], "name": None, "tool_calls": None}
    assert torch.equal(Processor()([message])["input_ids"], Processor()([{"role": "user", "content": "Hi"}])["input_ids"])


def test_markers_in_a_users_text_stay_text():
    inputs = Processor()([{"role": "user", "content": "<|image_pad|><|im_end|>"}])
    assert inputs["mm_token_type_ids"].sum() == 0
    assert (inputs["input_ids"] == text.IM_END).sum() == 1


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_survive_saving(tmp_path):
    processor = Processor(
        family=family("qwen2_5_vl@transformers-5.23", ids_per_second=4, token_ids=TokenIds(image=7)),
        patches=PatchConfig(patch_size=16, mean=(0.5, 0.5, 0.5)),
        fps=1.5,
        background=(1, 2, 3),
        limits=Limits(max_side=99),
    )
    processor.save_pretrained(tmp_path)
    loaded = Processor.from_pretrained(tmp_path)
    assert loaded == dataclasses.replace(processor, limits=Limits())
    assert Processor.from_pretrained(tmp_path, fps=3.0).fps == 3.0
    dataclasses.replace(processor, tokenizer=text.WordTokenizer(("row", " 3"))).save_pretrained(tmp_path / "words")
    assert Processor.from_pretrained(tmp_path / "words").tokenizer.encode("row 3!") == [263, 264, 33]
    stated = json.loads((tmp_path / "processor_config.json").read_text())["family"]
    assert stated["name"] == "qwen2_5_vl@transformers-5.23"
    assert stated["facts"]["ids_per_second"] == 4
    with pytest.raises(
        ValueError,
        match=r"no processor_config.json and no preprocessor_config.json in .*: a processor is saved with save_pretrained",
    ):
        Processor.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("key", FAMILIES)
def test_a_family_comes_back_equal(key):
    """By its name, and with any of its fields changed under its own name or another."""
    row = FAMILIES[key]
    changed = [
        row,
        dataclasses.replace(row, name="mine", source="a paper"),
        dataclasses.replace(row, pad_value=5),
        dataclasses.replace(row, advance="tokens" if row.advance != "tokens" else "max"),
        changed_row(row, token_ids=TokenIds(image=1, video_end=9)),
        dataclasses.replace(row, spatial_merge=row.spatial_merge + 1),
        dataclasses.replace(row, stride=2),
        *([] if row.uses_seconds else [dataclasses.replace(row, time="seconds", ids_per_second=2.0)]),
    ]
    for one in changed:
        assert Family.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert list(row.to_dict()) == ["name", "facts"]


def test_a_changed_rule_is_saved_whole(tmp_path):
    mine = dataclasses.replace(family("qwen2_vl"), advance="spatial", origin="zero")  # under the name that the table has
    processor = Processor(family=mine)
    processor.save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path) == processor
    assert Processor.from_pretrained(tmp_path).family != family("qwen2_vl")


def test_the_tokenizer_that_was_saved_last_is_loaded(tmp_path):
    (tmp_path / "tokenizer.json").write_text("of another model")
    Processor().save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path).tokenizer == text.ByteTokenizer()
    Processor(tokenizer=text.WordTokenizer(("row",))).save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path).tokenizer == text.WordTokenizer(("row",))


def test_a_tokenizer_that_would_not_come_back_is_refused(tmp_path):
    class Mine(text.ByteTokenizer):
        pass

    with pytest.raises(ValueError, match="a tokenizer of type Mine cannot be saved here"):
        Processor(tokenizer=Mine()).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rule_of_ones_own_function_is_not_saved(tmp_path):
    def place(segment, start, family):
        return np.zeros((3, segment.length)), start + 1

    mine = dataclasses.replace(family("qwen2_vl"), name="mine", place={"image": place})
    with pytest.raises(ValueError, match="is of no registered family, and a file holds no code"):
        Processor(family=mine).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"name": "qwen2_vl"}, "a family as JSON has the keys name and facts, or rule with"),
        ({"name": "qwen9", "facts": {}}, "unknown family 'qwen9'"),
        ({"rule": {"name": "mine"}}, "a family as JSON has the keys"),
    ],
)
def test_a_family_that_json_does_not_state(stated, message):
    with pytest.raises(ValueError, match=message):
        Family.from_dict(stated)


def test_settings_that_are_interrupted_leave_the_old_ones(tmp_path, monkeypatch):
    Processor(fps=1.0).save_pretrained(tmp_path)

    def full(self, *arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        Processor(fps=3.0).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert Processor.from_pretrained(tmp_path).fps == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", r"messages must be a list of .* got str"),
        ([], r"messages must hold at least one conversation"),
        ([[]], r"a conversation needs at least one message"),
        ([{"role": "user"}], r"a message is a dict with 'role' and 'content', got keys \['role'\]"),
        ([[{"role": "user", "content": "Hi"}], "Hi"], r"a message is a dict with 'role' and 'content', got 'H'"),
        (user("Hi"), r"content has the types text, image and video, got None in 'Hi'"),
        (user({"type": "text", "text": 3}), r"text must be a string, got"),
        (user({"type": "image", "grid": (2, 2, 2)}), r"grid is the size in tokens \(h, w\), got"),
        (user({"type": "video", "grid": (2, 2), "fps": 1}), r"grid is the size in tokens \(t, h, w\), got"),
        (user({"type": "video", "grid": (2, 2, 2), "fps": 0}), r"a video grid needs fps, .* as a positive number"),
        ([{"role": 3, "content": "Hi"}], r"a role is a string, such as 'user', got 3"),
        ([iter(user(said("Hi")))], r"a conversation is a list of messages, got <"),
        ([{"role": "user", "content": iter([said("Hi")])}], r"content must be a text or a list of items, got <"),
        (user({"type": "image", "grid": 5}), r"grid is the size in tokens \(h, w\), got"),
        (user({"type": "video", "grid": (2, 2, 2), "fps": "two"}), r"a video grid needs fps"),
        ([{"role": "user", "content": "Hi", "nam": "Ann"}], r"a message has no key 'nam': did you mean 'name'\?"),
        ([{"role": "user", "content": "Hi", "weight": 1}], r"a message has no key 'weight' \(known: role, content, name"),
        (user({"type": "audio", "audio": "a.wav"}), r"content has the types text, image and video, got 'audio'"),
        (user({"type": "image", "text": "a"}), r"content of type 'image' has no key 'text' \(known: image, image_url"),
        (user({"type": "image"}), r"content of type 'image' takes"),
        (
            user({"type": "video", "fps": 2.0}),
            r"content of type 'video' takes one of video, video_url, path, url, base64, grid, got",
        ),
        (user({"type": "video", "grid": (2, 2, 2)}), r"a video grid needs fps"),
        (user({"type": "image", "grid": (2, 2)}), r"an item with 'grid' has positions but no pixels"),
        (user({"type": "image", "image": "missing.jpg"}), r"missing.jpg: no such file"),
        (
            user({"type": "image", "image": np.zeros((10, 2100, 3), np.uint8)}),
            r"2100 x 10 pixels are more elongated than 200:1",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        Processor()(messages)


def test_a_family_whose_pixels_are_not_known_here_is_refused():
    other = dataclasses.replace(family("qwen2_vl"), name="other_vl")
    with pytest.raises(
        ValueError, match=r"how other_vl cuts pixels into patches is not known here \(known: qwen2_vl, .*say it"
    ):
        Processor(family=other)(user({"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}))
    inputs = Processor(family=other, patches=PatchConfig(), chat_template=CHATML)(
        user({"type": "image", "image": np.zeros((56, 56, 3), np.uint8)})
    )
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]]


def test_long_films_make_smaller_frames_not_more_tokens_than_allowed():
    """1280 x 720, 200 s: 400 frames share the budget, as by qwen-vl-utils."""
    film = np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint8), (400, 720, 1280, 3))
    [_, part, _] = Processor().parts([{"type": "video", "video": film, "fps": 2.0}])
    assert part.segment == Segment.video(t=200, h=18, w=32, seconds_per_grid=1.0)


def test_too_many_tokens_are_refused_before_pixels_are_made():
    frames = np.zeros((4, 28, 28, 3), np.uint8)
    with pytest.raises(
        MediaError, match=r"1 frame\(s\) of 2240 x 2240 pixels make 6,400 tokens, the limit is 5,000; lower fps"
    ):
        Processor(image_pixels=(80 * 80 * 784, 10**9), limits=Limits(max_visual_tokens=5000)).parts(
            [{"type": "image", "image": frames[0]}]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixels": "float16"}, r"pixels must be 'float32' or 'uint8', got 'float16'"),
        ({"animation": "video"}, r"animation must be 'refuse' or 'first', got 'video'"),
        ({"video_backend": "x"}, r"video_backend must be 'auto' or 'pyav' or 'decord' or 'torchcodec', got 'x'"),
        ({"fps": -1}, r"fps must be positive and 1 <= min_frames <= max_frames, got fps=-1"),
        ({"fps": "2"}, r"got fps='2'"),
        ({"min_frames": 9, "max_frames": 2}, r"min_frames=9, max_frames=2"),
        ({"num_frames": 0}, r"num_frames must be a whole number, at least 1, got 0"),
        ({"image_pixels": (100, 50)}, r"image_pixels must be the fewest and the most, got \(100, 50\)"),
        ({"background": (300, 0, 0)}, r"background must be red, green and blue from 0 to 255, got \(300, 0, 0\)"),
        ({"min_frames": "4"}, r"got fps=2.0, min_frames='4', max_frames=768"),
        ({"max_frames": {}}, r"min_frames=4, max_frames=\{\}"),
        ({"video_pixels": 5}, r"video_pixels must be the fewest and the most, got 5"),
        ({"image_pixels": [None, 5]}, r"image_pixels must be the fewest and the most, got \(None, 5\)"),
        ({"background": [0, {}, 0]}, r"background must be red, green and blue from 0 to 255, got \(0, \{\}, 0\)"),
        ({"background": 255}, r"background must be red, green and blue from 0 to 255, got 255"),
        ({"sampling": ["time"]}, r"sampling must be 'time' or .* or None, got \['time'\]"),
        ({"threads": "1"}, r"threads must be at least 1, or None for as many as torch uses, got '1'"),
        ({"threads": 0}, r"threads must be at least 1, or None for as many as torch uses, got 0"),
        ({"padding_side": "middle"}, r"padding_side must be 'left' or 'right', got 'middle'"),
        ({"family": "qwen"}, r"unknown family 'qwen'"),
        ({"patches": PatchConfig(merge_size=4)}, r"qwen2_5_vl merges 2 x 2 patches, but patches.merge_size is 4"),
        ({"family": family("qwen2_vl", spatial_merge=3)}, r"qwen2_vl merges 3 x 3 patches, but patches.merge_size is 2"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Processor(**options)


def test_inputs_move_together(mixed):
    inputs = Processor(**SMALL)(mixed).to("meta")
    assert all(value.device.type == "meta" for value in inputs.values() if isinstance(value, torch.Tensor))
    assert type(inputs["video_timestamps"]) is list


def test_parts_are_one_segment_each():
    parts = Processor().parts([said("a"), said("b"), {"type": "image", "grid": (2, 3)}, said("")])
    assert [part.segment for part in parts] == [Segment.text(3), Segment.image(h=2, w=3), Segment.text(1)]
    assert all(len(part.tokens) == part.segment.length for part in parts)
