"""The kernel against its definition: in Triton's interpreter where there is no GPU, on it where there is one.

This file needs pytest, torch, triton and numpy alone, so that it runs on any machine with a GPU.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: kernels run on the CPU then

import triton

from mmrope.encodings import kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).parents[2]
CASES = {  # channels, pairs, and the distance between the channels of a pair
    "half": (16, 8, 8),
    "half, partial, odd sizes": (19, 7, 7),
    "adjacent": (16, 8, 1),
    "adjacent, partial, odd sizes": (14, 5, 1),
    "halves of blocks": (26, 12, 6),
    "neighbours of two": (16, 8, 2),
    "nothing rotates": (12, 0, 1),
}
LAYOUTS = {"[B, N, S, D]": -3, "[B, S, N, D]": -2, "[T, N, D]": -2}
WAYS = [("[B, N, S, D]", "ids"), ("[B, S, N, D]", "tables"), ("[T, N, D]", "ids"), ("[T, N, D]", "tables")]
FACTOR, EPS = 1.25, 1e-5


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """Each takes 5 ms in the interpreter."""
    if DEVICE == "cpu":
        monkeypatch.setattr(kernel, "PROGRAMS", 4)


# --- the definition ---------------------------------------------------------------------------------------------------


def angles(ids, axis, turns):
    """cos and sin [B, S, P] float64, times FACTOR: whole turns fall off the integer product."""
    angle = ((ids.long().movedim(0, -1)[..., axis] * turns) >> 11).double() * (2 * math.pi / 2**53)
    return FACTOR * angle.cos(), FACTOR * angle.sin()


def rotated(x, cos, sin, heads, distance):
    """x rotated, in float64."""
    pair = torch.arange(cos.shape[-1], device=x.device)
    first = pair // max(distance, 1) * 2 * distance + pair % max(distance, 1)
    rest = torch.arange(2 * len(pair), x.shape[-1], device=x.device)
    x, cos, sin = x.double(), cos.double().unsqueeze(heads), sin.double().unsqueeze(heads)
    a, b = x[..., first], x[..., first + distance]
    there = torch.cat((first, first + distance, rest)).argsort()
    return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., rest]), dim=-1)[..., there]


def normed(x, weight):
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


# --- cases ------------------------------------------------------------------------------------------------------------


class Case:
    """q and k, views of one store, and the table to rotate them by."""

    def __init__(
        self, name="half", layout="[B, N, S, D]", *, dtype=torch.float32, ids_dtype=torch.int64, heads=(6, 2), tokens=2, batch=2,
        sizes=None,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        channels, pairs, self.distance = sizes or CASES[name]
        self.heads, self.q_heads = LAYOUTS[layout], heads[0]
        places = (tokens,) if layout == "[T, N, D]" else (batch, tokens)
        self.store = torch.randn(*places, sum(heads) + 1, channels + 3, generator=generator).to(dtype).to(DEVICE)
        self.q, self.k = self.views(self.store)
        self.ids = torch.randint(-(2**40), 2**40, (3, *places), generator=generator).to(ids_dtype).to(DEVICE)
        self.axis = torch.randint(0, 3, (pairs,), generator=generator).to(DEVICE)
        self.turns = torch.randint(-(2**63), 2**63 - 1, (pairs,), generator=generator).to(DEVICE)
        self.weights = [torch.randn(channels, generator=generator).to(DEVICE) for _ in "qk"]

    def views(self, store):
        """Disjoint, with a head and some channels of neither between them."""
        q, k = store[..., : self.q_heads, 2:-1], store[..., self.q_heads + 1 :, 2:-1]
        return (q, k) if self.heads == -2 else (q.transpose(1, 2), k.transpose(1, 2))

    @property
    def exact(self):
        return angles(self.ids, self.axis, self.turns)

    @property
    def tables(self):
        return tuple(x.float() for x in self.exact)

    def wanted(self, *tensors):
        return tuple(rotated(x, *self.exact, self.heads, self.distance) for x in tensors or (self.q, self.k))

    def rotate(self, q=None, k=None, *, by="ids", **options):
        q, k = self.q if q is None else q, self.k if k is None else k
        options |= {"heads": self.heads, "distance": self.distance}
        if by == "ids":
            return kernel.rotate_by_ids(q, k, self.ids, self.axis, self.turns, FACTOR, **options)
        return kernel.rotate_by_tables(q, k, *self.tables, **options)

    def norm_rotate(self, q, k, *weights, by="ids"):
        options = {"heads": self.heads, "distance": self.distance, "eps": EPS}
        if by == "ids":
            return kernel.norm_rotate_by_ids(q, k, *weights, self.ids, self.axis, self.turns, FACTOR, **options)
        return kernel.norm_rotate_by_tables(q, k, *weights, *self.tables, **options)


def close(made, wanted, **tolerance):
    for one, other in zip(made, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), **({"atol": 2e-6, "rtol": 0} | tolerance))


def leaves(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def slope(made):
    """A number whose gradient is another at every element."""
    return sum((x.double() * torch.linspace(-1, 2, x.numel(), device=x.device).view(x.shape)).sin().sum() for x in made)


# --- rotations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("layout", "by"), WAYS)
def test_the_kernel_is_the_definition(name, layout, by):
    case = Case(name, layout)
    made = case.rotate(by=by)
    close(made, case.wanted())
    for x, y in zip(made, (case.q, case.k), strict=True):
        assert x.dtype == y.dtype
        assert x.stride() == torch.empty_like(y).stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int16, torch.uint8])
def test_ids_of_fewer_bits(layout, ids_dtype):
    case = Case("half", layout, ids_dtype=ids_dtype)
    close(case.rotate(), case.wanted())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["half", "adjacent, partial, odd sizes"])
def test_half_precision_is_off_by_one_rounding_at_most(name, dtype):
    """In the interpreter bfloat16 is truncated where it is stored, by up to one unit."""
    case = Case(name, dtype=dtype)
    unit = 2**-7 if dtype == torch.bfloat16 else 2**-10
    made = case.rotate()
    assert made[0].dtype == made[1].dtype == dtype
    close(made, case.wanted(), rtol=unit, atol=2e-6)


@pytest.mark.parametrize("name", ["half, partial, odd sizes", "adjacent", "nothing rotates"])
@pytest.mark.parametrize(("layout", "by"), WAYS)
def test_in_place_is_the_same_in_views_of_one_store(name, layout, by):
    case = Case(name, layout)
    before, wanted, version = case.store.clone(), case.rotate(by=by), case.q._version
    made = case.rotate(by=by, inplace=True)
    assert made[0] is case.q
    assert made[1] is case.k
    assert case.q._version > version  # so that autograd sees that what it has kept is out of date
    close(made, wanted, atol=0)
    for x in (*made, *case.views(before)):
        x.zero_()
    assert torch.equal(case.store, before)  # around q and k


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("programs", [1, 6, 2048])
@pytest.mark.parametrize("inplace", [False, True])
def test_heads_are_spread_over_programs(monkeypatch, tokens, programs, inplace):
    """18 and 9 heads of 128 channels are 3 and 2 blocks: by one program a token, by a few, by one each."""
    monkeypatch.setattr(kernel, "PROGRAMS", programs)
    case = Case(sizes=(128, 64, 64), heads=(18, 9), tokens=tokens, batch=1)
    wanted = case.wanted()
    close(case.rotate(inplace=inplace), wanted)


def test_the_grid_fills_a_gpu_and_in_place_needs_no_memory(monkeypatch):
    monkeypatch.setattr(kernel, "PROGRAMS", 2048)
    grids = []

    def run(launched, grid, x, arguments):
        q, k, q_out, k_out, *_ = arguments
        assert q is q_out
        assert k is k_out
        grids.append(grid)

    monkeypatch.setattr(kernel, "_run", run)
    for tokens in (1, 64, 512, 1024, 2047, 2048, 10000):
        x, table = torch.empty(tokens, 28, 128), torch.empty(tokens, 64)
        kernel.rotate_by_tables(x, x[:, :4], table, table, heads=-2, distance=64, inplace=True)
    assert grids == [(1, 5), (64, 5), (512, 4), (1024, 2), (2047, 1), (2048, 1), (10000, 1)]


def test_tables_of_any_strides():
    case = Case()
    case.ids = case.ids[:, :1].expand(-1, 2, -1)  # one row of ids for the batch
    wanted = case.wanted()
    close(case.rotate(), wanted)
    cos, sin = case.tables
    case.ids = case.ids[:, :1]
    close(case.rotate(), wanted)
    options = {"heads": case.heads, "distance": case.distance}
    close(kernel.rotate_by_tables(case.q, case.k, *(x[:1].expand(2, -1, -1) for x in (cos, sin)), **options), wanted)
    close(kernel.rotate_by_tables(case.q, case.k, cos[:1], sin[:1], **options), wanted)
    sin = sin.transpose(1, 2).contiguous().transpose(1, 2)  # not as cos lies
    close(kernel.rotate_by_tables(case.q, case.k, cos, sin, **options), wanted)


def test_channels_that_do_not_lie_side_by_side():
    for name in ("half", "adjacent, partial, odd sizes"):
        case = Case(name)
        wanted = case.wanted()
        q, k = (x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (case.q, case.k))
        close(case.rotate(q, k), wanted)
        close(case.rotate(q, k, inplace=True), wanted)
        close((q, k), wanted)


def test_empty_tensors():
    case = Case()
    case.ids = case.ids[..., :0]
    q, k = (x[:, :, :0].clone().requires_grad_() for x in (case.q, case.k))
    for inplace in (False, True):
        with torch.set_grad_enabled(not inplace):
            assert case.rotate(q, k, inplace=inplace)[0].shape == (2, 6, 0, 16)
    made = case.norm_rotate(q, k, *leaves(*case.weights))
    assert made[1].shape == (2, 2, 0, 16)
    (made[0].sum() + made[1].sum()).backward()
    no_heads = case.rotate(case.q[:, :, :0], case.k[:, :0, :0])
    assert no_heads[1].shape == (2, 0, 0, 16)


def test_strides_whose_products_pass_32_bits():
    """Of a view whose heads lie 2^26 elements apart: head 33 begins past 2^31."""
    store = torch.empty(33 * 2**26, dtype=torch.bfloat16, device=DEVICE)  # on a CPU pages that are not touched take no memory
    q = store.as_strided((1, 33, 1, 16), (0, 2**26, 16, 1))
    q.copy_(torch.arange(16.0))
    case = Case(tokens=1, batch=1)
    close(case.rotate(q, q), case.wanted(q, q), rtol=2**-7)
    assert case.rotate(q, case.k.to(q.dtype), inplace=True)[0] is q


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "by"), WAYS)
@pytest.mark.parametrize("name", ["half, partial, odd sizes", "adjacent"])
def test_first_and_second_gradients_are_those_of_the_definition(name, layout, by):
    case, found = Case(name, layout), []
    for rotate in (case.wanted, lambda q, k: case.rotate(q, k, by=by)):
        q, k = leaves(case.q, case.k)
        first = torch.autograd.grad(slope(rotate(q, k)), (q, k), create_graph=True)
        found.append((*first, *torch.autograd.grad(slope(first), (q, k))))
    close(found[1], found[0], atol=2e-5)


def test_a_gradient_of_one_tensor_alone():
    case = Case()
    q, k = leaves(case.q, case.k)
    wanted = torch.autograd.grad(slope(case.wanted(q, k)), (q, k))
    close(torch.autograd.grad(slope(case.rotate(q, case.k)), q), wanted[:1], atol=1e-5)
    close(torch.autograd.grad(slope(case.rotate(case.q, k)), k), wanted[1:], atol=1e-5)
    for i, x in enumerate((q, k)):  # the other output is not used
        gradient = torch.autograd.grad(slope(case.rotate(q, k)[i : i + 1]), (q, k), allow_unused=True)
        close(gradient[i : i + 1], torch.autograd.grad(slope(case.wanted(q, k)[i : i + 1]), x), atol=1e-5)
        assert gradient[1 - i] is None
    summed = torch.autograd.grad(sum(x.sum() for x in case.rotate(q, k)), (q, k))  # gradients without strides
    close(summed, torch.autograd.grad(sum(x.sum() for x in case.wanted(q, k)), (q, k)), atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_through_views_that_are_rotated_in_place(layout):
    case, found = Case("half, partial, odd sizes", layout), []
    for inplace in (False, True):
        (store,) = leaves(case.store)
        own = store * 1  # a leaf itself may not be changed
        q, k = case.views(own)
        if inplace:
            made = case.rotate(q, k, inplace=True)
            assert made[0].data_ptr() == q.data_ptr()
            assert made[1].data_ptr() == k.data_ptr()
            close(made, case.wanted(*case.views(store)))
        else:
            made = case.wanted(q, k)
        rest = own[..., 6:7, :], own[..., :2]
        found.append(torch.autograd.grad(slope(made) + slope(rest), store)[0])
    close(found[1:], found[:1], atol=1e-5)
    q, k = leaves(case.q)[0] * 1, case.k.clone()
    made = case.rotate(q, k, inplace=True)
    assert made[0] is q
    assert made[1] is k
    assert q.requires_grad
    assert not k.requires_grad
    with pytest.raises(RuntimeError, match="leaf"):
        case.rotate(*leaves(case.q, case.k), inplace=True)


def test_what_autograd_has_kept_is_not_changed_unseen():
    case = Case()
    (scale,) = leaves(torch.ones((), device=DEVICE))
    product = (case.q * scale).sum()  # keeps q
    case.rotate(inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():  # where nothing is kept
        q, k = case.q.clone(), case.k.clone()
        wanted = case.wanted(q, k)
        close(case.rotate(q, k, inplace=True), wanted)


# --- with the norm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("layout", "by"), WAYS[:3])
def test_a_norm_and_a_rotation_and_their_gradients_are_the_definition(name, layout, by):
    case, found = Case(name, layout), []

    for exact in (True, False):
        tensors = leaves(case.q, case.k, *case.weights)
        made = case.wanted(*map(normed, tensors[:2], tensors[2:])) if exact else case.norm_rotate(*tensors, by=by)
        found.append((*made, *torch.autograd.grad(slope(made), tensors)))
    close(found[1][:2], found[0][:2], atol=4e-6)
    close(found[1][2:], found[0][2:], atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        close(case.norm_rotate(case.q, case.k, *case.weights, by=by), found[0][:2], atol=4e-6)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_norm_of_half_precision_has_gradients_of_the_types_it_was_given(weights):
    case = Case(dtype=torch.bfloat16)
    case.weights = [x.to(weights) for x in case.weights]
    tensors, exact = leaves(case.q, case.k, *case.weights), leaves(case.q.double(), case.k.double(), *case.weights)
    made, wanted = case.norm_rotate(*tensors), case.wanted(*map(normed, exact[:2], exact[2:]))
    assert made[0].dtype == torch.bfloat16
    close(made, wanted, rtol=2**-7)
    given = [torch.randn(x.shape, device=DEVICE).to(x.dtype) for x in made]
    gradients = torch.autograd.grad(made, tensors, given)
    assert [x.dtype for x in gradients] == [torch.bfloat16, torch.bfloat16, weights, weights]
    close(gradients, torch.autograd.grad(wanted, exact, [x.double() for x in given]), rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("programs", [2, 2048])
def test_a_norm_of_more_heads_and_tokens_than_one_program_takes(monkeypatch, programs):
    monkeypatch.setattr(kernel, "PROGRAMS", programs)
    case, found = Case(sizes=(128, 64, 64), heads=(18, 9), tokens=2, batch=1), []
    for exact in (True, False):
        tensors = leaves(case.q, case.k, *case.weights)
        made = case.wanted(*map(normed, tensors[:2], tensors[2:])) if exact else case.norm_rotate(*tensors)
        found.append((*made, *torch.autograd.grad(slope(made), tensors)))
    close(found[1], found[0], atol=1e-4, rtol=1e-5)


# --- compilers --------------------------------------------------------------------------------------------------------


def test_one_graph_with_the_kernel_in_it():
    case = Case()
    tables, options = case.tables, {"heads": case.heads, "distance": case.distance}

    def graph(function):
        return torch.compile(function, fullgraph=True, backend="aot_eager")

    def rotate(q, k, inplace=False):
        return kernel.rotate_by_ids(q, k, case.ids, case.axis, case.turns, FACTOR, **options, inplace=inplace)

    def norm(q, k, *weights):
        q, k = kernel.norm_rotate_by_tables(q, k, *weights, *tables, **options, eps=EPS)
        return kernel.rotate_by_tables(q, k, *tables, **options)

    store = case.store.clone()
    made = graph(lambda store: rotate(*case.views(store), inplace=True))(store)
    close(made, case.wanted())
    close(case.views(store), case.wanted())
    tensors = leaves(case.q, case.k, *case.weights)
    q, k = tensors[:2]
    wanted = torch.autograd.grad(slope(case.wanted(q, k)), (q, k))
    for inplace in (False, True):
        made = graph(lambda q, k, inplace=inplace: rotate(q * 1, k * 1, inplace))(q, k)
        close(made, case.wanted())
        close(torch.autograd.grad(slope(made), (q, k)), wanted, atol=1e-5)
    made, eager = graph(norm)(*tensors), norm(*tensors)
    close(made, eager)
    close(torch.autograd.grad(slope(made), tensors), torch.autograd.grad(slope(eager), tensors), atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own clones
@pytest.mark.parametrize("by", ["ids", "tables"])
def test_the_operators_keep_the_rules_of_operators(by):
    case = Case(tokens=1)
    q, k, *weights = leaves(case.q, case.k, *case.weights)
    table = (case.ids, case.axis, case.turns) if by == "ids" else (*case.tables, None)
    torch.library.opcheck(kernel.rotate_operator, (q, k, *table, FACTOR, -FACTOR, -3, 8))
    torch.library.opcheck(kernel.rotate_operator_, (q.detach(), k.detach(), *table, FACTOR, FACTOR, -3, 8))
    torch.library.opcheck(kernel.norm_rotate_operator, (q, k, *weights, *table, FACTOR, -3, 8, EPS))
    gradients = [x.detach() for x in (q, k, q, k, *weights)]
    torch.library.opcheck(kernel.norm_rotate_back_operator, (*gradients, *table, FACTOR, -3, 8, EPS))


# --- what a GPU would get -----------------------------------------------------------------------------------------------

COMPILE = """
import json, sys, torch, warnings
from tests.support import stub_gpu
warnings.simplefilter("error")  # of Triton
from mmrope.encodings import kernel
stub_gpu.install(int(sys.argv[1]))
found = []

