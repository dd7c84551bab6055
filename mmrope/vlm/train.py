"""Training: one loop for a CPU, a GPU, or several processes, which can be killed at any time and continues where it was.

batches (batch n from its number) -> model -> a loss over all tokens of a step -> AdamW, Muon -> checkpoints, log.jsonl

A step is `batches_per_step` batches, whoever computes them: one process, one after the other (gradient accumulation), or
several, each its part (DDP, FSDP2). Its loss is the mean over all their tokens, so the same batches teach the same.

A checkpoint is a folder `step-000500` with the model (of LoRA its adapter), the processor's settings and the optimizers'
state, all in safetensors and JSON, and a manifest of them all. It gets its name when it is complete and on the disk; the one
before it stays, and is taken when the newest turns out damaged. Batches depend on their number alone, so a training that was
killed ends with the same weights as one that was not: on a CPU, with as many threads, to the bit.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mmrope.files import flush, json_object, read_object, remove, replacing, replacing_folder, to_json
from mmrope.positions.segments import MEDIA
from mmrope.preprocess.processor import Processor
from mmrope.vlm.decoder import DecoderBlock
from mmrope.vlm.inputs import Inputs, packed_lengths
from mmrope.vlm.manifest import MANIFEST_NAME, verify_all, write_manifest
from mmrope.vlm.model import VLM, first_unlearned, next_token_loss
from mmrope.vlm.vision import VisionBlock
from mmrope.vlm.weights import WEIGHTS_NAME

LOG_NAME, STATE_NAME, PROGRESS_NAME = "log.jsonl", "optimizer.safetensors", "training.json"
_ADAPTER_NAME = "adapter_model.safetensors"  # peft's
Optimizer = Literal["muon", "adamw"]
_ON_HOST = ("cu_seqlens", MEDIA["image"].grids, MEDIA["video"].grids)  # the model reads these there, and waits for no device


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of a training. On a CPU, the same settings, batches and threads give the same weights.

    Example:
        >>> from mmrope.vlm.train import Training
        >>> training = Training(steps=1000, warmup=50, cooldown=0.4)
        >>> [round(training.lr_share(step), 2) for step in (0, 49, 500, 800, 999)]
        [0.02, 1.0, 1.0, 0.5, 0.0]
    """

    steps: int = 7000
    batches_per_step: int = 1
    """Batches whose gradients make a step, dealt out to the processes; what a process has more than one of is accumulated."""
    seed: int = 0
    optimizer: Optimizer = "muon"
    """"muon": Muon for the matrices between layers, AdamW for the rest; "adamw": AdamW for all, as in fine-tuning."""
    muon_lr: float = 1e-2
    """For matrices; Muon makes each step of about this root mean square, as AdamW's are."""
    adam_lr: float = 2e-3
    """Of AdamW: for embeddings, norms and biases beside Muon, or for all."""
    weight_decay: float = 0.01
    """Of matrices."""
    warmup: int = 50
    cooldown: float = 0.4
    """The share of the steps at the end in which the learning rate falls to nothing, linearly."""
    clip: float = 1.0
    """The largest norm of a gradient."""
    bfloat16: bool = True
    """Whether matrix products are in bfloat16 (autocast); trained weights and optimizers are in float32."""
    recompute: bool = False
    """Gradient checkpointing: blocks keep their inputs alone, and are computed once more for the backward pass."""
    compile: bool = False
    """Whether blocks go through torch.compile."""
    shard: bool = False
    """Whether processes share the weights (FSDP2) instead of having all of them each (DDP)."""
    save_every: int = 250
    log_every: int = 50
    workers: int = 0
    """Processes that make batches of a list or data set; 0 makes them in this one, as those of an iterable are."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "batches_per_step": 1, "save_every": 1, "log_every": 1, "warmup": 0, "workers": 0}
        if low := [f"{name} {getattr(self, name)}" for name, value in least.items() if getattr(self, name) < value]:
            raise ValueError(f"too small: {', '.join(low)}; the least are {least}")
        if self.optimizer not in get_args(Optimizer):
            raise ValueError(f"optimizer must be one of {get_args(Optimizer)}, got {self.optimizer!r}")
        if self.shard and self.optimizer == "muon":
            raise ValueError("Muon needs whole matrices, and shard=True leaves a process parts of them: take optimizer='adamw'")
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


class Batches(Protocol):
    """Batch n of a training, from its number alone: a list, or a data set of torch."""

    def __len__(self) -> int: ...

    def __getitem__(self, n: int, /) -> Mapping[str, Any]: ...


class Score(Protocol):
    """Counts what is right in a batch."""

    names: Sequence[str]

    def count(self, logits: Tensor, batch: Mapping[str, Any], /) -> Tensor:
        """[names, 2] int64: how many are right, and how many there are."""
        ...


def train(
    model: nn.Module,
    batches: Batches | Iterable[Mapping[str, Any]],
    training: Training,
    folder: str | Path,
    *,
    processor: Processor | None = None,
    device: str | torch.device = "cpu",
    about: Mapping[str, Any] | None = None,
    score: Score | None = None,
    say: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> nn.Module:
    """Trains a model, from the folder's last checkpoint if there is one, and leaves the last one there.

    In several processes (torchrun), torch.distributed must be set up; each takes its part of every step's batches, and the
    first one writes. One process or several, the same batches make the same steps, but for how sums are rounded. A model that
    was sharded is good for training alone: load its checkpoint.

    Args:
        model: a VLM with its first weights, or one with adapters of peft; the same in every process. What requires a gradient
            is trained, and must be in float32; the rest stays as it is, in any dtype.
        batches: model inputs with `labels`: padded rows, or packs. From a list or data set step k takes batches
            k * batches_per_step and following, and begins anew when it ends; or an iterable, such as pack_batches(...), which
            makes the same batches every time and is gone through once.
        folder: for checkpoints and log.jsonl: a line for every `log_every` steps, with their loss a token, tokens a second of
            this process (padding included), and the score.
        processor: is saved beside the model.
        about: what else decides the weights, as JSON: how the batches are made. A training continues with the same alone; of
            batches it knows by itself how many there are.
        score: counts what is right, by name, from logits and a batch with all its keys.
        say: is given each line of the log.

    Raises:
        ValueError: the folder's checkpoint is of other settings, or of settings that are no JSON; batches that end too early
            or cannot be dealt out, weights to train that are not float32, or a loss that is no number any more.
        OSError: a checkpoint cannot be written, to a full disk, say. The one before it stays.

    Example:
        >>> import tempfile
        >>> from mmrope import VLM, Processor
        >>> from mmrope.preprocess import pack_batches
        >>> from mmrope.vlm import DecoderConfig, VisionConfig, VLMConfig
        >>> from mmrope.vlm.train import Training, train
        >>> small = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}
        >>> model = VLM(VLMConfig(vision=VisionConfig(**small), decoder=DecoderConfig(num_kv_heads=1, **small)))
        >>> said = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]] * 8
        >>> packs = list(pack_batches((Processor()(messages, labels=True) for messages in said), max_tokens=128))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = train(model, packs, Training(steps=1), folder, say=lambda entry: print(sorted(entry)))
        ['loss', 'lr_share', 'seconds', 'step', 'tokens_per_second']
    """
    folder, device = Path(folder), torch.device(device)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if training.batches_per_step % world:
        raise ValueError(
            f"{world} processes cannot share steps of {training.batches_per_step} batches: batches_per_step must be a multiple"
        )
    settings = _settings(training, model, batches, about)
    start, seconds = 0, 0.0
    if (last := sound_checkpoint(folder)) is not None:
        start, seconds = _resume(last, model, settings)
    replica = distribute(model, training, device)
    optimizers = make_optimizers(model, training)
    if last is not None:
        _load_optimizers(last, model, optimizers)
    if world > 1:
        starts: list[int] = [0] * world
        dist.all_gather_object(starts, start)
        if len(set(starts)) > 1:
            raise ValueError(f"the processes would continue at steps {starts}: {folder} must be one that all of them see")
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        for unfinished in folder.glob(".step-*"):  # of a process that was killed while it saved; what it held is free again
            remove(unfinished)
        _cut_log(folder / LOG_NAME, start)
    tally, began = Tally(), time.perf_counter() - seconds
    for step, mine in enumerate(_dealt(batches, training, start, rank, world, device), start):
        share = training.lr_share(step)
        torch.manual_seed(int(np.random.SeedSequence((training.seed, step, rank)).generate_state(1)[0]))  # of dropout, say
        mine = [_with_labels(batch) for batch in mine]
        learned = _total(sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in mine), device).clamp_min(1)
        for k, batch in enumerate(mine):
            batch = {
                key: value.to(device, non_blocking=True) if isinstance(value, Tensor) and key not in _ON_HOST else value
                for key, value in batch.items()
            }
            inputs = {key: value for key, value in batch.items() if key in Inputs.__annotations__}
            with replica.no_sync() if isinstance(replica, DistributedDataParallel) and k + 1 < len(mine) else nullcontext():
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.bfloat16):
                    logits = replica(**inputs).logits
                loss = next_token_loss(logits, batch["labels"], count=learned)  # this batch's part of the step's
                (loss * world).backward()  # DDP and FSDP2 take the mean over processes
            if step == start:
                _check_all_learn(model)
            tally.add(loss, batch["labels"].numel(), None if score is None else score.count(logits.detach(), batch))
        update(model, optimizers, training, share)
        tally.steps += 1
        done = step + 1
        if done % training.log_every == 0 or done == training.steps:
            entry = {"step": done, "lr_share": round(share, 4), "seconds": round(time.perf_counter() - began, 1)}
            entry |= tally.read(score)
            tally = Tally()
            if not math.isfinite(entry["loss"]):
                raise ValueError(
                    f"the loss is {entry['loss']} at step {done}: lower the learning rates; the last checkpoint is as it was"
                )
            if rank == 0:
                with (folder / LOG_NAME).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(entry) + "\n")
                say(entry)
        if done % training.save_every == 0 or done == training.steps:
            progress = {"step": done, "seconds": time.perf_counter() - began, "settings": settings}
            last = _save(folder, model, processor, optimizers, progress, last, write=rank == 0)
    del replica
    gc.collect()  # DDP is a cycle; left to the end of the process it may end it, as its threads do not
    return model.eval()


# --- one step -------------------------------------------------------------------------------------------------------------


def distribute(model: Any, training: Training, device: torch.device) -> nn.Module:
    """The model on its device, by blocks as the settings want them, and what processes call in its place."""
    if bad := [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]:
        raise ValueError(
            f"{len(bad)} weights to train are not float32, {bad[0]} for one: steps would be lost in rounding. Load the model "
            "with dtype=torch.float32, or freeze it and train adapters"
        )
    if isinstance(model, FSDPModule):
        raise ValueError("the model is sharded already, by an earlier training: load its checkpoint, and train that")
    if any(hasattr(part.embedding, "lora_embedding_A") for part in model.modules() if isinstance(part, VLM) and not part.head):
        raise ValueError(
            "the embedding is the head, too, and an adapter would change but one of both: leave it out of target_modules, or "
            "train it whole, modules_to_save=['embedding']"
        )
    if others := [name for name in getattr(model, "peft_config", {}) if name != "default"]:
        raise ValueError(
            f"the model has an adapter {others[0]!r}, and a checkpoint holds one alone, named 'default' as by peft: leave "
            "adapter_name away (a checkpoint can be loaded under any name), and merge others into the model"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("nothing of the model requires a gradient, so there is nothing to train")
    model.train()
    blocks = [module for module in model.modules() if isinstance(module, (DecoderBlock, VisionBlock))]
    if training.recompute:
        model.gradient_checkpointing_enable()
    if training.compile:
        for block in blocks:
            block.compile()
    model.to(device)
    if training.shard and dist.is_initialized():
        for value in model.state_dict().values():  # as DDP does: a process would keep its part of its own
            dist.broadcast(value, 0)
        for block in blocks:
            fully_shard(block)
        fully_shard(model)
        return model
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    return DistributedDataParallel(model)  # every parameter has a gradient in every batch (VLM.embed): none is looked for


def make_optimizers(model: nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    """For what requires a gradient: Muon for the matrices between layers and AdamW for embeddings, norms and biases (the
    division of Muon's authors), or AdamW for all."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (matrices if p.ndim >= 2 and "embedding" not in name else others).append(p)
    decay, betas = training.weight_decay, (0.9, 0.98)
    if training.optimizer == "adamw":
        groups = [{"params": held, "weight_decay": w} for held, w in ((matrices, decay), (others, 0.0)) if held]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=training.adam_lr, betas=betas)]
    elif not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"this training takes torch.optim.Muon, which torch {torch.__version__} lacks; it came with torch 2.9. Take a "
            "newer one, or optimizer='adamw'"
        )
    else:
        others += [p for p in matrices if p.ndim > 2]  # experts, which Muon does not take
        matrices = [p for p in matrices if p.ndim == 2]
        optimizers = []
        if matrices:
            how = {"lr": training.muon_lr, "weight_decay": decay, "adjust_lr_fn": "match_rms_adamw"}
            optimizers.append(torch.optim.Muon(matrices, **how))
        if others:
            optimizers.append(torch.optim.AdamW(others, lr=training.adam_lr, betas=betas, weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def update(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], training: Training, share: float) -> None:
    """A step along the gradients that are there, with this share of the learning rates; they are gone after."""
    nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        optimizer.step()
    model.zero_grad(set_to_none=True)


def _check_all_learn(model: nn.Module) -> None:
    """That what is to be trained took part in the loss."""
    if idle := [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]:
        raise ValueError(f"{len(idle)} weights to train had no part in the loss, {idle[0]} for one: freeze them")


def _with_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as tensors, in which the first tokens of a pack's sequences are not learned."""
    if batch.get("labels") is None:
        raise ValueError("a batch has no labels, so there is nothing to learn: processor(messages, labels=True) makes them")
    made = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}
    return made | {"labels": first_unlearned(made["labels"], packed_lengths(made))}


