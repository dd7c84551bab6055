"""qwen-vl-utils 0.0.14, run on the same items: sizes, frame indices, times. Its reader is decord, the one it finds here."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from mmrope import MediaError, Processor
from mmrope.preprocess import PatchConfig, open_video
from mmrope.preprocess.messages import SIZE_KEYS
from tests.support import PROOF
from tests.support.films import MILLISECONDS, film

pytest.importorskip("qwen_vl_utils")
pytest.importorskip("decord")
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

NTSC = Fraction(30_000, 1001)
FILMS = {  # container, codec, frames a second, frames, size
    "ntsc.mp4": ("libx264", NTSC, 48, (96, 64)),
    "25.mp4": ("libx264", Fraction(25), 61, (64, 96)),
    "24.mp4": ("libx264", Fraction(24), 30, (128, 96)),
    "60.mov": ("libx264", Fraction(60), 100, (160, 48)),
    "10.mp4": ("libx264", Fraction(10), 7, (64, 64)),
    "ntsc.webm": ("libvpx-vp9", NTSC, 50, (96, 64)),
    "film.mkv": ("libx264", Fraction(24_000, 1001), 48, (96, 64)),
    "25.avi": ("mpeg4", Fraction(25), 40, (96, 64)),
}
CASES = 500
"""How many items `make proof` tries; `make test` every eighth of them."""
FAMILY = {14: "qwen2_5_vl", 16: "qwen3_vl"}


@pytest.fixture(scope="module")
def theirs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_QWENVL_VIDEO_READER", "decord")
        import qwen_vl_utils.vision_process as module

        patch.setattr(module, "FORCE_QWENVL_VIDEO_READER", "decord")
        module.get_video_reader_backend.cache_clear()
        yield module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The films, and an image of a size for each use of it."""
    folder = tmp_path_factory.mktemp("films")
    for name, (codec, rate, count, size) in FILMS.items():
        tick = MILLISECONDS if name.endswith(("webm", "mkv")) else 1 / rate
        times = [float(1000 * n / rate) for n in range(count)]
        film(folder / name, times, codec=codec, size=size, tick=tick, rate=rate, max_b_frames=0)
    return folder


def drawn(number: int, folder) -> tuple[dict, int]:
    """Item `number` and its patch size: of every kind, with every key of its kind now and then."""
    rng = random.Random(number)
    side = rng.choice([14, 16])
    kind = rng.choice(["image", "film", "film", "list"])
    factor, item = 2 * side, {"type": "image" if kind == "image" else "video"}
    size = (rng.randint(20, 700), rng.randint(20, 700))
    if kind == "image":
        item[rng.choice(["image", "image_url"])] = Image.new("RGB", size)
    elif kind == "list":
        item["video"] = [Image.new("RGB", size)] * rng.randint(1, 9)
    else:
        item["video"] = str(folder / rng.choice(list(FILMS)))
    sizing = rng.choice(["none", "pixels", "pixels", "sides"])
    if sizing == "sides":
        item |= {"resized_height": rng.randint(10, 900), "resized_width": rng.randint(10, 900)}
    if sizing == "pixels" or (sizing == "sides" and rng.random() < 0.2):
        tokens = sorted(rng.sample(range(1, 1500), 2))
        area = factor**2
        for key, count in zip(("min_pixels", "max_pixels"), tokens, strict=True):
            if rng.random() < 0.7:
                item[key] = count * area + rng.choice([0, 0, rng.randint(-100, 100)])
        if kind != "image" and rng.random() < 0.5:
            item["total_pixels"] = rng.choice([rng.randint(1, 30_000) * area, rng.uniform(10, 40_000) * area])
    if kind == "film":
        how = rng.choice(["fps", "fps", "nframes", "none"])
        if how == "fps":
            item["fps"] = rng.choice([1, 2, 2.0, 0.5, 4, 30, rng.uniform(0.1, 40)])
        elif how == "nframes":
            item["nframes"] = rng.choice([rng.randint(1, 60), rng.randint(2, 20)])
        for key, value in (("min_frames", rng.randint(1, 20)), ("max_frames", rng.randint(1, 40))):
            if rng.random() < 0.25:
                item[key] = value
        if rng.random() < 0.1:
            item["sample_fps"] = 4  # of a list: no effect here
        if rng.random() < 0.3:
            item["video_start"] = rng.choice([0, 0.5, rng.uniform(0, 2), rng.uniform(0, 2)])
        if rng.random() < 0.3:
            item["video_end"] = rng.choice([1, 1.5, rng.uniform(0.2, 3), 100.0])
    if kind == "list":
        if rng.random() < 0.6:
            item["sample_fps"] = rng.choice([1, 2, 4.0, 0.5, rng.uniform(0.1, 30)])
        if rng.random() < 0.2:
            item["raw_fps"] = rng.choice([25, 29.97, 30])
    return item, side


