"""Sentence boundaries in prose of many scripts, Markdown and reStructuredText."""

import re

# Candidate sentence ends. A Western mark is confirmed or rejected by its context (`_is_boundary`).
_END = re.compile(
    # A mark of these scripts always ends a sentence, without a space: Chinese, Arabic and Urdu, Devanagari and other
    # scripts of India, Burmese, Khmer, Ethiopic, Armenian, Tibetan
    r"(?:[。！？؟۔।॥။៕។።፧፨։།༎]|．(?!\d))+[”’」』）》】»\"]*"
    r"|[.!?…]+[\"'”’)\]`*]*(?=\s|$)"  # a Western mark only before white space: not inside 3.14, sys.path or v1.2
    r"|\n[ \t]*\n"  # a blank line
    r"|\n(?=[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t])"  # the next item of a list
)
_NOT_SPACE = re.compile(r"\S")
_OPENING = "([\"'“‘"
_ITEM_NUMBER = re.compile(r"\d{1,3}|[A-Za-z]")
_BEFORE_NAMES = (
    "al approx cf dept dr eds eg eq est figs gen gov ie mr mrs ms mt pp prof ref rev sgt st viz vs"
)
_BEFORE_NUMBERS = (
    "art b c ca ch d eq fig fl jan feb mar apr jun jul aug sep sept oct nov dec no nos op p pt r sec vol"
)
_ABBREVIATIONS = frozenset(_BEFORE_NAMES.split())
_NUMBERED = frozenset(_BEFORE_NUMBERS.split())


def sentence_ends(text: str) -> list[int]:
    """Offsets in code points at which a sentence of `text` ends, in ascending order; without the end of the text.

    Abbreviations, initials, decimals, dotted names and item numbers ("2. Install") do not end a sentence; a blank line
    and a new list item do.
    """
    return [m.end() for m in _END.finditer(text) if _is_boundary(text, m)]


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Spans (start, end) of the sentences of `text` in code points, in order, without surrounding white space.

    The text is cut at `sentence_ends`. Every character that is not white space belongs to exactly one span.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for end in [*sentence_ends(text), len(text)]:
        sentence = text[start:end]
        if stripped := sentence.strip():
            left = start + len(sentence) - len(sentence.lstrip())
            spans.append((left, left + len(stripped)))
        start = end
    return spans


def _is_boundary(text: str, end: re.Match[str]) -> bool:
    mark = end.group()
    if mark[0] not in ".!?…":
        return True
    after = _NOT_SPACE.search(text, end.end())
    following = after.group() if after else ""
    if following.islower():
        return False
    if mark[0] != "." or len(mark.rstrip("\"'”’)]`*")) > 1:
        return True
    line_start = text.rfind("\n", 0, end.start()) + 1
    start = end.start()  # of the word before the mark
    while start > line_start and not (text[start - 1].isspace() or text[start - 1] in _OPENING):
        start -= 1
    word = text[start : end.start()]
    is_initial = len(word) == 1 and word.isupper()
    is_item_number = bool(_ITEM_NUMBER.fullmatch(word)) and not text[line_start:start].strip()
    short = word.lower().replace(".", "")
    is_abbreviation = short in _ABBREVIATIONS or (short in _NUMBERED and following.isdigit())
    return not (is_initial or is_item_number or is_abbreviation)
