"""Batches to train on: rows of model inputs, packed to a budget of tokens.

rows (a Processor's, or those of transformers' processors) -> position IDs, each as alone -> packs, one row of many sequences
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mmrope.extras import needed_for
from mmrope.positions.build import position_ids
from mmrope.positions.compare import check
from mmrope.positions.families import READING_KEYS
from mmrope.positions.families import family as find_family
from mmrope.positions.inputs import segments_from_inputs
from mmrope.positions.rules import Family
from mmrope.positions.segments import MEDIA
from mmrope.positions.sequences import PER_MEDIUM
from mmrope.positions.stated import whole

if TYPE_CHECKING:
    from torch import Tensor

NOT_LEARNED = -100
"""The label of tokens that are not learned, as torch's cross-entropy ignores it."""
PER_TOKEN = MappingProxyType({"input_ids": 0, "labels": NOT_LEARNED, "mm_token_type_ids": 0, "moe_mm_token_type_ids": 0})
"""Keys of a batch that have a value for each token [B, S], and what fills packs up; a pack has no `attention_mask`."""
_PER_MEDIUM = {*PER_MEDIUM, *READING_KEYS}
OURS = ("next_position", "video_timestamps")
"""Keys of a Processor's output that models of transformers do not take, and training does not need."""


class ModelInputs(dict[str, Any]):
    """A processor's output, or a pack: a dict of tensors, with `.to(device)`.

    Example:
        >>> from mmrope import Processor
        >>> inputs = Processor()([{"role": "user", "content": "Hello"}])
        >>> sorted(inputs)
        ['attention_mask', 'input_ids', 'mm_token_type_ids', 'next_position', 'position_ids']
    """

    def to(self, device: Any) -> ModelInputs:
        """The same with every tensor on `device`.

        Example:
            >>> from mmrope import Processor
            >>> inputs = Processor()([{"role": "user", "content": "Hello"}]).to("cpu")
            >>> inputs["input_ids"].device.type
            'cpu'
        """
        return ModelInputs({key: value.to(device) if hasattr(value, "to") else value for key, value in self.items()})


@dataclass(frozen=True, eq=False)
class _Sequence:
    """A row, read: its real tokens."""

    length: int
    tokens: dict[str, Tensor]
    """By key [n, ...], and position_ids as [n, A]."""
    media: dict[str, Tensor]
    """By key, along the first dimension: patches, grids, seconds."""


def pack_batches(
    rows: Iterable[Mapping[str, Any]],
    family: Family | str | None = None,
    *,
    max_tokens: int,
    window: int = 64,
    per_token: Mapping[str, Any] | None = None,
) -> Iterator[ModelInputs]:
    """Packs of at most `max_tokens` tokens, in the order of the rows as far as filling them well allows.

    A pack begins with the row that has waited longest; of the next `window` rows (more, if these are not two packs) those that
    fit follow, the longest first. So little is held at a time, no row waits for more packs than rows wait, and the same rows
    make the same packs. The first token of each sequence is not learned: it does not follow from the one before it.

    Args:
        rows: model inputs of a row each: what `processor.row(...)` or `processor(messages, labels=True)` returns, or one of
            transformers' processors for one conversation. Padding goes, and so do texts and single numbers, such as ids.
        family: whose position IDs the packs get, a Family or its name; those that rows already have are checked. None takes
            those that rows have.
        max_tokens: the most tokens of a pack.
        window: how many rows are read ahead, with their pixels. More fill packs better: rows of 50 to 2,000 tokens fill packs
            of 4,096 to 97.7% with 8, 99.5% with 64, 99.9% with 512, and to 84% as they come.
        per_token: further keys that have a value for each token, and their value where a row has none.

    Yields:
        `input_ids`, `labels` and `mm_token_type_ids` [1, T]; `position_ids` [A, 1, T]; `cu_seqlens` [n + 1] int32, where each
        of the n sequences begins, and the end; pixels and grids of its rows, in their order. For `mmrope.VLM` as they are, and
        for models of transformers by `mmrope.adapters.transformers.with_positions(pack, family)`.

    Raises:
        ValueError: a row that is longer than a pack (`mmrope.positions.truncate` cuts it), that has no ids or others than the
            family's, labels where others have none, or keys that are not known.
        ImportError: torch is not installed.

    Example:
        >>> from mmrope import Processor
        >>> from mmrope.preprocess import pack_batches
        >>> processor, said = Processor(), [[{"role": "user", "content": text}] for text in ("Hi", "Good morning")]
        >>> packs = pack_batches(map(processor, said), max_tokens=128)
        >>> [(pack["cu_seqlens"].tolist(), tuple(pack["position_ids"].shape)) for pack in packs]
        [([0, 21, 52], (3, 1, 52))]
    """
    budget, window = whole(max_tokens, "max_tokens", least=1), whole(window, "window", least=1)
    rule = None if family is None else find_family(family)
    fills = {**PER_TOKEN, **(per_token or {})}
    with needed_for("mmrope.preprocess.pack_batches"):
        import torch  # noqa: F401

    def packs() -> Iterator[ModelInputs]:
        waiting: list[_Sequence] = []
        for n, row in enumerate(rows):
            waiting.append(_read(row, n, rule, fills))
            if waiting[-1].length > budget:
                raise ValueError(
                    f"row {n} has {waiting[-1].length} tokens, but a pack holds max_tokens={budget}: allow more, or cut the "
                    "row before (mmrope.positions.truncate, or a Processor's max_length)"
                )
            if len(waiting) > window and sum(one.length for one in waiting) >= 2 * budget:
                yield _joined(_next_pack(waiting, budget), fills)
        while waiting:
            yield _joined(_next_pack(waiting, budget), fills)

    return packs()


