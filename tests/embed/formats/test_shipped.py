"""The embedder that is part of the package: found without a network, small, and the same in sentence-transformers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embed import Encoder
from embed.encoding.peer_model import Teacher
from embed.evaluation.sts import evaluate_sts
from embed.formats.folder import load_network
from gpt_core.formats.card import read_card
from gpt_core.hub.locate import DEFAULT_EMBEDDER, SHIPPED, known_names, resolve
from index import Index
from index.reading.document import Document

TEXTS = [
    "High blood pressure harms the kidneys.",
    "知之为知之，不知为不知",
    "",
    "def f(x): return x",
    "a " * 3000,
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_pretrained(DEFAULT_EMBEDDER)


def test_it_is_fetched_without_a_network_or_a_cache(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/fetch_model.py", DEFAULT_EMBEDDER],
        env={"ZHIZHI_CACHE": str(tmp_path / "cache"), "PATH": "", "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == SHIPPED / DEFAULT_EMBEDDER == resolve(DEFAULT_EMBEDDER)
    assert not (tmp_path / "cache").exists()
    assert known_names()[0] == DEFAULT_EMBEDDER


def test_it_is_small_and_its_card_names_licence_teacher_and_data() -> None:
    folder = resolve(DEFAULT_EMBEDDER)
    network = load_network(folder)
    assert sum(p.numel() for p in network.parameters()) <= 30e6
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 60e6
    assert read_card(folder).licence in ("apache-2.0", "mit")
    text = (folder / "README.md").read_text()
    for part in ("## Data", "## Training", "## Scores", "multilingual-e5-small", "CPU-"):
        assert part in text, part


def test_it_gives_the_same_vectors_in_sentence_transformers(encoder: Encoder) -> None:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(resolve(DEFAULT_EMBEDDER)), device="cpu", trust_remote_code=True)
    for ours, theirs in (
        (encoder.encode_query(TEXTS), peer.encode_query(TEXTS)),
        (encoder.encode_document(TEXTS), peer.encode_document(TEXTS)),
    ):
        theirs = theirs.astype(np.float32)
        lengths = np.linalg.norm(theirs, axis=1)
        assert lengths[[0, 1, 3, 4]] == pytest.approx(1, abs=3e-3)
        assert lengths[2] == 0  # a text without tokens
        cosines = (ours * theirs).sum(axis=1)[[0, 1, 3, 4]] / lengths[[0, 1, 3, 4]]
        assert cosines.min() > 0.9999


def test_as_a_baseline_it_cuts_no_text() -> None:
    assert Teacher(DEFAULT_EMBEDDER, 16).count_cut(TEXTS, "query") == 0


def test_evaluations_have_rows_of_a_table_without_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("a rainy day", "wet weather", 4), ("a rainy day", "a loaf of bread", 0), ("下雨", "天气", 3)]
    lines = (json.dumps({"sentence1": a, "sentence2": b, "score": s}) + "\n" for a, b, s in rows)
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    evaluate_sts(data=[str(tmp_path / "pairs.jsonl")], rows=["random", "raw-mean", "floor", "dense"])
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [row["system"] for row in results] == ["random", "raw-mean", "floor", "dense"]
    assert results[-1]["Spearman"] >= 0.5


def test_it_finds_what_no_word_says_in_both_languages(tmp_path: Path, encoder: Encoder) -> None:
    documents = {
        "heart": "Myocardial infarction is treated with aspirin and surgery.",
        "planet": "Jupiter is the largest planet of the solar system.",
        "bread": "Flour, water, yeast and salt are kneaded into a dough.",
        "hospital": "这家医院的医生给病人开药。",
        "rain": "明天有雨，气温下降。",
    }
    with Index.create(tmp_path / "index", encoder) as index:
        index.add([Document(name, text) for name, text in documents.items()])
        for query, wanted in (
            ("cardiac disease therapy", "heart"),
            ("hospital doctor", "hospital"),
            ("flour dough", "bread"),
            ("astronomy", "planet"),
            ("看病治疗", "hospital"),
            ("天气预报", "rain"),
            ("rainy weather", "rain"),
        ):
            assert index.search(query, 1, "dense")[0].doc_id == wanted, query
