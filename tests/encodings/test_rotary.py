"""The laws of rotations, the exactness of angles, and transformers' own modules."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2VLConfig
from transformers.models.ministral3 import modeling_ministral3 as ministral3
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl

from mmrope import RotaryEmbedding, RotarySpec, YaRN, apply_rotary, patch_position_ids, rotary_from_config
from mmrope.encodings import (
    DynamicNTK,
    LongRoPE,
    MixedRotary,
    SinusoidalEmbedding,
    XPos,
    alibi_bias,
    alibi_slopes,
    rotate,
)
from mmrope.encodings.blocks import BLOCK
from mmrope.encodings.scaling import Temperature
from tests.encodings.test_spec import upstream_case
from tests.support import lowest

SPECS = {
    "1D": RotarySpec.rope(16),
    "1D, half of the channels": RotarySpec.rope(16, rotary_dim=8),
    "1D, adjacent": RotarySpec.rope(16, pairing="adjacent"),
    "axial 2D": RotarySpec.axial(16, axes="hw"),
    "axial 3D, with a rest": RotarySpec.axial(16, axes="thw", dims=(4, 4, 4)),
    "axial 2D, shared": RotarySpec.axial(16, axes="hw", spectrum="shared", pairing="adjacent"),
    "M-RoPE, contiguous": RotarySpec.mrope(16, theta=1e6, sections=(2, 3, 3)),
    "M-RoPE, interleaved": RotarySpec.mrope(16, theta=5e6, sections=(4, 2, 2), layout="interleaved"),
    "M-RoPE, half, adjacent": RotarySpec.mrope(16, sections=(1, 1, 2), rotary_dim=8, pairing="adjacent"),
    "an axis a pair": RotarySpec.mrope(16, axis="hwhwhwtt"),
}
specs = st.sampled_from(sorted(SPECS)).map(SPECS.__getitem__)
seeds = st.integers(0, 2**31 - 1)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_ids(seed, axes, *shape, most=1000):
    return torch.randint(-most, most, (axes, *shape), generator=torch.Generator().manual_seed(seed))


def turned(x, ids, spec):
    cos, sin = RotaryEmbedding(spec)(ids)
    return rotate(x, cos, sin, pairing=spec.pairing)


# --- laws -------------------------------------------------------------------------------------------------------------


@given(specs, seeds)
def test_norms_are_kept_and_position_0_is_the_identity(spec, seed):
    x, ids = normal(seed, 2, 3, 5, 16), some_ids(seed, len(spec.axes), 2, 5)
    torch.testing.assert_close(turned(x, ids, spec).norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    assert torch.equal(turned(x, torch.zeros_like(ids), spec), x)


@given(specs, seeds, st.integers(-500, 500))
def test_only_differences_of_positions_are_felt(spec, seed, shift):
    q, k = normal(seed, 1, 2, 4, 16), normal(seed + 1, 1, 2, 4, 16)
    ids = some_ids(seed, len(spec.axes), 1, 4)
    here, there = (turned(q, ids + s, spec) @ turned(k, ids + s, spec).mT for s in (0, shift))
    torch.testing.assert_close(here, there, rtol=0, atol=2e-5)


@given(specs, seeds)
def test_rotations_add_up(spec, seed):
    x = normal(seed, 1, 2, 4, 16)
    a, b = some_ids(seed, len(spec.axes), 1, 4), some_ids(seed + 1, len(spec.axes), 1, 4)
    torch.testing.assert_close(turned(turned(x, a, spec), b, spec), turned(x, a + b, spec), rtol=0, atol=2e-5)


@given(specs, seeds)
def test_an_axis_turns_its_own_pairs_alone(spec, seed):
    x, ids = normal(seed, 1, 1, 1, 16), some_ids(seed, len(spec.axes), 1, 1)
    channels = np.arange(spec.rotary_dim)
    pair = channels % len(spec.axis) if spec.pairing == "half" else channels // 2
    for a in range(len(spec.axes)):
        moved = ids.clone()
        moved[a] += 7
        same = (turned(x, moved, spec) == turned(x, ids, spec))[0, 0, 0].numpy()
        assert same[spec.rotary_dim :].all()
        assert same[: spec.rotary_dim][spec.axis[pair] != a].all()
        assert not same[: spec.rotary_dim][(spec.axis[pair] == a) & (spec.inv_freq[pair] > 1e-2)].any()


@given(seeds)
def test_pairings_are_the_same_rotation_of_reordered_channels(seed):
    """half(x[perm]) = adjacent(x)[perm], perm the even channels and then the odd ones."""
    x, ids = normal(seed, 1, 2, 3, 16), some_ids(seed, 1, 1, 3)
    perm = [*range(0, 16, 2), *range(1, 16, 2)]
    torch.testing.assert_close(turned(x[..., perm], ids, SPECS["1D"]), turned(x, ids, SPECS["1D, adjacent"])[..., perm])


@given(specs, seeds)
def test_layouts_of_q_and_k_are_all_the_same(spec, seed):
    """[B, N, S, D], [B, S, N, D], packed [T, N, D], strided or not; k may have fewer heads than q."""
    q, k = normal(seed, 2, 4, 3, 16, dtype=torch.float32), normal(seed + 1, 2, 2, 3, 16, dtype=torch.float32)
    ids = some_ids(seed, len(spec.axes), 2, 3)
    rope = RotaryEmbedding(spec)
    rq, rk = rope.rotate(q, k, ids)
    for heads_last in (q.transpose(1, 2), q.transpose(1, 2).contiguous()):
        assert torch.equal(rope.rotate(heads_last, k.transpose(1, 2), ids, heads=-2)[0], rq.transpose(1, 2))
    packed = rope.rotate(q.transpose(1, 2).flatten(0, 1), k.transpose(1, 2).flatten(0, 1), ids.flatten(1), heads=-2)
    assert torch.equal(packed[0].unflatten(0, (2, 3)).transpose(1, 2), rq)
    assert torch.equal(packed[1].unflatten(0, (2, 3)).transpose(1, 2), rk)
    cos, sin = rope(ids)
    assert torch.equal(apply_rotary(q, k, cos, sin, pairing=spec.pairing)[1], rk)


def test_batches_of_one_table_and_odd_sizes():
    rope = RotaryEmbedding(SPECS["1D"])
    cos, sin = rope(torch.arange(131)[None, None])  # [1, 131, 8]: shared by the batch
    x = normal(0, 3, 2, 131, 16, dtype=torch.float32)
    assert torch.equal(rotate(x, cos, sin), rotate(x, cos.expand(3, -1, -1), sin.expand(3, -1, -1)))
    for size in (0, 1):
        assert rope.rotate(x[:, :, :size], x[:, :, :size], torch.zeros(1, 3, size, dtype=torch.long))[0].shape == (
            3,
            2,
            size,
            16,
        )


def test_gradients_are_those_of_the_inverse_rotation():
    spec, ids = SPECS["M-RoPE, half, adjacent"], some_ids(3, 3, 2, 5)
    x, upstream = normal(1, 2, 3, 5, 16).requires_grad_(), normal(2, 2, 3, 5, 16)
    turned(x, ids, spec).backward(upstream)
    torch.testing.assert_close(x.grad, turned(upstream, -ids, spec), rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: turned(x, ids, spec), [x])


def test_half_precision_is_rotated_in_float32():
    spec, ids = SPECS["M-RoPE, interleaved"], some_ids(0, 3, 1, 64, most=10**6)
    for dtype in (torch.bfloat16, torch.float16):
        x = normal(0, 1, 2, 64, 16, dtype=dtype)
        result = turned(x, ids, spec)
        assert result.dtype == dtype
        assert torch.equal(result, turned(x.float(), ids, spec).to(dtype))


# --- angles -----------------------------------------------------------------------------------------------------------

POSITIONS = (0, 1, 5, -7, 1000, 99_991, 10**6, 123_456_789, 2**31 - 1, -(2**31))


def worst_error(positions, cos, sin, spec):
    """The largest error of cos and sin [S, P] at positions [S]."""
    with mpmath.workdps(40):
        angles = [[mpmath.mpf(p) * mpmath.mpf(float(f)) for f in spec.inv_freq] for p in positions]
        true_cos = np.array([[float(mpmath.cos(a)) for a in row] for row in angles])
        true_sin = np.array([[float(mpmath.sin(a)) for a in row] for row in angles])
    return max(np.abs(cos.double().numpy() - true_cos).max(), np.abs(sin.double().numpy() - true_sin).max())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64])
@pytest.mark.parametrize("change", [lambda rope: rope, lambda rope: rope.to(torch.bfloat16), lambda rope: rope.half().double()])
def test_angles_are_exact_at_every_position_whatever_the_module_is_cast_to(dtype, change):
    spec = RotarySpec.rope(64, theta=1e6)
    rope = change(RotaryEmbedding(spec))
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            cos, sin = rope(torch.tensor([POSITIONS], dtype=dtype))
        assert cos.dtype == sin.dtype == torch.float32
        assert worst_error(POSITIONS, cos, sin, spec) < 1e-6


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8))
def test_angles_are_exact_at_any_position(positions):
    spec = RotarySpec.rope(16, theta=1e4)
    assert worst_error(positions, *RotaryEmbedding(spec)(torch.tensor([positions])), spec) < 1e-6


def test_fractional_positions():
    spec, positions = RotarySpec.rope(16), [0.25, 1.1, 5.9, 1e5 + 1 / 3]
    assert worst_error(positions, *RotaryEmbedding(spec)(torch.tensor([positions], dtype=torch.float64)), spec) < 1e-6


def test_hf_angles_are_the_float32_product_bit_for_bit():
    config, module = upstream_case("qwen2_vl")
    spec = rotary_from_config(config)
    module.inv_freq = torch.tensor(spec.inv_freq)  # torch's own powers differ from correct rounding in a bit, here and there
    ids = some_ids(0, 3, 2, 50, most=10**6)
    cos, sin = RotaryEmbedding(spec, angles="hf")(ids)
    upstream_cos, upstream_sin = module(torch.zeros(1), ids)
    assert torch.equal(cos, upstream_cos[..., : cos.shape[-1]])
    assert torch.equal(sin, upstream_sin[..., : sin.shape[-1]])


def test_float32_angles_are_as_wrong_as_the_readme_says():
    spec = RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))
    at = {p: worst_error([p], *RotaryEmbedding(spec, angles="hf")(torch.full((3, 1), p)), spec) for p in (10**5, 10**6)}
    assert 2e-3 < at[10**5] < 5e-3
    assert 2e-2 < at[10**6] < 5e-2


def test_the_module_survives_what_is_done_to_modules():
    spec = SPECS["M-RoPE, contiguous"]
    rope, ids = RotaryEmbedding(spec), some_ids(0, 3, 1, 9, most=10**6)
    with torch.device("meta"):
        empty = RotaryEmbedding(spec)
    for other in (
        empty.to_empty(device="cpu"),
        copy.deepcopy(rope),
        pickle.loads(pickle.dumps(rope)),
        rope.to(torch.float16),
    ):
        assert torch.equal(other(ids)[0], rope(ids)[0])
        assert other.state_dict() == {}
        assert list(other.parameters()) == []
    assert "RotarySpec(head_dim 16, 8 pairs" in repr(rope)


def test_one_graph_for_every_length():
    rope = RotaryEmbedding(SPECS["M-RoPE, interleaved"])
    compiled = torch.compile(rope.rotate, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (7, 12, 33):
        q, k, ids = normal(0, 1, 4, length, 16), normal(1, 1, 2, length, 16), some_ids(0, 3, 1, length)
        for one, other in zip(compiled(q, k, ids), rope.rotate(q, k, ids), strict=True):
            torch.testing.assert_close(one, other)


@lowest.newer_torch("one graph for layers that are alike")
def test_layers_that_are_alike_share_one_graph():
    """As many as a model has, each with a module of its own, that no call has been through before."""

    class Layer(torch.nn.Module):
        def __init__(self, theta):
            super().__init__()
            self.rope = RotaryEmbedding(RotarySpec.mrope(16, theta=theta, sections=(2, 3, 3)))

        def forward(self, q, ids):
            return self.rope.rotate(q, q, ids)[0]

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    q, ids = normal(0, 1, 4, 7, 16, dtype=torch.float32), some_ids(0, 3, 1, 7)
    for layer in [Layer(1e4) for _ in range(6)] + [copy.deepcopy(Layer(1e6)) for _ in range(6)]:
        compiled = torch.compile(layer, fullgraph=True, backend=counter)
        torch.testing.assert_close(compiled(q, ids), layer(q, ids))
    assert counter.frame_count == 1


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "upstream"), [("qwen2_vl", qwen2_vl), ("qwen2_5_vl", qwen2_vl), ("qwen3_vl", qwen3_vl)])
def test_rotated_q_and_k_equal_transformers(name, upstream):
    config, module = upstream_case(name)
    rope = RotaryEmbedding(rotary_from_config(config))
    q, k, ids = (
        normal(0, 2, 4, 40, 16, dtype=torch.float32),
        normal(1, 2, 2, 40, 16, dtype=torch.float32),
        some_ids(0, 3, 2, 40),
    )
    expected = upstream.apply_rotary_pos_emb(q, k, *module(q, ids))
    for ours, theirs in zip(rope.rotate(q, k, ids), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)  # their angles are float32, at positions up to 1000
    for ours, theirs in zip(rope.rotate(q, k, ids % 8), upstream.apply_rotary_pos_emb(q, k, *module(q, ids % 8)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)


def test_a_vision_tower_equals_transformers():
    config = Qwen2VLConfig(vision_config={"embed_dim": 160, "num_heads": 2, "depth": 1})  # head_dim 80, as released
    module = qwen2_vl.Qwen2VLVisionRotaryEmbedding(config.vision_config)
    ids = torch.from_numpy(patch_position_ids([[1, 8, 6], [2, 4, 4]]))  # [2, P]
    q, k = normal(0, ids.shape[1], 2, 80, dtype=torch.float32), normal(1, ids.shape[1], 2, 80, dtype=torch.float32)
    rope = RotaryEmbedding(RotarySpec.axial(80, axes="hw"))
    cos, sin = module(q, ids.T)
    for ours, theirs in zip(
        rope.rotate(q, k, ids, heads=-2), qwen2_vl.apply_rotary_pos_emb_vision(q, k, cos, sin), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)


# --- a cache whose tokens move ------------------------------------------------------------------------------------------

SCALINGS = {
    "none": None,
    "YaRN": YaRN(4.0, 128),
    "YaRN, DeepSeek's": YaRN(40.0, 4096, mscale=0.7, mscale_all_dim=1.0),
    "dynamic NTK": DynamicNTK(128, 2.0),
    "LongRoPE": LongRoPE(np.linspace(1, 3, 8), np.linspace(2, 9, 8), 128, 8.0),
}


@pytest.mark.parametrize("tokens", [5, 9000])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("heads", [-3, -2])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_shifted_key_is_the_key_of_the_shifted_position(scaling, heads, inplace, tokens):
    """With the attention factor once, whatever the scaling; M-RoPE moves on all axes alike, or on each by its own ids."""
    for spec in (RotarySpec.rope(16), RotarySpec.mrope(16, sections=(2, 3, 3), pairing="adjacent")):
        spec = spec if SCALINGS[scaling] is None else spec.scaled(SCALINGS[scaling])
        rope, length = RotaryEmbedding(spec), {"length": 300} if spec.needs_length else {}
        k, ids = normal(0, 2, 2, tokens, 16, dtype=torch.float32), some_ids(1, len(spec.axes), 2, tokens)
        k = k if heads == -3 else k.transpose(1, 2)
        cached = rope.rotate(k, k, ids, heads=heads, **length)[1]
        for delta in (-512, some_ids(2, len(spec.axes), 2, tokens)):
            wanted = rope.rotate(k, k, ids + delta, heads=heads, **length)[1]
            moved = rope.shift(cached.clone(), delta, heads=heads, inplace=inplace, **length)
            torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-5)
    packed = rope.shift(cached.flatten(0, 1), -512, heads=-2, **length) if heads == -2 else None
    assert packed is None or packed.shape == (2 * tokens, 2, 16)


# --- a length for each row ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angles", ["exact", "hf"])
@pytest.mark.parametrize("scaling", ["dynamic NTK", "LongRoPE"])
def test_each_row_may_have_a_length_of_its_own(scaling, angles):
    rope = RotaryEmbedding(RotarySpec.rope(16).scaled(SCALINGS[scaling]), angles=angles)
    lengths, ids = [7, 128, 129, 4000], torch.arange(7).expand(1, 4, 7)
    cos, sin = rope(ids, length=torch.tensor(lengths))
    packed = rope(ids.flatten(1), length=torch.tensor(lengths).repeat_interleave(7))
    for row, length in enumerate(lengths):
        for stated in (length, torch.tensor(length)):
            one, other = rope(ids[:, row : row + 1], length=stated)
            assert torch.equal(cos[row], one[0])
            assert torch.equal(sin[row], other[0])
        assert torch.equal(packed[0].unflatten(0, (4, 7))[row], cos[row])
    q = normal(0, 4, 2, 7, 16, dtype=torch.float32)
    assert torch.equal(
        rope.rotate(q, q, ids, length=torch.tensor(lengths))[0][2], rope.rotate(q[2:3], q[2:3], ids[:, :1], length=129)[0][0]
    )
    for wrong in (torch.tensor(lengths[:2]), torch.zeros(4, 7, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"length must be a number, a tensor of no dimensions, or one for each row \[B\]"):
            rope(ids, length=wrong)


@pytest.mark.parametrize("scaling", ["dynamic NTK", "LongRoPE"])
def test_one_row_of_ids_may_serve_rows_of_several_lengths(scaling):
    rope, lengths = RotaryEmbedding(RotarySpec.rope(16).scaled(SCALINGS[scaling])), torch.tensor([7, 4000])
    q, ids = normal(0, 2, 2, 7, 16, dtype=torch.float32), torch.arange(7)[None, None]
    both = rope.rotate(q, q, ids, length=lengths)[0]
    for row, length in enumerate((7, 4000)):
        assert torch.equal(both[row], rope.rotate(q[row : row + 1], q[row : row + 1], ids, length=length)[0][0])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_lengths_of_narrow_integers_do_not_wrap(dtype):
    rope = RotaryEmbedding(RotarySpec.rope(16).scaled(DynamicNTK(40_000, 2.0)))
    ids = torch.arange(3)[None, None]
    assert torch.equal(rope(ids, length=torch.tensor(5000, dtype=dtype))[0], rope(ids, length=5000)[0])


# --- devices without float64 --------------------------------------------------------------------------------------------


class NoFloat64(TorchDispatchMode):
    """Metal, for one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves((args, kwargs, made)):
            if x is torch.float64 or (isinstance(x, torch.Tensor) and x.dtype == torch.float64):
                raise TypeError(f"{func}: this device has no float64")
        return made


