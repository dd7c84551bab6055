"""Batches of any processor with position ids in them: padded and packed, for every family, and what is refused."""

from __future__ import annotations

import importlib
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmrope
from mmrope import Segment
from mmrope.adapters.attention import sdpa_mask
from mmrope.adapters.transformers import PositionCollator, with_positions
from mmrope.adapters.upstreams import takes_text_row
from tests.support import cases, tiny_models
from tests.support.proof import agreed, logits, padded_and_packed, real
from tests.support.strategies import upstream_batches
from tests.support.upstream_ids import IN_TRANSFORMERS, as_inputs, with_tokens

FAMILIES = sorted(set(IN_TRANSFORMERS) - {"neomme"})
THREE_AXES = [name for name in FAMILIES if takes_text_row(with_tokens(name))]
PACKABLE = [name for name in THREE_AXES if not with_tokens(name).checkpoint.recurrent]
TEXT, IMAGE = Segment.text(3), Segment.image(h=2, w=3)


def tensors(rows, family):
    return {key: torch.as_tensor(value) for key, value in as_inputs(rows, family).items()}


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=cases(10))
@given(data=st.data())
def test_a_padded_batch_has_the_ids_of_its_rows(name, data):
    family = with_tokens(name)
    batch = tensors(data.draw(upstream_batches(family)), family)
    expected = mmrope.position_ids(mmrope.segments_from_inputs(batch, family), family)
    for text_row in (None, False):
        found = with_positions(batch, family, text_row=text_row)
        has_row = text_row is None and takes_text_row(family)
        np.testing.assert_array_equal(found["position_ids"].numpy(), mmrope.hf_position_ids(expected, text_row=has_row))
        assert {key: value for key, value in found.items() if key != "position_ids"} == batch


@pytest.mark.parametrize("name", THREE_AXES)
@settings(max_examples=cases(10))
@given(data=st.data(), multiple=st.sampled_from((1, 4)))
def test_a_packed_batch_holds_the_tokens_that_are_no_padding(name, data, multiple):
    family = with_tokens(name)
    batch = tensors(data.draw(upstream_batches(family)), family)
    batch["labels"] = batch["input_ids"] + 1
    found = with_positions(batch, family, packed=True, multiple_of=multiple)
    mask = batch["attention_mask"].bool()
    lengths = mask.sum(dim=1)
    assert "attention_mask" not in found
    assert found["use_cache"] is False
    starts = [0, *((lengths + multiple - 1) // multiple * multiple).cumsum(0).tolist()]
    assert found["input_ids"].shape == (1, starts[-1])
    packed = found["position_ids"][:, 0]
    for b, (start, end) in enumerate(itertools.pairwise(starts)):
        n = int(lengths[b])
        assert torch.equal(found["input_ids"][0, start : start + n], batch["input_ids"][b, mask[b]])
        assert torch.equal(packed[0, start:end], torch.arange(end - start))
        alone = mmrope.position_ids(mmrope.segments_from_inputs(batch, family)[b], family)
        np.testing.assert_array_equal(packed[1:, start : start + n], alone.ids[:, 0, mask[b].numpy()])
        if n:
            assert torch.equal(found["labels"][0, start + 1 : start + n], batch["labels"][b, mask[b]][1:])
        assert (found["labels"][0, [start, *range(start + n, end)] if end > start else []] == -100).all()


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKABLE)
def test_padded_and_packed_say_the_same(name):
    """Logits of every family's model, and with them the loss."""
    padded, packed = padded_and_packed(name, agreed(name))
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


RECURRENT = [name for name in FAMILIES if with_tokens(name).checkpoint.recurrent]


@pytest.mark.parametrize("name", RECURRENT)
def test_linear_attention_is_told_the_boundaries_and_needs_kernels_for_them(name):
    """Its state would run on from one sequence into the next, silently, if transformers were not told."""
    rows, family = agreed(name), with_tokens(name)
    model, inputs = tiny_models.model(name), tiny_models.inputs(name, rows)
    packed = with_positions(inputs, family, packed=True)
    with pytest.raises(ValueError, match=r"`causal_conv1d_fn` can't keep packed sequences apart without"):
        logits(model, packed)
    told = ("cu_seq_lens", "max_length", "seq_idx")
    untold = {key: value for key, value in packed.items() if not key.startswith(told)}
    padded = logits(model, with_positions(inputs, family))[real(rows)]
    first = sum(s.length for s in rows[0] if s.kind != "pad")
    torch.testing.assert_close(logits(model, untold)[0, :first], padded[:first], rtol=0, atol=1e-4)
    assert (logits(model, untold)[0] - padded)[first:].abs().max() > 0.1


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "qwen4_exp"])
def test_what_linear_attention_is_told_keeps_sequences_apart(name, monkeypatch):
    """Its kernels need a GPU: here transformers' own loops play them, sequence by sequence, by what the kernels read."""
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    rule, convolution = module.torch_chunk_gated_delta_rule, module.causal_conv1d_fn

    def by_sequence(q, k, v, *, g, beta, cu_seqlens, **options):
        kept = {key: options[key] for key in ("initial_state", "output_final_state", "use_qk_l2norm_in_kernel")}
        parts = [
            rule(q[:, a:b], k[:, a:b], v[:, a:b], g=g[:, a:b], beta=beta[:, a:b], **kept)[0]
            for a, b in itertools.pairwise(cu_seqlens.tolist())
        ]
        return torch.cat(parts, dim=1), None

    def convolved(x, weight, bias, *, activation, seq_idx, **options):
        parts = [convolution(x[..., seq_idx[0] == n], weight, bias, activation=activation) for n in seq_idx.unique()]
        return torch.cat(parts, dim=-1)

    rows = mmrope.collate([[TEXT, IMAGE, TEXT], [Segment.text(7)]], pad_side="right")
    padded = logits(tiny_models.model(name), with_positions(tiny_models.inputs(name, rows), with_tokens(name)))[real(rows)]
    monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", by_sequence)
    monkeypatch.setattr(module, "causal_conv1d_fn", convolved)
    packed = with_positions(tiny_models.inputs(name, rows), with_tokens(name), packed=True)
    torch.testing.assert_close(logits(tiny_models.model(name), packed)[0], padded, rtol=0, atol=1e-4)


