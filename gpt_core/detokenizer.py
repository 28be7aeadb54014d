"""From tokens to text while the tokens are still coming."""

from collections.abc import Callable, Sequence


class Detokenizer:
    """Gives out text as soon as it is certain, and no sooner.

    A token may end in the middle of a character, and text may turn out to be the beginning of a stop string;
    both are held back until more tokens decide. What a token decodes to can depend on the one before (in
    SentencePiece vocabularies a leading space does), so a short window is decoded instead of single tokens,
    after text-generation-inference and vLLM: the cost of a token does not grow with the text.

    Args:
        decode: token ids → text, an incomplete character becoming U+FFFD.
        stop: strings that end the text. The first to be completed ends it, and no part of it is given out.
        prompt: the tokens that the text continues; the last few suffice.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        self.stopped = False  # a stop string was met; nothing comes after it
        self._decode = decode
        self._stop = stop
        self._window = list(prompt)  # what was read last, then what is not decided yet
        self._n_read = len(self._window)
        self._read = decode(self._window)
        self._held = ""  # may be the beginning of a stop string

    def push(self, token: int) -> str:
        """Take one more token; return the text that is certain now, often ""."""
        self._window.append(token)
        text = self._unread()
        if not text or text.endswith("\ufffd"):
            return ""
        self._window = self._window[self._n_read :]
        self._n_read = len(self._window)
        self._read = self._decode(self._window)
        return self._until_stop(text)

    def flush(self) -> str:
        """Return what was held back; to be called once, when no token follows."""
        if self.stopped:
            return ""
        text = self._until_stop(self._unread())
        return text + self._held

    def _unread(self) -> str:
        return self._decode(self._window)[len(self._read) :]

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
