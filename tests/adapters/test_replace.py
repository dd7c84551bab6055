"""mmrope's rotation in the place of a model's function, through the package `kernels`.

The models are run in a process of its own, with the versions of tests/adapters/overlay.txt: kernels in a version that the transformers
beside it takes, both as they are published.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import transformers

from mmrope.adapters import replace
from mmrope.adapters.replace import rotary_kernel, rotation
from mmrope.adapters.rotary import RotaryInPlace
from tests.support import ROOT

OVERLAY = ROOT / ".venv" / "overlay"
PINS = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "tests" / "adapters" / "overlay.txt").read_text(), re.MULTILINE))
ROUNDING = 1e-5
NAMES = ("llama", "qwen2_5_vl", "qwen3_vl")
TEXT = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
FUNCTION = "transformers.models.{0}.modeling_{0}.apply_rotary_pos_emb"


def own_function(name):
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}").apply_rotary_pos_emb


def small(cls, config, **options):
    """A model with random weights."""
    torch.manual_seed(0)
    return getattr(transformers, cls)(getattr(transformers, config)(**options)).eval()


def llama():
    return small("LlamaForCausalLM", "LlamaConfig", **TEXT)


def model_and_inputs(name):
    """Of those that see, tokens stand in three dimensions."""
    random = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(3, 60, (2, 12), generator=random)}
    if name == "llama":
        return llama(), inputs
    cls = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name]
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]}
    vision = {**VISION, "fullatt_block_indexes": [0], "deepstack_visual_indexes": [0]}
    options = {"text_config": {**TEXT, "rope_parameters": rope}, "vision_config": vision}
    ids = torch.randint(0, 40, (3, 2, 12), generator=random)
    return small(f"{cls}ForConditionalGeneration", f"{cls}Config", **options), {**inputs, "position_ids": ids}


# --- what is put in ---------------------------------------------------------------------------------------------------


def definition(q, k, cos, sin, unsqueeze_dim):
    """As the models' files have it."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    first, second = zip(*(x.chunk(2, dim=-1) for x in (q, k)), strict=True)
    return [x * cos + torch.cat((-b, a), dim=-1) * sin for x, a, b in zip((q, k), first, second, strict=True)]


@pytest.mark.parametrize("rows", [1, 2])  # of the tables: a model that is given no ids makes one for all
@pytest.mark.parametrize("unsqueeze_dim", [1, 2])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_equals_the_definition_and_its_gradient(device, unsqueeze_dim, rows):
    found = []
    for function in (definition, rotation):
        torch.manual_seed(0)
        q, k, angle = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 5, 16), torch.randn(rows, 5, 8)
        cos, sin = (torch.cat((table, table), dim=-1).to(device) for table in (angle.cos(), angle.sin()))
        q, k = (x.transpose(1, unsqueeze_dim).to(device).requires_grad_() for x in (q, k))
        turned = function(q, k, cos, sin, unsqueeze_dim)
        sum((x * torch.randn(x.shape).to(device)).sum() for x in turned).backward()
        found.append((*turned, q.grad, k.grad))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("q", "k", "table", "unsqueeze_dim"),
    [
        ((2, 4, 5, 16), (2, 2, 5, 16), (2, 5, 16), 0),  # Pixtral's call
        ((2, 4, 5, 16), (2, 2, 5, 16), (2, 5, 8), 1),  # tables of GPT-OSS, or of a part of the channels
        ((2, 4, 5, 16), (2, 2, 5, 16), (2, 5, 16), 2),
        ((2, 4, 5, 16), (2, 2, 5, 16), (2, 4, 16), 1),
        ((2, 4, 5, 16), (2, 2, 5, 16), (3, 5, 16), 1),
        ((2, 4, 5, 16), (2, 2, 6, 16), (2, 5, 16), 1),
        ((2, 4, 5, 16), (1, 2, 5, 16), (2, 5, 16), 1),
        ((4, 5, 16), (2, 5, 16), (5, 16), 1),
    ],
)
def test_other_shapes_are_refused(q, k, table, unsqueeze_dim):
    with pytest.raises(ValueError, match=r"by cos and sin \[B, S, D\], got"):
        rotation(torch.zeros(q), torch.zeros(k), torch.zeros(table), torch.zeros(table), unsqueeze_dim)


# --- in models --------------------------------------------------------------------------------------------------------


