"""Released checkpoints on VLM: what transformers' models say, ours say. Random models of every family and option, weights drawn
wide; folders in every form that transformers writes."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrope import VLM, Processor
from mmrope.vlm import Assistant, Chat, DecoderConfig, KVCache, VLMConfig, attention, attention_weights, layers
from mmrope.vlm.manifest import write_manifest
from mmrope.vlm.released import RELEASED, released_config, renaming
from mmrope.vlm.weights import INDEX_NAME, WEIGHTS_NAME
from tests.support import PROOF, released
from tests.support.upstream_ids import TRANSFORMERS

RULE = f"@{TRANSFORMERS}"  # the ids that transformers' models make
KINDS = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "qwen3_vl_thinking": "qwen3_vl"}
"""Folders with a tokenizer and a chat template: their family."""


@pytest.fixture(scope="module", params=released.CASES, ids=lambda case: ", ".join(case))
def pair(request, tmp_path_factory):
    """transformers' model and ours, which was loaded from what it saved."""
    model = released.upstream(*request.param)
    return request.param[0], model, released.ours(model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return released.checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)


def apart(one, other, mask):
    """The largest difference of logits of real tokens, in their standard deviations."""
    one, other = one[mask.bool()], other[mask.bool()]
    return ((one - other).abs().max() / other.std()).item()


# --- logits -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_transformers(pair, side):
    name, upstream, model = pair
    for seed, rows in itertools.product(range(20 if PROOF else 2), (1, 3)):
        inputs = released.batch(name, seed=seed, rows=rows, side=side, revision=RULE)
        expected = upstream(**released.without_positions(inputs)).logits
        assert apart(model(**inputs).logits, expected, inputs["attention_mask"]) < 1e-4
    inputs["position_ids"][-2, :, -2:] += 3  # the test can fail: other ids on one axis say something else
    assert apart(model(**inputs).logits, expected, inputs["attention_mask"]) > 1e-2


@torch.no_grad()
def test_on_the_ids_of_the_reference_too(pair):
    """Ids that transformers would not make: given to both, they say the same."""
    name, upstream, model = pair
    inputs = released.batch(name, seed=7, rows=1)
    given = {**released.without_positions(inputs), "position_ids": inputs["position_ids"]}
    assert apart(model(**inputs).logits, upstream(**given).logits, inputs["attention_mask"]) < 1e-4


