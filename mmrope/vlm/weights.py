"""The files of a model: written whole or not at all, and read into it without a second copy in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmrope.encodings.rotary import RotaryEmbedding
from mmrope.files import TABLES, described, naming, read_object, read_old, replacing_described, to_json
from mmrope.records import shown
from mmrope.vlm.config import VLMConfig
from mmrope.vlm.manifest import is_plain_name, verify
from mmrope.vlm.released import released_config, renaming

_Model = TypeVar("_Model", bound=nn.Module)
CONFIG_NAME, GENERATION_NAME = "config.json", "generation_config.json"
WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of weights in formats that are not read."""
FLOATS: Mapping[str, torch.dtype] = MappingProxyType({
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
})  # fmt: skip
"""What weights may be, by their names in safetensors."""
_FLOATS = "float64, float32, float16 or bfloat16"


def load_model(cls: type[_Model], folder: Path, *, device: Any, dtype: torch.dtype | None) -> _Model:
    """The model of a folder; see VLM.from_pretrained."""
    if dtype not in (None, *FLOATS.values()):
        raise ValueError(f"dtype must be {_FLOATS}, of torch, or None for that of the files; got {dtype!r}")
    device = check_device("cpu" if device is None else device)
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"no {CONFIG_NAME} in {folder}: it is the folder of a released model, or one of VLM.save_pretrained")
    files = weight_files(folder)
    checked = verify(folder, [CONFIG_NAME, *files])
    stated, path = read_object(folder / CONFIG_NAME), folder / GENERATION_NAME
    kind, saved_as = stated.get("model_type"), stated.pop("class", "VLM")
    generation = read_object(path) if kind is not None and path.is_file() else {}
    try:
        config = VLMConfig.from_dict(stated) if kind is None else released_config(stated, generation)
    except ValueError as error:
        what = f"{folder / CONFIG_NAME} is not the config of a VLM"
        if kind is not None:
            what = f"VLM does not run {folder}, by its {CONFIG_NAME} and {GENERATION_NAME}"
        raise ValueError(f"{what}: {error}") from error
    if kind is None and saved_as != cls.__name__:
        saved_as = shown(saved_as).strip("'")
        raise ValueError(f"{folder} holds a {saved_as}, not a {cls.__name__}: load it with {saved_as}.from_pretrained")
    with naming(folder / CONFIG_NAME):
        _check_depth(config, [folder / file for file in files])
        with torch.device("meta"):
            model = cls(config)
    load_weights(model, [folder / file for file in files], renaming(kind), device=device, dtype=dtype)
    if left := [name for name, tensor in model.named_buffers() if tensor.is_meta]:
        raise ValueError(f"{cls.__name__} has buffers that are not saved, {', '.join(left)}: register them as persistent")
    model.checked = checked  # type: ignore[assignment]
    return model.eval()


def _check_depth(config: VLMConfig, files: Sequence[Path]) -> None:
    """That the weights may be of so many layers: each is made of modules, 2 ms and 40 KB on any device."""
    layers, tensors = config.decoder.num_layers + config.vision.num_layers, sum(1 for _ in _headers(files))
    if layers > tensors:
        raise ValueError(
            f"num_layers (num_hidden_layers and depth of a released model) are {config.decoder.num_layers} of the decoder and "
            f"{config.vision.num_layers} of the vision encoder, but the weights are {tensors} tensors"
        )


def check_device(device: Any) -> torch.device:
    """The device, which torch has here.

    Raises:
        ValueError: it has not.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # no such kind, not compiled in, or not there
        raise ValueError(
            f"torch {torch.__version__} cannot use the device {device!r}: {shorten(str(error), 160)}; try 'cpu'"
        ) from error
    if found.type == "meta":
        raise ValueError("weights cannot be loaded to the device 'meta', which holds none")
    return found


def save_model(model: Any, folder: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a model's folder with these weights; see VLM.save_pretrained."""
    from safetensors.torch import save_file

    stated = _config_of(model).to_dict()
    if (name := type(model).__name__.removeprefix("FSDP")) != "VLM":  # FSDP2 puts a class of its own before a model's
        stated["class"] = name  # which may place or see otherwise: its own from_pretrained loads it, and no other's
    content = to_json(stated)
    config = Path(folder) / CONFIG_NAME
    if "model_type" in read_old(config):
        raise ValueError(f"{folder} holds a released checkpoint, which would be overwritten: save to another folder")
    config.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in weights.items()}
    try:
        others = described(config.parent)  # such as a processor's files
    except ValueError:
        others = {}  # a damaged manifest is written anew
    with replacing_described(config.parent, [CONFIG_NAME, WEIGHTS_NAME], others) as [new_config, new_weights]:
        new_config.write_text(content, encoding="utf-8")
        save_file(state, new_weights, metadata={"format": "pt"})


def _config_of(model: Any) -> VLMConfig:
    """The config, with the rotary embedding that the decoder has, which may have been replaced."""
    for name, rotary in (("decoder", model.decoder.rotary), ("vision", model.vision.rotary)):
        if type(rotary) is not RotaryEmbedding or rotary.angles != "exact":
            raise ValueError(
                f"model.{name}.rotary is {rotary!r}: saved is a RotaryEmbedding(spec) with exact angles. Keep the model by "
                "torch.save, or give its spec to VLMConfig(rotary=...)"
            )
    if model.vision.rotary.spec != model.config.vision.rotary:
        raise ValueError(
            f"model.vision.rotary has {model.vision.rotary.spec!r}, but VisionConfig can only state "
            f"{model.config.vision.rotary!r}: the vision encoder's rotary embedding cannot be saved"
        )
    config = replace(model.config, rotary=model.decoder.rotary.spec)
    if VLMConfig.from_dict(json.loads(to_json(config.to_dict()))) != config:
        raise ValueError(f"the config does not come back from JSON as it is, so the model is not saved: {config}")
    return config


