"""However a module is loaded, cast, sharded, traced or shared, its cos and sin are those of one that was made plainly."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from transformers import PreTrainedConfig, PreTrainedModel

from mmrope import RotaryEmbedding, RotarySpec
from mmrope.encodings import DynamicNTK, LongRoPE, MixedRotary, SinusoidalEmbedding, XPos
from tests.support import lowest

BFLOAT16 = torch.bfloat16
TOKENS = 12


@pytest.fixture(autouse=True)
def uninitialised_memory_is_wrong() -> Iterator[None]:
    """What is not written holds NaN and the largest integers, so that garbage is never right by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@contextmanager
def defaults(dtype: torch.dtype = torch.float32, device: str | None = None) -> Iterator[None]:
    """Another default dtype, and another default device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device) if device else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


# --- what is right ----------------------------------------------------------------------------------------------------

NUMBERS = itertools.count(1)


def fresh() -> int:
    """A number that no test had before: of the frequencies made by it, the process can have nothing in store."""
    return next(NUMBERS)


@dataclass(frozen=True)
class Case:
    """A module, made by a number; what it is called on; and what has to come out, in float64 and without the module."""

    make: Callable[[int], nn.Module]
    run: Callable[..., tuple[Tensor, ...]]
    """(module, *arguments) -> tensors."""
    calls: Callable[[int], list[tuple[Any, ...]]]
    """The arguments of each call. Tokens are dimension 2 of every tensor that has one."""
    truth: Callable[..., tuple[Tensor, ...]]
    """(number, *arguments) -> tensors."""
    atol: float = 2e-6

    def outputs(self, module: nn.Module, n: int) -> list[tuple[Tensor, ...]]:
        return [self.run(module, *arguments) for arguments in self.calls(n)]


def tensors(tree: Any, function: Callable[[Tensor], Any], otherwise: Any = ...) -> Any:
    """Calls, or results, with something else in place of each tensor (and of each thing that is none)."""
    return tree_map(lambda x: function(x) if isinstance(x, Tensor) else x if otherwise is ... else otherwise, tree)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rotary(
    spec: Callable[[int], RotarySpec],
    *,
    angles: str = "exact",
    frequencies: Callable[[int, Any], Tensor] | None = None,
    original: int | None = None,
    most: int = 10**5,
    atol: float = 2e-6,
) -> Case:
    """Whole ids and fractional float32 ids, on both sides of the original length, which is a number or a tensor."""
    axes = len(spec(0).axes)
    whole = torch.randint(0, most, (axes, 2, TOKENS), generator=seeded())
    fractional = torch.rand(axes, 2, TOKENS, generator=seeded()) * 100
    assert axes == 1 or not torch.equal(whole[0], whole[1])
    calls: list[tuple[Any, ...]] = [(whole,), (fractional,)]
    if original is not None:
        short, long = torch.tensor(original), torch.tensor(original + 1)
        calls = [(whole, original), (whole, long), (fractional, short), (fractional, 3 * original)]

    def truth(n: int, ids: Tensor, length: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
        made = spec(n)
        if frequencies is not None:
            inv_freq = frequencies(n, length)
        else:
            inv_freq = torch.tensor(made.inv_freq if length is None else made.at_length(int(length)))
        working = torch.float32 if angles == "hf" else torch.float64
        ids = ids.movedim(0, -1)[..., torch.tensor(made.axis)]  # [B, S, P], or [B, S, K, P]
        angle = (ids.to(working) * inv_freq.to(working)).to(torch.float64)
        return angle.cos() * made.attention_factor, angle.sin() * made.attention_factor

    return Case(
        make=lambda n: RotaryEmbedding(spec(n), angles=angles),
        run=lambda module, ids, length=None: module(ids, length=length),
        calls=lambda n: tensors(calls, torch.clone),
        truth=truth,
        atol=atol,
    )


def by_torch(n: int, length: Any) -> Tensor:
    """theta^(-2 i / 16) as transformers computes it, in float32."""
    return 1.0 / ((1e4 + n) ** (torch.arange(0, 16, 2, dtype=torch.int64).to(torch.float32) / 16))


def long_by_torch(n: int, length: Any) -> Tensor:
    divisors = LONG.long_factor if int(length) > LONG.original_max_position else LONG.short_factor
    return 1.0 / (torch.tensor(divisors) * (1e4 + n) ** (torch.arange(0, 16, 2, dtype=torch.int64).to(torch.float32) / 16))


def mrope(n: int) -> RotarySpec:
    return RotarySpec.mrope(16, theta=1e4 + n, sections=(2, 3, 3))


def xpos_calls(n: int) -> list[tuple[Any, ...]]:
    q, k = torch.randn(2, 1, 2, TOKENS, xpos_dim(n), generator=seeded())
    return [(q, k, torch.randint(0, 600, (1, 1, TOKENS), generator=seeded()))]


def xpos_dim(n: int) -> int:
    return 16 + 2 * (n % 97)  # the factors go by it alone


def xpos_truth(n: int, q: Tensor, k: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    pair = torch.arange(xpos_dim(n) // 2, dtype=torch.float64)
    angle = ids[0, :, None, :, None] * torch.tensor(RotarySpec.rope(xpos_dim(n)).inv_freq).to(torch.float64)
    grown = ((2 * pair / xpos_dim(n) + 0.4) / 1.4) ** ((ids[0, :, None, :, None] - 300) / 512)
    turned = []
    for x, scale in ((q, grown), (k, 1 / grown)):
        a, b = x.to(torch.float64).chunk(2, dim=-1)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        turned.append(torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1))
    return turned[0], turned[1]


def sinusoidal_truth(n: int, positions: Tensor) -> tuple[Tensor]:
    angle = positions.to(torch.float64)[..., None] * (1e4 + n) ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    return (torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2),)


LONG = LongRoPE((1.0,) * 4 + (1.25,) * 4, (1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0), original_max_position=64, factor=16)
DYNAMIC = DynamicNTK(original_max_position=64, factor=2.0)

CASES = {
    "rope": rotary(lambda n: RotarySpec.rope(16, theta=1e4 + n)),
    "mrope": rotary(mrope),
    "mrope_hf": rotary(mrope, angles="hf", frequencies=by_torch),
    "kv_heads": rotary(lambda n: RotarySpec.mrope(16, theta=1e4 + n, kv_heads=(2, 1, 1))),
    "longrope": rotary(lambda n: mrope(n).scaled(LONG), original=64),
    "longrope_hf": rotary(lambda n: mrope(n).scaled(LONG), angles="hf", frequencies=long_by_torch, original=64),
    # past the original length the base is computed in float64 where the spec's is rounded
    "dynamic": rotary(lambda n: mrope(n).scaled(DYNAMIC), original=64, most=1000, atol=1e-3),
    "xpos": Case(
        make=lambda n: XPos(xpos_dim(n), center=300),
        run=lambda module, q, k, ids: module.rotate(q, k, ids),
        calls=xpos_calls,
        truth=xpos_truth,
        atol=2e-5,
    ),
    "sinusoidal": Case(
        make=lambda n: SinusoidalEmbedding(16, theta=1e4 + n),
        run=lambda module, positions: (module(positions),),
        calls=lambda n: [
            (torch.randint(0, 10**5, (1, 2, TOKENS), generator=seeded()),),
            (torch.rand(1, 2, TOKENS, generator=seeded()) * 100,),
        ],
        truth=sinusoidal_truth,
    ),
}
cases = pytest.mark.parametrize("name", CASES)


def near_the_truth(name: str, made: list[Any], n: int, calls: list[tuple[Any, ...]] | None = None) -> None:
    case = CASES[name]
    for number, (outputs, arguments) in enumerate(zip(made, calls or case.calls(n), strict=True)):
        for tensor, true in zip(outputs, case.truth(n, *arguments), strict=True):
            assert (tensor.dtype, tensor.shape, tensor.device) == (torch.float32, true.shape, true.device), name
            worst = (tensor.detach().to(torch.float64) - true).abs().max()
            assert worst <= case.atol, f"{name}, call {number}: off by {worst:.2g}"


def right(name: str, made: list[tuple[Tensor, ...]], n: int) -> None:
    """Near the truth, and bit for bit what a module gives that was made plainly."""
    near_the_truth(name, made, n)  # first: what is wrong for the whole process is wrong in a module made plainly, too
    plain = CASES[name].outputs(CASES[name].make(n), n)
    for outputs, wanted in zip(made, plain, strict=True):
        for tensor, one in zip(outputs, wanted, strict=True):
            assert torch.equal(tensor, one), f"{name}: off by {(tensor - one).abs().max():.2g} from a module made plainly"


@cases
def test_a_module_made_plainly_is_right_and_a_rounded_one_is_not(name):
    n, case = fresh(), CASES[name]
    made = case.outputs(case.make(n), n)
    right(name, made, n)
    for place in range(len(made[0])):
        rounded = [list(outputs) for outputs in made]
        rounded[-1][place] = rounded[-1][place].to(BFLOAT16).to(torch.float32)
        with pytest.raises(AssertionError, match="off by"):
            near_the_truth(name, rounded, n)


# --- a model that owns all of them ------------------------------------------------------------------------------------

GRID = torch.randint(0, 30, (2, 1, TOKENS), generator=seeded())


class Layer(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.encodings = nn.ModuleDict({name: case.make(n) for name, case in CASES.items()})
        self.mixed = MixedRotary(16, 2)

    def forward(self) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
        return {name: CASES[name].outputs(module, self.n) for name, module in self.encodings.items()}, self.mixed(GRID)


class Owner(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.proj = nn.Linear(4, 3)
        self.layers = nn.ModuleList([Layer(n) for _ in range(2)])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        return self.proj(x), [layer() for layer in self.layers]


class Config(PreTrainedConfig):
    model_type = "mmrope_owner"

    def __init__(self, n: int = 0, **options: Any) -> None:
        self.n = n
        super().__init__(**options)


class Pretrained(PreTrainedModel):
    config_class = Config
    base_model_prefix = ""
    _no_split_modules = ("Layer",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.owner = Owner(config.n)
        self.post_init()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        return self.owner(x)


X = torch.ones(1, 4)
KEYS = {"proj.weight", "proj.bias", "layers.0.mixed.weight", "layers.1.mixed.weight"}


def saved_state(n: int) -> dict[str, Tensor]:
    """Parameters that no module begins with."""
    generator = torch.Generator().manual_seed(n)
    return {
        "proj.weight": torch.randn(3, 4, generator=generator),
        "proj.bias": torch.randn(3, generator=generator),
        "layers.0.mixed.weight": torch.randn(2, 8, 2, generator=generator),
        "layers.1.mixed.weight": torch.randn(2, 8, 2, generator=generator),
    }


def saved_owner(n: int) -> Owner:
    owner = Owner(n)
    owner.load_state_dict(saved_state(n))
    return owner


def saved_file(n: int, folder: Path) -> str:
    torch.save(saved_state(n), folder / "saved.bin")
    return str(folder / "saved.bin")


def owner_is_right(model: nn.Module, n: int, dtype: torch.dtype = torch.float32, mixed: torch.dtype | None = None) -> None:
    """All that the model computes, whose parameters were rounded to a dtype; `mixed`, those of MixedRotary."""
    state = saved_state(n)
    projected, layers = model(X.to(dtype))
    wanted = X.to(dtype) @ state["proj.weight"].to(dtype).T + state["proj.bias"].to(dtype)
    torch.testing.assert_close(projected, wanted, atol=1e-2 if dtype == BFLOAT16 else 1e-5, rtol=1e-2)
    assert len(layers) == 2
    for index, (made, turned) in enumerate(layers):
        assert list(made) == list(CASES)
        for name, outputs in made.items():
            right(name, outputs, n)
        plain = MixedRotary(16, 2)
        plain.load_state_dict({"weight": state[f"layers.{index}.mixed.weight"].to(mixed or dtype)}, strict=True)
        assert all(torch.equal(one, other) for one, other in zip(turned, plain(GRID), strict=True))


def away(model: nn.Module) -> int:
    """How many parameters are elsewhere, for hooks to fetch at each call."""
    return sum(parameter.device.type == "meta" for parameter in model.parameters())


def test_a_model_made_plainly_is_right():
    n = fresh()
    owner = saved_owner(n)
    owner_is_right(owner, n)
    assert set(owner.state_dict()) == KEYS


# --- transformers -----------------------------------------------------------------------------------------------------

AUTO = {"owner.layers.0": "cpu", "owner.layers.1": "disk", "owner.proj": "disk"}


def save_pretrained(n: int, folder: Path) -> Path:
    model = Pretrained(Config(n))
    model.owner.load_state_dict(saved_state(n))
    model.save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": BFLOAT16},
        {"dtype": "auto"},
        {"low_cpu_mem_usage": True},
        {"device_map": "cpu"},
        {"device_map": "cpu", "dtype": BFLOAT16, "low_cpu_mem_usage": True},
        {"device_map": "auto"},
        {"device_map": "auto", "dtype": BFLOAT16},
        {"device_map": AUTO},
    ],
    ids=str,
)
def test_from_pretrained(options, tmp_path):
    n = fresh()
    if options.get("device_map") is AUTO:
        options = {**options, "offload_folder": tmp_path / "offload"}
    model, info = Pretrained.from_pretrained(save_pretrained(n, tmp_path), output_loading_info=True, **options)
    assert not any(info.values())
    assert away(model) == (3 if "offload_folder" in options else 0)
    # a mixed weight is float32 from the beginning, and transformers keeps it so
    owner_is_right(model, n, BFLOAT16 if options.get("dtype") == BFLOAT16 else torch.float32, mixed=torch.float32)


def test_from_pretrained_makes_what_a_checkpoint_lacks():
    class Complete(Pretrained):
        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if isinstance(module, MixedRotary):
                module.reset_parameters()

    n = fresh()
    state = {f"owner.{name}": tensor for name, tensor in saved_state(n).items() if "layers.1" not in name}
    model, info = Complete.from_pretrained(None, config=Config(n), state_dict=state, output_loading_info=True)
    assert info["missing_keys"] == {"owner.layers.1.mixed.weight"}
    first, second = (layer.mixed.weight for layer in model.owner.layers)
    assert torch.equal(first, saved_state(n)["layers.0.mixed.weight"])
    has_first_magnitudes(second)
    for layer in model(X)[1]:
        for name, outputs in layer[0].items():
            right(name, outputs, n)


def test_from_config_in_bfloat16():
    n = fresh()
    model = Pretrained._from_config(Config(n), dtype=BFLOAT16)
    assert model.owner.proj.weight.dtype == BFLOAT16
    model.owner.load_state_dict(saved_state(n))
    owner_is_right(model, n, BFLOAT16, mixed=torch.float32)


# --- the meta device --------------------------------------------------------------------------------------------------


def made_under_meta(make: Callable[[int], Any], n: int) -> Any:
    with torch.device("meta"):
        return make(n)


@cases
def test_made_on_the_meta_device_and_emptied(name):
    n = fresh()
    module = made_under_meta(CASES[name].make, n).to_empty(device="cpu")
    right(name, CASES[name].outputs(module, n), n)


@cases
def test_made_on_the_meta_device_and_called(name):
    """The device is that of the ids; there are no weights to wait for."""
    n = fresh()
    right(name, CASES[name].outputs(made_under_meta(CASES[name].make, n), n), n)


@cases
@pytest.mark.parametrize("first", ["meta", "cpu"])
def test_ids_of_another_device(name, first):
    """The results are where the ids are, and are right again on the first device."""
    n, case = fresh(), CASES[name]
    module = case.make(n)
    for device in (first, "meta", "cpu"):
        if device == "cpu":
            right(name, case.outputs(module, n), n)
            continue
        for arguments in case.calls(n):
            moved = tensors(arguments, lambda x: x.to("meta"))
            for made, true in zip(case.run(module, *moved), case.truth(n, *arguments), strict=True):
                assert (made.device.type, made.dtype, made.shape) == ("meta", torch.float32, true.shape)


@pytest.mark.parametrize("assign", [False, True])
def test_a_model_of_the_meta_device_takes_a_state_dict(assign):
    n = fresh()
    owner = made_under_meta(Owner, n)
    if not assign:
        owner.to_empty(device="cpu")
    owner.load_state_dict(saved_state(n), strict=True, assign=assign)
    owner_is_right(owner, n)


# --- accelerate -------------------------------------------------------------------------------------------------------

SPLIT = {"proj": "cpu", "layers.0": "cpu", "layers.1": "disk"}


@pytest.mark.parametrize(
    ("include_buffers", "options"),
    [
        (False, {"device_map": {"": "cpu"}}),
        (False, {"device_map": SPLIT, "offload_buffers": True}),
        (True, {"device_map": {"": "cpu"}}),
        (True, {"device_map": {"": "cpu"}, "dtype": BFLOAT16}),
        (True, {"device_map": {"": "cpu"}, "force_hooks": True}),
        (True, {"device_map": "auto"}),
        (True, {"device_map": SPLIT}),
        (True, {"device_map": SPLIT, "offload_buffers": True}),
    ],
    ids=str,
)
def test_accelerate_loads_and_dispatches(include_buffers, options, tmp_path):
    n = fresh()
    with accelerate.init_empty_weights(include_buffers=include_buffers):
        owner = Owner(n)
    assert owner.proj.weight.device.type == "meta"
    if options["device_map"] is SPLIT:
        options = {**options, "offload_folder": tmp_path / "offload"}
    owner = accelerate.load_checkpoint_and_dispatch(
        owner, saved_file(n, tmp_path), strict=True, no_split_module_classes=["Layer"], **options
    )
    for _ in range(2):  # hooks move parameters to and fro
        assert away(owner) == (1 if "offload_folder" in options else 0)
        owner_is_right(owner, n, options.get("dtype", torch.float32))


CPU = torch.device("cpu")
OFFLOADS: dict[str, tuple[int, Callable[[nn.Module, Path], Any]]] = {
    "cpu": (4, lambda model, folder: accelerate.cpu_offload(model, CPU)),
    "cpu, buffers too": (4, lambda model, folder: accelerate.cpu_offload(model, CPU, offload_buffers=True)),
    "cpu, with a hook": (0, lambda model, folder: accelerate.cpu_offload_with_hook(model, CPU)[0]),
    "disk": (4, lambda model, folder: accelerate.disk_offload(model, folder, CPU)),
    "disk, buffers too": (4, lambda model, folder: accelerate.disk_offload(model, folder, CPU, offload_buffers=True)),
    "dispatched": (0, lambda model, folder: accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)),
    "dispatched, a part to disk": (
        1,
        lambda model, folder: accelerate.dispatch_model(model, SPLIT, offload_dir=folder, offload_buffers=True),
    ),
}


@pytest.mark.parametrize("offload", OFFLOADS)
def test_accelerate_offloads(offload, tmp_path):
    n = fresh()
    count, carry_out = OFFLOADS[offload]
    owner = carry_out(saved_owner(n), tmp_path)
    for _ in range(2):
        assert away(owner) == count
        owner_is_right(owner, n)


# --- FSDP -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """One process, alone in its group."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


