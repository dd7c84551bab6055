"""The small model: rows do not affect each other, the cache changes nothing, and it learns what it is shown."""

from __future__ import annotations

import dataclasses
import json
import math
import typing

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.nn import functional as F

from mmrope import VLM, Processor, patch_position_ids
from mmrope.preprocess import text
from mmrope.vlm import GenerationConfig, VLMConfig
from mmrope.vlm.attention import causal_mask, packed_attention
from mmrope.vlm.cache import KVCache
from mmrope.vlm.config import DecoderConfig, VisionConfig
from mmrope.vlm.manifest import write_manifest
from mmrope.vlm.sampling import choose_token
from mmrope.vlm.vision import VisionEncoder

SMALL = VLMConfig(
    vision=VisionConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128),
    decoder=DecoderConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
    ),
)
SIZES = {"image_pixels": (56 * 56, 16 * 28 * 28), "video_pixels": (4 * 28 * 28, 9 * 28 * 28)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VLM(SMALL).eval()


@pytest.fixture
def processor():
    return Processor(**SIZES)


@pytest.fixture
def conversations(samples):
    def user(*content):
        return [{"role": "user", "content": list(content)}]

    cat, coffee = ({"type": "image", "image": samples / name} for name in ("cat.jpg", "coffee.jpg"))
    clip = {"type": "video", "video": samples / "clip.mp4"}
    return [
        user({"type": "text", "text": "Compare"}, cat, coffee),
        user(clip),
        user({"type": "text", "text": "Hi"}),
        user(coffee, clip),
    ]


# --- forward ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_rows_one_by_one(model, conversations, side):
    processor = Processor(padding_side=side, **SIZES)
    inputs = processor(conversations)
    logits = model(**inputs).logits
    for b, conversation in enumerate(conversations):
        alone = model(**processor(conversation)).logits[0]
        torch.testing.assert_close(logits[b][inputs["attention_mask"][b].bool()], alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_images_are_encoded_alone(model, processor, conversations):
    """Packed with others, in another order, as a frame of a video: an image's embeddings stay what they are."""
    inputs = processor(conversations)
    grids = inputs["image_grid_thw"]
    counts = grids.prod(dim=1).tolist()
    images = inputs["pixel_values"].split(counts)
    packed = model.vision(inputs["pixel_values"], grids).split([n // 4 for n in counts])
    for image, grid, expected in zip(images, grids, packed, strict=True):
        torch.testing.assert_close(model.vision(image, grid[None]), expected, rtol=0, atol=2e-6)
    back = model.vision(torch.cat(images[::-1]), grids.flip(0)).split([n // 4 for n in counts[::-1]])
    for one, other in zip(back, packed[::-1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
    t, h, w = inputs["video_grid_thw"][0].tolist()
    video = inputs["pixel_values_videos"][: t * h * w]
    frames = torch.cat([model.vision(frame, torch.tensor([[1, h, w]])) for frame in video.split(h * w)])
    torch.testing.assert_close(model.vision(video, torch.tensor([[t, h, w]])), frames, rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [[4, 4, 7, 1, 4], [1], [300, 257, 1, 1]])
def test_packed_attention_is_masked_attention(lengths, causal):
    q, k, v = torch.randn(1, 4, sum(lengths), 8), *torch.randn(2, 1, 2, sum(lengths), 8)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = owner[:, None] == owner
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.tril() if causal else mask, enable_gqa=True)
    torch.testing.assert_close(packed_attention(lengths, q.device, causal=causal)(q, k, v), expected)


def test_who_may_look_at_whom():
    mask = causal_mask(2, 2, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]), torch.device("cpu"))
    assert mask[:, 0].int().tolist() == [[[0, 1, 1, 0], [0, 1, 1, 1]], [[1, 1, 1, 0], [1, 1, 1, 1]]]
    with pytest.raises(ValueError, match=r"attention_mask has 3 columns, but there are 2 cached and 2 new tokens"):
        causal_mask(2, 2, torch.ones(1, 3), torch.device("cpu"))


@torch.no_grad()
def test_positions_are_felt(model, processor, conversations):
    """Moving the image elsewhere, or flattening its grid, changes what follows; shifting everything changes nothing."""
    inputs = processor(conversations[0])
    logits = model(**inputs).logits

    def with_ids(ids):
        return model(**{**inputs, "position_ids": ids}).logits

    ids = inputs["position_ids"]
    torch.testing.assert_close(with_ids(ids + 1000), logits, rtol=0, atol=2e-4)
    flat = torch.arange(ids.shape[-1]).expand_as(ids)
    assert (with_ids(flat) - logits).abs().max() > 1e-2


@torch.no_grad()
def test_the_encoder_sees_where_patches_are(model):
    """The same patches in the shape 4 x 8 and 8 x 4: only their positions differ."""
    patches = torch.randn(32, SMALL.vision.patches.patch_dim)
    wide, tall = (model.vision(patches, torch.tensor([[1, h, w]])) for h, w in ((4, 8), (8, 4)))
    assert not np.array_equal(patch_position_ids([[1, 4, 8]]), patch_position_ids([[1, 8, 4]]))
    assert (wide - tall).abs().max() > 1e-4


def test_a_mask_of_ones_is_no_mask(model, processor, conversations):
    """Without a mask the kernel's own causal attention is taken."""
    inputs = processor(conversations[0])
    without = model(**{**inputs, "attention_mask": None}).logits
    torch.testing.assert_close(without, model(**inputs).logits, rtol=0, atol=2e-5)


# --- generation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_cached_generation_equals_recomputing_everything(model, processor, conversations):
    """Greedy, token by token, from the whole sequence each time; batched and one by one."""
    steps = 6
    batched = model.generate(**processor(conversations), max_new_tokens=steps)
    for b, conversation in enumerate(conversations):
        inputs = processor(conversation)
        media = {key: inputs[key] for key in inputs if key.startswith(("pixel", "image", "video"))}
        tokens, ids, types = inputs["input_ids"], inputs["position_ids"], inputs["mm_token_type_ids"]
        for step in range(steps):
            logits = model(input_ids=tokens, position_ids=ids, mm_token_type_ids=types, **media).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
            assert token.item() == batched[b, step]
            if token.item() == model.config.eos_token_id:
                break
            tokens = torch.cat((tokens, token), dim=1)
            ids = torch.cat((ids, (inputs["next_position"] + step).expand(3, 1)[..., None]), dim=2)
            types = torch.cat((types, torch.zeros_like(token)), dim=1)
        assert torch.equal(model.generate(**inputs, max_new_tokens=steps)[0], batched[b])


@torch.no_grad()
def test_the_cache_holds_what_a_longer_prompt_would(model, processor, conversations):
    """The logits of the second half after the first half is cached, wherever the cut, also inside an image."""
    inputs = processor(conversations[0])
    whole = model(**inputs).logits
    n = inputs["input_ids"].shape[1]
    embeddings = model.embedding(inputs["input_ids"])
    embeddings[inputs["mm_token_type_ids"] == 1] = model.vision(inputs["pixel_values"], inputs["image_grid_thw"])
    for cut in (1, 12, n // 2, n - 1):
        cache = KVCache(cut)  # and grows
        hidden = [
            model.decoder(embeddings[:, part], inputs["position_ids"][..., part], cache=cache)
            for part in (slice(0, cut), slice(cut, n))
        ]
        torch.testing.assert_close(F.linear(torch.cat(hidden, dim=1), model.embedding.weight), whole, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_row_that_ended_writes_padding(model, processor, conversations):
    model.config = dataclasses.replace(
        SMALL, eos_token_id=int(model.generate(**processor(conversations), max_new_tokens=1)[2, 0])
    )
    tokens = model.generate(**processor(conversations), max_new_tokens=5)
    assert tokens[2].tolist() == [model.config.eos_token_id, *[text.PAD] * (tokens.shape[1] - 1)]
    alone = model.generate(**processor(conversations[2]), max_new_tokens=5)
    assert alone.shape == (1, 1)


def test_a_stream_is_the_tokens_one_after_the_other(model, processor, conversations):
    inputs = processor(conversations)
    steps = list(model.stream(**inputs, max_new_tokens=5))
    assert torch.equal(torch.tensor(steps).T, model.generate(**inputs, max_new_tokens=5))
    writing = model.stream(**inputs, max_new_tokens=5)
    assert next(writing) == steps[0]  # before the second is computed
    writing.close()


def test_rows_end_at_a_stop_token(model, processor, conversations):
    inputs = processor(conversations)
    free = model.generate(**inputs, max_new_tokens=6)
    stop = int(free[1, 2])
    tokens = model.generate(**inputs, max_new_tokens=6, stop=[stop])
    for row, expected in zip(tokens.tolist(), free.tolist(), strict=True):
        n = expected.index(stop) + 1 if stop in expected else len(expected)
        assert row == (expected[:n] + [text.PAD] * 6)[: len(row)]
    with pytest.raises(ValueError, match=r"stop must be tokens of a vocabulary of 263, such as \[2\], got \[263\]"):
        model.generate(**inputs, stop=[263])


@torch.no_grad()
def test_sampling(model, processor, conversations):
    inputs = processor(conversations)

    def drawn(seed, **options):
        return model.generate(**inputs, max_new_tokens=8, generator=torch.Generator().manual_seed(seed), **options)

    assert torch.equal(drawn(1, temperature=1.0), drawn(1, temperature=1.0))
    assert not torch.equal(drawn(1, temperature=1.0), drawn(2, temperature=1.0))
    greedy = model.generate(**inputs, max_new_tokens=8)
    assert torch.equal(drawn(1, temperature=1.0, top_p=1e-6), greedy)
    assert torch.equal(drawn(1, temperature=1e-6), greedy)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    generator = torch.Generator().manual_seed(0)

    def shares(seen=None, **options):
        how = GenerationConfig(**{"temperature": 1.0, **options})
        drawn = choose_token(p.log().expand(20_000, 4), how, generator, seen)
        return torch.bincount(drawn, minlength=4) / 20_000

    two_of_four = torch.tensor([0.625, 0.375, 0, 0])
    torch.testing.assert_close(shares(), p, rtol=0, atol=0.015)
    torch.testing.assert_close(shares(top_p=0.7), two_of_four, rtol=0, atol=0.015)
    torch.testing.assert_close(shares(top_k=2), two_of_four, rtol=0, atol=0.015)
    torch.testing.assert_close(shares(top_k=3, top_p=0.8), two_of_four, rtol=0, atol=0.015)  # of what the first leaves
    torch.testing.assert_close(shares(temperature=0.5), p**2 / (p**2).sum(), rtol=0, atol=0.015)
    twice = torch.tensor([0.25, 0.3, 0.15, 0.05])  # log(0.5) * 2
    seen = torch.tensor([True, False, False, False]).expand(20_000, 4)
    torch.testing.assert_close(shares(seen, repetition_penalty=2.0), twice / twice.sum(), rtol=0, atol=0.015)


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30, 1e-6])
def test_next_to_no_temperature_is_the_likeliest_token(temperature):
    """However large the logits are: what is divided is how far they are below the largest."""
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 10 ** torch.linspace(-3, 30, 200)[:, None]
    how = GenerationConfig(temperature=temperature)
    assert torch.equal(choose_token(logits, how), logits.argmax(dim=-1))


def test_no_end_of_temperature_is_any_token():
    drawn = choose_token(torch.tensor([5.0, 0.0, -5.0, -50.0]).expand(20_000, 4), GenerationConfig(temperature=3e38))
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / 20_000, torch.full((4,), 0.25), rtol=0, atol=0.02)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_it_learns_one_batch_of_real_images():
    """Four photographs of one size and their names: it comes to write each image's name, and finds it in the pixels."""
    torch.manual_seed(0)
    names = ["chelsea", "coffee", "astronaut", "rocket"]
    images = [Image.fromarray(getattr(data, name)()).crop((0, 0, 300, 300)) for name in names]
    processor = Processor(image_pixels=(56 * 56, 9 * 28 * 28))

    def asked(image):
        return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "?"}]}

    questions = processor([[asked(image)] for image in images])
    batch = processor(
        [[asked(image), {"role": "assistant", "content": name}] for image, name in zip(images, names, strict=True)]
    )
    labels = batch["input_ids"].clone()
    padding = (batch["attention_mask"] == 0).sum(dim=1)
    for b in range(4):  # the answer is to be learned, not the question
        labels[b, : padding[b] + questions["input_ids"].shape[1]] = -100
    model = VLM(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        loss = model(**batch, labels=labels).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 < 5 < losses[0]
    model.eval()
    assert processor.decode(model.generate(**questions, max_new_tokens=12)) == names
    questions["pixel_values"] = questions["pixel_values"].unflatten(0, (4, -1)).flip(0).flatten(0, 1)
    assert processor.decode(model.generate(**questions, max_new_tokens=12)) == names[::-1]


def test_every_weight_learns(processor, conversations):
    model = VLM(SMALL)
    inputs = processor(conversations)
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    assert loss is not None
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_labels_of_minus_100_do_not_count(model, processor, conversations):
    inputs = processor(conversations[2])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 5] = 7
    output = model(**inputs, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[:, 4], torch.tensor([7])))


