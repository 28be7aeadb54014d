"""Benchmark answer spans: a span head on a GPT's first blocks and on a sentence-transformers model, trained alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.learn_embedding import cpu_seconds
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.evaluation.report import print_report
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.hub import run_folder
from gpt_core.hub.locate import resolve
from gpt_core.tasks.batches import Collator, TaskBatches
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.examples import Example, read_examples
from gpt_core.tasks.finetune import task_loss
from gpt_core.tasks.inputs import InputFormat
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.open_data import open_examples
from gpt_core.tasks.predictions import Forwarded, figures, forward, mean_loss, predictions
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tasks.start import load_gpt
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.loop import train
from gpt_core.training.numerics import agree_on_numerics
from gpt_core.training.parallel.ranks import ALONE

TIMED = 50  # passages
COLUMNS = ("system", "blocks", "parameters", "steps", "EM", "F1", "cpu_minutes", "milliseconds")


def bench_learn_reader(
    *,
    train_data: str,
    test_data: str,
    model: str = "smollm2-135m-instruct",
    blocks: tuple[int, ...] = (6,),
    baseline: str = "all-MiniLM-L6-v2",
    out_dir: str = "runs/readers",
    max_iters: int = 400,
    batch_size: int = 16,
    max_tokens: int = 320,
    learning_rate: float = 2e-4,
    head_learning_rate: float = 1e-3,
    no_answer: float = 0.3,
    questions: int | None = None,
    seed: int = 1337,
) -> None:
    """Train answer spans on a GPT's first blocks and on a sentence-transformers model, with the same data and steps.

    EM and F1 are SQuAD's on the test data's own passages; milliseconds is the time of one of its passages, one at a
    time. Each training has a folder in out_dir and resumes. Prints a row each and a line of JSON.

    Args:
        train_data: SQuAD's JSON, or rows of question, context and answers.
        test_data: likewise.
        model: the GPT: a model folder, a run's out_dir or a known name.
        blocks: numbers of its first blocks, a training each.
        baseline: folder or known name of a sentence-transformers model of BERT's architecture.
        out_dir: folder of the runs.
        max_iters: training steps.
        batch_size: questions per step.
        max_tokens: longest row in tokens.
        learning_rate: AdamW's peak learning rate.
        head_learning_rate: that of the head.
        no_answer: questions repeated with a passage that does not answer them, as a fraction.
        questions: number of questions of the test data, evenly spread; default: all.
        seed: seed of the data order and of the head.
    """
    test = read_examples(test_data, "span", {})
    if questions is not None:
        test = test[:: max(1, len(test) // questions)][:questions]
    config = FinetuneConfig(
        task="span", init_from=model, data=(train_data,), dev_examples=200, max_iters=max_iters, batch_size=batch_size,
        max_tokens=max_tokens, learning_rate=learning_rate, head_learning_rate=head_learning_rate, seed=seed,
        no_answer=no_answer, eval_interval=max(1, max_iters // 4), warmup_iters=max(1, max_iters // 20), min_lr=0.0,
    )  # fmt: skip
    examples, dev = open_examples(config, "span")
    systems: dict[str, Callable[[], tuple[nn.Module, Tokenizer]]] = {
        f"{Path(model).name}-{n}": partial(load_gpt, replace(config, n_layer=n)) for n in blocks
    }
    systems[Path(baseline).name] = partial(load_baseline, baseline)
    rows: list[dict[str, Any]] = []
    for name, load in systems.items():
        own = replace(config, out_dir=str(Path(out_dir, name)))
        network, read = learn(load, own, examples, dev)
        done = read(test)
        start = time.perf_counter()
        timed = test[:TIMED]
        for example in timed:
            read([example])
        rows.append(
            {
                "system": name,
                "blocks": len(network.blocks),
                "parameters": sum(p.numel() for p in network.parameters()),
                "steps": max_iters,
                "cpu_minutes": cpu_seconds(Path(own.out_dir))[-1][1] / 60,
                "milliseconds": 1000 * (time.perf_counter() - start) / len(timed),
                **done,
            }
        )
    print_report(rows, COLUMNS, {}, ("transformers",))


def learn(
    load: Callable[[], tuple[nn.Module, Tokenizer]],
    config: FinetuneConfig,
    examples: Sequence[Example],
    dev: Sequence[Example],
) -> tuple[TaskNetwork, Callable[[Sequence[Example]], dict[str, float]]]:
    """Train a span head on the body that `load` gives, or resume.

    Returns:
        The network with the best checkpoint's weights, and a function that gives its EM and F1 on examples.
    """
    torch.manual_seed(config.seed)
    body, tokenizer = load()
    settings = TaskSettings("span", (), config.max_tokens, answer_tokens=config.answer_tokens)
    network = TaskNetwork(body, "span", 0, config.answer_tokens)  # type: ignore[arg-type]
    collate = Collator(InputFormat("span", tokenizer, config.max_tokens), settings)
    resume = run_folder.latest(config.out_dir)
    numerics = agree_on_numerics(config, ALONE, resume)
    if resume is not None:
        network.load_state_dict(run_weights(resume))

    def run(some: Sequence[Example]) -> Forwarded:
        return forward(network, collate, some, numerics, config.tokens_per_forward)

    def evaluate(_: nn.Module) -> dict[str, float]:
        done = run(dev)
        return {"val_loss": mean_loss(settings, done)} | figures(settings, dev, predictions(settings, done))

    train(
        network, TaskBatches(examples, collate, config.batch_size, config.tokens_per_forward, config.seed, {}),
        task_loss(settings, None, 0.0), evaluate, config,
        save_model=lambda folder, weights: save_tensors(folder / "model.safetensors", weights),
        resume=resume, numerics=numerics,
    )  # fmt: skip
    best = run_folder.best_or_latest(config.out_dir)
    assert best is not None
    network.load_state_dict(run_weights(best))
    network.eval()
    return network, lambda some: figures(settings, some, predictions(settings, run(some)))


class PeerOutput(NamedTuple):
    """As far as `TaskNetwork` reads a GPT's output: hidden states (N, T, C)."""

    hidden: Tensor


