"""Files of folders: links once, endings in any case, and what cannot be read is named instead of stopping the work."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpt_core.common.errors import InputError
from gpt_core.common.list_files import list_files

KINDS = (".txt", ".jsonl.gz")


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text")
    return path


def names(*roots: Path) -> list[str]:
    return [name for _, name in list_files(roots, KINDS).files]


def test_a_linked_folder_is_read_once_and_a_circle_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path / "in" / "z" / "own.txt")
    write(tmp_path / "other" / "deep" / "far.txt")
    (tmp_path / "in" / "a").symlink_to("z")  # inside the folder: the file keeps its own name
    (tmp_path / "in" / "b").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "deep" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in") == ["z/own.txt", "b/deep/far.txt"]
    (tmp_path / "root").symlink_to(tmp_path / "other")
    assert names(tmp_path / "root") == ["deep/far.txt", "deep/back/z/own.txt"]


def test_a_file_is_listed_once_and_by_its_own_name(tmp_path: Path) -> None:
    write(tmp_path / "in" / "b.txt")
    (tmp_path / "in" / "a.txt").symlink_to("b.txt")
    (tmp_path / "in" / "c.txt").symlink_to(write(tmp_path / "far.txt"))
    assert names(tmp_path / "in") == ["b.txt", "c.txt"]
    assert names(tmp_path / "in", tmp_path / "in" / "b.txt") == ["b.txt", "c.txt"]
    assert names(tmp_path / "in", tmp_path / "far.txt") == ["b.txt", "far.txt"]


def test_endings_may_be_in_upper_case(tmp_path: Path) -> None:
    write(tmp_path / "NOTES.TXT"), write(tmp_path / "a.Jsonl.GZ")
    assert names(tmp_path) == ["NOTES.TXT", "a.Jsonl.GZ"]
    assert names(tmp_path / "NOTES.TXT") == ["NOTES.TXT"]


def test_what_cannot_be_read_in_a_folder_is_passed_over_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "good.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "notes").symlink_to("nowhere")
    (tmp_path / "self.txt").symlink_to("self.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    for name in (b"caf\xe9.txt", b"fold\xe9r/a.txt"):
        write(tmp_path / os.fsdecode(name))
    listing = list_files([tmp_path], KINDS)
    assert [name for _, name in listing.files] == ["good.txt"]
    assert listing.skipped == []
    reasons = {Path(entry.partition(" (")[0]).name: entry.partition(" (")[2] for entry in listing.unreadable}
    assert reasons == {
        "gone.txt": "a broken link)",
        "notes": "a broken link)",
        "self.txt": "Too many levels of symbolic links)",
        "pipe.txt": "not a regular file)",
        os.fsdecode(b"caf\xe9.txt"): "its name is not UTF-8)",
        os.fsdecode(b"fold\xe9r"): "its name is not UTF-8)",
    }
    listing.report()
    said = capsys.readouterr().err
    assert said.startswith("skipped 6 files or folders that cannot be read: ")
    assert said.endswith(" and 1 more\n")
    assert "caf\\xe9.txt (its name is not UTF-8)" in said
    assert said.count("\n") == 1


@contextmanager
def without_root_rights() -> Iterator[Path]:
    """A folder that belongs to a user whom permissions stop, and this process as this user."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        if root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
            for locked in Path(folder).rglob("locked"):
                locked.chmod(0o755)


def test_folders_and_files_without_permission_are_passed_over_unless_they_are_given() -> None:
    with without_root_rights() as folder:
        write(folder / "in" / "good.txt"), write(folder / "in" / "locked" / "b.txt")
        write(folder / "in" / "secret.txt").chmod(0)
        (folder / "in" / "locked").chmod(0)
        files, _, unreadable = list_files([folder / "in"], KINDS)
        assert [name for _, name in files] == ["good.txt"]
        assert unreadable == [f"{folder}/in/{name} (Permission denied)" for name in ("secret.txt", "locked")]
        for path in (folder / "in" / "locked", folder / "in" / "secret.txt"):
            with pytest.raises(InputError, match=f"{path} cannot be read: Permission denied"):
                list_files([path], KINDS)


def test_a_path_that_is_given_must_be_readable(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(InputError, match=r"gone\.txt cannot be read: a broken link"):
        list_files([tmp_path / "gone.txt"], KINDS)
    with pytest.raises(InputError, match=r"no supported file.*Unreadable: .*gone\.txt \(a broken link\)"):
        list_files([tmp_path], KINDS)