# --- files ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_model_is_the_same(model, processor, conversations, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, inputs = VLM.from_pretrained(tmp_path), Processor.from_pretrained(tmp_path)(conversations)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert VLM.from_pretrained(tmp_path, dtype=torch.bfloat16).embedding.weight.dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "processor_config.json",
    ]


def test_broken_files_are_refused(model, tmp_path):
    with pytest.raises(
        ValueError, match=r"no config.json in .*: it is the folder of a released model, or one of VLM.save_pretrained"
    ):
        VLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(ValueError, match=r"config.json differs from its manifest"):
        VLM.from_pretrained(tmp_path)
    write_manifest(tmp_path, ["config.json", "model.safetensors"])
    with pytest.raises(ValueError, match="colour"):
        VLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "decoder": {**config["decoder"], "num_layers": 1}}))
    write_manifest(tmp_path, ["config.json", "model.safetensors"])
    with pytest.raises(ValueError, match=r"unknown: decoder\.blocks\.1"):
        VLM.from_pretrained(tmp_path)


@torch.no_grad()
def test_bfloat16(model, processor, conversations):
    inputs = processor(conversations)
    expected = model(**inputs).logits
    half = model.to(torch.bfloat16)
    logits = half(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.05
    assert half.generate(**inputs, max_new_tokens=3).shape == (4, 3)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i | {"image_grid_thw": None},
            r"image pixels need their grids \(image_grid_thw\) and mm_token_type_ids",
        ),
        (lambda i: i | {"mm_token_type_ids": None}, r"image pixels need their grids"),
        (
            lambda i: i | {"mm_token_type_ids": i["mm_token_type_ids"] * 0},
            r"0 image tokens, but the pixels make \d+; was the row truncated",
        ),
        (
            lambda i: i | {"pixel_values": i["pixel_values"][:-4]},
            r"grid_thw .* describes \d+ patches, but there are \d+",
        ),
        (
            lambda i: i | {"position_ids": i["position_ids"][:1]},
            r"position_ids must be \[3, B, S\] .* got \[1, 4, \d+\]",
        ),
        (
            lambda i: {**i, "pixel_values": None},
            r"the row has image tokens, but no pixels were given; pass all that the processor returned",
        ),
        (
            lambda i: {**i, "position_ids": i["position_ids"][:, :1]},
            r"position_ids must be \[axes, 4, \d+\] for input_ids of 4 rows of \d+ tokens, got \[3, 1, \d+\]",
        ),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused(model, processor, conversations, change, message):
    with pytest.raises(ValueError, match=message):
        model(**change(processor(conversations)))