def _next_pack(waiting: list[_Sequence], budget: int) -> list[_Sequence]:
    """Takes a pack's sequences out of those that wait: the first, and what fits of the others, by length."""
    taken, room = {0}, budget - waiting[0].length
    for n in sorted(range(1, len(waiting)), key=lambda n: -waiting[n].length):
        if waiting[n].length <= room:
            taken.add(n)
            room -= waiting[n].length
    pack = [waiting[n] for n in sorted(taken)]
    waiting[:] = [one for n, one in enumerate(waiting) if n not in taken]
    return pack


def _read(row: Mapping[str, Any], n: int, family: Family | None, fills: Mapping[str, Any]) -> _Sequence:
    """A row's real tokens with their ids, and its media."""
    import torch

    if not isinstance(row, Mapping) or "input_ids" not in row:
        raise ValueError(f"row {n} must be model inputs with input_ids, got {type(row).__name__}")
    if "cu_seqlens" in row:
        raise ValueError(f"row {n} is a pack already (cu_seqlens)")
    known = {*fills, *_PER_MEDIUM, "position_ids", "attention_mask"}
    given = {key: value for key, value in row.items() if value is not None and key not in OURS}
    given = {key: value for key, value in given.items() if key in known or not _is_a_note(key, value)}
    stated, mask = given.pop("position_ids", None), given.pop("attention_mask", None)
    if unknown := [key for key in given if key not in known]:
        raise ValueError(
            f"row {n}: {unknown[0]} is not known here: take it out, or say per_token={{{unknown[0]!r}: value}} if each token "
            "has one"
        )
    ids = torch.as_tensor(given["input_ids"])
    if ids.ndim not in (1, 2) or (ids.ndim == 2 and len(ids) != 1):
        raise ValueError(f"row {n}: input_ids must be [S] or [1, S], the tokens of one row, got {list(ids.shape)}")
    length = ids.shape[-1]
    real = torch.ones(length, dtype=torch.bool) if mask is None else torch.as_tensor(mask).reshape(-1) != 0  # [S]
    if len(real) != length or not real.any():
        raise ValueError(f"row {n} has {length} tokens, and {int(real.sum())} of {len(real)} in its attention_mask are real")
    tokens, media = {}, {}
    for key, value in given.items():
        value = torch.as_tensor(value)
        if key in _PER_MEDIUM:
            media[key] = _bytes_again(key, value, n)
            continue
        value = value[0] if value.ndim > 1 and len(value) == 1 else value  # [S, ...]
        if not value.ndim or len(value) != length:
            raise ValueError(f"row {n}: {key} is {list(value.shape)}, but there are {length} tokens")
        tokens[key] = value[real]
    whole_row = _positions(given | {"attention_mask": real}, stated, n, family)  # [A, S]
    if whole_row.shape[-1] != length:
        raise ValueError(f"row {n}: position_ids are for {whole_row.shape[-1]} tokens, but there are {length}")
    return _Sequence(int(real.sum()), {**tokens, "position_ids": whole_row[:, real].T}, media)


