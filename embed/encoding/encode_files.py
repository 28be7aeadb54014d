"""Texts of any number to a file of vectors: O(batch) memory, resumable, by several processes at once.

    OUT/vectors.npy     (n, d), row i for text i; numpy.load(…, mmap_mode="r") opens it
    OUT/ids.jsonl       the text's id, a JSON string a line
    OUT/ranges.npy      (2, d), with int8 and uint8: see `quantize_embeddings`
    OUT/manifest.json   what the vectors are of

Until all is there, it lies in `.OUT.partial/`, in windows of `WINDOW` texts. A window is locked by the process that is
at it, and marked as done when its vectors are on the disk, so any number of processes that were given the same command
share the work, and what one leaves behind when it is killed, another one or the next start does again. Vectors of a
window depend on nothing outside it: however the work was cut, the file has the same bytes, as long as all processes
have the same number of threads on the same kind of machine.
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
from gpt_core.common.files import atomic_write, fsync_path, refuse_used
from gpt_core.hardware.device import DeviceName, pick_device
from gpt_core.hardware.onednn import choose_onednn
from gpt_core.hub.locate import DEFAULT_MODEL

WINDOW = 1024  # texts that are sorted by length together, and what an interruption can cost
ROWS = 65536  # vectors in memory at a time while they are quantised
VERSION = 1

Texts = Iterable[tuple[str, str]]  # id and text; can be iterated again


def encode_files(
    *,
    input: str,
    out: str,
    embedder: str = DEFAULT_MODEL,
    role: Literal["document", "query", "none"] = "document",
    column: str = "text",
    max_tokens: int | None = None,
    truncate_dim: int | None = None,
    precision: Precision = "float32",
    dtype: Dtype = "float32",
    device: DeviceName = "auto",
) -> None:
    """Encode the texts of a file to vectors on disk.

    The same command goes on with what an earlier one left unfinished, and several at a time share the work: start it
    under torchrun, or in several terminals, also of several machines with a common disk that knows locks.

    Args:
        input: a .txt file, a text a line; JSON lines (.jsonl, .jsonl.gz, .jsonl.xz) of "_id", "title" and "text"; or
            a BEIR folder, whose corpus is taken for documents and whose queries for queries.
        out: the folder to make: vectors.npy, ids.jsonl, manifest.json.
        embedder: a model or embedder folder, a run's out_dir, or a known name.
        role: which of the embedder's prompts goes before each text.
        column: where JSON lines have the text.
        max_tokens: longest text in tokens, prompt included; the embedder's own limit if it is less.
        truncate_dim: keep so many of a vector's dimensions, the first ones.
        precision: float32; int8 or uint8, by each dimension's range over all texts; binary or ubinary, a bit a
            dimension. While the work goes on, the disk holds float32.
        dtype: of the matrix products; vectors stay float32.
        device: auto takes cuda, else mps, else cpu; under torchrun, each rank its own GPU.
    """
    texts = TextFile.find(input, column, queries=role == "query")
    place = pick_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    encoder = Encoder.from_pretrained(embedder, truncate_dim=truncate_dim, dtype=dtype, device=place.type)  # type: ignore[arg-type]
    if encoder.config.corpus_map != "none":
        print(
            f"{embedder}: these vectors are raw; an index fits a {encoder.config.corpus_map} map on its own",
            file=sys.stderr,
        )
    prompt = "" if role == "none" else encoder.prompt(role)
    manifest = encode_to_folder(encoder, texts, out, prompt, max_tokens=max_tokens, precision=precision)
    if os.environ.get("RANK", "0") != "0":
        return
    cut = f"; {manifest['truncated']:,} texts were cut to {manifest['max_tokens']} tokens" * bool(
        manifest["truncated"]
    )
    print(f"{out}: {manifest['texts']:,} vectors of {manifest['dimension']} numbers in {precision}{cut}")


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
        texts: ids and texts; read twice, a window at a time.
        out: the folder. If it is there, with the same vectors, nothing is done.
        prompt: put before each text.
        max_tokens: as for `Encoder.encode`.
        precision: as for `quantize_embeddings`, its ranges fitted on all these texts.

    Returns:
        The manifest.

    Raises:
        InputError: if there is no text, or the folder, finished or not, holds other vectors than these.
        KeyboardInterrupt: with a sentence on how much is done.
    """
    out = Path(out).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(encoder, texts, prompt, max_tokens, precision)
    partial = out.with_name(f".{out.name}.partial")
    lock = FileLock(out.with_name(f".{out.name}.lock"))  # for what one process alone must do
    Path(lock.lock_file).touch()  # where no file can be made, filelock itself would try for ever
    try:
        with lock:
            if not _is_ready(out):
                refuse_used(out)
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
        if not partial.exists():  # nothing has begun here
            Path(lock.lock_file).unlink(missing_ok=True)
        raise
    except FileNotFoundError:
        if not _is_ready(out):  # else another process did the last of it, and cleared up
            raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"{os.strerror(error.errno)}; make room, and the same command goes on"
        raise OSError(error.errno, reason, str(out)) from error
    except KeyboardInterrupt:
        done = min(len(list(partial.glob("windows/*.json"))) * WINDOW, manifest["texts"])
        kept = f"{done:,} of {manifest['texts']:,} texts are encoded; the same command goes on"
        raise KeyboardInterrupt(kept) from None
    _check_same(out, manifest)
    shutil.rmtree(partial, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)  # whoever comes now finds the folder ready, under any lock
    return _read(out / "manifest.json")


