"""The inputs that a processor makes of rows of segments, and the ids that upstreams compute from them, without models.

Works with every transformers whose position code is known, and with the position functions of vLLM's source.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from mmrope.adapters import upstreams
from mmrope.positions import FAMILIES, Family, Segment, TokenIds, family
from mmrope.positions.omni import qwen3_omni_audio_tokens
from tests.support import lowest

TOKENS = TokenIds(
    image=200,
    video=201,
    audio=205,
    vision_start=202,
    audio_start=206,
    video_start=208,
    video_end=209,
    image_start=210,
    image_end=211,
    slice_start=212,
    slice_end=213,
    newline=214,
)
VISION_END, AUDIO_END, TEXT = 203, 207, 10
TRANSFORMERS = "transformers-5.23" if lowest.WANTED else upstreams.revision()
"""The revision of the table that the installed transformers is, whatever its version."""
CACHE = (
    "cache" if not lowest.WANTED and tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24) else "past_key_values"
)
"""What models of the installed transformers call their cache."""
_MODELS = None if lowest.WANTED else upstreams.installed("transformers")
IN_TRANSFORMERS = sorted(
    row.name
    for row in FAMILIES.values()
    if row.revision == TRANSFORMERS and (_MODELS is None or (_MODELS[1] / "models" / row.name).is_dir())
)


def with_tokens(key: str, **facts: Any) -> Family:
    """The family, knowing the ids of the special tokens that its model knows."""
    row = family(key)
    fields = [path.removeprefix("token_ids.") for path in row.checkpoint.config if path.startswith("token_ids.")]
    return family(row, token_ids=TokenIds(**{name: getattr(TOKENS, name) for name in fields}), **facts)


# --- rows to inputs ---------------------------------------------------------------------------------------------------


def as_inputs(batch: Sequence[Sequence[Segment]], family: Family, *, types: bool = True) -> dict[str, Any]:
    """A processor's output for these rows, which must be of one length; with token types (transformers 5) or without (4)."""
    rows = [[token for i in range(len(row)) for token in _tokens(row, i, family)] for row in batch]
    images, videos, seconds, sounds, sizes = [], [], [], [], {1: [], 2: []}
    m, tm = family.spatial_merge, family.temporal_merge
    for row in batch:
        for s in row:
            t, h, w = s.grid
            patches = [t, h * m, (w - family.row_token) * m]
            if s.kind == "image":
                images.append(patches)
            elif s.kind in ("video", "audio_in_video"):
                videos.append([t * tm, *patches[1:]])
                seconds.append(s.seconds_per_grid)
            elif s.kind == "frame":
                videos.append([1, *patches[1:]])
            elif s.kind == "canvas":
                sizes[1] += [[a * m, b * m] for a, b in ((h, w), *s.slices)]
            if s.kind in ("audio", "audio_in_video"):
                sounds.append(_frames(w if s.kind == "audio" else s.audio_tokens, family))
    inputs: dict[str, Any] = {
        "input_ids": np.array([[token for token, _ in row] for row in rows], dtype=np.int64),
        "attention_mask": np.array(
            [[int(s.kind != "pad") for s in row for _ in range(s.length)] for row in batch], dtype=np.int64
        ),
    }
    if types:
        inputs["mm_token_type_ids"] = np.array([[kind for _, kind in row] for row in rows], dtype=np.int64)
    if images:
        inputs["image_grid_thw"] = np.array(images)
    if family.checkpoint.token_ids.image_start is not None and "canvas" not in family.media:  # images may be asked for, too
        inputs["images_per_sample"] = np.array([sum(s.kind == "image" for s in row) for row in batch])
    if videos:
        inputs["video_grid_thw"] = np.array(videos)
    if family.uses_seconds and videos:
        inputs["video_second_per_grid" if family.reading.states_audio else "second_per_grid_ts"] = np.array(
            seconds, dtype=np.float32
        )
    if sounds:
        inputs["audio_seqlens"] = np.array(sounds)
    for kind, key in ((1, "target_sizes"), (2, "target_sizes_videos")):
        if sizes[kind]:
            inputs[key] = np.array(sizes[kind])
    return inputs