@torch.no_grad()
def test_256_greedy_tokens_are_those_of_transformers(pair):
    name, upstream, model = pair
    for seed, rows, penalty in ((1, 1, 1.3), (2, 1, 1.0), (3, 3, 1.0)):  # with a penalty they do not run in circles
        inputs = released.batch(name, seed=seed, rows=rows, revision=RULE)
        given, length = released.without_positions(inputs), inputs["input_ids"].shape[1]
        expected = upstream.generate(**given, max_new_tokens=256, do_sample=False, repetition_penalty=penalty)[:, length:]
        tokens = model.generate(**inputs, max_new_tokens=256, repetition_penalty=penalty, prefill_chunk=16)
        assert torch.equal(tokens, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", RELEASED)
def test_half_precision(name, dtype, tmp_path):
    """Most tokens are as far from float32 as with transformers; a rounded router may send single ones to other experts."""
    upstream = released.upstream(name, next(iter(released.OPTIONS[name])))
    upstream.save_pretrained(tmp_path)
    model, half = VLM.from_pretrained(tmp_path, dtype=dtype), copy.deepcopy(upstream).to(dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    ours, theirs = [], []
    for seed in range(4):
        inputs = released.batch(name, seed=seed, rows=2, revision=RULE)
        given, mask = released.without_positions(inputs), inputs["attention_mask"].bool()
        exact = upstream(**given).logits
        ours.append((model(**inputs).logits - exact)[mask].abs().mean(-1))  # [tokens]
        theirs.append((half(**given).logits - exact)[mask].abs().mean(-1))
    assert torch.cat(ours).median() < 1.15 * torch.cat(theirs).median()


@torch.no_grad()
def test_every_expert_is_its_own_product(monkeypatch):
    """Grouped products, and those of torch before 2.10."""
    experts = layers.Experts(8, 16, count=5, top=2)
    x = torch.randn(3, 7, 8)
    expected = torch.zeros_like(x)
    weights, chosen = experts.router(x).softmax(-1).topk(2)
    for b, s, k in itertools.product(range(3), range(7), range(2)):
        expert = chosen[b, s, k]
        gate, up = (x[b, s] @ experts.gate_up[expert]).chunk(2)
        share = weights[b, s, k] / weights[b, s].sum()
        expected[b, s] += share * ((torch.nn.functional.silu(gate) * up) @ experts.down[expert])
    torch.testing.assert_close(experts(x), expected)
    monkeypatch.delattr(torch.nn.functional, "grouped_mm", raising=False)
    torch.testing.assert_close(experts(x), expected)


def test_every_weight_learns(pair):
    name, _, model = pair
    inputs = released.batch(name, seed=1, rows=1)
    loss = model.train()(**inputs, labels=inputs["input_ids"]).loss
    assert loss is not None
    loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    model.eval().zero_grad()
    assert without == []


@torch.no_grad()
def test_attention_weights_are_those_of_the_forward_pass(pair):
    """Rows sum up to 1, through DeepStack and experts too."""
    name, upstream, model = pair
    inputs = released.batch(name, seed=1, rows=1, revision=RULE)
    upstream.set_attn_implementation("eager")
    theirs = upstream(**released.without_positions(inputs), output_attentions=True).attentions
    upstream.set_attn_implementation("sdpa")
    expected = torch.stack([weights[:, :, -1] for weights in theirs])  # [layers, B, heads, S]
    torch.testing.assert_close(attention_weights(model, inputs), expected, rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("past", [0, 300])
@pytest.mark.parametrize("length", [1, 255, 256, 257, 700])
def test_queries_in_parts_are_masked_attention(length, past):
    """On both sides of the size of a part; with and without padding."""
    q, k, v = torch.randn(2, 4, length, 8), *torch.randn(2, 2, 2, past + length, 8)
    for padded in (None, torch.arange(past + length).ge(torch.tensor([[0], [5]])).long()):
        mask = attention.causal_mask(length, past, padded, torch.device("cpu"))
        wide = (x.repeat_interleave(2, dim=1) for x in (k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(q, *wide, attn_mask=mask)
        torch.testing.assert_close(attention.causal_attention(length, past, padded, torch.device("cpu"))(q, k, v), expected)


@torch.no_grad()
def test_a_mask_of_ones_is_no_mask(pair):
    """What processors give for a row without padding costs nothing."""
    name, _, model = pair
    inputs, masked = released.batch(name, seed=1, rows=1), []
    mask, attention.causal_mask = attention.causal_mask, lambda *args: masked.append(args) or mask(*args)
    try:
        logits = model(**inputs).logits
    finally:
        attention.causal_mask = mask
    assert torch.equal(logits, model(**{**inputs, "attention_mask": None}).logits)
    assert masked == []


# --- writing ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_rows_leave_when_they_are_done(pair):
    """What the others write does not change, and what is computed is theirs alone."""
    name, _, model = pair
    inputs = released.batch(name, seed=4, rows=3)
    free = model.generate(**inputs, max_new_tokens=12, repetition_penalty=1.5)
    stop = int(free[1, 3])
    sizes, forward = [], model.decoder.forward

    def counted(x, *args):
        sizes.append(len(x))
        return forward(x, *args)

    model.decoder.forward = counted
    try:
        tokens = model.generate(**inputs, max_new_tokens=12, repetition_penalty=1.5, stop=[stop])
    finally:
        del model.decoder.forward
    ends = [row.index(stop) + 1 if stop in row else 12 for row in free.tolist()]
    for row, expected, end in zip(tokens.tolist(), free.tolist(), ends, strict=True):
        assert row[:end] == expected[:end]
        assert set(row[end:]) <= {model.config.pad_token_id}
    assert sizes == [3, *[sum(end > n for end in ends) for n in range(1, tokens.shape[1])]]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 5, 64, 10_000])
def test_chunks_of_a_prompt_change_nothing(pair, chunk):
    name, _, model = pair
    for rows in (1, 3):
        inputs = released.batch(name, seed=5, rows=rows)
        whole = model.generate(**inputs, max_new_tokens=6, repetition_penalty=1.5, prefill_chunk=10_000)
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, repetition_penalty=1.5, prefill_chunk=chunk), whole)


def image(color, size=64):
    return {"type": "image", "image": torch.full((3, size, size), color, dtype=torch.uint8)}


def clip(color, frames=6):
    return {"type": "video", "video": torch.full((frames, 3, 64, 96), color, dtype=torch.uint8), "fps": 2.0, "sample_fps": 2.0}


def turns(*questions):
    """A conversation that is open after each of its questions; a question is a text, or images and a text."""
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]} for *media, text in questions]


