"""The commands build_index and search_index."""

import json
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from embed.encoding.encoder import Encoder
from gpt_core.common.cli import run_command
from gpt_core.common.errors import InputError
from gpt_core.hub.locate import DEFAULT_EMBEDDER
from index.build_index import build_index
from index.building.options import BuildOptions
from index.index import Index
from index.reading.document import Document
from index.search_index import search_index
from index.store.store import Store
from tests import commands


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("---\nkind: rule\nyear: 2001\n---\n# Style\n\nIndent by four spaces. " * 3)
    (folder / "b.txt").write_text("知之为知之，不知为不知，是知也。")
    (folder / "c.jsonl").write_text(
        '{"_id": "walrus", "title": "Walrus", "text": "Assignment expressions.", "year": 2018}\n'
    )
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def built(tmp_path, notes, embedder, capsys):
    build_index(
        BuildOptions(input=[str(notes)], index=str(tmp_path / "index"), embedder=str(embedder), max_tokens=32)
    )
    out, err = capsys.readouterr()
    assert "3 documents added, 0 updated, 0 unchanged" in out
    assert "skipped 1 files of other types: " in err
    return tmp_path / "index"


def test_a_new_index_gets_the_shipped_embedder_and_an_old_one_keeps_its_own(built, notes, tmp_path, capsys):
    build_index(BuildOptions(input=[str(notes)], index=str(tmp_path / "new")))
    with Index.open(tmp_path / "new") as index:
        assert index.settings.embedder == DEFAULT_EMBEDDER
        assert index.search("grammar of expressions", 1, "dense")[0].doc_id == "walrus"
    build_index(BuildOptions(input=[str(notes)], index=str(tmp_path / "new")))
    assert "keeps its embedder" not in capsys.readouterr().err
    with Index.open(built) as index:
        own = index.settings.embedder
    build_index(BuildOptions(input=[str(notes)], index=str(built)))
    said = f"{built} keeps its embedder {own}; a new index would get {DEFAULT_EMBEDDER}"
    assert said in capsys.readouterr().err
    build_index(BuildOptions(input=[str(notes)], index=str(built), embedder=own))
    assert "keeps its embedder" not in capsys.readouterr().err


def test_building_again_adds_updates_and_deletes(built, notes, capsys):
    again = {"input": [str(notes)], "index": str(built)}  # the index records its embedder
    build_index(BuildOptions(**again))
    assert "0 documents added, 0 updated, 3 unchanged, 0 deleted; 0 passages" in capsys.readouterr().out
    (notes / "b.txt").write_text("学而时习之")
    (notes / "c.jsonl").unlink()
    (notes / "d.txt").write_text("new " * 200)
    build_index(BuildOptions(**again, delete_missing=True, refit_map=True))
    out = capsys.readouterr().out
    assert "1 documents added, 1 updated, 1 unchanged, 1 deleted" in out
    assert "the index now has 3 documents" in out
    with Index.open(built) as index:
        assert index.document_ids() == ["a.md", "b.txt", "d.txt"]
        assert index.stats()["map_passages"] == index.stats()["passages"]
        assert [hit.doc_id for hit in index.search("学而", mode="lexical")] == ["b.txt"]
        assert len(list(built.glob("snapshot-*"))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}\n{"text": \n', "line 2, is not valid JSON"),
        ("", "no text found"),
        ("\n\n", "no text found"),
        ('{"text": " "}', "no text found"),
        (None, "does not exist"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, embedder, content, message):
    path = tmp_path / "corpus.jsonl"
    if content is not None:
        path.write_text(content)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        build_index(
            BuildOptions(
                input=[str(path)], index=str(tmp_path / "index"), embedder=str(embedder), max_tokens=32
            )
        )
    assert set(tmp_path.rglob("*")) == before


def test_empty_input_is_refused(tmp_path, embedder):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"empty\.txt: no text found"):
        build_index(
            BuildOptions(
                input=[str(tmp_path / "empty.txt")],
                index=str(tmp_path / "index"),
                embedder=str(embedder),
                max_tokens=32,
            )
        )
    with pytest.raises(InputError, match="--input is empty"):
        build_index(BuildOptions(input=[], index=str(tmp_path / "index"), embedder=str(embedder)))
    assert not (tmp_path / "index").exists()


def test_a_full_disk_before_the_first_commit_leaves_no_folder(tmp_path, notes, embedder, monkeypatch):
    """Simulates the full disk with a limit on SQLite's page count."""
    write = Store.write

    @contextmanager
    def write_to_a_full_disk(store: Store) -> Iterator[sqlite3.Connection]:
        with write(store) as tx:
            tx.execute(f"PRAGMA max_page_count = {tx.execute('PRAGMA page_count').fetchone()[0]}")
            yield tx

    monkeypatch.setattr(Store, "write", write_to_a_full_disk)
    (notes / "long.txt").write_text("long " * 10_000)
    with pytest.raises(OSError, match=r"index\.sqlite: database or disk is full"):
        build_index(
            BuildOptions(
                input=[str(notes)], index=str(tmp_path / "index"), embedder=str(embedder), max_tokens=32
            )
        )
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 64}, "was created with max_tokens 32, not 64"),
        ({"passages_per_document": 2}, "was created with passages_per_document None, not 2"),
        ({"fusion": "rrf"}, "was created with fusion tm2c2, not rrf"),
        ({"embedder": "no-such-model"}, "no-such-model"),
    ],
)
def test_settings_that_differ_from_the_index_are_refused(built, notes, options, message):
    with pytest.raises(InputError, match=message):
        build_index(BuildOptions(input=[str(notes)], index=str(built), **options))


