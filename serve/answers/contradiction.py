"""Contradictions: what makes a sentence false although most of its words are in a source.

Word overlap cannot tell "the drug is safe" from "the drug is not safe". These checks look at the words that carry the
difference: negators, opposites, numbers with their scale and unit, bounds ("below 5"), and the order of two names or
numbers. They are for English; `serve.answers.contradiction_zh` has those for Chinese.
"""

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from embed.text.content_terms import Term, content_terms
from serve.answers.quantities import UNITS, WORDS_OF, Quantity, quantities

NEGATORS = frozenset(
    (
        *("not", "no", "never", "nor", "neither", "none", "nothing", "nowhere", "without", "non", "hardly"),
        *(
            "scarcely",
            "barely",
            "rarely",
            "seldom",
            "fail",
            "fails",
            "failed",
            "refuse",
            "refuses",
            "refused",
        ),
        *("lack", "lacks", "lacked"),
        "nobody",  # codespell:ignore nobody
    )
)
NEGATING_PHRASES = frozenset((("far", "from"), ("anything", "but")))
BEFORE_NO = frozenset(("in", "by", "at", "on", "under"))  # in no way: "no" negates the verb, not the noun
NOT_NEGATED = frozenset(("only", "just", "merely", "simply"))  # "not only A but also B" asserts A
OPENERS = frozenset(  # capitalised at the beginning of a sentence, and no names
    (
        *("yes", "no", "according", "additionally", "furthermore", "moreover", "however", "therefore"),
        *("thus", "hence", "overall", "finally", "unfortunately", "based", "similarly", "likewise"),
        *("consequently", "specifically", "generally", "typically", "usually", "today", "currently"),
    )
)
# Words of one side of a slash say the opposite of those of the other side.
_OPPOSITES = (
    "more most/less least fewer fewest|many/few|above over/below under beneath|inside/outside|"
    "up upward/down downward|"
    "increase rise rose risen grow grew growth gain/decrease fall fell fallen decline drop shrink shrank loss|"
    "expand/contract shrink|gain gained win won/lose lost|raise/lower|improve/worsen deteriorate|"
    "strengthen/weaken|higher high/lower low|highest/lowest|larger large bigger big/smaller small little|"
    "largest biggest/smallest|greater great/lesser small|greatest/least smallest|longer long/shorter short|"
    "longest/shortest|major/minor|majority/minority|maximum/minimum|"
    "strong stronger strongest/weak weaker weakest|fast faster fastest/slow slower slowest|"
    "better good/worse bad|best/worst|old older/young younger new|oldest/youngest newest|"
    "wide wider broad/narrow narrower|heavy heavier/light lighter|rich wealthy richer/poor poorer|"
    "hot warm warmer hotter/cold cool cooler colder|deep deeper/shallow|thick/thin|upper/lower|"
    "internal/external|interior/exterior|often frequently usually always/rarely seldom sometimes never|"
    "common/rare uncommon|easy easier simple/difficult hard harder|positive/negative|accept/reject refuse|"
    "allow permit/forbid prohibit ban|success/failure|succeed/fail|rapid/gradual slow|dense/sparse|"
    "abundant/scarce|full/empty|open/close|same/different|true/false|support/oppose|include/exclude|"
    "begin begun began start/end finish stop|beginning start/end|before/after|earlier early/later late|"
    "earliest/latest|until/since|previous prior preceding/subsequent following next|"
    "previously/subsequently later|precede/follow|first/last|initial/final|initially/finally|"
    "predecessor/successor|ancient old/modern new recent|past/future|former/latter|"
    "north northern/south southern|east eastern/west western|left/right|male/female|import/export|"
    "victory/defeat|with/without|buy bought/sell sold|enter/leave left|attack/defend|all/some none|"
    "public/private|urban/rural|day/night"
)
PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "anti")
# Words between members of an enumeration, whose order means nothing
CONJUNCTIONS = frozenset(("and", "or", "with"))


@dataclass(frozen=True)
class Statement:
    """A sentence, a question or a title: its text and terms, and what the checks read from them."""

    text: str
    terms: Sequence[Term]

    @functools.cached_property
    def words(self) -> list[str]:
        """The terms' words in lower case."""
        return [t.word.lower() for t in self.terms]

    @functools.cached_property
    def keys(self) -> Counter[str]:
        """The number of times that each key occurs."""
        return Counter(t.key for t in self.terms)

    @functools.cached_property
    def quantities(self) -> list[Quantity]:
        """The numbers, in digits or words."""
        return quantities(self.terms)

    @functools.cached_property
    def polarities(self) -> tuple[Counter[str], Counter[str]]:
        """The content words that are asserted, and those that are negated."""
        return _polarities(self.terms, self.words)


def missing(answer: Statement, question: Statement, source: Sequence[Statement]) -> bool:
    """Whether the answer has a number, a number's unit or bound, or a negation that no sentence of the source has.

    What the answer repeats from the question need not be in the source: number words, units and bounds.
    """
    held = [q for sentence in source for q in sentence.quantities]
    asked_words = set(question.words)
    for quantity in answer.quantities:
        same = [q for q in held if q.value == quantity.value]
        is_asked = any(q.value == quantity.value for q in question.quantities)
        if not same:
            if quantity.in_digits or not is_asked:
                return True
            continue
        units = {q.unit for q in same}
        if quantity.unit and quantity.unit not in units:
            is_new = all(UNITS.get(word) != quantity.unit for word in asked_words)
            if "" not in units or (is_new and all(q.unit != quantity.unit for q in held)):
                return True
        bound = quantity.bound
        if bound and all(q.bound != bound for q in same) and (is_asked or not asked_words & WORDS_OF[bound]):
            return True
    return _has_negator(answer) and not any(_has_negator(sentence) for sentence in source)


