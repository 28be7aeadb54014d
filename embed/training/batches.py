"""Which texts a training step sees: a pure function of the data, the seed and how many steps there were."""

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
from gpt_core.common.errors import InputError
from gpt_core.data.batches import Batches
from gpt_core.data.permutation import endless_order

Role = Literal["query", "document"]  # which prompt goes before a text
RoleText = tuple[Role, str]


@dataclass(frozen=True)
class Batch:
    """The texts of a step. All ranks know all of them, but only their own as tokens.

    N texts come in the order of the ranks, each rank's in the order of `texts`: its queries, then its candidates.

    Attributes:
        name: of the data set.
        entries: where each of the N is in the data set's `texts`.
        rows: token ids of this rank's texts.
        counts: how many texts each rank has.
        n_queries: how many of this rank's texts are queries, or plain texts.
        texts: (N,) numbers that are equal where texts are.
        queries: (Q,) places of the queries among the N, or of all texts where there is nothing to find.
        candidates: (D,) places of the positives and negatives of all queries.
        positives: (Q,) where each query's positive is among the candidates; empty where there is nothing to find.
        answers: (2, K) queries and candidates that answer them, whether they were chosen for it or stand there for
            another query.
        teacher: (N, e) vectors to imitate, or None.
        guide: (N, g) vectors that tell false negatives, or None.
        lm: ids and targets (B, T) of the language model's loss, or None.
    """

    name: str
    entries: list[int]
    rows: list[list[int]]
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
        """The same with its tensors on `device`."""
        moved: dict[str, Any] = {k: x.to(device) for k, x in vars(self).items() if isinstance(x, Tensor)}
        if self.lm is not None:
            moved["lm"] = (self.lm[0].to(device), self.lm[1].to(device))
        return replace(self, **moved)


class TaskData:
    """A set of examples whose texts are numbered, with vectors of other models for them.

    Args:
        name: what messages call it.
        examples: all with a positive, or all without.

    Raises:
        InputError: if some have a positive and some have none.
    """

    def __init__(self, name: str, examples: Sequence[Example]) -> None:
        self.name = name
        self.examples = examples
        n_plain = sum(not example.positives for example in examples)
        if n_plain not in (0, len(examples)):
            raise InputError(
                f"{name} has {n_plain} texts alone among {len(examples)} examples; expected pairs or texts, not both."
            )
        self.paired = n_plain == 0
        self._entries: dict[RoleText, int] = {}
        self._numbers: dict[str, int] = {}  # of texts, whatever their role
        self._answers: dict[str, set[str]] = {}  # of a query, in all examples
        for example in examples:
            asked: Role = "query" if self.paired else "document"
            found: list[RoleText] = [("document", text) for text in (*example.positives, *example.negatives)]
            for one in [(asked, example.query), *found]:
                self._entries.setdefault(one, len(self._entries))
                self._numbers.setdefault(one[1], len(self._numbers))
            self._answers.setdefault(example.query, set()).update(example.positives)
        self.texts = list(self._entries)  # different ones, each with its role
        self.teacher: Vectors | None = None  # (len(texts), e)
        self.guide: Vectors | None = None

    def vectors(self, encode: Callable[[Sequence[str], Role], Vectors]) -> Vectors:
        """(len(texts), d): what `encode` makes of all texts."""
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

        Of several positives and negatives, each epoch takes the next ones.
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
        """Their places in `texts`."""
        return [self._entries[text] for text in texts]

    def numbers(self, texts: Sequence[RoleText]) -> list[int]:
        """Numbers that are equal where texts are, whatever their role."""
        return [self._numbers[text] for _, text in texts]

    def answers(self, queries: Sequence[RoleText], documents: Sequence[RoleText]) -> list[tuple[int, int]]:
        """Places of queries and of documents that are positives of theirs in any example."""
        places: dict[str, list[int]] = {}
        for j, (_, text) in enumerate(documents):
            places.setdefault(text, []).append(j)
        return [
            (i, j)
            for i, (_, query) in enumerate(queries)
            for text in sorted(self._answers[query] & places.keys())
            for j in places[text]
        ]

    def checksum(self) -> str:
        """Of all texts and which belongs to which."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr((example.query, example.positives, example.negatives)).encode())
        return digest.hexdigest()


class Collator:
    """Makes batches of examples.

    Args:
        tokenize: texts → token ids, cut to the longest input.
        prompts: by role.
        n_negatives: hard negatives per query, of those that it has.
        rank: this process's number.
        world_size: how many share a batch.
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

    def __call__(
        self,
        data: TaskData,
        places: Sequence[tuple[int, int]],
        lm: tuple[Tensor, Tensor] | None = None,
    ) -> Batch:
        """The batch of these (example, epoch), of which each rank takes an equal run."""
        batch = self.outline(data, places)
        first = sum(batch.counts[: self.rank])
        mine = [data.texts[i] for i in batch.entries[first : first + batch.counts[self.rank]]]
        return replace(batch, rows=self.tokenize([self.prompts[role] + text for role, text in mine]), lm=lm)

    def outline(self, data: TaskData, places: Sequence[tuple[int, int]]) -> Batch:
        """That batch without tokens: which text is what."""
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
            texts=torch.tensor(data.numbers(texts)),
            queries=torch.tensor(queries),
            candidates=torch.tensor(candidates, dtype=torch.long),
            positives=torch.tensor(positives, dtype=torch.long),
            answers=torch.tensor(answers, dtype=torch.long).view(-1, 2).T,
            teacher=None if data.teacher is None else torch.from_numpy(data.teacher[entries]),
            guide=None if data.guide is None else torch.from_numpy(data.guide[entries]),
        )


