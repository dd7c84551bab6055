"""Makes mmrope/checkpoints/models.json: what the code of each text and audio model of transformers does with its config's rope.

    python scripts/read_transformers.py [--transformers FOLDER] [--list]

FOLDER holds another transformers than the installed one (`pip install --no-deps --target FOLDER transformers==...`). Every
class whose name says that it is a rotary embedding is found in the source, built from its config's class defaults, and run:

- `width`: which of the config's numbers its width follows, found by changing one after the other: "head" (head_dim, or hidden
  size over heads), "hidden" (the latter alone), "apart" (the part of multi-head latent attention that rotates), "rotary_dim";
- `head_dim`: what the class takes where a config leaves it out, if that is a number of its own;
- `partial`: `partial_rotary_factor` changes the width also without a scaling;
- `layers`: the layer types that have frequencies of their own;
- `pairing`: which channels its `apply_rotary...` function turns together, found by turning each channel by itself;
- `rope`: the class default of rope_parameters; `names`: what the config calls sizes otherwise.

What running the class does not show is in the tables below, from reading the code. `parts` says which text model a composite
config holds where its part does not say so itself. `--list` prints every class and what became of it.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import itertools
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmrope.checkpoints.layers import laid_out

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "mmrope" / "checkpoints" / "models.json"
VISION = ("Vision", "ViT", "MLCD", "EomtDinov3", "EfficientLoFTR")
SIZES = ("head_dim", "hidden_size", "num_attention_heads", "qk_rope_head_dim", "rotary_dim")
LENGTHS = ("num_hidden_layers", "max_position_embeddings")

# --- what running the class does not show, by folder: from the attention's code ------------------------------------------

STILL = {  # layer types whose queries and keys are not rotated
    **{name: ["full_attention"] for name in ("cohere2", "cohere2_moe", "flint")},  # `if self.sliding_window is not None`
    **{name: ["full_attention"] for name in ("afmoe", "kolibri1", "lara_mini")},
    **{name: ["full_attention"] for name in ("exaone4", "exaone_moe")},  # ... or sliding_window of the config is None
    **{name: ["full_attention"] for name in ("muse_glimmer", "muse_spark")},  # by default of layer_rope_theta
}
NO_ROPE_LAYERS = ("llama4", "smollm3", "mistral_large4")  # their config lists by layer, in no_rope_layers, which rotate (1)
STILL_IF = {  # keys of a config, and the values by which no layer rotates
    "falcon": {"alibi": [True]},
    "granitemoehybrid": {"position_embedding_type": ["nope", None]},  # rotates where it is "rope"
    "zamba2": {"use_mem_rope": [False, None]},
    "esm": {"position_embedding_type": ["absolute", "relative_key", "relative_key_query", None]},
}
LAYER_THETA = {  # what the numbers of layer_rope_theta, of which 0 is no rotation, say otherwise
    "granite_swa": "theta",
    "granitemoe_swa": "theta",
    "muse_glimmer": "rotates",  # all by the theta of rope parameters
    "muse_spark": "rotates",
}
READS = {  # keys that its code, or its authors', reads besides
    "minimax": ["rotary_dim"],  # MiniMax-Text-01's own code; transformers' rotates whole heads
    "minimax_m2": ["rotary_dim"],
    "gptj": ["rotary_dim"],
    "codegen": ["rotary_dim"],
    "exaone4": ["sliding_window"],
    "exaone_moe": ["sliding_window"],
    "phimoe": ["mscale"],
    "cohere2_moe": ["prefix_dense_sliding_window_pattern"],
    "olmo_hybrid": ["rope_theta"],
}
TWICE = ("zamba2",)  # whose heads are twice as wide by default
NAMES = {  # what authors' own configs call sizes, besides the attribute_map of the class
    "nomic_bert": {
        **{"hidden_size": "n_embd", "num_attention_heads": "n_head", "max_position_embeddings": "n_positions"},
        **{"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_emb_fraction"},
    },
    "stablelm": {"partial_rotary_factor": "rope_pct"},
    "mimo_v2_flash": {"local_theta": "swa_rope_theta"},
    "falcon": {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    "dbrx": {"rope_theta": "attn_config.rope_theta"},
}
CONDITIONS = {
    # conditions that calls of rotary embeddings stand under, and where they are read: a new one ends this script
    **dict.fromkeys(("self.config.rope_interleave", "not self.config.rope_interleave"), "Model.interleave"),
    **dict.fromkeys(("self.sliding_window is not None", "self.is_local_attention"), "STILL"),
    "self.sliding_window is not None or self.force_rope": "STILL, and READS of cohere2_moe",
    "self.sliding_window is None or self.is_sliding": "STILL, and READS of exaone4",
    "alibi is None": "STILL_IF",
    "self.use_rope": "NO_ROPE_LAYERS",
    "self.config.use_mem_rope": "STILL_IF",
    "self.position_embedding_type == 'rotary'": "STILL_IF",
    "self.config.position_embedding_type == 'rope'": "STILL_IF",
    "config.position_embedding_type == 'rope'": "STILL_IF",
    "self.config.layer_rope_theta[i]": "LAYER_THETA",
    "theta": "LAYER_THETA",
    "layer_type == 'sliding_attention'": "STILL of lara_mini",
    "self.config.layer_types[i] == 'full_attention'": "the other layers of olmo_hybrid have no attention",
    "not self.config.rope_parameters[layer_type] is None": "rope parameters of a type of layer that are None",
    "self.config.rope_parameters[layer_type] is not None": "rope parameters of a type of layer that are None",
    "self.rotary_dim is not None": "READS of gptj and codegen",
    "not self.rotary_dim is not None": "READS of gptj and codegen",
    # not about layers of a language model
    "position_embeddings is not None": "what the model's own condition says, which is here, too",
    "rotary_pos_emb is not None": "clvp's encoders have none",
    "self.rotary_emb is not None": "of moshi's and others' depth decoder, which has none",
    "not is_cross_attention": "cross attention",
    "not self.is_kv_shared_layer": "keys that another layer rotated",
    "self.is_kv_shared_layer": "keys that another layer rotated",
}
ALIKE = {  # model types of authors' own code -> the model type that rotates as they do
    "dots_ocr": "qwen2",  # DotsOCRForCausalLM is a Qwen2ForCausalLM
    "kimi_k2": "deepseek_v3",
    "phi3_v": "phi3",
    "phi4mm": "phi4_multimodal",
    "minimax_text_01": "minimax",
    "minimax_m1": "minimax",
    **dict.fromkeys(("aquila", "internlm2", "orion", "solar", "telechat3", "xverse", "Yi", "yi"), "llama"),
    **dict.fromkeys(("deepseek", "minicpm", "nemotron-nas"), "llama"),
    "stablelm_epoch": "stablelm",
    **dict.fromkeys(("RefinedWeb", "RefinedWebModel"), "falcon"),
    "exaone4_5_text": "exaone4",
    "qwen3_tts": "qwen3_vl",  # its talker
}
TABLES = {  # the pairing of classes that keep a table of sines and cosines instead of frequencies, over theta 1e4
    "gptj": "adjacent",
    "codegen": "adjacent",
}
UNREAD = {
    "ClvpRotaryPositionalEmbedding": "no rope parameters: theta 1e4 over projection_dim // (2 heads), at least 32",
    "SeamlessM4TConformerRotaryPositionalEmbedding": "an audio encoder, rotated where position_embeddings_type is rotary, over "
    "rotary_embedding_base",
    "Wav2Vec2BertRotaryPositionalEmbedding": "as SeamlessM4T's",
    "Wav2Vec2ConformerRotaryPositionalEmbedding": "as SeamlessM4T's",
    "EsmFold2RotaryEmbedding": "of atoms, over a config of its own",
    "MusicFlamingoRotaryEmbedding": "by the seconds of audio, which are no position ids",
    "DeepseekV4RotaryEmbedding": "two kinds of attention, main and compressed, over the last channels of a head",
    "Qwen2_5OmniDiTRotaryEmbedding": "of the vocoder's diffusion model: RotarySpec.rope(64)",
    "CohereCompassRotaryEmbedding": "class defaults build none; the family cohere_compass reads it",
}


def classes(models: Path) -> Iterator[tuple[str, str, str, str | None]]:
    """(folder, module, class, name of its config's class) of every rotary embedding, and of no vision tower."""
    for path in sorted(models.glob("*/modeling_*.py")):
        for node in class_nodes(path.read_text(encoding="utf-8"), r"\w*Rotary\w*"):
            init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            args = init.args.args[1:] if init else []
            stated = ast.unparse(args[0].annotation).strip("'\"") if args and args[0].annotation else None
            yield path.parent.name, path.stem, node.name, stated


def class_nodes(source: str, name: str = r"\w+", holding: str = "") -> Iterator[ast.ClassDef]:
    """The classes of a file with such a name, which hold such a word; parsed one by one, as files are long."""
    for found in re.finditer(rf"^class {name}\b.*(?:\n(?:[ )#].*)?)*", source, re.MULTILINE):
        if re.search(holding, found[0]):
            [node] = ast.parse(found[0]).body
            assert isinstance(node, ast.ClassDef)
            yield node


def config_classes(module: Any, folder: str, stated: str | None) -> list[type]:
    """The class that the rotary embedding says that its config is of, then all others of its folder."""
    try:
        configs = importlib.import_module(f"transformers.models.{folder}.configuration_{folder}")
    except ImportError:
        configs = module
    found = [getattr(source, stated) for source in (module, configs) if stated and hasattr(source, stated)]
    others = [c for _, c in inspect.getmembers(configs, inspect.isclass) if c.__module__ == configs.__name__]
    return list(dict.fromkeys([*found, *others]))


def frequencies(rotary: type, make: Callable[[], Any]) -> dict[str, int] | None:
    """The width of each layer type ("" where all are alike) of an embedding of this config; None if it cannot be built."""
    try:
        module = rotary(make())
    except Exception:  # whatever a class of others raises on a config that is not its own
        return None
    found = {name.removesuffix("inv_freq").rstrip("_"): 2 * len(x) for name, x in module.named_buffers()}
    return {name: n for name, n in found.items() if not name.endswith("original")} or None


def widths(rotary: type, config: type, base: dict[str, int]) -> set[str]:
    """Which numbers of the config its width follows."""
    made, followed = config(), set()
    width = next(iter(base.values()))
    for key in SIZES:
        values = (width + 32, 4 * width + 64) if "dim" in key else ()  # two, as one may be its default, or round to it
        if key == "hidden_size" and isinstance(getattr(made, key, None), int):
            values = (2 * made.hidden_size,)
        for value in values:
            changed = frequencies(rotary, lambda key=key, value=value: config(**{key: value}))
            if changed and changed != base:
                followed.add(key)
    return followed


def entry_of(folder: str, module: Any, rotary: type, config: type, base: dict[str, int]) -> dict[str, Any]:
    """What models.json says of a class."""
    made = config()
    entry: dict[str, Any] = {"class": f"{folder}.{rotary.__name__}"}
    if folder in TABLES:
        entry |= {"pairing": TABLES[folder], "rope": {"rope_theta": 1e4}, "reads": READS[folder]}
        return {**entry, "names": names_of(folder, config), "sizes": sizes_of(made)}
    layer = next(iter(base))
    entry["pairing"], backwards = pairing_of(module, rotary, config, base[layer], layer)
    if backwards:
        entry["backwards"] = True
    if "mrope_section" in inspect.getsource(rotary):
        entry["axes"] = "thw"
    followed = widths(rotary, config, base)
    if "qk_rope_head_dim" in followed:
        entry["width"] = "apart"
    elif "head_dim" not in followed and "hidden_size" in followed:
        entry["width"] = "hidden"
    elif "hidden_size" not in followed and read(made, "head_dim"):
        entry["head_dim"] = read(made, "head_dim")
    if hasattr(made, "rope_interleave"):
        entry["interleave"] = made.rope_interleave
    if folder in TWICE:
        entry["width"] = "twice"
    rope = made.to_dict().get("rope_parameters")
    if rope is None and getattr(made, "rope_theta", None) is not None:
        entry["rope"] = {"rope_theta": made.rope_theta}  # ESM's class has no rope parameters
    if rope is not None:
        if any(frequencies(rotary, lambda f=f: with_partial(config, f)) not in (None, base) for f in (0.5, 0.25)):
            entry["partial"] = True
        entry["rope"] = dict(sorted(rope.items()))  # some classes make it of a set
    if layer and rope:
        entry["layers"] = sorted(key for key, value in rope.items() if isinstance(value, dict) or value is None)
    source = inspect.getsource(module)
    for key, table in (("still", STILL), ("still_if", STILL_IF), ("layer_theta", LAYER_THETA)):
        if folder in table:
            entry[key] = table[folder]
    if every := every_of(config):
        entry["every"] = every
    if folder in READS:
        entry["reads"] = READS[folder]
    if folder in NO_ROPE_LAYERS:
        entry["no_rope_layers"] = True
    if "yarn_apply_mscale(config" in source:
        entry["score"] = True
    if "get_llama_4_attn_scale(" in source:
        entry["temperature"] = True
    names = {**names_of(folder, config), **aliases_of(rotary, config)}
    if names:
        entry["names"] = names
    if ignored := ignores_of(rotary, config):
        entry["ignores"] = ignored
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0}
    if (
        rope
        and not layer
        and turned(
            rotary,
            config,
            {"head_dim": 64, "rope_parameters": {**dynamic, "alpha": 1e3}},
            {"head_dim": 64, "rope_parameters": dynamic},
        )
    ):
        entry["reads"] = [*entry.get("reads", []), "alpha"]
    entry["sizes"] = sizes_of(made)
    of_full = base.get("full_attention", 0)
    if of_full > base.get("sliding_attention", of_full):
        entry["sizes"]["global_head_dim"] = of_full  # Gemma 4's full attention has heads of its own size, and all are in pairs
    return entry


