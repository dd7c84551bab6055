"""ALiBi (arXiv 2108.12409): attention that fades with distance, by a bias on the logits and no encoding of positions at all."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmrope.encodings.angles import check_ids_dtype


def alibi_slopes(heads: int) -> Tensor:
    """[heads] float32, how fast each head's attention fades: 2^(-8 i / heads), i = 1 .. heads.

    Of a number that is no power of two: those of the largest power below it, and then every other one of twice that power, as
    in the authors' code (ofirpress/attention_with_linear_biases, get_slopes).

    Example:
        >>> from mmrope.encodings import alibi_slopes
        >>> alibi_slopes(4).tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
    """
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2 ** (-4 * i / power) for i in range(1, 2 * power, 2)][: heads - power]
    return torch.tensor(slopes, dtype=torch.float32)


def alibi_bias(slopes: Tensor, q_positions: Tensor, k_positions: Tensor | None = None, *, causal: bool = True) -> Tensor:
    """The bias that is added to the logits, after they were divided by sqrt(head_dim): -slope * |q position - k position|.

    Args:
        slopes: [N].
        q_positions, k_positions: [Q] and [K], or [B, Q] and [B, K]; those of the keys are those of the queries by default.
        causal: also hide keys after a query, by -inf: an `attn_mask` for scaled_dot_product_attention.

    Returns:
        [N, Q, K] or [B, N, Q, K], of slopes' dtype.

    Example:
        >>> import torch
        >>> from mmrope.encodings import alibi_bias
        >>> alibi_bias(torch.tensor([0.5]), torch.arange(3))[0].tolist()  # of one head
        [[-0.0, -inf, -inf], [-0.5, -0.0, -inf], [-1.0, -0.5, -0.0]]
    """
    k_positions = q_positions if k_positions is None else k_positions
    if q_positions.ndim not in (1, 2) or q_positions.ndim != k_positions.ndim:
        raise ValueError(
            f"positions must be [Q] and [K], or [B, Q] and [B, K], got {list(q_positions.shape)} and {list(k_positions.shape)}"
        )
    for name, positions in (("q_positions", q_positions), ("k_positions", k_positions)):
        check_ids_dtype(positions, name)
    # small unsigned integers would wrap
    q_positions, k_positions = (x if x.is_floating_point() else x.to(torch.int64) for x in (q_positions, k_positions))
    distance = (q_positions[..., :, None] - k_positions[..., None, :]).unsqueeze(-3)  # [..., 1, Q, K]
    bias = -slopes.to(torch.float32)[:, None, None] * distance.abs()  # [..., N, Q, K]
    return (bias.masked_fill(distance < 0, -math.inf) if causal else bias).to(slopes.dtype)


def alibi_score_mod(slopes: Tensor, q_positions: Tensor, k_positions: Tensor | None = None) -> Callable[..., Tensor]:
    """The same bias as a `score_mod` of FlexAttention; causality is its block mask's.

    Args:
        slopes: [N].
        q_positions, k_positions: [Q] and [K], on the device of the attention.

    Example:
        >>> import torch
        >>> from mmrope.encodings import alibi_score_mod
        >>> score_mod = alibi_score_mod(torch.tensor([0.5]), torch.arange(4))
        >>> query, key = torch.tensor(3), torch.tensor(1)
        >>> score_mod(torch.tensor(2.0), None, torch.tensor(0), query, key).item()  # 2 - 0.5 * |3 - 1|
        1.0
    """
    keys = q_positions if k_positions is None else k_positions
    for name, positions in (("q_positions", q_positions), ("k_positions", keys)):
        check_ids_dtype(positions, name)
    q_positions, keys = (x if x.is_floating_point() else x.to(torch.int64) for x in (q_positions, keys))

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score - slopes[head] * (q_positions[q] - keys[k]).abs()

    return score_mod
