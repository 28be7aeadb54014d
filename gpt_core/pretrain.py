"""Pretraining: token shards, a GPT and the training loop, put together."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from gpt_core import checkpoint
from gpt_core.config import GPTConfig
from gpt_core.device import DeviceName, pick_device
from gpt_core.errors import InputError
from gpt_core.loader import Batches, Windows
from gpt_core.model import GPT
from gpt_core.shards import check_tokenizer, open_split
from gpt_core.tokenizer import Tokenizer
from gpt_core.train import TrainConfig, train

EVAL_TOKENS = 2**14  # per forward of the evaluation


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Every key of pretraining."""

    data_dir: str = "data/shakespeare_char"
    """Folder with token shards and their tokenizer, from scripts/prepare_data.py."""
    tokenizer: str | None = None
    """The shards' tokenizer; None: the one in data_dir. nanoGPT's .bin files need it, for GPT-2's BPE: gpt2."""
    graph: Literal["qwen3", "llama", "gpt2"] = "qwen3"
    """Whose architecture, and so whose file format."""
    n_layer: int = 12
    """Blocks."""
    n_head: int = 12
    """Attention heads."""
    n_kv_head: int | None = None
    """Heads of keys and values; fewer than n_head: grouped-query attention. None: n_head."""
    n_embd: int = 768
    """Width, a multiple of n_head."""
    n_inner: int | None = None
    """Width of the MLP; None: 4 n_embd for gpt2, else 8/3 n_embd to the nearest multiple of 64."""
    block_size: int = 1024
    """Context, in tokens."""
    dropout: float = 0.0
    """Share of activations that is dropped in training."""
    tie_embeddings: bool = True
    """Whether the output layer is the token embedding."""
    batch_size: int = 480
    """Sequences of block_size tokens per step, over all ranks and accumulation."""
    micro_batch_size: int | None = None
    """Sequences per forward on one rank; the rest of batch_size is accumulated. None: all of batch_size."""
    device: DeviceName = "auto"
    """auto: cuda, else mps, else cpu."""

    def gpt_config(self, tokenizer: Tokenizer) -> GPTConfig:
        """The shape of the model, for this tokenizer.

        Raises:
            InputError: if the numbers do not fit together.
        """
        if self.n_embd % self.n_head:
            raise InputError(
                f"n_embd is {self.n_embd}; expected a multiple of n_head, which is {self.n_head}."
            )
        shape: dict[str, int | None] = {
            "vocab_size": tokenizer.vocab_size, "block_size": self.block_size, "n_layer": self.n_layer,
            "n_head": self.n_head, "n_embd": self.n_embd, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
        }  # fmt: skip
        switches = {"dropout": self.dropout, "tie_embeddings": self.tie_embeddings}
        if self.graph == "gpt2":
            if self.n_kv_head not in (None, self.n_head):
                raise InputError(f"n_kv_head is {self.n_kv_head}; the graph gpt2 has no grouped queries.")
            return GPTConfig.gpt2(**shape, **switches, n_inner=self.n_inner or 4 * self.n_embd)  # type: ignore[arg-type]
        return GPTConfig(
            **shape,  # type: ignore[arg-type]
            **switches,  # type: ignore[arg-type]
            n_kv_head=self.n_kv_head or self.n_head,
            head_dim=self.n_embd // self.n_head,
            n_inner=self.n_inner or max(64, round(self.n_embd * 8 / 3 / 64) * 64),
            qk_norm=self.graph == "qwen3",
        )


def pretrain(config: PretrainConfig) -> dict[str, float]:
    """Pretrain a GPT, or go on with what is in out_dir; leaves checkpoints in out_dir/step-N, each a model folder.

    Returns:
        The figures of the last evaluation: {"val_loss": nats per token over the whole validation split}.

    Raises:
        InputError: for shards of another tokenizer or damaged ones, a checkpoint of another model, batch sizes that
            do not divide, or a loss that is no finite number.
    """
    splits = {name: open_split(config.data_dir, name) for name in ("train", "val")}
    tokenizer = Tokenizer.from_pretrained(config.tokenizer or config.data_dir)
    gpt_config = config.gpt_config(tokenizer)
    device = pick_device(config.device)
    for name, shards in splits.items():
        check_tokenizer(shards, tokenizer.fingerprint, config.tokenizer or config.data_dir)
        for shard in tqdm(shards, desc=f"checking {name} shards", leave=False, disable=None):
            shard.verify(tokenizer.vocab_size)
    training, validation = (Windows(shards, config.block_size) for shards in splits.values())
    batches = Batches(
        training, config.batch_size, config.micro_batch_size or config.batch_size, config.seed, device=device
    )

    torch.manual_seed(config.seed)
    model = GPT(gpt_config)
    resume = checkpoint.latest(config.out_dir)
    if resume is not None:
        load_weights(model, resume)
        check_tokenizer_of(resume, tokenizer)
    model.to(device)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{config.graph} graph of {n_parameters:,} parameters on {device}; "
        f"{training.n_targets:,} tokens to learn from, {config.batch_size * config.block_size:,} a step; "
        f"{'from scratch' if resume is None else f'resuming {resume}'}"
    )

    def save_model(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save(folder)

    return train(
        model, batches, next_token_loss, evaluator(validation), config, save_model=save_model, resume=resume
    )


def check_tokenizer_of(path: Path, tokenizer: Tokenizer) -> None:
    """Make sure that the model in `path` speaks the ids of `tokenizer`.

    Raises:
        InputError: naming both.
    """
    theirs = Tokenizer.from_pretrained(path).fingerprint
    if theirs != tokenizer.fingerprint:
        raise InputError(
            f"{path} was trained with the tokenizer {theirs}, but the data has {tokenizer.fingerprint}; resume with "
            "the same data, or choose another out_dir."
        )


def next_token_loss(model: nn.Module, micro_batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of a micro-batch's targets, and their number."""
    ids, targets = micro_batch
    out = model(ids, targets=targets, logits=False)
    return out.loss_sum, out.n_targets


def evaluator(windows: Windows) -> Callable[[nn.Module], dict[str, float]]:
    """An evaluation for the training loop: the mean loss over every target of `windows`."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        loss_sum, n_targets = 0.0, 0
        for ids, targets in windows.in_order(max(1, EVAL_TOKENS // windows.block_size)):
            loss, count = next_token_loss(model, (ids.to(device), targets.to(device)))
            loss_sum += loss.item()
            n_targets += int(count)
        return {"val_loss": loss_sum / n_targets}

    return evaluate


def load_weights(model: GPT, path: Path) -> None:
    """Copy a checkpoint's weights into `model`.

    Raises:
        InputError: if it is a checkpoint of another shape.
    """
    saved = GPT.from_pretrained(path)
    for field in dataclasses.fields(GPTConfig):
        theirs, ours = getattr(saved.config, field.name), getattr(model.config, field.name)
        if theirs != ours and field.name != "dropout":
            raise InputError(
                f"{path} has {field.name} = {theirs}, but this run asks for {ours}; resume with the same model, or "
                "choose another out_dir."
            )
    # Copied, not assigned: tensors mapped from a file may be aligned otherwise, and kernels then round otherwise.
    model.load_state_dict(saved.state_dict())
