"""The proof: models of transformers on mmrope's ids and rotations say what they say on their own, wherever the rules agree; and
where they do not, mmrope's ids are the same at the prompt, at every step and in the whole, and transformers' own are not."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from upstream_ids import TRANSFORMERS, as_inputs, transformers_ids, with_tokens

import mmrope
from mmrope import Segment
from mmrope.adapters import transformers as door
from mmrope.adapters.rotary import RotaryInPlace
from mmrope.adapters.transformers import generate, with_positions

CLOSE = {"rtol": 0, "atol": 1e-5}
# linear attention and top-k experts round differently by the shape of the call: 5e-5 between SDPA and eager with the same ids
ROUGH = {"qwen3_5", "qwen3_5_moe", "qwen4_exp", "minicpmv4_7", "glm4v_moe"}
UNEQUAL_ROTATION = {"hunyuan_vl"}  # transformers rotates by channel, which is no rotation: test_spec.py
WRITTEN_BY_ITS_PROCESSOR = {"neomme"}
# what a model's ids overwrite: modeling_glm_image.py of 5.23.0, prepare_inputs_for_generation
KEEPS_ITS_OWN_IDS = {"glm_image"}
SPLIT_LONG = ("qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe")  # videos in one block: text after them is where rules differ
GENERATING = sorted(name for name, tiny in tiny_models.MODELS.items() if tiny.generates and name not in KEEPS_ITS_OWN_IDS)

TEXT, IMAGE, WIDE = Segment.text(3), Segment.image(h=2, w=3), Segment.image(h=2, w=2)
CANVAS = Segment.canvas(h=2, w=2)
FRAME, VIDEO = Segment.frame(h=2, w=3), Segment.video(t=9, h=1, w=2, seconds_per_grid=1.0)


def close(name, rough=1e-4):
    return {"rtol": 0, "atol": rough} if name in ROUGH else CLOSE


def agreed(name):
    """A batch that the reference and transformers place alike: images, sounds, single frames and text; the second row is padded on the left."""
    family = with_tokens(name)
    if name == "neomme":
        return [[Segment.text(2), Segment.image(h=2, w=4)], [Segment.pad(4), Segment.text(6)]]
    if "canvas" in family.media:
        return mmrope.collate([[TEXT, CANVAS, TEXT], [TEXT, CANVAS, TEXT, Segment.text(4)]], pad_side="left")
    image, wide = (Segment.image(h=s.grid[1], w=s.grid[2] + family.row_token) for s in (IMAGE, WIDE))
    first = [TEXT, image, TEXT, wide, TEXT]
    frames = "frame" in family.media and ("image", "frame") not in tiny_models.MODELS[name].together
    if frames and tiny_models.MODELS[name].together is not tiny_models._ONE_KIND:
        first += [FRAME, TEXT, FRAME, TEXT]
    if "audio" in family.media:
        first += [Segment.audio(7), TEXT]
    return mmrope.collate([first, [TEXT, wide, TEXT]], pad_side="left")


def given(name, rows, family=None, **options):
    """A model's inputs with mmrope's ids of the rows."""
    made = tiny_models.inputs(name, rows)
    family = family or with_tokens(name)
    ids = mmrope.position_ids(rows, family)
    return {**made, "position_ids": torch.tensor(mmrope.hf_position_ids(ids, text_row=len(family.axes) == 3))}


def put_rotary(model, name, **options):
    """mmrope's rotary embedding in the place of the model's own."""
    path, _, attribute = tiny_models.MODELS[name].rotary.rpartition(".")
    holder = model.get_submodule(path)
    setattr(holder, attribute, RotaryInPlace(getattr(holder, attribute), **options))


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def real(rows):
    """[B, S] where tokens are no padding."""
    return torch.tensor([[s.kind != "pad" for s in row for _ in range(s.length)] for row in rows])


# --- where the rules agree --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_logits_on_our_ids_and_rotary_are_the_models_own(name):
    rows, rule = agreed(name), with_tokens(f"{name}@{TRANSFORMERS}")
    model, inputs = tiny_models.model(name), tiny_models.inputs(name, rows)
    if name in WRITTEN_BY_ITS_PROCESSOR:
        theirs, _ = transformers_ids(rule, as_inputs(rows, rule))
        own = logits(model, {**inputs, "position_ids": torch.tensor(theirs)})
    else:
        own = logits(model, inputs)
    ours = given(name, rows, rule if name in UNEQUAL_ROTATION else None)
    mask = real(rows)
    torch.testing.assert_close(logits(model, ours)[mask], own[mask], **close(name))
    if name in UNEQUAL_ROTATION:
        with pytest.raises(ValueError, match="HunYuanVLRotaryEmbedding computes other angles than RotarySpec"):
            put_rotary(model, name)
        return
    put_rotary(model, name)
    torch.testing.assert_close(logits(model, ours)[mask], own[mask], **close(name))
    moved = ours["position_ids"].clone()
    moved[-2, :, -2:] += 3  # the test can fail: other ids on one axis say something else
    assert (logits(model, {**ours, "position_ids": moved})[:, -1] - own[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(set(tiny_models.MODELS) - WRITTEN_BY_ITS_PROCESSOR - UNEQUAL_ROTATION))
def test_the_collator_puts_the_same_ids_in(name):
    """Read from the model's inputs instead of our own rows."""
    rows = agreed(name)
    ours = given(name, rows)
    found = with_positions(tiny_models.inputs(name, rows), with_tokens(name), text_row=ours["position_ids"].shape[0] == 4)
    mask = real(rows)
    assert torch.equal(found["position_ids"][:, mask], ours["position_ids"][:, mask])