def processor_for(side: int) -> Processor:
    return Processor(family=FAMILY[side])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(8))
def test_items_of_every_kind_with_every_key(part, theirs, folder):
    """Equal where qwen-vl-utils gives something, a ValueError where it raises."""
    equal = refused = 0
    for number in range(part, CASES, 8 if PROOF else 64):
        item, side = drawn(number, folder)
        if item["type"] == "image":
            refused, equal = compared_image(theirs, item, side, number, refused, equal)
        else:
            refused, equal = compared_video(theirs, item, side, number, refused, equal)
    assert equal > refused


def compared_image(theirs, item, side, number, refused, equal):
    try:
        expected = theirs.fetch_image(dict(item), image_patch_size=side)
    except (AssertionError, ValueError):
        with pytest.raises(ValueError):  # noqa: PT011 - the messages have a test of their own
            processor_for(side).measure(item)
        return refused + 1, equal
    if not set(item) & set(SIZE_KEYS):
        return refused, equal  # by the bounds of the family: of Qwen2-VL these are the same, in a test of their own
    _, h, w = processor_for(side).measure(item).patch_grid
    assert (w * side, h * side) == expected.size, (number, item)
    return refused, equal + 1


def compared_video(theirs, item, side, number, refused, equal):
    try:
        (frames, metadata), rate = theirs.fetch_video(
            dict(item), image_patch_size=side, return_video_sample_fps=True, return_video_metadata=True
        )
    except Exception:  # of its reader, too, which it asks again by another that is not there
        with pytest.raises(ValueError):  # noqa: PT011
            processor_for(side).measure(item)
        return refused + 1, equal
    media = processor_for(side).measure(item)
    if set(item) & set(SIZE_KEYS):
        assert tuple(frames.shape[-2:]) == tuple(n * side for n in media.patch_grid[1:]), (number, item)
    assert media.patch_grid[0] * 2 == len(frames), (number, item)
    indices, fps = list(metadata["frames_indices"]), metadata["fps"]
    assert [float(time) for time in media.times] == [index / fps for index in indices], (number, item)
    assert media.seconds_per_grid == float(np.float32(2 / rate)), (number, item)
    if isinstance(item["video"], str):
        shown = open_video(item["video"]).seconds
        np.testing.assert_array_equal(media.seconds, shown[indices])
    stamps = [float((a + b) / 2) for a, b in zip(media.times[::2], media.times[1::2], strict=True)]
    assert stamps == Qwen3VLProcessor._calculate_timestamps(None, indices, fps, 2), (number, item)
    return refused, equal + 1


@pytest.mark.filterwarnings("ignore")
def test_qwen2_vl_without_keys(theirs, folder):
    """Its own bounds are qwen-vl-utils' constants: images, films and lists come out as there."""
    rng, processor = random.Random(0), Processor(family="qwen2_vl")
    for _ in range(200 if PROOF else 15):
        image = Image.new("RGB", (rng.randint(28, 3000), rng.randint(28, 3000)))
        if max(image.size) / min(image.size) <= 200:
            _, h, w = processor.measure({"type": "image", "image": image}).patch_grid
            assert (w * 14, h * 14) == theirs.fetch_image({"image": image}).size
    items = [{"video": str(folder / name)} for name in FILMS]
    items += [{"video": [Image.new("RGB", (rng.randint(28, 900), rng.randint(28, 900)))] * 4} for _ in range(20)]
    for item in items:
        frames = theirs.fetch_video(dict(item))
        t, h, w = processor.measure({"type": "video", **item}).patch_grid
        assert (2 * t, 3, h * 14, w * 14) == tuple(frames.shape)


