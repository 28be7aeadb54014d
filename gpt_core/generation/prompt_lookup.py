"""Prompt lookup decoding (Saxena 2023): draft the next tokens from earlier occurrences of the last n-gram.

Speculative decoding (Leviathan et al. 2023) without a draft model; it helps where an answer quotes the prompt.
"""

N_GRAM = 3  # tokens that must match; with fewer, most drafts are wrong


class Lookup:
    """An index of where each n-gram of `N_GRAM` tokens occurred last in a text."""

    def __init__(self, ids: list[int]) -> None:
        self._ids: list[int] = []
        # n-gram → position after its last occurrence, without the one at the end of the text
        self._after: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """Append the next token of the text."""
        # An n-gram is indexed only when a token follows it, so the end of the text does not match itself.
        if len(self._ids) >= N_GRAM:
            self._after[tuple(self._ids[-N_GRAM:])] = len(self._ids)
        self._ids.append(token)

    def guess(self, n: int) -> list[int]:
        """Up to `n` tokens that followed the last earlier occurrence of the final n-gram; [] without one."""
        position = self._after.get(tuple(self._ids[-N_GRAM:]))
        return [] if position is None else self._ids[position : position + n]
