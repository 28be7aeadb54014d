"""One step of embedding training: encode all texts, one loss over all vectors, backward through the network.

A contrastive loss depends on the whole batch, which may not fit into memory. GradCache (Gao et al. 2021) computes the
vectors without a graph, differentiates the loss with respect to the vectors, and repeats the forward chunk by chunk to
backpropagate that gradient. With several ranks, every rank gathers all vectors, computes the loss of the whole batch,
and backpropagates into its own texts only; the all-reduce (sum) of DDP or FSDP2 then gives the gradient that a single
rank with all texts would compute.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from embed.network.network import Network
from embed.network.padding import grouped, padded
from embed.training.batches import Batch
from embed.training.config import TrainEmbedderConfig
from embed.training.losses import (
    cosines,
    distill_cosine,
    distill_mse,
    equal_text_mask,
    false_negative_mask,
    info_nce,
    matryoshka,
    similarity_kl,
)
from gpt_core.data.batches import IGNORED
from gpt_core.model.gpt import GPTOutput
from gpt_core.training.parallel.parallel import gradient_sync
from gpt_core.training.parallel.ranks import ALONE, Ranks

MIN_TEMPERATURE = 0.01  # lower bound of a learned temperature, as in CLIP (Radford et al. 2021)


class Output(NamedTuple):
    """Output of `Trainee`.

    Attributes:
        vectors: (B, d) unit vectors.
        log_temperature: (1,).
        projection: (e, d), or None.
        lm_sum: 0-dim sum of the language model's losses, or None.
    """

    vectors: Tensor
    log_temperature: Tensor
    projection: Tensor | None
    lm_sum: Tensor | None


class Trainee(nn.Module):
    """All trainable weights: the embedder's network, the temperature, and a projection into the teacher's space.

    Weights are used only in this module's forward, which DDP and FSDP2 wrap.

    Args:
        network: the embedder.
        temperature: initial temperature of the contrastive loss.
        learn_temperature: whether the temperature is trained.
        teacher_dimension: dimension of the teacher's vectors, or None. If it differs from the embedder's, a linear
            projection (e, d) is trained with the network; it is not part of the embedder.
    """

    def __init__(
        self,
        network: Network,
        temperature: float,
        learn_temperature: bool = False,
        teacher_dimension: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.log_temperature = nn.Parameter(
            torch.tensor([math.log(temperature)]), requires_grad=learn_temperature
        )
        self.projection: nn.Parameter | None = None
        if teacher_dimension not in (None, network.dimension):
            self.projection = nn.Parameter(torch.empty(teacher_dimension, network.dimension))
            nn.init.normal_(self.projection, std=network.dimension**-0.5)

    @property
    def blocks(self) -> nn.ModuleList:
        """The GPT's blocks, which FSDP2 shards and torch.compile compiles one by one."""
        return self.network.blocks

    def forward(self, ids: Tensor, mask: Tensor, lm: tuple[Tensor, Tensor] | None = None) -> Output:
        """Vectors of texts, and the language model's loss of other sequences.

        Args:
            ids: (B, T) int64, padded on the right.
            mask: (B, T) bool, true at real tokens.
            lm: ids and targets (B', T') of the language model's loss, or None.
        """
        vectors = self.network(ids, mask)
        lm_sum = None
        if lm is not None:
            out: GPTOutput = self.network.gpt(lm[0], targets=lm[1], logits=False)
            lm_sum = out.loss_sum
        # Multiplied by one to be graph outputs: DDP and FSDP2 then reduce their gradients as well.
        projection = None if self.projection is None else self.projection * 1
        return Output(vectors, self.log_temperature * 1, projection, lm_sum)


class LanguageModel(nn.Module):
    """The GPT of a `Trainee`, for evaluation. Calls the trainee's forward, because FSDP2 gathers weights only there.

    Args:
        trainee: the trainee.
    """

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.trainee = trainee

    @property
    def blocks(self) -> nn.ModuleList:
        """The GPT's blocks."""
        return self.trainee.blocks

    def forward(self, ids: Tensor, targets: Tensor | None = None, logits: bool = False) -> GPTOutput:
        """`GPT.forward` that returns only the loss, without logits and hidden states."""
        assert not logits
        if targets is None:
            targets = torch.full_like(ids, IGNORED)
        out = self.trainee(*padded([], ids.device), (ids, targets))
        return GPTOutput(ids.new_empty(0), loss_sum=out.lm_sum, n_targets=(targets != IGNORED).sum())


