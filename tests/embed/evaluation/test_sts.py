"""Similarity evaluation on small files, with tiny models."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from embed import Encoder
from embed.data.sentence_pairs import SentencePairs
from embed.data.vectors import unit_length
from embed.encoding.fingerprint import files_sha256
from embed.evaluation.published import Published
from embed.evaluation.sts import evaluate_sts, intervals, sha256_of
from embed.network.config import EmbedderConfig
from embed.network.corpus_map import CorpusMap
from gpt_core.common.cli import run_command
from gpt_core.common.errors import InputError
from tests.tiny_models import TEXTS, reference_model, save_model

# all pairs differ: the order of two equal pairs would depend on rounding
ROWS = [
    (f"{TEXTS[i % 5]} {i}", f"{TEXTS[i % 3]} {i * i}", f"{score:.2f}")
    for i, score in enumerate(np.linspace(0, 5, 20))
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A model cache with a random model under the baseline's name, and our model."""
    cache = tmp_path_factory.mktemp("cache")
    reference = reference_model(save_model(tmp_path_factory.mktemp("plain") / "model", "qwen3"), "mean")
    reference.save(str(cache / "models" / "all-MiniLM-L6-v2"), create_model_card=False)
    save_model(cache / "models" / "ours", "gpt2")
    return cache


@pytest.fixture
def data(tmp_path, models, monkeypatch) -> Path:
    monkeypatch.setenv("ZHIZHI_CACHE", str(models))
    path = tmp_path / "small.csv.gz"
    with gzip.open(path, "wt", newline="") as f:
        f.write("sentence1,sentence2,score\n")
        for first, second, score in ROWS:
            f.write(",".join(f'"{value}"' for value in (first, second, score)) + "\n")
    return path


def test_correlations_equal_scipys_on_the_encoders_cosines(data, capsys):
    evaluate_sts(data=[str(data)], embedder="ours", base="ours", dims=(16,), max_tokens=64)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["system"]: row for row in report["results"]}
    names = ["baseline", "random", "raw-mean", "raw-weightedmean", "floor", "dense", "int8", "dim-16"]
    assert list(rows) == names
    encoder, pairs = Encoder.from_pretrained("ours"), SentencePairs.load(data)
    for name, n_dims in (("dense", None), ("dim-16", 16)):
        first, second = (
            encoder.encode(texts, max_tokens=64, truncate_dim=n_dims) for texts in (pairs.first, pairs.second)
        )
        cosines = (first * second).sum(axis=1)
        # one swap of ranks changes it by 0.0015: rounding may swap two nearly equal cosines
        assert rows[name]["Spearman"] == pytest.approx(stats.spearmanr(cosines, pairs.scores)[0], abs=4e-3)
        assert rows[name]["Pearson"] == pytest.approx(stats.pearsonr(cosines, pairs.scores)[0], abs=1e-4)
    for row in list(rows.values())[1:]:
        low, high = row["vs baseline"]
        assert low <= row["Spearman"] - rows["baseline"]["Spearman"] <= high
    same = rows["raw-weightedmean"]["Pearson"]  # the default pooling of a plain GPT
    assert same == pytest.approx(rows["dense"]["Pearson"], abs=1e-4)
    ratio = rows["dense"]["Spearman"] / rows["baseline"]["Spearman"]
    assert report["ratios"]["dense/baseline Spearman small"] == pytest.approx(ratio, abs=1e-4)


