"""From tokens to text while the tokens are still coming."""

from collections.abc import Callable, Sequence

# So many U+FFFD at the end may still become characters. One character has at most four bytes, but a decoder that falls
# back on bytes (Llama's) turns the whole run of them, with the characters before, into U+FFFD while one is incomplete.
UNDECIDED = 16
MOST = 3  # tokens of a character that is not complete


class Detokenizer:
    """Gives out text as soon as it is certain, and no sooner.

    A token may end in the middle of a character, and text may turn out to be the beginning of a stop string;
    both are held back until more tokens decide. What a token decodes to can depend on the one before (in
    SentencePiece vocabularies a leading space does), so a short window is decoded instead of single tokens,
    after text-generation-inference and vLLM: the cost of a token does not grow with the text.

    Args:
        decode: token ids → text, an incomplete character becoming U+FFFD.
        stop: strings that end the text. The first to be completed ends it, and no part of it is given out.
        prompt: the tokens that the text continues; the last few suffice. A character that they only begin is part of
            the text.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        self.stopped = False  # a stop string was met; nothing comes after it
        self._decode = decode
        self._stop = stop
        begin, end = _whole(decode, prompt)
        self._window = list(prompt[begin:])  # what was read last, then what is not decided yet
        self._n_read = end - begin
        self._read = decode(self._window[: self._n_read])
        self._seen = decode(self._window)  # of the prompt: at its end U+FFFD may stay or become a character
        self._n_given = 0  # characters of what is not decided yet that were certain all the same
        self._held = ""  # may be the beginning of a stop string

    def push(self, token: int) -> str:
        """Take one more token; return the text that is certain now, often ""."""
        self._window.append(token)
        text = self._unread()
        n_undecided = min(len(text) - len(text.rstrip("\ufffd")), UNDECIDED)
        certain = text[self._n_given : len(text) - n_undecided]
        self._n_given += len(certain)
        if text and not n_undecided:
            self._window = self._window[self._n_read :]
            self._n_read = len(self._window)
            self._read = self._seen = self._decode(self._window)
            self._n_given = 0
        return self._until_stop(certain) if certain else ""

    def flush(self) -> str:
        """Return what was held back; to be called once, when no token follows."""
        if self.stopped:
            return ""
        text = self._until_stop(self._unread()[self._n_given :])
        return text + self._held

    def _unread(self) -> str:
        text = self._decode(self._window)
        seen = self._seen
        while not text.startswith(seen):
            seen = seen[:-1]
        return text[max(len(self._read), len(seen)) :]

    def _until_stop(self, text: str) -> str:
        """Return what of the held and the new text can no longer belong to a stop string; hold the rest."""
        text = self._held + text
        self._held = ""
        ends = [(text.index(s) + len(s), text.index(s)) for s in self._stop if s in text]
        if ends:
            self.stopped = True
            return text[: min(ends)[1]]
        begun = (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n]))
        certain = len(text) - max(begun, default=0)
        self._held = text[certain:]
        return text[:certain]


def _whole(decode: Callable[[list[int]], str], prompt: Sequence[int]) -> tuple[int, int]:
    """Where in a prompt's last tokens whole characters begin and end.

    A decoder that falls back on bytes would never get over half a character at the beginning, and what is half a
    character at the end may become a whole one.
    """
    n = len(prompt)
    for begin in range(min(MOST, n) + 1):
        for end in range(n, max(begin, n - MOST - 1), -1):
            text = decode(list(prompt[begin:end]))
            if text and text[0] != "\ufffd" != text[-1]:
                return begin, end
    return 0, max(0, n - MOST)  # none that one could tell
