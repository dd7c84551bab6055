"""The rules of sampling, against those they are named after: sample_frames of transformers' video processors."""

from __future__ import annotations

import random
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest

from mmrope import Processor
from mmrope.preprocess.messages import SAMPLING_KEYS
from mmrope.preprocess.sampling import HAS_NUM_FRAMES, SAMPLING_RULES, SAMPLINGS, FrameChoice
from tests.support import cases
from tests.support.films import film

transformers = pytest.importorskip("transformers", minversion="5.24")
RULES = [name for name in SAMPLING_RULES if name != "qwen_vl_utils"]


def upstream_processor(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, name)()


def drawn(rng, name):
    total = rng.choice([rng.randint(1, 60), rng.randint(1, 4000), rng.randint(1, 100_000)])
    rate = rng.choice([25.0, 24.0, 30_000 / 1001, 24_000 / 1001, rng.uniform(0.5, 120)])
    number = rng.choice([None, rng.randint(1, 64)]) if name in HAS_NUM_FRAMES else None
    asked = {"fps": rng.choice([2.0, 1, 0.5, rng.uniform(0.1, 30)]), "num_frames": number}
    return total, rate, {**asked, "min_frames": rng.choice([1, 4, 8]), "max_frames": rng.choice([9, 64, 768])}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RULES)