def _tokens(row: Sequence[Segment], i: int, family: Family) -> list[tuple[int, int]]:
    """(token id, type) of each token of segment i."""
    s, known = row[i], TOKENS
    assert known.image is not None
    if s.kind == "pad":
        return [(0, 0)] * s.length
    if s.kind == "text":
        return [(token, 0) for token in _text(row, i, family)]
    frame = (
        known.image if family.checkpoint.token_ids.video is None and family.checkpoint.token_ids.video_start else known.video
    )
    if s.kind == "audio_in_video":
        inside = [(known.video, 2) if is_video else (known.audio, 3) for is_video in processor_order(s, family)]
        return [(known.vision_start, 0), (known.audio_start, 0), *inside, (AUDIO_END, 0), (VISION_END, 0)]
    if s.kind == "canvas":
        _, h, w = s.grid
        crop = (known.image, 1)
        tokens = [(known.image_start, 0), *[crop] * (h * w), (known.image_end, 0)]
        for n, (a, b) in enumerate(s.slices):
            tokens += [(known.newline, 0)] * int(n > 0 and n % s.columns == 0)
            tokens += [(known.slice_start, 0), *[crop] * (a * b), (known.slice_end, 0)]
        return tokens + [(known.newline, 0)] * s.newlines
    kinds = {"image": (known.image, 1), "video": (known.video, 2), "frame": (frame, 2), "audio": (known.audio, 3)}
    return [kinds[s.kind]] * s.length


def _text(row: Sequence[Segment], i: int, family: Family) -> list[int]:
    """Text with the markers that its neighbours want: as far as there is room, the last token opens and the first closes."""
    n = row[i].length
    tokens = [TEXT] * n
    after = row[i + 1].kind if i + 1 < len(row) else ""
    before = row[i - 1].kind if i else ""
    start, end = TOKENS.vision_start, VISION_END
    if family.checkpoint.token_ids.image_start is not None and "canvas" not in family.media:
        start, end = TOKENS.image_start, TOKENS.image_end
    opening = {"image": start, "video": TOKENS.vision_start, "frame": TOKENS.vision_start, "audio": TOKENS.audio_start}
    closing = {"image": end, "video": VISION_END, "frame": VISION_END, "audio": AUDIO_END}
    if n and before in closing:
        tokens[0] = closing[before]
    if n and after in opening:
        tokens[-1] = opening[after]
    if family.checkpoint.token_ids.video_start is not None:  # GLM's frames stand between a video's start and end
        opened = before != "frame" and after == "frame"
        closed = before == "frame" and after != "frame"
        if n and opened:
            tokens[-1] = TOKENS.video_start
        if n and closed:
            tokens[0] = TOKENS.video_end
    return tokens


def processor_order(segment: Segment, family: Family) -> list[bool]:
    """Which tokens between the markers are the video's, as the Omni processors write them: float64 times, from 0."""
    t, h, w = segment.grid
    rate = family.ids_per_second
    video = [i * segment.seconds_per_grid * rate for i in range(t) for _ in range(h * w)]
    audio = list(range(segment.audio_tokens))
    if family.reading.seconds_per_chunk is None:
        order, v, a = [], 0, 0
        while v < len(video) and a < len(audio):
            order.append(video[v] <= audio[a])
            v, a = v + order[-1], a + (not order[-1])
        return order + [True] * (len(video) - v) + [False] * (len(audio) - a)
    size = int(rate * family.reading.seconds_per_chunk)

    def chunks(times):
        edges, chunk = [0], 1
        for i, time in enumerate(times):
            if time >= chunk * size:
                edges.append(i)
                chunk += 1
        return [b - a for a, b in zip(edges, [*edges[1:], len(times)], strict=True)]

    videos, audios = chunks(video), chunks(audio)
    order = []
    for j in range(max(len(videos), len(audios))):
        order += [True] * (videos[j] if j < len(videos) else 0) + [False] * (audios[j] if j < len(audios) else 0)
    return order


def _frames(tokens: int, family: Family) -> int:
    """Spectrogram frames of which the family makes so many tokens."""
    if getattr(family.reading, "frames_to_tokens", None) is not qwen3_omni_audio_tokens:
        return 4 * tokens
    whole, rest = divmod(tokens - 1, 13)
    frames = np.arange(1, 101)
    return whole * 100 + int(frames[qwen3_omni_audio_tokens(frames) == rest + 1][0])


# --- transformers -----------------------------------------------------------------------------------------------------


