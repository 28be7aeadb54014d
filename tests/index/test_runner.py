"""Builds whose passages are encoded by several processes: torchrun's ranks, Ray's workers."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from index.build_index import build_index
from index.building.options import BuildOptions
from index.index import Index
from tests import commands

SCRIPT = str(Path("scripts/build_index.py").resolve())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Documents in several blocks, one of them longer than a block, and one id twice."""
    lines = [
        {"_id": f"d{i}", "title": f"Note {i}", "text": f"About the number {i} and {i * i}. " * (i % 7)}
        for i in range(300)
    ]
    lines.insert(40, {"_id": "long", "text": "One sentence after another. " * 900})
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def local(corpus, embedder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "index"
    build_index(BuildOptions(input=(str(corpus),), index=str(folder), embedder=str(embedder), max_tokens=32))
    return folder


def arguments(corpus: Path, index: Path, embedder: Path) -> list[str]:
    return [f"--input={corpus}", f"--index={index}", f"--embedder={embedder}", "--max_tokens=32"]


def same_content(folder: Path, other: Path) -> bool:
    """Whether two indexes have the same passages, under the same ids, with the same vectors to 1e-6."""
    contents = []
    for one in (folder, other):
        with Index.open(one) as index, index._current().store.read() as tx:
            store = index._current().store
            numbers = [n for (n,) in tx.execute("SELECT number FROM passages ORDER BY number")]
            rows = store.passages(tx, numbers)
            contents.append((numbers, [tuple(rows[n]) for n in numbers], store.vectors(tx, store.settings)))
    (numbers, passages, vectors), (other_numbers, other_passages, other_vectors) = contents
    assert len(numbers) > 400
    np.testing.assert_allclose(vectors, other_vectors, atol=1e-6, rtol=0)
    return (numbers, passages) == (other_numbers, other_passages)


@contextmanager
def two_ranks(args: list[str]) -> Iterator[tuple[commands.Popen, commands.Popen]]:
    """The command with the environment that `torchrun --nproc_per_node=2` gives its two ranks."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [
        commands.Popen(args, env=os.environ | world | {"RANK": str(i), "LOCAL_RANK": str(i)}, **pipes)
        for i in range(2)
    ]
    with ranks[0], ranks[1]:
        yield ranks[0], ranks[1]


def test_two_ranks_build_the_same_index_as_one_process(corpus, embedder, local, tmp_path):
    with two_ranks([SCRIPT, *arguments(corpus, tmp_path / "index", embedder)]) as (first, second):
        out, err = first.communicate(timeout=120)
        assert first.returncode == 0, err
        assert "301 documents added" in out
        assert second.communicate(timeout=120) == ("", "")  # rank 0 alone prints
        assert second.returncode == 0
    assert same_content(tmp_path / "index", local)


def test_a_build_continues_after_a_rank_was_killed(corpus, embedder, local, tmp_path):
    args = arguments(corpus, tmp_path / "index", embedder)
    many = tmp_path / "many.jsonl"  # after the corpus, so many that the kill is before the end
    many.write_text(
        "".join(json.dumps({"_id": f"more{i}", "text": "More. " * 20}) + "\n" for i in range(9000))
    )
    with two_ranks([SCRIPT, *args, f"--input={many}"]) as (first, second):
        file = tmp_path / "index" / "index.sqlite"
        end = time.monotonic() + 100
        while time.monotonic() < end and not (file.exists() and n_documents(tmp_path / "index")):
            time.sleep(0.02)
        os.kill(second.pid, signal.SIGKILL)
        _, err = first.communicate(timeout=100)
    assert first.returncode == 1
    assert len(err.splitlines()) == 1
    assert "Another rank died. Run the same command again" in err
    assert 0 < n_documents(tmp_path / "index") < 9000
    build_index(BuildOptions(input=(str(corpus),), index=str(tmp_path / "index")))
    with Index.open(tmp_path / "index") as index:
        index.delete([name for name in index.document_ids() if name.startswith("more")])
        with Index.open(local) as other:
            assert set(index.document_ids()) == set(other.document_ids())


def n_documents(folder: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{folder / 'index.sqlite'}?mode=ro", uri=True)) as tx:
            return tx.execute("SELECT count(*) FROM documents").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        return 0


def test_the_other_ranks_end_when_rank_0_reports_an_error(embedder, tmp_path):
    with two_ranks([SCRIPT, *arguments(tmp_path / "missing", tmp_path / "index", embedder)]) as (
        first,
        second,
    ):
        assert "missing" in first.communicate(timeout=100)[1]
        assert first.returncode == 1
        second.communicate(timeout=100)
        assert second.returncode == 0


def test_ranks_keep_the_order_of_blocks_and_report_an_error_of_another_rank(embedder):
    driver = str(Path("tests/index/rank_driver.py").resolve())
    with two_ranks([driver, str(embedder)]) as (first, second):
        out, err = first.communicate(timeout=100)
        assert (second.communicate(timeout=100)[0], second.returncode) == ("", 0)
    assert (err, first.returncode) == ("", 0)
    difference, said = out.split(" ", 1)
    assert float(difference) < 1e-6
    assert said == "[1, 0, 1, 0, 0] The text is refused.\n"


@pytest.mark.slow  # Ray takes 19 s to start and to end; ranks are the faster test of the same
@pytest.mark.skipif(not find_spec("ray"), reason="ray is not installed")
def test_ray_builds_the_same_index_as_one_process(corpus, embedder, local, tmp_path):
    done = commands.run(
        [SCRIPT, *arguments(corpus, tmp_path / "index", embedder), "--runner=ray"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "301 documents added" in done.stdout
    assert same_content(tmp_path / "index", local)
    with Index.open(tmp_path / "index") as ours, Index.open(local) as other:
        for query in ("the number 25", "one sentence after another"):
            assert [hit.doc_id for hit in ours.search(query)] == [hit.doc_id for hit in other.search(query)]