class Tally:
    """The loss and the score of some steps, on the device until they are read."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.tokens = self.steps = 0
        self.began = time.perf_counter()

    def add(self, loss: Tensor, tokens: int, score: Tensor | None) -> None:
        """One batch's: its part of its step's loss, its tokens, what is right in it."""
        self.losses.append(loss.detach())
        self.tokens += tokens
        if score is not None:
            self.scores.append(score)

    def read(self, score: Score | None) -> dict[str, Any]:
        """For the log: the mean loss of the steps, and the score, of all processes."""
        rate = self.tokens / (time.perf_counter() - self.began)
        loss = torch.stack(self.losses).double().sum() / self.steps
        entry = {"loss": round(_total(loss, loss.device).item(), 4), "tokens_per_second": round(rate)}
        if score is not None:
            counts = zip(score.names, _total(torch.stack(self.scores).sum(dim=0), loss.device).tolist(), strict=True)
            entry["exact"] = {name: round(right / of, 4) for name, (right, of) in counts if of}
        return entry


def _total(value: Any, device: torch.device) -> Tensor:
    """A sum over all processes."""
    total = torch.as_tensor(value, device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def _dealt(
    batches: Any, training: Training, start: int, rank: int, world: int, device: torch.device
) -> Iterator[list[Mapping[str, Any]]]:
    """The batches of each step from `start` on that are this process's."""
    each, first = training.batches_per_step, start * training.batches_per_step
    if hasattr(batches, "__len__"):
        if not len(batches):
            raise ValueError("there are no batches")
        numbers = [n % len(batches) for n in range(first + rank, training.steps * each, world)]
        pinned = device.type == "cuda"
        stream = iter(DataLoader(batches, sampler=numbers, batch_size=None, num_workers=training.workers, pin_memory=pinned))
    else:
        stream = islice(batches, first + rank, None, world)
    for step in range(start, training.steps):
        mine = list(islice(stream, each // world))
        if len(mine) < each // world:
            raise ValueError(
                f"the batches end within step {step + 1} of {training.steps} steps of {each}: make fewer steps, or give a "
                "list, which is begun anew"
            )
        yield mine


# --- checkpoints ----------------------------------------------------------------------------------------------------------


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint in a training's folder, by its name; `sound_checkpoint` reads it, too."""
    return next(iter(_checkpoints(folder)), None)


def sound_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint in a training's folder that is whole, as it was written, and of the step that its name says; None
    if there are none at all. Of those that are damaged it warns.

    Raises:
        ValueError: all are damaged.
    """
    found = _checkpoints(folder)
    for path in found:
        try:
            _verify(path)
        except (ValueError, OSError) as error:
            warnings.warn(f"the checkpoint {path} is damaged, and the one before it is taken: {error}", stacklevel=2)
        else:
            return path
    if found:
        raise ValueError(f"every checkpoint in {folder} is damaged ({', '.join(p.name for p in found)}): train anew elsewhere")
    return None


def _checkpoints(folder: str | Path) -> list[Path]:
    """The newest first."""
    named = [path for path in Path(folder).glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(named, key=lambda path: -int(path.name[5:]))


def _verify(path: Path) -> None:
    """That a checkpoint is as it was written, has all that a training continues from, and is of the step that its name says."""
    weights = _ADAPTER_NAME if (path / _ADAPTER_NAME).is_file() else WEIGHTS_NAME
    verify_all(path, [PROGRESS_NAME, STATE_NAME, weights])
    if (step := read_object(path / PROGRESS_NAME).get("step")) != int(path.name[5:]):
        raise ValueError(f"by its {PROGRESS_NAME} it is of step {step!r}")


def _settings(training: Training, model: Any, batches: Any, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """What decides the weights. How it is computed, how often something is written, and by how many workers does not."""
    free = ("save_every", "log_every", "workers", "recompute", "compile", "shard")
    kept = {key: value for key, value in dataclasses.asdict(training).items() if key not in free}
    trained, frozen = {}, hashlib.sha256()
    for name, p in model.named_parameters():
        if p.requires_grad:
            trained[name] = list(p.shape)
        else:  # a few values of each, by which another base is told apart
            frozen.update(name.encode() + p.detach().flatten()[:16].float().cpu().numpy().tobytes())
    adapters = {name: _plain(config.to_dict()) for name, config in getattr(model, "peft_config", {}).items()}
    held = {"batches": len(batches)} if hasattr(batches, "__len__") else {}
    made = {**kept, "trained": trained, "frozen": frozen.hexdigest(), "adapters": adapters, **held, "about": about or {}}
    try:
        return json_object(to_json({**made, "config": model.config.to_dict()}, allow_nan=False), "about= or another setting")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"what decides the weights, about= too, must be JSON, which is saved to compare with: {error}"
        ) from error


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's config as JSON: what shapes it, not where it is from."""
    free = ("base_model_name_or_path", "peft_version", "revision", "auto_mapping", "inference_mode")
    values = {key: sorted(value) if isinstance(value, (set, frozenset)) else value for key, value in config.items()}
    return json.loads(json.dumps({key: value for key, value in values.items() if key not in free}, default=str))


def _save(
    folder: Path,
    model: Any,
    processor: Processor | None,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: dict[str, Any],
    before: Path | None,
    *,
    write: bool,
) -> Path | None:
    """Writes a checkpoint, and leaves the one before; all processes take part where they hold parts of the weights."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    kept = trained if hasattr(model, "peft_config") else model.state_dict().keys()  # of adapters what they are alone
    weights = _gathered({name: value for name, value in model.state_dict().items() if name in kept}, write=write)
    memory = {  # what optimizers remember of each weight
        f"{name}:{what}": value
        for optimizer in optimizers
        for name, p in model.named_parameters()
        for what, value in optimizer.state.get(p, {}).items()
    }
    state = _gathered(memory, write=write)
    if not write:
        return None
    path = folder / f"step-{progress['step']:06d}"
    try:
        with replacing_folder(path) as partial:  # there is one if it is damaged, as training begins before it
            model.save_pretrained(partial, state_dict=weights)
            if processor is not None:
                processor.save_pretrained(partial)
            save_file(state, partial / STATE_NAME)
            (partial / PROGRESS_NAME).write_text(to_json(progress), encoding="utf-8")
            write_manifest(partial, sorted({file.name for file in partial.iterdir()} - {MANIFEST_NAME}))
            flush(folder / LOG_NAME)  # a training that continues from here keeps its lines
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written ({error}), and what there was of it is removed. Start again when there is room, and "
            "the right to write: the training continues from the checkpoint before"
        ) from error
    _verify(path)  # before an older one goes
    for other in _checkpoints(folder):
        if other not in (path, before):
            remove(other)
    return path


def _gathered(values: Mapping[str, Tensor], *, write: bool) -> dict[str, Tensor]:
    """Whole tensors, on the host of the process that writes: one after the other, so that no other holds them all."""
    whole = {}
    for name, value in values.items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if write:
            whole[name] = value.detach().cpu().contiguous()
    return whole


def _resume(path: Path, model: Any, settings: dict[str, Any]) -> tuple[int, float]:
    """Brings a model to where the checkpoint was; returns its step, and the seconds that it took."""
    from safetensors.torch import load_file

    progress = read_object(path / PROGRESS_NAME)
    before = progress["settings"]
    if other := [key for key in {**before, **settings} if before.get(key) != settings.get(key)]:
        was, now = (", ".join(f"{key} {values.get(key)!r}" for key in other) for values in (before, settings))
        raise ValueError(
            f"{path} was trained with {was}, now asked for {now}: continue with the same settings, or train in another folder"
        )
    if hasattr(model, "peft_config"):
        model.load_adapter(str(path), model.active_adapter, is_trainable=True)
    else:
        model.load_state_dict(load_file(path / WEIGHTS_NAME))  # copied into the model's own, each in its dtype
    return progress["step"], progress["seconds"]


def _load_optimizers(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Brings optimizers to where the checkpoint was."""
    from safetensors.torch import load_file

    by_weight: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path / STATE_NAME).items():
        name, _, what = key.rpartition(":")
        by_weight.setdefault(name, {})[what] = value
    names = {p: name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        whole = optimizer.state_dict()
        for n, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            state = by_weight[names[p]]  # counts of steps stay on the host, where AdamW wants them; it moves the rest itself
            if isinstance(p, DTensor):
                state = {
                    what: distribute_tensor(value.to(p.device), p.device_mesh, p.placements) if value.ndim else value
                    for what, value in state.items()
                }
            whole["state"][n] = state
        optimizer.load_state_dict(whole)


def _cut_log(path: Path, step: int) -> None:
    """Leaves the lines up to a step: those after it will be written again. The last may be torn; of others it warns."""
    lines, kept = path.read_bytes().splitlines(keepends=True) if path.is_file() else [], []
    for n, line in enumerate(lines, 1):
        try:
            if line.endswith(b"\n") and json_object(line.decode(), LOG_NAME)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            warnings.warn(f"line {n} of {path} is damaged, and left out; no weights depend on it", stacklevel=3)
    if kept != lines:
        with replacing(path) as new:
            new.write_bytes(b"".join(kept))
