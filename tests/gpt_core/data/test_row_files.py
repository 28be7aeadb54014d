"""Rows of JSON lines, CSV and Parquet, from any row on, and one-sentence errors for unreadable files."""

import csv
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from gpt_core.common.errors import InputError
from gpt_core.data.row_files import read_csv, read_jsonl, read_parquet

ROWS = ["first", 'with "quotes", commas', "two\nlines\r\nof text", "知之为知之 🙂", "", *map(str, range(200))]


def write(path: Path, rows: list[str]) -> None:
    if path.suffix == ".csv":
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([["id", "text"], *enumerate(rows)])
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"id": range(len(rows)), "text": rows}), path, row_group_size=70)
    else:
        path.write_text("".join(json.dumps({"id": 1, "text": row}) + "\n\n" for row in rows))


@pytest.mark.parametrize(
    ("name", "read"), [("a.csv", read_csv), ("a.parquet", read_parquet), ("a.jsonl", read_jsonl)]
)
@pytest.mark.parametrize("skip", [0, 1, 69, 70, 71, 150, len(ROWS)])
def test_rows_are_read_from_any_row_on(tmp_path: Path, name: str, read: object, skip: int) -> None:
    path = tmp_path / name
    write(path, ROWS)
    rows = list(read(path, "text", skip))  # type: ignore[operator]
    assert [text for _, text, _ in rows] == ROWS[skip:]
    done = [n for _, _, n in rows]
    assert done == sorted(done)
    assert not done or done[-1] >= path.stat().st_size - 1  # an empty line may follow


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "1,hello\n2,world\n",
            r"no column \"text\"; it has '1', 'hello'.*first line must name the columns",
        ),
        (
            "a.csv",
            'id,text\n1,fine\n2,"no end\n3,x\n',
            "line 3: unexpected end of data; is a quote not closed",
        ),
        ("a.csv", "id,text\n1,fine\n".encode("utf-16"), "not UTF-8 at byte 0"),
        ("a.parquet", "PAR1", "is damaged, or no Parquet file"),
        ("a.parquet", "", "is damaged, or no Parquet file"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    read = {".csv": read_csv, ".parquet": read_parquet, ".jsonl": read_jsonl}[path.suffix]
    with pytest.raises(InputError, match=message):
        list(read(path, "text", 0))


def test_broken_parquet_and_columns_without_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, ROWS * 20)
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + bytes(200) + whole[500:])
    with pytest.raises(InputError, match="is damaged, or no Parquet file"):
        list(read_parquet(path, "text", 0))
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"no column \"body\"; it has 'id', 'text'"):
        list(read_parquet(path, "body", 0))
    assert 'row 1: expected a string under "id", not a number' in str(next(read_parquet(path, "id", 0))[1])


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("a.jsonl", b'{"text": 5}', 'line 2: expected a string under "text", not a number'),
        ("a.jsonl", b'{"text": ["a"]}', 'line 2: expected a string under "text", not a list'),
        ("a.jsonl", b'{"text": {"a": 1}}', 'line 2: expected a string under "text", not an object'),
        ("a.jsonl", b'{"text": true}', 'line 2: expected a string under "text", not a boolean'),
        (
            "a.jsonl",
            b'{"body": 1, "id": 2}',
            "line 2 has no column \"text\"; it has 'body', 'id'. Name the text",
        ),
        ("a.jsonl", b'["text"]', "line 2: expected a JSON object"),
        ("a.jsonl", b'{"text": ', "line 2, is not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "line 2, is not UTF-8"),
        ("a.csv", b"1,hello,3", "line 3: expected 2 fields as in the first line, not 3"),
        ("a.csv", "1,caf\u00e9".encode("latin-1"), "line 3: the text is not UTF-8"),
    ],
)
def test_a_bad_row_is_named_and_the_next_rows_are_read(
    tmp_path: Path, name: str, row: bytes, message: str
) -> None:
    path, csv_file = tmp_path / name, name.endswith(".csv")
    good = (b"1,good", b"1,better") if csv_file else (b'{"text": "good"}', b'{"text": "better"}')
    path.write_bytes(b"\n".join([*([b"id,text"] if csv_file else []), good[0], row, good[1]]))
    read = read_csv if csv_file else read_jsonl
    (_, first, _), (_, bad, _), (_, last, _) = read(path, "text", 0)
    assert (first, last) == ("good", "better")
    assert isinstance(bad, InputError)
    assert f"{path}, {message}" in str(bad)
    assert [text for _, text, _ in read(path, "text", 2)] == ["better"]


def test_a_null_is_an_empty_text_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    parquet.write_table(pyarrow.table({"text": pyarrow.array([None], "string")}), tmp_path / "a.parquet")
    assert [text for _, text, _ in read_jsonl(tmp_path / "a.jsonl", "text", 0)] == [""]
    assert [text for _, text, _ in read_parquet(tmp_path / "a.parquet", "text", 0)] == [""]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name, read in (("a.csv", read_csv), ("a.jsonl", read_jsonl)):
        (tmp_path / name).touch()
        assert list(read(tmp_path / name, "text", 0)) == []