# --- generation -------------------------------------------------------------------------------------------------------


def followed(name, rows, tokens, family):
    """The whole row with what was generated as text, forwarded at once."""
    longer = [mmrope.append(row, [Segment.text(tokens.shape[1])]) for row in rows]
    whole = given(name, rows)
    whole["position_ids"] = torch.tensor(
        mmrope.hf_position_ids(mmrope.position_ids(longer, family), text_row=len(family.axes) == 3)
    )
    whole["input_ids"] = torch.cat([whole["input_ids"], tokens], dim=1)
    for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("moe_mm_token_type_ids", 0)):
        if key in whole:
            whole[key] = torch.nn.functional.pad(whole[key], (0, tokens.shape[1]), value=value)
    return whole


STEPS = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.mark.parametrize("name", GENERATING)
def test_generate_equals_teacher_forcing_under_our_ids(name):
    """Left padding, images, and for models whose videos are one block a long video."""
    family = with_tokens(name)
    rows = agreed(name)
    if name in SPLIT_LONG:
        rows = mmrope.collate([[TEXT, VIDEO, TEXT], [TEXT, IMAGE, Segment.text(2)]], pad_side="left")
    model = tiny_models.model(name)
    said = generate(model, tiny_models.inputs(name, rows), family=family, **STEPS)
    new = said.sequences[:, -4:]
    whole = logits(model, followed(name, rows, new, family))
    for step, found in enumerate(said.logits):
        torch.testing.assert_close(found, whole[:, step - 5], **close(name, 1e-3))


@pytest.mark.parametrize("name", SPLIT_LONG)
def test_transformers_own_ids_do_not_agree_with_each_other_after_a_long_video(name):
    """5.23.0: a forward pass puts text after the video into its time; a cached step by `rope_deltas` puts it behind."""
    rows = [[TEXT, VIDEO, TEXT]]
    model, inputs = tiny_models.model(name), tiny_models.inputs(name, rows)
    token = torch.tensor([[42]])
    text = {key: torch.zeros_like(token) for key in ("mm_token_type_ids", "moe_mm_token_type_ids") if key in inputs}
    with torch.no_grad():
        past = model(**inputs, use_cache=True).past_key_values
        step = model(input_ids=token, past_key_values=past, use_cache=True, **text).logits[:, -1]
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], token], dim=1)}
        for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("moe_mm_token_type_ids", 0)):
            if key in whole:
                whole[key] = torch.nn.functional.pad(whole[key], (0, 1), value=value)
        forced = model(**whole).logits[:, -1]
    assert (step - forced).abs().max() > 1e-2
    family = with_tokens(name)
    ids = mmrope.position_ids([mmrope.append(rows[0], [Segment.text(1)])], family).ids
    with torch.no_grad():
        past = model(**given(name, rows), use_cache=True).past_key_values
        step = model(
            input_ids=token, past_key_values=past, use_cache=True, position_ids=torch.tensor(ids[:, :, -1:]), **text
        ).logits[:, -1]
    forced = logits(model, {**whole, "position_ids": torch.tensor(ids)})[:, -1]
    torch.testing.assert_close(step, forced, **CLOSE)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "hunyuan_vl"])