alone = pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")  # as it does in a group of one


def fsdp1(owner: Owner, **options: Any) -> nn.Module:
    return FullyShardedDataParallel(
        owner, device_id=torch.device("cpu"), auto_wrap_policy=ModuleWrapPolicy({Layer}), use_orig_params=True, **options
    )


def fsdp2(owner: Owner, **options: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for module in (*owner.layers, owner):
        fully_shard(module, mesh=mesh, **options)
    return owner


def trains_and_is_right(model: nn.Module, n: int, dtype: torch.dtype = torch.float32) -> None:
    with torch.no_grad():
        owner_is_right(model, n, dtype)
    projected, layers = model(X)
    (projected.sum() + sum(cos.sum() for _, (cos, _) in layers)).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert len(gradients) == len(KEYS)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    with torch.no_grad():
        owner_is_right(model, n, dtype)


PRECISIONS1 = {
    "as it is": ({}, torch.float32),
    "buffers": ({"mixed_precision": MixedPrecision(buffer_dtype=BFLOAT16)}, torch.float32),
    "all": ({"mixed_precision": MixedPrecision(param_dtype=BFLOAT16, buffer_dtype=BFLOAT16)}, BFLOAT16),
}
PRECISIONS2 = {
    "as it is": ({}, torch.float32),
    "parameters": ({"mp_policy": MixedPrecisionPolicy(param_dtype=BFLOAT16)}, BFLOAT16),
}


@alone
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("precision", PRECISIONS1)
def test_fsdp1(precision):
    n = fresh()
    options, dtype = PRECISIONS1[precision]
    trains_and_is_right(fsdp1(saved_owner(n), **options), n, dtype)


@lowest.newer_torch("FSDP2 on a CPU")
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("precision", PRECISIONS2)
def test_fsdp2(precision):
    n = fresh()
    options, dtype = PRECISIONS2[precision]
    trains_and_is_right(fsdp2(saved_owner(n), **options), n, dtype)


@alone
@pytest.mark.usefixtures("world")
def test_fsdp1_makes_what_was_made_on_the_meta_device():
    """It calls reset_parameters of all modules that have tensors, and fails where there is none."""
    n = fresh()
    model = fsdp1(made_under_meta(Owner, n))
    with FullyShardedDataParallel.summon_full_params(model):
        for layer in model.module.layers:
            has_first_magnitudes(layer.mixed.weight)
    for layer in model(X)[1]:
        for name, outputs in layer[0].items():
            right(name, outputs, n)


@lowest.newer_torch("FSDP2 on a CPU")
@pytest.mark.usefixtures("world")
def test_fsdp2_makes_what_was_made_on_the_meta_device():
    n = fresh()
    model = fsdp2(made_under_meta(Owner, n)).to_empty(device="cpu")
    for layer in model.layers:
        layer.mixed.reset_parameters()
        has_first_magnitudes(layer.mixed.weight.full_tensor())
    for layer in model(X)[1]:
        for name, outputs in layer[0].items():
            right(name, outputs, n)


# --- casts, copies and saves ------------------------------------------------------------------------------------------


def through_a_file(module: nn.Module, **options: Any) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False, **options)


