"""A step's gradient is equal with and without GradCache, on two ranks and one, and in sentence-transformers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as reference
from torch import Tensor

from embed.data.pairs import Example
from embed.network.config import Pooling
from embed.network.network import Network
from embed.network.padding import grouped, padded
from embed.training.batches import Batch
from embed.training.config import TrainEmbedderConfig
from embed.training.step import (
    MIN_TEMPERATURE,
    EmbeddingLoss,
    LanguageModel,
    Objective,
    Trainee,
)
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests import commands
from tests.embed.training.contrastive_cases import batch, difference, examples, settings, step, trainee
from tests.tiny_models import TEXTS, reference_model, save_model

EXACT = 1e-10
EVERYTHING = {
    "learn_temperature": True,
    "n_negatives": 2,
    "matryoshka": (4, 8),
    "false_negative_margin": 0.1,
    "guide": "guide",
    "teacher": "teacher",
    "distill_loss": "mse",
    "similarity_weight": 0.5,
    "lm_weight": 0.3,
}


def plain_gradient(model: Trainee, config: TrainEmbedderConfig, of: Batch) -> tuple[float, dict[str, Tensor]]:
    """Reference: all texts in one forward, one loss, one backward; without dropout."""
    out = model(*padded(of.rows, "cpu"), of.lm)
    loss = Objective(config)(out.vectors, of, out.log_temperature, out.projection)
    if of.lm is not None:
        loss = loss + config.lm_weight * out.lm_sum / (of.lm[1] != -100).sum()
    loss = loss * of.n_queries
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
    found = torch.autograd.grad(loss, parameters)
    return loss.item(), dict(zip(names, found, strict=True))


def test_gradcache_at_batch_1024_in_chunks_of_32_equals_the_whole_batch():
    config = settings(batch_size=1024)
    model, of = trainee(config), batch(examples(1024, longest=6), config)
    assert len(of.rows) > 2500
    loss, gradients = plain_gradient(model, config, of)
    cached = settings(batch_size=1024, chunk_size=32)
    cached_loss, cached_gradients = step(model, cached, of)
    assert cached_loss / 1024 == pytest.approx(loss / 1024, abs=EXACT)
    assert max(g.abs().max() for g in gradients.values()) > 100
    # EXACT for the gradient of the mean, which a step applies
    assert difference(cached_gradients, gradients) <= EXACT * 1024


@pytest.mark.parametrize("trainable", ["full", "lora", "last-k"])
@pytest.mark.parametrize("chunk_size", [None, 3, 1000])
def test_all_losses_together_equal_the_whole_batch(trainable, chunk_size):
    """Learned temperature, guide, Matryoshka, all distillation losses with a projection, language-model loss."""
    config = settings(trainable=trainable, last_k=1, chunk_size=chunk_size, **EVERYTHING)
    model = trainee(config, teacher=True, dense=True, layer=None if trainable == "full" else 1)
    of = batch(examples(24), config)
    loss, gradients = plain_gradient(model, config, of)
    assert {"log_temperature", "projection", "network.dense.0.linear.weight"} < set(gradients)
    assert all(g.abs().max() > 1e-6 for g in gradients.values())
    for tokens in (10**6, 100):
        our_loss, ours = step(model, config, of, tokens)
        assert our_loss == pytest.approx(loss, abs=EXACT)
        assert difference(ours, gradients) <= EXACT


def test_gradcache_repeats_the_same_dropout():
    """Texts of one length, so that token groups equal the chunks. GradCache saves no graph of the first forward."""
    of = batch(examples(32), settings())
    of = replace(of, rows=[np.tile(row, 30)[:10] for row in of.rows])
    found = {}
    for chunk_size in (None, 4):
        config = settings(chunk_size=chunk_size, dropout=0.3, learn_temperature=True)
        found[chunk_size] = step(trainee(config), config, of, tokens=40)
    assert found[4][0] == pytest.approx(found[None][0], abs=EXACT)
    assert difference(found[4][1], found[None][1]) <= EXACT
    without = settings(chunk_size=4)
    assert abs(step(trainee(without), without, of)[0] - found[4][0]) > 1e-3  # dropout was active


@pytest.mark.parametrize("cached", [False, True])
def test_a_step_equals_sentence_transformers(tmp_path, cached):
    """Loss and gradients for the same weights, with Matryoshka and one hard negative per query."""
    # transformers' Qwen3 computes its norms in float32 even for float64 weights
    folder = save_model(tmp_path, "gpt2")
    config = settings(chunk_size=2 if cached else None, matryoshka=(8,))
    tokenizer = Tokenizer.from_pretrained(folder)
    texts = [*TEXTS, *(text[::-1] for text in TEXTS), *(text[1:] + "!" for text in TEXTS)]
    n = len(TEXTS)
    of = Batch(
        name="texts",
        entries=list(range(3 * n)),
        rows=[tokenizer.encode(text) for text in texts],
        counts=(3 * n,),
        n_queries=n,
        texts=torch.arange(3 * n),
        queries=torch.arange(n),
        candidates=torch.arange(n, 3 * n),
        positives=torch.arange(n),
        answers=torch.arange(n).repeat(2, 1),
    )
    network = Network(GPT.from_pretrained(folder), Pooling()).double()
    model = Trainee(network, config.temperature).double().train()
    model.log_temperature.data.fill_(math.log(0.05))  # exact in float64, not rounded to float32
    loss, gradients = step(model, config, of)

    other = reference_model(folder, "weightedmean").double()
    inner = (
        reference.CachedMultipleNegativesRankingLoss(other, mini_batch_size=2)
        if cached
        else reference.MultipleNegativesRankingLoss(other)
    )
    theirs = reference.MatryoshkaLoss(other, inner, [32, 8], [0.5, 0.5])
    value = theirs([other.preprocess(texts[i : i + n]) for i in range(0, 3 * n, n)], None)
    value.backward()
    assert loss / n == pytest.approx(value.item(), abs=EXACT)
    for ours, name in (
        ("wte.weight", "wte.weight"),
        ("wpe.weight", "wpe.weight"),
        ("blocks.0.attn.o.weight", "h.0.attn.c_proj.weight"),
        ("blocks.1.mlp.down.weight", "h.1.mlp.c_proj.weight"),
        ("blocks.2.norm1.bias", "h.2.ln_1.bias"),
        ("norm.weight", "ln_f.weight"),
    ):
        mine = gradients[f"network.gpt.{ours}"] / n
        (wanted,) = (p.grad for key, p in other.named_parameters() if key.endswith(f".{name}"))
        wanted = wanted.T if "c_proj" in name else wanted  # Conv1D stores its weight transposed
        assert wanted.abs().max() > 1e-6
        assert (mine - wanted).abs().max() <= EXACT


def test_the_objective_by_hand():
    """Every term computed with loops and plain arithmetic, for a batch in which each mask excludes something."""
    config = settings(**{**EVERYTHING, "lm_weight": 0.0, "distill_loss": "cosine", "contrastive_weight": 0.7})
    model = trainee(config, teacher=True)
    of = batch(examples(12), config)
    vectors = F.normalize(torch.randn(len(of.texts), 16, dtype=torch.float64), dim=1)
    ours = Objective(config)(vectors, of, model.log_temperature, model.projection)

    def cos(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    answers: dict[int, list[int]] = {i: [] for i in range(12)}
    for i, j in of.answers.T.tolist():
        answers[i].append(int(of.candidates[j]))
    n_masked = {"equal": 0, "guide": 0}
    total = 0.0
    for k in (4, 8, 16):
        of_dimension = 0.0
        for i, query in enumerate(of.queries.tolist()):
            positive = int(of.candidates[of.positives[i]])
            terms = []
            for c in of.candidates.tolist():
                equal = of.texts[c] in (of.texts[positive], of.texts[query]) or c in answers[i]
                near = cos(of.guide[query], of.guide[c]) >= cos(of.guide[query], of.guide[positive]) + 0.1
                if c != positive and (equal or near):
                    n_masked["equal" if equal else "guide"] += 1
                else:
                    terms.append(math.exp(cos(vectors[query, :k], vectors[c, :k]) / 0.05))
            of_dimension += math.log(sum(terms)) - cos(vectors[query, :k], vectors[positive, :k]) / 0.05
        total += 0.7 * of_dimension / len(of.queries) / 3
    assert min(n_masked.values()) > 0

    n = len(of.texts)
    projected = vectors @ model.projection.detach().mT
    total += sum(1 - cos(projected[i], of.teacher[i]) for i in range(n)) / n
    for k in (4, 8, 16):
        for i in range(n):
            others = [j for j in range(n) if of.texts[j] != of.texts[i]]
            p, q = ([math.exp(cos(x[i], x[j]) / 0.05) for j in others] for x in (of.teacher, vectors[:, :k]))
            p, q = ([x / sum(row) for x in row] for row in (p, q))
            total += 0.5 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / n / 3
    assert ours.item() == pytest.approx(total, abs=EXACT)


def test_without_a_guide_the_model_masks_false_negatives_without_gradient():
    config = settings(false_negative_margin=0.0)
    of = batch(examples(12), config)
    vectors = torch.randn(len(of.texts), 16, dtype=torch.float64).requires_grad_()
    masked = Objective(config).masked(vectors.detach(), of)
    plain = Objective(settings()).masked(vectors.detach(), of)
    assert (masked | plain).equal(masked)
    assert masked.sum() > plain.sum()
    loss = Objective(config)(vectors, of, torch.tensor([math.log(0.05)]).double(), None)
    assert torch.autograd.grad(loss, vectors)[0].isfinite().all()


def test_no_positive_of_a_query_is_its_negative():
    """Masks the example's other positives, and the positives of other examples with the same query."""
    made = [
        Example("q", ("a", "b")),
        Example("r", ("b",)),
        Example("q", ("c",)),
        Example("s", ("d",), ("c",)),
    ]
    of = batch(made, settings())
    assert of.texts[of.candidates].tolist() == [1, 2, 4, 6, 4]  # a b c d c, numbered as q a b r c s d
    vectors = torch.randn(len(of.texts), 16, dtype=torch.float64)
    masked = Objective(settings()).masked(vectors, of)
    assert masked.int().tolist() == [[0, 1, 1, 0, 1], [0] * 5, [1, 1, 0, 0, 1], [0] * 5]


