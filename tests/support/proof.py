"""What the proof is made of: models on transformers' ids and rotations, and on mmrope's, and how far apart they are.

Works with transformers 5.20 to 5.24 and 4.57, whichever is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

import mmrope
from mmrope import Segment
from mmrope.adapters.rotary import RotaryInPlace
from mmrope.adapters.transformers import RopeIndex, generate, with_positions
from mmrope.adapters.upstreams import takes_text_row
from mmrope.positions import Canvas
from tests.support import tiny_models
from tests.support.upstream_ids import TRANSFORMERS, as_inputs, rope_index_arguments, transformers_ids, with_tokens

UNEQUAL_ROTATION = {"hunyuan_vl": "transformers rotates by channel, which is no rotation"}
if TRANSFORMERS.startswith("transformers-5") and version("transformers").startswith("5.20."):
    UNEQUAL_ROTATION["cohere_compass"] = "transformers 5.20 turns other channels by h and w than 5.21 and later"
WRITTEN_BY_ITS_PROCESSOR = {"neomme": "its processor writes the ids"}
NOT_BY_GENERATE = {"glm_image": "generate overwrites them", "neomme": "an encoder"}
NOT_PACKED = {
    "hunyuan_vl": "no text row; by a mask",
    "neomme": "no text row",
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen4_exp", "minicpmv4_7"), "needs flash-linear-attention"),
}
IN_ONE_BLOCK = ("qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe")  # videos: text after them is where rules differ
V5 = TRANSFORMERS.startswith("transformers-5")

TEXT, IMAGE, WIDE, CANVAS = Segment.text(3), Segment.image(h=2, w=3), Segment.image(h=2, w=2), Canvas.make(h=2, w=2)
FRAME, VIDEO = Segment.frame(h=2, w=3), Segment.video(t=9, h=1, w=2, seconds_per_grid=1.0)
STEPS = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


def agreed(name: str) -> list[list[Any]]:
    """A batch that the reference and transformers place alike: images, sounds, single frames and text; the second row is padded
    on the left."""
    family, together = with_tokens(name), tiny_models.MODELS[name].together
    if name == "neomme":
        return [[Segment.text(2), Segment.image(h=2, w=4)], [Segment.pad(4), Segment.text(6)]]
    if "canvas" in family.media:
        return mmrope.collate([[TEXT, CANVAS, TEXT], [TEXT, CANVAS, TEXT, Segment.text(4)]], pad_side="left")
    image, wide = (Segment.image(h=s.grid[1], w=s.grid[2] + family.row_token) for s in (IMAGE, WIDE))
    first = [TEXT, image, TEXT, wide, TEXT]
    if "frame" in family.media and not together:
        first += [FRAME, TEXT, FRAME, TEXT]
    if "audio" in family.media:
        first += [Segment.audio(7), TEXT]
    return mmrope.collate([first, [TEXT, wide, TEXT]], pad_side="left")


def given(name: str, rows: Sequence[Any], family: Any = None) -> dict[str, Any]:
    """A model's inputs with mmrope's ids of the rows."""
    family = family or with_tokens(name)
    ids = mmrope.hf_position_ids(mmrope.position_ids(rows, family), text_row=takes_text_row(family))
    return {**tiny_models.inputs(name, rows), "position_ids": torch.tensor(ids)}


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def real(rows: Sequence[Any]) -> torch.Tensor:
    """[B, S] where tokens are no padding."""
    return torch.tensor([[s.kind != "pad" for s in row for _ in range(s.length)] for row in rows])


def own_logits(name: str, rows: Sequence[Any]) -> torch.Tensor:
    """Of real tokens, on the ids and the rotation that transformers gives the model."""
    model, inputs = tiny_models.model(name), tiny_models.inputs(name, rows)
    if name in WRITTEN_BY_ITS_PROCESSOR:
        rule = with_tokens(f"{name}@{TRANSFORMERS}")
        inputs["position_ids"] = torch.tensor(transformers_ids(rule, as_inputs(rows, rule))[0])
    return logits(model, inputs)[real(rows)]


def our_logits(name: str, rows: Sequence[Any], *, rotary: bool = True) -> torch.Tensor:
    """The same on mmrope's ids, and its rotation in the place of the model's own."""
    model = tiny_models.model(name)
    if rotary:
        put_rotary(model)
    rule = (
        with_tokens(f"{name}@{TRANSFORMERS}") if name in UNEQUAL_ROTATION else None
    )  # images are counted over the batch there
    return logits(model, given(name, rows, rule))[real(rows)]


def put_rotary(model: Any, **options: Any) -> tuple[Any, RotaryInPlace]:
    """mmrope's rotary embedding in the place of the model's own; both."""
    holder = tiny_models.rotary_holder(model)
    own, holder.rotary_emb = holder.rotary_emb, RotaryInPlace(holder.rotary_emb, **options)
    return own, holder.rotary_emb


def followed(name: str, rows: Sequence[Any], tokens: torch.Tensor, family: Any) -> dict[str, Any]:
    """The whole row with what was generated as text, forwarded at once."""
    longer = [mmrope.positions.append(row, [Segment.text(tokens.shape[1])]) for row in rows]
    whole = given(name, rows)
    whole["position_ids"] = torch.tensor(
        mmrope.hf_position_ids(mmrope.position_ids(longer, family), text_row=takes_text_row(family))
    )
    whole["input_ids"] = torch.cat([whole["input_ids"], tokens], dim=1)
    for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("moe_mm_token_type_ids", 0)):
        if key in whole:
            whole[key] = torch.nn.functional.pad(whole[key], (0, tokens.shape[1]), value=value)
    return whole


def steps_and_whole(name: str, rows: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, steps, vocabulary] of generation, step by step with a cache, and of one pass over what was generated."""
    model, family = tiny_models.model(name), with_tokens(name)
    said = generate(model, tiny_models.inputs(name, rows), family=family, **STEPS)
    new = said.sequences[:, -4:]
    return torch.stack(said.logits, dim=1), logits(model, followed(name, rows, new, family))[:, -5:-1]


