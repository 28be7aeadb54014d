"""Measure time and memory of training steps with trial steps of the model."""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gpt_core.data.batches import EVAL_TOKENS
from gpt_core.hardware.device import Numerics, peak_memory, wall_seconds
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT, LOSS_CHUNK
from gpt_core.training.config import TrainConfig
from gpt_core.training.monitoring.flops import flops_per_token
from gpt_core.training.optim import is_block_matrix
from gpt_core.training.parallel.ranks import Ranks
from gpt_core.training.parallel.torch_parallel import TorchParallel, try_compiled

MAX_SECONDS = 4.0  # time limit of a measurement
MEMORY_FRACTION = 0.7  # of the free memory that a measurement may use


@dataclass(frozen=True)
class Speed:
    """Time of the parts of a step.

    Attributes:
        sequence: seconds of forward and backward per sequence.
        update: seconds of an optimizer step.
        n_sequences: sequences per measured forward; 0: estimated from a measured model of two blocks.
        peak: peak memory of the process in bytes; None if unknown.
    """

    sequence: float
    update: float
    n_sequences: int = 0
    peak: int | None = None


@dataclass(frozen=True)
class Memory:
    """Memory in bytes of one rank with the whole model.

    Attributes:
        weights: float32 weights; the gradients need as much again, and so does the copy of the weights that
            `UpdateToWeight` holds during the update before an evaluation.
        optimizer: optimizer state.
        activations: tensors that a micro-batch's forward saves for its backward, casts of the weights included.
        per_sequence: the part of the activations that each sequence of the micro-batch adds.
        transient: tensors that exist beside the activations for a moment: a chunk of the logits while the loss is
            computed, or a block's while it is computed.
        evaluation: the same for a forward without gradients of the size that an evaluation uses.
        gathered: weights that a sharded rank has gathered at a time: those outside the blocks, and two blocks.
    """

    weights: int
    optimizer: int
    activations: int
    per_sequence: int
    transient: int
    evaluation: int
    gathered: int

    def peak(self, n_shards: int = 1) -> float:
        """Memory that a training needs: the most of its forward and backward, its update and its evaluation.

        Args:
            n_shards: ranks over which FSDP2 shards weights, gradients and optimizer state; 1: the whole model.
        """
        gathered = self.gathered if n_shards > 1 else 0
        step = 2 * self.weights / n_shards + gathered + self.activations + self.transient
        update = 3 * self.weights / n_shards
        evaluation = self.weights / n_shards + gathered + self.evaluation
        return self.optimizer / n_shards + max(step, update, evaluation)


def measure_memory(
    config: TrainConfig,
    shape: GPTConfig,
    device: torch.device,
    numerics: Numerics,
    block_size: int,
    micro_batch_size: int,
    eval_tokens: int = EVAL_TOKENS,
) -> Memory:
    """Count the memory of a training, with the activations extrapolated from models of one and two blocks.

    Args:
        config: the optimizers.
        shape: shape of the model.
        device: device of the training.
        numerics: dtype; the count is of uncompiled blocks.
        block_size: tokens in a sequence.
        micro_batch_size: sequences in a forward.
        eval_tokens: tokens in a forward of an evaluation.
    """
    small = [dataclasses.replace(shape, n_layer=n) for n in (1, 2)]
    saved = [[activation_bytes(s, device, numerics, block_size, n) for n in (1, 2)] for s in small]

    def all_blocks(one: int, two: int) -> int:
        return one + (shape.n_layer - 1) * (two - one)

    per_sequence = all_blocks(*(two - one for one, two in saved))
    fixed = all_blocks(*(2 * one - two for one, two in saved))
    with torch.device("meta"):
        weights = dict(GPT(shape).named_parameters())
    muon = {name for name, p in weights.items() if config.optimizer == "muon" and is_block_matrix(name, p)}
    whole = ("blocks.0.", "blocks.1.")  # of the blocks, those that are gathered at a time
    gathered = [name for name in weights if name.startswith(whole) or not name.startswith("blocks.")]
    return Memory(
        weights=sum(p.nbytes for p in weights.values()),
        optimizer=sum(p.nbytes * (1 if name in muon else 2) for name, p in weights.items()),
        activations=fixed + micro_batch_size * per_sequence,
        per_sequence=per_sequence,
        transient=transient_bytes(shape, micro_batch_size * block_size, numerics),
        evaluation=transient_bytes(shape, eval_tokens, numerics),
        gathered=sum(weights[name].nbytes for name in gathered),
    )


