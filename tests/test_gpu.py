"""What only a GPU can show. `make gpu` runs these, and fails where there is none."""

from __future__ import annotations

import pytest
import torch

from mmrope import VLM, DynamicNTK, Processor, RotaryEmbedding, RotarySpec, position_ids, segments_from_inputs
from mmrope.vlm import SMALL

pytestmark = pytest.mark.gpu


@pytest.fixture
def inputs(samples):
    content = [{"type": "image", "image": samples / "cat.jpg"}, {"type": "video", "video": samples / "clip.mp4"}]
    processor = Processor(image_pixels=(56 * 56, 16 * 28 * 28), video_pixels=(4 * 28 * 28, 9 * 28 * 28))
    return processor([[{"role": "user", "content": content}], [{"role": "user", "content": "Hi"}]])


@torch.no_grad()
def test_angles_are_as_exact_as_on_the_cpu():
    spec = RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))
    ids = torch.randint(0, 2**31 - 1, (3, 2, 500))
    for one, other in zip(RotaryEmbedding(spec)(ids), RotaryEmbedding(spec).cuda().bfloat16()(ids.cuda()), strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=1e-6)


def test_inputs_on_the_gpu_are_copied_only_when_told_to(inputs):
    with pytest.raises(ValueError, match=r"input_ids, .* are on cuda:0: .* pass sync=True"):
        segments_from_inputs(inputs.to("cuda"), "qwen2_5_vl")
    rows = segments_from_inputs(inputs.to("cuda"), "qwen2_5_vl", sync=True)
    assert torch.equal(position_ids(rows, "qwen2_5_vl").torch("cuda")["position_ids"].cpu(), inputs["position_ids"])


@torch.no_grad()
def test_the_model_is_the_same_as_on_the_cpu(inputs):
    torch.manual_seed(0)
    model = VLM().eval()
    expected, tokens = model(**inputs).logits, model.generate(**inputs, max_new_tokens=8)
    model, moved = model.cuda(), inputs.to("cuda")
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**moved).logits.cpu()[real], expected[real], rtol=0, atol=1e-3)
    assert torch.equal(model.generate(**moved, max_new_tokens=8).cpu(), tokens)
    half = model.bfloat16()(**moved).logits.float().cpu()
    assert (half - expected)[real].abs().mean() < 0.02


def test_a_training_step_in_bfloat16(inputs):
    torch.manual_seed(0)
    model, moved = VLM().cuda().bfloat16(), inputs.to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = moved["input_ids"].masked_fill(moved["attention_mask"] == 0, -100)
    losses = []
    for _ in range(10):
        loss = model(**moved, labels=labels).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def rotation(dtype=torch.bfloat16):
    rope = RotaryEmbedding(RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))).cuda()
    q, k = (torch.randn(2, heads, 300, 128, device="cuda", dtype=dtype) for heads in (28, 4))
    return rope, q, k, torch.randint(0, 10_000, (3, 2, 300), device="cuda")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_rotations_do_not_wait_for_the_device(backend):
    rope, q, k, ids = rotation()
    longer = RotaryEmbedding(RotarySpec.rope(128).scaled(DynamicNTK(4096, 2.0))).cuda()
    length = torch.tensor(9000, device="cuda")

    def turn():
        rope.rotate(q, k, ids, backend=backend)
        longer.rotate(q, k, ids[:1], length=length, backend=backend)
        longer.rotate(q, k, ids[:1], length=9000, backend=backend)

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


def test_decoding_in_a_cuda_graph():
    rope, q, k, ids = rotation()
    q, k, ids = q[:, :, :1], k[:, :, :1], ids[..., :1].clone()
    rope.rotate(q, k, ids)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        turned = rope.rotate(q, k, ids)
    ids.add_(5)
    graph.replay()
    torch.testing.assert_close(turned, rope.rotate(q, k, ids))


@torch.no_grad()
def test_generation_waits_once_a_token(inputs, monkeypatch):
    """Between two tokens nothing waits for the GPU but reading the token."""
    torch.manual_seed(0)
    model, moved = VLM().cuda().eval(), inputs.to("cuda")
    writing = model.stream(**moved, max_new_tokens=6, temperature=0.7, top_p=0.9)
    next(writing)
    read = torch.Tensor.tolist

    def reading(tensor):
        torch.cuda.set_sync_debug_mode("default")
        values = read(tensor)
        torch.cuda.set_sync_debug_mode("error")
        return values

    monkeypatch.setattr(torch.Tensor, "tolist", reading)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(writing)) == 5
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_shipped_model_answers_as_on_the_cpu(samples):
    from mmrope.vlm.assistant import Assistant
    from mmrope.vlm.evaluate import examine, exams

    cpu = Assistant.from_pretrained()
    gpu = Assistant(VLM.from_pretrained(SMALL, device="cuda", dtype=torch.float32), cpu.processor)
    for exam in exams()[:4]:
        assert examine(gpu.model, gpu.processor, exam, count=50) == examine(cpu.model, cpu.processor, exam, count=50)