def long_rows(name: str) -> list[Any]:
    """What generation is tried on: left padding, images, and a long video in models whose videos are one block."""
    if name in IN_ONE_BLOCK:
        return mmrope.collate([[TEXT, VIDEO, TEXT], [TEXT, IMAGE, Segment.text(2)]], pad_side="left")
    return agreed(name)


def padded_and_packed(name: str, rows: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of real tokens, of a padded batch and of a pack."""
    model, inputs, family = tiny_models.model(name), tiny_models.inputs(name, rows), with_tokens(name)
    padded = logits(model, with_positions(inputs, family))[real(rows)]
    return padded, logits(model, with_positions(inputs, family, packed=True))[0]


def proven(name: str) -> dict[str, Any]:
    """A row of the table of families: equality of ids, and largest differences of the rest, or why there are none."""
    rows, row = agreed(name), {}

    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(f"{(one - other).abs().max().item():.1e}")

    rule = with_tokens(f"{name}@{TRANSFORMERS}")
    if name in WRITTEN_BY_ITS_PROCESSOR:
        theirs = transformers_ids(rule, as_inputs(rows, rule))[0]
        row["ids"] = bool((theirs == mmrope.position_ids(rows, rule).ids).all())
    else:
        inputs = as_inputs(rows, rule)
        theirs = transformers_ids(rule, inputs)[0]
        ours = RopeIndex(rule, TRANSFORMERS.removeprefix("transformers-"))(**rope_index_arguments(rule, inputs))[0]
        row["ids"] = bool((theirs == ours.numpy())[:, real(rows).numpy()].all())
    if name in UNEQUAL_ROTATION:
        row["rotary"] = UNEQUAL_ROTATION[name]
    else:
        own, ours = put_rotary(tiny_models.model(name))
        ids = torch.randint(0, 1000, (len(rule.axes), 2, 9), generator=torch.Generator().manual_seed(0))
        layer = [next(iter(tiny_models.MODELS[name].layers))] if tiny_models.MODELS[name].layers else []
        # where the model's own code picks each channel from one of three axes (4.57), text: all three alike
        ids = ids if own(torch.zeros(1), ids, *layer)[0].ndim == 3 else ids[:1].expand(3, -1, -1)
        row["rotary"] = max(
            apart(a, b) for a, b in zip(own(torch.zeros(1), ids, *layer), ours(torch.zeros(1), ids, *layer), strict=True)
        )
    row["logits"] = apart(own_logits(name, rows), our_logits(name, rows, rotary=name not in UNEQUAL_ROTATION))
    if not V5:
        row["generate"] = "4.57 drops them"
    else:
        row["generate"] = NOT_BY_GENERATE.get(name) or apart(*steps_and_whole(name, long_rows(name)))
    no_row = "" if takes_text_row(with_tokens(name)) else "no text row"
    why = NOT_PACKED.get(name) or no_row or ("" if V5 else "not tried")
    row["packed"] = why or apart(*padded_and_packed(name, rows))
    return row
