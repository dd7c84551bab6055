"""Into vLLM: a request's position ids from what its models get, and those of the tokens that come after.

vLLM is not imported: its features are read by their attributes.

What is the same as in vLLM 0.33: arguments, shapes, dtypes, and the ids of `family("...@vllm-0.33")` where the table has that
revision, of the reference elsewhere; tests/references/serving holds what its models return, and names what they do otherwise.

What is not: prompts whose video tokens were pruned (EVS, `video_pruning_rate`) are refused, as is a video without its seconds
where the family places by time (vLLM takes 1, or 2, seconds a grid) and a request whose data stayed in a cache. Audio in video
is placed as its tokens lie, by reference rules alone. Not covered: `recompute_mrope_positions`, MiniCPM's canvases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrope.adapters import family_of_model
from mmrope.positions.build import largest_ids, plan, write_row
from mmrope.positions.inputs import Span, on_host, segments_from_spans
from mmrope.positions.rules import Family
from mmrope.positions.segments import MEDIA
from mmrope.positions.stated import whole

_SECONDS = "second_per_grid_ts"


def get_mrope_input_positions(
    input_tokens: Sequence[int], mm_features: Sequence[Any], family: Family | Any
) -> tuple[Tensor, int]:
    """The ids of a prompt, and how far text after it lies from its place: `SupportsMRoPE.get_mrope_input_positions`.

    Source: vllm 0.33.0, model_executor/models/interfaces.py and the models.

    Args:
        input_tokens: the prompt's token ids [n], with all placeholders; they are counted, not looked at.
        mm_features: vLLM's `MultiModalFeatureSpec`s in any order, or Spans. Of each are read `modality`, `mm_position`
            (`offset`, `length`, `is_embed`) and of `data` the patch grid, `image_grid_thw` or `video_grid_thw` [3], and
            `second_per_grid_ts` in seconds. An audio has as many tokens as its placeholder.
        family: whose rule, for example "qwen2_vl" or "qwen2_5_vl@vllm-0.33", or a Family; of a config, that checkpoint's.

    Returns:
        ids [A, n] int64, one row per axis (t, h, w), and mrope_position_delta, the largest id + 1 - n (of rules by which text
        continues behind the time alone, that id - n).

    Raises:
        ValueError: as `segments_from_spans` (pruned tokens, missing grids or seconds, media that the family does not place); a
            feature without data; a family with fractional ids, which vLLM's buffers cannot hold, or ids below 0, which its
            tables do not have.

    Example:
        >>> from mmrope import Span
        >>> from mmrope.adapters.vllm import get_mrope_input_positions
        >>> ids, delta = get_mrope_input_positions([5, 1, 9, 9, 2], [Span(offset=2, length=2, grid=(1, 2, 4))], "qwen2_vl")
        >>> ids.tolist(), delta
        ([[0, 1, 2, 2, 4], [0, 1, 2, 2, 4], [0, 1, 2, 3, 4]], 0)
    """
    family = family_of_model(family)
    if family.fractional:
        raise ValueError(
            f"{family} has fractional ids, but vLLM's are int64: take the rule that vLLM computes instead, the family's "
            "revision for vLLM, if there is one"
        )
    spans = sorted((_span(feature, n) for n, feature in enumerate(mm_features)), key=lambda span: span.offset)
    tokens = len(input_tokens)
    [(placed, following, _)] = plans = plan([segments_from_spans(tokens, spans, family)], family)
    ids, no_mask = np.empty((len(family.axes), tokens), dtype=np.int64), np.zeros(0, dtype=bool)  # spans hold no padding
    write_row(ids, no_mask, placed, following, tokens, family, 0, tokens)
    if ids.size and ids.min() < 0:
        raise ValueError(f"{family} has ids below 0 here (its grids are centred), and vLLM's tables of cosines begin at 0")
    [largest] = largest_ids(plans, family)
    after = following if family.advance == "time" else largest + 1  # where vLLM continues, whatever the rule
    return torch.from_numpy(ids), int(after) - tokens


def _span(feature: Any, n: int) -> Span:
    if isinstance(feature, Span):
        return feature
    try:
        kind, data, place = feature.modality, feature.data, feature.mm_position
        offset, length, embed = place.offset, place.length, place.is_embed
    except AttributeError as error:
        raise ValueError(f"mm_features[{n}] is no MultiModalFeatureSpec of vLLM and no Span: {error}") from None
    where, keys = f"mm_features[{n}] ({kind} at {offset})", (MEDIA[kind].grids if kind in MEDIA else kind, _SECONDS)
    stated = {"data": None} if data is None else {key: data[key].data for key in keys if key in data}
    if any(value is None for value in stated.values()):
        raise ValueError(
            f"{where} has no data, which vLLM leaves out where its engine has them in a cache: pass it as the processor made it"
        )
    if embed is not None:
        stated["is_embed"] = embed
    host: dict[str, Any] = on_host(stated, sync=True)  # vLLM keeps these on the CPU
    grid, seconds = (host.get(key) for key in keys)
    if grid is not None and grid.shape != (3,):
        raise ValueError(f"{where}: its patch grid must be t, h, w [3], got {list(grid.shape)}")
    return Span(
        offset,
        length,
        None if grid is None else tuple(grid.tolist()),
        kind,
        embed=host.get("is_embed"),
        seconds_per_grid=None if seconds is None else seconds.item(),
    )


# --- the tokens that come after ---------------------------------------------------------------------------------------


def get_next_input_positions(mrope_position_delta: int, context_len: int, seq_len: int, *, axes: int = 3) -> list[list[int]]:
    """The ids of the text tokens context_len .. seq_len - 1 of a sequence: `MRotaryEmbedding.get_next_input_positions`.

    Source: vllm 0.33.0, model_executor/layers/rotary_embedding/mrope.py.

    Args:
        mrope_position_delta: of the prompt, from `get_mrope_input_positions`.
        context_len: tokens before, the prompt's at least.
        seq_len: tokens with the new ones.
        axes: of the family: 4 of HunYuan's, whose prompts have four rows of ids.

    Returns:
        [axes][seq_len - context_len], each the same. They go on after the prompt's largest id; by rules that let text go on
        elsewhere (after audio in video, or by a video's time) `Positions.next` says where.

    Raises:
        ValueError: numbers that are not whole, lengths out of order, ids below 0.

    Example:
        >>> from mmrope.adapters.vllm import get_next_input_positions
        >>> get_next_input_positions(-12, context_len=20, seq_len=22)
        [[8, 9], [8, 9], [8, 9]]
    """
    first, count = _next(mrope_position_delta, context_len, whole(seq_len, "seq_len") - whole(context_len, "context_len"))
    return [list(range(first, first + count)) for _ in range(whole(axes, "axes", least=1))]


def get_next_input_positions_tensor(
    out: np.ndarray, out_offset: int, mrope_position_delta: int, context_len: int, num_new_tokens: int
) -> None:
    """The same, written into the columns out_offset .. out_offset + num_new_tokens - 1 of a buffer:
    `MRotaryEmbedding.get_next_input_positions_tensor`.

    Source: vllm 0.33.0, model_executor/layers/rotary_embedding/mrope.py.

    Args:
        out: [A, columns] of whole numbers (vLLM: int64), strided as it may be.
        out_offset: the first column to write.
        mrope_position_delta: of the prompt, from `get_mrope_input_positions`.
        context_len: tokens before, the prompt's at least.
        num_new_tokens: tokens to place.

    Raises:
        ValueError: numbers that are not whole, ids below 0 or too large for the dtype of `out`, columns that it has not.

    Example:
        >>> import numpy as np
        >>> from mmrope.adapters.vllm import get_next_input_positions_tensor
        >>> out = np.zeros((3, 4), dtype=np.int64)
        >>> get_next_input_positions_tensor(out, 1, mrope_position_delta=-12, context_len=20, num_new_tokens=2)
        >>> out.tolist()
        [[0, 8, 9, 0], [0, 8, 9, 0], [0, 8, 9, 0]]
    """
    if not isinstance(out, np.ndarray) or out.ndim != 2 or out.dtype.kind not in "iu":
        what = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be a numpy array [axes, columns] of whole numbers, got {what}")
    begin = whole(out_offset, "out_offset")
    first, count = _next(mrope_position_delta, context_len, num_new_tokens)
    if begin < 0 or begin + count > out.shape[1]:
        raise ValueError(f"columns {begin}..{begin + count - 1} are not within the {out.shape[1]} of out")
    if count and first + count - 1 > np.iinfo(out.dtype).max:
        raise ValueError(f"position id {first + count - 1:,} does not fit {out.dtype}, the dtype of out")
    out[:, begin : begin + count] = np.arange(first, first + count, dtype=out.dtype)


def _next(delta: int, context: int, count: int) -> tuple[int, int]:
    """The first of the new ids, and how many there are."""
    delta, context = whole(delta, "mrope_position_delta"), whole(context, "context_len")
    if context < 0 or whole(count, "num_new_tokens") < 0:
        raise ValueError(f"there are {context} tokens before and {count} new ones: neither may be less than 0")
    if delta + context < 0:
        raise ValueError(
            f"mrope_position_delta {delta} after {context} tokens is the id {delta + context}: is it another prompt's, or are "
            "they not all of its tokens?"
        )
    return delta + context, count
