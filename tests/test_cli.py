"""`mmrope ids`, as a shell runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from films import film
from PIL import Image

from mmrope import FAMILIES, Segment, position_ids

MMROPE = [sys.executable, "-c", "from mmrope.cli import app; app(prog_name='mmrope')"]


def mmrope(*arguments, cwd=None):
    return subprocess.run([*MMROPE, *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=cwd, check=False)


def test_sizes_alone():
    done = mmrope("ids", "text", "--image", "16x24", "--video", "8x16x24@2fps")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "qwen2_5_vl: 3464 tokens, text goes on at 56",
        "tokens     kind   grid                    t       h       w       next  content",
        "0..4       text   5                       0..4    0..4    0..4    5     text<|vision_start|>",
        "5..388     image  16 x 24                 5       5..20   5..28   29",
        "389..390   text   2                       29..30  29..30  29..30  31    <|vision_end|><|vision_start|>",
        "391..3462  video  8 x 16 x 24, 1 s apart  31..45  31..46  31..54  55",
        "3463       text   1                       55      55      55      56    <|vision_end|>",
        "",
        "text counts a token a byte",
    ]


def test_sizes_need_neither_torch_nor_media_libraries():
    code = (
        "import sys; from mmrope.cli import app; app(['ids', 'text', '--image', '16x24', '--video', '8x2x2@2fps'], standalone_mode=False);"
        "print(sorted({'torch', 'torchvision', 'PIL', 'av', 'decord', 'matplotlib', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_options_keep_their_place_among_the_parts():
    done = mmrope(
        "ids", "--json", "--image=4x6", "one", "--video", "8x2x2@2fps", "two", "--family", "qwen2_vl@transformers-5.23"
    )
    found = json.loads(done.stdout)
    assert [item["kind"] for item in found["segments"]] == ["text", "image", "text", "video", "text"]
    assert [item["label"] for item in found["segments"]][2::2] == [
        "<|vision_end|>one<|vision_start|>",
        "<|vision_end|>two",
    ]
    row = [Segment.text(1), Segment.image(h=4, w=6), Segment.text(5), Segment.video(t=8, h=2, w=2), Segment.text(4)]
    expected = position_ids(row, "qwen2_vl@transformers-5.23")
    assert found["position_ids"] == expected.ids[:, 0].tolist()
    assert found["next"] == expected.next[0]
    assert found["family"] == "qwen2_vl@transformers-5.23"
    assert found["segments"][3] == {
        "kind": "video",
        "label": "",
        "start": 30,
        "length": 32,
        "grid": [8, 2, 2],
        "seconds_per_grid": 1.0,
        "ids": {"t": [12, 19], "h": [12, 13], "w": [12, 13]},
        "next": 14,
    }


def test_files_that_are_nowhere_in_the_repository(tmp_path):
    Image.fromarray(np.zeros((112, 168, 3), np.uint8)).save(tmp_path / "my photo.png")
    film(tmp_path / "clip.mp4", [40 * n for n in range(100)])
    for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        done = mmrope(
            "ids",
            "Describe",
            "my photo.png",
            "then",
            "clip.mp4",
            "and compare.",
            "--family",
            name,
            "--figure",
            "new/ids.png",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert ("image  7 x 10" if name == "qwen3_vl" else "image  4 x 6") in done.stdout  # Qwen3-VL looks at more pixels
        assert "my photo.png" in done.stdout
        assert ("frame" if name == "qwen3_vl" else "video") in done.stdout
        assert "<|vision_end|>and compare." in done.stdout
        side = 16 if name == "qwen3_vl" else 14
        assert done.stdout.endswith(f"files are cut into {side} x {side} pixel patches, as by {name}'s processor\n")
        assert done.stderr.strip() == "wrote new/ids.png"
        with Image.open(tmp_path / "new" / "ids.png") as figure:
            assert figure.size > (1000, 300)
        (tmp_path / "new" / "ids.png").unlink()


def test_long_texts_are_texts():
    words = "Please describe this. " * 300
    done = mmrope("ids", words)
    assert done.returncode == 0, done.stderr
    assert f"text  {len(words)} " in done.stdout
    assert json.loads(mmrope("ids", words, "--json").stdout)["segments"][0]["label"] == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ids", "a", "--image", "30000x30000"],
            "mmrope ids: grid 30000x30000 states 900,000,000 tokens, the limit is 128,000",
        ),
        (["ids", "a", "--figure", "/proc/none/ids.png"], "mmrope ids: [Errno"),
        (["ids", "a", "nothing.jpg"], "mmrope ids: nothing.jpg: no such file"),
        (["ids", "a", "--image", "4"], "mmrope ids: --image takes the size in tokens, as in 16x24, got '4'"),
        (["ids", "a", "--image", "0x3"], "mmrope ids: grid is the size in tokens (h, w), got"),
        (
            ["ids", "a", "--video", "2x2x2"],
            "mmrope ids: --video takes the size in tokens and the sampled frames a second, as in 8x16x24@2fps",
        ),
        (["ids", "a", "--family", "qwen25_vl"], "mmrope ids: unknown family 'qwen25_vl'. Did you mean 'qwen2_5_vl'?"),
        (["ids", "a", "--image"], "Option '--image' requires an argument"),
        (["ids"], "Missing argument"),
        (["ids", "notes.txt"], "mmrope ids: notes.txt is a file, but not of a known kind"),
    ],
)
def test_mistakes_are_said_in_a_line(arguments, message, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    done = mmrope(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_families_are_listed_with_their_sources():
    done = mmrope("families")
    assert done.returncode == 0, done.stderr
    for key, row in FAMILIES.items():
        assert (f"\n  @{row.revision} " if row.revision else f"{key} ") in done.stdout
        assert f" {row.source}\n" in done.stdout
    assert "  @transformers-4.57  padding carries 1; time ids are" not in done.stdout
    assert "  @transformers-4.57  time ids are i * floor(seconds) * ids_per_second; padding carries 1\n" in done.stdout
    assert "  @transformers-5.23  the same ids\n" in done.stdout


@pytest.mark.parametrize("name", sorted({row.name for row in FAMILIES.values()} - {"v2pe"}))  # whose stride only users know
def test_sizes_are_placed_by_every_family(name):
    done = json.loads(mmrope("ids", "--json", "text", "--image=4x6", "--family", name).stdout)
    assert [item["kind"] for item in done["segments"]][1] == ("canvas" if name == "minicpmv4_7" else "image")
    assert len(done["position_ids"]) == len(done["axes"])


def test_help_names_what_there_is():
    assert "ids" in mmrope("--help").stdout
    assert "families" in mmrope("--help").stdout
    shown = mmrope("ids", "--help").stdout
    for option in ("--image", "--video", "--family", "--fps", "--json", "--figure"):
        assert option in shown
