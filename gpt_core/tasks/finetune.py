"""The command that fine-tunes a GPT: connects data, network and training loop."""

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.formats.card import trained
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.hub import run_folder
from gpt_core.hub.locate import resolve
from gpt_core.model.gpt import GPT
from gpt_core.tasks.batches import Collator, TaskBatch, TaskBatches
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.examples import Example, read_examples
from gpt_core.tasks.folder import load_task, save_task
from gpt_core.tasks.inputs import InputFormat
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.predictions import figures, forward, mean_loss, predictions
from gpt_core.tasks.settings import TASK_FILE, TaskSettings
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.loop import LossFunction, train
from gpt_core.training.numerics import agree_on_numerics, dtype_reason
from gpt_core.training.out_of_memory import explain_full_memory_or_disk
from gpt_core.training.parallel.ranks import Ranks, join
from gpt_core.training.trainable import choose_trainable, merge_lora

LORA_FILE = "lora.safetensors"  # of a checkpoint: the updates, which the model has merged


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
            return _finetune(config, ranks)


def _finetune(config: FinetuneConfig, ranks: Ranks) -> dict[str, float]:
    resume = ranks.on_main(lambda: run_folder.latest(config.out_dir))
    torch.manual_seed(config.seed)
    gpt, tokenizer = load_gpt(config)
    examples, dev_examples = open_examples(config)
    settings = task_settings(config, examples, gpt)
    check_labels([*examples, *dev_examples], settings)
    network = TaskNetwork(
        gpt, config.task, len(settings.labels), config.answer_tokens, lm=config.lm_weight > 0
    )
    choose_trainable(gpt, config, gpt.config.n_layer, config.init_from)
    if config.trainable in ("full", "last-k"):
        gpt.norm.requires_grad_(True)
    if gpt.head is not None and config.lm_weight:
        gpt.head.requires_grad_(config.trainable == "full")
    inputs = InputFormat(config.task, tokenizer, settings.max_tokens)
    collate = Collator(inputs, settings.labels, config.padding_mask)
    dev_inputs = InputFormat(config.task, tokenizer, settings.max_tokens)  # counts its own truncated rows
    dev_collate = Collator(dev_inputs, settings.labels, config.padding_mask)
    identity = {"task": config.task, "labels": list(settings.labels), "trainable": config.trainable,
                "max_tokens": settings.max_tokens, "padding_mask": config.padding_mask}  # fmt: skip
    batches = TaskBatches(
        examples, collate, config.batch_size, config.tokens_per_forward, config.seed, identity, ranks
    )
    numerics = agree_on_numerics(config, ranks, resume)
    network.to(ranks.device)
    if resume is not None:
        load_trained(network, resume, config)

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
        save_task(folder, network, settings, tokenizer, merge_lora(weights, config), card)
        lora = {name: w for name, w in weights.items() if ".lora_" in name}
        if lora:
            save_tensors(folder / LORA_FILE, lora)

    if ranks.main:
        learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
        print(
            f"{config.task}: {config.init_from} with {gpt.config.n_layer} blocks, {learning:,} trainable parameters "
            f"({config.trainable}); {len(examples):,} examples, {len(dev_examples):,} for development\n"
            f"{numerics.dtype} ({dtype_reason(config, numerics, resume)}), {numerics.threads} threads, "
            f"{config.batch_size} examples per step"
            + ("" if resume is None else f", resuming from {resume}"),
            flush=True,
        )
    with ExitStack() as held:
        ranks.on_main(lambda: held.enter_context(run_folder.lock_run_folder(Path(config.out_dir))))
        if config.parallel == "fsdp2":
            network.cpu()  # FSDP2 shards from the CPU's weights
        result = train(
            network, batches, loss_function, evaluate, config, save_model=save_model, resume=resume, ranks=ranks,
            numerics=numerics,
        )  # fmt: skip
    n_cut = int(ranks.sum(torch.tensor(inputs.n_cut, device=ranks.device)))
    if ranks.main:
        if n_cut:
            print(f"{n_cut:,} rows were cut to {settings.max_tokens} tokens, repetitions included")
        best = run_folder.best_or_latest(config.out_dir)
        if best is not None:
            found = run_folder.load_state(best)["figures"].items()
            shown = ", ".join(f"{name} {x:.4f}" for name, x in found if not name.startswith("update_"))
            print(f"best checkpoint: {best}: {shown}")
    return result


def load_gpt(config: FinetuneConfig) -> tuple[GPT, Tokenizer]:
    """The GPT of `init_from`, or of the task folder there, with its first blocks, and its tokenizer.

    Raises:
        InputError: for an n_layer above the number of blocks.
    """
    folder = resolve(config.init_from)
    start = load_task(folder)[0].gpt if (folder / TASK_FILE).is_file() else GPT.from_pretrained(folder)
    n_layer = start.config.n_layer if config.n_layer is None else config.n_layer
    if n_layer > start.config.n_layer:
        raise InputError(f"n_layer is {n_layer}; {config.init_from} has {start.config.n_layer} blocks.")
    kept = tuple(i for i in start.config.window_layers if i < n_layer)
    shape = replace(
        start.config,
        n_layer=n_layer,
        dropout=config.dropout,
        window_layers=kept,
        window=start.config.window if kept else None,
        tie_embeddings=start.config.tie_embeddings or not config.lm_weight,
    )
    gpt = GPT(shape)
    gpt.load_state_dict({name: w for name, w in start.state_dict().items() if name in gpt.state_dict()})
    return gpt, Tokenizer.from_pretrained(folder)


