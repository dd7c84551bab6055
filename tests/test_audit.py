"""scripts/audit.py, with stand-ins for the package index and the advisories; docs/licences.md and the hashes, against constraints.txt."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest
from packaging.markers import Marker

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import audit

PINS = audit.read_pins(audit.CONSTRAINTS)
PAGE = audit.PAGE.read_text(encoding="utf-8")
HASHES = (ROOT / "requirements-hashes.txt").read_text(encoding="utf-8")
NONE = "no known vulnerabilities"

# --- the package index, by pip-audit

STAND_IN = """
import json, os, re, sys
answers = json.loads(os.environ["ANSWERS"])
assert {"--disable-pip", "--no-deps"} <= set(sys.argv)
pins = re.findall(r"(?m)^(.+)==(.+)$", open(sys.argv[sys.argv.index("--requirement") + 1]).read())
assert len(pins) == len(dict(pins)), "pip-audit refuses a package that is named twice"
if answers is None:
    sys.exit("requests.exceptions.ConnectionError: no network")
said = [{"name": n.replace("-", "_"), "version": v, **answers[f"{n}=={v}"]} for n, v in pins if f"{n}=={v}" in answers]
print(json.dumps({"dependencies": said, "fixes": []}))
print("No known vulnerabilities found", file=sys.stderr)
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """What pip-audit is to answer."""
    (tmp_path / "pip_audit.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return lambda answers: monkeypatch.setenv("ANSWERS", json.dumps(answers))


CLEAN = {"vulns": []}
SKIPPED = {"skip_reason": "Dependency not found on PyPI and could not be audited: pillow (13.0.0)"}
KNOWN = {
    "vulns": [
        {"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["9.9"]},
        {"id": "GHSA-3", "aliases": [], "fix_versions": []},
    ]
}


@pytest.mark.parametrize(
    ("kinds", "code", "said"),
    [
        ([CLEAN], 0, f"{len(PINS)} pins were checked: {NONE}"),
        ([SKIPPED], 4, f"NOTHING WAS CHECKED: whether the {len(PINS)} pins have known vulnerabilities is not known"),
        ([None], 4, "NOTHING WAS CHECKED"),
        ([CLEAN, SKIPPED], 4, "WERE NOT CHECKED"),
        ([CLEAN, None], 4, "WERE NOT CHECKED"),
        ([KNOWN], 3, f"{len(PINS)} of {len(PINS)} pins have known vulnerabilities; 0 were not checked"),
        ([CLEAN, KNOWN], 3, "pins have known vulnerabilities; 0 were not checked"),
        ([CLEAN, KNOWN, SKIPPED, None], 3, "pins have known vulnerabilities"),
    ],
)
def test_every_pin_is_found_clean_or_not_checked(kinds, code, said, index, capsys):
    draw = random.Random(len(kinds))
    given = {pin: draw.choice(kinds) for pin in PINS}
    index({"==".join(pin): answer for pin, answer in given.items() if answer})
    found = audit.ask_index(PINS)
    assert set(found.known) == {pin for pin in PINS if given[pin] == KNOWN}
    assert set(found.unchecked) == {pin for pin in PINS if given[pin] in (SKIPPED, None)}
    assert audit.report(PINS, found) == code
    shown = capsys.readouterr().out
    assert said in shown
    assert (NONE in shown) == (code == 0)
    assert ("PYSEC-1, CVE-2: fixed in 9.9\n  GHSA-3: no version is fixed" in shown) == bool(found.known)


def test_without_an_index_nothing_is_said_to_be_safe(index, capsys):
    index(None)
    assert audit.main(["vulnerabilities"]) == 4
    shown = capsys.readouterr().out
    assert f"and {len(PINS) - 5} others: pip-audit: requests.exceptions.ConnectionError: no network" in shown
    assert "NOTHING WAS CHECKED" in shown
    assert NONE not in shown


# --- advisories in a folder


def advise(folder, name="av", days=0, **fields):
    """An advisory in OSV's format, of so many days ago. YAML holds JSON."""
    when = (datetime.now(timezone.utc) - timedelta(days=days)).date()
    affected = {"package": {"ecosystem": "PyPI", "name": fields.pop("affects", name)}}
    advisory = {
        "id": "PYSEC-1",
        "affected": [{**affected, **{key: fields.pop(key) for key in ("ranges", "versions") & fields.keys()}}],
    }
    file = folder / "vulns" / name / "PYSEC-1.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"modified: {when}T10:00:00.5Z\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in {**advisory, **fields}.items())
    )