def test_a_pack_by_its_mask():
    """HunYuan's model takes no row of text positions; a mask of four dimensions tells it the same."""
    family, rows = with_tokens("hunyuan_vl"), agreed("hunyuan_vl")
    model, inputs = tiny_models.model("hunyuan_vl"), tiny_models.inputs("hunyuan_vl", rows)
    packed = mmrope.pack(rows, family)
    batch = {
        "input_ids": torch.tensor(packed.take(inputs["input_ids"], 0))[None],
        "mm_token_type_ids": torch.tensor(packed.take(inputs["mm_token_type_ids"], 0))[None],
        "position_ids": torch.tensor(packed.ids)[:, None],
        "attention_mask": sdpa_mask(packed),
        **{key: inputs[key] for key in ("pixel_values", "image_grid_thw")},
    }
    with pytest.raises(ValueError, match=r"hunyuan_vl: its model in transformers takes 4 rows of ids .* use mmrope.pack"):
        with_positions(inputs, family, packed=True)
    padded = logits(model, with_positions(inputs, family))[real(rows)]
    torch.testing.assert_close(logits(model, batch)[0], padded, rtol=0, atol=1e-5)
    eager = tiny_models.model("hunyuan_vl", attn_implementation="eager")  # adds the mask
    batch["attention_mask"] = sdpa_mask(packed, dtype=torch.float32)
    torch.testing.assert_close(logits(eager, batch)[0], padded, rtol=0, atol=1e-5)


# --- what goes in -----------------------------------------------------------------------------------------------------


def test_a_collator_can_be_pickled_and_passes_its_arguments_on():
    collator = pickle.loads(pickle.dumps(PositionCollator(as_inputs, with_tokens("qwen2_vl"), packed=True)))
    found = collator([[TEXT, IMAGE], [Segment.text(9)]], with_tokens("qwen2_vl"), types=True)
    assert found["position_ids"].shape == (4, 1, 18)


def test_the_family_can_be_named_by_a_model_or_its_config():
    model = tiny_models.model("qwen2_5_vl")
    inputs = tiny_models.inputs("qwen2_5_vl", [[TEXT, IMAGE, TEXT]])
    by_model, by_config = (with_positions(inputs, source)["position_ids"] for source in (model, model.config))
    assert torch.equal(by_model, by_config)


