"""Processes that search and write one index at once, some of them killed; counts the wrong results.

    python tests/index/stress.py FOLDER [--seconds 60] [--readers 3] [--kill_every 0]

Snapshots are made every 20 changes. The writer adds, replaces and deletes documents and writes each commit to a file
afterwards; a reader reads that file before and after each search, so it knows which documents must be found, and which
must not. Each document's vector is a function of its number and version, so its score shows whether it is its own.
Prints one JSON object with the numbers of searches, commits and kills, and the wrong results; exits with 1 if there are
any.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from index.dense import live, view
from index.index import Index
from index.reading.document import Document
from index.store.check import find_problems
from index.store.store import Store

D = 16
DOCUMENTS = 1500  # about as many are in the index; older ones are deleted


def vector(number: int, version: int) -> np.ndarray:
    values = np.random.default_rng((number, version)).normal(size=D).astype(np.float32)
    return values / np.linalg.norm(values)


def frequent_snapshots() -> None:
    view.MAX_CHANGES = 20
    view.MAX_CHANGED_SHARE = 0
    live.MIN_FORGOTTEN = 10


def read_log(path: Path) -> tuple[dict[int, set[int]], int, int]:
    """What the log says.

    Returns:
        The versions that each document may have; the least number that may be in the index; that of the next document.
    """
    versions: dict[int, set[int]] = {}
    first, following = 0, 0
    for line in path.read_text().splitlines():
        kind, number, version = json.loads(line)
        if kind == "deleted":
            first = number
        elif kind == "deleting":
            versions = {known: found for known, found in versions.items() if known >= number}
        elif kind == "changing":
            versions[number].add(version)
        else:  # committed
            versions[number] = {version}
            following = max(following, number + 1)
    return versions, first, following


def write(folder: Path, log: Path, end: float, seed: int) -> None:
    frequent_snapshots()
    rng = random.Random(seed)
    with Index.open(folder) as index, log.open("a") as lines:

        def say(kind: str, number: int, version: int = 0) -> None:
            lines.write(json.dumps([kind, number, version]) + "\n")
            lines.flush()

        versions, first, _ = read_log(log)
        following = 1 + max([int(doc_id) for doc_id in index.document_ids()], default=-1)
        while time.time() < end:
            n = rng.choice([1, 3, 40])
            numbers = range(following, following + n)
            index.add([Document(str(i), f"text {i}") for i in numbers], [vector(i, 0) for i in numbers])
            for i in numbers:
                versions[i] = {0}
                say("committed", i)
            following += n
            changed = rng.choice(list(versions))
            version = max(versions[changed]) + 1
            say("changing", changed, version)
            index.upsert(Document(str(changed), f"text {changed} {version}"), vector(changed, version))
            say("committed", changed, version)
            versions[changed] = {version}
            new_first = max(first, following - DOCUMENTS)
            if rng.random() < 0.3 and new_first > first:
                say("deleting", new_first)
                index.delete([str(i) for i in range(first, new_first)])
                say("deleted", new_first)
                first = new_first
                versions = {number: found for number, found in versions.items() if number >= first}
            if rng.random() < 0.3:  # a writer that searches has a view and makes snapshots, too
                index.search(vector(0, 0))


def read(folder: Path, log: Path, end: float, results: "multiprocessing.Queue[dict[str, object]]") -> None:
    frequent_snapshots()
    searches, wrong = 0, []
    try:
        while time.time() < end:
            with Index.open(folder) as index:
                for _ in range(3):
                    wrong += check(index, log)
                    searches += 1
    except BaseException:
        wrong.append(traceback.format_exc())
    results.put({"searches": searches, "wrong": wrong})


def check(index: Index, log: Path) -> list[str]:
    """One search of all documents, and one of each of some documents by its own vector."""
    before, first, _ = read_log(log)
    some = random.sample(list(before), min(9, len(before)))
    query = vector(0, 12345)
    found = index.search(query, k=100_000)
    own = index.search([vector(i, max(before[i])) for i in some], k=3) if some else []
    after, _, _ = read_log(log)
    wrong = []
    ids = [int(hit.doc_id) for hit in found]
    if len(ids) != len(set(ids)):
        wrong.append(f"{len(ids) - len(set(ids))} passages twice")
    wrong += [f"deleted document {i} found" for i in ids if i < first]
    present = {i for i in before if i in after}
    wrong += [f"document {i} not found" for i in present - set(ids)]
    for hit in found:
        i = int(hit.doc_id)
        if i in present and i in after:
            possible = [float(vector(i, version) @ query) for version in before[i] | after[i]]
            if len(before[i] | after[i]) == 1 and abs(hit.score - possible[0]) > 1e-4:
                wrong.append(f"document {i} has another document's vector")
    for i, hits in zip(some, own, strict=True):
        unchanged = i in after and before[i] == after[i] and len(before[i]) == 1
        if unchanged and (hits[0].doc_id != str(i) or hits[0].score < 0.999):
            wrong.append(f"document {i} is not the nearest to its own vector")
    return wrong


def run(folder: Path, seconds: float, readers: int, kill_every: float) -> dict[str, object]:
    log = folder.with_suffix(".log")
    log.touch()
    Index.create(folder, dimension=D).close()
    context = multiprocessing.get_context("fork")
    end, results = time.time() + seconds, context.Queue()
    writer = context.Process(target=write, args=(folder, log, end, 0))
    others = [context.Process(target=read, args=(folder, log, end, results)) for _ in range(readers)]
    for process in (writer, *others):
        process.start()
    kills, failed = 0, False
    moments = random.Random(1)
    while kill_every and time.time() < end - 1:
        victims = context.Process(target=read, args=(folder, log, end, context.Queue()))
        victims.start()
        time.sleep(moments.uniform(0, 2 * kill_every))
        os.kill(victims.pid or 0, signal.SIGKILL)
        failed = failed or writer.exitcode not in (None, 0)  # 0: the time is over
        if writer.is_alive():
            os.kill(writer.pid or 0, signal.SIGKILL)
        for process in (victims, writer):
            process.join()
        kills += 2
        writer = context.Process(target=write, args=(folder, log, end, kills))
        writer.start()
    reports = [results.get() for _ in others]
    writer.join()
    for process in others:
        process.join()
    wrong = [message for report in reports for message in report["wrong"]]
    with contextlib.closing(Store(folder)) as store:
        wrong += [problem.text for problem in find_problems(store)]
    with Index.open(folder) as index:
        wrong += check(index, log)
        statistics = index.stats()
    if failed or writer.exitcode:
        wrong.append("the writer ended with an error")
    return {
        "searches": sum(report["searches"] for report in reports),
        "changes": statistics["sequence"],
        "kills": kills,
        "wrong": wrong[:20],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument(
        "--kill_every", type=float, default=0, help="seconds between kills of writer and a reader"
    )
    options = parser.parse_args()
    report = run(options.folder, options.seconds, options.readers, options.kill_every)
    print(json.dumps(report))
    sys.exit(bool(report["wrong"]))