@torch.no_grad()
def test_a_conversation_is_computed_once(folder, monkeypatch):
    """Turn by turn on one cache, with new images: the tokens are those without it, and what was read is not read again."""
    assistant = Assistant.from_pretrained(folder)
    chat, read = Chat(assistant, [image(10), image(90)]), []
    embed = VLM.embed

    def counted(model, inputs):
        read.append((inputs["input_ids"].shape[1], len(inputs.get("image_grid_thw", ()))))
        return embed(model, inputs)

    asked = []
    for question, media in (
        ("What is it?", []),
        ("And this?", [image(200, 96)]),
        ("Why?", []),
        ("These?", [image(1), image(2)]),
    ):
        content = [*([] if asked else chat.media), *media, {"type": "text", "text": question}]
        asked.append({"role": "user", "content": content})
        alone = assistant.answer(asked, max_new_tokens=5)
        monkeypatch.setattr(VLM, "embed", counted)
        assert chat.answer(question, media=media, max_new_tokens=5) == alone
        monkeypatch.setattr(VLM, "embed", embed)
        asked.append({"role": "assistant", "content": alone})
    assert [images for _, images in read] == [2, 1, 0, 2]
    assert max(tokens for tokens, _ in read[2:3]) < 60


@torch.no_grad()
def test_what_has_changed_is_read_again(folder):
    """Another picture of the same size, another text, a shorter conversation: as without a cache."""
    model, processor = VLM.from_pretrained(folder), Processor.from_pretrained(folder)
    first = turns((image(10), image(20), "What is it?"))
    changes = [
        turns((image(10), image(21), "What is it?")),
        turns((image(11), image(20), "What is it?")),
        turns((image(10), image(20), "What is that?")),
        turns((image(10), "What is it?")),
        turns((image(10), image(20, 96), "What is it?")),
        turns(("What is it?",)),
        first,
    ]
    seen = turns((clip(10), image(20), clip(30), "What is it?"))
    videos = [
        turns((clip(10), image(20), clip(31), "What is it?")),
        turns((clip(11), image(20), clip(30), "What is it?")),
        turns((clip(10), image(21), clip(30), "What is it?")),
        turns((clip(10, frames=4), image(20), clip(30), "What is it?")),
        turns((clip(10), image(20), clip(30), "Why?")),
    ]
    for before, changed in [*((first, one) for one in changes), *((seen, one) for one in videos)]:
        cache = KVCache()
        model.generate(**processor(before, add_generation_prompt=True), cache=cache, max_new_tokens=6)
        inputs = processor(changed, add_generation_prompt=True)
        expected = model.generate(**inputs, max_new_tokens=6)
        assert torch.equal(model.generate(**inputs, cache=cache, max_new_tokens=6), expected)
        assert cache.length == inputs["input_ids"].shape[1] + expected.shape[1] - 1


