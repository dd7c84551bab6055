"""Makes tests/references/serving/*.json by running vLLM's and SGLang's own position functions.

    python scripts/make_serving_references.py --vllm FOLDER --sglang FOLDER

The folders are the unpacked source distribution of vLLM and the unpacked wheel of SGLang. Each function is taken from its file
by itself: the packages need a GPU, or much else, to be imported. Rows are those of tests/references (as README.md there has
them) and a few drawn here; tests/adapters/test_serving.py makes a request of each, here and when it compares.

vllm.json: `cases` with a family, a row, `ids` [3][tokens] and `delta`; `after`, what follows a prompt. sglang.json: `cases`
with a family, rows of one length, `ids` [3][rows][tokens], `deltas` [rows][1] and the `dtypes` of both; `decode`, what a
decoding step computes. Both: `signatures`, and why there is nothing of other families (`not_established`).
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mmrope import FAMILIES, Family, Segment  # noqa: E402
from mmrope.positions import AudioInVideo, Canvas  # noqa: E402
from mmrope.positions.omni import qwen3_omni_audio_tokens  # noqa: E402
from tests.adapters.test_serving import config_of, rule_of, sglang_request, vllm_request  # noqa: E402
from tests.support.reference_format import as_json, segment  # noqa: E402
from tests.support.upstream_ids import AUDIO_END, TOKENS, VLLM, function_of, plain_code  # noqa: E402

# --- what there is to run ---------------------------------------------------------------------------------------------

_QWEN3 = ("qwen3_vl.py", "Qwen3VLForConditionalGeneration")
_GLM = ("glm4_1v.py", "Glm4vForConditionalGeneration")
VLLM_MODELS = {  # family -> file and class that has its get_mrope_input_positions, which the family's own class may inherit
    **VLLM,
    "qwen2_vl": ("qwen2_vl.py", "Qwen2VLForConditionalGeneration"),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "cosmos3_edge"), _QWEN3),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm_ocr"), _GLM),
    "ernie4_5_vl_moe": ("ernie45_vl.py", "Ernie4_5_VLMoeForConditionalGeneration"),
    "cohere_compass": ("cohere_compass.py", "CohereCompassForConditionalGeneration"),
    "intern_s2": _QWEN3,
    "keye_vl": ("keye.py", "KeyeForConditionalGeneration"),
    "keye_vl_1_5": ("keye_vl1_5.py", "KeyeVL1_5ForConditionalGeneration"),
    "bailing_moe_v3_vl": ("bailing_moe_v3_vl.py", "BailingMoeV3VLForConditionalGeneration"),
    "openpangu_vl": ("openpangu_vl.py", "OpenPanguVLForConditionalGeneration"),
    "qwen3_asr": ("qwen3_asr.py", "Qwen3ASRForConditionalGeneration"),
    "isaac": ("isaac.py", "IsaacForConditionalGeneration"),
    "minicpmv4_6": ("minicpmv4_6.py", "MiniCPMV4_6ForConditionalGeneration"),
    "minicpmv4_7": ("minicpmv4_7.py", "MiniCPMV4_7ForConditionalGeneration"),
}
SGLANG_MODELS = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "qwen3_omni_moe"),
    *("paddleocr_vl", "cosmos3_omni", "cosmos3_edge", "glm4v", "glm46v", "glm4v_moe", "glm_ocr", "ernie4_5_vl_moe"),
)
IMAGES_ALONE = ("cohere_compass", "bailing_moe_v3_vl", "keye_vl", "keye_vl_1_5", "openpangu_vl")
"""Of which vLLM takes no videos, or has frames that touch, stand two tokens apart or state their grids otherwise than
rows that are drawn here."""

_RESEARCH = "a method of a paper: no model there has it"
_BACKEND = (
    "no class of its own: the Transformers backend asks the installed transformers' get_rope_index, which tests/references has"
)
NOT_ESTABLISHED = {
    "vllm": {
        **dict.fromkeys(("rope", "videorope", "hope", "mrope_i", "v2pe", "vrope", "circle_rope"), _RESEARCH),
        **dict.fromkeys(("glm46v", "hunyuan_vl", "glm_image"), _BACKEND),
        "cosmos3_omni": "no architecture of its config's name; Cosmos3ForConditionalGeneration inherits what qwen3_vl has",
        "neomme": "no class in the registry, and no get_rope_index in transformers for its Transformers backend",
        "minicpmv4_7": "finds its canvases by token ids; spans alone do not say where its crops are, so the door refuses it",
        **dict.fromkeys(("bailing_mm", "hunyuan_image_3"), "no class of vLLM 0.33"),
        "hy_v4_vl": _BACKEND,
        "minicpmv4_6": "counts tokens, on three equal axes where the table has one",
        "omnirope": _RESEARCH,
        "isaac": "text between images goes on at the largest id of all axes, the authors' behind the time: another rule",
    },
    "sglang": {
        **dict.fromkeys(("rope", "videorope", "hope", "mrope_i", "v2pe", "vrope", "circle_rope"), _RESEARCH),
        **dict.fromkeys(("hunyuan_vl", "cohere_compass", "neomme"), "SGLang has no function for it"),
        "qwen2_5_omni": "get_rope_index knows no such model type: it raises RuntimeError",
        "minicpmv4_7": "its processor has a function of its own, with other arguments, for canvases",
        "glm_image": "its processor has a method of its own, with other arguments, that also places the images to be made",
        **dict.fromkeys(("hy_v4_vl", "keye_vl", "keye_vl_1_5", "openpangu_vl", "isaac"), "SGLang has no function for it"),
        **dict.fromkeys(("bailing_mm", "bailing_moe_v3_vl"), "a function of its own, with other arguments"),
        "intern_s2": "get_rope_index of its model type does not split frames",
        **dict.fromkeys(("qwen3_asr", "minicpmv4_6"), "counts tokens"),
        **dict.fromkeys(("omnirope", "hunyuan_image_3"), "an image generator, which SGLang does not place"),
    },
}

# --- rows -------------------------------------------------------------------------------------------------------------

SECONDS = [float(np.float32(seconds)) for seconds in (0.1, 0.3, 0.5, 0.7, 0.83, 1.0, 1.001, 1.5, 2.0, 10.0)]  # as in tensors
SOUND_IN_VIDEO = (  # times that are nearly whole, or cut to whole steps change places with the sound's
    AudioInVideo.make(t=11, h=1, w=1, audio=20, seconds_per_grid=SECONDS[0]),
    AudioInVideo.make(t=3, h=1, w=2, audio=30, seconds_per_grid=SECONDS[4]),
)
Batch = list[list[Segment]]


def rows_of(name: str) -> list[list[Segment]]:
    """Rows with text around each medium: those of tests/references, and some drawn here."""
    rule, rng = rule_of(name), random.Random(name)
    reference = json.loads((ROOT / "tests" / "references" / f"{name}.json").read_text())
    kept = [[segment(*item) for item in row if item[0] != "pad"] for case in reference["cases"] for row in case["rows"]]
    kinds = [kind for kind in rule.media if kind != "audio_in_video"]
    kept += [_drawn(rng, rule, kinds) for _ in range(6)]
    if "audio_in_video" in rule.media:
        kept += [_drawn(rng, rule, ["image", "audio_in_video"]) for _ in range(2)]  # vLLM mixes it with no other sound
        kept += [[Segment.text(2), both, Segment.text(3)] for both in SOUND_IN_VIDEO]
    return [row for n, row in enumerate(kept) if _has_room(row) and row not in kept[:n]]


def _has_room(row: list[Segment]) -> bool:
    """Whether there is text around each medium, with room for an end marker and a start marker."""
    texts = [s.kind == "text" for s in row]
    apart = all(left or right for left, right in itertools.pairwise(texts))
    return apart and texts[0] and texts[-1] and all(s.length > 1 for s in row if s.kind == "text")


def _drawn(rng: random.Random, rule: Family, kinds: Sequence[str]) -> list[Segment]:
    row = [Segment.text(rng.randint(2, 5))]
    for _ in range(rng.randint(1, 4)):
        kind, h, w = rng.choice(kinds), rng.randint(1, 4), rng.randint(1, 4)
        seconds = rng.choice(SECONDS)
        if kind == "image":
            row.append(Segment.image(h=h, w=w))
        elif kind == "video":
            row.append(Segment.video(t=rng.randint(1, 6), h=h, w=w, seconds_per_grid=seconds if rule.uses_seconds else None))
        elif kind == "audio":
            row.append(Segment.audio(rng.randint(1, 30)))
        elif kind == "audio_in_video":
            t, audio = rng.randint(1, 4), rng.randint(1, 60)
            row.append(AudioInVideo.make(t=t, h=h, w=w, audio=audio, seconds_per_grid=seconds))
        elif kind == "canvas":
            rows, columns = rng.choice(((0, 0), (1, 2), (2, 1), (2, 3)))
            crops = [(h, w)] * (rows * columns)  # a canvas has crops of one size
            row.append(Canvas.make(h=rng.randint(1, 4), w=rng.randint(1, 4), slices=crops, columns=columns))
        else:  # a video's frames, with a time stamp before each but the first
            row.append(Segment.frame(h=h, w=w))
            for _ in range(rng.randint(0, 3)):
                row += [Segment.text(rng.randint(2, 5)), Segment.frame(h=h, w=w)]
        row.append(Segment.text(rng.randint(2, 5)))
    return row


# --- vLLM -------------------------------------------------------------------------------------------------------------

_METHODS = (
    *("get_mrope_input_positions", "_get_mrope_input_positions", "iter_mm_grid_thw", "iter_mm_grid_hw"),
    *("_iter_mm_grid_hw", "iter_mm_features"),
    *("_split_video_grid_thw", "_get_audio_for_video_mapping", "_compute_audio_token_count", "_compute_interleaved_positions"),
)


def vllm_model(models: Path, name: str) -> SimpleNamespace:
    """What stands for a model of vLLM: the methods by which it places a prompt."""
    file, cls = VLLM_MODELS[name]
    self = SimpleNamespace()
    names = {
        **plain_code(models / file),
        cls: self,  # of static methods
        "_get_feature_tensor": lambda feature, key: feature.data[key].data,
        "_get_feat_extract_output_lengths": qwen3_omni_audio_tokens,
    }
    for method in _METHODS:
        try:
            made = function_of(models / file, method, cls, **names)
        except StopIteration:
            continue
        setattr(self, method, MethodType(made, self) if "self" in inspect.signature(made).parameters else made)
    return self


PLACEHOLDERS = {  # of audio in video: the method of the processor that writes it
    "qwen2_5_omni": ("qwen2_5_omni_thinker.py", "omni_get_updates_use_audio_in_video", "Qwen2_5OmniThinkerMultiModalProcessor"),
    "qwen3_omni_moe": ("qwen3_omni_moe_thinker.py", "get_updates_use_audio_in_video", "Qwen3OmniMoeThinkerMultiModalProcessor"),
}


def check_placeholders(models: Path, row: list[Segment], rule: Family) -> None:
    """Refuses a request whose audio in video does not stand as vLLM's processor writes it."""
    tokens, features = vllm_request(row, rule)
    places = [f.mm_position for f in features if f.modality == "video" and "use_audio_in_video" in f.data]
    config, m = config_of(rule), rule.spatial_merge
    config.audio_token_index, config.video_token_index, config.audio_end_token_id = TOKENS.audio, TOKENS.video, AUDIO_END
    for place, s in zip(places, (s for s in row if isinstance(s, AudioInVideo)), strict=True):
        file, method, cls = PLACEHOLDERS[rule.name]
        split = function_of(models / "utils.py", "split_list_into_ranges")
        t, h, w = s.grid
        written = function_of(models / file, method, cls, split_list_into_ranges=split)(
            None, config, s.audio_tokens, [t, h * m, w * m], s.seconds_per_grid
        )
        if written != tokens[place.offset : place.offset + place.length]:
            raise SystemExit(f"{rule}, {s}: vLLM's processor writes it otherwise: {written}")


