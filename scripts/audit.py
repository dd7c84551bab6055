"""What comes with mmrope: licences of packages and of the libraries inside their wheels, and known vulnerabilities of the pins.

    python scripts/audit.py licences                 writes the tables of docs/licences.md from what is installed
    python scripts/audit.py vulnerabilities          asks the package index, by pip-audit
    python scripts/audit.py vulnerabilities FOLDER   offline: FOLDER is a copy of github.com/pypa/advisory-database

`vulnerabilities` exits with 0 if every pin of constraints.txt was checked and none has a known vulnerability, with 3 if one
has, and with 4 if a pin could not be checked: then it does not say that there are none. `make audit` does both.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, canonicalize_version
from packaging.version import InvalidVersion, Version
from reports import replace_marked, row

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
PAGE = ROOT / "docs" / "licences.md"
FOUND, UNCHECKED = 3, 4
FRESH = timedelta(days=30)
"""Advisories that end earlier know too little of today's versions to say that there is nothing."""
WELL_KNOWN = (
    "aiohttp",
    "certifi",
    "django",
    "flask",
    "jinja2",
    "numpy",
    "pillow",
    "requests",
    "tensorflow",
    "urllib3",
    "werkzeug",
)
"""Packages, from all over the alphabet, that have advisories in every whole copy."""

Pin = tuple[str, str]
"""A package and its version."""

NATIVE = {
    "libSvtAv1Enc": "BSD-3-Clause-Clear, with the patent licence of AOM",
    "libXau": "MIT",
    "libasound": "LGPL-2.1-or-later",
    "libavif": "BSD-2-Clause",
    "libbrotlicommon": "MIT",
    "libbrotlidec": "MIT",
    "libbz2": "bzip2-1.0.6",
    "libdav1d": "BSD-2-Clause",
    "libde265": "LGPL-3.0-or-later",
    "libdrm": "MIT",
    "libfreetype": "FTL OR GPL-2.0-or-later",
    "libgfortran": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libgmp": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libgnutls": "LGPL-2.1-or-later",
    "libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libharfbuzz": "MIT",
    "libheif": "LGPL-3.0-or-later",
    "libhogweed": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libjpeg": "IJG AND BSD-3-Clause AND Zlib",
    "liblcms2": "MIT",
    "liblzma": "0BSD",
    "libmp3lame": "LGPL-2.0-or-later",
    "libnettle": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libopencore": "Apache-2.0",
    "libopenjp2": "BSD-2-Clause",
    "libopus": "BSD-3-Clause",
    "libpng16": "libpng-2.0",
    "libquadmath": "LGPL-2.1-or-later",
    "libscipy_openblas": "BSD-3-Clause",
    "libscipy_openblas64_": "BSD-3-Clause",
    "libsharpyuv": "BSD-3-Clause",
    "libtiff": "libtiff",
    "libunistring": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libvmaf": "BSD-2-Clause-Patent",  # av 19
    "libvpl": "MIT",
    "libvpx": "BSD-3-Clause",
    "libwebp": "BSD-3-Clause",
    "libwebpdemux": "BSD-3-Clause",
    "libwebpmux": "BSD-3-Clause",
    "libx264": "GPL-2.0-or-later",
    "libx265": "GPL-2.0-or-later",
    "libxcb": "MIT",
    "libz": "Zlib",
    "libzstd": "BSD-3-Clause OR GPL-2.0-only",
}
"""Libraries that wheels carry -> their licences, which no wheel states for all of them: as each project states them itself."""

FFMPEG = {
    f"lib{name}" for name in ("avcodec", "avdevice", "avfilter", "avformat", "avutil", "postproc", "swresample", "swscale")
}
"""Libraries that say their licence themselves."""


# --- vulnerabilities


