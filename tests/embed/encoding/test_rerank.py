"""Re-ranking compared with transformers' log-probabilities; caching and batching must not change scores."""

import math
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from embed.encoding import rerank
from embed.encoding.rerank import TEMPLATE, Reranker, rerank_run
from gpt_core.common.errors import InputError
from gpt_core.generation.fast_model import prepare
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.tiny_models import TEXTS, save_model

QUERIES = ["what do you know", "知之", "x"]


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def folder(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), request.param)


def reranker(folder, dtype=torch.float32, **settings) -> Reranker:
    model = GPT.from_pretrained(folder).to(dtype)
    with torch.no_grad():  # a freshly initialised model gives nearly uniform probabilities
        for p in model.parameters():
            p.mul_(4)
    return Reranker(model, Tokenizer.from_pretrained(folder), **settings)


def reference(folder, query: str, document: str, max_tokens: int = 512) -> float:
    """SGPT's procedure with transformers: tokenise separately, truncate left after the instruction, sum."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        for p in {p.data_ptr(): p for p in model.parameters()}.values():
            p.mul_(4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    instruction, _ = TEMPLATE.split("{document}")
    n = len(tokenizer.encode(instruction))
    context = tokenizer.encode(TEMPLATE.replace("{document}", document))
    continuation = tokenizer.encode(query)
    ids = (context[:n] + (context[n:] + continuation)[-(max_tokens + 1 - n) :])[:-1]
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    return sum(float(log_p[len(ids) - len(continuation) + i, t]) for i, t in enumerate(continuation))


def test_scores_equal_transformers_log_probabilities(folder):
    ours = reranker(folder)
    pairs = [(query, document) for query in QUERIES for document in TEXTS]
    scores = ours.score(*zip(*pairs, strict=True))
    wanted = [reference(folder, *pair) for pair in pairs]
    assert scores == pytest.approx(wanted, rel=1e-5)
    assert max(wanted) - min(wanted) > 10
    assert ours.n_truncated == 0


def test_int8_weights_give_nearly_the_same_scores(folder):
    model, tokenizer = GPT.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    plain = Reranker(model, tokenizer).score([QUERIES[0]] * len(TEXTS), TEXTS)
    small = Reranker(prepare(GPT.from_pretrained(folder), "int8"), tokenizer)
    assert small.score([QUERIES[0]] * len(TEXTS), TEXTS) == pytest.approx(plain, rel=0.02)


def test_a_long_document_is_truncated_on_the_left_and_counted(folder):
    long, short = TEXTS[3], "short"
    tokenizer = Tokenizer.from_pretrained(folder)
    limit = len(tokenizer.encode(TEMPLATE.replace("{document}", long) + QUERIES[0])) - 8
    ours = reranker(folder, max_tokens=limit)
    pairs = [(QUERIES[0], long), (QUERIES[0] * 2, long), (QUERIES[0], short)]
    scores = ours.score(*zip(*pairs, strict=True))
    assert scores == pytest.approx([reference(folder, *pair, limit) for pair in pairs], rel=1e-5)
    assert scores[0] != pytest.approx(reference(folder, *pairs[0]), rel=1e-5)
    assert ours.n_truncated == 2


def test_cache_batch_and_order_do_not_change_scores(folder, monkeypatch):
    generator = random.Random(0)
    words = ["知", "know", "what", "x", "retrieval", ",", "is", "laptop", "[1]", "documents"]
    documents = [" ".join(generator.choices(words, k=generator.randint(0, 40))) for _ in range(12)]
    queries = [" ".join(generator.choices(words, k=generator.randint(1, 9))) for _ in range(3)]
    pairs = [(q, d) for q in queries for d in documents]
    generator.shuffle(pairs)
    plain = reranker(folder, torch.float64, cache_bytes=0)
    alone = [plain.score([q], [d])[0] for q, d in pairs]
    assert not plain._cached
    cached = reranker(folder, torch.float64)
    small = reranker(folder, torch.float64, cache_bytes=300_000)  # a few documents
    for tokens in (100, 700, 100_000):
        monkeypatch.setitem(rerank.TOKENS_PER_BATCH, "cpu", tokens)
        for one in (plain, cached, small):
            assert one.score(*zip(*pairs, strict=True)) == pytest.approx(alone, rel=1e-11)
    assert len(cached._cached) == len(set(documents))
    assert 0 < len(small._cached) < len(cached._cached)
    for one in (cached, small):
        held = sum(k.nbytes + v.nbytes for k, v in one._cached.values())
        assert held == one._cached_bytes <= one.cache_bytes


def test_the_next_query_computes_only_its_own_tokens(folder, monkeypatch):
    ours = reranker(folder)
    ours.rerank(QUERIES[0], TEXTS)
    seen = []
    forward = ours.model.forward
    monkeypatch.setattr(
        ours.model, "forward", lambda ids, **keys: seen.append(ids.shape) or forward(ids, **keys)
    )
    ours.rerank(QUERIES[1], TEXTS)
    assert seen == [(len(TEXTS), len(ours.tokenizer.encode(QUERIES[1])))]


def test_the_least_recently_used_document_is_evicted_first(folder):
    one = reranker(folder)
    one.score(["x"], ["a document of some one"])
    ours = reranker(folder, cache_bytes=5 * one._cached_bytes // 2)  # space for two documents of this length

    def holds(word: str) -> bool:
        before_query = TEMPLATE.replace("{document}", f"a document of some {word}")
        return tuple(ours.tokenizer.encode(before_query)[:-1]) in ours._cached

    for word in ("one", "two", "one", "six"):
        ours.score(["x"], [f"a document of some {word}"])
    assert holds("one")
    assert holds("six")
    assert not holds("two")


def test_rerank_orders_and_cuts(folder):
    ours = reranker(folder)
    scores = ours.score([QUERIES[0]] * len(TEXTS), TEXTS)
    ranked = ours.rerank(QUERIES[0], TEXTS)
    assert ranked == sorted(ranked, key=lambda pair: -pair[1])
    assert dict(ranked) == pytest.approx(dict(enumerate(scores)), rel=1e-5)
    assert ours.rerank(QUERIES[0], TEXTS, top_k=2) == ranked[:2]
    twins = ours.rerank(QUERIES[0], ["same", "same"])
    assert [i for i, _ in twins] == [0, 1]
    assert ours.rerank(QUERIES[0], []) == []


def test_documents_below_top_k_keep_their_order(folder):
    ours = reranker(folder)
    queries, documents = {"q": QUERIES[0], "r": QUERIES[2]}, {str(i): text for i, text in enumerate(TEXTS)}
    run = {"q": {"0": 1.0, "1": 3.0, "4": 2.0, "2": 0.5}, "r": {"3": 1.0}}
    reranked = rerank_run(ours, queries, documents, run, top_k=2)
    best = [["1", "4"][i] for i, _ in ours.rerank(QUERIES[0], [TEXTS[1], TEXTS[4]])]
    assert sorted(reranked["q"], key=lambda d: -reranked["q"][d]) == [*best, "0", "2"]
    assert list(reranked["r"]) == ["3"]
    assert rerank_run(ours, queries, documents, {"q": {}}, top_k=2) == {"q": {}}


def test_an_end_token_of_the_tokenizer_does_not_change_scores(tmp_path):
    """Qwen3-Embedding's tokenizer appends an end token to every text; it must not stand between document and query."""
    with_eos = save_model(tmp_path / "eos", "qwen3", eos_after_text=True)
    without = save_model(tmp_path / "plain", "qwen3")
    scores = [reranker(folder).score(QUERIES, TEXTS[:3]) for folder in (with_eos, without)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("template", ["{document}\n", "\n{document}"])
def test_short_templates_and_empty_documents(folder, template):
    ours = reranker(folder, template=template)
    one, empty = ours.score(["x", "x"], ["知", ""])
    with torch.no_grad():
        log_p = ours.model(torch.tensor([ours.tokenizer.encode("\n")])).logits[0, -1].log_softmax(dim=-1)
    assert empty == pytest.approx(float(log_p[ours.tokenizer.encode("x")[0]]), rel=1e-5)
    assert math.isfinite(one)
    assert one != empty
    assert ours.score(["x"], [""])[0] == pytest.approx(empty, rel=1e-5)


def test_braces_in_documents_are_text(folder):
    ours = reranker(folder)
    assert ours.score(["x"], ["{document} {0} {"]) == pytest.approx(
        [reference(folder, "x", "{document} {0} {")], rel=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "find {}"}, r"template is 'find \{\}'; expected \{document\} in it"),
        ({"template": "{document}"}, "expected words besides"),
        ({"max_tokens": 0}, "max_tokens is 0; expected 1 to the model's 512 tokens"),
        ({"max_tokens": 513}, "max_tokens is 513"),
        ({"cache_bytes": -1}, "cache_bytes is -1"),
    ],
)
def test_bad_settings(folder, settings, message):
    with pytest.raises(InputError, match=message):
        reranker(folder, **settings)


def test_bad_queries(folder):
    ours = reranker(folder)
    with pytest.raises(InputError, match="The query '' has no tokens"):
        ours.rerank("", TEXTS)
    with pytest.raises(InputError, match="leaves none of max_tokens = 512 for a document; shorten the query"):
        ours.rerank("x " * 400, TEXTS)
    with pytest.raises(InputError, match="documents is one string"):
        ours.rerank("a", "letters")
    with pytest.raises(InputError, match="top_k is -1"):
        ours.rerank("a", TEXTS, top_k=-1)
    with pytest.raises(InputError, match="queries and documents cannot be paired"):
        ours.score(["a"], TEXTS[:2])