def open_vectors(folder: str | Path, encoder: Encoder | None = None) -> tuple[NDArray[Any], list[str]]:
    """The vectors (n, d) of a folder that `encode_to_folder` made, mapped from the disk, and the texts' ids.

    Args:
        folder: which.
        encoder: the embedder that other texts will be compared by.

    Raises:
        InputError: if the folder is none, or its vectors are another embedder's.
    """
    folder = Path(folder)
    if not _is_ready(folder):
        raise InputError(f"{folder} holds no vectors; scripts/encode.py makes such a folder.")
    manifest = _read(folder / "manifest.json")
    if encoder is not None and encoder.fingerprint != manifest.get("fingerprint"):
        raise InputError(
            f"{folder} holds vectors of {manifest.get('embedder')} ({str(manifest.get('fingerprint'))[:12]}), not of "
            f"{encoder.name} ({encoder.fingerprint[:12]}); encode the texts with the same embedder."
        )
    with open(folder / "ids.jsonl", encoding="utf-8") as file:
        ids = [json.loads(line) for line in file]
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    if not len(vectors) == len(ids) == manifest["texts"]:
        raise InputError(f"{folder} is torn: {len(vectors)} vectors, {len(ids)} ids; encode the texts again.")
    return vectors, ids


def _manifest(
    encoder: Encoder, texts: Texts, prompt: str, max_tokens: int | None, precision: Precision
) -> dict[str, Any]:
    """What the vectors are of; "texts_sha256" tells texts that have changed since the work began."""
    encoder.tokenize([], max_tokens)  # which refuses a limit that cannot be, before anything is written
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
            f"precision {precision} fits its ranges on the texts; of one there is nothing to fit."
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
    """Refuse a folder with other vectors; the embedder's name may differ, its fingerprint not."""
    there = _read(folder / "manifest.json")
    for key, value in manifest.items():
        if key != "embedder" and there.get(key) != value:
            raise InputError(
                f"{folder} was made with {key} {there.get(key)!r}, not {value!r}; remove it or give another --out."
            )