@torch.no_grad()
def test_a_cache_keeps_what_it_read_and_not_what_becomes_of_it(folder):
    """The buffers of inputs may be used again; the model may be cast; another model is refused."""
    model, processor = VLM.from_pretrained(folder), Processor.from_pretrained(folder)
    inputs, cache = processor(turns((image(10), image(20), "What is it?")), add_generation_prompt=True), KVCache()
    model.generate(**inputs, cache=cache, max_new_tokens=2)
    for key in ("pixel_values", "input_ids"):
        inputs[key].copy_(inputs[key].flip(0) * -1 if key == "pixel_values" else inputs[key].clamp_max(inputs[key].max() - 0))
        assert torch.equal(model.generate(**inputs, cache=cache, max_new_tokens=6), model.generate(**inputs, max_new_tokens=6))
    half = model.bfloat16()
    assert torch.equal(half.generate(**inputs, cache=cache, max_new_tokens=6), half.generate(**inputs, max_new_tokens=6))
    other = VLM.from_pretrained(folder)
    del model, half
    with pytest.raises(ValueError, match="the cache holds what another model has read: give each model a KVCache of its own"):
        other.generate(**inputs, cache=cache)
    two = processor([turns(("Hi",)), turns(("Hi",))], add_generation_prompt=True)
    cache = KVCache()
    other(**two, cache=cache)  # two rows, by hand
    assert torch.equal(other.generate(**inputs, cache=cache, max_new_tokens=4), other.generate(**inputs, max_new_tokens=4))


def test_a_cache_is_of_one_conversation(folder):
    model, processor = VLM.from_pretrained(folder), Processor.from_pretrained(folder)
    with pytest.raises(ValueError, match="a cache holds one conversation without padding, got 2 with padding"):
        model.generate(**processor([turns(("Hi",)), turns(("Why is it so?",))]), cache=KVCache())


# --- folders ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_folder_answers(folder):
    """A processor's output as it is, to transformers' model and to ours; ends and padding as generation_config.json says."""
    import transformers

    model, processor = VLM.from_pretrained(folder), Processor.from_pretrained(folder)
    upstream = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    said = json.loads((folder / "generation_config.json").read_text())
    assert model.config.eos_token_id == tuple(said["eos_token_id"])
    assert model.config.pad_token_id == said["pad_token_id"]
    inputs = processor([turns((image(10), "What is it?")), turns(("Hi",))], add_generation_prompt=True)
    given = released.without_positions(inputs)
    expected = upstream.generate(**given, max_new_tokens=20, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**inputs, max_new_tokens=20), expected)
    answers = Assistant.from_pretrained(folder).answer([turns((image(10), "What is it?")), turns(("Hi",))], max_new_tokens=20)
    assert answers == processor.decode(expected)


def test_every_file_that_a_manifest_lists_is_compared_before_it_is_parsed(folder, tmp_path):
    """Each of a released folder's, in turn, with what may be read as well; and what is not listed is read as it is."""
    folder = shutil.copytree(folder, tmp_path / "checkpoint")
    weights = load_file(folder / WEIGHTS_NAME)
    (folder / WEIGHTS_NAME).rename(folder / "all.safetensors")
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(weights, "all.safetensors")}))
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    write_manifest(folder, names)
    assert VLM.from_pretrained(folder).checked
    expected = Processor.from_pretrained(folder)
    of_model = {"config.json", "generation_config.json", INDEX_NAME, "all.safetensors"}
    of_processor = {"config.json", *names} - {"generation_config.json", INDEX_NAME, "all.safetensors"}
    assert {"preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"} < of_processor
    for reader, its in ((VLM, of_model), (Processor, of_processor)):
        for name in names:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content + b"\n")
            if name in its:
                with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))} differs from its manifest: its size in"):
                    reader.from_pretrained(folder)
            else:
                reader.from_pretrained(folder)
            (folder / name).write_bytes(content)
    write_manifest(folder, ["config.json", "all.safetensors"])
    for name in set(names) - {"config.json", "all.safetensors"}:
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    assert VLM.from_pretrained(folder).checked
    assert Processor.from_pretrained(folder).patches == expected.patches


