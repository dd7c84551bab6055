"""The position code of the upstreams that are installed, found by its source: nothing of them is imported or run.

What is known of it, upstreams.json, is made by scripts/drift.py, which runs the code of each version beside the table's rules.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmrope.positions.families import FAMILIES
from mmrope.positions.rules import SAME_CODE, Family


@dataclass(frozen=True)
class Upstream:
    """Where a package has its position code: files, and the functions there that place, with what these call in the file."""

    package: str
    files: tuple[str, ...]
    functions: str
    """A regular expression of their names."""


_IN_ONE_FILE = "mrope_rope_index"  # SGLang's main file: its code is called by the names of its functions
UPSTREAMS: Mapping[str, Upstream] = MappingProxyType(
    {
        "transformers": Upstream("transformers", ("models/*/modeling_*.py",), "get_rope_index"),
        "vllm": Upstream("vllm", ("model_executor/models/**/*.py", "models/**/*.py"), "get_mrope_input_positions"),
        "sglang": Upstream(
            "sglang",
            (
                f"srt/layers/rotary_embedding/{_IN_ONE_FILE}.py",
                "srt/layers/rotary_embedding/bailing_mrope.py",
                "srt/multimodal/processors/*.py",
            ),
            r"get_rope_index\w*|\w*compute_\w*positions\w*|_compute_\w*position_ids|\w+_get_input_positions_tensor",
        ),
    }
)
NEOMME = ("models/neomme/processing_neomme.py", "_build_position_ids")  # transformers' only family that its processor places
KNOWN: Mapping[str, dict[str, dict[str, Any]]] = MappingProxyType(
    json.loads(Path(__file__).with_name("upstreams.json").read_text(encoding="utf-8"))
)
"""Upstream -> its name of the code -> the `families` that it places, and `rules`: digest -> revision of the table that computes
the same ("" for the reference). Code that places no family of the table has none, and digests alone. `text_row_since` is the
version from which on its model takes a row of text positions, where not all that are known do."""


@dataclass(frozen=True)
class Code:
    """The code of an upstream that places one or more families.

    Example:
        >>> from pathlib import Path
        >>> from mmrope.adapters.upstreams import Code
        >>> code = Code("transformers", "qwen2_vl", Path("modeling_qwen2_vl.py"), digest="0" * 12)
        >>> code.families, code.rule is None  # code of a family that is known, but other code than is known
        (['qwen2_vl'], True)
    """

    upstream: str
    name: str
    """Of the folder or file that it is in, or of the function where a file has several."""
    path: Path
    digest: str

    @property
    def families(self) -> list[str]:
        """The table's names of what it places; empty where there is no row."""
        return KNOWN[self.upstream].get(self.name, {}).get("families", [])

    @property
    def rule(self) -> str | None:
        """The revision that computes the same, "" for the reference; None of code that is not known."""
        return KNOWN[self.upstream].get(self.name, {}).get("rules", {}).get(self.digest)


def installed(upstream: str) -> tuple[str, Path] | None:
    """The version of an upstream and its folder; None where it is not installed."""
    package = UPSTREAMS[upstream].package
    found = util.find_spec(package)
    if found is None or not found.submodule_search_locations or found.origin is None:  # a folder of that name is no package
        return None
    try:
        return metadata.version(package), Path(found.submodule_search_locations[0])
    except metadata.PackageNotFoundError:
        return None


def codes(upstream: str, folder: Path) -> Iterator[Code]:
    """All position code of an upstream, of its package's folder."""
    place = UPSTREAMS[upstream]
    for path in sorted(path for files in place.files for path in folder.glob(files)):
        source = path.read_text(encoding="utf-8")
        for function in sorted(set(re.findall(rf"def ({place.functions})\(", source))):
            if digest := digest_of(source, function, path.parent):
                yield Code(upstream, _name(upstream, path, function), path, digest)
    path, function = folder / NEOMME[0], NEOMME[1]
    if upstream == "transformers" and path.exists() and (digest := digest_of(path.read_text(encoding="utf-8"), function)):
        yield Code(upstream, path.parent.name, path, digest)


def _name(upstream: str, path: Path, function: str) -> str:
    """What code is called: its folder, its file below `models`, or its function."""
    if upstream == "transformers":
        return path.parent.name
    if upstream == "vllm":
        parts = path.with_suffix("").parts
        return "/".join(parts[len(parts) - parts[::-1].index("models") :])
    return function if path.stem == _IN_ONE_FILE else f"{path.stem}.{function}"


