"""Losses: values and gradients compared with sentence-transformers in float64, and general properties."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer import losses as reference
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor, nn

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
from tests.tiny_models import TEXTS, reference_model, save_model

N, D = 7, 12  # number of queries; dimension
EXACT = 1e-10
seeds = st.integers(0, 10_000)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Rows(nn.Module):
    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": self.vectors[features["input_ids"][:, 0]]}


class Table(nn.Sequential):
    """A model whose parameters are its vectors, so that gradients are with respect to the vectors."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__(Rows(vectors))
        self.vectors = self[0].vectors

    def get_embedding_dimension(self) -> int:
        return self.vectors.shape[1]


def columns(n: int) -> list[dict[str, Tensor]]:
    """Features of n columns of N texts each: rows 0 … N-1 of the table, N … 2N-1, and so on."""
    ids = torch.arange(n * N).view(n, N, 1)
    return [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids]


def assert_equal(ours: Tensor, our_vectors: Tensor, theirs: Tensor, table: Table) -> None:
    """Assert the same loss and the same gradient with respect to the vectors."""
    ours.backward()
    theirs.backward()
    assert our_vectors.grad.abs().max() > 1e-4
    assert (ours - theirs).abs() <= EXACT
    assert (our_vectors.grad - table.vectors.grad).abs().max() <= EXACT


def vectors_and_table(n_columns: int) -> tuple[Tensor, Table]:
    vectors = normal(n_columns * N, D, seed=n_columns) * 3
    return vectors.clone().requires_grad_(), Table(vectors)


@pytest.mark.parametrize("n_negatives", [0, 1, 3])
def test_info_nce_equals_multiple_negatives_ranking(n_negatives):
    ours, table = vectors_and_table(2 + n_negatives)
    loss = info_nce(ours[:N], ours[N:], torch.arange(N), temperature=0.05).mean()
    theirs = reference.MultipleNegativesRankingLoss(table, scale=20)(columns(2 + n_negatives), None)
    assert_equal(loss, ours, theirs, table)


def test_info_nce_equals_cached_multiple_negatives_ranking():
    ours, table = vectors_and_table(3)
    loss = info_nce(ours[:N], ours[N:], torch.arange(N), temperature=0.02).mean()
    cached = reference.CachedMultipleNegativesRankingLoss(table, scale=50, mini_batch_size=3)
    assert_equal(loss, ours, cached(columns(3), None), table)


@pytest.mark.parametrize("cached", [False, True])
def test_matryoshka_equals_sentence_transformers(cached):
    ours, table = vectors_and_table(3)
    inner = (
        reference.CachedMultipleNegativesRankingLoss(table, mini_batch_size=3)
        if cached
        else reference.MultipleNegativesRankingLoss(table)
    )
    theirs = reference.MatryoshkaLoss(table, inner, [D, 8, 3], [1, 0.5, 0.25])(columns(3), None)

    def contrast(queries: Tensor, candidates: Tensor) -> Tensor:
        return info_nce(queries, candidates, torch.arange(N), temperature=0.05).mean()

    loss = matryoshka(contrast, [ours[:N], ours[N:]], [3, D, 8], [0.25, 1, 0.5])
    assert_equal(loss, ours, theirs, table)


@pytest.mark.parametrize(
    ("ours_is", "theirs_is"), [(distill_cosine, "cosine"), (distill_mse, "mse")], ids=["cosine", "mse"]
)
def test_distillation_equals_embed_distill(ours_is, theirs_is):
    ours, table = vectors_and_table(1)
    teacher = normal(N, D, seed=9)
    theirs = reference.EmbedDistillLoss(table, distance_metric=theirs_is)(columns(1), teacher)
    assert_equal(ours_is(ours, teacher).mean(), ours, theirs, table)


def test_distillation_equals_mse_loss():
    ours, table = vectors_and_table(1)
    teacher = normal(N, D, seed=9)
    assert_equal(
        distill_mse(ours, teacher).mean(), ours, reference.MSELoss(table)(columns(1), teacher), table
    )


def test_matryoshka_of_distillation_equals_sentence_transformers():
    ours, table = vectors_and_table(1)
    teacher = normal(N, D, seed=9)
    inner = reference.EmbedDistillLoss(table, distance_metric="cosine")
    theirs = reference.MatryoshkaLoss(table, inner, [D, 5])(columns(1), teacher)
    assert_equal(matryoshka(distill_cosine, [ours, teacher], [D, 5]).mean(), ours, theirs, table)