def test_positions_have_no_default(model, processor, conversations):
    inputs = processor(conversations)
    inputs.pop("position_ids")
    with pytest.raises(ValueError, match="position_ids missing: pass all that the processor returned"):
        model(**inputs)


def test_a_row_without_media_has_no_pixels(model, processor):
    """As `Processor.row` makes it for tables: all keys in every row."""
    messages = [{"role": "user", "content": "Hello"}]
    row = {
        key: torch.as_tensor(value)[None] for key, value in processor.row({"messages": messages}).items() if "times" not in key
    }
    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        row[key] = row[key][0]
    row["position_ids"] = row["position_ids"].transpose(0, 1)  # [A, B, S]
    assert torch.equal(model(**row).logits, model(**processor(messages)).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "^labels: not known here; known are max_new_tokens, temperature, top_k, .*prefill_chunk, input_ids"),
        ({"max_tokens": 3}, "^max_tokens: not known here"),
    ],
)
def test_writing_has_no_other_options(model, processor, conversations, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**processor(conversations), **options)


def test_a_mistyped_config_is_explained():
    with pytest.raises(
        ValueError, match=r"rotary is of heads of 32 channels, the decoder's have 16: .* or rotary=None for the default"
    ):
        dataclasses.replace(VLMConfig(), decoder=DecoderConfig(head_dim=16))


