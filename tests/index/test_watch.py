"""`build_index --watch` in a process of its own: the index follows the files."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpt_core.common.errors import InputError
from index.building.options import BuildOptions
from index.building.watch import _changes
from index.index import Index
from index.store.store import Store

SECONDS = 60  # that a busy machine may need


class Watch:
    """A running `build_index.py --watch`, and what it says on stderr."""

    def __init__(self, *arguments: object) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "scripts/build_index.py", "--watch", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()))
        self.reader.start()

    def wait_for(self, words: str) -> None:
        until(lambda: any(words in line for line in self.said) or self.process.poll() is not None)
        assert any(words in line for line in self.said), self.said

    def end(self, number: int = signal.SIGINT) -> str:
        self.process.send_signal(number)
        self.process.wait(SECONDS)
        return self.close()

    def close(self) -> str:
        """What the process, which has ended, has printed."""
        self.reader.join()
        with self.process as process:
            assert process.stdout
            return process.stdout.read()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


@pytest.fixture
def watched(tmp_path: Path, embedder: Path) -> Iterator[tuple[Watch, Path, Callable[[], dict[str, str]]]]:
    """The process, the folder that it watches with the index in it, and a function for the documents' texts."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("whales")
    (tmp_path / "given.txt").write_text("the given file")
    index = folder / "index"
    watch = Watch(
        *("--input", folder, tmp_path / "given.txt", "--index", index),
        *("--embedder", embedder, "--max_tokens", 32, "--delete_missing"),
    )
    reader: list[Index] = []

    def texts() -> dict[str, str]:
        if not reader:
            reader.append(Index.open(index))
        return {
            doc_id: document.text
            for doc_id in reader[0].document_ids()
            if (document := reader[0].get(doc_id))
        }

    try:
        watch.wait_for("watching")
        yield watch, folder, texts
    finally:
        watch.process.kill()
        if watch.process.stdout and not watch.process.stdout.closed:
            watch.close()
        for one in reader:
            one.close()


def test_the_index_follows_the_files(watched, tmp_path):
    watch, folder, texts = watched
    given = {"given.txt": "the given file"}
    assert texts() == {"a.txt": "whales"} | given
    (folder / "b.md").write_text("知之为知之")  # added
    until(lambda: texts() == {"a.txt": "whales", "b.md": "知之为知之"} | given)
    (folder / "c.tmp").write_text("blue whales")  # saved by an editor
    os.replace(folder / "c.tmp", folder / "a.txt")
    (tmp_path / "given.new").write_text("saved again")
    os.replace(tmp_path / "given.new", tmp_path / "given.txt")
    given = {"given.txt": "saved again"}
    until(lambda: texts() == {"a.txt": "blue whales", "b.md": "知之为知之"} | given)
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (tmp_path / "new" / "deep" / "d.txt").write_text("plums")
    os.rename(tmp_path / "new", folder / "new")  # a folder moved in
    until(lambda: texts().get("new/deep/d.txt") == "plums")
    (folder / "new" / "deep" / "d.txt").write_text("pears")
    until(lambda: texts().get("new/deep/d.txt") == "pears")
    os.rename(folder / "new", tmp_path / "out")  # and out again
    (folder / "b.md").unlink()
    until(lambda: texts() == {"a.txt": "blue whales"} | given)
    (folder / "broken.pdf").write_bytes(b"%PDF-junk")
    watch.wait_for("broken.pdf: it is no PDF file")
    (folder / "a.txt").unlink()  # nothing is left in the folder
    until(lambda: texts() == given)
    out = watch.end()
    assert watch.process.returncode == -signal.SIGINT
    assert watch.said[-1] == "build_index.py: stopped\n"
    # Each line stands for an update; the files of the index, which are in the folder, cause none.
    assert out.count("the index now has") <= 12, out
    assert sorted(path.suffix for path in (folder / "index").glob("snapshot-*")) != []


def test_it_waits_for_another_writer_and_ends_with_the_folder(watched, tmp_path):
    watch, folder, texts = watched
    store = Store(folder / "index")
    with store.lock():
        (folder / "b.txt").write_text("pears")
        watch.wait_for("is writing to")
        assert "b.txt" not in texts()
    store.close()
    until(lambda: texts().get("b.txt") == "pears")
    assert sum("is writing to" in line for line in watch.said) == 1
    os.rename(folder, tmp_path / "away")
    watch.wait_for("was deleted; the watch ends")
    watch.process.wait(SECONDS)
    watch.close()
    assert watch.process.returncode == 1


def test_only_what_a_build_reads_is_followed(tmp_path):
    folder, given = tmp_path / "in", tmp_path / "given.txt"
    index = folder / "index"
    index.mkdir(parents=True)
    (folder / ".git").mkdir()
    options = BuildOptions(index=str(index), input=(str(folder), str(given)), watch=True)
    given.touch()
    changes = _changes(options)
    assert next(changes) == set()
    for name in ("index/index.sqlite-wal", "index/a.txt", ".git/b.txt", "picture.png", "../in2.txt"):
        (folder / name).write_text("x")
    (index / "index.sqlite-wal").unlink()
    given.write_text("x")
    (folder / "c.txt").write_text("x")
    found: set[str] = set()

    def both_are_found() -> bool:
        found.update(next(changes))
        return len(found) > 1

    until(both_are_found)
    assert found == {str(given), str(folder / "c.txt")}


def test_what_is_not_a_file_cannot_be_watched(tmp_path):
    for options in (
        {"input": ("a",), "dry_run": True},
        {"delete": ("a",)},
        {"input": ("-",)},
        {"input": ("a", "datasets:b")},
    ):
        with pytest.raises(InputError, match="--watch"):
            BuildOptions(index=str(tmp_path / "index"), watch=True, **options)
