"""Into SGLang: the functions by which its processors place a prompt, and the ids that decoding goes on with.

SGLang is not imported. What is the same as in SGLang 0.5.23: arguments, shapes, dtypes, and the ids, which are the reference's
in every family that it has; tests/references/serving holds what it returns, and names what it does otherwise.

What is not: media are found by their token ids alone (SGLang wants a start marker before each), so that grids without tokens,
tokens without grids and stray media tokens are refused; a video without its seconds is refused where the family places by time
(SGLang takes 1 second a grid); audio in video is placed as its tokens lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrope.checkpoints.configs import family_of
from mmrope.positions.build import position_ids
from mmrope.positions.families import FAMILIES, family
from mmrope.positions.formats import rope_deltas
from mmrope.positions.inputs import segments_from_inputs
from mmrope.positions.omni import AudioInVideo
from mmrope.positions.rules import Family, TokenIds
from mmrope.positions.segments import MEDIA

_OMNI = ("audio_token_id", "audio_start_token_id", "position_id_per_seconds", "use_audio_in_video", "audio_seqlens")
_TOKENS = {f"token_ids.{name}" for name in ("image", "video", "vision_start", "audio", "audio_start")}


def get_rope_index(
    spatial_merge_size: int,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    model_type: str,
    tokens_per_second: float | None = None,
    input_ids: Tensor | None = None,
    image_grid_thw: Any = None,
    video_grid_thw: Any = None,
    second_per_grid_ts: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The ids of prompts of the Qwen models and those like them: `MRotaryEmbedding.get_rope_index`.

    Source: sglang 0.5.23, srt/layers/rotary_embedding/mrope_rope_index.py.

    Args:
        spatial_merge_size: patches per token along h and w.
        image_token_id, video_token_id, vision_start_token_id: ids of the tokens by which media are found.
        model_type: of the checkpoint's config; any family that these token ids suffice to find the media of.
        tokens_per_second: ids a second, of families whose time is in seconds.
        input_ids: [B, S]. There is no attention mask: every token counts.
        image_grid_thw, video_grid_thw: patch grids [n, 3] in the order of the batch.
        second_per_grid_ts: [videos] seconds from one temporal grid to the next.
        kwargs: of the Omni models `audio_token_id`, `audio_start_token_id`, `position_id_per_seconds` (in place of
            tokens_per_second), `audio_seqlens` [audios] in spectrogram frames, `use_audio_in_video`; of others these are left
            alone, as SGLang leaves them.

    Returns:
        position_ids [3, B, S] in the dtype of input_ids, and mrope_position_deltas [B, 1] int64, the largest id + 1 - S; both
        float32 where ids are fractional (SGLang's scheduler cuts these to int64 later on). Without grids [3, 1, S] and [1, 1],
        int64.

    Raises:
        ValueError: a model type that is unknown or needs more to be told, an unknown keyword, missing ids a second or seconds,
            tokens and grids that do not belong together.

    Example:
        >>> import torch
        >>> from mmrope.adapters.sglang import get_rope_index
        >>> tokens, grid = torch.tensor([[5, 1, 9, 9, 2]]), torch.tensor([[1, 2, 4]])  # an image of 1 x 2 tokens
        >>> ids, delta = get_rope_index(2, 9, 8, 1, "qwen2_vl", input_ids=tokens, image_grid_thw=grid)
        >>> ids[:, 0].tolist(), delta.tolist()
        ([[0, 1, 2, 2, 4], [0, 1, 2, 2, 4], [0, 1, 2, 3, 4]], [[0]])
    """
    row = family_of(model_type)
    if not _is_found_by_these(row):
        known = sorted({other.name for other in FAMILIES.values() if other.checkpoint.config and _is_found_by_these(other)})
        raise ValueError(
            f"get_rope_index is not told enough to place {row}: it places {', '.join(known)}. Others have a function of their "
            "own, or none"
        )
    _refuse(set(kwargs) - set(_OMNI))
    facts: dict[str, Any] = {"spatial_merge": spatial_merge_size}
    rate, name = (tokens_per_second, "tokens_per_second")
    if row.reading.states_audio:
        rate, name = kwargs.get("position_id_per_seconds"), "position_id_per_seconds"
    if row.uses_seconds and rate is not None:
        facts["ids_per_second"] = rate
    elif row.uses_seconds and video_grid_thw is not None:
        raise ValueError(f"{row} places videos by time: pass {name}, which its config states; there is no default")
    tokens = TokenIds(
        image=image_token_id,
        video=video_token_id,
        vision_start=vision_start_token_id,
        **{key: kwargs.get(f"{key}_token_id") for key in ("audio", "audio_start") if row.reading.states_audio},
    )
    inputs = {
        "input_ids": input_ids,
        "image_grid_thw": image_grid_thw,
        "video_grid_thw": video_grid_thw,
        "second_per_grid_ts": second_per_grid_ts,
        "audio_seqlens": kwargs.get("audio_seqlens") if row.reading.states_audio else None,
    }
    return _placed(inputs, family(row, **facts, token_ids=tokens), audio_in_video=bool(kwargs.get("use_audio_in_video")))


