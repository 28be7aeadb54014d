"""What our retrieval is measured against: BM25 of bm25s, and a sentence-transformers model."""

import hashlib
import io
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from embed.bm25 import BM25
from embed.maps import Vectors
from gpt_core.extras import extra
from gpt_core.files import atomic_write, sha256_file
from gpt_core.hub import cache_dir, resolve
from index.collection import Collection, Run
from index.snapshot import nearest

BATCH = 64  # texts; sentence-transformers sorts them by length


def bm25(collection: Collection, k: int) -> Run:
    """Search with bm25s (`embed.bm25`), which reads whole documents, title and text."""
    ranker = BM25(collection.texts)
    places, scores = ranker.search(list(collection.queries.values()), min(k, ranker.n_texts))
    return collection.run(places, scores, above=0)  # 0: no word in common


class Baseline:
    """A sentence-transformers model on the CPU, searched exactly.

    Its vectors are kept in the model cache, one file for each content of its folder and list of texts.
    """

    def __init__(self, name: str, max_tokens: int) -> None:
        """Load the model of that name or folder; each text is cut at `max_tokens` of its own tokens."""
        with extra("eval"):
            from sentence_transformers import SentenceTransformer
        self.name = name
        self.folder = resolve(name)
        self.model = SentenceTransformer(str(self.folder), device="cpu", local_files_only=True)
        self.model.max_seq_length = max_tokens
        self._bf16: bool | None = None

    def run(self, collection: Collection, k: int) -> Run:
        """Search a collection."""
        documents = self._encode(collection.texts, collection.name)
        queries = self._encode(list(collection.queries.values()), f"{collection.name}'s queries")
        scores, places = nearest(queries, documents, min(k, len(documents)))
        return collection.run(places, scores)

    def _encode(self, texts: Sequence[str], what: str) -> Vectors:
        digest = hashlib.sha256(str(self.model.max_seq_length).encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            digest.update(sha256_file(path).encode())
        for text in texts:
            digest.update(text.encode() + b"\0")
        path = cache_dir() / "vectors" / f"{digest.hexdigest()}.npy"
        if path.is_file():
            print(f"{self.name}: vectors of {what} from the cache ({path})", file=sys.stderr)
            return np.load(path)
        if self._bf16 is None:
            self._bf16 = self._bf16_is_faster(texts)
        vectors = self._vectors(texts, self._bf16)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        atomic_write(path, buffer.getvalue())
        return vectors

    def _bf16_is_faster(self, texts: Sequence[str]) -> bool:
        """Try both on a few texts; without AMX or AVX-512 bf16 a processor is slower at it than at float32."""
        rates = {}
        for bf16 in (False, True):
            self._vectors(texts[:BATCH], bf16)  # the first call sets things up
            start = time.perf_counter()
            self._vectors(texts[:BATCH], bf16)
            rates[bf16] = len(texts[:BATCH]) / (time.perf_counter() - start)
        chosen = "bf16 autocast" if rates[True] > rates[False] else "float32"
        rate = f"{rates[True]:.0f} texts/s in bf16 autocast, {rates[False]:.0f} in float32"
        print(f"{self.name}: {chosen} ({rate})", file=sys.stderr)
        return rates[True] > rates[False]

    def _vectors(self, texts: Sequence[str], bf16: bool) -> Vectors:
        bar = sys.stderr.isatty() and len(texts) > BATCH
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return self.model.encode(
                list(texts), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=bar
            ).astype(np.float32)