def look(name, function, call):
    call()
    *_, made = variants = stub_gpu.compiled(function)
    found.append({"name": name, "size": dtype.itemsize, "variants": len(variants), "registers": made.registers,
                  "local": made.local, "loads": made.loads, "stores": made.stores})

for dtype in (torch.bfloat16, torch.float32):
    # [B, N, S, D] views of [B, S, N, D] memory, as models have them
    q, k = (torch.randn(1, 16, n, 128, dtype=dtype).transpose(1, 2) for n in (28, 4))
    axis, turns, table, weight = torch.zeros(64).long(), torch.zeros(64).long(), torch.randn(1, 16, 64), torch.ones(128, dtype=dtype)
    ids = torch.arange(16).expand(3, 1, 16)
    half = {"heads": -3, "distance": 64}
    look("ids", kernel.rotate_kernel, lambda: kernel.rotate_by_ids(q, k, ids, axis, turns, 1.0, **half))
    look("ids in place", kernel.rotate_kernel, lambda: kernel.rotate_by_ids(q, k, ids, axis, turns, 1.0, **half, inplace=True))
    look("tables", kernel.rotate_kernel, lambda: kernel.rotate_by_tables(q, k, table, table, **half))
    if dtype == torch.bfloat16:
        adjacent = {"heads": -3, "distance": 1}
        look("adjacent", kernel.rotate_kernel, lambda: kernel.rotate_by_ids(q, k, ids, axis, turns, 1.0, **adjacent))
    leaf = q.detach().requires_grad_()
    normed = []
    look("norm", kernel.rotate_kernel,
         lambda: normed.extend(kernel.norm_rotate_by_ids(leaf, k, weight, weight, ids, axis, turns, 1.0, **half, eps=1e-6)))
    look("norm back", kernel.norm_back_kernel, lambda: ((normed[0] * q).sum() + (normed[1] * k).sum()).backward())