def test_the_device_refuses_float64():
    with NoFloat64(), pytest.raises(TypeError, match="no float64"):
        torch.zeros(2, dtype=torch.float64)
    with NoFloat64(), pytest.raises(TypeError, match="no float64"):
        torch.zeros(2).double()


@pytest.mark.parametrize("angles", ["exact", "hf"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_no_float64_is_needed_on_the_device(scaling, angles, kind):
    spec = RotarySpec.mrope(16, sections=(2, 3, 3))
    spec = spec if SCALINGS[scaling] is None else spec.scaled(SCALINGS[scaling])
    ids = torch.tensor([0, 1, 5, 1000, 99_991], dtype=torch.int64)[None]
    ids = (ids + (0.25 if kind == torch.float32 else 0)).to(kind).expand(3, 1, 5)
    q = normal(0, 1, 2, 5, 16, dtype=torch.float32)
    made = {}
    with NoFloat64():
        rope = RotaryEmbedding(spec, angles=angles)
        for length in (100, 300) if spec.needs_length else (None,):
            stated = torch.tensor(length) if length == 300 else length
            made[length] = rope(ids, length=stated, fold=False)
            rope.rotate(q, q, ids, length=stated)
            rope.shift(q, -3, length=stated)
        XPos(16).rotate(q, q, ids[:1])
        SinusoidalEmbedding(16)(ids)
        MixedRotary(16, 2, axes="thw").rotate(q, q, ids)
        assert alibi_bias(alibi_slopes(4), ids[0, 0]).dtype == torch.float32
    for length, (cos, sin) in made.items() if angles == "exact" else ():
        right = dataclasses.replace(spec, inv_freq=spec.at_length(length), scaling=None, spectra=None)
        # the frequencies of dynamic NTK past the original length are right to two units in the last place
        off = 1e-6 if scaling != "dynamic NTK" or length == 100 else 2.4e-7 * 1e5
        assert worst_error([float(p) for p in ids[0, 0]], cos[0], sin[0], right) < off


@given(st.floats(-(2.0**31), 2.0**31, width=32, exclude_max=True))
def test_float32_ids_are_carried_exactly_also_past_2_to_the_24(position):
    """Every value that float32 has; what it cannot hold is refused where ids are made."""
    spec = RotarySpec.rope(16, theta=1e4)
    cos, sin = RotaryEmbedding(spec)(torch.tensor([[position]], dtype=torch.float32))
    assert worst_error([position], cos, sin, spec) < 1e-6


def test_fractional_ids_of_frequencies_above_half_a_turn():
    """DINOv3's and LTX's are: whole turns matter between whole ids."""
    spec, positions = (
        RotarySpec(8, np.array([3.1, 3.2, 6.5, 15000.3], dtype=np.float32), "tttt", "t"),
        [0.1, -0.75, 2.3, 1000.5],
    )
    for dtype in (torch.float32, torch.float64):
        ids = torch.tensor([positions], dtype=dtype)
        assert worst_error(ids[0].tolist(), *RotaryEmbedding(spec)(ids), spec) < 2e-5 if dtype == torch.float32 else 1e-6


def test_ids_that_are_no_numbers_give_none():
    cos, _ = RotaryEmbedding(SPECS["1D"])(torch.tensor([[1.0, torch.nan, torch.inf, 2.0**31]]))
    assert cos.isnan().all(dim=-1).tolist() == [False, True, True, True]


# --- temperature, norms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("heads", [-3, -2])
def test_a_temperature_is_llama_4s_and_ministral_3s(heads, inplace):
    ids = torch.tensor([0, 5, 8190, 8191, 8192, 20_000, 10**6])
    llama = torch.log1p(torch.floor((ids.float() + 1.0) / 8192)) * 0.1 + 1.0  # models/llama4/modeling_llama4.py
    ministral = ministral3.get_llama_4_attn_scale(ids[None], 0.1, 16384)[0, 0, :, 0]
    q = normal(0, 1, 3, 7, 16, dtype=torch.float32)
    q = q if heads == -3 else q.transpose(1, 2)
    for temperature, wanted in ((Temperature(0.1, 8192, offset=1), llama), (Temperature(0.1, 16384), ministral)):
        for spec in (
            RotarySpec.nope(16, temperature=temperature),
            dataclasses.replace(RotarySpec.rope(16), temperature=temperature),
        ):
            rope = RotaryEmbedding(spec)
            torch.testing.assert_close(rope.temperature(ids[None, None])[0], wanted)
            plain = RotaryEmbedding(dataclasses.replace(spec, temperature=None)).rotate(q, q, ids[None, None], heads=heads)
            mine, k = rope.rotate(q.clone(), q.clone(), ids[None, None], heads=heads, inplace=inplace)
            assert torch.equal(k, plain[1])  # of queries alone
            scale = wanted[None, None, :, None] if heads == -3 else wanted[None, :, None, None]
            torch.testing.assert_close(mine, plain[0] * scale)
    # narrow integers do not wrap, padding in front of position 0 has no temperature of its own
    cool = RotaryEmbedding(RotarySpec.nope(16, temperature=Temperature(0.1, 8192, offset=1)))
    assert torch.equal(cool.temperature(torch.tensor([[0, 254, 255]], dtype=torch.uint8)), torch.ones(3))
    assert torch.equal(cool.temperature(torch.tensor([[-1, -20_000, 8190]])), torch.ones(3))
    with pytest.raises(ValueError, match="has no temperature"):
        RotaryEmbedding(SPECS["1D"]).temperature(ids[None, None])
    with pytest.raises(ValueError, match="a temperature goes by the one position of a token, but there are 3 axes 'thw'"):
        dataclasses.replace(SPECS["M-RoPE, contiguous"], temperature=Temperature(0.1, 8192))


@pytest.mark.parametrize("name", ["M-RoPE, contiguous", "M-RoPE, half, adjacent"])
def test_norm_and_rotation_are_those_of_qwen3_vl(name):
    spec, norms = SPECS[name], [qwen3_vl.Qwen3VLTextRMSNorm(16, eps=1e-5) for _ in range(2)]
    for n, norm in enumerate(norms):
        norm.weight.data = normal(7 + n, 16, dtype=torch.float32)
    q, k, ids = normal(0, 2, 4, 5, 16, dtype=torch.float32), normal(1, 2, 2, 5, 16, dtype=torch.float32), some_ids(2, 3, 2, 5)
    rope, found = RotaryEmbedding(spec), []
    for turn in (
        lambda q, k: rope.rotate(norms[0](q), norms[1](k), ids),
        lambda q, k: rope.norm_rotate(q, k, norms[0].weight, norms[1].weight, ids, eps=1e-5),
    ):
        leaves = [q.clone().requires_grad_(), k.clone().requires_grad_(), norms[0].weight, norms[1].weight]
        made = turn(*leaves[:2])
        found.append((*made, *torch.autograd.grad(made[0].sum() + made[1].square().sum(), leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match=r"q_weight must be \[16\] floating-point numbers, got \[8\] torch.float32"):
        rope.norm_rotate(q, k, torch.ones(8), torch.ones(16), ids)


# --- refusals ---------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 4, 3, 16)
HALF = torch.zeros(2, 3, 8)
LONGER = RotaryEmbedding(RotarySpec.rope(16).scaled(DynamicNTK(128, 2.0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RotaryEmbedding(SPECS["1D"], angles="fp32"), r"angles must be one of \('exact', 'hf'\), got 'fp32'"),
        (lambda: RotaryEmbedding(SPECS["M-RoPE, contiguous"])(torch.zeros(4, 2, 3)), r"must be \[3, B, S\] or \[3, T\] for the axes 'thw', got \[4, 2, 3\]: row 0 is the text row: pass position_ids\[1:\]"),
        (lambda: RotaryEmbedding(SPECS["M-RoPE, contiguous"])(torch.zeros(2, 3)), r"got \[2, 3\]: they always lead with the axes"),
        (lambda: RotaryEmbedding(SPECS["M-RoPE, contiguous"])(torch.zeros(2, 3, 5)), r"got \[2, 3, 5\]: they always lead with the axes"),
        (lambda: RotaryEmbedding(SPECS["1D"])(torch.zeros(2, 3)), r"must be \[1, B, S\] or \[1, T\]"),
        (lambda: rotate(X, HALF, HALF, pairing="interleaved"), r"pairing must be one of"),
        (lambda: rotate(X, HALF, HALF, heads=1), r"heads must be -3 .* or -2 .*, got 1"),
        (lambda: rotate(X, HALF, HALF, heads=-2), r"cos and sin are for \[2, 3\] tokens, but x \[2, 4, 3, 16\] with heads=-2 has \[2, 4\]"),
        (lambda: rotate(X, HALF.repeat(1, 1, 2), HALF.repeat(1, 1, 2)), r"\[B, S, P\] \(or \[T, P\]\) with 2 P <= 16 for x .* got \[2, 3, 16\]"),
        (lambda: rotate(X, HALF[0], HALF[0]), r"cos and sin must be"),
        (lambda: rotate(X, HALF, HALF[:1]), r"cos and sin must be"),
        (lambda: rotate(X, HALF[:, :1], HALF[:, :1]), r"cos and sin are for \[2, 1\] tokens, but x \[2, 4, 3, 16\] with heads=-3 has \[2, 3\]"),
        (lambda: RotaryEmbedding(SPECS["1D"]).rotate(X, X, torch.zeros(1, 2, 1, dtype=torch.long)), r"cos and sin are for \[2, 1\] tokens, but x \[2, 4, 3, 16\]"),
        (lambda: RotaryEmbedding(SPECS["1D"]).rotate(X, X, torch.zeros(1, 3, 3, dtype=torch.long)), r"cos and sin are for \[3, 3\] tokens"),
        (lambda: RotaryEmbedding(SPECS["1D"])(torch.zeros(1, 2, 3, dtype=torch.bfloat16)), r"position_ids are torch.bfloat16: they must be integers, or float32 or float64 .* Keep them from casts"),
        (lambda: RotaryEmbedding(SPECS["1D"])(torch.zeros(1, 2, 3, dtype=torch.float16)), r"position_ids are torch.float16"),
        (lambda: SinusoidalEmbedding(16)(torch.zeros(3, dtype=torch.bfloat16)), r"positions are torch.bfloat16"),
        (lambda: XPos(16).rotate(X, X, torch.zeros(1, 2, 3, dtype=torch.float16)), r"position_ids are torch.float16"),
        (lambda: MixedRotary(16, 4)(torch.zeros(2, 2, 3, dtype=torch.bfloat16)), r"position_ids are torch.bfloat16"),
        (lambda: RotaryEmbedding(SPECS["1D"]).shift(X, -0.5), r"delta must be a whole number, or a tensor of the shape of position_ids, got -0.5"),
        (lambda: LONGER(torch.zeros(1, 2, 3), length=30001.7), r"length must be a whole number or a tensor of integers, got 30001.7"),
        (lambda: LONGER(torch.zeros(1, 2, 3), length=torch.tensor(3.0)), r"length must be a whole number or a tensor of integers"),
        (lambda: rotate(X, HALF, HALF, pairing="block_half"), r"pairing 'block_half' of 8 pairs needs blocks=, .* got None"),
        (lambda: rotate(X, HALF, HALF, pairing="block_half", blocks=3), r"needs blocks=, .* got 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- by blocks --------------------------------------------------------------------------------------------------------


def block_case(pairing, heads, dtype, shape, partial=0):
    """x, cos, sin; x is a view with strides of its own."""
    generator = torch.Generator().manual_seed(0)
    b, n, s, d = shape
    spec = RotarySpec.rope(d, rotary_dim=d - partial)
    x = torch.randn(b, s, n, d + 2, generator=generator)[..., 1:-1].to(dtype)
    x = x if heads == -2 else x.transpose(1, 2)
    cos, sin = RotaryEmbedding(spec)(torch.randint(0, 9999, (1, b, s), generator=generator))
    return x, cos, sin


def definition(x, cos, sin, heads, distance):
    """In float64, pair by pair of the channels: the first and the one `distance` further on, in blocks of twice as many."""
    pairs = torch.arange(cos.shape[-1])
    first = pairs // distance * 2 * distance + pairs % distance
    cos, sin, rotated = cos.unsqueeze(heads).double(), sin.unsqueeze(heads).double(), x.double().clone()
    a, b = x[..., first].double(), x[..., first + distance].double()
    rotated[..., first], rotated[..., first + distance] = a * cos - b * sin, b * cos + a * sin
    return rotated


# on both sides of a block of 2^18 elements; rows of a batch in one block, tokens of a row in several; some empty
SHAPES = [
    (1, 2, 5, 8),
    (2, 3, 1, 16),
    (64, 28, 1, 128),
    (80, 28, 1, 128),
    (1, 28, 200, 128),
    (2, 28, 73, 128),
    (3, 2, 1100, 128),
    (2, 4, 0, 8),
    (1, 1, 5000, 64),
]
PAIRINGS = {"half": 1, "adjacent": None, "block_half": 2}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("heads", [-3, -2])
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("partial", [0, 4])
def test_every_size_and_layout_is_the_definition(shape, heads, pairing, dtype, partial):
    x, cos, sin = block_case(pairing, heads, dtype, shape, partial)
    blocks = PAIRINGS[pairing] or cos.shape[-1]
    wanted = definition(x, cos, sin, heads, cos.shape[-1] // blocks)
    made = rotate(x, cos, sin, pairing=pairing, blocks=blocks, heads=heads)
    assert made.dtype == dtype
    # one rounding of the working type apart, so one of the stored type
    unit = {torch.bfloat16: 8e-3, torch.float16: 1e-3}.get(dtype, 1e-6)
    torch.testing.assert_close(made.double(), wanted, atol=1e-6 if unit == 1e-6 else 1e-3, rtol=unit)
    one_table = rotate(x[:1].expand_as(x), cos[:1], sin[:1], pairing=pairing, blocks=blocks, heads=heads)
    assert torch.equal(one_table, made[:1].expand_as(made))
    again = rotate(x, cos, sin, pairing=pairing, blocks=blocks, heads=heads, inplace=True)
    assert again is x or again.data_ptr() == x.data_ptr()
    assert torch.equal(x, made)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("heads", [-3, -2])
@pytest.mark.parametrize("tokens", [50, 400])
def test_gradients_are_those_of_the_definition(pairing, heads, tokens):
    x, cos, sin = block_case(pairing, heads, torch.float32, (2, 8, tokens, 64), 4)
    assert (x.numel() > BLOCK) == (tokens == 400)
    blocks = PAIRINGS[pairing] or cos.shape[-1]
    weight, found = torch.randn(x.shape), []
    for turn in (
        lambda x: rotate(x, cos, sin, pairing=pairing, blocks=blocks, heads=heads),
        lambda x: definition(x, cos, sin, heads, cos.shape[-1] // blocks).float(),
        lambda x: rotate(x * 1, cos, sin, pairing=pairing, blocks=blocks, heads=heads, inplace=True),
    ):
        leaf = x.clone().requires_grad_()
        [first] = torch.autograd.grad((turn(leaf) * weight).square().sum(), leaf, create_graph=True)
        [second] = torch.autograd.grad(first.square().sum(), leaf)
        found.append((first.detach(), second))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-3, rtol=1e-4)


def test_transforms_checkpoints_and_exports_work():
    x, cos, sin = block_case("half", -3, torch.float32, (2, 3, 50, 16))
    wanted = rotate(x, cos, sin)
    mapped = torch.func.vmap(lambda x, cos, sin: rotate(x[None], cos[None], sin[None])[0])(x, cos, sin)
    torch.testing.assert_close(mapped, wanted)
    by_transform = torch.func.grad(lambda x: rotate(x, cos, sin).square().sum())(x)
    torch.testing.assert_close(by_transform, 2 * x, atol=1e-5, rtol=1e-5)  # norms are kept
    leaf = x.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(rotate, leaf, cos, sin, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(leaf.grad, by_transform, atol=1e-5, rtol=1e-5)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rope = RotaryEmbedding(RotarySpec.mrope(16, sections=(2, 3, 3)))

        def forward(self, q, position_ids):
            return self.rope.rotate(q, q, position_ids)[0]

    ids = torch.randint(0, 999, (3, 2, 50))
    length = torch.export.Dim("length", min=2)
    program = torch.export.export(Layer(), (x, ids), dynamic_shapes=({2: length}, {2: length}))
    torch.testing.assert_close(program.module()(x[:, :, :20], ids[..., :20]), Layer()(x[:, :, :20], ids[..., :20]))


@pytest.mark.parametrize("angles", ["exact", "hf"])
def test_the_kernel_takes_the_angles_that_were_asked_for(angles):
    """At ids of 1e5 the two differ by more than 1e-3."""
    rope, q = RotaryEmbedding(RotarySpec.rope(16, theta=1e4), angles=angles), torch.randn(1, 2, 3, 16)
    ids = torch.tensor([[[100_000, 100_001, 123_457]]])
    by_kernel, by_torch = (rope.rotate(q, q, ids, backend=backend)[0] for backend in ("triton", "torch"))
    torch.testing.assert_close(by_kernel, by_torch, atol=1e-5, rtol=0)


def test_tables_that_learn_get_their_gradient():
    x, cos, sin = block_case("half", -3, torch.float32, (1, 2, 5, 8))
    cos.requires_grad_()
    rotate(x, cos, sin).sum().backward()
    assert cos.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward-mode differentiation
def test_blocks_do_not_go_by_global_settings():
    x, cos, sin = block_case("half", -3, torch.float32, (2, 3, 50, 16))
    wanted = rotate(x, cos, sin)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(rotate(x, cos, sin), wanted)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(rotate(x, cos, sin), wanted)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(rotate(dual, cos, sin)).tangent
    torch.testing.assert_close(tangent, rotate(torch.ones_like(x), cos, sin))


def test_nothing_is_written_before_all_is_checked():
    x, cos, sin = block_case("half", -3, torch.float32, (2, 3, 50, 16))
    before = x.clone()
    with pytest.raises(ValueError, match="cos and sin are for"):
        apply_rotary(x, x[:, :, :7], cos, sin, inplace=True)
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match=r"what is rotated must be floating-point numbers, got torch.int64"):
        rotate(x.long(), cos, sin)


# --- the kernel's entry -------------------------------------------------------------------------------------------------
# what it computes is in test_kernel.py; conftest.py has it run in Triton's interpreter where there is no GPU

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_backends_are_chosen_by_name(monkeypatch):
    rope, q = RotaryEmbedding(SPECS["M-RoPE, contiguous"]), torch.zeros(1, 2, 3, 16)
    assert rope.backend_for(q) == "torch"  # on the CPU, also where the interpreter would do
    assert rope.backend_for(q, "torch") == "torch"
    with pytest.raises(ValueError, match="backend must be 'auto', 'torch' or 'triton', got 'cuda'"):
        rope.backend_for(q, "cuda")
    with pytest.raises(ValueError, match=r"backend='triton' cannot be had: it has float32 arithmetic, and q is torch.float64"):
        rope.backend_for(q.double().to(DEVICE), "triton")
    with pytest.raises(ValueError, match="cannot be had: it has no axes by KV head"):
        RotaryEmbedding(RotarySpec.mrope(16, kv_heads=(1, 1, 1))).backend_for(q.to(DEVICE), "triton")
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match="it has no forward-mode derivative"):
        rope.backend_for(q.to(DEVICE), "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"cannot be had: it runs on a GPU, and q is on cpu"):
        rope.backend_for(q, "triton")
    monkeypatch.setattr("mmrope.encodings.rotary.find_spec", lambda name: None)
    assert rope.backend_for(q) == "torch"
    with pytest.raises(ValueError, match="cannot be had: triton is not installed"):
        rope.backend_for(q, "triton")


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("inplace", [False, True])
def test_the_kernel_is_reached_with_what_it_needs(scaling, pairing, inplace):
    """From integer ids, from tables where there are none or a length counts, after a norm; one row of ids for the batch."""
    spec = RotarySpec.axial(20, axes="hw", dims=(8, 8), pairing=pairing)
    scaling = LongRoPE([1.5] * 4, [3.0] * 4, 128, 8.0) if scaling == "LongRoPE" else SCALINGS[scaling]
    rope = RotaryEmbedding(spec if scaling is None else spec.scaled(scaling))
    length = {"length": 300} if rope.spec.needs_length else {}
    q, k = (normal(n, 2, heads, 3, 20, dtype=torch.float32).to(DEVICE) for n, heads in enumerate((4, 2)))
    for ids in (some_ids(0, 2, 2, 3), some_ids(0, 2, 1, 3), some_ids(0, 2, 2, 3) + 0.5):
        ids = ids.to(DEVICE)
        wanted = rope.rotate(q, k, ids, backend="torch", **length)
        made = rope.rotate(q.clone(), k.clone(), ids, backend="triton", inplace=inplace, **length)
        torch.testing.assert_close(made, wanted, atol=3e-6, rtol=0)
        weights = normal(5, 20, dtype=torch.float32).to(DEVICE), normal(6, 20, dtype=torch.float32).to(DEVICE)
        wanted = rope.norm_rotate(q, k, *weights, ids, backend="torch", **length)
        torch.testing.assert_close(rope.norm_rotate(q, k, *weights, ids, backend="triton", **length), wanted, atol=1e-5, rtol=0)


def test_positions_that_need_a_gradient_take_the_definition():
    rope = RotaryEmbedding(SPECS["1D"])
    q = normal(0, 1, 2, 3, 16, dtype=torch.float32).to(DEVICE)
    ids = torch.tensor([[[0.5, 1.5, 2.25]]], device=DEVICE, requires_grad=True)
    rope.rotate(q, q, ids)[0].square().mul(torch.arange(16.0, device=DEVICE)).sum().backward()
    assert ids.grad.abs().min() > 0
    weight = torch.ones(16, device=DEVICE)
    for call in (
        lambda: rope.rotate(q, q, ids, backend="triton"),
        lambda: rope.norm_rotate(q, q, weight, weight, ids, backend="triton"),
    ):
        with pytest.raises(ValueError, match="cannot be had: it gives position_ids no gradient, and they require one"):
            call()
    with torch.no_grad():
        rope.rotate(q, q, ids, backend="triton")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_shapes_are_checked_before_the_launch(backend):
    rope = RotaryEmbedding(SPECS["M-RoPE, contiguous"])
    q, k = torch.zeros(2, 6, 3, 16, device=DEVICE), torch.zeros(2, 2, 3, 16, device=DEVICE)
    ids = torch.zeros(3, 2, 3, dtype=torch.int64, device=DEVICE)
    for wrong in (
        lambda: rope.rotate(q, k, torch.cat([ids, ids[:1]]), backend=backend),
        lambda: rope.rotate(q, k, ids[..., :2], backend=backend),
        lambda: rope.rotate(q, k, ids[..., :1], backend=backend),
        lambda: rope.rotate(q, k[:, :, :2], ids, backend=backend),
        lambda: rope.rotate(q, k[:1], ids, backend=backend),
        lambda: rope.rotate(q, k, ids.bfloat16(), backend=backend),
        lambda: rope.rotate(q, k, ids.flatten(1), backend=backend),
        lambda: rope.rotate(q, k, ids, heads=-2, backend=backend),
        lambda: rope.rotate(q[0], k[0], ids[:, 0], backend=backend),
        lambda: rope.rotate(q, k.expand(2, 2, 3, 16)[:, :1].expand(2, 2, 3, 16), ids, inplace=True, backend=backend),
        lambda: rope.rotate(q, q, ids, inplace=True, backend=backend),
        lambda: rope.rotate(q[..., :8], k[..., :8], ids, backend=backend),
    ):
        with pytest.raises(ValueError, match=r"must be|are for|inplace=True"):
            wrong()
    if backend == "triton":
        for wrong in (
            lambda: rope.rotate(q, k[:1], ids[:, :1], backend=backend),  # one row of ids, and two batches
            lambda: rope.rotate(q, torch.cat([k, k[..., :4]], dim=-1), ids, backend=backend),
            lambda: rope.rotate(q, k.half(), ids, backend=backend),
        ):
            with pytest.raises(ValueError, match="q and k must be of one"):
                wrong()
