"""Looks for cases that break a law or differ from an upstream: the tests' own laws, at many more cases.

    python scripts/fuzz_positions.py [--laws 200000] [--differential 20000] [--authors FOLDER] [--vllm FOLDER] [--seed 0]

Laws run over every family; each is stopped at its first counterexample, which is printed. Differential cases are counted, equal
and in all, for each family: the installed transformers, and where their sources are given vLLM and the authors' own code (see
make_references.py). The table is also written to scripts/results.
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
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_build  # noqa: E402
import test_inputs  # noqa: E402
import test_spans  # noqa: E402
from authors import AUTHORS, authors_ids  # noqa: E402
from strategies import STRIDES, crowded_rows, upstream_rows  # noqa: E402
from upstream_ids import IN_TRANSFORMERS, TRANSFORMERS, VLLM, vllm_ids  # noqa: E402

from mmrope import family, position_ids  # noqa: E402

LAWS = {
    f"{module.__name__}.{name}": law
    for module in (test_build, test_inputs, test_spans)
    for name, law in vars(module).items()
    if getattr(law, "is_hypothesis_test", False) and not getattr(law, "pytestmark", None)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", type=int, default=200_000)
    parser.add_argument("--differential", type=int, default=20_000)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args()
    begun = time.perf_counter()
    versions = f"numpy {np.__version__}, transformers {version('transformers')}, torch {version('torch')}"
    lines = [f"seed {given_.seed}; {versions}; {time.strftime('%Y-%m-%d')}", ""]
    failed = False
    if given_.laws:
        each = -(-given_.laws // len(LAWS))
        lines += [f"{each * len(LAWS):,} cases of {len(LAWS)} laws, {each:,} each", "", "| law | holds |", "|---|---|"]
        for name, law in tqdm(LAWS.items(), desc="laws", disable=None):
            holds = run(law, each, given_.seed)
            failed |= not holds
            lines.append(f"| {name} | {'yes' if holds else 'NO'} |")
    sources = differentials(given_)
    if given_.differential and sources:
        each = -(-given_.differential // len(IN_TRANSFORMERS))
        lines += ["", "| upstream | family | cases | equal |", "|---|---|---|---|"]
        for (upstream, name), (cases, check) in tqdm(sources.items(), desc="differential", disable=None):
            total, equal = count(cases, check, each, given_.seed)
            failed |= equal < total
            lines.append(f"| {upstream} | {name} | {total:,} | {equal:,} |")
    lines += ["", f"{time.perf_counter() - begun:.0f} s"]
    results = ROOT / "scripts" / "results" / f"fuzz_positions_{TRANSFORMERS}.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    raise SystemExit(failed)


def run(law: Callable[[], None], cases: int, number: int) -> bool:
    """Whether a law holds for so many cases."""
    try:
        seed(number)(settings(**options(cases), phases=(Phase.generate, Phase.shrink))(law))()
    except AssertionError as error:
        print(f"{law.__name__}: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return False
    return True


def options(cases: int) -> dict[str, Any]:
    unchecked = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
    return {"max_examples": cases, "derandomize": False, "database": None, "deadline": None, "suppress_health_check": unchecked}


def differentials(given_: argparse.Namespace) -> dict[tuple[str, str], tuple[st.SearchStrategy[Any], Callable[..., None]]]:
    """By upstream and family: what draws a case, and what asserts that the ids are equal."""
    found: dict[tuple[str, str], Any] = {}
    for name in IN_TRANSFORMERS:
        cases = st.tuples(test_inputs.upstream_case(name), st.booleans())
        found[TRANSFORMERS, name] = (
            cases,
            lambda case: test_inputs.assert_ids_equal_transformers(case[0][0], case[0][1], case[1]),
        )
    for name in VLLM if given_.vllm else ():
        rule = family(f"{name}@vllm-0.33")
        found["vllm-0.33", name] = (
            upstream_rows(rule),
            lambda row, rule=rule: same(vllm_ids(given_.vllm, rule, row)[0], rule, row),
        )
    for name in AUTHORS if given_.authors else ():
        rule = family(name, **({"stride": STRIDES[name]} if name in STRIDES else {}))
        found["authors", name] = (
            crowded_rows() if name == "v2pe" else upstream_rows(rule),
            lambda row, rule=rule: same(authors_ids(given_.authors, rule, row), rule, row),
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
        except AssertionError as error:
            if equal == total - 1:
                print(f"{case}: {error}", file=sys.stderr)
        else:
            equal += 1

    each()
    return total, equal


if __name__ == "__main__":
    main()
