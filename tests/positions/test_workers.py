"""Data-loader workers and schedulers: values cross process borders, and the ids are the same there."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import strategies as st

from mmrope import FAMILIES, Segment, collate, pack, position_ids, segments_from_spans
from mmrope.positions import AudioInVideo, Canvas, fingerprint, keep, truncate
from tests.support.strategies import any_rows, law

MEDIA = {
    "image": Segment.image(h=2, w=3),
    "frame": Segment.frame(h=2, w=3),
    "video": Segment.video(t=3, h=2, w=2, seconds_per_grid=0.7),
    "audio": Segment.audio(7),
    "audio_in_video": AudioInVideo.make(t=3, h=1, w=2, audio=9, seconds_per_grid=0.7),
    "canvas": Canvas.make(h=2, w=2, slices=[(2, 2)] * 2, columns=2),
}


def examples():
    """A family or a revision that states all it needs, and a batch of what it places."""
    for rule in FAMILIES.values():
        if rule.stride is not None:
            media = [part for kind in rule.media for part in (MEDIA[kind], Segment.text(3))]
            yield rule, collate([[Segment.text(2), *media], [Segment.text(5)]])


def work(case):
    """What a worker does: ids, a pack, a slice."""
    rule, rows = case
    positions = position_ids(rows, rule)
    packed = pack(rows, rule, multiple_of=4)
    past = position_ids(rows, rule, start=3, stop=positions.ids.shape[2] + 3)
    return fingerprint(positions), fingerprint(packed), past.ids.tobytes(), packed.text_ids.tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_compute_the_same(method):
    cases = list(examples())
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(work, cases) == [work(case) for case in cases]


@law
def test_values_survive_pickling(rule, data):
    rows = collate(data.draw(st.lists(any_rows(rule), min_size=1, max_size=2)))
    positions = position_ids(rows, rule)
    pruned = keep(positions, positions.mask)
    left = truncate(rows[0], rows[0].length, frames=[1] * sum(s.kind == "frame" for s in rows[0]))
    again, packed, rest = pickle.loads(pickle.dumps((positions, pruned, left)))
    np.testing.assert_array_equal(again.ids, positions.ids)
    assert list(again.rows) == list(positions.rows)
    assert again.family == rule
    assert fingerprint(packed) == fingerprint(positions)
    assert rest.row == left.row


def test_decoding_goes_on_from_what_was_sent_away():
    """Prefill on one machine, decoding on another: the row is all that travels, or its length and the next id."""
    row = segments_from_spans(40, [(4, 24, (1, 8, 12))], "qwen2_vl")
    length, following = pickle.loads(pickle.dumps((row.length, position_ids(row, "qwen2_vl").next)))
    sent = pickle.loads(pickle.dumps(row))
    there = position_ids(sent, "qwen2_vl", start=length, stop=length + 3).ids[:, 0]
    np.testing.assert_array_equal(there, position_ids([*row, Segment.text(3)], "qwen2_vl").ids[:, 0, length:])
    np.testing.assert_array_equal(there, np.broadcast_to(following + np.arange(3), (3, 3)))
