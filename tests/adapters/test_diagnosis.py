"""The installed upstreams by their source: what is known of it, what it says of them, and what is not known."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import mmrope
from mmrope.adapters import doctor, upstreams
from mmrope.adapters.diagnosis import _as_they_have_it, _conversations, _example, report
from mmrope.adapters.transformers import RopeIndex
from mmrope.adapters.upstreams import KNOWN, codes, digest_of, installed, revision
from mmrope.positions import FAMILIES
from mmrope.positions.rules import SAME_CODE
from tests.support import ROOT
from tests.support.upstream_ids import IN_TRANSFORMERS, TRANSFORMERS

CODE = """
class Model:
    '''What it is.'''
    def get_rope_index(self, ids: int) -> int:
        '''Documentation.'''
        return self.helper(ids) + twice(1)  # a comment

    def helper(self, x):
        return x

def twice(x):
    return 2 * x

def other(x):
    return x
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Documentation.", "Other documentation.", True),
        ("(self, ids: int) -> int", "(self, ids)", True),
        ("  # a comment", "", True),
        ("def other(x):\n    return x", "def other(x):\n    return 7", True),  # not called
        ("twice(1)", "twice(2)", False),
        ("2 * x", "3 * x", False),  # a function that is called
        ("helper(self, x):\n        return x", "helper(self, x):\n        return -x", False),
    ],
)
def test_a_digest_is_of_what_is_computed(old, new, same):
    assert old in CODE
    changed = CODE.replace(old, new)
    assert (digest_of(CODE, "get_rope_index") == digest_of(changed, "get_rope_index")) == same
    assert digest_of(CODE, "another") == ""


def test_the_installed_transformers_is_known_whole():
    there = installed("transformers")
    assert there is not None
    found = list(codes("transformers", there[1]))
    assert {code.name for code in found} == set(IN_TRANSFORMERS)
    for code in found:
        assert code.rule is not None, f"{code.name} is not known: scripts/drift.py"
        assert f"{code.name}@{SAME_CODE.get(code.rule, code.rule)}" in FAMILIES
    assert revision() == TRANSFORMERS


def test_what_is_known_was_run():
    """Every digest of the table is in a result of scripts/drift.py in which all cases were equal."""
    held = set()
    for path in (ROOT / "scripts" / "results").glob("drift_*.json"):
        made = json.loads(path.read_text())
        for row in made["code"]:
            if row["families"] and all(total == equal > 0 for total, equal in row["equal"].values()):
                held.add((made["upstream"], row["code"], row["digest"], row["rule"]))
    known = {(u, n, d, r) for u, names in KNOWN.items() for n, entry in names.items() for d, r in entry["rules"].items()}
    assert known <= held
    assert {name for name, *_ in known} == {"transformers", "vllm", "sglang"}


@pytest.fixture
def another(tmp_path, monkeypatch):
    """A transformers of a version that nobody knows, with the code of the installed one."""
    there = installed("transformers")
    assert there is not None
    models = tmp_path / "transformers" / "models"
    for code in codes("transformers", there[1]):
        target = models / code.path.parent.name / code.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(code.path, target)
    monkeypatch.setattr(upstreams.metadata, "version", lambda package: "9.99.0")

    def found(name):
        there = tmp_path / name
        return SimpleNamespace(submodule_search_locations=[str(there)], origin="there") if there.is_dir() else None

    monkeypatch.setattr(upstreams.util, "find_spec", found)
    return models


def test_known_code_under_a_new_version_just_works(another):
    assert revision() == TRANSFORMERS
    assert RopeIndex("qwen2_vl", "9.99").version == "9.99"
    with pytest.raises(ValueError, match=r"transformers 9\.98 is not known, nor installed: known are 4\.57, 5\.20"):
        RopeIndex("qwen2_vl", "9.98")


