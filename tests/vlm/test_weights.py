"""A saved model: the files that were saved are loaded, and no others."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrope import VLM, Processor
from mmrope.preprocess import PatchConfig
from mmrope.vlm import VLMConfig
from mmrope.vlm.config import DecoderConfig, VisionConfig
from mmrope.vlm.manifest import MANIFEST_NAME, verify, write_manifest
from tests.support import PROOF, ROOT

NAMES = ["config.json", "model.safetensors"]
TINY = VLMConfig(
    vision=VisionConfig(patches=PatchConfig(patch_size=2), hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8),
    decoder=DecoderConfig(hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, intermediate_size=8),
)


def tiny(seed=0):
    torch.manual_seed(seed)
    return VLM(TINY)


def same(model, other):
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


# --- laws -------------------------------------------------------------------------------------------------------------


def flipped(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def truncated(data, rng):
    return data[: rng.randrange(len(data))]


def inserted(data, rng):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]


def swapped(data, rng):
    a, b, c, d = sorted(rng.sample(range(len(data) + 1), 4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def still_says(data, before):
    """Whether a manifest says what it said before: only white space is another, for example."""
    try:
        return json.loads(data) == json.loads(before)
    except ValueError:
        return False


def test_every_corruption_is_refused_by_name(folder):
    """One file after the other is changed in one of four ways, 500 times; the error names a file that is not as it was."""
    rng = random.Random(0)
    seen = dict.fromkeys((*NAMES, MANIFEST_NAME), 0)
    while sum(seen.values()) < 500:
        name = rng.choice(list(seen))
        before = (folder / name).read_bytes()
        after = rng.choice([flipped, truncated, inserted, swapped])(before, rng)
        if after == before or (name == MANIFEST_NAME and still_says(after, before)):
            continue
        (folder / name).write_bytes(after)
        with pytest.raises(ValueError, match="manifest") as refused:
            VLM.from_pretrained(folder)
        named = [str(folder / other) for other in ([name] if name != MANIFEST_NAME else seen)]
        assert any(path in str(refused.value) for path in named), refused.value
        (folder / name).write_bytes(before)
        seen[name] += 1
    assert min(seen.values()) > 100
    assert same(VLM.from_pretrained(folder), tiny())


def test_files_of_two_models_do_not_mix(folder, tmp_path):
    tiny(seed=1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"model.safetensors differs from its manifest: its SHA-256 is [0-9a-f]{64}, not '"):
        VLM.from_pretrained(folder)
    shutil.copy(tmp_path / "other" / MANIFEST_NAME, folder)
    assert same(VLM.from_pretrained(folder), tiny(seed=1))


def test_a_save_after_a_kill_mends_the_folder(folder):
    """Killed between the moves: refused, never mixed. The next save leaves nothing of it, and what a living process writes."""
    code = (
        "import os, sys\n"
        "from tests.vlm.test_weights import tiny\n"
        "replace, moved = os.replace, iter(range(int(sys.argv[2])))\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), 9) if next(moved, None) is None else replace(*paths)\n"
        "tiny(seed=1).save_pretrained(sys.argv[1])\n"
    )
    living = folder / f".config.json.{platform.node()}.{os.getppid()}.1"
    living.write_text("{}")
    for moves in range(3) if PROOF else [1]:  # each starts torch
        done = subprocess.run([sys.executable, "-c", code, str(folder), str(moves)], cwd=ROOT, timeout=120, check=False)
        assert done.returncode == -9
        assert len(list(folder.glob(".*"))) == 1 + 3 - moves
        if moves:
            with pytest.raises(ValueError, match=r"differs from its manifest: .* or the saving was interrupted; .* or save it"):
                VLM.from_pretrained(folder)
        else:
            assert same(VLM.from_pretrained(folder), tiny())
        tiny(seed=2).save_pretrained(folder)
        assert same(VLM.from_pretrained(folder), tiny(seed=2))
        assert list(folder.glob(".*")) == [living]
        tiny().save_pretrained(folder)


def test_threads_that_save_to_one_folder_do_not_meet(folder):
    """Each writes files of its own: what is in the folder then is one of the two, or refused."""
    models = tiny(seed=1), tiny(seed=2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: models[n % 2].save_pretrained(folder), range(30)))
    try:
        sound = any(same(VLM.from_pretrained(folder), model) for model in models)
    except ValueError as error:
        sound = "differs from its manifest" in str(error)
    assert sound
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, MANIFEST_NAME])


@pytest.mark.parametrize("steps", range(4))
def test_an_interrupted_save_leaves_the_old_model_or_is_noticed(folder, monkeypatch, steps):
    moved = iter(range(steps))
    replace = os.replace

    def interrupted(*paths):
        if next(moved, None) is None:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    if steps == 3:
        tiny(seed=1).save_pretrained(folder)
        assert same(VLM.from_pretrained(folder), tiny(seed=1))
    else:
        with pytest.raises(KeyboardInterrupt):
            tiny(seed=1).save_pretrained(folder)
        if steps == 0:
            assert same(VLM.from_pretrained(folder), tiny())
        else:
            with pytest.raises(ValueError, match="differs from its manifest"):
                VLM.from_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, MANIFEST_NAME])  # no temporary files


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_manifest_describes_the_files(folder):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    contents = {name: (folder / name).read_bytes() for name in NAMES}
    assert manifest == {
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in contents.items()
        }
    }
    verify(folder, NAMES)


def test_what_a_processor_saves_is_described_too(folder):
    """And stays so when the model is saved again; of a folder without a manifest nothing is."""
    described = lambda: set(json.loads((folder / MANIFEST_NAME).read_text())["files"])  # noqa: E731
    assert described() == set(NAMES)
    for fps in (2.0, 3.0):
        Processor(fps=fps).save_pretrained(folder)
        assert described() == {*NAMES, "processor_config.json"}
        assert Processor.from_pretrained(folder).fps == fps
    tiny(seed=1).save_pretrained(folder)
    assert described() == {*NAMES, "processor_config.json"}
    assert same(VLM.from_pretrained(folder), tiny(seed=1))
    settings = (folder / "processor_config.json").read_text()
    (folder / "processor_config.json").write_text(settings.replace("3.0", "4.0"))
    with pytest.raises(ValueError, match=r"processor_config.json differs from its manifest: its SHA-256 .* or save it again"):
        Processor.from_pretrained(folder)
    VLM.from_pretrained(folder)  # which does not read it
    Processor(fps=4.0).save_pretrained(folder)
    assert Processor.from_pretrained(folder).fps == 4.0
    (folder / MANIFEST_NAME).write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is not JSON: .* save it again"):
        Processor.from_pretrained(folder)
    tiny().save_pretrained(folder)
    assert described() == set(NAMES)
    (folder / MANIFEST_NAME).unlink()
    Processor(fps=5.0).save_pretrained(folder)
    assert not (folder / MANIFEST_NAME).exists()
    assert Processor.from_pretrained(folder).fps == 5.0


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", NAMES)
def test_missing_files_are_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"no {missing} in .*model: (it is the folder of|was the folder copied whole)"):
        VLM.from_pretrained(folder)


def test_without_a_manifest_files_are_taken_as_they_are(folder):
    (folder / MANIFEST_NAME).unlink()
    assert same(VLM.from_pretrained(folder), tiny())


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", r"manifest.json is not JSON: Expecting value.*copy the folder again, or save it again"),
        ("[" * 100_000, r"manifest.json is not JSON"),
        ("[]", r"manifest.json must hold an object, got list; copy"),
        ("{}", r"config.json is not among the files of the manifest \(manifest.json\), with its sha256 and bytes; copy"),
        ('{"files": {"config.json": 3}}', r"config.json is not among the files of the manifest"),
        ('{"files": {"config.json": {"sha256": "00"}}}', r"config.json is not among the files of the manifest"),
        (
            '{"files": {"config.json": {"sha256": "00", "bytes": 1}}}',
            r"config.json differs from its manifest: its size in bytes is \d+, not 1. It was changed or damaged after",
        ),
    ],
)
def test_manifests_are_checked(folder, manifest, message):
    (folder / MANIFEST_NAME).write_text(manifest)
    with pytest.raises(ValueError, match=message):
        VLM.from_pretrained(folder)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_not_read(folder, pickle):
    torch.save(tiny().state_dict(), folder / pickle)
    assert same(VLM.from_pretrained(folder), tiny())  # it is of no interest beside weights that are read
    (folder / "model.safetensors").unlink()
    message = (
        rf"model has {pickle} and no model.safetensors: weights are read from safetensors only, pickles can run code; convert"
    )
    with pytest.raises(ValueError, match=message):
        VLM.from_pretrained(folder)


def test_nothing_is_parsed_before_it_is_verified(folder, monkeypatch):
    def parsed(*_):
        raise AssertionError("a file was parsed that is not in the manifest as it is")

    monkeypatch.setattr(VLMConfig, "from_dict", parsed)
    monkeypatch.setattr("safetensors.safe_open", parsed)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="differs"):
        VLM.from_pretrained(folder)


def test_files_that_do_not_fit_together_are_refused(folder):
    """With a manifest that describes them: saved by hand, or by another program."""
    config = json.loads((folder / "config.json").read_text())

    def refuses(message):
        write_manifest(folder, NAMES)
        with pytest.raises(ValueError, match=message):
            VLM.from_pretrained(folder)

    (folder / "config.json").write_text(json.dumps({**config, "colour": 1}))
    refuses(r"config.json is not the config of a VLM: .*colour")
    (folder / "config.json").write_text("{")
    refuses(r"config.json is not JSON: Expecting property name")
    for change in ({"num_layers": 2}, {"intermediate_size": 9}):
        (folder / "config.json").write_text(json.dumps({**config, "decoder": {**config["decoder"], **change}}))
        refuses(
            rf"the weights in {folder} are not those of its config.json; "
            r"(missing: decoder.blocks.1.\S+, .* and \d more|of another shape: decoder.blocks.0.mlp.\S+ is \[8(, 8)?\], not \[)"
        )
    (folder / "config.json").write_text(json.dumps(config))
    save_file({**load_file(folder / "model.safetensors"), "more": torch.zeros(1)}, folder / "model.safetensors")
    refuses(r"are not those of its config.json; unknown: more$")
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04")
    refuses(r"model.safetensors is damaged, or no safetensors file: .*[Hh]eader.*; copy the folder again")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint16, torch.complex64, torch.float8_e4m3fn])
def test_weights_are_floating_point(folder, dtype):
    """Refused by the header, whatever is wanted."""
    (folder / MANIFEST_NAME).unlink()
    weights = load_file(folder / "model.safetensors")
    name = "decoder.norm.weight"
    save_file(weights | {name: weights[name].to(dtype)}, folder / "model.safetensors")
    for wanted in (None, torch.float32):
        with pytest.raises(ValueError, match=rf"model.safetensors: {name} is of [A-Z0-9_]+, and weights are float64, float32,"):
            VLM.from_pretrained(folder, dtype=wanted)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"dtype must be float64, .* bfloat16, of torch, or None .*; got {dtype}"):
        VLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_every_floating_point_are_read(folder, dtype):
    (folder / MANIFEST_NAME).unlink()
    save_file({k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")
    assert VLM.from_pretrained(folder).embedding.weight.dtype == dtype
    assert VLM.from_pretrained(folder, dtype=torch.float32).embedding.weight.dtype == torch.float32
    assert VLM.from_pretrained(folder, dtype=dtype).embedding.weight.dtype == dtype