def _read(path: Path) -> dict[str, Any]:
    """What this package wrote there as JSON; InputError if something else has written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged, or another program's; remove its folder or give another --out.")
    return values


def _is_ready(out: Path) -> bool:
    return (out / "manifest.json").is_file()


def _begin(partial: Path, manifest: dict[str, Any], encoder: Encoder) -> None:
    """Make the unfinished folder, or go on in the one that is there."""
    if (partial / "manifest.json").is_file():
        return _check_same(partial, manifest)
    # Who goes on rounds likewise.
    recorded = manifest | {"onednn": choose_onednn(encoder.model.device, encoder.onednn)}
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "windows").mkdir(parents=True)
    (partial / "out").mkdir()
    open_memmap(_float32(partial, manifest), "w+", np.float32, (manifest["texts"], manifest["dimension"]))
    atomic_write(partial / "manifest.json", json.dumps(recorded, indent=2) + "\n")
    return None


def _float32(partial: Path, manifest: dict[str, Any]) -> Path:
    """Where vectors are written to: the file itself, or one from which it will be quantised."""
    return partial / ("out/vectors.npy" if manifest["precision"] == "float32" else "float32.npy")


def _encode_windows(
    encoder: Encoder, texts: Texts, partial: Path, manifest: dict[str, Any], prompt: str
) -> None:
    """Come back when every window is done, by this process or another."""
    n_windows = -(-manifest["texts"] // WINDOW)
    file = _float32(partial, manifest)
    offset = np.load(file, mmap_mode="r").offset
    first_rank = os.environ.get("LOCAL_RANK", "0") == "0"
    bar = tqdm(total=manifest["texts"], unit=" texts", desc="encoding", disable=None if first_rank else True)
    for wait in (False, True):  # first what nobody is at; then what others are at, lest they die of it
        left = {w for w in range(n_windows) if not _mark(partial, w).exists()}
        bar.update(manifest["texts"] - bar.n - min(len(left) * WINDOW, manifest["texts"]))
        for w, names, window in _read_windows(texts, left):
            try:
                with FileLock(partial / "windows" / f"{w}.lock", timeout=-1 if wait else 0):
                    if not file.exists():  # filelock makes folders that are gone
                        raise FileNotFoundError(file)
                    if not _mark(partial, w).exists():
                        before = encoder.n_truncated
                        vectors = encoder.encode(window, prompt=prompt, max_tokens=manifest["max_tokens"])
                        _write(file, offset + w * WINDOW * vectors[0].nbytes, vectors)
                        done = {"ids": names, "truncated": encoder.n_truncated - before}
                        atomic_write(_mark(partial, w), json.dumps(done))
                        bar.update(len(window))
            except Timeout:
                continue
    bar.close()


def _mark(partial: Path, window: int) -> Path:
    return partial / "windows" / f"{window}.json"


def _read_windows(texts: Texts, wanted: set[int]) -> Iterator[tuple[int, list[str], list[str]]]:
    """Number, ids and texts of each wanted window."""
    rows = iter(texts)
    for w in range(max(wanted, default=-1) + 1):
        window = list(islice(rows, WINDOW))
        if w in wanted:
            yield w, [name for name, _ in window], [text for _, text in window]


def _write(path: Path, offset: int, vectors: Vectors) -> None:
    """Write rows into the file and onto the disk; through a file and not a map, whose pages would count as memory."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(vectors.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _finish(partial: Path, out: Path, manifest: dict[str, Any]) -> None:
    """Put the folder together and in its place; a kill in between costs nothing."""
    ready = partial / "out"
    for left_over in ready.glob(".*"):  # a kill's
        left_over.unlink()
    if manifest["precision"] != "float32":
        _quantize(partial / "float32.npy", ready, manifest["precision"])
    truncated = 0
    with open(ready / "ids.jsonl", "w", encoding="utf-8") as ids:
        for w in range(-(-manifest["texts"] // WINDOW)):
            done = _read(_mark(partial, w))
            truncated += done["truncated"]
            ids.writelines(json.dumps(name, ensure_ascii=False) + "\n" for name in done["ids"])
    atomic_write(ready / "manifest.json", json.dumps(manifest | {"truncated": truncated}, indent=2) + "\n")
    for path in (*ready.iterdir(), ready):
        fsync_path(path)
    os.replace(ready, out)
    fsync_path(out.parent)


def _quantize(source: Path, ready: Path, precision: Precision) -> None:
    """Quantise a file of vectors, some rows at a time."""
    vectors = np.load(source, mmap_mode="r")
    blocks = [slice(start, start + ROWS) for start in range(0, len(vectors), ROWS)]
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