def test_unknown_code_is_one_clear_line(another):
    path = another / "qwen2_vl" / "modeling_qwen2_vl.py"
    source = path.read_text()
    begin = source.index("def get_rope_index(")
    changed = source[:begin] + source[begin:].replace("return ", "return 1 and ", 1)
    path.write_text(changed)
    with pytest.raises(
        ValueError, match=r"transformers 9.99.0 places qwen2_vl by code that is not known: scripts/drift.py shows"
    ):
        revision()
    [finding] = [each for each in doctor() if each.family == "qwen2_vl"]
    assert not finding.right
    assert "places by code that is no rule of the table (modeling_qwen2_vl.py)" in finding.says


def test_versions_that_place_alike_are_names_of_one_rule():
    assert mmrope.family("qwen2_vl@transformers-5.24") is mmrope.family("qwen2_vl@transformers-5.23")
    assert RopeIndex("qwen2_vl", "5.20.1")._upstream == mmrope.family("qwen2_vl@transformers-5.23")


def test_doctor_says_what_differs_whom_it_hurts_and_what_mends_it():
    findings = {finding.family: finding for finding in doctor()}
    assert set(findings) == set(IN_TRANSFORMERS)
    assert findings["qwen3_vl"].right
    said = str(findings["qwen2_vl"])
    assert "[text(1), video(t=2, h=1, w=1), text(1)]: token 3 has t 2, and 3 where the weights were trained" in said
    assert "it hurts whoever asks about long videos" in said
    assert "mend it: mmrope.adapters.transformers.generate(model, inputs)" in said
    lines = "\n".join(report(list(findings.values())))
    assert "as the weights were trained: cohere_compass" in lines
    assert "vllm is not installed" in lines


@pytest.mark.parametrize("key", sorted(row.key for row in FAMILIES.values() if row.revision))
def test_the_smallest_conversation_differs_by_the_rules_of_the_table(key):
    row, reference = FAMILIES[key], FAMILIES[FAMILIES[key].name]
    found = re.fullmatch(r"(.*): token (\d+)(?: of row (\d))? has \w .*", _example(reference, row))
    if found is None:
        assert "is not placed" in _example(reference, row) or "docs/differences.md" in _example(reference, row)
        return
    rows = next(rows for rows in _conversations(reference) if shown(rows) == found[1])
    split = [[part for segment in each for part in _as_they_have_it(segment, row)] for each in rows]
    right, given = mmrope.position_ids(rows, reference).ids, mmrope.position_ids(split, row).ids
    differ = (right != given).any(axis=0)  # [B, S]
    assert divmod(int(differ.argmax()), differ.shape[1]) == (int(found[3] or 0), int(found[2]))
    assert differ.any()


def shown(rows):
    return (", ".join(map(str, rows)) if len(rows) > 1 else str(rows[0])).replace("Segment.", "")


def test_of_a_checkpoint_its_family_alone(tmp_path):
    config = {"model_type": "qwen2_vl", "vision_config": {"spatial_merge_size": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for given in (config, tmp_path, Path(tmp_path / "config.json")):
        assert [finding.family for finding in doctor(given)] == ["qwen2_vl"]


def test_a_folder_of_that_name_is_no_upstream(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed("vllm") is None


def test_code_that_moved_away_is_not_known(another):
    shutil.rmtree(another / "qwen2_vl")
    with pytest.raises(ValueError, match=r"transformers 9.99.0 places qwen2_vl by code that is not known"):
        revision()
    [finding] = doctor({"model_type": "qwen2_vl", "vision_config": {"spatial_merge_size": 2}})
    assert str(finding) == "transformers 9.99.0, qwen2_vl: has no position code where it was known to be"


def test_a_digest_is_of_what_other_files_of_the_folder_compute_too(tmp_path):
    (tmp_path / "one.py").write_text("class One:\n    def place(self, x):\n        return x\n")
    source = "from .one import One\nclass Two:\n    def place(self, x):\n        return One.place(self, x)\n"
    before = digest_of(source, "place", tmp_path)
    (tmp_path / "one.py").write_text("class One:\n    def place(self, x):\n        return x + 7\n")
    assert digest_of(source, "place", tmp_path) != before
