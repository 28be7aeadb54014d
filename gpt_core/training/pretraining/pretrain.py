"""Pretraining: train a GPT on token shards."""

import dataclasses
import math
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.data.batches import Batches, Windows
from gpt_core.formats.card import Card, trained
from gpt_core.generation.generate import generate
from gpt_core.hardware.device import Numerics
from gpt_core.hub import run_folder
from gpt_core.hub.locate import resolve
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.checkpoint import lock_out_dir
from gpt_core.training.loop import train
from gpt_core.training.monitoring.flops import flops_per_token
from gpt_core.training.numerics import agree_on_numerics, dtype_reason
from gpt_core.training.out_of_memory import explain_full_memory_or_disk
from gpt_core.training.parallel.ranks import Ranks, join
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.data import open_data, verify
from gpt_core.training.validation import evaluator, next_token_loss

FIRST_LOSS_TOLERANCE = 0.5  # nats: maximum difference of an untrained model's loss from ln(vocab_size)
FIRST_LOSS_TOKENS = 2**11  # number of tokens to measure that loss on


def pretrain(config: PretrainConfig) -> dict[str, float]:
    """Pretrain or fine-tune a GPT; resume if out_dir has a checkpoint.

    Saves checkpoints in out_dir/step-N, each a model folder. Under torchrun, `parallel` determines how ranks share
    the work.

    Returns:
        The metrics of the last evaluation, including "val_loss" (nats per token over the validation split); for a
        dry run, its figures.

    Raises:
        InputError: for damaged shards or shards of another tokenizer, a checkpoint of another model, batch sizes that
            do not divide, or a loss that is not finite.
    """
    if config.dry_run:
        from gpt_core.training.pretraining.dry_run import dry_run

        return dry_run(config)
    with join(config.device) as ranks:
        n = config.micro_batch_size or config.batch_size // ranks.world_size
        memory = (
            f"{ranks.device} is out of memory with micro-batches of {n} sequences; give a smaller micro_batch_size, "
            "which does not change the result, or a smaller model. --dry_run prints the memory needed."
        )
        with explain_full_memory_or_disk(config.out_dir, memory):
            return _pretrain(config, ranks)


