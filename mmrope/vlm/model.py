"""The model: tokens, pixels and position IDs in, logits out.

pixels -> VisionEncoder --+
                          v   (in place of the media tokens' embeddings; DeepStack: added to them in the first blocks, too)
tokens -> embedding ------+--> Decoder (position_ids) --> head --> logits
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack  # of typing from Python 3.11 on; torch brings it

from mmrope.positions.segments import MEDIA, MediaKind
from mmrope.vlm.cache import KVCache
from mmrope.vlm.config import VLMConfig
from mmrope.vlm.decoder import Decoder, Deep
from mmrope.vlm.generate import new_tokens, stream
from mmrope.vlm.inputs import Inputs, check_inputs, packed_lengths
from mmrope.vlm.vision import VisionEncoder
from mmrope.vlm.weights import load_model, save_model


@dataclass(frozen=True, eq=False)
class VLMOutput:
    """What a forward pass returns.

    Example:
        >>> from mmrope import VLM, Processor
        >>> inputs = Processor()([{"role": "user", "content": "Hello"}])
        >>> output = VLM()(**inputs, labels=inputs["input_ids"])
        >>> tuple(output.logits.shape), output.loss.ndim
        ((1, 24, 263), 0)
    """

    logits: Tensor
    """[B, S, vocab_size]"""
    loss: Tensor | None = None
    """Mean cross-entropy of the labels, a scalar; None without labels."""


class VLM(nn.Module):
    """The vision-language model. `generate` writes text; `save_pretrained` and `from_pretrained` keep it.

    Example:
        >>> import numpy as np
        >>> from mmrope import VLM, Processor
        >>> content = [{"type": "image", "image": np.zeros((56, 84, 3), np.uint8)}, {"type": "text", "text": "What is it?"}]
        >>> inputs = Processor()([{"role": "user", "content": content}])
        >>> tuple(VLM()(**inputs).logits.shape)  # [B, S, vocabulary]
        (1, 38, 263)
    """

    def __init__(self, config: VLMConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VLMConfig()
        self.checked: bool | None = None
        """Of a loaded model, whether a manifest of its folder described its config and weights; its repr says so, too."""
        vocabulary, hidden = config.decoder.vocab_size, config.decoder.hidden_size
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.vision = VisionEncoder(config.vision, hidden)
        self.decoder = Decoder(config.decoder, config.rotary)
        self.head = None if config.decoder.tie_word_embeddings else nn.Linear(hidden, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)  # small, since it may be the head, too: the first guess is even

    def forward(
        self,
        *,
        labels: Tensor | None = None,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
        **inputs: Unpack[Inputs],
    ) -> VLMOutput:
        """Logits of every token.

        Args:
            inputs: a Processor's output, whose keys `Inputs` describes.
            labels: [B, S] tokens to learn, -100 where nothing is to be learned; token s is predicted from those before it.
            cache: keys and values of earlier tokens; extended.
            logits_to_keep: of how many last tokens logits are wanted; 0 for all.

        Raises:
            ValueError: inputs that are missing or unknown; media tokens and pixels that do not belong together; labels of all
                tokens with logits of some.

        Example:
            >>> from mmrope import VLM, Processor
            >>> conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Good morning")]
            >>> inputs = Processor(padding_side="right")(conversations)
            >>> output = VLM()(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100))
            >>> tuple(output.logits.shape), bool(output.loss > 0)
            ((2, 31, 263), True)
        """
        if getattr(self, "_is_replica", False):
            raise ValueError(
                "DataParallel cuts every input along its first dimension, which is the axes of position_ids and the patches of "
                "pixels: start a process for each GPU (torchrun), or let the script see one (CUDA_VISIBLE_DEVICES=0)"
            )
        check_inputs(inputs, cache=cache)
        if labels is not None and logits_to_keep:
            raise ValueError("labels are of all tokens: leave logits_to_keep out, or compute the loss of those logits yourself")
        if labels is not None and labels.shape != inputs["input_ids"].shape:
            raise ValueError(f"labels must be {list(inputs['input_ids'].shape)}, as input_ids are, got {list(labels.shape)}")
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep must be a number of last tokens, 0 for all, got {logits_to_keep}")
        lengths = packed_lengths(inputs)
        if lengths is not None and cache is not None:
            raise ValueError("a pack (cu_seqlens) is for training: give no cache, or rows that are padded on the left")
        x, deep = self.embed(inputs)  # [B, S, hidden]
        mask = inputs.get("attention_mask")
        places = self.places(inputs["position_ids"], mask, lengths)
        if mask is not None and bool(mask.all()):
            mask = None  # as processors give it for a row without padding; kernels are faster without
        hidden = self.decoder(x, places, mask, cache, deep, lengths)  # [B, S, hidden]
        logits = self.logits(hidden[:, -logits_to_keep:])  # [B, S, vocab]
        if labels is None:
            return VLMOutput(logits)
        return VLMOutput(logits, next_token_loss(logits, first_unlearned(labels, lengths)))

    def extra_repr(self) -> str:
        """Whether its files were checked, where it was loaded."""
        said = {
            True: "config and weights as in their manifest.json",
            False: "files not checked: their folder has no manifest.json",
        }
        return "" if self.checked is None else said[self.checked]

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the next token, [..., vocab], from hidden states [..., hidden]."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def places(self, position_ids: Tensor, attention_mask: Tensor | None, lengths: Sequence[int] | None = None) -> Tensor:
        """Where the decoder puts the tokens, [A, B, S]: at their position_ids."""
        return position_ids

    def embed(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Deep | None]:
        """What the decoder reads, [B, S, hidden]: embeddings of tokens, and of pixels in their places."""
        x, types = self.embedding(inputs["input_ids"]), inputs.get("mm_token_type_ids")  # [B, S, hidden]
        slots = torch.full_like(inputs["input_ids"], -1, dtype=torch.int64)  # [B, S], the media token that stands there
        pixels, grids, tokens = [], [], 0
        for kind in (MEDIA["image"], MEDIA["video"]):
            places: Any = None if types is None else types == kind.token_type  # [B, S]
            if inputs.get(kind.pixels) is not None and len(inputs[kind.pixels]):  # a row without media has none of them
                grid, count = self._media(kind, inputs, places)
                slots = slots.masked_scatter(places, torch.arange(tokens, tokens + count, device=x.device))
                pixels.append(self.vision.normalized(inputs[kind.pixels]))
                grids, tokens = grids + grid, tokens + count
            elif places is not None and bool(places.any()):
                raise ValueError(
                    f"the row has {kind.name} tokens, but no pixels were given; pass all that the processor returned"
                )
        if not pixels:
            return (x + self._no_media() if self.training and torch.is_grad_enabled() else x), None
        made = self.vision.features(torch.cat(pixels) if len(pixels) > 1 else pixels[0], grids)  # [1 + deep, tokens, hidden]
        made = F.pad(made, (0, 0, 0, 1)).to(x.dtype)  # [1 + deep, tokens + 1, hidden], the last is zero
        deep = Deep(slots % made.shape[1], made[1:])
        x = torch.where((slots < 0)[..., None], x, F.embedding(deep.slots, made[0]))  # [B, S, hidden]
        return x, deep if len(deep.features) else None

    def _media(self, kind: MediaKind, inputs: Mapping[str, Any], places: Tensor | None) -> tuple[list[list[int]], int]:
        """The grids of a kind of media, and how many tokens they make: as many as there are `places` for them."""
        if inputs.get(kind.grids) is None or places is None:
            raise ValueError(
                f"{kind.name} pixels need their grids ({kind.grids}) and mm_token_type_ids; pass all that the processor "
                "returned"
            )
        if (stated := inputs[kind.grids]).dtype not in (torch.int64, torch.int32) or stated.shape[1:] != (3,):
            raise ValueError(f"{kind.grids} must be whole numbers [items, 3], got {stated.dtype} {list(stated.shape)}")
        grids = stated.tolist()
        count = self.vision.token_count(inputs[kind.pixels], grids)
        if int(places.sum()) != count:
            raise ValueError(
                f"{int(places.sum())} {kind.name} tokens, but the pixels make {count}; was the row truncated, or are pixels "
                "missing?"
            )
        return grids, count

    def _no_media(self) -> Tensor:
        """0, computed by the whole vision encoder. So in training a batch of text alone gives every parameter a gradient, too:
        DDP and FSDP2 expect each process to work on the same parameters, and hang where one has images and another none."""
        patches = self.config.vision.patches
        m = patches.merge_size
        return 0 * self.vision.features(torch.zeros(m * m, patches.patch_dim, device=self.device), [[1, m, m]]).sum()

    def generate(self, **inputs: Any) -> Tensor:
        """New tokens [B, n] after a Processor's output; see `mmrope.vlm.generate.stream` for the options.

        Example:
            >>> from mmrope import VLM, Processor
            >>> processor = Processor()
            >>> inputs = processor([[{"role": "user", "content": text}] for text in ("Hi", "Good morning")])
            >>> tokens = VLM().eval().generate(**inputs, max_new_tokens=4)
            >>> len(processor.decode(tokens)), tokens.shape[1] <= 4
            (2, True)
        """
        return new_tokens(self, **inputs)

    def stream(self, **inputs: Any) -> Iterator[list[int]]:
        """The same tokens, those of every row as soon as they are written; see `mmrope.vlm.generate.stream`.

        Example:
            >>> from mmrope import VLM, Processor
            >>> inputs = Processor()([{"role": "user", "content": "Hello"}])
            >>> steps = list(VLM().eval().stream(**inputs, max_new_tokens=4))  # at each step a token of every row
            >>> 1 <= len(steps) <= 4, len(steps[0])
            (True, 1)
        """
        return stream(self, **inputs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """In training keep of every block its input alone, and compute the rest once more for the backward pass: memory for
        time. Called as models of transformers are; `gradient_checkpointing_kwargs` may say use_reentrant=False, which it is.

        Raises:
            ValueError: another kind of checkpointing.

        Example:
            >>> from mmrope import VLM
            >>> model = VLM().train()
            >>> model.gradient_checkpointing_enable()
        """
        if dict(gradient_checkpointing_kwargs or {}) not in ({}, {"use_reentrant": False}):
            raise ValueError(f"checkpoints here are use_reentrant=False, got {dict(gradient_checkpointing_kwargs or {})}")
        self.decoder.recompute = self.vision.recompute = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything again.

        Example:
            >>> from mmrope import VLM
            >>> VLM().gradient_checkpointing_disable()
        """
        self.decoder.recompute = self.vision.recompute = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    # --- files ------------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Writes `config.json`, `model.safetensors` and `manifest.json`, which describes them.

        They are moved into place when all are complete and on the disk, the manifest first: a folder whose saving was
        interrupted has the old model, or, between the first move and the last, is refused by `from_pretrained` until it is
        saved again. What a manifest that was there says of other files, it says still. The rotary embedding that the decoder
        has now is saved, the user's own too.

        Args:
            folder: is made if it is not there.
            state_dict: weights to save in place of the model's own: those that sharded ones were gathered to.

        Raises:
            ValueError: positions that a config cannot state.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from mmrope import VLM
            >>> from mmrope.vlm import DecoderConfig, VisionConfig, VLMConfig
            >>> tiny = VLMConfig(vision=VisionConfig(num_layers=1), decoder=DecoderConfig(num_layers=1))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     VLM(tiny).save_pretrained(folder)
            ...     print(sorted(path.name for path in Path(folder).iterdir()))
            ['config.json', 'manifest.json', 'model.safetensors']
        """
        save_model(self, folder, self.state_dict() if state_dict is None else state_dict)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: Any = None, dtype: torch.dtype | None = None) -> VLM:
        """The model of a folder, in evaluation mode: a released one as it was downloaded, or one that `save_pretrained` wrote.

        Released Qwen2-VL, Qwen2.5-VL, Qwen3-VL and its mixtures of experts are read from `config.json`,
        `generation_config.json` and safetensors, in one file or several. Weights are mapped into memory, not copied, where
        neither device nor dtype change them. A folder's `manifest.json`, if it has one, must describe the config and the
        weights, and whatever else it lists must be so, too; a folder without one, as released models are, is read as it is,
        and `model.checked` is False.

        Args:
            device: where the weights go; None for the CPU.
            dtype: theirs, float64, float32, float16 or bfloat16; None for that of the files.

        Raises:
            ValueError: files that are missing, differ from their manifest, or are not of one model; weights in another format
                than safetensors, or quantized; a model that is not known here, or of another class.

        Example:
            >>> import tempfile
            >>> from mmrope import VLM
            >>> from mmrope.vlm import DecoderConfig, VisionConfig, VLMConfig
            >>> tiny = VLMConfig(vision=VisionConfig(num_layers=1), decoder=DecoderConfig(num_layers=1))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     VLM(tiny).save_pretrained(folder)
            ...     model = VLM.from_pretrained(folder)
            >>> model.training, model.config.decoder.num_layers
            (False, 1)
        """
        return load_model(cls, Path(folder), device=device, dtype=dtype)


def first_unlearned(labels: Tensor, lengths: Sequence[int] | None) -> Tensor:
    """Labels [1, S] of a pack without those of its sequences' first tokens, which do not follow from the tokens before them."""
    if lengths is None:
        return labels
    starts = torch.tensor([0, *accumulate(lengths)][:-1]).to(labels.device, non_blocking=True)
    return labels.index_fill(1, starts, -100)


def next_token_loss(logits: Tensor, labels: Tensor, *, count: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of predicting each label from the tokens before it; labels of -100 do not count.

    Args:
        logits: [B, S, vocab]
        labels: [B, S]
        count: what the sum is divided by; None for the number of labels. Of batches whose gradients make one step it is that
            of all of them, so that every token counts alike.

    Returns:
        A scalar, in float32.

    Example:
        >>> import torch
        >>> from mmrope.vlm import next_token_loss
        >>> logits = torch.zeros(1, 3, 4)  # four tokens, equally likely
        >>> round(next_token_loss(logits, torch.tensor([[0, 2, -100]])).item(), 4)  # ln 4
        1.3863
    """
    each, following = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    if count is None:
        return F.cross_entropy(each, following, ignore_index=-100)
    return F.cross_entropy(each, following, ignore_index=-100, reduction="sum") / count
