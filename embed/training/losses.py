"""Losses of embedding training: contrastive losses and distillation.

Pure functions of vectors, independent of models, batches and ranks, so that they can be tested against other
implementations and used with cached vectors (GradCache). They return one loss per row, not averaged, and compute in the
dtype of their input, but at least in float32.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n, d) and (m, d) vectors of any length → (n, m) cosines; a vector of zeros has cosine 0 with any other."""
    a, b = (F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1) for x in (a, b))
    # No autocast: at temperature 0.05, rounding to bfloat16 changes a logit by up to 0.08.
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def info_nce(
    queries: Tensor,
    candidates: Tensor,
    positives: Tensor,
    temperature: float | Tensor,
    masked: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of softmax(cosine / temperature) over all candidates, with each query's positive as the target.

    InfoNCE (van den Oord et al. 2018) with in-batch negatives; its mean equals sentence-transformers'
    MultipleNegativesRankingLoss for candidates [p_1 … p_B, n1_1 … n1_B, …] and scale 1 / temperature.

    Args:
        queries: (Q, d) vectors of any length.
        candidates: (D, d) vectors of any length: positives and negatives of all queries, e.g. of all ranks.
        positives: (Q,) int64, position of each query's positive in `candidates`.
        temperature: above 0; a tensor receives gradients.
        masked: (Q, D) bool, true at candidates to ignore for a query; must be false at its positive.

    Returns:
        (Q,) losses; 0 for a query without candidates besides its positive.
    """
    logits = cosines(queries, candidates) / temperature
    if masked is not None:
        logits = logits.masked_fill(masked, float("-inf"))
    return F.cross_entropy(logits, positives, reduction="none")


def equal_text_mask(positives: Tensor, candidate_texts: Tensor, query_texts: Tensor) -> Tensor:
    """Mask of candidates that are not negatives because their text equals the query or its positive.

    Two queries of a batch may share a positive, and in symmetric data a query may be the positive of another one.

    Args:
        positives: (Q,) int64, position of each query's positive among the candidates.
        candidate_texts: (D,) int64 text ids, equal for equal texts.
        query_texts: (Q,) int64 text ids of the queries.

    Returns:
        (Q, D) bool, true at candidates to ignore; false at the query's positive.
    """
    of_positive = candidate_texts[positives][:, None] == candidate_texts
    of_query = query_texts[:, None] == candidate_texts
    return _except_positives(of_positive | of_query, positives)


def false_negative_mask(
    similarities: Tensor, positives: Tensor, margin: float, relative: bool = False
) -> Tensor:
    """Mask of likely false negatives: candidates about as similar to the query as its positive.

    GISTEmbed (Solatorio 2024): candidates whose similarity by the guide is at least the positive's less a margin are
    masked. The relative margin is NV-Retriever's (Moreira et al. 2024): a fraction of the positive's absolute
    similarity, so that it lowers the threshold for negative similarities as well.

    Args:
        similarities: (Q, D) of queries and candidates, by the guide or by the model itself, detached.
        positives: (Q,) int64, position of each query's positive among the candidates.
        margin: the threshold is the positive's similarity less margin; a negative margin raises it above the positive.
        relative: whether `margin` is a fraction of the positive's similarity.

    Returns:
        (Q, D) bool, true at candidates to ignore; false at the query's positive.
    """
    positive = similarities.gather(1, positives[:, None])
    threshold = positive - (positive.abs() * margin if relative else margin)
    return _except_positives(similarities >= threshold, positives)


def matryoshka(
    loss: Callable[..., Tensor],
    vectors: Sequence[Tensor],
    dimensions: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Weighted sum of `loss` over vectors truncated to their first k dimensions, for several k (Kusupati et al. 2022).

    Args:
        loss: takes as many tensors as `vectors` has; must normalise truncated vectors itself if it needs to.
        vectors: each (…, d).
        dimensions: the values of k, at most d; include d to train full vectors.
        weights: one for each of `dimensions`; None: ones.

    Returns:
        The weighted sum, of the shape that `loss` returns.

    Raises:
        ValueError: for no dimensions, a k out of range, or another number of weights than dimensions.
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

    Vectors are not normalised. For unit vectors the loss is 2 / d · (1 - cosine).
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
    teacher_temperature: float | None = None,
) -> Tensor:
    """KL(teacher ‖ student) of the distributions softmax(cosine / temperature) over documents.

    The teacher's vectors may have another dimension: only similarities are compared (Lin et al. 2020). Without the
    factor temperature² of Hinton et al. (2015), which sentence-transformers' DistillKLDivLoss has.

    Args:
        student_queries: (Q, d) vectors of any length.
        student_documents: (D, d) vectors of any length.
        teacher_queries: (Q, e) vectors of any length.
        teacher_documents: (D, e) vectors of any length.
        temperature: above 0, for both, or for the student alone if there is a teacher_temperature.
        masked: (Q, D) bool, true at documents to ignore for a query.
        teacher_temperature: above 0, for the teacher; None: temperature. Similar cosines need a low one.

    Returns:
        (Q,) losses, non-negative except for rounding; 0 for a query without unmasked documents.
    """
    student = cosines(student_queries, student_documents) / temperature
    teacher = cosines(teacher_queries, teacher_documents) / (teacher_temperature or temperature)
    if masked is not None:
        # Not -inf, which gives NaN for a query without unmasked documents.
        student, teacher = (x.masked_fill(masked, torch.finfo(x.dtype).min) for x in (student, teacher))
    log_p = teacher.log_softmax(dim=1)
    difference = log_p - student.log_softmax(dim=1)
    if masked is not None:
        difference = difference.masked_fill(masked, 0)
    return (log_p.exp() * difference).sum(dim=1)


def _except_positives(mask: Tensor, positives: Tensor) -> Tensor:
    """`mask` (Q, D) with false at each query's positive."""
    return mask.scatter(1, positives[:, None], False)


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError for different shapes, because torch would broadcast a single row over all."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"The student's vectors are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
            "expected equal shapes."
        )
