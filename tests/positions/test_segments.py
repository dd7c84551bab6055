from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import strategies as st

from mmrope import Segment
from mmrope.positions import AudioInVideo, Canvas, Row
from tests.support.strategies import any_rows, law


@law
def test_a_row_is_its_segments(rule, data):
    segments = data.draw(any_rows(rule))
    row = Row.of(segments)
    assert list(row) == segments
    assert row == segments
    assert segments == list(row)
    assert row[::-1] == segments[::-1]
    assert row.length == sum(segment.length for segment in segments)
    assert row.lengths.tolist() == [segment.length for segment in segments]
    assert pickle.loads(pickle.dumps(row)) == row
    assert Row.of(row) is row
    assert eval(repr([s for s in segments if s.kind != "custom"])) == [s for s in segments if s.kind != "custom"]


def test_a_row_never_changes():
    """Nor does what was copied or pickled."""
    row = Row.of([Segment.text(1), Segment.image(h=2, w=2)])
    for same in (row, copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        with pytest.raises(dataclasses.FrozenInstanceError):
            same.items = ()
        with pytest.raises(TypeError, match="does not support item assignment"):
            same.items[0] = same.items[1]


@law
def test_frames_that_are_alike_are_one_item(rule, data):
    """However many there are, and whatever stands between them: the segments are the same."""
    segments = data.draw(any_rows(rule)) + [Segment.frame(h=1, w=2), Segment.text(data.draw(st.integers(0, 2)))] * 4
    row = Row.of(segments)
    assert list(row) == segments
    assert len(row) == len(segments)


def test_a_row_keeps_times():
    video = Segment.video(t=3, h=1, w=1, times=[0, 0.5, 2])
    row = Row.of([Segment.text(1), video])
    assert row[1] == video
    assert row[-1].times == (0.0, 0.5, 2.0)
    assert row[0].times is None
    assert row != [Segment.text(1)]
    with pytest.raises(IndexError, match="segment 2 of a row of 2"):
        row[2]


def test_sizes():
    assert Segment.text(5).length == 5
    assert Segment.image(h=4, w=6).grid == (1, 4, 6)
    assert Segment.video(t=8, h=4, w=6).length == 192
    assert Segment.text(np.int32(3)) == Segment.text(3)
    assert copy.copy(Segment.frame(h=2, w=3)).length == 6
    assert Segment.audio(7).length == 7
    assert AudioInVideo.make(t=2, h=3, w=4, audio=5, seconds_per_grid=1).length == 24 + 5 + 4  # and its four markers
    assert Canvas.make(h=2, w=3).length == 6 + 2
    # a thumbnail, 2 x 3 crops, each between two markers, a newline between the rows of crops and one behind
    assert Canvas.make(h=2, w=3, slices=[(2, 2)] * 6, columns=3, newlines=1).length == 8 + 6 * 6 + 1 + 1
    assert Segment.custom([[0, 0], [0, 1]], advance=2).length == 2


def test_segments_show_themselves():
    crops = Canvas.make(h=2, w=3, slices=[(2, 2)] * 2, columns=2, newlines=1)
    assert repr(crops) == "Canvas.make(h=2, w=3, slices=[(2, 2), (2, 2)], columns=2, newlines=1)"
    sound = AudioInVideo.make(t=2, h=3, w=4, audio=5, times=[0, 1])
    assert repr(sound) == "AudioInVideo.make(t=2, h=3, w=4, audio=5, times=[0.0, 1.0])"
    assert repr(Segment.custom([[0, 0]], advance=2)) == "Segment.custom(2 tokens, advance=2)"
    assert repr(Row.of([Segment.audio(3)])) == "Row([Segment.audio(3)])"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Segment.text(-1), r"Segment.text: each size must be at least 0, got -1"),
        (lambda: Segment.text(2.5), r"Segment.text: each size must be a whole number of tokens, got 2.5"),
        (lambda: Segment.image(h=0, w=3), r"Segment.image: each size must be at least 1, got 0"),
        (lambda: Segment.text(2**31), r"more than 2,147,483,647, the most of one segment"),
        (lambda: Segment.video(t=2**11, h=2**11, w=2**11), r"2048 x 2048 x 2048 tokens are more than"),
        (
            lambda: Segment.video(t=2, h=1, w=1, seconds_per_grid=0),
            r"must be positive seconds \(at most 1e\+09\), got 0",
        ),
        (
            lambda: Segment.video(t=2, h=1, w=1, seconds_per_grid=float("nan")),
            r"must be positive seconds .*, got nan",
        ),
        (lambda: Segment.video(t=2, h=1, w=1, seconds_per_grid=-1.0), r"must be positive seconds"),
        (
            lambda: Segment.video(t=2, h=1, w=1, seconds_per_grid=1.0, times=[0, 1]),
            r"seconds_per_grid \(evenly spaced grids\) or times, not both",
        ),
        (lambda: Segment.video(t=2, h=1, w=1, times=[0, 1, 2]), r"times must be one for each of the 2 temporal grids, got 3"),
        (lambda: Segment.video(t=2, h=1, w=1, times=[1, 0]), r"finite seconds, from 0 up and never decreasing"),
        (lambda: Segment.video(t=2, h=1, w=1, times=[0, float("inf")]), r"finite seconds, from 0 up and never decreasing"),
        (lambda: Segment("image", (1, 2, 2), 1.0), r"Segment.image takes no time"),
        (lambda: Segment("image", (2, 2, 2)), r"one temporal grid, got 2; use Segment.video"),
        (lambda: Segment("sound", (1, 2, 2)), r"unknown segment kind 'sound'; the kinds are pad, text, image"),
        (lambda: Segment.audio(0), r"Segment.audio: each size must be at least 1, got 0"),
        (lambda: Segment("image", (2, 2)), r"Segment.image: grid must be \(t, h, w\), got \(2, 2\)"),
        (lambda: AudioInVideo.make(t=2, h=1, w=1, audio=0, seconds_per_grid=1), r"must be at least 1, got 0"),
        (
            lambda: AudioInVideo.make(t=2, h=1, w=2, audio=3, seconds_per_grid=1, runs=(2, 3, 1)),
            r"runs have 3 tokens of the video and 3 of its audio, but there are 4 and 3",
        ),
        (
            lambda: Canvas.make(h=2, w=2, slices=[("1", 1)], columns=1),
            r"Canvas.make: sizes.* must be a whole number of tokens, got '1'",
        ),
        (lambda: Canvas.make(h=2, w=2, newlines="1"), r"Canvas.make: sizes.* must be a whole number of tokens, got '1'"),
        (
            lambda: Canvas.make(h=2, w=2, slices=[(2**20, 2**20)], columns=1),
            r"Canvas.make: 1 x 2 x 2 tokens are more than 2,147,483,647",
        ),
        (
            lambda: AudioInVideo.make(t=1, h=1, w=1, audio="1"),
            r"AudioInVideo.make: audio must be a whole number of tokens, got '1'",
        ),
        (
            lambda: Segment.video(t=1, h=1, w=1, times=5),
            r"Segment.video: times must be a list, got 5",
        ),
        (
            lambda: Segment.video(t=1, h=1, w=1, times=["a"]),
            r"Segment.video: times must be finite seconds, from 0 up and never decreasing, got \('a',\)",
        ),
        (lambda: Canvas.make(h=2, w=2, slices=[(1, 1)] * 3, columns=2), r"3 slices do not fill rows of 2 columns"),
        (lambda: Canvas.make(h=2, w=2, slices=[(1, 1)]), r"1 slices do not fill rows of 0 columns"),
        (lambda: Canvas.make(h=2, w=2, slices=[(1, 0)], columns=1), r"must be at least 1, got 0"),
        (lambda: Segment.custom([1, 2], advance=1), r"ids must be numbers \[axes, tokens\], got int64 \[2\]"),
        (lambda: Segment.custom([[np.nan]], advance=1), r"an id must be a finite number, at most .*, got nan"),
        (lambda: Segment.custom([[1]], advance=float("inf")), r"advance must be a finite number, .*, got inf"),
        (lambda: Segment.custom([[2**41]], advance=1), r"an id must be a finite number, at most 1,099,511,627,776 either way"),
        (lambda: Segment("custom", (1, 1, 3)), r"Segment.custom needs ids for each of its 3 tokens on every axis"),
        (
            lambda: AudioInVideo.make(t=2, h=1, w=2, audio=3, seconds_per_grid=1, runs=(4, 3, 0)),
            r"must be at least 1, got 0",
        ),
        (lambda: Row.of([3]), r"a row is a list of Segments, but item 0 is 3"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