def same(model, other):
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("tied", [False, True])
def test_every_form_of_folder_is_the_same_model(name, tied, tmp_path):
    """Sharded or not, tied or not, loaded and saved again, with the names before transformers 4.52 and without a prefix."""
    upstream = released.upstream(name, "tied" if tied else next(iter(released.OPTIONS[name])))
    upstream.save_pretrained(tmp_path / "one")
    expected = VLM.from_pretrained(tmp_path / "one")
    assert (expected.head is None) == tied
    upstream.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert not (tmp_path / "shards" / WEIGHTS_NAME).exists()
    again = type(upstream).from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "again")
    forms = ["shards", "again"]
    state = load_file(tmp_path / "again" / WEIGHTS_NAME)
    for form, rename in {
        "old": lambda name: name.replace("model.visual.", "visual.").replace("model.language_model.", "model."),
        "new": lambda name: (
            name
            if name.startswith(("model.visual", "model.language", "lm_head"))
            else name.replace("visual.", "model.visual.").replace("model.layers", "model.language_model.layers")
        ),
        "bare": lambda name: name.removeprefix("model."),
    }.items():
        shutil.copytree(tmp_path / "again", tmp_path / form)
        save_file({rename(name): tensor for name, tensor in state.items()}, tmp_path / form / WEIGHTS_NAME)
        forms.append(form)
    if tied:  # the head is there all the same
        shutil.copytree(tmp_path / "again", tmp_path / "twice")
        embedding = next(tensor for name, tensor in state.items() if name.endswith("embed_tokens.weight"))
        save_file({**state, "lm_head.weight": embedding.clone()}, tmp_path / "twice" / WEIGHTS_NAME)
        forms.append("twice")
    for form in forms:
        assert same(VLM.from_pretrained(tmp_path / form), expected), form
    if tied:
        save_file({**state, "lm_head.weight": embedding + 1}, tmp_path / "twice" / WEIGHTS_NAME)
        with pytest.raises(ValueError, match=r"ties the head to the embedding, but the weights have another head"):
            VLM.from_pretrained(tmp_path / "twice")


@torch.no_grad()
@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_is_saved_as_ours(name, tmp_path):
    model = released.ours(released.upstream(name, next(iter(released.OPTIONS[name]))), tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    loaded = VLM.from_pretrained(tmp_path / "ours")
    assert loaded.config == model.config
    assert same(loaded, model)
    inputs = released.batch(name, seed=1, rows=1)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_what_is_changed_is_changed_in_memory_alone(folder):
    before = (folder / WEIGHTS_NAME).read_bytes()
    model = VLM.from_pretrained(folder)
    for weight in model.parameters():
        weight.add_(1)
    assert (folder / WEIGHTS_NAME).read_bytes() == before


@torch.no_grad()
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_weights_are_not_copied(tmp_path):
    """A file of 100 MB: what the process has of its own grows by less than a tenth of it, until another dtype is asked for."""

    def own():
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1000  # MB

    VLM(VLMConfig(decoder=DecoderConfig(vocab_size=100_000))).save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS_NAME).stat().st_size > 100e6
    gc.collect()  # what other tests left is not freed in between
    before = own()
    model = VLM.from_pretrained(tmp_path)
    total = sum(float(weight.sum()) for weight in model.parameters())  # every page is read
    assert own() - before < 10
    half = VLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert own() - before > 40
    assert total == sum(float(weight.sum()) for weight in model.parameters())
    del half


def test_a_checkpoint_is_not_overwritten(tmp_path):
    model = VLM.from_pretrained(released.checkpoint(tmp_path, "qwen3_vl"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"holds a released checkpoint, which would be overwritten: save to another folder"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "auto"}, r"cannot use the device 'auto': .*; try 'cpu'"),
        ({"device": 999}, r"cannot use the device 999"),
        ({"device": "meta"}, r"weights cannot be loaded to the device 'meta'"),
        ({"dtype": "bfloat16"}, r"dtype must be float64, float32, float16 or bfloat16, of torch, or None .*; got 'bfloat16'"),
    ],
)
def test_devices_and_dtypes(folder, options, message):
    with pytest.raises(ValueError, match=message):
        VLM.from_pretrained(folder, **options)


@torch.no_grad()
def test_weights_of_several_dtypes(tmp_path):
    released.upstream("qwen2_vl", "plain").save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS_NAME)
    head = next(name for name in state if name.endswith("lm_head.weight"))
    save_file({**state, head: state[head].bfloat16()}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"are of torch.bfloat16 and torch.float32: say which with dtype="):
        VLM.from_pretrained(tmp_path)
    model = VLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model(**released.batch("qwen2_vl", seed=1, rows=1)).logits.isfinite().all()


def test_buffers_that_no_file_has(tmp_path):
    class Mine(VLM):
        def __init__(self, config=None):
            super().__init__(config)
            self.register_buffer("mine", torch.ones(3), persistent=False)

    released.upstream("qwen2_vl", "plain").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Mine has buffers that are not saved, mine: register them as persistent"):
        Mine.from_pretrained(tmp_path)


