"""Where the decoder looks: the attention weights of a token, which the fast kernels do not hand out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mmrope.positions.segments import MEDIA
from mmrope.preprocess.messages import Messages
from mmrope.preprocess.processor import Processor
from mmrope.vlm.attention import attend, causal_mask
from mmrope.vlm.decoder import DecoderBlock
from mmrope.vlm.inputs import check_inputs
from mmrope.vlm.model import VLM


@torch.no_grad()
def attention_weights(model: VLM, inputs: Mapping[str, Any], *, query: int = -1) -> Tensor:
    """How much a token attends to each, in every layer and head.

    Args:
        inputs: a Processor's output.
        query: which token's attention; the last one's decides what is written next.

    Returns:
        [layers, B, heads, S], each row's sum is 1.

    Example:
        >>> from mmrope import VLM, Processor
        >>> from mmrope.vlm import attention_weights
        >>> inputs = Processor()([{"role": "user", "content": "Hello"}])
        >>> weights = attention_weights(VLM(), inputs)
        >>> tuple(weights.shape), round(weights[0, 0, 0].sum().item(), 3)
        ((4, 1, 8, 24), 1.0)
    """
    check_inputs(inputs)
    x, deep = model.embed(inputs)  # [B, S, hidden]
    decoder, weights = model.decoder, []
    turn = decoder.turn(inputs["position_ids"])
    mask = causal_mask(x.shape[1], 0, inputs.get("attention_mask"), x.device)  # [B, 1, S, S]
    look = partial(attend, mask=mask)
    for layer, block in enumerate(decoder.blocks):
        assert isinstance(block, DecoderBlock)
        q, k, _ = block.project(x, turn)  # [B, N, S, D], [B, K, S, D]
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [B, N, S, D]
        scores = torch.einsum("bnd,bnsd->bns", q[:, :, query], k).float() * k.shape[-1] ** -0.5  # [B, N, S]
        weights.append(scores.masked_fill(~mask[:, :, query], -torch.inf).softmax(dim=-1))
        x = decoder.step(layer, x, turn, look, deep=deep)
    return torch.stack(weights)  # [layers, B, N, S]


@dataclass(frozen=True, eq=False)
class Looked:
    """An image or a video of a conversation, as the model sees it, and how much the decoder looked at each of its tokens.

    Example:
        >>> import numpy as np
        >>> from mmrope.vlm import Looked
        >>> weights = np.zeros((2, 4, 1, 2, 3))  # 2 layers, 4 heads, a frame of 2 x 3 tokens
        >>> weights[1, 3, 0, 1, 2] = 0.7
        >>> looked = Looked(np.zeros((1, 56, 84, 3), np.uint8), weights)
        >>> [int(i) for i in np.unravel_index(looked.weights.argmax(), looked.weights.shape)]  # where the largest share is
        [1, 3, 0, 1, 2]
    """

    pixels: np.ndarray
    """uint8 [T, H, W, 3]"""
    weights: np.ndarray
    """[layers, heads, T, rows, columns]; over all media and text they sum up to 1."""


def check_looks(model: VLM, processor: Processor) -> None:
    """That `looked_at` can show where this model looks.

    Raises:
        ValueError: a processor or a model of another kind.
    """
    frames = model.config.vision.patches.temporal_patch_size
    if frames != 1 or processor.pixels != "uint8":
        raise ValueError(
            "looks are drawn over the patches, which must be bytes of single frames: they need a Processor(pixels='uint8') "
            f"and temporal_patch_size 1, got pixels={processor.pixels!r} and {frames}"
        )


def looked_at(model: VLM, processor: Processor, messages: Messages) -> list[Looked]:
    """Where the decoder looks when it writes the first token of its next answer.

    Args:
        model: of patches of one frame (temporal_patch_size 1).
        processor: with pixels="uint8".
        messages: a conversation whose last message is the user's.

    Returns:
        The images and videos of the conversation in their order.

    Raises:
        ValueError: a processor or a model of another kind.

    Example:
        >>> import numpy as np
        >>> import mmrope
        >>> from mmrope.vlm import VisionConfig, VLMConfig, looked_at
        >>> patches = mmrope.preprocess.PatchConfig(temporal_patch_size=1)
        >>> family = mmrope.family("qwen2_5_vl", frames_per_grid=1)
        >>> processor = mmrope.Processor(family=family, patches=patches, pixels="uint8")
        >>> model = mmrope.VLM(VLMConfig(vision=VisionConfig(patches=patches)))
        >>> content = [{"type": "image", "image": np.zeros((56, 84, 3), np.uint8)}]
        >>> [looked] = looked_at(model, processor, [{"role": "user", "content": content}])
        >>> looked.pixels.shape, looked.weights.shape
        ((1, 56, 84, 3), (4, 8, 1, 2, 3))
    """
    check_looks(model, processor)
    config = model.config.vision.patches
    inputs = processor(messages, add_generation_prompt=True).to(model.device)
    weights = attention_weights(model, inputs)[:, 0]  # [layers, heads, S]
    types = inputs["mm_token_type_ids"][0]
    m, p = config.merge_size, config.patch_size
    looked: dict[int, list[Looked]] = {}
    for kind in (MEDIA["image"], MEDIA["video"]):
        if kind.pixels not in inputs:
            continue
        grids = inputs[kind.grids].tolist()
        patches = inputs[kind.pixels].split([t * h * w for t, h, w in grids])
        shares = weights[..., types == kind.token_type].split([t * h * w // m**2 for t, h, w in grids], dim=-1)
        for (t, h, w), cut, share in zip(grids, patches, shares, strict=True):
            sizes = {"t": t, "h": h // m, "w": w // m, "m": m, "n": m, "p": p, "q": p}
            pixels = rearrange(cut, "(t h w m n) (c p q) -> t (h m p) (w n q) c", **sizes)  # [T, H, W, 3]
            places = rearrange(share, "l n (t h w) -> l n t h w", t=t, h=h // m)  # [layers, heads, T, rows, columns]
            looked.setdefault(kind.token_type, []).append(Looked(pixels.cpu().numpy(), places.cpu().numpy()))
    order = types[(types > 0) & (inputs["input_ids"][0].roll(1) == processor.tokenizer.special["<|vision_start|>"])]
    return [looked[kind].pop(0) for kind in order.tolist()]
