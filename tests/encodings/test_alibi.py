"""ALiBi: slopes, bias, mask and score_mod."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from mmrope.encodings import alibi_bias, alibi_score_mod, alibi_slopes


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [0.00390625]),
        (2, [0.0625, 0.00390625]),
        (4, [0.25, 0.0625, 0.015625, 0.00390625]),
        (8, [2.0**-i for i in range(1, 9)]),
        (12, [*(2.0**-i for i in range(1, 9)), 0.70710678, 0.35355339, 0.1767767, 0.08838835]),
        (16, [2 ** (-i / 2) for i in range(1, 17)]),
    ],
)
def test_published_slopes(heads, slopes):
    torch.testing.assert_close(alibi_slopes(heads), torch.tensor(slopes, dtype=torch.float32), rtol=1e-6, atol=0)


@given(st.integers(1, 200))
def test_slopes_are_there_for_any_number_of_heads(heads):
    slopes = alibi_slopes(heads)
    assert slopes.shape == (heads,)
    assert ((slopes > 0) & (slopes < 1)).all()
    assert len(set(slopes.tolist())) == heads
    if heads & (heads - 1) == 0 and heads > 1:
        torch.testing.assert_close(slopes[1:] / slopes[:-1], torch.full((heads - 1,), 2 ** (-8 / heads)))


@given(st.integers(1, 12), st.integers(1, 6), st.booleans())
def test_the_bias_is_of_distance_alone(tokens, heads, causal):
    bias = alibi_bias(alibi_slopes(heads), torch.arange(tokens + 3), causal=causal)
    assert torch.equal(bias[:, 1:, 1:], bias[:, :-1, :-1])
    assert (bias.diagonal(dim1=1, dim2=2) == 0).all()
    assert torch.equal(alibi_bias(alibi_slopes(heads), torch.arange(tokens), causal=causal), bias[:, :tokens, :tokens])
    future = torch.ones(tokens + 3, tokens + 3).triu(1).bool()
    assert (bias[:, future] == -math.inf).all() == causal
    if not causal:
        assert torch.equal(bias, bias.mT)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # slow, not wrong
def test_the_mask_and_the_score_mod_are_the_definition():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 16)
    slopes, places = alibi_slopes(4), torch.arange(9)
    scores = q @ k.mT / 4 - slopes[:, None, None] * (places[:, None] - places).abs()
    causal = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf).softmax(-1) @ v
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, attn_mask=alibi_bias(slopes, places)), causal)
    both_ways = flex_attention(q, k, v, score_mod=alibi_score_mod(slopes, places))
    torch.testing.assert_close(both_ways, scores.softmax(-1) @ v)


def test_a_cached_step_sees_the_row_of_the_whole():
    slopes = alibi_slopes(4)
    step = alibi_bias(slopes, torch.tensor([8]), torch.arange(9))
    assert torch.equal(step, alibi_bias(slopes, torch.arange(9))[:, 8:])
    rows = torch.tensor([[0, 1, 2], [5, 6, 7]])
    assert alibi_bias(slopes, rows).shape == (2, 4, 3, 3)


def test_refusals():
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        alibi_slopes(0)
    with pytest.raises(
        ValueError, match=r"positions must be \[Q\] and \[K\], or \[B, Q\] and \[B, K\], got \[1, 2\] and \[2\]"
    ):
        alibi_bias(alibi_slopes(1), torch.zeros(1, 2), torch.zeros(2))


def test_bfloat16_slopes_are_rounded_at_the_end():
    slopes = alibi_slopes(8).to(torch.bfloat16)
    bias = alibi_bias(slopes, torch.arange(1000), causal=False)
    assert bias.dtype == torch.bfloat16
    torch.testing.assert_close(bias[:, 0, 999].float(), -999 * slopes.float(), rtol=2**-8, atol=0)