def test_the_types_of_inputs_can_be_read():
    assert "inputs" in typing.get_type_hints(VLM.forward)


def test_what_is_not_read_is_refused(model, processor, conversations):
    with pytest.raises(ValueError, match=r"^pixel_vales, token_types: not known here; known are input_ids, position_ids, "):
        model(**processor(conversations), pixel_vales=None, token_types=None)


@pytest.mark.parametrize(
    ("side", "options", "message"),
    [
        ("right", {}, r"a row ends in padding, .* pad on the left \(Processor\(padding_side='left'\)\)"),
        *(
            ("left", {"temperature": odd}, r"^temperature must be a number of at least 0, for the likeliest token, got ")
            for odd in (-1.0, math.nan, math.inf, 1e39, "1", True)
        ),
        *(
            ("left", {"top_p": odd}, r"^top_p must be a number above 0 and at most 1, for all tokens, got ")
            for odd in (0.0, 1.1, math.nan)
        ),
        *(("left", {"top_k": odd}, r"^top_k must be a whole number of at least 0, got ") for odd in (-1, 1.5, True, "3")),
        *(
            ("left", {"repetition_penalty": odd}, r"^repetition_penalty must be a number from 0.001 to 1000, 1 for none, got ")
            for odd in (0, 9e-4, 1001, math.nan, math.inf)
        ),
        *(
            ("left", {name: odd}, f"^{name} must be a whole number of tokens, at least 1; got ")
            for name in ("max_new_tokens", "prefill_chunk")
            for odd in (0, 1.5, True, "3", math.inf)
        ),
        *(
            ("left", {"stop": odd}, r"^stop must be tokens of a vocabulary of 263, such as \[2\], got ")
            for odd in (3, [3.5], [-1], "ab", [263])
        ),
    ],
)
def test_generation_options_are_checked(model, conversations, side, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**Processor(padding_side=side, **SIZES)(conversations), **options)


