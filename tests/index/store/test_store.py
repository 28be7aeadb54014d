"""The store: documents, settings and embedder, also after kills, with other writers and with damaged files."""

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gpt_core.common.errors import InputError
from index.index import Index
from index.reading.document import Document
from index.store.check import find_problems
from index.store.store import FILE, Store
from tests import commands


def n_documents(folder: Path) -> int:
    if not folder.exists():
        return 0
    with Index.open(folder) as index:
        return index.stats()["documents"]


def contents(folder) -> dict[str, list]:
    """All rows of the store; of the vectors only their lengths, since their last bits may differ."""
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("CREATE VIRTUAL TABLE temp.words USING fts5vocab ('main', 'lexical', 'instance')")
        tables = {
            "documents": "SELECT number, id, title, metadata, hash, lead, rest FROM documents ORDER BY number",
            "passages": "SELECT * FROM passages ORDER BY number",
            "lexical": "SELECT doc, group_concat(term, ' ') FROM words GROUP BY doc",
            "vectors": "SELECT number, length(vector) FROM vectors ORDER BY number",
        }
        result = {name: connection.execute(query).fetchall() for name, query in tables.items()}
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.execute("INSERT INTO lexical (lexical) VALUES ('integrity-check')")
    connection.close()
    return result


# One process forks a builder for each folder's name on standard input.
BUILDERS = """
import os, sys
import index.store.write, torch
from embed import EmbedderConfig, Encoder
from gpt_core import GPT, GPTConfig, Tokenizer
from index import Document, Index

index.store.write.PASSAGES_PER_COMMIT = 3
torch.manual_seed(0)
tokenizer = Tokenizer.from_pretrained("gpt2")
shape = dict(block_size=96, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, n_inner=32)
encoder = Encoder(GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)), tokenizer, EmbedderConfig(), name="tiny")
text = "Document {} is about number {}. "
documents = [Document(f"d{i}", text.format(i, i * i) * (1 + i % 9), f"Title {i}") for i in range(150)]
for line in sys.stdin:
    folder = line.strip()
    pid = os.fork()
    if not pid:
        made = os.path.exists(folder)
        with Index.open(folder, encoder) if made else Index.create(folder, encoder, max_tokens=32) as index:
            index.upsert(documents)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_kill_9_at_any_moment_loses_no_committed_document(tmp_path):
    script = tmp_path / "builders.py"
    script.write_text(BUILDERS)
    builders = commands.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def build(folder: Path, kill_at: int | None = None) -> int:
        """Build, or kill the builder soon after it has committed `kill_at` documents."""
        builders.stdin.write(f"{folder}\n")
        builders.stdin.flush()
        pid = int(builders.stdout.readline())
        if kill_at is not None:
            while n_documents(folder) < kill_at:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
        return int(builders.stdout.readline())

    moments = random.Random(7)
    with builders:
        assert build(tmp_path / "whole") == 0
        expected = contents(tmp_path / "whole")
        folder = tmp_path / "killed"
        committed: list[tuple] = []
        for _ in range(7):
            kill_at = len(committed) + moments.randrange(12) if committed else moments.randrange(2)
            assert build(folder, kill_at) == -signal.SIGKILL
            if folder.exists():  # a complete index, or none if the builder was killed before it existed
                now = contents(folder)["documents"]
                assert len(now) >= kill_at
                assert now[: len(committed)] == committed
                committed = now
                with Index.open(folder) as index:
                    found = index.search("number", k=10_000, mode="lexical")
                    assert len(found) == index.stats()["passages"]
                with contextlib.closing(Store(folder)) as store:
                    assert list(find_problems(store)) == []
        assert build(folder) == 0
        builders.stdin.close()
    assert contents(folder) == expected
    with Index.open(tmp_path / "whole") as one, Index.open(folder) as other:
        query = np.random.default_rng(0).normal(size=16)
        for ours, theirs in zip(one.search(query, 50), other.search(query, 50), strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=2e-3)


def test_offsets_point_into_the_document(tmp_path, encoder):
    documents = [
        Document("zh", "知之为知之，不知为不知🙂，是知也。" * 20),
        Document("en", "Some words here. " * 60, "T"),
    ]
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=8) as index:
        index.add(documents)
        hits = index.search("words 知之", k=100)
        assert len(hits) == index.stats()["passages"]
        for hit in hits:
            assert index.get(hit.doc_id).text[hit.start : hit.end] == hit.text
            assert hit.passage_id == f"{hit.doc_id}#{hit.start}-{hit.end}"
        assert {document.id: index.get(document.id) for document in documents} == {d.id: d for d in documents}
        assert index.get("nowhere") is None


def test_add_upsert_and_delete(tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=0) as index:
        first = Document("a", "Apples grow on trees.", metadata={"kind": "fruit"})
        assert index.add(first).added == 1
        assert index.add([first, Document("b", "Pears, too.")]).unchanged == 1
        changed = Document("a", "Apples are computers, too. " * 20)
        with pytest.raises(InputError, match=r"'a' exists with other content; use upsert"):
            index.add([Document("c", "Cherries."), changed])
        assert index.get("a") == first
        result = index.upsert([changed, changed])
        assert (result.updated, result.unchanged, result.added) == (1, 1, 0)
        assert index.search("trees", mode="lexical") == []
        assert {hit.doc_id for hit in index.search("apples computers")} >= {"a"}
        assert index.delete(["a", "nowhere"]) == 1
        assert index.delete("a") == 0
        assert index.search("apples", mode="lexical") == []
        assert all(hit.doc_id == "b" for hit in index.search("apples"))
        assert index.document_ids() == ["b"]
    assert len(contents(tmp_path / "index")["lexical"]) == 1


def test_passage_numbers_are_never_reused(tmp_path):
    with Index.create(tmp_path / "index", dimension=2) as index:
        seen = set()
        for i in range(5):
            index.upsert(Document("a", f"text {i}"), [1, i])
            (number,) = {row[0] for row in contents(tmp_path / "index")["passages"]}
            assert number not in seen
            seen.add(number)
            index.delete("a")


def test_an_interrupted_stream_keeps_what_was_committed(tmp_path, encoder):
    def stream():
        yield from (Document(f"d{i}", "word " * 40) for i in range(60))
        raise InputError("line 61 is broken")

    with Index.create(tmp_path / "index", encoder, max_tokens=16, overlap=0) as index:
        with pytest.raises(InputError, match="line 61"):
            index.add(stream())
        n = len(index.document_ids())
        assert 0 < n < 60
        assert index.add(Document(f"d{i}", "word " * 40) for i in range(60)).unchanged == n
        assert len(index.document_ids()) == 60


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1, 2, 3]], r"vectors have the shape \(1, 3\)"),
        ([[1, 2], [3, 4]], "1 documents and 2 vectors"),
        ([[1, float("inf")]], "NaN or infinite"),
        ([["a", "b"]], "not arrays of numbers"),
        (None, "built from precomputed vectors"),
    ],
)
def test_bad_vectors_are_refused_and_leave_nothing(tmp_path, vectors, message):
    with Index.create(tmp_path / "index", dimension=2) as index:
        with pytest.raises(InputError, match=message):
            index.add([Document("a", "text")], vectors)
        assert index.document_ids() == []


def test_another_embedder_is_refused_by_name(tmp_path, make_encoder):
    folder = tmp_path / "index"
    Index.create(folder, make_encoder(name="first"), max_tokens=32).close()
    Index.open(folder, make_encoder(name="renamed")).close()
    for other in (make_encoder(seed=1, name="second"), make_encoder(name="prompted", query_prompt="query: ")):
        with pytest.raises(InputError, match=rf"built with first \(\w+\), not with {other.name} \(\w+\)"):
            Index.open(folder, other)
    Index.create(tmp_path / "vectors", dimension=4).close()
    with pytest.raises(InputError, match="built with precomputed vectors, not with first"):
        Index.open(tmp_path / "vectors", make_encoder(name="first"))


def test_a_full_disk_leaves_no_half_made_index(tmp_path, encoder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"index\.sqlite: "):
            Index.create(tmp_path / "index", encoder, max_tokens=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_invalid_index_folders_are_refused_and_unchanged(tmp_path, encoder, monkeypatch):
    with pytest.raises(InputError, match="has no index"):
        Index.open(tmp_path / "nowhere")
    folder = tmp_path / "index"
    Index.create(folder, encoder, max_tokens=32).close()
    with pytest.raises(InputError, match="has an index already"):
        Index.create(folder, encoder, max_tokens=32)
    with pytest.raises(InputError, match="exists already"):
        Index.create(tmp_path, encoder, max_tokens=32)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="is the current folder"):
        Index.create("", encoder, max_tokens=32)
    assert sorted(os.listdir(tmp_path)) == ["empty", "index"]
    connection = sqlite3.connect(folder / FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InputError, match="has format 99"):
        Index.open(folder)
    (folder / FILE).write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(InputError, match="cannot be read as an index"):
        Index.open(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 8}, "max_tokens is 8"),
        ({"max_tokens": 97}, "max_tokens is 97; the embedder tiny takes at most 96"),
        ({"max_tokens": 64, "overlap": 40}, "overlap is 40"),
        ({"max_tokens": 64, "passages_per_document": 0}, "passages_per_document is 0"),
    ],
)
def test_invalid_settings_leave_no_folder(tmp_path, encoder, arguments, message):
    with pytest.raises(InputError, match=message):
        Index.create(tmp_path / "index", encoder, **arguments)
    with pytest.raises(InputError, match="dimension is 0"):
        Index.create(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_one_writer_at_a_time_while_others_read(tmp_path):
    with Index.create(tmp_path / "index", dimension=2) as index, Index.open(tmp_path / "index") as other:
        index.add(Document("a", "text a"), [1, 0])
        inside, go_on = threading.Event(), threading.Event()

        def slow():
            inside.set()
            assert go_on.wait(30)
            yield Document("b", "text b")

        def write_slowly():
            with pytest.raises(InputError, match="built from precomputed vectors"):
                index.add(slow())

        writer = threading.Thread(target=write_slowly)
        writer.start()
        assert inside.wait(30)
        for write in (lambda: other.add(Document("c", "c"), [0, 1]), lambda: other.delete("a")):
            with pytest.raises(InputError, match="is writing to"):
                write()
        assert [hit.doc_id for hit in other.search([1, 0])] == ["a"]
        go_on.set()
        writer.join()
        other.add(Document("c", "c"), [0, 1])
        assert [hit.doc_id for hit in index.search([0, 1], k=1)] == ["c"]


def test_of_several_that_create_an_index_at_once_one_succeeds(tmp_path):
    for attempt in range(3):
        folder, start, results = tmp_path / f"index{attempt}", threading.Barrier(6), []

        def create(folder=folder, start=start, results=results):
            start.wait()
            try:
                with Index.create(folder, dimension=2) as index:
                    index.add(Document("a", "text"), [1, 0])
                results.append("made")
            except InputError as error:
                results.append(str(error))

        threads = [threading.Thread(target=create) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results.remove("made")
        assert results == [f"{folder} has an index already; give a new folder."] * 5
        with Index.open(folder) as index:
            assert index.document_ids() == ["a"]
        assert sorted(os.listdir(tmp_path))[-1] == folder.name  # no temporary folder is left


def test_a_closed_index_refuses_everything(tmp_path):
    with Index.create(tmp_path / "index", dimension=2) as index:
        index.add(Document("a", "text"), [1, 0])
        index.search([1, 0])
    for use in (
        lambda: index.search([1, 0]),
        lambda: index.search("text", mode="lexical"),
        lambda: index.get("a"),
        lambda: index.delete("a"),
        lambda: index.add(Document("b", "text"), [1, 0]),
        index.stats,
        index.save_snapshot,
    ):
        with pytest.raises(InputError, match="is closed; open it again"):
            use()
    index.close()
    with Index.open(tmp_path / "index") as index:
        assert index.document_ids() == ["a"]


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", 64), ("overlap", 0), ("passages_per_document", 3)]
)
def test_settings_of_texts_are_refused_for_precomputed_vectors(tmp_path, name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; it is for an index with an encoder"):
        Index.create(tmp_path / "index", dimension=4, **{name: value})
    assert not (tmp_path / "index").exists()


def test_a_dimension_is_refused_with_an_encoder(tmp_path, encoder):
    with pytest.raises(InputError, match="dimension is 999; it is for an index of precomputed vectors"):
        Index.create(tmp_path / "index", encoder, dimension=999)


def test_an_index_of_an_embedder_without_a_name_says_so(tmp_path, make_encoder):
    encoder = make_encoder(name="")
    with Index.create(tmp_path / "index", encoder, max_tokens=32) as index:
        index.add(Document("a", "text"))
    with Index.open(tmp_path / "index") as index:
        for use in (lambda: index.search("text"), lambda: index.add(Document("b", "b"))):
            with pytest.raises(InputError, match=r"embedder without a name \(\w+\); give the encoder to"):
                use()
    with Index.open(tmp_path / "index", encoder) as index:
        assert [hit.doc_id for hit in index.search("text")] == ["a"]


# A process that is not root searches each folder that it is given and prints what it finds.
SEARCH = """
import os, sys
from index import Document, Index
if os.getuid() == 0:
    os.setuid(65534)