def with_buffers(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """As loaders do it that know tensors by their names, and not the modules that own them."""
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = change(buffer)
    return module


def emptied(module: nn.Module) -> nn.Module:
    return module.to("meta").to_empty(device="cpu")


def with_state(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    keys = module.load_state_dict(state, strict=True)
    assert keys == ([], [])
    return module


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.to(BFLOAT16),
    "double": lambda module: module.double(),
    "float": lambda module: module.float(),
    "there and back": lambda module: module.half().to(BFLOAT16).float().double(),
    "type": lambda module: module.type(torch.float16),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "a copy of a copy in bfloat16": lambda module: copy.deepcopy(pickle.loads(pickle.dumps(module.to(BFLOAT16)))),
    "torch.save": through_a_file,
    "torch.save, loaded to meta": lambda module: through_a_file(module, map_location="meta"),
    "an empty state dict": lambda module: with_state(module, {}),
    "its own state dict": lambda module: with_state(module, module.state_dict()),
    "emptied": emptied,
    "emptied in place": lambda module: module.to_empty(device="cpu"),
    "buffers cast": lambda module: with_buffers(module, lambda x: x.to(BFLOAT16) if x.is_floating_point() else x),
    "buffers emptied": lambda module: with_buffers(module, torch.empty_like),
    "shared memory": lambda module: module.share_memory(),
}


@cases
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
def test_what_is_done_to_a_module_does_not_change_it(name, change, called):
    n, case = fresh(), CASES[name]
    module = case.make(n)
    if called:
        right(name, case.outputs(module, n), n)
    right(name, case.outputs(CHANGES[change](module), n), n)


@cases
def test_there_is_nothing_to_save_or_to_load(name):
    """No tensors at all: what a loader does not find it cannot spoil."""
    n, case = fresh(), CASES[name]
    module = case.make(n)
    for _ in ("new", "called"):
        assert module.state_dict() == {}
        assert list(module.parameters()) == []
        assert [key for key, _ in module.named_buffers()] == []
        assert not any(isinstance(value, Tensor) for part in module.modules() for value in vars(part).values())
        with pytest.raises(RuntimeError, match="Unexpected key"):
            module.load_state_dict({"inv_freq": torch.ones(8)})
        right(name, case.outputs(module, n), n)


def test_a_called_module_is_saved_as_a_new_one():
    """Tables and constants are not in the file."""
    for case in CASES.values():
        n = fresh()
        module = case.make(n)
        new = len(pickle.dumps(module))
        case.outputs(module, n)
        assert len(pickle.dumps(module)) <= new + 64


# --- defaults of the process ------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("dtype", [BFLOAT16, torch.float16, torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize("where", ["made", "called", "made and called"])
def test_defaults_are_not_felt(name, dtype, device, where):
    n, case = fresh(), CASES[name]
    calls = case.calls(n)
    with defaults(dtype, device) if "made" in where else nullcontext():
        module = case.make(n)
    with defaults(dtype, device) if "called" in where else nullcontext():
        made = [case.run(module, *arguments) for arguments in calls]
    right(name, made, n)
    right(name, case.outputs(module, n), n)


@cases
def test_constructors_that_a_trainer_has_patched_are_not_felt(name, monkeypatch):
    """Under DeepSpeed's zero.Init every floating-point tensor that is made is rounded."""

    def rounding(constructor: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def construct(*arguments: Any, **options: Any) -> Tensor:
            made = constructor(*arguments, **options)
            return made.to(BFLOAT16) if made.is_floating_point() else made

        return construct

    n, case = fresh(), CASES[name]
    with monkeypatch.context() as patch:
        for constructor in ("tensor", "arange", "empty", "zeros", "ones", "full", "linspace"):
            patch.setattr(torch, constructor, rounding(getattr(torch, constructor)))
        module = case.make(n)
    right(name, case.outputs(module, n), n)


# --- inference and training -------------------------------------------------------------------------------------------


def trained(case: Case, module: nn.Module, n: int) -> list[Tensor]:
    """Gradients of all that can have one: of floating-point arguments, and of a factor of what comes out."""
    found = []
    for arguments in case.calls(n):
        arguments = [x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
        factor = torch.ones((), requires_grad=True)
        sum((made * factor).square().sum() + made.sum() for made in case.run(module, *arguments)).backward()
        found += [leaf.grad for leaf in (factor, *arguments) if isinstance(leaf, Tensor) and leaf.grad is not None]
    return found


@cases
@pytest.mark.parametrize("inside", ["made", "called", "made and called"])
def test_a_module_of_inference_mode_trains(name, inside):
    n, case = fresh(), CASES[name]
    with torch.inference_mode("made" in inside):
        module = case.make(n)
    if "called" in inside:
        with torch.inference_mode():
            near_the_truth(name, case.outputs(module, n), n)
    gradients = trained(case, module, n)
    right(name, case.outputs(module, n), n)
    wanted = trained(case, case.make(n), n)
    assert len(gradients) == len(wanted) >= len(case.calls(n))
    assert all(torch.equal(one, other) and one.abs().sum() > 0 for one, other in zip(gradients, wanted, strict=True))


@cases
def test_gradients_reach_floating_point_arguments(name):
    """Of fractional ids, that may be learned, too."""
    n, case = fresh(), CASES[name]
    module = case.make(n)
    for arguments in case.calls(n):
        arguments = tensors(arguments, lambda x: x.requires_grad_() if x.is_floating_point() else x)
        leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
        if not leaves:
            continue
        made, true = (sum(x.sum() for x in run) for run in (case.run(module, *arguments), case.truth(n, *arguments)))
        assert made.requires_grad
        for one, other in zip(torch.autograd.grad(made, leaves), torch.autograd.grad(true, leaves), strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other, atol=1e-2 if name == "dynamic" else 1e-4, rtol=1e-5)


def test_a_mixed_rotary_called_in_inference_mode_trains():
    module = MixedRotary(16, 2)
    with torch.inference_mode():
        wanted = module(GRID)
    made = module(GRID)
    assert all(torch.equal(one, other) for one, other in zip(made, wanted, strict=True))
    made[0].sum().backward()
    assert module.weight.grad.abs().sum() > 0


# --- traces -----------------------------------------------------------------------------------------------------------


class Called(nn.Module):
    """All calls of a case in one."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.module, self.run = module, CASES[name].run

    def forward(self, calls: list[tuple[Any, ...]]) -> list[tuple[Tensor, ...]]:
        return [self.run(self.module, *arguments) for arguments in calls]


def by_vmap(called: Called, calls: list[tuple[Any, ...]]) -> Any:
    dims = tensors(calls, lambda x: 0 if x.ndim else None, None)
    both = torch.func.vmap(called, in_dims=(dims,))(tensors(calls, lambda x: torch.stack((x, x)) if x.ndim else x))
    for x in tree_leaves(both):  # exp2 of torch differs in the last bit between vectors and what is left of them
        torch.testing.assert_close(x[0], x[1], atol=1e-6, rtol=1e-6)
    return tensors(both, lambda x: x[0])


def by_grad(called: Called, calls: list[tuple[Any, ...]]) -> Any:
    def weighed(factor: Tensor) -> tuple[Tensor, Any]:
        made = called(calls)
        return sum((x * factor).sum() for x in tree_leaves(made)), made

    slope, made = torch.func.grad(weighed, has_aux=True)(torch.ones(()))
    torch.testing.assert_close(slope, sum(x.sum() for x in tree_leaves(made)), atol=1e-3, rtol=1e-3)
    return made


def by_fake(called: Called, calls: list[tuple[Any, ...]]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        is_fake(called(tensors(calls, mode.from_tensor)))


def is_fake(made: list[tuple[Tensor, ...]]) -> None:
    assert all(isinstance(x, FakeTensor) and x.dtype == torch.float32 for x in tree_leaves(made))


def by_jvp(called: Called, calls: list[tuple[Any, ...]]) -> Any:
    made, slope = torch.func.jvp(lambda factor: tensors(called(calls), lambda x: x * factor), (X[0, 0],), (X[0, 0],))
    assert all(torch.equal(*pair) for pair in zip(tree_leaves(made), tree_leaves(slope), strict=True))
    return made


def by_make_fx(called: Called, calls: list[tuple[Any, ...]], mode: str) -> Any:
    flat, shape = tree_flatten(calls)
    trace = make_fx(lambda *flat: called(tree_unflatten(flat, shape)), tracing_mode=mode, _allow_non_fake_inputs=True)
    return trace(*flat)(*flat)


def by_compile(called: Called, calls: list[tuple[Any, ...]]) -> Any:
    return torch.compile(called, backend="aot_eager", fullgraph=True)(calls)


TRACED = [name for name in CASES if name not in ("rope", "longrope_hf")]  # as mrope; as longrope and mrope_hf
TRACES: dict[str, Callable[..., Any]] = {
    "vmap": by_vmap,
    "grad": by_grad,
    "jvp": by_jvp,
    "functionalize": lambda called, calls: torch.func.functionalize(called)(calls),
    "fake": by_fake,
    "make_fx": lambda called, calls: by_make_fx(called, calls, "real"),
    "symbolic make_fx": lambda called, calls: by_make_fx(called, calls, "symbolic"),
    "compile": by_compile,
}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward-mode differentiation
def test_nothing_of_a_trace_is_left_behind(name, trace):
    """The first call is inside; what comes out there is right, and what comes out afterwards."""
    torch._dynamo.reset()
    n, case = fresh(), CASES[name]
    module = case.make(n)
    inside = TRACES[trace](Called(name, module), case.calls(n))
    if trace != "fake":
        near_the_truth(name, inside, n)
    right(name, case.outputs(module, n), n)


@cases
@pytest.mark.parametrize("before", ["made inside", "made outside", "called outside"])
def test_a_module_may_be_called_where_tensors_are_fake(name, before):
    """And nothing real is allowed, as planners of memory do it. Outside it is a real one."""
    n, case = fresh(), CASES[name]
    module, calls = case.make(n), case.calls(n)
    if before == "called outside":
        right(name, case.outputs(module, n), n)
    with FakeTensorMode() as mode:
        if before == "made inside":
            module = case.make(n)
        is_fake(Called(name, module)(tensors(calls, mode.from_tensor)))
    right(name, case.outputs(module, n), n)


def first_tokens(calls: list[tuple[Any, ...]], count: int) -> list[tuple[Any, ...]]:
    return tensors(calls, lambda x: x[:, :, :count].clone(memory_format=torch.contiguous_format) if x.ndim else x)


@pytest.mark.parametrize(
    ("name", "called", "dynamic"),
    [*((name, False, None) for name in TRACED), ("mrope", True, True), ("dynamic", True, True)],
)
def test_one_graph_for_every_number_of_tokens(name, called, dynamic):
    """Which is marked, or everything is dynamic; of a new module, or of one that was called before."""
    torch._dynamo.reset()
    n, case = fresh(), CASES[name]
    module = case.make(n)
    if called:
        case.outputs(module, n)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Called(name, module), backend=counter, fullgraph=True, dynamic=dynamic)
    for count in (TOKENS, 7, 5):
        calls = first_tokens(case.calls(n), count)
        if not dynamic:
            tensors(calls, lambda x: torch._dynamo.mark_dynamic(x, 2) if x.ndim else None)
        with torch._dynamo.config.patch(error_on_recompile=count != TOKENS):
            near_the_truth(name, compiled(calls), n, calls)
    assert counter.frame_count > 0


@pytest.mark.parametrize("name", ["mrope", "mrope_hf", "longrope", "dynamic"])
def test_compiled_code_does_not_take_one_module_for_another(name):
    """One function, compiled once, of modules that differ in their numbers alone."""
    torch._dynamo.reset()
    numbers, case = [fresh() + 10_000 * i for i in range(3)], CASES[name]
    compiled = torch.compile(lambda module, arguments: case.run(module, *arguments), backend="aot_eager", fullgraph=True)
    modules = [case.make(n) for n in numbers]
    for n, module in [*zip(numbers, modules, strict=True), (numbers[0], modules[0])]:
        call = case.calls(n)[-1]
        near_the_truth(name, [compiled(module, call)], n, [call])
        near_the_truth(name, [case.run(module, *call)], n, [call])


@pytest.mark.parametrize("name", ["longrope", "longrope_hf", "dynamic"])
def test_one_graph_on_both_sides_of_the_original_length(name):
    torch._dynamo.reset()
    n = fresh()
    module = CASES[name].make(n)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda ids: module(ids, length=ids.shape[-1]), backend=counter, fullgraph=True, dynamic=True)
    for length in (50, 64, 65, 100):
        ids = torch.arange(length).repeat(3, 1, 1)
        with torch._dynamo.config.patch(error_on_recompile=length != 50):
            near_the_truth(name, [compiled(ids)], n, [(ids, length)])
    assert counter.frame_count > 0


@pytest.mark.parametrize(
    ("name", "strict"), [*((name, False) for name in TRACED if name != "dynamic"), ("mrope", True), ("dynamic", True)]
)
def test_an_exported_program_gives_what_the_module_gives(name, strict):
    """At numbers of tokens that it was not exported with, and from a file. The module is first called afterwards."""
    torch._dynamo.reset()
    n, case = fresh(), CASES[name]
    module = case.make(n)
    calls = first_tokens(case.calls(n), 9)
    count = torch.export.Dim("count", min=2, max=4096)
    shapes = tensors(calls, lambda x: {2: count} if x.ndim else None, None)
    program = torch.export.export(Called(name, module), (calls,), dynamic_shapes=(shapes,), strict=strict)
    if strict:
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
    right(name, case.outputs(module, n), n)
    run = program.module()
    for length in (9, TOKENS, 5):
        calls = first_tokens(case.calls(n), length)
        made = run(calls)
        near_the_truth(name, made, n, calls)
        for outputs, arguments in zip(made, calls, strict=True):
            for one, other in zip(outputs, case.run(module, *arguments), strict=True):
                # rotated vectors are added up in another order
                torch.testing.assert_close(one, other, atol=1e-6 if name == "xpos" else 0, rtol=0)


# --- threads ----------------------------------------------------------------------------------------------------------


@cases
def test_the_first_call_may_come_from_many_threads_at_once(name):
    case, switching = CASES[name], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                n = fresh()
                module, start = case.make(n), threading.Barrier(8)

                def call(number: int, n: int = n, module: nn.Module = module, start: threading.Barrier = start) -> Any:
                    with torch.inference_mode(number % 2 == 1):  # of one thread alone
                        start.wait(timeout=30)
                        return case.outputs(module, n)

                for made in list(pool.map(call, range(8))):
                    right(name, made, n)
                assert all(gradient.isfinite().all() for gradient in trained(case, module, n))
    finally:
        sys.setswitchinterval(switching)


# --- learned frequencies ----------------------------------------------------------------------------------------------


def has_first_magnitudes(weight: Tensor, theta: float = 10.0) -> None:
    """[N, P, A], theta^(-4 i / head_dim) for i = 0 .. P / 2 - 1, twice."""
    assert weight.dtype == torch.float32
    assert weight.isfinite().all()
    pairs = weight.shape[1]
    magnitude = theta ** (-4 * torch.arange(pairs // 2, dtype=torch.float64) / (2 * pairs))
    wanted = magnitude.repeat(2).expand(weight.shape[:2])
    torch.testing.assert_close(weight.detach().to(torch.float64).norm(dim=-1), wanted, atol=0, rtol=1e-5)


def mixed(axes: str = "hw", seed: int | None = 0) -> MixedRotary:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return MixedRotary(32, 3, axes=axes, theta=20.0, generator=generator)


@pytest.mark.parametrize("axes", ["hw", "thw"])
def test_a_mixed_rotary_of_the_meta_device_is_made_anew(axes):
    with torch.device("meta"):
        module = mixed(axes, seed=None)
    assert module.weight.device.type == "meta"
    module = module.to_empty(device="cpu")
    assert not module.weight.isfinite().all()
    assert module.reset_parameters() is None
    has_first_magnitudes(module.weight, theta=20.0)
    assert isinstance(module.weight, nn.Parameter)
    assert module.weight.is_leaf
    assert module.weight.requires_grad
    if axes == "hw":
        first, second = module.weight.detach().chunk(2, dim=1)
        torch.testing.assert_close((first * second).sum(-1), torch.zeros(3, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("axes", ["hw", "thw"])
def test_a_mixed_rotary_is_reset_to_what_its_generator_says(axes):
    module, again = mixed(axes), mixed(axes)
    kept = module.weight
    module.reset_parameters(generator=torch.Generator().manual_seed(1))
    assert module.weight is kept  # optimizers hold it
    assert not torch.equal(kept, again.weight)
    assert torch.equal(kept, mixed(axes, seed=1).weight)
    torch.manual_seed(5)
    module.reset_parameters()
    torch.manual_seed(5)
    again.reset_parameters()
    assert torch.equal(module.weight, again.weight)


@pytest.mark.parametrize("axes", ["hw", "thw"])
@pytest.mark.parametrize("dtype", [BFLOAT16, torch.float16, torch.float64], ids=str)
def test_a_mixed_weight_is_float32_whatever_the_default_is(dtype, axes):
    with defaults(dtype):
        module = mixed(axes)
    has_first_magnitudes(module.weight, theta=20.0)
    assert torch.equal(module.weight, mixed(axes).weight)
    with defaults(dtype, "meta"):
        empty = mixed(axes, seed=None).to_empty(device="cpu")
    assert empty.weight.dtype == torch.float32
    with defaults(dtype):
        empty.reset_parameters(generator=torch.Generator().manual_seed(0))
    assert torch.equal(empty.weight, module.weight)


def test_state_dicts_of_a_mixed_rotary_are_strict():
    module, other = mixed(), mixed(seed=1)
    assert list(module.state_dict()) == ["weight"]
    assert list(module.buffers()) == []
    assert not torch.equal(module.weight, other.weight)
    for state, message in (({}, "Missing key.*weight"), ({**other.state_dict(), "angle": X}, "Unexpected key.*angle")):
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(state)
    other.load_state_dict(module.state_dict())
    assert torch.equal(module.weight, other.weight)