def test_generation_needs_each_rows_next_position(model, processor, conversations):
    inputs = processor(conversations)
    with pytest.raises(ValueError, match=r"next_position must be \[4\] for input_ids of 4 rows of \d+ tokens, got \[1\]"):
        model.generate(**{**inputs, "next_position": inputs["next_position"][:1]})
    near = torch.full((4,), 2.0**24 - 8)
    with pytest.raises(ValueError, match=r"ids would pass 2\^24 .* give next_position in float64"):
        model.generate(**{**inputs, "next_position": near}, max_new_tokens=11)
    model.generate(**{**inputs, "next_position": near}, max_new_tokens=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: {**i, "attention_mask": i["attention_mask"][:, -1:]},
            r"attention_mask must be \[4, \d+\] for input_ids of 4",
        ),
        (lambda i: {**i, "attention_mask": i["attention_mask"][:1]}, r"attention_mask must be \[4, \d+\] for input_ids of 4"),
        (
            lambda i: {**i, "attention_mask": F.pad(i["attention_mask"], (1, 0))},
            r"attention_mask must be \[4, \d+\], as input_ids",
        ),
        (lambda i: {**i, "mm_token_type_ids": i["mm_token_type_ids"][:, :1]}, r"mm_token_type_ids must be \[4, \d+\] for"),
        (
            lambda i: {**i, "position_ids": i["position_ids"][..., :1]},
            r"position_ids must be \[axes, 4, \d+\] for .* got \[3, 4, 1\]",
        ),
        (
            lambda i: {**i, "input_ids": i["input_ids"] + 263},
            r"input_ids go from \d+ to \d+, and the model knows 263 tokens from 0",
        ),
        (lambda i: {**i, "input_ids": -i["input_ids"]}, r"input_ids go from -\d+ to "),
        (lambda i: {**i, "input_ids": i["input_ids"].float()}, r"input_ids must be whole numbers \[B, S\], got torch.float32"),
        (lambda i: {**i, "next_position": i["next_position"] * math.nan}, r"next_position must be numbers, got \[nan, "),
        (lambda i: _without(i, rows=True), r"there is nothing to continue: input_ids are \[0, \d+\], 0 rows of \d+ tokens"),
        (lambda i: _without(i, rows=False), r"there is nothing to continue: input_ids are \[4, 0\], 4 rows of 0 tokens"),
    ],
)
def test_prompts_that_are_none_are_refused(model, processor, conversations, change, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**change(processor(conversations)), max_new_tokens=2)


