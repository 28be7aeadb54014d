"""The second stage: how probable the question is to a language model after each of the best candidates.

The model is the embedder's own GPT. It reads the title and the candidate, then the question (SGPT's cross-encoder,
Muennighoff 2022, on sentences); keys and values of what it has read are kept, so a sentence is read once.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embed.encoding.encoder import Encoder
from embed.encoding.rerank import Reranker
from serve.answers.candidates import Candidate

CACHE_BYTES = 2**27  # of keys and values: about 60 sentences of SmolLM2
TEMPLATE = "{document}\nQuestion: "


class Likelihood:
    """The second stage for `Ranker.rank`. Not thread-safe.

    Args:
        encoder: the embedder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._reranker = Reranker(encoder.model, encoder.tokenizer, TEMPLATE, cache_bytes=CACHE_BYTES)

    def __call__(self, question: str, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        """(n,) the mean log-probability of a token of the question after title and text of each candidate, in nats."""
        texts = ["\n".join(filter(None, (c.hit.title, c.text))) for c in candidates]
        n_tokens = len(self._reranker.tokenizer.encode(question))
        return np.array(self._reranker.score([question] * len(texts), texts)) / n_tokens
