"""Retrieval evaluation, end to end on a small collection with tiny models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embed.encoding.peer_model import Teacher
from embed.network.config import EmbedderConfig, Pooling
from gpt_core.common.cli import run_command
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from index.evaluation.collection import Collection
from index.evaluation.retrieval import PUBLISHED, check_published, evaluate_retrieval
from tests.tiny_models import reference_model, save_model

SUBJECTS = ["winter wheat", "steam engines", "coral reefs", "tax law", "string quartets", "北京大学的历史"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve documents, two on each subject, one of them longer than max_tokens; a query for each subject."""
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
    """A model cache with a random model under the baseline's name, and our model."""
    cache = tmp_path_factory.mktemp("cache")
    reference = reference_model(save_model(tmp_path_factory.mktemp("plain") / "model", "qwen3"), "mean")
    reference.save(str(cache / "models" / "all-MiniLM-L6-v2"), create_model_card=False)
    ours = save_model(cache / "models" / "ours", "qwen3")
    settings = EmbedderConfig(Pooling("mean", layer=1), corpus_map="standardise")
    (ours / "embedder.json").write_text(settings.to_json())
    return cache


def run(capsys, **arguments) -> tuple[str, dict[str, dict], dict]:
    """Run `evaluate_retrieval`; return its stderr, rows by system, and report."""
    evaluate_retrieval(embedder="ours", max_tokens=64, **arguments)
    said = capsys.readouterr()
    report = json.loads(said.out.splitlines()[-1])
    table = said.out.splitlines()[:-1]
    assert table[0].split()[:3] == ["dataset", "system", "model"]
    for line, row in zip(table[1:], report["results"], strict=True):
        assert f"{row['nDCG@10']:.4f}" in line
    return said.err, {row["system"]: row for row in report["results"]}, report


@pytest.fixture
def cache(models, monkeypatch) -> Path:
    monkeypatch.setenv("ZHIZHI_CACHE", str(models))
    return models


def test_prints_all_rows_and_ends_in_json(data, cache, capsys):
    _, rows, report = run(capsys, data=[str(data)], base="ours", dims=(64, 16))
    assert set(report) == {"command", "machine", "versions", "results", "ratios"}
    dense = ["baseline", "random", "raw-mean", "raw-weightedmean", "floor", "dense", "int8", "dim-16"]
    hybrids = ["hybrid" if name == "dense" else f"{name}-hybrid" for name in dense]
    pairs = [name for both in zip(dense, hybrids, strict=True) for name in both]
    assert list(rows) == ["bm25", *pairs]  # no dim-64: the vectors have 32 dimensions
    assert rows["bm25"]["Recall@100"] == rows["bm25"]["MRR@10"] == 1  # also for Chinese, by bigrams
    assert rows["dense"]["model"] == "ours"
    assert [rows[name]["bytes"] for name in ("dense", "int8", "dim-16")] == [4 * 32, 32, 4 * 16]
    assert rows["dense"]["cut"] == 6  # the six long documents
    assert rows["dense"]["docs/s"] > 0
    expected = rows["hybrid"]["nDCG@10"] / rows["bm25"]["nDCG@10"]
    assert report["ratios"]["hybrid/bm25 nDCG@10 subjects"] == pytest.approx(expected, abs=1e-5)
    for name, row in rows.items():
        for other in {"bm25", "baseline"} - {name}:
            low, high = row[f"vs {other}"]
            assert low <= row["nDCG@10"] - rows[other]["nDCG@10"] <= high
    assert "vs bm25" not in rows["bm25"]


def test_a_second_evaluation_reads_the_vectors_from_the_cache(data, cache, capsys, monkeypatch):
    wanted = {"data": [str(data)], "rows": ["baseline", "raw-mean", "dense"]}
    _, first, _ = run(capsys, **wanted)
    monkeypatch.setattr("embed.encoding.contenders.Contender.rate", lambda *_: 0.0)
    monkeypatch.setattr("embed.encoding.vector_cache.atomic_write", lambda *_: pytest.fail("computed again"))
    _, again, _ = run(capsys, **wanted)
    assert [row["nDCG@10"] for row in again.values()] == [row["nDCG@10"] for row in first.values()]


def test_only_the_rows_that_were_asked_for_appear(data, cache, capsys):
    _, rows, _ = run(capsys, data=[str(data)], rows=["int8"])
    assert list(rows) == ["int8"]
    _, rows, _ = run(capsys, data=[str(data)], rows=["bm25", "rerank"], rerank_depth=3)
    assert list(rows) == ["bm25", "rerank"]
    assert rows["rerank"]["Recall@100"] == rows["bm25"]["Recall@100"]  # the same documents, in another order