def _without(inputs, rows):
    """Inputs without rows, or without tokens."""
    ids = inputs["position_ids"]
    none = {
        key: inputs[key][:0] if rows else inputs[key][:, :0] for key in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    return none | {
        "position_ids": ids[:, :0] if rows else ids[..., :0],
        "next_position": inputs["next_position"][: 0 if rows else 4],
    }


def test_a_model_that_computes_nan_writes_nothing(processor, conversations):
    broken = VLM(SMALL).eval()
    with torch.no_grad():
        broken.embedding.weight[5] = math.nan
    for options in ({}, {"temperature": 1.0}):
        with pytest.raises(
            ValueError, match=r"the model computes no numbers \(nan\) for row 0, token 1: are its weights damaged, or"
        ):
            broken.generate(**processor(conversations[0]), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": None}, "attention_mask missing: pass all that the processor returned"),
        ({"next_position": None, "attention_mask": None}, "attention_mask and next_position missing"),
        ({"cache": 3}, "cache must be a KVCache, got 3"),
        ({"generator": 5}, "generator must be a torch.Generator, got 5"),
        ({"generator": np.random.default_rng(0), "temperature": 1.0}, "generator must be a torch.Generator, got Generator"),
        ({"input_ids": [[1, 2]]}, r"input_ids must be a tensor, as the processor returns it, got \[\[1, 2\]\]"),
        ({"image_grid_thw": [[1, 4, 4]]}, "image_grid_thw must be a tensor"),
        (
            {"image_grid_thw": torch.tensor([[1.0, 4, 4]])},
            r"image_grid_thw must be whole numbers \[items, 3\], got torch.float32",
        ),
        ({"image_grid_thw": torch.tensor([1, 4, 4])}, r"image_grid_thw must be whole numbers \[items, 3\], got .* \[3\]"),
    ],
)
def test_what_is_no_input_is_refused_in_words(model, processor, conversations, change, message):
    inputs = processor(conversations[0])
    with pytest.raises(ValueError, match=message):
        model.generate(**{**inputs, **change}, max_new_tokens=2)
    if change.keys() & {"cache", "input_ids", "image_grid_thw"}:
        with pytest.raises(ValueError, match=message):
            model(**{**inputs, **change})


@torch.no_grad()
def test_tokens_may_be_int32(model, processor, conversations):
    inputs = processor(conversations)
    short = {**inputs, "input_ids": inputs["input_ids"].int()}
    assert torch.equal(model(**short).logits, model(**inputs).logits)
    assert torch.equal(model.generate(**short, max_new_tokens=3), model.generate(**inputs, max_new_tokens=3))


@torch.no_grad()
@pytest.mark.parametrize("most", [10**9, 10**30, 10**400])
def test_any_number_of_tokens_may_be_allowed(model, processor, conversations, most):
    """Room is taken as it is needed, and the tokens are those of a cache that had room for all."""
    inputs, cache = processor(conversations[1]), KVCache()
    steps = model.stream(**inputs, cache=cache, max_new_tokens=most)
    written = [next(steps) for _ in range(3)]
    assert torch.equal(torch.tensor(written).T, model.generate(**inputs, max_new_tokens=3))
    assert cache.kv[0].shape[-2] == inputs["input_ids"].shape[1] + 8192
    inputs["next_position"] = inputs["next_position"].float()
    with pytest.raises(ValueError, match=r"the answer's ids would pass 2\^24"):
        model.generate(**inputs, max_new_tokens=most)


