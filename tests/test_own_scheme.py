"""docs/own-scheme.md: every block runs, one after the other, and the file of families on the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import mmrope
from mmrope.positions import families
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
    monkeypatch.setattr(families, "entry_points", lambda group: [point] if group == "mmrope.families" else [])
    families._from_packages.cache_clear()
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
        (np.zeros((3, 4), int), r"returned int64 \[3, 4\] for .*returns \(ids, next\): ids int64 \[3, 4\], and the id"),
        ((np.zeros((3, 4)), 4), r"returned float64 \[3, 4\] and 4 for"),
        ((np.zeros((3, 4), int), 4.5), r"returned int64 \[3, 4\] and 4.5 for"),
        ((np.zeros((3, 4), int), "4"), r"returned int64 \[3, 4\] and 4 for"),
        (None, "returned NoneType for"),
    ],
)
def test_a_function_is_told_what_it_must_return(returned, message):
    rule = mmrope.family("qwen2_vl").replace(name="mine", place={"image": lambda segment, start, family: returned})
    with pytest.raises(ValueError, match=message):
        mmrope.position_ids([mmrope.Segment.image(h=2, w=2)], rule)
