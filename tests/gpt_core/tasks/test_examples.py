"""Reading examples: every format, and rows that are refused."""

import gzip
import json

import pytest

from gpt_core.common.errors import InputError
from gpt_core.tasks.examples import read_examples

ANSWERS = {"text": ["red", "day"], "answer_start": [7, 14]}
SQUAD = {
    "data": [
        {
            "title": "Sky",
            "paragraphs": [
                {
                    "context": "it was red to-day",
                    "qas": [
                        {"id": "1", "question": "colour?", "answers": [{"text": "red", "answer_start": 7}]},
                        {"id": "2", "question": "sound?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ]
}


def test_every_format_of_rows(tmp_path):
    (tmp_path / "a.csv").write_text('label,review\n1,"good, ""very"""\n0,bad\n', encoding="utf-8")
    found = read_examples(str(tmp_path / "a.csv"), "classification", {"text": "review"})
    assert [(e.texts, e.label) for e in found] == [(('good, "very"',), "1"), (("bad",), "0")]
    assert found[1].place.endswith("a.csv, line 3")

    with gzip.open(tmp_path / "b.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("ID\tStem\tChoices\tKey\n7\tThe sun\t(A) is hot (B) is (very) cold\tB\n")
    names = {"context": "Stem", "choices": "Choices", "label": "Key"}
    (one,) = read_examples(str(tmp_path / "b.tsv.gz"), "choice", names)
    assert (one.texts, one.number) == (("The sun", "is hot", "is (very) cold"), 1)

    rows = [
        {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
        {"goal": "h", "sol1": "c", "sol2": "d", "label": 1},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_examples(str(tmp_path / "c.jsonl"), "choice", {"context": "goal", "choices": "sol1+sol2"})
    assert [(e.texts, e.number) for e in found] == [(("g", "a", "b"), 0), (("h", "c", "d"), 1)]

    (tmp_path / "d.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "score": "2.5"}\n')
    assert read_examples(str(tmp_path / "d.jsonl"), "similarity", {})[0].number == 2.5


def test_spans_in_rows_and_in_squads_json(tmp_path):
    row = {
        "question": "when?",
        "context": "it was red to-day",
        "answers": ANSWERS | {"answer_start": [7, 14]},
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert read_examples(str(tmp_path / "a.jsonl"), "span", {})[0].answers == ["red", "day"]
    with gzip.open(tmp_path / "b.json.gz", "wt", encoding="utf-8") as file:
        json.dump(SQUAD, file)
    first, second = read_examples(str(tmp_path / "b.json.gz"), "span", {})
    assert (first.answers, first.group, second.spans) == (["red"], "Sky", ())


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("classification", {"text": "a"}, "line 1: there is no label, only 'text'"),
        ("classification", {"text": "a", "label": None}, "line 1: label is null"),
        ("similarity", {"sentence1": "a", "sentence2": "b", "score": 10**401}, "score is '1000"),
        (
            "choice",
            {"context": "a", "choices": [str(i) for i in range(40)], "label": "a"},
            "expected 0 to 39.$",
        ),
        ("classification", {"text": "a", "label": 1.5}, "label is 1.5; expected a string or a whole number"),
        ("classification", {"text": 3, "label": "x"}, "text is '3', of type int; expected a string"),
        ("entailment", {"premise": "a", "label": "x"}, "has no column hypothesis"),
        (
            "similarity",
            {"sentence1": "a", "sentence2": "b", "score": "good"},
            "score is 'good'; expected a number",
        ),
        ("similarity", {"sentence1": "a", "sentence2": "b", "score": True}, "score is 'True'"),
        (
            "choice",
            {"context": "a", "choices": ["b", ""], "label": 0},
            "choice 1 is ''; expected a text for every",
        ),
        ("choice", {"context": "a", "choices": ["b"], "label": 0}, "has no two choices"),
        ("choice", {"context": "a", "choices": "(A) b (C) c", "label": 0}, r"expected a list, or .\(A\)"),
        ("choice", {"context": "a", "choices": ["b", "c"], "label": 2}, "expected 0 to 1, or A to B"),
        ("choice", {"context": "a", "choices": ["b", "c"], "label": "C"}, "the label is 'C'"),
        ("span", {"question": "a", "context": "bcd", "answers": "b"}, "answers is 'b'; expected"),
        (
            "span",
            {"question": "a", "context": "bcd", "answers": {"text": ["c"], "answer_start": [0]}},
            "the answer 'c' does not stand at offset 0 of its context, where 'b' stands",
        ),
        (
            "span",
            {"question": "a", "context": "bcd", "answers": {"text": ["c"], "answer_start": [-1]}},
            "the answer 'c' at -1; expected a text and its offset",
        ),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path, task, row, said):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=said) as error:
        read_examples(str(tmp_path / "x.jsonl"), task, {})
    assert "x.jsonl, line 1" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", "", "has no rows"),
        ("x.csv", "a,b\n1,2\n", "has no column text; its columns are a, b"),
        ("x.json", "{", "is damaged or not JSON"),
        ("x.json", "[]", "is not SQuAD's JSON"),
        ("x.json", json.dumps(SQUAD).replace('"colour?"', "5"), "question 1: question is '5', of type int"),
        ("x.csv", "text,text,label\na,b,c\n", "names the column text twice"),
        ("x.json.gz", "no archive", "is damaged or not JSON"),
        ("x.txt", "a", "has an unknown file type"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    task = "span" if ".json" in name and "jsonl" not in name else "classification"
    with pytest.raises(InputError, match=said):
        read_examples(str(tmp_path / name), task, {})
    with pytest.raises(InputError, match=r"does not exist|is no file|has no rows"):
        read_examples(str(tmp_path / f"none-{name}"), task, {})
