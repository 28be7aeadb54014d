"""Vectors on disk equal the encoder's, also after interruptions and with several processes."""

import errno
import gzip
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from embed.data.text_files import TextFile
from embed.encoding import encode_files as streaming
from embed.encoding.encode_files import encode_files, encode_to_folder, open_vectors
from embed.encoding.encoder import Encoder
from embed.network.config import EmbedderConfig, Pooling
from embed.network.quantize import fit_ranges, quantize_embeddings
from gpt_core.common.errors import InputError
from gpt_core.hardware.onednn import choose_onednn
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests import commands
from tests.tiny_models import TEXTS, save_model

CORPUS_TEXTS = [f"{text} {i}"[: 20 + 13 * (i % 40)] for i, text in enumerate(TEXTS * 20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = save_model(tmp_path / "model", "qwen3")
    settings = EmbedderConfig(Pooling("mean"), query_prompt="q: ", document_prompt="text: ", max_tokens=24)
    (folder / "embedder.json").write_text(settings.to_json())
    return folder


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(streaming, "TEXTS_PER_WINDOW", 8)
    monkeypatch.setattr(streaming, "QUANTIZE_BLOCK", 16)


def write_corpus(path: Path, texts: list[str] = CORPUS_TEXTS) -> Path:
    rows = [{"_id": f"d{i}", "title": text[:9], "text": text[9:].strip()} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_the_file_contains_the_encoders_vectors(tmp_path, folder, precision, capsys):
    source = write_corpus(tmp_path / "corpus.jsonl")
    encode_files(
        input=str(source), out=str(tmp_path / "out"), embedder=str(folder), precision=precision, device="cpu"
    )
    encoder = Encoder.from_pretrained(folder)
    texts = [text for _, text in TextFile(source)]
    assert texts[3] == f"{CORPUS_TEXTS[3][:9]} {CORPUS_TEXTS[3][9:].strip()}".strip()
    expected = encoder.encode_document(texts)
    vectors, ids = open_vectors(tmp_path / "out", encoder)
    assert ids == [f"d{i}" for i in range(100)]
    assert isinstance(vectors, np.memmap)
    if precision == "float32":
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    else:
        (tmp_path / "plain").mkdir()
        encode_to_folder(encoder, TextFile(source), tmp_path / "plain", "text: ")  # an empty folder may exist
        exact, _ = open_vectors(tmp_path / "plain")
        ranges = fit_ranges(exact) if precision == "int8" else None
        np.testing.assert_array_equal(vectors, quantize_embeddings(exact, precision, ranges))
        if precision == "int8":
            np.testing.assert_array_equal(np.load(tmp_path / "out" / "ranges.npy"), ranges)
    said = capsys.readouterr().out
    n_long = sum(len(encoder.tokenizer.encode("text: " + text)) > 24 for text in texts)
    assert f"100 vectors of 32 dimensions in {precision}; {n_long} texts were cut to 24 tokens" in said
    # nothing left over
    assert {path.name for path in tmp_path.iterdir()} <= {
        "model",
        "corpus.jsonl",
        "out",
        "plain",
    }


def test_a_finished_folder_is_not_encoded_again(tmp_path, folder):
    encoder = Encoder.from_pretrained(folder)
    texts = [(str(i), text) for i, text in enumerate(CORPUS_TEXTS)]
    first = encode_to_folder(encoder, texts, tmp_path / "out")
    before = (tmp_path / "out" / "vectors.npy").stat()
    moved = Encoder(
        encoder.model, encoder.tokenizer, encoder.config, weights_sha256=encoder._weights_sha256, name="b"
    )
    assert encode_to_folder(moved, texts, tmp_path / "out") == first
    assert (tmp_path / "out" / "vectors.npy").stat() == before


# numbers of writes: in setup; between writing and marking a window; in quantising and assembling; after the rename
KILLS = "kill 1 2 3 4 5 7 10 7 2 4 8"


@pytest.mark.parametrize("plan", [KILLS, "share 5"])
def test_killed_and_shared_work_gives_the_same_bytes(tmp_path, folder, plan):
    source = write_corpus(tmp_path / "corpus.jsonl")
    encoder = Encoder.from_pretrained(folder)
    encoder.onednn = False
    encode_to_folder(encoder, TextFile(source), tmp_path / "whole", precision="int8")
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    command = [
        Path(__file__).with_name("streaming_driver.py"),
        folder,
        source,
        tmp_path / "out",
        *plan.split(),
    ]
    done = commands.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "model", "out", "whole"]


def test_memory_does_not_grow_with_the_number_of_texts(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(streaming, "TEXTS_PER_WINDOW", 256)
    (folder / "embedder.json").write_text(EmbedderConfig(Pooling("mean", layer=0)).to_json())
    encoder = Encoder.from_pretrained(folder)
    peaks = []
    for n_texts in (1000, 8000):
        source = tmp_path / f"{n_texts}.txt"
        source.write_text("".join(f"text number {i}\n" for i in range(n_texts)))
        tracemalloc.start()
        encode_to_folder(encoder, TextFile(source), tmp_path / f"out{n_texts}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "out8000" / "vectors.npy").stat().st_size > 8000 * 32 * 4
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 8000 * 32 * 4 * 2


def test_resuming_uses_the_matrix_library_of_the_first_run(tmp_path, folder, monkeypatch):
    if not choose_onednn(torch.device("cpu"), True):
        pytest.skip("torch has only one library for matrix products here")
    torch.manual_seed(0)  # wide enough for the two libraries to differ in the last bit
    shape = GPTConfig(
        vocab_size=320, n_layer=1, n_head=2, n_kv_head=2, n_embd=512, head_dim=16, n_inner=512, block_size=64
    )
    model, tokenizer = GPT(shape), Tokenizer.from_pretrained(folder)
    texts, write = [(str(i), text) for i, text in enumerate(CORPUS_TEXTS)], streaming._write
    files = []
    for onednn in (True, False):
        out, encoder = tmp_path / f"out{onednn}", Encoder(model, tokenizer)
        encoder.onednn = onednn
        left = iter(range(3))

        def stop(*args, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(*args)

        monkeypatch.setattr(streaming, "_write", stop)
        with pytest.raises(KeyboardInterrupt, match="24 of 100"):
            encode_to_folder(encoder, texts, out)
        monkeypatch.setattr(streaming, "_write", write)
        encoder.onednn = not onednn
        encode_to_folder(encoder, texts, out)
        assert encoder.onednn is not onednn
        encoder.onednn = onednn
        encode_to_folder(encoder, texts, tmp_path / f"whole{onednn}")
        files += [(path / "vectors.npy").read_bytes() for path in (out, tmp_path / f"whole{onednn}")]
    assert files[0] == files[1] != files[2] == files[3]


def test_resuming_with_other_settings_or_texts_is_refused(tmp_path, folder, monkeypatch):
    encoder = Encoder.from_pretrained(folder)
    texts = [(str(i), text) for i, text in enumerate(CORPUS_TEXTS)]

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    write = streaming._write
    for state in ("partial", "finished"):
        monkeypatch.setattr(streaming, "_write", stop if state == "partial" else write)
        if state == "partial":
            with pytest.raises(
                KeyboardInterrupt, match="0 of 100 texts are encoded; run the same command to resume"
            ):
                encode_to_folder(encoder, texts, tmp_path / "out")
        else:
            encode_to_folder(encoder, texts, tmp_path / "out")
        other = Encoder(encoder.model, encoder.tokenizer, EmbedderConfig(Pooling("lasttoken")))
        for call, said in (
            (lambda: encode_to_folder(other, texts, tmp_path / "out"), "fingerprint"),  # noqa: B023
            (lambda: encode_to_folder(encoder, texts[1:], tmp_path / "out"), "texts 100, not 99"),
            (lambda: encode_to_folder(encoder, [("x", "y"), *texts[1:]], tmp_path / "out"), "texts_sha256"),
            (lambda: encode_to_folder(encoder, texts, tmp_path / "out", "q: "), "prompt '', not 'q: '"),
            (
                lambda: encode_to_folder(encoder, texts, tmp_path / "out", max_tokens=9),
                "max_tokens 24, not 9",
            ),
            (lambda: encode_to_folder(encoder, texts, tmp_path / "out", precision="int8"), "precision"),
        ):
            with pytest.raises(InputError, match=said):
                call()
    with pytest.raises(InputError, match="encode the texts with the same embedder"):
        open_vectors(tmp_path / "out", other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists and is not empty"):
        encode_to_folder(encoder, texts, tmp_path / "mine")


def test_reads_lines_compressed_rows_and_beir_folders(tmp_path, folder):
    (tmp_path / "a.txt").write_bytes("one\r\n\ntwo\u2028three".encode())  # only a line feed ends a line
    assert list(TextFile.find(tmp_path / "a.txt")) == [("0", "one"), ("1", ""), ("2", "two\u2028three")]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"id": 7, "body": "x"}\n{"body": "知"}\n')
    assert list(TextFile.find(tmp_path / "b.jsonl.gz", column="body")) == [("7", "x"), ("1", "知")]
    (tmp_path / "beir").mkdir()
    write_corpus(tmp_path / "beir" / "corpus.jsonl", TEXTS)
    (tmp_path / "beir" / "queries.jsonl").write_text(
        '{"_id": "q", "text": "what?"}\n{"_id": "r", "text": ""}\n'
    )
    encode_files(
        input=str(tmp_path / "beir"),
        out=str(tmp_path / "q"),
        embedder=str(folder),
        role="query",
        device="cpu",
    )
    vectors, ids = open_vectors(tmp_path / "q")
    assert ids == ["q", "r"]
    expected = Encoder.from_pretrained(folder).encode_query(["what?", ""])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_refusal_leaves_nothing_behind(tmp_path, folder):
    encoder = Encoder.from_pretrained(folder)
    for limit in (0, -1):
        with pytest.raises(InputError, match=f"max_tokens is {limit}"):
            encode_to_folder(encoder, [("0", "text")], tmp_path / "out", max_tokens=limit)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="already exists and is not empty"):
        encode_to_folder(encoder, [("0", "text")], tmp_path / "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", folder.name}


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc, in which no file can be created")
def test_an_unwritable_output_folder_is_an_immediate_error(tmp_path, folder):
    (tmp_path / "a.txt").write_text("one\n")
    command = ["scripts/encode.py", "--input", tmp_path / "a.txt", "--embedder", folder, "--out", "/proc/x"]
    done = commands.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "encode.py: [Errno 2] No such file or directory: '/proc/.x.lock'"


def test_encoding_resumes_after_a_full_disk(tmp_path, folder, monkeypatch):
    encoder, write = Encoder.from_pretrained(folder), streaming._write

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streaming, "_write", full)
    with pytest.raises(OSError, match=r"free disk space and run the same command to resume: '.*/out'"):
        encode_to_folder(encoder, [("0", "text")], tmp_path / "out")
    monkeypatch.setattr(streaming, "_write", write)
    assert encode_to_folder(encoder, [("0", "text")], tmp_path / "out")["texts"] == 1


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff"])
@pytest.mark.parametrize("name", ["out", ".out.partial"])
def test_a_damaged_manifest_is_refused(tmp_path, folder, name, content):
    (tmp_path / name).mkdir()
    (tmp_path / name / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="is damaged or was written by another program; remove its folder"):
        encode_to_folder(Encoder.from_pretrained(folder), [("0", "text")], tmp_path / "out")


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\r\nworld\n")
    assert list(TextFile.find(tmp_path / "a.txt")) == [("0", "hello"), ("1", "world")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"fine\n\xff\n", "line 2, is not UTF-8"),
        ("a.txt", b"", "no text to encode"),
        ("a.jsonl", b'{"text": 3}', 'line 1: expected a string under "text"'),
        ("a.jsonl", b'{"body": "x"}', "its keys are 'body'"),
        ("a.jsonl", b'{"text": "x", "_id": [1]}', "the id is a list"),
        ("a.jsonl", b'{"text": "x"}\n{', "line 2, is not valid JSON"),
        ("a.csv", b"text\nx\n", "unknown file type; expected .txt, .jsonl"),
        ("a.txt/b", b"", "does not exist"),
        ("one.txt", b"just one", "there is only one"),
    ],
)
def test_bad_input_is_refused(tmp_path, folder, name, content, said):
    if "/" not in name:
        (tmp_path / name).write_bytes(content)
    precision = "int8" if name == "one.txt" else "float32"
    with pytest.raises(InputError, match=said):
        encode_files(
            input=str(tmp_path / name),
            out=str(tmp_path / "out"),
            embedder=str(folder),
            precision=precision,
            device="cpu",
        )
    assert not (tmp_path / "out").exists()