def names_of(folder: str, config: type) -> dict[str, str]:
    """What its config calls sizes."""
    theirs = {key: name for key, name in config.attribute_map.items() if key in (*SIZES, *LENGTHS)}
    return {**theirs, **NAMES.get(folder, {})}


ALIASES = {  # what configs call rope parameters, besides their own names
    "rope_theta": (123456.0, ("rotary_emb_base", "global_rope_theta")),
    "partial_rotary_factor": (0.5, ("rotary_pct", "rope_pct", "rope_percent")),
    "local_theta": (123456.0, ("rope_local_base_freq", "local_rope_theta", "swa_rope_theta")),
}


def turned(rotary: type, config: type, changed: dict[str, Any], base: dict[str, Any] | None = None) -> bool | None:
    """Whether these keys of a config, and not the base's, change the frequencies; None if it does not take them."""

    def made(keys: dict[str, Any]) -> dict[str, list[float]] | None:
        try:
            module = rotary(config(**json.loads(json.dumps(keys))))
        except Exception:  # keys and values that it does not take
            return None
        return {name: x.tolist() for name, x in module.named_buffers()}

    other = made(changed)
    return None if other is None else other != made(base or {})


def aliases_of(rotary: type, config: type) -> dict[str, str]:
    """Which of the aliases its class takes."""
    return {
        ours: theirs for ours, (value, names) in ALIASES.items() for theirs in names if turned(rotary, config, {theirs: value})
    }


