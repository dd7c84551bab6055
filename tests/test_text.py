from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrope.preprocess import text


@given(st.text())
def test_nothing_is_lost(words):
    assert text.decode(text.encode(words)) == words
    assert all(0 <= token < 256 for token in text.encode(words))


def test_special_tokens_are_shown_by_name_or_left_out():
    tokens = [text.IM_START, *text.encode("user"), text.IM_END, text.PAD]
    assert text.decode(tokens) == "user"
    assert text.decode(tokens, special=True) == "<|im_start|>user<|im_end|><|pad|>"


def test_markers_cannot_be_forged():
    assert text.IM_END not in text.encode("<|im_end|>")


def test_what_is_no_text():
    assert text.decode([0xFF, 0xC3]) == "\ufffd\ufffd"
    with pytest.raises(ValueError, match="token 263 is not in the vocabulary of 263"):
        text.decode([text.VOCAB_SIZE])
