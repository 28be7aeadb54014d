"""Training pairs from files: the inverse cloze task, duplicates, leakage, and files that are not as expected."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed.data.pairs import read_examples
from embed.data.prepare_pairs import PASSAGE_BYTES, cloze_pairs, passages, prepare_pairs
from gpt_core.common.errors import InputError
from tests.beir_folders import write_beir

STORY = (
    "The harbour master counts the boats each evening. He writes their names in a book. His grandfather began it in "
    "the year of the great storm. Eleven of them did not come back."
)
CHINESE = "管理员每天晚上清点船只。他把船名写在一本书里。这本书是他祖父开始写的。有十一条船没有回来。"


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_and_documents_become_files_that_training_reads(tmp_path, capsys):
    pairs = [{"query": f"what is  {i}?", "positive": f"{i} is\na number"} for i in range(5)]
    pairs += [pairs[0], {"query": "same", "positive": " same "}]
    documents, queries = [{"_id": "d1", "text": "3 is a number"}], [{"_id": "q1", "text": "which number"}]
    write_beir(tmp_path / "beir", documents, queries, "q1\td1\t1\n")
    prepare_pairs(
        input=[
            write(tmp_path / "numbers.jsonl", pairs),
            write(tmp_path / "stories.jsonl", [{"title": "Boats", "text": STORY}, {"text": CHINESE}]),
        ],
        out=str(tmp_path / "out"),
        exclude=[str(tmp_path / "beir")],
    )
    numbers = {(row["query"], row["positive"]) for row in rows_of(tmp_path / "out/numbers.jsonl")}
    assert numbers == {(f"what is {i}?", f"{i} is a number") for i in (0, 1, 2, 4)}
    assert json.loads((tmp_path / "out/summary.json").read_text())["numbers"] == {
        "pairs": 4,
        "near_duplicates": 1,
    }
    stories = read_examples(tmp_path / "out/stories.jsonl")
    assert len(stories) in (2, 3)
    assert any("船" in example.query for example in stories)
    texts = [row["text"] for row in rows_of(tmp_path / "out/texts.jsonl")]
    assert (
        len(set(texts)) == len(texts) == 2 * 4 + len({text for example in stories for text in example.texts})
    )
    assert f"{4 + len(stories)} pairs" in capsys.readouterr().out


def test_the_same_input_gives_the_same_files_and_another_seed_another_order(tmp_path):
    path = write(tmp_path / "many.jsonl", [{"query": f"q {i}", "positive": f"p {i}"} for i in range(50)])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_pairs(input=[path], out=str(tmp_path / name), most=20, seed=seed)
    a, b, c = ((tmp_path / name / "many.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    assert len(rows_of(tmp_path / "a/many.jsonl")) == 20


@given(
    st.lists(st.sampled_from(["One is here. ", "Two!  ", "三在这里。", "a b c. ", "\n", "end"]), max_size=60)
)
def test_passages_are_parts_of_the_text_in_order(parts):
    text = "".join(parts)
    place = 0
    for run in passages(text):
        assert len(run) >= 3
        joined = "".join(run)
        assert "\n" not in joined
        assert len("".join(run[:-1]).encode()) < PASSAGE_BYTES or len(run) == 3
        place = text.index(joined, place) + len(joined)


def test_a_query_is_a_sentence_and_its_positive_the_rest():
    for seed in range(40):
        for query, positive in cloze_pairs("Boats", STORY, random.Random(seed)):
            body = positive.removeprefix("Boats ")
            if query == "Boats":
                assert body == STORY
            else:
                assert query.strip() in STORY
                assert body == STORY or len(body) == len(STORY) - len(query)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.txt", "a.txt is not a file of JSON lines"),
        ("", "a.jsonl", "no usable training pairs"),
        ('{"text": 3}\n', "a.jsonl", 'line 1: expected strings under "text"'),
        ('{"text": "short"}\n', "a.jsonl", "gives no pairs"),
        ('{"query": "a", "other": "b"}\n', "a.jsonl", "has no column positive or pos"),
    ],
)
def test_unusable_files_are_refused_and_nothing_is_left(tmp_path, content, name, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        prepare_pairs(input=[str(tmp_path / name)], out=str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_files_of_one_name_become_two_files(tmp_path):
    for place in "xyz":
        (tmp_path / place).mkdir()
    paths = [
        write(tmp_path / place / "a.jsonl", [{"query": f"q {place}", "positive": "p"}]) for place in "xyz"
    ]
    prepare_pairs(input=paths, out=str(tmp_path / "out"))
    found = {path.name: rows_of(path)[0].get("query") for path in (tmp_path / "out").glob("a*.jsonl")}
    assert found == {"a.jsonl": "q x", "a-2.jsonl": "q y", "a-3.jsonl": "q z"}
