"""A process that changes an index in every way is killed at random moments; the index is checked after each kill.

    python tests/index/kills.py FOLDER [--kills 200] [--seed 0]

The process adds, replaces and deletes documents, builds from files, saves snapshots, changes the embedder and vacuums.
It writes what it is about to do, and that it is done, to a log. After each kill, `verify` must find nothing; every
document whose change was done is there once, as it was written, and one that was being changed is as before or after.
Prints one JSON object; exits with 1 if anything was wrong.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from embed.data.beir import join_title
from gpt_core.common.files import atomic_write
from index.build_index import build_index
from index.building.options import BuildOptions
from index.dense.snapshot import Snapshot
from index.index import Index
from index.reading.document import Document
from index.store.check import find_problems
from index.store.store import Store
from tests.index.hash_embedder import HashEmbedder

N_DOCUMENTS, N_FILES = 30, 5
Versions = dict[str, set[int]]  # of each document, those that it may have; 0: it is not there


def text_of(doc_id: str, version: int) -> str:
    """Several passages, all of which have the word "whales" and words of their own."""
    return " ".join(f"whales {doc_id}/{version}/{i}" for i in range(1, 16))


def documents(ids: list[str], version: int) -> list[Document]:
    return [Document(doc_id, text_of(doc_id, version)) for doc_id in ids]


def version_of(text: str) -> int:
    return int(text.split("/")[1]) if "/" in text else -1


def opened(folder: Path) -> Index:
    """The index with the embedder that it has at the moment."""
    with contextlib.closing(Store(folder)) as store:
        name = store.settings.embedder
    return Index.open(folder, HashEmbedder(int(name.removeprefix("hash-"))))


def change(folder: Path, log: Path, seed: int) -> None:
    """Make changes until the process is killed."""
    rng, version = random.Random(seed), 1000 * seed + 1
    files = folder.with_suffix(".files")

    def build(index: Index, names: list[str]) -> None:
        for name in names:
            atomic_write(files / name, text_of(name, version))
        with mock.patch("index.index.load_embedder", return_value=index.encoder):
            build_index(BuildOptions(index=str(folder), input=(str(files),), embedder="given"))

    def reembed(index: Index, _: list[str]) -> None:
        assert index.encoder is not None
        index.reembed(HashEmbedder(int(index.encoder.name.removeprefix("hash-")) % 3 + 1))

    operations: dict[str, Callable[[Index, list[str]], object]] = {
        "upsert": lambda index, ids: index.upsert(documents(ids, version)),
        "delete": Index.delete,
        "build": build,
        "snapshot": lambda index, _: index.save_snapshot(),
        "vacuum": lambda index, _: index.vacuum(),
        "reembed": reembed,
    }
    with opened(folder) as index, contextlib.redirect_stdout(io.StringIO()):
        while True:
            (name,) = rng.choices([*operations], [3, 2, 1, 1, 1, 1])
            ids = []
            if name == "build":
                ids = [f"f{i}.txt" for i in rng.sample(range(N_FILES), 2)]
            elif name in ("upsert", "delete"):
                ids = [f"d{i}" for i in rng.sample(range(N_DOCUMENTS), rng.choice([1, 3, 12]))]
            note(log, "begin", name, ids, version)
            operations[name](index, ids)
            note(log, "done", name, ids, version)
            version += 1


def note(log: Path, *values: object) -> None:
    with log.open("a") as lines:
        lines.write(json.dumps(values) + "\n")


def read_log(log: Path) -> Versions:
    """What the log says about each document; a process was killed after a "begin" without "done"."""
    versions: Versions = {}
    for line in log.read_text().splitlines():
        state, kind, ids, version = json.loads(line)
        for doc_id in ids:
            new = 0 if kind == "delete" else version
            versions[doc_id] = {new} | (versions.get(doc_id, {0}) if state == "begin" else set())
    return versions


def check(folder: Path, log: Path) -> list[str]:
    """What is wrong with the index."""
    with contextlib.closing(Store(folder)) as store:
        wrong = [problem.text for problem in find_problems(store)]
    if not Snapshot.is_whole(folder):
        wrong.append("the snapshot is damaged")
    with opened(folder) as index:
        ids = Counter(index.document_ids())
        wrong += [f"{doc_id} is there {n} times" for doc_id, n in ids.items() if n > 1]
        passages: list[str] = []
        for doc_id, versions in read_log(log).items():
            found = index.get(doc_id)
            version = version_of(found.text) if found else 0
            if version not in versions:
                wrong.append(f"{doc_id} has version {version}, expected one of {sorted(versions)}")
            if found:
                if found.text != text_of(doc_id, version):
                    wrong.append(f"{doc_id} has another text")
                hits = index.search("whales", k=99, mode="lexical", filter={"doc_id": doc_id})
                passages += [join_title(hit.title, hit.text) for hit in hits]
        if len(passages) != index.stats()["passages"]:
            wrong.append(f"{len(passages)} passages found by words, {index.stats()['passages']} stored")
        for text, (first, *rest) in zip(
            passages, index.search(passages, k=2, mode="dense") if passages else [], strict=True
        ):
            if not text.endswith(first.text) or first.score < 0.999 or any(hit.score > 0.999 for hit in rest):
                wrong.append(f"not the nearest, or not once: {text[:60]}")
    return wrong


def run(folder: Path, kills: int, seed: int) -> dict[str, object]:
    log, rng = folder.with_suffix(".log"), random.Random(seed)
    log.touch()
    folder.with_suffix(".files").mkdir()
    Index.create(folder, HashEmbedder(1), max_tokens=32).close()
    wrong: list[str] = []
    for i in range(1, kills + 1):
        process = multiprocessing.get_context("fork").Process(target=change, args=(folder, log, i))
        process.start()
        time.sleep(rng.uniform(0.01, 0.5))
        if process.exitcode is not None:
            wrong.append(f"process {i} ended by itself")
        process.kill()
        process.join()
        wrong += [f"after kill {i}: {message}" for message in check(folder, log)]
        if wrong:
            break
    done = Counter(json.loads(line)[1] for line in log.read_text().splitlines() if '"done"' in line)
    with opened(folder) as index:
        return {"kills": i, "done": done, "sequence": index.stats()["sequence"], "wrong": wrong[:20]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = run(options.folder, options.kills, options.seed)
    print(json.dumps(report))
    sys.exit(bool(report["wrong"]))