def conflicts(answer: Statement, source: Statement) -> bool:
    """Whether a sentence says the opposite of a word of the answer, or has two of its names or numbers exchanged."""
    return (
        _negation_differs(answer, source)
        or _opposed(answer, source)
        or _exchanged(answer.terms, source.terms)
    )


def opposite(ours: tuple[int, int], theirs: tuple[int, int]) -> bool:
    """Whether one side asserts what the other negates, by the numbers of times that they assert and negate a word."""
    if not any(ours) or not any(theirs):
        return False
    (asserted, negated), (source_asserted, source_negated) = ours, theirs
    is_disjoint = not (asserted and source_asserted) and not (negated and source_negated)
    return is_disjoint or (asserted - source_asserted) * (negated - source_negated) < 0


def _has_negator(statement: Statement) -> bool:
    return bool(statement.polarities[1])


def _polarities(terms: Sequence[Term], lower: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """The content words that are asserted, and those that are negated: with an odd number of negators before them."""
    asserted: Counter[str] = Counter()
    negated: Counter[str] = Counter()
    is_negated = False
    words = ["", "", *lower]
    for place, term in enumerate(terms):
        before_no, before, word = words[place : place + 3]
        is_adverbial = before == "no" and (before_no in BEFORE_NO or word == "longer")
        is_item_number = word == "no" and place + 1 < len(terms) and terms[place + 1].is_number  # No. 5
        if (word in NEGATORS and not is_item_number) or (before, word) in NEGATING_PHRASES:
            is_negated = not is_negated
        elif is_negated and word in NOT_NEGATED:
            is_negated = False
        elif not (term.is_function or is_adverbial):
            (negated if is_negated else asserted)[term.key] += 1
            is_negated = False
    if is_negated:
        negated[""] += 1
    return asserted, negated


def _negation_differs(answer: Statement, source: Statement) -> bool:
    (asserted, negated), (source_asserted, source_negated) = answer.polarities, source.polarities
    return any(
        opposite((asserted[key], negated[key]), (source_asserted[key], source_negated[key]))
        for key in negated | source_negated
    )


@functools.cache
def _opposites() -> dict[str, frozenset[str]]:
    """The key of a word → the keys of its opposites."""
    sides = [side for line in _OPPOSITES.split("|") for side in line.split("/")]
    keys = [[t.key for t in terms] for terms in content_terms(sides)]
    opposites: dict[str, set[str]] = defaultdict(set)
    for one, other in zip(keys[::2], keys[1::2], strict=True):
        for key in one:
            opposites[key].update(other)
        for key in other:
            opposites[key].update(one)
    return {key: frozenset(others) for key, others in opposites.items()}


def _opposed(answer: Statement, source: Statement) -> bool:
    """Whether the answer has a word more often than the source, which has one of its opposites more often."""
    more, fewer = answer.keys - source.keys, source.keys - answer.keys
    opposites = _opposites()
    for against in (opposites.get(key, frozenset()) for key in more):
        if (
            against & fewer.keys() and not against & more.keys()
        ):  # both "east" and "west" for "eastern and western"
            return True
    ours, theirs = _long_words(answer, more), _long_words(source, fewer)
    return any(p + w in theirs for w in ours for p in PREFIXES) or any(
        p + w in ours for w in theirs for p in PREFIXES
    )


def _long_words(statement: Statement, keys: Container[str]) -> set[str]:
    """The words with one of `keys` that are long enough to tell them from a word with a prefix."""
    pairs = zip(statement.terms, statement.words, strict=True)
    return {word for term, word in pairs if term.key in keys and len(word) > 3}


def _exchanged(answer: Sequence[Term], source: Sequence[Term]) -> bool:
    """Whether two names, or two numbers, stand in each other's places.

    They do if they have the reverse order in the source, with the words between them and a word beside them the same.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, term in enumerate(source):
        places[term.key].append(place)
    for i, j in _pairs(answer):
        one, other = answer[i].key, answer[j].key
        between = [t.key for t in answer[i + 1 : j] if not _is_mark(t)]
        if one == other or CONJUNCTIONS.issuperset(between):  # an enumeration
            continue
        if any(p < q for p in places[one] for q in places[other]):
            continue
        for q, p in itertools.product(places[other], places[one]):
            beside = _beside(answer, i, -1) == _beside(source, q, -1) or _beside(answer, j, 1) == _beside(
                source, p, 1
            )
            if beside and _is_subsequence(between, [t.key for t in source[q + 1 : p]]):
                return True
    return False


def _is_mark(term: Term) -> bool:
    return term.is_number or term.word[:1].isupper()


def _beside(terms: Sequence[Term], place: int, step: int) -> str:
    """The nearest word on one side that is neither name nor number, or ""."""
    place += step
    while 0 <= place < len(terms) and _is_mark(terms[place]):
        place += step
    return terms[place].key if 0 <= place < len(terms) else ""


def _pairs(terms: Sequence[Term]) -> Iterator[tuple[int, int]]:
    """The places of two names or of two numbers."""
    marks = [place for place, term in enumerate(terms) if _is_mark(term)]
    return ((i, j) for i, j in itertools.combinations(marks, 2) if terms[i].is_number == terms[j].is_number)


def _is_subsequence(keys: Sequence[str], of: Sequence[str]) -> bool:
    remaining = iter(of)
    return all(key in remaining for key in keys)