def test_ids_that_are_there_are_checked_and_keys_of_our_own_go():
    family = with_tokens("qwen2_vl")
    batch = tensors([[TEXT, IMAGE, TEXT]], family)
    right = with_positions(batch, family, text_row=False)
    again = with_positions({**right, "next_position": torch.tensor([9]), "video_timestamps": []}, family)
    assert again["position_ids"].shape == (4, 1, 12)
    assert not {"next_position", "video_timestamps"} & set(again)
    with pytest.raises(mmrope.positions.WrongPositions, match=r"position_ids are not those of qwen2_vl"):
        with_positions({**batch, "position_ids": torch.arange(12).expand(3, 1, -1)}, family)


def test_a_tensor_that_may_be_by_token_must_be_named():
    family = with_tokens("qwen2_vl")
    batch = tensors([[TEXT, IMAGE], [Segment.text(9)]], family)
    weights = torch.rand(2, 9)
    with pytest.raises(
        ValueError, match=r"weights is \[2, 9\] like input_ids \[2, 9\]: .* per_token=\{'weights': fill\}, else"
    ):
        with_positions({**batch, "weights": weights}, family, packed=True)
    found = with_positions({**batch, "weights": weights}, family, packed=True, per_token={"weights": 0.0}, multiple_of=10)
    assert torch.equal(found["weights"][0], torch.cat([weights[0], torch.zeros(1), weights[1], torch.zeros(1)]))
    assert with_positions({**batch, "weights": weights}, family)["weights"] is weights


def test_arrays_become_tensors_and_what_is_none_is_left_out():
    family = with_tokens("qwen2_vl")
    batch = {**as_inputs([[TEXT, IMAGE], [Segment.text(9)]], family), "pixel_values": np.ones((24, 3)), "labels": None}
    batch["note"] = [[1, 2], [3]]
    for packed in (False, True):
        found = with_positions(batch, family, packed=packed, device="cpu")
        assert all(isinstance(value, torch.Tensor) for key, value in found.items() if key not in ("note", "use_cache"))
        assert "labels" not in found
    weights = torch.rand(2, 9, 4, dtype=torch.bfloat16, requires_grad=True)
    found = with_positions({**batch, "weights": weights}, family, packed=True, per_token={"weights": 0.0})
    assert found["weights"].shape == (1, 18, 4)
    assert found["weights"].dtype == torch.bfloat16
    assert found["weights"].requires_grad


def test_lists_are_packed_as_tensors_are():
    family = with_tokens("qwen2_vl")
    lists = {key: value.tolist() for key, value in as_inputs([[TEXT, IMAGE], [Segment.text(9)]], family).items()}
    found = with_positions({**lists, "labels": lists["input_ids"]}, family, packed=True)
    assert found["input_ids"].shape == found["labels"].shape == (1, 18)
    with pytest.raises(ValueError, match=r"weights is \[2, 9\] like input_ids"):
        with_positions({**lists, "weights": lists["input_ids"]}, family, packed=True)
    assert with_positions({**lists, "names": np.array(["a", "b"])}, family)["names"].tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="neomme is an encoder"):
        with_positions({"input_ids": torch.ones(1, 3, dtype=torch.long)}, "neomme", packed=True)


def test_families_are_known_when_a_collator_is_made():
    model = tiny_models.model("qwen2_5_vl")
    assert PositionCollator(as_inputs, model.config).family == PositionCollator(as_inputs, model).family
    with pytest.raises(ValueError, match="qwen2_vll"):
        PositionCollator(as_inputs, "qwen2_vll")
    with pytest.raises(ValueError, match="hunyuan_vl: its model in transformers takes 4 rows of ids, and no row of text"):
        with_positions(tensors([[TEXT]], with_tokens("hunyuan_vl")), with_tokens("hunyuan_vl"), text_row=True)


def test_packs_need_the_text_row():
    with pytest.raises(ValueError, match="packs need the row of text positions"):
        with_positions(tensors([[TEXT]], with_tokens("qwen2_vl")), with_tokens("qwen2_vl"), packed=True, text_row=False)
