"""`python -m mmrope`, and the command `mmrope`, which says what to install where typer is missing."""

from __future__ import annotations

import sys

from mmrope.extras import needed_for


def main() -> None:
    """Runs the command line."""
    try:
        with needed_for("the command line"):
            from mmrope.cli import app
    except ImportError as error:
        print(f"mmrope: {error}", file=sys.stderr)
        sys.exit(2)
    app(prog_name="mmrope")


if __name__ == "__main__":
    main()
