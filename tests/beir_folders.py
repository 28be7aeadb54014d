"""BEIR folders for tests."""

import gzip
import json
from pathlib import Path


def write_beir(
    folder: Path, documents: list[dict], queries: list[dict], qrels: str, split: str = "test"
) -> Path:
    """Write a BEIR folder; `qrels` are lines without the header."""
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as f:
        f.writelines(json.dumps(row) + "\n" for row in documents)
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder
