"""The fit of the ranker and its evaluation, on a corpus in which each question has one right sentence."""

import gzip
import json

import pytest

from gpt_core.common.errors import InputError
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.finetune import finetune
from serve.answers.ranker import ranker_for
from serve.evaluation.evaluate_qa import evaluate_qa
from serve.evaluation.fit_answers import fit_answers
from serve.evaluation.qa_data import read_qa
from tests.tiny_models import reference_model, save_model

TOWNS = [
    "Ander", "Belk", "Corin", "Dunmore", "Elswick", "Farrow", "Gantry", "Holm", "Isley", "Jarrow", "Kelso", "Lorne",
]  # fmt: skip
THINGS = ["bridge", "mill", "tower", "school"]


def squad(articles, impossible=False):
    """Articles about towns, each with paragraphs about things that were built in a year, and who paid for them."""
    data = []
    for a, town in enumerate(articles):
        paragraphs = []
        for t, thing in enumerate(THINGS):
            year, name = str(1800 + 7 * a + t), f"{town}son {thing.title()}er"
            built = f"The {thing} of {town} was built in {year}."
            context = f"{town} is a place. {built} {name} paid for it. It rains there."
            qas = [
                {
                    "id": f"{a}-{t}-0",
                    "question": f"When was the {thing} of {town} built?",
                    "answers": [{"text": year, "answer_start": context.index(year)}],
                },
                {
                    "id": f"{a}-{t}-1",
                    "question": f"Who paid for the {thing} of {town}?",
                    "answers": [{"text": name, "answer_start": context.index(name)}],
                },
            ]
            if impossible:
                question = f"How tall is the {thing} of {town}?"
                qas.append({"id": f"{a}-{t}-2", "question": question, "answers": [], "is_impossible": True})
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": town, "paragraphs": paragraphs})
    return {"data": data}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qa")
    (folder / "train.json").write_text(json.dumps(squad(TOWNS[:8])))
    with gzip.open(folder / "test.json.gz", "wt") as f:
        json.dump(squad(TOWNS[8:], impossible=True), f)
    save_model(folder / "model", "gpt2")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZHIZHI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def weights(folder):
    fit_answers(
        data=[str(folder / "train.json")],
        out=folder / "weights.json",
        embedder=str(folder / "model"),
        passages=4,
        second_stage_questions=16,
    )
    return folder / "weights.json"


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_fitted_weights_find_the_right_sentence_and_know_what_is_absent(
    folder, weights, capsys, tmp_path
):
    evaluate_qa(
        data=[str(folder / "test.json.gz")], embedder=[str(folder / "model")], weights=weights, plots=tmp_path,
        second_stage=True,
    )  # fmt: skip
    results = last_line(capsys)["results"]
    rows = {(row["system"], row["absent"]): row for row in results}
    assert set(rows) == {
        (s, a)
        for s in ("quote", "second stage", "overlap", "random")
        for a in ("paragraph", "article", "adversarial")
    }
    quote = rows["quote", "article"]
    assert quote["questions"] == 32
    assert quote["sentence_accuracy"] > max(0.9, rows["random", "article"]["sentence_accuracy"])
    assert quote["AUROC_present"] > 0.9
    assert quote["answered_right"] > 0.9
    assert quote["milliseconds"] > 0
    assert len(quote["risk_coverage"]) == 10
    assert rows["quote", "adversarial"]["AUROC_present"] is not None
    assert rows["second stage", "article"]["sentence_accuracy"] > 0.9
    assert rows["second stage", "article"]["milliseconds"] > 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}


