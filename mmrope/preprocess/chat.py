"""Conversations as a model's chat template writes them.

messages -> guarded (special tokens in their texts are hidden) -> rendered by the template, in Jinja's sandbox -> pieces:
texts, special tokens, and the places where answers begin and end
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from typing import Any

from mmrope.extras import needed_for
from mmrope.preprocess.messages import Messages, check_message_key, items_of
from mmrope.preprocess.text import SPECIAL_TOKENS, Tokenizer

CHATML = """\
{%- for message in messages %}
    {%- if message.tool_calls or message.reasoning_content %}
        {{- raise_exception("tool calls and reasoning need the checkpoint's own chat template") }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for item in message.content %}
            {%- if item.type == 'text' %}
                {{- item.text }}
            {%- else %}
                {{- '<|vision_start|><|' + item.type + '_pad|><|vision_end|>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The chat text of the Qwen models without their default system message, as a Jinja template: that of mmrope's own models."""


_TRUSTED = ("system", "developer", "assistant")
"""Roles whose texts may hold added tokens that are not special, such as <think> and <tool_call>: a developer's words, and the
model's own."""
_CONTROLS = {
    *SPECIAL_TOKENS,
    *("<|vision_pad|>", "<|image|>", "<|video|>", "<|audio_pad|>", "<|begin_of_image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|endoftext|>", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<bos>", "<eos>", "<pad>", "<s>", "</s>"),
}
"""Tokens that no role may write, also where a tokenizer.json does not call them special."""
_SAY_WHO = {"role", "content", "name", "tool_call_id", "refusal"}
"""Keys of messages that a template may leave out: they say nothing to the model, or nothing that another does not."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning. The first is the one that templates read; transformers 5.24 fills in the others' for it."""


class Control(str):
    """A special token that the template writes, by its name. A plain string is text, whatever it looks like."""


class AnswerEdge(Enum):
    """Where an answer begins or ends between the texts and tokens of a conversation."""

    BEGIN = "b"
    END = "e"


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
    compiled, known = _compiled(template), _names_in(template)
    nonce = f"guarded{secrets.token_hex(8)}"  # what no text holds
    names = "|".join(map(re.escape, sorted(tokenizer.special, key=len, reverse=True))) or "(?!)"
    guard = _Guard(nonce, re.compile(names), set(getattr(tokenizer, "ordinary", ())) - _CONTROLS)
    plain = [guard.message(_checked(message, known.keys)) for message in messages]
    given = {name: value for name, value in variables.items() if value is not None}
    for name in given:
        if name not in known.variables:
            near = get_close_matches(name, known.variables, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it asks for {', '.join(sorted(known.variables)) or 'nothing'}"
            raise ValueError(f"this chat template does not ask for {name!r}; {hint}")
    options = dict(getattr(tokenizer, "variables", {})) | {name: guard.value(value, name) for name, value in given.items()}
    if answers and known.marks_answers:
        options |= {_BEGIN: f"{nonce}b", _END: f"{nonce}e"}

    def render(count: int, prompt: bool) -> str:
        return _rendered(compiled, messages=plain[:count], add_generation_prompt=prompt, **options)

    text = render(len(plain), add_generation_prompt)
    if answers and not known.marks_answers:
        text = _marked_by_turns(text, [message["role"] for message in messages], render, nonce)
    return _pieces(text, nonce, names, guard.hidden)


def _checked(message: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """A message without empty keys, its reasoning under the names that templates read; keys that this one does not write are
    refused."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    if reasoning is not None:
        message = {key: value for key, value in message.items() if key not in _REASONING}
        message |= {key: reasoning for key in _REASONING[:2] if key in keys} or {_REASONING[0]: reasoning}
    if unwritten := [key for key in message if key not in _SAY_WHO and key not in keys]:
        check_message_key(unwritten[0])
        raise ValueError(
            f"this chat template does not write {' and '.join(map(repr, unwritten))}, which a message of the role "
            f"{message['role']!r} has: leave it out, or give a template that does with chat_template=..."
        )
    return message


class _Guard:
    """Hides the special tokens in the texts of a conversation behind names that no text holds, while it is rendered."""

    def __init__(self, nonce: str, names: re.Pattern[str], ordinary: Collection[str]) -> None:
        self.nonce, self.names, self.ordinary = nonce, names, ordinary
        self.hidden: list[str] = []

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
        """Plain data, its strings guarded."""
        if isinstance(value, str):
            return self.names.sub(lambda match: self._hide(match[0], trusted), str(value))
        if isinstance(value, Mapping):
            pairs = [(self.value(key, what, trusted=trusted), self.value(v, what, trusted=trusted)) for key, v in value.items()]
            return dict(pairs)
        if isinstance(value, (list, tuple)):
            return [self.value(item, what, trusted=trusted) for item in value]
        if value is None or type(value) in (bool, int, float):
            return value
        raise ValueError(f"{what} must be plain data (texts, numbers, lists and dicts), got {type(value).__name__}")

    def _hide(self, token: str, trusted: bool) -> str:
        if trusted and token in self.ordinary:
            return token
        self.hidden.append(token)
        return f"{self.nonce}x{len(self.hidden) - 1}x"


def _marked_by_turns(text: str, roles: Sequence[str], render: Callable[[int, bool], str], nonce: str) -> str:
    """A rendered conversation with marks around what each assistant's message adds to the prompt for it."""
    edges = []
    for n, role in enumerate(roles):
        if role == "assistant":
            if n == 0:
                raise ValueError("answers are found by turns, and the first message is the assistant's: nothing asks for it")
            before, answered = render(n, False), render(n + 1, False)
            # some templates open an answer with what they do not write again: TRL, too, takes what both have
            both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(render(n, True), answered, strict=False))
            prompt = "".join(character for character, _ in both)
            if not (prompt.startswith(before) and text.startswith(answered)):
                raise ValueError(
                    f"this chat template has no {{% generation %}} marks and writes message {n}, an answer, differently where "
                    "others follow it, so its tokens cannot be told by turns: give a template with marks (chat_template=...)"
                )
            edges += [(len(prompt), "b"), (len(answered), "e")]
    for at, edge in reversed(edges):
        text = f"{text[:at]}{nonce}{edge}{text[at:]}"
    return text


def _pieces(text: str, nonce: str, names: str, hidden: Sequence[str]) -> list[Piece]:
    """A rendered conversation, taken apart."""
    pieces: list[Piece] = []
    begin, plain = 0, ""
    for match in re.finditer(rf"{nonce}(?:x(?P<hidden>\d+)x|(?P<edge>[be]))|(?P<token>{names})", text):
        plain, begin = plain + text[begin : match.start()], match.end()
        if match["hidden"] is not None:
            plain += hidden[int(match["hidden"])]
            continue
        pieces += [plain] if plain else []
        pieces.append(Control(match["token"]) if match["token"] is not None else AnswerEdge(match["edge"]))
        plain = ""
    plain += text[begin:]
    pieces += [plain] if plain else []
    if any(nonce in piece.lower() for piece in pieces if isinstance(piece, str)):
        raise ValueError(
            "this chat template takes texts apart in which special tokens stand by name: leave them out of the texts"
        )
    return pieces


# --- Jinja ------------------------------------------------------------------------------------------------------------

_BEGIN, _END = "generation_begin_", "generation_end_"
"""Variables that stand for the edges of {% generation %}."""
_GIVEN = {"messages", "add_generation_prompt", "raise_exception", "strftime_now", _BEGIN, _END}


@dataclass(frozen=True)
class _Names:
    """What a template asks for."""

    variables: frozenset[str]
    keys: frozenset[str]
    """All names and strings in it: what it does not name, it does not write."""
    marks_answers: bool


@lru_cache(maxsize=32)
def _names_in(template: str) -> _Names:
    from jinja2 import meta, nodes

    tree = _environment().parse(template)
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    strings = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    names = {node.name for node in tree.find_all(nodes.Name)}
    return _Names(frozenset(meta.find_undeclared_variables(tree) - _GIVEN), frozenset(attributes | strings), _BEGIN in names)


@lru_cache(maxsize=32)
def _compiled(template: str) -> Any:
    environment = _environment()
    from jinja2 import TemplateError

    try:
        return environment.from_string(template)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise ValueError(f"the chat template is not Jinja that can be read{line and f', line {line}'}: {error}") from error


def _rendered(compiled: Any, **variables: Any) -> str:
    try:
        return compiled.render(**variables)
    except Exception as error:  # of a stranger's template: whatever it does with these messages
        raise ValueError(f"the chat template refuses this conversation: {error}") from error


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Jinja as chat templates expect it: transformers 5.24's (utils/chat_template_utils.py)."""
    with needed_for("a chat template"):
        import jinja2
        from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """{% generation %} ... {% endgeneration %}: what the assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            begin, end = (nodes.Output([nodes.Name(name, "load")]) for name in (_BEGIN, _END))
            return nodes.Scope([begin, *body, end]).set_lineno(line)

    class Namespace(jinja2.utils.Namespace):
        """A namespace without names that begin with an underscore: they lead out of the sandbox."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, values = args[0], dict(*args[1:], **kwargs)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": Namespace}
    return environment


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise ValueError(f"a namespace holds no {name!r}")


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON as it is, where Jinja's own filter writes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise ValueError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
