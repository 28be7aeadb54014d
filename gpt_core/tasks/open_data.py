"""Training and development examples of a task."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gpt_core.common.errors import InputError
from gpt_core.data.tables import read_table
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.examples import Example, Task, read_examples
from gpt_core.training.parallel.ranks import ALONE, Ranks

CROPPED_TO = (100, 400)  # characters, the length of quotes of one to three sentences

T = TypeVar("T")


def open_examples(
    config: FinetuneConfig, task: Task, ranks: Ranks = ALONE
) -> tuple[list[Example], list[Example]]:
    """Read training and development examples; for span, questions without an answer are added and passages cropped.

    Raises:
        InputError: as `read_examples`, or if no example can be held out.
    """
    columns = config.column_names()
    examples = [e for source in config.data for e in read_examples(source, task, columns)]
    if config.exclude:
        rows = [row for path in config.exclude for _, row in read_table(Path(path))]
        excluded = {value for row in rows for value in row.values() if isinstance(value, str)}
        kept = [e for e in examples if excluded.isdisjoint(e.texts)]
        if ranks.main:
            n_left_out = len(examples) - len(kept)
            print(f"left out: {n_left_out:,} of {len(examples):,} examples, which have a text of exclude")
        examples = kept
    dev = [e for s in config.dev_data for e in read_examples(s, task, columns, split="validation")]
    order = random.Random(config.seed)
    examples, dev = split(examples, dev, group_of, config, order)
    if task == "span":
        examples = examples + unanswered(examples, config.no_answer, order)
        examples = [cropped(e, order) if order.random() < config.cropped else e for e in examples]
    return examples, dev


def split(
    examples: list[T], dev: list[T], group: Callable[[T], str], config: FinetuneConfig, order: random.Random
) -> tuple[list[T], list[T]]:
    """Examples to train on and for development: a sample of `dev`, or if it is empty, held out of `examples`.

    Raises:
        InputError: if no group of examples is small enough to be held out.
    """
    if dev:
        return examples, dev if len(dev) <= config.dev_examples else order.sample(dev, config.dev_examples)
    n_dev = min(config.dev_examples, len(examples) // 10)
    size = Counter(map(group, examples))
    groups = sorted(size)
    order.shuffle(groups)
    held: set[str] = set()
    n_held = 0
    for name in groups:
        if n_held + size[name] <= n_dev:
            held.add(name)
            n_held += size[name]
    smallest = min(groups, key=size.__getitem__)
    if not held and n_dev and 3 * size[smallest] <= len(examples):
        held = {smallest}
    if not held:
        raise InputError(
            f"{', '.join(config.data)}: {len(examples)} in all; expected at least ten, of several first texts or "
            "articles, of which a tenth can be held out; or give dev_data."
        )
    return [e for e in examples if group(e) not in held], [e for e in examples if group(e) in held]


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


def cropped(example: Example, order: random.Random) -> Example:
    """The question with a random piece of its passage around the first answer, cut at white space if possible."""
    question, passage = example.texts
    start, end = example.spans[0] if example.spans else (0, 0)
    size = max(order.randint(*CROPPED_TO), end - start)
    if size >= len(passage):
        return example
    if not example.spans:
        start = end = order.randint(0, len(passage))
    left = order.randint(max(0, end - size), min(start, len(passage) - size))
    right = left + size
    if left and (space := passage.find(" ", left, start)) >= 0:
        left = space + 1
    if right < len(passage) and (space := passage.rfind(" ", end, right)) >= 0:
        right = space
    spans = tuple((a - left, b - left) for a, b in example.spans if left <= a and b <= right)
    return replace(example, texts=(question, passage[left:right]), spans=spans)