def test_shards_are_of_the_folder(tmp_path):
    released.checkpoint(tmp_path, "qwen3_vl", max_shard_size="50KB")
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    (tmp_path / shards[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError,
        match=rf"no {shards[1]} in .*, which model.safetensors.index.json lists in its weight_map: was the folder copied whole\?",
    ):
        VLM.from_pretrained(tmp_path)
    for weight_map in ({"a": "../model.safetensors"}, [], {"a": 3}):
        (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=r"has no weight_map from weights to files of the folder"):
            VLM.from_pretrained(tmp_path)
    (tmp_path / INDEX_NAME).write_text("{")
    with pytest.raises(ValueError, match=r"index.json is not JSON"):
        VLM.from_pretrained(tmp_path)


# --- what is not known is refused by name -----------------------------------------------------------------------------


def stated(name):
    """The values of a config as transformers writes it."""
    config = json.loads(released.upstream(name, next(iter(released.OPTIONS[name]))).config.to_json_string())
    assert released_config(config)
    return config


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen2_vl", {"model_type": "glm4v"}, r"VLM does not run .*: models of model_type 'glm4v' are not known here; known are qwen2_vl"),
        ("qwen2_vl", {"quantization_config": {"quant_method": "awq"}}, r"the weights are quantized .*: take the unquantized ones"),
        ("qwen2_5_vl", {"text_config": {"use_sliding_window": True}}, r"qwen2_5_vl with use_sliding_window True is not known"),
        ("qwen2_5_vl", {"text_config": {"layer_types": ["sliding_attention"]}}, r"with layer_types .* must be full_attention"),
        ("qwen3_vl", {"text_config": {"hidden_act": "gelu"}}, r"qwen3_vl with hidden_act 'gelu' .* must be 'silu'"),
        ("qwen3_vl", {"text_config": {"attention_bias": True}}, r"qwen3_vl with attention_bias True"),
        ("qwen3_vl", {"text_config": {"hidden_size": None}}, r"text_config.hidden_size is missing"),
        ("qwen3_vl", {"vision_config": {"out_hidden_size": 32}}, r"makes embeddings of 32 channels \(out_hidden_size\), the decoder reads 64"),
        ("qwen3_vl", {"vision_config": {"in_channels": 4}}, r"it does not read 3 channels of color"),
        ("qwen3_vl", {"vision_config": {"hidden_act": "relu"}}, r"hidden_act must be one of gelu, gelu_pytorch_tanh, quick_gelu, silu, got 'relu'"),
        ("qwen3_vl", {"vision_config": {"num_position_embeddings": 50}}, r"num_position_embeddings 50 is not the size of a square table"),
        ("qwen3_vl", {"vision_config": {"deepstack_visual_indexes": [0] * 9}}, r"deepstack_layers must be rising numbers of the 5 layers"),
        ("qwen3_vl", {"vision_config": {"deepstack_visual_indexes": [0, 5]}}, r"rising numbers of the 5 layers, got \(0, 5\)"),
        ("qwen3_vl", {"text_config": {"num_hidden_layers": 2}}, r"deepstack_layers .* which has 2"),
        ("qwen2_5_vl", {"vision_config": {"window_size": 7}}, r"window_size 7 is less than a token's 8 pixels"),
        ("qwen3_vl_moe", {"text_config": {"decoder_sparse_step": 2}}, r"qwen3_vl_moe with decoder_sparse_step 2"),
        ("qwen3_vl_moe", {"text_config": {"norm_topk_prob": False}}, r"qwen3_vl_moe with norm_topk_prob False"),
        ("qwen3_vl_moe", {"text_config": {"num_experts_per_tok": 9}}, r"6 experts need .* 1 to 6 num_experts_per_tok, got 32 and 9"),
    ],
)  # fmt: skip
def test_configs_that_it_does_not_run(name, change, message, tmp_path):
    config = stated(name)
    for key, value in change.items():
        if isinstance(value, dict) and key in config:
            config[key] = {k: v for k, v in {**config[key], **value}.items() if v is not None}
        else:
            config[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=message):
        VLM.from_pretrained(tmp_path)