@pytest.fixture
def whole(tmp_path):
    """A folder that is taken for a whole copy."""
    for name in audit.WELL_KNOWN:
        advise(tmp_path, name, days=99, versions=["0.0.0.1"])
    return tmp_path


def span(**events):
    return [{"type": "ECOSYSTEM", "events": [{what: at} for what, at in events.items()]}]


TWICE = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"fixed": "2.5"}]}]


@pytest.mark.parametrize(
    ("fields", "affected", "others"),
    [
        ({"versions": ["1.0", "2.0.0"]}, ["1.0", "1", "2.0"], ["1.1", "2.0.1"]),
        ({"ranges": span(introduced="0", fixed="18.1.0")}, ["0.1", "17.1.0", "18.0.9"], ["18.1", "18.1.0", "19.0"]),
        ({"ranges": span(introduced="9.2", last_affected="10.0")}, ["9.2", "9.10", "10.0"], ["9.1", "10.0.1", "11"]),
        ({"ranges": span(introduced="3.0")}, ["3.0", "99"], ["2.9", "3.0rc1"]),
        ({"ranges": TWICE}, ["1.0", "2.0", "2.4"], ["1.5", "1.9", "2.5"]),
        ({"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}], "versions": ["1.0"]}, ["1.0"], ["2.0"]),
        ({"versions": ["1.0"], "withdrawn": "2025-01-01T00:00:00Z"}, [], ["1.0"]),
        ({"versions": ["1.0"], "affects": "avl"}, [], ["1.0"]),
        ({"versions": ["1.0"], "affects": "AV"}, ["1.0"], ["2.0"]),
    ],
)
def test_versions_are_affected_as_advisories_say(fields, affected, others, whole):
    advise(whole, **fields)
    pins = [("av", version) for version in (*affected, *others)]
    found = audit.read_advisories(pins, whole)
    assert set(found.known) == {("av", version) for version in affected}
    assert found.unchecked == {}


@pytest.mark.parametrize(("days", "code", "said"), [(29, 0, NONE), (32, 4, "are too old"), (-9, 4, "which is to come")])
def test_old_advisories_say_of_nothing_that_it_is_safe(days, code, said, whole, capsys):
    advise(whole, days=days, versions=["1.0"])  # the newest counts
    assert audit.main(["vulnerabilities", str(whole)]) == code
    shown = capsys.readouterr().out
    assert said in shown
    assert (NONE in shown) == (code == 0)
    assert audit.report([("av", "1.0")], audit.read_advisories([("av", "1.0")], whole)) == 3  # what they know, they know


@pytest.mark.parametrize("lost", [1, len(audit.WELL_KNOWN) - 1])
def test_half_a_copy_says_of_nothing_that_it_is_safe(lost, whole, capsys):
    advise(whole, versions=["1.0"])
    for name in audit.WELL_KNOWN[-lost:]:
        shutil.rmtree(whole / "vulns" / name)
    assert audit.main(["vulnerabilities", str(whole)]) == 4
    shown = capsys.readouterr().out
    assert f"{whole} is no whole copy: it has no advisories of {', '.join(audit.WELL_KNOWN[-lost:])}" in shown
    assert NONE not in shown
    assert audit.report([("av", "1.0")], audit.read_advisories([("av", "1.0")], whole)) == 3


@pytest.mark.parametrize("content", [b"id: [", b"id: x", b"affected: 3", b"\xff", b'affected: [{"package": {}}]'])
def test_a_package_whose_advisory_is_torn_is_not_checked(content, whole, capsys):
    advise(whole, versions=["1.0"])
    (whole / "vulns" / "pillow" / "torn.yaml").write_bytes(content)
    assert audit.main(["vulnerabilities", str(whole)]) == 4
    assert re.search(r"not checked: (pillow==\S+(, )?)+: torn.yaml cannot be read", capsys.readouterr().out)


def test_a_folder_without_advisories_says_nothing(tmp_path, capsys):
    assert audit.main(["vulnerabilities", str(tmp_path)]) == 4
    shown = capsys.readouterr().out
    assert f"{tmp_path} holds no advisories" in shown
    assert NONE not in shown


# --- docs/licences.md


def packages_of_the_page():
    """Its packages, each with version and licence."""
    part = PAGE.partition("<!-- packages -->")[2].partition("<!-- end of packages -->")[0]
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", part, re.MULTILINE)
    return {name: (version, licence) for name, version, licence in rows if name not in ("package", "---")}


def test_the_page_has_what_is_pinned():
    """For the Python and the system that it names, without any of it installed."""
    python, system, machine = re.search(r"^On Python (\S+), (\S+), (\S+):$", PAGE, re.MULTILINE).groups()
    known = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": system.lower(),
        "platform_machine": machine,
    }
    wanted = {}
    for line in audit.CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        pin, _, marker = line.partition(" ; ")
        if not marker or Marker(marker).evaluate(known):
            wanted.update([pin.split("==")])
    assert {name: version for name, (version, _) in packages_of_the_page().items()} == wanted, "make licences"


def installed(name, version):
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def test_the_page_says_what_packages_say():
    """Of what is installed here in the same version; the whole page, where all is."""
    page = packages_of_the_page()
    here = {name: licence for name, (version, licence) in page.items() if installed(name, version)}
    assert "numpy" in page
    assert {name: audit.licence(name) for name in here} == here
    if here.keys() == page.keys():
        for part, lines in (("packages", audit.packages()), ("libraries", audit.inside())):
            assert f"<!-- {part} -->\n\n" + "".join(f"{line}\n" for line in lines) + f"\n<!-- end of {part} -->" in PAGE, (
                "make licences"
            )


def test_the_page_says_what_is_inside_wheels():
    """Of what is installed here in the same version."""
    part = PAGE.partition("<!-- libraries -->")[2]
    rows = re.findall(r"^\| (\S+) \| (.+) \| (lib.+) \|$", part, re.MULTILINE)
    assert ("av", "GPL-2.0-or-later", "libx264 165, libx265 216") in rows
    assert ("decord", "nonfree and unredistributable") in [row[:2] for row in rows]
    for name, (version, _) in packages_of_the_page().items():
        if sys.platform.startswith("linux") and installed(name, version) and f"\n| {name} |" in part:
            stated = [
                (library, licence) for package, licence, names in rows if package == name for library in names.split(", ")
            ]
            assert audit.libraries(name) == sorted(stated)


def test_a_library_whose_licence_is_not_known_is_named(monkeypatch):
    file = importlib.metadata.PackagePath("some.libs/libnew-0123abcd.so.1.2")
    monkeypatch.setattr(audit.importlib.metadata, "files", lambda package: [file])
    with pytest.raises(ValueError, match=r"some carries libnew, and NATIVE in scripts/audit.py has no licence for it: add it"):
        audit.libraries("some")


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: MIT OR Apache-2.0\nLicense: Apache", "MIT OR Apache-2.0"),
        ("License: BSD-3-Clause\nClassifier: License :: OSI Approved :: BSD License", "BSD-3-Clause"),
        ("License: All rights reserved\n  and much more\nClassifier: License :: OSI Approved :: BSD License", "BSD License"),
        ("Classifier: License :: OSI Approved :: MIT License\nClassifier: Typing :: Typed", "MIT License"),
        ("License: BSD 2-CLAUSE LICENSE\n  Copyright of someone", "BSD 2-CLAUSE LICENSE"),
        ("Classifier: Typing :: Typed", "not stated"),
    ],
)
def test_licences_are_read_as_they_are_stated(metadata, licence, tmp_path, monkeypatch):
    folder = tmp_path / "some-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: some\nVersion: 1.0\n{metadata}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert audit.licence("some") == licence


