"""The small model with other positions: each differs from the others by what its name says."""

from __future__ import annotations

import pytest
import torch

from mmrope import VLM
from mmrope.vlm.data import small_config, task_processor
from mmrope.vlm.variants import VARIANTS

PROCESSOR = task_processor(threads=1)


def models():
    made = {}
    for name, build in VARIANTS.items():
        torch.manual_seed(0)
        made[name] = build(small_config(PROCESSOR)).eval()
    return made


@pytest.fixture(scope="module")
def inputs(samples):
    grid = {"type": "image", "image": samples / "grid.png"}
    ask = lambda *content: [{"role": "user", "content": [*content, {"type": "text", "text": "Read all."}]}]  # noqa: E731
    return PROCESSOR([ask(grid), ask()])


@torch.no_grad()
def test_they_have_the_same_weights_and_say_different_things(inputs):
    made = models()
    states = [model.state_dict() for model in made.values()]
    assert all(torch.equal(states[0][name], value) for state in states for name, value in state.items())
    logits = [model(**inputs).logits[0, -1] for model in made.values()]
    for a in range(4):
        for b in range(a):
            assert (logits[a] - logits[b]).abs().max() > 1e-4


@torch.no_grad()
def test_flat_ids_are_places_in_the_row(inputs):
    made = models()
    length = inputs["input_ids"].shape[1]
    pads = (inputs["attention_mask"] == 0).sum(1)
    flat = torch.stack([(torch.arange(length) - pad).clamp_min(0) for pad in pads])  # [B, S]
    expected = made["interleaved"](**{**inputs, "position_ids": flat.expand(3, -1, -1)}).logits
    torch.testing.assert_close(made["flat"](**inputs).logits, expected, rtol=0, atol=0)
    alone = {**inputs, "attention_mask": None}
    torch.testing.assert_close(made["flat"](**alone).logits[0], made["flat"](**inputs).logits[0], rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_cached_generation_equals_recomputation(inputs, name):
    """Padded on the left: a variant must tell its places from the mask, not from the columns."""
    model = models()[name]
    written = model.generate(**inputs, max_new_tokens=4)
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    media = {key: value for key, value in inputs.items() if key.startswith(("pixel", "image"))}
    for step in range(written.shape[1]):
        extra = tokens.shape[1] - inputs["input_ids"].shape[1]
        types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, extra))
        after = (inputs["next_position"][:, None] + torch.arange(extra)).expand(3, -1, -1)  # [3, B, extra]
        ids = torch.cat((inputs["position_ids"], after), dim=2)
        logits = model(input_ids=tokens, position_ids=ids, attention_mask=mask, mm_token_type_ids=types, **media).logits
        assert torch.equal(logits[:, -1].argmax(-1), written[:, step])
        tokens, mask = torch.cat((tokens, written[:, step : step + 1]), 1), torch.nn.functional.pad(mask, (0, 1), value=1)


@torch.no_grad()
def test_without_rotation_the_encoder_has_no_order(inputs):
    """Tokens' patches in another order give the same embeddings in that order."""
    made = models()
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    order = torch.randperm(len(pixels) // 4, generator=torch.Generator().manual_seed(0))
    moved = pixels.unflatten(0, (-1, 4))[order].flatten(0, 1)
    for name, same in (("no_vision_rope", True), ("interleaved", False)):
        encoder = made[name].vision
        assert torch.allclose(encoder(moved, grid), encoder(pixels, grid)[order], atol=1e-5) == same


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_saved_as_what_it_is(name, tmp_path):
    model = models()[name]
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.vision.rotary.spec == model.vision.rotary.spec
    if type(model) is not VLM:
        with pytest.raises(ValueError, match=r"holds a FlatIds, not a VLM: load it with FlatIds.from_pretrained"):
            VLM.from_pretrained(tmp_path)


def test_contiguous_is_another_order_of_the_axes():
    made = models()
    assert made["contiguous"].config.rotary != made["interleaved"].config.rotary
