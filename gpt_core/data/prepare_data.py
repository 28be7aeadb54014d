"""Turn text into token shards: read documents, split them into training and validation, encode, write."""

import errno
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write, fsync_path, require_empty_folder
from gpt_core.common.list_files import MOST_NAMED
from gpt_core.common.terminal import printable
from gpt_core.data.documents import TRAIN_ONLY, OnBadRow, Piece, Position, Split
from gpt_core.data.shards import ShardWriter
from gpt_core.data.sources import SETS, NamedSet, Source, open_source
from gpt_core.data.text_pieces import PIECE_CHARACTERS, cuts_change_ids
from gpt_core.hardware.device import available_cores
from gpt_core.tokenizer.tokenizer import Tokenizer

SAVE_SECONDS = 5.0  # interval of progress saves: a kill loses at most this much work
MOST_LENGTHS = 2**16  # documents whose lengths are kept while a split is empty
VERSION = 2  # of the progress file
Pieces = list[Piece]


def prepare_data(
    *,
    out: str,
    input: list[str] | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    column: str = "text",
    tokenizer: str | None = None,
    val_fraction: float | None = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Turn text into token shards for scripts/pretrain.py and save the tokenizer beside them.

    A text file is one document; each row of JSONL, CSV, Parquet or a data set is one document. The tokenizer's
    end-of-text token, if it has one, follows each document. A single document is divided into two splits, as in
    nanoGPT; otherwise the hash of a document's text chooses its split, so that duplicates are always in the same split,
    and each split gets at least one document.
    Memory does not grow with the text. Progress is saved in .OUT.partial until all is done: after a kill, a full disk
    or a network failure the same command resumes.

    Args:
        out: the output folder; it must be empty or not exist.
        input: files (.txt, .md, .markdown: text; .jsonl, .jsonl.gz, .jsonl.xz, .csv, .parquet: rows), or folders of
            such files. What cannot be read in a folder is skipped, with a line on stderr.
        dataset: a data set instead of files: shakespeare_char or shakespeare (1 MB, in
            gpt_core/data/tiny_shakespeare.txt), openwebtext, openwebtext-10k, fineweb-edu (its sample of 10 billion
            tokens), the name of another one on the Hugging Face hub, or a folder that the library `datasets` opens.
        dataset_config: configuration of the data set, if it has several.
        dataset_split: split of the data set to read.
        column: key or column of the text in a row.
        tokenizer: gpt2, char (the distinct characters of the text), a folder with a tokenizer.json, or a known model;
            default: char for shakespeare_char, else gpt2.
        val_fraction: the share of the text, or of the documents, for validation; default: 0.1, for openwebtext and
            fineweb-edu 0.0005, for openwebtext-10k 0.01.
        on_bad_row: what to do with a row that is invalid or has no string in the column (null is an empty document):
            stop with an error, or skip and count it.
    """
    known = SETS.get(dataset or "", NamedSet())
    fraction = known.val_fraction if val_fraction is None else val_fraction
    if not 0 < fraction < 1:
        raise InputError(f"val_fraction is {fraction}; expected a share between 0 and 1.")
    target = Path(out)
    require_empty_folder(target)
    name = tokenizer or known.tokenizer
    chosen = None if name == "char" else Tokenizer.from_pretrained(name)
    source = open_source(input, dataset, dataset_config, dataset_split, column, on_bad_row)
    record = {
        "version": VERSION,
        "source": source.identity,
        "tokenizer": chosen.fingerprint if chosen else "char",
        "val_fraction": fraction,
        "piece": PIECE_CHARACTERS,
    }
    with _partial_folder(target.resolve(), record) as (folder, progress):
        if chosen is None:
            chosen = Tokenizer.from_pretrained(folder) if progress else _characters(source)
        if not progress:
            chosen.save(folder)
        _write_shards(folder, source, chosen, fraction, record, progress)


def read_with_bar(
    source: Source, desc: str, position: Position | None = None, split: Split = TRAIN_ONLY, done: int = 0
) -> Generator[Piece]:
    """`source.read` with a progress bar, and the first skipped rows named on stderr.

    `done`: units of the source read before `position`.
    """
    with tqdm(
        total=source.total, initial=done, unit=source.unit, unit_scale=True, disable=None, desc=desc
    ) as bar:
        named = 0
        for piece in source.read(position, split):
            if piece.fault and named < MOST_NAMED:
                named += 1
                tqdm.write(f"skipped: {printable(piece.fault)}", file=sys.stderr)
            yield piece
            bar.update(piece.done - bar.n)


@contextmanager
def _partial_folder(target: Path, record: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a temporary folder and its saved progress ({}: none); rename the folder to `target` at the end.

    After an error the next run with this `record` resumes the folder. An error before progress was saved deletes it.
    """
    partial = target.with_name(f".{target.name}.partial")
    saved = partial / "progress.json"
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(partial / "lock", timeout=0):
            folder, progress = partial / "data", _progress(partial, record)
            if not progress:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            for stray in folder.glob(".*"):  # temporary files of a killed process
                stray.unlink()
            try:
                yield folder, progress
            except BaseException as error:
                if not saved.exists():
                    shutil.rmtree(partial)
                elif isinstance(error, InputError):
                    raise InputError(
                        f"{error} The progress is saved in {partial}; the same command resumes it while the input "
                        "files are unchanged."
                    ) from None
                raise
            for path in [*folder.iterdir(), folder]:
                fsync_path(path)
            os.replace(folder, target)
            fsync_path(target.parent)
            shutil.rmtree(partial)
    except filelock.Timeout:
        raise InputError(f"Another process is writing {target}; wait for it or give another --out.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)}; free disk space, then run the same command"
            + (" to resume" if saved.exists() else ""),
            str(partial),
        ) from error
    except KeyboardInterrupt:
        if not saved.exists():
            raise
        raise KeyboardInterrupt(
            f"run the same command to resume; the progress is saved in {partial}"
        ) from None


def _progress(partial: Path, record: dict[str, Any]) -> dict[str, Any]:
    path = partial / "progress.json"
    progress = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if progress and progress.pop("record") != json.loads(json.dumps(record)):
        print(f"starting over: {partial} was made from other inputs or with other options")
        progress = {}
    if not progress or not (partial / "data").exists():  # killed after the folder was renamed
        path.unlink(missing_ok=True)
        return {}
    return progress


def _characters(source: Source) -> Tokenizer:
    characters: set[str] = set()
    for piece in read_with_bar(source, "collecting characters"):
        characters.update(piece.text)
    if not characters:
        raise InputError("The input holds no text to make a character vocabulary of; give files with text.")
    return Tokenizer.from_characters("".join(characters))


def _write_shards(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    val_fraction: float,
    record: dict[str, Any],
    progress: dict[str, Any],
) -> None:
    if progress:
        print(f"resuming after {sum(state['n_tokens'] for state in progress['writers'].values()):,} tokens")
    split = Split(**progress["split"]) if progress else Split(val_fraction, source.single)
    while True:
        written = _write_once(folder, source, tokenizer, split, record, progress)
        short = [name for name, one in written.writers.items() if one.n_tokens < 2]
        if not short:
            break
        filled = split.filling(short[0], written.lengths)
        if filled is None:
            raise InputError(
                f"The {short[0]} split got {written.writers[short[0]].n_tokens} tokens; expected at least 2. "
                "Give more text."
            )
        how = "dividing the text of the only document" if filled.inside else "moving a document there"
        print(f"the {short[0]} split is empty: {how}")
        split = filled
        progress = {}
        folder.with_name("progress.json").unlink(missing_ok=True)
        for path in (path for name in written.writers for path in folder.glob(f"{name}-*")):
            path.unlink()
    for name, one in written.writers.items():
        print(f"{name}: {one.n_tokens:,} tokens in {one.n_documents:,} documents")
    print(f"vocabulary of {tokenizer.vocab_size:,}, tokenizer {tokenizer.fingerprint[:12]}")
    _report(written.counts, tokenizer)


@dataclass
class _Written:
    """What was written.

    Attributes:
        writers: the closed writer of each split.
        counts: numbers of empty documents, bad rows, cuts, and cuts that may change ids.
        lengths: tokens of the first `MOST_LENGTHS` documents by hash; empty if both splits have text.
    """

    writers: dict[str, ShardWriter]
    counts: dict[str, int]
    lengths: dict[float, int]


def _write_once(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    split: Split,
    record: dict[str, Any],
    progress: dict[str, Any],
) -> _Written:
    """Write the shards of both splits, from the saved `progress` on."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    counts = progress.get("counts", {"empty": 0, "bad": 0, "cut": 0, "hard": 0})
    lengths: dict[float, int] = dict(progress.get("lengths", []))
    done, position = progress.get("done", 0), progress.get("position")

    def writer(name: str) -> ShardWriter:
        state = progress["writers"][name] if progress else None
        try:
            return ShardWriter(folder, name, tokenizer.vocab_size, tokenizer.fingerprint, resume=state)
        except InputError:  # the shards do not hold what the progress says
            folder.with_name("progress.json").unlink()
            raise

    with (
        writer("train") as train,
        writer("val") as val,
        closing(read_with_bar(source, "tokenising", position, split, done)) as pieces,
        closing(_encode(pieces, tokenizer)) as encoded,
    ):
        writers, saved = {"train": train, "val": val}, time.monotonic()
        for piece, ids in encoded:
            if piece.fault:
                counts["bad"] += 1
            elif piece.text:
                writers[piece.split].add(ids, more=True)
                counts["cut"] += not piece.ends
                counts["hard"] += not piece.harmless
                if piece.ends:
                    writers[piece.split].add(end)
                if min(one.n_tokens for one in writers.values()) >= 2:
                    lengths.clear()
                elif piece.hash in lengths or len(lengths) < MOST_LENGTHS:
                    n = len(ids) + (len(end) if piece.ends else 0)
                    lengths[piece.hash] = lengths.get(piece.hash, 0) + n
            else:
                counts["empty"] += 1
            if piece.position and time.monotonic() - saved >= SAVE_SECONDS:
                progress = {
                    "position": piece.position,
                    "done": piece.done,
                    "writers": {name: one.state() for name, one in writers.items()},
                    "counts": counts,
                    "split": asdict(split),
                    "lengths": list(lengths.items()),
                }
                atomic_write(folder.with_name("progress.json"), json.dumps({"record": record, **progress}))
                saved = time.monotonic()
    return _Written(writers, counts, lengths)


def _report(counts: dict[str, int], tokenizer: Tokenizer) -> None:
    if counts["empty"]:
        print(f"skipped {counts['empty']:,} empty documents")
    if counts["bad"]:
        print(f"skipped {counts['bad']:,} rows that cannot be used")
    if counts["cut"] and cuts_change_ids(tokenizer):
        print(
            f"{counts['cut']:,} cuts in documents of more than {PIECE_CHARACTERS:,} characters, encoded in pieces: "
            "this tokenizer may give other tokens at each cut"
        )
    elif counts["hard"]:
        print(
            f"{counts['hard']:,} of {counts['cut']:,} cuts in documents of more than {PIECE_CHARACTERS:,} characters, "
            "encoded in pieces, are not at a space or punctuation: a token may differ there"
        )


def _encode(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Generator[tuple[Piece, NDArray[np.uint32]]]:
    """Each piece with its ids, in order. One thread per core encodes; at most that many batches + 2 are in memory."""
    threads = available_cores()
    waiting: deque[tuple[Pieces, Future[list[NDArray[np.uint32]]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for batch in _batches(pieces):
                waiting.append((batch, pool.submit(tokenizer.encode_to_numpy, [p.text for p in batch])))
                if len(waiting) > threads + 1:
                    batch, encoded = waiting.popleft()
                    yield from zip(batch, encoded.result(), strict=True)
            while waiting:
                batch, encoded = waiting.popleft()
                yield from zip(batch, encoded.result(), strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(pieces: Iterator[Piece]) -> Iterator[Pieces]:
    """Batches of pieces of about PIECE_CHARACTERS characters together, at most 2**12 pieces."""
    batch: Pieces = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece.text)
        if length >= PIECE_CHARACTERS or len(batch) >= 2**12:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
