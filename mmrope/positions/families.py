"""How each family of models places tokens and allocates frequencies: one table, a row a family and revision.

A row without a revision is the reference: the rule that the released weights were trained with. `@transformers-5.23` is
what that version of transformers computes instead. To add a family, add a row here and its expected ids in
tests/references/; nothing else in the library names a family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mmrope.positions import canvas, omni, research
from mmrope.positions.rules import (
    REGISTRY,
    CheckpointFacts,
    Family,
    Reading,
    RotaryFacts,
    changed,
    fact_of,
    registered,
    with_facts,
)
from mmrope.positions.rules import register_family as register_family  # from here, so that the table is there before

_QWEN_TRAINING = "QwenLM/Qwen3-VL at commit 9658872, qwen-vl-finetune/qwenvl/data/rope2d.py"
_QWEN_CONFIG = {
    "spatial_merge": "vision_config.spatial_merge_size?",
    "frames_per_grid": "vision_config.temporal_patch_size?",
    "token_ids.image": "image_token_id?",
    "token_ids.video": "video_token_id?",
    "token_ids.vision_start": "vision_start_token_id?",
}
_GLM_CONFIG = {
    "spatial_merge": "vision_config.spatial_merge_size",
    "frames_per_grid": "vision_config.temporal_patch_size?",
    "token_ids.image": "image_token_id?",
    "token_ids.video_start": "video_start_token_id?",
    "token_ids.video_end": "video_end_token_id?",
}


def _row(**fields: Any) -> Family:
    """A row, from its fields and those of its records."""
    records = {"rotary": RotaryFacts, "checkpoint": CheckpointFacts, "reading": Reading}
    for record, kind in records.items():
        mine = {f.name: fields.pop(f.name) for f in dataclasses.fields(kind) if f.name in fields}
        fields.setdefault(record, kind(**mine))
    return Family(**fields)


def _transformers(version: str, name: str) -> str:
    return f"transformers {version}, models/{name}/modeling_{name}.py, get_rope_index"


_QWEN2_VL = _row(
    name="qwen2_vl",
    source=f"Qwen2-VL paper (arXiv 2409.12191), section 2.1; {_QWEN_TRAINING}, get_rope_index_2",
    sections=(16, 24, 24),
    theta=1e6,
    config=_QWEN_CONFIG,
)
_QWEN2_5_VL = changed(
    _QWEN2_VL,
    name="qwen2_5_vl",
    source=f"Qwen2.5-VL paper (arXiv 2502.13923), section 2.1.2; {_QWEN_TRAINING}, get_rope_index_25",
    time="seconds",
    ids_per_second=2.0,
    config={**_QWEN_CONFIG, "ids_per_second": "vision_config.tokens_per_second"},
)
_QWEN3_VL = changed(
    _QWEN2_VL,
    name="qwen3_vl",
    source=f"{_QWEN_TRAINING}, get_rope_index_3",
    media=("image", "frame"),
    layout="interleaved",
    sections=(24, 20, 20),
    theta=5e6,
)
_GLM4V = _row(
    name="glm4v",
    source=_transformers("4.57.1", "glm4v"),
    media=("image", "frame"),
    sections=(8, 12, 12),
    pairing="adjacent",
    rotary_fraction=0.5,
    config=_GLM_CONFIG,
)
_QWEN2_5_OMNI = changed(
    _QWEN2_VL,
    name="qwen2_5_omni",
    source=_transformers("4.57.1", "qwen2_5_omni"),
    media=("image", "video", "audio", omni.AUDIO_IN_VIDEO),
    time="seconds",
    ids_per_second=25.0,
    place={omni.AUDIO_IN_VIDEO: omni.audio_in_video_by_chunk},
    reading=omni.OmniReading(frames_to_tokens=omni.qwen2_5_omni_audio_tokens, seconds_per_chunk=2.0),
    model_types=("qwen2_5_omni_thinker",),
    config={
        "spatial_merge": "thinker_config.vision_config.spatial_merge_size|vision_config.spatial_merge_size",
        "ids_per_second": "thinker_config.position_id_per_seconds|position_id_per_seconds",
        "seconds_per_chunk": "thinker_config.seconds_per_chunk|seconds_per_chunk",
        "token_ids.image": "thinker_config.image_token_index|image_token_index?",
        "token_ids.video": "thinker_config.video_token_index|video_token_index?",
        "token_ids.audio": "thinker_config.audio_token_index|audio_token_index?",
        "token_ids.vision_start": "thinker_config.vision_start_token_id|vision_start_token_id?",
        "token_ids.audio_start": "thinker_config.audio_start_token_id|audio_start_token_id?",
    },
)
_QWEN3_OMNI = changed(
    _QWEN2_5_OMNI,
    name="qwen3_omni_moe",
    source=f"{_transformers('4.57.1', 'qwen3_omni_moe')}; audio in video in the order of processing_qwen3_omni_moe.py",
    dtype="float32",
    time="fractional_seconds",
    ids_per_second=13.0,
    place={omni.AUDIO_IN_VIDEO: omni.audio_in_video_by_time},
    reading=omni.OmniReading(frames_to_tokens=omni.qwen3_omni_audio_tokens, marker_apart=True),
    model_types=("qwen3_omni_moe_thinker",),
    layout="interleaved",
    sections=(24, 20, 20),
    config={
        "spatial_merge": "thinker_config.vision_config.spatial_merge_size|vision_config.spatial_merge_size",
        "ids_per_second": "thinker_config.position_id_per_seconds|position_id_per_seconds",
        "token_ids.image": "thinker_config.image_token_id|image_token_id?",
        "token_ids.video": "thinker_config.video_token_id|video_token_id?",
        "token_ids.audio": "thinker_config.audio_token_id|audio_token_id?",
        "token_ids.vision_start": "thinker_config.vision_start_token_id|vision_start_token_id?",
        "token_ids.audio_start": "thinker_config.audio_start_token_id|audio_start_token_id?",
    },
)
_VIDEOROPE = changed(
    _QWEN2_VL,
    name="videorope",
    source="VideoRoPE (arXiv 2502.05173), as in its code, Wiselnn570/VideoRoPE at commit 7712ca3, "
    "videorope-transformer/modeling_videorope.py, get_t_scale_rope_index (the paper's Eq. 7 centres on w / 2, h / 2 and lets "
    "text go on at start + 2 t)",
    stride=2,
    center=True,
    couple=True,
    advance="time",
    layout="alternating",
    config={},
)

_BAILING_CONFIG = {
    "spatial_merge": "vision_config.spatial_merge_size?",
    "token_ids.image": "llm_config.image_patch_token|image_token_id?",
    "token_ids.video": "llm_config.video_patch_token|video_token_id?",
    "token_ids.vision_start": "llm_config.image_start_token|vision_start_token_id?",
}

_REFERENCES = (
    _row(
        name="rope",
        source="RoFormer (arXiv 2104.09864), section 3.2: every token counts one",
        axes="p",
        media=("image", "frame", "video", "audio"),
        advance="tokens",
    ),
    _QWEN2_VL,
    _QWEN2_5_VL,
    changed(
        _QWEN3_VL,
        name="qwen3_vl",
        model_types=("colqwen3", "ops_colqwen3", "qwen3_vl_nemotron_embed"),  # subclasses of it in vLLM
    ),
    changed(_QWEN3_VL, name="qwen3_vl_moe"),
    *(
        changed(
            _QWEN3_VL,
            name=name,
            source=_transformers("5.23.0", name),
            sections=(11, 11, 10),
            theta=theta,
            rotary_fraction=0.25,
            recurrent=True,
        )
        for name, theta in (("qwen3_5", 1e7), ("qwen3_5_moe", 1e7), ("qwen4_exp", 1e4))
    ),
    _QWEN2_5_OMNI,
    _QWEN3_OMNI,
    _GLM4V,
    changed(_GLM4V, name="glm46v", source=_transformers("5.23.0", "glm46v"), model_types=("glmga",)),
    changed(
        _GLM4V,
        name="glm4v_moe",
        source=_transformers("4.57.1", "glm4v_moe"),
        pairing="half",
        model_types=("Glm4vMoe",),  # of the text config in transformers 4.57
    ),
    changed(
        _GLM4V,
        name="glm_ocr",
        source=_transformers("5.23.0", "glm_ocr"),
        sections=(16, 24, 24),
        rotary_fraction=1.0,
    ),
    _row(
        name="glm_image",
        source=_transformers("5.23.0", "glm_image"),
        media=("image",),
        targets=True,
        spatial_merge=1,
        sections=(8, 12, 12),
        config={
            "token_ids.image": "image_token_id?",
            "token_ids.image_start": "image_start_token_id?",
            "token_ids.image_end": "image_end_token_id?",
        },
    ),
    _row(
        name="ernie4_5_vl_moe",
        source="PaddlePaddle/ERNIE at commit 40c348d, data_processor/steps/image_modification/processor.py, get_rope_index",
        temporal_merge=2,
        frames_per_grid=1,
        model_types=("ernie4_5_moe_vl",),
        layout="alternating",
        sections=(20, 22, 22),
        section_order="hwt",
        theta=5e5,
        pairing="adjacent",
        config={
            "spatial_merge": "vision_config.spatial_merge_size|spatial_conv_size",
            "temporal_merge": "vision_config.temporal_merge_size|temporal_conv_size",
            "token_ids.image": "image_token_id|im_patch_id?",
            "token_ids.video": "video_token_id?",
        },
    ),
    _row(
        name="paddleocr_vl",
        source="PaddlePaddle/PaddleX at commit 2e5291e, paddlex/inference/models/doc_vlm/modeling/paddleocr_vl/"
        "_paddleocr_vl.py, get_rope_index",
        frames_per_grid=1,
        time="seconds",
        ids_per_second=2.0,
        sections=(16, 24, 24),
        theta=5e5,
        config={**_QWEN_CONFIG, "ids_per_second": "vision_config.tokens_per_second?"},
    ),
    _row(
        name="hunyuan_vl",
        source="Tencent-Hunyuan/HunyuanOCR at commit b8759d6, train/data_processor.py: transformers' get_rope_index, a sample "
        "at a time",
        axes="pwhi",
        media=("image",),
        row_token=True,
        markers=2,
        origin="zero",
        advance="tokens",
        sections=(16, 16, 16, 16),
        ntk=1000.0,
        config={"spatial_merge": "vision_config.spatial_merge_size", "token_ids.image": "image_token_id?"},
    ),
    _row(
        name="minicpmv4_7",
        source=_transformers("5.23.0", "minicpmv4_7"),
        media=(canvas.CANVAS,),
        spatial_merge=4,
        place={canvas.CANVAS: canvas.on_canvas},
        reading=canvas.CanvasReading(),
        layout="interleaved",
        sections=(11, 11, 10),
        rotary_fraction=0.25,
        recurrent=True,
        config={
            "spatial_merge": "downsample_mode",
            **{
                f"token_ids.{name}": f"{name}_id?"
                for name in ("image_start", "image_end", "slice_start", "slice_end", "newline")
            },
            "token_ids.image": "image_token_id?",
            "token_ids.video": "video_token_id?",
        },
    ),
    changed(_QWEN3_VL, name="cohere_compass", source=_transformers("5.23.0", "cohere_compass")),
    changed(_QWEN3_VL, name="cosmos3_omni", source=_transformers("5.23.0", "cosmos3_omni")),
    changed(_QWEN3_VL, name="cosmos3_edge", source=_transformers("5.23.0", "cosmos3_edge"), frames_per_grid=1, theta=1e8),
    _row(
        name="neomme",
        source="transformers 5.23.0, models/neomme/processing_neomme.py, _build_position_ids",
        axes="hw",
        media=("image",),
        spatial_merge=1,
        row_token=True,
        layout="interleaved",
        sections=(16, 16),
        theta=1e6,
        rotary_fraction=0.25,
        config={"token_ids.image": "image_token_id?"},
    ),
    changed(
        _QWEN3_VL,
        name="hy_v4_vl",
        source=_transformers("5.24.0", "hy_v4_vl"),
        frames_per_grid=1,
        row_token=True,
        sections=(12, 10, 10),
        theta=1e4,
        pairing="adjacent",
    ),
    changed(
        _QWEN2_5_VL,
        name="keye_vl",
        source="Kwai-Keye/Keye at commit e472844, keye-vl-8b-preview/modeling_keye.py, get_rope_index",
        frames_per_grid=1,  # of its processor; its vision_config says 2, which nothing reads
        model_types=("Keye",),
        config={key: path for key, path in _QWEN_CONFIG.items() if key != "frames_per_grid"}
        | {"ids_per_second": "vision_config.tokens_per_second?"},
    ),
    changed(
        _QWEN3_VL,
        name="keye_vl_1_5",
        source="the Keye team's transformers, models/keye_vl_1_5/modular_keye_vl_1_5.py, get_rope_index, and vLLM 0.33.0, "
        "keye_vl1_5.py",
        frames_per_grid=1,
        layout="contiguous",
        sections=(16, 24, 24),
        theta=1e6,
        model_types=("KeyeVL1_5",),
        config={key: path for key, path in _QWEN_CONFIG.items() if key != "frames_per_grid"},
    ),
    changed(
        _VIDEOROPE,
        name="bailing_mm",
        source="inclusionAI/Ming at commit 480df09, modeling_bailing_moe_v2.py, get_t_scale_rope_index with scale_factor 2",
        media=("image", "frame", "video"),
        sections=(8, 12, 12),
        theta=6e5,
        rotary_fraction=0.5,
        model_types=("bailingmm", "bailingmm_moe_v2_lite"),
        only_if={"llm_config.rope_scaling.type|llm_config.rope_scaling.rope_type": "video_rope"},
        config=_BAILING_CONFIG,
    ),
    changed(
        _VIDEOROPE,
        name="bailing_moe_v3_vl",
        source="SGLang 0.5.23, srt/layers/rotary_embedding/bailing_mrope.py (the authors' code was not at hand, and vLLM 0.33 "
        "places otherwise)",
        sections=(8, 12, 12),
        theta=6e6,
        pairing="adjacent",
        recurrent=True,
        config=_BAILING_CONFIG,
    ),
    changed(
        _QWEN3_VL,
        name="intern_s2",
        source="SGLang 0.5.23, mrope_rope_index.py, get_rope_index of interns2_mobius; vLLM 0.33.0, interns2_preview.py, a "
        "subclass of Qwen3.5-MoE",
        sections=(11, 11, 10),
        theta=1e7,
        rotary_fraction=0.25,
        recurrent=True,
        model_types=("intern_s2_preview", "interns2_mobius"),
    ),
    changed(
        _QWEN3_VL,
        name="openpangu_vl",
        source="vLLM 0.33.0, openpangu_vl.py, get_mrope_input_positions (the authors' code was not at hand)",
        layout="balanced",
        theta=6.4e7,
    ),
    _row(
        name="qwen3_asr",
        source="QwenLM/Qwen3-ASR at commit 7c6daf7, modeling_qwen3_asr.py, get_rope_index: three equal axes (of float32 there)",
        pad_value=1,
        media=("audio",),
        layout="interleaved",
        sections=(24, 20, 20),
        theta=1e6,
        model_types=("qwen3_asr_thinker",),
        config={
            "token_ids.audio": "thinker_config.audio_token_id|audio_token_id?",
            "token_ids.audio_start": "thinker_config.audio_start_token_id|audio_start_token_id?",
        },
    ),
    _row(
        name="minicpmv4_6",
        source="transformers 5.24.0, models/minicpmv4_6, which hands no ids to qwen3_5_text; vLLM 0.33.0, minicpmv4_6.py",
        axes="p",
        media=("image", "frame", "video"),
        advance="tokens",
        theta=1e7,
        rotary_fraction=0.25,
        sections=(32,),
        recurrent=True,
        model_types=("minicpm_ocr", "jev"),
        config={"token_ids.image": "image_token_id?", "token_ids.video": "video_token_id?"},
    ),
    changed(
        _QWEN2_VL,
        name="isaac",
        source="perceptron-ai-inc/perceptron at commit 122a710, src/perceptron/tensorstream/ops.py, compute_mrope_pos_tensor",
        media=("image",),
        origin="zero",
        advance="time",
        sections=(32, 16, 16),
        config={
            "spatial_merge": "pixel_shuffle_scale|vision_config.pixel_shuffle_scale_factor?",
            "token_ids.image": "image_token_id?",
        },
    ),
    _row(
        name="hunyuan_image_3",
        source="Tencent-Hunyuan/HunyuanImage-3.0 at commit 1d011c8, hunyuan_image_3/hunyuan.py, build_2d_rope",
        axes="hw",
        media=("image",),
        spatial_merge=1,
        advance="tokens",
        place={"image": research.around_its_place},
        layout="interleaved",
        sections=(32, 32),
        model_types=("hunyuan_image_3_moe",),
        config={"token_ids.image": "image_token_id?"},
    ),
    _VIDEOROPE,
    changed(
        _VIDEOROPE,
        name="hope",
        source="HoPE (arXiv 2505.20444), hrlics/HoPE at commit 85b76c0, modeling_hope.py, get_dynamic_rope_index; the stride "
        "is drawn from 0.5 to 1.5 in training and chosen by the user afterwards (0.75 for retrieval, 1.5 for understanding)",
        dtype="float32",
        stride=None,
        still="t",
    ),
    changed(
        _QWEN3_VL,
        name="mrope_i",
        source="MRoPE-I (arXiv 2510.23095), JJJYmmm/Multimodal-RoPEs at commit cd413b9, multimodal_ropes/pos_design/mrope_i.py "
        "with spatial_reset",
        origin="zero",
        config={},
    ),
    _row(
        name="omnirope",
        source="OmniRoPE (OmniGen2, arXiv 2506.18871), VectorSpaceLab/OmniGen2 at commit 0f72fa9, omnigen2/models/transformers/"
        "repo.py, OmniGen2RotaryPosEmbed",
        media=("image",),
        spatial_merge=2,
        origin="zero",
        layout="axial",
        sections=(20, 20, 20),
        pairing="adjacent",
    ),
    _row(
        name="v2pe",
        source="V2PE (arXiv 2412.09616), OpenGVLab/V2PE at commit f96f189, internvl/model/internvl_chat/"
        "modeling_internvl_chat.py, get_rope_pos_id (v2pe_fix); the stride, 1, 1/2, ... 1/256, is chosen by the user",
        axes="p",
        dtype="float32",
        media=("image", "frame", "video"),
        stride=None,
        advance="tokens",
        theta=1e6,
    ),
    _row(
        name="vrope",
        source="VRoPE (arXiv 2502.11664), johncaged/VRoPE at commit 6a7adbc, vrope.py (time takes no channels of its own)",
        axes="abcd",
        place={"image": research.vrope, "video": research.vrope},
        layout="interleaved",
        sections=(16, 16, 16, 16),
    ),
    changed(
        _QWEN2_5_VL,
        name="circle_rope",
        source="Circle-RoPE (arXiv 2505.16416), lose4578/CircleRoPE at commit 063fb2c, code/circle_rope.py and config.json "
        "(radius 10, alpha 0.5, centred); its other layers take qwen2_5_vl's ids",
        dtype="float32",
        media=("image",),
        time="index",
        ids_per_second=None,
        place={"image": research.circle},
        config={},
    ),
)


_SPATIAL = {"advance": "spatial"}
_SINGLE_FRAMES = (
    *("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
    *("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "cohere_compass", "cosmos3_omni", "cosmos3_edge", "hy_v4_vl"),
)
_BY_CHUNK = {omni.AUDIO_IN_VIDEO: omni.get_rope_index_by_chunk}
_BY_TIME = {omni.AUDIO_IN_VIDEO: omni.get_rope_index_by_time}
_VIDEO_AND_AUDIO_APART = {"media": ("image", "video", "audio"), "place": {}}
_REVISIONS: dict[str, dict[str, dict[str, Any]]] = {
    # what each upstream does otherwise; {} where its ids are the reference's
    "transformers-5.23": {
        "qwen2_vl": _SPATIAL,
        "qwen2_5_vl": {**_SPATIAL, "time": "seconds_rate_first"},
        **{name: {} for name in _SINGLE_FRAMES},
        "qwen2_5_omni": {"pad_value": 1, "place": _BY_CHUNK},
        "qwen3_omni_moe": {"place": _BY_TIME, "pad_value_without_vision": 1},
        "glm_image": {"pad_value": 1},
        "ernie4_5_vl_moe": _SPATIAL,
        "paddleocr_vl": {**_SPATIAL, "time": "index", "ids_per_second": None},
        "hunyuan_vl": {"ordinal": "batch", "layout": "by_channel"},
        "minicpmv4_7": {},
        "neomme": {"source": "transformers 5.23.0, models/neomme/processing_neomme.py, _build_position_ids"},
    },
    "transformers-4.57": {
        "qwen2_5_vl": {"pad_value": 1, "time": "whole_seconds"},
        "qwen2_5_omni": {"pad_value": 1, "place": _BY_CHUNK},
        "qwen3_omni_moe": {"place": _BY_TIME, "pad_value_without_vision": 1},
        **{name: {"pad_value": 1} for name in ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe")},
    },
    # only where its rule differs from the reference; how it counts audio in video depends on its own placeholders
    "vllm-0.33": {
        "qwen2_5_vl": {"time": "seconds_float64"},
        "paddleocr_vl": {"time": "seconds_float64"},
        "qwen2_5_omni": {"time": "seconds_float64", **_VIDEO_AND_AUDIO_APART},
        "qwen3_omni_moe": {"time": "seconds_float64", "dtype": "int64", **_VIDEO_AND_AUDIO_APART},
        "keye_vl": {"media": ("image", "frame"), "time": "index", "ids_per_second": None},
        "bailing_moe_v3_vl": {"media": ("image",), "stride": 1, "center": False, "couple": False, "advance": "max"},
    },
    "sglang-0.5": {"qwen3_omni_moe": {"place": _BY_TIME}},
}
_SOURCES = {
    "transformers-5.23": "transformers 5.23.0, models/{0}/modeling_{0}.py, get_rope_index",
    "transformers-4.57": "transformers 4.57.1, models/{0}/modeling_{0}.py, get_rope_index",
    "vllm-0.33": "vllm 0.33.0, model_executor/models, get_mrope_input_positions of {0}",
    "sglang-0.5": "sglang 0.5.23, srt/layers/rotary_embedding/mrope_rope_index.py",
}


def _with_revisions(row: Family) -> list[Family]:
    """A reference and what upstreams compute for it: a revision is here once that upstream has been run."""
    found = [row]
    for revision, rows in _REVISIONS.items():
        if row.name in rows:
            changes = {"source": _SOURCES[revision].format(row.name), **rows[row.name]}
            found.append(changed(row, revision=revision, **changes))
    return found


_RELEASED = {
    # the released config that says how a family rotates; tests/references/configs holds what it says. Of families that are not
    # here no released config was at hand: their facts are of transformers' code or of a sibling, and may not be a checkpoint's
    "qwen2_vl": "Qwen2-VL-7B-Instruct (transformers#33401)",
    "qwen2_5_vl": "the README of Qwen2.5-VL",
    "qwen3_vl": "the README of Qwen3-VL",
    "qwen3_5": "Qwen3.5-27B",
    "qwen3_5_moe": "Qwen3.5-35B-A3B as GGUF (ik_llama.cpp#1432)",
    "qwen3_omni_moe": "Qwen3-Omni-30B-A3B",
    "glm4v": "GLM-4.1V-9B-Thinking",
    "glm_ocr": "GLM-OCR, but for theta (mlxcel#547)",
    "ernie4_5_vl_moe": "ERNIE-4.5-VL-28B-A3B, with its own code",
    "hunyuan_vl": "HunyuanOCR (eole#281, vllm#55140)",
}
for _reference in _REFERENCES:
    _row_with = changed(_reference, released=_RELEASED.get(_reference.name, ""))
    REGISTRY.update({row.key: row for row in _with_revisions(_row_with)})

READING_KEYS = tuple(dict.fromkeys(key for row in _REFERENCES for key in row.reading.keys))
"""What the readings of the table read of a processor's output."""

