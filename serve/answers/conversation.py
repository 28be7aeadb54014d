"""Conversations: the questions of a text, and which earlier ones a question refers to, by their words alone.

A question refers to the one before it if one of these holds:

- It has a pronoun: he, she, it, they and their forms, this, these, those; that after a form of be or do; there, unless
  after a form of be. In Chinese: 他, 她, 它, 这, 那, 其, 此, 该, except in words such as 其他, 因此 and 应该.
- It begins with and, but, or, so, then, also, what about or how about; in Chinese with 还有, 然后 or 另外, or it ends
  with 呢.
- It has fewer than two content words, none of them a capitalised name. In Chinese it has fewer than three characters
  beside function words, numbers and 时候 and 年, and no Latin letter.
"""

from collections.abc import Callable, Sequence

import regex

from embed.text.analysis import normalise
from serve.answers.language import HAN, language_of
from serve.answers.question import answer_type, content_of, without_function_words

MOST_QUESTIONS = 4  # of a text; one with more is more likely a document than a question
MIN_WORDS = 2
MIN_CHARACTERS = 3
# Words of questions that say nothing about their topic: how many, how long, what else
_ASKING = frozenset(["many", "much", "long", "old", "often", "else"])
_ENGLISH = regex.compile(
    r"\b(?:he|him|his|she|hers?|its?|they|them|theirs?|this|these|those)\b"
    r"|\b(?:is|are|was|were|do|does|did) that\b|(?<!\b(?:is|are|was|were) )\bthere\b"
    r"|^\W*(?:and|but|or|so|then|also|what about|how about)\b",
    regex.IGNORECASE,
)
_CHINESE = regex.compile(
    r"(?<![其吉排])[他她它牠](?!人)|[这這]|那|(?<![尤极極])其(?![他她它余餘次实實])|(?<![因如从從由至彼])此(?![外后後])"
    r"|(?<![应應活])[该該]|^\W*(?:还有|還有|然后|然後|另外)|呢\W*$"
)
# After a question mark and closing quotation marks; not within an address, as in http://host?key=value
_END = regex.compile(r"""(?<=[?？]["'”’」』）)]*)(?:\s+|(?=\p{Han}))""")
_CHINESE_ASKING = regex.compile("时候|時候|[一二三四五六七八九十]*年")


def questions_in(text: str) -> list[str]:
    """The questions of a text, each up to its question mark, with what stands before it.

    Text after the last question mark belongs to the last question, and so does a question that asks for nothing, such
    as "Right?", to the one before it. A text with more than `MOST_QUESTIONS` is taken as one.
    """
    questions: list[str] = []
    for piece in _END.split(text.strip()):
        asks = piece.endswith(("?", "？")) and (answer_type(piece) != "any" or content_of(piece))
        if questions and not asks:
            questions[-1] += f" {piece}"
        else:
            questions.append(piece)
    return questions if len(questions) <= MOST_QUESTIONS else [text]


def refers_back(question: str) -> bool:
    """Whether a question refers to the one before it."""
    if language_of(question) == "zh":
        content = _CHINESE_ASKING.sub("", without_function_words(question))
        is_short = len(HAN.findall(content)) < MIN_CHARACTERS and not regex.search("[A-Za-z]", content)
        return is_short or bool(_CHINESE.search(question))
    words = [t for t in content_of(question) if t.word.lower() not in _ASKING]
    is_short = len(words) < MIN_WORDS and not any(t.is_name for t in words)
    return is_short or bool(_ENGLISH.search(normalise(question)))


def earlier(questions: Sequence[str], fits: Callable[[str], bool]) -> str:
    """The text of the earlier questions that the last one refers to; "" if it stands alone.

    These are the questions before it, back to the first that does not refer to the one before it itself.

    Args:
        questions: the questions of a conversation, oldest first.
        fits: whether a text, with the last question at its end, is short enough to be searched for; questions that are
            too long together are left out from the oldest on.
    """
    text = ""
    for place in range(len(questions) - 1, 0, -1):
        longer = f"{questions[place - 1].strip()} {text}".strip()
        if not refers_back(questions[place]) or not fits(f"{longer} {questions[-1]}"):
            break
        text = longer
    return text