@pytest.mark.filterwarnings("ignore")
def test_pixels_are_those_of_qwen_vl_utils(theirs, folder):
    """Frames of a film. It resizes floats, and mmrope bytes, as transformers does: they differ where bicubic overshoots."""
    item = {"type": "video", "video": str(folder / "ntsc.mp4"), "fps": 4, "max_pixels": 150_000}
    frames = theirs.fetch_video(dict(item))  # [T, 3, H, W] 0..255
    config = PatchConfig(mean=(0, 0, 0), std=(1, 1, 1))
    media = Processor(family="qwen2_vl", patches=config).prepare_media([item])[0]
    t, h, w = media.patch_grid
    patches = media.patches.reshape(t, h // 2, w // 2, 2, 2, 3, 2, 14, 14)
    ours = patches.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(2 * t, 3, h * 14, w * 14)
    apart = (ours - frames).abs()
    assert (apart <= 1).float().mean() > 0.999
    assert apart.mean() < 0.02


def test_uneven_films_have_the_times_of_the_grid_and_the_frames_on_show_then(tmp_path):
    path = film(tmp_path / "uneven.mp4", [0, 264, 561, 825, 1790, 3390])
    video = open_video(path)
    media = Processor().measure({"type": "video", "video": path, "nframes": 6})
    assert [float(time) for time in media.times] == [n / video.average_fps for n in range(6)]
    assert media.seconds.tolist() == [video.seconds[n] for n in video.frames_on_grid(range(6))]
    assert media.seconds.tolist() == pytest.approx([0, 0.561, 0.825, 1.79, 1.79, 1.79], abs=1e-3)
    assert media.seconds_per_grid == pytest.approx(2 / video.average_fps)


def test_a_container_that_states_another_rate_than_its_frames_is_not_believed(tmp_path):
    times = [float(1000 * n / 10) for n in range(40)]
    path = film(tmp_path / "odd.mkv", times, rate=Fraction(25), max_b_frames=0)
    assert open_video(path).average_fps == pytest.approx(10, rel=0.03)
    assert Processor().measure({"type": "video", "video": path}).times[-1] > 3.5


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = [
    ({"fps": 2, "nframes": 4}, r"a video is sampled by nframes or fps, one of them"),
    ({"nframes": 4, "num_frames": 4}, r"a video is sampled by nframes or num_frames, one of them"),
    (
        {"nframes": 100},
        r"nframes=100 is more than the 48 frames that can be taken: some would be taken twice; ask for 48 at most",
    ),
    ({"nframes": 1}, r"nframes=1 comes to 0 sampled frames"),
    ({"max_frames": 1}, r"fps=2, at most 1 frames, comes to 0 sampled frames"),
    ({"video_start": 1.5, "video_end": 1}, r"video_start=1.5 to video_end=1 is less than two frames of a video of 1.6"),
    ({"video_start": 50}, r"video_start=50 to video_end=1.6\d* is less than two frames"),
    ({"max_pixels": 50_000}, r"most pixels, 50000, are fewer than its fewest, 100352: raise max_pixels, or lower min_pixels"),
    ({"resized_height": 28, "resized_width": 28_000}, r"28000 x 28 pixels are more elongated than 200:1"),
    ({"resized_height": 28}, r"resized_height and resized_width go together: say both"),
    ({"max_pixel": 5}, r"content of type 'video' has no key 'max_pixel': did you mean 'max_pixels'\?"),
    ({"fps": 0}, r"fps must be positive"),
    ({"min_frames": "4f"}, r"min_frames must be a number above 0, got '4f'"),
    ({"max_pixels": -1}, r"max_pixels must be a number at least 0, got -1"),
    ({"num_frames": 4, "video_end": 1}, r"num_frames says by itself what is sampled: leave out video_end"),
    ({"detail": "low"}, r"detail='low' means a size that depends on the server; say max_pixels="),
    ({"image": "cat.jpg"}, r"content of type 'video' has no key 'image': it is for content of type 'image'"),
    ({"url": "clip.mp4"}, r"content of type 'video' takes one of video, video_url, path, url, base64, grid"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_keys_that_cannot_be_are_refused(keys, message, folder):
    with pytest.raises(ValueError, match=message):
        Processor().measure({"type": "video", "video": folder / "ntsc.mp4", **keys})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"nframes": 8}, r"is taken whole, its 4 frames, but its item says nframes=8: .* num_frames= or times="),
        ({"max_frames": 2}, r"its item says max_frames=2"),
        ({"video_start": 1, "video_end": 2}, r"its item says video_start=1 and video_end=2"),
        ({"sample_fps": 0}, r"sample_fps must be a number above 0"),
    ],
)
def test_a_list_of_frames_is_taken_whole(keys, message):
    frames = [Image.new("RGB", (56, 56))] * 4
    with pytest.raises(ValueError, match=message):
        Processor().measure({"type": "video", "video": frames, **keys})
    for whole in ({"nframes": 4}, {"min_frames": 4, "max_frames": 4}, {"fps": 1}):
        media = Processor().measure({"type": "video", "video": frames, **whole})
        assert media.patch_grid[0] == 2
        assert float(media.times[1]) == (1 if "fps" in whole else 0.5)
    within = Processor().measure({"type": "video", "video": frames, "num_frames": 2, "sample_fps": 1})
    assert [float(time) for time in within.times] == [0, 2]


def test_unlike_ranges_are_refused():
    with pytest.raises(MediaError, match=r"float64 pixels go from 0 \(black\) to 1 or 255 \(white\)"):
        Processor().measure({"type": "image", "image": np.full((56, 56, 3), 300.0)})
