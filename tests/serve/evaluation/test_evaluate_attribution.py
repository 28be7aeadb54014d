"""The evaluation of attribution: what its wrong sentences are, and that it runs."""

import json
import lzma
import random

import pytest

from serve.evaluation.altered_sentences import CHINESE, ENGLISH
from serve.evaluation.evaluate_attribution import CHINESE_KINDS, KINDS, evaluate_attribution

ENGLISH_SENTENCE = (
    "Alba sold more than 5 million copies before 1990, and the firm of Bert Brecht paid $30 for 2 km of road "
    "to Carla."
)
CHINESE_SENTENCE = "他是第三个在1990年之前超过25万公里的人。"


@pytest.mark.parametrize(("rules", "sentence"), [(ENGLISH, ENGLISH_SENTENCE), (CHINESE, CHINESE_SENTENCE)])
def test_each_rule_changes_one_thing(rules, sentence):
    sentence = sentence.replace("paid", "was paid")
    for change, rule in rules.items():
        for seed in range(20):
            altered = rule(sentence, ["Zora Quist"], random.Random(seed))
            assert altered != sentence, change
            if altered and "exchanged" not in change:
                kept = len(set(sentence.split()) & set(altered.split()))
                assert rules is CHINESE or kept >= len(set(sentence.split())) - 3, altered
        assert any(rule(sentence, ["Zora Quist"], random.Random(seed)) for seed in range(5)), change


def test_a_rule_leaves_a_sentence_without_its_words_alone():
    for rules in (ENGLISH, CHINESE):
        for change, rule in rules.items():
            if change != "name at its beginning replaced":
                assert rule("They slept.", ["Zora"], random.Random(0)) is None, change
    # the order of an enumeration does not matter
    assert ENGLISH["two names exchanged"]("we met Anna, Bert and Carla", [], random.Random(0)) is None


def test_a_table_of_all_kinds_is_printed(tmp_path, capsys):
    rows = [
        {"query": f"What did {name} sell?", "positive": f"They met. {ENGLISH_SENTENCE.replace('Alba', name)}",
         "answer": f"{n} million copies", "title": name}
        for n, name in enumerate(("Alba", "Berta", "Clara", "Dora"), 5)
    ]  # fmt: skip
    with lzma.open(tmp_path / "squad_train.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    queries = [{"_id": f"q{i}", "text": "他是谁？", "metadata": {"answers": [str(i)]}} for i in range(3)]
    corpus = [{"_id": f"d{i}", "title": "他", "text": CHINESE_SENTENCE + str(i)} for i in range(3)]
    for name, lines in (("queries", queries), ("corpus", corpus)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(3)))
    evaluate_attribution(data=tmp_path, chinese=tmp_path, questions=3)
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [row["sentences"] for row in results] == [*KINDS, "Youden's J", *CHINESE_KINDS, "Youden's J"]
