"""The curve of retrieval over the CPU time of embedder trainings."""

import json
from dataclasses import replace

import pytest

from benchmarks.learn_embedding import bench_learn_embedding, minutes_to
from embed.training.config import TrainEmbedderConfig
from embed.training.train import train_embedder
from gpt_core.common.errors import InputError
from gpt_core.data.train_tokenizer import train_tokenizer
from tests.embed.training.test_train import write_pairs


def test_the_time_to_a_target_is_interpolated():
    curve = [(60.0, 0.2), (120.0, 0.4), (180.0, 0.3), (240.0, 0.5)]
    assert minutes_to(0.1, curve) == 1.0
    assert minutes_to(0.3, curve) == pytest.approx(1.5)
    assert minutes_to(0.45, curve) == pytest.approx(3.75)
    assert minutes_to(0.6, curve) is None
    assert minutes_to(0.1, []) is None


def test_checkpoints_of_consecutive_runs_are_evaluated(tmp_path, capsys):
    write_pairs(tmp_path / "pairs.jsonl", 80)
    train_tokenizer(
        out=str(tmp_path / "tokenizer"),
        vocab_size=400,
        input=[str(tmp_path / "pairs.jsonl")],
        column="positive",
    )
    first = TrainEmbedderConfig(
        init_from="scratch", tokenizer=str(tmp_path / "tokenizer"), n_layer=0, n_embd=8, max_iters=4,
        data=(str(tmp_path / "pairs.jsonl"),), out_dir=str(tmp_path / "first"), batch_size=8, log_interval=2,
        eval_interval=2, warmup_iters=1, learning_rate=1e-2, threads=1, device="cpu", dtype="float32",
    )  # fmt: skip
    train_embedder(first)
    train_embedder(
        replace(first, init_from=first.out_dir, tokenizer=None, n_embd=None, out_dir=str(tmp_path / "2nd"))
    )
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()][:20]
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    for name, key in (("corpus", "positive"), ("queries", "query")):
        rows = [json.dumps({"_id": str(i), "text": pair[key]}) + "\n" for i, pair in enumerate(pairs)]
        (beir / f"{name}.jsonl").write_text("".join(rows))
    judged = "".join(f"{i}\t{i}\t1\n" for i in range(len(pairs)))
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    capsys.readouterr()
    bench_learn_embedding(
        data=[str(beir)], runs=[first.out_dir, str(tmp_path / "2nd")], baseline=first.out_dir
    )
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = report["results"]
    assert [(row["run"], row["step"]) for row in rows[:-1]] == [
        ("first", 2),
        ("first", 4),
        ("2nd", 2),
        ("2nd", 4),
    ]
    minutes = [row["cpu_minutes"] for row in rows[:-1]]
    assert 0 < minutes[0] < minutes[1] < minutes[2] < minutes[3]
    # The baseline is the first run's best checkpoint, read by sentence-transformers.
    assert min(abs(row["nDCG@10"] - rows[-1]["nDCG@10"]) for row in rows[:2]) < 1e-4
    with pytest.raises(InputError, match="has no checkpoints"):
        bench_learn_embedding(data=[str(beir)], runs=[str(tmp_path)], baseline=first.out_dir)