@pytest.mark.parametrize("of_its_own", [None, 0.1])
def test_similarity_kl_equals_distill_kl_div(of_its_own):
    """Their loss compares each query with its own candidates only, and includes Hinton's factor temperature²."""
    temperature, n_ways = 0.3, 4
    ours, table = vectors_and_table(1 + n_ways)
    teacher = normal((1 + n_ways) * N, 5, seed=9)
    of_teacher = [pairwise_cos_sim(teacher[:N], teacher[i * N : i * N + N]) for i in range(1, 1 + n_ways)]
    loss = reference.DistillKLDivLoss(table, similarity_fct=pairwise_cos_sim, temperature=temperature)
    scale = temperature / (of_its_own or temperature)
    theirs = loss(columns(1 + n_ways), scale * torch.stack(of_teacher, dim=1))
    others = ~torch.eye(N, dtype=torch.bool).repeat(1, n_ways)
    kl = similarity_kl(ours[:N], ours[N:], teacher[:N], teacher[N:], temperature, others, of_its_own)
    assert_equal(kl.mean() * temperature**2, ours, theirs, table)


@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.05), ("relative", 0.05)])
def test_guided_info_nce_equals_gist_embed(tmp_path, strategy, margin):
    """With whole models, because GISTEmbedLoss needs tokenizers; compares the gradients of all weights."""
    model, guide = (
        reference_model(save_model(tmp_path / mode, "qwen3"), mode).double()
        for mode in ("weightedmean", "mean")
    )
    with torch.no_grad():  # a guide that does not agree with the model
        for p in guide.parameters():
            p += normal(*p.shape, seed=p.numel()) / 4
    n = len(TEXTS)
    texts = [*TEXTS, *(text[::-1] for text in TEXTS), *(text[1:] + "!" for text in TEXTS)]
    features = [model.preprocess(texts[i : i + n]) for i in range(0, len(texts), n)]
    theirs = reference.GISTEmbedLoss(
        model,
        guide,
        margin_strategy=strategy,
        margin=margin,
        contrast_anchors=False,
        contrast_positives=False,
    )([dict(column) for column in features], None)
    wanted = torch.autograd.grad(theirs, list(model.parameters()))

    def vectors(of: nn.Module) -> Tensor:
        return torch.cat([of(dict(column))["sentence_embedding"] for column in features])

    ours, judged, positives = vectors(model), vectors(guide).detach(), torch.arange(n)
    masked = false_negative_mask(cosines(judged[:n], judged[n:]), positives, margin, strategy == "relative")
    assert 0 < masked.sum() < masked.numel() - n
    loss = info_nce(ours[:n], ours[n:], positives, temperature=0.01, masked=masked).mean()
    assert (loss - theirs).abs() <= EXACT
    for ours_is, theirs_is in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        assert (ours_is - theirs_is).abs().max() <= EXACT


@pytest.mark.parametrize("masking", [False, True])
def test_gradients_equal_finite_differences(masking):
    """Gradients with respect to every input, including the temperature."""
    masked = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    masked[torch.arange(3), torch.arange(3)] = False
    masked = masked if masking else None

    def contrast(queries: Tensor, candidates: Tensor, temperature: Tensor) -> Tensor:
        return info_nce(queries, candidates, torch.arange(3), temperature, masked)

    def relations(queries: Tensor, documents: Tensor) -> Tensor:
        return similarity_kl(queries, documents, normal(3, 2, seed=3), normal(5, 2, seed=4), 0.2, masked)

    inputs = [normal(3, 4, seed=1).requires_grad_(), normal(5, 4, seed=2).requires_grad_()]
    assert torch.autograd.gradcheck(
        contrast, (*inputs, torch.tensor(0.3, dtype=torch.float64, requires_grad=True))
    )
    assert torch.autograd.gradcheck(relations, inputs)


@st.composite
def contrasts(draw):
    """Queries, candidates, positives, and a mask that leaves the positives unmasked."""
    n, n_candidates, seed = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(seeds)
    generator = torch.Generator().manual_seed(seed)
    positives = torch.randint(n_candidates, (n,), generator=generator)
    masked = torch.rand(n, n_candidates, generator=generator) < draw(st.sampled_from([0, 0.3, 0.9]))
    masked[torch.arange(n), positives] = False
    return normal(n, 4, seed=seed + 1), normal(n_candidates, 4, seed=seed + 2), positives, masked


