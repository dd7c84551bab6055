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


WORDS = text.WordTokenizer(("row", " row", "rows", " 3", "é", "\n\n"))


@given(st.text() | st.lists(st.sampled_from((*WORDS.words, "r", " ", "<|im_end|>", "\n"))).map("".join))
def test_words_lose_nothing(words):
    tokens = WORDS.encode(words)
    assert WORDS.decode(tokens) == words
    assert all(token < 256 or text.VOCAB_SIZE <= token < WORDS.size for token in tokens)  # markers cannot be forged
    assert len(tokens) <= len(text.encode(words))


def test_the_longest_word_is_taken():
    assert WORDS.encode("rows row 3 4") == [text.VOCAB_SIZE + n for n in (2, 1, 3)] + list(b" 4")
    assert WORDS.decode([text.IM_START, text.VOCAB_SIZE, text.IM_END], special=True) == "<|im_start|>row<|im_end|>"
    assert WORDS.special == text.ByteTokenizer().special
    with pytest.raises(ValueError, match="token 269 is not in the vocabulary of 269"):
        WORDS.decode([WORDS.size])
    for words in ((), ("a", "a"), ("a", "")):
        with pytest.raises(ValueError, match="words must be some, different, and not empty, got"):
            text.WordTokenizer(words)
