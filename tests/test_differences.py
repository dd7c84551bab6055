"""The page of differences: its tables are those of the result files, and these are what the installed upstream does."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

from mmrope import FAMILIES, Segment, position_ids
from tests.support import ROOT, upstream
from tests.support.upstream_ids import IN_TRANSFORMERS, TRANSFORMERS, with_tokens

sys.path.insert(0, str(ROOT / "scripts"))

import compare_upstreams

PAGE = compare_upstreams.PAGE.read_text(encoding="utf-8")
FOUND = compare_upstreams.load()
NEW, OLD, VLLM = "transformers-5.23", "transformers-4.57", "vllm-0.33"
ODD = "text after audio in video"  # which the reference does, too
GROUPS = ("cohere_compass", "glm4v", "qwen2_vl", "qwen3_vl", "qwen3_5")


def family(record):
    return record["family"]


def records(name, case):
    return [record for record in FOUND[name]["different"] if record["case"] == case]


def marked(name):
    [lines] = re.findall(rf"<!-- {re.escape(name)} -->\n\n(.*?)\n\n<!-- end of {re.escape(name)} -->", PAGE, re.DOTALL)
    return lines.splitlines()


def without_messages(found):
    """Words of errors belong to versions of Python and torch; their kinds do not."""
    cut = lambda text: re.sub(r"(\w+(?:Error|Iteration)|refused): [^;]*", r"\1", text)  # noqa: E731
    return {
        **found,
        "made_with": None,
        "different": [{key: cut(x) if isinstance(x, str) else x for key, x in record.items()} for record in found["different"]],
    }


def of_families_in_transformers(found):
    """An older version has fewer."""
    equal = {case: [name for name in names if name in IN_TRANSFORMERS] for case, names in found["equal"].items()}
    different = [record for record in found["different"] if record["family"] in IN_TRANSFORMERS]
    return {**found, "different": different, "equal": equal}


def test_the_tables_are_those_of_the_result_files():
    assert set(FOUND) == set(compare_upstreams.TITLES)
    for name, lines in compare_upstreams.page(FOUND).items():
        assert marked(name) == lines, "run scripts/compare_upstreams.py --write"


def test_the_installed_version_does_what_its_results_say():
    found = compare_upstreams.results(compare_upstreams.transformers())
    assert without_messages(found) == without_messages(of_families_in_transformers(FOUND[TRANSFORMERS]))
    assert {*map(family, found["different"]), *(name for names in found["equal"].values() for name in names)} == set(
        IN_TRANSFORMERS
    )


@pytest.mark.parametrize("name", FOUND)
def test_what_differs_differs(name):
    cases = {case.name for case in compare_upstreams.CASES} | set(compare_upstreams.MORE)
    assert FOUND[name]["different"]
    for record in FOUND[name]["different"]:
        assert (record["upstream"] == record["reference"]) == (record["case"] == ODD), record
        assert record["case"] in cases
        assert record["family"] not in FOUND[name]["equal"].get(record["case"], ())
    for case, names in FOUND[name]["equal"].items():
        assert case in cases
        assert names


@pytest.mark.parametrize(
    ("name", "case", "families"),
    [
        (NEW, "text after a video", ["ernie4_5_vl_moe", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl"]),
        (OLD, "text after a video", []),
        (VLLM, "text after a video", []),
        (NEW, "whole seconds", ["paddleocr_vl"]),
        (OLD, "fractions of a second", ["qwen2_5_vl"]),
        (NEW, "rounding", []),
        (NEW, "rounding at 25 ids a second", ["qwen2_5_vl"]),
        (VLLM, "rounding", ["paddleocr_vl", "qwen2_5_omni", "qwen2_5_vl"]),
        (VLLM, "dtype", ["qwen3_omni_moe"]),
        (NEW, "no seconds", ["qwen2_5_omni", "qwen2_5_vl", "qwen3_omni_moe"]),
        (NEW, "padding with media", ["glm_image", "qwen2_5_omni"]),
        (NEW, "padding of text", ["glm_image", "qwen2_5_omni", "qwen3_omni_moe"]),
        (NEW, "text after audio in video", ["qwen2_5_omni", "qwen3_omni_moe"]),
        (NEW, "a row after another", ["hunyuan_vl"]),
        (NEW, "rotation", ["hunyuan_vl"]),
        (NEW, "images to be made", ["glm_image"]),
        (NEW, "decoding after a long video", ["qwen2_5_vl"]),
        (NEW, "no mm_token_type_ids", ["qwen2_5_vl"]),
    ],
)
def test_who_differs(name, case, families):
    assert [*map(family, records(name, case))] == families


@pytest.mark.parametrize(
    "case",
    [
        *("rope_deltas with padding", "images that touch", "a grid too few", "a grid too many", "a grid of another size"),
        *("a grid that the merge does not divide", "a row cut inside an image", "a generated image token"),
    ],
)
def test_what_is_common_to_transformers_5(case):
    assert set(GROUPS) <= {*map(family, records(NEW, case))}


def test_padding_carries_1_in_transformers_4():
    names = {row.name for row in FAMILIES.values() if row.revision == OLD}
    assert {*map(family, records(OLD, "padding of text"))} == names


def test_revisions_give_what_was_measured():
    """But for what a family's rule does not say: what padding carries without media, and tokens that no marker opens."""
    unsaid = {(NEW, "padding of text"), (OLD, "padding of text"), (OLD, "images that touch"), (OLD, "frames that touch")}
    unsaid.add((OLD, "an image without its start marker"))
    for name, found in FOUND.items():
        for record in found["different"]:
            assert record["by_revision"] is not False or (name, record["case"]) in unsaid, record
            if record["case"] in ("text after a video", "whole seconds", "fractions of a second", "rounding", "dtype"):
                assert record["by_revision"] is True


