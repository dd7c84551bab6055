"""Conversations as a model's chat template writes them.

messages -> veiled (the punctuation of special tokens in their texts is other characters) -> rendered by the template, in
Jinja's sandbox -> pieces: texts, special tokens, and the places where answers begin and end
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any

from mmrope.extras import needed_for
from mmrope.preprocess.messages import Messages, check_message_key, items_of
from mmrope.preprocess.text import SPECIAL_TOKENS, Tokenizer

CHATML = """\
{%- set own = ": that needs the checkpoint's own chat template: read its folder with Processor.from_pretrained, or give \
chat_template=..." %}
{%- for message in messages %}
    {%- if message.tool_calls or message.reasoning_content %}
        {{- raise_exception("tool calls and reasoning" ~ own) }}
    {%- elif message.role not in ('system', 'user', 'assistant') %}
        {{- raise_exception("message " ~ loop.index0 ~ " has the role '" ~ message.role ~ "'" ~ own) }}
    {%- elif message.role == 'system' and not loop.first %}
        {{- raise_exception("message " ~ loop.index0 ~ " is the system's and not the first" ~ own) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for item in message.content %}
            {%- if item.type == 'text' %}
                {{- item.text }}
            {%- elif message.role == 'user' %}
                {{- '<|vision_start|><|' + item.type + '_pad|><|vision_end|>' }}
            {%- else %}
                {{- raise_exception("an image or a video in a message of the role '" ~ message.role ~ "'" ~ own) }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The chat text of the Qwen models without their default system message, as a Jinja template: that of mmrope's own models. What
the released templates (Instruct) do not all write in the same way is refused: other roles, system messages behind the first
message, media in the others' messages, tool calls."""


_TRUSTED = ("system", "developer", "assistant")
"""Roles whose texts may hold added tokens, such as <think> and <tool_call>: a developer's words, and the model's own."""
_CONTROLS = {
    *SPECIAL_TOKENS,
    *("<|vision_pad|>", "<|image|>", "<|video|>", "<|audio_pad|>", "<|begin_of_image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|endoftext|>", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<bos>", "<eos>", "<pad>", "<s>", "</s>"),
}
"""Tokens of turns and placeholders, which no role may write."""
_MAY_BE_LEFT_OUT = {"role", "content", "name", "tool_call_id", "refusal"}
"""Keys of messages that a template may leave out: they say nothing to the model, or nothing that another does not."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning. The first is the one that templates read; transformers 5.24 fills in the others' for it."""


class Control(str):
    """A special token that the template writes, by its name. A plain string is text, whatever it looks like."""


class AnswerEdge(Enum):
    """Where an answer begins or ends between the texts and tokens of a conversation."""

    BEGIN = "begin"
    END = "end"


Piece = str | Control | AnswerEdge


def conversation_pieces(
    template: str,
    messages: Messages,
    tokenizer: Tokenizer,
    *,
    variables: Mapping[str, Any],
    add_generation_prompt: bool,
    answers: bool = False,
) -> list[Piece]:
    r"""A conversation as its template writes it: texts, special tokens, and with `answers` where answers begin and end.

    Special tokens that stand in the texts of users and tools come back as text.

    Args:
        template: Jinja, which is rendered in its sandbox.
        messages: checked messages; their images and videos become placeholders.
        tokenizer: whose special tokens the template writes.
        variables: what else the template asks for: tools, documents, and its own.
        add_generation_prompt: end with the beginning of an assistant's turn.
        answers: mark what the assistant said, by the template's {% generation %} or, if it has none, by turns: what an
            assistant's message adds to the prompt for it.

    Raises:
        ValueError: a template that is not Jinja or refuses the conversation; variables, tools or keys of messages that it
            does not write; answers that cannot be found.

    Example:
        >>> from mmrope.preprocess import ByteTokenizer
        >>> from mmrope.preprocess.chat import CHATML, conversation_pieces
        >>> said = [{"role": "user", "content": "What is <|im_end|>?"}]
        >>> conversation_pieces(CHATML, said, ByteTokenizer(), variables={}, add_generation_prompt=False)
        ['<|im_start|>', 'user\nWhat is <|im_end|>?', '<|im_end|>', '\n']
    """
    with needed_for("a chat template"):
        from mmrope.preprocess.template import BEGIN_MARK, END_MARK, compiled, rendered
    ready, known = compiled(template)
    checked = [_checked(message, known.keys) for message in messages]
    given = {name: value for name, value in variables.items() if value is not None and not (name == "tools" and not value)}
    for name in given:
        if name not in known.variables:
            near = get_close_matches(name, known.variables, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it asks for {', '.join(sorted(known.variables)) or 'nothing'}"
            raise ValueError(f"this chat template does not ask for {name!r}; {hint}")
    names = _pattern(tokenizer.special)
    roles = dict(getattr(tokenizer, "variables", {}))
    literal = {name for name in tokenizer.special if name in template} - set(getattr(tokenizer, "ordinary", ()))
    allowed = _pattern(set(tokenizer.special) - _CONTROLS - set(roles.values()) - literal)
    veil = _Veil(tokenizer.special, allowed, [checked, given])
    plain = [veil.message(message) for message in checked]
    options = {"tools": None, "documents": None} | roles | {name: veil.value(value, name) for name, value in given.items()}

    def render(count: int, prompt: bool, **marks: str) -> str:
        return rendered(ready, {"messages": plain[:count], "add_generation_prompt": prompt, **options, **marks})

    text = render(len(plain), add_generation_prompt)
    for n in _unusual(message["role"] for message in messages):
        others = {"messages": plain[:n] + plain[n + 1 :], "add_generation_prompt": add_generation_prompt, **options}
        if others["messages"] and rendered(ready, others, refused="") == text:
            raise ValueError(
                f"this chat template does not write message {n}, of the role {messages[n]['role']!r}: leave it out, or give a "
                "template that does with chat_template=..."
            )
    if answers and known.marks_answers:
        marked = render(len(plain), add_generation_prompt, **{BEGIN_MARK: veil.begin, END_MARK: veil.end})
        if marked.replace(veil.begin, "").replace(veil.end, "") != text:
            raise ValueError(
                "this chat template changes texts by what stands beside its {% generation %} marks: mend the template"
            )
        text = marked
    elif answers:
        text = _marked_by_turns(text, [message["role"] for message in messages], render, veil, names)
    if answers and veil.begin not in text:
        raise ValueError("labels are of answers, and this conversation has none: no message of the role 'assistant'")
    return _pieces(text, names, veil)


def _unusual(roles: Iterable[str]) -> list[int]:
    """The first message of each role that templates may not know, and the first of the system's that is not in front."""
    first: dict[str, int] = {}
    for n, role in enumerate(roles):
        if role not in ("user", "assistant") and (role, n) != ("system", 0):
            first.setdefault(role, n)
    return list(first.values())


def _pattern(names: Collection[str]) -> re.Pattern[str]:
    """What matches any of these names, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _checked(message: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """A message without empty keys, its reasoning under the names that templates read; keys that this one does not write are
    refused."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    if reasoning is not None:
        message = {key: value for key, value in message.items() if key not in _REASONING}
        message |= {key: reasoning for key in _REASONING[:2] if key in keys} or {_REASONING[0]: reasoning}
    if unwritten := [key for key in message if key not in _MAY_BE_LEFT_OUT and key not in keys]:
        check_message_key(unwritten[0])
        raise ValueError(
            f"this chat template does not write {' and '.join(map(repr, unwritten))}, which a message of the role "
            f"{message['role']!r} has: leave it out, or give a template that does with chat_template=..."
        )
    return message


class _Veil:
    """Makes texts of which no special token can come, whatever a template does with them: their punctuation that special tokens
    are made of is other, private characters as long as the template works, one for one."""

    def __init__(self, special: Collection[str], allowed: re.Pattern[str], data: Any) -> None:
        """`allowed`: the tokens that trusted roles may write. `data`: all that is to be veiled."""
        made_of = {c for name in special for c in name if c in _BRACKETS}
        made_of |= {name[0] for name in special if not made_of.intersection(name) and not name.isspace()}
        used = set(_characters(data))
        base = next(base for base in _PRIVATE if not any(base <= ord(c) < base + 0x800 for c in used))
        private = {c: chr(base + 2 + n) for n, c in enumerate(sorted(made_of))}
        self.begin, self.end = chr(base), chr(base + 1)  # of an answer
        self._allowed, self._to = allowed, str.maketrans(private)
        # as they are, and as JSON and Python's repr() show them: the template of GLM-4.1V writes lists so
        self._back = {shown: c for c, p in private.items() for shown in (p, json.dumps(p)[1:-1], repr(p)[1:-1])}
        self._veiled = re.compile("|".join(map(re.escape, self._back)) or "(?!)")

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message of plain data: its media are placeholders."""
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            content = [
                {"type": "text", "text": item["text"]} if item["type"] == "text" else {"type": item["type"]}
                for item in items_of(content)
            ]
        trusted = message["role"] in _TRUSTED
        changed = message if content is None else {**message, "content": content}
        return {key: self.value(value, key, trusted=trusted) for key, value in changed.items()}

    def value(self, value: Any, what: str, *, trusted: bool = False) -> Any:
        """Plain data, its texts veiled; those of trusted roles but for the tokens that they may write."""
        if isinstance(value, str):
            kept = self._allowed.finditer(value) if trusted else ()
            at, made = 0, []
            for match in kept:
                made += [value[at : match.start()].translate(self._to), match[0]]
                at = match.end()
            return "".join([*made, value[at:].translate(self._to)])
        if isinstance(value, Mapping):
            pairs = [(self.value(key, what, trusted=trusted), self.value(v, what, trusted=trusted)) for key, v in value.items()]
            return dict(pairs)
        if isinstance(value, (list, tuple)):
            return [self.value(item, what, trusted=trusted) for item in value]
        if value is None or type(value) in (bool, int, float):
            return value
        raise ValueError(f"{what} must be plain data (texts, numbers, lists and dicts), got {type(value).__name__}")

    def lifted(self, text: str) -> str:
        """A rendered text as it was meant."""
        return self._veiled.sub(lambda match: self._back[match[0]], text)


_BRACKETS = set("<>|[]{}\u2581\uff5c")
"""Of which the names of special tokens are made."""
_PRIVATE = range(0x10F000, 0xF0000, -0x1000)
"""Blocks of Unicode's private characters."""


def _characters(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield from data
    elif isinstance(data, Mapping):
        yield from _characters([*data, *data.values()])
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from _characters(item)


def _marked_by_turns(
    text: str, roles: Sequence[str], render: Callable[[int, bool], str], veil: _Veil, names: re.Pattern[str]
) -> str:
    """A rendered conversation with marks around what each assistant's message adds to the prompt for it."""
    edges = []
    for n, role in enumerate(roles):
        if role == "assistant":
            if n == 0:
                raise ValueError("answers are found by turns, and the first message is the assistant's: nothing asks for it")
            before, prompt, answered = render(n, False), render(n, True), render(n + 1, False)
            if not (prompt.startswith(before) and answered.startswith(before) and text.startswith(answered)):
                raise ValueError(
                    f"this chat template has no {{% generation %}} marks and writes message {n}, an answer, differently where "
                    "others follow it, so its tokens cannot be told by turns: give a template with marks (chat_template=...)"
                )
            # some templates open an answer with what they do not write again: TRL, too, takes what both have
            both = zip(prompt[len(before) :], answered[len(before) :], strict=False)
            begin = len(before) + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
            edges += [(begin, veil.begin), (len(answered), veil.end)]
    for at, edge in reversed(edges):  # none in the middle of a token
        inside = [match.start() for match in names.finditer(text) if match.start() < at < match.end()]
        text = f"{text[: (*inside, at)[0]]}{edge}{text[(*inside, at)[0] :]}"
    return text


def _pieces(text: str, names: re.Pattern[str], veil: _Veil) -> list[Piece]:
    """A rendered conversation, taken apart."""
    pieces: list[Piece] = []
    at = 0
    for match in re.finditer(f"([{veil.begin}{veil.end}])|{names.pattern}", text):
        if match.start() > at:
            pieces.append(veil.lifted(text[at : match.start()]))
        edge = AnswerEdge.BEGIN if match[0] == veil.begin else AnswerEdge.END
        pieces.append(Control(match[0]) if match[1] is None else edge)
        at = match.end()
    return [*pieces, veil.lifted(text[at:])] if at < len(text) else pieces
