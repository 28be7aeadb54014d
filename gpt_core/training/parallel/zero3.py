"""DeepSpeed's ZeRO-3 (Rajbhandari et al. 2020): weights, gradients and optimizer state are sharded over the ranks.

Same interface, gradient and checkpoints as `torch_parallel.TorchParallel`. A weight is gathered while a module needs
it and freed afterwards; with offloading the shards are in CPU memory.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.hardware.device import Numerics
from gpt_core.model.gpt import GPT
from gpt_core.training.config import TrainConfig
from gpt_core.training.optim import build_optimizers, set_learning_rates
from gpt_core.training.parallel.parallel import LOSS_SCALE, by_parameter, refuse_left_over
from gpt_core.training.parallel.ranks import Ranks
from gpt_core.training.parallel.zero3_config import read_zero3_config

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, in addition to "step"


class ZeRO3:
    """A model whose weights, gradients and AdamW state are sharded by DeepSpeed; implements `parallel.Parallel`.

    The optimizer is torch's AdamW on each rank's flat shard; DeepSpeed's own AdamW needs a compiler on the user's
    machine. Weights stay float32 and autocast computes in `numerics.dtype`, as in `TorchParallel`.

    Args:
        model: unsharded, the same on every rank, in CPU memory; weights are moved to the device one at a time.
        config: training configuration; `deepspeed_config` is the path of ds_config.json.
        ranks: the processes; their process group must exist.
        numerics: dtype and compilation.

    Raises:
        InputError: if there is no process group, or the file, dtype or compilation is not supported.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, ranks: Ranks, numerics: Numerics) -> None:
        n_parameters = sum(p.numel() for p in model.parameters())
        settings = read_zero3_config(config, ranks.world_size, numerics, n_parameters)
        if not torch.distributed.is_initialized():
            raise InputError(
                "parallel is deepspeed, which needs ranks: start with torchrun --nproc_per_node=N, or deepspeed."
            )
        if numerics.compile:
            raise InputError(
                "compile is on, but DeepSpeed gathers weights inside the blocks; use --compile off."
            )
        os.environ["DS_ACCELERATOR"] = ranks.device.type
        os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
        with extra("deepspeed"):
            import deepspeed
        # No DeepSpeed kernels are needed; without this line, DeepSpeed would compile one for CPU ranks.
        deepspeed.ops.__compatible_ops__ = {}
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)

        self.deepspeed, self.model, self.ranks, self.numerics = deepspeed, model, ranks, numerics
        (optimizer,) = build_optimizers(model, config, numerics)
        deepspeed.init_distributed(dist_init_required=False)
        try:
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
            for buffer in model.buffers():
                buffer.data = buffer.data.to(ranks.device)
            self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        except (ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{config.deepspeed_config}: DeepSpeed rejects it: {reason}") from error
        self.network: nn.Module = self.engine
        self.engine.optimizer.override_loss_scale(1.0)
        for module in model.modules():
            if isinstance(module, GPT):
                self._gather_for_logits(module)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """See `Parallel`; gradients are reduce-scattered after every micro-batch, because only shards fit in memory."""
        self.engine.set_gradient_accumulation_boundary(last)
        with self.numerics.autocast():
            yield

    def backward(self, loss: Tensor) -> None:
        """See `Parallel`."""
        with torch.autocast(self.numerics.device, enabled=False):
            self.engine.backward(loss, scale_wrt_gas=False)

    def update(self, n_targets: Tensor, factor: float) -> Tensor:
        """See `Parallel`."""
        zero = self.engine.optimizer
        set_learning_rates([zero], factor)
        # DeepSpeed averages over the ranks, divides by the loss scale, computes the norm, and clips. The loss is a sum,
        # so its scale relative to the mean is the number of targets, which is known only now.
        zero.override_loss_scale(float(n_targets) / self.ranks.world_size)
        self.engine.step()
        zero.override_loss_scale(1.0)
        return torch.as_tensor(self.engine.get_global_grad_norm(), device=self.ranks.device)

    def weights(self) -> dict[str, Tensor]:
        """See `Parallel`."""
        state = self.model.state_dict(keep_vars=True)
        return self._on_main((name, self._whole(tensor)) for name, tensor in state.items())

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """See `Parallel`."""
        whole = self.deepspeed.utils.safe_get_full_optimizer_state
        names = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
        steps = [state["step"] for state in self.engine.optimizer.state.values()]
        if not steps:  # no state before the first update
            return {}

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for p, name in names.items():
                yield f"AdamW:{name}:step", steps[0].clone()
                for key in MOMENTS:
                    yield f"AdamW:{name}:{key}", whole(p, key)

        return self._on_main(tensors())

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `Parallel`."""
        saved = by_parameter(tensors)
        saved.pop(LOSS_SCALE, None)  # of a float16 run; float16 is not supported here
        step = max((float(state["step"]) for state in saved.values() if "step" in state), default=0.0)
        zero = self.engine.optimizer
        for flat in zero.fp32_partitioned_groups_flat:
            zero.state[flat] = {"step": torch.tensor(step, device=flat.device)}
            zero.state[flat] |= {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
        for name, p in self.model.named_parameters():
            state = saved.pop(f"AdamW:{name}", {})
            for key in MOMENTS if state else ():
                self.deepspeed.utils.safe_set_local_optimizer_state(p, self._part(state[key], p), key)
        refuse_left_over(saved)

    def _gather_for_logits(self, model: Any) -> None:
        """Make `GPT.logits` gather its weight outside of a forward, where no hook does; generation needs this."""
        plain, head = model.logits, model.wte if model.head is None else model.head

        def logits(hidden: Tensor) -> Tensor:
            weight = head.weight  # inside a forward, access gathers the weight; outside, it is empty
            with self.deepspeed.zero.GatheredParameters(weight, enabled=weight.numel() == 0):
                return plain(hidden)

        model.logits = logits

    def _part(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """This rank's flat shard of an unsharded tensor; shards have equal sizes, the end is zero-padded."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        part = whole.flatten()[self.ranks.rank * size : (self.ranks.rank + 1) * size]
        return F.pad(part, (0, size - part.numel()))

    def _whole(self, tensor: Tensor) -> Tensor:
        if not hasattr(tensor, "ds_id"):  # a buffer
            return tensor.detach()
        if tensor.requires_grad:
            return self.deepspeed.utils.safe_get_full_fp32_param(tensor)
        with self.deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()

    def _on_main(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Gather tensors one by one to the CPU of rank 0; {} on other ranks."""
        return {name: whole.cpu() for name, whole in tensors if self.ranks.main}