def test_no_smaller_video_shows_it():
    """Text after a video of one grid, or of none that is smaller than what was found, is where the reference has it."""
    for record in records(NEW, "text after a video"):
        _, video, _ = eval(record["input"], {"Segment": Segment})
        assert video.grid == (2, 1, 1)
        row = [Segment.text(1), Segment.video(t=1, h=1, w=1, seconds_per_grid=video.seconds_per_grid), Segment.text(1)]
        ids = [position_ids(row, with_tokens(f"{record['family']}{revision}")).ids for revision in ("", f"@{NEW}")]
        np.testing.assert_array_equal(*ids)


def test_the_page_runs(capsys):
    """Its code as it stands; and generate() takes ids and goes on where they say."""
    row = [Segment.text(1), Segment.video(t=2, h=1, w=1, seconds_per_grid=1.0), Segment.text(1)]
    names = {"model": upstream.model(), "inputs": compare_upstreams.model_inputs(row)}
    seen = []
    names["model"].model.language_model.rotary_emb.register_forward_pre_hook(lambda _, given: seen.append(given[1][0, 0]))
    by_hand, by_model = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(by_hand, names)
    shown = [line.partition("  # ")[2] for line in by_hand.splitlines() if line.startswith("print")]
    assert capsys.readouterr().out.splitlines() == shown
    if not compare_upstreams.V5:  # it says that generate() takes ids in 5.23
        return
    exec(by_model, names)
    assert seen[0].tolist() == [0, 1, 3, 4]
    assert torch.cat(seen[1:]).tolist() == [*range(5, 24)]


def test_links_lead_somewhere():
    for path, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", PAGE):
        assert (ROOT / "docs" / path).exists()
        headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
        assert not heading or heading in [re.sub(r"[^\w -]", "", words).lower().replace(" ", "-") for words in headings]
    for path in re.findall(r"`((?:samples|scripts|tests|mmrope|docs)/[\w/.]*)`", PAGE):
        assert (ROOT / path).exists()
    for case in [*(case.name for case in compare_upstreams.CASES), *compare_upstreams.MORE]:
        told = {words for group in re.findall(r"\*([^*\n]+?)\.?\*", PAGE) for words in group.split(", ")}
        assert case in told or case == "rounding at 25 ids a second", f"the page does not say what to do about {case}"


def test_results_hold_no_place_of_a_machine():
    for path in (compare_upstreams.PAGE, *compare_upstreams.RESULTS.glob("compare_upstreams_*.json")):
        assert not re.search(r"://|(?<![\w.])/(?:tmp|work|root|home|usr|opt)\b", path.read_text(encoding="utf-8"))