def families_of_code(upstream: str) -> dict[str, list[str]]:
    """What is known of an upstream: its code -> the families that it places, where there are any."""
    return {name: known["families"] for name, known in KNOWN[upstream].items() if known["families"]}


def takes_text_row(family: Family) -> bool:
    """Whether a family's models in the installed transformers take a row of text positions in front of their ids."""
    there, since = installed("transformers"), KNOWN["transformers"].get(family.name, {}).get("text_row_since")
    older = there is not None and since is not None and _release(there[0]) < _release(since)
    return len(family.axes) == 3 and not older


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def revision(upstream: str = "transformers") -> str:
    """The revision of the table that the installed upstream's code is: by its version, or where that is not known, by its code.

    Raises:
        ValueError: it is not installed, or has code that is not known.

    Example:
        >>> from mmrope.adapters.upstreams import revision
        >>> revision("transformers").startswith("transformers-")
        True
    """
    found = installed(upstream)
    if found is None:
        raise ValueError(f"{upstream} is not installed")
    version, folder = found
    stated = f"{upstream}-{'.'.join(version.split('.')[:2])}"
    stated = SAME_CODE.get(stated, stated)
    if any(row.revision == stated for row in FAMILIES.values()):
        return stated
    mine = list(codes(upstream, folder))
    changed = {code.name for code in mine if code.families and code.rule is None}
    changed |= families_of_code(upstream).keys() - {code.name for code in mine}  # it is elsewhere, or gone
    rules = {code.rule for code in mine if code.rule}
    if changed or len(rules) != 1:
        what = f"places {', '.join(sorted(changed))} by code that is not" if changed else "has no position code that is"
        raise ValueError(f"{upstream} {version} {what} known: scripts/drift.py shows what it computes")
    return rules.pop()


# --- normalised source ------------------------------------------------------------------------------------------------


def digest_of(source: str, function: str, folder: Path | None = None) -> str:
    """Of a function of a file and all that it calls there, without documentation and annotations; "" if it is not there. With a
    folder, also of what it calls of the other files there."""
    blocks: dict[str, str] = {}
    for found in re.finditer(r"^(?:class|def) (\w+)\b.*(?:\n(?:[ )#].*)?)*", source, re.MULTILINE):
        blocks.setdefault(found[1], found[0])
    methods: dict[str, ast.AST] = {}
    for name, text in blocks.items():
        if text.startswith("class") and re.search(rf"^    def {function}\(", text, re.MULTILINE) and "Talker" not in name:
            [node] = ast.parse(text).body
            assert isinstance(node, ast.ClassDef)
            methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
            break
    todo, found = [function], {}
    while todo:
        name = todo.pop()
        node = methods.get(name)
        if node is None and blocks.get(name, "").startswith("def"):
            [node] = ast.parse(blocks[name]).body
        if node is None or name in found:
            continue
        found[name] = _shape(node)
        for each in ast.walk(node):
            if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
                todo.append(each.attr)
                if folder is not None and (other := _imported(source, each.value.id, folder)):
                    found[f"{each.value.id}.{each.attr}"] = digest_of(other, each.attr)
            elif isinstance(each, ast.Name):
                todo.append(each.id)
                if folder is not None and each.id not in blocks and (other := _imported(source, each.id, folder)):
                    found[each.id] = digest_of(other, each.id)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:12] if function in found else ""


def _imported(source: str, name: str, folder: Path) -> str:
    """The source of the file beside this one that a name is imported from; empty if it is of another place."""
    for module, names in re.findall(r"^from \.?[\w.]*?\.?(\w+) import (\([^)]*\)|.*)$", source, re.MULTILINE):
        if re.search(rf"\b{name}\b", names) and (path := folder / f"{module}.py").is_file():
            return path.read_text(encoding="utf-8")
    return ""


_LEFT_OUT = ("ctx", "annotation", "returns", "decorator_list", "type_comment", "type_params", "kind")


def _shape(node: Any) -> Any:
    """A syntax tree as plain lists, alike in all versions of Python."""
    if isinstance(node, list):
        return [_shape(each) for each in node]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in _LEFT_OUT and value not in (None, [])]
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
        fields = [(name, value[1:] if name == "body" else value) for name, value in fields]
    return [type(node).__name__, *((name, _shape(value)) for name, value in fields)]