least, median = stub_gpu.launch_cost(lambda: kernel.rotate_by_ids(q, k, ids, axis, turns, 1.0, **half), calls=2, rounds=2)
print(json.dumps({"found": found, "cost": [least, median]}))
"""
REGISTERS = {"norm": 64, "norm back": 128}  # at most; others 48: 42 warps at work of the 64 that a multiprocessor holds


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_a_launch_compiles_to_wide_accesses_without_spills(capability):
    """What is launched for 28 and 4 heads of 128 channels, as Qwen2.5-VL has them; no GPU is needed to compile."""
    if capability == 100 and not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas-blackwell").exists():
        pytest.skip("this Triton does not know sm_100")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", COMPILE, str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert 0 < made["cost"][0] <= made["cost"][1]
    for one in made["found"]:
        name, size = one["name"], one["size"]
        assert one["local"] == 0, one  # spills would lie there
        assert one["registers"] <= REGISTERS.get(name, 48), one
        wide = {what: sum(int(width) * n for width, n in one[what].items() if int(width) >= 16) for what in ("loads", "stores")}
        tile = 2 * 16 * size  # bytes of a thread: 16 channels of q and of k
        assert wide == {"loads": tile * (2 if name == "norm back" else 1), "stores": tile}, one
    variants = {(one["name"], one["size"]): one["variants"] for one in made["found"]}
    for size in (2, 4):
        assert variants["ids in place", size] == variants["ids", size]  # the same kernel
