"""Encode any number of texts to a file of vectors: constant memory, resumable, shared by several processes.

    OUT/vectors.npy     (n, d), row i for text i; numpy.load(…, mmap_mode="r") opens it
    OUT/ids.jsonl       ids of the texts, one JSON string per line
    OUT/ranges.npy      (2, d), for int8 and uint8: see `quantize_embeddings`
    OUT/manifest.json   embedder, settings, number and hash of the texts

Unfinished output is in `.OUT.partial/`, divided into windows of `TEXTS_PER_WINDOW` texts. A process locks the window
that it encodes and marks it as done after its vectors are synced to disk. So any number of processes with the same
command share the work, and the window of a killed process is encoded again by another process or the next run. Vectors
of a window depend only on its texts: the file has the same bytes however the work was divided, if all processes have
the same number of threads on the same kind of machine.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tqdm import tqdm

from embed.data.text_files import TextFile
from embed.data.vectors import Vectors
from embed.encoding.encoder import Dtype, Encoder
from embed.network.quantize import Precision, fit_ranges, quantize_embeddings
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write, fsync_path, require_empty_folder
from gpt_core.hardware.device import DeviceName, pick_device
from gpt_core.hardware.onednn import choose_onednn
from gpt_core.hub.locate import DEFAULT_EMBEDDER

TEXTS_PER_WINDOW = (
    1024  # texts that are sorted by length together; the most that an interruption loses per process
)
QUANTIZE_BLOCK = 65536  # vectors in memory at a time during quantisation
VERSION = 1

Texts = Iterable[tuple[str, str]]  # (id, text); must support repeated iteration


def encode_files(
    *,
    input: str,
    out: str,
    embedder: str = DEFAULT_EMBEDDER,
    role: Literal["document", "query", "none"] = "document",
    column: str = "text",
    max_tokens: int | None = None,
    truncate_dim: int | None = None,
    precision: Precision = "float32",
    dtype: Dtype = "float32",
    device: DeviceName = "auto",
) -> None:
    """Encode the texts of a file to vectors on disk.

    Running the same command again resumes unfinished work. Several processes with the same command share the work:
    under torchrun, in several terminals, or on several machines with a shared disk that supports file locks.

    Args:
        input: a .txt file with one text per line; JSON lines (.jsonl, .jsonl.gz, .jsonl.xz) of "_id", "title" and
            "text"; or a BEIR folder: its queries for role query, else its corpus.
        out: the output folder, with vectors.npy, ids.jsonl and manifest.json.
        embedder: a model or embedder folder, a run's out_dir, or a known name.
        role: the embedder's prompt to prepend to each text.
        column: key of the text in JSON lines.
        max_tokens: longest text in tokens, prompt included; at most the embedder's own limit.
        truncate_dim: keep only the first n dimensions of each vector.
        precision: float32; int8 or uint8, with each dimension's range over all texts; binary or ubinary, one bit per
            dimension. Unfinished output is stored in float32.
        dtype: dtype of the matrix products; vectors are float32.
        device: auto selects cuda, else mps, else cpu; under torchrun, each rank uses its own GPU.
    """
    texts = TextFile.find(input, column, queries=role == "query")
    place = pick_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    encoder = Encoder.from_pretrained(embedder, truncate_dim=truncate_dim, dtype=dtype, device=place.type)  # type: ignore[arg-type]
    if encoder.config.corpus_map != "none":
        print(
            f"{embedder}: these vectors are raw; an index fits its {encoder.config.corpus_map} corpus map itself",
            file=sys.stderr,
        )
    prompt = "" if role == "none" else encoder.prompt(role)
    manifest = encode_to_folder(encoder, texts, out, prompt, max_tokens=max_tokens, precision=precision)
    if os.environ.get("RANK", "0") != "0":
        return
    cut = f"; {manifest['truncated']:,} texts were cut to {manifest['max_tokens']} tokens" * bool(
        manifest["truncated"]
    )
    print(f"{out}: {manifest['texts']:,} vectors of {manifest['dimension']} dimensions in {precision}{cut}")


def encode_to_folder(
    encoder: Encoder,
    texts: Texts,
    out: str | Path,
    prompt: str = "",
    *,
    max_tokens: int | None = None,
    precision: Precision = "float32",
) -> dict[str, Any]:
    """Encode texts to a folder of vectors; see the module's docstring.

    Args:
        encoder: the embedder.
        texts: ids and texts; iterated several times, one window in memory.
        out: the output folder. If it already contains these vectors, nothing is computed.
        prompt: prepended to each text.
        max_tokens: as for `Encoder.encode`.
        precision: as for `quantize_embeddings`, with ranges fitted on all these texts.

    Returns:
        The manifest.

    Raises:
        InputError: if there is no text, or the folder, finished or not, contains vectors of other inputs or settings.
        KeyboardInterrupt: with a message on the progress.
    """
    out = Path(out).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(encoder, texts, prompt, max_tokens, precision)
    partial = out.with_name(f".{out.name}.partial")
    lock = FileLock(out.with_name(f".{out.name}.lock"))  # for the steps that only one process may do
    Path(lock.lock_file).touch()  # raises OSError if no file can be created; filelock would retry forever
    try:
        with lock:
            if not _is_ready(out):
                require_empty_folder(out)
                _begin(partial, manifest, encoder)
        if not _is_ready(out):
            manifest = _read(partial / "manifest.json")
            encoder.onednn, chosen = manifest["onednn"], encoder.onednn
            try:
                _encode_windows(encoder, texts, partial, manifest, prompt)
            finally:
                encoder.onednn = chosen
            with lock:
                if not _is_ready(out):
                    _finish(partial, out, manifest)
    except InputError:
        if not partial.exists():  # no unfinished work
            Path(lock.lock_file).unlink(missing_ok=True)
        raise
    except FileNotFoundError:
        if not _is_ready(out):  # otherwise another process finished and removed the partial folder
            raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"{os.strerror(error.errno)}; free disk space and run the same command to resume"
        raise OSError(error.errno, reason, str(out)) from error
    except KeyboardInterrupt:
        done = min(len(list(partial.glob("windows/*.json"))) * TEXTS_PER_WINDOW, manifest["texts"])
        progress = f"{done:,} of {manifest['texts']:,} texts are encoded; run the same command to resume"
        raise KeyboardInterrupt(progress) from None
    _check_same(out, manifest)
    shutil.rmtree(partial, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)  # safe: later processes find the output folder complete
    return _read(out / "manifest.json")


def open_vectors(folder: str | Path, encoder: Encoder | None = None) -> tuple[NDArray[Any], list[str]]:
    """The memory-mapped vectors (n, d) and the texts' ids of a folder that `encode_to_folder` wrote.

    Args:
        folder: the folder.
        encoder: the embedder that must have made the vectors; None: any.

    Raises:
        InputError: if the folder has no vectors, is damaged, or was made by another embedder.
    """
    folder = Path(folder)
    if not _is_ready(folder):
        raise InputError(f"{folder} contains no vectors; create them with scripts/encode.py.")
    manifest = _read(folder / "manifest.json")
    if encoder is not None and encoder.fingerprint != manifest.get("fingerprint"):
        raise InputError(
            f"{folder} has vectors of {manifest.get('embedder')} ({str(manifest.get('fingerprint'))[:12]}), not of "
            f"{encoder.name} ({encoder.fingerprint[:12]}); encode the texts with the same embedder."
        )
    with open(folder / "ids.jsonl", encoding="utf-8") as file:
        ids = [json.loads(line) for line in file]
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    if not len(vectors) == len(ids) == manifest["texts"]:
        raise InputError(
            f"{folder} is damaged: it has {len(vectors)} vectors and {len(ids)} ids; encode the texts again."
        )
    return vectors, ids


def _manifest(
    encoder: Encoder, texts: Texts, prompt: str, max_tokens: int | None, precision: Precision
) -> dict[str, Any]:
    """The manifest: everything that determines the vectors; "texts_sha256" detects changed texts."""
    encoder.tokenize([], max_tokens)  # raises InputError for an invalid max_tokens before any file is written
    digest, n_texts = hashlib.sha256(), 0
    for name, text in texts:
        for part in (name, text):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        n_texts += 1
    if not n_texts:
        raise InputError("There is no text to encode; expected at least one.")
    if n_texts < 2 and precision in ("int8", "uint8"):
        raise InputError(
            f"precision {precision} fits its ranges on the texts, but there is only one; expected at least two."
        )
    return {
        "version": VERSION,
        "embedder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "prompt": prompt,
        "max_tokens": encoder.max_tokens if max_tokens is None else min(max_tokens, encoder.max_tokens),
        "dtype": encoder.dtype,
        "dimension": encoder.dimension,
        "precision": precision,
        "texts": n_texts,
        "texts_sha256": digest.hexdigest(),
    }


def _check_same(folder: Path, manifest: dict[str, Any]) -> None:
    """InputError if the folder's manifest differs; the embedder's name may differ, but not its fingerprint."""
    found = _read(folder / "manifest.json")
    for key, value in manifest.items():
        if key != "embedder" and found.get(key) != value:
            raise InputError(
                f"{folder} was made with {key} {found.get(key)!r}, not {value!r}; remove it or give another --out."
            )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that this module wrote; InputError if the file contains anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(
            f"{path} is damaged or was written by another program; remove its folder or give another --out."
        )
    return values


def _is_ready(out: Path) -> bool:
    return (out / "manifest.json").is_file()


def _begin(partial: Path, manifest: dict[str, Any], encoder: Encoder) -> None:
    """Create the partial folder, or check that the existing one has the same manifest."""
    if (partial / "manifest.json").is_file():
        return _check_same(partial, manifest)
    # The choice of oneDNN is recorded so that all processes and resumed runs round alike.
    recorded = manifest | {"onednn": choose_onednn(encoder.model.device, encoder.onednn)}
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "windows").mkdir(parents=True)
    (partial / "out").mkdir()
    open_memmap(_float32(partial, manifest), "w+", np.float32, (manifest["texts"], manifest["dimension"]))
    atomic_write(partial / "manifest.json", json.dumps(recorded, indent=2) + "\n")
    return None


def _float32(partial: Path, manifest: dict[str, Any]) -> Path:
    """The file of float32 vectors: the output itself, or a temporary file that is quantised at the end."""
    return partial / ("out/vectors.npy" if manifest["precision"] == "float32" else "float32.npy")


def _encode_windows(
    encoder: Encoder, texts: Texts, partial: Path, manifest: dict[str, Any], prompt: str
) -> None:
    """Encode windows until all are done, by this process or others."""
    n_windows = -(-manifest["texts"] // TEXTS_PER_WINDOW)
    file = _float32(partial, manifest)
    offset = np.load(file, mmap_mode="r").offset
    first_rank = os.environ.get("LOCAL_RANK", "0") == "0"
    bar = tqdm(total=manifest["texts"], unit=" texts", desc="encoding", disable=None if first_rank else True)
    # First the unlocked windows, then wait for those of other processes and encode them if their process crashed.
    for wait in (False, True):
        left = {w for w in range(n_windows) if not _mark(partial, w).exists()}
        bar.update(manifest["texts"] - bar.n - min(len(left) * TEXTS_PER_WINDOW, manifest["texts"]))
        for w, names, window in _read_windows(texts, left):
            try:
                with FileLock(partial / "windows" / f"{w}.lock", timeout=-1 if wait else 0):
                    if not file.exists():  # filelock recreates the folder if another process has removed it
                        raise FileNotFoundError(file)
                    if not _mark(partial, w).exists():
                        before = encoder.n_truncated
                        vectors = encoder.encode(window, prompt=prompt, max_tokens=manifest["max_tokens"])
                        _write(file, offset + w * TEXTS_PER_WINDOW * vectors[0].nbytes, vectors)
                        done = {"ids": names, "truncated": encoder.n_truncated - before}
                        atomic_write(_mark(partial, w), json.dumps(done))
                        bar.update(len(window))
            except Timeout:
                continue
    bar.close()


def _mark(partial: Path, window: int) -> Path:
    return partial / "windows" / f"{window}.json"


def _read_windows(texts: Texts, wanted: set[int]) -> Iterator[tuple[int, list[str], list[str]]]:
    """(window number, ids, texts) of each window in `wanted`."""
    rows = iter(texts)
    for w in range(max(wanted, default=-1) + 1):
        window = list(islice(rows, TEXTS_PER_WINDOW))
        if w in wanted:
            yield w, [name for name, _ in window], [text for _, text in window]


def _write(path: Path, offset: int, vectors: Vectors) -> None:
    """Write vectors at a byte offset and sync them to disk; not by a memory map, whose pages count as used memory."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(vectors.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _finish(partial: Path, out: Path, manifest: dict[str, Any]) -> None:
    """Complete the output folder and move it to `out`; if the process is killed, the next run repeats this."""
    ready = partial / "out"
    for left_over in ready.glob(".*"):  # temporary files of a killed process
        left_over.unlink()
    if manifest["precision"] != "float32":
        _quantize(partial / "float32.npy", ready, manifest["precision"])
    truncated = 0
    with open(ready / "ids.jsonl", "w", encoding="utf-8") as ids:
        for w in range(-(-manifest["texts"] // TEXTS_PER_WINDOW)):
            done = _read(_mark(partial, w))
            truncated += done["truncated"]
            ids.writelines(json.dumps(name, ensure_ascii=False) + "\n" for name in done["ids"])
    atomic_write(ready / "manifest.json", json.dumps(manifest | {"truncated": truncated}, indent=2) + "\n")
    for path in (*ready.iterdir(), ready):
        fsync_path(path)
    os.replace(ready, out)
    fsync_path(out.parent)


def _quantize(source: Path, ready: Path, precision: Precision) -> None:
    """Quantise a file of vectors, `QUANTIZE_BLOCK` vectors at a time."""
    vectors = np.load(source, mmap_mode="r")
    blocks = [slice(start, start + QUANTIZE_BLOCK) for start in range(0, len(vectors), QUANTIZE_BLOCK)]
    ranges = None
    if precision in ("int8", "uint8"):
        ends = np.concatenate([[vectors[b].min(axis=0), vectors[b].max(axis=0)] for b in blocks])
        ranges = fit_ranges(ends)
        np.save(ready / "ranges.npy", ranges)
    some = quantize_embeddings(vectors[:1], precision, ranges)
    codes = open_memmap(ready / "vectors.npy", "w+", some.dtype, (len(vectors), some.shape[1]))
    for b in blocks:
        codes[b] = quantize_embeddings(vectors[b], precision, ranges)
    codes.flush()
