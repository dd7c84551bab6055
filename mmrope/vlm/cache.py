"""The keys and values of what the decoder has read, and what of a conversation they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrope.positions.segments import MEDIA


class KVCache:
    """Rotated keys, and values, of the tokens so far; `length` of them, the same number in every row. It grows as it is filled.

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
        self.inputs: Mapping[str, Any] = {}
        """What `generate` filled it with: a Processor's output."""
        self.written: list[tuple[Tensor, Tensor]] = []
        """And what it has written after it: tokens [B, 1] at ids [A, B, 1]."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new k and v [B, K, S, D] after the first `length`; returns all, [B, K, length + S, D].

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


def rest_of(cache: KVCache, inputs: Mapping[str, Any], merge_size: int) -> dict[str, Any]:
    """What of one conversation's inputs is not in its cache, which forgets what the conversation does not begin with.

    Media are compared by their pixels: a picture that is another is read again, and all that follows it.
    """
    before, cache.inputs = cache.inputs, inputs
    written, cache.written = cache.written, []
    ids, places, types = inputs["input_ids"], inputs["position_ids"], inputs.get("mm_token_type_ids")
    if not before or len(before["position_ids"]) != len(places):
        cache.length = 0
        return dict(inputs)
    old_ids = torch.cat([before["input_ids"], *(token for token, _ in written)], dim=1)  # [1, old]
    old_places = torch.cat([before["position_ids"], *(place for _, place in written)], dim=2)  # [A, 1, old]
    n = min(cache.length, old_ids.shape[1], ids.shape[1] - 1)  # the last token is always read: its logits are wanted
    same = (ids[0, :n] == old_ids[0, :n]) & (places[:, 0, :n] == old_places[:, 0, :n]).all(dim=0)  # [n]
    known = int(same.long().cumprod(0).sum())
    first: dict[str, list[int]] = {}
    for name in ("image", "video"):
        kind = MEDIA[name]
        if types is None or inputs.get(kind.pixels) is None:
            continue
        columns = (types[0] == kind.token_type).nonzero()[:, 0].tolist()
        sizes = inputs[kind.grids].prod(dim=1).tolist()
        old_pixels, done, first[name] = before.get(kind.pixels), 0, []
        for size in sizes:
            pixels, tokens = slice(done, done + size), columns[done // merge_size**2 : (done + size) // merge_size**2]
            first[name].append(tokens[0])
            unchanged = old_pixels is not None and torch.equal(inputs[kind.pixels][pixels], old_pixels[pixels])
            if tokens[-1] >= known or not unchanged:
                known = min(known, tokens[0])
            done += size
    cache.length = known
    rest = {**inputs, "input_ids": ids[:, known:], "position_ids": places[..., known:]}
    if types is not None:
        rest["mm_token_type_ids"] = types[:, known:]
    for name, starts in first.items():
        kind, read = MEDIA[name], sum(start < known for start in starts)
        patches = int(inputs[kind.grids][:read].prod(dim=1).sum())
        rest[kind.pixels], rest[kind.grids] = inputs[kind.pixels][patches:], inputs[kind.grids][read:]
    return rest
