"""Configuration that pretraining and embedding training share."""

import math
from dataclasses import dataclass
from typing import Literal

from gpt_core.common.errors import InputError
from gpt_core.hardware.device import DeviceName, DtypeName

MAX_THREADS = 1024  # OpenMP crashes if it cannot start the requested number of threads


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of the training loop; key names follow nanoGPT where it has the same key."""

    out_dir: str = "runs/out"
    """Folder of the run, for checkpoints and logs. If it contains a checkpoint, training resumes from it."""
    max_iters: int = 2000
    """Number of training steps."""
    eval_interval: int = 250
    """Evaluate and save a checkpoint every n steps, and after the last one."""
    log_interval: int = 10
    """Write a line to log.jsonl every n steps."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, in addition to the best one."""
    patience: int = 0
    """Early stopping: stop after n consecutive evaluations without a lower validation loss; 0: never."""
    seed: int = 1337
    """Random seed of the initial weights, the data order and dropout."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 3e-3
    """AdamW's peak learning rate."""
    embedding_learning_rate: float | None = None
    """AdamW's peak learning rate of the embeddings of tokens and positions; None: learning_rate."""
    norm_learning_rate: float | None = None
    """AdamW's peak learning rate of norms and biases; None: learning_rate."""
    muon_learning_rate: float = 0.02
    """Muon's peak learning rate."""
    min_lr: float | None = None
    """AdamW's final learning rate (Muon's decays in proportion); None: learning_rate / 10."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning-rate schedule after the warm-up. cosine: half a cosine; wsd: constant, then linear decay."""
    warmup_iters: int = 100
    """Steps of linear warm-up of the learning rates from zero."""
    lr_decay_iters: int | None = None
    """Step at which the learning rate reaches min_lr; None: max_iters."""
    decay_fraction: float = 0.2
    """wsd: fraction of lr_decay_iters over which the learning rates decay."""
    weight_decay: float = 0.1
    """AdamW's weight decay, for parameters of two or more dimensions."""
    muon_weight_decay: float = 0.01
    """Muon's weight decay."""
    beta1: float = 0.9
    """AdamW's decay rate of the mean gradient."""
    beta2: float = 0.99
    """AdamW's decay rate of the mean squared gradient."""
    grad_clip: float = 1.0
    """Maximum gradient norm over all parameters; longer gradients are clipped. 0: no clipping."""

    device: DeviceName = "auto"
    """auto: cuda, else mps, else cpu."""
    dtype: DtypeName = "auto"
    """Autocast dtype of matrix products; weights: float32. auto: bfloat16 if fast, else float16 (cuda) or float32."""
    tf32: bool = True
    """Use TF32 (10-bit mantissa) for float32 matrix products on a GPU."""
    threads: int | None = None
    """CPU threads per rank; None: physical cores / ranks, or OMP_NUM_THREADS if it is set (torchrun sets it to 1)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the blocks. auto: only on a GPU; it takes a minute, on a CPU worth it only for long runs."""

    parallel: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """Parallelism under torchrun. ddp: every rank has the whole model; fsdp2, deepspeed: the model is sharded."""
    cpu_offload: bool = False
    """fsdp2: keep weights and optimizer state in CPU memory."""
    deepspeed_config: str | None = None
    """deepspeed: path of its ds_config.json, such as configs/ds_zero3_offload.json."""

    wandb_project: str | None = None
    """Also log to this Weights & Biases project."""
    profile: bool = False
    """Write a profiler trace of a few steps to out_dir/trace.json, for chrome://tracing or Perfetto."""

    def __post_init__(self) -> None:
        if not self.out_dir:
            raise InputError("out_dir is empty; name a folder.")
        for name in ("max_iters", "eval_interval", "log_interval", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("learning_rate", "embedding_learning_rate", "norm_learning_rate", "muon_learning_rate"):
            if (rate := getattr(self, name)) is not None and not rate > 0:
                raise InputError(f"{name} is {rate}; expected more than 0.")
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
            raise InputError(f"seed is {self.seed}; expected an integer from 0 to 2³² - 1.")
        if not self.warmup_iters < self.decay_iters:
            end = "max_iters" if self.lr_decay_iters is None else "lr_decay_iters"
            raise InputError(
                f"warmup_iters is {self.warmup_iters}; it must be below {end}, which is {self.decay_iters}."
            )
        length = self.decay_fraction * self.decay_iters
        if self.schedule == "wsd" and self.warmup_iters > self.decay_iters - length + 1e-6:
            raise InputError(
                f"warmup_iters is {self.warmup_iters}, but with schedule wsd and decay_fraction "
                f"{self.decay_fraction} the decay begins at step {self.decay_iters - length:g} of "
                f"{self.decay_iters}; lower warmup_iters or decay_fraction."
            )
        if self.min_lr is not None and not 0 <= self.min_lr <= self.learning_rate:
            raise InputError(
                f"min_lr is {self.min_lr}; expected 0 to learning_rate, which is {self.learning_rate}."
            )
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise InputError(f"threads is {self.threads}; expected 1 to {MAX_THREADS}.")
        if self.cpu_offload and self.parallel != "fsdp2":
            raise InputError(
                f"cpu_offload needs --parallel fsdp2, not {self.parallel}; for deepspeed use its ds_config.json."
            )
        if (self.parallel == "deepspeed") != (self.deepspeed_config is not None):
            raise InputError(
                f"parallel is {self.parallel} and deepspeed_config is {self.deepspeed_config}; give deepspeed_config, "
                "such as configs/ds_zero3_offload.json, with --parallel deepspeed and only with it."
            )
        if self.parallel == "deepspeed" and self.optimizer == "muon":
            raise InputError(
                "optimizer is muon, which needs whole matrices, but DeepSpeed shards them into flat parts; "
                "use --optimizer adamw, or --parallel fsdp2."
            )

    def learning_rate_of(self, name: str, n_dims: int) -> float:
        """AdamW's peak learning rate of the parameter `name`, which has `n_dims` dimensions."""
        if name.endswith(("wte.weight", "wpe.weight")):
            return self.embedding_learning_rate or self.learning_rate
        return self.learning_rate if n_dims >= 2 else self.norm_learning_rate or self.learning_rate

    @property
    def decay_iters(self) -> int:
        """`lr_decay_iters`, or `max_iters` if it is None."""
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters

    @property
    def lr_floor(self) -> float:
        """Final learning rate as a fraction of the peak."""
        return 0.1 if self.min_lr is None else self.min_lr / self.learning_rate
