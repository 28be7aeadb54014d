"""Re-ranking without training, by a language model's log-probability of the query given the document.

SGPT's cross-encoder (Muennighoff 2022): the score of a document is log p(query | prompt with the document), summed over
the query's tokens. The model attends to query and document together, so each document costs a forward pass; keys and
values of prompt and document are cached, so that a further query costs only its own tokens.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from embed.encoding.encoder import special_tokens
from embed.formats.folder import model_folder
from gpt_core.common.errors import InputError
from gpt_core.hardware.device import DeviceName, pick_device
from gpt_core.hub.locate import resolve
from gpt_core.model.cache import Cache
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

# SGPT's prompt G, the best of thirteen on six BEIR datasets
TEMPLATE = (
    "Documents are searched to find matches with the same content.\n"
    'The document "{document}" is a good search result for "'
)
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768, "mps": 32768}  # padding included
LOGITS_PER_CHUNK = 2**25  # logits in memory at a time: 128 MiB in float32

Ids = tuple[int, ...]


class Reranker:
    """Orders documents by the log-probability of a query given each document.

    A score depends only on query and document, not on the batch or earlier calls, except for rounding. Not thread-safe.

    Attributes:
        n_truncated: number of scores since the reranker was created for which the document was truncated.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        template: str = TEMPLATE,
        max_tokens: int | None = None,
        cache_bytes: int = 2**29,
    ) -> None:
        """Make a reranker from a language model.

        Args:
            model: any GPT; it is set to evaluation mode.
            tokenizer: the model's tokenizer.
            template: the prompt before a query; {document} is replaced by the document.
            max_tokens: longest input in tokens: template, document and query together; None: the model's block_size.
            cache_bytes: memory for cached keys and values of documents, evicted least recently used first; 0: no cache.

        Raises:
            InputError: for a template without {document} or without other text, or a max_tokens or cache_bytes out of
                range.
        """
        before, field, after = template.partition("{document}")
        if not field:
            raise InputError(
                f"template is {template!r}; expected {{document}} in it, which the document replaces."
            )
        block_size = model.config.block_size
        self.max_tokens = block_size if max_tokens is None else max_tokens
        if not 1 <= self.max_tokens <= block_size:
            raise InputError(
                f"max_tokens is {self.max_tokens}; expected 1 to the model's {block_size} tokens."
            )
        if cache_bytes < 0:
            raise InputError(f"cache_bytes is {cache_bytes}; expected at least 0.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.cache_bytes = cache_bytes
        self.n_truncated = 0
        self._before, self._after = before, after
        self._begin = special_tokens(tokenizer)[0]
        self._n_instruction = len(self._begin) + len(tokenizer.encode(before))
        self._n_after = len(tokenizer.encode(after))
        if self._n_instruction + self._n_after == 0:
            raise InputError(f"template is {template!r}; expected words besides {{document}}.")
        self._cached: OrderedDict[Ids, tuple[Tensor, Tensor]] = OrderedDict()
        self._cached_bytes = 0

    def rerank(
        self, query: str, documents: Sequence[str], top_k: int | None = None
    ) -> list[tuple[int, float]]:
        """Order documents for a query.

        Args:
            query: the query.
            documents: the documents; those with equal scores stay in this order.
            top_k: number of results; None: all.

        Returns:
            (position in `documents`, score), best first.

        Raises:
            InputError: as `score` does.
        """
        if isinstance(documents, str):  # its characters would be taken for documents
            raise InputError("documents is one string; expected a list of strings.")
        if top_k is not None and top_k < 0:
            raise InputError(f"top_k is {top_k}; expected at least 0.")
        different = list(dict.fromkeys(documents))  # equal documents must have exactly equal scores
        scores = dict(zip(different, self.score([query] * len(different), different), strict=True))
        order = sorted(range(len(documents)), key=lambda i: -scores[documents[i]])
        return [(i, scores[documents[i]]) for i in order[:top_k]]

    @torch.inference_mode()
    def score(self, queries: Sequence[str], documents: Sequence[str], progress: bool = False) -> list[float]:
        """log p(query | document in the template) for each pair (queries[i], documents[i]).

        Sums over the query's tokens, in nats; comparable between documents for the same query. The query and the text
        before it are tokenised separately, as in SGPT, so that no token spans both. A document that is too long is
        truncated at its beginning, and counted in `n_truncated`.

        Args:
            queries: n queries.
            documents: n documents.
            progress: whether to draw a progress bar if stderr is a terminal.

        Raises:
            InputError: for lists of different lengths, a query without tokens, or a query that leaves no space for a
                token of the document.
        """
        if isinstance(queries, str) or isinstance(documents, str) or len(queries) != len(documents):
            raise InputError("queries and documents cannot be paired; expected two lists of the same length.")
        rows = self._tokenize(queries, documents)
        scores = [0.0] * len(rows)
        bar = tqdm(total=len(rows), unit=" pairs", desc="re-ranking", disable=None if progress else True)
        for places in self._batches(rows):
            # The prefix's last token is in the query's forward: its state predicts the query's first token.
            found = self._states([rows[i][0][:-1] for i in places])
            new = [rows[i][0][-1:] + rows[i][1][:-1] for i in places]
            totals = self._sum_log_probabilities(found, new, [rows[i][1] for i in places])
            for i, total in zip(places, totals, strict=True):
                scores[i] = total
            bar.update(len(places))
        bar.close()
        return scores

    def _tokenize(self, queries: Sequence[str], documents: Sequence[str]) -> list[tuple[Ids, Ids]]:
        """For each pair, the ids before the query, truncated to max_tokens, and the ids of the query."""
        unique = list(dict.fromkeys(queries)), list(dict.fromkeys(documents))
        query_ids = dict(zip(unique[0], self.tokenizer.encode_batch(unique[0]), strict=True))
        filled = [self._before + document + self._after for document in unique[1]]
        document_ids = dict(zip(unique[1], self.tokenizer.encode_batch(filled), strict=True))
        rows = []
        for query, document in zip(queries, documents, strict=True):
            after, context = query_ids[query], self._begin + document_ids[document]
            if not after:
                raise InputError(f"The query {query!r} has no tokens; expected at least one word.")
            # The query's last token is only predicted, so it needs no position in the input.
            n_free = self.max_tokens - self._n_instruction - (len(after) - 1)
            if n_free <= self._n_after:
                raise InputError(
                    f"The query {query[:40]!r} has {len(after)} tokens and the template "
                    f"{self._n_instruction + self._n_after}, which leaves none of max_tokens = {self.max_tokens} for "
                    "a document; shorten the query."
                )
            rest = context[self._n_instruction :]
            if len(rest) > n_free:
                self.n_truncated += 1
                context = context[: self._n_instruction] + rest[-n_free:]
            rows.append((tuple(context), tuple(after)))
        return rows

    def _batches(self, rows: Sequence[tuple[Ids, Ids]]) -> Iterator[list[int]]:
        """Positions of rows in batches: longest prefix first, equal prefixes together."""
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), rows[i][0]))
        budget = TOKENS_PER_BATCH[self.model.device.type]
        begin = 0
        while begin < len(order):
            before, after = len(rows[order[begin]][0]), 0
            end = begin
            while end < len(order):
                after = max(after, len(rows[order[end]][1]))
                if end > begin and (end - begin + 1) * (before + after) > budget:
                    break
                end += 1
            yield order[begin:end]
            begin = end

    def _states(self, prefixes: Sequence[Ids]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (n_layer, n_kv_head, T, head_dim) of each prefix; computed for prefixes not in the cache."""
        known = {ids: self._cached[ids] for ids in dict.fromkeys(prefixes) if ids in self._cached}
        for ids in known:
            self._cached.move_to_end(ids)
        missing = [ids for ids in dict.fromkeys(prefixes) if ids not in known]
        if missing:
            length = max(map(len, missing))
            cache = self._cache(len(missing), length)
            if length:  # 0 if the template has one token and the document is empty
                self._forward(cache, missing)
            for slot, ids in enumerate(missing):
                known[ids] = (
                    cache.k[:, slot, :, : len(ids)].clone(),
                    cache.v[:, slot, :, : len(ids)].clone(),
                )
                self._add_to_cache(ids, known[ids])
        return [known[ids] for ids in prefixes]

    def _add_to_cache(self, ids: Ids, states: tuple[Tensor, Tensor]) -> None:
        self._cached[ids] = states
        self._cached_bytes += _n_bytes(states)
        while self._cached_bytes > self.cache_bytes:
            _, oldest = self._cached.popitem(last=False)
            self._cached_bytes -= _n_bytes(oldest)

    def _sum_log_probabilities(
        self, states: Sequence[tuple[Tensor, Tensor]], new: Sequence[Ids], targets: Sequence[Ids]
    ) -> list[float]:
        """Sum of the log-probabilities of each sequence of `targets`.

        Args:
            states: keys and values of each sequence's prefix.
            new: ids to feed after each prefix.
            targets: for each sequence, the ids to predict, as many as in `new`.
        """
        lengths = [k.shape[2] for k, _ in states]
        cache = self._cache(len(states), max(n + len(ids) for n, ids in zip(lengths, new, strict=True)))
        for slot, (k, v) in enumerate(states):
            cache.k[:, slot, :, : lengths[slot]], cache.v[:, slot, :, : lengths[slot]] = k, v
        cache.lengths[:] = torch.tensor(lengths)
        hidden = self._forward(cache, new)
        n_new = torch.tensor([len(ids) for ids in new])
        real = torch.arange(hidden.shape[1]) < n_new[:, None]
        flat = hidden[real.to(hidden.device)]  # (N, C), sequences concatenated
        wanted = torch.tensor([target for ids in targets for target in ids], device=hidden.device)
        size = max(1, LOGITS_PER_CHUNK // self.model.config.vocab_size)
        losses = []
        for h, t in zip(flat.split(size), wanted.split(size), strict=True):
            logits = self.model.logits(h)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses.append(F.cross_entropy(logits, t, reduction="none").cpu().double())
        rows = torch.arange(len(new)).repeat_interleave(n_new)
        return torch.zeros(len(new), dtype=torch.double).index_add_(0, rows, -torch.cat(losses)).tolist()

    def _forward(self, cache: Cache, rows: Sequence[Ids]) -> Tensor:
        """Continue every slot of `cache` by its ids; returns hidden states (B, T, C), padded on the right."""
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        slots = cache.rows(list(range(len(rows))), [len(row) for row in rows])
        return self.model(ids.to(self.model.device), cache=slots, logits=False).hidden

    def _cache(self, n_slots: int, length: int) -> Cache:
        model = self.model
        return Cache(model.config, n_slots, device=model.device, dtype=model.dtype, length=length)


def load_reranker(name: str, device: DeviceName = "auto") -> Reranker:
    """The re-ranker of a language model, by its folder or name.

    Raises:
        InputError: if there is no such model.
    """
    folder = model_folder(resolve(name))
    return Reranker(GPT.from_pretrained(folder).to(pick_device(device)), Tokenizer.from_pretrained(folder))


def rerank_run(
    reranker: Reranker,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    run: Mapping[str, Mapping[str, float]],
    top_k: int = 10,
) -> dict[str, dict[str, float]]:
    """Re-rank the best `top_k` documents of every query of a run; the others stay below them in their order.

    Args:
        reranker: the reranker.
        queries: text of each query of the run, by id.
        documents: text of each document of the run, by id.
        run: query id → document id → score.
        top_k: number of documents per query to re-rank.

    Returns:
        A run over the same queries and documents.
    """
    ordered = {q: sorted(found, key=lambda d: -found[d]) for q, found in run.items()}
    pairs = [(q, d) for q, found in ordered.items() for d in found[:top_k]]
    scores = reranker.score([queries[q] for q, _ in pairs], [documents[d] for _, d in pairs], progress=True)
    reranked: dict[str, dict[str, float]] = {q: {} for q in run}
    for (q, d), score in zip(pairs, scores, strict=True):
        reranked[q][d] = score
    for q, found in ordered.items():
        lowest = min(reranked[q].values(), default=0.0)
        reranked[q] |= {d: lowest - 1 - i for i, d in enumerate(found[top_k:])}
    return reranked


def _n_bytes(states: tuple[Tensor, Tensor]) -> int:
    return sum(x.nbytes for x in states)
