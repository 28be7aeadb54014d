"""Files that are unchanged since their documents were stored are not read again."""

import os

import pytest

from gpt_core.common.errors import InputError
from index.build_index import build_index
from index.building import survey
from index.building.options import BuildOptions
from index.index import Index
from index.reading import read as reading
from index.store import files
from tests.index.reading.made_files import make_pdf
from tests.index.store.older_format import to_format


@pytest.fixture
def build(tmp_path, make_encoder, capsys, monkeypatch, load_always):
    """build(…) builds `tmp_path/index` of `tmp_path/in` → what is printed; `build.read` has the names of read files."""
    load_always(make_encoder())
    monkeypatch.setattr(files, "SETTLED", -1.0)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("whales")
    (tmp_path / "in" / "b.csv").write_text("name\nAda\nKurt\n")
    names: set[str] = set()
    whole, rows = reading._read_whole, reading.read_rows_of
    monkeypatch.setattr(
        reading, "_read_whole", lambda file, *rest: names.add(file.path.name) or whole(file, *rest)
    )
    monkeypatch.setattr(
        reading, "read_rows_of", lambda file, *rest: names.add(file.path.name) or rows(file, *rest)
    )

    def build(**options: object) -> str:
        names.clear()
        given = {"input": (str(tmp_path / "in"),), "max_tokens": 32} | options
        build_index(BuildOptions(index=str(tmp_path / "index"), **given))
        return "".join(capsys.readouterr())

    build.read = names
    return build


def test_only_changed_files_are_read(tmp_path, build):
    assert "3 documents added" in build()
    assert build.read == {"a.txt", "b.csv"}
    assert "0 documents added, 0 updated, 3 unchanged, 0 deleted" in build(delete_missing=True)
    assert build.read == set()
    (tmp_path / "in" / "a.txt").write_text("engines")
    assert "0 documents added, 1 updated, 2 unchanged" in build()
    assert build.read == {"a.txt"}
    (tmp_path / "in" / "c.txt").write_text("plums")
    out = build()
    assert "1 documents added, 0 updated, 3 unchanged" in out
    assert build.read == {"c.txt"}
    assert [line.split() for line in out.splitlines() if line.startswith(".")] == [
        [".csv", "0", "1", "0"],
        [".txt", "1", "1", "0"],
    ]


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path, build):
    build()
    path = tmp_path / "in" / "a.txt"
    before = path.stat()
    path.write_text("shrews")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "1 updated" in build()


def test_a_file_that_was_just_written_is_read_again(tmp_path, build, monkeypatch):
    monkeypatch.setattr(files, "SETTLED", 3600.0)
    build()
    build()
    assert build.read == {"a.txt", "b.csv"}


def test_a_file_is_read_again_if_one_of_its_documents_is_gone(tmp_path, build):
    build()
    with Index.open(tmp_path / "index") as index:
        index.delete(next(doc_id for doc_id in index.document_ids() if doc_id.startswith("b.csv")))
    assert "1 documents added, 0 updated, 2 unchanged" in build()
    assert build.read == {"b.csv"}
    assert "2 documents added, 0 updated, 1 unchanged, 2 deleted" in build(
        delete=(str(tmp_path / "in" / "b.csv"),)
    )


def test_files_are_read_again_after_a_change_of_the_readers(tmp_path, build, monkeypatch):
    build()
    monkeypatch.setattr(survey, "READING", survey.READING + 1)
    build()
    assert build.read == {"a.txt", "b.csv"}


def test_a_new_document_may_not_have_the_id_of_an_unchanged_one(tmp_path, build):
    (tmp_path / "in" / "d.jsonl").write_text('{"_id": "one", "text": "x"}\n')
    build()
    (tmp_path / "in" / "e.jsonl").write_text('{"_id": "one", "text": "y"}\n')
    with pytest.raises(InputError, match="another document has the id 'one'"):
        build()


def test_files_that_cannot_be_read_are_remembered_with_the_reason(tmp_path, build):
    broken = tmp_path / "in" / "broken.pdf"
    broken.write_bytes(b"%PDF-junk")
    assert "broken.pdf: it is no PDF file, or damaged" in build()
    out = build()
    assert build.read == set()
    assert ".pdf 0 0 1 it is no PDF file, or damaged" in " ".join(out.split())
    with pytest.raises(InputError, match=r"broken\.pdf: it is no PDF file, or damaged\. Leave out --strict"):
        build(strict=True)
    with pytest.raises(InputError, match="it is no PDF file"):
        build(input=(str(broken),))
    make_pdf(broken, [[(700, 10, "Mended.")]])
    assert "1 documents added" in build(strict=True)


def test_strict_stops_before_anything_is_written(tmp_path, build):
    (tmp_path / "in" / "broken.pdf").write_bytes(b"%PDF-junk")
    with pytest.raises(InputError, match="Leave out --strict to skip such files"):
        build(strict=True)
    assert not (tmp_path / "index").exists()


def test_rows_of_a_table_can_be_grouped(tmp_path, build):
    assert "2 documents added" in build(rows_per_document=2)
    assert "2 unchanged" in build()
    with Index.open(tmp_path / "index") as index:
        (rows,) = (d for d in map(index.get, index.document_ids()) if d.id != "a.txt")
    assert rows.text == "| name |\n| --- |\n| Ada |\n| Kurt |"
    with pytest.raises(
        InputError, match="was created with rows_per_document 2, not 1; leave out --rows_per_document"
    ):
        build(rows_per_document=1)
    with pytest.raises(InputError, match="rows_per_document is 0; expected at least 1"):
        build_index(
            BuildOptions(
                index=str(tmp_path / "other"),
                input=(str(tmp_path / "in"),),
                rows_per_document=0,
                max_tokens=32,
            )
        )


def test_hits_of_a_document_with_pages_name_the_page_and_older_indexes_are_brought_up_to_date(
    tmp_path, build
):
    make_pdf(tmp_path / "in" / "m.pdf", [[(700, 10, f"The {word} page.")] for word in ("first", "second")])
    build()
    with Index.open(tmp_path / "index") as index:
        (hit,) = index.search("second", mode="lexical")
        assert str(hit.pages) == "pages 1–2"
        assert str(hit.pages.of(hit.text.index("second"), hit.end)) == "page 2"
        assert index.search("whales", mode="lexical")[0].pages is None
        assert str(index.get("m.pdf").pages.of(0, 5)) == "page 1"
    to_format(tmp_path / "index", 2)
    with Index.open(tmp_path / "index") as index:
        (hit,) = index.search("second", mode="lexical")
        assert hit.pages is None
    build()
    assert build.read == {"a.txt", "b.csv", "m.pdf"}


def test_an_older_index_that_cannot_be_written_says_so(tmp_path, build, monkeypatch):
    build()
    to_format(tmp_path / "index", 2)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="has an older format, and the folder is read-only"):
        Index.open(tmp_path / "index")