def test_every_file_of_others_has_a_licence():
    """Pictures, films and templates; text and numbers are made here."""
    held = PAGE.partition("## What the repository holds")[2].partition("## What pip installs")[0]
    for path in (ROOT / "samples").iterdir():
        if path.suffix in (".jpg", ".png", ".mp4"):
            assert f"`samples/{path.name}`" in held, path
            assert f"`{path.name}`" in (ROOT / "samples" / "README.md").read_text()
    folder = ROOT / "tests" / "references" / "chat_templates"
    for path in folder.glob("*.jinja"):
        assert path.name.startswith(("qwen", "glm"))
        assert f"`{path.name}`" in (folder / "README.md").read_text(), path
    for path in (ROOT / "tests" / "references").iterdir():
        if path.is_dir() and path.name in ("chat_templates", "checkpoints", "configs", "messages"):
            assert f"`tests/references/{path.name}" in held, path
    for name in ("mmrope", "docs", "samples", "scripts", "tests"):
        assert not [path for path in (ROOT / name).rglob("*") if path.suffix in (".ttf", ".otf", ".woff", ".woff2")], "a font"


# --- hashes


def test_every_pin_has_its_hashes():
    entries = re.findall(r"^(\S.*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", HASHES, re.MULTILINE)
    assert "".join(f"{pin} \\\n{hashes}" for pin, hashes in entries) == HASHES  # and nothing else, such as an index
    assert [pin for pin, _ in entries] == audit.CONSTRAINTS.read_text(encoding="utf-8").splitlines(), "make constraints"
    assert max(Counter(re.findall("[0-9a-f]{64}", HASHES)).values()) == 1


