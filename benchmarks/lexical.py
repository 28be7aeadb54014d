"""Benchmark lexical search: BM25 by postings and by SQLite's FTS5, of the same queries, at any number of passages."""

import contextlib
import resource
import sqlite3
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from embed.data.beir import read_corpus, read_queries
from embed.text.analysis import index_terms
from gpt_core.common.errors import InputError
from gpt_core.evaluation.report import print_report
from index.lexical import cache
from index.lexical.live import MIN_PASSAGES, LiveWords
from index.lexical.matches import Matches
from index.search.rank import rank_lexical
from index.store.connections import set_meta
from index.store.settings import Settings
from index.store.store import Store

COLUMNS = (
    "queries", "system", "p50_ms", "p95_ms", "cpu_p50_ms", "cpu_p95_ms", "matches", "largest_difference",
)  # fmt: skip
OURS, PEER = "postings", "fts5"
WORDS = 80  # at most, of a passage, without stop words; at least a quarter of that
PASSAGES_PER_COMMIT = 20_000
N_COMMON, N_RARE = (
    50,
    2000,
)  # common words are the first so many of the vocabulary, rare ones those behind so many
SEED = 0


class _OnlyFts5(LiveWords):
    """No postings: FTS5 is asked."""

    def current(self, tx: sqlite3.Connection) -> None:
        return None


def bench_lexical(
    *, data: str, passages: int = 1_000_000, queries: int = 20, index: str | None = None
) -> None:
    """Measure lexical search by postings and by FTS5 over passages whose words are drawn as often as in a corpus.

    Queries: the data's own (real), 3 to 12 of the 50 most common words, and 3 to 12 rare ones. The systems alternate
    query by query, on one thread. p50_ms, p95_ms: of a search for ten passages; cpu_…: CPU time, less affected by other
    programs; matches: passages with a word of the query, on average; largest_difference: between the systems' scores.
    Prints seconds and megabytes of the postings, a table, and ends with a line of JSON.

    Args:
        data: a BEIR folder.
        passages: number of passages; at least 20,000, with fewer an index has no postings.
        queries: queries of each kind.
        index: folder of the index, kept for the next run; default: a temporary one.
    """
    if passages < MIN_PASSAGES:
        raise InputError(f"passages is {passages}; expected at least {MIN_PASSAGES}.")
    if queries < 1:
        raise InputError(f"queries is {queries}; expected at least 1.")
    counts = _frequencies(read_corpus(data).values())
    kinds = {"real": list(read_queries(data).values())[:queries], **_drawn(list(counts), queries)}
    with TemporaryDirectory() as temporary:
        folder = Path(index or Path(temporary) / "index")
        if not folder.exists():
            _build(folder, counts, passages)
        with contextlib.closing(Store(folder)) as store:
            start, cpu = time.perf_counter(), time.process_time()
            postings = LiveWords(store)
            postings.save()
            made = time.perf_counter() - start, time.process_time() - cpu
            size = (folder / cache.NAME).stat().st_size
            print(f"postings: {made[0]:.1f} s, {made[1]:.1f} CPU-s, {size / 1e6:.1f} MB")
            rows = [row for kind, texts in kinds.items() for row in _measured(store, postings, kind, texts)]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    for row in rows:
        row |= {
            "passages": passages,
            "postings_cpu_s": made[1],
            "postings_mb": size / 1e6,
            "peak_rss_mb": peak,
        }
    by_name = {(row["queries"], row["system"]): row for row in rows}
    ratios = {
        f"{OURS}/{PEER} {kind} cpu_p50_ms": by_name[kind, OURS]["cpu_p50_ms"]
        / by_name[kind, PEER]["cpu_p50_ms"]
        for kind in kinds
    }
    print_report(rows, COLUMNS, ratios, ())


def _frequencies(texts: Any) -> dict[str, int]:
    """The terms of a corpus and how often it has them, the most common first."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in index_terms(text).words:
            counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _drawn(words: list[str], n: int) -> dict[str, list[str]]:
    """Queries of common and of rare words."""
    rng = np.random.default_rng(SEED)
    rare = words[N_RARE:] or words
    return {
        name: [
            " ".join(rng.choice(some, min(int(rng.integers(3, 13)), len(some)), replace=False))
            for _ in range(n)
        ]
        for name, some in (("common", words[:N_COMMON]), ("rare", rare))
    }


def _build(folder: Path, counts: dict[str, int], n: int) -> None:
    """Make an index of `n` documents of one passage each, with the terms themselves as text."""
    rng = np.random.default_rng(SEED)
    words = np.array(list(counts), dtype=object)
    share = np.array(list(counts.values())) / sum(counts.values())
    vector = np.ones(1, np.float32).tobytes()
    with contextlib.closing(Store.create(folder, Settings("", "", 1))) as store:
        for first in range(1, n + 1, PASSAGES_PER_COMMIT):
            numbers = range(first, min(first + PASSAGES_PER_COMMIT, n + 1))
            drawn = rng.choice(words, (len(numbers), WORDS), p=share)  # (n, WORDS)
            lengths = rng.integers(WORDS // 4, WORDS + 1, len(numbers))
            texts = [" ".join(row[:length]) for row, length in zip(drawn, lengths, strict=True)]
            # `Store.put` would analyse each text, which takes most of the time and gives the same terms.
            with store.write() as tx:
                columns = "number, id, title, metadata, hash, source"
                insert = f"INSERT INTO documents ({columns}) VALUES (?, ?, '', '{{}}', '', '')"
                tx.executemany(insert, [(i, str(i)) for i in numbers])
                rows = [(i, i, len(text), text) for i, text in zip(numbers, texts, strict=True)]
                tx.executemany("INSERT INTO passages VALUES (?, ?, 0, ?, ?, '[]')", rows)
                tx.executemany("INSERT INTO vectors VALUES (?, ?)", [(i, vector) for i in numbers])
                for table, some in (("lexical", texts), ("lexical_stop_words", ["and of the"] * len(texts))):
                    insert = f"INSERT INTO {table} (rowid, terms) VALUES (?, ?)"
                    tx.executemany(insert, zip(numbers, some, strict=True))
                set_meta(tx, "sequence", numbers[-1])


def _measured(store: Store, postings: LiveWords, kind: str, texts: list[str]) -> list[dict[str, Any]]:
    """The rows of both systems for queries of one kind."""
    systems = {OURS: postings, PEER: _OnlyFts5(store)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    difference, n_matches = 0.0, []
    for text in texts:
        found: dict[str, Matches] = {}
        for name, live in systems.items():
            with store.read() as tx:
                start, cpu = time.perf_counter(), time.process_time()
                found[name] = Matches.find(live, tx, text, None)
                rank_lexical(found[name], 10)
                times[name].append((time.perf_counter() - start, time.process_time() - cpu))
        ours, peer = found[OURS], found[PEER]
        assert np.array_equal(ours.numbers, peer.numbers)  # or the benchmark compares different results
        difference = max(difference, float(np.abs(ours.scores - peer.scores).max(initial=0)))
        n_matches.append(len(peer.numbers))
    rows = []
    for name, some in times.items():
        (p50, cpu_p50), (p95, cpu_p95) = (1e3 * np.quantile(some, q, axis=0) for q in (0.5, 0.95))
        row = {"queries": kind, "system": name, "p50_ms": p50, "p95_ms": p95, "cpu_p50_ms": cpu_p50}
        row |= {"cpu_p95_ms": cpu_p95, "matches": float(np.mean(n_matches)), "largest_difference": difference}
        rows.append({key: value if isinstance(value, str) else float(value) for key, value in row.items()})
    return rows
