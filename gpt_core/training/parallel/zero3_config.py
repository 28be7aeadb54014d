"""DeepSpeed's ds_config.json, held against our configuration, which decides what both could say."""

import json
from collections.abc import Iterator
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.hardware.device import Numerics
from gpt_core.training.config import TrainConfig

ADAM_EPS = 1e-8  # torch's default, which every AdamW here has
BUCKET = 500_000_000  # DeepSpeed's default: numbers in the buffer that gradients travel in
# What a file may hold beside what our configuration decides. The first two are the file's to say; the rest changes
# what DeepSpeed prints or would refuse, and is left out.
SECTIONS = {"zero_optimization", "torch_autocast"} | {
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}


def read_zero3_config(
    config: TrainConfig, world_size: int, numerics: Numerics, n_parameters: int
) -> dict[str, Any]:
    """The settings to start DeepSpeed with: the file's, with ours where it says "auto" or nothing.

    Args:
        config: names the file, and has the rates, the clipping and, for pretraining, the batch size.
        world_size: number of ranks.
        numerics: the number format.
        n_parameters: of the model; no buffer has to be larger.

    Raises:
        InputError: if the file cannot be read, asks for something else than our configuration, or for what is not done.
    """
    path = config.deepspeed_config
    assert path is not None
    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; configs/ds_zero3_offload.json is one."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(given, dict) or not isinstance(given.get("zero_optimization", {}), dict):
        raise InputError(
            f"{path} is not a DeepSpeed configuration: expected an object with zero_optimization."
        )
    if numerics.dtype == "float16":
        raise InputError(
            "dtype is float16, whose loss scale DeepSpeed would not share; use --dtype bfloat16 or float32."
        )

    ours = decided(config, world_size, numerics)
    sections = SECTIONS | {name.partition(".")[0] for name in ours}
    for name, value in leaves(given):
        if name.partition(".")[0] not in sections:
            raise InputError(f"{path} sets {name}, which is not supported here; leave it out.")
        if name.startswith(("optimizer.", "scheduler.")) and name not in ours and value != "auto":
            raise InputError(
                f"{path} sets {name} to {value!r}, but the configuration has no such key; leave it out."
            )
        if name in ours and value != "auto" and value not in ours[name][0]:
            raise InputError(
                f'{path} sets {name} to {value!r}, but {ours[name][1]}; leave it out, or write "auto" there.'
            )

    zero = {"stage": 3} | given.get("zero_optimization", {})
    if zero.get("reduce_bucket_size", "auto") == "auto":
        zero["reduce_bucket_size"] = min(BUCKET, n_parameters)
    settings: dict[str, Any] = {
        # Only DeepSpeed's own figures of speed go by these two: the loop says when a step is complete.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
    }
    if numerics.dtype == "bfloat16":
        # Weights and gradients travel as float32, unless the file names modules whose weights may be rounded before.
        safe = given.get("torch_autocast", {}).get("lower_precision_safe_modules", [])
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": safe,
        }
    return settings


def decided(config: TrainConfig, world_size: int, numerics: Numerics) -> dict[str, tuple[list[Any], str]]:
    """What our configuration decides: DeepSpeed's name for it → the values that agree with it, and how we say so."""
    bf16 = numerics.dtype == "bfloat16"
    dtype = f"dtype is {numerics.dtype}"
    betas = [config.beta1, config.beta2]
    ours: dict[str, tuple[list[Any], str]] = {
        "gradient_clipping": ([config.grad_clip], f"grad_clip is {config.grad_clip}"),
        "optimizer.type": (["AdamW"], "optimizer is adamw"),
        "optimizer.params.lr": ([config.learning_rate], f"learning_rate is {config.learning_rate}"),
        "optimizer.params.betas": ([betas], f"beta1 and beta2 are {config.beta1} and {config.beta2}"),
        "optimizer.params.eps": ([ADAM_EPS], f"it is {ADAM_EPS} here"),
        "optimizer.params.weight_decay": ([config.weight_decay], f"weight_decay is {config.weight_decay}"),
        "scheduler.type": ([], f"schedule is {config.schedule}"),
        "bf16.enabled": ([bf16], dtype),
        "fp16.enabled": ([False], dtype),
        "torch_autocast.enabled": ([bf16], dtype),
        "torch_autocast.dtype": ([numerics.dtype], dtype),
        "zero_optimization.stage": ([3], "parallel deepspeed means 3; ddp and fsdp2 do what the others do"),
        "zero_optimization.offload_param.device": (["cpu", "none"], "only cpu and none are supported"),
        "zero_optimization.offload_optimizer.device": (["cpu", "none"], "only cpu and none are supported"),
        "zero_optimization.offload_optimizer.ratio": ([1.0], "the optimizer is offloaded as a whole"),
    }
    batch_size = getattr(config, "batch_size", None)
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    if batch_size is None:
        return ours | {name: ([], "this training's batches are not DeepSpeed's to cut") for name in names}
    micro = getattr(config, "micro_batch_size", None) or batch_size // world_size
    accumulation = batch_size // (micro * world_size)
    return ours | {
        names[0]: ([batch_size], f"batch_size is {batch_size}"),
        names[1]: ([micro], f"micro_batch_size is {micro}"),
        names[2]: ([accumulation], f"batch_size and micro_batch_size ask for {accumulation}"),
    }


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested sections under its dotted name."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