@given(contrasts(), st.sampled_from([0.01, 0.05, 1.0]))
def test_masking_a_candidate_equals_removing_it(contrast, temperature):
    queries, candidates, positives, masked = contrast
    losses = info_nce(queries, candidates, positives, temperature, masked)
    relations = similarity_kl(queries, candidates, queries[:, :2], candidates[:, :2], temperature, masked)
    for i, query in enumerate(queries):
        kept = candidates[~masked[i]]
        place = (~masked[i])[: positives[i]].sum()[None]
        assert torch.allclose(losses[i], info_nce(query[None], kept, place, temperature)[0], atol=EXACT)
        alone = similarity_kl(query[None], kept, query[None, :2], kept[:, :2], temperature)[0]
        assert torch.allclose(relations[i], alone, atol=EXACT)


@given(contrasts(), seeds)
def test_order_and_length_of_vectors_do_not_matter(contrast, seed):
    queries, candidates, positives, masked = contrast
    generator = torch.Generator().manual_seed(seed)
    q = torch.randperm(len(queries), generator=generator)
    c = torch.randperm(len(candidates), generator=generator)
    lengths = torch.rand(len(candidates), 1, generator=generator, dtype=torch.float64) + 0.1
    moved = info_nce(
        7 * queries[q], (lengths * candidates)[c], c.argsort()[positives[q]], 0.05, masked[q][:, c]
    )
    assert torch.allclose(moved, info_nce(queries, candidates, positives, 0.05, masked)[q], atol=EXACT)


@given(contrasts())
def test_limits_of_low_and_high_temperature(contrast):
    """Low: (largest cosine - the positive's) / temperature. High: the log of the number of unmasked candidates."""
    queries, candidates, positives, masked = contrast
    similar = cosines(queries, candidates).masked_fill(masked, float("-inf"))
    gap = similar.max(dim=1).values - similar.gather(1, positives[:, None])[:, 0]
    count = (~masked).sum(dim=1).log().double()
    cold = info_nce(queries, candidates, positives, 1e-4, masked) * 1e-4
    assert ((gap <= cold + EXACT) & (cold <= gap + 1e-4 * count + EXACT)).all()
    assert torch.allclose(info_nce(queries, candidates, positives, 1e9, masked), count, atol=1e-6)


@given(contrasts(), seeds)
def test_duplicate_texts_count_once(contrast, seed):
    """With the equal-text mask, copies of positives and of queries among the candidates change nothing."""
    queries, candidates, positives, _ = contrast
    n, n_candidates = len(queries), len(candidates)
    texts, query_texts = torch.arange(n_candidates), n_candidates + torch.arange(n)
    alone = torch.stack(
        [
            info_nce(
                queries[[i]], torch.cat([candidates, torch.cat([queries[:i], queries[i + 1 :]])]), positives[[i]], 0.05
            )[0]
            for i in range(n)
        ]
    )  # fmt: skip
    again = torch.cat([candidates, queries, candidates[positives]])
    again_texts = torch.cat([texts, query_texts, texts[positives]])
    masked = equal_text_mask(positives, again_texts, query_texts)
    # a copy of another query's positive is a further candidate for this query, unequal to its positive: mask it
    extra = torch.zeros_like(masked)
    extra[:, n_candidates + n :] = True
    losses = info_nce(queries, again, positives, 0.05, masked | extra)
    assert torch.allclose(losses, alone, atol=EXACT)
    own = torch.arange(n)
    assert masked[own, n_candidates + own].all()
    assert masked[own, n_candidates + n + own].all()
    assert not masked[own, positives].any()


def test_equal_texts_by_hand():
    """Queries a and b; candidates: the positive P of both, N, a, and P again."""
    mask = equal_text_mask(torch.tensor([0, 0]), torch.tensor([5, 6, 1, 5]), torch.tensor([1, 2]))
    assert mask.tolist() == [[False, False, True, True], [False, False, False, True]]


@given(seeds, st.floats(0, 0.5), st.floats(0, 0.5), st.booleans())
def test_a_wider_margin_masks_more(seed, small, large, relative):
    small, large = sorted((small, large))
    similarities = normal(4, 9, seed=seed).tanh()
    positives = torch.tensor([0, 3, 8, 3])
    narrow, wide = (false_negative_mask(similarities, positives, m, relative) for m in (small, large))
    assert not (narrow & ~wide).any()
    assert not wide[torch.arange(4), positives].any()
    above = similarities > similarities.gather(1, positives[:, None])
    # also for negative similarities: a relative margin never raises the threshold
    assert (narrow | ~above).all()


