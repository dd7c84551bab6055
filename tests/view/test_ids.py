from __future__ import annotations

import numpy as np
import pytest

from mmrope import Segment, explain, position_ids
from mmrope.positions import AudioInVideo, Canvas
from mmrope.positions.compare import placed
from mmrope.view.figure import AXIS_COLORS, KIND_COLORS, save
from mmrope.view.ids import overlapping_text, plot_ids, plot_rules

VIDEO = Segment.video(t=8, h=2, w=2, seconds_per_grid=1.0)
ROW = [Segment.text(3), Segment.image(h=2, w=3), Segment.text(1), VIDEO, Segment.text(20), Segment.pad(2)]


def test_every_tokens_ids_are_drawn():
    positions = position_ids(ROW, "qwen2_5_vl")
    ax = plot_ids(positions)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines) == ["w", "h", "t"]
    for n, axis in enumerate("thw"):
        np.testing.assert_array_equal(lines[axis].get_ydata(), positions.ids[n, 0])
        np.testing.assert_array_equal(lines[axis].get_xdata(), np.arange(positions.ids.shape[-1]))
        assert lines[axis].get_color() == AXIS_COLORS[axis]
    assert [text.get_text() for text in ax.texts] == ["image 0: 2 x 3", "video 0: 8 x 2 x 2"]


SOUND = AudioInVideo.make(t=2, h=1, w=2, audio=30, seconds_per_grid=1.0)


@pytest.mark.parametrize(
    ("row", "name", "axes"),
    [
        ([Segment.text(2), Segment.audio(9), SOUND, Segment.text(2)], "qwen3_omni_moe", "thw"),
        ([Segment.text(2), Segment.image(h=2, w=3), Segment.text(2)], "hunyuan_vl", "pwhi"),
        ([Canvas.make(h=2, w=3), Segment.text(2)], "minicpmv4_7", "thw"),
        ([Segment.text(2), Segment.image(h=2, w=3), Segment.custom([[0]] * 4, advance=1)], "vrope", "abcd"),
        ([Segment.text(2), Segment.image(h=2, w=3)], "rope", "p"),
    ],
)
def test_every_kind_of_segment_and_axis_is_drawn_and_explained(row, name, axes):
    positions = position_ids(row, name)
    ax = plot_ids(positions)
    assert {line.get_label() for line in ax.get_lines()} == set(axes)
    assert len({line.get_color() for line in ax.get_lines()}) == len(axes)
    assert set(AXIS_COLORS) >= set("thw")
    assert {segment.kind for segment in row} <= set(KIND_COLORS)
    assert overlapping_text(positions) == []
    table = explain(positions)
    assert table.splitlines()[1].split()[3:-1] == list(axes)
    assert len(table.split("\n\n")[0].splitlines()) == 2 + len(row)


def test_a_canvas_and_a_video_with_sound_say_what_they_hold():
    table = explain(position_ids([SOUND], "qwen3_omni_moe"))
    assert "0..37   audio in video  2 x 1 x 2, 1 s apart, audio 30" in table
    crops = Canvas.make(h=2, w=3, slices=[(2, 2)] * 2, columns=2)
    assert "0..19   canvas  2 x 3, 2 crops  0  0..2  0..4  5" in explain(position_ids([crops], "minicpmv4_7"))


def test_text_inside_a_videos_time_is_found():
    """By the reference rule none; by transformers 5.23's, all from max(h, w) to the video's last step."""
    begin = 3 + 6 + 1 + 32
    assert overlapping_text(position_ids(ROW, "qwen2_5_vl")) == []
    shared = overlapping_text(position_ids(ROW, "qwen2_5_vl@transformers-5.23"))
    assert shared == list(range(begin, begin + 13))  # the video's t goes 14 ids up, text starts 2 up


def test_segments_lie_behind_the_lines_and_have_no_edges():
    axes = plot_ids(position_ids([Segment.text(2), Segment.image(h=2, w=2)], "qwen2_vl"))
    assert [(patch.get_linewidth(), patch.get_zorder()) for patch in axes.patches] == [(0, 0)] * 2
    assert min(line.get_zorder() for line in axes.lines) > 0


def test_rules_are_drawn_on_one_scale(tmp_path):
    figure = plot_rules([position_ids(ROW, name) for name in ("qwen2_5_vl", "qwen2_5_vl@transformers-5.23")], title="two rules")
    one, other = figure.axes
    assert one.get_ylim() == other.get_ylim()
    assert "13 text tokens share\ntheir ids with the video" in [text.get_text() for text in other.texts]
    [arrow] = [text for text in other.texts if "share" in text.get_text()]
    first = 3 + 6 + 1 + 32  # the first that shares its ids: the text behind the video
    assert arrow.xy == (first, position_ids(ROW, "qwen2_5_vl@transformers-5.23").ids[0, 0, first])
    save(figure, tmp_path / "rules.png")
    assert (tmp_path / "rules.png").stat().st_size > 10_000


def test_explain_says_what_each_segment_got():
    table = explain(position_ids([ROW, [Segment.text(64)]], "qwen2_5_vl"), labels=[["a", "b", "c", "d", "e", "f"], ["g"]])
    assert table.splitlines() == [
        "row 0, qwen2_5_vl: 64 tokens, text continues at 42",
        "tokens  kind   grid                  t       h       w       next  content",
        "0..2    text   3                     0..2    0..2    0..2    3     a",
        "3..8    image  2 x 3                 3       3..4    3..5    6     b",
        "9       text   1                     6       6       6       7     c",
        "10..41  video  8 x 2 x 2, 1 s apart  7..21   7..8    7..8    22    d",
        "42..61  text   20                    22..41  22..41  22..41  42    e",
        "62..63  pad    2                     -       -       -       42    f",
        "",
        "row 1, qwen2_5_vl: 64 tokens, text continues at 64",
        "tokens  kind  grid  t      h      w      next  content",
        "0..63   text  64    0..63  0..63  0..63  64    g",
    ]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen2_5_vl@transformers-5.23"])
def test_ranges_are_those_of_the_ids(name):
    positions = position_ids(ROW, name)
    for item in placed(positions):
        ids = positions.ids[:, 0, item.start : item.start + item.segment.length]
        for n, axis in enumerate("thw"):
            if axis in item.ids:
                assert item.ids[axis] == (ids[n].min(), ids[n].max())
    sliced = position_ids(ROW, name, start=5, stop=9)
    assert placed(sliced) == placed(positions)
