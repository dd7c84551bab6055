"""What may be written in place: every size, on both sides of the block path; every way in which memory can overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from mmrope import RotaryEmbedding, RotarySpec, YaRN, apply_rotary
from mmrope.encodings import rotate
from mmrope.encodings.blocks import BLOCK
from mmrope.encodings.overlap import overlaps, share

ROPE = RotaryEmbedding(RotarySpec.rope(128).scaled(YaRN(4.0, 4096)))
TOKENS = (1, 3, 70, 300)  # of 28 heads of 128 channels: the last is past BLOCK elements
DTYPES = (torch.float32, torch.bfloat16)


def ids(tokens, batch=1):
    return torch.arange(5, 5 + tokens).expand(1, batch, tokens)


def places(x):
    """Where each element lies, the slow way."""
    at = torch.tensor([x.storage_offset()])
    for stride, size in zip(x.stride(), x.shape, strict=True):
        at = (at[:, None] + stride * torch.arange(size)).flatten()
    return at.tolist()


@st.composite
def views(draw, storage=600):
    shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    strides = [draw(st.integers(0, 40)) for _ in shape]
    reach = sum(stride * max(0, size - 1) for stride, size in zip(strides, shape, strict=True))
    return shape, strides, draw(st.integers(0, storage - 1 - reach))


@given(views(), views())
def test_overlaps_are_found_as_by_listing_all_elements(one, other):
    store = torch.zeros(600)
    a, b = store.as_strided(*one), store.as_strided(*other)
    assert overlaps(a) == (len(set(places(a))) < len(places(a)))
    assert share(a, b) == bool(set(places(a)) & set(places(b)))
    assert not share(a, b.clone())


def addresses(x):
    """The address of each byte, the slow way."""
    at = torch.tensor(places(x)) - x.storage_offset()
    return (x.data_ptr() + at[:, None] * x.element_size() + torch.arange(x.element_size())).flatten().tolist()


@given(views(), views(), *[st.sampled_from((torch.int8, torch.bfloat16, torch.float32, torch.float64))] * 2, st.booleans())
def test_bytes_in_common_are_found_whatever_the_dtypes_and_the_storages(one, other, of_one, of_other, lent):
    store = torch.zeros(600, dtype=torch.float64)
    again = torch.from_numpy(store.numpy()) if lent else store  # the same memory, a storage of its own
    a, b = store.view(of_one).as_strided(*one), again.view(of_other).as_strided(*other)
    assert share(a, b) == bool(set(addresses(a)) & set(addresses(b)))


LENT = {
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "DLPack": torch.from_dlpack,
    "a buffer": lambda x: torch.frombuffer(x.numpy().data.cast("B"), dtype=x.dtype).view_as(x),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "other numbers": lambda x: x.view(torch.bfloat16)[..., :128],
}


@pytest.mark.parametrize("tokens", [3, 70, 300])
@pytest.mark.parametrize("name", LENT)
def test_memory_that_is_lent_is_not_rotated_twice(name, tokens):
    x = torch.randn(1, 28, tokens, 128)
    k, before = LENT[name](x), x.clone()
    for pair in ((x, k), (k, x)):
        with pytest.raises(ValueError, match="inplace=True: q and k share elements, which would be rotated twice"):
            ROPE.rotate(*pair, ids(tokens), inplace=True)
    assert torch.equal(x, before)


def test_memory_side_by_side_in_one_buffer_is_rotated():
    n = 28 * 70 * 128
    buffer = torch.randn(3 * n)
    q, k = buffer[n : 2 * n].view(1, 28, 70, 128), buffer.view(torch.bfloat16)[4 * n : 5 * n].view(1, 28, 70, 128)
    k.normal_()
    wanted = ROPE.rotate(q.clone(), k.clone(), ids(70))
    torch.testing.assert_close(ROPE.rotate(q, k, ids(70), inplace=True), wanted, atol=1e-6, rtol=8e-3)


def test_views_that_have_their_outer_steps_in_common():
    """As those of one fused tensor, or nearly: what is widest may pass over all inside it, or not, or be of one alone."""
    store, random, found = torch.zeros(200), np.random.default_rng(0), set()
    for _ in range(2000):
        outer = [(int(random.choice([12, 24, 36])), int(random.integers(1, 4)))] * random.integers(0, 2)
        views = []
        for _ in range(2):
            inner = [(int(random.choice([1, 2, 3, 4, 12])), int(random.integers(1, 4))) for _ in range(random.integers(0, 3))]
            strides, shape = zip(*outer, *inner, strict=True) if outer or inner else ((), ())
            views.append(store.as_strided(shape, strides, int(random.integers(0, 30))))
        shared = bool(set(places(views[0])) & set(places(views[1])))
        assert share(*views) == shared, [(x.shape, x.stride(), x.storage_offset()) for x in views]
        found.add(shared)
    assert found == {True, False}


def overlapping(tokens, dtype):
    """Views whose elements lie in the same place, by name: [1, 28, S, 128], of two batches where the batch is expanded."""
    one = torch.randn(1, 1, tokens, 128).to(dtype)
    return {
        "expanded heads": one.expand(1, 28, tokens, 128),
        "expanded batch": torch.randn(1, 28, tokens, 128).to(dtype).expand(2, 28, tokens, 128),
        "steps of half a head": torch.randn(28 * tokens * 128)
        .to(dtype)
        .as_strided((1, 28, tokens, 128), (1, 64 * tokens, 64, 1)),
        "one channel for all": one[..., :1].expand(1, 28, tokens, 128),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_memory_that_overlaps_is_refused_at_every_length(tokens, dtype):
    q = torch.randn(2, 28, tokens, 128).to(dtype)
    for name, k in overlapping(tokens, dtype).items():
        mine, before = q[: len(k)].clone(), k.clone()
        kept = mine.clone()
        with pytest.raises(
            ValueError, match=r"inplace=True: elements of a tensor .* lie in the same place .*: rotate x.contiguous\(\)"
        ):
            ROPE.rotate(mine, k, ids(tokens), inplace=True)
        assert torch.equal(mine, kept), name  # nothing was written
        assert torch.equal(k, before), name
        ROPE.rotate(mine, k, ids(tokens))  # out of place it is right


@pytest.mark.parametrize("tokens", TOKENS)
def test_one_tensor_is_not_rotated_twice(tokens):
    x = torch.randn(1, 28, tokens, 128)
    cos, sin = ROPE(ids(tokens))
    for q, k in ((x, x), (x, x.view_as(x)), (x, x[:, 20:]), (x[:, :10], x[:, 9:])):
        before = x.clone()
        with pytest.raises(ValueError, match="inplace=True: q and k share elements, which would be rotated twice"):
            apply_rotary(q, k, cos, sin, inplace=True)
        with pytest.raises(ValueError, match="inplace=True: q and k share elements"):
            ROPE.rotate(q, k, ids(tokens), inplace=True)
        assert torch.equal(x, before)


def fused(layout, tokens, dtype):
    """q, k and what holds both: the fused projections that models have, 28 query and 4 key heads, as [B, S, N, D] views."""
    generator = torch.Generator().manual_seed(tokens)
    if layout == "q k v, one after the other":
        qkv = torch.randn(2, tokens, 36 * 128, generator=generator).to(dtype)
        return qkv[..., : 28 * 128].unflatten(-1, (28, 128)), qkv[..., 28 * 128 : 32 * 128].unflatten(-1, (4, 128)), qkv
    if layout == "q k v of each head":
        qkv = torch.randn(2, tokens, 14, 3 * 128, generator=generator).to(dtype)
        return (*qkv.chunk(3, dim=-1)[:2], qkv)
    qkv = torch.randn(2, tokens, 14, 128, 3, generator=generator).to(dtype)  # element by element
    return qkv[..., 0], qkv[..., 1], qkv


@pytest.mark.parametrize("heads", [-2, -3])
@pytest.mark.parametrize("layout", ["q k v, one after the other", "q k v of each head", "q k v of each channel"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_views_of_a_fused_tensor_are_rotated_where_they_lie(tokens, dtype, layout, heads):
    q, k, store = fused(layout, tokens, dtype)
    if heads == -3:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    wanted = ROPE.rotate(q.contiguous(), k.contiguous(), ids(tokens), heads=heads)
    untouched = set(range(store.numel())) - set(places(q)) - set(places(k)) if tokens < 70 else set()
    before = store.flatten().clone()
    made = ROPE.rotate(q, k, ids(tokens), heads=heads, inplace=True)
    for mine, given_, right in zip(made, (q, k), wanted, strict=True):
        assert mine.data_ptr() == given_.data_ptr()
        torch.testing.assert_close(mine, right, atol=1e-6, rtol=8e-3 if dtype == torch.bfloat16 else 1e-6)
    rest = sorted(untouched)
    assert torch.equal(store.flatten()[rest], before[rest])


@pytest.mark.parametrize("tokens", TOKENS)
def test_gradients_pass_through_views_that_are_written(tokens):
    found = []
    for inplace in (False, True):
        x = torch.ones(1, tokens, 32, 128, requires_grad=True)
        qkv = x * torch.linspace(-1, 1, 128)
        q, k = qkv[:, :, :28], qkv[:, :, 28:]
        q, k = ROPE.rotate(q, k, ids(tokens), heads=-2, inplace=inplace)
        (q.sum() + k.square().sum()).backward()
        found.append(x.grad)
    assert (28 * tokens * 128 > BLOCK) == (tokens == 300)
    torch.testing.assert_close(*found)


def forbidden():
    """Tensors that autograd does not let be written: [1, 28, S, 128] of [.., S, ..], and what holds them."""

    def split(x):  # as models do it
        q, _ = x.transpose(1, 2).flatten(-2).split((28 * 128, 28 * 128), dim=-1)
        return q.unflatten(-1, (28, 128)).transpose(1, 2)

    grows = lambda tokens: torch.randn(1, 28, tokens, 256, requires_grad=True)  # noqa: E731
    return {
        "a leaf": lambda tokens: (leaf := torch.randn(1, 28, tokens, 128, requires_grad=True), leaf),
        "a view of a leaf": lambda tokens: (leaf := torch.nn.Parameter(torch.randn(1, 28, tokens, 256)), leaf[..., :128]),
        "chunk": lambda tokens: (x := grows(tokens) * 1, x.chunk(2, dim=-1)[0]),
        "split": lambda tokens: (x := grows(tokens) * 1, x.split((128, 128), dim=-1)[1]),
        "unbind": lambda tokens: (x := grows(tokens) * 1, x.unflatten(-1, (2, 128)).unbind(-2)[0]),
        "views of split": lambda tokens: (x := grows(tokens) * 1, split(x)),
    }


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", forbidden())
def test_what_autograd_does_not_let_be_written_is_refused_before(name, tokens):
    """At every size: it says no by itself only after a function has written."""
    store, view = forbidden()[name](tokens)
    before = store.detach().clone()
    for backend in ("torch", "triton") if tokens < 70 else ("torch",):
        with pytest.raises(ValueError, match=r"inplace=True: autograd does not let this tensor be written: .* Pass slices"):
            ROPE.rotate(view, torch.randn(1, 2, tokens, 128).to(view.device), ids(tokens), inplace=True, backend=backend)
        assert torch.equal(store, before)
    if name == "a leaf":
        with torch.no_grad():
            rotate(view, *ROPE(ids(tokens)), inplace=True)
        assert not torch.equal(store, before)


@pytest.mark.parametrize("tokens", TOKENS)
def test_tensors_of_inference_mode_are_not_written_outside_it(tokens):
    with torch.inference_mode():
        x = torch.randn(1, 28, tokens, 128)
        rotate(x, *ROPE(ids(tokens)), inplace=True)
    before = x.clone()
    with pytest.raises(ValueError, match="autograd does not let this tensor be written: Inplace update to inference tensor"):
        rotate(x, *ROPE(ids(tokens)), inplace=True)
    assert torch.equal(x, before)


@pytest.mark.parametrize("tokens", [3, 300])
def test_tensors_without_memory_are_taken(tokens):
    """Of the meta device, of traces and transforms: what is not there does not overlap."""
    q, k = torch.randn(2, 28, tokens, 128), torch.randn(2, 4, tokens, 128)
    cos, sin = ROPE(ids(tokens))
    wanted = apply_rotary(q, k, cos, sin)
    meta = apply_rotary(*(x.to("meta") for x in (q, k, cos, sin)), inplace=True)
    assert meta[0].shape == q.shape
    with FakeTensorMode() as mode:
        fakes = apply_rotary(*(mode.from_tensor(x) for x in (q, k, cos, sin)), inplace=True)
        assert fakes[1].shape == k.shape
    mapped = torch.func.vmap(lambda q, k: apply_rotary(q[None], k[None], cos, sin, inplace=True))(q.clone(), k.clone())
    torch.testing.assert_close(mapped[0][:, 0], wanted[0], atol=1e-5, rtol=0)
    made = torch.func.functionalize(lambda q, k: apply_rotary(q, k, cos, sin, inplace=True))(q.clone(), k.clone())
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)
    write = lambda q, k, cos, sin: apply_rotary(q, k, cos, sin, inplace=True)  # noqa: E731
    graph = make_fx(write, tracing_mode="fake")(q.clone(), k.clone(), cos, sin)
    torch.testing.assert_close(graph(q.clone(), k.clone(), cos, sin), wanted, atol=1e-5, rtol=0)


def test_compiled_code_refuses_partly_overlapping_memory():
    turn = torch.compile(lambda q, k, p: ROPE.rotate(q, k, p, inplace=True), fullgraph=True, backend="aot_eager", dynamic=False)
    k = torch.randn(28 * 6 * 128).as_strided((1, 28, 6, 128), (1, 64 * 6, 64, 1))
    with pytest.raises((ValueError, torch._dynamo.exc.Unsupported), match=r"lie in the same place|Observed exception"):
        turn(torch.randn(1, 4, 6, 128), k, ids(6))


def test_compiled_code_writes_in_place_and_refuses_expanded_memory():
    turn = torch.compile(lambda q, k, p: ROPE.rotate(q, k, p, inplace=True), fullgraph=True, backend="aot_eager", dynamic=True)
    q, k = torch.randn(1, 4, 6, 128), torch.randn(1, 2, 6, 128)
    wanted = ROPE.rotate(q, k, ids(6))
    turn(q, k, ids(6))
    torch.testing.assert_close((q, k), wanted)
    with pytest.raises((ValueError, torch._dynamo.exc.Unsupported), match=r"lie in the same place|Observed exception"):
        turn(q, k[:, :1].expand(1, 4, 6, 128), ids(6))
