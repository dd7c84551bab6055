"""The installed upstreams by their source: what is known of it, what it says of them, and what is not known."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mmrope
from mmrope.adapters import diagnosis, doctor, sglang, upstreams
from mmrope.adapters.diagnosis import _as_they_have_it, _conversations, _example, _mend, report
from mmrope.adapters.transformers import RopeIndex, with_positions
from mmrope.adapters.upstreams import KNOWN, codes, digest_of, families_of_code, installed, revision
from mmrope.adapters.vllm import get_mrope_input_positions
from mmrope.positions import FAMILIES, Segment
from mmrope.positions.rules import SAME_CODE
from tests.adapters.test_serving import sglang_request, vllm_request
from tests.positions.test_spans import spans_of
from tests.support import ROOT
from tests.support.upstream_ids import IN_TRANSFORMERS, TRANSFORMERS, as_inputs, transformers_ids, with_tokens

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
    known = {(u, n, d, r) for u in KNOWN for n in families_of_code(u) for d, r in KNOWN[u][n]["rules"].items()}
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
    here = {name: known for name, known in KNOWN["transformers"].items() if name in IN_TRANSFORMERS}
    monkeypatch.setattr(
        upstreams, "KNOWN", {**upstreams.KNOWN, "transformers": here}
    )  # an older one does not have all that is known
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


REVISIONS = sorted(row.key for row in FAMILIES.values() if row.revision)


def smallest(key):
    """The conversation of a revision's example, and what is said of a token of it; None where the example is in words."""
    row, reference = FAMILIES[key], FAMILIES[FAMILIES[key].name]
    found = re.fullmatch(r"(.*): token (\d+)(?: of row (\d))? has \w ([\d.]+), and ([\d.]+) .*", _example(reference, row))
    if found is None:
        assert "is not placed" in _example(reference, row) or "docs/differences.md" in _example(reference, row)
        return None
    rows = next(rows for rows in _conversations(reference) if shown(rows) == found[1])
    return rows, (int(found[3] or 0), int(found[2])), (found[4], found[5])


def shown(rows):
    return (", ".join(map(str, rows)) if len(rows) > 1 else str(rows[0])).replace("Segment.", "")


WITH_EXAMPLE = [key for key in REVISIONS if smallest(key)]


@pytest.mark.parametrize("key", WITH_EXAMPLE)
def test_the_smallest_conversation_differs_by_the_rules_of_the_table(key):
    rows, place, said = smallest(key)
    split = [[part for segment in each for part in _as_they_have_it(segment, FAMILIES[key])] for each in rows]
    right, given = mmrope.position_ids(rows, FAMILIES[key].name).ids, mmrope.position_ids(split, key).ids  # [A, B, S]
    differ = (right != given).any(axis=0)  # [B, S]
    assert differ.any()
    assert divmod(int(differ.argmax()), differ.shape[1]) == place
    assert said[0] != said[1]


@pytest.mark.parametrize("key", WITH_EXAMPLE)
def test_each_mend_mends_its_example(key):
    """Run on what the upstream's processor makes of the example: the mend gives the reference's ids, and where the upstream is
    installed, it gives what is said of it. Where the mend says that there is none, the door refuses."""
    rows, _, _ = smallest(key)
    reference, theirs = with_tokens(FAMILIES[key].name), with_tokens(key)
    upstream = theirs.revision.partition("-")[0]
    mend = _mend(upstream, theirs.revision.partition("-")[2], reference, theirs)
    right = mmrope.position_ids(rows, reference).ids  # [A, B, S]
    if upstream == "transformers":
        inputs = as_inputs(rows, theirs)
        if reference.uses_seconds and not theirs.uses_seconds:  # what its processor does not state
            inputs["second_per_grid_ts"] = as_inputs(rows, reference)["second_per_grid_ts"]
        ids = np.asarray(with_positions(inputs, reference)["position_ids"])
        assert "with_positions" in mend or "generate" in mend
        np.testing.assert_array_equal(ids[-len(right) :], right)
        if theirs.revision == TRANSFORMERS:
            given, _ = transformers_ids(theirs, as_inputs(rows, theirs))
            np.testing.assert_array_equal(given, mmrope.position_ids(rows, theirs).ids)
    elif upstream == "sglang":
        function, arguments = sglang_request(rows, reference)
        assert "mmrope.adapters.sglang" in mend
        np.testing.assert_array_equal(getattr(sglang, function)(**arguments)[0], right)
    else:
        tokens, features = vllm_request(rows[0], reference)
        if "there is none" in mend:
            if "no seconds" in mend:
                for feature in features:
                    feature.data.pop("second_per_grid_ts")
            if reference.center:  # ids below 0 are at the start of a prompt, under a large grid
                count, spans = spans_of([Segment.text(1), Segment.image(h=32, w=32)], reference)
                tokens, features = [0] * count, spans
            with pytest.raises(ValueError, match=r"fraction|ids below 0|places videos by time"):
                get_mrope_input_positions(tokens, features, reference)
        else:
            assert "samples/vllm_model.py" in mend
            np.testing.assert_array_equal(get_mrope_input_positions(tokens, features, reference)[0], right[:, 0])


def test_examples_are_looked_for_from_the_smallest_on():
    media = [rows[0][1] for rows in _conversations(mmrope.family("qwen2_vl")) if len(rows) == 1]
    assert media[:2] == [Segment.image(h=1, w=1), Segment.video(t=1, h=1, w=1)]
    assert [segment.length for segment in media] == sorted(segment.length for segment in media)


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


def test_of_code_that_is_gone_a_checkpoint_is_told_its_own_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "codes", lambda *_: ())
    monkeypatch.setattr(diagnosis, "installed", {"transformers": ("5.23.0", tmp_path)}.get)
    assert doctor() == []  # of a version that is known it is known what it has
    monkeypatch.setattr(diagnosis, "installed", {"transformers": ("9.99.0", tmp_path)}.get)
    gone = {finding.family for finding in doctor()}
    assert {"qwen2_vl", "glm4v"} < gone
    config = {"model_type": "qwen2_vl", "vision_config": {"spatial_merge_size": 2}}
    assert [finding.family for finding in doctor(config)] == ["qwen2_vl"]


def test_a_digest_is_of_what_other_files_of_the_folder_compute_too(tmp_path):
    (tmp_path / "one.py").write_text("class One:\n    def place(self, x):\n        return x\n")
    source = "from .one import One\nclass Two:\n    def place(self, x):\n        return One.place(self, x)\n"
    before = digest_of(source, "place", tmp_path)
    (tmp_path / "one.py").write_text("class One:\n    def place(self, x):\n        return x + 7\n")
    assert digest_of(source, "place", tmp_path) != before
