"""Fine-tuning on conversations (SFT): the loss of the assistant's tokens, in rows of packed conversations."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from gpt_core.formats.card import trained
from gpt_core.hub import run_folder
from gpt_core.model.gpt import GPT
from gpt_core.tasks.chat_data import (
    PLAIN_TEMPLATE,
    ChatBatch,
    ChatBatches,
    chat_batch,
    pack,
    read_conversations,
    report_packs,
)
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.folder import plain_gpt
from gpt_core.tasks.inputs import require_end
from gpt_core.tasks.open_data import split
from gpt_core.tasks.start import changed_by_lora, load_gpt, load_trained, set_trainable
from gpt_core.training.checkpoint import lock_out_dir
from gpt_core.training.loop import train
from gpt_core.training.numerics import agree_on_numerics, dtype_reason
from gpt_core.training.parallel.ranks import Ranks
from gpt_core.training.trainable import merge_lora


def finetune_chat(config: FinetuneConfig, ranks: Ranks) -> dict[str, float]:
    """Fine-tune a language model on conversations, or resume; see `finetune`.

    Saves checkpoints in out_dir/step-N, each a model folder with a chat template, for `chat.py` and everything else
    that opens a language model. A model without a template gets `PLAIN_TEMPLATE`.
    """
    resume = ranks.on_main(lambda: run_folder.latest(config.out_dir))
    torch.manual_seed(config.seed)
    gpt, tokenizer = load_gpt(config)
    if tokenizer.chat_template is None:
        require_end(tokenizer)
        tokenizer.chat_template = PLAIN_TEMPLATE
    conversations = [c for source in config.data for c in read_conversations(source)]
    dev = [c for source in config.dev_data for c in read_conversations(source, "validation")]
    conversations, dev = split(
        conversations, dev, lambda c: c[0]["content"] + c[1]["content"], config, random.Random(config.seed)
    )
    length = min(config.max_tokens, gpt.config.block_size)
    packs, dev_packs = pack(conversations, tokenizer, length), pack(dev, tokenizer, length)
    ranks.on_main(lambda: report_packs(packs))
    set_trainable(gpt, config)
    micro_batch_size = max(1, config.tokens_per_forward // length)
    identity = {
        "task": "chat", "trainable": config.trainable, "lora_alpha": config.lora_alpha, "max_tokens": length
    }  # fmt: skip
    batches = ChatBatches(packs, config.batch_size, micro_batch_size, config.seed, identity, ranks)
    numerics = agree_on_numerics(config, ranks, resume)
    gpt.to(ranks.device)
    if resume is not None:
        load_trained(gpt, GPT.from_pretrained(resume).state_dict(), resume, config)

    def evaluate(model: nn.Module) -> dict[str, float]:
        total = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(dev_packs.ids), micro_batch_size):
            rows = np.arange(start, min(start + micro_batch_size, len(dev_packs.ids)))
            with numerics.autocast():
                loss, count = chat_loss(model, chat_batch(dev_packs, rows, ranks.device))
            total += torch.tensor([float(loss), float(count)], dtype=torch.float64)
        return {"val_loss": float(total[0] / total[1])}

    texts = [f"`{name}`" for name in config.data]
    n_targets = int((packs.targets >= 0).sum())
    texts[-1] += f": {len(conversations):,} conversations in all, {n_targets:,} tokens of replies"
    card = ranks.on_main(lambda: trained(config, texts, config.init_from, resume))
    shell = plain_gpt(gpt, tie=gpt.config.tie_embeddings)

    def save_model(folder: Path, weights: dict[str, Tensor]) -> None:
        shell.save_pretrained(folder, merge_lora(weights, config.lora_scale), card)
        tokenizer.save(folder)
        if config.trainable == "lora":
            changed_by_lora(gpt, weights, config, gpt.config.n_layer).save(folder)

    if ranks.main:
        learning = sum(p.numel() for p in gpt.parameters() if p.requires_grad)
        used = float((packs.segments >= 0).mean())
        print(
            f"chat: {config.init_from}, n_layer {gpt.config.n_layer}, {learning:,} trainable parameters "
            f"({config.trainable}); {len(conversations):,} conversations in {len(packs.ids):,} rows of {length} "
            f"tokens, {used:.0%} of them used, {n_targets:,} tokens of replies; {len(dev):,} conversations for "
            "development\n"
            f"{numerics.dtype} ({dtype_reason(config, numerics, resume)}), {numerics.threads} threads, "
            f"{config.batch_size} rows per step" + ("" if resume is None else f", resuming from {resume}"),
            flush=True,
        )
    with lock_out_dir(config.out_dir, ranks):
        if config.parallel == "fsdp2":
            gpt.cpu()  # FSDP2 shards from the CPU's weights
        return train(
            gpt,
            batches,
            chat_loss,
            evaluate,
            config,
            save_model=save_model,
            resume=resume,
            ranks=ranks,
            numerics=numerics,
        )


def chat_loss(model: nn.Module, batch: ChatBatch) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy over the tokens of replies, and their number, which may be 0."""
    ids, targets, segments = batch
    out = model(ids, targets=targets, segments=segments, logits=False)
    return out.loss_sum, out.n_targets
