"""A pack is its sequences: padded, packed and one by one give the same loss and the same gradients, for every family."""

from __future__ import annotations

import importlib
import inspect
import itertools
import random

import pytest
import torch

import mmrope
from mmrope import Segment
from mmrope.preprocess import pack_batches
from mmrope.vlm import attention
from mmrope.vlm.layers import run_block
from mmrope.vlm.variants import FlatIds
from tests.support import PROOF, lowest, released, tiny_models
from tests.support.upstream_ids import with_tokens

KEYS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


FIRST = [(name, next(iter(options))) for name, options in released.OPTIONS.items()]
"""An option of each family."""


@pytest.fixture(scope="module", params=released.CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def model(request, tmp_path_factory):
    """A random model of a family, in training mode."""
    name, option = request.param
    made = released.ours(released.upstream(name, option), tmp_path_factory.mktemp("model")).train()
    made.name = name
    return made


def rows_of(name, seed, count=5):
    """Model inputs of rows of different media, one of text alone, with labels of some tokens."""
    draw, rows = random.Random(seed), []
    for n in range(count):
        row = released.batch(name, seed=seed * 100 + n, rows=1) if n != 2 else plain(name, draw)
        labels = torch.where(torch.rand(row["input_ids"].shape) < 0.7, row["input_ids"], -100)
        rows.append({**row, "labels": labels.masked_fill(row["mm_token_type_ids"] != 0, -100)})
    return rows


def plain(name, draw):
    family = with_tokens(name)
    segments = [[Segment.text(draw.randint(1, 30))]]
    return {**tiny_models.inputs(name, segments, seed=0), **mmrope.position_ids(segments, family).torch()}


def padded(rows, side):
    """The same rows as one batch."""
    length = max(row["input_ids"].shape[1] for row in rows)
    fills = {"input_ids": 0, "mm_token_type_ids": 0, "labels": -100, "attention_mask": 0, "position_ids": 0}

    def fill(value, by):
        free = length - value.shape[-1]
        return torch.nn.functional.pad(value, (free, 0) if side == "left" else (0, free), value=by)

    batch = {key: torch.cat([fill(row[key], by) for row in rows], dim=int(key == "position_ids")) for key, by in fills.items()}
    batch |= {key: torch.cat([row[key] for row in rows if key in row]) for key in KEYS if any(key in row for row in rows)}
    if side == "left":  # the first token of a row does not follow from padding
        for b, row in enumerate(rows):
            batch["labels"][b, length - row["input_ids"].shape[1]] = -100
    return batch


def learned(model, inputs):
    """The loss, and all gradients, of which one that is missing is none."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters()), "every parameter takes part in training"
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_padded_packed_and_one_by_one_are_one(model):
    rows = rows_of(model.name, seed=7)
    [pack] = pack_batches(rows, max_tokens=100_000)
    counts = [int((row["labels"][:, 1:] != -100).sum()) for row in rows]
    alone = [learned(model, row) for row in rows]
    loss = sum(one * n for (one, _), n in zip(alone, counts, strict=True)) / sum(counts)
    gradients = sum(one * n for (_, one), n in zip(alone, counts, strict=True)) / sum(counts)
    for inputs in (pack, padded(rows, "right"), padded(rows, "left")):
        found = learned(model, inputs)
        torch.testing.assert_close(found[0], loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[1], gradients, rtol=0, atol=1e-4 * gradients.abs().max().item())


@pytest.mark.parametrize("model", released.CASES if PROOF else FIRST, ids=str, indirect=True)
def test_recomputing_blocks_changes_nothing_but_memory(model):
    """Gradient checkpointing, of both halves."""
    [pack] = pack_batches(rows_of(model.name, seed=3), max_tokens=100_000)
    expected, kept = learned(model, pack), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        model(**pack)
    most, kept[:] = sum(kept), []
    model.gradient_checkpointing_enable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            model(**pack)
        found = learned(model, pack)
    finally:
        model.gradient_checkpointing_disable()
    assert sum(kept) < 0.6 * most
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6 * expected[1].abs().max().item())
    assert not model.decoder.recompute
    assert not model.vision.recompute


@pytest.mark.parametrize("model", released.CASES if PROOF else FIRST, ids=str, indirect=True)
def test_sequences_of_a_pack_do_not_see_each_other(model):
    rows = rows_of(model.name, seed=5, count=2)
    with torch.no_grad():
        [pack] = pack_batches(rows, max_tokens=100_000)
        [turned] = pack_batches([{**rows[0], "input_ids": rows[0]["input_ids"].flip(1)}, rows[1]], max_tokens=100_000)
        cut = rows[0]["input_ids"].shape[1]
        one, other = model(**pack).logits, model(**turned).logits
    torch.testing.assert_close(one[:, cut:], other[:, cut:], rtol=0, atol=1e-5)  # experts' products are of other sizes
    assert (one[:, :cut] - other[:, :cut]).abs().max() > 0.1


# --- on a GPU ---------------------------------------------------------------------------------------------------------


class OnAGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@lowest.newer_torch("varlen_attn came with 2.10")
@pytest.mark.parametrize("causal", [False, True])
def test_the_varlen_kernel_is_told_where_sequences_are(causal, monkeypatch):
    """What it is called with, in torch's own signature; the numbers need a GPU (test_gpu_model.py)."""
    varlen = importlib.import_module("torch.nn.attention.varlen")
    lengths, called = [3, 5, 1], []

    def kernel(*args, **options):
        inspect.signature(varlen.varlen_attn).bind(*args, **options)
        q, k, v, cu_q, cu_k, longest, _ = args
        called.append(options)
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(x[a:b].transpose(0, 1) for x in (q, k, v)), is_causal=options["window_size"] == (-1, 0), enable_gqa=True
            ).transpose(0, 1)
            for a, b in itertools.pairwise(cu_q.tolist())
        ]
        assert cu_q is cu_k
        assert cu_q.dtype == torch.int32
        assert longest == 5
        return torch.cat(parts)

    monkeypatch.setattr(attention, "_VARLEN", kernel)
    look = attention.packed_attention(lengths, torch.device("cpu"), causal=causal)
    for dtype, times in ((torch.float32, 0), (torch.bfloat16, 1)):
        q, k, v = torch.randn(1, 4, 9, 8).to(dtype), *torch.randn(2, 1, 2, 9, 8).to(dtype)
        with torch.no_grad():
            expected = look(q, k, v)
            found = look(*(x.as_subclass(OnAGpu) for x in (q, k, v))).as_subclass(torch.Tensor)
        torch.testing.assert_close(found, expected)
        assert called == [{"window_size": (-1, 0 if causal else -1), "enable_gqa": True}] * times


