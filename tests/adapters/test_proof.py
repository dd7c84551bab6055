"""The proof: models of transformers on mmrope's ids and rotations say what they say on their own, wherever the rules agree; and
where they do not, mmrope's ids are the same at the prompt, at every step and in the whole, and transformers' own are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

import mmrope
from mmrope import Segment
from mmrope.adapters import transformers as door
from mmrope.adapters.transformers import generate, with_positions
from tests.support import proof, tiny_models
from tests.support.proof import FRAME, IMAGE, IN_ONE_BLOCK, STEPS, TEXT, VIDEO, WIDE, agreed, followed, given, logits, real
from tests.support.upstream_ids import CACHE, IN_TRANSFORMERS, with_tokens

CLOSE = {"rtol": 0, "atol": 1e-5}
# step by step and at once are other sums in linear attention: transformers' own ids differ by as much
RECURRENT = {name for name in tiny_models.MODELS if with_tokens(name).checkpoint.recurrent}
GENERATING = sorted(set(tiny_models.MODELS) - set(proof.NOT_BY_GENERATE))


def close(name):
    return {"rtol": 0, "atol": 1e-3} if name in RECURRENT else CLOSE


# --- where the rules agree --------------------------------------------------------------------------------------------


def test_every_family_of_transformers_is_there():
    assert sorted(tiny_models.MODELS) == IN_TRANSFORMERS
    assert not tiny_models.NOT_INSTANTIABLE


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_logits_on_our_ids_and_rotary_are_the_models_own(name):
    rows = agreed(name)
    own = proof.own_logits(name, rows)
    if name in proof.UNEQUAL_ROTATION:
        torch.testing.assert_close(proof.our_logits(name, rows, rotary=False), own, **CLOSE)
        with pytest.raises(ValueError, match="RotaryEmbedding computes other angles than RotarySpec"):
            proof.put_rotary(tiny_models.model(name))
        return
    torch.testing.assert_close(proof.our_logits(name, rows), own, **CLOSE)
    moved = given(name, rows)
    moved["position_ids"][-2, :, -2:] += 3  # the test can fail: other ids on one axis say something else
    assert (logits(tiny_models.model(name), moved)[real(rows)] - own).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name, tiny in tiny_models.MODELS.items() if ("frame",) in tiny.together])
def test_logits_on_frames_of_models_that_take_frames_by_themselves(name):
    rows = mmrope.collate([[TEXT, FRAME, TEXT, FRAME, TEXT], [TEXT, FRAME, TEXT]], pad_side="left")
    torch.testing.assert_close(proof.our_logits(name, rows), proof.own_logits(name, rows), **CLOSE)


@pytest.mark.parametrize("name", sorted(set(tiny_models.MODELS) - set(proof.WRITTEN_BY_ITS_PROCESSOR)))
def test_the_collator_puts_the_same_ids_in(name):
    """Read from the model's inputs instead of our own rows."""
    rows = agreed(name)
    if name == "hunyuan_vl":  # the marks around its images, of which our rows have none
        rows = [[Segment.text(5)], [Segment.pad(2), Segment.text(3)]]
    ours = given(name, rows)
    text_row = None if proof.V5 else ours["position_ids"].shape[0] == 4
    found = with_positions(tiny_models.inputs(name, rows), with_tokens(name), text_row=text_row)
    mask = real(rows)
    assert torch.equal(found["position_ids"][:, mask], ours["position_ids"][:, mask])


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATING)
def test_generate_equals_teacher_forcing_under_our_ids(name):
    steps, whole = proof.steps_and_whole(name, proof.long_rows(name))
    torch.testing.assert_close(steps, whole, **close(name))