def transformers_ids(family: Family, inputs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """ids [A, B, S] and rope_deltas [B] of the installed transformers, without a model."""
    if family.name == "neomme":
        return _neomme_ids(inputs), np.zeros(len(inputs["input_ids"]))
    ids, deltas = get_rope_index(family, inputs)()
    return ids.numpy(), deltas[:, 0].numpy()


def get_rope_index(family: Family, inputs: dict[str, Any]) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """A call of the installed transformers' get_rope_index, ready to be made."""
    cls, self, tensors = upstream_class(family), upstream_self(family), rope_index_arguments(family, inputs)
    return lambda: cls.get_rope_index(self, **tensors)


def rope_index_arguments(family: Family, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the installed transformers' get_rope_index is called with."""
    tensors = {key: torch.as_tensor(value) for key, value in inputs.items()}
    if family.reading.states_audio:
        tensors.pop("mm_token_type_ids", None)
        sound_in_video = (
            (tensors["input_ids"][:, :-1] == TOKENS.vision_start) & (tensors["input_ids"][:, 1:] == TOKENS.audio_start)
        ).any()
        tensors["use_audio_in_video"] = bool(sound_in_video)
        tensors["second_per_grids"] = tensors.pop("video_second_per_grid", None)
    elif family.name == "glm_image" or TRANSFORMERS == "transformers-4.57":
        tensors.pop("mm_token_type_ids", None)
    if family.name not in ("qwen2_5_vl",):
        tensors.pop("second_per_grid_ts", None)
    return tensors


def upstream_class(family: Family) -> Any:
    """The class of the installed transformers that has the family's get_rope_index."""
    if lowest.WANTED:
        lowest.skip("transformers")
    module = importlib.import_module(f"transformers.models.{family.name}.modeling_{family.name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and "get_rope_index" in vars(value) and "Talker" not in value.__name__
    ]
    assert len(found) == 1, found
    return found[0]


def upstream_self(family: Family) -> SimpleNamespace:
    """What get_rope_index needs of a model, without one."""
    cls, self = upstream_class(family), _self(family)
    for name in ("get_vision_position_ids", "get_llm_pos_ids_for_vision", "get_chunked_index", "_group_visual_frames"):
        if hasattr(cls, name):
            setattr(self, name, MethodType(getattr(cls, name), self))
    if hasattr(cls, "_frame_end_idx"):
        self._frame_end_idx = cls._frame_end_idx
    return self


def _self(family: Family) -> SimpleNamespace:
    """What get_rope_index reads of a model."""
    vision = SimpleNamespace(
        spatial_merge_size=family.spatial_merge,
        temporal_merge_size=family.temporal_merge,
        tokens_per_second=_whole(family.ids_per_second),
    )
    config = SimpleNamespace(
        vision_config=vision,
        text_config=SimpleNamespace(rope_parameters={"mrope_section": list(family.rotary.sections)}),
        audio_config=SimpleNamespace(n_window=50),
        position_id_per_seconds=_whole(family.ids_per_second),
        seconds_per_chunk=_whole(getattr(family.reading, "seconds_per_chunk", None)),
        downsample_mode={2: "4x"}.get(family.spatial_merge, "16x"),
        image_start_id=TOKENS.image_start,
        image_end_id=TOKENS.image_end,
        slice_start_id=TOKENS.slice_start,
        slice_end_id=TOKENS.slice_end,
        newline_id=TOKENS.newline,
        **{f"{f.name}_token_id": getattr(TOKENS, f.name) for f in dataclasses.fields(TOKENS)},
    )
    return SimpleNamespace(config=config, spatial_merge_size=family.spatial_merge)


def _whole(x: float | None) -> Any:
    return int(x) if x is not None and x == int(x) else x


def _neomme_ids(inputs: dict[str, Any]) -> np.ndarray:
    from transformers.models.neomme.processing_neomme import NeoMMEProcessor

    document, row = 5, 7
    tokenizer = SimpleNamespace(document_token_id=document, row_token_id=row)
    self = SimpleNamespace(tokenizer=tokenizer, image_token_id=TOKENS.image, _image_positions=NeoMMEProcessor._image_positions)
    ids, grids = inputs["input_ids"].copy(), []
    for line, mask in zip(ids, inputs["attention_mask"], strict=True):
        real = np.flatnonzero(mask)
        if (line[real] == TOKENS.image).any():
            _, h, w = inputs["image_grid_thw"][len(grids)]
            grids.append([h, w])
            line[real] = [document, TOKENS.image, *([TOKENS.image] * w + [row]) * h]
    return np.asarray(
        NeoMMEProcessor._build_position_ids(
            self, torch.as_tensor(ids), torch.as_tensor(inputs["attention_mask"]), torch.tensor(grids).reshape(-1, 2)
        )
    )


# --- vLLM, from its source --------------------------------------------------------------------------------------------


def function_of(path: Path, name: str, cls: str | None = None, **names: Any) -> Any:
    """A function of a source file, made alone: its module is not imported, `names` are what it refers to."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = tree.body if cls is None else next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls)
    node = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == name)
    node.decorator_list = []
    for argument in ast.walk(node):
        if isinstance(argument, ast.arg):
            argument.annotation = None
        if isinstance(argument, ast.AnnAssign) and isinstance(argument.annotation, ast.AST):
            argument.annotation = ast.Constant(None)
    node.returns = None
    scope: dict[str, Any] = {"torch": torch, "np": np, **names}
    exec(compile(ast.fix_missing_locations(ast.Module([node], [])), str(path), "exec"), scope)
    return scope[name]


def plain_code(path: Path) -> dict[str, Any]:
    """The functions (without their defaults), constants and named tuples of a source file, made without what it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept: list[ast.stmt] = [ast.ImportFrom("__future__", [ast.alias("annotations")], 0)]
    for node in tree.body:
        constant = isinstance(node, ast.Assign) and not any(
            isinstance(each, (ast.Call, ast.Name)) for each in ast.walk(node.value)
        )
        tuples = isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["NamedTuple"]
        if isinstance(node, ast.FunctionDef):
            node.decorator_list, node.args.defaults = [], [ast.Constant(None) for _ in node.args.defaults]
        if isinstance(node, ast.FunctionDef) or constant or tuples:
            kept.append(node)
    scope: dict[str, Any] = {"torch": torch, "np": np, "math": math, "NamedTuple": NamedTuple, "Tuple": tuple, "List": list}
    exec(compile(ast.fix_missing_locations(ast.Module(kept, [])), str(path), "exec"), scope)
    return scope


VLLM = {  # family -> (file, class)
    "qwen2_5_vl": ("qwen2_5_vl.py", "Qwen2_5_VLForConditionalGeneration"),
    "paddleocr_vl": ("paddleocr_vl.py", "PaddleOCRVLForConditionalGeneration"),
    "qwen2_5_omni": ("qwen2_5_omni_thinker.py", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen3_omni_moe": ("qwen3_omni_moe_thinker.py", "Qwen3OmniMoeThinkerForConditionalGeneration"),
}


def vllm_ids(models: Path, family: Family, row: Sequence[Segment]) -> tuple[np.ndarray, int]:
    """ids [3, S] and delta of one row, by vLLM's get_mrope_input_positions; `models` is its folder model_executor/models."""
    file, cls = VLLM[family.name]
    path, self = models / file, _self(family)
    self.config.vision_config.tokens_per_second = _whole(family.ids_per_second)
    helpers = {
        "_get_feature_tensor": lambda feature, key: feature.data[key].data,
        "_get_feat_extract_output_lengths": qwen3_omni_audio_tokens,
    }
    for name in (
        "get_mrope_input_positions", "iter_mm_grid_thw", "iter_mm_features", "_get_audio_for_video_mapping",
        "_compute_audio_token_count", "_compute_interleaved_positions",
    ):  # fmt: skip
        try:
            setattr(self, name, MethodType(function_of(path, name, cls, **helpers), self))
        except StopIteration:
            continue
    features, offset, m = [], 0, family.spatial_merge
    for s in row:
        t, h, w = s.grid
        grid = SimpleNamespace(data=torch.tensor([t, h * m, w * m]))
        data = {
            "image": {"image_grid_thw": grid},
            "video": {
                "video_grid_thw": grid,
                "second_per_grid_ts": SimpleNamespace(data=torch.tensor(s.seconds_per_grid or 0.0)),
            },
            "audio": {"audio_feature_lengths": SimpleNamespace(data=torch.tensor(_frames(w, family)))},
        }.get(s.kind)
        if data is not None:
            position = SimpleNamespace(offset=offset, length=s.length)
            features.append(SimpleNamespace(modality=s.kind, data=data, mm_position=position))
        offset += s.length
    ids, delta = self.get_mrope_input_positions([0] * offset, features)
    return ids.numpy(), delta
