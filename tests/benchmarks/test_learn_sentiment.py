"""The sentiment benchmark: its split, and a run of all variants beside the linear baseline."""

import json

import pytest

from benchmarks.learn_sentiment import VARIANTS, bench_learn_sentiment, divide
from gpt_core.common.errors import InputError
from gpt_core.tasks.examples import Example
from tests.tiny_models import save_model


def test_the_split_is_by_the_text_alone_and_without_duplicates():
    examples = [Example(f"line {i}", (f"review {i % 300}",), "ab"[i % 2]) for i in range(400)]
    parts = divide(examples)
    texts = [{e.texts[0] for e in part} for part in parts.values()]
    assert sum(map(len, parts.values())) == 300
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert {e.texts[0] for e in divide(examples[::-1])["test"]} == texts[2]
    assert len(parts["test"]) == pytest.approx(30, abs=15)
    with pytest.raises(InputError, match="split of 3 reviews is empty"):
        divide(examples[:3])


def test_all_variants_are_trained_and_scored(tmp_path, capsys):
    save_model(tmp_path / "qwen3", "qwen3")
    rows = [{"review": f"it was {'good' if i % 2 else 'bad'} {i}", "label": str(i % 2)} for i in range(200)]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": str(tmp_path / "reviews.jsonl"), "model": str(tmp_path / "qwen3"), "max_iters": 40}
    bench_learn_sentiment(**settings, out_dir=str(tmp_path / "out"), max_tokens=24, learning_rate=3e-3)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [row["system"].partition(",")[0] for row in found[:1]] == ["TF-IDF + logistic regression"]
    assert [row["system"] for row in found[1:]] == list(VARIANTS)
    assert all(row["accuracy"] > 0.9 for row in found[:2])
    assert all(0 < row["cpu_minutes"] < 5 for row in found)
