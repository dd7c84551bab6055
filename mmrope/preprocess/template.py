"""Jinja for untrusted chat templates: a sandbox keeps them from what is outside, and a budget ends each rendering.

Python does in one operation what may take any time and memory: it compares lists that hold one another as often as they do, and
writes them. So all that goes through values pays before, as much as there is to go through. What a template makes is paid, too.

Imported where a template is rendered, as it needs Jinja (`mmrope[media]`).
"""

from __future__ import annotations

import datetime
import functools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import ext, meta, nodes, runtime, sandbox
from jinja2.visitor import NodeTransformer

from mmrope.records import shown

MOST_OF_A_TEMPLATE = 100_000
"""Characters: released ones have up to 30,000."""
MOST_STEPS, MOST_MADE, MOST_READ = 250_000, 2**26, 2**31
"""Of one rendering: turns of loops and calls; characters and elements that it makes; what it reads, a character being one."""
_EACH, _HELD, _PART = 64, 512, 16
"""What it costs to go by an element and into a list, as read, and what a new small object takes, as made."""

BEGIN_MARK, END_MARK = "generation_begin_", "generation_end_"
"""Variables that stand for the edges of {% generation %}."""


# --- templates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """What a template asks for."""

    variables: frozenset[str]
    keys: frozenset[str]
    """All names and strings in it: what it does not name, it does not write."""
    marks_answers: bool


@lru_cache(maxsize=32)
def compiled(template: str) -> tuple[Any, Names]:
    """A template, ready to be rendered, and what it asks for."""
    if len(template) > MOST_OF_A_TEMPLATE:
        raise ValueError(f"the chat template has {len(template):,} characters: {MOST_OF_A_TEMPLATE:,} are the most")
    try:
        return _environment().from_string(template), _names_in(template)
    # Jinja's own, or Python's of what is nested too deep: of an untrusted template, as in `rendered`
    except Exception as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise ValueError(f"the chat template is not Jinja that can be read{where}: {error}") from error


def rendered(template: Any, variables: Mapping[str, Any], refused: str | None = None) -> str:
    """What a compiled template writes; `refused`, if that is given, where it refuses."""
    token = _BUDGET.set(_Budget())
    try:
        return template.render(variables)
    except Exception as error:  # of an untrusted template: whatever it does with these messages
        if refused is not None:
            return refused
        said = str(error) or type(error).__name__
        raise ValueError(f"the chat template refuses this conversation: {said}") from error
    finally:
        _BUDGET.reset(token)


def _names_in(template: str) -> Names:
    tree = _environment().parse(template)
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    strings = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    names = list(tree.find_all(nodes.Name))
    own = {node.name for node in names if node.ctx != "load"}  # set somewhere in the template
    given = {"messages", "add_generation_prompt", "raise_exception", "strftime_now", BEGIN_MARK, END_MARK}
    asked = meta.find_undeclared_variables(tree) - given - own
    return Names(frozenset(asked), frozenset(attributes | strings), any(node.name == BEGIN_MARK for node in names))


# --- the budget -------------------------------------------------------------------------------------------------------

_DICTS = (dict, MappingProxyType)
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_HOLDERS = (list, tuple, *_DICTS, *_VIEWS, set, frozenset)
_DEEPEST = 200
"""Levels that values may have: Python's hash of tuples in tuples ends the process where they are too many for its stack."""


class _Budget:
    """What a rendering has left."""

    def __init__(self) -> None:
        self.steps, self.left, self.unread = MOST_STEPS, MOST_MADE, MOST_READ
        self.sought = 0  # how often what `getitem` finds is gone through: by filters that look up an attribute of each element

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise ValueError(f"it takes more than {MOST_STEPS:,} steps")

    def make(self, size: int) -> None:
        self.left -= max(size, 0)
        if self.left < 0:
            raise ValueError(f"it makes more than {MOST_MADE:,} characters")

    def read(self, work: int) -> None:
        self.unread -= max(work, 0)
        if self.unread < 0:
            raise ValueError(f"it reads more than {MOST_READ:,} characters, or as much of lists")

    def look(self, *values: Any, times: int = 1) -> int:
        """Pays for going through values and all that they hold, as often as they hold it; their length as text, about."""
        size, path = 0, [iter(values)]
        while path:
            for value in path[-1]:
                if isinstance(value, str):
                    size += len(value)
                    self.read(len(value) * times)
                elif isinstance(value, _HOLDERS):
                    size += 4 * len(value)
                    self.read((_HELD + _EACH * len(value)) * times)
                    if not isinstance(value, (list, tuple)):
                        self.hash(value)
                    path.append(iter(value) if not isinstance(value, _DICTS) else chain.from_iterable(value.items()))
                    if len(path) > _DEEPEST:
                        raise ValueError(f"it nests values more than {_DEEPEST} levels deep")
                    break
                else:
                    size += 8
                    self.read(_EACH * len(value) if isinstance(value, range) else 0)
            else:
                path.pop()
        return size

    def hash(self, keys: Any) -> None:
        """Pays for a table of these keys: others than texts can be chosen so that all collide."""
        if not all(isinstance(key, str) for key in keys):
            self.read(8 * len(keys) ** 2)


