"""Re-ranked hits: the best n in the order of the language model, whatever page of them is asked for."""

import pytest
import torch

from embed.data.beir import join_title
from embed.encoding.rerank import Reranker
from gpt_core.common.errors import InputError
from index.index import Index
from index.reading.document import Document
from index.search_index import search_index
from tests.tiny_models import save_model

TEXTS = [
    f"The {word} of number {i} sings." for i, word in enumerate(["whale", "engine", "tower", "river"] * 4)
]


@pytest.fixture
def index(tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder, max_tokens=32) as index:
        index.add(Document(f"d{i}", text, f"Title {i}") for i, text in enumerate(TEXTS))
        yield index


@pytest.fixture
def reranker(encoder):
    with torch.no_grad():  # random weights give nearly uniform probabilities
        for parameter in encoder.model.parameters():
            parameter.mul_(4)
    return Reranker(encoder.model, encoder.tokenizer, template="{document} is about ")


def test_the_best_hits_are_in_the_order_of_the_language_model(index, reranker):
    plain = index.search("whale engine", 16)
    scores = reranker.score(["whale engine"] * 7, [join_title(hit.title, hit.text) for hit in plain[:7]])
    expected = sorted(zip(scores, plain, strict=False), key=lambda pair: -pair[0])
    hits = index.search("whale engine", 16, rerank=reranker, n_reranked=7)
    assert [hit.passage_id for hit in hits] == [hit.passage_id for _, hit in expected] + [
        hit.passage_id for hit in plain[7:]
    ]
    assert [hit.passage_id for hit in hits[:7]] != [hit.passage_id for hit in plain[:7]]
    assert [hit.reranked for hit in hits] == pytest.approx(
        [score for score, _ in expected] + [None] * 9, abs=1e-3
    )
    assert {hit.passage_id: hit.score for hit in hits} == {hit.passage_id: hit.score for hit in plain}
    pages = [index.search("whale engine", 4, offset=n, rerank=reranker, n_reranked=7) for n in (0, 4, 8)]
    assert [hit.passage_id for page in pages for hit in page] == [hit.passage_id for hit in hits[:12]]
    both = index.search(["whale engine", "tower"], 3, rerank=reranker, n_reranked=7, explain=True)
    assert [hit.passage_id for hit in both[0]] == [hit.passage_id for hit in hits[:3]]
    assert both[1][0].explanation is not None


def test_what_cannot_be_reranked_is_refused(index, reranker):
    with pytest.raises(InputError, match="n_reranked is 0; expected a whole number of at least 1"):
        index.search("whale", rerank=reranker, n_reranked=0)
    with pytest.raises(InputError, match="A vector cannot be re-ranked"):
        index.search([1.0] * 16, rerank=reranker)
    assert index.search("nowhere", 3, "lexical", rerank=reranker) == []


def test_the_command_takes_a_model(index, tmp_path, capsys):
    model = save_model(tmp_path / "model", "qwen3")
    index.close()
    search_index("whale", index=str(index.folder), k=2, mode="lexical", rerank=str(model))
    assert capsys.readouterr().out.count("re-ranked -") == 2
