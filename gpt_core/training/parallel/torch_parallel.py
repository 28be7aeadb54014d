"""Training with one process, DistributedDataParallel or FSDP2."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gpt_core.common.errors import InputError
from gpt_core.hardware.device import Numerics
from gpt_core.training.config import TrainConfig
from gpt_core.training.optim import build_optimizers, set_learning_rates
from gpt_core.training.parallel.parallel import LOSS_SCALE, by_parameter, gradient_sync, refuse_left_over
from gpt_core.training.parallel.ranks import Ranks


class TorchParallel:
    """One process, DistributedDataParallel or FSDP2 (`fully_shard`), as configured.

    FSDP2 stores and communicates float32 weights and uses autocast like the other two, so all three compute the same.

    Args:
        model: unsharded, with a list `blocks`; the same on every rank, on `ranks.device`. For FSDP2 on the CPU of rank
            0, which sends the other ranks their shards, so that they may have it on the meta device.
        config: kind of parallelism and optimizers.
        ranks: the processes.
        numerics: dtype and compilation.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, ranks: Ranks, numerics: Numerics) -> None:
        self.model = self.network = model
        self.ranks, self.numerics, self.grad_clip = ranks, numerics, config.grad_clip
        if numerics.compile:
            # Compile each block: all layers share one compiled graph, and DDP can still overlap the all-reduce of
            # gradients with the backward of earlier layers.
            for block in model.blocks:  # type: ignore[union-attr]
                block.compile()
        if config.parallel == "fsdp2":
            if not torch.distributed.is_initialized():
                raise InputError(
                    "parallel is fsdp2, which needs ranks: start with torchrun --nproc_per_node=N."
                )
            if numerics.dtype == "float16":
                raise InputError(
                    "dtype is float16, but FSDP2 has no loss scaling here; use --dtype bfloat16 or float32."
                )
            mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
            on_gpu = ranks.device.type != "cpu"  # on a CPU the weights are in CPU memory anyway
            offload = CPUOffloadPolicy() if config.cpu_offload and on_gpu else OffloadPolicy()
            whole = model.state_dict() | dict(model.named_buffers()) if ranks.main else {}
            model.to("meta")
            for block in model.blocks:  # type: ignore[union-attr]
                fully_shard(block, mesh=mesh, offload_policy=offload)
            fully_shard(model, mesh=mesh, offload_policy=offload)
            model.to_empty(device="cpu" if config.cpu_offload else ranks.device)
            send_shards(model, mesh, whole, ranks)
        elif ranks.world_size > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self.network = DistributedDataParallel(model, devices, gradient_as_bucket_view=True)
        self.optimizers = build_optimizers(model, config, numerics)
        # The loss is a sum over thousands of targets, so float16 needs no initial scaling.
        self.scaler = torch.amp.GradScaler(
            ranks.device.type, init_scale=1.0, enabled=numerics.dtype == "float16"
        )
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """See `Parallel`."""
        with gradient_sync(self.network, last), self.numerics.autocast():
            yield

    def backward(self, loss: Tensor) -> None:
        """See `Parallel`."""
        with torch.autocast(self.numerics.device, enabled=False):
            self.scaler.scale(loss).backward()

    def update(self, n_targets: Tensor, factor: float) -> Tensor:
        """See `Parallel`."""
        set_learning_rates(self.optimizers, factor)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = _whole(nn.utils.get_total_norm(gradients))  # on the CPU if gradients are offloaded
        divisor = n_targets.to(norm.device) / self.ranks.world_size  # DDP and FSDP average gradients
        norm = norm / divisor
        scale = 1 / divisor
        if self.grad_clip:
            scale = scale * torch.clamp(self.grad_clip / (norm + 1e-6), max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.dtype))
        # The scaler checks each optimizer separately; if one overflowed, the others must not step either.
        overflow = self.scaler.is_enabled() and not norm.isfinite()
        for optimizer in self.optimizers:
            if not overflow:
                self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            self.scaler.update()
        return norm.to(n_targets.device)

    def weights(self) -> dict[str, Tensor]:
        """See `Parallel`."""
        return self._on_main(self.model.state_dict())

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """See `Parallel`."""
        names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        tensors = {
            f"{type(optimizer).__name__}:{names[p]}:{key}": tensor
            for optimizer in self.optimizers
            for p, state in optimizer.state.items()
            for key, tensor in state.items()
        }
        scale = {
            f"{LOSS_SCALE}:{key}": torch.tensor(value) for key, value in self.scaler.state_dict().items()
        }
        return self._on_main(tensors | scale)

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `Parallel`."""
        names = {p: name for name, p in self.model.named_parameters()}
        saved = by_parameter(tensors)
        scale = saved.pop(LOSS_SCALE, None)
        if scale is not None and self.scaler.is_enabled():
            self.scaler.load_state_dict({key: tensor.item() for key, tensor in scale.items()})
        for optimizer in self.optimizers:
            content = optimizer.state_dict()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            owners = [f"{type(optimizer).__name__}:{names[p]}" for p in parameters]
            content["state"] = {
                i: {key: _like(tensor, p) for key, tensor in saved.pop(owner).items()}
                for i, (p, owner) in enumerate(zip(parameters, owners, strict=True))
                if owner in saved
            }
            optimizer.load_state_dict(content)
        refuse_left_over(saved)

    def _on_main(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gather tensors one by one to the CPU of rank 0; {} on other ranks."""
        gathered = {}
        for name, tensor in tensors.items():
            whole = _whole(tensor.detach())
            if self.ranks.main:
                gathered[name] = whole.cpu()
        return gathered


@torch.no_grad()
def send_shards(model: nn.Module, mesh: DeviceMesh, whole: dict[str, Tensor], ranks: Ranks) -> None:
    """Fill a sharded model with the values of rank 0, one tensor at a time. All ranks must call it together.

    Args:
        model: its parameters are DTensors; its buffers are not sharded.
        mesh: the ranks.
        whole: on rank 0, the unsharded parameters and buffers by name; emptied, which frees their memory.
        ranks: the processes.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        source = whole.pop(name).detach() if ranks.main else torch.empty(tensor.shape, dtype=tensor.dtype)
        source = source.to(ranks.device)
        if isinstance(tensor, DTensor):
            shard = distribute_tensor(source, mesh, tensor.placements)  # scatters from rank 0
            tensor.to_local().copy_(shard.to_local())
        else:
            torch.distributed.broadcast(source, src=0)
            tensor.data = source  # on `ranks.device` with cpu_offload, too


def try_compiled(model: nn.Module, trial: Callable[[], None], ranks: Ranks) -> None:
    """Run `trial` on a model with compiled blocks; if compilation fails, warn and train without it.

    Args:
        model: the model; its gradients are cleared afterwards.
        trial: forward and backward of a batch of the training shapes.
        ranks: if compilation fails on one rank, all train without it.
    """
    reason = ""
    try:
        trial()
    except RuntimeError as error:  # the compiler's errors, and torch's for a missing C++ compiler or Triton
        reason = " ".join(str(error).split()).partition(" Set TORCHDYNAMO_VERBOSE")[0][:200]
    if ranks.max(int(bool(reason))):
        torch.compiler.set_stance("force_eager")
        if reason:
            print(f"warning: torch.compile failed, training goes on without it: {reason}", file=sys.stderr)
    for p in model.parameters():
        p.grad = None


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of `tensor`, sharded like `parameter` if both have the same shape."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    # Memory-mapped tensors may be aligned differently, and kernels then round differently; a copy is aligned as usual.
    return tensor.clone()
