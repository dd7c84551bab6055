"""The keys and values of what the decoder has read, and what of a conversation they are."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmrope.positions.segments import MEDIA, MediaKind

_KINDS = (MEDIA["image"], MEDIA["video"])


class KVCache:
    """Rotated keys, and values, of the tokens so far; `length` of them, the same number in every row. It grows as it is filled.

    It is of the weights that filled it. `generate` begins it anew where weights were loaded or trained since, or adapters
    (peft) were switched; what is written to `weight.data` is not noticed, nor is any change by `model(..., cache=cache)`: then
    take a new one.

    Args:
        room: for how many tokens to begin with; growing copies what is there.

    Example:
        >>> from mmrope import VLM, Processor
        >>> from mmrope.vlm import KVCache
        >>> model, inputs = VLM(), Processor()([{"role": "user", "content": "Hello"}])
        >>> cache = KVCache()
        >>> cache.length, tuple(model(**inputs, cache=cache).logits.shape), cache.length
        (0, (1, 24, 263), 24)
    """

    def __init__(self, room: int = 0) -> None:
        self.room, self.length = room, 0
        self.kv: list[Tensor] = []
        """Of each layer [2, B, K, room, D]."""
        self.model: weakref.ref[Any] | None = None
        """Whose they are, if `generate` filled it."""
        self.state: list[Any] = []
        """And of what weights."""
        self.inputs: Mapping[str, Any] = {}
        """What it was filled with: a copy of a Processor's output."""
        self.written: list[tuple[Tensor, Tensor]] = []
        """And what was written after it: tokens [B, 1] at ids [A, B, 1]."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new k and v [B, K, S, D] after the first `length`; returns all, [B, K, length + S, D].

        Raises:
            ValueError: it holds other rows, or another model's.

        Example:
            >>> import torch
            >>> from mmrope.vlm import KVCache
            >>> k, v = torch.randn(2, 1, 2, 5, 32)  # 5 tokens of 2 KV heads
            >>> keys, values = KVCache().extend(0, k, v)
            >>> tuple(keys.shape)
            (1, 2, 5, 32)
        """
        b, heads, new, d = k.shape
        stop = self.length + new
        if layer < len(self.kv) and (held := self.kv[layer].shape)[1:3] + held[4:] != (b, heads, d):
            raise ValueError(
                f"the cache holds {held[1]} rows of {held[2]} heads of {held[4]}, and these are {b} rows of {heads} heads of "
                f"{d}: each batch needs a KVCache of its own"
            )
        if layer == len(self.kv):
            self.kv.append(k.new_empty(2, b, heads, max(self.room, stop), d))
        elif stop > self.kv[layer].shape[-2]:
            grown = k.new_empty(2, b, heads, max(self.room, stop + stop // 4), d)
            grown[..., : self.length, :] = self.kv[layer][..., : self.length, :]
            self.kv[layer] = grown
        self.kv[layer][0, :, :, self.length : stop] = k
        self.kv[layer][1, :, :, self.length : stop] = v
        keys, values = self.kv[layer][..., :stop, :]  # [B, K, length + S, D] each
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these, int64 [n].

        Example:
            >>> import torch
            >>> from mmrope.vlm import KVCache
            >>> cache = KVCache()
            >>> _ = cache.extend(0, *torch.randn(2, 3, 2, 5, 32))  # 3 rows
            >>> cache.keep(torch.tensor([0, 2]))
            >>> tuple(cache.kv[0].shape)
            (2, 2, 2, 5, 32)
        """
        for layer, kv in enumerate(self.kv):
            self.kv[layer] = kv.index_select(1, rows)


def rest_of(cache: KVCache, inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """What of one conversation's inputs is not in its cache, which forgets what the conversation does not begin with.

    Media are compared by their pixels: a picture that is another is read again, and all that follows it.

    Raises:
        ValueError: the cache holds what another model has read.
    """
    if cache.model is not None and cache.model() is not model:
        raise ValueError("the cache holds what another model has read: give each model a KVCache of its own")
    before, written, cache.model, cache.written = cache.inputs, cache.written, weakref.ref(model), []
    cache.inputs = {key: value.clone() if isinstance(value, Tensor) else value for key, value in inputs.items()}
    ids, places, types = inputs["input_ids"], inputs["position_ids"], inputs.get("mm_token_type_ids")
    weight, state = model.embedding.weight, cache.state
    cache.state = _state(model)
    moved = any((kv.dtype, kv.device) != (weight.dtype, weight.device) for kv in cache.kv)
    if moved or cache.state != state or not before or len(before["position_ids"]) != len(places):
        cache.kv, cache.length = [], 0
        return dict(inputs)
    old_ids = torch.cat([before["input_ids"], *(token for token, _ in written)], dim=1)  # [1, old]
    old_places = torch.cat([before["position_ids"], *(place for _, place in written)], dim=2)  # [A, 1, old]
    n = min(cache.length, old_ids.shape[1], ids.shape[1] - 1)  # the last token is always read: its logits are wanted
    same = (ids[0, :n] == old_ids[0, :n]) & (places[:, 0, :n] == old_places[:, 0, :n]).all(dim=0)  # [n]
    known = int(same.long().cumprod(0).sum())
    media = [(kind, _items(kind, inputs, before, model)) for kind in _KINDS if inputs.get(kind.pixels) is not None]
    for _, items in media:
        for first, last, unchanged in items:
            if last >= known or not unchanged:
                known = min(known, first)
    cache.length = known
    rest = {**inputs, "input_ids": ids[:, known:], "position_ids": places[..., known:]}
    if types is not None:
        rest["mm_token_type_ids"] = types[:, known:]
    for kind, items in media:
        read = sum(first < known for first, _, _ in items)
        patches = int(inputs[kind.grids][:read].prod(dim=1).sum())
        rest[kind.pixels], rest[kind.grids] = inputs[kind.pixels][patches:], inputs[kind.grids][read:]
    return rest


def _state(model: nn.Module) -> list[Any]:
    """What is another after weights were loaded or trained, or peft's adapters were switched or merged: of a model of 800
    weights a millisecond. Weights made in inference_mode count no changes."""
    state: list[Any] = [(id(weight), weight.is_inference() or weight._version) for weight in model.parameters()]
    kinds = ("_disable_adapters", "_active_adapter", "merged_adapters")
    return state + [str([values.get(kind) for kind in kinds]) for values in map(vars, model.modules()) if kinds[0] in values]


def _items(kind: MediaKind, inputs: Mapping[str, Any], before: Mapping[str, Any], model: Any) -> list[tuple[int, int, bool]]:
    """Of each image, or video, the columns of its first and last token, and whether pixels and grid are those of `before`."""
    columns = (inputs["mm_token_type_ids"][0] == kind.token_type).nonzero()[:, 0].tolist()
    new, old, grids = inputs[kind.pixels], before.get(kind.pixels), inputs[kind.grids].tolist()
    old_grids = [] if old is None else before[kind.grids].tolist()
    area, start, items = model.config.vision.patches.merge_size**2, 0, []
    for n, grid in enumerate(grids):
        part = slice(start, start + math.prod(grid))
        unchanged = (
            old is not None and old_grids[n : n + 1] == [grid] and old.dtype == new.dtype and torch.equal(new[part], old[part])
        )
        items.append((columns[start // area], columns[part.stop // area - 1], unchanged))
        start = part.stop
    return items