def test_run_files_score_as_their_rows_do(data, cache, capsys, tmp_path):
    _, rows, _ = run(capsys, data=[str(data)], rows=["bm25", "dense", "hybrid"], runs=str(tmp_path / "runs"))
    names = {f"subjects.{system}.run" for system in rows}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names
    peer = shutil.copy(tmp_path / "runs" / "subjects.hybrid.run", tmp_path / "subjects.a peer.run")
    _, again, _ = run(capsys, data=[str(data)], rows=["bm25"], peer_runs=[str(peer)])
    for figure in ("nDCG@10", "Recall@100", "MRR@10"):
        assert again["a peer"][figure] == pytest.approx(rows["hybrid"][figure], abs=1e-6)
    with pytest.raises(InputError, match=r"other\.x\.run belongs to none of the collections subjects"):
        run(capsys, data=[str(data)], peer_runs=[str(tmp_path / "other.x.run")])
    for taken in ("dense", "dim-64", "floor-hybrid"):
        with pytest.raises(InputError, match=f"a second row called {taken}"):
            run(capsys, data=[str(data)], peer_runs=[str(tmp_path / f"subjects.{taken}.run")])


def test_training_texts_among_the_evaluation_texts_are_counted(data, cache, capsys, tmp_path):
    row = json.loads((data / "corpus.jsonl").read_text().splitlines()[1])
    pairs = [
        {"query": "What of coral reefs", "positive": "a text of its own"},
        {"query": "another question", "positive": row["text"]},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    said, rows, _ = run(capsys, data=[str(data)], rows=["bm25"], training_data=[str(path)])
    assert rows["bm25"]["near-duplicate queries"] == 1
    assert rows["bm25"]["near-duplicate documents"] == 1
    assert "1 of 6 subjects's queries have near-duplicates in the training data" in said


def test_another_pooling_of_the_same_weights_does_not_use_the_cache(data, models, tmp_path, monkeypatch):
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path / "cache"))
    texts = Collection.load(data, "test").texts
    folder = models / "models" / "all-MiniLM-L6-v2"
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "1_Pooling" / "config.json").read_text())
    (other / "1_Pooling" / "config.json").write_text(json.dumps(config | {"pooling_mode": "lasttoken"}))
    first, second, shorter = (
        Teacher(str(place), length).encode(texts)
        for place, length in ((folder, 64), (other, 64), (folder, 8))
    )
    assert not np.allclose(first, second, atol=1e-2)
    assert not np.allclose(first, shorter, atol=1e-2)


def test_no_data_is_refused():
    with pytest.raises(InputError, match="--data is empty"):
        evaluate_retrieval(data=[])
    with pytest.raises(InputError, match="--rows is hybrid only"):
        evaluate_retrieval(data=["anything"], rows=["hybrid"])


def test_prints_no_results_when_the_baseline_misses_its_published_score(
    data, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ZHIZHI_CACHE", str(models))
    monkeypatch.delitem(PUBLISHED, ("bm25s", "scifact"))
    shutil.copytree(data, tmp_path / "scifact")
    arguments = ["retrieval", "--data", str(tmp_path / "scifact"), "--embedder", "ours"]
    with pytest.raises(SystemExit) as caught:
        run_command({"retrieval": evaluate_retrieval}, args=arguments)
    assert "all-MiniLM-L6-v2 reaches nDCG@10" in str(caught.value.code)  # a string: status 1, on stderr
    assert "0.645 is published" in str(caught.value.code)
    assert capsys.readouterr().out == ""


def test_check_published_accepts_published_scores_and_refuses_others(data):
    scifact = Collection("scifact", "test", {}, {}, {})
    check_published("all-MiniLM-L6-v2", scifact, 0.6470)
    check_published("another", scifact, 0.1)
    check_published("all-MiniLM-L6-v2", Collection("scifact", "train", {}, {}, {}), 0.1)
    with pytest.raises(InputError, match=r"0\.687 is published"):
        check_published("bm25s", scifact, 0.66)
    for figure in (0.634, 0.656):
        with pytest.raises(InputError, match=r"0\.645 is published"):
            check_published("all-MiniLM-L6-v2", scifact, figure)


def test_a_missing_package_names_its_extra():
    with pytest.raises(InputError, match=r"no_such_package.*zhizhi\[eval\]"), extra("eval"):
        import no_such_package  # noqa: F401