FAMILIES: Mapping[str, Family] = MappingProxyType(REGISTRY)
"""Every family and revision by name, those of `register_family`, too. It cannot be written to."""


def family(name: str | Family, **facts: Any) -> Family:
    """The row `name` ("qwen2_5_vl", or "qwen2_5_vl@transformers-5.23" for an upstream's rule), with a checkpoint's own facts.

    Facts are `spatial_merge`, `temporal_merge`, `frames_per_grid`, `ids_per_second`, `seconds_per_chunk`, `stride` and
    `token_ids`. For a checkpoint at hand, `family_from_config` reads them.

    Raises:
        ValueError: unknown name, unknown fact, or a fact that this family has no use for.

    Example:
        >>> import mmrope
        >>> family = mmrope.family("qwen2_5_vl", ids_per_second=4)
        >>> family.key, family.axes, family.ids_per_second
        ('qwen2_5_vl', 'thw', 4)
    """
    if isinstance(name, Family):
        return with_facts(name, facts) if facts else name
    if not isinstance(name, str):
        raise ValueError(
            f"family must be a Family or its name, got {type(name).__name__}; the rows come first, the family second"
        )
    if name in REGISTRY and not facts:
        return REGISTRY[name]
    return with_facts(registered(name), facts)


_IN_WORDS: dict[str, dict[Any, str]] = {
    "advance": {
        "spatial": "text after a video starts at its start + max(h, w)",
        "max": "text continues at the largest id + 1",
    },
    "time": {
        "index": "time ids are grid indices",
        "seconds_rate_first": "time ids are floor(i * (ids_per_second * seconds)) in float32",
        "seconds_float64": "time ids are floor(i * (seconds * ids_per_second)) in float64",
        "whole_seconds": "time ids are i * floor(seconds) * ids_per_second",
    },
    "pad_value": {1: "padding carries 1"},
    "pad_value_without_vision": {1: "padding carries 1 in batches without images and videos"},
    "dtype": {"int64": "ids are whole numbers"},
    "ordinal": {"batch": "images are counted over the batch"},
    "layout": {"by_channel": "its rotary embedding is no rotation"},
    "media": {
        ("image", "video", "audio"): "audio in video is not placed",
        ("image", "frame"): "each frame of a video is placed as an image",
        ("image",): "videos are not placed",
    },
    "center": {False: "h and w are counted from the next id"},
    "couple": {False: "time is not added to h and w"},
    "stride": {1: "time ids are one apart"},
    "place": {
        omni.get_rope_index_by_chunk: "audio in video is laid out by the times of the ids, not as the tokens lie",
        omni.get_rope_index_by_time: "audio in video is laid out by the float32 times of the ids, not as the tokens lie",
    },
}


def departures(row: Family) -> list[str]:
    """What a revision's rule does otherwise than its reference, in words."""
    reference = FAMILIES.get(row.name)
    found = []
    for name, words in _IN_WORDS.items():
        value = fact_of(row, name)
        if reference is not None and value != fact_of(reference, name):
            values = value.values() if name == "place" else [value]
            found += [words.get(value, f"its {name} is another") for value in values]
    return found