def test_weights_that_do_not_fit(tmp_path):
    released.upstream("qwen2_vl", "plain").save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS_NAME)
    name = next(name for name in state if name.endswith("layers.0.self_attn.q_proj.weight"))
    for changed, message in (
        ({**state, "model.audio.conv.weight": torch.zeros(1)}, r"unknown: model\.audio\.conv\.weight$"),
        ({**state, name: state[name][:-1]}, rf"of another shape: {name} is \[63, 64\], not \[64, 64\]"),
        ({key: value for key, value in state.items() if key != name}, r"missing: decoder\.blocks\.0\.q\.weight$"),
    ):
        save_file({key: value.contiguous() for key, value in changed.items()}, tmp_path / WEIGHTS_NAME)
        with pytest.raises(ValueError, match=rf"the weights in .* are not those of its config.json; {message}"):
            VLM.from_pretrained(tmp_path)
    save_file({**state, "model.visual.rotary_pos_emb.inv_freq": torch.zeros(4)}, tmp_path / WEIGHTS_NAME)
    VLM.from_pretrained(tmp_path)  # which every model computes itself


def test_generation_configs():
    config = stated("qwen3_vl")
    drawn = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    made = released_config(config, {"do_sample": True, **drawn, "eos_token_id": [5, 6], "pad_token_id": 5})
    assert (made.eos_token_id, made.pad_token_id) == ((5, 6), 5)
    assert vars(made.generation) == {**drawn, "repetition_penalty": 1.0}
    made = released_config(config, {**drawn, "repetition_penalty": 1.05, "eos_token_id": 7})
    assert vars(made.generation) == {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.05}
    assert (made.eos_token_id, made.pad_token_id) == ((7,), 0)
    config["text_config"]["pad_token_id"] = None
    assert released_config(config, {"eos_token_id": 7}).pad_token_id == 7
    assert released_config({**config, "eos_token_id": 9}).eos_token_id == (9,)
    assert released_config(config).eos_token_id == ()
    assert VLMConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"num_beams": 4}, r"generation_config.json has num_beams 4, which VLM does not know: it must be 1"),
        ({"suppress_tokens": [1]}, r"suppress_tokens \[1\]"),
        ({"do_sample": True, "min_p": 0.9}, r"min_p 0.9"),
        ({"do_sample": True, "temperature": "warm"}, r"generation_config.json must have numbers, got {'temperature': 'warm'}"),
        ({"eos_token_id": "802"}, r"eos_token_id must be a token or a list of tokens, got '802'"),
        ({"eos_token_id": [[802]]}, r"eos_token_id must be a token or a list of tokens"),
    ],
)
def test_generation_configs_that_it_does_not_follow(generation, message):
    with pytest.raises(ValueError, match=message):
        released_config(stated("qwen3_vl"), generation)


def test_what_is_null_is_the_default():
    """As in transformers, where it is drawn; and what changes nothing may be said."""
    nothing = {"do_sample": True, "temperature": None, "top_k": None, "top_p": None, "repetition_penalty": None}
    made = released_config(
        stated("qwen3_vl"), {**nothing, "num_beams": 1, "suppress_tokens": None, "min_p": None, "typical_p": 1.0}
    )
    assert vars(made.generation) == {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
    ignored = released_config(stated("qwen3_vl"), {"do_sample": False, "temperature": 0.5, "min_p": 0.9})
    assert ignored.generation.temperature == 0


def test_names():
    rename = renaming("qwen2_5_vl")
    for prefix in ("model.language_model.", "model.", "language_model.model.", ""):
        assert rename(f"{prefix}layers.31.mlp.gate_proj.weight") == "decoder.blocks.31.mlp.gate.weight"
    for prefix in ("model.visual.", "visual."):
        assert rename(f"{prefix}blocks.7.attn.qkv.bias") == "vision.blocks.7.qkv.bias"
    assert rename("lm_head.weight") == "head.weight"
    assert rename("visual.rotary_pos_emb.inv_freq") is None
    assert rename("visual.pos_embed.weight") == "visual.pos_embed.weight"  # Qwen3-VL's, and unknown here