def test_the_language_model_is_evaluated_through_the_trainee():
    model = trainee(settings(), teacher=True).eval()
    ids = torch.randint(50, (3, 9))
    targets = ids.roll(-1, dims=1)
    targets[:, -1] = -100
    wanted = model.network.gpt(ids, targets=targets, logits=False)
    ours = LanguageModel(model)(ids, targets=targets)
    assert torch.equal(ours.loss_sum, wanted.loss_sum)
    assert ours.n_targets == wanted.n_targets == 24
    assert LanguageModel(model)(ids).n_targets == 0


def test_texts_without_positives_have_no_contrastive_loss():
    config = settings(teacher="teacher", learn_temperature=True, chunk_size=4)
    model, of = trainee(config, teacher=True), batch(examples(9, plain=True), config)
    loss, gradients = plain_gradient_of_vectors(model, config, of)
    our_loss, ours = step(model, config, of)
    assert our_loss == pytest.approx(loss, abs=EXACT)
    assert not ours.pop("log_temperature").any()
    assert difference(ours, gradients) <= EXACT


def plain_gradient_of_vectors(
    model: Trainee, config: TrainEmbedderConfig, of: Batch
) -> tuple[float, dict[str, Tensor]]:
    """As `plain_gradient`, for a loss that does not depend on the temperature."""
    model.log_temperature.requires_grad_(False)
    found = plain_gradient(model, config, of)
    model.log_temperature.requires_grad_(True)
    return found


