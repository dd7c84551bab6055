"""Figures of encodings show the numbers that they are about."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import torch

from mmrope import RotaryEmbedding, RotarySpec, YaRN
from mmrope.encodings import alibi_slopes
from mmrope.preprocess.image import load_image
from mmrope.view.encodings import mean_score, plot_alibi, plot_decay, plot_frequencies, plot_scalings
from tests.support import ROOT
from tests.test_cli import mmrope

SPEC = RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))


def test_wavelengths_are_drawn_by_axis():
    lines = {line.get_label(): line for line in plot_frequencies(SPEC).get_lines()}
    assert list(lines) == ["t", "h", "w"]
    for a, letter in enumerate("thw"):
        mine = SPEC.axis == a
        np.testing.assert_array_equal(lines[letter].get_xdata(), np.flatnonzero(mine))
        np.testing.assert_allclose(lines[letter].get_ydata(), 2 * np.pi / SPEC.inv_freq[mine])
    still = RotarySpec.from_family("hope")
    assert sum(len(line.get_xdata()) for line in plot_frequencies(still).get_lines()) == (still.inv_freq > 0).sum()


def test_the_score_is_that_of_rotated_vectors():
    """The mean over pairs of unit vectors turned by the module itself."""
    x, rope = torch.ones(1, 1, 1, 128, dtype=torch.float64), RotaryEmbedding(SPEC)
    for axes, ids in (("t", [7, 0, 0]), ("h", [0, 7, 0]), ("thw", [7, 7, 7])):
        at, _ = rope.rotate(x, x, torch.tensor(ids)[:, None, None])
        assert mean_score(SPEC, np.array([7]), axes)[0] == pytest.approx(float((at * x).sum() / 128), abs=1e-6)
    lines = {line.get_label(): line for line in plot_decay(SPEC).get_lines()}
    assert list(lines) == ["t alone", "h alone", "w alone", "all axes"]
    assert [line.get_label() for line in plot_decay(RotarySpec.rope(64)).get_lines()] == ["score"]


def test_scalings_are_drawn_as_they_are():
    lines = {line.get_label(): line for line in plot_scalings(SPEC).get_lines()}
    assert list(lines) == ["PI", "NTK", "NTK-by-parts, YaRN (released)", "YaRN (the paper's ramp)", "Llama 3"]
    np.testing.assert_allclose(lines["PI"].get_ydata(), 1 / 8, rtol=1e-6)
    [line] = plot_scalings(SPEC, {"mine": YaRN(2.0, 100)}).get_lines()
    np.testing.assert_array_equal(line.get_ydata(), SPEC.scaled(YaRN(2.0, 100)).inv_freq / SPEC.inv_freq)


def test_alibi_fades_by_its_slopes():
    slopes = alibi_slopes(8).tolist()
    lines = plot_alibi(slopes).get_lines()
    assert len(lines) == 8
    np.testing.assert_allclose(lines[2].get_ydata()[4], np.exp(-4 * slopes[2]))


@pytest.mark.parametrize("what", ["frequencies", "decay", "scaling", "alibi"])
def test_the_command_draws(what, tmp_path):
    done = mmrope("show", what, "--figure", tmp_path / "out" / "a.png")
    assert done.returncode == 0, done.stderr
    assert load_image(tmp_path / "out" / "a.png").shape[1] > 800


GUIDE = (ROOT / "docs" / "encodings.md").read_text(encoding="utf-8")


def test_the_guide_has_the_figures_that_it_tells_of(tmp_path):
    """The files are there, and the commands are those that draw them."""
    for picture in re.findall(r"!\[[^\]]+\]\((\w+\.png)\)", GUIDE):
        assert load_image(ROOT / "docs" / picture).shape[1] > 800
    commands = re.findall(r"`(mmrope show [^`]+)`", GUIDE)
    assert len(commands) == 4
    for command in commands:
        done = mmrope(*shlex.split(command)[1:], "--figure", tmp_path / "a.png")
        assert done.returncode == 0, done.stderr