for folder in sys.argv[1:]:
    try:
        with Index.open(folder) as index:
            print([hit.doc_id for hit in index.search([1, 0])], index.search("two", mode="lexical")[0].doc_id)
            index.save_snapshot()
            index.delete("a")
    except Exception as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="changes the rights of files")
def test_a_read_only_copy_has_all_commits_or_is_refused(tmp_path):
    with tempfile.TemporaryDirectory() as name, Index.create(tmp_path / "index", dimension=2) as index:
        root = Path(name)
        root.chmod(0o755)  # tmp_path is private
        index.add([Document("a", "one"), Document("b", "two")], [[1, 0], [0, 1]])
        shutil.copytree(tmp_path / "index", root / "in_use")
        shutil.copytree(tmp_path / "index", root / "incomplete")
        (root / "incomplete" / f"{FILE}-shm").unlink()
        index.close()
        shutil.copytree(tmp_path / "index", root / "closed")
        for path in root.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        script = tmp_path / "search.py"
        script.write_text(SEARCH)
        folders = (root / name for name in ("closed", "in_use", "incomplete"))
        searched = commands.run([script, *folders], capture_output=True, text=True)
        for path in root.iterdir():
            path.chmod(0o755)
    assert searched.stderr == ""
    closed, refused, in_use, refused_too, incomplete = searched.stdout.splitlines()
    assert closed == in_use == "['a', 'b'] b"
    for error in (refused, refused_too):
        assert "Permission denied" in error or "Read-only file system" in error
    assert "-wal has changes that index.sqlite does not have yet, and the folder is read-only" in incomplete


def test_after_an_error_of_the_file_its_connection_is_not_used_again(tmp_path):
    with Index.create(tmp_path / "index", dimension=2) as index:
        index.add([Document(f"d{i}", f"text {i} " * 999) for i in range(50)], np.eye(2).repeat(25, axis=0))
    content = (tmp_path / "index" / FILE).read_bytes()
    with Index.open(tmp_path / "index") as index:
        with open(tmp_path / "index" / FILE, "r+b") as f:
            f.seek(16384 * 2)
            f.write(os.urandom(len(content) - 16384 * 2))
        with pytest.raises(OSError, match="malformed"):
            index.get("d7")
        (tmp_path / "index" / FILE).write_bytes(content)
        assert index.get("d7").text == "text 7 " * 999


def test_a_moved_index_opens(tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder, max_tokens=32) as index:
        index.add(Document("a", "text"))
        index.save_snapshot()
    shutil.move(tmp_path / "index", tmp_path / "a ünïcode 名字 #%20?")
    with Index.open(tmp_path / "a ünïcode 名字 #%20?", encoder) as index:
        assert [hit.doc_id for hit in index.search("text")] == ["a"]
