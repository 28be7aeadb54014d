"""Retrieval evaluation, end to end on a small collection with tiny models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embed.encoding.fingerprint import files_sha256
from embed.encoding.peer_model import Teacher
from embed.evaluation.published import BM25S, Published
from embed.network.config import EmbedderConfig, Pooling
from gpt_core.common.cli import run_command
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from index import Index
from index.build_index import build_index
from index.building.options import BuildOptions
from index.evaluation.collection import Collection
from index.evaluation.metrics import score
from index.evaluation.retrieval import evaluate_retrieval
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
    compressed = ["unmapped", "int8", "dim-16"]
    dense = ["baseline", "random", "raw-mean", "raw-weightedmean", "floor", "dense", *compressed]
    hybrids = ["hybrid" if name == "dense" else f"{name}-hybrid" for name in dense]
    pairs = [name for both in zip(dense, hybrids, strict=True) for name in both]
    of_index = ["index-lexical", "index-dense", "index-hybrid"]
    assert list(rows) == ["bm25", *of_index, *pairs]  # no dim-64: the vectors have 32 dimensions
    assert rows["bm25"]["Recall@100"] == rows["bm25"]["MRR@10"] == 1  # also for Chinese, by bigrams
    assert rows["dense"]["model"] == "ours"
    assert [rows[name]["bytes"] for name in ("dense", "int8", "dim-16")] == [4 * 32, 32, 4 * 16]
    assert rows["dense"]["cut"] == 6  # the six long documents
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
    monkeypatch.setattr("embed.encoding.vector_cache.atomic_write", lambda *_: pytest.fail("computed again"))
    _, again, _ = run(capsys, **wanted)
    assert [row["nDCG@10"] for row in again.values()] == [row["nDCG@10"] for row in first.values()]


def test_only_the_rows_that_were_asked_for_appear(data, cache, capsys):
    _, rows, _ = run(capsys, data=[str(data)], rows=["int8"])
    assert list(rows) == ["int8"]
    _, rows, _ = run(capsys, data=[str(data)], rows=["bm25", "rerank"], rerank_depth=3)
    assert list(rows) == ["bm25", "rerank"]
    assert rows["rerank"]["Recall@100"] == rows["bm25"]["Recall@100"]  # the same documents, in another order


def test_index_rows_score_the_index_that_build_index_builds(data, cache, capsys, tmp_path):
    index_rows = ["index-lexical", "index-dense", "index-hybrid"]
    _, rows, report = run(capsys, data=[str(data)], rows=["bm25", *index_rows])
    assert list(rows) == ["bm25", *index_rows]
    build_index(
        BuildOptions(
            input=[str(data / "corpus.jsonl")], index=str(tmp_path / "index"), embedder="ours", max_tokens=64
        )
    )
    capsys.readouterr()
    collection = Collection.load(data, "test")
    with Index.open(tmp_path / "index") as index:
        for name in index_rows:
            found = {}
            for query, text in collection.queries.items():
                hits = index.search(text, 1000, name.removeprefix("index-"))
                found[query] = {
                    hit.doc_id: hit.score for hit in reversed(hits)
                }  # the best passage comes last
            expected = score(collection, found)
            assert {metric: rows[name][metric] for metric in expected} == pytest.approx(expected)
            assert rows[name]["passages"] == index.stats()["passages"] > len(collection.documents)
    assert "bytes" not in rows["index-lexical"]
    assert rows["index-hybrid"]["bytes"] == 4 * 32
    assert "index-lexical/bm25 nDCG@10 subjects" in report["ratios"]


def test_run_files_score_as_their_rows_do(data, cache, capsys, tmp_path):
    _, rows, _ = run(capsys, data=[str(data)], rows=["bm25", "dense", "hybrid"], runs=str(tmp_path / "runs"))
    names = {f"subjects.{system}.run" for system in rows}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names
    peer = shutil.copy(tmp_path / "runs" / "subjects.hybrid.run", tmp_path / "subjects.a peer.run")
    _, again, _ = run(capsys, data=[str(data)], rows=["bm25"], peer_runs=[str(peer)])
    for figure in ("nDCG@10", "Recall@100", "MRR@10"):
        assert again["a peer"][figure] == pytest.approx(rows["hybrid"][figure], abs=1e-6)
    assert again["a peer"]["vs bm25"] == pytest.approx(rows["hybrid"]["vs bm25"], abs=1e-6)
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
    for rows in (["hybrid"], ["hybrid", "bm25", "index-hybrid"]):
        with pytest.raises(InputError, match="--rows has hybrid, but no row to combine with BM25"):
            evaluate_retrieval(data=["anything"], rows=rows)


def publish(monkeypatch, system: str, data: Path, score: float) -> None:
    """Make `score` the published score of a system on a data set."""
    key = system, Collection.load(data, "test").sha256
    monkeypatch.setattr("embed.evaluation.published.PUBLISHED", {key: Published(score, 0.01)})


def renamed(data: Path, copy: Path) -> Path:
    """Copy a BEIR folder to another name, its documents in another order and with other white space."""
    shutil.copytree(data, copy)
    lines = (data / "corpus.jsonl").read_text().replace(". ", ".  ").splitlines(keepends=True)
    (copy / "corpus.jsonl").write_text("".join(reversed(lines)))
    return copy


@pytest.mark.parametrize("row", ["bm25", "baseline"])
def test_prints_nothing_if_a_known_system_misses_its_published_score_under_any_name(
    row, data, cache, tmp_path, monkeypatch, capsys
):
    model = shutil.copytree(cache / "models" / "all-MiniLM-L6-v2", tmp_path / "a model")
    collection = renamed(data, tmp_path / "a corpus")
    publish(monkeypatch, BM25S if row == "bm25" else files_sha256(model) or "", data, 0.1)
    arguments = ["retrieval", "--data", str(collection), "--embedder", "ours", "--baseline", str(model)]
    with pytest.raises(SystemExit) as caught:
        run_command({"retrieval": evaluate_retrieval}, args=[*arguments, "--rows", row])
    name = "bm25s" if row == "bm25" else str(model)
    assert f"{name} reaches nDCG@10" in str(caught.value.code)  # a string: status 1, on stderr
    assert "on a corpus, but 0.1 is published" in str(caught.value.code)
    assert capsys.readouterr().out == ""


def test_another_corpus_or_model_under_a_known_name_is_not_checked(
    data, cache, tmp_path, monkeypatch, capsys
):
    model = cache / "models" / "all-MiniLM-L6-v2"
    publish(monkeypatch, files_sha256(model) or "", data, 0.1)
    other = shutil.copytree(data, tmp_path / "subjects")
    (other / "qrels" / "test.tsv").write_text("q0\tnote0\t2\n")
    _, rows, _ = run(capsys, data=[str(other)], rows=["baseline"])
    assert list(rows) == ["baseline"]
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models").mkdir(parents=True)
    shutil.copytree(cache / "models" / "ours", tmp_path / "cache" / "models" / "ours")
    another = reference_model(save_model(tmp_path / "plain", "gpt2"), "mean")
    another.save(str(tmp_path / "cache" / "models" / model.name), create_model_card=False)
    _, rows, _ = run(capsys, data=[str(data)], rows=["baseline"])
    assert rows["baseline"]["nDCG@10"] > 0.12


def test_a_missing_package_names_its_extra():
    with pytest.raises(InputError, match=r"no_such_package.*zhizhi\[eval\]"), extra("eval"):
        import no_such_package  # noqa: F401
