"""The command line, in this process where that is possible: a process of its own costs seconds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

from mmrope import FAMILIES, Processor, Segment, __version__, family, position_ids
from mmrope.cli import app
from mmrope.encodings import RotarySpec, preset
from mmrope.view.encodings import mean_score
from tests.support import ROOT, upstream
from tests.support.checkpoints import folder
from tests.support.films import film, trimmed
from tests.support.upstream_ids import TOKENS, as_inputs


def mmrope(*arguments, cwd=ROOT, typed=None):
    """Runs a command here. A bug is raised, with its traceback."""
    with contextlib.chdir(cwd or ROOT):
        done = CliRunner().invoke(app, list(map(str, arguments)), prog_name="mmrope", input=typed)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return SimpleNamespace(returncode=done.exit_code, stdout=done.stdout, stderr=done.stderr)


def python(*arguments, **options):
    """Runs Python in a process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, **options)


def refused(done, message):
    """A line on stderr, and nothing else."""
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_tokens_of_a_checkpoint(tmp_path):
    """Its template's text, its tokenizer's tokens, each with its ids."""
    path = folder(tmp_path, "qwen2_5_vl")
    done = mmrope("ids", "--model", path, "--image", "1x2", "<|im_end|>", "--tokens")
    assert done.returncode == 0, done.stderr
    table, tokens, text = done.stdout.split("\n\n", 2)
    assert table.splitlines()[0].startswith("qwen2_5_vl: ")
    rows = [line.split(None, 2) for line in tokens.splitlines()[1:]]
    processor = Processor.from_pretrained(path)
    content = [{"type": "image", "grid": (1, 2)}, {"type": "text", "text": "<|im_end|>"}]
    parts = processor.conversation([{"role": "user", "content": content}])
    expected = [token for part in parts for token in part.tokens]
    assert [(int(n), int(number)) for n, number, _ in rows] == list(enumerate(expected))
    assert rows[0][2].split() == ["'<|im_start|>'", "0", "0", "0"]
    assert sum("'<|im_end|>'" in row[2] for row in rows) == 2  # the system's, the user's; the one in the text is text
    assert text.startswith(
        f"{len(expected)} tokens as {path} writes them:\n<|im_start|>system\nYou are a helpful assistant.<|im_end|>"
    )
    assert "<|im_start|>user\n<|vision_start|>[2 tokens]<|vision_end|><|im_end|><|im_end|>\n<|im_start|>assistant\n" in text
    said = json.loads(mmrope("ids", "--model", path, "Hi", "--json").stdout)
    assert len(said["input_ids"]) == said["tokens"] == len(said["position_ids"][0])
    assert "input_ids" not in json.loads(mmrope("ids", "Hi", "--json").stdout)
    assert json.loads(mmrope("ids", "Hi", "--json", "--tokens").stdout)["input_ids"] == [72, 105]


def test_what_is_no_checkpoint_is_said_in_a_line(tmp_path):
    path = folder(tmp_path, "glm4v", template="", form="none")
    refused(mmrope("ids", "--model", path, "Hi"), "how glm4v writes conversations is not known without its chat template")
    refused(mmrope("ids", "--model", path / "config.json", "Hi"), "--model takes the folder of a checkpoint, got ")
    refused(
        mmrope("ids", "--model", path, "--family", "qwen2_vl", "Hi"), "--model says the family: leave --family and --stride out"
    )
    (path / "tokenizer.json").unlink()
    refused(mmrope("ids", "--model", path, "Hi"), "has a tokenizer, but no tokenizer.json")