def open_examples(config: FinetuneConfig) -> tuple[list[Example], list[Example]]:
    """Read training and development examples; questions without an answer are added for span.

    Raises:
        InputError: as `read_examples`, or if no example is left to train on.
    """
    columns = config.column_names()
    examples = [e for source in config.data for e in read_examples(source, config.task, columns)]
    order = random.Random(config.seed)
    if config.dev_data:
        dev = [
            e
            for source in config.dev_data
            for e in read_examples(source, config.task, columns, split="validation")
        ]
        if len(dev) > config.dev_examples:
            dev = order.sample(dev, config.dev_examples)
    else:
        n_dev = min(config.dev_examples, len(examples) // 10)
        if not n_dev:
            raise InputError(
                f"{config.data[0]} has {len(examples)} examples; expected at least ten, a tenth of which is held "
                "out, or dev_data."
            )
        size = Counter(group_of(e) for e in examples)
        groups = sorted(size)
        order.shuffle(groups)
        held: set[str] = set()
        n_held = 0
        for group in groups:
            if n_held + size[group] <= n_dev:
                held.add(group)
                n_held += size[group]
        dev = [e for e in examples if group_of(e) in held]
        examples = [e for e in examples if group_of(e) not in held]
        if not dev:
            raise InputError(
                f"{config.data[0]} has no article or first text with at most {n_dev} examples, a tenth of all, that "
                "could be held out; give dev_data."
            )
    if config.task == "span":
        examples = examples + unanswered(examples, config.no_answer, order)
    return examples, dev


def group_of(example: Example) -> str:
    """What must not be on both sides of a split: an article, or the first text of an example."""
    return example.group or example.texts[0]


def unanswered(examples: Sequence[Example], share: float, order: random.Random) -> list[Example]:
    """Questions with another paragraph of the same article that does not contain any of their answers."""
    passages: dict[str, list[str]] = {}
    for example in examples:
        known = passages.setdefault(example.group, [])
        if not known or known[-1] != example.texts[1]:
            known.append(example.texts[1])
    found = []
    for example in order.sample(list(examples), min(len(examples), round(share * len(examples)))):
        others = [
            p for p in passages[example.group]
            if p != example.texts[1] and not any(answer in p for answer in example.answers)
        ]  # fmt: skip
        if others:
            found.append(replace(example, texts=(example.texts[0], order.choice(others)), spans=()))
    return found


def task_settings(config: FinetuneConfig, examples: Sequence[Example], gpt: GPT) -> TaskSettings:
    """The settings that the task's folder will have.

    Raises:
        InputError: for fewer than two labels, or scores that do not vary.
    """
    labels = config.labels
    mean, deviation = 0.0, 1.0
    if config.task in ("classification", "entailment"):
        labels = labels or tuple(sorted({e.label for e in examples if e.label is not None}))
        if len(labels) < 2:
            raise InputError(f"All examples have the label {labels[0]!r}; expected at least two labels.")
    elif config.task == "similarity":
        scores = torch.tensor([e.number for e in examples], dtype=torch.float64)
        mean, deviation = float(scores.mean()), float(scores.std(correction=0))
        if not deviation:
            raise InputError(f"All scores are {mean:g}; expected different scores.")
    max_tokens = min(config.max_tokens, gpt.config.block_size)
    return TaskSettings(
        config.task, labels, max_tokens, config.padding_mask, config.answer_tokens, mean, deviation
    )


def check_labels(examples: Sequence[Example], settings: TaskSettings) -> None:
    """Check that all labels are known, and that each has an example.

    Raises:
        InputError: naming the label.
    """
    if not settings.labels:
        return
    for example in examples:
        if example.label not in settings.labels:
            raise InputError(
                f"{example.place}: the label {example.label!r} is none of {', '.join(settings.labels)}; correct it, or "
                "add it to labels."
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


def load_trained(network: TaskNetwork, path: Path, config: FinetuneConfig) -> None:
    """Load the weights of the checkpoint `path` into `network`.

    Raises:
        InputError: if names or shapes of the weights do not match the configuration.
    """
    saved = load_task(path)[0].state_dict()
    mine = network.state_dict()
    if config.trainable == "lora":  # the GPT in the checkpoint has the updates merged; keep that of init_from
        if not (path / LORA_FILE).is_file():
            raise InputError(f"{path} was trained without LoRA; choose another out_dir.")
        saved = {n: w for n, w in saved.items() if n.startswith("head.")} | load_file(path / LORA_FILE)
        mine = {n: w for n, w in mine.items() if n in saved or ".lora_" in n}
    mine = {n: w for n, w in mine.items() if n != "gpt.head.weight"}
    for name in sorted(mine.keys() | saved.keys()):
        if name not in mine or name not in saved or mine[name].shape != saved[name].shape:
            raise InputError(
                f"The checkpoint {path} does not match this configuration: {name} differs. Resume with the same "
                "configuration, or choose another out_dir."
            )
    # Copied, not assigned: memory-mapped tensors may have another alignment, with which kernels round differently.
    network.load_state_dict(saved, strict=False)
