"""How the next token is chosen, and what a checkpoint's generation_config.json says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from mmrope.records import Keys, Must, Natural, check_fields, is_number, made, record, shown

_NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0, "min_length": 0, "min_new_tokens": 0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "guidance_scale": 1, "bad_words_ids": None,
    "force_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "sequence_bias": None, "stop_strings": None, "exponential_decay_length_penalty": None,
    "watermarking_config": None,
}  # fmt: skip
"""What else changes the tokens that transformers writes, and with what value it changes nothing."""
_NEUTRAL_DRAWN = {"min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a model writes where it is not told otherwise; the fields are options of `VLM.generate`.

    Example:
        >>> from mmrope import VLM
        >>> from mmrope.vlm import GenerationConfig, VLMConfig
        >>> VLM(VLMConfig(generation=GenerationConfig(temperature=0.7, top_p=0.8, top_k=20))).config.generation.top_k
        20
    """

    temperature: Annotated[float, Must("a number of at least 0, for the likeliest token", lambda x: 0 <= x <= 3e38)] = 0.0
    top_k: Natural = 0
    top_p: Annotated[float, Must("a number above 0 and at most 1, for all tokens", lambda x: 0 < x <= 1)] = 1.0
    repetition_penalty: Annotated[float, Must("a number from 0.001 to 1000, 1 for none", lambda x: 1e-3 <= x <= 1e3)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


def generation_config(values: Mapping[str, Any]) -> GenerationConfig:
    """From the values of a generation_config.json. As in transformers, the options of drawing count with do_sample alone, and
    what is null is the default there.

    Raises:
        ValueError: values that would have other tokens written than the model here can, or that are no numbers.

    Example:
        >>> from mmrope.vlm.sampling import generation_config
        >>> generation_config({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "eos_token_id": [5, 6]})
        GenerationConfig(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.0)
    """
    drawn = Keys(values)("do_sample", bool, False)
    for key, neutral in {**_NEUTRAL, **(_NEUTRAL_DRAWN if drawn else {})}.items():
        if values.get(key, neutral) not in (neutral, None, []):
            raise ValueError(
                f"generation_config.json has {key} {shown(values[key])}, which VLM does not know: it must be {neutral!r}"
            )
    kept = {"repetition_penalty": 1.0, **({"temperature": 1.0, "top_k": 50, "top_p": 1.0} if drawn else {})}
    stated = {key: values[key] if values.get(key) is not None else default for key, default in kept.items()}
    if wrong := {key: value for key, value in stated.items() if not is_number(value)}:
        raise ValueError(f"generation_config.json must have numbers, got {shown(wrong)}")
    return record(GenerationConfig, stated, "generation_config.json")


def end_tokens(said: Any) -> tuple[int, ...]:
    """End tokens, of which a config states none, one, or several.

    Raises:
        ValueError: what it states is no token.
    """
    found = () if said is None else said if isinstance(said, (list, tuple)) else (said,)
    try:
        return made(tuple[Natural, ...], found, "eos_token_id")
    except ValueError:
        raise ValueError(f"eos_token_id must be a token or a list of tokens, got {shown(said)}") from None


def choose_token(
    logits: Tensor, how: GenerationConfig, generator: torch.Generator | None = None, seen: Tensor | None = None
) -> Tensor:
    """The next token of each row, from logits [B, vocab], float32; -1 for a row whose logits are no numbers. `seen`,
    bool [B, vocab], are the tokens that it has already."""
    lost = logits.isnan().any(dim=-1)  # [B]
    if seen is not None:
        penalty = how.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if how.temperature == 0:
        return logits.argmax(dim=-1).masked_fill(lost, -1)
    count = min(how.top_k or logits.shape[-1], logits.shape[-1])
    likeliest, order = logits.topk(count, dim=-1)  # [B, count], falling
    # from 0 down, so that no temperature makes infinite what is not: 1e-30 is as near to 0 as float32 can tell
    p = ((likeliest - likeliest[:, :1]) / max(how.temperature, 1e-30)).softmax(dim=-1)
    p = p.masked_fill(p.cumsum(dim=-1) - p >= how.top_p, 0.0)  # what is likelier than the rest together is always kept
    # the first of exponential clocks of these rates to ring: draws as torch.multinomial does, which may wait for the device
    drawn = (p / torch.empty_like(p).exponential_(generator=generator)).argmax(dim=-1, keepdim=True)  # [B, 1]
    return order.gather(-1, drawn).squeeze(-1).masked_fill(lost, -1)  # [B]
