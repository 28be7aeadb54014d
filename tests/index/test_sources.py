"""A document belongs to its file: builds of several folders, of parts of them, and of files that are gone."""

import json
import os
import shutil
from pathlib import Path

import pytest

from embed import Encoder
from gpt_core.common.errors import InputError
from index.build_index import build_index
from index.building.options import BuildOptions
from index.building.survey import _check
from index.index import Index
from index.reading.document import Document


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def loaded(embedder):
    return Encoder.from_pretrained(embedder)


@pytest.fixture
def build(tmp_path, loaded, capsys, monkeypatch, load_always):
    """build(*input, …) → what the command prints; inputs are relative to `tmp_path`, the working directory."""
    monkeypatch.chdir(tmp_path)
    load_always(loaded)  # loaded once for all builds

    def build(*input: str | Path, **options: object) -> str:
        fixed = {"index": str(tmp_path / "index"), "embedder": loaded.name, "max_tokens": 32}
        build_index(BuildOptions(input=tuple(map(str, input)), **fixed, **options))
        out, err = capsys.readouterr()
        return out + err

    return build


def texts(tmp_path: Path) -> dict[str, str]:
    """The text of each document by its id."""
    with Index.open(tmp_path / "index") as index:
        return {doc_id: index.get(doc_id).text for doc_id in index.document_ids()}


@pytest.mark.parametrize("calls", [[("a", "b")], [("a",), ("b",)]])
def test_files_of_one_name_in_two_folders_live_side_by_side(tmp_path, build, calls):
    write(tmp_path / "a" / "README.md", "whales")
    write(tmp_path / "b" / "README.md", "engines")
    for call in calls:
        out = build(*call)
    assert "1 files have longer ids" in out
    assert "such as b/README.md" in out
    assert texts(tmp_path) == {"README.md": "whales", "b/README.md": "engines"}
    write(tmp_path / "a" / "README.md", "blue whales")
    write(tmp_path / "b" / "README.md", "steam engines")
    assert "0 documents added, 2 updated" in build("b", "a")
    assert texts(tmp_path) == {"README.md": "blue whales", "b/README.md": "steam engines"}


def test_more_of_the_path_is_put_in_front_until_the_id_is_free(tmp_path, build):
    for folder in ("x/docs", "y/docs", "z/y/docs"):
        write(tmp_path / folder / "a.txt", folder)
        build(folder)
    assert texts(tmp_path) == {"a.txt": "x/docs", "docs/a.txt": "y/docs", "y/docs/a.txt": "z/y/docs"}


def test_a_part_of_a_folder_has_the_ids_that_it_has_in_the_folder(tmp_path, build):
    write(tmp_path / "proj" / "README.md", "root")
    write(tmp_path / "proj" / "api" / "README.md", "api")
    build("proj")
    write(tmp_path / "proj" / "api" / "README.md", "api 2")
    assert "0 documents added, 1 updated" in build("proj/api/README.md")
    write(tmp_path / "proj" / "api" / "new.md", "new")
    assert "1 documents added, 0 updated" in build("proj/api/new.md")
    write(tmp_path / "proj" / "api" / "newer.md", "newer")
    assert "1 documents added, 0 updated, 2 unchanged" in build("proj/api")
    ids = {"README.md": "root", "api/README.md": "api 2", "api/new.md": "new", "api/newer.md": "newer"}
    assert texts(tmp_path) == ids
    assert "0 documents added, 0 updated, 4 unchanged" in build("proj")


def test_a_folder_around_a_known_one_keeps_the_known_ids(tmp_path, build):
    write(tmp_path / "proj" / "api" / "a.md", "a")
    build("proj/api")
    write(tmp_path / "proj" / "api" / "b.md", "b")
    write(tmp_path / "proj" / "c.md", "c")
    assert "2 documents added, 0 updated, 1 unchanged" in build("proj")
    assert set(texts(tmp_path)) == {"a.md", "api/b.md", "c.md"}