def _pretrain(config: PretrainConfig, ranks: Ranks) -> dict[str, float]:
    tokenizer, splits = open_data(config)
    resume = ranks.on_main(lambda: run_folder.latest(config.out_dir))
    if config.eval_only and resume is None and config.init_from == "scratch":
        raise InputError(
            f"{config.out_dir} has no checkpoint, and init_from is scratch; set one of them to a model to evaluate."
        )
    torch.manual_seed(config.seed)
    model = build_on_ranks(config, tokenizer, resume, ranks)
    block_size = config.block_size or model.config.block_size
    if config.sample_tokens:
        check_prompt(config.sample_prompt, tokenizer, model.config.block_size)
    training, validation = (
        Windows(shards, block_size, align_documents=config.align_documents) for shards in splits.values()
    )
    batches = Batches(
        training,
        config.batch_size,
        config.micro_batch_size,
        config.seed,
        ranks.rank,
        ranks.world_size,
        ranks.device,
        batch_size_start=config.batch_size_start,
        ramp_steps=config.batch_ramp_iters,
    )
    # A model to fine-tune may have fewer rows than its tokenizer has tokens.
    ranks.on_main(lambda: verify(splits, min(tokenizer.vocab_size, model.config.vocab_size)))

    numerics = agree_on_numerics(config, ranks, resume)
    if config.parallel == "ddp":
        model.to(ranks.device)
    evaluate = evaluator(validation, ranks, numerics, config.eval_tokens)
    if ranks.main:
        describe_run(config, model, training, ranks, numerics, resume)
    if config.eval_only:
        model.to(ranks.device).eval()
        with torch.no_grad():
            figures = evaluate(model)
        if ranks.main:
            shown = {name: value for name, value in figures.items() if not name.endswith("_layer")}
            print(", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
        return figures
    if resume is None and config.init_from == "scratch":
        ranks.on_main(lambda: check_first_loss(model, training))

    card = ranks.on_main(lambda: make_card(config, training, tokenizer, resume))

    def save_model(folder: Path, weights: dict[str, Tensor]) -> None:
        model.save_pretrained(folder, weights, card)
        tokenizer.save(folder)

    def sample(model: torch.nn.Module) -> str:
        assert isinstance(model, GPT)
        text = generate(
            model,
            tokenizer,
            config.sample_prompt,
            max_new_tokens=config.sample_tokens,
            seed=0,
            overflow="slide",
        )
        return config.sample_prompt + str(text)

    with closing(batches), lock_out_dir(config.out_dir, ranks):
        return train(
            model,
            batches,
            next_token_loss,
            evaluate,
            config,
            save_model=save_model,
            resume=resume,
            ranks=ranks,
            numerics=numerics,
            sample=sample if config.sample_tokens else None,
            flops_per_target=flops_per_token(model.config, block_size),
        )


def build_on_ranks(config: PretrainConfig, tokenizer: Tokenizer, resume: Path | None, ranks: Ranks) -> GPT:
    """`build_model` on every rank; for FSDP2, which sends each rank its shard, on rank 0 only, else on the meta device.

    Raises:
        InputError: as `build_model`.
    """
    if config.parallel != "fsdp2" or config.eval_only:
        return build_model(config, tokenizer, resume)
    built: list[GPT] = []

    def build() -> GPTConfig:
        built.append(build_model(config, tokenizer, resume))
        return built[0].config

    shape = ranks.on_main(build)
    if built:
        return built[0]
    with torch.device("meta"):
        return GPT(shape)


def build_model(config: PretrainConfig, tokenizer: Tokenizer, resume: Path | None) -> GPT:
    """The model to train, on the CPU: randomly initialised, or with the weights of `resume` or `init_from`.

    Raises:
        InputError: if the weights' shape differs from the configuration, or their tokenizer from `tokenizer`.
    """
    if config.init_from == "scratch":
        shape = config.gpt_config(tokenizer)
        if resume is None:
            return GPT(shape, config.init)
    source = resume or resolve(config.init_from)
    saved = GPT.from_pretrained(source)
    saved.config = saved.config.with_eos(tokenizer.eos_ids)
    if config.init_from != "scratch":
        config.check_shape(saved.config, source)
        shape = dataclasses.replace(saved.config, dropout=config.dropout)
    model = with_weights(shape, saved, source)
    check_tokenizer_of(source, tokenizer)
    return model


def make_card(config: PretrainConfig, training: Windows, tokenizer: Tokenizer, resume: Path | None) -> Card:
    """Data and origin of the model, for its model card."""
    data = [
        f"`{config.data_dir}`: {training.n_targets:,} training tokens, sha256 {training.checksum[:12]}",
        f"tokenizer {tokenizer.fingerprint[:12]}, of {tokenizer.vocab_size:,} tokens",
    ]
    return trained(config, data, None if config.init_from == "scratch" else config.init_from, resume)


def describe_run(
    config: PretrainConfig,
    model: GPT,
    training: Windows,
    ranks: Ranks,
    numerics: Numerics,
    resume: Path | None,
) -> None:
    """Print model, device and data of the run."""
    n_parameters = sum(p.numel() for p in model.parameters())
    origin = "from scratch" if config.init_from == "scratch" else f"from {config.init_from}"
    sharing = "1 process" if ranks.world_size == 1 else f"{ranks.world_size} ranks, {config.parallel}"
    print(
        f"{model.config.model_type} graph of {n_parameters:,} parameters, "
        f"{origin if resume is None else f'resuming {resume}'}\n"
        f"{numerics.device}, {sharing}, {numerics.dtype} ({dtype_reason(config, numerics, resume)}), "
        f"{numerics.threads} threads, "
        f"{'compiled' if numerics.compile else 'not compiled'}\n"
        f"{training.n_targets:,} training tokens, {config.batch_size * training.block_size:,} per step",
        flush=True,
    )


def check_first_loss(model: GPT, windows: Windows) -> None:
    """Check that the loss of an untrained model is that of a uniform guess, ln(vocab_size).

    Raises:
        InputError: if it differs by more than FIRST_LOSS_TOLERANCE.
    """
    ids, targets = windows.rows(range(min(len(windows), max(1, FIRST_LOSS_TOKENS // windows.block_size))))
    model.eval()
    with torch.no_grad():
        loss_sum, n_targets = next_token_loss(model, (ids.to(model.device), targets.to(model.device)))
    loss, expected = float(loss_sum / n_targets), math.log(model.config.vocab_size)
    if not abs(loss - expected) <= FIRST_LOSS_TOLERANCE:
        raise InputError(
            f"The untrained model has a loss of {loss:.2f}; expected {expected:.2f}, that of a uniform guess over "
            f"{model.config.vocab_size} tokens. Its initial weights are too large for its width. With --init zero, or "
            "n_embd above 1000, set --tie_embeddings False."
        )


def check_prompt(prompt: str, tokenizer: Tokenizer, block_size: int) -> None:
    """Check, before the first evaluation, that `prompt` can be encoded and is shorter than the context.

    Raises:
        InputError: if it has characters outside the vocabulary, or `block_size` or more tokens.
    """
    n_prompt = len(tokenizer.encode(prompt, add_special_tokens=True))
    if n_prompt >= block_size:
        raise InputError(
            f"sample_prompt has {n_prompt} tokens; expected fewer than block_size, {block_size}."
        )


def check_tokenizer_of(path: Path, tokenizer: Tokenizer) -> None:
    """Check that the model in `path` was trained with `tokenizer`.

    Raises:
        InputError: naming both fingerprints, if not.
    """
    theirs = Tokenizer.from_pretrained(path).fingerprint
    if theirs != tokenizer.fingerprint:
        raise InputError(
            f"{path} was trained with the tokenizer {theirs}, but the data has {tokenizer.fingerprint}; prepare the "
            f"data with --tokenizer {path}, or choose another out_dir or init_from."
        )


def with_weights(shape: GPTConfig, saved: GPT, path: Path) -> GPT:
    """A model of this shape, in training mode, with the weights of `saved`, which was loaded from `path`.

    Raises:
        InputError: if the shapes differ.
    """
    for field in dataclasses.fields(GPTConfig):
        theirs, ours = getattr(saved.config, field.name), getattr(shape, field.name)
        if theirs != ours and field.name != "dropout":
            raise InputError(
                f"{path} has {field.name} = {theirs}, but this run has {ours}; resume with the same model, or "
                "choose another out_dir."
            )
    with torch.device("meta"):
        model = GPT(shape)
    # Copy one by one, because memory-mapped tensors may be aligned differently, and kernels then round differently.
    for p in saved.parameters():
        p.data = p.data.clone()
    model.load_state_dict(saved.state_dict(), assign=True)
    model.rope, model.alibi = saved.rope, saved.alibi
    return model
