"""What is built for the package index: the wheel and the source of mmrope, and the wheel of the small model."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser

import pytest

import mmrope
from tests.support import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    for project, targets in ((ROOT, ["wheel", "sdist"]), (ROOT / "small", ["wheel"])):
        for target in targets:
            subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder], cwd=project, check=True)
    return folder


def metadata(wheel):
    with zipfile.ZipFile(wheel) as file:
        [name] = [name for name in file.namelist() if name.endswith("/METADATA")]
        return Parser().parsestr(file.read(name).decode())


def test_the_wheel_is_the_code_alone(built):
    [wheel] = built.glob("mmrope-*.whl")
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    code = {path for suffix in ("*.py", "*.pyi", "py.typed") for path in (ROOT / "mmrope").rglob(suffix)}
    assert {path.relative_to(ROOT).as_posix() for path in code} <= packed
    assert {name.rpartition(".")[2] for name in packed} <= {"py", "pyi", "typed", "html", "json"}


def test_the_source_has_its_tests(built):
    [sdist] = built.glob("mmrope-*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for folder in ("mmrope", "tests", "samples", "docs"):
        here = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {name for name in here if "__pycache__" not in name} <= names
    others = {"Makefile", "constraints.txt", "requirements-hashes.txt", "pyproject.toml", "SECURITY.md", "CITATION.cff"}
    assert {*others, "LICENSE", "NOTICE"} <= names
    assert not [name for name in names if name.endswith(".safetensors")]


def test_numpy_alone_is_required(built):
    [wheel] = built.glob("mmrope-*.whl")
    required = [line for line in metadata(wheel).get_all("Requires-Dist") if "extra ==" not in line]
    assert [re.match(r"\w+", line)[0] for line in required] == ["numpy"]


@pytest.mark.parametrize("package", ["mmrope", "mmrope_small"])
def test_its_page_is_whole(package, built):
    """The index shows the description alone: a picture or a link that is relative leads nowhere there."""
    [wheel] = built.glob(f"{package}-*.whl")
    said = metadata(wheel)
    text = said.get_payload()
    assert len(text) > 1000
    assert not re.findall(r"\]\((?!https://)[^)]*\)|(?:src|href)=\"(?!https://)", text)
    assert said["Description-Content-Type"] == "text/markdown"
    assert said["Author"] == "The mmrope authors"
    assert said["License-Expression"] == "Apache-2.0"
    assert [url for url in said.get_all("Project-URL") if url == "Homepage, https://github.com/mmrope/mmrope"]


@pytest.mark.parametrize(("package", "files"), [("mmrope", {"LICENSE", "NOTICE"}), ("mmrope_small", {"LICENSE"})])
def test_its_licence_comes_with_it(package, files, built):
    [wheel] = built.glob(f"{package}-*.whl")
    assert set(metadata(wheel).get_all("License-File")) == files
    with zipfile.ZipFile(wheel) as file:
        packed = {name.partition(".dist-info/licenses/")[2]: file.read(name) for name in file.namelist()}
    folder = ROOT if package == "mmrope" else ROOT / "small"
    assert {name: packed[name] for name in files} == {name: (folder / name).read_bytes() for name in files}


def test_the_small_model_is_whole(built):
    [wheel] = built.glob("mmrope_small-*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = {name.partition("/")[2] for name in file.namelist() if name.startswith("mmrope_small/")}
    assert {"__init__.py", "config.json", "processor_config.json", "model.safetensors", "manifest.json", "README.md"} <= names
    assert wheel.stat().st_size < 10_000_000


def test_the_citation_has_the_version():
    assert f"version: {mmrope.__version__}\n" in (ROOT / "CITATION.cff").read_text()
