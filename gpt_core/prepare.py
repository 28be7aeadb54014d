"""From text to token shards: read documents, split them into training and validation, encode, write."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from gpt_core.errors import InputError
from gpt_core.files import atomic_folder
from gpt_core.jsonl import JSONL, read_rows
from gpt_core.shards import ShardWriter
from gpt_core.tokenizer import Tokenizer

SHAKESPEARE = Path(__file__).parents[1] / "examples" / "tiny_shakespeare.txt"
KINDS = (*JSONL, ".txt", ".md")
DATASETS = {"shakespeare_char": (SHAKESPEARE, "char")}  # file, tokenizer
BATCH_CHARACTERS = 2**22  # texts are encoded together until they are this long


def prepare_data(
    *,
    out: str,
    input: list[str] | None = None,
    dataset: Literal["shakespeare_char"] | None = None,
    tokenizer: str | None = None,
    val_fraction: float = 0.1,
) -> None:
    """Turn text into token shards for scripts/pretrain.py, with the tokenizer beside them.

    A file of text is one document, a line of JSONL is one. After each document comes the tokenizer's end-of-text
    token, if it has one. A single text file is cut in two, as nanoGPT does; of several documents each goes whole to
    one split, chosen by the hash of its text, so that a repeated document never stands in both.

    Args:
        out: the folder to make; it must not exist or be empty.
        input: files (.txt, .md: text; .jsonl, also .gz or .xz: objects with a "text"), or folders of such.
        dataset: a named set instead: shakespeare_char is the 1 MB of examples/tiny_shakespeare.txt.
        tokenizer: gpt2, char (the distinct characters of the text), a folder with a tokenizer.json, or a known model;
            if not given, char for shakespeare_char, else gpt2.
        val_fraction: the share of the text, or of the documents, that is kept for validation.
    """
    if (input is None) == (dataset is None):
        raise InputError("Give either --input or --dataset, so that it is clear what to prepare.")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}; expected a share between 0 and 1.")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} already holds something; remove it or give another --out.")
    text, usual = DATASETS[dataset] if dataset else (None, "gpt2")
    files = _files([str(text)] if text else input or [])
    chosen = _tokenizer(tokenizer or usual, files)
    with atomic_folder(target) as folder:
        _write_shards(folder, files, chosen, val_fraction)
        chosen.save(folder)


def read_documents(files: list[Path]) -> Iterator[str]:
    """The text of each document; empty ones are left out.

    Raises:
        InputError: naming the file, and in JSONL the line, that cannot be read.
    """
    for path in files:
        if path.name.endswith(JSONL):
            for place, row in read_rows(path):
                if not isinstance(row.get("text"), str):
                    raise InputError(f'{place}: expected an object with a string under "text".')
                if row["text"]:
                    yield row["text"]
        else:
            try:
                text = path.read_bytes().decode()  # as it is: reading as text would turn \r\n into \n
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path} is not UTF-8 at byte {error.start}; convert it to UTF-8 first."
                ) from error
            if text:
                yield text


def _files(inputs: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.name.endswith(KINDS) and p.is_file())
        elif not path.exists():
            raise InputError(f"There is no file or folder {path}.")
        elif path.name.endswith(KINDS):
            found.append(path)
        else:
            raise InputError(
                f"{path} is of no kind that can be read; convert it to one of {', '.join(KINDS)}."
            )
    if not found:
        raise InputError(
            f"{', '.join(inputs)}: no file in there that can be read; expected {', '.join(KINDS)}."
        )
    return found


def _tokenizer(name: str, files: list[Path]) -> Tokenizer:
    if name != "char":
        return Tokenizer.from_pretrained(name)
    characters: set[str] = set()
    for text in read_documents(files):
        characters.update(text)
    if not characters:
        raise InputError(f"{files[0]} and the other inputs hold no text.")
    return Tokenizer.from_characters("".join(characters))


def _write_shards(folder: Path, files: list[Path], tokenizer: Tokenizer, val_fraction: float) -> None:
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    pieces = _split(files, val_fraction)
    with (
        ShardWriter(folder, "train", tokenizer.vocab_size, tokenizer.fingerprint) as train,
        ShardWriter(folder, "val", tokenizer.vocab_size, tokenizer.fingerprint) as val,
        tqdm(unit="char", unit_scale=True, disable=None, desc="tokenising") as bar,
    ):
        writers = {"train": train, "val": val}
        for batch in _batches(pieces):
            encoded = tokenizer.encode_batch([text for _, text in batch])
            for (split, text), ids in zip(batch, encoded, strict=True):
                writers[split].add(ids + end)
                bar.update(len(text))
    for split, writer in writers.items():
        if writer.n_tokens < 2:
            raise InputError(
                f"The {split} split got {writer.n_tokens} tokens; a loss needs at least 2. "
                "Give more text or another --val_fraction."
            )
        print(f"{split}: {writer.n_tokens:,} tokens in {writer.n_documents:,} documents")
    print(f"vocabulary of {tokenizer.vocab_size:,}, tokenizer {tokenizer.fingerprint[:12]}")


def _split(files: list[Path], val_fraction: float) -> Iterator[tuple[str, str]]:
    """Pairs of split and text; every document is in one of the two, except a single text file, which is cut."""
    documents = read_documents(files)
    if len(files) == 1 and not files[0].name.endswith(JSONL):
        for text in documents:
            cut = int(len(text) * (1 - val_fraction))
            yield from (("train", text[:cut]), ("val", text[cut:]))
        return
    for text in documents:
        place = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
        yield ("val" if place < val_fraction else "train", text)


def _batches(pieces: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Lists of pieces, each about BATCH_CHARACTERS long: enough for the tokenizer's threads, little for the memory."""
    batch: list[tuple[str, str]] = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece[1])
        if length >= BATCH_CHARACTERS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
