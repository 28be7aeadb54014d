"""What an embedder is trained on: contrast against other texts, a teacher's vectors, or both.

Pure functions of vectors. They know nothing of models, batches or ranks, so that they can be held against other
people's, and used on cached vectors (GradCache) as on fresh ones. All give one loss for each row, for the caller to
average, and compute in the type of what they are given, but in float32 at least.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n, d) and (m, d) vectors of any length → (n, m) cosines; a vector of zeros has cosine 0 with any other."""
    a, b = (F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1) for x in (a, b))
    # A temperature of 0.05 makes 0.08 in the logit of bfloat16's rounding: no autocast here.
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def info_nce(
    queries: Tensor,
    candidates: Tensor,
    positives: Tensor,
    temperature: float | Tensor,
    masked: Tensor | None = None,
) -> Tensor:
    """Find each query's positive among all candidates: cross-entropy of cosine / temperature.

    InfoNCE (van den Oord et al. 2018) with in-batch negatives; sentence-transformers' MultipleNegativesRankingLoss
    is its mean, where candidates are [p_1 … p_B, n1_1 … n1_B, …] and scale is 1 / temperature.

    Args:
        queries: (Q, d), of any length.
        candidates: (D, d): every query's positive, and what is to be told from it. Gathered from all ranks, say.
        positives: (Q,) int64, where in `candidates` each query's positive is.
        temperature: above 0; a tensor learns.
        masked: (Q, D) bool, candidates that do not count for a query. Never its positive.

    Returns:
        (Q,) losses; 0 for a query that has no candidate but its positive.
    """
    logits = cosines(queries, candidates) / temperature
    if masked is not None:
        logits = logits.masked_fill(masked, float("-inf"))
    return F.cross_entropy(logits, positives, reduction="none")


def equal_text_mask(positives: Tensor, candidate_texts: Tensor, query_texts: Tensor) -> Tensor:
    """Candidates that are no negatives because they are the positive's text, or the query's own.

    Two queries of a batch may share a positive, and in symmetric data a query is another one's positive.

    Args:
        positives: (Q,) int64, each query's positive among the candidates.
        candidate_texts: (D,) int64, numbers that are equal where texts are.
        query_texts: (Q,) int64, in the same numbering.

    Returns:
        (Q, D) bool, true at candidates to leave out; never at the query's own positive.
    """
    of_positive = candidate_texts[positives][:, None] == candidate_texts
    of_query = query_texts[:, None] == candidate_texts
    return _except_positives(of_positive | of_query, positives)


def false_negative_mask(
    similarities: Tensor, positives: Tensor, margin: float, relative: bool = False
) -> Tensor:
    """Candidates too similar to the query to be called negatives, by a guide's judgement.

    GISTEmbed (Solatorio 2024): what the guide finds at least as similar as the positive, less a margin, is left out.
    The relative margin is NV-Retriever's (Moreira et al. 2024), a share of the positive's absolute similarity, so
    that it lowers the bar for negative similarities, too.

    Args:
        similarities: (Q, D) of queries and candidates, by the guide; or by the model itself, detached.
        positives: (Q,) int64, each query's positive among the candidates.
        margin: how far below the positive the bar is. Negative values leave out only what is above the positive.
        relative: whether `margin` is a share of the positive's similarity.

    Returns:
        (Q, D) bool, true at candidates to leave out; never at the query's own positive.
    """
    positive = similarities.gather(1, positives[:, None])
    bar = positive - (positive.abs() * margin if relative else margin)
    return _except_positives(similarities >= bar, positives)


def matryoshka(
    loss: Callable[..., Tensor],
    vectors: Sequence[Tensor],
    dimensions: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The weighted sum of `loss` on the first k numbers of vectors, for several k (Kusupati et al. 2022).

    Args:
        loss: takes as many tensors as `vectors` has, and brings truncated vectors to unit length itself if need be.
        vectors: each (…, d).
        dimensions: the values of k; d among them if whole vectors are to be trained.
        weights: one for each of `dimensions`; None for ones.

    Returns:
        What `loss` returns, summed.

    Raises:
        ValueError: for no dimensions, one that the vectors do not have, or another number of weights.
    """
    smallest = min(v.shape[-1] for v in vectors)
    if not dimensions or not all(0 < k <= smallest for k in dimensions):
        raise ValueError(f"dimensions are {list(dimensions)}; expected numbers from 1 to {smallest}.")
    weights = [1.0] * len(dimensions) if weights is None else weights
    parts = [w * loss(*(v[..., :k] for v in vectors)) for k, w in zip(dimensions, weights, strict=True)]
    return torch.stack(parts).sum(dim=0)


def distill_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """(N, d) and (N, d) vectors of any length → (N,) losses 1 - cosine (sentence-transformers' EmbedDistillLoss)."""
    _same_shape(student, teacher)
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def distill_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """(N, d) and (N, d) vectors → (N,) means of squared differences (Reimers & Gurevych 2020, MSELoss).

    Vectors are taken as they are. Of unit vectors this is 2 / d · (1 - cosine).
    """
    _same_shape(student, teacher)
    return F.mse_loss(student, teacher, reduction="none").mean(dim=-1)


def similarity_kl(
    student_queries: Tensor,
    student_documents: Tensor,
    teacher_queries: Tensor,
    teacher_documents: Tensor,
    temperature: float,
    masked: Tensor | None = None,
) -> Tensor:
    """KL(teacher ‖ student) of the distributions over candidates that softmax(cosine / temperature) makes.

    The teacher's vectors may have another dimension: only similarities are compared (Lin et al. 2020). Without the
    factor temperature² of Hinton et al. (2015), which sentence-transformers' DistillKLDivLoss has.

    Args:
        student_queries: (Q, d), any length, as all.
        student_documents: (D, d).
        teacher_queries: (Q, e).
        teacher_documents: (D, e).
        temperature: above 0, for both.
        masked: (Q, D) bool, candidates that do not count for a query.

    Returns:
        (Q,) losses, at least 0 but for rounding; 0 for a query that keeps no candidate.
    """
    student = cosines(student_queries, student_documents) / temperature
    teacher = cosines(teacher_queries, teacher_documents) / temperature
    if masked is not None:
        # Not -inf, of which a query without candidates would make NaN.
        student, teacher = (x.masked_fill(masked, torch.finfo(x.dtype).min) for x in (student, teacher))
    log_p = teacher.log_softmax(dim=1)
    difference = log_p - student.log_softmax(dim=1)
    if masked is not None:
        difference = difference.masked_fill(masked, 0)
    return (log_p.exp() * difference).sum(dim=1)


def _except_positives(mask: Tensor, positives: Tensor) -> Tensor:
    """`mask` (Q, D) made false at each query's positive."""
    return mask.scatter(1, positives[:, None], False)


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    """Torch would broadcast a single row over all."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"The student's vectors are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}."
        )