def test_indices_and_rates_are_those_of_transformers(name):
    theirs, rng = upstream_processor(name), random.Random(name)
    for _ in range(cases(200)):
        total, rate, asked = drawn(rng, name)
        theirs.min_frames, theirs.max_frames = asked["min_frames"], asked["max_frames"]
        given = {"fps": asked["fps"]} if asked["num_frames"] is None else {"num_frames": asked["num_frames"]}
        metadata = transformers.video_utils.VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
        try:
            expected = np.asarray(theirs.sample_frames(metadata=metadata, temporal_patch_size=2, **given))
            if not len(expected):
                raise ValueError("nothing is sampled")
        except (ValueError, ZeroDivisionError, RuntimeError):  # of torch.arange with a step of 0 or without end
            with pytest.raises(
                ValueError, match=r"samples frames in multiples of 2|samples nothing of a video|some would be taken twice"
            ):
                SAMPLING_RULES[name](total, rate, FrameChoice(**asked))
            continue
        if asked["num_frames"] is not None and asked["num_frames"] > total:  # upstream takes frames twice
            assert len(set(expected.tolist())) < len(expected)
            with pytest.raises(
                ValueError, match=rf"num_frames=\d+ is more than the {total} frames that can be taken: some would be"
            ):
                SAMPLING_RULES[name](total, rate, FrameChoice(**asked))
            continue
        sampled = SAMPLING_RULES[name](total, rate, FrameChoice(**asked))
        if expected[-1] == total:  # one frame behind the last: it would end with an error when that is decoded
            expected = expected[:-1]
        np.testing.assert_array_equal(sampled.indices, expected, err_msg=str((total, rate, asked)))
        metadata.frames_indices = expected
        assert sampled.fps == metadata.sampled_fps


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Films of even frames, by the number of their frames: exact times, and times that were rounded to milliseconds."""
    path, made = tmp_path_factory.mktemp("films"), {}
    for name, rate, count in (
        ("a.mp4", 25, 50),
        ("b.mkv", 30, 61),
        ("c.webm", Fraction(30_000, 1001), 90),
        ("d.mp4", 8, 3),
        ("e.mkv", 60, 2),
    ):
        codec = "libvpx" if name.endswith("webm") else "libx264"
        made[film(path / name, [round(n * 1000 / rate) for n in range(count)], codec=codec, rate=Fraction(rate))] = count
    return made


REFUSED = (
    "some would be taken twice|is less than two frames|holds nothing|comes to|multiples of 2|samples nothing|num_frames says by"
)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_no_frame_is_taken_twice_without_a_word(name, films):
    """Whatever is asked for, by the processor or by the item: frames that differ, or a refusal that says why."""
    rng, taken, refused = random.Random(name), 0, 0
    for _ in range(cases(60)):
        path, count = rng.choice(list(films.items()))
        numbers = [rng.randint(1, 200), count, count + 1, 2 * count]
        settings = {"max_frames": rng.choice([768, rng.randint(1, 100)])}
        settings |= rng.choice([{"fps": rng.choice([100.0, 1000.0, 2.0, 25.0, 30.0, rng.uniform(0.5, 90)])}, {}])
        settings |= rng.choice(
            [{"num_frames": rng.choice(numbers)}, {"min_frames": min(rng.choice(numbers), settings["max_frames"])}]
        )
        settings["max_frames"] = max(settings["max_frames"], settings.get("min_frames", 4))
        item = {"type": "video", "video": path}
        item |= rng.choice(
            [{}, {}, {"num_frames": rng.choice(numbers)}, {"nframes": rng.choice(numbers)}, {"fps": rng.uniform(1, 99)}]
        )
        if "num_frames" not in item:
            item |= rng.choice([{}, {"video_start": rng.uniform(0, 0.05), "video_end": rng.uniform(0.1, 3)}])
        try:
            media = Processor(sampling=name, **settings).measure(item)
        except ValueError as error:
            if not re.search(REFUSED, str(error)):
                raise
            refused += "some would be taken twice" in str(error)
            continue
        steps = np.diff(media.seconds)
        by_glm = name.startswith("Glm") and not set(item) & {"num_frames", *SAMPLING_KEYS}
        assert (steps[:-1] > 0).all(), (item, settings)
        assert not len(steps) or steps[-1] > 0 or by_glm, (item, settings)  # which fill the last grid with a copy themselves
        assert len(set(media.times)) >= len(media.times) - 1
        taken += 1
    assert taken > 10
    assert refused > 5


def test_more_frames_than_there_are(samples, films):
    """One message, whoever is asked; by frames a second and at least so many, as many as there are."""
    clip = {"type": "video", "video": samples / "clip.mp4"}  # 64 frames, 8 a second
    twice = r"clip.mp4: {}=\d+ is more than the {} frames that can be taken: some would be taken twice; ask for {} at most, or for times"
    for name in (*SAMPLINGS, None):
        with pytest.raises(ValueError, match=twice.format("num_frames", 64, 64)):
            Processor(sampling=name, num_frames=200).measure(clip)
        with pytest.raises(ValueError, match=twice.format("num_frames", 64, 64)):
            Processor(sampling=name).measure({**clip, "num_frames": 65})
        assert len(Processor(sampling=name, num_frames=64).measure(clip).times) == 64
        with pytest.raises(ValueError, match=twice.format("(num_|n)frames", 64, 64)):
            Processor(sampling=name).measure({**clip, "nframes": 66})
        with pytest.raises(ValueError, match=twice.format("(num_|n)frames", "1[67]", 16)):
            Processor(sampling=name).measure({**clip, "nframes": 20, "video_start": 2, "video_end": 4})
    for settings in ({"fps": 100.0}, {"min_frames": 84}, {"fps": 8.0}):
        media = Processor(sampling="time", **settings).measure(clip)
        assert [float(time) for time in media.times] == [n / 8 for n in range(64)]
        assert media.seconds.tolist() == [n / 8 for n in range(64)]
    odd = next(path for path, count in films.items() if count == 61)
    with pytest.raises(ValueError, match=r"num_frames=63 is more than the 61 frames that can be taken: .*; ask for 60 at most"):
        Processor(sampling="Qwen2VLVideoProcessor", num_frames=63).measure({"type": "video", "video": odd})


def test_a_picture_that_stands_still_is_sampled_again(tmp_path):
    """By time alone, and no more often than frames come where they come fastest."""
    path = film(tmp_path / "screen.mkv", [0, 100, 200, 5000, 9000, 9100])
    times = Processor(sampling="time", fps=2.0).measure({"type": "video", "video": path})
    assert times.seconds.tolist() == [0.0, *[0.2] * 9, *[5.0] * 8, 9.0]
    fastest = Processor(sampling="time", fps=1000.0).measure({"type": "video", "video": path})
    assert float(fastest.times[1]) == pytest.approx(0.1, rel=0.01)


def test_whose_rule_samples(samples):
    """The processor's own, the family's without one, and qwen-vl-utils' where an item has a key of its."""
    clip = {"type": "video", "video": samples / "clip.mp4"}  # 64 frames, 8 a second

    def times(item, **settings):
        return [float(time) for time in Processor(**settings).measure(item).times]

    rule = SAMPLING_RULES["qwen_vl_utils"]
    assert times(clip) == [i / 8 for i in rule(64, 8.0, FrameChoice()).indices]
    assert times(clip, family="glm4v") == [i / 8 for i in SAMPLING_RULES["Glm4vVideoProcessor"](64, 8.0, FrameChoice()).indices]
    for name in RULES:
        assert times(clip, sampling=name) == [i / 8 for i in SAMPLING_RULES[name](64, 8.0, FrameChoice()).indices]
        keyed = rule(64, 8.0, FrameChoice(fps=1.0, max_frames=16)).indices
        assert times({**clip, "fps": 1.0}, sampling=name, max_frames=16) == [i / 8 for i in keyed]
    assert times(clip, sampling="time") == [n / 2 for n in range(16)]
    assert times({**clip, "video_start": 2, "video_end": 4}, sampling="time") == [2, 2.5, 3, 3.5]
    assert times({**clip, "nframes": 4, "video_end": 4}, sampling="time") == [0, 1, 2, 3]
    assert times({**clip, "num_frames": 5}) == pytest.approx([0, 1.6, 3.2, 4.8, 6.4, 6.4])
    assert times(clip, num_frames=4) == [0, 2, 4, 6]
    assert len(times(clip, num_frames=4, sampling="Qwen3VLVideoProcessor")) == 4
    with pytest.raises(ValueError, match=r"sampling must be 'time' or 'qwen_vl_utils' or .* or None, got 'uniform'"):
        Processor(sampling="uniform")
    assert "time" in SAMPLINGS


def test_processors_that_were_saved_without_the_field_sample_by_time(tmp_path):
    Processor(max_frames=8).save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path).sampling is None
    path = tmp_path / "processor_config.json"
    path.write_text(path.read_text().replace('  "sampling": null,\n', ""))
    assert Processor.from_pretrained(tmp_path).sampling == "time"
