"""`build_index --dry_run` says what a build then does, and writes nothing."""

import os
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from gpt_core.common.errors import InputError
from index.build_index import build_index
from index.building.options import BuildOptions
from index.store import files
from index.store.store import FILE

COUNTS = re.compile(
    r"(\d+) documents (?:would be )?added, (\d+) updated, (\d+) unchanged, (\d+) deleted; (\d+) passages"
)


@pytest.fixture
def build(tmp_path, make_encoder, capsys, monkeypatch, load_always):
    """build(…) → the counts, and the lines that are printed."""
    load_always(make_encoder())
    monkeypatch.setattr(files, "SETTLED", -1.0)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("whales " * 100)
    (tmp_path / "in" / "b.csv").write_text("name\nAda\nKurt\n")
    (tmp_path / "in" / "broken.pdf").write_bytes(b"%PDF-junk")

    def build(**options: object) -> tuple[tuple[int, ...], list[str]]:
        given = {"index": str(tmp_path / "index"), "input": (str(tmp_path / "in"),), "max_tokens": 32}
        build_index(BuildOptions(**(given | options)))
        out, err = capsys.readouterr()
        return tuple(map(int, COUNTS.search(out).groups())), (out + err).splitlines()

    return build


def content(folder: Path) -> dict[str, tuple[int, bytes] | None]:
    """The files with their times and bytes; not the times of folders, since SQLite has files of its own for a while."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def test_a_new_index_is_described_and_no_folder_is_made(tmp_path, build):
    before = content(tmp_path)
    counts, lines = build(dry_run=True)
    assert counts[:4] == (3, 0, 0, 0)
    assert counts[4] > 3
    assert lines[0].startswith("add     a.txt (")
    assert any("broken.pdf: it is no PDF file" in line for line in lines)
    assert content(tmp_path) == before
    assert build()[0] == counts
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(InputError, match="no text found"):
        build(dry_run=True, input=(str(empty),), index=str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("options", [{}, {"delete_missing": True}, {"delete": ("in/b.csv", "in/gone.txt")}])
def test_a_dry_run_counts_what_the_build_then_does(tmp_path, build, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "gone.txt").write_text("engines")
    (tmp_path / "in" / "old").mkdir()
    (tmp_path / "in" / "old" / "moved.md").write_text("# Plums")
    build()
    (tmp_path / "in" / "gone.txt").unlink()
    (tmp_path / "in" / "a.txt").write_text("blue whales")
    (tmp_path / "in" / "b.csv").write_text("name\nAda\nGrace\n")
    (tmp_path / "in" / "new.txt").write_text("pears")
    os.rename(tmp_path / "in" / "old", tmp_path / "moved")
    input = (str(tmp_path / "in"), str(tmp_path / "moved"))
    before = content(tmp_path)
    counts, lines = build(dry_run=True, input=input, **options)
    assert content(tmp_path) == before
    done, said = build(input=input, **options)
    assert counts == done
    assert [line for line in lines if "such as" in line] == [line for line in said if "such as" in line]
    assert (
        sum(line.startswith(("add ", "update ", "delete ")) for line in lines)
        == sum(counts) - counts[2] - counts[4]
    )
    assert "update  a.txt (1 passages)" in lines
    assert build(dry_run=True, input=input)[0][:2] == (0, 0)


def test_a_dry_run_needs_a_folder_that_can_be_read_only(tmp_path, build):
    build()
    (tmp_path / "in" / "new.txt").write_text("pears")
    os.chmod(tmp_path / "index", 0o555)
    try:
        assert build(dry_run=True)[0][:4] == (1, 0, 3, 0)
    finally:
        os.chmod(tmp_path / "index", 0o755)


def test_a_dry_run_does_not_migrate_an_older_index(tmp_path, build):
    build()
    with sqlite3.connect(tmp_path / "index" / FILE) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(InputError, match="has an older format; open the index once"):
        build(dry_run=True)
    shutil.rmtree(tmp_path / "index")
    assert build(dry_run=True)[0][:4] == (3, 0, 0, 0)
