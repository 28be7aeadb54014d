"""Log-probabilities in OpenAI's two formats, incrementally as tokens are generated."""

from typing import Any

from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.sampling import TokenLogprobs

MIN_LOGPROB = -9999.0  # OpenAI's value for a probability of 0, since JSON has no -inf


class LogprobsOf:
    """Log-probabilities of the tokens of one generated text.

    The end-of-text token is left out, since it is not part of the text; the tokens of a stop string are included.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._tokenizer, self._eos_ids = engine.tokenizer, engine.eos_ids
        self._request = request
        self._n_taken = 0
        self._text = b""

    def chat(self) -> dict[str, Any] | None:
        """The tokens since the last call in the format of chat completions; None if logprobs were not requested."""
        if self._request.params.logprobs is None:
            return None
        content = []
        for one in self._new():
            best = [self._token(*pair) for pair in one.best]
            content.append({**self._token(one.token, one.logprob), "top_logprobs": best})
        return {"content": content, "refusal": None}

    def completion(self) -> dict[str, Any] | None:
        """The tokens since the last call in the format of completions; None if logprobs were not requested."""
        if self._request.params.logprobs is None:
            return None
        shape: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for one in self._new():
            shape["tokens"].append(self._string(one.token))
            shape["token_logprobs"].append(max(MIN_LOGPROB, one.logprob))
            every = [*one.best, (one.token, one.logprob)]  # always includes the sampled token
            shape["top_logprobs"].append({self._string(token): max(MIN_LOGPROB, p) for token, p in every})
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
            "logprob": max(MIN_LOGPROB, logprob),
            "bytes": list(data),
        }

    def _string(self, token: int) -> str:
        """The token's text; if it has part of a character, its bytes in OpenAI's notation, bytes:\\xe7."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
