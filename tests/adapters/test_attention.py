"""One pack through SDPA, FlexAttention and varlen kernels: each is attention on every sequence by itself."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import mmrope
from mmrope import Segment
from mmrope.adapters.attention import flex_block_mask, sdpa_mask, varlen
from tests.support import cases, lowest
from tests.support.strategies import rows as rows_of

ROWS = [[Segment.text(3), Segment.image(h=2, w=3)], [Segment.pad(2), Segment.text(5)], [Segment.text(140), Segment.pad(1)]]


def vectors(packed):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, len(packed.index), 8, generator=generator) for heads in (4, 2, 2)]


def one_by_one(packed, q, k, v):
    """Causal attention on each sequence alone, with what it is filled up by."""
    parts = [
        scaled_dot_product_attention(*(x[:, :, a:b] for x in (q, k, v)), is_causal=True, enable_gqa=True)
        for a, b in itertools.pairwise(packed.cu_seqlens_padded.tolist())
    ]
    return torch.cat(parts, dim=2)


@settings(max_examples=cases(30))
@given(rows=st.lists(rows_of(mmrope.family("qwen2_vl")), min_size=1, max_size=4), multiple=st.sampled_from((1, 2, 4)))
def test_a_token_attends_to_its_own_sequence_up_to_itself(rows, multiple):
    packed = mmrope.pack(rows, "qwen2_vl", multiple_of=multiple)
    [[mask]] = sdpa_mask(packed)
    expected = torch.zeros_like(mask)
    for a, b in itertools.pairwise(packed.cu_seqlens_padded.tolist()):
        expected[a:b, a:b] = torch.ones(b - a, b - a, dtype=torch.bool).tril()
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_backends_equal_attention_one_by_one(multiple):
    packed = mmrope.pack(ROWS, "qwen2_vl", multiple_of=multiple)
    q, k, v = vectors(packed)
    expected = one_by_one(packed, q, k, v)
    by_mask = scaled_dot_product_attention(q, k, v, attn_mask=sdpa_mask(packed), enable_gqa=True)
    torch.testing.assert_close(by_mask, expected)
    by_blocks = flex_attention(q, k, v, block_mask=flex_block_mask(packed), enable_gqa=True)
    torch.testing.assert_close(by_blocks, expected)


def test_blocks_between_sequences_are_left_out():
    packed = mmrope.pack([[Segment.text(256)], [Segment.text(256)]], "qwen2_vl")
    mask = flex_block_mask(packed)
    computed = mask.to_dense()[0, 0]  # [4, 4] blocks of 128 tokens
    assert torch.equal(computed.bool(), torch.block_diag(*[torch.ones(2, 2).tril()] * 2).bool())


@pytest.mark.parametrize(
    ("interface", "names"),
    [
        ("torch", ["cu_seq_q", "cu_seq_k", "max_q", "max_k", "window_size"]),
        ("flash_attn", ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "causal"]),
        ("transformers", ["cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"]),
    ],
)
def test_varlen_arguments(interface, names):
    packed = mmrope.pack(ROWS, "qwen2_vl", multiple_of=4)
    arguments = varlen(packed, interface)
    assert list(arguments) == names
    assert list(arguments.values())[4:] == {"torch": [(-1, 0)], "flash_attn": [True], "transformers": []}[interface]
    for boundaries, longest in zip(list(arguments.values())[:2], list(arguments.values())[2:4], strict=True):
        assert boundaries.dtype == torch.int32
        assert boundaries.tolist() == [0, 12, 20, 160]
        assert longest == 140


@lowest.newer_torch("varlen attention")
def test_the_names_are_those_of_torch_and_transformers():
    import inspect

    from torch.nn.attention.varlen import varlen_attn
    from transformers.utils.generic import TransformersKwargs

    packed = mmrope.pack(ROWS, "qwen2_vl")
    assert set(varlen(packed, "torch")) <= set(inspect.signature(varlen_attn).parameters)
    assert set(varlen(packed, "transformers")) <= set(TransformersKwargs.__annotations__)


def test_a_mask_that_is_added():
    packed = mmrope.pack(ROWS, "qwen2_vl")
    seen, added = sdpa_mask(packed), sdpa_mask(packed, dtype=torch.bfloat16)
    assert added.dtype == torch.bfloat16
    assert torch.equal(added == 0, seen)
    assert (added[~seen] == torch.finfo(torch.bfloat16).min).all()


def test_a_pack_of_nothing():
    packed = mmrope.pack([[]], "qwen2_vl")
    assert sdpa_mask(packed).shape == (1, 1, 0, 0)
    with pytest.raises(ValueError, match="the pack has no tokens: there is nothing to attend to"):
        flex_block_mask(packed)


def test_an_unknown_interface_is_refused():
    with pytest.raises(ValueError, match=r"interface must be one of \('torch', 'flash_attn', 'transformers'\), got 'xformers'"):
        varlen(mmrope.pack(ROWS, "qwen2_vl"), "xformers")  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
def test_varlen_attention_on_a_gpu():
    from torch.nn.attention.varlen import varlen_attn

    packed = mmrope.pack(ROWS, "qwen2_vl")
    q, _, _ = vectors(packed)
    q = q.to("cuda", torch.bfloat16)
    flat = q[0].transpose(0, 1).contiguous()  # [T, N, D]
    found = varlen_attn(flat, flat, flat, **varlen(packed, "torch", device="cuda"))
    torch.testing.assert_close(found.transpose(0, 1)[None], one_by_one(packed, q, q, q), atol=2e-2, rtol=2e-2)
