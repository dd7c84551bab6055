"""What only a GPU can show of rotations. It needs torch, triton and pytest alone: `scripts/gpu.py` runs it without conftest.py."""

from __future__ import annotations

import pytest
import torch

from mmrope.encodings.rotary import RotaryEmbedding
from mmrope.encodings.scaling import DynamicNTK, LongRoPE
from mmrope.encodings.spec import RotarySpec
from mmrope.encodings.xpos import XPos

pytestmark = pytest.mark.gpu


@torch.no_grad()
def test_angles_are_as_exact_as_on_the_cpu():
    spec = RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))
    ids = torch.randint(0, 2**31 - 1, (3, 2, 500))
    for one, other in zip(RotaryEmbedding(spec)(ids), RotaryEmbedding(spec)(ids.cuda()), strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=1e-6)


def rotation(dtype=torch.bfloat16):
    rope = RotaryEmbedding(RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24)))
    q, k = (torch.randn(2, heads, 300, 128, device="cuda", dtype=dtype) for heads in (28, 4))
    return rope, q, k, torch.randint(0, 10_000, (3, 2, 300), device="cuda")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_rotations_do_not_wait_for_the_device(backend):
    rope, q, k, ids = rotation()
    factors = [1.5] * 64, [3.0] * 64
    longer = [RotaryEmbedding(RotarySpec.rope(128).scaled(s)) for s in (DynamicNTK(4096, 2.0), LongRoPE(*factors, 4096, 8.0))]
    length, each = torch.tensor(9000, device="cuda"), torch.tensor([100, 9000], device="cuda")
    xpos, weight = XPos(128, center=5000), torch.ones(128, device="cuda")

    def turn():
        rope.rotate(q, k, ids, backend=backend)
        rope.rotate(q.clone(), k.clone(), ids, backend=backend, inplace=True)
        rope.norm_rotate(q, k, weight, weight, ids, backend=backend)
        rope.shift(k, -5)
        xpos.rotate(q, k, ids[:1])
        for other in longer:
            for stated in (length, each, 9000):
                other.rotate(q, k, ids[:1], length=stated, backend=backend)

    turn()
    torch.cuda.set_sync_debug_mode("error")
    try:
        turn()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_q_and_k_are_one_launch():
    rope, q, k, ids = rotation()
    assert rope.backend_for(q) == "triton"
    rope.rotate(q, k, ids)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        rope.rotate(q, k, ids)
        torch.cuda.synchronize()
    launched = [event.key for event in profile.key_averages() if "rotate_kernel" in event.key or "elementwise" in event.key]
    assert [name for name in launched if "rotate_kernel" in name] == launched
    torch.testing.assert_close(rope.rotate(q, k, ids), rope.rotate(q, k, ids, backend="torch"), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_decoding_in_a_cuda_graph(backend):
    rope, q, k, ids = rotation()
    q, k, ids = q[:, :, :1], k[:, :, :1], ids[..., :1].clone()
    rope.rotate(q, k, ids, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rotated = rope.rotate(q, k, ids, backend=backend)
    ids.add_(5)
    graph.replay()
    torch.testing.assert_close(rotated, rope.rotate(q, k, ids, backend=backend))


def test_the_first_call_is_no_part_of_a_cuda_graph():
    ids = torch.zeros(3, 1, 4, device="cuda", dtype=torch.int64)
    fresh = RotaryEmbedding(RotarySpec.mrope(16, sections=(2, 3, 3)))
    with pytest.raises(ValueError, match="call it once before, as a warm-up"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        fresh(ids)


def test_in_place_needs_no_memory():
    rope, q, k, ids = rotation()
    wanted = rope.rotate(q, k, ids)
    rope.rotate(q.clone(), k.clone(), ids, inplace=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = rope.rotate(q, k, ids, inplace=True)
    assert torch.cuda.max_memory_allocated() == before
    assert made[0].data_ptr() == q.data_ptr()
    torch.testing.assert_close((q, k), wanted)


def test_compiled_code_says_the_same():
    rope, q, k, ids = rotation()
    turn = torch.compile(lambda q, k, ids: rope.rotate(q, k, ids), fullgraph=True, dynamic=True)
    torch.testing.assert_close(turn(q, k, ids), rope.rotate(q, k, ids), rtol=2e-2, atol=2e-2)