def test_searching_prints_hits_or_json(built, capsys):
    search_index("indent", index=str(built), mode="lexical")
    first = capsys.readouterr().out
    assert first.startswith(" 1. ")
    assert "Style  [a.md#" in first
    search_index("walrus", index=str(built), k=2, filter=("year>=2000", "doc_id=walrus"), json=True)
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert (hit["doc_id"], hit["metadata"], hit["text"]) == (
        "walrus",
        {"year": 2018},
        "Assignment expressions.",
    )
    search_index("nothing like it", index=str(built), mode="lexical")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "nothing found\n")
    search_index("walrus", index=str(built), mode="lexical", filter=("yaer=2018", "year=2018"))
    assert capsys.readouterr().err == "no document has the field 'yaer'\nnothing found\n"
    search_index("much too long " * 100, index=str(built), k=1)
    assert "the query was truncated to the embedder's 96 tokens" in capsys.readouterr().err


def test_an_index_of_precomputed_vectors_supports_lexical_search(tmp_path, capsys):
    with Index.create(tmp_path / "index", dimension=2) as index:
        index.add(Document("a", "some words"), [1, 0])
    search_index("words", index=str(tmp_path / "index"), mode="lexical")
    assert "some words" in capsys.readouterr().out
    with Index.open(tmp_path / "index") as index:
        index.upsert(Document("a", "some \x1b[2J words", "\x07title\x9b"), [1, 0])
    search_index("words", index=str(tmp_path / "index"), mode="lexical")
    assert re.sub(r"[\w\s\[\]#,.-]", "", capsys.readouterr().out) == "\ufffd" * 3
    with pytest.raises(InputError, match="was built from precomputed vectors; search texts in mode lexical"):
        search_index("words", index=str(tmp_path / "index"))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["x", "--index", "nowhere"], 1, "nowhere has no index"),
        ([" ", "--mode", "lexical"], 1, "The query is empty"),
        (["x", "-k", "0"], 1, "k is 0"),
        (["x", "--filter", "year"], 1, "filter 'year'; expected field=value"),
        (["x", "--mode", "fuzzy"], 2, "fuzzy"),
        (["x", "-k", "many"], 2, "many"),
        ([], 2, "STR"),
    ],
)
def test_wrong_arguments_of_search_give_one_line_errors(built, capsys, arguments, status, message):
    if "--index" not in arguments:
        arguments = [*arguments, "--index", str(built)]
    with pytest.raises(SystemExit) as stopped:
        run_command(search_index, args=arguments)
    said = capsys.readouterr().err or str(stopped.value.code)
    assert message in said
    if status == 1:  # the interpreter prints a string on one line and ends with status 1
        assert isinstance(stopped.value.code, str)
        assert "\n" not in stopped.value.code
    else:
        assert stopped.value.code == status


def test_ctrl_c_stops_the_script_and_keeps_what_was_committed(tmp_path, embedder, capsys):
    path = tmp_path / "many.jsonl"
    path.write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": f"Number {i}. " * 60}) + "\n" for i in range(3000))
    )
    index = tmp_path / "index"
    command = ["scripts/build_index.py", "--input", path, "--index", index, "--embedder", embedder]
    process = commands.Popen([*command, "--max_tokens", "32"], stderr=subprocess.PIPE, text=True)
    n = 0
    while process.poll() is None and not n:
        time.sleep(0.02)
        if index.exists():
            with Index.open(index) as reader:  # a second process reads while the first writes
                n = reader.stats()["documents"]
    with pytest.raises(InputError, match="is writing to"):
        build_index(BuildOptions(input=[str(path)], index=str(index)))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err == "build_index.py: stopped\n"
    with Index.open(index) as reader:
        assert n <= reader.stats()["documents"] < 3000
    search_index("Number 7", index=str(index), k=1)
    assert capsys.readouterr().out.startswith(" 1. ")


def test_the_second_of_two_first_builds_says_to_wait(tmp_path, notes, embedder, monkeypatch):
    folder, load = tmp_path / "index", Encoder.from_pretrained

    def slow_load(name):
        encoder = load(name)
        Index.create(folder, encoder, max_tokens=32).close()  # the other build has loaded its embedder faster
        return encoder

    monkeypatch.setattr("index.building.target.load_embedder", slow_load)
    with pytest.raises(InputError, match=r"has created .* in the meantime; wait until it has ended"):
        build_index(
            BuildOptions(input=[str(notes)], index=str(folder), embedder=str(embedder), max_tokens=32)
        )
    monkeypatch.undo()
    build_index(BuildOptions(input=[str(notes)], index=str(folder), embedder=str(embedder), max_tokens=32))
    with Index.open(folder) as index:
        assert len(index.document_ids()) == 3
