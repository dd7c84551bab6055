"""Folders of others: every file is read or refused by name, whatever it holds; and a save is whole, or the old files stay."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrope import VLM, Processor, RotarySpec, family, family_from_config, rotary_from_config
from mmrope.files import SETTINGS, TABLES, json_object, read_object
from mmrope.preprocess import ByteTokenizer
from mmrope.preprocess.chat import conversation_pieces
from mmrope.preprocess.text import FileTokenizer
from mmrope.records import shown
from mmrope.vlm import VLMConfig
from mmrope.vlm.weights import weight_files
from tests.support import ROOT, cases
from tests.support.json_mutants import MEGABYTES, SECONDS, TINY, Findings, megabytes, mutant, readers, tried

# --- any JSON ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return readers(tmp_path_factory.mktemp("readers"))


def test_any_json_is_read_or_refused_by_file(every):
    """A fixed sample; scripts/fuzz_configs.py tries 100,000, and more than that in `make proof`."""
    for reader in every:
        tried(reader, 5, -1, Findings())  # what is loaded on first use is not a mutant's
    found, before, number = Findings(), megabytes(), cases(60)
    for reader in every:
        tried(reader, number, 0, found)
    assert [(name, at, how) for name, at, _, how in found.broken] == []
    assert megabytes() - before < MEGABYTES
    for name, counts in found.counts.items():
        assert counts.total() == number, name
        assert counts["refused"] > number // 5, name  # the damage is there
    total = sum(found.counts.values(), start=type(next(iter(found.counts.values())))())
    assert total["read"] > total.total() // 10  # and does not always matter
    assert (
        total["unnamed"] < total.total() // 12
    )  # of one changed value the message has a key, but for what disagrees elsewhere


def test_the_law_can_fail(every, monkeypatch):
    """A reader that stumbles, that says nothing of the file, and that takes its time."""
    reader = next(reader for reader in every if reader.name == "Processor, own")
    for fault, expected in ((KeyError("x"), "KeyError"), (ValueError("somewhere"), "file not named")):

        def fails(*_, fault=fault):
            raise fault

        monkeypatch.setattr(Processor, "from_pretrained", fails)
        found = Findings()
        tried(reader, 3, 0, found)
        assert found.counts[reader.name][expected] == 3
        assert len(found.broken) == 3
    assert SECONDS <= 2


def test_mutants_are_known_by_their_seed():
    document = {"a": [1, 2, {"b": "c"}], "d": 0.5}
    made = [[mutant(document, random.Random(seed))[0] for seed in range(200)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 120
    assert document == {"a": [1, 2, {"b": "c"}], "d": 0.5}


# --- what is refused, by its key --------------------------------------------------------------------------------------


def changed(path, **changes):
    """A file of JSON with other values, by paths such as decoder__num_heads."""
    stated = json.loads(path.read_text())
    for key, value in changes.items():
        *parts, last = key.split("__")
        part = stated
        for name in parts:
            part = part[name]
        part[last] = value
    path.write_text(json.dumps(stated))


@pytest.fixture
def own(tmp_path):
    """A model without a manifest, as one whose config was changed by hand."""
    VLM(TINY).save_pretrained(tmp_path)
    (tmp_path / "manifest.json").unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder__num_heads": 0}, "decoder.num_heads must be a whole number of at least 1, got 0"),
        ({"decoder__num_heads": "x" * 500}, "decoder.num_heads must be a whole number of at least 1, got 'xxx"),
        ({"decoder__num_kv_heads": 3}, "decoder: num_heads 1 must be a multiple of num_kv_heads 3"),
        ({"decoder__head_dim": 15}, "decoder: head_dim 15 must be even"),
        ({"decoder__num_layers": 1001}, "decoder.num_layers must be a whole number from 1 to 1000, got 1001"),
        (
            {"decoder__num_layers": 1000},
            "num_layers .* are 1000 of the decoder and 1 of the vision encoder, but the weights are",
        ),
        ({"decoder__norm_eps": float("nan")}, "decoder.norm_eps must be a number above 0 and at most 1, got nan"),
        ({"decoder__tie_word_embeddings": 1}, "decoder.tie_word_embeddings must be true or false, got 1"),
        ({"decoder__x": 1}, "decoder.x is not known; known are vocab_size, "),
        ({"decoder": []}, r"decoder must be an object, got \[\]"),
        ({"vision__theta": float("inf")}, "vision.theta must be a positive number, got inf"),
        ({"vision__theta": 0}, "vision.theta must be a positive number, got 0"),
        ({"vision__num_heads": 3}, "vision: hidden_size 8 must give each of the 3 num_heads a multiple of 4 channels"),
        ({"vision__patches__patch_size": 0}, "vision.patches.patch_size must be a whole number from 1 to 1024, got 0"),
        ({"vision__patches__merge_size": 10**9}, "vision.patches.merge_size must be a whole number from 1 to 64"),
        ({"vision__patches__std": [0, 0, 0]}, r"vision.patches.std\[0\] must be a number from 0.000001 to 1000, got 0"),
        (
            {"vision__patches__mean": [0, 0, float("nan")]},
            r"vision.patches.mean\[2\] must be a number from -1000 to 1000, got nan",
        ),
        ({"vision__patches__image_pixels": [-1, 9]}, r"vision.patches.image_pixels\[0\] must be a whole number from 0"),
        ({"vision__patches__image_pixels": [9, 8]}, "vision.patches: image_pixels must be the fewest and the most"),
        ({"rotary__head_dim": 10**9}, "rotary: head_dim must be a number of channels, at most 65,536"),
        (
            {"rotary__spectra": {"of": [{"theta": 1e4, "dim": 10**9}], "which": [], "index": []}},
            r"rotary: spectra.of\[0\].dim must",
        ),
        ({"family__facts": {"spatial_merge": None}}, "family: facts.spatial_merge must be a whole number, got None"),
        ({"eos_token_id": 10**30}, "eos_token_id must be .*, got a number of 100 bits"),
        ({"generation__top_p": 2}, "generation.top_p must be a number above 0 and at most 1, for all tokens, got 2"),
    ],
)
def test_a_config_is_refused_by_its_key(own, change, message):
    changed(own / "config.json", **change)
    with pytest.raises(ValueError, match=message) as refused:
        VLM.from_pretrained(own)
    assert str(own / "config.json") in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_what_is_nested_too_deep_is_refused(own):
    for depth, message in ((200, "rotary is nested deeper than 100 levels"), (100_000, "is not JSON: maximum recursion")):
        changed(own / "config.json", rotary="@")
        content = (own / "config.json").read_text()
        (own / "config.json").write_text(content.replace('"@"', "[" * depth + "]" * depth))
        with pytest.raises(ValueError, match=message):
            VLM.from_pretrained(own)
        (own / "config.json").write_text(content)
    changed(own / "config.json", rotary=None)
    VLM.from_pretrained(own)


def document(parts, size):
    """JSON of so many brackets and commas, and bytes."""
    text = '{"a": [' + ",".join(["0"] * (parts - 1)) + "]}"
    return text + " " * (size - len(text))


@pytest.mark.parametrize("most", [SETTINGS, TABLES._replace(parts=50_000)])
def test_files_are_read_up_to_their_size(most, tmp_path):
    path = tmp_path / "file.json"
    for parts, size, message in (
        (most.parts, most.bytes, None),
        (10, most.bytes + 1, f"{path} has {most.bytes + 1:,} bytes, and such a file has at most {most.bytes:,}"),
        (most.parts + 1, 0, f"{path} has {most.parts + 1:,} brackets and commas, and such a file has at most {most.parts:,}"),
    ):
        path.write_text(document(parts, size))
        with contextlib.nullcontext() if message is None else pytest.raises(ValueError, match=re.escape(message)):
            assert len(read_object(path, most)["a"]) == parts - 1


def test_many_keys_take_no_long_time():
    """Of the outermost object, each of which is searched for its depth."""
    text = "{" + ",".join(f'"{n:05x}": 0' for n in range(200_000)) + "}"
    start = time.process_time()
    assert len(json_object(text, "it")) == 200_000
    assert time.process_time() - start < 2


@pytest.mark.parametrize("part", ["[]", '{"":' * 90 + "0" + "}" * 90, '{"": 0}', '"ab"', '"\\u4e00\\u4e01"', "x"])
def test_no_file_of_settings_takes_much_memory(part, tmp_path):
    """The most of it that is read. x: one text, with a character for which each of its others takes four bytes."""
    count = min(SETTINGS.parts // sum(map((part + ",").count, "[{,")), SETTINGS.bytes // len(part + ",")) - 2
    text = '{"a": [' + ",".join([part] * count) + "]}"
    path = tmp_path / "config.json"
    path.write_text(text if part != "x" else '{"a": "' + "x" * (SETTINGS.bytes - 20) + '\N{GRINNING FACE}"}', encoding="utf-8")
    assert 10 < _peak(f"read_object(Path({str(path)!r}))") < 150
    path.write_text('{"a": [' + ",".join([part] * (60_000_000 // len(part + ","))) + "]}")
    assert _peak(f"read_object(Path({str(path)!r}))", "and such a file has at most 4,194,304") < 10


def _peak(call, error=""):
    """The MiB that reading a file takes beyond those before it, in a process of its own."""
    code = (
        "from pathlib import Path; from mmrope.files import read_object\n"  # not getrusage, which counts the process before it
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024\n"
        f"before, said = peak(), ''\ntry: {call}\nexcept ValueError as error: said = str(error)\nprint(peak() - before, said)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    taken, _, said = done.stdout.strip().partition(" ")
    assert said.endswith(error) if error else not said
    return float(taken)


def test_a_tokenizer_and_an_index_may_be_larger_than_settings(own):
    path = own / "tokenizer.json"
    path.write_text('{"a": [' + "[]," * 20_000_000 + "0]}")
    with pytest.raises(
        ValueError, match=r"a tokenizer.json cannot be read: it has 40,000,002 brackets and commas, .* at most 4,194,304"
    ):
        FileTokenizer.from_folder(own)
    path.write_text('{"a": [' + "0," * (SETTINGS.bytes // 2) + "0]}")
    with pytest.raises(ValueError, match=r"added_tokens"):  # it is read, and has none
        FileTokenizer.from_folder(own)
    (own / "model.safetensors").unlink()
    index = own / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"layers.{n}.weight": "part.safetensors" for n in range(SETTINGS.parts)}}))
    (own / "part.safetensors").touch()
    assert weight_files(own) == ["part.safetensors"]


def test_sizes_are_compared_with_the_weights_before_memory_is_taken(own):
    """A config of ten gigabytes and of ten thousand layers beside 20 KB of weights."""
    changed(own / "config.json", decoder__intermediate_size=600_000, decoder__hidden_size=4096)
    code = (
        "from mmrope import VLM\n"
        "from tests.support.mutants import megabytes\n"
        f"before = megabytes()\ntry:\n    VLM.from_pretrained({str(own)!r})\n"
        "except ValueError as error:\n    print(megabytes() - before, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    taken, _, said = done.stdout.partition(" ")
    assert "the weights in" in said
    assert "of another shape: " in said
    assert float(taken) < 100


def test_configs_of_others_are_refused_by_file_and_key(tmp_path):
    path = tmp_path / "config.json"
    vision = {"spatial_merge_size": 10**9, "tokens_per_second": 2}
    path.write_text(json.dumps({"model_type": "qwen2_5_vl", "vision_config": vision}))
    with pytest.raises(ValueError, match=f"{path}: vision_config.spatial_merge_size must be a whole number from 1 to 64"):
        family_from_config(tmp_path)
    rope = {"rope_type": "mrope", "mrope_section": [10**9, 24, 24], "rope_theta": 1e6}
    text = {"model_type": "qwen2_vl", "hidden_size": 3584, "num_attention_heads": 28}
    path.write_text(json.dumps(text | {"rope_parameters": rope}))
    with pytest.raises(
        ValueError, match=rf"{path}: qwen2_vl: .* and mrope_section \[1000000000, .*: sections must be a number of pairs"
    ):
        rotary_from_config(path)
    path.write_text("[")
    with pytest.raises(ValueError, match=f"{path} is not JSON"):
        rotary_from_config(path)
    with pytest.raises(ValueError, match="head_dim must be a number of channels, at most 65,536"):
        RotarySpec.rope(2**16 + 2)
    assert RotarySpec.rope(2**16).head_dim == 2**16


# --- processors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("access", {"urls": "all"}), ("limits", {"max_side": 10**9}), ("threads", 500), ("video_backend", "decord"),
        ("damaged", "keep"), ("animation", "first"), ("tokenizer_", 1), ("__class__", "x"),
    ],
)  # fmt: skip
def test_a_processors_folder_sets_only_what_describes_a_checkpoint(key, value, tmp_path):
    Processor().save_pretrained(tmp_path)
    changed(tmp_path / "processor_config.json", **{"fps": 3.0})
    assert Processor.from_pretrained(tmp_path).fps == 3.0
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=f"{path}: {key} describes no checkpoint, and is not read from a folder"):
        Processor.from_pretrained(tmp_path)


def test_what_is_the_machines_is_not_saved(tmp_path):
    """Folders that were saved before have three of them, at their defaults: they are read."""
    Processor(damaged="keep", animation="first", threads=1, fps=1.0).save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "processor_config.json").read_text())
    assert not {"damaged", "animation", "threads", "limits", "access", "video_backend"} & set(stated)
    (tmp_path / "processor_config.json").write_text(
        json.dumps(stated | {"damaged": "refuse", "animation": "refuse", "video_backend": "auto"})
    )
    assert Processor.from_pretrained(tmp_path) == Processor(fps=1.0)


def test_statistics_that_make_no_pixels_are_refused(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    for key, value in (("image_std", [0, 0, 0]), ("image_mean", [float("nan")] * 3), ("patch_size", 0), ("min_pixels", -1)):
        path.write_text(json.dumps({"image_processor_type": "Qwen2VLImageProcessor", key: value}))
        with pytest.raises(ValueError, match=rf"{path}: {key}(\[0\])? must be a .*number"):
            Processor.from_pretrained(tmp_path, family="qwen2_vl")


def file_tokenizer(extra=""):
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"cat{extra}": 0, "?": 1}, unk_token="?"))
    words.add_special_tokens(["<|pad|>"])
    return FileTokenizer(words.to_str(), "<|pad|>")


def test_a_pattern_that_goes_back_and_forth_is_stopped():
    """The library's own bound comes as a panic, which is none of Python's Exceptions."""
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    tokenizer = FileTokenizer(words.to_str())
    assert tokenizer.encode("aaa") == [0]
    with pytest.raises(ValueError, match=r"gave up on this tokenizer.json, or on a text by its patterns: .*retry-limit"):
        tokenizer.encode("a" * 60 + "!")


BOMBS = {
    "{% for i in range(10**9) %}x{% endfor %}": "Range too big",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}": "more than 250,000 steps",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}": "more than 250,000 steps",
    "{% macro f(n) %}{{ f(n+1) }}{% endmacro %}{{ f(0) }}": "recursion",
    "{{ 'x' * 10**9 }}": "more than 67,108,864 characters",
    "{{ [0] * 10**9 }}": "more than 67,108,864 characters",
    "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}": "more than 67,108,864",
    "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}": "more than 67,108,864",
    "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}":
        "more than 67,108,864",
    "{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}": "more than 67,108,864",
    "{% set a = 'a' * 100000 %}{{ a|replace('a', a) }}": "more than 67,108,864",
    "{% set a = 'a' * 100000 %}{{ a.join(a) }}": "more than 67,108,864",
    "{% set a = 'a' * 100000 %}{{ a|join(a) }}": "more than 67,108,864",
    "{{ 2 ** (10 ** 9) }}": "larger numbers than a chat template needs",
    "{{ '%1000000000d' % 1 }}": "a width that no chat template needs",
    "{{ '{:>1000000000}'.format(1) }}": "a width that no chat template needs",
    "{{ 'x'.ljust(10**9) }}": "is no width or count of a chat template",
    "{{ 'x'|center(10**9) }}": "is no width or count of a chat template",
    "{{ lipsum(n=10**6) }}": "'lipsum' is undefined",
    "{{ messages|tojson(indent=10**9) }}": "is no width or count of a chat template",
    "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}": "recursion",
    "{% for i in [1] %}" * 200 + "{% endfor %}" * 200: "is not Jinja that can be read",
    "{{ ''.__class__.__mro__ }}": "unsafe",
}  # fmt: skip


@pytest.mark.parametrize("template", BOMBS, ids=range(len(BOMBS)))
def test_a_template_takes_no_more_than_its_share(template):
    said = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match=f"chat template .*{re.escape(BOMBS[template])}"):
        conversation_pieces(template, said, ByteTokenizer(), variables={}, add_generation_prompt=False)


def test_what_templates_need_is_within_the_bounds():
    """A text of ten million characters, a thousand messages gone through by pairs of neighbours, numbers and widths."""
    template = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% for n in messages[loop.index0:loop.index0 + 9] %}{% endfor %}"
        "{% set ns.t = m.role ~ ':' %}{{ ns.t + m.content }}{% endfor %}{{ '%5d' % 7 }}{{ 10 ** 6 }}{{ '-' * 9 }}"
    )
    said = [{"role": "user", "content": "x" * 10_000}] * 1000
    [text] = conversation_pieces(template, said, ByteTokenizer(), variables={}, add_generation_prompt=False)
    assert text == ("user:" + "x" * 10_000) * 1000 + "    71000000---------"


# --- saving -----------------------------------------------------------------------------------------------------------


def tiny(seed):
    torch.manual_seed(seed)
    theta = RotarySpec.mrope(16, theta=1e4 * (seed + 1), sections=(4, 2, 2), layout="interleaved")
    return VLM(VLMConfig(vision=TINY.vision, decoder=TINY.decoder, rotary=theta))


def state(model):
    return model.config.rotary, {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][name], value) for name, value in other[1].items())


def processors(seed):
    return Processor(fps=seed + 1.0, tokenizer=file_tokenizer(seed), chat_template=f"{{{{ {seed} }}}}")


MODEL = (tiny, VLM.from_pretrained, lambda one, other: same(state(one), state(other)))
PROCESSOR = (processors, Processor.from_pretrained, lambda one, other: identity(one) == identity(other))


def identity(processor):
    return processor.fps, processor.tokenizer.content, processor.chat_template


@pytest.mark.parametrize("before", ["old", "beside the other", "without a manifest", "none"])
@pytest.mark.parametrize("kind", [MODEL, PROCESSOR], ids=["model", "processor"])
@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"]
)
def test_a_save_that_fails_at_any_moment_leaves_the_old_or_is_refused(kind, fault, before, tmp_path, monkeypatch):
    """At every fsync and every rename, one after the other: what is in the folder then is whole, or is refused."""
    make, load, equal = kind
    old, new = make(0), make(1)
    outcomes = set()
    for n in range(100):
        folder = tmp_path / str(n)
        if before == "beside the other":
            beside = (PROCESSOR if kind is MODEL else MODEL)[0](2)
            beside.save_pretrained(folder)
        if before != "none":
            old.save_pretrained(folder)
        if before == "without a manifest":
            (folder / "manifest.json").unlink(missing_ok=True)
        left = iter(range(n))

        def failing(function, left=left):
            def called(*arguments):
                if next(left, None) is None:
                    raise fault
                return function(*arguments)

            return called

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing(os.replace))
            patch.setattr(os, "fsync", failing(os.fsync))
            try:
                new.save_pretrained(folder)
            except (OSError, KeyboardInterrupt):
                done = False
            else:
                done = True
        names = [path.name for path in folder.iterdir()]
        assert not [name for name in names if name.startswith(".")]  # no temporary files
        try:
            found = load(folder)
        except ValueError as error:
            outcomes.add("refused" if str(folder) in str(error) else f"does not name the folder: {error}")
        else:
            assert equal(found, new) or (before != "none" and equal(found, old)), n
            outcomes.add("new" if equal(found, new) else "old")
        if done and before == "beside the other":
            make_other, load_other, equal_other = PROCESSOR if kind is MODEL else MODEL
            assert equal_other(load_other(folder), make_other(2))
        if done:
            assert outcomes == {"new", "refused"} | ({"old"} if before != "none" else set())
            return
    raise AssertionError("the save never came to its end")


@pytest.mark.parametrize("odd", [math.inf, math.nan, 1e308, -0.5, 1.5, True, "half"])
@pytest.mark.parametrize("kind", ["qwen3_5", "glm4"])
def test_a_share_of_a_head_is_one(kind, odd):
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": odd}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    with pytest.raises(ValueError, match="partial_rotary_factor"):
        rotary_from_config({"model_type": kind, **sizes, "rope_parameters": rope})


@pytest.mark.parametrize("what", ["model", "processor"])
def test_a_save_on_a_full_disk_leaves_the_old_files(what, tmp_path, record_property):
    """Files of a process that may be no longer than some sizes, as on a disk without room: every write past them fails."""
    make, load, equal = MODEL if what == "model" else PROCESSOR
    old: Any = make(0)
    old.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    largest = max(map(len, before.values()))
    code = (
        "import resource, signal, sys\n"
        "from tests import test_folders as tests\n"
        "new = (tests.tiny if sys.argv[1] == 'model' else tests.processors)(1)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "for size in map(int, sys.argv[3:]):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        new.save_pretrained(sys.argv[2])\n"
        "    except Exception as error:\n"
        "        print(size, type(error).__name__, error)\n"
    )
    sizes = [0, 1, 100, largest // 4, largest // 2, largest - 200]
    record_property("tried", f"{what}: a full disk at {len(sizes)} sizes, and a failure at every fsync and rename")
    command = [sys.executable, "-c", code, what, str(tmp_path), *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    assert len(done.stdout.splitlines()) == len(sizes), done.stdout + done.stderr  # each failed
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert equal(load(tmp_path), old)


def test_a_folder_without_a_manifest_says_so(tmp_path):
    VLM(TINY).save_pretrained(tmp_path)
    model = VLM.from_pretrained(tmp_path)
    assert model.checked is True
    assert "config and weights as in their manifest.json" in repr(model)
    (tmp_path / "manifest.json").unlink()
    model = VLM.from_pretrained(tmp_path)
    assert model.checked is False
    assert "files not checked: their folder has no manifest.json" in repr(model)
    assert VLM(TINY).checked is None
    assert "manifest" not in repr(VLM(TINY))


def test_a_tokenizer_of_another_save_is_refused(tmp_path):
    processors(0).save_pretrained(tmp_path)
    content = Path(tmp_path / "tokenizer.json").read_bytes()
    processors(1).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer_sha256 is not that of tokenizer.json and tokenizer_config.json"):
        Processor.from_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"  # of a processor that was saved before there was one
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "tokenizer_sha256"}))
    assert identity(Processor.from_pretrained(tmp_path))[:2] == (2.0, content.decode())


def test_a_changed_family_comes_back(tmp_path):
    mine = family("qwen2_vl").replace(name="mine", stride=3, token_ids=family("qwen2_vl").checkpoint.token_ids)
    VLM(VLMConfig(vision=TINY.vision, decoder=TINY.decoder, family=mine)).save_pretrained(tmp_path)
    Processor(family=mine).save_pretrained(tmp_path)
    assert VLM.from_pretrained(tmp_path).config.family == mine == Processor.from_pretrained(tmp_path).family


def test_messages_show_the_beginning_of_long_values():
    assert len(shown("x" * 10**6)) < 100
    assert len(shown([["x" * 100] * 100] * 100)) < 3000
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert len(shown(deep)) < 100