def get_rope_index_glm4v(
    input_ids: Tensor, hf_config: Any, image_grid_thw: Any, video_grid_thw: Any, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """The ids of prompts of the GLM-V models: `MRotaryEmbedding.get_rope_index_glm4v`.

    Source: sglang 0.5.23, srt/layers/rotary_embedding/mrope_rope_index.py.

    Args:
        input_ids: [B, S]; a video's frames stand between the start and the end of a video, as image tokens.
        hf_config: of which `model_type`, `vision_config.spatial_merge_size`, `image_token_id`, `video_start_token_id` and
            `video_end_token_id` are read.
        image_grid_thw, video_grid_thw: patch grids [n, 3] in the order of the batch, or None.
        attention_mask: [B, S], 0 at padding, which carries the id 1; or None.

    Returns:
        position_ids [3, B, S] in the dtype of input_ids, int64 without grids, and mrope_position_deltas [B, 1] int64, the
        largest id + 1 - S: padding counts.

    Raises:
        ValueError: a config that lacks one of these, an unknown model type, tokens and grids that do not belong together.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from mmrope.adapters.sglang import get_rope_index_glm4v
        >>> config = SimpleNamespace(model_type="glm4v", image_token_id=9, video_start_token_id=3, video_end_token_id=4)
        >>> config.vision_config = SimpleNamespace(spatial_merge_size=2)
        >>> ids, delta = get_rope_index_glm4v(torch.tensor([[5, 1, 9, 9, 2]]), config, torch.tensor([[1, 2, 4]]), None, None)
        >>> ids[:, 0].tolist(), delta.tolist()
        ([[0, 1, 2, 2, 4], [0, 1, 2, 2, 4], [0, 1, 2, 3, 4]], [[0]])
    """
    _refuse(kwargs)
    tokens = {name: _read(hf_config, f"{name}_token_id") for name in ("image", "video_start", "video_end")}
    merge = _read(_read(hf_config, "vision_config"), "spatial_merge_size")
    row = family(family_of(_read(hf_config, "model_type")), spatial_merge=merge, token_ids=TokenIds(**tokens))
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    inputs |= {"image_grid_thw": image_grid_thw, "video_grid_thw": video_grid_thw}
    return _placed(inputs, dataclasses.replace(row, pad_value=1), whole_batch=True)


def get_rope_index_ernie45(
    input_ids: Tensor, hf_config: Any, image_grid_thw: Any, video_grid_thw: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """The ids of prompts of Ernie 4.5 VL: `MRotaryEmbedding.get_rope_index_ernie45`.

    Source: sglang 0.5.23, srt/layers/rotary_embedding/mrope_rope_index.py.

    Args:
        input_ids: [B, S]; a video stands between the start and the end of a video, as image tokens.
        hf_config: of which `model_type`, `im_patch_id`, `video_start_token_id`, `video_end_token_id`, `spatial_conv_size` and
            `temporal_conv_size` are read.
        image_grid_thw, video_grid_thw: patch grids [n, 3] in the order of the batch, or None.

    Returns:
        position_ids [3, B, S] in the dtype of input_ids, and mrope_position_deltas [B, 1] int64, the largest id + 1 - S.
        Without grids [3, 1, S] and [1, 1], int64.

    Raises:
        ValueError: a config that lacks one of these, an unknown model type, tokens and grids that do not belong together.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from mmrope.adapters.sglang import get_rope_index_ernie45
        >>> config = SimpleNamespace(model_type="ernie4_5_moe_vl", im_patch_id=9, video_start_token_id=3, video_end_token_id=4)
        >>> config.spatial_conv_size = config.temporal_conv_size = 2
        >>> ids, delta = get_rope_index_ernie45(torch.tensor([[5, 1, 9, 9, 2]]), config, torch.tensor([[1, 2, 4]]), None)
        >>> ids[:, 0].tolist(), delta.tolist()
        ([[0, 1, 2, 2, 4], [0, 1, 2, 2, 4], [0, 1, 2, 3, 4]], [[0]])
    """
    _refuse(kwargs)
    tokens = {name: _read(hf_config, f"{name}_token_id") for name in ("video_start", "video_end")}
    row = family(
        family_of(_read(hf_config, "model_type")),
        spatial_merge=_read(hf_config, "spatial_conv_size"),
        temporal_merge=_read(hf_config, "temporal_conv_size"),
        token_ids=TokenIds(image=_read(hf_config, "im_patch_id"), **tokens),
    )
    return _placed({"input_ids": input_ids, "image_grid_thw": image_grid_thw, "video_grid_thw": video_grid_thw}, row)


def decode_positions(mrope_position_deltas: Tensor, seq_lens: Tensor) -> Tensor:
    """[3, B] ids of the last token of each sequence, delta - 1 + seq_len: what a decoding step computes of its requests.

    Source: sglang 0.5.23, srt/model_executor/forward_batch_info.py, `_compute_mrope_positions_decode`. There a fractional delta
    (Qwen3-Omni's) is cut to int64 first; here it is not, and the ids are float64.

    Args:
        mrope_position_deltas: [B] or [B, 1], 0 of text alone.
        seq_lens: [B] tokens of each sequence, the new one counted.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> import torch
        >>> from mmrope.adapters.sglang import decode_positions
        >>> decode_positions(torch.tensor([[-12], [0]]), torch.tensor([20, 7])).tolist()  # of two requests
        [[7, 6], [7, 6], [7, 6]]
    """
    deltas = torch.as_tensor(mrope_position_deltas)
    lengths = torch.as_tensor(seq_lens, device=deltas.device)
    if lengths.ndim != 1 or deltas.shape not in ((len(lengths),), (len(lengths), 1)):
        raise ValueError(
            f"mrope_position_deltas must be [B] or [B, 1] and seq_lens [B], got {list(deltas.shape)} and {list(lengths.shape)}"
        )
    exact = torch.float64 if deltas.is_floating_point() else torch.int64  # float32 has no whole ids past 2^24
    return (deltas.reshape(-1).to(exact) - 1 + lengths).repeat(3, 1)  # [3, B]


def _is_found_by_these(row: Family) -> bool:
    """Whether get_rope_index is told the ids of all tokens that say where the family's media are."""
    needed = {path for path in row.checkpoint.config if path.startswith("token_ids.")}
    return row.axes == "thw" and bool(needed) and needed <= _TOKENS


def _refuse(names: Any) -> None:
    if names:
        raise ValueError(f"unknown keywords {', '.join(sorted(names))}: SGLang's function has no use for them")


def _read(config: Any, name: str) -> Any:
    value = getattr(config, name, None)
    if value is None:
        raise ValueError(f"hf_config has no {name}: pass the checkpoint's own config, whose {name} is read here")
    return value


def _placed(
    inputs: Mapping[str, Any], row: Family, *, audio_in_video: bool = False, whole_batch: bool = False
) -> tuple[Tensor, Tensor]:
    """position_ids and deltas; without grids of one row, unless of the whole batch."""
    tokens = inputs["input_ids"]
    if not isinstance(tokens, Tensor):
        raise ValueError(f"input_ids must be a tensor [B, S], got {type(tokens).__name__}")
    given = {key: value for key, value in inputs.items() if value is not None}
    rows = segments_from_inputs(given, row, sync=True)
    if not audio_in_video and any(isinstance(more, AudioInVideo) for row in rows for _, _, _, more in row.items):
        raise ValueError("the markers say that a video has its audio in it, but use_audio_in_video is not set: pass True")
    positions = position_ids(rows, row)
    ids, deltas = torch.from_numpy(positions.ids), torch.from_numpy(rope_deltas(positions, length="padded"))
    if MEDIA["image"].grids in given or MEDIA["video"].grids in given:
        return ids.to(tokens.device, ids.dtype if row.fractional else tokens.dtype), deltas.to(tokens.device)
    rows_of_text = slice(None) if whole_batch else slice(1)
    return ids[:, rows_of_text].to(tokens.device, torch.int64), deltas[rows_of_text].to(tokens.device, torch.int64)
