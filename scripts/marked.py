"""Tables that scripts write into documents, between two marks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def replace_marked(path: Path, name: str, lines: Iterable[str]) -> None:
    """Puts lines between `<!-- name -->` and `<!-- end of name -->` in a document that has both."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, after = re.split(
        rf"(?<={re.escape(begin)})(?s:.*)(?={re.escape(end)})", path.read_text(encoding="utf-8"), maxsplit=1
    )
    path.write_text(before + "\n" + "".join(f"{line}\n" for line in lines) + "\n" + after, encoding="utf-8")
