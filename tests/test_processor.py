"""From messages to model inputs: Hugging Face's keys, shapes and values, and positions that agree with them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import upstream
from films import film
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrope import (
    FAMILIES,
    Limits,
    MediaError,
    PatchConfig,
    Processor,
    Segment,
    TokenIds,
    family,
    position_ids,
    segments_from_inputs,
)
from mmrope.preprocess import text
from mmrope.preprocess.patches import PRESETS
from mmrope.preprocess.video import open_video

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
    ours = Processor(family=name, **sizes)(mixed)
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
    "name", [key for key, row in FAMILIES.items() if row.name in PRESETS and not row.name.startswith("glm")]
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
        side = PRESETS[name].factor
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
    inputs = Processor(**SMALL)(user({"type": "video", "video": path}))
    assert inputs["video_grid_thw"].tolist() == [[4, 4, 6]]  # 96 x 64 pixels in steps of 28, in patches of 14
    assert inputs["second_per_grid_ts"].tolist() == [1.0]
    assert inputs["video_timestamps"][0].tolist() == pytest.approx([0, 0.264, 0.825, 0.825, 1.79, 1.79, 1.79])
    steps = inputs["position_ids"][0, 0][inputs["mm_token_type_ids"][0] == 2].unique()
    assert (steps - steps[0]).tolist() == [0, 2, 4, 6]


def test_frames_behind_text_time_stamps(samples):
    """Qwen3-VL: each temporal patch stands alone behind the mean time of its frames."""
    processor = Processor(family="qwen3_vl", **SMALL)
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
    inputs = Processor(patches=config, **SMALL)(user({"type": "video", "video": samples / "clip.mp4"}))
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
    assert json.loads((tmp_path / "processor_config.json").read_text())["family"] == "qwen2_5_vl@transformers-5.23"
    with pytest.raises(
        ValueError,
        match=r"no processor_config.json and no preprocessor_config.json in .*: a processor is saved with save_pretrained",
    ):
        Processor.from_pretrained(tmp_path / "nowhere")


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
        ([{"role": "user", "content": "Hi", "name": "Ann"}], r"got keys \['content', 'name', 'role'\]"),
        (user({"type": "audio", "audio": "a.wav"}), r"content has the types text, image and video, got 'audio'"),
        (user({"type": "image", "text": "a"}), r"content of type 'image' takes one of base64, grid, image, path, url, got"),
        (user({"type": "image"}), r"content of type 'image' takes"),
        (
            user({"type": "video", "fps": 2.0}),
            r"content of type 'video' takes one of base64, grid, path, url, video, and may have fps, num_frames, times",
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
    inputs = Processor(family=other, patches=PatchConfig())(user({"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}))
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
