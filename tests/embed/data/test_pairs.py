"""Training data: supported formats, reports of dropped pairs, and refused files."""

import gzip
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed.data.pairs import Columns, Example, read_examples
from gpt_core.common.errors import InputError
from tests.beir_folders import write_beir


def key(text: str) -> str:
    """Equal for texts that differ by white space or Unicode form only."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(key)


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"query": "q", "positive": "p"}, Example("q", ("p",))),
        ({"query": "q", "positive": "p", "title": "t", "score": 3}, Example("q", ("p",))),
        ({"anchor": "q", "positive": "p", "negative": "n"}, Example("q", ("p",), ("n",))),
        ({"query": "q", "pos": ["p", "r"], "neg": ["n", "m"]}, Example("q", ("p", "r"), ("n", "m"))),
        ({"query": "q", "pos": ["p"], "neg": []}, Example("q", ("p",))),
        (
            {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"},
            Example("q", ("p",), ("n", "m")),
        ),
        ({"query": "q", "positive": "p", "negative": None}, Example("q", ("p",))),
        ({"text": "a text"}, Example("a text")),
    ],
)
def test_reads_the_common_row_formats(tmp_path, capsys, row, example):
    assert read_examples(write_rows(tmp_path / "data.jsonl", row)) == [example]
    if row.get("negative", "") is not None:
        assert not capsys.readouterr().err


def test_compressed_files_are_read_whatever_the_case_of_their_endings(tmp_path):
    path = tmp_path / "DATA.JSONL.GZ"
    path.write_bytes(gzip.compress(b'{"query": "q", "positive": "p"}'))
    assert read_examples(path) == [Example("q", ("p",))]


@settings(max_examples=40)
@given(
    st.lists(
        st.builds(
            Example,
            TEXTS,
            st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
            st.lists(TEXTS, max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_reading_returns_the_written_examples_without_unusable_pairs(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("pairs") / "data.jsonl"
    rows = [{"query": e.query, "pos": e.positives, "neg": e.negatives} for e in examples]
    expected = []
    for e in examples:
        query, positives = key(e.query), [key(p) for p in e.positives]
        left = tuple(p for p in e.positives if key(p) != query)
        if left:
            negatives = tuple(n for n in e.negatives if key(n) not in [query, *positives])
            expected.append(Example(e.query, left, negatives))
    if expected:
        assert read_examples(write_rows(path, *rows)) == expected
    else:
        with pytest.raises(InputError, match="has no usable training pairs"):
            read_examples(write_rows(path, *rows))


def test_dropped_pairs_are_reported(tmp_path, capsys):
    path = write_rows(
        tmp_path / "data.jsonl",
        {"query": "q", "positive": "p"},
        {"query": "", "positive": "p"},
        {"query": "q", "positive": " \n"},
        {"query": "the same", "positive": "the  same "},
        {"query": "r", "pos": ["r", "", "s"], "neg": ["\uff53", "r", "", "t"]},
    )
    assert read_examples(path) == [Example("q", ("p",)), Example("r", ("s",), ("t",))]
    left_out, negatives = capsys.readouterr().err.splitlines()
    expected = "data.jsonl: 5 of 7 pairs dropped: 3 with an empty side and 2 with equal sides"
    assert left_out == expected
    assert negatives.startswith("data.jsonl: 3 negatives dropped")


def test_data_without_usable_pairs_are_refused(tmp_path):
    path = write_rows(
        tmp_path / "data.jsonl", {"query": "a", "positive": "a"}, {"query": "b", "positive": ""}
    )
    with pytest.raises(InputError, match="of 2 pairs, 1 with equal sides and 1 with an empty side"):
        read_examples(path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match=r"empty\.jsonl has no usable training pairs: of 0 pairs, none"):
        read_examples(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        (
            {"question": "q", "answer": "a"},
            Columns(),
            "line 2 has no column query or anchor; .*'question', 'a",
        ),
        ({"query": "q", "answer": "a"}, Columns(), "no column positive or pos; it has 'query', 'answer'"),
        ({"query": "q", "positive": "p"}, Columns(query="ask"), "no column ask; it has 'query', 'positive'"),
        ({"query": "q", "positive": "p"}, Columns(positive="answer"), "no column answer"),
        ({"query": "q", "positive": "p"}, Columns(negative="wrong"), "no column wrong"),
        ({"text": "t"}, Columns(query="query"), "no column query"),
        ({"query": "q", "positive": 7}, Columns(), 'line 2: .* under "positive", not int'),
        ({"query": "q", "pos": ["p", None]}, Columns(), 'under "pos", not NoneType'),
        ({"query": ["q", "r"], "pos": ["p"]}, Columns(), 'expected one string under "query", not 2'),
    ],
)
def test_rows_with_wrong_columns_or_types_are_refused(tmp_path, row, columns, said):
    good = {"query": "q", "positive": "p", "ask": "a", "answer": "a", "wrong": "w"}
    with pytest.raises(InputError, match=said):
        read_examples(write_rows(tmp_path / "data.jsonl", good, row), columns=columns)


def test_unpaired_surrogates_and_empty_names_are_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    whole = '{"query": "\\ud83d\\ude00?", "positive": "a smile"}\n'
    path.write_text(whole)
    assert read_examples(path)[0].query == "\U0001f600?"
    path.write_text(whole + '{"query": "\\ud83d?", "positive": "half a smile"}\n')
    with pytest.raises(InputError, match=r"line 2, contains \\ud83d, half of a surrogate pair"):
        read_examples(path)
    with pytest.raises(InputError, match="name of the data is empty"):
        read_examples("")


def test_columns_can_be_named(tmp_path):
    row = {"question": "q", "answers": ["a", "b"], "others": "o", "query": "not this"}
    columns = Columns("question", "answers", "others")
    examples = read_examples(write_rows(tmp_path / "data.jsonl", row), columns=columns)
    assert examples == [Example("q", ("a", "b"), ("o",))]


def test_a_beir_folder_gives_judged_documents(tmp_path, capsys):
    documents = [{"_id": f"d{i}", "title": f"T{i}", "text": f"text {i} "} for i in range(4)]
    queries = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(3)]
    qrels = "q0\td1\t2\nq0\td2\t0\nq0\td3\t1\nq2\td0\t0\n"
    folder = write_beir(tmp_path / "set", documents, queries, qrels, "train")
    assert read_examples(folder) == [Example("query 0", ("T1 text 1", "T3 text 3"), ("T2 text 2",))]
    with pytest.raises(InputError, match=r"dev\.tsv is missing; available splits: train"):
        read_examples(folder, "dev")
    with pytest.raises(InputError, match="has no columns"):
        read_examples(folder, columns=Columns(query="question"))
    assert not capsys.readouterr().err


def test_reads_data_with_the_datasets_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = {"anchor": ["a", "b", "c"], "positive": ["x", "", "z"], "negative": ["n", "m", None]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
    assert read_examples(str(folder)) == [Example("a", ("x",), ("n",)), Example("c", ("z",))]
    assert read_examples(f"{folder}:default", "train[2:]") == [Example("c", ("z",))]
    with pytest.raises(InputError, match="no column question; it has 'anchor', 'positive', 'negative'"):
        read_examples(str(folder), columns=Columns(query="question"))
    with pytest.raises(InputError, match="dev"):
        read_examples(str(folder), "dev")
    with pytest.raises(InputError, match="nowhere"):
        read_examples(str(tmp_path / "nowhere"))


def test_unsupported_missing_and_damaged_files_are_refused(tmp_path):
    (tmp_path / "data.csv").write_text("query,positive\nq,p\n")
    with pytest.raises(InputError, match=r"data\.csv has an unknown file type; expected \.jsonl"):
        read_examples(tmp_path / "data.csv")
    with pytest.raises(InputError, match=r"missing\.jsonl\.gz does not exist"):
        read_examples(tmp_path / "missing.jsonl.gz")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"query": "q", "positive": "p"}\n')[:-9])
    with pytest.raises(InputError, match="is damaged"):
        read_examples(tmp_path / "torn.jsonl.gz")
