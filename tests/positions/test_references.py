"""Every row of the table against the expected ids kept as data."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from mmrope import FAMILIES, family, position_ids
from tests.positions.test_inputs import deltas_of
from tests.support import ROOT
from tests.support.reference_format import as_json, segment

FILES = sorted((ROOT / "tests" / "references").glob("*.json"))
CASES = [
    pytest.param(reference, case, revision, id=f"{reference['family']}@{revision or 'reference'}: {case['name']}")
    for reference in (json.loads(path.read_text()) for path in FILES)
    for case in reference["cases"]
    for revision in case["expected"]
]


@pytest.mark.parametrize(("reference", "case", "revision"), CASES)
def test_ids_are_the_expected_ones(reference, case, revision):
    rule = family(reference["family"] + (f"@{revision}" if revision else ""), **reference.get("facts", {}))
    rows = [[segment(*item) for item in row] for row in case["rows"]]
    positions = position_ids(rows, rule)
    expected, tolerance = case["expected"][revision], reference.get("tolerance", 0)
    compare = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
    compare(positions.ids, expected["ids"])
    if "next" in expected:
        compare(positions.next, expected["next"])
    if "rope_deltas" in expected and rule.name != "glm_image":  # whose deltas are zeros
        compare(deltas_of(rule, positions), expected["rope_deltas"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_are_written_as_they_are_read(path):
    for case in json.loads(path.read_text())["cases"]:
        for row in case["rows"]:
            assert [as_json(segment(*item)) for item in row] == [item if item[2:] != [None] else item[:2] for item in row]


def test_every_row_of_the_table_has_a_reference():
    held = {(parameters.values[0]["family"], parameters.values[2]) for parameters in CASES}
    assert {(row.name, row.revision) for row in FAMILIES.values()} <= held


def test_references_say_how_they_were_made():
    for path in FILES:
        reference = json.loads(path.read_text())
        assert {revision for case in reference["cases"] for revision in case["expected"]} <= set(reference["made"])
