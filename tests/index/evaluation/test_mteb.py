"""mteb, run on an exported embedder and local files, gives the same figures as our evaluation."""

import json
import random
import warnings
from pathlib import Path

import pytest

from embed.evaluation.sts import evaluate_sts
from embed.formats.export import export_model
from embed.network.config import EmbedderConfig, Pooling
from index.evaluation.collection import Collection
from index.evaluation.retrieval import evaluate_retrieval
from tests.tiny_models import save_model

mteb = pytest.importorskip("mteb", reason="comes with zhizhi[mteb]")

WORDS = [
    "wheat",
    "reef",
    "engine",
    "law",
    "quartet",
    "river",
    "stone",
    "glass",
    "ocean",
    "letter",
    "大学",
    "历史",
]
ABOUT = {
    "dataset": {"path": "local", "revision": "1"},
    "description": "a set of files",
    "eval_langs": ["eng-Latn"],
    "eval_splits": ["test"],
}


def sentence(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(WORDS, k=n))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A BEIR folder with excerpts as queries, some with two relevant documents, and a file of sentence pairs."""
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("data") / "pieces"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"d{i}", "title": sentence(rng, i % 3), "text": sentence(rng, 30)} for i in range(150)
    ]
    queries, qrels = [], ["query-id\tcorpus-id\tscore\n"]
    for i in range(60):
        words = documents[i]["text"].split()[:15]
        queries.append({"_id": f"q{i}", "text": " ".join([*words, *sentence(rng, 4).split()])})
        qrels += [f"q{i}\td{i}\t2\n", f"q{i}\td{i + 60}\t{i % 2}\n"]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text("".join(qrels))
    lines = ["sentence1\tsentence2\tscore\n"]
    for _ in range(80):
        shared = rng.randint(0, 6)
        words = sentence(rng, 8).split()
        other = [*words[:shared], *sentence(rng, 8 - shared).split()]
        lines.append(f"{' '.join(words)}\t{' '.join(other)}\t{shared / 1.5 + rng.random()}\n")
    (folder / "pairs.tsv").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module", params=["mean", "sublinear"])
def exported(tmp_path_factory, request) -> Path:
    """A random embedder with prompts, exported for sentence-transformers; with sublinear pooling also a corpus map."""
    folder = save_model(tmp_path_factory.mktemp("model") / "ours", "qwen3")
    settings = EmbedderConfig(
        Pooling(request.param),
        query_prompt="ask: ",
        document_prompt="text: ",
        max_tokens=48,
        corpus_map="half-whiten" if request.param == "sublinear" else "none",
    )
    (folder / "embedder.json").write_text(settings.to_json())
    export_model(str(folder.parent / "exported"), model=str(folder), to="sentence-transformers")
    return folder.parent / "exported"


def test_mteb_agrees_with_our_figures(data, exported, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path))
    capsys.readouterr()
    evaluate_retrieval(data=[str(data)], embedder=str(exported), rows=["dense", "unmapped"])
    evaluate_sts(data=[str(data / "pairs.tsv")], embedder=str(exported), rows=["dense", "unmapped"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    ours, ours_sts = (json.loads(line)["results"][-1] for line in lines)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of mteb's own code
        theirs, theirs_sts = their_scores(exported, data)
    assert ours["cut"] > 100  # truncated documents; mteb truncates them, too
    assert 0.1 < ours["nDCG@10"] < 0.99
    assert ours["nDCG@10"] == pytest.approx(theirs["ndcg_at_10"], abs=1e-3)
    assert ours["Recall@100"] == pytest.approx(theirs["recall_at_100"], abs=1e-3)
    assert ours["MRR@10"] == pytest.approx(theirs["mrr_at_10"], abs=1e-3)
    assert 0.1 < ours_sts["Spearman"] < 0.99
    assert ours_sts["Spearman"] == pytest.approx(theirs_sts["cosine_spearman"], abs=1e-3)
    assert ours_sts["Pearson"] == pytest.approx(theirs_sts["cosine_pearson"], abs=1e-3)


def their_scores(folder: Path, data: Path) -> list[dict[str, float]]:
    """mteb's figures for retrieval and for sentence pairs."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from sentence_transformers import SentenceTransformer

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(name="Local", type="Retrieval", main_score="ndcg_at_10", **ABOUT)

        def load_data(self, *args: object, **kwargs: object) -> None:
            collection = Collection.load(data, "test")
            documents = [
                {"id": d.id, "title": d.title, "text": d.text} for d in collection.documents.values()
            ]
            queries = [{"id": name, "text": text} for name, text in collection.queries.items()]
            split = {"corpus": Dataset.from_list(documents), "queries": Dataset.from_list(queries)}
            split |= {"relevant_docs": collection.qrels, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    class LocalSTS(AbsTaskSTS):
        metadata = TaskMetadata(name="LocalSTS", type="STS", main_score="cosine_spearman", **ABOUT)

        def load_data(self, *args: object, **kwargs: object) -> None:
            lines = (data / "pairs.tsv").read_text().splitlines()[1:]
            rows = [
                dict(zip(("sentence1", "sentence2", "score"), line.split("\t"), strict=True))
                for line in lines
            ]
            self.dataset = {"test": Dataset.from_list([row | {"score": float(row["score"])} for row in rows])}
            self.data_loaded = True

    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    result = mteb.evaluate(model, [Local(), LocalSTS()], cache=None, show_progress_bar=False)
    by_name = {task.task_name: task.scores["test"][0] for task in result.task_results}
    return [by_name["Local"], by_name["LocalSTS"]]