def weight_files(folder: Path) -> list[str]:
    """The names of a folder's safetensors files: one, or those that an index lists.

    Raises:
        ValueError: there are none, or an index lists what is not there.
    """
    names = [WEIGHTS_NAME]
    if not (folder / WEIGHTS_NAME).is_file() and (folder / INDEX_NAME).is_file():
        index = read_object(folder / INDEX_NAME, TABLES).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) and is_plain_name(name) for name in index.values()):
            raise ValueError(f"{folder / INDEX_NAME} has no weight_map from weights to files of the folder")
        names = sorted(set(index.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and (pickles := sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)):
        raise ValueError(
            f"{folder} has {pickles[0]} and no {missing[0]}: weights are read from safetensors only, pickles can run code; "
            "convert it"
        )
    if missing or not names:
        by = f", which {INDEX_NAME} lists in its weight_map" if missing and names != [WEIGHTS_NAME] else ""
        raise ValueError(f"no {', '.join(missing) or 'weights'} in {folder}{by}: was the folder copied whole?")
    return names


def load_weights(
    model: nn.Module,
    files: Sequence[Path],
    rename: Callable[[str], str | None],
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> None:
    """Gives a model the weights of these files in place of its own, which may be on the meta device.

    On the CPU, weights of the wanted dtype stay where the files are mapped into memory: nothing is copied.

    Args:
        rename: from a file's names of weights to the model's; None for what the model does not need.

    Raises:
        ValueError: weights that are missing, unknown, of another shape, or of several dtypes without one that is wanted; a
            damaged file.
    """
    needed = {name: weight.shape for name, weight in model.state_dict().items()}
    stated: dict[str, list[int]] = {}
    theirs: dict[str, str] = {}
    unknown = []
    for file, name, shape, kind in _headers(files):  # of what is stated nothing is read before all of it fits
        ours = rename(name)
        if ours is not None and kind not in FLOATS:
            raise ValueError(f"{file}: {name} is of {kind}, and weights are {_FLOATS} here: convert them")
        if ours is not None and (ours in needed or ours != "head.weight"):  # written though the embedding is the head
            if ours not in needed:
                unknown.append(name)
            # a convolution over patches that do not overlap is a product, [hidden, patch_dim]
            theirs[ours], stated[ours] = name, [shape[0], math.prod(shape[1:])] if len(shape) == 5 else shape
    # experts are released as [experts, in, out]; transformers 5 writes its own as [experts, out, in]; one of two may be square
    pairs = {name: name.rpartition(".")[0] for name, shape in stated.items() if len(shape) == 3}
    turned = {pair for name, pair in pairs.items() if stated[name] != list(needed.get(name, ()))}
    stated |= {name: [stated[name][0], *stated[name][:0:-1]] for name, pair in pairs.items() if pair in turned}
    wrong = [
        f"{theirs[name]} is {shape}, not {list(needed[name])}"
        for name, shape in stated.items()
        if name in needed and shape != list(needed[name])
    ]
    for what, found in (("unknown", unknown), ("missing", sorted(needed.keys() - stated.keys())), ("of another shape", wrong)):
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise ValueError(
                f"the weights in {files[0].parent} are not those of its config.json; {what}: {', '.join(found[:5])}{more}"
            )
    state: dict[str, Tensor] = {}
    heads = []
    for name, tensor in _tensors(files, str(device)):
        ours = rename(name)
        if ours == "head.weight" and ours not in needed:
            heads.append(tensor)
        elif ours is not None:
            tensor = tensor.flatten(1) if tensor.ndim == 5 else tensor
            state[ours] = (tensor.mT if pairs.get(ours) in turned else tensor).to(dtype=dtype)
    if len(dtypes := {str(tensor.dtype) for tensor in state.values()}) > 1:
        raise ValueError(f"the weights in {files[0].parent} are of {' and '.join(sorted(dtypes))}: say which with dtype=")
    if any(not torch.equal(head.to(dtype=dtype), state["embedding.weight"]) for head in heads):
        raise ValueError(f"config.json in {files[0].parent} ties the head to the embedding, but the weights have another head")
    model.load_state_dict(state, assign=True)


def _tensors(files: Sequence[Path], device: str) -> Iterator[tuple[str, Tensor]]:
    for file, weights in _opened(files, device):
        with _reading(file):
            for name in weights.keys():  # noqa: SIM118  (it is no mapping)
                yield name, weights.get_tensor(name)


def _headers(files: Sequence[Path]) -> Iterator[tuple[Path, str, list[int], str]]:
    """The names, shapes and dtypes of all weights, and where they are, from the files' headers alone."""
    for file, weights in _opened(files, "cpu"):
        with _reading(file):
            for name in weights.keys():  # noqa: SIM118
                stated = weights.get_slice(name)
                yield file, name, stated.get_shape(), stated.get_dtype()


def _opened(files: Sequence[Path], device: str) -> Iterator[tuple[Path, Any]]:
    from safetensors import safe_open

    for file in files:
        with _reading(file), safe_open(file, framework="pt", device=device) as weights:
            yield file, weights


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {error}; copy the folder again") from error
