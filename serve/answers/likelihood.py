"""The second stage: how much each of the best candidates helps a language model to predict the question.

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
    """Gains of candidates for `Ranker.rank`. Not thread-safe.

    Args:
        encoder: the embedder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._reranker = Reranker(encoder.model, encoder.tokenizer, TEMPLATE, cache_bytes=CACHE_BYTES)

    def __call__(self, question: str, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        """(n,) by how many nats the question is more probable after each candidate, per token of the question.

        More than after the title of the first candidate alone; the order does not depend on that.
        """
        texts = ["\n".join(filter(None, (c.hit.title, c.text))) for c in candidates]
        *scores, alone = self._reranker.score(
            [question] * (len(texts) + 1), [*texts, candidates[0].hit.title]
        )
        n_tokens = len(self._reranker.tokenizer.encode(question))
        return (np.array(scores) - alone) / n_tokens