def test_weights_are_kept_by_language_and_embedder_with_their_provenance(folder, weights):
    content = json.loads(weights.read_text())["rankers"]
    assert [(r["language"], r["embedder"] is None) for r in content] == [("en", False), ("en", True)]
    assert content[0]["provenance"]["documents"] == 32
    assert isinstance(content[0]["likelihood_weight"], float)
    assert "likelihood_weight" not in content[1]
    assert ranker_for("en", content[0]["embedder"], weights).n_passages == 4
    with pytest.raises(InputError, match=r"no weights for the language zh"):
        ranker_for("zh", None, weights)
    again = folder / "again.json"
    others = [{**content[0], "language": "zh"}, {**content[0], "embedder": "another"}]
    again.write_text(json.dumps({"rankers": [*others, content[0]]}))
    fit_answers(data=[str(folder / "train.json")], out=again, embedder=str(folder / "model"), passages=4,
                second_stage_questions=0)  # fmt: skip
    written = json.loads(again.read_text())["rankers"]
    assert written[:2] == others
    assert [(r["language"], r["embedder"] is None) for r in written[2:]] == [("en", False), ("en", True)]
    first = written[2]
    assert "likelihood_weight" not in first
    assert first["weights"] == content[0]["weights"]  # the same data and seed give the same weights


def test_the_documents_of_a_fit_are_those_that_it_writes_without_fitting(folder, weights, tmp_path):
    out = tmp_path / "documents.jsonl"
    fit_answers(data=[str(folder / "train.json")], out=out, articles=3, documents_only=True)
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    fitted = read_qa(folder / "train.json", "dev", articles=3, seed=0)
    assert texts == [document.text for document in fitted.documents.values()]
    assert len(texts) == 3 * len(THINGS)


def test_a_question_answered_from_its_own_paragraph(folder, weights, capsys):
    evaluate_qa(
        data=[str(folder / "test.json.gz")],
        embedder=[str(folder / "model")],
        weights=weights,
        index_as="paragraph",
    )
    rows = last_line(capsys)["results"]
    assert {row["absent"] for row in rows} == {"adversarial"}
    assert next(row for row in rows if row["system"] == "quote")["sentence_accuracy"] == 1


@pytest.mark.parametrize("content", ["", "[]", '{"data": [{"title": "x"}]}', "\x00"])
def test_other_data_are_refused_by_name(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json cannot be read as questions with answers"):
        read_qa(tmp_path / "x.json", "test")
    with pytest.raises(InputError, match=r"nowhere cannot be read"):
        read_qa(tmp_path / "nowhere", "test")


def test_a_baselines_passages_and_a_generators_texts_have_rows_of_their_own(folder, weights, capsys):
    reference_model(folder / "model", "mean").save(str(folder / "baseline"))
    evaluate_qa(
        data=[str(folder / "test.json.gz")],
        embedder=[str(folder / "model")],
        weights=weights,
        baseline=str(folder / "baseline"),
        generator=str(folder / "model"),
        generated=3,
    )
    rows = {(row["system"], row["absent"]): row for row in last_line(capsys)["results"]}
    baseline = rows["baseline", "article"]
    assert baseline["questions"] == rows["quote", "article"]["questions"]
    assert 0.5 < baseline["sentence_accuracy"] < 1  # 16 paragraphs, 8 of which are read
    generate = rows["generate", "nothing"]
    assert 1 <= generate["questions"] <= 3
    assert generate["EM"] == 0  # random weights write nothing that a passage supports
    assert generate["milliseconds"] > 0


def test_a_readers_short_answers_have_rows_of_their_own(folder, weights, tmp_path, capsys):
    save_model(tmp_path / "gpt", "qwen3")
    config = FinetuneConfig(
        task="span", init_from=str(tmp_path / "gpt"), data=(str(folder / "train.json"),), no_answer=0.0,
        max_tokens=96, max_iters=60, eval_interval=60, warmup_iters=5, learning_rate=1e-2, batch_size=16,
        out_dir=str(tmp_path / "reader"), answer_tokens=20, device="cpu", dtype="float32",
    )  # fmt: skip
    finetune(config)
    capsys.readouterr()
    evaluate_qa(
        data=[str(folder / "test.json.gz")],
        embedder=[str(folder / "model")],
        weights=weights,
        reader=str(tmp_path / "reader"),
    )
    rows = {(row["system"], row["absent"]): row for row in last_line(capsys)["results"]}
    quote, reader = rows["quote", "paragraph"], rows["reader", "paragraph"]
    for name in ("sentence_accuracy", "answered", "AUROC_present", "questions"):
        assert reader[name] == quote[name]
    assert quote["EM"] == 0
    assert reader["EM"] > 0.3
    assert reader["milliseconds"] > 0
