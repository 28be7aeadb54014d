"""The command that scores language models on zero-shot tasks."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.common.stop_words import FUNCTION_WORDS
from gpt_core.evaluation.likelihood import Likelihood, encode_pair, likelihoods
from gpt_core.evaluation.report import print_report
from gpt_core.evaluation.zero_shot import Question, pairs_of, read_questions, standard_error
from gpt_core.hardware.device import DeviceName, Numerics
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.parallel.ranks import Ranks, join

MAX_NATS = 700.0  # whose exponential is a number still
COLUMNS = ("dataset", "variant", "model", "n", "accuracy", "accuracy_norm", "stderr", "perplexity")


def evaluate_tasks(
    *,
    model: list[str],
    data: list[str],
    limit: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: DeviceName = "auto",
) -> None:
    """Evaluate language models on zero-shot tasks, with lm-eval's prompts.

    A file's task is recognised by its columns: HellaSwag, PIQA, OpenBookQA, BLiMP, LAMBADA (OpenAI's text). accuracy is
    the share of questions whose right continuation has the highest log-probability, accuracy_norm that of the highest
    log-probability per byte. BLiMP's accuracy is the mean over its paradigms. LAMBADA has two rows: lambada_openai,
    right if each token of the last word is the most probable one, as in lm-eval; and lambada_stopwords, for which the
    first token may be no common function word, as with the filter of GPT-2's paper. perplexity is that of the right
    continuation, for LAMBADA of the word, else per token. Under torchrun, the ranks share the questions. Prints a table
    and ends with a line of JSON.

    Args:
        model: model folders, training runs' out_dir, or known names.
        data: files of the tasks: .jsonl, .csv or .tsv, optionally with .gz or .xz.
        limit: only so many questions of each file, evenly spread over it.
        dtype: of the matrix products.
        device: auto: cuda, else mps, else cpu.
    """
    if not model or not data:
        raise InputError("--model or --data names nothing; expected one or more of each.")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1.")
    files = [(Path(name), *read_questions(Path(name))) for name in data]
    results: list[dict[str, Any]] = []
    with join(device) as ranks:
        for name in model:
            gpt = GPT.from_pretrained(name).to(ranks.device)
            tokenizer = Tokenizer.from_pretrained(name)
            for path, task, questions, groups in files:
                step = 1.0 if limit is None else max(1.0, len(questions) / limit)
                chosen = [int(i * step) for i in range(math.ceil(len(questions) / step))]
                row = {"dataset": path.name.partition(".")[0], "model": name, "dtype": dtype}
                some, their_groups = [questions[i] for i in chosen], [groups[i] for i in chosen]
                numerics = Numerics(ranks.device.type, dtype)
                for variant, figures in score(
                    gpt, tokenizer, some, their_groups, numerics, ranks, task.name
                ).items():
                    results.append(row | {"variant": variant} | figures)
        if ranks.main:
            print_report(results, COLUMNS, {})


def score(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    groups: Sequence[str],
    numerics: Numerics,
    ranks: Ranks,
    name: str,
) -> dict[str, dict[str, float]]:
    """Figures of a task over all ranks, each of which scores its share of the questions.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        questions: the questions, the same on all ranks.
        groups: the group of each question; the accuracy is the mean over groups.
        numerics: dtype of matrix products.
        ranks: the processes.
        name: the task's name.

    Returns:
        For each variant of the task: n, accuracy, accuracy_norm (with several continuations), stderr, perplexity, and
        cut: the number of contexts that lost their first tokens.
    """
    mine = questions[ranks.rank :: ranks.world_size]
    pairs = [encode_pair(tokenizer, before, after) for before, after in pairs_of(mine)]
    single = len(questions[0].continuations) == 1
    banned = function_word_tokens(tokenizer, model) if single else None
    found = likelihoods(model, pairs, numerics, banned, name if ranks.main else "")
    names = sorted(set(groups))
    # per group: questions, and right ones of two kinds; then over all: nats and tokens of right continuations, cut ones
    sums = torch.zeros(3 * len(names) + 3, dtype=torch.float64)
    start = 0
    for question, group in zip(mine, groups[ranks.rank :: ranks.world_size], strict=True):
        part = found[start : start + len(question.continuations)]
        start += len(part)
        place = 3 * names.index(group)
        sums[place : place + 3] += torch.tensor([1.0, *is_right(question, part)], dtype=torch.float64)
        best = part[question.right]
        cut = sum(x.n_cut > 0 for x in part)
        sums[-3:] += torch.tensor([-best.total, best.n_tokens, cut], dtype=torch.float64)
    sums = ranks.sum(sums)
    counts = sums[:-3].view(-1, 3)  # (groups, 3)
    first, second = (counts[:, 1:] / counts[:, :1]).mean(0).tolist()
    n = int(counts[:, 0].sum())
    # of a whole continuation for LAMBADA, as lm-eval's, else per token
    nats = float(sums[-3]) / (n if single else float(sums[-2]))
    perplexity = math.exp(min(nats, MAX_NATS))
    rest = {"perplexity": perplexity, "cut": int(sums[-1])}
    if single:
        shares = {f"{name}_openai": first, f"{name}_stopwords": second}
        return {
            variant: {"n": n, "accuracy": share, "stderr": standard_error(share, n), **rest}
            for variant, share in shares.items()
        }
    return {
        name: {"n": n, "accuracy": first, "accuracy_norm": second, "stderr": standard_error(first, n), **rest}
    }


def is_right(question: Question, found: Sequence[Likelihood]) -> tuple[bool, bool]:
    """Whether the right continuation is the most probable one, and the most probable one per byte.

    Of a single continuation: whether it is the greedy one, without and with the filter of function words.
    """
    if len(found) == 1:
        return found[0].greedy, found[0].filtered
    totals = [x.total for x in found]
    lengths = [len(text.removeprefix(" ").encode()) for text in question.continuations]
    by_byte = [total / max(1, n) for total, n in zip(totals, lengths, strict=True)]
    return totals.index(max(totals)) == question.right, by_byte.index(max(by_byte)) == question.right


def function_word_tokens(tokenizer: Tokenizer, model: GPT) -> Tensor:
    """(V,) bool: tokens that are a space and a function word, or punctuation alone, or nothing visible."""
    banned = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    for i in range(tokenizer.vocab_size):
        word = tokenizer.token_bytes(i).decode(errors="replace").strip().lower()
        banned[i] = word in FUNCTION_WORDS or not any(character.isalnum() for character in word)
    return banned.to(model.device)
