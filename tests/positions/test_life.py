"""A row's life in any order: whatever was appended, cut, padded, packed, pruned, sliced or dealt out, ids are those of the row."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmrope import collate, pack, position_ids
from mmrope.positions import Row, append, decode_position_ids, keep, shard_index, truncate
from tests.support import cases
from tests.support.strategies import RULES, rows, slow_position_ids


class Life(RuleBasedStateMachine):
    """Up to four rows by one family; `self.rows` are what they became, and what they should be is built anew by definition."""

    @initialize(data=st.data())
    def begin(self, data):
        self.family = data.draw(
            st.sampled_from([rule for rule in RULES if rule.ordinal == "row" and rule.name != "circle_rope"])
        )
        self.rows = [Row.of(data.draw(rows(self.family, most=4)))]

    def expected(self, row):
        """ids [A, n] of the real tokens, and next."""
        ids, following = slow_position_ids(list(row), self.family)
        return ids[:, [s.kind != "pad" for s in row for _ in range(s.length)]], following

    @precondition(lambda self: len(self.rows) < 4)
    @rule(data=st.data())
    def another_row(self, data):
        self.rows.append(Row.of(data.draw(rows(self.family, most=4))))

    @rule(data=st.data())
    def append_a_turn(self, data):
        n = data.draw(st.integers(0, len(self.rows) - 1))
        before, more = self.rows[n], data.draw(rows(self.family, most=3))
        self.rows[n] = append(before, more)
        assert self.rows[n] == [*before, *more]
        new = position_ids(self.rows[n], self.family, start=before.length).ids
        np.testing.assert_array_equal(new, position_ids(self.rows[n], self.family).ids[..., before.length :])

    @rule(data=st.data())
    def cut(self, data):
        n = data.draw(st.integers(0, len(self.rows) - 1))
        row, length = self.rows[n], data.draw(st.integers(0, 30))
        policy = data.draw(st.sampled_from(("drop_media", "before_media")))
        left = truncate(row, length, policy=policy, markers=(0, 0), frames=[1] * sum(s.kind == "frame" for s in row))
        kinds = [s.kind for s in row for _ in range(s.length)]
        assert [s.kind for s in left.row for _ in range(s.length)] == [kinds[token] for token in left.tokens]
        assert left.row.length <= length or row.length <= length
        self.rows[n] = left.row

    @rule(data=st.data(), side=st.sampled_from(("left", "right")), multiple=st.integers(1, 4))
    def collate_and_keep(self, data, side, multiple):
        batch = collate(self.rows, pad_side=side, multiple_of=multiple)
        positions = position_ids(batch, self.family)
        for b, row in enumerate(self.rows):
            ids, following = self.expected(row)
            np.testing.assert_array_equal(positions.ids[:, b, positions.mask[b]], ids)
            assert positions.next[b] == following
        mask = np.array([[data.draw(st.booleans()) for _ in range(batch[0].length)] for _ in batch], dtype=bool)
        kept = keep(positions, mask.reshape(positions.mask.shape))
        np.testing.assert_array_equal(kept.ids, positions.ids[:, positions.mask & mask])
        step = decode_position_ids(positions.next, self.family, step=1)
        length = batch[0].length
        further = position_ids(batch, self.family, start=length + 1, stop=length + 2)
        np.testing.assert_array_equal(step, further.ids)
        if data.draw(st.booleans()):
            self.rows = batch

    @rule(multiple=st.sampled_from((1, 2, 4)), start=st.integers(0, 2))
    def pack_and_shard(self, multiple, start):
        packed = pack(self.rows, self.family, multiple_of=multiple, start=start)
        real = [Row.of([s for s in row if s.kind != "pad"]) for row in self.rows]
        for row, begin in zip(real, packed.cu_seqlens_padded, strict=False):
            ids = position_ids(row, self.family, start=start, stop=row.length + start).ids[:, 0]
            np.testing.assert_array_equal(packed.ids[:, begin : begin + row.length], ids)
        if multiple == 4:
            totals = packed.cu_seqlens_padded
            index = [shard_index(totals, size=2, rank=rank, scheme="zigzag_per_sequence") for rank in (0, 1)]
            order = np.argsort(np.concatenate(index))
            parts = np.concatenate([packed.ids[:, part] for part in index], axis=1)
            np.testing.assert_array_equal(parts[:, order], packed.ids)

    @rule(data=st.data())
    def slice(self, data):
        row = data.draw(st.sampled_from(self.rows))
        stop = data.draw(st.integers(0, row.length + 3))
        start = data.draw(st.integers(0, stop))
        whole = position_ids(row, self.family, stop=max(stop, row.length)).ids
        np.testing.assert_array_equal(position_ids(row, self.family, start=start, stop=stop).ids, whole[..., start:stop])

    @invariant()
    def rows_are_those_of_the_definition(self):
        for row in getattr(self, "rows", []):
            positions = position_ids(row, self.family)
            ids, following = self.expected(row)
            np.testing.assert_array_equal(positions.ids[:, positions.mask], ids)
            assert positions.next[0] == following
            assert Row.of(list(row)) == row


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=cases(25), stateful_step_count=12, deadline=None)
