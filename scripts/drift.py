"""What the position code of an upstream has become: known, changed or new, by its source and by running it.

    python scripts/drift.py [--transformers FOLDER] [--vllm FOLDER] [--sglang FOLDER] [--cases 100] [--write]

Without a folder the upstreams that are installed; a folder is one that holds the package, as `pip install --no-deps --target
FOLDER transformers==5.24.0` makes it (vLLM's and SGLang's code is run function by function, so neither needs a GPU). Each
function that places is compared by its normalised source with what is known of it (mmrope/adapters/upstreams.json), and is run
beside the rule of the table that it is said to be; code that is not known beside all rules of its family. The exit code is 1
if any code is changed, new or computes something else. --write puts the table into scripts/results, code that was found to be
a rule into upstreams.json, and the page of all versions into docs/differences.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "scripts" / "results", ROOT / "docs" / "differences.md"
TABLE = ROOT / "mmrope" / "adapters" / "upstreams.json"
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from reports import read_result, replace_marked, write_result  # noqa: E402

FAMILIES_OF = {  # what the files of vLLM and the functions of SGLang place; transformers' folders are named as families are
    "vllm": {
        "qwen2_vl": ["qwen2_vl"],
        "qwen2_5_vl": ["qwen2_5_vl"],
        "qwen3_vl": ["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "intern_s2"],
        "keye": ["keye_vl"],
        "keye_vl1_5": ["keye_vl_1_5"],
        "bailing_moe_v3_vl": ["bailing_moe_v3_vl"],
        "openpangu_vl": ["openpangu_vl"],
        "qwen3_asr": ["qwen3_asr"],
        "isaac": ["isaac"],  # by another rule than the authors'
        "cosmos3_edge": ["cosmos3_edge"],  # which asks qwen3_vl's
        "glm4_1v": ["glm4v", "glm4v_moe", "glm_ocr"],
        "ernie45_vl": ["ernie4_5_vl_moe"],
        "cohere_compass": ["cohere_compass"],
        "paddleocr_vl": ["paddleocr_vl"],
        "qwen2_5_omni_thinker": ["qwen2_5_omni"],
        "qwen3_omni_moe_thinker": ["qwen3_omni_moe"],
        "minicpmv4_6": ["minicpmv4_6"],
        "minicpmv4_7": ["minicpmv4_7"],
    },
    "sglang": {
        "get_rope_index": [
            *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
            *("paddleocr_vl", "cosmos3_omni", "cosmos3_edge"),
        ],
        "get_rope_index_qwen3_omni": ["qwen3_omni_moe"],
        "get_rope_index_glm4v": ["glm4v", "glm46v", "glm4v_moe", "glm_ocr"],
        "get_rope_index_ernie45": ["ernie4_5_vl_moe"],
        "minicpmv4_7.compute_canvas_positions": ["minicpmv4_7"],
        "bailing_mrope.bailing_3drope_get_input_positions_tensor": ["bailing_moe_v3_vl"],
    },
}
_TEXT, _ASKS = "a model of text alone, which counts tokens", "asks the functions above"
NO_ROW = {  # code that is not run, and why
    "vllm": {
        "interfaces": "a signature without code",
        **dict.fromkeys(("qwen3_5", "qwen4_exp/amd/model", "qwen4_exp/nvidia/model"), _TEXT),
        "transformers/multimodal": "asks transformers' get_rope_index",
        "glm4v": "GLM-4V of 2024, which the table does not have",
    },
    "sglang": {
        **dict.fromkeys(
            (
                *("base_processor.compute_mrope_positions", "qwen_vl.compute_mrope_positions"),
                *("glm4v.compute_mrope_positions", "ernie45_vl.compute_mrope_positions"),
                "transformers_auto._compute_mrope_positions",
            ),
            _ASKS,
        ),
        "qwen_vl._compute_image_only_mrope_positions_from_offsets": "a shorter way for prompts with images alone",
        "qwen3_asr.compute_mrope_positions": "counts tokens",
        "glm_image._compute_glm_image_mrope_positions": "also places the images to be made",
        "minicpmv4_7.compute_mrope_positions": "asks compute_canvas_positions",
        **dict.fromkeys(
            ("moss_vl._compute_position_ids", "moss_vl._compute_vision_position_ids"),
            "MOSS-VL, whose images stand beside the text and not in it",
        ),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for upstream in ("transformers", "vllm", "sglang"):
        parser.add_argument(f"--{upstream}", type=Path, metavar="FOLDER")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    folders = {name: folder for name in ("transformers", "vllm", "sglang") if (folder := getattr(asked, name))}
    if "transformers" in folders:
        sys.path.insert(0, str(folders["transformers"].resolve()))  # before anything of it is imported

    from mmrope.adapters.upstreams import UPSTREAMS, installed

    drifted = False
    for upstream in folders or UPSTREAMS:
        if upstream in folders:
            [found] = {d.version for d in metadata.distributions(name=upstream, path=[str(folders[upstream])])}
            there = found, folders[upstream].resolve() / upstream
        else:
            there = installed(upstream)
        if there is None:
            print(f"{upstream} is not installed\n")
            continue
        drifted |= report(upstream, *there, cases=asked.cases, write=asked.write)
    if asked.write:
        replace_marked(PAGE, "drift", page())
    raise SystemExit(drifted)


def report(upstream: str, version: str, folder: Path, *, cases: int, write: bool) -> bool:
    """Prints the table of an upstream; whether anything has drifted."""
    from mmrope.adapters.upstreams import codes
    from mmrope.positions import FAMILIES

    rows, named = [], {row.name for row in FAMILIES.values()}
    known = json.loads(TABLE.read_text(encoding="utf-8"))
    for code in codes(upstream, folder):
        families = FAMILIES_OF[upstream].get(code.name, []) if upstream != "transformers" else [code.name]
        families = [name for name in families if name in named]
        record = {
            "code": code.name,
            "digest": code.digest,
            "state": "known",
            "families": families,
            "rule": code.rule,
            "equal": {},
        }
        rules: set[str] = set()
        for name in families:
            revisions = [code.rule] if code.rule is not None else candidates(upstream, version, name)
            for revision in revisions:
                key = f"{name}@{revision}" if revision and f"{name}@{revision}" in FAMILIES else name
                total, equal = compared(code, folder, key, cases)
                record["equal"][name] = [total, equal]
                if equal == total:
                    rules.add(revision)
                    break
        right = all(total == equal for total, equal in record["equal"].values())
        if code.name in NO_ROW.get(upstream, {}):
            record["why"] = NO_ROW[upstream][code.name]
            record["state"] = "known" if code.digest in known[upstream].get(code.name, {}).get("rules", {}) else "first seen"
        elif not families:
            record["state"] = "new"
        elif not right:
            record["state"] = "computes something else"
        elif code.rule is None:
            record["state"] = "changed" if code.name in known[upstream] else "first seen"
            record["rule"] = max(rules)  # "" of those families that have no revision
        rows.append(record)
        if write and (families or "why" in record):
            entry = known[upstream].setdefault(code.name, {"families": families, "rules": {}})
            entry["families"] = families
            if right:
                entry["rules"][code.digest] = record["rule"] if families else None
    lines = list(table(upstream, version, rows))
    print("\n".join(lines))
    if write:
        TABLE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        made = {"upstream": upstream, "version": version, "date": time.strftime("%Y-%m-%d"), "cases": cases, "code": rows}
        write_result(RESULTS / f"drift_{upstream}-{version}.json", made)
        made_of = [read_result(path, "upstream", "version", "code") for path in sorted(RESULTS.glob("drift_*.json"))]
        whole = [line for each in made_of for line in table(each["upstream"], each["version"], each["code"])]
        write_result(RESULTS / "drift.md", "\n".join(whole))
    return any(row["state"] != "known" for row in rows)


def candidates(upstream: str, version: str, name: str) -> list[str]:
    """The revisions of a family by the upstream, that of its version first, and the reference."""
    from mmrope.positions import FAMILIES
    from mmrope.positions.rules import SAME_CODE

    stated = f"{upstream}-{'.'.join(version.split('.')[:2])}"
    first = SAME_CODE.get(stated, stated)
    found = [row.revision for row in FAMILIES.values() if row.name == name and row.revision.startswith(upstream)]
    return [*sorted(found, key=lambda revision: revision != first), ""]


def table(upstream: str, version: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{upstream} {version}:"
    yield ""
    yield "| code | state | places | by the rule of | cases equal |"
    yield "|---|---|---|---|---|"
    for row in rows:
        total = sum(total for total, _ in row["equal"].values())
        equal = sum(equal for _, equal in row["equal"].values())
        rule = "-" if row["rule"] is None else row["rule"] or "the reference"
        families = ", ".join(row["families"]) or f"no row: {row.get('why', 'nobody knows it')}"
        held = f"{equal:,} of {total:,}" if total else "not run"
        yield f"| `{row['code']}` {row['digest']} | {row['state']} | {families} | {rule} | {held} |"
    yield ""


def page() -> Iterator[str]:
    """What was checked of each version, and when."""
    yield "| upstream | version | functions that place | of families here | cases equal | otherwise, or new | checked |"
    yield "|---|---|---|---|---|---|---|"
    for path in sorted(RESULTS.glob("drift_*.json")):
        made = read_result(path, "upstream", "version", "code", "date")
        rows = made["code"]
        pairs = [pair for row in rows for pair in row["equal"].values()]
        other = ", ".join(f"`{row['code']}`" for row in rows if row["state"] in ("new", "computes something else"))
        yield (
            f"| {made['upstream']} | {made['version']} | {len(rows)} | {sum(bool(row['families']) for row in rows)} "
            f"| {sum(e for _, e in pairs):,} of {sum(t for t, _ in pairs):,} | {other or '-'} | {made['date']} |"
        )


# --- running ----------------------------------------------------------------------------------------------------------


def compared(code: Any, folder: Path, key: str, cases: int) -> tuple[int, int]:
    """Cases in all, and those in which an upstream's code gives the ids of a rule."""
    from tests.support.upstream_ids import with_tokens

    rule = with_tokens(key)
    if code.upstream == "transformers":
        from scripts.fuzz_positions import count
        from tests.positions.test_inputs import assert_ids_equal_transformers
        from tests.support.strategies import upstream_batches

        return count(upstream_batches(rule), lambda batch: assert_ids_equal_transformers(rule, batch), cases, 0)
    run = {"vllm": by_vllm, "sglang": by_sglang}[code.upstream](folder, code, rule)
    return cases, sum(_agrees(run, rule, row) for row in drawn(code.upstream, rule, cases))