@dataclass(frozen=True)
class Objective:
    """The loss of a batch's vectors: the weighted sum of the configured losses."""

    config: TrainEmbedderConfig

    def __call__(
        self, vectors: Tensor, batch: Batch, log_temperature: Tensor, projection: Tensor | None
    ) -> Tensor:
        """(N, d) unit vectors of all texts of all ranks → 0-dim mean loss."""
        config = self.config
        if config.learn_temperature:
            # Straight-through gradient: with a plain clamp, a temperature below the bound would get no gradient.
            bounded = log_temperature.detach().clamp(min=math.log(MIN_TEMPERATURE))
            log_temperature = log_temperature + (bounded - log_temperature.detach())
        temperature = log_temperature.exp()
        dimensions = [*(k for k in config.matryoshka if k < vectors.shape[1]), vectors.shape[1]]
        shares = [1 / len(dimensions)] * len(dimensions)
        loss = vectors.new_zeros(())
        if config.contrastive_weight and len(batch.positives):
            masked = self.masked(vectors.detach(), batch)

            def contrast(queries: Tensor, candidates: Tensor) -> Tensor:
                return info_nce(queries, candidates, batch.positives, temperature, masked).mean()

            pairs = (vectors[batch.queries], vectors[batch.candidates])
            loss = loss + config.contrastive_weight * matryoshka(contrast, pairs, dimensions, shares)
        if batch.teacher is not None and config.distill_weight:
            imitated = vectors if projection is None else F.normalize(vectors @ projection.mT, dim=-1)
            distance = distill_cosine if config.distill_loss == "cosine" else distill_mse
            loss = loss + config.distill_weight * distance(imitated, batch.teacher).mean()
        if batch.teacher is not None and config.similarity_weight:
            teacher, same = batch.teacher, batch.texts[:, None] == batch.texts

            def imitate(student: Tensor) -> Tensor:
                return similarity_kl(
                    student, student, teacher, teacher, config.temperature, same, config.teacher_temperature
                ).mean()

            loss = loss + config.similarity_weight * matryoshka(imitate, [vectors], dimensions, shares)
        return loss

    def masked(self, vectors: Tensor, batch: Batch) -> Tensor:
        """(Q, D) bool: true at candidates that are neither the query's positive nor negatives of it."""
        masked = equal_text_mask(batch.positives, batch.texts[batch.candidates], batch.texts[batch.queries])
        masked[batch.answers[0], batch.answers[1]] = True
        masked.scatter_(1, batch.positives[:, None], False)
        if self.config.false_negative_margin is not None:
            judge = vectors if batch.guide is None else batch.guide
            similarities = cosines(judge[batch.queries], judge[batch.candidates])
            masked |= false_negative_mask(similarities, batch.positives, -self.config.false_negative_margin)
        return masked


