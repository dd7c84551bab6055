"""The rules of sampling, against those they are named after: sample_frames of transformers' video processors."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest

from mmrope import Processor
from mmrope.preprocess.sampling import HAS_NUM_FRAMES, SAMPLING_RULES, SAMPLINGS, FrameChoice
from tests.support import cases

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
            with pytest.raises(ValueError, match=r"samples frames in multiples of 2|samples nothing of a video"):
                SAMPLING_RULES[name](total, rate, FrameChoice(**asked))
            continue
        sampled = SAMPLING_RULES[name](total, rate, FrameChoice(**asked))
        if expected[-1] == total:  # one frame behind the last: it would end with an error when that is decoded
            expected = expected[:-1]
        np.testing.assert_array_equal(sampled.indices, expected, err_msg=str((total, rate, asked)))
        metadata.frames_indices = expected
        assert sampled.fps == metadata.sampled_fps


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
