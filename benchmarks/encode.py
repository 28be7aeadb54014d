"""Benchmark embedders: ours, sentence-transformers with the same weights, and a baseline model."""

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.own_process import in_own_process
from embed.data.text_files import TextFile
from embed.data.vectors import Vectors, unit_length
from embed.encoding.encoder import Dtype, Encoder
from embed.encoding.peer_model import count_tokens
from embed.formats.export import export_model
from embed.formats.folder import has_own_code
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.evaluation.report import print_report
from gpt_core.hardware.device import DeviceName, Numerics, available_cores, pick_device, wall_seconds
from gpt_core.hub.locate import resolve

COLUMNS = (
    "system", "dtype", "threads", "docs_per_s", "docs_per_cpu_s", "tokens_per_doc", "lowest_cosine", "load_s",
)  # fmt: skip
OURS, PEER = "ours", "sentence-transformers"
N_WARM_UP = 8  # documents that are encoded before the timing
SEED = 0  # for drawing the documents


def bench_encode(
    *,
    data: str,
    embedder: str,
    baseline: str | None = "all-MiniLM-L6-v2",
    docs: int = 256,
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16"),
    rounds: int = 3,
    threads: int | None = None,
    device: DeviceName = "auto",
) -> None:
    """Measure the speed of encoding documents: ours, sentence-transformers with the same weights, and a baseline.

    The embedder is exported once and both load that folder. sentence-transformers has its default settings (batches
    of 32), with the same autocast where dtype is not float32; the baseline has its default settings in float32 with its
    own maximum length. Each measurement runs in a separate process; the systems alternate for `rounds` rounds on the
    same randomly drawn documents. Figures are medians over the rounds, with tokenization, without loading and warm-up.
    docs_per_s: per wall second; docs_per_cpu_s: per CPU second of all threads, less affected by other programs;
    tokens_per_doc: after truncation; lowest_cosine: minimum cosine between a document's vector and that of
    sentence-transformers in the first of dtypes; load_s: seconds to load the model. Prints a table and ends with a
    line of JSON.

    Args:
        data: a BEIR folder (its corpus is used) or a file of texts (.jsonl, .jsonl.gz, .jsonl.xz, .txt).
        embedder: the embedder's folder or name.
        baseline: a sentence-transformers model to compare with; None: none.
        docs: documents per measurement.
        dtypes: dtypes of the matrix products.
        rounds: measurements per system.
        threads: CPU threads; None: all cores.
        device: auto: cuda, else mps, else cpu.
    """
    for name, value in {"docs": docs, "rounds": rounds, "threads": 1 if threads is None else threads}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1.")
    if not dtypes:
        raise InputError("dtypes is empty; expected float32 or bfloat16, or both.")
    with extra("eval"):
        import sentence_transformers  # noqa: F401  (fail here, not in a subprocess)
    texts = [text for _, text in TextFile.find(data)]
    if not texts:
        raise InputError(f"{data} has no texts; expected at least one.")
    texts = random.Random(SEED).sample(texts, min(docs, len(texts)))
    n_threads, place = threads or available_cores(), pick_device(device).type

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "embedder")
        with contextlib.redirect_stdout(sys.stderr):
            export_model(str(folder), model=embedder, to="sentence-transformers")
        systems = [(system, str(folder), dtype) for dtype in dtypes for system in (PEER, OURS)]
        if baseline is not None:
            systems.append((baseline, str(resolve(baseline)), "float32"))
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {(name, dtype): [] for name, _, dtype in systems}
        for number in range(rounds):
            for name, path, dtype in systems:
                print(f"round {number + 1} of {rounds}: {name}, {dtype}", file=sys.stderr, flush=True)
                function = _ours if name == OURS else _sentence_transformers
                runs[name, dtype].append(in_own_process(function, path, dtype, texts, n_threads, place))
    rows = []
    reference = runs[PEER, dtypes[0]][0]["vectors"]
    for (name, dtype_name), measured in runs.items():
        rows.append(_row(name, dtype_name, measured))
        if name in (OURS, PEER):
            rows[-1]["lowest_cosine"] = float((measured[0]["vectors"] * reference).sum(axis=1).min())
    print_report(rows, COLUMNS, _ratios(rows, baseline), ("sentence-transformers", "transformers"))


def _ours(folder: str, dtype: Dtype, texts: list[str], threads: int, device: DeviceName) -> dict[str, Any]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    encoder = Encoder.from_pretrained(folder, dtype=dtype, device=device)
    loaded = time.perf_counter() - start
    rows = encoder.tokenize([encoder.prompt("document") + text for text in texts])
    return _timed(encoder.encode_document, texts, device, sum(map(len, rows)), loaded)


def _sentence_transformers(
    folder: str, dtype: Dtype, texts: list[str], threads: int, device: DeviceName
) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.set_num_threads(threads)
    start = time.perf_counter()
    trust = has_own_code(Path(folder))
    model = SentenceTransformer(folder, device=device, local_files_only=True, trust_remote_code=trust)
    loaded = time.perf_counter() - start

    def encode(texts: list[str]) -> Vectors:
        with Numerics(device, dtype).autocast():
            return unit_length(model.encode_document(texts, show_progress_bar=False).astype(np.float32))

    prompt = (model.prompts or {}).get("document") or ""
    static = isinstance(model[0], StaticEmbedding)  # which truncates no text
    longest = sys.maxsize if static else int(model.max_seq_length or sys.maxsize)
    n_tokens = sum(min(n, longest) for n in count_tokens(model, [prompt + text for text in texts]))
    return _timed(encode, texts, device, n_tokens, loaded)


def _timed(
    encode: Callable[[list[str]], Vectors], texts: list[str], device: str, n_tokens: int, load_s: float
) -> dict[str, Any]:
    """Encode a few texts as warm-up, then time the encoding of all."""
    encode(texts[:N_WARM_UP])
    made: list[Vectors] = []
    cpu = time.process_time()
    wall = wall_seconds(lambda: made.append(encode(texts)), torch.device(device))
    return {
        "docs_per_s": len(texts) / wall,
        "docs_per_cpu_s": len(texts) / (time.process_time() - cpu),
        "tokens_per_doc": n_tokens / len(texts),
        "load_s": load_s,
        "threads": torch.get_num_threads(),
        "vectors": made[0],
    }


def _row(name: str, dtype: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over a system's rounds, and the figures of each round."""
    figures = ("docs_per_s", "docs_per_cpu_s", "load_s")
    return {
        "system": name,
        "dtype": dtype,
        **{key: runs[0][key] for key in ("threads", "tokens_per_doc")},
        **{key: float(np.median([run[key] for run in runs])) for key in figures},
        "docs": len(runs[0]["vectors"]),
        "rounds": [[run["docs_per_s"], run["docs_per_cpu_s"]] for run in runs],
    }


def _ratios(rows: list[dict[str, Any]], baseline: str | None) -> dict[str, float]:
    by_name = {(row["system"], row["dtype"]): row for row in rows}
    ratios = {}
    for (name, dtype), row in by_name.items():
        for peer in [(PEER, dtype), (baseline, "float32")] if name == OURS else []:
            for key, words in (("docs_per_s", "docs/s"), ("docs_per_cpu_s", "docs/CPU-s")):
                if peer in by_name:
                    ratios[f"{OURS} {dtype}/{peer[0]} {peer[1]} {words}"] = row[key] / by_name[peer][key]
    return ratios