def by_vllm(folder: Path) -> dict[str, Any]:
    """Prompts of each family, what follows them, and the signatures."""
    models, rotary = (folder / "vllm" / "model_executor" / part for part in ("models", "layers/rotary_embedding/mrope.py"))
    ranges = function_of(folder / "vllm" / "multimodal" / "inputs.py", "extract_embeds_range", "PlaceholderRange")
    cases = []
    for name in sorted(VLLM_MODELS):
        if name in NOT_ESTABLISHED["vllm"]:
            continue
        model, rule = vllm_model(models, name), rule_of(name)
        model.config = config_of(rule)
        for row in rows_of(name):
            if name in IMAGES_ALONE and any(s.kind in ("frame", "video") for s in row):
                continue
            check_placeholders(models, row, rule)
            tokens, features = vllm_request(row, rule)
            for feature in features:
                feature.mm_position.extract_embeds_range = MethodType(ranges, feature.mm_position)
            ids, delta = model.get_mrope_input_positions(tokens, features)
            cases.append({"family": name, "row": [as_json(s) for s in row], "ids": ids.tolist(), "delta": delta})
    follow = function_of(rotary, "get_next_input_positions", "MRotaryEmbedding")
    write = function_of(rotary, "get_next_input_positions_tensor", "MRotaryEmbedding")
    after = []
    for delta, context, count in ((0, 5, 1), (-7, 12, 3), (-40, 100, 0), (25, 30, 2)):
        out = torch.zeros(3, 6, dtype=torch.int64).numpy()
        write(out, 1, delta, context, count)
        listed = follow(delta, context, context + count)
        after.append({"delta": delta, "context": context, "count": count, "listed": listed, "written": out.tolist()})
    prompt = function_of(models / "interfaces.py", _METHODS[0], "SupportsMRoPE")
    signatures = {_METHODS[0]: prompt, "get_next_input_positions": follow, "get_next_input_positions_tensor": write}
    return {
        "cases": cases,
        "after": after,
        "signatures": {key: str(inspect.signature(made)) for key, made in signatures.items()},
    }


