"""What several tests share."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROOF = "MMROPE_PROOF" in os.environ
"""Whether the long proofs run whole: `make proof`. In `make test` each is a fixed sample."""


def cases(sample: int) -> int:
    """How many cases a proof draws: the sample, or fifty times as many."""
    return 50 * sample if PROOF else sample


def of_usual_priority() -> None:
    """SVT-AV1, by which tests make AV1 videos, gives a process of root real-time priority. It would keep it for all that follows, and
    starve the processes that it starts."""
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