_BUDGET: ContextVar[_Budget] = ContextVar("of a rendering")
"""Without one, an operation raises: so Jinja does none while it compiles."""


def _made(value: Any, each: int = 1) -> Any:
    """A value that an operation made, paid: `each` for an element, one if it was there before."""
    budget = _BUDGET.get()
    if isinstance(value, str):
        budget.make(len(value))
    elif isinstance(value, (list, tuple)):
        budget.make(2 * _PART + each * len(value))
    elif isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError("it makes bytes, which no chat template needs")
    elif isinstance(value, int):
        _check_number(value)
    elif isinstance(value, (*_DICTS, set, frozenset)):
        budget.make(2 * _PART + _PART * len(value))
    else:
        budget.make(2 * _PART)
    return value


class _Lazy:
    """What a filter makes element by element, each paid when it is taken."""

    def __init__(self, items: Iterable[Any], source: Any) -> None:
        self._items, self._depth = iter(items), source._depth + 1 if isinstance(source, _Lazy) else 0
        if self._depth > _DEEPEST:
            raise ValueError(f"it puts more than {_DEEPEST} filters around one another")

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _BUDGET.get().read(_EACH)
            yield _made(item) if isinstance(item, (list, tuple)) else item


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (_Lazy, runtime.LoopContext)) else value


def _check_number(*values: Any) -> None:
    for value in values:
        if abs(value) > 2**63:
            raise ValueError(f"{shown(value)} is a larger number than a chat template needs")


def _check_width(pattern: str) -> None:
    """Pays for the widths in a pattern."""
    if re.search(r"\d{6}|\*", pattern):
        raise ValueError(f"{shown(pattern)} has a width that no chat template needs")
    _BUDGET.get().make(sum(int(digits) for digits in re.findall(r"\d+", pattern)))


def _check_counts(values: Iterable[Any], most: int = 100_000) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"{shown(value)} is no width or count of a chat template")


# --- operations -------------------------------------------------------------------------------------------------------


def _step(read: int, made: int) -> bool:
    """A turn of a loop, a macro or a block, by what stands in it."""
    budget = _BUDGET.get()
    budget.step()
    budget.read(read)
    budget.make(made)
    return True


def _looked(value: Any, times: int = 1) -> Any:
    """A value that something goes through next."""
    if not isinstance(value, (int, float)):
        _BUDGET.get().look(value, times=max(times, 1))
    return value


def _text(value: Any, beside: int = 0) -> str:
    """A value as it is written, with `beside` characters of the template."""
    budget = _BUDGET.get()
    if isinstance(value, str):
        budget.make(len(value) + max(beside, 0))
        return value
    before = budget.look(value) + max(beside, 0)
    budget.make(before)
    text = str(value)
    budget.make(len(text) - before)
    return text


def _joined(*values: Any) -> str:
    return "".join([_text(value) for value in values])


def _contains(item: Any, holder: Any) -> bool:
    budget = _BUDGET.get()
    if isinstance(item, str) and isinstance(holder, str):
        _search("in", holder, [item])
    elif isinstance(holder, _DICTS):
        _find(item, holder)
    elif isinstance(holder, (*_HOLDERS, range)):
        budget.read(_EACH * len(holder))
        if isinstance(item, _HOLDERS) or (isinstance(item, str) and len(item) > _EACH):
            budget.look(item, holder)
    elif not isinstance(holder, str):
        budget.look(item)
        return item in (_looked(value) for value in holder)
    return operator.contains(holder, item)


def _find(key: Any, table: Any) -> None:
    """Pays for finding a key in a dict."""
    if not isinstance(key, str):
        _BUDGET.get().look(key)
        _BUDGET.get().read(8 * len(table))


