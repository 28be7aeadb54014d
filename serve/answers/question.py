"""A question: its content words with their weights, and the type of answer that it asks for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import regex

from embed.text.analysis import normalise
from embed.text.content_terms import Term, content_terms
from serve.answers.language import Language, language_of

AnswerType = Literal["number", "time", "name", "place", "reason", "list", "definition", "any"]
Idf = Callable[[Iterable[str]], dict[str, float]]

# Question words and function words, which would make bigrams with the words beside them
_CHINESE_FUNCTION_WORDS = regex.compile(
    "为什么|為什麼|什么|什麼|甚么|哪些|哪个|哪個|哪里|哪裡|哪儿|哪|多少|几|幾|谁|誰|怎么|怎麼|怎样|怎樣|如何|为何|為何|是否|何时|何時|"
    "何地|请问|請問|[的是了在有吗嗎呢和与與及于於被由从從到为為之其而以也都就]"
)
_ENGLISH_TYPES: list[tuple[AnswerType, str]] = [
    (
        "definition",
        r"^\W*(?:what|who) (?:is|are|was|were|'s) (?:an? |the )?"
        r"(?:(?!(?:of|in|for|to|at|by|with|from|about|after|it|he|she|this|that|good|called|known)\b)[\p{L}\p{N}.-]+ ?)"
        r"{1,3}[?\s]*$"
        r"|\bwhat (?:does|do|did) .* (?:mean|stand for)\b|^\W*define\b|\bdefinition of\b",
    ),
    (
        "number",
        r"\bhow (?:many|much|long|old|tall|far|large|big|high|fast|deep|wide|often)\b|\bhow .*\bpercent"
        r"|\bwhat (?:percent|percentage|number|amount|population|age|size|proportion|fraction|temperature)\b",
    ),
    ("time", r"\bwhen\b|\b(?:what|which) (?:\w+ )?(?:year|date|day|month|decade|century|time|season)\b"),
    ("name", r"\bwho\b|\bwhose\b|\bwhom\b"),
    (
        "place",
        r"\bwhere\b|\b(?:what|which) (?:\w+ )?(?:city|country|state|place|location|region|area|continent|county|town"
        r"|river|island)\b",
    ),
    ("reason", r"\bwhy\b|\bhow\b"),
    (
        "name",
        r"\bwhich\b|\bname of\b|\bwhat (?:company|team|person|man|woman|group|organization|university|school|book"
        r"|film|song|album|name)\b",
    ),
]
_CHINESE_TYPES: list[tuple[AnswerType, str]] = [
    (
        "definition",
        r"^\W*(?:什么是|什麼是|何谓|何謂)|^\W*[^，。的]{1,12}(?:是什么|是什麼|是啥)(?:意思|东西|東西)?[?？\s]*$",
    ),
    ("name", "谁|誰|哪位|哪个人|人物是|叫什么|姓名"),
    ("time", "什么时候|何时|哪年|哪一年|几年|年份|日期|几月|时间|哪天"),
    ("number", "多少|几|多大|多长|多高|多久|多远"),
    ("place", "哪里|哪儿|哪国|在哪|何地|哪个国家|哪个城市|哪省|位于"),
    ("reason", "为什么|为何|原因|怎么|如何|怎样"),
    ("list", "哪些|包括"),
]
_TYPES = {
    language: [(kind, regex.compile(pattern, regex.IGNORECASE)) for kind, pattern in types]
    for language, types in (("en", _ENGLISH_TYPES), ("zh", _CHINESE_TYPES))
}
# Of the words of earlier questions, relative to the question's own: the answer should have what is asked now.
WEIGHT_BEFORE = 1 / 3


def without_function_words(question: str) -> str:
    """A question with a space for each Chinese function word; one in another language as it is."""
    text = normalise(question)
    return _CHINESE_FUNCTION_WORDS.sub(" ", text) if language_of(question) == "zh" else text


def content_of(question: str) -> list[Term]:
    """The content words of a question in order, in Chinese the bigrams of the text between its function words."""
    return [t for t in content_terms([without_function_words(question)])[0] if not t.is_function]


def answer_type(question: str) -> AnswerType:
    """The type of answer that a question asks for."""
    types = _TYPES[language_of(question)]
    return next((kind for kind, words in types if words.search(question)), "any")


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        text: the question.
        language: "zh", or "en" for all other languages.
        kind: the type of answer that it asks for.
        terms: its content words or bigrams in order; none if it has function words only.
        weights: key of a term → its inverse document frequency, relative to `largest_idf`, that of a word in no
            passage, so that probabilities do not depend on the size of the corpus; times `WEIGHT_BEFORE` for a word
            that is only in the questions before this one.
    """

    text: str
    language: Language
    kind: AnswerType
    terms: Sequence[Term]
    weights: dict[str, float]
    largest_idf: float

    @classmethod
    def of(cls, text: str, idf: Idf, before: str = "") -> "Question":
        """Analyse a question.

        Args:
            text: the question.
            idf: `Index.idf`.
            before: earlier questions that it refers to, of which only the content words count.
        """
        language = language_of(text)
        earlier, own = content_of(before), content_of(text)
        terms = earlier + own
        weights = idf({"", *(t.key for t in terms)})
        largest = weights.pop("")  # no passage has it
        weights = {key: weight / largest for key, weight in weights.items()}
        if own:
            for key in {t.key for t in earlier} - {t.key for t in own}:
                weights[key] *= WEIGHT_BEFORE
        return cls(text, language, answer_type(text), terms, weights, largest)

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of the content words."""
        return frozenset(self.weights)

    @cached_property
    def names(self) -> frozenset[str]:
        """The keys of its names and numbers."""
        return frozenset(t.key for t in self.terms if t.is_name or t.is_number)

    def weight(self, keys: Iterable[str]) -> float:
        """The sum of the weights of keys, all of which must be the question's."""
        return sum(self.weights[key] for key in keys)

    def share(self, keys: Iterable[str]) -> float:
        """The weight of keys, all of which must be the question's, as a share of the weight of all of them."""
        total = self.weight(self.keys)
        return self.weight(keys) / total if total else 0.0
