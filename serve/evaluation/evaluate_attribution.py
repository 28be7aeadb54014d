"""Evaluation of attribution as a classifier of supported and unsupported sentences, for tuning its threshold.

The data are SQuAD's training questions with their answers. A question and an answer are joined into a sentence ("When
was X built?" and "1845" give "X built was 1845."); attribution hardly looks at the order of words. The retrieved
passages are the question's paragraph and its neighbours in the same article. Other wrong sentences are copied sentences
with one thing changed (`serve.evaluation.altered_sentences`). The Chinese part uses CMRC 2018's trial questions.
"""

import json
import lzma
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embed.data.beir import find_part, read_qrels
from embed.text.sentences import split_sentences
from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import read_rows
from gpt_core.evaluation.report import print_report
from index import Hit
from serve.answers.attribution import SUPPORT_THRESHOLD, attribute
from serve.evaluation.altered_sentences import CHINESE, ENGLISH, NAME, NAME_AT_START, Rule

FILE = "squad_train.jsonl.xz"
THRESHOLDS = (0.5, 0.55, 0.6, 0.63, 0.65, 0.7, 0.75)
AUXILIARIES = frozenset(
    ("is", "are", "was", "were", "did", "does", "do", "has", "have", "had", "can", "could", "will")
)
QUESTION_WORDS = frozenset(("who", "what", "which", "when", "where", "how", "why", "whose", "whom"))


class Row(NamedTuple):
    """A line of the data file."""

    query: str
    positive: str
    answer: str
    title: str


class Case(NamedTuple):
    """A sentence of an answer with its question and retrieved passages; `kind` is a key of `KINDS`."""

    kind: str
    sentence: str
    question: str
    hits: list[Hit]


# kind → whether attribution should call the sentence supported
KINDS = {
    "right answer, full sentence": True,
    "right answer alone": True,
    "copied sentence of the paragraph": True,
    "wrong answer from the passages, full sentence": False,
    "wrong answer from the passages alone": False,
    "answer to another question about the article": False,
    "answer from another article": False,
    "copied sentence, question about another article": False,
    "the question restated": False,
    **{f"copied sentence, {change}": False for change in ENGLISH},
}
CHINESE_KINDS = {
    "Chinese: right answer alone": True,
    "Chinese: copied sentence of the paragraph": True,
    "Chinese: wrong answer from the paragraph alone": False,
    **{f"Chinese: copied sentence, {change}": False for change in CHINESE},
}


def evaluate_attribution(
    *, data: Path, chinese: Path | None = None, questions: int = 1500, seed: int = 1
) -> None:
    """Print the share of sentences that attribution calls supported, for supported and unsupported sentences.

    Args:
        data: folder with squad_train.jsonl.xz (lines with query, positive, answer and title).
        chinese: BEIR folder of CMRC 2018, whose split dev holds its trial questions; adds rows in Chinese.
        questions: number of questions, drawn at random; of the Chinese ones at most as many as there are.
        seed: random seed of the draw.
    """
    cases = make_cases(_read(data / FILE), questions, seed)
    results, ratios = _evaluate(KINDS, cases)
    if chinese is not None:
        more, more_ratios = _evaluate(CHINESE_KINDS, chinese_cases(_read_chinese(chinese), questions, seed))
        results, ratios = [*results, *more], ratios | {f"Chinese: {k}": v for k, v in more_ratios.items()}
    print_report(results, tuple(results[0]), ratios)