@pytest.mark.parametrize("prompt_name", [None, "query"])
def test_second_sentences_fit_the_map_and_are_quantised_and_a_prompt_begins_both(
    data, models, tmp_path, capsys, prompt_name
):
    folder = shutil.copytree(models / "models" / "ours", tmp_path / "ours")
    settings = EmbedderConfig(corpus_map="standardise", query_prompt="query: ", document_prompt="text: ")
    (folder / "embedder.json").write_text(settings.to_json())
    evaluate_sts(
        data=[str(data)],
        embedder=str(folder),
        rows=["dense", "unmapped", "int8"],
        max_tokens=64,
        prompt_name=prompt_name,
    )
    rows = {row["system"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["results"]}
    encoder, pairs = Encoder.from_pretrained(folder), SentencePairs.load(data)
    prompt = "query: " if prompt_name else ""
    first, second = (
        encoder.encode([prompt + text for text in texts], max_tokens=64)
        for texts in (pairs.first, pairs.second)
    )
    ranges = np.stack([second.min(axis=0), second.max(axis=0)])
    codes = encoder.encode(
        [prompt + text for text in pairs.second], max_tokens=64, precision="int8", ranges=ranges
    )
    plain = stats.pearsonr((first * second).sum(axis=1), pairs.scores)[0]
    assert rows["unmapped"]["Pearson"] == pytest.approx(plain, abs=1e-4)
    step = (ranges[1] - ranges[0]) / 255
    for name, stored in (("dense", second), ("int8", unit_length(ranges[0] + step * (codes + 128.5)))):
        fitted = CorpusMap.fit("standardise", stored)
        cosines = (fitted.apply(first) * fitted.apply(stored.astype(np.float32))).sum(axis=1)
        expected = stats.pearsonr(cosines, pairs.scores)[0]
        assert rows[name]["Pearson"] == pytest.approx(expected, abs=1e-4)


def test_near_duplicates_of_the_training_data_are_counted(data, tmp_path, capsys):
    training = tmp_path / "pairs.jsonl"
    training.write_text(json.dumps({"query": ROWS[0][0], "positive": ROWS[4][1]}) + "\n")
    evaluate_sts(data=[str(data)], embedder="ours", rows=["floor"], training_data=[str(training)])
    said = capsys.readouterr()
    (row,) = json.loads(said.out.splitlines()[-1])["results"]
    assert row["near-duplicate sentences"] >= 2
    assert f"{row['near-duplicate sentences']} of 40 sentences of small have near-duplicates" in said.err


def test_intervals_equal_spearman_percentiles_over_the_same_resamples():
    rng = np.random.default_rng(0)
    scores, good = rng.integers(0, 6, 60).astype(float), rng.normal(size=60)
    better = scores + good
    ((low, high),) = intervals(scores, [good, better], seed=3)
    drawn = np.random.default_rng(3).integers(60, size=(1000, 60))
    differences = [
        stats.spearmanr(better[d], scores[d]).statistic - stats.spearmanr(good[d], scores[d]).statistic
        for d in drawn
    ]
    assert (low, high) == pytest.approx(np.percentile(differences, (2.5, 97.5)))
    assert low > 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", 'sentence1,sentence2,score\n"one, ""two""",three,4.5\nfour,five,1\n'),
        ("x.tsv", 'index\tsentence1\tsentence2\tscore\n0\tone, "two"\tthree\t4.5\n1\tfour\tfive\t1\n'),
        ("x.TSV", 'sentence1\tsentence2\tscore\none, "two"\tthree\t4.5\nfour\tfive\t1\n'),
        (
            "x.jsonl",
            '{"sentence1": "one, \\"two\\"", "sentence2": "three", "score": 4.5}\n'
            '{"sentence1": "four", "sentence2": "five", "score": 1}\n',
        ),
    ],
)
def test_every_file_format_gives_the_same_pairs(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    pairs = SentencePairs.load(tmp_path / name)
    assert (pairs.name, pairs.first, pairs.second) == ("x", ['one, "two"', "four"], ["three", "five"])
    assert pairs.scores.tolist() == [4.5, 1.0]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "first,second,score\na,b,1\n", "no column sentence1; its columns are first, second, score"),
        ("x.csv", "", "no column sentence1; its columns are none"),
        ("x.csv", "sentence1,sentence2,score\na,b,1\na,b,good\n", "line 3: score is 'good'"),
        ("x.csv", "sentence1,sentence2,score\na,b,nan\na,b,1\n", "line 2: score is 'nan'"),
        ("x.csv", "sentence1,sentence2,score\na,b\n", "line 2: expected 3 fields"),
        ("x.jsonl", '{"sentence1": "a", "score": 1}\n', "line 1: expected sentence1 and sentence2"),
        ("x.csv", "sentence1,sentence2,score\na,b,1\n", "1 sentence pairs; expected at least two"),
        ("x.csv", "sentence1,sentence2,score\na,b,1\nc,d,1\n", "all scores are 1; expected different scores"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b", "score": true}\n' * 2, "line 1: score is True"),
        ("x.csv", "sentence1,sentence2,score\na,b,1,2\n", "line 2: expected 3 fields"),
        ("x.csv", 'sentence1,sentence2,score\n"a' + "a" * 140_000, "not a table: unexpected end of data"),
        ("x.csv", b"sentence1,sentence2,score\ncaf\xe9,b,1\n", "is not UTF-8"),
        ("x.csv.gz", "no archive", "is damaged"),
        ("x.csv.xz", "no archive", "is damaged"),
        ("x.txt", "a b 1\n", "has an unknown file type"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, said):
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError, match=said):
        SentencePairs.load(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        SentencePairs.load(tmp_path / "none.csv")


def test_nothing_is_printed_when_the_baseline_misses_its_published_score_under_any_name(
    data, models, tmp_path, monkeypatch, capsys
):
    model = shutil.copytree(models / "models" / "all-MiniLM-L6-v2", tmp_path / "a model")
    known = files_sha256(model), sha256_of(SentencePairs.load(data))
    monkeypatch.setattr("embed.evaluation.published.PUBLISHED", {known: Published(0.8203, 0.0005)})
    other = tmp_path / "other.jsonl"
    rows = [dict(zip(("sentence1", "sentence2", "score"), row, strict=True)) for row in ROWS]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["sts", "--embedder", "ours", "--rows", "baseline", "--baseline", str(model), "--data"]
    with pytest.raises(SystemExit) as caught:
        run_command({"sts": evaluate_sts}, args=[*args, str(other)])
    assert f"{model} reaches Spearman" in str(caught.value.code)
    assert "on other, but 0.8203 is published" in str(caught.value.code)
    assert capsys.readouterr().out == ""
    different = tmp_path / "small.jsonl"  # another set under a known name
    different.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    run_command({"sts": evaluate_sts}, args=[*args, str(different)])
    assert "Spearman" in capsys.readouterr().out


def test_bad_arguments_are_refused(data):
    with pytest.raises(InputError, match="--data is empty"):
        evaluate_sts(data=[])
    with pytest.raises(InputError, match="dims contains 0"):
        evaluate_sts(data=[str(data)], dims=(0,))
    with pytest.raises(InputError, match="none below the vectors' dimension"):
        evaluate_sts(data=[str(data)], embedder="ours", rows=["dims"], dims=(9999,))