@torch.no_grad()
def test_a_cache_is_begun_anew_when_weights_or_adapters_change(model, processor, conversations):
    peft = pytest.importorskip("peft")
    inputs = processor(conversations[0])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q", "k", "v"], init_lora_weights=False)).eval()
    other = {name: torch.randn_like(weight) / 4 for name, weight in model.state_dict().items()}
    read, embed, cache = [], VLM.embed, KVCache()

    def first(**cached):
        """The logits of the first new token."""
        found, logits = [], model.logits
        model.logits = lambda hidden: found.append(logits(hidden)) or found[-1]
        model.embed = lambda inputs: read.append(inputs["input_ids"].shape[1]) or embed(model, inputs)
        model.generate(**inputs, max_new_tokens=1, **cached)
        del model.logits, model.embed
        return found[0]

    def step():
        weight = model.embedding.weight
        torch.optim.SGD([weight], lr=1.0).zero_grad()
        weight.grad = torch.randn_like(weight)
        torch.optim.SGD([weight], lr=1.0).step()

    first(cache=cache)
    length = read[-1]
    for change in (
        adapted.disable_adapter_layers,
        adapted.enable_adapter_layers,
        adapted.merge_adapter,
        adapted.unmerge_adapter,
        lambda: model.load_state_dict(other),
        lambda: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True),
        step,
    ):
        first(cache=cache)
        assert read[-1] == 1  # what is as it was is not read again
        change()
        cached = first(cache=cache)
        assert read[-1] == length
        assert torch.equal(cached, first())


@torch.no_grad()
def test_a_cache_compares_grids(model, monkeypatch):
    """The same tokens, ids and pixels, cut another way: 8 x 4 patches for 4 x 8."""
    pixels = np.random.default_rng(0).integers(0, 256, (56, 112, 3), np.uint8)
    content = [{"type": "image", "image": pixels}, {"type": "text", "text": "What?"}]
    inputs, cache, read, embed = Processor()([{"role": "user", "content": content}]), KVCache(), [], VLM.embed
    monkeypatch.setattr(VLM, "embed", lambda self, inputs: read.append(inputs["input_ids"].shape[1]) or embed(self, inputs))
    for grid in ([1, 4, 8], [1, 4, 8], [1, 8, 4]):
        model.generate(**{**inputs, "image_grid_thw": torch.tensor([grid])}, cache=cache, max_new_tokens=1)
    assert read[:2] == [inputs["input_ids"].shape[1], 1]
    assert read[2] > 8  # the image, and all that follows it


def test_labels_and_logits_are_of_the_tokens(model, processor, conversations):
    inputs = processor(conversations)
    with pytest.raises(ValueError, match=r"labels must be \[4, \d+\], as input_ids are, got \[4, 3\]"):
        model(**inputs, labels=inputs["input_ids"][:, :3])
    with pytest.raises(ValueError, match=r"logits_to_keep must be a number of last tokens, 0 for all, got -1"):
        model(**inputs, logits_to_keep=-1)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (4, 3)])
def test_a_cache_is_of_one_batch(model, processor, conversations, first, then):
    cache = KVCache()
    model(**processor(conversations[:first]), cache=cache)
    with pytest.raises(
        ValueError, match=rf"the cache holds {first} rows of 2 heads of 16, and these are {then} rows|columns, but"
    ):
        model(**processor(conversations[:then]), cache=cache)


def test_heads_must_share_keys_evenly():
    with pytest.raises(ValueError, match="num_heads 8 must be a multiple of num_kv_heads 3"):
        DecoderConfig(num_kv_heads=3)
    assert isinstance(VisionEncoder(SMALL.vision, 64), torch.nn.Module)


def test_bytes_are_normalised_by_the_model(samples):
    """Patches as uint8 give what normalised ones give: the model does it itself."""
    content = [{"type": "image", "image": samples / "cat.jpg"}, {"type": "video", "video": samples / "clip.mp4"}]
    messages = [{"role": "user", "content": content}]
    small = {"image_pixels": (56 * 56, 20 * 28 * 28), "video_pixels": (4 * 28 * 28, 8 * 28 * 28), "max_frames": 4}
    model = VLM(SMALL).eval()
    with torch.no_grad():
        one, other = (model(**Processor(pixels=kind, **small)(messages)).logits for kind in ("float32", "uint8"))
    assert torch.equal(one, other)
