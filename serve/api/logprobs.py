"""Log-probabilities in OpenAI's two shapes, piece by piece as the tokens come."""

from typing import Any

from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.sampling import TokenLogprobs

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
            self._text += self._tokenizer.token_bytes(one.token)
        return shape

    def _new(self) -> list[TokenLogprobs]:
        new = self._request.logprobs[self._n_taken :]
        self._n_taken += len(new)
        return [one for one in new if one.token not in self._eos_ids]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {
            "token": data.decode(errors="replace"),
            "logprob": max(LEAST, logprob),
            "bytes": list(data),
        }

    def _string(self, token: int) -> str:
        """The token's text; one that holds a part of a character as OpenAI writes it, bytes:\\xe7."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