def _is_a_note(key: Any, value: Any) -> bool:
    """Whether it is of a row as a whole, and so of no use in a pack: an id, a text, webdataset's keys."""
    return isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or str(key).startswith("__")


def _bytes_again(key: str, value: Tensor, n: int) -> Tensor:
    """Pixels that were bytes and came back as whole numbers, as a stored table gives lists, are bytes again."""
    if key not in (MEDIA["image"].pixels, MEDIA["video"].pixels) or value.is_floating_point():
        return value
    if value.numel() and (value.min() < 0 or value.max() > 255):
        raise ValueError(f"row {n}: {key} are {value.dtype} up to {int(value.max())}, neither bytes nor floats")
    return value.byte()


def _positions(row: Mapping[str, Any], stated: Any, n: int, family: Family | None) -> Tensor:
    """The ids of a row, [A, S]: the family's, or those that it states."""
    import torch

    if stated is not None:
        stated = torch.as_tensor(stated)
        stated = stated[:, 0] if stated.ndim == 3 else stated  # [A, S]
        if stated.ndim != 2:
            raise ValueError(f"row {n}: position_ids must be [A, S] or [A, 1, S], got {list(stated.shape)}")
    if family is None:
        if stated is None:
            raise ValueError(f"row {n} has no position_ids: say whose they are, pack_batches(rows, family, ...)")
        return stated
    batch = {key: torch.as_tensor(value) for key, value in row.items()}
    batch |= {key: value[None] for key, value in batch.items() if value.ndim == 1 and key not in _PER_MEDIUM}
    segments = segments_from_inputs({key: value for key, value in batch.items() if len(value)}, family)
    if stated is not None:
        check(stated[:, None], segments, family)
    return torch.from_numpy(position_ids(segments, family).ids[:, 0])


def _joined(pack: list[_Sequence], fills: Mapping[str, Any]) -> ModelInputs:
    """The sequences as one row."""
    import torch

    starts = list(accumulate((one.length for one in pack), initial=0))
    joined = ModelInputs()
    for key in dict.fromkeys(key for one in pack for key in one.tokens):
        if key == "labels" and not all(key in one.tokens for one in pack):
            raise ValueError("some rows have labels and others none: give all of them labels, or none")
        values = [one.tokens[key] if key in one.tokens else _filled(key, one, pack, fills) for one in pack]
        joined[key] = torch.cat(values)[None]  # [1, T, ...]
    if "labels" in joined:
        joined["labels"][0, starts[:-1]] = NOT_LEARNED
    joined["position_ids"] = joined["position_ids"].permute(2, 0, 1).contiguous()  # [A, 1, T]
    joined["cu_seqlens"] = torch.tensor(starts, dtype=torch.int32)  # [n + 1]
    for key in dict.fromkeys(key for one in pack for key in one.media):
        values = [one.media[key] for one in pack if key in one.media and len(one.media[key])]
        if len({value.dtype for value in values}) > 1 or len({value.shape[1:] for value in values}) > 1:
            shown = ", ".join(f"{value.dtype} {list(value.shape)}" for value in values)
            raise ValueError(f"{key} of these rows are of several kinds, which cannot be joined: {shown}")
        if values:
            joined[key] = torch.cat(values)
    return joined


def _filled(key: str, one: _Sequence, pack: list[_Sequence], fills: Mapping[str, Any]) -> Tensor:
    """What stands for a key that a row lacks: as others have it, filled."""
    model = next(other.tokens[key] for other in pack if key in other.tokens)
    return model.new_full((one.length, *model.shape[1:]), fills[key])
