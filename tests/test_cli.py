"""`mmrope ids`, `check` and `diff`, as a shell runs them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mmrope import FAMILIES, Segment, family, position_ids
from tests.support import upstream
from tests.support.films import film, trimmed
from tests.support.upstream_ids import as_inputs

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


def test_files_straight_from_a_phone(tmp_path):
    """A turned photograph, a turned film with a variable frame rate, a screen recording whose picture stands still, an
    animation, a trimmed clip: sizes as they are seen, and as many looks as each lasts."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((112, 168, 3), np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
    film(tmp_path / "phone.mov", [0, 264, 561, 825, 1790, 3390], rotation=90, size=(168, 112))
    film(tmp_path / "screen.mp4", [0, 16, 33, 7000, 7016, 9000], size=(168, 112))
    first, *rest = [Image.fromarray(np.full((112, 168, 3), 60 * n, np.uint8)) for n in range(4)]
    first.save(tmp_path / "funny.gif", save_all=True, append_images=rest, duration=[200, 900, 400, 1500])
    trimmed(film(tmp_path / "whole.mp4", [40 * n for n in range(100)], size=(168, 112)), tmp_path / "clip.mp4", 2.0)
    files = ["photo.jpg", "phone.mov", "screen.mp4", "funny.gif", "clip.mp4"]
    done = mmrope("ids", *files, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    media = [segment for segment in json.loads(done.stdout)["segments"] if segment["kind"] != "text"]
    assert [(segment["kind"], segment["label"]) for segment in media] == [
        ("image", "photo.jpg"),
        *[("video", name) for name in files[1:]],
    ]
    turned, flat = [12, 8], [8, 12]  # films of a few frames have the fewest pixels of a frame, 128 tokens
    assert media[0]["grid"] == [1, 6, 4]
    assert [segment["grid"][0] for segment in media[1:]] == [
        4,
        10,
        3,
        2,
    ]  # 3.4, 9.04, 3 and 2 s: two looks a second, two a grid
    for segment, (h, w) in zip(media[1:], [turned, flat, flat, flat], strict=True):
        assert (segment["grid"][1] > segment["grid"][2]) == (h > w), segment


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


# --- check and diff ---------------------------------------------------------------------------------------------------


ROW = [Segment.text(3), Segment.video(t=6, h=2, w=3, seconds_per_grid=1.0), Segment.text(5)]


def dump(path, ids, **more):
    """A processor's batch of ROW with ids, in any of the formats."""
    arrays = {**as_inputs([ROW], family("qwen2_5_vl")), "position_ids": ids, **more}
    if path.suffix == ".json":
        path.write_text(json.dumps({key: np.asarray(value).tolist() for key, value in arrays.items()} | {"note": "words"}))
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
def test_check_reads_dumps(tmp_path, suffix):
    right = dump(tmp_path / f"right{suffix}", position_ids(ROW, "qwen2_5_vl").ids)
    done = mmrope("check", right, "--family", "qwen2_5_vl")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{right}: the ids of qwen2_5_vl\n", "")
    wrong = dump(tmp_path / f"wrong{suffix}", position_ids(ROW, "qwen2_5_vl@transformers-5.23").ids)
    done = mmrope("check", wrong, "--family", "qwen2_5_vl")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "mmrope check: position_ids are not those of qwen2_5_vl: 5 of 44 tokens differ, first token 39"
    )
    assert "They are those of qwen2_5_vl@transformers-5.23" in done.stderr
    done = mmrope("diff", right, wrong)
    assert (done.returncode, done.stdout) == (1, "5 of 44 tokens differ, first row 0, token 39: 0 is 14 and 6\n")
    done = mmrope("diff", right, right)
    assert (done.returncode, done.stdout) == (0, "no difference\n")


def test_check_takes_a_checkpoints_config(tmp_path):
    path = dump(tmp_path / "a.npz", position_ids(ROW, family("qwen2_5_vl", ids_per_second=4)).ids)
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(upstream.model().config.to_dict() | {"vision_config": {"tokens_per_second": 4, "spatial_merge_size": 2}})
    )
    assert mmrope("check", path, "--config", config).returncode == 0
    assert mmrope("check", path, "--family", "qwen2_5_vl").returncode == 1


def test_check_needs_no_torch(tmp_path):
    path = dump(tmp_path / "a.safetensors", position_ids(ROW, "qwen2_5_vl").ids)
    code = (
        f"import sys; from mmrope.cli import app; app(['check', {str(path)!r}, '--family', 'qwen2_5_vl'], standalone_mode=False);"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_padding_does_not_count_in_diff(tmp_path):
    mask = np.ones((1, 44), dtype=np.int64)
    mask[0, 40:] = 0
    one = dump(tmp_path / "a.npz", position_ids(ROW, "qwen2_5_vl").ids, attention_mask=mask)
    other = dump(tmp_path / "b.npz", np.where(mask, position_ids(ROW, "qwen2_5_vl").ids, 1), attention_mask=mask)
    assert mmrope("diff", one, other).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "good.npz"), "name the family (--family qwen2_5_vl) or the checkpoint's config (--config config.json)"),
        (("check", "good.npz", "--family", "qwen2_5_v"), "unknown family 'qwen2_5_v'"),
        (("check", "nowhere.npz", "--family", "qwen2_vl"), "nowhere.npz"),
        (("check", "words.txt", "--family", "qwen2_vl"), "words.txt is no .json, .npz, .safetensors file"),
        (("check", "list.json", "--family", "qwen2_vl"), "list.json cannot be read: it must hold an object"),
        (("check", "none.json", "--family", "qwen2_vl"), "none.json has no position_ids; of what is read it has input_ids"),
        (("check", "bare.json", "--family", "qwen2_vl"), "inputs have no input_ids"),
        (("check", "bad.npz", "--family", "qwen2_vl"), "bad.npz cannot be read"),
        (("check", "bad.safetensors", "--family", "qwen2_vl"), "bad.safetensors cannot be read"),
        (("diff", "good.npz", "bare.json"), "only tables of the same tokens and axes can be compared"),
        (("diff", "good.npz", "bad.json cannot be read"), "bad.json cannot be read"),
    ],
)  # fmt: skip
def test_check_and_diff_refuse(arguments, message, tmp_path):
    dump(tmp_path / "good.npz", position_ids(ROW, "qwen2_5_vl").ids)
    for name, words in (("words.txt", "a"), ("list.json", "[1]"), ("none.json", '{"input_ids": [[1]]}'), ("bad.json", "{"),
                        ("bare.json", '{"position_ids": [[[1]]]}'), ("bad.npz", "PK"), ("bad.safetensors", "a")):  # fmt: skip
        (tmp_path / name).write_text(words)
    done = mmrope(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