def test_sizes_alone():
    done = mmrope("ids", "text", "--image", "16x24", "--video", "8x16x24@2fps")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "qwen2_5_vl: 3464 tokens, text continues at 56",
        "tokens     kind   grid                    t       h       w       next  content",
        "0..4       text   5                       0..4    0..4    0..4    5     text<|vision_start|>",
        "5..388     image  16 x 24                 5       5..20   5..28   29",
        "389..390   text   2                       29..30  29..30  29..30  31    <|vision_end|><|vision_start|>",
        "391..3462  video  8 x 16 x 24, 1 s apart  31..45  31..46  31..54  55",
        "3463       text   1                       55      55      55      56    <|vision_end|>",
        "",
        "text counts a token a byte",
    ]


LOADED = "; print(*sorted({'numpy', 'torch', 'PIL', 'av', 'decord', 'matplotlib', 'transformers'} & set(sys.modules)), file=sys.stderr)"


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["ids", "hello"], "numpy"),
        (["ids", "text", "--image", "16x24", "--video", "8x2x2@2fps"], "numpy"),
        (["show", "frequencies"], "numpy"),
        (["check", "a.safetensors", "--family", "qwen2_5_vl"], "numpy"),
        (["--version"], ""),
        (["ids", "--help"], ""),
    ],
)
def test_what_a_command_does_not_need_is_not_loaded(arguments, loaded, tmp_path):
    dump(tmp_path / "a.safetensors", position_ids(ROW, "qwen2_5_vl").ids)
    done = python(
        "-c", f"import sys; from mmrope.cli import app; app({arguments}, standalone_mode=False)" + LOADED, cwd=tmp_path
    )
    assert done.stderr.strip() == loaded


