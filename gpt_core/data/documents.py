"""A document in pieces, each with its split and the position after it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from gpt_core.common.errors import InputError
from gpt_core.data.text_pieces import BYTE_ORDER_MARK, cut_text

Position = dict[str, Any]  # where reading resumes, as JSON
OnBadRow = Literal["stop", "skip"]  # what to do with a row that cannot be used


@dataclass(frozen=True)
class Split:
    """How documents are divided into training and validation.

    Attributes:
        fraction: the share for validation.
        inside: divide the text of each document, the end of which is for validation. Otherwise a document whose `hash`
            is below `fraction` is for validation, so that equal texts are always in the same split.
        moved: hash of the document that is in the other split, which would be empty.
    """

    fraction: float = 0
    inside: bool = False
    moved: float | None = None

    def parts(self, n: int, hash: float) -> dict[str, int]:
        """Where the part of each split ends in a document of `n` characters."""
        if not self.inside:
            return {"val" if (hash < self.fraction) != (hash == self.moved) else "train": n}
        if n < 2:
            return {"train": n}
        least = min(2, n // 2)
        return {"train": min(max(int(n * (1 - self.fraction)), least), n - least), "val": n}

    def filling(self, empty: str, lengths: dict[float, int]) -> "Split | None":
        """A division that gives text to the split `empty`; None if there is too little text.

        Of several documents, the one whose length is nearest to the split's share is moved; a single one is divided.

        Args:
            empty: "train" or "val".
            lengths: tokens of the documents by hash; one of less than 2 tokens cannot fill a split.
        """
        fit = {hash: n for hash, n in lengths.items() if n >= 2}
        if self.inside or not fit:
            return None
        if len(fit) == 1:
            return replace(self, inside=True)
        wanted = (self.fraction if empty == "val" else 1 - self.fraction) * sum(lengths.values())
        return replace(self, moved=min(fit, key=lambda hash: abs(fit[hash] - wanted)))


TRAIN_ONLY = Split()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of one document; the following pieces belong to the same document until a piece `ends` it.

    Attributes:
        text: at most `text_pieces.PIECE_CHARACTERS` characters; empty for an empty document.
        split: "train" or "val".
        ends: whether the document ends with this piece.
        harmless: whether the cut at this piece's end leaves the token ids unchanged.
        done: amount of the source read so far, in the source's unit.
        position: where reading resumes after this piece; None if it cannot resume here.
        hash: of the whole document's text, from 0 to 1.
        fault: of a row that is skipped: why it cannot be used; then `text` is empty.
    """

    text: str
    split: str
    ends: bool
    harmless: bool
    done: int
    position: Position | None
    hash: float
    fault: str = ""


def row_pieces(
    place: str,
    text: str | InputError,
    on_bad_row: OnBadRow,
    split: Split,
    done: int,
    after: Position | None,
) -> Iterator[Piece]:
    """A row in pieces.

    Args:
        place: the row's location for messages.
        text: its text, or why it cannot be used.
        on_bad_row: what to do with a row that cannot be used.
        split: how documents are divided.
        done: amount of the source read so far.
        after: the position after the row; None if reading cannot resume there.

    Raises:
        InputError: for a row that cannot be used, unless such rows are skipped.
    """
    text = text.removeprefix(BYTE_ORDER_MARK) if isinstance(text, str) else text
    digest = _digest(place, text) if isinstance(text, str) else text
    if isinstance(digest, InputError):
        if on_bad_row == "stop":
            raise InputError(f"{digest} Mend the row, or skip such rows with --on_bad_row skip.")
        yield Piece("", "train", True, True, done, after, 0, str(digest))
        return
    assert isinstance(text, str)
    hash, begin = from_0_to_1(digest), 0
    for name, end in split.parts(len(text), hash).items():
        for piece, harmless in cut_text(text[begin:end]):
            begin += len(piece)
            position = after if begin == len(text) else None
            yield Piece(piece, name, begin == end, harmless, done, position, hash)


def _digest(place: str, text: str) -> str | InputError:
    """The sha256 of the text in hex; the InputError of a text that UTF-8 cannot encode."""
    digest = hashlib.sha256()
    try:
        for start in range(0, len(text), 2**20):  # in parts, to bound memory for long texts
            digest.update(text[start : start + 2**20].encode())
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        return InputError(
            f"{place}: the text holds {half}, half of a surrogate pair; replace or remove it first."
        )
    return digest.hexdigest()


def from_0_to_1(digest: str) -> float:
    """A hexadecimal digest as a number from 0 to 1."""
    return int(digest[:16], 16) / 2**64
