"""Long texts in pieces, cut where a tokenizer cuts anyway, so that the pieces' ids are those of the whole text.

GPT-2's pre-tokeniser never joins what stands before a single space, or a single line feed, with the white space itself
when neither neighbour is white space; nor a letter with the punctuation after it. A cut just before such a character
changes nothing for it, nor for a tokenizer that scripts/train_tokenizer.py made; the spaces hold for Llama 3's and
Qwen's, too. Not for a tokenizer that puts something before each text, as some of SentencePiece's do: see `cuts_show`.
"""

import codecs
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.tokenizer.tokenizer import Tokenizer

PIECE = 2**16  # characters of a piece at most
# after a letter that has been one in all versions of Unicode, before punctuation that has been that
PUNCTUATION = re.compile(
    r"(?<=[A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3])[,.;:!?，。、；：！？]"
)


def cut_text(text: str) -> Iterator[tuple[str, bool]]:
    """`text` in pieces of at most `PIECE` characters, each with whether it ends where every such cut is harmless."""
    if len(text) <= PIECE:
        yield text, True
        return
    place = 0

    def read(n: int) -> str:
        nonlocal place
        place += n
        return text[place - n : place]

    yield from cut_pieces(read, len(text))


def cut_pieces(read: Callable[[int], str], n: int) -> Iterator[tuple[str, bool]]:
    """The same for the next `n` characters of what `read` gives: it returns as many characters as it is asked for."""
    rest = ""
    while n:
        rest += read(min(PIECE, n) - len(rest))
        if n <= PIECE:
            yield rest, True
            return
        cut, harmless = _last_cut(rest)
        yield rest[:cut], harmless
        rest = rest[cut:]
        n -= cut


def _last_cut(text: str) -> tuple[int, bool]:
    """Where to cut in the second half of `text`, and whether that is harmless."""
    half = len(text) // 2
    for space in " \n":
        place = text.rfind(space, half, -1)
        while place > 0:
            if not text[place - 1].isspace() and not text[place + 1].isspace():
                return place, True
            place = text.rfind(space, half, place)
    places = [match.start() for match in PUNCTUATION.finditer(text, half)]
    return (places[-1], True) if places else (len(text), False)


def survey(path: Path) -> tuple[int, str]:
    """Read a file of UTF-8 once: its number of characters and the sha256 of its bytes, in hex.

    Raises:
        InputError: naming the file and the byte at which it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest, n, place = hashlib.sha256(), 0, 0
    with open(path, "rb") as file:
        while True:
            chunk = file.read(2**20)
            digest.update(chunk)
            kept = len(decoder.getstate()[0])
            try:
                n += len(decoder.decode(chunk, final=not chunk))
            except UnicodeDecodeError as error:
                at = place - kept + error.start
                raise InputError(f"{path} is not UTF-8 at byte {at}; convert it to UTF-8 first.") from None
            place += len(chunk)
            if not chunk:
                return n, digest.hexdigest()


def cuts_show(tokenizer: Tokenizer) -> bool:
    """Whether this tokenizer gives other ids for a text in two pieces, though cut at a single space."""
    whole, first, second = tokenizer.encode_to_numpy(["word word", "word", " word"])
    return whole.tolist() != [*first.tolist(), *second.tolist()]
