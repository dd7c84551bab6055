"""How far a value goes: calls of mmrope's own functions, and changes of file, from a processor's output to position IDs.

    python scripts/count_calls.py [--list]

The output has one image and a mask. Comprehensions count with the function that they are in.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from mmrope import family, position_ids, segments_from_inputs  # noqa: E402


def count() -> list[tuple[str, str]]:
    """(file, function) of each call, in their order."""
    types = np.array([[0] * 5 + [1] * 6 + [0] * 5])
    inputs = {"input_ids": types, "attention_mask": np.ones_like(types), "mm_token_type_ids": types}
    inputs["image_grid_thw"] = np.array([[1, 4, 6]])
    rule, calls = family("qwen2_vl"), []
    position_ids(segments_from_inputs(inputs, rule), rule)  # modules are loaded

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        own = code.co_filename.startswith(str(ROOT / "mmrope")) and not code.co_name.startswith("<")
        if event == "call" and own:
            calls.append((str(Path(code.co_filename).relative_to(ROOT)), code.co_name))

    sys.setprofile(note)
    position_ids(segments_from_inputs(inputs, rule), rule)
    sys.setprofile(None)
    return calls


def main() -> None:
    calls = count()
    changes = sum(a != b for (a, _), (b, _) in itertools.pairwise(calls))
    if "--list" in sys.argv:
        print("\n".join(f"{file:32}{name}" for file, name in calls))
    print(f"{len(calls)} calls, {changes} changes of file")


if __name__ == "__main__":
    main()
