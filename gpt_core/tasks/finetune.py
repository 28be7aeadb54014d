"""The command that fine-tunes a GPT: connects data, network and training loop."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.formats.card import trained
from gpt_core.hub import run_folder
from gpt_core.model.gpt import GPT
from gpt_core.tasks.batches import Collator, TaskBatch, TaskBatches
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.examples import Example, Task
from gpt_core.tasks.finetune_chat import finetune_chat
from gpt_core.tasks.folder import load_task, save_task
from gpt_core.tasks.inputs import InputFormat
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.open_data import open_examples
from gpt_core.tasks.predictions import figures, forward, mean_loss, predictions
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tasks.start import changed_by_lora, load_gpt, load_trained, set_trainable
from gpt_core.training.checkpoint import lock_out_dir
from gpt_core.training.loop import LossFunction, train
from gpt_core.training.numerics import agree_on_numerics, dtype_reason
from gpt_core.training.out_of_memory import explain_full_memory_or_disk
from gpt_core.training.parallel.ranks import Ranks, join
from gpt_core.training.trainable import merge_lora


def finetune(config: FinetuneConfig) -> dict[str, float]:
    """Fine-tune a GPT for a task, or resume; with --predict, predict for a file with a fine-tuned model.

    Saves checkpoints in out_dir/step-N, each a folder that `finetune.py --predict` and transformers open.

    Returns:
        The metrics of the last evaluation.

    Raises:
        InputError: for data, a model or a checkpoint that cannot be read or do not match each other.
    """
    if not config.data:
        raise InputError("data is empty; give --data FILE with the fields of the task.")
    with join(config.device) as ranks:
        memory = (
            f"{ranks.device} is out of memory with {config.tokens_per_forward} tokens at a time; give a smaller "
            "tokens_per_forward, which does not change the result, or a smaller max_tokens."
        )
        with explain_full_memory_or_disk(config.out_dir, memory):
            if config.task == "chat":
                return finetune_chat(config, ranks)
            return _finetune(config, config.task, ranks)


def _finetune(config: FinetuneConfig, task: Task, ranks: Ranks) -> dict[str, float]:
    resume = ranks.on_main(lambda: run_folder.latest(config.out_dir))
    torch.manual_seed(config.seed)
    gpt, tokenizer = load_gpt(config)
    examples, dev_examples = open_examples(config, task, ranks)
    settings = task_settings(config, task, examples, [] if config.dev_data else dev_examples, gpt)
    check_labels([*examples, *dev_examples], settings)
    network = TaskNetwork(gpt, task, len(settings.labels), config.answer_tokens, lm=config.lm_weight > 0)
    set_trainable(gpt, config)
    inputs = InputFormat(task, tokenizer, settings.max_tokens)
    collate = Collator(inputs, settings)
    dev_inputs = InputFormat(task, tokenizer, settings.max_tokens)  # counts its own truncated rows
    dev_collate = Collator(dev_inputs, settings)
    identity = asdict(settings) | {
        name: getattr(config, name)
        for name in ("trainable", "lora_alpha", "lm_weight", "class_weights", "balanced")
    }
    identity = {name: list(x) if isinstance(x, tuple) else x for name, x in identity.items()}
    batches = TaskBatches(
        examples, collate, config.batch_size, config.tokens_per_forward, config.seed, identity, ranks
    )
    numerics = agree_on_numerics(config, ranks, resume)
    network.to(ranks.device)
    if resume is not None:
        saved = load_task(resume)[0].state_dict()
        if gpt.head is not None:  # of the language model's loss; not trained and not saved
            saved["gpt.head.weight"] = gpt.head.state_dict()["weight"]
        load_trained(network, saved, resume, config)

    weights = class_weights(config, settings, examples)
    loss_function = task_loss(
        settings, None if weights is None else weights.to(ranks.device), config.lm_weight
    )

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, TaskNetwork)
        done = forward(model, dev_collate, dev_examples, numerics, config.tokens_per_forward)
        return {"val_loss": mean_loss(settings, done)} | figures(
            settings, dev_examples, predictions(settings, done)
        )

    texts = [f"`{name}`" for name in config.data]
    texts[-1] += f": {len(examples):,} examples in all"
    card = ranks.on_main(lambda: trained(config, texts, config.init_from, resume))

    def save_model(folder: Path, weights: dict[str, Tensor]) -> None:
        save_task(folder, network, settings, tokenizer, merge_lora(weights, config.lora_scale), card)
        if config.trainable == "lora":
            changed_by_lora(network, weights, config, gpt.config.n_layer).save(folder)

    if ranks.main:
        learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
        print(
            f"{config.task}: {config.init_from}, n_layer {gpt.config.n_layer}, {learning:,} trainable parameters "
            f"({config.trainable}); {len(examples):,} examples, {len(dev_examples):,} for development\n"
            f"{numerics.dtype} ({dtype_reason(config, numerics, resume)}), {numerics.threads} threads, "
            f"{config.batch_size} examples per step"
            + ("" if resume is None else f", resuming from {resume}"),
            flush=True,
        )
    with lock_out_dir(config.out_dir, ranks):
        if config.parallel == "fsdp2":
            network.cpu()  # FSDP2 shards from the CPU's weights
        result = train(
            network, batches, loss_function, evaluate, config, save_model=save_model, resume=resume, ranks=ranks,
            numerics=numerics,
        )  # fmt: skip
    n_cut = int(ranks.sum(torch.tensor(inputs.n_cut, device=ranks.device)))
    if ranks.main:
        if n_cut:
            print(f"rows that were cut to {settings.max_tokens} tokens: {n_cut:,}, repetitions included")
        if collate.n_long:
            print(
                f"answers of more than {config.answer_tokens} tokens (answer_tokens), whose first ones were learned: "
                f"{collate.n_long:,}, repetitions included"
            )
        best = run_folder.best_or_latest(config.out_dir)
        if best is not None:
            found = run_folder.load_state(best)["figures"].items()
            shown = ", ".join(f"{name} {x:.4f}" for name, x in found if not name.startswith("update_"))
            print(f"best checkpoint: {best}: {shown}")
    return result


def task_settings(
    config: FinetuneConfig, task: Task, examples: Sequence[Example], dev: Sequence[Example], gpt: GPT
) -> TaskSettings:
    """The settings that the task's folder will have.

    Raises:
        InputError: for fewer than two labels, or scores that do not vary.
    """
    labels = config.labels
    mean, deviation = 0.0, 1.0
    if task in ("classification", "entailment"):
        labels = labels or tuple(sorted({e.label for e in [*examples, *dev] if e.label is not None}))
        if len({e.label for e in examples}) < 2:
            raise InputError(
                f"All examples have the label {examples[0].label!r}; expected at least two labels."
            )
    elif task == "similarity":
        scores = torch.tensor([e.number for e in examples], dtype=torch.float64)
        mean, deviation = float(scores.mean()), float(scores.std(correction=0))
        if scores.min() == scores.max() or not math.isfinite(deviation):
            raise InputError(
                f"The scores are {float(scores.min()):g} to {float(scores.max()):g}; expected different ones, whose "
                "squares are finite."
            )
    max_tokens = min(config.max_tokens, gpt.config.block_size)
    return TaskSettings(task, labels, max_tokens, config.padding_mask, config.answer_tokens, mean, deviation)


def check_labels(examples: Sequence[Example], settings: TaskSettings) -> None:
    """Check that all labels are known, and that each has an example.

    Raises:
        InputError: naming the label.
    """
    if not settings.labels:
        return
    for example in examples:
        if example.label not in settings.labels:
            known = ", ".join(settings.labels[:20]) + (" …" if len(settings.labels) > 20 else "")
            raise InputError(
                f"{example.place}: the label {example.label!r} is none of {known}; correct it, or add it to labels."
            )
    found = {example.label for example in examples}
    if empty := [label for label in settings.labels if label not in found]:
        raise InputError(f"labels has {empty[0]!r}, of which there is no example; remove it from labels.")


def class_weights(
    config: FinetuneConfig, settings: TaskSettings, examples: Sequence[Example]
) -> Tensor | None:
    """(K,) weight of each label in the loss, or None for equal ones."""
    if config.class_weights:
        return torch.tensor(config.class_weights)
    if not config.balanced:
        return None
    counts = Counter(example.label for example in examples)
    total = len(examples) / len(settings.labels)
    return torch.tensor([total / max(1, counts[label]) for label in settings.labels])


def task_loss(settings: TaskSettings, weights: Tensor | None, lm_weight: float) -> LossFunction:
    """The loss function of the training loop: cross-entropy, for similarity the squared error of the standard score.

    The mean that the loop takes is over examples, weighted by their class; so is that of the language model's loss.

    Args:
        settings: the task's settings.
        weights: (K,) weight of each label, or None.
        lm_weight: weight of the language model's loss.
    """

    def loss_function(model: nn.Module, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        out = model(batch.ids, batch.begins, batch.ends, batch.counts)
        logits = out.logits.float()  # (M, K)
        if settings.task == "similarity":
            wanted = (batch.targets - settings.mean) / settings.deviation  # (M,)
            losses = (logits[:, 0] - wanted).square()  # (M,)
        else:
            losses = F.cross_entropy(logits, batch.targets, reduction="none")  # (M,)
        share = torch.ones_like(losses) if weights is None else weights[batch.targets]  # (M,)
        if out.lm is not None and lm_weight:
            losses = losses + lm_weight * out.lm  # (M,)
        return batch.weight * (share * losses).sum(), batch.weight * share.sum()

    return loss_function
