"""Into Hugging Face transformers: its own calls for position ids, its batches with ids in them, and its `generate` fed right.

Its models take ids by public arguments, so nothing is patched, and transformers is not imported: functions here read tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrope.adapters import family_of_model
from mmrope.adapters.attention import varlen
from mmrope.adapters.upstreams import installed, revision, takes_text_row
from mmrope.positions.build import Positions, position_ids
from mmrope.positions.canvas import CanvasReading
from mmrope.positions.compare import check
from mmrope.positions.formats import hf_position_ids, rope_deltas
from mmrope.positions.inputs import INPUTS, segments_from_inputs
from mmrope.positions.omni import AudioInVideo
from mmrope.positions.rules import Family, registered
from mmrope.positions.segments import MEDIA, Row, Segment
from mmrope.positions.sequences import pack, running_totals, sequences_of
from mmrope.preprocess.batches import OURS, PER_TOKEN

# --- get_rope_index ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RopeIndex:
    """A model's `get_rope_index`, answered by mmrope: `get_rope_index = RopeIndex(model.config)`.

    Called with the arguments of the method of that version, by place or by name, it returns what the method returns. It holds
    no model, and can be pickled into data-loader workers. What the method would drop or guess is refused, as by
    `segments_from_inputs`.

    Source: transformers 4.57.1 to 5.24.0, models/*/modeling_*.py, `get_rope_index`.

    Raises:
        ValueError: a version without this family, inputs that cannot be right.

    Example:
        >>> import torch
        >>> from mmrope.adapters.transformers import RopeIndex
        >>> get_rope_index = RopeIndex("qwen2_vl")  # or of model.config
        >>> tokens, types, grid = [[5, 1, 9, 9, 2]], [[0, 0, 1, 1, 0]], [[1, 2, 4]]  # an image of 1 x 2 tokens
        >>> ids, deltas = get_rope_index(torch.tensor(tokens), torch.tensor(types), torch.tensor(grid))
        >>> ids[:, 0].tolist(), deltas.tolist()
        ([[0, 1, 2, 2, 4], [0, 1, 2, 2, 4], [0, 1, 2, 3, 4]], [[0]])
    """

    family: Family | Any
    """Whose rule: a Family, or its name, or a config or model to read it of. The reference, or a revision
    (`family_from_config(config, revision="transformers-5.23")`)."""
    version: str = "5.24"
    """Whose signature, and whose `rope_deltas`: transformers 4.57 counts padding in them, 5 does not. One whose code is that of
    a known version will do, too, if it is installed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", family_of_model(self.family))
        if self._upstream is None:
            known = [v for v in _VERSIONS if _rule(self.family, v) is not None]
            raise ValueError(
                f"transformers {self.version} has no get_rope_index of {self.family.name}"
                + (f"; {', '.join(known)} have" if known else ", and no version that is known here has")
            )

    @property
    def _upstream(self) -> Family | None:
        return _rule(self.family, self.version)

    @property
    def __signature__(self) -> inspect.Signature:
        """The method's, without self."""
        upstream, modern = self._upstream, not self.version.startswith("4.")
        assert upstream is not None
        if upstream.reading.states_audio:
            modern, names = False, [MEDIA["image"].grids, MEDIA["video"].grids, "attention_mask"]
            names += ["use_audio_in_video", "audio_seqlens", "second_per_grids"]
        elif upstream.reading.targets:
            names = [MEDIA["image"].grids, "images_per_sample", "attention_mask"]
        elif isinstance(upstream.reading, CanvasReading):
            names = ["mm_token_type_ids", *upstream.reading.keys, "downsample_mode", "attention_mask"]
        else:
            names = ["mm_token_type_ids"] * modern + [MEDIA["image"].grids]
            names += [MEDIA["video"].grids] * (upstream.media != ("image",))
            names += ["second_per_grid_ts"] * upstream.uses_seconds + ["attention_mask"]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        defaults = {"use_audio_in_video": False}
        parameters = [inspect.Parameter("input_ids", kind)]
        parameters += [inspect.Parameter(name, kind, default=defaults.get(name)) for name in names]
        if modern:
            parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
        return inspect.Signature(parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """position_ids [A, B, S] in the dtype of input_ids (float32 where ids are fractions) and rope_deltas [B, 1], on the
        device of input_ids. Tensors of a GPU are copied to the host, all at once, which waits for it.

        Of keywords that the method has no name for, those that `segments_from_inputs` reads are read
        (`second_per_grid_ts`); the others are left alone, as the method leaves them.
        """
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        given = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        tokens = given["input_ids"]
        if not isinstance(tokens, Tensor):
            raise ValueError(f"input_ids must be a tensor [B, S], got {type(tokens).__name__}")
        given.setdefault("video_second_per_grid", given.pop("second_per_grids", None))
        self._check_downsampling(given.get("downsample_mode"))
        inputs = {key: given[key] for key in INPUTS if given.get(key) is not None}
        rows = segments_from_inputs(inputs, self.family, sync=True)
        if not given.get("use_audio_in_video"):
            for b, row in enumerate(rows):
                if any(isinstance(more, AudioInVideo) for _, _, _, more in row.items):
                    raise ValueError(
                        f"row {b} has audio in a video by its markers, but use_audio_in_video is not set: pass True"
                    )
        positions = position_ids(rows, self.family)
        ids = torch.from_numpy(positions.ids)
        if not self.family.fractional:
            ids = ids.to(tokens.dtype)
        return ids.to(tokens.device), self._deltas(positions).to(tokens.device)

    def _check_downsampling(self, mode: str | None) -> None:
        if mode is not None and {"4x": 2}.get(mode, 4) != self.family.spatial_merge:
            raise ValueError(
                f"downsample_mode is {mode!r}, but the family merges {self.family.spatial_merge} x {self.family.spatial_merge} "
                'patches to a token: make it with family(name, spatial_merge=...), 2 of "4x" and 4 otherwise'
            )

    def _deltas(self, positions: Positions) -> Tensor:
        """[B, 1] rope_deltas by the version's meaning, int64, or float32 where ids are fractions."""
        if self.family.reading.targets:
            return torch.zeros(len(positions.rows), 1, dtype=torch.int64)
        padded = self.version.startswith("4.") and not self.family.reading.states_audio
        return torch.from_numpy(rope_deltas(positions, length="padded" if padded else "unpadded"))


_VERSIONS = ("4.57", "5.20", "5.21", "5.22", "5.23", "5.24")


def _rule(family: Family, version: str) -> Family | None:
    """What a version of transformers computes for a family by get_rope_index; None where it has none."""
    stated = ".".join(str(version).split(".")[:2])
    if stated not in _VERSIONS:
        there = installed("transformers")
        if there is None or stated != ".".join(there[0].split(".")[:2]):
            raise ValueError(f"transformers {version} is not known, nor installed: known are {', '.join(_VERSIONS)}")
        stated = revision().removeprefix("transformers-")
    try:
        found = registered(f"{family.name}@transformers-{stated}")
    except ValueError:
        return None
    return None if len(found.axes) < 3 else found  # ids of two axes are written by the processor


# --- batches ----------------------------------------------------------------------------------------------------------


def with_positions(
    batch: Mapping[str, Any],
    family: Family | Any,
    *,
    packed: bool = False,
    text_row: bool | None = None,
    multiple_of: int = 1,
    per_token: Mapping[str, Any] | None = None,
    device: Any = None,
) -> dict[str, Any]:
    """A processor's or a collator's batch with `position_ids` in it, which transformers' models take as they are.

    Args:
        batch: `input_ids` [B, S] and what else a processor returns, on the host. `position_ids` that it has already are
            checked. `next_position` and `video_timestamps` of mmrope's Processor, which models do not take, are left out. Or a
            pack, as `mmrope.preprocess.pack_batches` makes it: with `cu_seqlens`, whose place the row of text positions takes.
        family: a Family, its name, or a config or model to read it of.
        packed: one row of all sequences, without padding: `input_ids` [1, T], `labels` (the first token of each sequence
            -100: it does not follow from the one before it) and the other values of tokens alike, no `attention_mask`, and
            `use_cache=False`, without which transformers 5.23 makes a cache and lets sequences see each other. Pixels and
            grids stay as they are. Models with layers of linear attention are told the boundaries, too (`cu_seq_lens_q`, ...
            and `seq_idx`): transformers 5.23 refuses these unless flash-linear-attention and causal-conv1d are installed.
        text_row: [1 + A, B, S], the row of text positions in front, or without it [A, B, S]; by default what models of the
            family in the installed transformers take: those with three axes have it, but for GLM's in 4.57 and Cosmos 3 Edge's
            before 5.23, which cannot take packs. Packs need it: transformers tells sequences apart by it.
        multiple_of: of packs, sequences are filled up to a multiple.
        per_token: of packs, further keys [B, S, ...] of the batch that have a value for each token, and what fills them up.
        device: where tensors go; by default they stay. Arrays become tensors.

    Raises:
        ValueError: inputs that cannot be right; position_ids that are others (WrongPositions); of packs, without `text_row`, or
            with a tensor [B, S, ...] of which it is not known whether it is by token; a text row for families whose models take
            none (HunYuan).

    Example:
        >>> import torch
        >>> from mmrope.adapters.transformers import with_positions
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
        >>> tuple(with_positions(batch, "qwen2_vl")["position_ids"].shape)  # text positions, t, h, w
        (4, 2, 3)
        >>> with_positions(batch, "qwen2_vl", packed=True)["position_ids"][1].tolist()  # t of both sequences
        [[0, 1, 2, 0, 1]]
    """
    family = family_of_model(family)
    rows = segments_from_inputs(batch, family)
    if (boundaries := batch.get("cu_seqlens")) is not None:
        rows, packed = sequences_of(rows, running_totals(boundaries)), True
    has_row = takes_text_row(family)
    if text_row and not has_row:
        raise ValueError(
            f"{family}: its model in transformers takes {len(family.axes)} rows of ids, and no row of text positions: leave "
            "text_row out"
        )
    made = {key: _tensor(value) for key, value in batch.items() if key not in OURS and value is not None}
    if "position_ids" in made:
        check(made.pop("position_ids"), rows, family)
    if packed:
        made.pop("cu_seqlens", None)
        made = _packed(made, rows, family, text_row, multiple_of, {**PER_TOKEN, **(per_token or {})})
    else:
        ids = hf_position_ids(position_ids(rows, family), text_row=has_row if text_row is None else text_row)
        made["position_ids"] = torch.from_numpy(ids)
    if device is None:
        return made
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in made.items()}


def _packed(
    batch: dict[str, Any], rows: list[Row], family: Family, text_row: bool | None, multiple_of: int, fills: Mapping[str, Any]
) -> dict[str, Any]:
    """A batch as one row."""
    if len(family.axes) < 3:
        raise ValueError(f"{family} is an encoder, whose tokens attend to all: packs are made for causal models alone")
    if not takes_text_row(family):
        raise ValueError(
            f"{family}: its model in transformers takes {len(family.axes)} rows of ids and no row of text positions, so it "
            "cannot tell sequences apart by it: use mmrope.pack, and as attention_mask sdpa_mask of mmrope.adapters.attention"
        )
    if text_row is False:
        raise ValueError("packs need the row of text positions, by which transformers tells sequences apart: text_row=True")
    batch.pop("attention_mask", None)
    batch.update({key: torch.as_tensor(batch[key]) for key in fills.keys() & batch.keys()})  # lists, too
    shape = tuple(batch["input_ids"].shape)
    for key, value in batch.items():
        if key not in fills and _shape(value)[:2] == shape:
            raise ValueError(
                f"{key} is {list(_shape(value))} like input_ids {list(shape)}: if it has a value for each token, say "
                f"per_token={{{key!r}: fill}}, else take it out"
            )
    whole = pack(rows, family, multiple_of=multiple_of)
    index, empty = torch.from_numpy(whole.index), torch.from_numpy(~whole.mask)
    for key in fills.keys() & batch.keys():
        flat = batch[key].flatten(0, 1)  # [B S, ...]
        taken = flat[index.clamp(min=0).to(flat.device)]  # [T, ...]
        shown = empty.to(flat.device).view(-1, *[1] * (taken.ndim - 1))
        batch[key] = taken.masked_fill(shown, fills[key])[None]  # [1, T, ...]
    if "labels" in batch:
        batch["labels"][0, torch.from_numpy(whole.text_ids == 0).to(batch["labels"].device)] = -100
    if family.checkpoint.recurrent:
        batch.update(varlen(whole, "transformers"), seq_idx=torch.from_numpy(whole.sequence_index)[None])  # [1, T]
    return {**batch, "position_ids": torch.from_numpy(hf_position_ids(whole)), "use_cache": False}


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value


def _shape(value: Any) -> tuple[int, ...]:
    try:
        return tuple(np.shape(value))
    except ValueError:  # ragged lists
        return ()


@dataclass(frozen=True)
class PositionCollator:
    """A collator, or any function to a batch, whose batches have position ids: `PositionCollator(collate, family)`.

    It holds no model, and works in data-loader workers. The other fields are those of `with_positions`.

    Example:
        >>> import torch
        >>> from mmrope.adapters.transformers import PositionCollator
        >>> def collate(texts):
        ...     return {"input_ids": torch.tensor(texts)}
        >>> collator = PositionCollator(collate, "qwen2_vl")
        >>> tuple(collator([[5, 6, 7], [8, 9, 7]])["position_ids"].shape)  # text positions, t, h, w
        (4, 2, 3)
    """

    collate: Callable[..., Mapping[str, Any]]
    family: Family | Any
    packed: bool = False
    text_row: bool | None = None
    multiple_of: int = 1
    per_token: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", family_of_model(self.family))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The batch that `collate` makes of these arguments, with `position_ids`."""
        return with_positions(
            self.collate(*args, **kwargs),
            self.family,
            packed=self.packed,
            text_row=self.text_row,
            multiple_of=self.multiple_of,
            per_token=self.per_token,
        )


# --- generate ---------------------------------------------------------------------------------------------------------


def generate(model: Any, inputs: Mapping[str, Any], *, family: Family | Any = None, **options: Any) -> Any:
    """`model.generate(**inputs, **options)` with mmrope's ids at the prompt and at every step.

    The ids go in as `position_ids`; transformers 5 goes on from the last column of each row, by one a step, which is right
    where a prompt ends on text, and refused where it does not. No state of the model is read: neither its `get_rope_index` nor
    its `rope_deltas` is asked.

    Args:
        model: a model of transformers 5; of Omni models the thinker (`model.thinker`). (In 4.57 `generate` does not go on from
            ids that it is given: Qwen2-VL and Qwen2.5-VL take them for the prompt and fail at the second step, the others set
            them to None. Decode by hand there, as samples/cached_decoding.py does.)
        inputs: what the processor returned, of the whole conversation, padded on the left. `position_ids` in them are checked.
        family: a Family or its name; by default that of `model.config`.
        options: what `model.generate` takes. With `cache` (or `past_key_values`, its name before 5.24; both are taken with all
            versions), of the first columns of `inputs` (padding included), images and videos in these are not handed on, as the
            model has seen them. With `inputs_embeds`, take
            `pixel_values` out of `inputs` if they are in the embeddings already (but leave them in for models with deepstack,
            which add more of the pixels further up).

    Returns:
        What `model.generate` returns.

    Raises:
        ValueError: transformers 4; a model whose generate does not take ids (GLM-Image) or hands them to two models (Omni, with
            its talker); a pack; padding on the right; a prompt that ends on an image, a video or an audio; a cache that ends
            inside one, or holds audios or canvases.

    Example:
        >>> import torch
        >>> from mmrope.adapters.transformers import generate
        >>> class Model:  # stands for a model of transformers
        ...     def generate(self, **inputs):
        ...         return sorted(inputs)
        >>> generate(Model(), {"input_ids": torch.tensor([[5, 6, 7]])}, family="qwen2_vl", max_new_tokens=8)
        ['input_ids', 'max_new_tokens', 'position_ids']
    """
    found = installed_version("transformers")
    if int(found.partition(".")[0]) < 5:
        raise ValueError(
            f"transformers {found}: its generate does not go on from position_ids (it drops them, or fails at the second "
            "step). Decode by hand, model(input_ids, position_ids=..., past_key_values=...), or use transformers 5"
        )
    family = family_of_model(model if family is None else family)
    if family.reading.targets:
        raise ValueError(
            f"{family} takes no ids by generate: its prepare_inputs_for_generation sets them to None, and reads those that its "
            "own get_rope_index left on the model. Its forward takes them: decode by hand"
        )
    if hasattr(model, "thinker"):
        raise ValueError(
            f"{type(model).__name__}.generate hands position_ids to its talker, too, whose rows are others: generate text with "
            "model.thinker; speech is not placed by mmrope"
        )
    given = {key: _tensor(value) for key, value in inputs.items() if key not in OURS and value is not None}
    if not isinstance(given.get("input_ids"), Tensor):
        raise ValueError(f"input_ids must be a tensor [B, S], got {type(given.get('input_ids')).__name__}")
    if given.pop("use_cache", True) is False:
        raise ValueError("the inputs are a pack: generation takes a padded batch, with padding on the left")
    rows = segments_from_inputs(given, family, sync=True)
    if "position_ids" in given:
        check(given.pop("position_ids"), rows, family, sync=True)
    positions = position_ids(rows, family)
    if not positions.mask[:, -1].all():
        row = int(np.argmin(positions.mask[:, -1]))
        raise ValueError(f"row {row} is padded on the right: generation goes on at the last column, so pad on the left")
    on = (positions.ids[:, :, -1] + 1 == positions.next).all(axis=0)  # [B]
    if not on.all():
        row = int(np.argmin(on))
        raise ValueError(
            f"row {row} ends on {rows[row][-1]!r}, after which text continues at {positions.next[row]}, but generate would go "
            f"on at {(positions.ids[:, row, -1] + 1).tolist()}: end the prompt on text (an end marker, the assistant's header)"
        )
    device = given["input_ids"].device
    ids = torch.from_numpy(hf_position_ids(positions, text_row=takes_text_row(family))).to(device)
    caches = [options.pop(name) for name in ("cache", "past_key_values") if options.get(name) is not None]
    if len(caches) == 2:
        raise ValueError("cache and past_key_values are two names of one thing: give one")
    cache = caches[0] if caches else None
    if cache is not None:
        options["cache" if tuple(map(int, found.split(".")[:2])) >= (5, 24) else "past_key_values"] = cache
    if cache is not None and cache.get_seq_length():
        given = {**given, **_media_after(cache.get_seq_length(), rows, given)}
        given = {key: value for key, value in given.items() if value is not None}
    return model.generate(**given, position_ids=ids, **options)


_BY_VIDEO = "second_per_grid_ts"  # which has a value for each video


def _media_after(tokens: int, rows: Iterable[Iterable[Segment]], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of media, without those that stand in the first tokens of each row; None where none are left."""
    new: dict[str, list[bool]] = {"image": [], "video": []}
    frames = iter(np.asarray(_host(inputs.get(MEDIA["video"].grids, np.zeros((0, 3), int))))[:, 0].tolist())
    for b, row in enumerate(rows):
        end, left = 0, 0  # left: frames to come of a video that is split
        for segment in row:
            start, end = end, end + segment.length
            if segment.kind in ("text", "pad"):
                continue
            if segment.kind not in ("image", "video", "frame"):
                raise ValueError(f"row {b}: a cache is handled with images and videos, not with {segment!r}")
            if start < tokens < end or (left and (start >= tokens) != new["video"][-1]):
                raise ValueError(f"row {b}: the cache ends at token {tokens}, inside the {segment.kind} at {start}..{end - 1}")
            if left:
                left -= 1
                continue
            kind = "image" if segment.kind == "image" else "video"
            new[kind].append(start >= tokens)
            left = next(frames) - 1 if kind == "video" and segment.kind == "frame" else 0
    made: dict[str, Any] = {}
    for kind, is_new in new.items():
        pixels, grids = MEDIA[kind].pixels, MEDIA[kind].grids
        if inputs.get(grids) is None or all(is_new):
            continue
        take = torch.tensor(is_new)
        if inputs.get(pixels) is not None:
            by_patch = take.repeat_interleave(torch.as_tensor(_host(inputs[grids])).prod(dim=-1))
            made[pixels] = inputs[pixels][by_patch.to(inputs[pixels].device)] if take.any() else None
        for key in (grids, *([_BY_VIDEO] if kind == "video" else [])):
            if inputs.get(key) is not None:
                made[key] = torch.as_tensor(inputs[key])[take.to(torch.as_tensor(inputs[key]).device)] if take.any() else None
    return made


def _host(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
