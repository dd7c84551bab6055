"""Every row of the table against the expected ids kept as data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmrope import FAMILIES, Segment, family, position_ids

FILES = sorted((Path(__file__).parent / "references").glob("*.json"))
CASES = [
    pytest.param(reference, case, revision, id=f"{reference['family']}@{revision or 'reference'}: {case['name']}")
    for reference in (json.loads(path.read_text()) for path in FILES)
    for case in reference["cases"]
    for revision in case["expected"]
]


def segment(kind, size, seconds=None):
    if kind in ("text", "pad"):
        return Segment(kind, (1, 1, size))
    return Segment(kind, tuple(size), seconds)


@pytest.mark.parametrize(("reference", "case", "revision"), CASES)
def test_ids_are_the_expected_ones(reference, case, revision):
    name = reference["family"] + (f"@{revision}" if revision else "")
    positions = position_ids([[segment(*item) for item in row] for row in case["rows"]], family(name, **reference["facts"]))
    expected = case["expected"][revision]
    assert positions.ids.tolist() == expected["ids"]
    if "next" in expected:
        assert positions.next.tolist() == expected["next"]
    if "rope_deltas" in expected:
        largest = np.where(positions.mask, positions.ids, -1).max(axis=(0, 2))
        assert (largest + 1 - positions.mask.sum(axis=1)).tolist() == expected["rope_deltas"]


def test_every_row_of_the_table_has_a_reference():
    held = {(parameters.values[0]["family"], parameters.values[2]) for parameters in CASES}
    assert {(row.name, row.revision) for row in FAMILIES.values()} <= held


def test_references_say_how_they_were_made():
    for path in FILES:
        reference = json.loads(path.read_text())
        assert {revision for case in reference["cases"] for revision in case["expected"]} <= set(reference["made"])