def test_every_spelling_of_a_path_is_the_same_file(tmp_path, build, monkeypatch):
    path = write(tmp_path / "proj" / "sub" / "a.md", "a")
    write(tmp_path / "proj" / "rows.jsonl", '{"text": "row"}\n')
    (tmp_path / "link").symlink_to(tmp_path / "proj")
    (tmp_path / "link.md").symlink_to(path)
    build("proj")
    before = texts(tmp_path)
    for spelling in (
        "proj/",
        "./proj",
        str(tmp_path / "proj"),
        "proj/../proj",
        "link",
        "link.md",
        "link/sub/a.md",
    ):
        assert "0 documents added, 0 updated" in build(spelling, delete_missing=True), spelling
    monkeypatch.chdir(tmp_path / "proj" / "sub")
    for spelling in (".", "..", "a.md", "../rows.jsonl"):
        assert "0 documents added, 0 updated" in build(spelling, delete_missing=True), spelling
    assert texts(tmp_path) == before


def test_rows_without_ids_are_encoded_again_only_if_they_change(tmp_path, build):
    path = write(tmp_path / "a" / "c.jsonl", '{"text": "plums"}\n{"text": "pears"}\n')
    write(tmp_path / "b" / "c.jsonl", '{"text": "plums"}\n')
    build("a", "b")
    write(path, '{"text": "figs"}\n{"text": "pears"}\n')
    out = build("a")
    assert "1 documents added, 0 updated, 1 unchanged" in out
    assert "1 documents of the index are not in the input, such as c.jsonl:" in out
    assert "1 deleted" in build("a", delete_missing=True)
    found = sorted((doc_id.split(":")[0], text) for doc_id, text in texts(tmp_path).items())
    assert found == [("b/c.jsonl", "plums"), ("c.jsonl", "figs"), ("c.jsonl", "pears")]


def test_rows_with_ids_replace_the_row_of_another_file_and_the_report_says_so(tmp_path, build):
    write(tmp_path / "a.jsonl", '{"_id": "x", "text": "one"}\n{"_id": "y", "text": "same"}\n')
    build("a.jsonl")
    write(tmp_path / "b.jsonl", '{"_id": "x", "text": "two"}\n{"_id": "y", "text": "same"}\n')
    out = build("b.jsonl")
    assert "1 documents replaced one of the same id from elsewhere, such as x" in out
    assert texts(tmp_path) == {"x": "two", "y": "same"}
    assert "replaced one" not in build("b.jsonl")
    with pytest.raises(InputError, match="another document has the id 'x'"):
        build("a.jsonl", "b.jsonl")


def test_a_file_never_replaces_a_row_or_a_document_of_the_caller(tmp_path, build):
    write(tmp_path / "notes" / "a.md", "file")
    write(tmp_path / "notes" / "b.md", "file too")
    write(tmp_path / "rows.jsonl", json.dumps({"_id": "a.md", "text": "row"}))
    assert "1 files have longer ids" in build("rows.jsonl", "notes")
    with Index.open(tmp_path / "index") as index:
        index.upsert(Document("b.md", "the caller's"))
    assert "0 documents added, 0 updated, 2 unchanged" not in build("notes")
    assert texts(tmp_path) == {
        "a.md": "row", "notes/a.md": "file", "b.md": "the caller's", "notes/b.md": "file too"
    }  # fmt: skip


def test_only_documents_below_the_input_are_missing(tmp_path, build):
    for name in ("a/1.txt", "a/2.txt", "b/3.txt", "ab/4.txt"):
        write(tmp_path / name, name)
    build("a", "b", "ab")
    with Index.open(tmp_path / "index") as index:
        index.add(Document("mine", "the caller's"))
    for name in ("a/1.txt", "b/3.txt", "ab/4.txt"):
        (tmp_path / name).unlink()
    out = build("a")
    assert (
        "1 documents of the index are not in the input, such as 1.txt; --delete_missing deletes them" in out
    )
    assert "2 documents are of files elsewhere that no longer exist" in out
    assert "1 deleted" in build("a", delete_missing=True)
    assert set(texts(tmp_path)) == {"2.txt", "3.txt", "4.txt", "mine"}
    shutil.rmtree(tmp_path / "b")
    assert "1 deleted" in build(delete=("b",))
    assert set(texts(tmp_path)) == {"2.txt", "4.txt", "mine"}
    with pytest.raises(InputError, match="--delete b: the index has no document"):
        build(delete=("b",))