class PeerBody(nn.Module):
    """A BERT in the place of a GPT, whose tokens also attend to later ones."""

    def __init__(self, folder: Path, pad_id: int) -> None:
        super().__init__()
        with extra("eval"):
            from transformers import AutoModel
        self.bert = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.config = SimpleNamespace(n_embd=self.bert.config.hidden_size, dropout=0.0)
        self.pad_id = pad_id

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return self.bert.encoder.layer

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.bert.parameters()).device

    def forward(self, ids: Tensor, logits: bool = False) -> PeerOutput:
        """Hidden states (N, T, C) of ids (N, T); padding is not attended to."""
        return PeerOutput(self.bert(ids, attention_mask=(ids != self.pad_id).long()).last_hidden_state)


def load_baseline(name: str) -> tuple[nn.Module, Tokenizer]:
    """A BERT and its tokenizer, whose [CLS] and [SEP] begin and end a row.

    Raises:
        InputError: for a tokenizer without them.
    """
    folder = resolve(name)
    tokenizer = Tokenizer.from_pretrained(folder)
    vocabulary = tokenizer.rust.get_vocab()
    for token in ("[CLS]", "[SEP]", "[PAD]"):
        if token not in vocabulary:
            raise InputError(
                f"The tokenizer of {name} has no {token}; expected a model of BERT's architecture."
            )
    tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id = (
        vocabulary[t] for t in ("[CLS]", "[SEP]", "[PAD]")
    )
    return PeerBody(folder, vocabulary["[PAD]"]), tokenizer


def run_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of this benchmark."""
    return load_file(checkpoint / "model.safetensors")
