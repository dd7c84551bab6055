"""What only a GPU can show of models and of their inputs. `make gpu` runs these, and fails where there is none."""

from __future__ import annotations

import pytest
import torch

from mmrope import VLM, Processor, position_ids, segments_from_inputs

pytestmark = pytest.mark.gpu


@pytest.fixture
def inputs(samples):
    content = [{"type": "image", "image": samples / "cat.jpg"}, {"type": "video", "video": samples / "clip.mp4"}]
    processor = Processor(image_pixels=(56 * 56, 16 * 28 * 28), video_pixels=(4 * 28 * 28, 9 * 28 * 28))
    return processor([[{"role": "user", "content": content}], [{"role": "user", "content": "Hi"}]])


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
    from mmrope.vlm.assistant import Assistant, small_model
    from mmrope.vlm.evaluate import examine, exams

    cpu = Assistant.from_pretrained()
    gpu = Assistant(VLM.from_pretrained(small_model(), device="cuda", dtype=torch.float32), cpu.processor)
    for exam in exams()[:4]:
        assert examine(gpu.model, gpu.processor, exam, count=50) == examine(cpu.model, cpu.processor, exam, count=50)