@pytest.mark.parametrize("uv", ["yes", "no"])
@pytest.mark.parametrize("target", ["demo", "test"])
def test_with_hashes_nothing_is_installed_without(target, uv):
    """What would be run in a new clone: every install has hashes, but those of this repository, which fetch nothing."""
    command = ["make", "--dry-run", "--always-make", target, "HASHES=yes", f"UV={uv}"]
    env = {
        key: value for key, value in os.environ.items() if "MAKE" not in key and key != "MFLAGS"
    }  # these tests run in make, too
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    installs = [shlex.split(part, comments=True) for line in lines for part in line.split("&&") if "pip install" in part]
    assert len(installs) >= 2
    for words in installs:
        if "--require-hashes" in words:
            [file] = [words[at + 1] for at, word in enumerate(words) if word == "--requirement"]
            assert file in ("requirements-hashes.txt", "tests/adapters/overlay.txt", ".venv/uv.txt")
        else:
            assert {"--no-deps", "--no-build-isolation"} <= set(words)
            edited = [words[at + 1] for at, word in enumerate(words) if word == "-e"]
            assert [name.partition("[")[0] for name in edited] == [".", "small"]
    assert "--hash=sha256:" in (ROOT / "tests" / "adapters" / "overlay.txt").read_text()


def test_uv_is_installed_by_its_hashes():
    [command] = [line for line in (ROOT / "Makefile").read_text().splitlines() if "> .venv/uv.txt" in line]
    command = command.replace("$$", "$").partition(">")[0]
    [version] = [version for name, version in PINS if name == "uv"]
    shown = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"uv=={version} \\\n    --hash=sha256:")
    assert re.findall(r"^\S+==", shown, re.MULTILINE) == ["uv=="]
    assert shown in HASHES
