"""Text as tokens: the bytes of UTF-8, with nothing to train and nothing lost; some words besides; or a tokenizer.json."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmrope.extras import needed_for
from mmrope.files import TABLES, json_object, naming, read_object, read_old, read_text, to_json, write_texts
from mmrope.records import Keys, Natural, shown

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
TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, SPECIAL_NAME = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Of special tokens, in tokenizer_config.json."""


class Tokenizer(Protocol):
    """What a Processor asks of a tokenizer. One may also have `variables`, special tokens by what chat templates call them
    ({"eos_token": ...}), and `ordinary`, the names of those in `special` that are no special ones, such as <think>.

    Example:
        >>> from mmrope.preprocess import ByteTokenizer, Tokenizer
        >>> tokenizer: Tokenizer = ByteTokenizer()
        >>> tokenizer.encode("Hi"), tokenizer.special["<|image_pad|>"], tokenizer.pad
        ([72, 105], 261, 256)
    """

    @property
    def special(self) -> Mapping[str, int]:
        """The ids of all tokens that a chat template writes by name, such as SPECIAL_TOKENS, and that no text becomes."""
        ...

    @property
    def pad(self) -> int:
        """The id of the token to pad with."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. What looks like a special token in it stays text: users cannot forge markers."""
        ...

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Of each token of `encode(text)`, which characters of the text it is of: [begin, end)."""
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

    @property
    def pad(self) -> int:
        """The id of <|pad|>."""
        return PAD

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return encode(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Of each byte, the character that it is of."""
        return [(i, i + 1) for i, character in enumerate(text) for _ in character.encode("utf-8")]

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
    def pad(self) -> int:
        """The id of <|pad|>."""
        return PAD

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return VOCAB_SIZE + len(self.words)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        pieces = self._pattern.findall(text)
        return [token for piece in pieces for token in ([self._ids[piece]] if piece in self._ids else encode(piece))]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Of each word, and each byte of a character that is in none, its characters."""
        found = list(self._pattern.finditer(text))
        return [piece.span() for piece in found for _ in ([0] if piece[0] in self._ids else encode(piece[0]))]

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return _text(
            (self.words[t - VOCAB_SIZE].encode() if VOCAB_SIZE <= t < self.size else t for t in tokens), special, self.size
        )


@dataclass(frozen=True, eq=False)
class FileTokenizer:
    """A checkpoint's tokenizer, read from its tokenizer.json by the `tokenizers` library.

    Its added tokens are those that a chat template writes, and no text becomes one of them, whatever their "special" says.

    Raises:
        ValueError: not the content of a tokenizer.json, no such padding token, two added tokens with one id, or added tokens
            that take the blanks beside them.
        ImportError: `tokenizers` is not installed.

    Example:
        >>> import tokenizers
        >>> from mmrope.preprocess import FileTokenizer
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0, "dog": 1, "?": 2}, unk_token="?"))
        >>> words.add_special_tokens(["<|pad|>"])
        1
        >>> tokenizer = FileTokenizer(words.to_str(), "<|pad|>")
        >>> tokenizer.encode("dog"), tokenizer.special
        ([1], {'<|pad|>': 3})
    """

    content: str = field(repr=False)
    """Of a tokenizer.json."""
    pad_token: str | None = None
    """The token to pad with; None where a checkpoint names none, and its prompts are not padded."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Special tokens by what they are for, which chat templates may ask for: {"eos_token": "<|im_end|>", ...}."""
    special: Mapping[str, int] = field(init=False)
    _tokenizer: Any = field(init=False, repr=False)
    _left_out: frozenset[int] = field(init=False, repr=False)
    """Of decoded text: the tokens whose "special" is true."""
    ordinary: Collection[str] = field(init=False)
    """Added tokens that are not special, such as <think>: decoded text shows them."""
    _unknown: int | None = field(init=False, repr=False)
    """The id of what the vocabulary lacks."""

    def __post_init__(self) -> None:
        with needed_for(f"the {TOKENIZER_NAME} of a checkpoint"):
            import tokenizers
        try:
            stated = json_object(self.content, "it", TABLES)
            added = [_added(token, n) for n, token in enumerate(Keys(stated)("added_tokens", tuple[dict, ...]))]
            left_out = frozenset(token["id"] for token in added if token["special"])
            stated["added_tokens"] = [
                token | {"special": True} for token in added
            ]  # the library can leave them all alone in a text
            stated["truncation"] = stated["padding"] = None  # for other uses: a prompt is neither cut nor filled up
            model = Keys(Keys(stated)("model", dict), "model")
            unknown = model("unk_id", Natural, model("unk_token", str, None))
            if '"prepend_scheme": "first"' in json.dumps([stated.get("pre_tokenizer"), stated.get("normalizer")]):
                raise ValueError("it puts a blank before the first word of a prompt alone, which is not read here")
            tokenizer = _asked(tokenizers.Tokenizer.from_str, json.dumps(stated))
        except ValueError as error:
            raise ValueError(f"a {TOKENIZER_NAME} cannot be read: {error}") from error
        special = {token["content"]: token["id"] for token in added}
        if blanks := [token["content"] for token in added if token["lstrip"] or token["rstrip"] or token["single_word"]]:
            raise ValueError(
                f"added tokens that depend on the text beside them (lstrip, rstrip, single_word) are not read: {blanks}"
            )
        if len(set(special.values())) < len(special):
            twice = [name for name, token in special.items() if list(special.values()).count(token) > 1]
            raise ValueError(f"a {TOKENIZER_NAME} gives one id to several added tokens: {', '.join(twice)}")
        if self.pad_token is not None and tokenizer.token_to_id(self.pad_token) is None:
            raise ValueError(f"a {TOKENIZER_NAME} has no token {self.pad_token!r}, which is the pad_token")
        for name, value in (
            ("special", special),
            ("_tokenizer", tokenizer),
            ("_left_out", left_out),
            ("ordinary", [name for name, token in special.items() if token not in left_out]),
            ("_unknown", tokenizer.token_to_id(unknown) if isinstance(unknown, str) else unknown),
        ):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> Any:
        return FileTokenizer, (self.content, self.pad_token, dict(self.variables))

    @classmethod
    def from_folder(cls, folder: str | Path) -> FileTokenizer:
        """The tokenizer of a folder with tokenizer.json, and the names of its special tokens in tokenizer_config.json.

        Raises:
            ValueError: the files cannot be read.
            ImportError: `tokenizers` is not installed.
        """
        path, config_path = Path(folder) / TOKENIZER_NAME, Path(folder) / TOKENIZER_CONFIG_NAME
        named = Path(folder) / SPECIAL_NAME
        try:
            content = read_text(path, TABLES)
            config = read_object(config_path, TABLES) if config_path.is_file() else {}
            stated = (read_object(named, TABLES) if named.is_file() else {}) | config
            variables = {role: _content(stated[role], role) for role in _ROLES if stated.get(role) is not None}
            extra = stated.get("extra_special_tokens") or {}
            if not isinstance(extra, list):  # of transformers 5, a list without roles
                extra = Keys(stated)("extra_special_tokens", dict, {})
                variables |= {role: _content(token, f"extra_special_tokens.{role}") for role, token in extra.items()}
            decoder = Keys(config)("added_tokens_decoder", dict, {})
            also = Keys(stated)("additional_special_tokens", tuple[Any, ...], ())
            by_key = {f"added_tokens_decoder.{n}": token for n, token in decoder.items()}
            by_key |= {f"additional_special_tokens[{n}]": token for n, token in enumerate(also)}
            listed = {key: _content(token, key) for key, token in by_key.items()} | variables
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the tokenizer of {folder} ({TOKENIZER_CONFIG_NAME}, {SPECIAL_NAME}) cannot be read: {error}"
            ) from error
        with naming(path):
            tokenizer = cls(content, variables.get("pad_token"), variables)
        if missing := sorted(f"{key} {shown(token)}" for key, token in listed.items() if token not in tokenizer.special):
            raise ValueError(
                f"{config_path} names tokens that are not among the added tokens of {TOKENIZER_NAME}: {', '.join(missing)}; "
                "save the folder again with the tokenizer of transformers"
            )
        return tokenizer

    @property
    def pad(self) -> int:
        """The id of the padding token.

        Raises:
            ValueError: there is none.
        """
        if self.pad_token is None:
            raise ValueError(f"{TOKENIZER_CONFIG_NAME} names no pad_token: give conversations one by one, or of one length")
        return self._tokenizer.token_to_id(self.pad_token)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            ValueError: the tokenizer's own vocabulary makes an added token of it.
        """
        return [token for _, encoding in self._encodings(text) for token in encoding.ids]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Of each token of `encode(text)`, its characters; the bytes of one character all have that character."""
        return [(at + begin, at + end) for at, encoding in self._encodings(text) for begin, end in encoding.offsets]

    def _encodings(self, text: str) -> list[tuple[int, Any]]:
        """The tokens of a text, in pieces with the places where they begin: one, if the vocabulary spells no added token."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"a text has half of a character (a lone surrogate) at {error.start}, behind {text[: error.start][-30:]!a}"
            ) from None
        self._tokenizer.encode_special_tokens = True  # in a text they are text; said anew, for copies forget it
        forbidden = {token for token in self.special.values() if token != self._unknown}
        whole = _asked(self._tokenizer.encode, text, add_special_tokens=False)
        if forbidden.isdisjoint(whole.ids):
            return [(0, whole)]
        # such a tokenizer reads the name of a token as that token: cut inside of each name, it cannot
        names = "|".join(map(re.escape, sorted(self.special, key=len, reverse=True)))
        cuts = [0, *(match.start() + 1 for match in re.finditer(names, text)), len(text)]
        pieces = [(a, _asked(self._tokenizer.encode, text[a:b], add_special_tokens=False)) for a, b in itertools.pairwise(cuts)]
        for at, piece in pieces:
            if found := forbidden.intersection(piece.ids):
                name = self._tokenizer.id_to_token(found.pop())
                raise ValueError(f"this tokenizer makes {name!r} of a text, at character {at}: leave it out of the text")
        return pieces

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens."""
        kept = [token for token in tokens if special or token not in self._left_out]
        return _asked(self._tokenizer.decode, kept, skip_special_tokens=False)

    @property
    def digest(self) -> str:
        """Of what it is made of, by which the one that was saved is known from another."""
        roles = {role: name for role, name in {**self.variables, "pad_token": self.pad_token}.items() if name is not None}
        made_of = json.dumps([self.content, roles], sort_keys=True)
        return hashlib.sha256(made_of.encode(errors="surrogatepass")).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json as it was, and the names of the special tokens to tokenizer_config.json."""
        write_texts(Path(folder), self.files(folder))

    def files(self, folder: str | Path) -> dict[str, str]:
        """What `save` writes to a folder, by the names of the files: settings of others that are there stay."""
        path = Path(folder) / TOKENIZER_CONFIG_NAME
        config = read_old(path, TABLES)  # with others' settings
        named = Path(folder) / SPECIAL_NAME
        others = config | (
            read_object(named, TABLES) if named.is_file() else {}
        )  # what they say of roles that this one has not is void
        roles = {role: self.variables.get(role) for role in _ROLES if role in self.variables or role in others}
        extra = {role: name for role, name in self.variables.items() if role not in _ROLES}
        config |= {**roles, "pad_token": self.pad_token}
        if extra or isinstance(others.get("extra_special_tokens"), dict):
            config["extra_special_tokens"] = extra
        return {TOKENIZER_NAME: self.content, TOKENIZER_CONFIG_NAME: to_json(config)}


def _content(token: Any, at: str) -> str:
    """A token of tokenizer_config.json, which is a string or an object with one."""
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str) or re.search("[\ud800-\udfff]", content):
        raise ValueError(f"{at} names a token {shown(token)}, which is no text")
    return content


def _added(token: Mapping[str, Any], n: int) -> dict[str, Any]:
    """An added token of tokenizer.json."""
    keys = Keys(token, f"added_tokens[{n}]")
    flags = {key: keys(key, bool) for key in ("special", "lstrip", "rstrip", "single_word")}
    return {**token, **flags, "id": keys("id", Natural), "content": keys("content", str)}


def _asked(function: Any, *arguments: Any, **options: Any) -> Any:
    """What the `tokenizers` library answers. It raises bare Exceptions, and what its Rust code does not expect, as a pattern of
    tokenizer.json that goes back and forth in a text ten million times, comes as a panic, which is none."""
    try:
        return function(*arguments, **options)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"the tokenizers library gave up on this {TOKENIZER_NAME}, or on a text by its patterns: {error}"
        ) from None


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