def ignores_of(rotary: type, config: type) -> list[str]:
    """Which of the forms that most read its class does not: theta by itself, without a dict of rope parameters; the scaling
    of `rope_scaling`."""
    if getattr(config(), "rope_parameters", None) is None:
        return []
    ignored = ["rope_theta"] if turned(rotary, config, {"rope_theta": 123456.0}) is False else []
    old = {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    return [*ignored, "rope_scaling"] if turned(rotary, config, old, {"rope_theta": 1e4}) is False else ignored


def sizes_of(made: Any) -> dict[str, int]:
    """The sizes that its class has by default."""
    stated = made.to_dict()
    keys = (*(key for key in SIZES if key != "head_dim"), *LENGTHS)
    found = {key: stated.get(made.attribute_map.get(key, key)) for key in keys}
    return {key: value for key, value in found.items() if isinstance(value, int)}


PATTERNS = ("sliding_window_pattern", "global_attn_every_n_layers", "full_attention_interval", "layer_group_size")


def every_of(config: type) -> dict[str, Any] | None:
    """How its class lays out two types of layers where a config has no layer_types: every n-th is of the second."""

    def types(layers: int, **more: int) -> list[str] | None:
        try:
            return config(num_hidden_layers=layers, **more).to_dict().get("layer_types")
        except Exception:  # keys and numbers that it does not take
            return None

    base = types(24)
    if not base or len(kinds := list(dict.fromkeys(base))) != 2:
        return None
    for n, place, (one, every) in itertools.product(range(2, 13), ("first", "last", "end"), (kinds, kinds[::-1])):
        if all(types(layers) == laid_out(layers, n, place, one, every) for layers in (24, 25, 31)):
            found = {"n": n, "place": place, "types": [one, every]}
            for key in PATTERNS:
                if all(types(24, **{key: m}) == laid_out(24, m, place, one, every) for m in (3, 5)):
                    found["key"] = key
            return found
    return None


def conditions(source: str) -> set[str]:
    """What must hold for a rotary embedding to be called or applied, in the attention and in the model of a file."""
    found: set[str] = set()

    def walk(node: ast.AST, held: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            mine = held
            if isinstance(node, (ast.If, ast.IfExp)):
                bodies = [node.body, node.orelse] if isinstance(node, ast.If) else [[node.body], [node.orelse]]
                for body, sign in zip(bodies, ("", "not "), strict=True):
                    if child in body:
                        mine = (*held, sign + ast.unparse(node.test))
            called = child.func if isinstance(child, ast.Call) else None
            name = getattr(called, "id", getattr(called, "attr", ""))
            chosen = isinstance(node, ast.IfExp) and child is node.body and "position_embeddings" in ast.unparse(child)
            if chosen or "apply_rotary" in name or "rotary_emb" in name:
                found.update(mine)
            walk(child, mine)

    for node in class_nodes(source, holding="apply_rotary|rotary_emb|position_embeddings"):
        if not re.search("Vision|Indexer|Compressor|Audio|Conformer", node.name):
            walk(node, ())
    return {each for each in found if "position_ids is None" not in each}


def read(config: Any, key: str) -> Any:
    """A number of a config; of those whose layers differ, too."""
    return config.to_dict().get(config.attribute_map.get(key, key))


def parts_of(known: set[str]) -> dict[str, dict[str, str]]:
    """For composite configs the text model that each part is by its class."""
    from transformers import CONFIG_MAPPING

    found: dict[str, dict[str, str]] = {}
    for name in CONFIG_MAPPING:
        parts = getattr(CONFIG_MAPPING[name], "sub_configs", {})
        for key, spec in getattr(CONFIG_MAPPING[name], "sub_configs_defaults", {}).items():
            if getattr(spec, "model_type", None) in known:
                found.setdefault(name, {})[key] = spec.model_type
        mine = {key: part.model_type for key, part in parts.items() if getattr(part, "model_type", None) in known}
        if mine:
            found[name] = {**found.get(name, {}), **mine}
    return found


def without_rotation(models: Path) -> list[str]:
    """The model types whose folder has no word of rotation: those of learned or sinusoidal positions, ALiBi, recurrence."""
    from transformers import CONFIG_MAPPING

    def rotates(name: str) -> bool:
        folder = models / CONFIG_MAPPING[name].__module__.split(".")[-2]
        sources = [path.read_text(encoding="utf-8") for path in folder.glob("modeling_*.py")]
        parts = getattr(CONFIG_MAPPING[name], "sub_configs", {}) or getattr(CONFIG_MAPPING[name], "sub_configs_defaults", {})
        return bool(parts) or not sources or any(re.search(r"rotary|\brope|_rope|RoPE", source) for source in sources)

    return sorted(name for name in CONFIG_MAPPING if not rotates(name))


def with_partial(config: type, factor: float) -> Any:
    """A config whose layers, all of plain frequencies, rotate a part."""
    made = config()
    rope = made.rope_parameters
    nested = any(isinstance(value, dict) for value in rope.values())
    for part in rope.values() if nested else [rope]:
        if part is not None:
            part.update(rope_type="default", partial_rotary_factor=factor)
    return made


def applied(module: Any, part: str) -> list[str]:
    """The functions that the attention of its language model calls, or of a part: not those of towers, encoders, indexers."""
    found: dict[str, None] = {}
    others = "Vision|Indexer" + ("" if part else "|Audio")
    for node in ast.parse(inspect.getsource(module)).body:
        if (
            isinstance(node, ast.ClassDef)
            and "Attention" in node.name
            and part in node.name
            and not re.search(others, node.name)
        ):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id.startswith("apply_rotary"):
                    found[call.func.id] = None
    return [name for name in found if "vision" not in name]


def pairing_of(module: Any, rotary: type, config: type, width: int, layer: str) -> tuple[str | None, bool]:
    """How its file's function turns channels, each of `width` channels by itself, and whether it turns them backwards."""
    import torch

    names = applied(module, "Audio" if "Audio" in rotary.__name__ else "") or [
        name for name in vars(module) if name.startswith("apply_rotary") and "vision" not in name
    ]
    interleaved = bool(getattr(config(), "rope_interleave", False)) or "apply_rotary_pos_emb" not in names
    names.sort(key=lambda name: ("interleave" in name) != interleaved)
    q = torch.eye(width)[None, :, None]  # [1, width heads, 1, width]
    backwards = None
    for axes, sections in itertools.product((1, 3, 2, 4), (False, True)):
        ids, made = torch.ones((axes, 1, 1) if axes > 1 else (1, 1), dtype=torch.long), config()
        if sections and not layer:  # where class defaults do not say how the axes share the pairs
            third = width // 6
            made.rope_parameters = {**(made.rope_parameters or {}), "mrope_section": [width // 2 - 2 * third, third, third]}
        for name, tensors in itertools.product(names, ((q, q), (q,))):
            try:
                tables = rotary(made)(torch.zeros(1, 1, width), ids, **({"layer_type": layer} if layer else {}))
                out = getattr(module, name)(*tensors, *(tables if isinstance(tables, tuple) else (tables,)))
            except Exception:  # their functions have many forms: this one is another
                continue
            out = out[0] if isinstance(out, tuple) else out
            if out.shape == q.shape and (found := _pairs(out[0, :, 0], width)):
                if out[0, 0, 0].amin() > -1e-6:
                    return found, False
                backwards = backwards or found
    return backwards, backwards is not None


def _pairs(out: Any, width: int) -> str | None:
    partners = []
    for channel in range(width):
        mine = [i for i, value in enumerate(out[channel].tolist()) if abs(value) > 1e-6]
        partners.append(mine)
    half = width // 2
    if all(set(mine) <= {i, (i + half) % width} for i, mine in enumerate(partners)):
        return "half"
    if all(set(mine) <= {i, i ^ 1} for i, mine in enumerate(partners)):
        return "adjacent"
    if all(set(mine) <= {i // 2, i // 2 + half} for i, mine in enumerate(partners)):
        return "adjacent"  # written back as two halves, which no score sees
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", type=Path, metavar="FOLDER")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.transformers:
        sys.path.insert(0, str(args.transformers))
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    models: dict[str, Any] = {}
    unread: dict[str, str] = {}
    unknown: dict[str, list[str]] = {}
    towers: list[str] = []
    for folder, stem, name, stated in classes(Path(transformers.__file__).parent / "models"):
        if any(part in name for part in VISION) and "Text" not in name:
            towers.append(name)
            continue
        if name in UNREAD:
            unread[folder] = UNREAD[name]
            continue
        module = importlib.import_module(f"transformers.models.{folder}.{stem}")
        rotary = getattr(module, name)
        if new := sorted(conditions(inspect.getsource(module)) - set(CONDITIONS)):
            unknown[name] = new
        for config in config_classes(module, folder, stated):
            base = frequencies(rotary, config)
            if base is not None and config.model_type:
                entry = entry_of(folder, module, rotary, config, base)
                if entry["pairing"] is None:
                    unread[folder] = "its functions turn pairs in a form of their own"
                else:
                    models.setdefault(config.model_type, entry)
                break
        else:
            unread[folder] = "no config of its folder with a model type builds it"
    if unknown:
        new = "\n".join(f"{name}: {found}" for name, found in unknown.items())
        sys.exit(f"rotary embeddings are called under new conditions: read their code, and add them to CONDITIONS\n{new}")
    table = {
        "made_from": f"transformers {transformers.__version__}",
        "models": dict(sorted(models.items())),
        "parts": parts_of(set(models)),
        "alike": ALIKE,
        "unread": dict(sorted(unread.items())),
        "without": without_rotation(Path(transformers.__file__).parent / "models"),
    }
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    if args.list:
        print("\n".join(f"{key:32}{entry['class']}" for key, entry in models.items()))
        print("\n".join(f"{'-':32}{name}: {why}" for name, why in unread.items()))
        print("\n".join(f"{'-':32}{name}: a vision tower, RotarySpec.axial or a preset" for name in towers))
    print(f"{len(models)} model types read, {len(unread)} folders and {len(towers)} vision towers not")


if __name__ == "__main__":
    main()
