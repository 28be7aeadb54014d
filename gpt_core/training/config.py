"""What every kind of training is told; the names are nanoGPT's where it has one."""

import math
from dataclasses import dataclass
from typing import Literal

from gpt_core.common.errors import InputError
from gpt_core.hardware.device import DeviceName, DtypeName

MAX_THREADS = 1024  # OpenMP crashes where it cannot start them all


@dataclass(frozen=True)
class TrainConfig:
    """What every kind of training is told; the names are nanoGPT's where it has one."""

    out_dir: str = "runs/out"
    """Folder of the run: checkpoints and logs. What is in it already is resumed."""
    max_iters: int = 2000
    """Steps to train for."""
    eval_interval: int = 250
    """Evaluate and save a checkpoint every so many steps, and at the last one."""
    log_interval: int = 10
    """Write a line of log.jsonl every so many steps."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep, beside the best."""
    patience: int = 0
    """Stop after so many evaluations in a row without a lower validation loss; 0: never."""
    seed: int = 1337
    """Of the initial weights, the data order and dropout."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 3e-3
    """AdamW's peak rate."""
    muon_learning_rate: float = 0.02
    """Muon's peak rate."""
    min_lr: float | None = None
    """AdamW's final rate (Muon's falls in proportion); None: a tenth of learning_rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """How the rates fall after the warm-up: along half a cosine, or (warm-up, stable, decay) late and linearly."""
    warmup_iters: int = 100
    """Steps over which the rates rise from zero."""
    lr_decay_iters: int | None = None
    """The step at which the rates reach min_lr; None: max_iters."""
    decay_fraction: float = 0.2
    """wsd: the share of lr_decay_iters over which the rates fall."""
    weight_decay: float = 0.1
    """AdamW's, on what has two dimensions or more."""
    muon_weight_decay: float = 0.01
    """Muon's."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.99
    """AdamW's decay of the mean squared gradient."""
    grad_clip: float = 1.0
    """Longest gradient, as its norm over all parameters; 0: not clipped."""

    device: DeviceName = "auto"
    """auto: cuda, else mps, else cpu."""
    dtype: DtypeName = "auto"
    """Of the matrix products (autocast); the weights stay float32. auto: what is measured or known to be fastest."""
    tf32: bool = True
    """Let float32 matrix products on a GPU round their inputs to 10 bits of mantissa."""
    threads: int | None = None
    """CPU threads of each rank; None: its share of the cores, or OMP_NUM_THREADS, which torchrun sets to 1."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the blocks. auto: on a GPU; on a CPU only long runs win back the minute it takes."""

    parallel: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """How the ranks under torchrun share the work: ddp: each holds the whole model; fsdp2, deepspeed: a part each."""
    cpu_offload: bool = False
    """fsdp2: keep weights and optimizer state in the CPU's memory."""
    deepspeed_config: str | None = None
    """deepspeed: its ds_config.json, such as configs/ds_zero3_offload.json."""

    wandb_project: str | None = None
    """Log to this project of Weights & Biases as well."""
    profile: bool = False
    """Write a trace of a few steps to out_dir/trace.json, for chrome://tracing or Perfetto."""

    def __post_init__(self) -> None:
        if not self.out_dir:
            raise InputError("out_dir is empty; name a folder.")
        for name in ("max_iters", "eval_interval", "log_interval", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("learning_rate", "muon_learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0.")
        for name in ("warmup_iters", "weight_decay", "muon_weight_decay", "grad_clip", "patience"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 0.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(f"beta1, beta2 are {self.beta1}, {self.beta2}; expected numbers in [0, 1).")
        if not 0 < self.decay_fraction <= 1:
            raise InputError(f"decay_fraction is {self.decay_fraction}; expected more than 0, at most 1.")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} is {value}; expected a finite number.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; expected a whole number from 0 to 2³² - 1.")
        if not self.warmup_iters < self.decay_iters:
            end = "max_iters" if self.lr_decay_iters is None else "lr_decay_iters"
            raise InputError(
                f"warmup_iters is {self.warmup_iters}; it must be below {end}, which is {self.decay_iters}."
            )
        if self.min_lr is not None and not 0 <= self.min_lr <= self.learning_rate:
            raise InputError(
                f"min_lr is {self.min_lr}; expected 0 to learning_rate, which is {self.learning_rate}."
            )
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise InputError(f"threads is {self.threads}; expected 1 to {MAX_THREADS}.")
        if self.cpu_offload and self.parallel != "fsdp2":
            raise InputError(
                f"cpu_offload goes with parallel fsdp2, not {self.parallel}; deepspeed's is set in its own file."
            )
        if (self.parallel == "deepspeed") != (self.deepspeed_config is not None):
            raise InputError(
                f"parallel is {self.parallel} and deepspeed_config {self.deepspeed_config}: deepspeed needs its file, "
                "such as configs/ds_zero3_offload.json, and nothing else takes one."
            )
        if self.parallel == "deepspeed" and self.optimizer == "muon":
            raise InputError(
                "optimizer is muon, which needs whole matrices, and DeepSpeed cuts them into flat pieces; "
                "give --optimizer adamw, or --parallel fsdp2."
            )

    @property
    def decay_iters(self) -> int:
        """`lr_decay_iters`, or its default."""
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters

    @property
    def lr_floor(self) -> float:
        """The final learning rate as a share of the peak."""
        return 0.1 if self.min_lr is None else self.min_lr / self.learning_rate