class MixedBatches:
    """The endless stream of steps over several data sets; each step's batch comes from one of them.

    Whose turn it is follows from the weights: the set that has fallen furthest behind its share. Each epoch of a set
    is a permutation of its own, and a resumed run sees what an uninterrupted one would have seen, with any number of
    ranks.

    Args:
        sets: the data.
        weights: how often each gives a batch, in proportion.
        batch_size: examples per step, over all ranks.
        seed: of the order.
        collate: makes the batches.
        lm: stream of windows for the language model's loss, if there is one.
        identity: what else must be the same for a run to go on, by name.

    Raises:
        InputError: if the batch is larger than a set, or the ranks cannot share it equally.
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
        for data in sets:
            if len(data.examples) < batch_size:
                raise InputError(
                    f"batch_size is {batch_size}, but {data.name} has {len(data.examples)} examples to train on; give "
                    "a smaller batch_size, or more data."
                )
        if batch_size % collate.world_size:
            raise InputError(
                f"batch_size is {batch_size}; it must be a multiple of the number of ranks ({collate.world_size})."
            )
        self.sets, self.batch_size, self.seed, self.collate, self.lm = sets, batch_size, seed, collate, lm
        self.shares = np.array(weights) / sum(weights)
        self.taken = np.zeros(len(sets), dtype=np.int64)  # batches of each set so far
        self.identity = {
            "seed": seed,
            "batch_size": batch_size,
            "weights": [float(w) for w in weights],
            "data_checksums": [data.checksum() for data in sets],
            **(identity or {}),
        }

    def __next__(self) -> list[Batch]:
        """The next step's batch, as one micro-batch: its loss needs all of it; GradCache is what saves memory."""
        turn = self._turn(self.taken)
        lm = None if self.lm is None else next(self.lm)[0]
        batch = self.collate(self.sets[turn], self._places(turn, int(self.taken[turn])), lm)
        self.taken[turn] += 1
        return [batch]

    def _turn(self, taken: NDArray[np.int64]) -> int:
        return int(np.argmax(self.shares * (taken.sum() + 1) - taken))

    def _places(self, turn: int, nth: int) -> list[tuple[int, int]]:
        """Examples and epochs of a set's `nth` batch, from 0."""
        positions = np.arange(nth * self.batch_size, (nth + 1) * self.batch_size)
        indices, epochs = endless_order(positions, len(self.sets[turn].examples), self.seed + turn)
        return list(zip(indices.tolist(), epochs.tolist(), strict=True))

    def describe(self, step: int) -> str:
        """What the batch of step `step`, from 1, was made of, for a message."""
        taken = np.zeros_like(self.taken)
        for _ in range(step - 1):
            taken[self._turn(taken)] += 1
        turn = self._turn(taken)
        index, _ = self._places(turn, int(taken[turn]))[0]
        return (
            f"{self.batch_size} examples of {self.sets[turn].name}, the first of them number {index + 1} of those "
            "that were kept"
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what of."""
        lm = None if self.lm is None else self.lm.state_dict()
        return {"taken": self.taken.tolist(), "lm": lm, **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: if the data, or what else decides the order, are not the same.
        """
        for key, mine in self.identity.items():
            if state.get(key) != mine:
                raise InputError(
                    f"The checkpoint was made with {key} = {state.get(key)}, but this run has {mine}; resume with the "
                    "same configuration and data, or choose another out_dir."
                )
        if (state["lm"] is None) != (self.lm is None):
            raise InputError("lm_weight is not what it was; resume with the same, or choose another out_dir.")
        self.taken = np.array(state["taken"], dtype=np.int64)
        if self.lm is not None:
            self.lm.load_state_dict(state["lm"])
