"""Incremental detokenization for streaming."""

from collections.abc import Callable, Sequence

# At most this many trailing U+FFFD may still become characters. A character has at most four bytes, but a decoder with
# byte fallback (Llama's) decodes a whole run of byte tokens to U+FFFD while its last character is incomplete.
MAX_UNDECIDED = 16
MAX_INCOMPLETE_TOKENS = 3  # maximum number of tokens of an incomplete character


class Detokenizer:
    """Converts tokens to text one by one and returns text as soon as later tokens cannot change it.

    A token may end inside a character, and text may be the start of a stop string; both are held back until later
    tokens decide. The text of a token can depend on the previous token (e.g. a leading space in SentencePiece), so a
    short window is decoded instead of single tokens, as in text-generation-inference and vLLM. The cost per token
    does not grow with the text.

    Args:
        decode: token ids → text, with U+FFFD for an incomplete character.
        stop: strings that end the text. The first one that is complete ends it; no part of it is returned.
        prompt: the tokens before the text; the last few suffice. A character that starts in the prompt and is
            completed by the text belongs to the text.

    Attributes:
        stopped: whether a stop string was found; no text follows it.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        self.stopped = False
        self._decode = decode
        self._stop = stop
        begin, end = _complete_characters(decode, prompt)
        self._window = list(prompt[begin:])  # the last emitted tokens, then the undecided ones
        self._n_read = end - begin  # number of emitted tokens in the window
        self._read = decode(self._window[: self._n_read])  # their text
        # the prompt's decoded tail; a trailing U+FFFD may still become a character
        self._seen = decode(self._window)
        self._n_emitted = 0  # characters of the undecided tokens that were returned already
        self._held_back = ""  # possibly the start of a stop string

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain now, often ""."""
        self._window.append(token)
        text = self._unread()
        n_undecided = min(len(text) - len(text.rstrip("\ufffd")), MAX_UNDECIDED)
        certain = text[self._n_emitted : len(text) - n_undecided]
        self._n_emitted += len(certain)
        if text and not n_undecided:
            self._window = self._window[self._n_read :]
            self._n_read = len(self._window)
            self._read = self._seen = self._decode(self._window)
            self._n_emitted = 0
        return self._until_stop(certain) if certain else ""

    def flush(self) -> str:
        """Return the text that was held back; call once, after the last token."""
        if self.stopped:
            return ""
        text = self._until_stop(self._unread()[self._n_emitted :])
        return text + self._held_back

    def _unread(self) -> str:
        text = self._decode(self._window)
        seen = self._seen
        while not text.startswith(seen):
            seen = seen[:-1]
        return text[max(len(self._read), len(seen)) :]

    def _until_stop(self, text: str) -> str:
        """Return the part of the held-back and new text that cannot belong to a stop string; hold back the rest."""
        text = self._held_back + text
        self._held_back = ""
        ends = [(text.index(s) + len(s), text.index(s)) for s in self._stop if s in text]
        if ends:
            self.stopped = True
            return text[: min(ends)[1]]
        begun = (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n]))
        certain = len(text) - max(begun, default=0)
        self._held_back = text[certain:]
        return text[:certain]


def _complete_characters(decode: Callable[[list[int]], str], prompt: Sequence[int]) -> tuple[int, int]:
    """Slice (begin, end) of a prompt's last tokens that decodes to complete characters.

    With byte fallback, half a character at the start would keep the whole window undecodable; half a character at the
    end may be completed by the text.
    """
    n = len(prompt)
    for begin in range(min(MAX_INCOMPLETE_TOKENS, n) + 1):
        for end in range(n, max(begin, n - MAX_INCOMPLETE_TOKENS - 1), -1):
            text = decode(list(prompt[begin:end]))
            if text and text[0] != "\ufffd" != text[-1]:
                return begin, end
    return 0, max(0, n - MAX_INCOMPLETE_TOKENS)  # no such slice
