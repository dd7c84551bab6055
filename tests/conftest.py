"""What every test shares: quiet upstreams, steady hypothesis, and loud skips."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from mmrope.positions import rules
from mmrope.preprocess import sandbox
from tests.support import PROOF, ROOT, cases, lowest, of_usual_priority

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are first imported: they run on the CPU then
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# the same cases in every `make test`, others in every `make proof`
settings.register_profile(
    "mmrope", derandomize=not PROOF, deadline=None, max_examples=cases(50), suppress_health_check=list(HealthCheck)
)
settings.load_profile("mmrope")

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core, each with a thread
    torch.set_num_threads(1)

NO_GPU = "needs a CUDA GPU, and this machine has none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests run where there is a GPU, and are skipped by name where there is none."""
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests and not os.environ.get("MMROPE_REQUIRE_GPU"):
        import torch

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """In `make lowest`, what fails for want of an upstream is skipped."""
    try:
        return (yield)
    except Exception as error:
        lowest.skip_if_lacking(error)
        raise


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    of_usual_priority()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, count in sorted(_skips(terminalreporter).items()):
        terminalreporter.write_line(f"skipped {count}: {reason}", yellow=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip for any other reason than what the machine lacks, a GPU or Landlock, is a failure: it could have run the test. `make
    lowest` does without upstreams, too."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reasons = set(_skips(reporter)) if reporter is not None else set()
    if lowest.WANTED:
        reasons = {reason for reason in reasons if not reason.startswith((lowest.REASON, "this Triton does not know"))}
    if reasons - {NO_GPU, sandbox.NO_LANDLOCK} and session.exitstatus == 0:
        session.exitstatus = 1


def _skips(reporter: pytest.TerminalReporter) -> dict[str, int]:
    counts: dict[str, int] = {}
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        counts[reason] = counts.get(reason, 0) + 1
    return counts


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of sample files."""
    return ROOT / "samples"


def _shared_by_all() -> dict[str, Any]:
    return {
        "PIL.Image.MAX_IMAGE_PIXELS": Image.MAX_IMAGE_PIXELS,
        "the current folder": os.getcwd(),
        "NumPy's errors": np.geterr(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "torch's gradients": torch.is_grad_enabled(),
    }


@pytest.fixture(autouse=True)
def _what_all_tests_share_is_as_before() -> Iterator[None]:
    """A test that leaves a limit of Pillow behind fails others, in some orders."""
    before = _shared_by_all()
    yield
    assert _shared_by_all() == before


@pytest.fixture(autouse=True)
def _families_of_a_test_are_gone_after_it() -> Iterator[None]:
    before, own = dict(rules.REGISTRY), set(rules.OWN)
    yield
    if own != rules.OWN:
        rules.REGISTRY.clear()
        rules.REGISTRY.update(before)
        rules.OWN.clear()
        rules.OWN.update(own)
    rules.packages_families.cache_clear()
