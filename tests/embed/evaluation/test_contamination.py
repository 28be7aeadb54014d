"""Leakage: evaluation texts that also occur in the training data are counted once each."""

import json

from embed.evaluation.contamination import count_seen, training_texts

LONG = "the harbour master counts the boats each evening before the lamps are lit and writes their names"


def test_training_texts_are_the_distinct_texts_of_all_sources(tmp_path):
    rows = [
        {"query": "one", "positive": "two", "negative": ["three", "four"]},
        {"query": "one", "positive": "five"},
    ]
    paths = [tmp_path / f"{i}.jsonl" for i in range(2)]
    for path, row in zip(paths, rows, strict=True):
        path.write_text(json.dumps(row) + "\n")
    assert training_texts([str(path) for path in paths]) == ["one", "two", "three", "four", "five"]


def test_each_text_counts_once_and_a_short_one_only_if_it_is_equal(capsys):
    training = [
        LONG,
        f"{LONG} in a book",
        "What of coral reefs, and of tides and of the moon above them all?",
    ]
    texts = ["Something else.", f"He said that {LONG.upper()}!", "coral reefs"]
    assert count_seen("a set's texts", texts, training) == 1
    assert capsys.readouterr().err == (
        "leakage: 1 of 3 a set's texts have near-duplicates in the training data, such as "
        f"{texts[1][:80]!r}\n"
    )
    assert count_seen("a set's texts", texts, [*training, "Coral reefs?"]) == 2
    capsys.readouterr()
    assert count_seen("a set's texts", texts[:1], training) == 0
    assert capsys.readouterr().err == ""
