"""Split documents into overlapping passages of at most max_tokens tokens, at paragraph, sentence or word ends."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from embed.text.sentences import sentence_ends
from gpt_core.common.errors import InputError
from gpt_core.tokenizer.tokenizer import Tokenizer
from index.reading.document import Document

PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n")
WORD_END = re.compile(r"\s")
NOT_SPACE = re.compile(r"\S")
MIN_MAX_TOKENS = 16  # lower limit of max_tokens: a single character can take several tokens


@dataclass(frozen=True)
class Passage:
    """A part of a document: `document.text[start:end] == text`, offsets in Unicode code points."""

    doc_id: str
    start: int
    end: int
    text: str

    @property
    def id(self) -> str:
        """`<document id>#<start>-<end>`; equal for equal text and equal split settings."""
        return passage_id(self.doc_id, self.start, self.end)


def passage_id(doc_id: str, start: int, end: int) -> str:
    """The id of a passage: `<document id>#<start>-<end>`."""
    return f"{doc_id}#{start}-{end}"


def check_lengths(max_tokens: int, overlap: int) -> None:
    """Raise InputError unless these are valid arguments of `split`."""
    if max_tokens < MIN_MAX_TOKENS:
        raise InputError(f"max_tokens is {max_tokens}; expected at least {MIN_MAX_TOKENS}.")
    if not 0 <= overlap <= max_tokens // 2:
        raise InputError(f"overlap is {overlap}; expected 0 to {max_tokens // 2}, half of max_tokens.")


def split(
    document: Document, tokenizer: Tokenizer, max_tokens: int = 256, overlap: int = 32
) -> Iterator[Passage]:
    """Split a document into passages, lazily.

    A passage ends at the last paragraph end in its last quarter, else at the last sentence end, else at the last word
    end; text without any of these is split between tokens. The next passage begins at most `overlap` tokens earlier, at
    a sentence or word start if there is one. Passages do not begin or end with white space, and every other character
    is in at least one passage. A document that has only a title gives one empty passage.

    Args:
        document: the document.
        tokenizer: the embedder's tokenizer, for counting tokens.
        max_tokens: maximum tokens of a passage's text; at least 16.
        overlap: maximum tokens that neighbouring passages share; at most half of `max_tokens`.

    Raises:
        InputError: for `max_tokens` or `overlap` out of range.
    """
    check_lengths(max_tokens, overlap)
    text = document.text
    start = fresh = _skip_space(text, 0)  # fresh: offset of the first character that is in no passage yet
    if start == len(text) and document.title.strip():
        yield Passage(document.id, 0, 0, "")
    n_characters = (
        4 * max_tokens
    )  # tokenised at once; tokenising all of a long document would take much memory
    while fresh < len(text):
        window = text[start : start + n_characters]
        starts = [begin for begin, _ in tokenizer.encode_with_offsets(window)[1]] or [0]
        at_end = start + len(window) == len(text)
        if len(starts) <= max_tokens and not at_end and n_characters < 64 * max_tokens:
            n_characters *= 2
            continue
        n_characters = max(max_tokens, len(window) * 3 * max_tokens // (2 * len(starts)))
        length = _length(window, starts, fresh - start, max_tokens, at_end, tokenizer)
        piece = window[:length].rstrip()
        yield Passage(document.id, start, start + len(piece), piece)
        fresh = _skip_space(text, start + len(piece))
        start = _skip_space(text, start + _step(window, starts, len(piece), fresh - start, overlap))


def _skip_space(text: str, start: int) -> int:
    match = NOT_SPACE.search(text, start)
    return match.start() if match else len(text)


def _length(
    window: str, starts: list[int], fresh: int, max_tokens: int, at_end: bool, tokenizer: Tokenizer
) -> int:
    """Length of the passage at the start of `window`, in characters; at least `fresh` + 1."""
    n_tokens = max_tokens
    while True:
        if at_end and len(starts) <= n_tokens:
            length = len(window)
        else:
            # The start of the first excluded token: a character of several tokens is never split.
            limit = starts[n_tokens] if n_tokens < len(starts) else starts[-1]
            least = max(starts[min(n_tokens, len(starts)) * 3 // 4], fresh)
            length = _boundary_before(window, least, max(limit, fresh + 1))
        # Some tokenizers split a text's last word differently from the same word inside a text.
        excess = len(tokenizer.encode(window[:length].rstrip())) - max_tokens
        if excess <= 0 or n_tokens == 1:
            return length
        n_tokens = max(1, min(n_tokens, len(starts)) - excess)


def _boundaries(text: str) -> Iterator[list[int]]:
    """Offsets at which a passage may end, ascending: at first of paragraphs, then of sentences, then of words."""
    yield [match.end() for match in PARAGRAPH_END.finditer(text)]
    yield sentence_ends(text)
    yield [match.end() for match in WORD_END.finditer(text)]


def _boundary_before(window: str, least: int, limit: int) -> int:
    """The last of the most preferred boundaries after `least` and up to `limit`; `limit` if there is none."""
    for ends in _boundaries(window):
        n_before = bisect_right(ends, limit)
        if n_before and ends[n_before - 1] > least:
            return ends[n_before - 1]
    return limit


def _step(window: str, starts: list[int], end: int, fresh: int, overlap: int) -> int:
    """Offset in `window` at which the passage after the one up to `end` begins; `fresh` is its first new character."""
    earliest = starts[max(bisect_left(starts, fresh) - overlap, 0)] if overlap else fresh
    for ends in islice(_boundaries(window[:end]), 1, None):  # not at paragraphs
        first = bisect_left(ends, max(earliest, 1))
        if first < len(ends) and ends[first] < end:
            return ends[first]
    return max(earliest, 1) if earliest < end else fresh