@pytest.mark.parametrize("new_media", [True, False])
def test_a_conversation_goes_on_from_its_cache(name, new_media):
    """The whole conversation goes in; what the model has seen is not handed on, and logits are those of one pass."""
    family = with_tokens(name)
    image, wide = (Segment.image(h=s.grid[1], w=s.grid[2] + family.row_token) for s in (IMAGE, WIDE))
    first = mmrope.collate([[TEXT, image, TEXT, wide, TEXT], [TEXT, wide, TEXT]], pad_side="left")
    turn = [Segment.text(4), image, TEXT] if new_media else [Segment.text(5)]
    rows = [mmrope.append(row, turn) for row in first]
    inputs = tiny_models.inputs(name, rows)
    model = tiny_models.model(name)
    before = {key: value for key, value in tiny_models.inputs(name, first).items() if not key.startswith("pixel")}
    before["input_ids"] = inputs["input_ids"][:, : first[0].length]
    # pixels of the first turn: row 0 has two images of it, row 1 one; in the whole each has another behind them
    seen = (
        torch.tensor([True, True, False, True, False][: 5 if new_media else 3])
        if new_media
        else torch.ones(3, dtype=torch.bool)
    )
    by_patch = seen.repeat_interleave(inputs["image_grid_thw"].prod(-1))
    before["pixel_values"] = inputs["pixel_values"][by_patch]
    with torch.no_grad():
        cache = model(**before, position_ids=given(name, first)["position_ids"], use_cache=True).past_key_values
    said = generate(model, inputs, family=family, past_key_values=cache, **STEPS)
    whole = {**followed(name, rows, said.sequences[:, -4:], family), "pixel_values": inputs["pixel_values"]}
    whole["input_ids"][:, : rows[0].length] = inputs["input_ids"]
    expected = logits(model, whole)
    for step, found in enumerate(said.logits):
        torch.testing.assert_close(found, expected[:, step - 5], **close(name))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "glm4v"])
def test_generate_from_embeddings(name):
    """Without ids every family of transformers 5.23 falls back to one dimension here, silently."""
    rows = [[TEXT, IMAGE, TEXT, WIDE, TEXT]]
    model, inputs = tiny_models.model(name), tiny_models.inputs(name, rows)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    embeddings[inputs["mm_token_type_ids"] == 1] = torch.cat(list(features))
    expected = generate(model, inputs, family=with_tokens(name), **STEPS)
    without_pixels = {key: value for key, value in inputs.items() if key != "pixel_values"}
    found = generate(model, without_pixels, family=with_tokens(name), inputs_embeds=embeddings, **STEPS)
    for one, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    del without_pixels["input_ids"]
    own = model.generate(**without_pixels, inputs_embeds=embeddings, **STEPS)
    assert (own.logits[0] - expected.logits[0]).abs().max() > 1e-3


def test_generate_refuses_what_it_would_get_wrong(monkeypatch):
    model, family = tiny_models.model("qwen2_vl"), with_tokens("qwen2_vl")

    def refused(rows, message, **options: Any):
        with pytest.raises(ValueError, match=message):
            generate(model, tiny_models.inputs("qwen2_vl", rows), family=family, **options)

    refused([[TEXT, IMAGE, TEXT, Segment.pad(2)]], "row 0 is padded on the right: generation goes on at the last column")
    refused(
        [[TEXT, IMAGE]],
        r"row 0 ends on Segment.image\(h=2, w=3\), after which text goes on at 6, but generate .* at \[4, 5, 6\]",
    )
    with torch.no_grad():
        cache = model(**tiny_models.inputs("qwen2_vl", [[Segment.text(5)]]), use_cache=True).past_key_values
    refused([[TEXT, IMAGE, TEXT]], r"row 0: past_key_values end at token 5, inside the image at 3..8", past_key_values=cache)
    monkeypatch.setattr(door, "installed_version", lambda name: "4.57.1")
    refused([[TEXT]], "transformers 4.57.1: its generate does not take position_ids")
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"glm_image takes no ids by generate: its prepare_inputs_for_generation sets them to None"
    ):
        generate(tiny_models.model("glm_image"), tiny_models.inputs("glm_image", [[TEXT]]), family=with_tokens("glm_image"))