def test_margins_by_hand():
    similarities = torch.tensor([[0.8, 0.8, 0.77, 0.7], [-0.8, -0.8, -0.83, -0.9]])
    positives = torch.tensor([0, 0])
    assert false_negative_mask(similarities, positives, 0.0).tolist() == [[False, True, False, False]] * 2
    assert false_negative_mask(similarities, positives, 0.05).tolist() == [[False, True, True, False]] * 2
    relative = false_negative_mask(similarities, positives, 0.05, relative=True)
    assert relative.tolist() == [[False, True, True, False]] * 2  # the thresholds are 0.76 and -0.84
    assert not false_negative_mask(similarities, positives, -1.0).any()


@given(contrasts())
def test_a_student_equal_to_its_teacher_has_zero_loss_and_gradient(contrast):
    queries, candidates, _, masked = contrast
    queries, candidates = queries.requires_grad_(), candidates.requires_grad_()
    rotation = torch.linalg.qr(normal(4, 4, seed=0)).Q  # similarities are invariant to rotation
    loss = similarity_kl(
        queries, candidates, queries.detach() @ rotation, candidates.detach() @ rotation, 0.05, masked
    )
    loss = loss.sum() + distill_cosine(queries, 3 * queries.detach()).sum()
    loss = loss + distill_mse(queries, queries.detach()).sum()
    gradients = torch.autograd.grad(loss, (queries, candidates))
    assert loss.abs() <= EXACT
    assert all(g.abs().max() <= 1e-9 for g in gradients)


@given(contrasts(), seeds)
def test_a_divergence_is_never_negative(contrast, seed):
    queries, candidates, _, masked = contrast
    teacher = normal(len(queries) + len(candidates), 3, seed=seed)
    # some of the teacher's probabilities underflow to 0
    kl = similarity_kl(queries, candidates, teacher[: len(queries)], teacher[len(queries) :], 0.01, masked)
    assert (kl >= -EXACT).all()
    assert kl.isfinite().all()


def test_a_query_without_candidates_has_zero_loss_and_gradient():
    """As in a batch of one text, whose only candidate is itself."""
    queries, candidates = normal(2, 4, seed=1).requires_grad_(), normal(3, 4, seed=2).requires_grad_()
    masked = torch.tensor([[True] * 3, [False, True, False]])
    kl = similarity_kl(queries, candidates, normal(2, 5, seed=3), normal(3, 5, seed=4), 0.05, masked)
    gradients = torch.autograd.grad(kl.sum(), (queries, candidates))
    assert kl[0] == 0
    assert kl[1] > 0
    assert not gradients[0][0].any()
    assert not gradients[1][1].any()
    assert all(g.isfinite().all() for g in gradients)


def test_mse_of_unit_vectors_is_proportional_to_the_cosine_loss():
    a, b = (F.normalize(normal(N, D, seed=s), dim=-1) for s in (1, 2))
    assert torch.allclose(distill_mse(a, b), 2 / D * distill_cosine(a, b), atol=EXACT)


def test_a_zero_vector_gives_finite_gradients():
    """A text without tokens has a zero vector."""
    queries, candidates = normal(2, 4, seed=1), normal(3, 4, seed=2)
    queries[0], candidates[2] = 0, 0
    queries.requires_grad_()
    loss = info_nce(queries, candidates, torch.tensor([0, 1]), 0.05).sum()
    (loss + distill_cosine(queries, candidates[:2]).sum()).backward()
    assert queries.grad.isfinite().all()


def test_low_precision_and_autocast_are_computed_in_float32():
    queries, candidates, positives = (
        normal(4, 64, seed=1).float(),
        normal(9, 64, seed=2).float(),
        torch.arange(4),
    )
    wanted = info_nce(queries, candidates, positives, 0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(queries, candidates, positives, 0.01), wanted)
    rounded = info_nce(queries.bfloat16(), candidates.bfloat16(), positives, 0.01)
    assert rounded.dtype == torch.float32
    assert torch.equal(
        rounded, info_nce(queries.bfloat16().float(), candidates.bfloat16().float(), positives, 0.01)
    )


def test_shapes_that_torch_would_broadcast_are_errors():
    for distill in (distill_cosine, distill_mse):
        with pytest.raises(ValueError, match=r"The student's vectors are \(7, 12\), the teacher's \(1, 12\)"):
            distill(normal(N, D, seed=1), normal(1, D, seed=2))
    with pytest.raises(ValueError, match="zip"):
        matryoshka(distill_mse, [normal(N, D, seed=1)] * 2, [D, 4], [1.0])
    for dimensions in ([], [0], [D + 1]):
        with pytest.raises(ValueError, match="expected numbers from 1 to 12"):
            matryoshka(distill_mse, [normal(N, D, seed=1)] * 2, dimensions)