def test_evaluation_gives_the_loss_and_no_gradient():
    config = settings(chunk_size=3, **EVERYTHING)
    model, of = trainee(config, teacher=True).eval(), batch(examples(12), config)
    wanted, _ = plain_gradient(model, config, of)
    with torch.no_grad():
        loss, n = EmbeddingLoss(Objective(config), 50)(model, of)
    assert (loss.item(), n) == (pytest.approx(wanted, abs=EXACT), 12)
    assert all(p.grad is None for p in model.parameters())


def test_a_learned_temperature_is_clamped_and_keeps_its_gradient():
    config = settings(temperature=MIN_TEMPERATURE / 2, learn_temperature=True)
    at_lowest = settings(temperature=MIN_TEMPERATURE, learn_temperature=True)
    of = batch(examples(8), config)
    loss, gradients = step(trainee(config), config, of)
    wanted, of_lowest = step(trainee(at_lowest), at_lowest, of)
    assert loss == pytest.approx(wanted, abs=1e-9)
    assert gradients["log_temperature"].abs() > 0
    torch.testing.assert_close(gradients["log_temperature"], of_lowest["log_temperature"])


def test_groups_have_similar_lengths_and_contain_every_row_once():
    rows = [[1] * n for n in (3, 9, 1, 4, 4, 0, 2)]
    by_tokens = list(grouped(rows, 12))
    assert by_tokens == [[1], [3, 4, 0], [6, 2, 5]]
    assert list(grouped(rows, 12, 4)) == [[1, 3, 4, 0], [6, 2, 5]]
    assert list(grouped(rows, 1)) == [[i] for i in (1, 3, 4, 0, 6, 2, 5)]  # one at a time if none fits
    ids, mask = padded([[7, 8], []], "cpu")
    assert ids.tolist() == [[7, 8], [0, 0]]
    assert mask.tolist() == [[True, True], [False, False]]


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, dict[str, float]]:
    driver = Path(__file__).with_name("contrastive_driver.py")
    done = commands.run([driver], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "scenario",
    ["ddp", "ddp, uneven chunks", "ddp, everything", "ddp, lora", "ddp, texts alone", "fsdp2, uneven groups",
     "fsdp2, everything", "fsdp2, lora"],
)  # fmt: skip
def test_two_ranks_equal_one_process(two_ranks, scenario):
    """Losses and gradients of two steps; the second would show state left over from the first."""
    found = two_ranks[scenario]
    assert found["length"] > 1e-2
    assert found["loss"] <= EXACT
    assert found["gradient"] <= EXACT
    assert found["between ranks"] == 0