class EmbeddingLoss:
    """The training loop's loss function, which also runs the backward of `Objective` and the language model's loss.

    Args:
        objective: the loss of the vectors.
        tokens_per_forward: maximum number of tokens of a forward, padding included; texts are grouped by length.
        ranks: the ranks that share a batch.
    """

    def __init__(self, objective: Objective, tokens_per_forward: int, ranks: Ranks = ALONE) -> None:
        self.objective, self.config = objective, objective.config
        self.tokens_per_forward, self.ranks = tokens_per_forward, ranks

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Accumulate this rank's part of the gradient of (mean loss · queries of all ranks) in the weights of `model`.

        With gradients disabled (torch.no_grad), only the loss is computed.

        Args:
            model: a `Trainee`, possibly wrapped by DDP or FSDP2.
            batch: the step's texts.

        Returns:
            The mean loss over all ranks times the number of this rank's queries (0-dim, no graph), and that number.
        """
        device, learning = self.ranks.device, torch.is_grad_enabled()
        batch = batch.to(device)
        groups = list(grouped(batch.rows, self.tokens_per_forward, self.config.chunk_size))
        # All ranks run the same number of forwards, because the collectives of FSDP2 and DDP in a forward must match.
        groups += [[] for _ in range(self.ranks.max(len(groups)) - len(groups))]
        cached = learning and self.config.chunk_size is not None and len(groups) > 1
        # Seeds, so that GradCache's second forward has the same dropout masks as the first.
        seeds = torch.randint(2**62, (len(groups),)).tolist()

        def forward(number: int, final: bool) -> Output:
            torch.manual_seed(seeds[number])
            # The language model's loss is in the last forward: in its backward, DDP waits for gradients of all weights.
            lm = batch.lm if final and number == len(groups) - 1 else None
            return model(*padded([batch.rows[place] for place in groups[number]], device), lm)

        outputs = []
        for i in range(len(groups)):
            with gradient_sync(model, i == len(groups) - 1), torch.set_grad_enabled(learning and not cached):
                outputs.append(forward(i, final=not cached))
        order = torch.tensor([place for places in groups for place in places], device=device)
        vectors = torch.cat(
            [o.vectors[: len(places)].detach() for o, places in zip(outputs, groups, strict=True)]
        )
        vectors = torch.empty_like(vectors).index_copy_(0, order, vectors)

        temperature = outputs[-1].log_temperature.detach()
        projection = None if outputs[-1].projection is None else outputs[-1].projection.detach()
        leaves = [
            leaf.requires_grad_(learning) for leaf in (vectors, temperature, projection) if leaf is not None
        ]
        with torch.autocast(device.type, enabled=False):
            everyone = gather(vectors, batch.counts, self.ranks.rank)
            mean = self.objective(everyone, batch, temperature, projection)
        n_all = batch.n_queries * self.ranks.world_size
        loss = mean.detach() * batch.n_queries
        lm_factor = self.lm_factor(batch, n_all, loss)
        if not learning:
            return loss + lm_factor * (outputs[-1].lm_sum or 0), batch.n_queries

        # Zero gradients for unused leaves: DDP waits for a gradient of every weight.
        vector_gradients, *head_gradients = torch.autograd.grad(mean * n_all, leaves, materialize_grads=True)

        def backward(outputs: Sequence[Output], groups: Sequence[list[int]]) -> None:
            terms = [
                (o.vectors[: len(places)] * vector_gradients[places]).sum()
                for o, places in zip(outputs, groups, strict=True)
            ]
            if outputs[-1].lm_sum is not None:
                terms.append(lm_factor * outputs[-1].lm_sum)
            if groups[-1] is last:
                # Every rank has the full gradient of these, and all-reduce sums over ranks.
                head = (outputs[-1].log_temperature, outputs[-1].projection)
                for output, gradient in zip([x for x in head if x is not None], head_gradients, strict=True):
                    terms.append((output * gradient).sum() / self.ranks.world_size)
            with torch.autocast(device.type, enabled=False):
                torch.stack(terms).sum().backward()

        last = groups[-1]
        if not cached:
            backward(outputs, groups)
        for i in range(len(groups)) if cached else ():
            with gradient_sync(model, groups[i] is last):
                outputs = [forward(i, final=True)]
                backward(outputs, groups[i : i + 1])
        lm_sum = outputs[-1].lm_sum
        return loss + (0 if lm_sum is None else lm_factor * lm_sum.detach()), batch.n_queries

    def lm_factor(self, batch: Batch, n_queries: int, loss: Tensor) -> Tensor:
        """Factor (0-dim, dtype and device of `loss`) of the LM's summed loss in a total of `n_queries` · mean loss."""
        if batch.lm is None:
            return torch.zeros_like(loss)
        n_targets = self.ranks.sum((batch.lm[1] != IGNORED).sum().type_as(loss))
        return self.config.lm_weight * n_queries / n_targets


def gather(vectors: Tensor, counts: Sequence[int], rank: int) -> Tensor:
    """All-gather the vectors of all ranks; gradients flow only into this rank's vectors.

    Args:
        vectors: (n, d) of this rank.
        counts: number of vectors of each rank.
        rank: this rank.

    Returns:
        (sum of counts, d), ordered by rank.
    """
    if len(counts) == 1:
        return vectors
    mine = vectors.new_zeros(max(counts), vectors.shape[1])
    mine[: len(vectors)] = vectors.detach()
    parts = [torch.empty_like(mine) for _ in counts]
    dist.all_gather(parts, mine)
    parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
    parts[rank] = vectors
    return torch.cat(parts)