def _search(name: str, text: str, others: Iterable[Any]) -> None:
    """Pays, before, for what a method or filter reads in a text, and for what it makes of it, if that may be far longer."""
    budget = _BUDGET.get()
    sought = [other for other in others if isinstance(other, str)]
    longest = max(map(len, sought), default=0)
    if name in ("startswith", "endswith"):
        return budget.read(longest)
    # Python searches for what is longer than 100 characters in linear time, strips by a search for each character, and takes
    # long to tell that a text is no number
    slow = "strip" in name or name in ("trim", "int", "float")
    budget.read(len(text) * (16 + longest // 4 if slow else 1 + min(longest, 100) // 4))
    if name == "replace" and len(sought) > 1:
        one, other, *_ = sought  # in either order: they may be given by name
        budget.make(max(text.count(one) * len(other), text.count(other) * len(one)))
    elif name == "indent":
        wide = max((other for other in others if isinstance(other, int)), default=4)
        budget.make((1 + sum(1 for _ in re.finditer(r"\s", text))) * (_PART + max(*map(len, sought), wide, 0)))
    elif name in ("split", "rsplit", "splitlines") and len(text) > 2**14:
        budget.make(_PART * (text.count(sought[0]) if sought and sought[0] else sum(1 for _ in re.finditer(r"\s", text))))
    elif name in ("title", "wordcount", "urlencode", "list"):
        budget.make(_PART * len(text))
        budget.read(_EACH * len(text))
    return None


def _percent(pattern: str, values: Any) -> None:
    """Pays for pattern % values."""
    _search("%", pattern, [])
    _check_width(pattern)
    _BUDGET.get().make(_BUDGET.get().look(values) * max(pattern.count("%("), 1) + len(pattern))


_REFUSED = {"translate", "maketrans", "expandtabs", "encode", "to_bytes", "from_bytes", "striptags", "unescape", "escape"}
"""Methods that no chat template needs."""
_AT_ONCE = {"length", "count", "default", "d", "first", "last", "attr", "abs", "round"}
"""Filters that do not go through a value."""
_ONE_BY_ONE = {"list", "items", "reverse", "map", "select", "reject", "selectattr", "rejectattr", "batch", "slice"}
"""Filters that go by its elements, and look into none of them."""
_CALLING = {"map", "select", "reject", "selectattr", "rejectattr"}
"""Those that call something for each."""
_COMPARING = {"sort", "unique", "min", "max", "sum", "groupby", "dictsort", "join"}
"""Filters that look deep into it."""
_GONE = {"urlize", "wordwrap", "pprint", "random", "striptags"}
_SHALLOW_TESTS = {
    *("defined", "undefined", "none", "boolean", "true", "false", "integer", "float", "number"),
    *("string", "mapping", "sequence", "iterable", "callable", "sameas", "escaped"),
}


def _filter(name: str, function: Any) -> Any:
    """A filter that pays."""
    begin = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja gives some their context first

    @functools.wraps(function)
    def paying(*arguments: Any, **options: Any) -> Any:
        budget = _BUDGET.get()
        budget.read(_EACH)
        value, others = arguments[begin], [*arguments[begin + 1 :], *options.values()]
        if name not in ("default", "d"):
            _check_counts(others, 30 if name == "round" else 100_000)
            budget.look(*others)
        if name in _COMPARING:
            value = _as_list(value)
            arguments = (*arguments[:begin], value, *arguments[begin + 1 :])
            budget.sought = _compare(name, value, others)
        elif name in _ONE_BY_ONE and not isinstance(value, str):
            each = 6 * _EACH if name in _CALLING else _EACH
            budget.read(each * len(value) if isinstance(value, (*_HOLDERS, range, runtime.LoopContext)) else 0)
        elif name == "format" and isinstance(value, str):
            _percent(value, others or options)
        elif isinstance(value, str) and name not in _AT_ONCE:
            _search(name, value, others)
        elif name not in _AT_ONCE:
            budget.make(budget.look(value))
        try:
            made = function(*arguments, **options)
            if name == "unique":  # which looks up attributes when it is gone through
                made = _Lazy(list(made), value)
        finally:
            budget.sought = 0
        if name in _AT_ONCE:
            return made
        if name in _ONE_BY_ONE and hasattr(made, "__next__"):
            return _Lazy(made, value)
        held = isinstance(value, (list, tuple, _Lazy)) and name != "groupby"
        return _made(made, 1 if held else _PART)

    return paying


def _compare(name: str, value: Any, others: list[Any]) -> int:
    """Pays for a filter that looks deep; how often it goes through each element."""
    budget = _BUDGET.get()
    count = len(value) if isinstance(value, (*_HOLDERS, range, str)) else 0
    times = 1 + count.bit_length() if name in ("sort", "groupby", "dictsort") else 2
    size = budget.look(value if not isinstance(value, range) else [], times=times)
    budget.read(_EACH * count * times)
    if name == "join":
        budget.make(size + count * max((len(other) for other in others if isinstance(other, str)), default=0))
    elif name == "sum" and not all(other is None or isinstance(other, (int, float, str)) for other in others):
        raise ValueError("it sums what are not numbers")
    elif name == "unique":
        budget.hash(value if isinstance(value, (*_HOLDERS, range, str)) else ())
    return times


def _test(name: str, function: Any) -> Any:
    """A test that pays."""

    @functools.wraps(function)
    def paying(*arguments: Any) -> Any:
        _BUDGET.get().read(_EACH)
        if name in ("odd", "even", "divisibleby") and not all(isinstance(value, (int, float)) for value in arguments):
            raise ValueError(f"it asks whether {shown(arguments[0])} is {name}, which is no number")
        _BUDGET.get().look(*arguments)
        return function(*arguments)

    return _contains if name == "in" else paying


# --- Jinja ------------------------------------------------------------------------------------------------------------


class _Generation(ext.Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.Name(name, "load")]) for name in (BEGIN_MARK, END_MARK))
        return nodes.Scope([begin, *body, end]).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore: they lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # what is in it may be as much as it likes


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise ValueError(f"a namespace holds no {name!r}")


