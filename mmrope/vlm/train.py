"""Training: one loop for a CPU, a GPU, or several processes, which can be killed at any time and goes on where it was.

TaskBatches (batch n from its number) -> VLM -> AdamW and Muon -> checkpoints, log.jsonl

A checkpoint is a folder `step-000500` with the model, the processor's settings and the optimizers' state, all in safetensors
and JSON. It gets its name when it is complete, and the one before it is removed after. Batches depend on the step's number
alone, so a training that was killed ends with the same weights as one that was not: on a CPU, with as many threads, to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from mmrope.files import replacing, to_json
from mmrope.preprocess.processor import Processor
from mmrope.vlm.data import SCHEDULE, Mix, TaskBatches, exact_answers
from mmrope.vlm.model import VLM, next_token_loss
from mmrope.vlm.tasks import QUESTION_KINDS

LOG_NAME, STATE_NAME, PROGRESS_NAME = "log.jsonl", "optimizer.safetensors", "training.json"


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of a training. On a CPU, the same settings, processes and threads give the same weights.

    Example:
        >>> from mmrope.vlm.train import Training
        >>> training = Training(steps=1000, warmup=50, cooldown=0.4)
        >>> [round(training.lr_share(step), 2) for step in (0, 49, 500, 800, 999)]
        [0.02, 1.0, 1.0, 0.5, 0.0]
    """

    steps: int = 7000
    batch_size: int = 32
    """Conversations a step, in each process."""
    seed: int = 0
    muon_lr: float = 1e-2
    """For matrices; Muon makes each step of about this root mean square, as AdamW's are."""
    adam_lr: float = 2e-3
    """For embeddings, norms and biases."""
    weight_decay: float = 0.01
    warmup: int = 50
    cooldown: float = 0.4
    """The share of the steps at the end in which the learning rate falls to nothing, linearly."""
    clip: float = 1.0
    """The largest norm of a gradient."""
    bfloat16: bool = True
    """Whether matrix products are in bfloat16 (autocast); weights and optimizers are in float32."""
    save_every: int = 250
    log_every: int = 50
    workers: int = 0
    """Processes that make batches; 0 makes them in this one."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "save_every": 1, "log_every": 1, "warmup": 0, "workers": 0}
        if low := [f"{name} {getattr(self, name)}" for name, value in least.items() if getattr(self, name) < value]:
            raise ValueError(f"too small: {', '.join(low)}; the least are {least}")
        if self.save_every % self.log_every:
            raise ValueError(
                f"save_every {self.save_every} must be a multiple of log_every {self.log_every}: "
                "a line of the log is of steps that no kill comes between"
            )

    def lr_share(self, step: int) -> float:
        """The share of the learning rates that a step has.

        Example:
            >>> from mmrope.vlm.train import Training
            >>> Training(steps=100, warmup=10, cooldown=0.5).lr_share(4)  # the fifth of ten steps of warmup
            0.5
        """
        left = (self.steps - step) / (self.cooldown * self.steps) if self.cooldown else 1.0
        return min(1.0, (step + 1) / self.warmup if self.warmup else 1.0, left)


def train(
    model: VLM,
    processor: Processor,
    training: Training,
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    schedule: Sequence[tuple[float, Mix]] = SCHEDULE,
    say: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> VLM:
    """Trains a model, from the folder's last checkpoint if there is one, and leaves the last one there.

    In several processes (torchrun), torch.distributed must be set up; gradients are averaged over them (DDP), and the first
    one writes.

    Args:
        model: with its first weights, the same in every process.
        processor: pads on the right.
        folder: for checkpoints and log.jsonl: a line for every `log_every` steps, with their mean loss, exact answers by
            kind of question (of the first process's batches), tokens a second.
        say: is given each line of the log.

    Raises:
        ValueError: the folder's checkpoint is of other settings, or the loss is no number any more.

    Example:
        >>> import tempfile
        >>> from mmrope import VLM
        >>> from mmrope.vlm import DecoderConfig, VisionConfig, VLMConfig
        >>> from mmrope.vlm.data import Mix, task_processor
        >>> from mmrope.vlm.train import Training, train
        >>> processor = task_processor(padding_side="right")
        >>> small = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}
        >>> decoder = DecoderConfig(vocab_size=processor.tokenizer.size, num_kv_heads=1, **small)
        >>> model = VLM(VLMConfig(vision=VisionConfig(patches=processor.patches, **small), decoder=decoder))
        >>> training, digits = Training(steps=1, batch_size=1), [(1.0, Mix(images=1, side=1, tokens=16))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = train(model, processor, training, folder, schedule=digits, say=lambda entry: print(sorted(entry)))
        ['exact', 'loss', 'lr_share', 'seconds', 'step', 'tokens_per_second']
    """
    if processor.padding_side != "right":
        raise ValueError("training needs Processor(padding_side='right'): causal attention then needs no mask")
    folder = Path(folder)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    settings = _settings(training, world, schedule)
    model.to(device).train()
    optimizers = make_optimizers(model, training)
    start, seconds = 0, 0.0
    if (last := last_checkpoint(folder)) is not None:
        start, seconds = _resume(last, model, optimizers, settings)
    if world > 1:
        starts: list[int] = [0] * world
        dist.all_gather_object(starts, start)
        if len(set(starts)) > 1:
            raise ValueError(f"the processes would go on from steps {starts}: {folder} must be one folder that all of them see")
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        _cut_log(folder / LOG_NAME, start)
        for unfinished in folder.glob(".step-*"):  # of a process that was killed while it saved
            shutil.rmtree(unfinished)
    batches = TaskBatches(
        processor, steps=training.steps, batch_size=training.batch_size, seed=training.seed, rank=rank, schedule=schedule
    )
    loader = DataLoader(
        batches,
        sampler=range(start, training.steps),
        batch_size=None,
        num_workers=training.workers,
        pin_memory=torch.device(device).type == "cuda",
    )
    # a batch of text alone leaves the vision encoder without gradients
    replica = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model
    tally, began = Tally(), time.perf_counter() - seconds
    for step, batch in zip(range(start, training.steps), loader, strict=True):
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        share = training.lr_share(step)
        kinds = batch.pop("kinds")
        labels = batch.pop("labels")
        with precision(device, bfloat16=training.bfloat16):
            logits = replica(**batch).logits
        loss = next_token_loss(logits, labels)
        learn(model, loss, optimizers, training, share)
        tally.add(loss.detach(), logits.detach(), {"labels": labels, "kinds": kinds})
        done = step + 1
        if done % training.log_every == 0 or done == training.steps:
            entry = {
                "step": done,
                "lr_share": round(share, 4),
                "seconds": round(time.perf_counter() - began, 1),
                **tally.read(),
            }
            tally = Tally()
            if not math.isfinite(entry["loss"]):
                raise ValueError(
                    f"the loss is {entry['loss']} at step {done}: lower the learning rates; the last checkpoint is as it was"
                )
            if rank == 0:
                with (folder / LOG_NAME).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(entry) + "\n")
                say(entry)
        if rank == 0 and (done % training.save_every == 0 or done == training.steps):
            progress = {"step": done, "seconds": time.perf_counter() - began, "settings": settings}
            _save(folder, model, processor, optimizers, progress)
    return model.eval()


class Tally:
    """The loss and the exact answers of some steps, on the device until they are read."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.tokens = 0
        self.began = time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> None:
        """One step's."""
        self.losses.append(loss)
        self.answers.append(exact_answers(logits, batch))
        self.tokens += batch["labels"].numel()

    def read(self) -> dict[str, Any]:
        """For the log."""
        counts = zip(QUESTION_KINDS, torch.stack(self.answers).sum(dim=0).tolist(), strict=True)
        return {
            "loss": round(torch.stack(self.losses).mean().item(), 4),
            "tokens_per_second": round(self.tokens / (time.perf_counter() - self.began)),
            "exact": {kind: round(right / of, 4) for kind, (right, of) in counts if of},
        }


def make_optimizers(model: nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between layers, AdamW for embeddings, norms and biases (the division of Muon's authors)."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"training takes torch.optim.Muon, which torch {torch.__version__} lacks; it came with torch 2.9")
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if p.ndim == 2 and "embedding" not in name else others).append(p)
    decay = training.weight_decay
    optimizers = [
        torch.optim.Muon(matrices, lr=training.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=training.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def learn(
    model: nn.Module, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer], training: Training, share: float
) -> None:
    """One step along the gradients of a loss, with this share of the learning rates."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        optimizer.step()


@contextmanager
def precision(device: str | torch.device, *, bfloat16: bool) -> Iterator[None]:
    """Matrix products in bfloat16, or everything in float32."""
    kind = torch.device(device).type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=bfloat16):
        if bfloat16 and kind == "cpu":
            with _Float32Attention():
                yield
        else:
            yield


class _Float32Attention(TorchFunctionMode):
    """On CPUs, attention's backward pass in float32 takes a quarter of the time that it takes in bfloat16 (torch 2.15)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(x.float() for x in args), **(kwargs or {}))


# --- checkpoints ----------------------------------------------------------------------------------------------------------


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint in a training's folder."""
    complete = [path for path in Path(folder).glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return max(complete, key=lambda path: int(path.name[5:]), default=None)


def _settings(training: Training, world: int, schedule: Sequence[tuple[float, Mix]]) -> dict[str, Any]:
    """What decides the weights. How often something is written, and by how many workers batches are made, does not."""
    phases = [[until, dataclasses.asdict(mix)] for until, mix in schedule]
    settings = dataclasses.asdict(training) | {"processes": world, "schedule": phases}
    return {key: value for key, value in settings.items() if key not in ("save_every", "log_every", "workers")}


def _save(
    folder: Path, model: VLM, processor: Processor, optimizers: Sequence[torch.optim.Optimizer], progress: dict[str, Any]
) -> None:
    from safetensors.torch import save_file

    path = folder / f"step-{progress['step']:06d}"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    state = {
        f"{n}.{parameter}.{name}": value.contiguous()
        for n, optimizer in enumerate(optimizers)
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    save_file(state, partial / STATE_NAME)
    (partial / PROGRESS_NAME).write_text(to_json(progress), encoding="utf-8")
    old = [other for other in folder.glob("step-*") if other != path]
    os.replace(partial, path)
    for other in old:
        shutil.rmtree(other)


def _resume(path: Path, model: VLM, optimizers: Sequence[torch.optim.Optimizer], settings: dict[str, Any]) -> tuple[int, float]:
    """Brings model and optimizers to where the checkpoint was; returns its step, and the seconds that it took."""
    from safetensors.torch import load_file

    progress = json.loads((path / PROGRESS_NAME).read_text(encoding="utf-8"))
    saved = type(model).from_pretrained(path)
    before = {**progress["settings"], "config": saved.config.to_dict()}
    now = json.loads(to_json({**settings, "config": model.config.to_dict()}))
    before = json.loads(json.dumps(before))
    if other := [key for key in now if before.get(key) != now[key]]:
        raise ValueError(
            f"{path} was trained with {', '.join(f'{key} {before.get(key)!r}' for key in other)}, "
            f"now asked for {', '.join(f'{key} {now[key]!r}' for key in other)}: "
            "go on with the same settings, or train in another folder"
        )
    model.load_state_dict(saved.state_dict())
    state = load_file(path / STATE_NAME)  # on the CPU, where AdamW wants its counts of steps; it moves the rest itself
    for n, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        for key, value in state.items():
            number, parameter, name = key.split(".")
            if int(number) == n:
                whole["state"].setdefault(int(parameter), {})[name] = value
        optimizer.load_state_dict(whole)
    return progress["step"], progress["seconds"]


def _cut_log(path: Path, step: int) -> None:
    """Leaves the lines up to a step: those after it will be written again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]  # the last may be torn
        with replacing(path) as new:
            new.write_text("".join(kept), encoding="utf-8")
