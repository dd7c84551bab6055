"""Packs to a budget of tokens: nothing lost, nothing twice, ids as alone, and the same packs every time."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmrope
from mmrope import Processor, Segment, check
from mmrope.adapters.transformers import PositionCollator, with_positions
from mmrope.preprocess import pack_batches
from tests.support import cases
from tests.support.strategies import upstream_batches
from tests.support.upstream_ids import IN_TRANSFORMERS, as_inputs, with_tokens

PROCESSOR = Processor(padding_side="right")
PACKABLE = sorted(set(IN_TRANSFORMERS) - {"neomme", "glm_image"})
"""NeoMME is an encoder; GLM-Image's rows list images that are still to be made."""


def say(text, *media):
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}, {"role": "assistant", "content": text[::-1]}]


def image(h, w, shade):
    return {"type": "image", "image": np.full((28 * h, 28 * w, 3), shade, np.uint8)}


CONVERSATIONS = [
    say("a"),
    say("one image", image(2, 3, 10)),
    say("two images", image(2, 2, 20), image(3, 2, 30)),
    say("a long text " * 9),
    say("b"),
]


@settings(max_examples=cases(60))
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60), budget=st.integers(60, 200), window=st.integers(1, 70))
def test_packs_hold_every_row_once_in_turn_and_within_the_budget(lengths, budget, window):
    """Rows are told apart by their tokens. None waits for more packs than rows wait, and what is left out did not fit."""
    family = mmrope.family("qwen2_vl")
    rows = [{"input_ids": np.full(n, k + 1)} for k, n in enumerate(lengths)]
    packs = list(pack_batches(iter(rows), family, max_tokens=budget, window=window))
    assert [dict(pack)["input_ids"].tolist() for pack in packs] == [
        pack["input_ids"].tolist() for pack in pack_batches(rows, family, max_tokens=budget, window=window)
    ]
    seen = []
    for pack in packs:
        totals = pack["cu_seqlens"].tolist()
        assert pack["cu_seqlens"].dtype == torch.int32
        assert totals[-1] == pack["input_ids"].shape[1] <= budget
        sequences = [pack["input_ids"][0, a:b].unique().tolist() for a, b in itertools.pairwise(totals)]
        order = [number for [number] in sequences]
        assert order == sorted(order)
        assert [b - a for a, b in itertools.pairwise(totals)] == [lengths[number - 1] for number in order]
        waiting = [k + 1 for k in range(len(lengths)) if k + 1 not in seen]
        assert order[0] == waiting[0]
        seen += order
        left = [k for k in waiting[: window + 1] if k not in order]
        assert all(lengths[k - 1] > budget - totals[-1] for k in left)
        check(pack["position_ids"], pack, family)
    assert sorted(seen) == list(range(1, len(lengths) + 1))


@pytest.mark.parametrize("name", PACKABLE)
@settings(max_examples=cases(8))
@given(data=st.data())
def test_a_pack_of_any_familys_rows_has_the_ids_of_each_alone(name, data):
    family = with_tokens(name)
    batches = [data.draw(upstream_batches(family)) for _ in range(3)]
    rows = [as_inputs([rows[0]], family) for rows in batches]
    expected = [mmrope.position_ids(mmrope.segments_from_inputs(row, family), family) for row in rows]
    [pack] = pack_batches(rows, family, max_tokens=10**6)
    ids = np.concatenate([positions.ids[:, 0, positions.mask[0]] for positions in expected], axis=1)
    np.testing.assert_array_equal(pack["position_ids"][:, 0].numpy(), ids)
    check(pack["position_ids"], pack, family)


def test_pixels_and_labels_go_with_their_rows():
    rows = [PROCESSOR(conversation, labels=True) for conversation in CONVERSATIONS]
    budget = rows[3]["input_ids"].shape[1]
    packs = list(pack_batches(rows, max_tokens=budget))
    assert len(packs) > 1
    order = []
    for pack in packs:
        patches = pack.get("pixel_values", torch.zeros(0, 1176))
        for a, b in itertools.pairwise(pack["cu_seqlens"].tolist()):
            [n] = [n for n, row in enumerate(rows) if torch.equal(row["input_ids"][0], pack["input_ids"][0, a:b])]
            order.append(n)
            labels = rows[n]["labels"][0].clone()
            labels[0] = -100
            assert torch.equal(pack["labels"][0, a:b], labels)
            assert torch.equal(pack["position_ids"][:, 0, a:b], rows[n]["position_ids"][:, 0])
            own = rows[n].get("pixel_values", torch.zeros(0, 1176))
            assert torch.equal(patches[: len(own)], own)
            patches = patches[len(own) :]
        assert not len(patches)
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_a_processors_rows_as_arrays_are_the_same():
    """What `datasets.map(processor.row)` stores."""
    [pack] = pack_batches(map(PROCESSOR, CONVERSATIONS), max_tokens=10_000)
    rows = [{**PROCESSOR.row({"messages": messages, "__key__": "k"})} for messages in CONVERSATIONS]
    [same] = pack_batches(rows, "qwen2_5_vl", max_tokens=10_000)
    assert pack.keys() == same.keys()
    assert all(torch.equal(pack[key], same[key]) for key in pack)


