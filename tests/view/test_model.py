from __future__ import annotations

import numpy as np
import pytest

from mmrope.view.model import plot_looks, plot_training


@pytest.mark.parametrize(("frames", "drawn"), [(1, 1), (2, 2), (20, 16)])
def test_looks_have_a_panel_for_each_layer_and_frame(frames, drawn):
    weights = np.zeros((2, 4, frames, 2, 3))
    weights[0, 2, 0, 1, 1] = weights[1, 3, 0, 0, 0] = 0.5  # where the layers looked hardest
    figure = plot_looks(np.zeros((frames, 8, 12, 3), np.uint8), weights, title="Where?")
    assert len(figure.axes) == (1 + 2) * drawn
    names = [ax.get_title() or ax.get_ylabel().replace("\n", ", ") for ax in figure.axes]
    assert next(name for name in names if name) == "seen"
    assert [name.partition(":")[0] for name in names if "layer" in name] == ["layer 1, head 3", "layer 2, head 4"]
    assert figure.get_suptitle() == "Where?"


def test_a_training_is_drawn_by_kind():
    loss, exact = plot_training([{"step": n, "loss": 1 / n, "exact": {"count": n / 100}} for n in (50, 100)]).axes
    assert loss.lines[0].get_ydata().tolist() == [1 / 50, 1 / 100]
    assert exact.lines[0].get_ydata().tolist() == [50, 100]


def test_a_training_that_counted_nothing_is_its_loss_alone():
    [loss] = plot_training([{"step": n, "loss": 1 / n} for n in (50, 100)]).axes
    assert loss.lines[0].get_ydata().tolist() == [1 / 50, 1 / 100]