def _paying(node: Any, name: str, *arguments: Any) -> Any:
    """A filter of ours around an expression: Jinja calls filters at once, and functions by way of the sandbox."""
    return nodes.Filter(node, name, [x if isinstance(x, nodes.Node) else nodes.Const(x) for x in arguments], [], None, None)


def _is_plain(node: Any) -> bool:
    """A constant, or a list of such: what is compared with it costs little."""
    return isinstance(node, nodes.Const) or (isinstance(node, (nodes.List, nodes.Tuple)) and all(map(_is_plain, node.items)))


class _Bounds(NodeTransformer):
    """Puts what pays into a template."""

    def _turn(self, node: Any) -> Any:
        inside = list(node.find_all(nodes.Expr))
        made = sum(_PART + 2 * len(x.items) for x in inside if isinstance(x, (nodes.List, nodes.Tuple, nodes.Dict)))
        small, found = (nodes.Const, nodes.Name), (nodes.Getattr, nodes.Getitem)  # what is not there takes longest to find
        read = sum(_EACH // 2 if isinstance(x, small) else 8 * _EACH if isinstance(x, found) else 4 * _EACH for x in inside)
        return _paying(nodes.Const(read), "step ", made)

    def visit_For(self, node: Any) -> Any:
        turn, test = self._turn(node), self._turn(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(turn))
        if getattr(node, "test", None) is not None:  # asked of each element, also of those that it leaves out
            node.test = nodes.And(test, node.test)
        return node

    visit_Macro = visit_CallBlock = visit_Block = visit_For

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        return _paying(node.nodes[0], "joined ", *node.nodes[1:])

    def visit_Output(self, node: Any) -> Any:
        self.generic_visit(node)
        data = [x for x in node.nodes if isinstance(x, nodes.TemplateData)]
        beside = sum(len(x.data) for x in data) if len(data) < len(node.nodes) else 0
        for n, x in enumerate(node.nodes):
            if len(data) == len(node.nodes) or not isinstance(x, nodes.TemplateData):
                node.nodes[n], beside = _paying(x, "text ", beside), 0  # the first pays for the template's own text, too
        return node

    def visit_AssignBlock(self, node: Any) -> Any:
        self.generic_visit(node)
        node.filter = _paying(node.filter, "made ")
        return node

    def visit_Getitem(self, node: Any) -> Any:
        self.generic_visit(node)
        return _paying(node, "made ") if isinstance(node.arg, nodes.Slice) else node

    def visit_Dict(self, node: Any) -> Any:
        plain = all(isinstance(pair.key, nodes.Const) and isinstance(pair.key.value, str) for pair in node.items)
        self.generic_visit(node)
        if plain:
            return node
        for pair in node.items:
            pair.key = _paying(pair.key, "looked ")
        return _paying(node, "looked ")

    def visit_Compare(self, node: Any) -> Any:
        (first, *more), left, right = node.ops, _is_plain(node.expr), _is_plain(node.ops[0].expr)
        self.generic_visit(node)
        if not more and (right or (left and "in" not in first.op)):
            return node
        if not more and first.op in ("in", "notin"):
            found = _paying(node.expr, "in ", first.expr)
            return found if first.op == "in" else nodes.Not(found)
        # a text that is sought in a text may be compared at each of its characters: `_search`
        times = 1 if not more else 25
        node.expr = node.expr if left else _paying(node.expr, "looked ", times)
        for operand in node.ops:
            operand.expr = _paying(operand.expr, "looked ", times)
        return node


class _Formatter(sandbox.SandboxedFormatter):
    """str.format, which pays for each field."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        value, first = super().get_field(field_name, args, kwargs)
        _BUDGET.get().read(4 * _EACH)
        _BUDGET.get().make(_BUDGET.get().look(value))
        return value, first

    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_width(format_spec)
        return super().format_field(value, format_spec)


class _Sandbox(sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, whose operations pay."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(argument) is not str and not (type(argument) is int and isinstance(obj, (list, tuple))):
            _find(argument, obj if isinstance(obj, _DICTS) else ())
        value = super().getitem(obj, argument)
        if (budget := _BUDGET.get()).sought:
            budget.make(budget.look(value, times=budget.sought))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            if max(abs(left), abs(right)) > 2**63 or (operator == "**" and abs(right) > 64):
                raise ValueError(f"{shown(left)} {operator} {shown(right)} are larger numbers than a chat template needs")
            return super().call_binop(context, operator, left, right)
        if operator == "*":
            held, count = (left, right) if isinstance(right, int) else (right, left)
            budget.make(len(held) * max(count, 1) if isinstance(count, int) and isinstance(held, (str, list, tuple)) else 0)
        elif operator == "%" and isinstance(left, str):
            _percent(left, right)
        elif operator == "+":
            budget.make(sum(len(value) for value in (left, right) if isinstance(value, (str, list, tuple))))
        else:
            budget.make(budget.look(left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        budget = _BUDGET.get()
        budget.step()
        budget.read(8 * len(arguments) + _EACH * len(options))
        budget.make(_PART * (len(arguments) + len(options)))
        if isinstance(function, (runtime.Macro, runtime.LoopContext, runtime.BlockReference)):
            return super().call(context, function, *arguments, **options)
        given = [value for name, value in options.items() if name not in ("_loop_vars", "_block_vars")]
        name = getattr(function, "__name__", "")
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # Jinja wraps str.format
        if isinstance(function, type):  # dict(), namespace() and others, which hold what they are given by name
            given = []
        if isinstance(function, type) or name in ("fromkeys", "join", "isdisjoint"):
            arguments = tuple(map(_as_list, arguments))
        budget.look(*arguments, *given)
        if owner is not None:
            if name in _REFUSED:
                raise ValueError(f"it calls {name}, which no chat template needs")
            _check_counts((*arguments, *given))
        if isinstance(function, type) or name == "fromkeys":
            for argument in arguments:
                budget.hash(argument if isinstance(argument, (*_HOLDERS, range)) else ())
        elif isinstance(owner, str):
            if name in ("format", "format_map"):
                return self._format(name, owner, arguments, options)
            _search(name, owner, (*arguments, *given))
            if name == "join" and arguments:
                _compare("join", arguments[0], [owner])
        elif isinstance(owner, _DICTS):
            for argument in arguments[:1]:
                _find(argument, owner)
        elif isinstance(owner, _HOLDERS):
            budget.look(owner)
        return _made(super().call(context, function, *arguments, **options), _PART)

    def _format(self, name: str, pattern: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
        if type(pattern) is not str:
            raise ValueError("it formats a text that it calls safe, which no chat template needs")
        if name == "format_map":
            [options], arguments = arguments, ()
        _BUDGET.get().read(_EACH * len(pattern))
        _BUDGET.get().make(len(pattern))
        return _made(_Formatter(self).vformat(pattern, arguments, options))

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        return _Bounds().visit(super()._parse(source, name, filename))


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Jinja as chat templates expect it: transformers 5.24's (utils/chat_template_utils.py)."""
    made = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols])
    filters = {name: function for name, function in made.filters.items() if name not in _GONE} | {"tojson": _to_json}
    own = {"step ": _step, "looked ": _looked, "text ": _text, "joined ": _joined, "made ": _made, "in ": _contains}
    made.filters = {name: _filter(name, function) for name, function in filters.items()} | own
    made.tests = {name: test if name in _SHALLOW_TESTS else _test(name, test) for name, test in made.tests.items()}
    del made.globals["lipsum"]
    made.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _Namespace}
    return made


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is, where Jinja's own filter writes for HTML."""
    if indent is None and separators is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return "".join(_made(piece) for piece in encoder.iterencode(value))


def _raise(message: str) -> None:
    raise ValueError(message)


def _now(pattern: str) -> str:
    _BUDGET.get().make(256 * len(pattern))  # as much as Python's strftime makes of any
    return datetime.datetime.now().strftime(pattern)
