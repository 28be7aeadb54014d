"""Batches of embedding training: a pure function of the data, the seed and the step."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed.data.pairs import Example
from embed.data.vectors import Vectors
from embed.text.key import text_key
from gpt_core.common.errors import InputError
from gpt_core.data.batches import Batches
from gpt_core.data.permutation import endless_order
from gpt_core.training.checkpoint import check_identity

Role = Literal["query", "document"]  # which prompt is prepended to a text
RoleText = tuple[Role, str]


@dataclass(frozen=True)
class Batch:
    """The N texts of a step, over all ranks. Only this rank's texts are tokenised.

    The texts are ordered by rank; within a rank, queries come before candidates. Position tensors are int64.

    Attributes:
        name: name of the dataset.
        entries: position of each of the N texts in the dataset's `texts`.
        rows: token ids of this rank's texts.
        counts: number of texts of each rank.
        n_queries: number of queries (or of texts without pairs) of this rank.
        texts: (N,) text ids, equal for equal texts (`text_key`).
        queries: (Q,) positions of the queries among the N texts; of all texts for data without pairs.
        candidates: (D,) positions of the positives and negatives of all queries among the N texts.
        positives: (Q,) position of each query's positive among the candidates; empty for data without pairs.
        answers: (2, K) positions of queries and of candidates that are positives of them, also of candidates that were
            drawn for another query.
        teacher: (N, e) vectors of the teacher, or None.
        guide: (N, g) vectors of the guide, which detects false negatives, or None.
        lm: ids and targets (B, T) of the language model's loss, or None.
    """

    name: str
    entries: list[int]
    rows: list[NDArray[np.int32]]
    counts: tuple[int, ...]
    n_queries: int
    texts: Tensor
    queries: Tensor
    candidates: Tensor
    positives: Tensor
    answers: Tensor
    teacher: Tensor | None = None
    guide: Tensor | None = None
    lm: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        moved: dict[str, Any] = {k: x.to(device) for k, x in vars(self).items() if isinstance(x, Tensor)}
        if self.lm is not None:
            moved["lm"] = (self.lm[0].to(device), self.lm[1].to(device))
        return replace(self, **moved)


class TaskData:
    """A dataset of examples with ids for its texts, and vectors of teacher and guide.

    Args:
        name: the dataset's name in messages.
        examples: pairs (all with a positive), or texts (all without).

    Raises:
        InputError: for a mixture of pairs and texts.
    """

    def __init__(self, name: str, examples: Sequence[Example]) -> None:
        self.name = name
        self.examples = examples
        n_plain = sum(not example.positives for example in examples)
        if n_plain not in (0, len(examples)):
            raise InputError(
                f"{name} has {n_plain} texts without a positive among {len(examples)} examples; expected only pairs or "
                "only texts."
            )
        self.paired = n_plain == 0
        self._entries: dict[RoleText, int] = {}
        self._text_ids: dict[str, int] = {}  # independent of the role; equal for texts of an equal `text_key`
        self._answers: dict[int, set[int]] = {}  # text id of a query → those of its positives in all examples
        by_key: dict[str, int] = {}
        for example in examples:
            asked: Role = "query" if self.paired else "document"
            found: list[RoleText] = [("document", text) for text in (*example.positives, *example.negatives)]
            for one in [(asked, example.query), *found]:
                self._entries.setdefault(one, len(self._entries))
                if one[1] not in self._text_ids:
                    self._text_ids[one[1]] = by_key.setdefault(text_key(one[1]), len(by_key))
            answers = self._answers.setdefault(self._text_ids[example.query], set())
            answers.update(self._text_ids[text] for text in example.positives)
        self.texts = list(self._entries)  # distinct (role, text)
        self.teacher: Vectors | None = None  # (len(texts), e)
        self.guide: Vectors | None = None  # (len(texts), g)
        self.groups: NDArray[np.int64] | None = None  # (n, size) examples that are in the same batch

    def vectors(self, encode: Callable[[Sequence[str], Role], Vectors]) -> Vectors:
        """Encode all texts: (len(texts), d)."""
        order: list[int] = []
        parts: list[Vectors] = []
        for role in get_args(Role):
            places = [i for i, (own, _) in enumerate(self.texts) if own == role]
            if places:
                parts.append(encode([self.texts[i][1] for i in places], role))
                order += places
        return np.concatenate(parts)[np.argsort(order)]

    def chosen(self, index: int, epoch: int, n_negatives: int) -> tuple[RoleText, list[RoleText]]:
        """An example's query (or text), and its candidates: one positive, then up to `n_negatives` negatives.

        If the example has several positives or negatives, successive epochs cycle through them.
        """
        example = self.examples[index]
        if not self.paired:
            return ("document", example.query), []
        positives, negatives = example.positives, example.negatives
        n = min(n_negatives, len(negatives))
        taken = [positives[(epoch + index) % len(positives)]]
        taken += [negatives[(epoch * n + index + i) % len(negatives)] for i in range(n)]
        return ("query", example.query), [("document", text) for text in taken]

    def entries(self, texts: Sequence[RoleText]) -> list[int]:
        """Positions of `texts` in `self.texts`."""
        return [self._entries[text] for text in texts]

    def text_ids(self, texts: Sequence[RoleText]) -> list[int]:
        """Ids that are equal for equal texts of any role."""
        return [self._text_ids[text] for _, text in texts]

    def answers(self, queries: Sequence[RoleText], documents: Sequence[RoleText]) -> list[tuple[int, int]]:
        """(position of the query, position of the document) where the document is a positive in any example."""
        places: dict[int, list[int]] = {}
        for j, text_id in enumerate(self.text_ids(documents)):
            places.setdefault(text_id, []).append(j)
        return [
            (i, j)
            for i, query in enumerate(self.text_ids(queries))
            for text_id in sorted(self._answers[query] & places.keys())
            for j in places[text_id]
        ]

    def checksum(self) -> str:
        """SHA-256 of all examples, in hex."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr((example.query, example.positives, example.negatives)).encode())
        return digest.hexdigest()