def _evaluate(
    kinds: Mapping[str, bool], cases: Iterator[Case]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each kind and one for Youden's J; and J's ratio to the best one."""
    scores: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        attributed = attribute(case.sentence, case.question, case.hits)
        scores[case.kind].append(max((s.score for s in attributed), default=0.0))
    results: list[dict[str, Any]] = []
    for kind, supported in kinds.items():
        shares = {f"≥{t:.2f}": _share(scores[kind], t) for t in THRESHOLDS}
        results.append({"sentences": kind, "supported": supported, "n": len(scores[kind]), **shares})
    balance = {f"≥{t:.2f}": _youden(kinds, scores, t) for t in THRESHOLDS}
    results.append({"sentences": "Youden's J", "supported": "", "n": len(scores), **balance})
    best = max(balance.values())
    return results, {"J at the threshold/best J": _youden(kinds, scores, SUPPORT_THRESHOLD) / best}


def make_cases(rows: Sequence[Row], n: int, seed: int) -> Iterator[Case]:
    """Yield cases of every kind from `n` random questions."""
    draw = random.Random(seed)
    articles: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        articles[row.title].append(row)
    for row, other in zip(draw.sample(rows, n), draw.sample(rows, n), strict=True):
        article = articles[row.title]
        paragraphs = list(dict.fromkeys(r.positive for r in article))
        place = paragraphs.index(row.positive)
        retrieved = [
            paragraphs[i] for i in (place, place - 1, place + 1, place + 2) if 0 <= i < len(paragraphs)
        ]
        hits = [_hit(row.title, text) for text in retrieved]
        yield from _altered_cases(row, other, article, hits, draw)
        copied = draw.choice(_sentences(row.positive))
        sentences = {
            "right answer, full sentence": _statement(row.query, row.answer),
            "right answer alone": f"It is {row.answer}.",
            "copied sentence of the paragraph": copied,
            "answer from another article": _statement(row.query, other.answer),
            "the question restated": _statement(row.query, ""),
        }
        wrong = [r for r in article if _same_kind(r.answer, row.answer)]
        if wrong:
            answer = draw.choice(wrong).answer
            sentences["answer to another question about the article"] = _statement(row.query, answer)
        if near := [r for r in wrong if r.positive in retrieved]:
            answer = draw.choice(near).answer
            sentences["wrong answer from the passages, full sentence"] = _statement(row.query, answer)
            sentences["wrong answer from the passages alone"] = f"It is {answer}."
        yield from (Case(kind, sentence, row.query, hits) for kind, sentence in sentences.items())
        if other.title != row.title:
            yield Case("copied sentence, question about another article", copied, other.query, hits)


def _altered_cases(
    row: Row, other: Row, article: Sequence[Row], hits: list[Hit], draw: random.Random
) -> Iterator[Case]:
    """For each kind of change, a sentence of the paragraph with this change.

    A name is replaced by one of another article. The first words of a sentence are a name if the article has the first
    of them inside a sentence, and never in lower case.
    """
    known = " ".join(hit.text for hit in hits) + row.title + row.query
    names = [n for n in NAME.findall(other.positive) if not any(word in known for word in n.split())]
    text = " ".join({r.positive for r in article})
    inside = {word for name in NAME.findall(text) for word in name.split()}
    for change, rule in ENGLISH.items():
        sentences = _sentences(row.positive)
        if change == "name at its beginning replaced":
            starts = ((s, NAME_AT_START.match(s)) for s in sentences)
            first_words = ((s, match[0].split()[0]) for s, match in starts if match)
            sentences = [s for s, word in first_words if word in inside and word.lower() not in text]
        if altered := _altered(sentences, rule, names, draw):
            yield Case(f"copied sentence, {change}", altered, row.query, hits)


def _altered(sentences: list[str], rule: Rule, names: Sequence[str], draw: random.Random) -> str | None:
    """One of `sentences`, in random order, that `rule` can change."""
    changes = (rule(sentence, names, draw) for sentence in draw.sample(sentences, len(sentences)))
    return next((changed for changed in changes if changed and len(split_sentences(changed)) == 1), None)


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


def chinese_cases(rows: Sequence[Row], n: int, seed: int) -> Iterator[Case]:
    """Yield cases of every Chinese kind from `n` random questions, each with its paragraph and two others."""
    draw = random.Random(seed)
    paragraphs = {row.positive: row.title for row in rows}
    for row in draw.sample(rows, min(n, len(rows))):
        others = draw.sample([p for p in paragraphs if p != row.positive], 2)
        hits = [_hit(paragraphs[text], text) for text in (row.positive, *others)]
        sentences = _sentences(row.positive)
        yield Case("Chinese: right answer alone", f"是{row.answer}。", row.query, hits)
        yield Case("Chinese: copied sentence of the paragraph", draw.choice(sentences), row.query, hits)
        if wrong := [
            r.answer for r in rows if r.positive == row.positive and _same_kind(r.answer, row.answer)
        ]:
            sentence = f"是{draw.choice(wrong)}。"
            yield Case("Chinese: wrong answer from the paragraph alone", sentence, row.query, hits)
        for change, rule in CHINESE.items():
            if altered := _altered(sentences, rule, (), draw):
                yield Case(f"Chinese: copied sentence, {change}", altered, row.query, hits)


def _statement(question: str, answer: str) -> str:
    """Join a question, without its question word, and an answer into a sentence."""
    words = question.strip(" ?").split()
    asking = next((i for i, word in enumerate(words) if word.lower() in QUESTION_WORDS), None)
    if asking is None:
        return f"{' '.join(words)} {answer}."
    before, after = words[:asking], words[asking + 1 :]
    verb = next((i for i, word in enumerate(after[:5]) if word.lower() in AUXILIARIES), None)
    if verb is None:  # Who built X → Y built X
        sentence = " ".join([*before, answer, *after])
    else:  # When was X built → X built was Y
        sentence = " ".join([*after[verb + 1 :], after[verb], *before, *after[:verb], answer])
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _same_kind(one: str, other: str) -> bool:
    """Whether two answers are of one kind (number, name or other) and neither contains the other."""

    def kind(text: str) -> str:
        return "number" if re.search(r"\d", text) else "name" if text[:1].isupper() else "other"

    same_words = one.lower() in other.lower() or other.lower() in one.lower()
    return kind(one) == kind(other) and not same_words


def _hit(title: str, text: str) -> Hit:
    return Hit(text[:40], title, title, text, 0, len(text), 0.0, None, None, {})


def _share(scores: Sequence[float], threshold: float) -> float:
    return sum(score >= threshold for score in scores) / max(1, len(scores))


def _youden(kinds: Mapping[str, bool], scores: dict[str, list[float]], threshold: float) -> float:
    """Youden's J: true positive rate minus false positive rate, each averaged over kinds with equal weight."""
    shares = {
        supported: [_share(scores[k], threshold) for k in kinds if kinds[k] == supported]
        for supported in (True, False)
    }
    return sum(shares[True]) / len(shares[True]) - sum(shares[False]) / len(shares[False])


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected SQuAD's training questions.")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [Row(**{key: json.loads(line)[key] for key in Row._fields}) for line in lines]


def _read_chinese(folder: Path) -> list[Row]:
    texts = {row["_id"]: (row["title"], row["text"]) for _, row in read_rows(find_part(folder, "corpus"))}
    judged = read_qrels(folder, "dev")
    queries = (row for _, row in read_rows(find_part(folder, "queries")) if row["_id"] in judged)
    return [
        Row(row["text"], texts[paragraph][1], row["metadata"]["answers"][0], texts[paragraph][0])
        for row in queries
        for paragraph in judged[row["_id"]]
    ]
