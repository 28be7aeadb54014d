"""The command that prepares training pairs: from files of pairs and of documents, without duplicates and leakage."""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from embed.data.near_duplicates import near_duplicates, read_texts
from embed.data.pairs import TEXT, Example, read_examples
from embed.text.key import text_key
from embed.text.sentences import split_sentences
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, require_empty_folder
from gpt_core.common.jsonl import JSONL, read_rows
from gpt_core.common.list_files import has_ending

PASSAGE_BYTES = 600  # in UTF-8: about 100 English words or 200 Chinese characters
LEAST_SENTENCES = 3  # of a passage that a sentence is taken from
LONGEST = 1600  # characters of a positive; an embedder reads about 256 tokens
TITLE_SHARE = 0.25  # of passages that also give a pair of their title
KEPT_SHARE = 0.1  # of passages that keep the sentence taken as the query, as in ORQA

Pair = tuple[str, str]


def prepare_pairs(
    *, input: list[str], out: str, exclude: list[str] | None = None, most: int = 100_000, seed: int = 0
) -> None:
    """Prepare training pairs for an embedder: one JSON Lines file for each input, and all their texts.

    Files of pairs (query and positive) are cleaned. Files of documents (text, and perhaps title) are cut into passages;
    a sentence of a passage becomes the query for the rest of it (the inverse cloze task, Lee et al. 2019), and some
    titles the query for their passage. White space is collapsed, duplicates and near-duplicates of evaluation texts are
    removed, and the pairs are shuffled. The same input gives the same files; the second file called a.jsonl becomes
    a-2.jsonl. texts.jsonl has each text once, for
    scripts/train_tokenizer.py; summary.json has the counts.

    Args:
        input: files of JSON lines (.jsonl, .gz, .xz).
        out: the output folder; it must be empty or not exist.
        exclude: evaluation sets (BEIR folders, JSON lines): pairs with near-duplicates of their texts are removed.
        most: largest number of pairs from a file, drawn at random.
        seed: seed of the draws.
    """
    if most < 1:
        raise InputError(f"most is {most}; expected at least 1.")
    target = Path(out)
    require_empty_folder(target)
    eval_texts = list(dict.fromkeys(text for source in exclude or [] for text in read_texts(source)))
    names: list[str] = []
    for path in input:
        name = Path(path).name.partition(".")[0]
        n = sum(other == name or other.rpartition("-")[0] == name for other in names)
        names.append(f"{name}-{n + 1}" if n else name)
    texts: dict[str, None] = {}
    summary = {}
    with atomic_folder(target) as folder:
        for path, name in zip(tqdm(input, desc="preparing", disable=None), names, strict=True):
            rng = random.Random(f"{seed} {name}")
            found = list(dict.fromkeys(_clean(read_pairs(Path(path), rng))))
            rng.shuffle(found)
            kept = _without(found[:most], eval_texts)
            summary[name] = {"pairs": len(kept), "near_duplicates": len(found[:most]) - len(kept)}
            if not kept:
                raise InputError(f"{path} gives no pairs; expected other data.")
            rows = ({"query": query, "positive": positive} for query, positive in kept)
            _write(folder / f"{name}.jsonl", rows)
            texts |= dict.fromkeys(text for pair in kept for text in pair)
        _write(folder / "texts.jsonl", ({TEXT: text} for text in texts))
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name, counts in summary.items():
        print(f"{name}: {counts['pairs']:,} pairs, {counts['near_duplicates']:,} near-duplicates removed")
    print(f"{target}: {sum(counts['pairs'] for counts in summary.values()):,} pairs, {len(texts):,} texts")


def read_pairs(path: Path, rng: random.Random) -> Iterator[Pair]:
    """The pairs of a file of pairs, or made of a file of documents."""
    if not path.is_file() or not has_ending(path, JSONL):
        raise InputError(f"{path} is not a file of JSON lines; expected {', '.join(JSONL)}.")
    first = next((row for _, row in read_rows(path)), {})
    if TEXT in first and "query" not in first:
        for place, row in read_rows(path):
            text, title = row.get(TEXT), row.get("title") or ""
            if not isinstance(text, str) or not isinstance(title, str):
                raise InputError(f'{place}: expected strings under "{TEXT}" and "title".')
            yield from cloze_pairs(title, text, rng)
        return
    examples: Sequence[Example] = read_examples(path)
    for example in examples:
        yield from ((example.query, positive) for positive in example.positives)


def cloze_pairs(title: str, text: str, rng: random.Random) -> Iterator[Pair]:
    """Pairs of a sentence and the rest of its passage, with the document's title before it in half of the cases."""
    for sentences in passages(text):
        if title and rng.random() < TITLE_SHARE:
            yield title, "".join(sentences)
        taken = rng.randrange(len(sentences))
        rest = sentences if rng.random() < KEPT_SHARE else sentences[:taken] + sentences[taken + 1 :]
        start = f"{title} " if title and rng.random() < 0.5 else ""
        yield sentences[taken], start + "".join(rest)


def passages(text: str) -> Iterator[list[str]]:
    """Runs of at least `LEAST_SENTENCES` sentences within a paragraph, of about `PASSAGE_BYTES`, spaces included."""
    for paragraph in text.split("\n"):
        starts = [start for start, _ in split_sentences(paragraph)]
        run: list[str] = []
        for start, end in pairwise([*starts, len(paragraph)]):
            run.append(paragraph[start:end])
            if (
                len(run) >= LEAST_SENTENCES
                and sum(len(x.encode(errors="replace")) for x in run) >= PASSAGE_BYTES
            ):
                yield run
                run = []
        if len(run) >= LEAST_SENTENCES:
            yield run


def _clean(pairs: Iterator[Pair]) -> Iterator[Pair]:
    for query, positive in pairs:
        query, positive = " ".join(query.split())[:LONGEST], " ".join(positive.split())[:LONGEST]
        if text_key(query) and text_key(positive) and text_key(query) != text_key(positive):
            yield query, positive


def _without(pairs: list[Pair], eval_texts: Sequence[str]) -> list[Pair]:
    """The pairs of which no side is a near-duplicate of an evaluation text."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    found = {texts[train] for train, _, _ in near_duplicates(texts, eval_texts)} if eval_texts else set()
    return [pair for pair in pairs if not found.intersection(pair)]


def _write(path: Path, rows: Iterator[dict[str, str]]) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except UnicodeEncodeError:
        raise InputError(
            f"{path.name}: a text has half of a surrogate pair, which is no character."
        ) from None