class Collator:
    """Makes batches from examples.

    Args:
        tokenize: texts → token ids, truncated to the longest input.
        prompts: prompt of each role.
        n_negatives: maximum number of hard negatives per query.
        rank: rank of this process.
        world_size: number of ranks that share a batch.
    """

    def __init__(
        self,
        tokenize: Callable[[list[str]], list[list[int]]],
        prompts: dict[Role, str],
        n_negatives: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tokenize, self.prompts, self.n_negatives = tokenize, prompts, n_negatives
        self.rank, self.world_size = rank, world_size
        # Token ids by entry, of each text that was in a batch: a table is trained faster than its texts are tokenised.
        self._rows: dict[TaskData, dict[int, NDArray[np.int32]]] = {}

    def __call__(
        self,
        data: TaskData,
        places: Sequence[tuple[int, int]],
        lm: tuple[Tensor, Tensor] | None = None,
    ) -> Batch:
        """The batch of `places` (example, epoch), divided into contiguous parts of equal size, one per rank."""
        batch = self.outline(data, places)
        first = sum(batch.counts[: self.rank])
        mine = batch.entries[first : first + batch.counts[self.rank]]
        return replace(batch, rows=self.rows(data, mine), lm=lm)

    def rows(self, data: TaskData, entries: Sequence[int]) -> list[NDArray[np.int32]]:
        """Token ids of texts of `data`, with their prompts."""
        known = self._rows.setdefault(data, {})
        new = [i for i in dict.fromkeys(entries) if i not in known]
        texts = [self.prompts[role] + text for role, text in (data.texts[i] for i in new)]
        for i, ids in zip(new, self.tokenize(texts), strict=True):
            known[i] = np.array(ids, dtype=np.int32)
        return [known[i] for i in entries]

    def outline(self, data: TaskData, places: Sequence[tuple[int, int]]) -> Batch:
        """The batch of `places` (example, epoch) without token ids (`rows`) and `lm`."""
        share = len(places) // self.world_size
        texts: list[RoleText] = []  # of all ranks
        counts: list[int] = []
        queries: list[int] = []
        candidates: list[int] = []
        positives: list[int] = []
        for rank in range(self.world_size):
            asked: list[RoleText] = []
            found: list[RoleText] = []
            first = len(texts)
            for index, epoch in places[rank * share : (rank + 1) * share]:
                query, documents = data.chosen(index, epoch, self.n_negatives)
                if documents:
                    positives.append(len(candidates) + len(found))
                asked.append(query)
                found += documents
            queries += range(first, first + len(asked))
            candidates += range(first + len(asked), first + len(asked) + len(found))
            counts.append(len(asked) + len(found))
            texts += asked + found
        entries = data.entries(texts)
        answers = data.answers([texts[i] for i in queries], [texts[i] for i in candidates])
        return Batch(
            name=data.name,
            entries=entries,
            rows=[],
            counts=tuple(counts),
            n_queries=share,
            texts=torch.tensor(data.text_ids(texts)),
            queries=torch.tensor(queries),
            candidates=torch.tensor(candidates, dtype=torch.long),
            positives=torch.tensor(positives, dtype=torch.long),
            answers=torch.tensor(answers, dtype=torch.long).view(-1, 2).T,
            teacher=None if data.teacher is None else torch.from_numpy(data.teacher[entries]),
            guide=None if data.guide is None else torch.from_numpy(data.guide[entries]),
        )


class MixedBatches:
    """The endless stream of batches over several datasets; each batch comes from one dataset.

    The next batch comes from the dataset furthest below its share by weight. Each epoch of a dataset is a new
    permutation of its groups of examples; a batch repeats the examples of a dataset that has fewer, and equal texts are
    not each other's negatives. A resumed run continues with the same batches as an uninterrupted one, with any number
    of ranks.

    Args:
        sets: the datasets.
        weights: relative frequency of batches from each dataset.
        batch_size: examples per step, over all ranks.
        seed: seed of the permutations.
        collate: makes the batches.
        lm: stream of token windows for the language model's loss, or None.
        identity: further settings, by name, that must be equal for a run to resume.

    Raises:
        InputError: if batch_size is not a multiple of the number of ranks and of the size of groups.
    """

    def __init__(
        self,
        sets: Sequence[TaskData],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        collate: Collator,
        lm: Batches | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        if batch_size % collate.world_size:
            raise InputError(
                f"batch_size is {batch_size}; expected a multiple of the number of ranks, {collate.world_size}."
            )
        self.sets, self.batch_size, self.seed, self.collate, self.lm = sets, batch_size, seed, collate, lm
        self.groups = [
            np.arange(len(data.examples))[:, None] if data.groups is None else data.groups for data in sets
        ]
        for data, groups in zip(sets, self.groups, strict=True):
            if batch_size % groups.shape[1]:
                raise InputError(
                    f"batch_size is {batch_size}; expected a multiple of the size of the groups of {data.name}, "
                    f"{groups.shape[1]}."
                )
        self.shares = np.array(weights) / sum(weights)
        self.taken = np.zeros(len(sets), dtype=np.int64)  # number of batches taken from each dataset
        self.identity = {
            "seed": seed,
            "batch_size": batch_size,
            "weights": [float(w) for w in weights],
            "data_checksums": [data.checksum() for data in sets],
            **(identity or {}),
        }

    def __next__(self) -> list[Batch]:
        """The next batch, as a single micro-batch: the contrastive loss needs all of it (GradCache saves memory)."""
        chosen = self._next_set(self.taken)
        lm = None if self.lm is None else next(self.lm)[0]
        batch = self.collate(self.sets[chosen], self._places(chosen, int(self.taken[chosen])), lm)
        self.taken[chosen] += 1
        return [batch]

    def _next_set(self, taken: NDArray[np.int64]) -> int:
        """Index of the dataset of the next batch, after `taken` batches of each."""
        return int(np.argmax(self.shares * (taken.sum() + 1) - taken))

    def _places(self, chosen: int, nth: int) -> list[tuple[int, int]]:
        """(example, epoch) of each example in the `nth` batch, from 0, of the dataset with index `chosen`."""
        groups = self.groups[chosen]  # (n, size)
        count = self.batch_size // groups.shape[1]
        positions = np.arange(nth * count, (nth + 1) * count)
        indices, epochs = endless_order(positions, len(groups), self.seed + chosen)
        examples = groups[indices].ravel()  # (batch_size,)
        return list(zip(examples.tolist(), epochs.repeat(groups.shape[1]).tolist(), strict=True))

    def describe(self, step: int) -> str:
        """Description, for messages, of the batch of step `step`, from 1."""
        taken = np.zeros_like(self.taken)
        for _ in range(step - 1):
            taken[self._next_set(taken)] += 1
        chosen = self._next_set(taken)
        index, _ = self._places(chosen, int(taken[chosen]))[0]
        return (
            f"{self.batch_size} examples of {self.sets[chosen].name}, the first of them example {index + 1} of the "
            "training examples"
        )

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream, and the settings that must be equal to resume it."""
        lm = None if self.lm is None else self.lm.state_dict()
        return {"taken": self.taken.tolist(), "lm": lm, **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream from `state`.

        Raises:
            InputError: if the data or another setting of `identity` differs.
        """
        check_identity(state, self.identity)
        if (state["lm"] is None) != (self.lm is None):
            raise InputError(
                "lm_weight was zero in the checkpoint and is not now, or the other way round; resume with the same "
                "lm_weight, or choose another out_dir."
            )
        self.taken = np.array(state["taken"], dtype=np.int64)
        if self.lm is not None:
            self.lm.load_state_dict(state["lm"])
