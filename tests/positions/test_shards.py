"""Shards of sequences: their union is the whole, they are equally large, and as Megatron and transformer-engine have them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrope import collate, pack, position_ids
from mmrope.positions import Row, shard_index
from tests.support import ROOT
from tests.support.strategies import any_rows, law, length

SCHEMES = ("contiguous", "zigzag", "zigzag_per_sequence", "ulysses")


@given(scheme=st.sampled_from(SCHEMES), size=st.integers(1, 8), parts=st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_the_union_of_the_shards_is_the_whole(scheme, size, parts):
    cu_seqlens = np.cumsum([0, *(2 * size * part for part in parts)])
    shards = [shard_index(cu_seqlens, size=size, rank=rank, scheme=scheme) for rank in range(size)]
    assert {len(shard) for shard in shards} == {cu_seqlens[-1] // size}
    gathered = np.concatenate(shards)
    np.testing.assert_array_equal(np.sort(gathered), np.arange(cu_seqlens[-1]))
    np.testing.assert_array_equal(gathered[np.argsort(gathered)], np.arange(cu_seqlens[-1]))


@given(size=st.integers(1, 6), parts=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_zigzag_gives_all_ranks_equal_causal_work(size, parts):
    """Of each sequence, as many pairs of a token and one that it sees."""
    cu_seqlens = np.cumsum([0, *(2 * size * part for part in parts)])
    place = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    work = {
        int((place[shard_index(cu_seqlens, size=size, rank=rank, scheme="zigzag_per_sequence")] + 1).sum())
        for rank in range(size)
    }
    assert len(work) == 1


def pads(row):
    return sum(s.length for s in row if s.kind == "pad")


@law
def test_ids_of_shards_are_shards_of_ids(rule, data):
    """Computed on whole sequences and then cut, they are the slices of each sequence that a rank holds; one index serves ids, text
    positions and tokens."""
    rows, size = data.draw(st.lists(any_rows(rule, padding=False), min_size=1, max_size=3)), data.draw(st.integers(1, 3))
    if rule.ordinal == "batch":
        rows = rows[:1]
    packed = pack(rows, rule, multiple_of=2 * size)
    filled = [collate(row, multiple_of=2 * size)[0] for row in rows]
    tokens = packed.take([np.arange(row.length) for row in map(Row.of, rows)], fill=-1)
    for rank in range(size):
        index = shard_index(packed.cu_seqlens_padded, size=size, rank=rank, scheme="zigzag_per_sequence")
        part = [row.length // (2 * size) for row in filled]
        slices = [(row, at * n, at * n + n) for row, n in zip(filled, part, strict=True) for at in (rank, 2 * size - 1 - rank)]
        ids = [position_ids(row, rule, start=a, stop=b).ids[:, 0] for row, a, b in slices]
        np.testing.assert_array_equal(packed.ids[:, index], np.concatenate(ids, axis=1))
        assert packed.text_ids[index].tolist() == [n for _, a, b in slices for n in range(a, b)]
        real = [[n if n < length(list(row)) - pads(row) else -1 for n in range(a, b)] for row, a, b in slices]
        assert tokens[index].tolist() == [n for part in real for n in part]


CASES = json.loads((ROOT / "tests" / "references" / "shards" / "shards.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['source']} {case['cu_seqlens']} {case['rank']}/{case['size']}")
def test_shards_are_those_of_megatron_and_transformer_engine(case):
    index = shard_index(case["cu_seqlens"], size=case["size"], rank=case["rank"], scheme=case["scheme"])
    assert index.tolist() == case["index"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seqlens": [0, 4, 10]}, r"'zigzag_per_sequence' cuts sequence 1 into 4 equal parts, but 6 tokens are no multiple of 4: pack with multiple_of=4"),
        ({"cu_seqlens": 9, "scheme": "ulysses"}, "'ulysses' cuts the tokens into 2 equal parts, but 9 tokens are no multiple of 2"),
        ({"cu_seqlens": 6, "scheme": "zigzag"}, "'zigzag' cuts the tokens into 4 equal parts"),
        ({"rank": 2}, "rank must be from 0 to size - 1, got rank 2 of size 2"),
        ({"scheme": "ring"}, "scheme must be one of .*'ulysses'.*, got 'ring'"),
        ({"cu_seqlens": [4, 8]}, r"cu_seqlens must begin with 0 and never fall, got \[4, 8\]"),
        ({"cu_seqlens": [0, 8, 4]}, r"never fall, got \[0, 8, 4\]"),
        ({"cu_seqlens": [0.0, 8.0]}, r"cu_seqlens must be whole numbers \[B \+ 1\], .*, got float64 \[2\]"),
        ({"cu_seqlens": -4, "scheme": "zigzag"}, r"never fall, got \[0, -4\]"),
    ],
)  # fmt: skip
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        shard_index(**{"cu_seqlens": [0, 4, 8], "size": 2, "rank": 0, "scheme": "zigzag_per_sequence", **arguments})
