"""Whatever the damage, a file is opened or refused with a MediaError; scripts/fuzz_media.py tries many more."""

from __future__ import annotations

import os
import time

import pytest

from tests.support import cases
from tests.support.mutants import (
    AFTER_IMPORTS,
    BATCH,
    MEGABYTES,
    image_seeds,
    megabytes,
    mended,
    mutants,
    tried,
    verdict,
    video_seeds,
)

SEEDS = {"images": image_seeds, "videos": video_seeds}


def findings(*arguments, **options):
    return list(tried(*arguments, **options))[-1][1]


@pytest.mark.parametrize(("kind", "number"), [("images", cases(3_000)), ("videos", cases(300))])
def test_mutants_are_opened_or_refused(kind, number):
    seeds = SEEDS[kind]()
    found = findings(mutants(seeds, 0, number), kind)
    assert [(name, how) for name, _, how in found.broken] == []
    assert sum(counts.total() for counts in found.counts.values()) == number
    assert set(found.counts) == set(seeds)
    assert 0 < found.megabytes < MEGABYTES
    for name, counts in found.counts.items():
        assert counts["refused"], name
    opened = sum(counts["opened"] for counts in found.counts.values())
    assert number // 10 < opened < number * 9 // 10  # the damage goes deep, and is there


@pytest.mark.parametrize("kind", SEEDS)
def test_seeds_are_sound_and_mutants_are_known_by_number(kind, tmp_path):
    seeds = SEEDS[kind]()
    for name, content in seeds.items():
        assert verdict(name, content, str(tmp_path / "seed")) == ("opened", ""), name
    first = list(mutants(seeds, 3, 120))
    assert first == list(mutants(seeds, 3, 120))
    assert first[50:] == list(mutants(seeds, 3, 120, 50))
    assert first != list(mutants(seeds, 4, 120))
    assert sum(content not in seeds.values() for _, content in first) > 110


def test_checksums_are_mended():
    content = image_seeds()["png"]
    damaged = bytearray(content)
    damaged[20] ^= 1  # of the height
    assert mended(bytearray(content)) == content
    assert mended(damaged)[:29] == damaged[:29]
    assert mended(damaged)[29:33] != damaged[29:33]
    assert mended(damaged)[33:] == content[33:]
    assert mended(bytearray(b"\x89PNG")) == b"\x89PNG"


# --- what breaks the law is found -------------------------------------------------------------------------------------


def bad_judge(batch):
    """One that some files kill, stop or burden."""
    for _, content in batch[1]:
        if content == b"crash":
            os.abort()
        if content == b"hang":
            time.sleep(1000)
        if content == b"burden":
            bytearray(2 << 30)
    return [("bug", "how") if content == b"bug" else ("opened", "") for _, content in batch[1]], megabytes() - AFTER_IMPORTS


@pytest.mark.parametrize("kind", SEEDS)
def test_who_breaks_the_law_is_named(kind):
    bad = {10: b"crash", 20: b"hang", 30: b"bug", 31: b"burden"}
    number = 40 if kind == "videos" else BATCH["images"] + 40
    files = [(f"file {n}", bad.get(n, b"sound")) for n in range(number)]
    found = findings(files, kind, judge=bad_judge, seconds=1.5)
    assert [(name, content, how.split(":")[0]) for name, content, how in found.broken] == [
        ("file 10", b"crash", "crash"),
        ("file 20", b"hang", "timeout"),
        ("file 30", b"bug", "bug"),
        ("file 31", b"burden", "memory"),
    ]
    assert sum(counts["opened"] for counts in found.counts.values()) == number - 4


def test_verdicts(monkeypatch, tmp_path):
    from tests.support import mutants as module

    path = str(tmp_path / "file")
    assert verdict("png", b"junk", path) == ("refused", "")
    monkeypatch.setattr(module, "load_image", lambda source, **options: 1 / 0)
    what, how = verdict("png", b"junk", path)
    assert what == "bug"
    assert how.endswith("ZeroDivisionError: division by zero\n")
    monkeypatch.undo()
    real = module.load_image
    monkeypatch.setattr(module, "load_image", lambda source, **options: real(source, **options) ^ isinstance(source, bytes))
    assert verdict("png", image_seeds()["png"], path) == ("bug", "other pixels from the path than from the bytes, by image")
