"""Text as tokens: the bytes of UTF-8, with nothing to train and nothing lost; some words besides; or a tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmrope.extras import needed_for
from mmrope.files import replacing, to_json

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The special tokens, ids 256 and up; their names are those of the Qwen tokenizers."""
PAD, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = range(256, 256 + len(SPECIAL_TOKENS))
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
TOKENIZER_NAME, TOKENIZER_CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"


class Tokenizer(Protocol):
    """What a Processor asks of a tokenizer.

    Example:
        >>> from mmrope.preprocess import ByteTokenizer, Tokenizer
        >>> tokenizer: Tokenizer = ByteTokenizer()
        >>> tokenizer.encode("Hi"), tokenizer.special["<|image_pad|>"]
        ([72, 105], 261)
    """

    @property
    def special(self) -> Mapping[str, int]:
        """The id of each of SPECIAL_TOKENS; "<|pad|>" is the one to pad with, whatever its name."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. What looks like a special token in it stays text: users cannot forge markers."""
        ...

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens: special tokens are left out, or shown by name."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """256 tokens for the bytes of UTF-8, and SPECIAL_TOKENS.

    Example:
        >>> from mmrope.preprocess import ByteTokenizer
        >>> ByteTokenizer().encode("é!")
        [195, 169, 33]
        >>> ByteTokenizer().decode([195, 169, 33])
        'é!'
    """

    @property
    def special(self) -> Mapping[str, int]:
        """The ids of SPECIAL_TOKENS."""
        return {name: 256 + n for n, name in enumerate(SPECIAL_TOKENS)}

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return encode(text)

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return decode(tokens, special=special)


@dataclass(frozen=True)
class WordTokenizer:
    """ByteTokenizer's tokens, and words that are one token each: small models learn from words what they do not from bytes.

    The longest word that fits is taken; what is in no word becomes bytes, so nothing is lost.

    Raises:
        ValueError: no words, one that is empty, or one that is there twice.

    Example:
        >>> from mmrope.preprocess import WordTokenizer
        >>> tokenizer = WordTokenizer((" row", " column"))
        >>> tokenizer.encode("a row"), tokenizer.decode([97, 263]), tokenizer.size
        ([97, 263], 'a row', 265)
    """

    words: tuple[str, ...]
    """Word n is token VOCAB_SIZE + n. A word may begin with a space."""
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {word: VOCAB_SIZE + n for n, word in enumerate(self.words)}
        if not ids or len(ids) != len(self.words) or "" in ids:
            raise ValueError(f"words must be some, different, and not empty, got {self.words}")
        longest_first = sorted(self.words, key=len, reverse=True)
        object.__setattr__(self, "_pattern", re.compile("|".join(map(re.escape, longest_first)) + "|(?s:.)"))
        object.__setattr__(self, "_ids", ids)

    @property
    def special(self) -> Mapping[str, int]:
        """The ids of SPECIAL_TOKENS, as the bytes have them."""
        return ByteTokenizer().special

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return VOCAB_SIZE + len(self.words)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        pieces = self._pattern.findall(text)
        return [token for piece in pieces for token in ([self._ids[piece]] if piece in self._ids else encode(piece))]

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return _text(
            (self.words[t - VOCAB_SIZE].encode() if VOCAB_SIZE <= t < self.size else t for t in tokens), special, self.size
        )


@dataclass(frozen=True, eq=False)
class FileTokenizer:
    """A checkpoint's tokenizer, read from its tokenizer.json by the `tokenizers` library.

    Example:
        >>> import tokenizers
        >>> from mmrope.preprocess import FileTokenizer
        >>> vocabulary = {"cat": 0, "dog": 1, "<|pad|>": 2}
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<|pad|>"))
        >>> FileTokenizer({"<|pad|>": 2}, words).encode("dog")
        [1]
    """

    special: Mapping[str, int]
    tokenizer: Any
    """A tokenizers.Tokenizer."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> FileTokenizer:
        """The tokenizer of a folder with tokenizer.json, and the name of its padding token in tokenizer_config.json.

        Raises:
            ValueError: the files cannot be read, tokens of the chat format are missing.
            ImportError: `tokenizers` is not installed.
        """
        with needed_for(f"the {TOKENIZER_NAME} of a checkpoint"):
            import tokenizers
        path, config_path = Path(folder) / TOKENIZER_NAME, Path(folder) / TOKENIZER_CONFIG_NAME
        try:
            tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
            config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path} cannot be read: {error}") from error
        tokenizer.no_truncation()  # what a file says of these is for other uses: a prompt is neither cut nor filled up
        tokenizer.no_padding()
        pad = config.get("pad_token") or SPECIAL_TOKENS[0]
        pad = pad["content"] if isinstance(pad, Mapping) else pad
        names = {SPECIAL_TOKENS[0]: pad, **{name: name for name in SPECIAL_TOKENS[1:]}}
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if missing := [own for own in names.values() if own not in vocabulary]:
            raise ValueError(
                f"{path} has no {', '.join(missing)}: the chat format of the Qwen models, which is the one known here, "
                "needs them"
            )
        return cls({name: vocabulary[own] for name, own in names.items()}, tokenizer)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        self.tokenizer.encode_special_tokens = True  # in a text they are text; said anew, for copies forget it
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=not special)

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, and the name of the padding token to tokenizer_config.json.

        Raises:
            ValueError: special tokens under other ids or names than a file's: they would not come back.
        """
        named = {name: self.tokenizer.id_to_token(token) for name, token in self.special.items()}
        if set(named) != set(SPECIAL_TOKENS) or any(named[name] != name for name in SPECIAL_TOKENS[1:]):
            raise ValueError(f"special must give {', '.join(SPECIAL_TOKENS)} the ids that the tokenizer has, got {named}")
        with replacing(Path(folder) / TOKENIZER_NAME) as new:
            new.write_text(self.tokenizer.to_str(), encoding="utf-8")
        path = Path(folder) / TOKENIZER_CONFIG_NAME
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}  # with others' settings
        config["pad_token"] = self.tokenizer.id_to_token(self.special[SPECIAL_TOKENS[0]])
        with replacing(path) as new:
            new.write_text(to_json(config), encoding="utf-8")


def encode(text: str) -> list[int]:
    """The bytes of a text. What looks like a special token in it stays text: users cannot forge markers."""
    return list(text.encode("utf-8"))


def decode(tokens: Iterable[int], *, special: bool = False) -> str:
    """The text of tokens: special tokens are left out, or shown by name; bytes that are no UTF-8 become U+FFFD."""
    return _text(tokens, special, VOCAB_SIZE)


def _text(tokens: Iterable[int | bytes], special: bool, size: int) -> str:
    """The text of byte tokens, special tokens, and words (as their bytes)."""
    data = bytearray()
    for token in tokens:
        if isinstance(token, bytes):
            data += token
        elif 0 <= token < 256:
            data.append(token)
        elif not 256 <= token < VOCAB_SIZE:
            raise ValueError(f"token {token} is not in the vocabulary of {size}")
        elif special:
            data += SPECIAL_TOKENS[token - 256].encode()
    return data.decode("utf-8", errors="replace")