# --- SGLang -----------------------------------------------------------------------------------------------------------


def by_sglang(folder: Path) -> dict[str, Any]:
    """Prompts of each family, what a decoding step computes, and the signatures."""
    layers = folder / "sglang" / "srt" / "layers" / "rotary_embedding"
    spec = importlib.util.spec_from_file_location("mrope_rope_index", layers / "mrope_rope_index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases = []
    for name in SGLANG_MODELS:
        rule = rule_of(name)
        rows = rows_of(name)
        batches: list[Batch] = [[row] for row in rows] + [[rows[0], rows[0]]]
        for batch in [*batches, *_padded(rows, rule)]:
            function, arguments = sglang_request(batch, rule)
            cases.append({"family": name, "rows": [[as_json(s) for s in row] for row in batch]})
            cases[-1] |= returned(*getattr(module, function)(**arguments))
    timeless = rule_of("qwen2_5_vl")
    row = [Segment.text(3), Segment.video(t=3, h=1, w=2, seconds_per_grid=1.0), Segment.text(2)]
    function, arguments = sglang_request([row], timeless)
    without = returned(*getattr(module, function)(**{**arguments, "second_per_grid_ts": None}))
    names = ("get_rope_index", "get_rope_index_glm4v", "get_rope_index_ernie45")
    made = {name: function_of(layers / "mrope.py", name, "MRotaryEmbedding") for name in names}
    return {
        "cases": cases,
        "without_seconds": {"family": timeless.name, "rows": [[as_json(s) for s in row]], **without},
        "decode": decoding(folder),
        "signatures": {name: str(inspect.signature(function)) for name, function in made.items()},
    }


def _padded(rows: list[list[Segment]], rule: Family) -> list[Batch]:
    """Rows of different lengths as a batch, padded on each side; of functions that take an attention mask."""
    if rule.checkpoint.token_ids.video_start is None:
        return []
    pair, longest = rows[1:3], max(sum(s.length for s in row) for row in rows[1:3])
    pads = [[Segment.pad(longest - sum(s.length for s in row))] for row in pair]
    return [[p + r for p, r in zip(pads, pair, strict=True)], [r + p for p, r in zip(pads, pair, strict=True)]]


def returned(ids: torch.Tensor, deltas: torch.Tensor) -> dict[str, Any]:
    """What a function returned, with dtypes."""
    kinds = [str(x.dtype).removeprefix("torch.") for x in (ids, deltas)]
    return {"ids": ids.tolist(), "deltas": deltas.tolist(), "dtypes": kinds}


def decoding(folder: Path) -> list[dict[str, Any]]:
    """The ids of decoding steps, by the method of the batch that computes them; a delta of None is a prompt of text alone."""
    path = folder / "sglang" / "srt" / "model_executor" / "forward_batch_info.py"
    plain = SimpleNamespace(deterministic=SimpleNamespace(rl_on_policy_target=None))
    step = function_of(path, "_compute_mrope_positions_decode", "ForwardBatch", get_exec=lambda: plain)
    found = []
    for deltas, lengths in (([0], [6]), ([-7, 0, 25], [13, 6, 31]), ([-40.5], [101])):
        prompts = [SimpleNamespace(mrope_positions=None, mrope_position_delta=torch.tensor([[delta]])) for delta in deltas]
        batch = SimpleNamespace(seq_lens_cpu=torch.tensor(lengths), seq_lens=torch.tensor(lengths))
        step(batch, SimpleNamespace(device="cpu"), SimpleNamespace(multimodal_inputs=prompts))
        found.append({"deltas": deltas, "lengths": lengths, "ids": batch.mrope_positions.tolist()})
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def version(folder: Path) -> str:
    [metadata] = [*folder.glob("PKG-INFO"), *folder.glob("*.dist-info/METADATA")]
    fields = dict(line.split(": ", 1) for line in metadata.read_text().splitlines() if ": " in line)
    return f"{fields['Name']} {fields['Version']}"


def write(name: str, folder: Path, found: dict[str, Any]) -> None:
    cases = found.pop("cases")
    missing = {row.name for row in FAMILIES.values()} - {case["family"] for case in cases} - set(NOT_ESTABLISHED[name])
    if missing:
        raise SystemExit(f"{name}: neither established nor said why not: {sorted(missing)}")
    head = {
        "made": f"by scripts/make_serving_references.py from {version(folder)}, torch {torch.__version__}",
        "not_established": NOT_ESTABLISHED[name],
        **found,
    }
    lines = [f'"{key}": {json.dumps(value)},' for key, value in head.items()]
    text = ",\n".join(json.dumps(case) for case in cases)
    path = ROOT / "tests" / "references" / "serving" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + "\n".join(lines) + f'\n"cases": [\n{text}\n]}}\n')
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size // 1024} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--sglang", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.vllm:
        write("vllm", asked.vllm, by_vllm(asked.vllm))
    if asked.sglang:
        write("sglang", asked.sglang, by_sglang(asked.sglang))


if __name__ == "__main__":
    main()
