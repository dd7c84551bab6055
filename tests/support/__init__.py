"""What several tests share."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROOF = "MMROPE_PROOF" in os.environ
"""Whether the long proofs run whole: `make proof`. In `make test` each is a fixed sample."""


def cases(sample: int) -> int:
    """How many cases a proof draws: the sample, or fifty times as many."""
    return 50 * sample if PROOF else sample
