"""Cut long texts into pieces at pre-token boundaries, so that the pieces have the ids of the whole text.

GPT-2's pre-tokenizer always splits before a single space or line feed between two characters that are not white space,
and between a letter and the punctuation after it. Cuts there do not change the ids of GPT-2's tokenizer or of one made
by scripts/train_tokenizer.py; cuts before spaces do not change those of Llama 3's and Qwen's either. Tokenizers that
prepend a character to each text, as some of SentencePiece's do, give other ids: see `cuts_change_ids`.
"""

import codecs
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.tokenizer.tokenizer import Tokenizer

PIECE_CHARACTERS = 2**16  # maximum length of a piece
BYTE_ORDER_MARK = "\ufeff"  # Windows programs write it at the start of a file; it is not part of the text
# Only letters and punctuation that have these categories in all versions of Unicode
PUNCTUATION = re.compile(
    r"(?<=[A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3])[,.;:!?，。、；：！？]"
)


def cut_text(text: str) -> Iterator[tuple[str, bool]]:
    """`text` in pieces of at most `PIECE_CHARACTERS`, each with whether the cut at its end leaves the ids unchanged."""
    if len(text) <= PIECE_CHARACTERS:
        yield text, True
        return
    place = 0

    def read(n: int) -> str:
        nonlocal place
        place += n
        return text[place - n : place]

    yield from cut_pieces(read, len(text))


def cut_pieces(read: Callable[[int], str], n: int) -> Iterator[tuple[str, bool]]:
    """As `cut_text`, for the next `n` characters of a stream; `read(k)` returns exactly k characters."""
    rest = ""
    while n:
        rest += read(min(PIECE_CHARACTERS, n) - len(rest))
        if n <= PIECE_CHARACTERS:
            yield rest, True
            return
        cut, harmless = _last_cut(rest)
        yield rest[:cut], harmless
        rest = rest[cut:]
        n -= cut


def _last_cut(text: str) -> tuple[int, bool]:
    """Position of the cut in the second half of `text`, and whether it leaves the ids unchanged."""
    half = len(text) // 2
    for space in " \n":
        place = text.rfind(space, half, -1)
        while place > 0:
            if not text[place - 1].isspace() and not text[place + 1].isspace():
                return place, True
            place = text.rfind(space, half, place)
    places = [match.start() for match in PUNCTUATION.finditer(text, half)]
    return (places[-1], True) if places else (len(text), False)


def scan_utf8(path: Path) -> tuple[int, str, int]:
    """Read a UTF-8 file once.

    Returns:
        The number of characters and the sha256 of the bytes in hex, both without a byte order mark at the start, and
        the mark's number of bytes: 3, or 0 without one.

    Raises:
        InputError: naming the file and the first byte that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest, n = hashlib.sha256(), 0
    with open(path, "rb") as file:
        place = mark = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(mark)
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
                return n, digest.hexdigest(), mark


def cuts_change_ids(tokenizer: Tokenizer) -> bool:
    """Whether this tokenizer gives other ids for a text in two pieces that is cut before a single space."""
    whole, first, second = tokenizer.encode_to_numpy(["word word", "word", " word"])
    return whole.tolist() != [*first.tolist(), *second.tolist()]
