"""docs/own-scheme.md: every block runs, one after the other, and the file of families on the command line."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import mmrope
from mmrope.positions import rules
from tests.support import ROOT

PAGE = (ROOT / "docs" / "own-scheme.md").read_text(encoding="utf-8")
RULE = 'import mmrope\n\nslow = mmrope.register_family(mmrope.family("qwen3_vl").replace(name="slow", advance="spatial"))\n'


def test_every_block_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        exec(compile(block, "own-scheme.md", "exec"), names)
    assert "slow: 9 tokens, text continues at 6" in capsys.readouterr().out
    assert names["again"].config.family.key == "slow"
    with pytest.raises(ValueError, match="of no registered family, and a file holds no code"):
        mmrope.family("rings").replace(name="other", place={"image": lambda *_: None}).to_dict()
    assert mmrope.Family.from_dict(mmrope.family("rings").to_dict()) == mmrope.family("rings")


def test_a_file_of_families_goes_before_the_command(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RULE)
    command = [sys.executable, "-m", "mmrope", "--plugin", str(path), "ids", "text", "--image", "2x3", "--family", "slow"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("slow: 12 tokens")
    lost = subprocess.run([*command[:4], str(tmp_path / "none.py"), *command[5:]], capture_output=True, text=True, check=False)
    assert lost.returncode == 2
    assert "none.py: no such file" in lost.stderr


def test_packages_bring_families_by_an_entry_point(monkeypatch, tmp_path):
    (tmp_path / "my_families.py").write_text(
        RULE.replace("register_family(", "family(").replace("mmrope.family(mmrope", "(mmrope")
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("slow", "my_families:slow", "mmrope.families")
    monkeypatch.setattr(rules, "entry_points", lambda group: [point] if group == "mmrope.families" else [])
    rules.packages_families.cache_clear()
    assert mmrope.family("slow").advance == "spatial"


def test_names_are_taken_once():
    mine = mmrope.family("qwen2_vl").replace(name="mine", stride=2)
    assert mmrope.register_family(mine) is mine
    assert mmrope.register_family(mmrope.family("qwen2_vl").replace(name="mine", stride=2)) == mine  # the same once more
    with pytest.raises(ValueError, match="the name 'mine' is taken by another family"):
        mmrope.register_family(mine.replace(name="other").replace(name="mine", stride=3))
    with pytest.raises(ValueError, match="a changed rule has a name of its own, not that of qwen2_vl"):
        mmrope.family("qwen2_vl").replace(name="qwen2_vl", stride=2)
    with pytest.raises(ValueError, match="a family has no strde; it has advance, "):
        mmrope.family("qwen2_vl").replace(name="mine", strde=2)
    with pytest.raises(ValueError, match="register_family takes a Family, got str"):
        mmrope.register_family("mine")


def test_the_table_cannot_be_written_to():
    with pytest.raises(TypeError, match="does not support item assignment"):
        mmrope.FAMILIES["qwen2_vl"] = mmrope.family("rope")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros((3, 4), int), r"returned int64 \[3, 4\] for .*returns \(ids, next\): ids int64 \[3, 4\], finite, and the id"),
        ((np.zeros((3, 4)), 4), r"returned float64 \[3, 4\] and 4 for"),
        ((np.zeros((3, 4), int), 4.5), r"returned int64 \[3, 4\] and 4.5 for"),
        ((np.zeros((3, 4), int), "4"), r"returned int64 \[3, 4\] and '4' for"),
        (None, "returned NoneType for"),
        ((np.zeros((3, 4), int), float("inf")), r"returned int64 \[3, 4\] and inf for"),
        ((np.zeros((3, 4), int), 2**70), r"returned int64 \[3, 4\] and 1180591620717411303424 for"),
        ((np.full((3, 4), 2**64 - 1, dtype=np.uint64), 4), r"returned uint64 \[3, 4\] and 4 for .* finite"),
    ],
)
def test_a_function_is_told_what_it_must_return(returned, message):
    rule = mmrope.family("qwen2_vl").replace(name="mine", place={"image": lambda segment, start, family: returned})
    with pytest.raises(ValueError, match=message):
        mmrope.position_ids([mmrope.Segment.image(h=2, w=2)], rule)


def test_a_function_that_fails_is_named():
    def broken(segment, start, family):
        return [][1]

    rule = mmrope.family("qwen2_vl").replace(name="mine", place={"image": broken})
    with pytest.raises(ValueError, match=r"mine: broken failed on Segment.image\(h=2, w=2\) from 0 on: IndexError: list index"):
        mmrope.position_ids([mmrope.Segment.image(h=2, w=2)], rule)


def test_families_of_others_leave_check_as_it_was():
    """A revision alone, a revision with a rule that no row has, and a function that fails: `check` tries them, too."""
    mine = mmrope.register_family(mmrope.family("qwen2_vl").replace(name="mine"))
    mmrope.register_family(mine.replace(name="lab", revision="v2"))
    mmrope.register_family(mine.replace(name="x").replace(name="mine", revision="v2", advance="time", axes="wht"))
    mmrope.register_family(mine.replace(name="broken", place={"image": lambda *_: [][1]}))
    row = [mmrope.Segment.text(2), mmrope.Segment.image(h=2, w=3), mmrope.Segment.text(1)]
    with pytest.raises(mmrope.positions.WrongPositions, match="of no known revision"):
        mmrope.check(np.full((3, 1, 9), 7), row, "qwen2_vl")
    with pytest.raises(mmrope.positions.WrongPositions, match=r"those of mine@v2 \(its advance is another\)"):
        mmrope.check(mmrope.position_ids(row, "mine@v2").ids, row, "mine")


def test_a_changed_rule_is_saved_whole_although_it_is_registered():
    slow = mmrope.register_family(mmrope.family("qwen3_vl").replace(name="slow", advance="spatial"))
    text = json.dumps(slow.to_dict())
    rules.OWN.clear()
    del rules.REGISTRY["slow"]
    assert mmrope.Family.from_dict(json.loads(text)) == slow
    numbers = mmrope.family("qwen2_vl", token_ids=mmrope.positions.TokenIds(image=np.int64(9)))
    assert mmrope.Family.from_dict(json.loads(json.dumps(numbers.to_dict()))) == numbers


MINE = mmrope.family("qwen2_vl").replace(name="mine").to_dict()["rule"]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"name": "qwen2_vl", "facts": None}, "^facts must be an object, got None"),
        ({"name": "qwen2_vl"}, "^a family as JSON has the keys"),
        ({"rule": MINE | {"rotary": {"thta": 1}}}, "^rule.rotary.thta is not known; known are layout, sections, "),
        ({"rule": MINE | {"reading": {}}}, "^rule.reading.of is missing"),
        (
            {"rule": MINE | {"place": {"image": "qwen2_vl"}}},
            "^rule.place.image names the family qwen2_vl, which has no function",
        ),
    ],
)
def test_what_says_no_family_is_refused(stated, message):
    with pytest.raises(ValueError, match=message):
        mmrope.Family.from_dict(stated)


def test_rows_of_the_table_cannot_be_written_to_and_are_pickled():
    rule = mmrope.family("vrope")
    with pytest.raises(TypeError, match="does not support item assignment"):
        rule.place["image"] = None
    with pytest.raises(TypeError, match="does not support item assignment"):
        mmrope.family("qwen2_vl").checkpoint.config["spatial_merge"] = "x"
    for copied in (pickle.loads(pickle.dumps(rule)), copy.deepcopy(rule)):
        assert copied == rule
        assert hash(copied) == hash(rule)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"place": {"text": print}}, "mine: every family places text alike"),
        ({"stride": 1e30}, "stride must be a positive number, got 1e\\+30; at most"),
        ({"pad_value": 2**70}, "pad_value must be at most 1,099,511,627,776 either way"),
        ({"pad_value": 0.5}, "pad_value must be a whole number"),
    ],
)
def test_numbers_of_a_rule_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        mmrope.family("qwen2_vl").replace(name="mine", **changes)


def test_a_reading_of_ones_own_is_given_its_keys():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sized(mmrope.positions.Reading):
        @property
        def keys(self):
            return ("my_sizes",)

        def rows(self, host, given, types, mask, family, *, timed):
            return [mmrope.positions.Row.of([mmrope.Segment.image(h=h, w=w) for h, w in host["my_sizes"].tolist()])]

    mine = mmrope.register_family(mmrope.family("qwen2_vl").replace(name="mine", reading=Sized()))
    [row] = mmrope.segments_from_inputs({"input_ids": [[1] * 6], "my_sizes": [[2, 3]]}, mine)
    assert list(row) == [mmrope.Segment.image(h=2, w=3)]
