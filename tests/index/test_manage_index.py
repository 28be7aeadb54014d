"""verify finds each kind of damage, repair mends it, backups and vacuumed indexes are whole."""

import json
import re
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from embed import Encoder
from gpt_core.common.errors import InputError
from index.dense.manifest import MANIFEST
from index.index import Index
from index.manage_index import Damaged, backup, repair, stats, vacuum, verify
from index.reading.document import Document
from index.store.store import FILE

TEXT = "The whales sing. " * 30


@pytest.fixture
def folder(tmp_path, embedder):
    """An index of three documents of several passages, one of which was deleted, with a snapshot."""
    with Index.create(tmp_path / "index", Encoder.from_pretrained(embedder), max_tokens=32) as index:
        index.add(Document(name, f"{name}: {TEXT}", f"Title {name}", {"kind": name}) for name in "abc")
        index.delete("c")
        index.save_snapshot()
    return tmp_path / "index"


def damage(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def found(folder: Path) -> list[tuple[str, str, int]]:
    with Index.open(folder) as index:
        return [(hit.doc_id, hit.text, hit.start) for hit in index.search("whales", k=50)]


def test_a_whole_index_passes(folder, capsys):
    verify(index=str(folder))
    assert "all is well with 2 documents in " in capsys.readouterr().out


FIRST = "(SELECT min(number) FROM passages)"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            f"DELETE FROM vectors WHERE number = {FIRST}",
            r"1 documents \(a\) have passages without a whole vector",
        ),
        (f"UPDATE vectors SET vector = x'00' WHERE number = {FIRST}", "have passages without a whole vector"),
        (
            f"UPDATE vectors SET vector = CAST(replace(hex(vector), '0', 'F') AS BLOB) WHERE number = {FIRST}",
            "have passages without a whole vector",
        ),
        (
            f"DELETE FROM passages WHERE number = {FIRST}",
            "1 rows belong to a document or passage that is not there",
        ),
        (f"DELETE FROM lexical_docsize WHERE id = {FIRST}", "1 passages are not in the full text"),
        (
            f"INSERT INTO lexical (lexical, rowid, terms) VALUES ('delete', {FIRST}, 'whales')",
            "1 passages are not in the full text",
        ),
        (f"DELETE FROM lexical_stop_words_docsize WHERE id > {FIRST}", "passages are not in the full text"),
        ("UPDATE fields SET value = 'x' WHERE value = 'a'", "the index over fields is not that of"),
        ("DELETE FROM field_names", "the index over fields is not that of the documents' metadata"),
        ("INSERT INTO lexical (rowid, terms) VALUES (999, 'x')", "1 passages are not in the full text"),
        (
            f"UPDATE passages SET start = start + 1 WHERE number = {FIRST}",
            "that are not at their place in the text",
        ),
        ("UPDATE meta SET value = 1 WHERE key = 'sequence'", "the counter is at 1"),
        ("DELETE FROM documents WHERE id = 'b'", "belong to a document or passage that is not there"),
    ],
)
def test_damage_is_found_and_mended(folder, capsys, statement, said):
    before = found(folder)
    damage(folder, statement)
    with pytest.raises(Damaged, match=r"run manage_index\.py repair --index"):
        verify(index=str(folder))
    assert re.search(said, capsys.readouterr().out)
    repair(index=str(folder))
    assert "all is well" in capsys.readouterr().out
    if "documents WHERE id = 'b'" in statement:
        before = [hit for hit in before if hit[0] != "b"]
    if "DELETE FROM passages" in statement:  # its text is lost
        with Index.open(folder) as index:
            assert index.upsert(Document("a", f"a: {TEXT}", "Title a", {"kind": "a"})).updated == 1
    assert sorted(found(folder)) == sorted(before)


def test_vectors_that_are_no_numbers_are_encoded_again(folder, capsys):
    import numpy as np

    with sqlite3.connect(folder / FILE) as connection:
        (size,) = connection.execute("SELECT length(vector) FROM vectors").fetchone()
        nan = np.full(size // 4, np.nan, np.float32).tobytes()
        connection.execute(f"UPDATE vectors SET vector = ? WHERE number = {FIRST}", (nan,))
    connection.close()
    with pytest.raises(Damaged):
        verify(index=str(folder))
    assert "have vectors that are no numbers" in capsys.readouterr().out
    repair(index=str(folder))
    verify(index=str(folder))


def test_a_changed_text_is_marked_and_replaced_by_the_next_upsert(folder, capsys):
    damage(folder, f"UPDATE passages SET text = replace(text, 'sing', 'sink') WHERE number = {FIRST}")
    with pytest.raises(Damaged):
        verify(index=str(folder))
    assert "1 documents (a) have another text than was stored" in capsys.readouterr().out
    repair(index=str(folder))
    assert "run build_index.py with the same --input" in capsys.readouterr().out
    with Index.open(folder) as index:
        assert index.upsert(Document("a", f"a: {TEXT}", "Title a", {"kind": "a"})).updated == 1
        assert index.upsert(Document("b", f"b: {TEXT}", "Title b", {"kind": "b"})).unchanged == 1
    verify(index=str(folder))


def test_a_damaged_file_is_said_to_need_a_backup(folder):
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'passages'").fetchone()
    connection.close()
    with open(folder / FILE, "r+b") as file:
        file.seek((page - 1) * 16384)
        file.write(b"\xff" * 16384)
    with pytest.raises(Damaged, match="is damaged; restore a backup, or build the index again"):
        verify(index=str(folder))
    with pytest.raises(InputError, match="is damaged; restore a backup"):
        repair(index=str(folder))


def test_a_damaged_snapshot_is_named_and_does_not_matter(folder, capsys):
    name = json.loads((folder / MANIFEST).read_text())["folder"] + "/vectors.npy"
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    verify(index=str(folder))
    out = capsys.readouterr().out
    assert "the snapshot of the vectors is damaged; it is made again" in out
    assert "all is well" in out


def test_a_backup_of_an_index_that_is_written_is_whole(folder, tmp_path):
    with Index.open(folder) as index:
        stop = threading.Event()

        def write() -> None:
            for number in range(1000):
                if stop.is_set():
                    return
                index.add(Document(f"d{number}", f"{number} {TEXT}"))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(3):
                backup(index=str(folder), out=str(tmp_path / f"copy{number}"))
                verify(index=str(tmp_path / f"copy{number}"))
        finally:
            stop.set()
            writer.join()
    with pytest.raises(InputError, match="give a new folder"):
        backup(index=str(folder), out=str(tmp_path / "copy0"))
    shutil.rmtree(folder)
    assert {doc_id for doc_id, *_ in found(tmp_path / "copy0")} >= {"a", "b"}


def test_vacuum_gives_space_back_and_changes_nothing_else(folder, capsys):
    with Index.open(folder) as index:
        index.add(Document(f"d{number}", f"{number} " + 40 * TEXT) for number in range(30))
        index.delete(f"d{number}" for number in range(30))
    before, hits = (folder / FILE).stat().st_size, found(folder)
    vacuum(index=str(folder))
    assert (folder / FILE).stat().st_size < before / 2
    assert found(folder) == hits
    verify(index=str(folder))


def test_stats(folder, capsys):
    stats(index=str(folder), json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["documents"], told["bytes"][FILE] > 0) == (2, True)
    stats(index=str(folder))
    assert "documents              2\n" in capsys.readouterr().out
