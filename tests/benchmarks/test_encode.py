"""The encoding benchmark: what it runs, prints and refuses. Speed is not tested."""

import json

import pytest
import torch

from benchmarks import encode as bench_encode
from benchmarks.encode import OURS, PEER
from gpt_core.common.errors import InputError
from gpt_core.hub.locate import DEFAULT_EMBEDDER
from tests.tiny_models import TEXTS, save_model


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure in this process: importing torch in a new one takes seconds."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(bench_encode, "in_own_process", lambda function, *arguments: function(*arguments))
    yield
    torch.set_num_threads(threads)


def test_ours_and_sentence_transformers_encode_the_same_documents_to_the_same_vectors(
    tmp_path, in_this_process, capsys
):
    data = tmp_path / "texts.jsonl"
    data.write_text(
        "".join(json.dumps({"text": text, "title": str(i)}) + "\n" for i, text in enumerate(TEXTS))
    )
    model = str(save_model(tmp_path / "model", "qwen3"))
    bench_encode.bench_encode(
        data=str(data), embedder=model, baseline=model, docs=4, rounds=2, threads=1, device="cpu"
    )
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(row["system"], row["dtype"]): row for row in report["results"]}
    assert set(rows) == {(system, dtype) for system in (OURS, PEER) for dtype in ("float32", "bfloat16")} | {
        (model, "float32")
    }
    ours, peer = rows[OURS, "float32"], rows[PEER, "float32"]
    assert ours["docs"] == peer["docs"] == 4
    assert ours["tokens_per_doc"] == peer["tokens_per_doc"] > 10
    assert ours["lowest_cosine"] > 0.9999
    assert 0.99 < rows[OURS, "bfloat16"]["lowest_cosine"] < 1
    assert len(ours["rounds"]) == 2
    assert ours["docs_per_s"] == pytest.approx(sum(wall for wall, _ in ours["rounds"]) / 2)
    ratio = report["ratios"]["ours float32/sentence-transformers float32 docs/CPU-s"]
    assert ratio == pytest.approx(ours["docs_per_cpu_s"] / peer["docs_per_cpu_s"], rel=1e-4)
    assert f"ours bfloat16/{model} float32 docs/s" in report["ratios"]
    assert {"sentence-transformers", "transformers"} < set(report["versions"])


def test_a_table_is_measured_as_well(tmp_path, in_this_process, capsys):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    bench_encode.bench_encode(
        data=str(tmp_path / "texts.jsonl"), embedder=DEFAULT_EMBEDDER, baseline=None, docs=4, rounds=1,
        dtypes=("float32",), threads=1, device="cpu",
    )  # fmt: skip
    peer, ours = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert ours["tokens_per_doc"] == peer["tokens_per_doc"] > 5
    assert ours["lowest_cosine"] > 0.9999


@pytest.mark.parametrize("keys", [{"docs": 0}, {"rounds": 0}, {"threads": 0}, {"dtypes": ()}])
def test_zero_counts_and_empty_dtypes_are_refused(keys):
    with pytest.raises(InputError, match=f"^{next(iter(keys))} "):
        bench_encode.bench_encode(data="nowhere", embedder="nothing", **keys)
