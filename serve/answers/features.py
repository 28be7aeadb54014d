"""Features: what speaks for a candidate as the answer to a question, in numbers.

Nearly all compare words. A word counts by its inverse document frequency in the corpus: with that of the few retrieved
sentences, a word that is in all of them, such as the question's topic, would count nothing.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import regex
from numpy.typing import NDArray

from embed.text.content_terms import Term, content_terms
from serve.answers.candidates import Candidate
from serve.answers.language import Language
from serve.answers.question import AnswerType, Question

NAMES = (
    "cover",  # the question's words that are in the candidate
    "cover_neighbours",  # those that are only in the pieces beside it
    "cover_title",  # those that are only in the document's title or the headings above the candidate
    "cover_passage",  # those that are in title, headings, or any candidate of the passage
    "cover_pairs",  # neighbouring words of the question that stand near each other in the candidate
    "rarest",  # the weight of the rarest word in the candidate, relative to the rarest of the question
    "cover_parts",  # the question's words of which the candidate has the beginning; in Chinese its characters
    "names_missing",  # the question's names and numbers that are in none of candidate, neighbours, title and headings
    "density",  # of the question's words between the first and the last of them
    "has_number", "has_time", "has_name", "has_reason", "has_definition",  # whether it has what the question asks for
    "lacks_type",  # whether it lacks that
    "log_length", "log_new_words",
    "rank", "bm25",  # of the passage
    "is_first", "cover_if_first",  # the first piece of the document
    "is_question",
    "dense", "score",  # of the passage, relative to the best one's; they depend on the embedder
)  # fmt: skip
FIRST_TYPE, LACKS_TYPE = NAMES.index("has_number"), NAMES.index("lacks_type")
OF_EMBEDDER = 2  # the last features depend on the embedder
BEGINNING = 100  # characters of a candidate in which a definition begins
NEAR = 3  # words of a pair stand near each other up to this distance
LETTERS = 4  # of the beginning of a word

_YEAR = r"\b(?:1\d{3}|20\d\d)s?\b"
_TIME = regex.compile(
    rf"{_YEAR}|\b(?:January|February|March|April|May|June|July|August|September|October|November|December|Monday|Tuesday|"
    r"Wednesday|Thursday|Friday|Saturday|Sunday|century|centuries|spring|summer|autumn|winter|today|now)\b"
)
_NUMBER_WORD = regex.compile(
    "(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand|million|billion|half|quarter"
    "|third|several|once|twice)"
)
_REASON = regex.compile(
    r"\b(?:because|due to|since|so that|in order|caused?|causes|result|reason|by|through|to)\b"
)
_IN_CHINESE: dict[AnswerType, regex.Pattern[str]] = {
    "number": regex.compile(
        r"\d|[一二三四五六七八九十百千万亿两]+[个名位只条座次种部集年月日岁米公里人元度%％秒天支队所家间]"
    ),
    "time": regex.compile(r"[\d〇一二三四五六七八九十]+[年月]|世纪|[朝代]代"),
    "place": regex.compile("[省市县区国州洲镇村路街山河江湖海岛港]|位于|在"),
    "reason": regex.compile("因为|由于|所以|因此|因|为了|通过|以便|使"),
    "list": regex.compile("、"),
}
# After the last word of what is defined: “The Steering Council of Python is …”, "IMAP (Internet …)", “死锁是指…”
_IS: dict[Language, str] = {
    "en": r"[\p{L}\p{N}]*[\"'”’)`*]*(?:(?:\W+[\p{L}\p{N}-]+){0,3}\W+"
    r"(?:is|are|was|were|means?|refers?|stands? for|denotes?|describes?)\b|:| \()",
    "zh": r"[”」』）)`*]*.{0,6}?(?:是|指|即|为|表示|称|：|（|\()",
}
_TYPE_FEATURES: dict[AnswerType, str] = {
    "number": "has_number", "time": "has_time", "name": "has_name", "place": "has_name", "reason": "has_reason",
    "list": "has_reason", "definition": "has_definition",
}  # fmt: skip


def features(question: Question, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """The features (n, F) of each candidate, in the order of `NAMES`."""
    texts = [(c.text, c.before, c.after, " ".join((c.hit.title, *c.headings))) for c in candidates]
    different = list(dict.fromkeys(itertools.chain.from_iterable(texts)))
    terms = dict(zip(different, content_terms(different), strict=True))
    analysed = [[terms[text] for text in four] for four in texts]
    passages: dict[str, set[str]] = defaultdict(set)
    for candidate, (own, _, _, title) in zip(candidates, analysed, strict=True):
        passages[candidate.hit.passage_id] |= _keys(own) | _keys(title)
    best = [max((score(c) for c in candidates), default=0.0) for score in (_bm25, _dense, _fused)]
    rows = [
        _features(question, candidate, texts_terms, passages[candidate.hit.passage_id], best)
        for candidate, texts_terms in zip(candidates, analysed, strict=True)
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(NAMES))


def _features(
    question: Question,
    candidate: Candidate,
    terms: Sequence[list[Term]],
    passage: set[str],
    best: Sequence[float],
) -> list[float]:
    own, before, after, title = terms
    keys = _keys(own)
    held = question.keys & keys
    cover = question.share(held)
    places: dict[str, list[int]] = defaultdict(list)
    for place, term in enumerate(own):
        places[term.key].append(place)
    of_question = sorted(place for key in held for place in places[key])
    new = [t for t in own if t.key not in question.keys and not t.is_function]
    has_type = _has_type(question, candidate.text, new)
    feature = _TYPE_FEATURES.get(question.kind)
    best_bm25, best_dense, best_score = best
    return [
        cover,
        question.share((question.keys & (_keys(before) | _keys(after))) - keys),
        question.share((question.keys & _keys(title)) - keys),
        question.share(question.keys & passage),
        _cover_of_pairs(question, places),
        max((question.weights[key] for key in held), default=0) / max(question.weights.values(), default=1),
        _cover_of_parts(question, own),
        question.share(question.names - keys - _keys([*before, *after, *title])),
        len(held) / (of_question[-1] - of_question[0] + 1) if held else 0,
        *(has_type and feature == name for name in NAMES[FIRST_TYPE:LACKS_TYPE]),
        not has_type,
        math.log1p(len(own)),
        math.log1p(len(new)),
        1 / (1 + candidate.rank),
        _bm25(candidate) / best_bm25 if best_bm25 else 0,
        candidate.is_first,
        cover * candidate.is_first,
        candidate.text.rstrip("\"'”’」』）) ").endswith(("?", "？")),
        _dense(candidate) - best_dense,
        _fused(candidate) - best_score,
    ]


def _keys(terms: Sequence[Term]) -> set[str]:
    return {t.key for t in terms}


def _bm25(candidate: Candidate) -> float:
    return candidate.hit.lexical or 0.0


def _dense(candidate: Candidate) -> float:
    return candidate.hit.dense or 0.0


def _fused(candidate: Candidate) -> float:
    return candidate.hit.score


def _cover_of_pairs(question: Question, places: dict[str, list[int]]) -> float:
    """The share of the question's neighbouring words that are near each other in the candidate, by the lesser weight.

    `places` are those of the candidate's words. Words at a distance of `NEAR` count half.
    """
    total = found = 0.0
    for one, other in itertools.pairwise(question.terms):
        if one.key == other.key:
            continue
        weight = min(question.weights[one.key], question.weights[other.key])
        total += weight
        if one.key in places and other.key in places:
            distance = min(abs(p - q) for p in places[one.key] for q in places[other.key])
            if distance <= NEAR:
                found += weight if distance < NEAR else weight / 2
    return found / total if total else 0.0


def _cover_of_parts(question: Question, own: Sequence[Term]) -> float:
    weights = dict[str, float]()
    for key in question.keys:
        for part in _parts(key, question):
            weights[part] = 1.0 if question.language == "zh" else question.weights[key]
    held = {part for term in own for part in _parts(term.key, question)}
    total = sum(weights.values())
    return sum(weights[part] for part in weights.keys() & held) / total if total else 0.0


def _parts(key: str, question: Question) -> Iterator[str]:
    """The beginning of a word; in Chinese the characters of a bigram."""
    yield from key if question.language == "zh" else (key[:LETTERS],)


def _has_type(question: Question, text: str, new: Sequence[Term]) -> bool:
    """Whether a candidate may have what the question asks for; `new` are its words that the question has not."""
    kind = question.kind
    if kind == "definition":
        return _defines(question, text)
    if question.language == "zh":
        return kind not in _IN_CHINESE or bool(_IN_CHINESE[kind].search(text))
    match kind:
        case "number":
            return any(t.is_number or _NUMBER_WORD.fullmatch(t.word.lower()) for t in new)
        case "time":
            return bool(_TIME.search(text))
        case "name" | "place":
            return any(t.is_name for t in new)
        case "reason":
            return bool(_REASON.search(text))
    return True


def _defines(question: Question, text: str) -> bool:
    """Whether a text says near its beginning what the question's words are, or stand for."""
    defined = [t for t in question.terms if t.key not in ("mean", "stand")]
    if not defined:
        return False
    word = defined[-1].key if question.language == "zh" else defined[-1].word[:LETTERS]
    return bool(regex.search(f"(?i:{regex.escape(word)})" + _IS[question.language], text[:BEGINNING]))