def _agrees(run: Callable[[Any], Any], rule: Any, row: Any) -> bool:
    import numpy as np

    from mmrope import position_ids

    try:
        theirs = run(row)
    except Exception as error:  # code that raises does not agree
        print(f"{rule}, {row}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return np.array_equal(position_ids(row, rule).ids[:, 0], theirs)


def drawn(upstream: str, rule: Any, cases: int) -> Iterator[Any]:
    """Rows with text around their media; of vLLM's Omni models without audio in video, whose order its own processors write,
    and of SGLang's with it in half of the rows."""
    from make_serving_references import IMAGES_ALONE, SOUND_IN_VIDEO, _drawn

    from mmrope import Segment

    kinds = [kind for kind in rule.media if kind != "audio_in_video"]
    if upstream == "vllm" and rule.name in IMAGES_ALONE:
        kinds = ["image"]
    rng = random.Random(0)
    inside = upstream == "sglang" and "audio_in_video" in rule.media
    rows = [[Segment.text(2), both, Segment.text(3)] for both in SOUND_IN_VIDEO if inside]
    rows += [_drawn(rng, rule, ["image", "audio_in_video"] if inside and n % 2 else kinds) for n in range(cases - len(rows))]
    yield from rows


def by_vllm(folder: Path, code: Any, rule: Any) -> Callable[[Any], Any]:
    from make_serving_references import vllm_model

    from tests.adapters.test_serving import config_of, vllm_request
    from tests.support.upstream_ids import function_of

    model = vllm_model(folder / "model_executor" / "models", rule.name)
    model.config = config_of(rule)
    model.config.vision_config.pixel_shuffle_scale_factor = rule.spatial_merge  # what Isaac's calls it
    model._uses_canvas_mrope, model._canvas_special_ids = True, canvas_tokens()
    ranges = function_of(folder / "multimodal" / "inputs.py", "extract_embeds_range", "PlaceholderRange")

    def run(row: Any) -> Any:
        tokens, features = vllm_request(row, rule)
        for feature in features:
            feature.mm_position.extract_embeds_range = MethodType(ranges, feature.mm_position)
        ids = model.get_mrope_input_positions(tokens, features)[0].numpy()
        return ids[: len(rule.axes)] if (ids == ids[:1]).all() else ids  # where all axes count, the table has one

    return run


def by_sglang(folder: Path, code: Any, rule: Any) -> Callable[[Any], Any]:
    import torch

    from tests.adapters.test_serving import config_of, sglang_request
    from tests.support.upstream_ids import TOKENS, as_inputs, function_of, plain_code

    if "canvas" in rule.media:
        code_of = plain_code(code.path)

        def canvases(row: Any) -> Any:
            inputs = as_inputs([row], rule)
            ids = torch.as_tensor(inputs["input_ids"][0])
            starts = (ids == TOKENS.image_start) | (ids == TOKENS.slice_start)
            ends = (ids == TOKENS.image_end) | (ids == TOKENS.slice_end)
            bounds = torch.stack([starts.nonzero()[:, 0] + 1, ends.nonzero()[:, 0]], dim=1)  # [crops, 2]
            sizes = inputs.get("target_sizes", torch.zeros(0, 2)).tolist()
            return code_of["compute_canvas_positions"](ids, bounds, sizes, canvas_tokens()).numpy()

        return canvases
    if code.path.stem == "bailing_mrope":
        cls = SimpleNamespace(_text_config=lambda config: config, _validate_position_bounds=lambda ids, config: None)
        place = function_of(code.path, code.name.rpartition(".")[2], "BailingMRotaryEmbedding")
        config = config_of(rule)
        config.image_patch_token, config.video_patch_token = TOKENS.image, TOKENS.video
        config.image_start_token = config.video_start_token = TOKENS.vision_start
        config.use_interleaved_frame_timestamp = rule.split_frames

        def bailing(row: Any) -> Any:
            inputs = {key: torch.as_tensor(value) for key, value in as_inputs([row], rule).items()}
            grids = [inputs.get(key) for key in ("image_grid_thw", "video_grid_thw")]
            return place(cls, inputs["input_ids"][0], config, *grids)[0][:, 0].numpy()

        return bailing

    def run(row: Any) -> Any:
        function, arguments = sglang_request([row], rule)
        return getattr(sglang_module(folder), function)(**arguments)[0][:, 0].numpy()

    return run


def canvas_tokens() -> dict[str, int | None]:
    """The ids of MiniCPM-V's markers, as vLLM and SGLang call them."""
    from tests.support.upstream_ids import TOKENS

    names = {"im_start": "image_start", "im_end": "image_end"} | {
        name: name for name in ("slice_start", "slice_end", "newline")
    }
    return {f"{theirs}_id": getattr(TOKENS, ours) for theirs, ours in names.items()}


@cache
def sglang_module(folder: Path) -> Any:
    path = folder / "srt" / "layers" / "rotary_embedding" / "mrope_rope_index.py"
    spec = importlib.util.spec_from_file_location("mrope_rope_index", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
