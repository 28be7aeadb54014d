"""Read DeepSpeed's ds_config.json and check it against the training configuration, which takes precedence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.json_files import read_json
from gpt_core.hardware.device import Numerics
from gpt_core.training.config import TrainConfig

ADAM_EPS = 1e-8  # torch's default, used by every AdamW here
MAX_BUCKET_SIZE = 500_000_000  # DeepSpeed's default: elements in the buffer of a gradient reduction
# Allowed sections of the file besides those that our configuration determines. The first two are used; the others only
# change DeepSpeed's output or its checks, and are ignored.
ALLOWED_SECTIONS = {"zero_optimization", "torch_autocast"} | {
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}


def read_zero3_config(
    config: TrainConfig, world_size: int, numerics: Numerics, n_parameters: int
) -> dict[str, Any]:
    """The settings for DeepSpeed: those of the file, with our values for "auto" and missing keys.

    Args:
        config: path of the file, learning rates, clipping and, for pretraining, the batch size.
        world_size: number of ranks.
        numerics: the dtype.
        n_parameters: number of parameters; limits the buffer size.

    Raises:
        InputError: if the file cannot be read, contradicts our configuration, or sets something unsupported.
    """
    path = config.deepspeed_config
    assert path is not None
    given = read_json(Path(path), optional=False)
    if numerics.dtype == "float16":
        raise InputError(
            "dtype is float16, but its loss scale is not supported with DeepSpeed; use --dtype bfloat16 or float32."
        )

    ours = determined(config, world_size, numerics)
    for name in ours:
        check_sections(given, name, path)
    sections = ALLOWED_SECTIONS | {name.partition(".")[0] for name in ours}
    for name, value in leaves(given):
        if name.partition(".")[0] not in sections:
            raise InputError(f"{path} sets {name}, which is not supported here; remove it.")
        if name.startswith(("optimizer.", "scheduler.")) and name not in ours and value != "auto":
            raise InputError(
                f"{path} sets {name} to {value!r}, but the configuration has no such key; remove it."
            )
        if name in ours and value != "auto" and value not in ours[name][0]:
            raise InputError(
                f'{path} sets {name} to {value!r}, but {ours[name][1]}; remove it, or set it to "auto".'
            )

    zero = {"stage": 3} | given.get("zero_optimization", {})
    if zero.get("reduce_bucket_size", "auto") == "auto":
        zero["reduce_bucket_size"] = min(MAX_BUCKET_SIZE, n_parameters)
    settings: dict[str, Any] = {
        # DeepSpeed uses these two only to report speed; the loop decides when a step is complete.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
    }
    if numerics.dtype == "bfloat16":
        # Weights and gradients are communicated in float32, except in modules that the file lists as safe.
        safe = given.get("torch_autocast", {}).get("lower_precision_safe_modules", [])
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": safe,
        }
    return settings


def determined(config: TrainConfig, world_size: int, numerics: Numerics) -> dict[str, tuple[list[Any], str]]:
    """Settings that our configuration determines: DeepSpeed's name → (accepted values, text for the error message)."""
    bf16 = numerics.dtype == "bfloat16"
    dtype = f"dtype is {numerics.dtype}"
    betas = [config.beta1, config.beta2]
    ours: dict[str, tuple[list[Any], str]] = {
        "gradient_clipping": ([config.grad_clip], f"grad_clip is {config.grad_clip}"),
        "optimizer.type": (["AdamW"], "optimizer is adamw"),
        "optimizer.params.lr": ([config.learning_rate], f"learning_rate is {config.learning_rate}"),
        "optimizer.params.betas": ([betas], f"beta1 and beta2 are {config.beta1} and {config.beta2}"),
        "optimizer.params.eps": ([ADAM_EPS], f"it is always {ADAM_EPS} here"),
        "optimizer.params.weight_decay": ([config.weight_decay], f"weight_decay is {config.weight_decay}"),
        "scheduler.type": ([], f"schedule is {config.schedule}"),
        "bf16.enabled": ([bf16], dtype),
        "fp16.enabled": ([False], dtype),
        "torch_autocast.enabled": ([bf16], dtype),
        "torch_autocast.dtype": ([numerics.dtype], dtype),
        "zero_optimization.stage": ([3], "parallel deepspeed means stage 3; for others use ddp or fsdp2"),
        "zero_optimization.offload_param.device": (["cpu", "none"], "only cpu and none are supported"),
        "zero_optimization.offload_optimizer.device": (["cpu", "none"], "only cpu and none are supported"),
        "zero_optimization.offload_optimizer.ratio": ([1.0], "the optimizer is offloaded as a whole"),
    }
    batch_size = getattr(config, "batch_size", None)
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    if batch_size is None:
        return ours | {name: ([], "DeepSpeed does not split the batches of this training") for name in names}
    micro = getattr(config, "micro_batch_size", None) or batch_size // world_size
    accumulation = batch_size // (micro * world_size)
    return ours | {
        names[0]: ([batch_size], f"batch_size is {batch_size}"),
        names[1]: ([micro], f"micro_batch_size is {micro}"),
        names[2]: ([accumulation], f"batch_size and micro_batch_size give {accumulation}"),
    }


def check_sections(given: dict[str, Any], name: str, path: str) -> None:
    """Check that the sections in which the setting with the dotted `name` stands are objects, as far as they are set.

    Raises:
        InputError: naming the section.
    """
    value: Any = given
    sections = name.split(".")[:-1]
    for depth, key in enumerate(sections, 1):
        value = value.get(key, {})
        if value is None and depth > 1:  # DeepSpeed's default of offload_param and offload_optimizer
            return
        if not isinstance(value, dict):
            section = ".".join(sections[:depth])
            raise InputError(
                f"{path} sets {section} to {json.dumps(value)}; expected an object with settings such as "
                f"{name.removeprefix(section + '.')}, or remove it."
            )


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All (dotted name, value) pairs of nested sections."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
