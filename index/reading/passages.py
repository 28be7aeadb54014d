"""Split documents into overlapping passages of at most max_tokens tokens, at headings, paragraphs and sentences."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import regex

from embed.text.sentences import sentence_ends
from gpt_core.common.errors import InputError
from gpt_core.tokenizer.tokenizer import Tokenizer
from index.reading.document import Document, passage_id
from index.reading.layout import Layout

PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n")
LINE_END = re.compile(r"\n")
WORD_END = re.compile(r"\s")
NOT_SPACE = re.compile(r"\S")
GRAPHEME = regex.compile(r"\X")
LONGEST_GRAPHEME = 64  # code points; a family of emoji has about ten
MOST_CHARACTERS = (
    16  # of a token, on average; a longer table or piece of code is taken to be too long for a passage
)
MIN_MAX_TOKENS = 16  # lower limit of max_tokens: a single character can take several tokens


@dataclass(frozen=True)
class Passage:
    """A part of a document: `document.text[start:end] == text`, offsets in Unicode code points.

    `headings` are those of the section in which it begins, the outermost first.
    """

    doc_id: str
    start: int
    end: int
    text: str
    headings: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """`<document id>#<start>-<end>`; equal for equal text and equal split settings."""
        return passage_id(self.doc_id, self.start, self.end)


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

    A passage ends before the last heading in its second half, else at the last paragraph end in its last quarter, else
    at the last sentence end there, else at the last word end; text without any of these is split between tokens, but
    never inside a grapheme. A table or a piece of code that fits into a passage is not divided: the passage ends before
    it. A longer one is divided at the ends of lines. The next passage begins at most `overlap` tokens earlier, at a
    sentence or word start if there is one; before a heading, a table and code there is no overlap. Passages do not
    begin or end with white space, and every other character is in at least one passage. A document that has only a
    title gives one empty passage.

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
    divider = _Divider(text, Layout.of(text), tokenizer, max_tokens)
    # Characters tokenised at once; tokenising all of a long document would take much memory.
    n_characters = 4 * max_tokens
    while fresh < len(text):
        window = text[start : start + n_characters]
        starts = [begin for begin, _ in tokenizer.encode_with_offsets(window)[1]] or [0]
        at_end = start + len(window) == len(text)
        if len(starts) <= max_tokens and not at_end and n_characters < 64 * max_tokens:
            n_characters *= 2
            continue
        n_characters = max(max_tokens, len(window) * 3 * max_tokens // (2 * len(starts)))
        length = divider.length(start, window, starts, fresh - start)
        piece = window[:length].rstrip()
        yield Passage(document.id, start, start + len(piece), piece, divider.layout.path(start))
        end, fresh = start + len(piece), _skip_space(text, start + len(piece))
        start = _skip_space(text, divider.next_start(start, window, starts, end, fresh, overlap))


def _skip_space(text: str, start: int) -> int:
    match = NOT_SPACE.search(text, start)
    return match.start() if match else len(text)


@dataclass(frozen=True)
class _Divider:
    """Decides where the passages of a text end and begin. `at` is the offset in the text of a window of it."""

    text: str
    layout: Layout
    tokenizer: Tokenizer
    max_tokens: int

    def length(self, at: int, window: str, starts: list[int], fresh: int) -> int:
        """Length of the passage at the start of `window`, in characters; at least `fresh` + 1.

        `starts` are the offsets of the window's tokens.
        """
        at_end = at + len(window) == len(self.text)
        n_tokens = self.max_tokens
        while True:
            if at_end and len(starts) <= n_tokens:
                length = len(window)
            else:
                # The start of the first excluded token: a character of several tokens is never split.
                limit = max(starts[n_tokens] if n_tokens < len(starts) else starts[-1], fresh + 1)
                half, least = (max(starts[min(n_tokens, len(starts)) * n // 4], fresh) for n in (2, 3))
                length = self._end(at, window, fresh, half, least, limit)
            # Some tokenizers split a text's last word differently from the same word inside a text.
            excess = len(self.tokenizer.encode(window[:length].rstrip())) - self.max_tokens
            if excess <= 0 or n_tokens == 1:
                return length
            n_tokens = max(1, min(n_tokens, len(starts)) - excess)

    def _end(self, at: int, window: str, fresh: int, half: int, least: int, limit: int) -> int:
        """Where the passage ends: before a heading behind `half`, or at a boundary behind `least`; at most `limit`."""
        heading = self.layout.last_heading(at + half, at + limit)
        if heading is not None:
            return heading - at
        cut = self.layout.around(at + limit)
        if cut and cut[0] - at > fresh and self._fits(*cut):
            return cut[0] - at
        levels = [[match.end() for match in PARAGRAPH_END.finditer(window)], sentence_ends(window)]
        if cut:
            levels[1] = [match.end() for match in LINE_END.finditer(window)]
        levels.append([match.end() for match in WORD_END.finditer(window)])
        for ends in levels:
            for end in reversed(ends[bisect_right(ends, least) : bisect_right(ends, limit)]):
                if self.layout.around(at + end) in (None, cut):
                    return end
        return _last_grapheme(window, fresh, limit)

    def _fits(self, start: int, end: int) -> bool:
        """Whether text[start:end] fits into a passage."""
        is_short = end - start <= MOST_CHARACTERS * self.max_tokens
        return is_short and len(self.tokenizer.encode(self.text[start:end])) <= self.max_tokens

    def next_start(self, at: int, window: str, starts: list[int], end: int, fresh: int, overlap: int) -> int:
        """Where the passage begins that follows the one up to `end`; `fresh` is its first new character."""
        if not overlap or self.layout.begins_at(fresh):
            return fresh
        earliest = starts[max(bisect_left(starts, fresh - at) - overlap, 0)]
        before = window[: end - at]
        inside = self.layout.around(fresh)
        words = [match.end() for match in (LINE_END if inside else WORD_END).finditer(before)]
        for ends in ([] if inside else sentence_ends(before), words):
            for begin in ends[bisect_left(ends, max(earliest, 1)) :]:
                if at + begin < end and self.layout.around(at + begin) in (None, inside):
                    return at + begin
        if inside or self.layout.around(at + earliest):
            return fresh
        begins = (start for start in _graphemes(before) if start >= max(earliest, 1))
        return at + next(begins, fresh - at)


def _graphemes(text: str) -> Iterator[int]:
    """Where the graphemes of a text start."""
    return (match.start() for match in GRAPHEME.finditer(text))


def _last_grapheme(window: str, fresh: int, limit: int) -> int:
    """The last start of a grapheme behind `fresh`, at most `limit`; `limit` if there is none."""
    starts = _graphemes(window[: limit + LONGEST_GRAPHEME])
    return max((start for start in starts if fresh < start <= limit), default=limit)
