"""Fills tests/references/<family>.json with what the installed upstreams compute.

    python scripts/make_references.py

The reference rule's tables (revision "") are made by hand and are left as they are; each upstream's are made anew by
running it. A case that an upstream cannot place has no entry for it, and the reason is printed.
"""

from __future__ import annotations

import copy
import json
import re
from importlib.metadata import version
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

MODELS: dict[str, Any] = {"qwen2_vl": Qwen2VLModel, "qwen2_5_vl": Qwen2_5_VLModel, "qwen3_vl": Qwen3VLModel}
TRANSFORMERS = f"transformers-{version('transformers').rpartition('.')[0]}"
MERGE = 2
FOLDER = Path(__file__).parents[1] / "tests" / "references"


def transformers_ids(family: str, rows: list[list[Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """get_rope_index of the installed transformers, run without building a model."""
    types, mask, images, videos, seconds = [], [], [], [], []
    for row in rows:
        types.append([])
        mask.append([])
        for kind, size, *time in row:
            t, h, w = size if isinstance(size, list) else (1, 1, size)
            types[-1] += [{"image": 1, "video": 2, "frame": 2}.get(kind, 0)] * (t * h * w)
            mask[-1] += [int(kind != "pad")] * (t * h * w)
            if kind in ("image", "video", "frame"):
                (images if kind == "image" else videos).append([t, h * MERGE, w * MERGE])
            seconds += time
    vision = SimpleNamespace(spatial_merge_size=MERGE, tokens_per_second=facts.get("ids_per_second"))
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = MethodType(MODELS[family].get_vision_position_ids, model)
    ids, deltas = MODELS[family].get_rope_index(
        model,
        input_ids=torch.zeros(len(rows), len(types[0]), dtype=torch.long),
        mm_token_type_ids=torch.tensor(types),
        attention_mask=torch.tensor(mask),
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        **({"second_per_grid_ts": torch.tensor(seconds)} if family == "qwen2_5_vl" and seconds else {}),
    )
    return {"ids": ids.tolist(), "rope_deltas": deltas[:, 0].tolist()}


def main() -> None:
    for path in sorted(FOLDER.glob("*.json")):
        reference = json.loads(path.read_text())
        reference["made"][TRANSFORMERS] = (
            f"by scripts/make_references.py, transformers {version('transformers')}, torch {version('torch')}"
        )
        for case in reference["cases"]:
            case["expected"].pop(TRANSFORMERS, None)
            try:
                made = transformers_ids(reference["family"], copy.deepcopy(case["rows"]), reference["facts"])
            except (RuntimeError, StopIteration) as error:
                print(f"{reference['family']}, {case['name']}: {TRANSFORMERS} raises {type(error).__name__}: {str(error)[:90]}")
            else:
                case["expected"][TRANSFORMERS] = made
        path.write_text(compact(reference))
        print(f"{path.name}: {len(reference['cases'])} cases, {', '.join(reference['made'])}")


def compact(value: Any) -> str:
    """JSON with lists of numbers on one line."""
    text = json.dumps(value, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"


if __name__ == "__main__":
    main()
