"""scripts/gpu.py, dry: the same parts on a CPU, so that it works the minute there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.support import ROOT


def run(*arguments):
    """As on a machine that has nothing but torch, triton and pytest: with the checkout on the path alone."""
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET" and not key.startswith("PYTEST")}
    command = [sys.executable, str(ROOT / "scripts" / "gpu.py"), *arguments]
    return subprocess.run(command, env={**kept, "PYTHONPATH": str(ROOT)}, cwd="/", capture_output=True, text=True, check=False)


def test_a_dry_run_does_all_parts_and_says_so(tmp_path):
    done = run("--dry", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tests"]["exit code"] == 0
    assert " passed" in found["tests"]["summary"][-1]
    cases = {row["case"] for row in found["bench"]}
    assert {"ids, 1 x 1, bfloat16", "tables, 32, float32", "only the tables, 131072"} <= cases
    assert all(row["least"] > 0 for row in found["bench"])
    right, asked = map(sum, zip(*found["model"]["cpu, float32"]["right"].values(), strict=True))
    assert 0.9 * asked <= right <= asked
    assert found["released"]["equal tokens"] == "3 of 3"
    assert set(found["released"]["mmrope"]) == {"prefill, ms", "a token, ms"}
    assert found["seconds"] < 240
    assert (tmp_path / "gpu.md").read_text() in done.stdout
    assert "(A dry run: tiny sizes on a CPU, not for figures.)" in done.stdout


def test_parts_are_named_and_time_that_is_up_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import gpu

    monkeypatch.setattr(sys, "argv", ["gpu.py", "bench", "--dry", "--seconds", "0", "--out", str(tmp_path)])
    assert gpu.main() == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "tests" not in found
    assert {row["what"] for row in found["bench"]} == {"not reached: the time was up"}
    done = run("benches", "--dry")
    assert done.returncode == 2
    assert "there is no part benches; parts are tests, bench, model" in done.stderr


def test_a_failure_is_told_and_counts(tmp_path, monkeypatch):
    """A part that breaks fails the whole, and the others are still done and saved."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import gpu

    def breaks(asked, found, save):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(gpu, "PARTS", {"tests": breaks, "model": lambda asked, found, save: found.update(model="done")})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--out", str(tmp_path)])
    assert gpu.main() == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "broken on purpose" in found["failed"]["tests"]
    assert found["model"] == "done"
    assert "FAILED: tests" in (tmp_path / "gpu.md").read_text()
