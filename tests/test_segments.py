from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from strategies import family_and_row

from mmrope import Row, Segment


@given(family_and_row())
def test_a_row_is_its_segments(case):
    _, segments = case
    row = Row.of(segments)
    assert list(row) == segments
    assert row == segments
    assert segments == list(row)
    assert row[::-1] == segments[::-1]
    assert row.length == sum(segment.length for segment in segments)
    assert row.lengths.tolist() == [segment.length for segment in segments]
    assert pickle.loads(pickle.dumps(row)) == row
    assert Row.of(row) is row
    assert eval(repr(segments)) == segments


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Segment.text(-1), r"Segment.text: sizes must be at least 0, got -1"),
        (lambda: Segment.text(2.5), r"Segment.text: sizes are whole numbers of tokens, got 2.5"),
        (lambda: Segment.image(h=0, w=3), r"Segment.image: sizes must be at least 1, got 0"),
        (lambda: Segment.text(2**31), r"more than 2,147,483,647, the most of one segment"),
        (lambda: Segment.video(t=2**11, h=2**11, w=2**11), r"2048 x 2048 x 2048 tokens are more than"),
        (
            lambda: Segment.video(t=2, h=1, w=1, seconds_per_grid=0),
            r"must be a positive number of seconds \(at most 1e\+09\), got 0",
        ),
        (
            lambda: Segment.video(t=2, h=1, w=1, seconds_per_grid=float("nan")),
            r"must be a positive number of seconds .*, got nan",
        ),
        (lambda: Segment.video(t=2, h=1, w=1, seconds_per_grid=-1.0), r"must be a positive number"),
        (
            lambda: Segment.video(t=2, h=1, w=1, seconds_per_grid=1.0, times=[0, 1]),
            r"seconds_per_grid .* or times .*, not both",
        ),
        (lambda: Segment.video(t=2, h=1, w=1, times=[0, 1, 2]), r"2 temporal grids need 2 times, got 3"),
        (lambda: Segment.video(t=2, h=1, w=1, times=[1, 0]), r"finite seconds that never decrease"),
        (lambda: Segment.video(t=2, h=1, w=1, times=[0, float("inf")]), r"finite seconds that never decrease"),
        (lambda: Segment("image", (1, 2, 2), 1.0), r"Segment.image takes no time"),
        (lambda: Segment("image", (2, 2, 2)), r"one temporal grid, got 2; use Segment.video"),
        (lambda: Segment("audio", (1, 2, 2)), r"unknown segment kind 'audio'"),
        (lambda: Row.of([3]), r"a row is a list of Segments, but item 0 is 3"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