def test_lists_of_bytes_are_bytes():
    """What a stored table gives without being told a format."""
    processor = Processor(pixels="uint8", padding_side="right")
    row = processor.row({"messages": CONVERSATIONS[1]})
    [pack] = pack_batches([row], max_tokens=1000)
    [same] = pack_batches([{key: value.tolist() for key, value in row.items()}], max_tokens=1000)
    assert same["pixel_values"].dtype == torch.uint8
    assert all(torch.equal(pack[key], same[key]) for key in pack)


def test_a_boundary_that_is_learned_is_no_boundary():
    batch = PROCESSOR(CONVERSATIONS[:2], labels=True)
    pack = with_positions(batch, PROCESSOR.family, packed=True)
    start = int((pack["position_ids"][0, 0] == 0).nonzero()[1])
    pack["labels"][0, start] = 5
    with pytest.raises(mmrope.positions.WrongPositions, match=f"begin anew at token {start}, whose label is learned"):
        check(pack["position_ids"], pack, PROCESSOR.family)


def test_ids_that_were_not_written_are_no_filling_where_labels_are_learned():
    """Token 0 is a mark of exclamation in Qwen's vocabulary."""
    ids = torch.tensor([[[0, 1, 2, 3, 4, 5]], *[[[0, 1, 2, 0, 0, 0]]] * 3])
    tokens = torch.tensor([[5, 6, 7, 0, 0, 0]])
    check(ids, {"input_ids": tokens, "labels": torch.tensor([[5, 6, 7, -100, -100, -100]])}, "qwen2_vl")
    with pytest.raises(mmrope.positions.WrongPositions):
        check(ids, {"input_ids": tokens, "labels": tokens}, "qwen2_vl")


def test_padding_goes():
    padded = [PROCESSOR(conversation, labels=True) for conversation in CONVERSATIONS]
    for row in padded[:2]:
        for key, fill in (
            ("input_ids", 0),
            ("attention_mask", 0),
            ("mm_token_type_ids", 0),
            ("labels", 5),
            ("position_ids", 7),
        ):
            row[key] = torch.nn.functional.pad(row[key], (3, 2), value=fill)
    [pack] = pack_batches(padded, max_tokens=10_000)
    [plain] = pack_batches((PROCESSOR(c, labels=True) for c in CONVERSATIONS), max_tokens=10_000)
    assert all(torch.equal(pack[key], plain[key]) for key in plain)


def test_a_pack_for_models_of_transformers():
    """with_positions makes of it what it makes of the padded batch; PositionCollator's packs are checked as they are."""
    family, batch = PROCESSOR.family, PROCESSOR(CONVERSATIONS, labels=True)
    [pack] = pack_batches((PROCESSOR(c, labels=True) for c in CONVERSATIONS), max_tokens=10_000)
    ours, theirs = with_positions(pack, family), with_positions(batch, family, packed=True)
    assert ours.keys() == theirs.keys()
    assert "cu_seqlens" not in ours
    for key, value in theirs.items():
        assert torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value
    for made in (ours, theirs, with_positions(batch, family), pack, batch):
        check(made["position_ids"], made, family)
    wrong = {**pack, "position_ids": pack["position_ids"] + 1}
    with pytest.raises(mmrope.positions.WrongPositions):
        with_positions(wrong, family)