def test_the_module_and_the_command_are_one(tmp_path):
    for program in ([sys.executable, "-m", "mmrope"], [os.path.join(os.path.dirname(sys.executable), "mmrope")]):
        done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"mmrope {__version__}\n"
    done = python("-m", "mmrope", "ids", "clip.mp5", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mmrope ids: clip.mp5: no such file (for the text itself: --text clip.mp5)\n"


def test_text_that_is_no_utf8():
    refused(python("-m", "mmrope", "ids", b"\xff"), r"mmrope ids: '\udcff' is no UTF-8 text")


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m mmrope families | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def without(modules, code):
    """Runs code in a Python that lacks some modules."""
    return python("-c", f"import sys; sys.modules.update(dict.fromkeys({modules})); {code}", cwd=ROOT)


@pytest.mark.parametrize(
    ("modules", "arguments", "message"),
    [
        (["typer"], ["--version"], "mmrope: the command line needs typer: pip install 'mmrope[cli]'"),
        (["PIL"], ["ids", "samples/cat.jpg"], "mmrope ids: an image needs PIL: pip install 'mmrope[media]'"),
        (["av"], ["formats"], "mmrope formats: the list of codecs needs av: pip install 'mmrope[media]'"),
        (["av"], ["ids", "samples/clip.mp4"], "mmrope ids: a video needs av: pip install 'mmrope[media]'"),
        (["matplotlib"], ["ids", "a", "--figure", "a.png"], "mmrope ids: a figure needs matplotlib: pip install 'mmrope[viz]'"),
        (["matplotlib"], ["show", "decay", "--figure", "a.png"], "mmrope show: a figure needs matplotlib: pip install 'mmrope[viz]'"),
        (["torch"], ["show", "alibi"], "mmrope show: it needs torch: pip install 'mmrope[torch]'"),
        (["torch"], ["ask", "Read all."], "mmrope ask: it needs torch: pip install 'mmrope[torch]'"),
        (["torch", "einops", "mmrope_small"], ["ask", "Read all."], "mmrope ask: it needs torch, einops, mmrope_small: pip install 'mmrope[torch]' 'mmrope[vlm]' 'mmrope-small'"),
        (["matplotlib"], ["lab", "run", "sums"], "mmrope lab run: it needs matplotlib: pip install 'mmrope[viz]'"),
        (["safetensors"], ["check", "a.safetensors", "--family", "rope"], "mmrope check: it needs safetensors: pip install 'mmrope[vlm]'"),
    ],
)  # fmt: skip
def test_missing_extras_are_named(modules, arguments, message, tmp_path):
    (tmp_path / "a.safetensors").write_text("a")
    arguments = [str(tmp_path / part) if part == "a.safetensors" else part for part in arguments]
    refused(without(modules, f"sys.argv = ['mmrope', *{arguments}]; from mmrope.__main__ import main; main()"), message + "\n")


def test_formats_are_listed():
    """With the reason of what is refused; tests/preprocess/test_formats.py holds the list against what is opened."""
    done = mmrope("formats")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[:2] == ["images", "  JPEG                    .jpg .jpeg .jfif .mpo"]
    assert "  HEIC                    .heic .heics .heif .heifs .hif (pip install 'mmrope[heic]')" in lines
    assert "animations: PNG, WebP, AVIF, GIF" in lines
    assert any(line.startswith("  containers              mov matroska ") for line in lines)
    assert any(line.startswith("  codecs                  h264 hevc ") for line in lines)
    assert "  JPEG XL                 Pillow has no decoder for it" in lines[lines.index("refused") :]
    assert max(map(len, lines)) <= 100


def test_completion_knows_the_families():
    words = {"_MMROPE_COMPLETE": "complete_bash", "COMP_WORDS": "mmrope ids --family qwen2_5_v", "COMP_CWORD": "3"}
    done = python("-m", "mmrope", env=os.environ | words)
    assert done.stdout.split() == [key for key in FAMILIES if key.startswith("qwen2_5_v")]


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
    animation, a trimmed clip: sizes as they are seen, and as many sampled frames as each lasts."""
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
    # two sampled frames a second and two a grid, of 3.4, 9.04, 3 and 2 s; but no frame twice: the first two have six
    assert [segment["grid"][0] for segment in media[1:]] == [3, 3, 2, 2]
    for segment, (h, w) in zip(media[1:], [turned, flat, flat, flat], strict=True):
        assert (segment["grid"][1] > segment["grid"][2]) == (h > w), segment


def test_long_texts_are_texts():
    words = "Please describe this. " * 300
    done = mmrope("ids", words)
    assert done.returncode == 0, done.stderr
    assert f"text  {len(words)} " in done.stdout
    assert json.loads(mmrope("ids", words, "--json").stdout)["segments"][0]["label"] == words


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("clip.mp5", "clip.mp5: no such file; did you mean clip.mp4? (for the text itself: --text clip.mp5)"),
        ("phtoo.jpg", "phtoo.jpg: no such file; did you mean Photo.jpg? (for the text itself: --text phtoo.jpg)"),
        ("photo.jpeg", "photo.jpeg: no such file; did you mean Photo.jpg?"),
        ("more/clop.mp4", "more/clop.mp4: no such file; did you mean more/clip.mp4?"),
        ("./photo", "./photo: no such file; did you mean Photo.jpg?"),
        ("nowhere/a.jpg", "nowhere/a.jpg: no such file; there is no folder nowhere"),
        ("Look at zebra.jpg", "Look at zebra.jpg: no such file (for the text itself: --text 'Look at zebra.jpg')"),
        ("C:\\x.png", "C:\\x.png: no such file (for the text itself: --text 'C:\\x.png')"),
        ("either/or", "either/or: no such file; there is no folder either (for the text itself: --text either/or)"),
        ("more/", "more/ is a folder: name the files in it (for the text itself: --text more/)"),
        (".", ". is a folder: name the files in it"),
        ("https://example.org/cat.jpg", "https://example.org/cat.jpg is a URL: download it and name the file"),
        ("notes.txt", "notes.txt is a file, but not of a known kind (.3gp "),
        ("notes", "notes is a file, but not of a known kind (.3gp "),
        ("Photo.jpg", "Photo.jpg is not an image that can be opened"),
        ("clip.mp4", "clip.mp4 cannot be read as a video"),
    ],
)
def test_files_that_cannot_be_used(part, message, tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("notes.txt", "notes", "Photo.jpg", "clip.mp4", "more/clip.mp4"):
        (tmp_path / name).write_text("not a picture")
    refused(mmrope("ids", part, cwd=tmp_path), f"mmrope ids: {message}")
    if (tmp_path / part).suffix != ".mp4" or not (tmp_path / part).is_file():  # a video, about which this is no question
        refused(mmrope("ask", part, "Read all.", cwd=tmp_path), f"mmrope ask: {message}")


@pytest.mark.parametrize("part", ["photo", "3.14", "v1.0", "e.g.", "Hello.", "Is it a or b/c?", "a.b", "", " ", "x" * 5000])
def test_texts_are_texts(part, tmp_path):
    found = json.loads(mmrope("ids", "--json", part, cwd=tmp_path).stdout)
    assert found["tokens"] == len(part)
    assert [item["label"] for item in found["segments"]] == [part] * bool(part)


def test_any_text_can_be_given(tmp_path):
    (tmp_path / "clip.mp4").write_text("not a video")
    texts = ["clip.mp4", ".", "-h", "--image", "", "notes.txt"]
    given = [part for text in texts for part in ("--text", text)]
    found = json.loads(mmrope("ids", "--json", "--image", "1x1", *given, "--image=1x1", "--text=b/c", cwd=tmp_path).stdout)
    assert [item["label"] for item in found["segments"]] == [
        "<|vision_start|>",
        "",
        f"<|vision_end|>{''.join(texts)}<|vision_start|>",
        "",
        "<|vision_end|>b/c",
    ]


def test_nothing_is_an_empty_table(tmp_path):
    done = mmrope("ids", "", "--figure", "ids.svg", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "wrote ids.svg\n")
    assert done.stdout.splitlines()[:2] == [
        "qwen2_5_vl: 0 tokens, text continues at 0",
        "tokens  kind  grid  t  h  w  next  content",
    ]
    found = json.loads(mmrope("ids", "", "--json").stdout)
    assert (found["tokens"], found["next"], found["segments"], found["position_ids"]) == (0, 0, [], [[], [], []])


@pytest.mark.parametrize("size", ["8x16x24@2", "8X16X24@2FPS", "8x16x24@2.0fps"])
def test_fps_need_not_be_spelled(size):
    assert mmrope("ids", "--json", "--video", size).stdout == mmrope("ids", "--json", "--video", "8x16x24@2fps").stdout


def test_a_stride_that_users_choose():
    refused(
        mmrope("ids", "--image", "2x2", "--family", "v2pe"),
        "v2pe leaves its stride to the user: family('v2pe', stride=...), on the command line --stride",
    )
    found = json.loads(mmrope("ids", "--json", "--image", "2x2", "--family", "v2pe", "--stride", "0.5").stdout)
    assert found["position_ids"] == [[0, 0.5, 1, 1.5, 2, 3]] or found["position_ids"] == [[0, 1, 1.5, 2, 2.5, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ids", "a", "--image", "30000x30000"], "--image 30000x30000 is 900,000,000 tokens: the most of one image is 128,000"),
        (["ids", "a", "--image", "4"], "--image takes the size in tokens, such as 16x24, got '4'"),
        (["ids", "a", "--image", "0x3"], "--image takes the size in tokens, such as 16x24, got '0x3'"),
        (["ids", "a", "--image", "9" * 5000 + "x1"], "--image takes the size in tokens, such as 16x24, got '9999"),
        (["ids", "a", "--image="], "--image takes the size in tokens, such as 16x24, got ''"),
        (["ids", "a", "--image"], "Option '--image' requires an argument"),
        (["ids", "a", "--text"], "Option '--text' requires an argument"),
        (["ids", "a", "--video", "2x2x2"], "--video takes the size in tokens and the sampled frames a second, such as 8x16x24@2, got '2x2x2'"),
        (["ids", "a", "--video", "2x2x2@0"], "--video takes the size in tokens and the sampled frames a second"),
        (["ids", "a", "--video", "2x2x2@2", "--family", "glm_image"], "glm_image places image, and no videos"),
        (["ids", "a", "--image", "1x1", "--family", "neomme"], "each row of an image of neomme ends in a token of its own"),
        (["ids", "samples/cat.jpg", "--family", "hunyuan_vl"], "state sizes instead: --image 16x24, --video 8x16x24@2"),
        (["ids", "a", "--family", "qwen25_vl"], "unknown family 'qwen25_vl'. Did you mean 'qwen2_5_vl'?"),
        (["ids", "a", "--family", "qwen2_vl@5"], "family qwen2_vl has no revision '5'; it has transformers-5.23"),
        (["ids", "a", "--family", ""], "unknown family ''"),
        (["ids", "a", "--fps", "0"], "Invalid value for '--fps': 0 is not from 0.001 to 1000"),
        (["ids", "a", "--fps", "nan"], "Invalid value for '--fps': nan is not from 0.001 to 1000"),
        (["ids", "a", "--stride", "1"], "qwen2_5_vl has no stride"),
        (["ids", "--json"], "Missing argument"),
        (["ids", "a", "--figure", "a"], "Invalid value for '--figure': a figure's file ends in .png, .svg, .pdf, .jpg, got 'a'"),
        (["ids", "a", "--figure", "a.xyz"], "Invalid value for '--figure': a figure's file ends in .png, .svg, .pdf, .jpg, got 'a.xyz'"),
        (["ids", "--figure", "--image", "4x6"], "a figure's file ends in .png, .svg, .pdf, .jpg, got '--image'"),
        (["ids", "a", "--figure", "README.md/a.png"], "Invalid value for '--figure': README.md is a file, not a folder"),
        (["ids", "a", "--figure", "/proc/none/ids.png"], "/proc/none: "),
        (["show", "colours"], "Invalid value for 'WHAT': 'colours' is not one of"),
        (["show", "decay", "--preset", "wam"], "unknown preset 'wam'"),
        (["show", "decay", "--preset", "wan", "--family", "rope"], "give --family or --preset, not both"),
        (["show", "decay", "--family", "hunyuan_vl@transformers-5.23"], "that is no rotation; use the reference's 'contiguous'"),
        (["show", "scaling", "--preset", "dinov3"], "dinov3 states its frequencies one by one"),
        (["show", "alibi", "--family", "nonsense"], "ALiBi has heads alone: leave --family and --preset out"),
        (["show", "decay", "--heads", "4"], "--heads is for alibi alone"),
        (["show", "alibi", "--heads", "0"], "Invalid value for '--heads': 0 is not from 1 to 1024"),
        (["ask", ""], "the question is empty"),
        (["ask", "What is 1 + 1?", "--device", "gpu"], "cannot use the device 'gpu': give cpu, cuda, cuda:1, mps, xpu or auto"),
        (["ask", "What is 1 + 1?", "--device", "meta"], "cannot use the device 'meta'"),
        (["ask", "What is 1 + 1?", "--temperature", "-1"], "Invalid value for '--temperature': -1 is not from 0 to 100"),
        (["lab", "run", "sums", "--out", "README.md"], "Invalid value for '--out': README.md is a file, not a folder"),
        (["lab", "run", "sums", "--seeds", "0"], "Invalid value for '--seeds': 0 is not from 1 to 1000"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_a_line(arguments, message):
    command = " ".join(arguments[:2] if arguments[0] == "lab" else arguments[:1])
    done = mmrope(*arguments)
    refused(done, message)
    assert done.stderr.startswith(f"mmrope {command}: ")


def test_words_that_are_no_command():
    assert mmrope("idz").stderr == "mmrope: No such command 'idz'. Did you mean 'ids'?\n"
    assert re.match(r"mmrope: No such option:? .?--nope", mmrope("--nope").stderr)
    assert mmrope("lab", "nope").stderr == "mmrope lab: No such command 'nope'.\n"


ODD = [
    *(
        ["ids", *parts]
        for parts in (["\0"], ["\n"], ["--"], ["--", "--image"], ["-"], ["-x"], ["/"], ["//"], ["..\\"], ["~"], ["*"])
    ),
    *(
        ["ids", part]
        for part in ("/dev/null", "a/" * 3000, "x" * 300 + ".png", "....png", ".mp4", "\u202e.jpg", "🙂", "a\tb.png")
    ),
    *(["ids", "--image", size] for size in ("x", "1x1x1", "-1x4", "\uff11x\uff12", "1x1\n", "1e3x1", "999999x999999")),
    *(
        ["ids", "--video", size]
        for size in ("x", "1x1x1@", "1x1x1@fps", "1x1x1@-1", "1x1x1@1e9", "1x1x1@0.000001", "999999x1x1@1")
    ),
    *(["ids", "a", "--family", name] for name in ("@", "qwen2_vl@", "@transformers-5.23", "Qwen2_VL", "qwen2_vl ")),
    *(["ids", "a", "--figure", path] for path in ("", ".", ".png", "/", "x" * 300 + ".png")),
    *(["ids", "a", "--fps", fps] for fps in ("inf", "1e400", "", "2fps")),
    ["ids", "a", "--stride", "inf"],
    ["show", "decay", "--family", "v2pe"],
    ["show", "alibi", "--heads", "1e9"],
    ["check", "README.md", "--family", "rope"],
    ["check", "samples", "--config", "samples"],
    ["diff", "", ""],
    ["ask", "--", "--text"],
    ["ask", "samples/cat.jpg", "--model", "samples"],
    ["lab", "run", "", "--variant", ""],
    ["families", "--json"],
    ["--version", "ids"],
    ["-h"],
]


@pytest.mark.parametrize("arguments", ODD, ids=lambda arguments: ascii(" ".join(arguments))[:60])
def test_odd_command_lines_are_no_bugs(arguments):
    """An answer, or what is wrong in a line. (A bug is raised by `mmrope`.)"""
    done = mmrope(*arguments)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stdout + done.stderr
    if done.returncode == 2:
        assert re.fullmatch(r"mmrope[^\n]*: [^\n]+\n", done.stderr) or done.stderr.startswith("Usage: ")


def test_families_are_listed_with_their_sources():
    done = mmrope("families")
    assert done.returncode == 0, done.stderr
    for key, row in FAMILIES.items():
        assert (f"\n  @{row.revision} " if row.revision else f"{key} ") in done.stdout
        assert f" {row.source}\n" in done.stdout
    assert "  @transformers-4.57  padding carries 1; time ids are" not in done.stdout
    assert "  @transformers-4.57  time ids are i * floor(seconds) * ids_per_second; padding carries 1\n" in done.stdout
    assert "  @transformers-5.23  the same ids\n" in done.stdout


@pytest.mark.parametrize(
    "name", sorted({row.name for row in FAMILIES.values()} - {"v2pe", "qwen3_asr"})
)  # which need a stride; hears
def test_sizes_are_placed_by_every_family(name):
    done = json.loads(mmrope("ids", "--json", "text", "--image=4x6", "--family", name).stdout)
    assert [item["kind"] for item in done["segments"]][1] == ("canvas" if name == "minicpmv4_7" else "image")
    assert len(done["position_ids"]) == len(done["axes"])


@pytest.mark.parametrize("command", ["ids", "ask", "families", "doctor", "show", "check", "diff", "lab", "lab list", "lab run"])
def test_every_command_has_help(command):
    done = mmrope(*command.split(), "-h")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: mmrope {command}")
    assert done.stdout == mmrope(*command.split(), "--help").stdout
    assert command.split()[0] in mmrope("-h").stdout


def test_help_names_what_there_is():
    shown = mmrope("ids", "--help").stdout
    for option in ("--text", "--image", "--video", "--family", "--fps", "--json", "--figure"):
        assert option in shown
    assert "a text counts one token a byte" in shown
    assert "A text that looks like a file goes after --text" in " ".join(shown.split())


@pytest.mark.parametrize("command", ["", "ids", "ask", "show", "check", "diff", "lab", "lab run"])
def test_nothing_asked_is_help(command):
    done = mmrope(*command.split())
    assert (done.stdout + done.stderr).startswith("Usage: mmrope")


# --- show -------------------------------------------------------------------------------------------------------------


def table(*arguments):
    """What `mmrope show` prints: its title, and its rows as words."""
    done = mmrope("show", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    title, _, *lines = done.stdout.splitlines()
    return title, [line.split() for line in lines]


def test_show_prints_frequencies():
    title, lines = table("frequencies", "--family", "qwen2_vl")
    assert title.startswith("qwen2_vl: ")
    assert lines[0] == ["pair", "axis", "inv_freq", "wavelength"]
    spec = RotarySpec.from_family("qwen2_vl")
    for (pair, axis, inv_freq, wavelength), n in zip(lines[1:], range(64), strict=True):
        assert (int(pair), axis) == (n, spec.axis_letters[n])
        assert float(inv_freq) == pytest.approx(spec.inv_freq[n], rel=1e-5)
        assert float(wavelength.replace(",", "")) == pytest.approx(2 * np.pi / spec.inv_freq[n], rel=1e-3)
    assert ["63", "t", "0", "-"] in table("frequencies", "--family", "hope")[1]


def test_show_prints_decay():
    _, lines = table("decay", "--preset", "wan")
    assert " ".join(lines[0]) == "distance t alone h alone w alone all axes"
    np.testing.assert_allclose(
        [float(x) for x in lines[4][1:]],
        [mean_score(preset("wan"), np.array([8]), axes)[0] for axes in ("t", "h", "w", "thw")],
        atol=6e-4,
    )
    assert table("decay", "--family", "rope")[1][0] == ["distance", "score"]


def test_show_prints_scalings():
    _, lines = table("scaling")
    assert lines[1][1:] == ["651.9", "0.125", "1.000", "1.000", "1.000", "1.000"]
    assert lines[-1][2:] == ["0.125"] * 5


def test_show_prints_alibi():
    _, lines = table("alibi", "--heads", "4")
    assert lines[1] == ["0", "0.25", "0.7788", "0.3679", "0.0183", "0.0000", "0.0000", "0.0000"]
    assert len(lines) == 5


def test_show_leaves_no_file_behind(tmp_path):
    assert mmrope("show", "frequencies", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


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
        json.dumps(
            upstream.model().config.to_dict()
            | {"vision_config": {"tokens_per_second": 4, "spatial_merge_size": 2}}
            | {"image_token_id": TOKENS.image, "video_token_id": TOKENS.video}
        )
    )
    assert mmrope("check", path, "--config", config).returncode == 0
    assert mmrope("check", path, "--family", "qwen2_5_vl").returncode == 1


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
        (("check", "god.npz", "--family", "qwen2_vl"), "god.npz: no such file; did you mean good.npz?"),
        (("check", ".", "--family", "qwen2_vl"), ". is a folder: name the file in it"),
        (("check", "good.npz", "--config", "nowhere.json"), "nowhere.json: no such file"),
        (("check", "good.npz", "--config", "."), "config.json: no such file"),
        (("check", "good.npz", "--config", "bad.json"), "bad.json is not JSON: "),
        (("check", "good.npz", "--config", "list.json"), "list.json must hold an object, got list"),
        (("check", "good.npz", "--config", "none.json"), "config has model_type None, which is not in the table of families"),
        (("check", "good.npz", "--config", "short.json"), "does not guess: add it to the config"),
        (("check", "deep.json", "--family", "qwen2_vl"), "deep.json cannot be read: maximum recursion depth"),
        (("check", "words.json", "--family", "qwen2_vl"), "words.json: position_ids must hold numbers that fit in 64 bits, got <U1"),
        (("check", "ragged.json", "--family", "qwen2_vl"), "the rows of position_ids have different lengths: pad them to one length"),
        (("check", "single.npz", "--family", "qwen2_vl"), "single.npz cannot be read: it is no .npz archive"),
        (("check", "cut.npz", "--family", "qwen2_vl"), "cut.npz cannot be read: "),
        (("diff", "flat.json", "flat.json"), "flat.json: position_ids must be [axes, rows, tokens] or [axes, tokens], got [0]"),
        (("check", "words.txt", "--family", "qwen2_vl"), "words.txt is no .json, .npz, .safetensors file"),
        (("check", "list.json", "--family", "qwen2_vl"), "list.json cannot be read: it must hold an object"),
        (("check", "none.json", "--family", "qwen2_vl"), "none.json has no position_ids; of what is read it has input_ids"),
        (("check", "bare.json", "--family", "qwen2_vl"), "inputs have no input_ids"),
        (("check", "bad.npz", "--family", "qwen2_vl"), "bad.npz cannot be read"),
        (("check", "bad.safetensors", "--family", "qwen2_vl"), "bad.safetensors cannot be read"),
        (("diff", "good.npz", "bare.json"), "only tables of the same tokens and axes can be compared"),
        (("diff", "good.npz", "bad.json"), "bad.json cannot be read"),
    ],
)  # fmt: skip
def test_check_and_diff_refuse(arguments, message, tmp_path):
    dump(tmp_path / "good.npz", position_ids(ROW, "qwen2_5_vl").ids)
    for name, words in (("words.txt", "a"), ("list.json", "[1]"), ("none.json", '{"input_ids": [[1]]}'), ("bad.json", "{"),
                        ("bare.json", '{"position_ids": [[[1]]]}'), ("bad.npz", "PK"), ("bad.safetensors", "a"), ("deep.json", "[" * 100_000),
                        ("words.json", '{"position_ids": [[["a"]]]}'), ("ragged.json", '{"position_ids": [[1], [1, 2]]}'),
                        ("short.json", '{"model_type": "qwen2_5_vl"}'), ("flat.json", '{"position_ids": []}')):  # fmt: skip
        (tmp_path / name).write_text(words)
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused(mmrope(*arguments, cwd=tmp_path), message)


def test_dumps_without_tokens(tmp_path):
    empty = {"input_ids": [[]], "mm_token_type_ids": [[]], "position_ids": [[[]]] * 3}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    done = mmrope("check", "empty.json", "--family", "qwen2_5_vl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "empty.json: no tokens, so nothing is wrong\n")
    done = mmrope("diff", "empty.json", "empty.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "no difference: both are without tokens\n")


def test_generated_tokens_are_text(tmp_path):
    """A video token that the model wrote is no video: prompt_lengths say so, in the file as in Python."""
    row = [*ROW[:-1], Segment.text(5)]
    types = as_inputs([row], family("qwen2_5_vl"))["mm_token_type_ids"]
    types[0, -1] = 2
    ids = position_ids(row, "qwen2_5_vl").ids
    path = dump(tmp_path / "a.npz", ids, mm_token_type_ids=types)
    refused(mmrope("check", path, "--family", "qwen2_5_vl"), "Of generated tokens say so with prompt_lengths")
    path = dump(tmp_path / "b.npz", ids, mm_token_type_ids=types, prompt_lengths=np.array([43]))
    assert mmrope("check", path, "--family", "qwen2_5_vl").returncode == 0