def test_a_link_out_of_a_folder_counts_as_a_file_of_that_folder(tmp_path, build):
    write(tmp_path / "a" / "b.txt", "b")
    target = write(tmp_path / "elsewhere.txt", "linked")
    (tmp_path / "a" / "link.txt").symlink_to(target)
    build("a")
    assert "0 documents added, 0 updated, 1 unchanged" in build("elsewhere.txt")
    (tmp_path / "a" / "link.txt").unlink()
    assert "1 documents of the index are not in the input, such as link.txt" in build("a")


def test_a_moved_folder_keeps_its_unchanged_documents(tmp_path, build):
    write(tmp_path / "old" / "a.md", "same")
    write(tmp_path / "old" / "b.md", "before")
    write(tmp_path / "old" / "c.jsonl", '{"text": "row"}\n{"_id": "own", "text": "row with an id"}\n')
    build("old")
    before = texts(tmp_path)
    os.rename(tmp_path / "old", tmp_path / "new")
    write(tmp_path / "new" / "b.md", "after")
    out = build("new")
    assert "1 documents added, 0 updated, 3 unchanged" in out
    assert "1 documents are of files elsewhere that no longer exist, such as" in out
    assert texts(tmp_path) == {**before, "new/b.md": "after"}
    assert "1 deleted" in build("new", delete=("old",))
    assert "b.md" not in texts(tmp_path)


def test_a_renamed_file_is_a_new_document_and_the_old_one_is_said_to_be_missing(tmp_path, build):
    write(tmp_path / "a" / "old.txt", "text")
    write(tmp_path / "a" / "other.txt", "other")
    build("a")
    os.rename(tmp_path / "a" / "old.txt", tmp_path / "a" / "new.txt")
    assert "1 documents of the index are not in the input, such as old.txt" in build("a")
    assert "1 deleted" in build("a", delete_missing=True)
    assert set(texts(tmp_path)) == {"new.txt", "other.txt"}


def test_what_cannot_be_read_is_named_and_keeps_its_document(tmp_path, build):
    write(tmp_path / "a" / "good.txt", "good")
    latin = write(tmp_path / "a" / "latin.txt", "text")
    target = write(tmp_path / "elsewhere.txt", "linked")
    (tmp_path / "a" / "link.txt").symlink_to(target)
    build("a")
    latin.write_bytes(b"caf\0")
    target.unlink()
    write(tmp_path / "a" / os.fsdecode(b"caf\xe9.txt"), "text")
    out = build("a", delete_missing=True)
    assert "0 added, 0 updated, 1 unchanged, 0 deleted" in out.replace("documents ", "")
    assert "skipped 2 files or folders that cannot be read" in out
    assert "link.txt (a broken link)" in out
    assert "skipped 1 files that cannot be read: a/latin.txt: it is not text: it contains a zero byte" in out
    assert set(texts(tmp_path)) == {"good.txt", "latin.txt", "link.txt"}
    (tmp_path / "a" / "link.txt").unlink()
    assert "1 deleted" in build("a", delete_missing=True)


def test_input_of_which_nothing_can_be_read_is_an_error(tmp_path, build):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "latin.txt").write_bytes(b"caf\0")
    with pytest.raises(InputError, match="a: no text found"):
        build("a")
    with pytest.raises(InputError, match="it is not text: it contains a zero byte"):
        build("a/latin.txt")
    assert not (tmp_path / "index").exists()


def test_a_file_that_changes_during_a_build_loses_nothing_that_is_written(tmp_path, build, monkeypatch):
    path = write(tmp_path / "a.jsonl", '{"_id": "x", "text": "x"}\n{"_id": "y", "text": "y"}\n')
    build("a.jsonl")

    def check_and_change(*arguments: object, **options: object) -> object:
        checked = _check(*arguments, **options)
        path.write_text('{"_id": "y", "text": "y"}\n{"_id": "z", "text": "z"}\n')
        return checked

    monkeypatch.setattr("index.building.survey._check", check_and_change)
    assert "1 documents added, 0 updated, 1 unchanged, 1 deleted" in build("a.jsonl", delete_missing=True)
    assert set(texts(tmp_path)) == {"y", "z"}