@dataclass
class Findings:
    """What is known of the pins. A pin that is in neither was checked, and nothing is known of it."""

    known: dict[Pin, list[str]] = field(default_factory=dict)
    """Identifiers, each with the versions that fix it."""
    unchecked: dict[Pin, str] = field(default_factory=dict)
    """Why nothing can be said."""


def read_pins(path: Path) -> list[Pin]:
    """Every pin, for whichever Python and system it is."""
    return [
        (match[1], match[2]) for match in re.finditer(r"^([\w.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def ask_index(pins: list[Pin]) -> Findings:
    """By pip-audit. It says "No known vulnerabilities found" of what it could not look up, too: answers are read pin by pin."""
    rounds: list[dict[str, str]] = []  # a package has several pins, for several Pythons, and may be named once in a file
    for name, version in pins:
        names = next((names for names in rounds if name not in names), None)
        if names is None:
            rounds.append(names := {})
        names[name] = version
    found = Findings()
    for names in rounds:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pins.txt"
            file.write_text("".join(f"{name}=={version}\n" for name, version in names.items()), encoding="utf-8")
            options = ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]
            command = [sys.executable, "-m", "pip_audit", "--requirement", str(file), *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            answers = {canonicalize_name(answer["name"]): answer for answer in json.loads(done.stdout)["dependencies"]}
        except json.JSONDecodeError:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            found.unchecked |= dict.fromkeys(names.items(), f"pip-audit: {last}")
            continue
        for pin in names.items():
            answer = answers.get(canonicalize_name(pin[0]), {"skip_reason": "no answer"})
            if "vulns" not in answer:
                found.unchecked[pin] = re.sub(r": \S+ \(\S+\)$", "", answer["skip_reason"])
            elif answer["vulns"]:
                found.known[pin] = [_said(entry["id"], entry["aliases"], entry["fix_versions"]) for entry in answer["vulns"]]
    return found


def read_advisories(pins: list[Pin], folder: Path) -> Findings:
    """From advisories in OSV's format, `vulns/<package>/<id>.yaml`. What they name is known; a copy that is older than
    FRESH, or not whole, says of nothing that it is safe."""
    import yaml

    found = Findings()
    for name, version in pins:
        for file in sorted((folder / "vulns" / canonicalize_name(name)).glob("*.yaml")):
            try:
                advisory = yaml.safe_load(file.read_text(encoding="utf-8"))
                entries = [
                    each
                    for each in advisory["affected"]
                    if canonicalize_name(each["package"]["name"]) == canonicalize_name(name)
                ]
                if "withdrawn" not in advisory and any(_is_affected(version, entry) for entry in entries):
                    fixes = [event["fixed"] for entry in entries for event in _events(entry) if "fixed" in event]
                    said = _said(advisory["id"], advisory.get("aliases", []), fixes)
                    found.known.setdefault((name, version), []).append(said)
            except (yaml.YAMLError, InvalidVersion, KeyError, TypeError, UnicodeDecodeError) as error:
                found.unchecked[name, version] = f"{file.name} cannot be read: {type(error).__name__}"
    if why := _tells_nothing(folder):
        found.unchecked |= dict.fromkeys(pins, why)
    found.unchecked = {pin: why for pin, why in found.unchecked.items() if pin not in found.known}
    return found


def _tells_nothing(folder: Path) -> str:
    """Why what a folder of advisories does not name may have vulnerabilities; empty if it is a whole copy of these days."""
    files = folder.glob("vulns/*/*.yaml")
    dates = [match[1] for file in files if (match := _MODIFIED.search(file.read_text("utf-8", "replace")))]
    now = datetime.now(timezone.utc)
    if not dates:
        return f"{folder} holds no advisories (vulns/<package>/<id>.yaml)"
    if lacks := [name for name in WELL_KNOWN if not any((folder / "vulns" / name).glob("*.yaml"))]:
        return f"{folder} is no whole copy: it has no advisories of {', '.join(lacks)}"
    if (newest := max(dates)) > f"{now + timedelta(days=1):%Y-%m-%d}":
        return f"{folder} has advisories of {newest}, which is to come"
    if newest < f"{now - FRESH:%Y-%m-%d}":
        return f"advisories up to {newest} do not name it, and are too old to say that there is nothing"
    return ""


_MODIFIED = re.compile(r"^modified: '?\"?(\d{4}-\d\d-\d\d)", re.MULTILINE)


def _events(entry: dict) -> Iterator[dict[str, str]]:
    for span in entry.get("ranges", []):
        if span["type"] == "ECOSYSTEM":
            yield from span["events"]


def _is_affected(version: str, entry: dict) -> bool:
    """By the list of versions, or by the latest event at or before the version."""
    if canonicalize_version(version) in map(canonicalize_version, entry.get("versions", [])):
        return True
    events = [(Version(said), what) for event in _events(entry) for what, said in event.items()]
    affected = False
    for at, what in sorted(events):
        if what == "introduced" and Version(version) >= at:
            affected = True
        elif (what == "fixed" and Version(version) >= at) or (what == "last_affected" and Version(version) > at):
            affected = False
    return affected


def _said(name: str, aliases: list[str], fixes: list[str]) -> str:
    names = ", ".join([name, *sorted(aliases)])
    return f"{names}: fixed in {', '.join(fixes)}" if fixes else f"{names}: no version is fixed"


def report(pins: list[Pin], found: Findings) -> int:
    """Prints what was found, and returns the exit code."""
    checked = len(pins) - len(found.unchecked)
    for (name, version), known in found.known.items():
        print(f"{name}=={version}", *known, sep="\n  ")
    reasons = defaultdict(list)
    for (name, version), reason in found.unchecked.items():
        reasons[reason].append(f"{name}=={version}")
    for reason, names in reasons.items():
        print(f"not checked: {', '.join(names[:5])}{f' and {len(names) - 5} others' if len(names) > 5 else ''}: {reason}")
    if found.known:
        print(f"{len(found.known)} of {len(pins)} pins have known vulnerabilities; {len(found.unchecked)} were not checked")
    elif not checked:
        print(f"NOTHING WAS CHECKED: whether the {len(pins)} pins have known vulnerabilities is not known")
    elif found.unchecked:
        print(f"of {checked} pins none is known, and {len(found.unchecked)} of {len(pins)} WERE NOT CHECKED")
    else:
        print(f"{len(pins)} pins were checked: no known vulnerabilities")
    print(
        "Libraries inside wheels (FFmpeg, libheif, libtiff, ...) are in no such list: SECURITY.md says what is known of them."
    )
    return FOUND if found.known else UNCHECKED if found.unchecked else 0


# --- licences


def licence(package: str) -> str:
    """As the metadata of an installed package states it: an SPDX expression, a name, classifiers, or how its text begins."""
    metadata = importlib.metadata.metadata(package)
    stated, name = ("".join(metadata.get_all(key) or []).strip() for key in ("License-Expression", "License"))
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    if stated or (name and "\n" not in name and len(name) < 60):
        return stated or name
    return "; ".join(classifiers) or name.partition("\n")[0].strip() or "not stated"


def brought_by(extra: str) -> set[str]:
    """The packages that `mmrope[extra]` pulls in here, without mmrope itself; `""` is no extra."""
    found, todo = set(), [("mmrope", extra)]
    while todo:
        if (package := todo.pop()) not in found:
            found.add(package)
            for line in importlib.metadata.requires(package[0]) or []:
                wanted = Requirement(line)
                if not wanted.marker or wanted.marker.evaluate({"extra": package[1]}):
                    todo += [(canonicalize_name(wanted.name), extra) for extra in ("", *wanted.extras)]
    return {name for name, _ in found} - {"mmrope"}


def libraries(package: str) -> list[tuple[str, str]]:
    """The shared libraries that a wheel for Linux carries beside its own code, with the version in the file's name, and their
    licences.

    Raises:
        ValueError: a library whose licence NATIVE does not say.
    """
    found = set()
    for file in importlib.metadata.files(package) or []:
        if file.parent.name.endswith(".libs"):
            name, _, version = file.name.partition(".so")
            name = re.sub(r"(-[0-9a-f]{8})+$", "", name)  # put there by who made the wheel
            if not (stated := ffmpeg(package)[0] if name in FFMPEG else NATIVE.get(name.partition("-")[0])):
                raise ValueError(f"{package} carries {name}, and NATIVE in scripts/audit.py has no licence for it: add it")
            found.add((f"{name} {version.strip('.')}".strip(), stated))
    return sorted(found)


def ffmpeg(package: str) -> tuple[str, str]:
    """What the FFmpeg in a wheel says of itself: its licence, and how it was configured. Read, and not run."""
    for file in importlib.metadata.files(package) or []:
        if re.search(r"/libavutil[-.]", str(file)):
            code = Path(str(file.locate())).read_bytes()
            said = re.search(rb"libavutil license: ([ -~]+)", code)
            options = re.search(rb"--(?:prefix|disable|enable)[ -~]{60,}", code)
            if said and options:
                return said[1].decode(), options[0].decode()
    raise ValueError(f"{package} carries an FFmpeg that does not say its licence")


def packages() -> Iterator[str]:
    """What each extra pulls in, in tables: a package with the first extra that needs it."""
    yield f"On Python {sys.version_info[0]}.{sys.version_info[1]}, {platform.system()}, {platform.machine()}:"
    seen = set()
    for extra, names in _extras():
        if new := sorted(names - seen):
            yield from ("", f"### `mmrope[{extra}]`" if extra else "### `mmrope` alone", "")
            yield row("package", "version", "licence, as its metadata states it")
            yield row(*["---"] * 3)
            yield from (row(name, importlib.metadata.version(name), licence(name)) for name in new)
        seen |= names


def inside() -> Iterator[str]:
    """What the wheels of users' extras carry inside, in a table, and how their FFmpegs were made."""
    names = sorted(set().union(*(names for extra, names in _extras() if extra != "dev")))
    yield row("wheel", "licence", "libraries, with the version of their interface")
    yield row(*["---"] * 3)
    for package in names:
        by_licence = defaultdict(list)
        for library, stated in libraries(package):
            by_licence[stated].append(library)
        yield from (row(package, stated, ", ".join(found)) for stated, found in sorted(by_licence.items()))
    for package in names:
        if any(library.startswith("libavutil ") for library, _ in libraries(package)):
            yield from ("", f"The FFmpeg in {package} {importlib.metadata.version(package)} was configured with", "", "```")
            yield from (" ".join(re.findall(r"--enable-\S+", ffmpeg(package)[1])), "```")


def _extras() -> list[tuple[str, set[str]]]:
    """Extras with their packages: one that another includes comes before it, what is for development last."""
    named = importlib.metadata.metadata("mmrope").get_all("Provides-Extra") or []
    found = [(extra, brought_by(extra)) for extra in ("", *named) if extra not in ("all", "test")]
    return sorted(found, key=lambda item: (item[0] == "dev", len(item[1]), item[0]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("licences", help="write docs/licences.md")
    commands.add_parser("vulnerabilities", help="of the pins").add_argument("advisories", nargs="?", type=Path)
    asked = parser.parse_args(arguments)
    if asked.command == "licences":
        if not sys.platform.startswith("linux"):
            raise ValueError("docs/licences.md is made on Linux, whose wheels state the libraries inside them")
        replace_marked(PAGE, "packages", packages())
        replace_marked(PAGE, "libraries", inside())
        return 0
    pins = read_pins(CONSTRAINTS)
    return report(pins, read_advisories(pins, asked.advisories) if asked.advisories else ask_index(pins))


if __name__ == "__main__":
    sys.exit(main())