def test_models_beside_kernels():
    """`TestInModels` with the versions of tests/adapters/overlay.txt."""
    assert all((OVERLAY / name).is_dir() for name in PINS), f"{OVERLAY} is missing or incomplete: make .venv/kernels"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{__file__}::TestInModels"]
    beside = {**os.environ, "PYTHONPATH": str(OVERLAY)}
    done = subprocess.run(command, env=beside, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_rotates_otherwise_is_found():
    """Before it is replaced, on numbers: neighbours for halves, one of the two left as it is, tables of half the channels."""

    def neighbours(q, k, cos, sin, unsqueeze_dim):
        cos, sin = (
            table[..., : table.shape[-1] // 2].repeat_interleave(2, -1).unsqueeze(unsqueeze_dim) for table in (cos, sin)
        )
        return [x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin for x in (q, k)]

    def keys_alone(q, k, *tables, unsqueeze_dim):
        return q, definition(q, k, *tables, unsqueeze_dim)[1]

    def of_half(q, k, cos, sin, unsqueeze_dim):
        return definition(q, k, *(torch.cat((table, table), -1) for table in (cos, sin)), unsqueeze_dim)

    replace._check_function("its", definition)
    for other in (neighbours, keys_alone):
        with pytest.raises(ValueError, match=r"its computes something else than a rotation of channels p and p \+ D / 2"):
            replace._check_function("its", other)
    with pytest.raises(ValueError, match=r"its takes other tables than \[B, S, D\]"):
        replace._check_function("its", of_half)


def test_tables_that_rotate_two_channels_of_a_pair_otherwise_are_found():
    class Tables(torch.nn.Module):
        shift = 0

        def forward(self, x, ids):
            angle = ids[..., None] * torch.tensor([1.0, 0.5])  # [B, S, 2], of text alone
            angle = torch.cat((angle, angle + self.shift * (ids[..., None] > 6)), dim=-1)
            return angle.cos(), angle.sin()

    model = torch.nn.Module()
    with pytest.raises(ValueError, match="Module has no module rotary_emb whose cos and sin could be checked"):
        replace._check_tables(model)
    model.rotary_emb = Tables()
    replace._check_tables(model)
    Tables.shift = 1
    with pytest.raises(ValueError, match=r"rotary_emb rotates channels p and p \+ D / 2 by different angles"):
        replace._check_tables(model)


def test_a_module_that_is_no_model_of_transformers_is_refused():
    with pytest.raises(ValueError, match="Linear has no function that rotates"), rotary_kernel(torch.nn.Linear(2, 2)):
        pass


def test_says_what_to_install(monkeypatch):
    file = "transformers.models.one.modeling_one"
    monkeypatch.setitem(sys.modules, file, SimpleNamespace(apply_rotary_pos_emb=definition))
    model = type("One", (torch.nn.Module,), {"__module__": file})()
    said = rf"One rotates by {FUNCTION.format('one')}, which cannot be replaced: .* kernels<.* must be installed \(here: "
    with pytest.raises(ValueError, match=said), rotary_kernel(model):
        pass


class TestInModels:
    __test__ = find_spec("kernels") is not None

    @pytest.fixture
    def calls(self, monkeypatch):
        """Shapes of the queries that mmrope rotated."""
        shapes, real = [], replace.apply_rotary

        def counted(q, *args, **options):
            shapes.append(tuple(q.shape))
            return real(q, *args, **options)

        monkeypatch.setattr(replace, "apply_rotary", counted)
        return shapes

    def test_versions_are_those_of_the_file(self):
        assert {name: version(name) for name in PINS} == PINS

    @pytest.mark.parametrize("name", NAMES)
    def test_the_model_rotates_by_mmrope_and_afterwards_by_its_own(self, name, calls):
        model, inputs = model_and_inputs(name)
        own = model(**inputs).logits
        with rotary_kernel(model):
            calls.clear()
            inside = model(**inputs).logits
            assert calls == [(2, 4, 12, 16)] * 2
        calls.clear()
        assert torch.equal(model(**inputs).logits, own)
        assert not calls
        torch.testing.assert_close(inside, own, rtol=0, atol=ROUNDING)

    @pytest.mark.parametrize("name", NAMES)
    def test_gradients_are_equal(self, name, calls):
        model, inputs = model_and_inputs(name)
        model(**inputs).logits.square().mean().backward()
        own = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        model.zero_grad()
        with rotary_kernel(model):
            calls.clear()
            model(**inputs).logits.square().mean().backward()
            assert calls
        assert any("k_proj" in name for name in own)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.grad, own.get(name), rtol=1e-4, atol=ROUNDING)

    def test_an_exception_ends_it_too(self, calls):
        model, inputs = model_and_inputs("qwen2_5_vl")
        own = model(**inputs).logits
        with pytest.raises(ZeroDivisionError), rotary_kernel(model):
            raise ZeroDivisionError
        calls.clear()
        assert torch.equal(model(**inputs).logits, own)
        assert not calls

    def test_blocks_within_blocks(self, calls):
        model, inputs = model_and_inputs("llama")
        with rotary_kernel(model):
            with rotary_kernel(llama()):
                pass
            calls.clear()
            model(**inputs)
            assert calls
        calls.clear()
        model(**inputs)
        assert not calls

    def test_what_else_was_replaced_stays(self):
        """And what rotated before, if it was replaced, comes back."""
        from kernels import Mode, kernelize, use_kernel_mapping

        seen = []

        def norm(self, hidden_states):
            seen.append("norm")
            return hidden_states

        def turn(self, q, k, cos, sin, unsqueeze_dim=1):
            seen.append("turn")
            return rotation(q, k, cos, sin, unsqueeze_dim)

        model, inputs = model_and_inputs("llama")
        function, former = own_function("llama"), own_function("llama").forward.__func__
        mapping = {"RMSNorm": {"cpu": replace._InProcess(norm)}, "rotary_pos_emb": {"cpu": replace._InProcess(turn)}}
        try:
            with use_kernel_mapping(mapping, inherit_mapping=False):
                kernelize(model, mode=Mode.INFERENCE, device="cpu")
            model(**inputs)
            assert (seen.count("norm"), seen.count("turn")) == (5, 2)
            with rotary_kernel(model):
                seen.clear()
                model(**inputs)
                assert seen == ["norm"] * 5
            model(**inputs)
            assert seen.count("turn") == 2
        finally:
            replace._put(function, former)

    def test_exact_angles_besides(self, calls):
        model, inputs = model_and_inputs("qwen2_5_vl")
        own = model(**inputs).logits
        text = model.model.language_model
        text.rotary_emb = RotaryInPlace(text.rotary_emb)
        with rotary_kernel(model):
            calls.clear()
            torch.testing.assert_close(model(**inputs).logits, own, rtol=0, atol=1e-4)
            assert calls

    def test_compiled(self):
        """Attention that was compiled notices the exchange, both ways."""
        model, graphs = llama(), []

        def backend(graph, example):
            graphs.append(graph.code)
            return graph.forward

        x = torch.randn(2, 12, 64)
        tables = model.model.rotary_emb(x, torch.arange(12)[None])
        compiled = torch.compile(model.model.layers[0].self_attn, backend=backend, fullgraph=True)
        own = compiled(x, tables, None)[0]
        with rotary_kernel(model):
            torch.testing.assert_close(compiled(x, tables, None)[0], own, rtol=0, atol=ROUNDING)
        assert torch.equal(compiled(x, tables, None)[0], own)
        assert len(set(graphs)) == 2

    def test_functions_that_cannot_be_replaced_are_named(self):
        model = small("Glm4vTextModel", "Glm4vTextConfig", **TEXT)
        said = rf"rotates by {FUNCTION.format('glm4v')}, which cannot be replaced: .* must allow it in the file"
        with pytest.raises(ValueError, match=said), rotary_kernel(model):
            pass

    def test_tables_that_turn_no_pairs_are_refused(self):
        rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 2, 2, 2]}
        model = small("HunYuanVLTextModel", "HunYuanVLTextConfig", **TEXT, rope_parameters=rope)
        said = "rotary_emb rotates channels p and p . D / 2 by different angles"
        with pytest.raises(ValueError, match=said), rotary_kernel(model):
            pass

    def test_a_function_of_other_tables_is_refused(self):
        model = small("GptOssForCausalLM", "GptOssConfig", **TEXT, num_local_experts=4)
        said = rf"{FUNCTION.format('gpt_oss')} takes other tables than \[B, S, D\]"
        with pytest.raises(ValueError, match=said), rotary_kernel(model):
            pass

    def test_a_function_that_computes_something_else_is_refused(self, monkeypatch):
        monkeypatch.setattr(replace, "apply_rotary", lambda q, k, *args, **options: (q, k))
        said = f"{FUNCTION.format('llama')} computes something else than a rotation of channels"
        with pytest.raises(ValueError, match=said), rotary_kernel(llama()):
            pass
