"""The benchmark of lexical search: what it runs, prints and refuses. Speed is not tested."""

import json

import pytest

from benchmarks import lexical as bench
from gpt_core.common.errors import InputError
from index.lexical import live


def test_both_systems_find_the_same_passages_with_the_same_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live, "MIN_PASSAGES", 100)
    monkeypatch.setattr(bench, "MIN_PASSAGES", 100)
    monkeypatch.setattr(bench, "N_RARE", 10)
    texts = [" ".join(f"word{i % (j + 1)}" for i in range(30)) for j in range(30)]
    corpus = [{"_id": str(i), "text": text, "title": ""} for i, text in enumerate(texts)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "word1 and word7"}) + "\n")
    bench.bench_lexical(data=str(tmp_path), passages=300, queries=2)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["queries"], row["system"]) for row in report["results"]] == [
        (kind, system) for kind in ("real", "common", "rare") for system in ("postings", "fts5")
    ]
    assert all(row["largest_difference"] < 1e-6 for row in report["results"])
    assert all(row["matches"] > 0 for row in report["results"])
    with pytest.raises(InputError, match="passages is 99; expected at least 100"):
        bench.bench_lexical(data=str(tmp_path), passages=99)
