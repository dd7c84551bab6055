"""The model: tokens, pixels and position IDs in, logits out.

pixels -> VisionEncoder --+
                          v   (in place of the media tokens' embeddings)
tokens -> embedding ------+--> Decoder (position_ids) --> logits
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrope.vlm.config import VLMConfig
from mmrope.vlm.decoder import Decoder, KVCache
from mmrope.vlm.generate import generate, stream
from mmrope.vlm.vision import VisionEncoder
from mmrope.vlm.weights import refuse_pickles, replacing, verify, write_manifest

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


@dataclass(frozen=True, eq=False)
class VLMOutput:
    """What a forward pass returns."""

    logits: Tensor
    """[B, S, vocab_size]"""
    loss: Tensor | None = None
    """Mean cross-entropy of the labels, a scalar; None without labels."""


class VLM(nn.Module):
    """The vision-language model. `generate` writes text; `save_pretrained` and `from_pretrained` keep it."""

    def __init__(self, config: VLMConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VLMConfig()
        self.embedding = nn.Embedding(config.decoder.vocab_size, config.decoder.hidden_size)  # read out by the same matrix
        self.vision = VisionEncoder(config.vision, config.decoder.hidden_size)
        self.decoder = Decoder(config.decoder)
        nn.init.normal_(self.embedding.weight, std=0.02)  # small, since it is also the readout: the first guess is even

    def forward(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        labels: Tensor | None = None,
        cache: KVCache | None = None,
        next_position: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        video_timestamps: list[Tensor] | None = None,
    ) -> VLMOutput:
        """Logits of every token; the arguments are a Processor's output.

        Args:
            input_ids: [B, S].
            position_ids: [3, B, S]. There is no default: a model that invents positions is wrong without a word.
            attention_mask: [B, T], nonzero at real tokens; T = S plus what the cache holds.
            mm_token_type_ids: [B, S], 1 at image tokens, 2 at video tokens; needed with pixels.
            pixel_values, image_grid_thw: [patches, patch_dim], [images, 3].
            pixel_values_videos, video_grid_thw: the same of videos.
            labels: [B, S] tokens to learn, -100 where nothing is to be learned; token s is predicted from those before it.
            cache: keys and values of earlier tokens; extended.
            next_position, second_per_grid_ts, video_timestamps: the rest of a Processor's output; not needed here.

        Raises:
            ValueError: media tokens and pixels that do not belong together.
        """
        media = {
            "mm_token_type_ids": mm_token_type_ids,
            "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw,
            "pixel_values_videos": pixel_values_videos,
            "video_grid_thw": video_grid_thw,
        }
        x = self.embed(input_ids, **media)  # [B, S, hidden]
        hidden = self.decoder(x, position_ids, attention_mask, cache)  # [B, S, hidden]
        logits = F.linear(hidden, self.embedding.weight)  # [B, S, vocab]
        return VLMOutput(logits, None if labels is None else next_token_loss(logits, labels))

    def embed(
        self,
        input_ids: Tensor,
        *,
        mm_token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
    ) -> Tensor:
        """What the decoder reads, [B, S, hidden]: embeddings of tokens, and of pixels in their places. See `forward`."""
        x = self.embedding(input_ids)  # [B, S, hidden]
        for kind, pixels, grid in ((1, pixel_values, image_grid_thw), (2, pixel_values_videos, video_grid_thw)):
            if pixels is not None:
                x = self._with_media(x, kind, pixels, grid, mm_token_type_ids)
            elif mm_token_type_ids is not None and bool((mm_token_type_ids == kind).any()):
                name = {1: "image", 2: "video"}[kind]
                raise ValueError(f"the row has {name} tokens, but no pixels were given; pass all that the processor returned")
        return x

    def _with_media(self, x: Tensor, kind: int, pixels: Tensor, grid: Tensor | None, types: Tensor | None) -> Tensor:
        """x with the embeddings of images (kind 1) or videos (2) in their tokens' places."""
        name = {1: "image", 2: "video"}[kind]
        if grid is None or types is None:
            raise ValueError(
                f"{name} pixels need their grids ({name}_grid_thw) and mm_token_type_ids; pass all that the processor returned"
            )
        media = self.vision(pixels, grid)  # [tokens, hidden]
        places = types == kind
        if int(places.sum()) != len(media):
            raise ValueError(
                f"{int(places.sum())} {name} tokens, but the pixels make {len(media)}; "
                "was the row truncated, or are pixels missing?"
            )
        return x.masked_scatter(places[..., None], media.to(x.dtype))  # [B, S, hidden]

    def generate(self, **inputs: Any) -> Tensor:
        """New tokens [B, n] after a Processor's output; see `mmrope.vlm.generate.stream` for the options."""
        return generate(self, **inputs)

    def stream(self, **inputs: Any) -> Iterator[list[int]]:
        """The same tokens, those of every row as soon as they are written; see `mmrope.vlm.generate.stream`."""
        return stream(self, **inputs)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    # --- files ------------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json`, `model.safetensors` and `manifest.json`, which describes them.

        Each is moved into place when it is complete, the manifest last: a folder whose saving was interrupted has the old
        model, or is refused by `from_pretrained`.
        """
        from safetensors.torch import save_file

        config, weights = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
        config.parent.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        with replacing(config) as new_config, replacing(weights) as new_weights:
            new_config.write_text(json.dumps(self.config.to_dict(), indent=2) + "\n", encoding="utf-8")
            save_file(state, new_weights, metadata={"format": "pt"})
        write_manifest(folder, [CONFIG_NAME, WEIGHTS_NAME])

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: Any = None, dtype: torch.dtype | None = None) -> VLM:
        """The model that `save_pretrained` wrote, in evaluation mode.

        Raises:
            ValueError: files that are missing, differ from their manifest, or are not of one model; weights in another format
                than safetensors.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        refuse_pickles(folder, WEIGHTS_NAME)
        contents = verify(folder, [CONFIG_NAME, WEIGHTS_NAME])
        try:
            config = VLMConfig.from_dict(json.loads(contents[CONFIG_NAME]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{Path(folder) / CONFIG_NAME} is not the config of a VLM: {error}") from error
        model = cls(config)
        try:
            model.load_state_dict(load(contents[WEIGHTS_NAME]))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{WEIGHTS_NAME} in {folder} does not hold the weights that {CONFIG_NAME} needs: {error}"
            ) from error
        return model.to(device=device, dtype=dtype).eval()


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of predicting each label from the tokens before it; labels of -100 do not count.

    logits [B, S, vocab], labels [B, S]; a scalar, in float32.
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
