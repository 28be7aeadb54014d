"""Dry run of pretraining: estimate parameters, memory, speed, hours and tokens per parameter."""

import dataclasses
import os
from pathlib import Path

import torch

from gpt_core.data.batches import EVAL_TOKENS, Windows, check_batch_sizes
from gpt_core.data.shards import Shard
from gpt_core.formats.pretrained import read_config
from gpt_core.hardware.device import Numerics, pick_device, use_tf32
from gpt_core.hub.locate import resolve
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.monitoring.flops import PEAK_TFLOPS, flops_per_token
from gpt_core.training.numerics import choose_numerics
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.data import open_data
from gpt_core.training.pretraining.measure_step import Memory, Speed, measure_memory, measure_speed

CHINCHILLA_RATIO = 20  # compute-optimal training tokens per parameter (Hoffmann et al. 2022)
ASSUMED_MFU = 0.4  # fraction of its peak that a large GPU is assumed to reach
MIN_WIDTH = 512  # n_embd below which a large GPU does not reach ASSUMED_MFU
REFERENCE_GPUS = ((1, "A100"), (8, "A100"), (8, "H100"))  # hours are estimated for these
ASSUMED_RANKS = 8  # memory with sharding is shown for this world size, unless torchrun started several ranks


def dry_run(config: PretrainConfig) -> dict[str, float]:
    """Print an estimate for this training, measured with a few steps on random tokens; writes no file.

    Without data, the vocabulary size is `config.expected_vocab_size`. Under torchrun only rank 0 measures.

    Returns:
        parameters, tokens_per_s and hours on this machine, tokens_per_parameter; {} on other ranks.

    Raises:
        InputError: as in training, e.g. for shards of another tokenizer or batch sizes that do not divide.
    """
    if int(os.environ.get("RANK", 0)):
        return {}
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    start = config.batch_size_start or config.batch_size
    check_batch_sizes(config.batch_size, config.micro_batch_size, world_size, start, config.batch_ramp_iters)
    shape, vocabulary, windows = find_shape(config)
    block_size = config.block_size or shape.block_size
    share = config.batch_size // world_size
    micro_batch_size = config.micro_batch_size or share

    device = pick_device(config.device)
    use_tf32(config.tf32)
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    numerics = choose_numerics(config, device, n_local, None)
    torch.set_num_threads(numerics.threads)
    n_validated = windows["val"].n_targets if windows else 0  # targets of an evaluation
    if config.eval_tokens:
        n_validated = min(n_validated, config.eval_tokens)
    forward = min(n_validated or EVAL_TOKENS, EVAL_TOKENS)  # tokens in a forward of an evaluation
    memory = measure_memory(config, shape, device, numerics, block_size, micro_batch_size, forward)
    speed = measure_speed(config, shape, device, numerics, block_size, micro_batch_size, memory)

    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in GPT(shape).named_parameters()}
    n_parameters = sum(sizes.values())
    n_embedding = sum(n for name, n in sizes.items() if name.startswith(("wte", "wpe")))
    step_tokens = config.batch_size * block_size
    ramped = config.batch_ramp_iters * (config.batch_size - start) // 2  # sequences that the batch ramp saves
    n_tokens = step_tokens * config.max_iters - ramped * block_size
    tokens_per_s = step_tokens / (share * speed.sequence + speed.update)
    n_evaluations = -(-config.max_iters // config.eval_interval)
    # A forward takes a third of the time of forward and backward.
    seconds_evaluated = n_evaluations * n_validated / block_size * speed.sequence / 3 / world_size
    seconds = n_tokens / tokens_per_s + seconds_evaluated

    print(
        f"model     {shape.model_type} graph: {shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, "
        f"context {block_size:,}, vocabulary {shape.vocab_size:,} ({vocabulary})\n"
        f"          {n_parameters:,} parameters, {n_parameters - n_embedding:,} without embeddings\n"
        f"batch     {config.batch_size:,} sequences, {step_tokens:,} tokens a step: {_count(world_size, 'rank')} with "
        f"{_count(-(-share // micro_batch_size), 'micro-batch', 'es')} of {micro_batch_size:,}"
    )
    print_memory(memory, config, world_size, micro_batch_size, numerics)
    print_speed(speed, numerics, tokens_per_s, shape.n_layer, world_size)
    flops = n_tokens * flops_per_token(shape, block_size)
    estimates = [
        f"{_hours(flops / (n * PEAK_TFLOPS[gpu] * 1e12 * ASSUMED_MFU))} on {n}× {gpu}"
        for n, gpu in REFERENCE_GPUS
    ]
    elsewhere = f"{', '.join(estimates)} at {ASSUMED_MFU:.0%} of their peak"
    if shape.n_embd < MIN_WIDTH:
        elsewhere = f"no estimate for large GPUs: matrices of width {shape.n_embd} leave them idle"
    evaluated = f" and {_count(n_evaluations, 'evaluation')}" if windows else ", evaluations not counted"
    print(
        f"time      {_hours(seconds)} here for {_count(config.max_iters, 'step')}{evaluated}\n"
        f"          {elsewhere}\n"
        f"tokens    {n_tokens:,} in training, {n_tokens / n_parameters:,.1f} per parameter; Chinchilla's "
        f"{CHINCHILLA_RATIO} take {_count(round(CHINCHILLA_RATIO * n_parameters / step_tokens), 'step')}"
    )
    if windows:
        n_data = windows["train"].n_targets
        print(f"data      {n_data:,} tokens in {config.data_dir}: {n_tokens / n_data:,.2f} epochs")
    else:
        print(f"data      none in {config.data_dir} yet; create it with scripts/prepare_data.py")
    return {
        "parameters": n_parameters,
        "tokens_per_s": tokens_per_s,
        "hours": seconds / 3600,
        "tokens_per_parameter": n_tokens / n_parameters,
    }


def find_shape(config: PretrainConfig) -> tuple[GPTConfig, str, dict[str, Windows]]:
    """Shape of the model, origin of its vocabulary as text, and windows by split ({} without data).

    Raises:
        InputError: if data, tokenizer and model do not match.
    """
    folder, splits = Path(config.data_dir), dict[str, list[Shard]]()
    tokenizer, vocabulary = None, "assumed, there is no tokenizer yet"
    if any(folder.glob("train*.bin")):
        tokenizer, splits = open_data(config)
    elif config.tokenizer is not None:
        tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    if tokenizer is not None:
        vocabulary = f"of {config.tokenizer or folder}"
    if config.init_from == "scratch":
        shape = config.gpt_config(tokenizer)
    else:
        vocabulary = f"of {config.init_from}"
        source = resolve(config.init_from)
        shape = read_config(source)
        config.check_shape(shape, source)
        shape = dataclasses.replace(shape, dropout=config.dropout)
    block_size = config.block_size or shape.block_size
    windows = {name: Windows(shards, block_size, config.align_documents) for name, shards in splits.items()}
    return shape, vocabulary, windows


def print_memory(
    memory: Memory,
    config: PretrainConfig,
    world_size: int,
    micro_batch_size: int,
    numerics: Numerics,
) -> None:
    """Print the memory that a rank needs, for each kind of parallelism."""
    n_shards = world_size if world_size > 1 else ASSUMED_RANKS
    kernels = ", with CPU kernels, which save more than GPU kernels" if numerics.device == "cpu" else ""
    print(
        f"memory    weights {_size(memory.weights)}, gradients {_size(memory.weights)}, optimizer ({config.optimizer}) "
        f"{_size(memory.optimizer)}; while an evaluation's step updates them, a copy of the weights\n"
        f"          a micro-batch of {micro_batch_size:,} in {numerics.dtype}: about {_size(memory.activations)} of "
        f"activations and {_size(memory.transient)} for a block or the loss, uncompiled{kernels}\n"
        f"          an evaluation: about {_size(memory.evaluation)} instead of activations and gradients\n"
        f"          a rank with the whole model (ddp, or one process): at most {_size(memory.peak())}\n"
        f"          one of {n_shards} with fsdp2: {_size(memory.peak(n_shards))}; with cpu_offload, or deepspeed: "
        f"{_size(memory.gathered + max(memory.activations + memory.transient, memory.evaluation))}, and "
        f"{_size(3 * memory.weights + memory.optimizer)} of CPU memory over all"
    )


def print_speed(speed: Speed, numerics: Numerics, tokens_per_s: float, n_layer: int, world_size: int) -> None:
    """Print the speed and how it was measured or estimated."""
    if speed.n_sequences == 0:
        how = f"estimated from 2 of the {n_layer} blocks by FLOPs, because all need too much time or memory here"
    else:
        how = f"measured on {_count(speed.n_sequences, 'random sequence')} at a time"
        if speed.peak is not None:
            how += f", peak memory {_size(speed.peak)}"
    ranks = f", {world_size} ranks without communication" if world_size > 1 else ""
    compiled = "compiled, " if numerics.compile and speed.n_sequences else ""
    print(
        f"speed     {tokens_per_s:,.0f} tokens/s here: {numerics.device}, {numerics.dtype}, {compiled}"
        f"{_count(numerics.threads, 'thread')}{ranks}; {how}"
    )


def _count(n: int, what: str, plural: str = "s") -> str:
    return f"{n:,} {what}{'' if n == 1 else plural}"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:,.2f} GiB" if n_bytes >= 2**28 else f"{n_bytes / 2**20:,.1f} MiB"


def _hours(seconds: float) -> str:
    """Hours as text; from 48 hours also days, below 2 hours also minutes."""
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours:,.0f} h ({hours / 24:,.1f} days)"
    return f"{hours:.1f} h" if hours >= 2 else f"{hours:.2g} h ({seconds / 60:.2g} min)"
