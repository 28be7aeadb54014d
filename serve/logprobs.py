"""Log-probabilities in OpenAI's two shapes, piece by piece as the tokens come."""

import re
from typing import Any

from gpt_core.engine import Engine, Request
from gpt_core.gpt2_bpe import BYTE_OF
from gpt_core.sampling import TokenLogprobs
from gpt_core.tokenizer import Tokenizer

LEAST = -9999.0  # what OpenAI gives for a probability of 0, whose logarithm JSON cannot hold


class LogprobsOf:
    """What the tokens of one text were worth to the model.

    The end-of-text token is left out, since it is no part of the text; the tokens of a stop string are there.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._tokenizer, self._eos_ids = engine.tokenizer, engine.eos_ids
        self._request = request
        self._n_taken = 0
        self._text = b""

    def chat(self) -> dict[str, Any] | None:
        """What came since the last call, as in chat completions; None if none were asked for."""
        if self._request.params.logprobs is None:
            return None
        content = []
        for one in self._new():
            best = [self._token(*pair) for pair in one.best]
            content.append({**self._token(one.token, one.logprob), "top_logprobs": best})
        return {"content": content, "refusal": None}

    def completion(self) -> dict[str, Any] | None:
        """What came since the last call, as in completions; None if none were asked for."""
        if self._request.params.logprobs is None:
            return None
        shape: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for one in self._new():
            shape["tokens"].append(self._string(one.token))
            shape["token_logprobs"].append(max(LEAST, one.logprob))
            every = [*one.best, (one.token, one.logprob)]  # the token that was taken is always there
            shape["top_logprobs"].append({self._string(token): max(LEAST, p) for token, p in every})
            shape["text_offset"].append(len(self._text.decode(errors="ignore")))
            self._text += token_bytes(self._tokenizer, one.token)
        return shape

    def _new(self) -> list[TokenLogprobs]:
        new = self._request.logprobs[self._n_taken :]
        self._n_taken += len(new)
        return [one for one in new if one.token not in self._eos_ids]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(self._tokenizer, token)
        return {
            "token": data.decode(errors="replace"),
            "logprob": max(LEAST, logprob),
            "bytes": list(data),
        }

    def _string(self, token: int) -> str:
        """The token's text; one that holds a part of a character as OpenAI writes it, bytes:\\xe7."""
        data = token_bytes(self._tokenizer, token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What one token adds to a text, which may be a part of a character."""
    text = tokenizer.decode([token])
    if "\ufffd" not in text:
        # after another token: SentencePiece's decoders drop the space at the beginning of a text
        return tokenizer.decode([token, token])[len(text) :].encode()
    written = tokenizer.rust.id_to_token(token) or ""
    if match := re.fullmatch("<0x([0-9A-F]{2})>", written):
        return bytes.fromhex(match[1])
    if all(character in BYTE_OF for character in written):
        return bytes(BYTE_OF[character] for character in written)
    return text.encode()
