"""Looks for cases that break a law or differ from an upstream: the tests' own laws, at many more cases.

    python scripts/fuzz_positions.py [--laws 200000] [--differential 20000] [--authors FOLDER] [--vllm FOLDER] [--seed 0]

Laws run over every row of the table, the same number of cases each; what breaks one is printed, and the others go on.
Differential cases are counted, equal and in all, for each family: the installed transformers, and where their sources are given
vLLM and the authors' own code (see make_references.py). The table is written to scripts/results as it grows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mmrope import family, position_ids  # noqa: E402
from tests.positions import (  # noqa: E402
    test_batches,
    test_build,
    test_compare,
    test_edits,
    test_formats,
    test_inputs,
    test_segments,
    test_shards,
    test_spans,
    test_workers,
)
from tests.support.authors import AUTHORS, authors_ids  # noqa: E402
from tests.support.strategies import AUTHORS_ROWS, STRIDES, upstream_rows  # noqa: E402
from tests.support.upstream_ids import IN_TRANSFORMERS, TRANSFORMERS, VLLM, vllm_ids  # noqa: E402

LAWS = (
    *(test_build, test_inputs, test_segments, test_spans),
    *(test_edits, test_batches, test_shards, test_formats, test_compare, test_workers),
)
DIFFERENTIAL = "test_ids_equal_transformers_on_random_batches"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", type=int, default=200_000)
    parser.add_argument("--differential", type=int, default=20_000)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    versions = f"numpy {np.__version__}, transformers {version('transformers')}, torch {version('torch')}"
    table = Table(ROOT / "scripts" / "results" / f"fuzz_positions_{TRANSFORMERS}.md")
    table.add(f"seed {asked.seed}; {versions}; {time.strftime('%Y-%m-%d')}", "")
    failed = False
    if asked.laws:
        found = laws()
        table.add("| law | cases | holds |", "|---|---|---|")
        for name, calls in tqdm(found.items(), desc="laws", disable=None):
            each = -(-asked.laws // len(found) // len(calls))
            wrong = [text for test, arguments in calls if (text := counterexample(test, arguments, each, asked.seed))]
            failed |= bool(wrong)
            for text in wrong:
                print(text, file=sys.stderr)
            table.add(f"| {name} | {each * len(calls):,} | {'NO' if wrong else 'yes'} |")
    if asked.differential:
        sources = differentials(asked)
        each = -(-asked.differential // len(IN_TRANSFORMERS))
        table.add("", "| upstream | family | cases | equal |", "|---|---|---|---|")
        for (upstream, name), (cases, check) in tqdm(sources.items(), desc="differential", disable=None):
            total, equal = count(cases, check, each, asked.seed)
            failed |= equal < total
            table.add(f"| {upstream} | {name} | {total:,} | {equal:,} |")
    print("\n".join(table.lines))
    raise SystemExit(failed)


class Table:
    """Lines that are written to a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []
        path.parent.mkdir(exist_ok=True)

    def add(self, *lines: str) -> None:
        self.lines += lines
        self.path.write_text("\n".join(self.lines) + "\n")


def laws() -> dict[str, list[tuple[Callable[..., None], dict[str, Any]]]]:
    """The hypothesis tests by name, with their arguments: for parametrized tests one call a value."""
    found = {}
    for module in LAWS:
        for name, test in vars(module).items():
            if not getattr(test, "is_hypothesis_test", False) or name == DIFFERENTIAL:
                continue
            marks = [mark.args for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
            assert len(marks) <= 1, f"{name}: one parameter at most"
            calls = [{argument: getattr(value, "values", [value])[0]} for argument, values in marks for value in values]
            found[f"{module.__name__}.{name}"] = [(test, arguments) for arguments in calls or [{}]]
    return found


def counterexample(test: Any, arguments: dict[str, Any], cases: int, number: int) -> str:
    """What breaks a law within so many cases; "" if nothing does."""
    again = given(**test.hypothesis._given_kwargs)(test.hypothesis.inner_test)  # a copy, which takes settings anew
    try:
        seed(number)(settings(**options(cases), phases=(Phase.generate, Phase.shrink))(again))(**arguments)
    except (Exception, pytest.fail.Exception) as error:  # whatever it is, it is reported
        notes = getattr(error, "__notes__", ())
        return "\n".join([f"{test.__name__} {arguments}: {type(error).__name__}: {error}", *notes])
    return ""


def options(cases: int) -> dict[str, Any]:
    unchecked = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
    return {"max_examples": cases, "derandomize": False, "database": None, "deadline": None, "suppress_health_check": unchecked}


def differentials(asked: argparse.Namespace) -> dict[tuple[str, str], tuple[st.SearchStrategy[Any], Callable[..., None]]]:
    """By upstream and family: what draws a case, and what asserts that the ids are equal."""
    found: dict[tuple[str, str], Any] = {}
    check = test_inputs.assert_ids_equal_transformers
    for name in IN_TRANSFORMERS:
        cases = st.tuples(test_inputs.upstream_case(name), st.booleans())
        found[TRANSFORMERS, name] = (cases, lambda case: check(case[0][0], case[0][1], case[1]))
    for name in VLLM if asked.vllm else ():
        rule = family(f"{name}@vllm-0.33")
        found["vllm-0.33", name] = (
            upstream_rows(rule),
            lambda row, rule=rule: same(vllm_ids(asked.vllm, rule, row)[0], rule, row),
        )
    for name in AUTHORS if asked.authors else ():
        rule = family(name, **({"stride": STRIDES[name]} if name in STRIDES else {}))
        found["authors", name] = (
            AUTHORS_ROWS.get(name, lambda rule=rule: upstream_rows(rule))(),
            lambda row, rule=rule: same(authors_ids(asked.authors, rule, row), rule, row),
        )
    return found


def same(expected: np.ndarray, rule: Any, row: Any) -> None:
    tolerance = 2e-5 if rule.name == "circle_rope" else 0  # its ids are sums of cosines
    np.testing.assert_allclose(position_ids(row, rule).ids[:, 0], expected, rtol=0, atol=tolerance)


def count(cases: st.SearchStrategy[Any], check: Callable[..., None], most: int, number: int) -> tuple[int, int]:
    """Cases in all, and those that pass the check; the first that does not is printed."""
    total = equal = 0

    @seed(number)
    @settings(**options(most), phases=(Phase.generate,))
    @given(cases)
    def each(case: Any) -> None:
        nonlocal total, equal
        total += 1
        try:
            check(case)
        except (Exception, pytest.fail.Exception) as error:  # an upstream that raises does not agree
            if equal == total - 1:
                print(f"{case}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            equal += 1

    each()
    return total, equal


if __name__ == "__main__":
    main()
