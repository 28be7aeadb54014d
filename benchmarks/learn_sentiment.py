"""Benchmark a sentiment head: a GPT in three variants beside TF-IDF with logistic regression, on the same split."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learn_embedding import cpu_seconds
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.files import atomic_write
from gpt_core.evaluation.report import print_report
from gpt_core.hub import run_folder
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.examples import Example, read_examples
from gpt_core.tasks.finetune import finetune
from gpt_core.tasks.task_model import TaskModel

COLUMNS = ("system", "seed", "parameters", "dev", "accuracy", "cpu_minutes")
# small-gpt's ablations: with and without a padding mask, and only the last block trained
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, no padding mask": {"padding_mask": False},
    "last block": {"trainable": "last-k", "last_k": 1},
}
NGRAMS = (1, 3)  # characters, of the linear baseline
REGULARISATION = (1.0, 4.0, 10.0, 30.0)  # its inverse, of which the development split chooses


def bench_learn_sentiment(
    *,
    data: str,
    model: str,
    columns: tuple[str, ...] = ("text=review",),
    out_dir: str = "runs/sentiment",
    max_iters: int = 600,
    batch_size: int = 32,
    max_tokens: int = 256,
    learning_rate: float = 3e-4,
    head_learning_rate: float = 1e-3,
    dropout: float = 0.1,
    seeds: tuple[int, ...] = (1337,),
) -> None:
    """Fine-tune a GPT to classify reviews, in three variants, beside TF-IDF and logistic regression.

    Exact duplicates are dropped. The SHA-256 of a text modulo 10 divides the rest: 0 is the test split, 1 the
    development split, which chooses checkpoints and the baseline's regularisation. Every variant is one training in
    out_dir, which resumes. CPU time is that of all threads in the training steps. Prints a row each and a line of JSON.

    Args:
        data: reviews with labels: .jsonl, .csv or .tsv (.gz, .xz).
        model: the GPT to start from: a model folder, a run's out_dir or a known name.
        columns: columns with other names than text and label.
        out_dir: folder of the runs and of the divided data.
        max_iters: training steps.
        batch_size: reviews per step.
        max_tokens: longest review in tokens.
        learning_rate: AdamW's peak learning rate.
        head_learning_rate: that of the head.
        dropout: dropout probability in training.
        seeds: a training each.

    Raises:
        InputError: for data that cannot be read, or a split without reviews.
    """
    names = FinetuneConfig(columns=columns).column_names()
    parts = divide(read_examples(data, "classification", names))
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in parts.items():
        lines = [json.dumps({"text": e.texts[0], "label": e.label}, ensure_ascii=False) for e in examples]
        atomic_write(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
    rows = [linear(parts)]
    for seed in seeds:
        for name, keys in VARIANTS.items():
            run = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            finetune(
                FinetuneConfig(
                    task="classification", init_from=model, data=(str(folder / "train.jsonl"),),
                    dev_data=(str(folder / "dev.jsonl"),), dev_examples=len(parts["dev"]), out_dir=str(run),
                    max_iters=max_iters, batch_size=batch_size, max_tokens=max_tokens, learning_rate=learning_rate,
                    head_learning_rate=head_learning_rate, dropout=dropout, min_lr=0.0, seed=seed,
                    warmup_iters=max(1, max_iters // 20), eval_interval=max(1, max_iters // 10), **keys,
                )
            )  # fmt: skip
            rows.append({"system": name, "seed": seed} | figures(run, parts["test"]))
    print_report(rows, COLUMNS, {}, ("scikit-learn",))


def divide(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Distinct texts as train, dev and test, by their SHA-256 modulo 10.

    Raises:
        InputError: if a part is empty.
    """
    parts: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    for text, example in {e.texts[0]: e for e in reversed(examples)}.items():
        tenth = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
        parts[{0: "test", 1: "dev"}.get(tenth, "train")].append(example)
    for name, part in parts.items():
        if not part:
            raise InputError(f"The {name} split of {len(examples)} reviews is empty; give more reviews.")
    return parts


def linear(parts: dict[str, list[Example]]) -> dict[str, Any]:
    """TF-IDF of character n-grams and logistic regression, by scikit-learn."""
    with extra("eval"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    start = time.process_time()
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=NGRAMS, min_df=2, sublinear_tf=True)
    texts = {name: [e.texts[0] for e in part] for name, part in parts.items()}
    labels = {name: [e.label for e in part] for name, part in parts.items()}
    matrices = {"train": vectorizer.fit_transform(texts["train"])}
    matrices |= {name: vectorizer.transform(texts[name]) for name in ("dev", "test")}
    fitted = [
        LogisticRegression(C=c, max_iter=1000).fit(matrices["train"], labels["train"]) for c in REGULARISATION
    ]
    scores = [classifier.score(matrices["dev"], labels["dev"]) for classifier in fitted]
    best = scores.index(max(scores))
    seconds = time.process_time() - start
    return {
        "system": f"TF-IDF + logistic regression, C = {REGULARISATION[best]:g}",
        "dev": scores[best],
        "accuracy": fitted[best].score(matrices["test"], labels["test"]),
        "parameters": fitted[best].coef_.size,
        "cpu_minutes": seconds / 60,
    }


def figures(run: Path, test: Sequence[Example]) -> dict[str, Any]:
    """Accuracy of a run's best checkpoint on the test split, and its size and CPU time."""
    best = run_folder.best_or_latest(run)
    assert best is not None
    model = TaskModel.from_pretrained(best)
    found = model.predict_examples(test)
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "dev": run_folder.load_state(best)["figures"]["accuracy"],
        "accuracy": sum(p.value == e.label for p, e in zip(found, test, strict=True)) / len(test),
        "step": int(best.name.removeprefix("step-")),
        "cpu_minutes": cpu_seconds(run)[-1][1] / 60,
    }
