"""docs/lab.md: a section for every experiment of the lab, from its results in scripts/results/lab.

    mmrope lab run NAME --out scripts/results/lab
    python scripts/write_lab.py

Tables and figures are of the files; what is said of them stands between others' marks and is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reports import replace_marked

from mmrope.lab import experiments
from mmrope.lab.harness import Experiment, results_of
from mmrope.lab.report import plot, table
from mmrope.view.figure import save

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "lab.md", ROOT / "scripts" / "results" / "lab"


def section(experiment: Experiment) -> Iterator[str]:
    """What was asked, how, what came out, and what has been reported."""
    results = results_of(RESULTS / f"{experiment.name}.json")
    figure = PAGE.parent / f"lab-{experiment.name}.png"
    save(plot(experiment, results), figure)
    yield f"**{experiment.question}** {experiment.setting}"
    yield ""
    yield f"![{experiment.question}]({figure.name})"
    yield ""
    yield from table(experiment, results)
    yield ""
    yield f"*Reported:* {experiment.paper}"


def main() -> None:
    for experiment in experiments():
        replace_marked(PAGE, experiment.name, section(experiment))


if __name__ == "__main__":
    main()
