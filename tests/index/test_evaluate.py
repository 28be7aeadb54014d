"""Retrieval evaluation, end to end on a small collection with tiny models."""

import json
import math
import shutil
from pathlib import Path

import pytest

from embed import Encoder
from embed.config import EmbedderConfig, Pooling
from embed.maps import CorpusMap
from gpt_core.doors import open_door
from gpt_core.errors import InputError
from gpt_core.extras import extra
from index.baselines import Baseline
from index.collection import Collection
from index.evaluate import check_published, evaluate_retrieval, index_runs, score
from tests.tiny_models import reference_model, save_model

SUBJECTS = ["winter wheat", "steam engines", "coral reefs", "tax law", "string quartets", "北京大学的历史"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve documents, two on each subject, one of them longer than any limit; a query for each subject."""
    folder = tmp_path_factory.mktemp("data") / "subjects"
    (folder / "qrels").mkdir(parents=True)
    rows = [
        {
            "_id": f"{kind}{i}",
            "title": subject,
            "text": f"{kind} about {subject}. " * (1 if kind == "note" else 60),
        }
        for i, subject in enumerate(SUBJECTS)
        for kind in ("note", "book")
    ]
    queries = [
        {"_id": f"q{i}", "text": f"{subject}" if i == 5 else f"what of {subject}?"}
        for i, subject in enumerate(SUBJECTS)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    qrels = "".join(f"q{i}\tnote{i}\t2\nq{i}\tbook{i}\t1\n" for i in range(len(SUBJECTS)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A cache with a random model under the baseline's name, and ours."""
    cache = tmp_path_factory.mktemp("cache")
    reference = reference_model(save_model(tmp_path_factory.mktemp("plain") / "model", "qwen3"), "mean")
    reference.save(str(cache / "models" / "all-MiniLM-L6-v2"), create_model_card=False)
    ours = save_model(cache / "models" / "ours", "qwen3")
    settings = EmbedderConfig(Pooling("mean", layer=1), corpus_map="standardise")
    (ours / "embedder.json").write_text(settings.to_json())
    return cache


def test_prints_all_rows_and_ends_in_json(data, models, monkeypatch, capsys):
    monkeypatch.setenv("ZHIZHI_CACHE", str(models))
    evaluate_retrieval(data=[str(data)], embedder="ours", max_tokens=64)
    said = capsys.readouterr()
    table, last = said.out.splitlines()[:-1], json.loads(said.out.splitlines()[-1])
    assert table[0].split() == ["dataset", "system", "model", "nDCG@10", "Recall@100", "MRR@10"]
    assert set(last) == {"command", "machine", "versions", "results", "ratios"}
    rows = {row["system"]: row for row in last["results"]}
    assert list(rows) == ["bm25", "baseline", "dense", "hybrid", "floor"]
    assert rows["bm25"]["Recall@100"] == rows["bm25"]["MRR@10"] == 1  # Chinese, too: by bigrams
    assert rows["dense"]["model"] == "ours"
    for line, row in zip(table[1:], last["results"], strict=True):
        assert f"{row['nDCG@10']:.4f}" in line
    expected = rows["hybrid"]["nDCG@10"] / rows["bm25"]["nDCG@10"]
    assert last["ratios"]["hybrid/bm25 nDCG@10 subjects"] == pytest.approx(expected, abs=1e-5)

    evaluate_retrieval(data=[str(data)], embedder="ours", max_tokens=64)
    again = capsys.readouterr()
    assert "from the cache" not in said.err
    assert "from the cache" in again.err
    assert json.loads(again.out.splitlines()[-1])["results"] == last["results"]


def test_the_same_weights_pooled_otherwise_are_not_answered_from_the_cache(
    data, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path / "cache"))
    collection = Collection.load(data, "test")
    other = shutil.copytree(models / "models" / "all-MiniLM-L6-v2", tmp_path / "other")
    config = json.loads((other / "1_Pooling" / "config.json").read_text())
    (other / "1_Pooling" / "config.json").write_text(json.dumps(config | {"pooling_mode": "lasttoken"}))
    runs = [
        Baseline(str(folder), 64).run(collection, 5)
        for folder in (models / "models" / "all-MiniLM-L6-v2", other)
    ]
    assert "from the cache" not in capsys.readouterr().err
    assert runs[0] != runs[1]


def test_no_data_is_refused():
    with pytest.raises(InputError, match="--data names nothing"):
        evaluate_retrieval(data=[])


def test_prints_nothing_of_ours_when_the_baseline_misses_its_published_score(
    data, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ZHIZHI_CACHE", str(models))
    shutil.copytree(data, tmp_path / "scifact")
    arguments = ["retrieval", "--data", str(tmp_path / "scifact"), "--embedder", "ours"]
    with pytest.raises(SystemExit) as caught:
        open_door({"retrieval": evaluate_retrieval}, args=arguments)
    assert "all-MiniLM-L6-v2 reaches nDCG@10" in str(caught.value.code)  # a string: status 1, on stderr
    assert "0.645 is published" in str(caught.value.code)
    assert capsys.readouterr().out == ""


def test_the_gate_lets_the_published_score_through(data):
    scifact = Collection("scifact", "test", {}, {}, {})
    check_published("all-MiniLM-L6-v2", scifact, 0.6470)
    check_published("another", scifact, 0.1)
    check_published("all-MiniLM-L6-v2", Collection("scifact", "train", {}, {}, {}), 0.1)
    for figure in (0.634, 0.656):
        with pytest.raises(InputError, match=r"0\.645 is published"):
            check_published("all-MiniLM-L6-v2", scifact, figure)


def test_metrics_by_hand(data):
    collection = Collection.load(data, "test")
    run = {
        "q0": {"book0": 3.0, "note1": 2.0, "note0": 1.0},
        "q1": {"book0": 1.0},
    }  # four queries found nothing
    figures = score(collection, run)
    best = 2 + 1 / math.log2(3)
    assert figures["nDCG@10"] == pytest.approx((1 + 2 / math.log2(4)) / best / 6)
    assert figures["Recall@100"] == pytest.approx(1 / 6)
    assert figures["MRR@10"] == pytest.approx(1 / 6)


def test_dense_rows_are_the_cosines_under_the_corpus_map(data, models, monkeypatch):
    monkeypatch.setenv("ZHIZHI_CACHE", str(models))
    encoder, collection = Encoder.from_pretrained("ours"), Collection.load(data, "test")
    runs = index_runs(collection, encoder, ("dense", "lexical"), max_tokens=64)
    documents = encoder.encode_document(collection.texts, max_tokens=64)
    fitted = CorpusMap.fit("standardise", documents)
    cosines = (
        fitted.apply(encoder.encode_query(list(collection.queries.values()))) @ fitted.apply(documents).T
    )
    for query, row in zip(collection.queries, cosines, strict=True):
        wanted = dict(zip(collection.documents, row.tolist(), strict=True))
        assert runs["dense"][query] == pytest.approx(wanted, abs=1e-4)
    assert set(runs["lexical"]["q0"]) == {
        "note0",
        "book0",
    }  # whole documents, also what the embedder cuts off


def test_a_missing_package_names_its_extra():
    with pytest.raises(InputError, match=r"no_such_package.*zhizhi\[eval\]"), extra("eval"):
        import no_such_package  # noqa: F401
