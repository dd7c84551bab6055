"""The kernel against the definition: in Triton's interpreter where there is no GPU, on it where there is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from mmrope import RotaryEmbedding, RotarySpec, YaRN
from mmrope.encodings.kernels.rotary import rotate_by_ids, rotate_by_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPECS = {
    "M-RoPE": RotarySpec.mrope(16, theta=1e6, sections=(2, 3, 3)),
    "interleaved, partial": RotarySpec.mrope(20, theta=5e6, sections=(4, 2, 2), layout="interleaved", rotary_dim=16),
    "adjacent, odd sizes": RotarySpec.mrope(14, sections=(1, 2, 2), rotary_dim=10, pairing="adjacent"),
    "scaled": RotarySpec.mrope(16, sections=(2, 3, 3)).scaled(YaRN(4.0, 128)),
}
LAYOUTS = {"[B, N, S, D]": -3, "[B, S, N, D]": -2, "[T, N, D]": -2}


def case(spec, layout, dtype=torch.float32, ids_dtype=torch.int64, heads=(6, 2), tokens=3):
    """q, k and ids, q and k as views with strides of their own."""
    generator = torch.Generator().manual_seed(0)
    packed = layout == "[T, N, D]"
    batch = () if packed else (2,)
    q, k = (torch.randn(*batch, tokens, n, spec.head_dim + 3, generator=generator)[..., 2:-1] for n in heads)
    if LAYOUTS[layout] == -3:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    ids = torch.randint(-(2**31), 2**31 - 1, (3, *batch, tokens), generator=generator, dtype=torch.int64).to(ids_dtype)
    return q.to(dtype).to(DEVICE), k.to(dtype).to(DEVICE), ids.to(DEVICE)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32])
def test_the_kernel_is_the_definition(name, layout, ids_dtype):
    spec, heads = SPECS[name], LAYOUTS[layout]
    q, k, ids = case(spec, layout, ids_dtype=ids_dtype)
    rope = RotaryEmbedding(spec).to(DEVICE)
    wanted = rope.rotate(q, k, ids, heads=heads, backend="torch")
    made = rope.rotate(q, k, ids, heads=heads, backend="triton")
    torch.testing.assert_close(made, wanted, atol=2e-6, rtol=0)
    # from tables: fractional ids, angles of Hugging Face
    by_table = rope.rotate(q, k, ids.double(), heads=heads, backend="triton")
    torch.testing.assert_close(by_table, wanted, atol=2e-6, rtol=0)
    hf = RotaryEmbedding(spec, angles="hf").to(DEVICE)
    small = ids % 1000
    torch.testing.assert_close(
        hf.rotate(q, k, small, heads=heads, backend="triton"),
        hf.rotate(q, k, small, heads=heads, backend="torch"),
        atol=2e-6,
        rtol=0,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_off_by_one_rounding_at_most(dtype):
    """In the interpreter bfloat16 is truncated where it is stored, by up to one unit."""
    spec = SPECS["M-RoPE"]
    q, k, ids = case(spec, "[B, N, S, D]", dtype)
    rope = RotaryEmbedding(spec).to(DEVICE)
    unit = 2**-7 if dtype == torch.bfloat16 else 2**-10
    for one, other in zip(rope.rotate(q, k, ids, backend="triton"), rope.rotate(q, k, ids, backend="torch"), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=unit, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
def test_the_gradient_is_that_of_the_definition(layout, kind):
    spec, heads = SPECS["interleaved, partial"], LAYOUTS[layout]
    q, k, ids = case(spec, layout)
    rope, found = RotaryEmbedding(spec).to(DEVICE), []
    for backend in ("torch", "triton"):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k)]
        turned = rope.rotate(*leaves, ids.to(kind), heads=heads, backend=backend)
        found.append(
            torch.autograd.grad(sum((x * torch.arange(x.shape[-1], device=DEVICE)).square().sum() for x in turned), leaves)
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-3)


def test_one_table_for_the_batch_and_empty_tensors():
    spec = SPECS["M-RoPE"]
    q, k, ids = case(spec, "[B, N, S, D]")
    rope = RotaryEmbedding(spec).to(DEVICE)
    one = ids[:, :1]
    torch.testing.assert_close(
        rope.rotate(q, k, one, backend="triton"), rope.rotate(q, k, one, backend="torch"), atol=2e-6, rtol=0
    )
    empty = rope.rotate(q[:, :, :0], k[:, :, :0], ids[..., :0], backend="triton")
    assert empty[0].shape == (2, 6, 0, 16)


def test_in_place():
    spec = SPECS["M-RoPE"]
    q, k, ids = case(spec, "[B, N, S, D]")
    rope = RotaryEmbedding(spec).to(DEVICE)
    wanted = rope.rotate(q, k, ids, backend="torch")
    made = rope.rotate(q, k, ids, backend="triton", inplace=True)
    assert made[0] is q
    torch.testing.assert_close((q, k), wanted, atol=2e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own clones
def test_the_operators_keep_the_rules_of_operators():
    spec = SPECS["M-RoPE"]
    q, k, ids = case(spec, "[B, N, S, D]", tokens=2)
    rope = RotaryEmbedding(spec).to(DEVICE)
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    torch.library.opcheck(rotate_by_ids, (q, k, ids, rope.axis, rope.turns, 1.0, -3, False, 1))
    cos, sin = rope(ids)
    torch.library.opcheck(rotate_by_table, (q, k, cos, sin, -3, False, 1))


def test_one_graph_with_the_kernel_in_it():
    spec = SPECS["M-RoPE"]
    rope = RotaryEmbedding(spec).to(DEVICE)
    q, k, ids = case(spec, "[B, N, S, D]")
    compiled = torch.compile(lambda q, k, ids: rope.rotate(q, k, ids, backend="triton"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, ids), rope.rotate(q, k, ids, backend="torch"), atol=2e-6, rtol=0)


def test_backends_are_chosen_by_name(monkeypatch):
    rope, q = RotaryEmbedding(SPECS["M-RoPE"]), torch.zeros(1, 2, 3, 16)
    assert rope.backend_for(q) == "torch"  # on the CPU, also where the interpreter would do
    assert rope.backend_for(q, "torch") == "torch"
    with pytest.raises(ValueError, match="backend must be 'auto', 'torch' or 'triton', got 'cuda'"):
        rope.backend_for(q, "cuda")
    with pytest.raises(ValueError, match=r"backend='triton' cannot be had: it has float32 arithmetic, and q is torch.float64"):
        rope.backend_for(q.double().to(DEVICE), "triton")
    with pytest.raises(ValueError, match="cannot be had: it has no axes by KV head"):
        RotaryEmbedding(RotarySpec.mrope(16, kv_heads=(1, 1, 1))).backend_for(q.to(DEVICE), "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"cannot be had: it runs on a GPU, and q is on cpu"):
        rope.backend_for(q, "triton")
    monkeypatch.setattr("mmrope.encodings.rotary.find_spec", lambda name: None)
    assert rope.backend_for(q) == "torch"
    with pytest.raises(ValueError, match="cannot be had: triton is not installed"):
        rope.backend_for(q, "triton")


def test_shapes_are_checked_before_the_launch():
    rope = RotaryEmbedding(SPECS["M-RoPE"]).to(DEVICE)
    q, k, ids = case(SPECS["M-RoPE"], "[B, N, S, D]")
    with pytest.raises(ValueError, match="row 0 is the text row"):
        rope.rotate(q, k, torch.cat([ids, ids[:1]]), backend="triton")
    with pytest.raises((ValueError, RuntimeError)):
        rope.rotate(q, k, ids[..., :2], backend="triton")
    with pytest.raises(ValueError, match="cos and sin are for"):
        rope.rotate(q, k[:, :, :2], ids, backend="triton")
    partial = RotaryEmbedding(RotarySpec.mrope(20, sections=(2, 3, 3), rotary_dim=16)).to(DEVICE)
    with pytest.raises(
        ValueError, match=r"q and k must have equal head_dim, of 16 channels at least, got \[2, 6, 3, 16\], \[2, 2, 3, 20\]"
    ):
        partial.rotate(q, torch.cat([k, k[..., :4]], dim=-1), ids, backend="triton")
    with pytest.raises(
        ValueError,
        match=r"q and k must be of one floating type of 32 bits at most, .* got torch.float32 on .* and torch.float64",
    ):
        rope.rotate(q, k.double(), ids, backend="triton")


def test_strides_whose_products_pass_32_bits():
    """Of a view whose heads lie 2^26 elements apart: head 33 begins past 2^31."""
    store = torch.empty(33 * 2**26, dtype=torch.bfloat16, device=DEVICE)  # on a CPU pages that are not touched take no memory
    q = store.as_strided((1, 33, 1, 16), (0, 2**26, 16, 1))
    q.copy_(torch.arange(16.0))
    rope, ids = RotaryEmbedding(SPECS["M-RoPE"]).to(DEVICE), torch.tensor([5, 6, 7], device=DEVICE)[:, None, None]
    for one, other in zip(rope.rotate(q, q, ids, backend="triton"), rope.rotate(q, q, ids, backend="torch"), strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=2**-7, atol=1e-6)


COMPILE = """
import subprocess, sys, tempfile, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mmrope.encodings.kernels.rotary import constants, rotate_kernel
from_ids, kind = sys.argv[1] == "ids", sys.argv[2]
four, three = ("i32",) * 4, ("i32",) * 3  # as strides below 2^31 are launched
signature = {name: f"*{kind}" for name in ("q", "k", "q_out", "k_out")}
signature |= {"ids_or_cos": "*i64" if from_ids else "*fp32", "axis_or_sin": "*i64" if from_ids else "*fp32", "turns": "*i64"}
signature |= dict.fromkeys(("q_strides", "k_strides", "q_out_strides", "k_out_strides"), four) | {"table_strides": three}
signature |= dict.fromkeys(("length", "q_heads", "k_heads", "sign"), "i32") | {"factor": "fp32"}
constexprs = {"FROM_IDS": from_ids, "ADJACENT": False, **constants(64, 0, 28)}
signature |= dict.fromkeys(constexprs, "constexpr")
made = triton.compile(ASTSource(rotate_kernel, signature, constexprs), target=GPUTarget("cuda", 90, 32), options={"num_warps": 2})
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(made.asm["cubin"])
    file.flush()
    tool = Path(triton.knobs.nvidia.ptxas.path).with_name("cuobjdump")
    print(subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout)
print(made.asm["ptx"].count(".local"), "local declarations")
"""


@pytest.mark.parametrize("source", ["ids", "table"])
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_it_compiles_for_a_hopper_gpu_without_spills(source, kind):
    """28 heads of 128 channels, as Qwen2.5-VL has them; no GPU is needed to compile."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, source, kind], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout))
    assert (used["STACK"], used["LOCAL"]) == ("0", "0"), done.stdout  # spills would lie there
    assert "0 local declarations" in done.stdout
    assert int(used["REG"]) <= 128, done.stdout
