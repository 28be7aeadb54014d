"""Guessing the next tokens by looking them up in what was read and written before.

Prompt lookup decoding (Saxena 2023), speculative decoding (Leviathan et al. 2023) whose draft costs nothing: an answer
that quotes a passage goes on as the passage did.
"""

N_GRAM = 3  # tokens that must recur; with fewer, most guesses are wrong


class Lookup:
    """Where each sequence of `N_GRAM` tokens of a text occurred last."""

    def __init__(self, ids: list[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[
            tuple[int, ...], int
        ] = {}  # n-gram → the place after its last occurrence but this one
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """Append the next token of the text."""
        # Entered when the text goes on from it, so that the end of the text does not find itself.
        if len(self._ids) >= N_GRAM:
            self._after[tuple(self._ids[-N_GRAM:])] = len(self._ids)
        self._ids.append(token)

    def guess(self, n: int) -> list[int]:
        """Up to `n` tokens that followed the last time that the text read as it does at its end; [] if it never did."""
        place = self._after.get(tuple(self._ids[-N_GRAM:]))
        return [] if place is None else self._ids[place : place + n]
