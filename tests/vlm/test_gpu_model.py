"""What only a GPU can show of models and of their inputs. `make gpu` runs these, and fails where there is none."""

from __future__ import annotations

import pytest
import torch

from mmrope import VLM, Processor, position_ids, segments_from_inputs
from mmrope.preprocess import pack_batches
from mmrope.vlm.released import RELEASED
from tests.support import released

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
    assert wait_once_a_token(VLM().cuda().eval(), inputs.to("cuda"), monkeypatch) == 5


def wait_once_a_token(model, inputs, monkeypatch, **options):
    """Writes tokens where waiting for the GPU is an error, but for reading them; how many there were."""
    writing = model.stream(**inputs, max_new_tokens=6, temperature=0.7, top_p=0.9, **options)
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
        return len(list(writing))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_shipped_model_answers_as_on_the_cpu(samples):
    from mmrope.vlm.assistant import Assistant, small_model
    from mmrope.vlm.evaluate import examine, exams

    cpu = Assistant.from_pretrained()
    gpu = Assistant(VLM.from_pretrained(small_model(), device="cuda", dtype=torch.float32), cpu.processor)
    for exam in exams()[:4]:
        assert examine(gpu.model, gpu.processor, exam, count=50) == examine(cpu.model, cpu.processor, exam, count=50)


@torch.no_grad()
@pytest.mark.parametrize("name", RELEASED)
def test_released_models_are_the_same_as_on_the_cpu(name, tmp_path):
    released.upstream(name, next(iter(released.OPTIONS[name]))).save_pretrained(tmp_path)
    cpu, gpu = VLM.from_pretrained(tmp_path), VLM.from_pretrained(tmp_path, device="cuda")
    for rows in (1, 3):
        inputs = released.batch(name, seed=rows, rows=rows)
        moved = {key: value.cuda() for key, value in inputs.items()}
        real, expected = inputs["attention_mask"].bool(), cpu(**inputs).logits
        torch.testing.assert_close(gpu(**moved).logits.cpu()[real], expected[real], rtol=0, atol=2e-3)
        assert torch.equal(gpu.generate(**moved, max_new_tokens=4).cpu(), cpu.generate(**inputs, max_new_tokens=4))
    half = VLM.from_pretrained(tmp_path, device="cuda", dtype=torch.bfloat16)
    assert (half(**moved).logits.float().cpu() - expected)[real].abs().mean() < 0.05


@torch.no_grad()
def test_released_models_wait_once_a_token(monkeypatch, tmp_path):
    """With experts, padding and a penalty on repetition, too."""
    released.upstream("qwen3_vl_moe", "experts").save_pretrained(tmp_path)
    model = VLM.from_pretrained(tmp_path, device="cuda", dtype=torch.bfloat16)
    inputs = {key: value.cuda() for key, value in released.batch("qwen3_vl_moe", seed=1, rows=2).items()}
    assert wait_once_a_token(model, inputs, monkeypatch, top_k=20, repetition_penalty=1.1) == 5


@pytest.mark.parametrize("name", RELEASED)
def test_packs_are_their_rows(name, tmp_path):
    """In float32 sequence by sequence, in bfloat16 by the varlen kernel, where torch has it: logits, loss and gradients."""
    released.upstream(name, next(iter(released.OPTIONS[name]))).save_pretrained(tmp_path)
    model = VLM.from_pretrained(tmp_path, device="cuda").train()
    rows = [released.batch(name, seed=n, rows=1) for n in range(4)]
    rows = [{key: value.cuda() for key, value in row.items()} | {"labels": row["input_ids"].cuda()} for row in rows]
    [pack] = pack_batches(rows, max_tokens=100_000)
    for dtype, most in ((torch.float32, 2e-3), (torch.bfloat16, 0.1)):
        model = model.to(dtype)
        alone = torch.cat([model(**row).logits for row in rows], dim=1)
        packed = model(**pack)
        assert (packed.logits - alone).float().abs().mean() < most
        model.zero_grad()
        packed.loss.backward()
        found = torch.cat([p.grad.flatten().float() for p in model.parameters()])
        model.zero_grad()
        counts = [row["labels"].shape[1] - 1 for row in rows]
        sum(model(**row).loss * n for row, n in zip(rows, counts, strict=True)).div(sum(counts)).backward()
        expected = torch.cat([p.grad.flatten().float() for p in model.parameters()])
        assert (found - expected).norm() < (1e-3 if dtype == torch.float32 else 0.1) * expected.norm()