@settings(max_examples=cases(40))
@given(data=st.data(), multiple=st.sampled_from((1, 4, 8)))
def test_check_takes_collated_packs_and_finds_what_is_wrong_in_them(data, multiple):
    family = with_tokens("qwen2_5_vl")
    batch = as_inputs(data.draw(upstream_batches(family)), family)
    pack = PositionCollator(lambda: batch, family, packed=True, multiple_of=multiple)()
    check(pack["position_ids"], pack, family)
    real = (pack["position_ids"][1:, 0] != 0).any(dim=0)
    if not real.any():
        return
    place = data.draw(st.sampled_from(real.nonzero()[:, 0].tolist()))
    wrong = pack["position_ids"].clone()
    wrong[1:, 0, place] += 1
    with pytest.raises(ValueError, match="position_ids"):
        check(wrong, pack, family)
    shifted = pack["position_ids"].clone()
    shifted[0] += 1  # text positions that begin nowhere
    with pytest.raises(ValueError, match=r"position_ids|cu_seqlens"):
        check(shifted, pack, family)


ROW = {"input_ids": [5, 6, 7], "position_ids": [[0, 1, 2]] * 3}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([ROW], {"max_tokens": 2}, "row 0 has 3 tokens, but a pack holds max_tokens=2: allow more, or cut the row before"),
        ([ROW], {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ([ROW], {"window": 0}, "window must be at least 1, got 0"),
        ([ROW, {"input_ids": [1]}], {}, "row 1 has no position_ids: say whose they are, pack_batches(rows, family, ...)"),
        ([{**ROW, "labels": [1, 2]}], {}, "row 0: labels is [2], but there are 3 tokens"),
        ([{**ROW, "labels": 1}], {}, "row 0: labels is [], but there are 3 tokens"),
        ([{**ROW, "messages": [{"role": "user"}]}], {}, "row 0: messages is not known here: take it out"),
        ([{**ROW, "attention_mask": [1, 1]}], {}, "row 0 has 3 tokens, and 2 of 2 in its attention_mask are real"),
        ([{**ROW, "attention_mask": [0, 0, 0]}], {}, "row 0 has 3 tokens, and 0 of 3 in its attention_mask are real"),
        ([{"input_ids": []}], {"family": "qwen2_vl"}, "row 0 has 0 tokens, and 0 of 0 in its attention_mask are real"),
        ([{**ROW, "position_ids": [0, 1, 2]}], {}, "row 0: position_ids must be [A, S] or [A, 1, S], got [3]"),
        ([{**ROW, "pixel_values": [[0, 256]]}], {}, "row 0: pixel_values are torch.int64 up to 256, neither bytes nor floats"),
        ([{**ROW, "labels": [1, 2, 3]}, ROW], {}, "some rows have labels and others none"),
        (
            [{**ROW, "speaker": [1, 2, 3]}],
            {},
            "row 0: speaker is not known here: take it out, or say per_token={'speaker': value}",
        ),
        ([{"input_ids": [[1], [2]]}], {}, "row 0: input_ids must be [S] or [1, S], the tokens of one row, got [2, 1]"),
        ([{**ROW, "position_ids": [[0, 1]] * 3}], {}, "row 0: position_ids are for 2 tokens, but there are 3"),
        ([{**ROW, "position_ids": [[0, 1, 5]] * 3}], {"family": "qwen2_vl"}, "position_ids are not those of qwen2_vl"),
        ([{**ROW, "cu_seqlens": [0, 3]}], {}, "row 0 is a pack already (cu_seqlens)"),
        ([[1, 2]], {}, "row 0 must be model inputs with input_ids, got list"),
        (
            [{**ROW, "pixel_values": np.zeros((4, 6), np.uint8)}, {**ROW, "pixel_values": np.zeros((4, 6), np.float32)}],
            {},
            "pixel_values of these rows are of several kinds, which cannot be joined: torch.uint8 [4, 6], torch.float32 [4, 6]",
        ),
    ],
)
def test_what_cannot_be_packed(rows, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        list(pack_batches(rows, **{"max_tokens": 9, **options}))


def test_settings_are_refused_at_the_call():
    with pytest.raises(ValueError, match="max_tokens"):
        pack_batches([], max_tokens=0)


def test_keys_of_ones_own():
    rows = [{**ROW, "weights": [0.5, 1.0, 2.0]}, ROW]
    [pack] = pack_batches(rows, max_tokens=9, per_token={"weights": 1.0})
    assert pack["weights"].tolist() == [[0.5, 1.0, 2.0, 1.0, 1.0, 1.0]]
    assert not list(pack_batches([], max_tokens=9))


def test_long_texts_of_one_segment_need_no_media():
    [pack] = pack_batches([{"input_ids": np.arange(1, 4001)}], "qwen3_vl", max_tokens=4000)
    assert pack["position_ids"].shape == (3, 1, 4000)
    check(pack["position_ids"], [[Segment.text(4000)]], "qwen3_vl")