@pytest.mark.parametrize("name", IN_ONE_BLOCK)
def test_transformers_own_ids_do_not_agree_with_each_other_after_a_long_video(name):
    """5.23.0: a forward pass puts text after the video into its time; a cached step by `rope_deltas` puts it behind."""
    rows = [[TEXT, VIDEO, TEXT]]
    model, inputs = tiny_models.model(name), tiny_models.inputs(name, rows)
    token = torch.tensor([[42]])
    text = {key: torch.zeros_like(token) for key in ("mm_token_type_ids", "moe_mm_token_type_ids") if key in inputs}
    with torch.no_grad():
        past = model(**inputs, use_cache=True).past_key_values
        step = model(input_ids=token, **{CACHE: past}, use_cache=True, **text).logits[:, -1]
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], token], dim=1)}
        for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("moe_mm_token_type_ids", 0)):
            if key in whole:
                whole[key] = torch.nn.functional.pad(whole[key], (0, 1), value=value)
        forced = model(**whole).logits[:, -1]
    assert (step - forced).abs().max() > 1e-2
    family = with_tokens(name)
    ids = mmrope.position_ids([mmrope.positions.append(rows[0], [Segment.text(1)])], family).ids
    with torch.no_grad():
        past = model(**given(name, rows), use_cache=True).past_key_values
        step = model(
            input_ids=token, **{CACHE: past}, use_cache=True, position_ids=torch.tensor(ids[:, :, -1:]), **text
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
    rows = [mmrope.positions.append(row, turn) for row in first]
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
    again = copy.deepcopy(cache)
    said = generate(model, inputs, family=family, past_key_values=cache, **STEPS)
    by_its_new_name = generate(model, inputs, family=family, cache=again, **STEPS)
    assert torch.equal(by_its_new_name.sequences, said.sequences)
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


def test_generate_takes_what_the_other_doors_make():
    """A batch with ids in it, which are checked; a processor's of mmrope, whose own keys go; not a pack."""
    model, family = tiny_models.model("qwen2_5_vl"), with_tokens("qwen2_5_vl")
    inputs = tiny_models.inputs("qwen2_5_vl", [[TEXT, VIDEO, TEXT]])
    expected = generate(model, inputs, family=family, **STEPS)
    batch = {**with_positions(inputs, family), "next_position": torch.tensor([22]), "video_timestamps": []}
    for mine in (batch, transformers.BatchFeature(dict(inputs))):
        found = generate(model, mine, family=family, **STEPS)
        assert torch.equal(found.sequences, expected.sequences)
    with pytest.raises(mmrope.positions.WrongPositions):
        generate(model, {**batch, "position_ids": batch["position_ids"] + 1}, family=family)
    with pytest.raises(ValueError, match="the inputs are a pack: generation takes a padded batch"):
        generate(model, with_positions(inputs, family, packed=True), family=family)
    with pytest.raises(ValueError, match=r"input_ids must be a tensor \[B, S\], got list"):
        generate(model, {**inputs, "input_ids": inputs["input_ids"].tolist()}, family=family)
    thinking = torch.nn.Module()
    thinking.thinker = model
    with pytest.raises(ValueError, match=r"generate hands position_ids to its talker, too, .* model.thinker"):
        generate(thinking, inputs, family=family)


def test_beams_and_several_samples():
    model, family = tiny_models.model("qwen3_vl"), with_tokens("qwen3_vl")
    rows = mmrope.collate([[TEXT, IMAGE, TEXT], [TEXT, WIDE, TEXT]], pad_side="left")
    said = generate(
        model,
        tiny_models.inputs("qwen3_vl", rows),
        family=family,
        num_beams=3,
        num_return_sequences=2,
        output_scores=True,
        **STEPS,
    )
    assert said.sequences.shape[0] == 4
    whole = logits(model, followed("qwen3_vl", rows, said.sequences[::2, -4:], family))[:, -5:-1].log_softmax(dim=-1)
    told = model.generation_config.suppress_tokens
    allowed = whole.clone()
    scores = allowed.gather(-1, said.sequences[::2, -4:, None])[..., 0].sum(dim=1)
    assert told
    torch.testing.assert_close(said.sequences_scores[::2], scores / 4, rtol=0, atol=1e-4)


def test_generate_refuses_what_it_would_get_wrong(monkeypatch):
    model, family = tiny_models.model("qwen2_vl"), with_tokens("qwen2_vl")

    def refused(rows, message, **options: Any):
        with pytest.raises(ValueError, match=message):
            generate(model, tiny_models.inputs("qwen2_vl", rows), family=family, **options)

    refused([[TEXT, IMAGE, TEXT, Segment.pad(2)]], "row 0 is padded on the right: generation goes on at the last column")
    refused(
        [[TEXT, IMAGE]],
        r"row 0 ends on Segment.image\(h=2, w=3\), after which text continues at 6, but generate .* at \[4, 5, 6\]",
    )
    with torch.no_grad():
        cache = model(**tiny_models.inputs("qwen2_vl", [[Segment.text(5)]]), use_cache=True).past_key_values
    refused([[TEXT, IMAGE, TEXT]], r"row 0: the cache ends at token 5, inside the image at 3..8", past_key_values=cache)
    refused([[TEXT, TEXT]], "cache and past_key_values are two names of one thing", past_key_values=cache, cache=cache)
    monkeypatch.setattr(door, "installed_version", lambda name: "4.57.1")
    refused([[TEXT]], "transformers 4.57.1: its generate does not go on from position_ids")
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"glm_image takes no ids by generate: its prepare_inputs_for_generation sets them to None"
    ):
        generate(tiny_models.model("glm_image"), tiny_models.inputs("glm_image", [[TEXT]]), family=with_tokens("glm_image"))
