"""What untrusted chat templates may take: no operation of Python's goes through more than the budget, and none is changed."""

from __future__ import annotations

import json
import subprocess
import sys

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrope.preprocess import template as bounded
from mmrope.preprocess.template import compiled, rendered
from tests.support import PROOF, ROOT, cases


def shared(first):
    """60 levels of a list or tuple that holds the next one twice: `x` and `y`, equal and not the same."""
    opened, closed = first
    start = "{% set ns = namespace(x=OPEN1,CLOSE, y=OPEN1,CLOSE) %}".replace("OPEN", opened).replace("CLOSE", closed)
    turn = "".join(f"{{% set ns.{n} = {opened}ns.{n}, ns.{n}{closed} %}}" for n in "xy")
    return start.replace("1,]", "1]") + "{% for i in range(60) %}" + turn + "{% endfor %}"


LISTS = [
    *("ns.x", "ns.x ~ ''", "ns.x|string", "ns.x|tojson", "ns.x|upper", "ns.x|replace('a', 'b')", "ns.x|urlencode", "ns.x|e"),
    *("'{}'.format(ns.x)", "'{0.x}'.format(ns)", "'%s' % ns.x", "'%s'|format(ns.x)", "raise_exception(ns.x)", "[1][ns.x].foo"),
    *("ns.x == ns.y", "ns.x != ns.y", "ns.x >= ns.y", "1 < 2 != ns.x == ns.y", "ns.x in [ns.y]", "ns.x not in [ns.y]"),
    *("ns.x is eq(ns.y)", "ns.x is lower", "[ns.y]|select('in', [ns.x])|list", "ns.x in ([ns.y]|map('list'))"),
    *("[ns.x, ns.y]|sort", "[ns.x, ns.y]|max", "[ns.x]|groupby(0)", "[{'a': ns.x}, {'a': ns.y}]|sort(attribute='a')"),
    *("[ns]|join(attribute='x')", "[ns]|map(attribute='x')|join", "[cycler(ns.x)]|join(attribute='current')"),
    *("[ns.x].index(ns.y)", "[ns.x].count(ns.y)", "loop.changed(ns.x)", "{'a': ns.x, 'b': ns.y}|dictsort(by='value')"),
    *("{1: ns.x}.items() == {1: ns.y}.items()", "{'a': ns.x}.keys().mapping == {'a': ns.y}", "{'a': ns.x}|xmlattr"),
]
TUPLES = [
    *("{ns.x: 1}", "{'a': 1}[ns.x]", "{}.get(ns.x)", "ns.x in {'a': 1}", "[ns.x, ns.y]|unique|list", "dict([(ns.x, 1)])"),
    *("dict.fromkeys([ns.x])", "{'a': ns.x}.items() - {'a': ns.y}.items()", "{'a': 1}.keys().isdisjoint([ns.x])"),
    *("[1]|map(ns.x)|list", "ns.x is filter", "[{'a': ns.x}]|unique(attribute='a')|list", "(ns.x, 1) in loop", "dict(loop)"),
]
TEXTS = [
    *(
        "b.count('x')",
        "'x' in b",
        "b.strip('ab')",
        "b.find('bbb')",
        "b.split('x')",
        "b is lower",
        "b.isascii()",
        "b|trim('ab')",
    ),
    *("b|int", "b|truncate(5)", "b.lstrip(b)", "b.islower()", "b|title", "b|wordcount", "b.upper()", "b == b[1:]"),
]
LONG_LISTS = [
    *("l|selectattr('x')|list", "l|map(attribute='x')|list", "5 in l", "'a' in l|map('length')", "l|reject('defined')|first"),
    *("l == l[1:]", "l|batch(70000)|list", "l|groupby('a')", "l|sort(attribute='a')", "l.index({'a': 1})", "l[1:]", "l|list"),
    *("l|sum(attribute='a')", "range(100000)|list", "'x' in range(100000)", "l|reverse|list", "l|unique(attribute='a')"),
]
BIG, MANY = "{% set b = 'ab' * 1000000 %}{% set l = [{'a': 1}] * 50000 %}", "{% for i in range(90000) %}"
EQUAL_HASHES = "2305843009213693951"  # multiples of it have one hash
WORK = {
    **{e: shared("[]") + f"{{% for i in [ns.y, 1] %}}{{{{ {e} }}}}{{% endfor %}}" for e in LISTS},
    **{e: shared("()") + f"{{% for i in [0, ns.y] %}}{{{{ {e} }}}}{{% endfor %}}" for e in TUPLES},
    **{e: BIG + MANY + f"{{% if {e} %}}{{% endif %}}{{% endfor %}}" for e in TEXTS + LONG_LISTS},
    "a condition of a loop": MANY + "{% for j in range(100000) if j < 0 %}{% endfor %}{% endfor %}",
    "a long turn": MANY + "{% if i.a is string %}{% endif %}" * 2500 + "{% endfor %}",
    "what is left of a loop": MANY + "{% for j in range(100000) %}{% if loop|list %}{% endif %}{% break %}{% endfor %}{% endfor %}",
    "many arguments": "{% macro f() %}{{ varargs|length }}{% endmacro %}" + MANY + "{% set x = f(*range(100000)) %}{% endfor %}",
    "keys of one hash": "{{ range(0, N*100000, N)|unique|list }}".replace("N", EQUAL_HASHES),
    "keys of one hash in a dict": "{{ dict.fromkeys(range(0, N*100000, N)) }}".replace("N", EQUAL_HASHES),
    "a list of lists": "{{ ([[1]] * 100000)|sum(start=[])|length }}",
    "places": MANY + "{{ 5|round(-99999) }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", WORK)