def measure_speed(
    config: TrainConfig,
    shape: GPTConfig,
    device: torch.device,
    numerics: Numerics,
    block_size: int,
    micro_batch_size: int,
    memory: Memory,
) -> Speed:
    """Time a model of two blocks and extrapolate, then time the whole model if time and memory allow.

    Args:
        config: the optimizers.
        shape: shape of the model.
        device: device to measure on.
        numerics: dtype, threads and compilation.
        block_size: tokens in a sequence.
        micro_batch_size: sequences in a forward; fewer are measured if these need too much time or memory.
        memory: that of the training.
    """
    two = dataclasses.replace(shape, n_layer=2)
    step = Step(config, two, device, dataclasses.replace(numerics, compile=False), block_size, 1)
    sequence, update = step.time()
    flops = [flops_per_token(s, block_size) for s in (two, shape)]
    n_bytes = sum(p.nbytes for p in step.model.parameters())
    speed = Speed(sequence * flops[1] / flops[0], update * memory.weights / n_bytes)
    del step

    fixed = memory.peak() - micro_batch_size * memory.per_sequence
    n = min(
        micro_batch_size,
        int((MEMORY_FRACTION * free_memory(device) - fixed) / max(1.0, memory.per_sequence)),
    )
    if device.type != "cuda":
        n = min(n, 0 if speed.sequence > MAX_SECONDS else max(1, int(MAX_SECONDS / 4 / speed.sequence)))
    if n < 1:
        return speed
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    sequence, update = Step(config, shape, device, numerics, block_size, n).time()
    return Speed(sequence, update, n, None if device.type == "mps" else peak_memory(device))


class Step:
    """Forward, backward and update of a model of this shape, on random tokens, in one process."""

    def __init__(
        self,
        config: TrainConfig,
        shape: GPTConfig,
        device: torch.device,
        numerics: Numerics,
        block_size: int,
        n_sequences: int,
    ) -> None:
        alone = dataclasses.replace(config, parallel="ddp", cpu_offload=False, deepspeed_config=None)
        torch.manual_seed(config.seed)
        self.n, self.device = n_sequences, device
        self.model = GPT(shape).to(device).train()
        self.parallel = TorchParallel(self.model, alone, Ranks(device=device), numerics)
        self.ids = torch.randint(shape.vocab_size, (n_sequences, block_size), device=device)
        if numerics.compile:
            try_compiled(self.model, self.micro_step, Ranks(device=device))
        self.micro_step()
        self.update()  # the first update allocates the optimizer state

    def micro_step(self) -> None:
        """Forward and backward of one micro-batch."""
        with self.parallel.micro_step(last=True):
            out = self.parallel.network(self.ids, targets=self.ids, logits=False)
            self.parallel.backward(out.loss_sum)

    def update(self) -> None:
        """An optimizer step with learning rate 0."""
        self.parallel.update(torch.tensor(self.ids.numel(), device=self.device), 0.0)

    def time(self) -> tuple[float, float]:
        """Median seconds of forward and backward per sequence, and of an update."""
        micro, update = list[float](), list[float]()
        end = time.perf_counter() + MAX_SECONDS / 2
        while not micro or (len(micro) < 20 and time.perf_counter() < end):
            micro.append(wall_seconds(self.micro_step, self.device))
            update.append(wall_seconds(self.update, self.device))
        return median(micro) / self.n, median(update)


def activation_bytes(
    shape: GPTConfig, device: torch.device, numerics: Numerics, block_size: int, n_sequences: int
) -> int:
    """Bytes that a forward through the blocks saves for its backward, without the weights; counted, not estimated."""
    with torch.device("meta"):
        model = GPT(shape).train()
    model.to_empty(device=device)  # the values do not matter, and drawing random ones is slow
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(shape.vocab_size, (n_sequences, block_size), device=device)
    with saved_tensors_hooks(pack, lambda tensor: tensor), numerics.autocast():
        # The graph of `hidden` keeps the saved tensors alive, so their addresses are unique.
        hidden = model(ids, logits=False).hidden
    assert hidden.requires_grad
    return sum(storages.values())


def transient_bytes(shape: GPTConfig, n_tokens: int, numerics: Numerics) -> int:
    """Bytes of the tensors that exist at once in the widest place of a forward over `n_tokens` tokens.

    That is an MLP, with its inner activations and the residual stream, or a chunk of the logits with its softmax and
    gradient in 32 bits; under autocast inner activations are in 16 bits, and logits also have a copy in 16 bits.
    """
    float32 = numerics.dtype == "float32"
    inner = shape.n_inner * (3 if shape.mlp == "swiglu" else 2) * (4 if float32 else 2)
    logits = min(n_tokens * shape.vocab_size, LOSS_CHUNK) * (12 if float32 else 16)
    return n_tokens * shape.n_embd * 8 + max(n_tokens * inner, logits)


def free_memory(device: torch.device) -> float:
    """Free memory on `device` in bytes, as the system reports it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))  # container
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free