# --- one model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return released.ours(released.upstream("qwen2_5_vl", "windows"), tmp_path_factory.mktemp("model")).train()


@pytest.mark.parametrize(("name", "option"), FIRST if PROOF else FIRST[1:2])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo looks
def test_blocks_compile_without_a_graph_break(name, option, tmp_path):
    """Both halves, with a mask of padding and as packs of other lengths, in bfloat16, forward and backward."""
    made = released.ours(released.upstream(name, option), tmp_path).train()
    rows = rows_of(name, seed=2, count=3)
    batches = [padded(rows, "right"), *pack_batches(rows, max_tokens=100_000)]
    batches += pack_batches(rows_of(name, seed=4, count=3), max_tokens=100_000) if PROOF else []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = [learned(made, batch) for batch in batches]
    torch.compiler.reset()
    blocks = [made.decoder.blocks[0], made.vision.blocks[1]]
    for block in blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [learned(made, batch) for batch in batches]
    for (loss, gradients), (right, theirs) in zip(found, expected, strict=True):
        torch.testing.assert_close(loss, right, rtol=1e-2, atol=1e-2)
        assert (gradients - theirs).norm() < 0.05 * theirs.norm()


def test_1d_positions_count_each_sequence(one):
    flat = FlatIds(one.config).train()
    flat.load_state_dict(one.state_dict())
    rows = rows_of("qwen2_5_vl", seed=1, count=3)
    [pack] = pack_batches(rows, max_tokens=100_000)
    with torch.no_grad():
        logits = flat(**pack).logits
        torch.testing.assert_close(logits, torch.cat([flat(**row).logits for row in rows], dim=1), rtol=0, atol=2e-5)


def test_what_is_no_pack_is_refused(one):
    [pack] = pack_batches(rows_of("qwen2_5_vl", seed=1, count=2), max_tokens=100_000)
    tokens = pack["input_ids"].shape[1]
    with pytest.raises(
        ValueError, match=f"cu_seqlens end at {tokens - 1}, but input_ids are \\[1, {tokens}\\]: a pack is one row"
    ):
        one(**{**pack, "cu_seqlens": torch.tensor([0, tokens - 1])})
    with pytest.raises(ValueError, match="cu_seqlens must begin with 0 and never fall"):
        one(**{**pack, "cu_seqlens": torch.tensor([0, tokens, 5])})
    with pytest.raises(ValueError, match=r"a pack .* has no padding: leave attention_mask out"):
        one(**pack, attention_mask=torch.ones(1, tokens))
    with pytest.raises(ValueError, match=r"a pack .* is for training: give no cache"):
        one(**pack, cache=mmrope.vlm.KVCache())
    pack.pop("labels")
    with pytest.raises(ValueError, match=r"a pack .* is for training: generate from rows that are padded on the left"):
        one.generate(**pack, attention_mask=torch.ones(1, tokens), next_position=torch.tensor([5]))


def test_empty_sequences_are_no_sequences(one):
    [pack] = pack_batches(rows_of("qwen2_5_vl", seed=1, count=2), max_tokens=100_000)
    a, b, c = pack["cu_seqlens"].tolist()
    with torch.no_grad():
        expected = one(**{**pack, "cu_seqlens": torch.tensor([a, b, c])}).loss
        assert torch.equal(one(**{**pack, "cu_seqlens": torch.tensor([a, a, b, b, c, c])}).loss, expected)


def test_dataparallel_is_told_apart(one):
    """What DataParallel makes of a model on each GPU."""
    replica = one._replicate_for_data_parallel()
    with pytest.raises(ValueError, match=r"DataParallel cuts every input along its first dimension.*torchrun"):
        replica(**plain("qwen2_5_vl", random.Random(0)))
    wrapped = torch.nn.DataParallel(one)
    with pytest.raises(ValueError, match=r"wrapped in DataParallel.*accelerate launch"):
        mmrope.adapters.family_of_model(wrapped)


def test_text_alone_moves_no_media(one):
    """In training it goes through the vision encoder, times nothing: the logits are those of evaluation, gradients are zero."""
    inputs = {**plain("qwen2_5_vl", random.Random(0))}
    logits = one(**inputs).logits
    with torch.no_grad():
        assert torch.equal(logits, one(**inputs).logits)
    one.zero_grad()
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in one.vision.parameters())


def test_without_gradients_nothing_is_recomputed():
    calls = []
    block = lambda x: calls.append(1) or x.sin()  # noqa: E731
    with torch.no_grad():
        run_block(block, torch.ones(1, requires_grad=True), recompute=True)
    assert calls == [1]
    run_block(block, torch.ones(1, requires_grad=True), recompute=True).backward()
    assert calls == [1, 1, 1]
