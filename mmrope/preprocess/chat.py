"""Conversations as a model's chat template writes them.

messages -> veiled (the punctuation of special tokens in their texts is other characters) -> rendered by the template, in
Jinja's sandbox -> pieces: texts, special tokens, and the places where answers begin and end
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from typing import Any

from mmrope.extras import needed_for
from mmrope.preprocess.messages import Messages, check_message_key, items_of
from mmrope.preprocess.text import SPECIAL_TOKENS, Tokenizer
from mmrope.records import shown

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
    compiled, known = _compiled(template)
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
        return _rendered(compiled, {"messages": plain[:count], "add_generation_prompt": prompt, **options, **marks})

    text = render(len(plain), add_generation_prompt)
    for n in _unusual(message["role"] for message in messages):
        others = {"messages": plain[:n] + plain[n + 1 :], "add_generation_prompt": add_generation_prompt, **options}
        if others["messages"] and _rendered(compiled, others, refused="") == text:
            raise ValueError(
                f"this chat template does not write message {n}, of the role {messages[n]['role']!r}: leave it out, or give a "
                "template that does with chat_template=..."
            )
    if answers and known.marks_answers:
        marked = render(len(plain), add_generation_prompt, **{_BEGIN: veil.begin, _END: veil.end})
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


# --- Jinja ------------------------------------------------------------------------------------------------------------

_BEGIN, _END = "generation_begin_", "generation_end_"
"""Variables that stand for the edges of {% generation %}."""
_GIVEN = {"step_", "joined_", "messages", "add_generation_prompt", "raise_exception", "strftime_now", _BEGIN, _END}


@dataclass(frozen=True)
class _Names:
    """What a template asks for."""

    variables: frozenset[str]
    keys: frozenset[str]
    """All names and strings in it: what it does not name, it does not write."""
    marks_answers: bool


def _names_in(template: str) -> _Names:
    from jinja2 import meta, nodes

    tree = _environment().parse(template)
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    strings = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    names = list(tree.find_all(nodes.Name))
    own = {node.name for node in names if node.ctx != "load"}  # set somewhere in the template
    asked = meta.find_undeclared_variables(tree) - _GIVEN - own
    marks = any(node.name == _BEGIN for node in names)
    return _Names(frozenset(asked), frozenset(attributes | strings), marks)


@lru_cache(maxsize=32)
def _compiled(template: str) -> tuple[Any, _Names]:
    """A template, ready to be rendered, and what it asks for."""
    environment = _environment()
    if len(template) > MOST_OF_A_TEMPLATE:
        raise ValueError(f"the chat template has {len(template):,} characters: {MOST_OF_A_TEMPLATE:,} are the most")
    try:
        return environment.from_string(template), _names_in(template)
    except (
        Exception
    ) as error:  # Jinja's own, or Python's of what is nested too deep: of a stranger's template, as in `_rendered`
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise ValueError(f"the chat template is not Jinja that can be read{where}: {error}") from error


def _rendered(compiled: Any, variables: Mapping[str, Any], refused: str | None = None) -> str:
    """What a template writes; `refused`, if that is given, where it refuses."""
    token = _BUDGET.set(_Budget())
    try:
        return compiled.render(variables)
    except Exception as error:  # of a stranger's template: whatever it does with these messages
        if refused is not None:
            return refused
        said = str(error) or type(error).__name__
        raise ValueError(f"the chat template refuses this conversation: {said}") from error
    finally:
        _BUDGET.reset(token)


# --- what a template may take -----------------------------------------------------------------------------------------

MOST_OF_A_TEMPLATE = 100_000
"""Characters: released ones have up to 30,000."""
MOST_STEPS, MOST_CHARACTERS = 250_000, 2**26
"""Turns of loops and calls of one rendering, and characters that its operations make together."""


class _Budget:
    """What a rendering has left."""

    def __init__(self) -> None:
        self.steps, self.characters = MOST_STEPS, MOST_CHARACTERS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise ValueError(f"it takes more than {MOST_STEPS:,} steps")

    def pay(self, *values: Any, times: int = 1) -> None:
        self.characters -= sum(len(value) for value in values if isinstance(value, (str, list, tuple))) * max(times, 1)
        if self.characters < 0:
            raise ValueError(f"it makes more than {MOST_CHARACTERS:,} characters")


_BUDGET: ContextVar[_Budget] = ContextVar("of a rendering")
_STEP, _JOINED, _PAID = "step_", "joined_", "paid_"
"""What is put into a template: at each turn of a loop or macro, for a ~ b, and around what it writes and keeps."""


def _pay_before(name: str, text: Any, *arguments: Any) -> None:
    """What makes a long text of two short ones is paid before."""
    if name == "replace" and len(arguments) > 1 and all(isinstance(value, str) for value in (text, *arguments[:2])):
        _BUDGET.get().pay(arguments[1], times=text.count(arguments[0]))
    elif name == "join" and isinstance(text, str) and arguments and isinstance(arguments[0], (str, list, tuple)):
        _BUDGET.get().pay(text, times=len(arguments[0]))
        _BUDGET.get().pay(*arguments[0])


def _bounded(function: Any) -> Any:
    """A filter or method that makes no value of a width or count that no template needs, and whose values are paid."""

    @functools.wraps(function)
    def bounded(*arguments: Any, **options: Any) -> Any:
        for value in (*arguments, *options.values()):
            if isinstance(value, int) and abs(value) > 100_000:
                raise ValueError(f"{shown(value)} is no width or count of a chat template")
        if function.__name__ == "do_replace":
            _pay_before("replace", *[value for value in arguments if isinstance(value, str)])
        elif function.__name__ in ("do_join", "sync_do_join", "do_indent"):
            _pay_before("join", next((v for v in (*arguments[2:], *options.values()) if isinstance(v, str)), ""), arguments[1])
        made = function(*arguments, **options)
        _BUDGET.get().pay(made)
        return made

    return bounded


def _joined(*values: Any) -> str:
    texts = [str(value) for value in values]
    _BUDGET.get().pay(*texts)
    return "".join(texts)


def _paid(value: Any) -> Any:
    _BUDGET.get().pay(value)
    return value


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Jinja as chat templates expect it: transformers 5.24's (utils/chat_template_utils.py)."""
    with needed_for("a chat template"):
        import jinja2
        from jinja2 import ext, nodes, sandbox
        from jinja2.visitor import NodeTransformer

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

    class Bounds(NodeTransformer):
        """Counts a template's steps and the characters that it makes."""

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(nodes.Call(nodes.Name(_STEP, "load"), [], [], None, None)))
            return node

        visit_Macro = visit_CallBlock = visit_For

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return nodes.Call(nodes.Name(_JOINED, "load"), node.nodes, [], None, None)

        def visit_Output(self, node: Any) -> Any:
            self.generic_visit(node)
            marks = (nodes.TemplateData, nodes.Name)
            node.nodes = [x if isinstance(x, marks) else nodes.Filter(x, _PAID, [], [], None, None) for x in node.nodes]
            return node

        def visit_AssignBlock(self, node: Any) -> Any:
            self.generic_visit(node)
            node.filter = nodes.Filter(node.filter, _PAID, [], [], None, None)
            return node

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        """Jinja's sandbox keeps a template from what is outside of it; this keeps it from taking all time and memory."""

        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
            if numbers and (max(abs(left), abs(right)) > 2**63 or (operator == "**" and abs(right) > 64)):
                raise ValueError(f"{shown(left)} {operator} {shown(right)} are larger numbers than a chat template needs")
            if operator == "%" and isinstance(left, str) and re.search(r"\d{6}|\*", left):
                raise ValueError(f"{shown(left)} has a width that no chat template needs")
            if operator in "+*" and not numbers:
                count = next((value for value in (left, right) if isinstance(value, int)), 1)
                _BUDGET.get().pay(left, right, times=count)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
            _BUDGET.get().step()
            name = getattr(function, "__name__", "")
            text = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # Jinja wraps str.format
            if name in ("format", "format_map") and isinstance(text, str) and re.search(r"\d{6}", text):
                raise ValueError(f"{shown(text)} has a width that no chat template needs")
            if isinstance(text, str) or function is self.globals["lipsum"]:
                _pay_before(name, text, *arguments)
                function = function if name in ("format", "format_map") else _bounded(function)
            return super().call(context, function, *arguments, **options)

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            return Bounds().visit(super()._parse(source, name, filename))

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _bounded(function) for name, function in environment.filters.items()} | {_PAID: _paid}
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": Namespace}
    environment.globals |= {_STEP: lambda: None, _JOINED: _joined}
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
