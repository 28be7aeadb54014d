"""Standard input and datasets of the library `datasets` as input of `build_index`."""

import io
import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from gpt_core.common.errors import InputError
from index.build_index import build_index
from index.building.options import BuildOptions
from index.index import Index
from index.reading.source_files import Below, source_of


@pytest.fixture
def build(tmp_path, make_encoder, capsys, monkeypatch, load_always):
    """build(*input, stdin=…) → what is printed."""
    load_always(make_encoder())
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def build(*input: str, stdin: str | bytes = b"", **options: object) -> str:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        build_index(BuildOptions(input=input, index=str(tmp_path / "index"), max_tokens=32, **options))
        return "".join(capsys.readouterr())

    return build


def texts(tmp_path: Path) -> dict[str, str]:
    with Index.open(tmp_path / "index") as index:
        return {doc_id.partition(":")[0] if "stdin:" in doc_id else doc_id: index.get(doc_id).text
                for doc_id in index.document_ids()}  # fmt: skip


def lines(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_documents_come_from_standard_input(tmp_path, build):
    (tmp_path / "a.txt").write_text("a file")
    rows = [{"_id": "1", "text": "知之为知之", "year": 1}, {"text": "whales"}]
    out = build("a.txt", "-", stdin="\n" + lines(*rows))
    assert "3 documents added" in out
    assert any(line.split() == ["standard", "input", "1", "0", "0"] for line in out.splitlines())
    assert texts(tmp_path) == {"a.txt": "a file", "1": "知之为知之", "stdin": "whales"}
    # the next standard input replaces the one before; a build of files leaves its documents alone
    assert "2 documents of the index are not in the input" in build(
        "-", stdin=lines({"_id": "2", "text": "x"})
    )
    (tmp_path / "stdin").write_text("")
    out = build("a.txt", delete_missing=True)
    assert "0 deleted" in out
    assert "no longer exist" not in out
    assert "2 deleted" in build("-", stdin=lines({"_id": "2", "text": "x"}), delete_missing=True)
    assert texts(tmp_path) == {"a.txt": "a file", "2": "x"}
    assert "would be added, 1 updated, 0 unchanged, 0 deleted" in build(
        "-", stdin=lines({"_id": "2", "text": "y"}), dry_run=True
    )
    assert "1 deleted" in build(delete=("-",))
    assert texts(tmp_path) == {"a.txt": "a file"}


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("", "standard input is empty"),
        ("\n \n", "standard input is empty"),
        ('{"text": "x"}\n\n{"text": \n', "standard input, line 3, is not valid JSON"),
        ('{"text": "x"}\n[1]\n', "standard input, line 2: expected a JSON object"),
        (b'{"text": "x"}\n\xff\n', "standard input, line 2, is not UTF-8"),
        ('{"body": "x"}\n', "standard input, line 1: expected a JSON object whose key"),
    ],
)
def test_bad_standard_input_is_refused_before_anything_is_written(tmp_path, build, stdin, message):
    with pytest.raises(InputError, match=message):
        build("-", stdin=stdin)
    assert not (tmp_path / "index").exists()
    build("-", stdin=lines({"_id": "kept", "text": "x"}))
    with pytest.raises(InputError, match=message):
        build("-", stdin=stdin, delete_missing=True)
    assert texts(tmp_path) == {"kept": "x"}


def test_datasets_are_read_like_tables(tmp_path, build):
    pears = Dataset.from_dict({"_id": ["p"], "title": ["Pears"], "text": ["梨"], "year": [7]})
    plums = Dataset.from_dict({"name": ["plum", "fig"], "price": [2, None]})
    DatasetDict({"train": pears, "test": pears.map(lambda row: {"_id": "q"})}).save_to_disk(
        tmp_path / "saved"
    )
    plums.save_to_disk(tmp_path / "one")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "rows.csv").write_text("_id,text\nc,from a CSV file\n")
    assert "1 documents added" in build("datasets:saved:train")
    assert "1 documents added, 0 updated, 1 unchanged" in build("datasets:./saved")
    assert "3 documents added" in build("datasets:one", "datasets:csv")
    with Index.open(tmp_path / "index") as index:
        found = {doc_id: index.get(doc_id) for doc_id in index.document_ids()}
        assert index.search("梨", filter={"year": 7}, mode="lexical")[0].title == "Pears"
    assert {found[name].text for name in found if name.startswith("one:")} == {
        "name: plum\nprice: 2",
        "name: fig",
    }
    assert found["c"].text == "from a CSV file"
    # documents of a dataset in a folder are not files of the folder
    (tmp_path / "saved" / "a.txt").write_text("a file")
    assert "0 deleted" in build("saved", delete_missing=True, include=("*.txt",))
    assert "2 deleted" in build(delete=("datasets:saved",))
    assert "2 deleted" in build(delete=("datasets:one",))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("datasets:", "is no dataset; expected datasets:OWNER/NAME"),
        ("datasets:a/b/c/d", "is no dataset"),
        ("datasets:saved:dev", "has no split dev; its splits are train"),
        ("datasets:saved/large", "has no configuration large"),
        ("datasets:empty", "cannot be read"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path, build, name, message):
    Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        build(name)
    assert not (tmp_path / "index").exists()


def test_streams_are_told_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_of("-") == "-"
    assert source_of("./-") == str(tmp_path / "-")
    assert source_of("datasets:a/b/c:train[:5%]") == "datasets:a/b/c:train[:5%]"
    (tmp_path / "d").mkdir()
    assert source_of("datasets:d/x:train") == f"datasets:{tmp_path}/d/x:train"
    assert "datasets:a/b/c" not in Below(["datasets:a/b"])
    assert "datasets:a/b" in Below(["datasets:a/b"])
    below = Below(["/a/b", "/c"])
    assert all(path in below for path in ("/a/b", "/a/b/x/y", "/c"))
    assert not any(path in below for path in ("/a/bb", "/a", "/", "c"))
