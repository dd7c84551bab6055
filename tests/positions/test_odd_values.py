"""Whatever stands where an argument belongs: it works, or is refused in words of ours, never in numpy's or Python's."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path

import numpy as np
import pytest

import mmrope
from mmrope import RotarySpec, Segment, VideoTiming, position_ids
from mmrope import encodings as E
from mmrope import positions as P

HERE = Path(mmrope.__file__).parent
HUGE = 2**70
MUCH = 2**50
ODD = {
    **{
        str(value): value
        for value in (None, True, -1, 0, 1, 2.5, -0.5, float("nan"), float("inf"), HUGE, -HUGE, MUCH, 1e300, "", "text")
    },
    "bytes": b"ab",
    "an object": object(),
    "a list of nothing": [],
    "a list": [1, 2, 3],
    "a ragged list": [[1, 2], [3]],
    "a list of words": ["a", "b"],
    "a list of None": [None],
    "a list of a list of a huge number": [[1, HUGE, 2]],
    "past 2^33": [[1, 2**33, 2**33]],
    "a dict": {"a": 1},
    "a set": {1, 2},
    "a function": len,
    "numbers": np.array([3, 4]),
    "a number as an array": np.array(3),
    "nan in an array": np.array([[np.nan, 1.0, 2.0]]),
    "objects": np.array([object(), None], dtype=object),
    "bools": np.array([True, False]),
    "uint64 past 2^63": np.array([[2**63 + 4, 4, 4]], dtype=np.uint64),
    "strings": np.array(["1", "2"]),
    "four dimensions": np.zeros((1, 1, 1, 1)),
    "a type": int,
}
ROW = [Segment.text(2), Segment.image(h=2, w=2), Segment.text(2)]
IDS = position_ids(ROW, "qwen2_vl")
INPUTS = {"input_ids": [[5, 6, 9, 9, 7]], "mm_token_type_ids": [[0, 0, 1, 1, 0]], "image_grid_thw": [[1, 2, 4]]}
FAMILY = {f.name: getattr(mmrope.family("qwen2_vl"), f.name) for f in P.Family.__dataclass_fields__.values()}
CALLS = {  # what works as it is: each argument in turn is then something else
    Segment: {"kind": "video", "grid": (1, 2, 3), "seconds_per_grid": None, "times": None},
    Segment.text: {"length": 3},
    Segment.pad: {"length": 3},
    Segment.audio: {"length": 3},
    Segment.image: {"h": 2, "w": 3},
    Segment.frame: {"h": 2, "w": 3},
    Segment.video: {"t": 2, "h": 1, "w": 1, "seconds_per_grid": None, "times": [0.0, 1.0]},
    Segment.custom: {"ids": [[1, 2]] * 3, "advance": 2},
    P.AudioInVideo.make: {"t": 1, "h": 1, "w": 2, "audio": 3, "seconds_per_grid": None, "times": None, "runs": (2, 3)},
    P.Canvas.make: {"h": 1, "w": 2, "slices": [(1, 1)], "columns": 1, "newlines": 1},
    P.Row.of: {"segments": ROW},
    P.TokenIds: {"image": 3},
    P.RotaryFacts: {"layout": "contiguous", "sections": (4,), "section_order": "", "still": "", "theta": 1e4, "pairing": "half"}
    | {"rotary_fraction": 1.0, "ntk": None, "released": ""},
    P.CheckpointFacts: {"config": {}, "model_types": (), "only_if": {}, "token_ids": P.TokenIds(), "recurrent": False},
    P.Reading: {"markers": 0, "targets": False},
    P.Family: FAMILY,
    P.Family.from_dict: {"stated": {"name": "qwen2_vl", "facts": {"spatial_merge": 2}}},
    mmrope.family: {"name": "qwen2_5_vl", "spatial_merge": 2, "ids_per_second": 2.0, "token_ids": P.TokenIds()},
    mmrope.register_family: {"family": mmrope.family("qwen2_vl")},
    mmrope.family("qwen2_vl").image: {"patch_grid": (1, 4, 4)},
    mmrope.family("qwen2_vl").video: {"patch_grid": (2, 4, 4), "seconds_per_grid": None, "times": [0.0, 1.0], "timing": None},
    mmrope.family("qwen2_vl").token_grids: {"patch_grids": [(1, 4, 4)]},
    VideoTiming: {"frame_indices": (0, 1, 2), "original_fps": 1.0, "sampled_fps": 1.0, "timestamps": None},
    VideoTiming.from_metadata: {"metadata": {"frames_indices": [0, 1], "fps": 1.0, "total_num_frames": 2}, "timestamps": None},
    VideoTiming(frame_indices=(0, 1, 2), original_fps=1.0).grids: {"frames_per_grid": 2},
    VideoTiming(frame_indices=(0, 1, 2), original_fps=1.0).grid_times: {"frames_per_grid": 2},
    VideoTiming(frame_indices=(0, 1, 2), original_fps=1.0).seconds_per_grid: {"frames_per_grid": 2},
    position_ids: {"rows": ROW, "family": "qwen2_vl", "start": 0, "stop": 4, "dtype": None, "out": None},
    P.decode_position_ids: {"following": [3], "family": "qwen2_vl", "step": 0, "count": 1},
    P.patch_position_ids: {
        "grid_thw": [[1, 2, 4]],
        "axes": "hw",
        "order": "blocks",
        "merge": 2,
        "offset": 0,
        "normalize": None,
    },
    P.segments_from_inputs: {
        "inputs": INPUTS,
        "family": "qwen2_vl",
        "prompt_lengths": None,
        "video_timings": None,
        "sync": False,
    },
    P.segments_from_spans: {"token_count": 9, "spans": [(1, 2, (1, 2, 4))], "family": "qwen2_vl"},
    P.Span: {
        "offset": 1,
        "length": 2,
        "grid": (1, 2, 4),
        "kind": "image",
        "embed": None,
        "seconds_per_grid": None,
        "timing": None,
    },
    P.append: {"row": ROW, "segments": ROW},
    P.truncate: {"row": ROW, "length": 4, "policy": "drop_media", "markers": (1, 1), "frames": None},
    P.collate: {"rows": [ROW], "pad_side": "right", "multiple_of": 1},
    P.pack: {"rows": [ROW], "family": "qwen2_vl", "multiple_of": 1, "start": 0, "dtype": None},
    P.keep: {"positions": IDS, "mask": IDS.mask},
    P.shard_index: {"cu_seqlens": [0, 8], "size": 2, "rank": 0, "scheme": "zigzag"},
    P.convert_ids: {
        "ids": IDS.ids,
        "source": "axes_first",
        "target": "text_row_first",
        "axes": 3,
        "mask": None,
        "text_ids": [list(range(8))],
    },
    P.hf_position_ids: {"positions": IDS},
    P.rope_deltas: {"positions": IDS, "length": "padded"},
    P.diff: {"a": IDS, "b": IDS.ids, "mask": None},
    P.explain: {"positions": IDS},
    P.fingerprint: {"positions": IDS.ids, "mask": None, "cu_seqlens": None},
    P.check: {"position_ids": IDS, "inputs": [ROW], "family": "qwen2_vl", "cu_seqlens": None},
    RotarySpec: {
        "head_dim": 8,
        "inv_freq": [1.0, 0.5],
        "axis": [0, 0],
        "axes": "t",
        "pairing": "half",
        "scaling": None,
        "spectra": None,
    }
    | {"attention_factor": 1.0, "score_factor": 1.0, "temperature": None},
    RotarySpec.rope: {"head_dim": 8, "theta": 1e4, "rotary_dim": 4, "pairing": "half"},
    RotarySpec.nope: {"head_dim": 8, "axes": "t", "temperature": None},
    RotarySpec.axial: {"head_dim": 8, "axes": "hw", "theta": 1e4, "dims": (4, 4), "spectrum": "per_axis", "pairing": "half"},
    RotarySpec.mrope: {
        "head_dim": 8,
        "theta": 1e4,
        "sections": (2, 1, 1),
        "layout": "contiguous",
        "axes": "thw",
        "rotary_dim": 8,
        "pairing": "half",
    },
    RotarySpec.from_family: {"family": "qwen2_vl"},
    RotarySpec.rope(8).scaled: {"scaling": E.PI(2.0)},
    E.PI: {"factor": 2.0},
    E.NTK: {"factor": 2.0},
    E.DynamicNTK: {"original_max_position": 64, "factor": 2.0},
    E.YaRN: {"factor": 2.0, "original_max_position": 64, "beta_fast": 32, "beta_slow": 1, "ramp": "index", "truncate": True}
    | {"stated_attention_factor": None, "mscale": 1.0, "mscale_all_dim": 1.0},
    E.Llama3: {"factor": 2.0, "original_max_position": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    E.LongRoPE: {
        "short_factor": [1.0],
        "long_factor": [2.0],
        "original_max_position": 64,
        "factor": 2.0,
        "stated_attention_factor": None,
    },
    E.Proportional: {"fraction": 0.5, "factor": 1.0},
    E.Temperature: {"scale": 0.1, "floor": 64, "offset": 0},
}
ARGUMENTS = [(call, name) for call, arguments in CALLS.items() for name in arguments]


def test_every_call_works_as_it_is():
    for call, arguments in CALLS.items():
        bound(call, arguments)


def bound(call, arguments):
    names = list(inspect.signature(call).parameters.values())
    by_place = [arguments[p.name] for p in names if p.kind is p.POSITIONAL_ONLY and p.name in arguments]
    return call(*by_place, **{name: value for name, value in arguments.items() if len(by_place) == 0})


def named(value):
    return getattr(value, "__qualname__", value)


@pytest.mark.parametrize(("call", "name"), ARGUMENTS, ids=[f"{named(call)}-{name}" for call, name in ARGUMENTS])
def test_odd_values_work_or_are_refused_in_our_words(call, name):
    wrong = []
    for what, value in ODD.items():
        try:
            bound(call, CALLS[call] | {name: value})
        except ValueError as error:
            if traceback.extract_tb(error.__traceback__)[-1].filename.startswith(str(HERE)) and raised_by_us(error):
                continue
            wrong.append(f"{what}: {error}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def raised_by_us(error):
    """By a raise statement of our own: C code has no frame, and the line of ours would be another statement."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    lines = Path(frame.filename).read_text().splitlines()
    return any("raise " in line for line in lines[max(frame.lineno - 8, 0) : frame.lineno])
