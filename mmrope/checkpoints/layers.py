"""Which layer of a model is asked for: its type, whether it rotates, and by which theta where layers have their own."""

from __future__ import annotations

from typing import Any

from mmrope.checkpoints.stated import Stated

STILL = "(a layer without rotation)"
_WITHOUT_ATTENTION = ("linear_attention", "conv", "mamba", "mamba2", "recurrent")


def layer_of(text: Stated, layer_type: str | None, layer: int | None) -> str | None:
    """The type of the layer that is asked for; `STILL` if it does not rotate; None where layers are alike. What a config says
    by layer is put in place: layer_types that its code lays out by a pattern, the theta of this layer.

    Args:
        layer: its number, from 0 up.
    """
    model = text.model
    if layer_type is not None and layer is not None:
        raise text.wrong("state layer_type or layer, not both")
    types = _types(text)
    if types:
        text["layer_types"] = types
    if layer is not None:
        _check_number(text, layer, len(types) or text.count("num_hidden_layers") or model.sizes.get("num_hidden_layers"))
        layer_type = types[layer] if types else None
        if layer_type is None and (model.layers or model.still):
            raise text.wrong(f"the config has no layer_types; state layer_type instead of layer={layer}")
    rope = text.part("rope_parameters")
    if layer_type in _WITHOUT_ATTENTION or any(text.get(key) in values for key, values in model.still_if.items()):
        return STILL
    if "rope_theta" in model.reads and rope.get("rope_theta", 0) is None:
        return STILL
    if model.no_rope_layers and layer is not None and not _rotates(text, layer):
        return STILL
    if model.layer_theta and (thetas := text.numbers("layer_rope_theta")):
        return _by_theta(text, thetas, layer_type, layer)
    if layer_type in model.still and not _rotates_all_the_same(text, layer):
        return STILL
    by_type = model.layers or text.get("local_theta") is not None
    by_type = by_type or any(isinstance(value, dict) for value in (rope or text.part("rope_scaling")).values())
    return layer_type if layer is None or by_type or isinstance(text.get("rope_theta"), (list, tuple)) else None


def laid_out(layers: int, n: int, place: str, one: str, every: str) -> list[str]:
    """Two types of layers in turn: every n-th is of the second, counted so that the first, the last of each n, or the last of
    all is.

    Example:
        >>> from mmrope.checkpoints.layers import laid_out
        >>> laid_out(7, 3, "last", "s", "F"), laid_out(7, 3, "end", "s", "F")
        (['s', 's', 'F', 's', 's', 'F', 's'], ['F', 's', 's', 'F', 's', 's', 'F'])
    """
    shift = {"first": 0, "last": 1, "end": n - (layers - 1) % n}[place]
    return [one if (i + shift) % n else every for i in range(layers)]


def _types(text: Stated) -> list[str]:
    """The type of each layer; empty where nothing says so."""
    types = text.get("layer_types")
    if types is not None:
        if not isinstance(types, (list, tuple)) or not all(isinstance(each, str) for each in types):
            raise text.wrong(f"the config has layer_types {types!r}, which is no list of types of layers")
        return list(types)
    every = text.model.every
    layers = text.count("num_hidden_layers") or text.model.sizes.get("num_hidden_layers")
    if not every or layers is None:
        return []
    key = every.get("key", "")
    stated = text.get(key)
    if isinstance(stated, str) and stated and stated == "L" * (len(stated) - 1) + "G":  # EXAONE 4: local, and then global
        n = len(stated)
    else:
        n = text.count(key) or every["n"]
    return laid_out(layers, n, every["place"], *every["types"])


def _rotates(text: Stated, layer: int) -> bool:
    """Of a model whose config lists it."""
    stated = text.numbers("no_rope_layers")
    if stated:
        _check_number(text, layer, len(stated))
        return bool(stated[layer])
    return (layer + 1) % (text.count("no_rope_layer_interval") or 4) != 0


def _by_theta(text: Stated, thetas: list[float], layer_type: str | None, layer: int | None) -> str | None:
    """By the theta of each layer, of which 0 says that it does not rotate."""
    types = text.get("layer_types") or []
    if layer is not None:
        _check_number(text, layer, len(thetas))
        mine = {thetas[layer]}
    elif layer_type is not None and len(types) == len(thetas):
        mine = {theta for theta, kind in zip(thetas, types, strict=True) if kind == layer_type}
    else:
        mine = set(thetas) - {0} or {0}
    if len(mine) != 1:
        raise text.wrong(f"its layers have thetas {sorted(mine)} by layer_rope_theta: say which by layer")
    [theta] = mine
    if theta == 0:
        return STILL
    if text.model.layer_theta == "theta":
        key = "rope_parameters" if text.get("rope_parameters") else "rope_scaling"
        text[key] = {k: value for k, value in text.part(key).items() if k != "rope_theta"}
        text["rope_theta"] = theta
    return None


def _rotates_all_the_same(text: Stated, layer: int | None) -> bool:
    """Whether a layer of a still type rotates by what else its code reads."""
    if "sliding_window" in text.model.reads and text.get("sliding_window", 1) is None:
        return True  # EXAONE 4: without windows all layers rotate
    if "prefix_dense_sliding_window_pattern" not in text.model.reads or layer is None:
        return False
    blocks = text.get("mlp_layer_types")
    dense = isinstance(blocks, (list, tuple)) and layer < len(blocks) and blocks[layer] == "dense"
    return dense and text.get("prefix_dense_sliding_window_pattern", 1) == 1


def _check_number(text: Stated, layer: Any, count: int | None) -> None:
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 or (count is not None and layer >= count):
        known = "" if count is None else f"{count} "
        raise ValueError(f"{text.name} has {known}layers, numbered from 0 up, and none is {layer!r}")