def test_a_templates_work_is_bounded(name, monkeypatch):
    """With a 64th of the budget: what is not paid does not end."""
    monkeypatch.setattr(bounded, "MOST_READ", bounded.MOST_READ // 64)
    template, _ = compiled(WORK[name])
    with pytest.raises(
        ValueError, match=r"it (reads|makes|takes) more than [\d,]+ (characters|steps)|sums|no width or count|many"
    ):
        rendered(template, {})


KEPT = "{% set ns = namespace(x=0) %}" + MANY + "{% set ns.x = [ns.x, VALUE] %}{% endfor %}"
NESTED = "{% set ns = namespace(x=(1,)) %}" + MANY + "{% set ns.x = (ns.x,) %}{% endfor %}"
LONG = "{% set b = 'ab' * 8000000 %}"
MEMORY = {
    "a format in a format": "{{ '{:{}}'.format('a', 99999 * 40000) }}",
    "widths": "{{ ('{0:99999}' * 40000).format(1) }}",
    "widths of %": "{{ ('%(a)99999d' * 40000) % {'a': 1} }}",
    "arguments": LONG + "{{ ('{0}' * 400).format(b) }}",
    "arguments of %": LONG + "{{ ('%(a)s' * 400) % {'a': b} }}",
    "tabs": "{{ ('\t' * 60000).expandtabs(100000) }}",
    "a table": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "a number's bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "bytes": LONG + KEPT.replace("VALUE", "b.encode()"),
    "what names write": LONG + "{% macro f() %}" + "{{ b }}" * 400 + "{% endmacro %}{{ f() }}",
    "the template's own text": MANY + "x" * 80000 + "{% endfor %}",
    "ranges": KEPT.replace("VALUE", "range(100000)|list"),
    "slices": "{% set l = [0] * 1000000 %}" + KEPT.replace("VALUE", "l[1:]"),
    "dicts": "{% set d = dict.fromkeys(range(4000)) %}" + KEPT.replace("VALUE", "d.copy()"),
    "lists": KEPT.replace("VALUE", "[" + "[]," * 2000 + "]"),
    "arguments that are kept": "{% set ns = namespace(x=0) %}{% macro f() %}{% set ns.x = [ns.x, varargs] %}{% endmacro %}" + MANY
    + "{{ f(*range(100000)) }}{% endfor %}",
    "characters": "{% set t = '\u4e00' * 300000 %}" + KEPT.replace("VALUE", "t|list"),
    "parts": "{{ ('aa,' * 22000000).split(',') }}",
    "indents of JSON": "{{ [[[[[[0] * 5000]]]]]|tojson(indent=99999) }}",
    "separators": LONG + "{{ ([0] * 200)|tojson(separators=(b, b)) }}",
    "indents": LONG + "{{ ('\n' * 2000)|indent(b, blank=true) }}",
    "a number that is none": "{{ '%4000000000d' is odd }}",
    "filters around filters": "{% set ns = namespace(x=[1]) %}" + MANY + "{% set ns.x = ns.x|map('string') %}{% endfor %}{{ ns.x|list }}",
    **{f"nested: {e}": NESTED + f"{{% for i in [0, ns.x] %}}{{{{ {e} }}}}{{% endfor %}}" for e in TUPLES[:: 1 if PROOF else 4]},
    "namespaces": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set o = namespace(x=ns.x, y=ns.x) %}{% set ns.x = o %}"
    "{% endfor %}{{ ns }}{{ raise_exception('short') }}",
}  # fmt: skip
RUN = """
import json, resource, sys
from mmrope.preprocess.template import compiled, rendered
rendered(compiled("{{ [1]|tojson }}")[0], {})
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)
for name, template in json.load(sys.stdin).items():
    try:
        rendered(compiled(template)[0], {})
        print("rendered", name)
    except ValueError as error:
        print("refused" if not isinstance(error.__cause__, MemoryError) else "swollen", name)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_a_templates_memory_is_bounded():
    """Each in a process that may grow by a gibibyte: 67 million references have half of one."""
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(MEMORY), capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.splitlines() == [f"refused {name}" for name in MEMORY], done.stderr[-2000:]


LONG_TALK = (
    "{% for m in messages %}{% if messages|length > 1 and messages|selectattr('role')|list and messages[loop.index:] != none %}"
    "{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("count", [185, 1000])
def test_what_goes_through_all_messages_at_each(count, monkeypatch):
    """Both sides, with a 64th of the budget: an eighth of the 1,500 messages that the whole one is enough for, and far more."""
    monkeypatch.setattr(bounded, "MOST_READ", bounded.MOST_READ // 64)
    template, _ = compiled(LONG_TALK)
    messages = [{"role": "user", "content": "x" * 200}] * count
    if count == 185:
        assert rendered(template, {"messages": messages}) == "x" * 200 * count
    else:
        with pytest.raises(ValueError, match="it reads more than 33,554,432 characters, or as much of lists"):
            rendered(template, {"messages": messages})


VALUES = [
    "a",
    "l",
    "d",
    "n",
    "t",
    "none",
    "'x'",
    "''",
    "2",
    "[]",
    "[1, 2]",
    "('b', 1)",
    "{'k': l}",
    "missing",
    "l[0]",
    "d.k",
    "-1.5",
]
# a slice of what is no constant: of one that has none (2[1:]) Jinja makes nothing while it compiles, where it raises later
ONE = [
    *(
        "{}|tojson",
        "{}|string",
        "{}|list",
        "{}|length",
        "{}|first",
        "{}|last",
        "{}|upper",
        "{}|trim",
        "{}|sort",
        "{}|unique|list",
    ),
    *(
        "{}|join('-')",
        "{}|reverse|list",
        "{}|map('string')|list",
        "{}|select|list",
        "{}|default('z')",
        "{}|items|list",
        "{}|sum",
    ),
    *(
        "({} if a else 0)[1:]",
        "{}[0]",
        "{}['k']",
        "{}.k",
        "{}.items()|list",
        "{}.split()",
        "{}.strip('x')",
        "{}.get('k')",
        "{}|int",
        "{}|max",
    ),
    *(
        "({} is string)",
        "({} is mapping)",
        "({} is defined)",
        "(not {})",
        "{}|dictsort",
        "{}|batch(2)|list",
        "{}|title",
        "{}|indent",
    ),
    *(
        "{}|groupby('k')",
        "{}|map(attribute='k')|list",
        "{}.replace('a', 'b')",
        "{}|e",
        "{}|safe",
        "'%s'|format({})",
        "{}|count",
    ),
]
TWO = [
    *(
        "({} == {})",
        "({} != {})",
        "({} < {})",
        "({} in {})",
        "({} not in {})",
        "({} ~ {})",
        "({} + {})",
        "({} - {})",
        "({} * {})",
    ),
    *("({} % {})", "({} and {})", "({} or {})", "[{}, {}]", "{{'k': {}, 'j': {}}}", "{{{}: {}}}", "{}[{}]", "({} is eq({}))"),
    *("{}.count({})", "'{{}}{{!r:>4}}'.format({}, {})", "([{}]|select('in', {})|list)", "{}.join({})", "({} is in({}))"),
    *("(1 < {} == {})", "({} if {} else 0)", "{}|default({}, true)", "{}|replace('a', {})", "({}, {})", "{}|join({})"),
]
EXPRESSIONS = st.recursive(
    st.sampled_from(VALUES),
    lambda more: st.one_of(
        st.builds(lambda form, x: form.format(x), st.sampled_from(ONE), more),
        st.builds(lambda form, x, y: form.format(x, y), st.sampled_from(TWO), more, more),
    ),
    max_leaves=6,
)
WRITTEN = [
    "{{{{ {0} }}}}",
    "{{% for i in {0} %}}{{{{ loop.index }}}}{{{{ i }}}},{{{{ loop.changed({0}) }}}}{{% endfor %}}",
    "{{% for i in {0} if i != {0} %}}{{{{ i }}}}{{% else %}}none{{% endfor %}}",
    "{{% set x %}}a{{{{ {0} }}}}b{{% endset %}}{{{{ x|length }}}}{{{{ x }}}}",
    "{{% macro f(v) %}}<{{{{ v }}}}>{{{{ varargs }}}}{{% endmacro %}}{{{{ f({0}, 1) }}}}",
    "{{% set ns = namespace(v={0}) %}}{{% set ns.v = [ns.v] %}}{{{{ ns.v }}}}",
]


@given(EXPRESSIONS, st.sampled_from(WRITTEN))
@settings(deadline=None, max_examples=cases(150))
def test_within_its_budget_a_template_writes_what_jinja_does(expression, form):
    """Any of these operations in any other: the text of Jinja's own sandbox, or an error of both."""
    source = form.format(expression)
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    values = {"a": "ab a é", "l": [3, 1, 2], "d": {"k": [1], "a": "ab"}, "n": 7, "t": "<x>\n y"}
    try:
        expected = plain.from_string(source).render(values)
    except Exception:
        expected = None
    try:
        made = rendered(compiled(source)[0], values)
    except ValueError:
        made = None
    if expected is None or "object at 0x" not in expected:
        assert made == expected, source
