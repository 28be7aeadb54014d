"""From text to shards: no text is lost, no document is in both splits, bad input leaves no files."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.data.shards import open_split
from gpt_core.data.sources import HubSet
from gpt_core.tokenizer.tokenizer import Tokenizer


def texts(folder: Path, split: str) -> list[str]:
    """The documents of a split, decoded by the tokenizer in the same folder."""
    tokenizer = Tokenizer.from_pretrained(folder)
    documents = []
    for shard in open_split(folder, split):
        assert shard.tokenizer == tokenizer.fingerprint
        shard.verify(tokenizer.vocab_size)
        ends = [*shard.documents()[1:].tolist(), len(shard.tokens)]
        documents += [
            tokenizer.decode(shard.tokens[a:b].tolist()) for a, b in zip(shard.documents(), ends, strict=True)
        ]
    return documents


def write_jsonl(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(rows)))


RunDriver = Callable[..., tuple[list[str], str]]


@pytest.fixture(scope="module")
def run_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDriver]:
    """run_driver(stop_points, *args): runs of prepare_driver.py; stdout, with the exit statuses, and stderr."""
    said, errors = (tmp_path_factory.mktemp("driver") / name for name in ("stdout", "stderr"))
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("prepare_driver.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()},
    ) as driver:  # fmt: skip

        def run(stop_points: list[str], *args: str) -> tuple[list[str], str]:
            assert driver.stdin is not None
            assert driver.stdout is not None
            print(json.dumps([stop_points, args, str(said), str(errors)]), file=driver.stdin, flush=True)
            assert driver.stdout.readline() == "\n"
            return said.read_text().splitlines(), errors.read_text()

        yield run


def test_shakespeare_char_equals_nanogpts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_data(dataset="shakespeare_char", out=str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "train: 1,003,854 tokens" in said  # the counts that nanoGPT's prepare.py prints
    assert "val: 111,540 tokens" in said
    assert "vocabulary of 65" in said
    original = Path("gpt_core/data/tiny_shakespeare.txt").read_text(encoding="utf-8")
    assert texts(tmp_path / "out", "train") + texts(tmp_path / "out", "val") == [
        original[:1_003_854],
        original[1_003_854:],
    ]


def test_a_text_file_is_kept_to_the_byte(tmp_path: Path) -> None:
    text = "知之为知之，不知为不知。\r\n是知也 🙂\n" * 20
    (tmp_path / "a.txt").write_bytes(text.encode())
    prepare_data(input=[str(tmp_path / "a.txt")], out=str(tmp_path / "out"))
    (train,), (val,) = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "val")
    assert train.removesuffix("<|endoftext|>") + val.removesuffix("<|endoftext|>") == text


@pytest.mark.parametrize("tokenizer", ["gpt2", "char"])
def test_a_byte_order_mark_is_not_part_of_a_text(tmp_path: Path, tokenizer: str) -> None:
    files = {
        "a.txt": "the first file " * 9,
        "b.txt": "the second file",
        "c.csv": '"text"\nthe third file\n',
        "d.jsonl": '{"text": "\\ufeffthe fourth file"}\n',
    }
    for mark in ("", "\ufeff"):
        folder = tmp_path / f"in{len(mark)}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(mark + text, encoding="utf-8")
        for name, input in (("one", folder / "a.txt"), ("all", folder)):
            prepare_data(input=[str(input)], out=str(tmp_path / f"{name}{len(mark)}"), tokenizer=tokenizer)
    for name in ("one", "all"):
        assert contents(tmp_path / f"{name}0") == contents(tmp_path / f"{name}1")
    assert "\ufeff" not in "".join(texts(tmp_path / "all1", "train") + texts(tmp_path / "all1", "val"))


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=4).filter(
    lambda text: not text.startswith("\ufeff")
)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(WORDS, min_size=1, max_size=12), fraction=st.floats(0.001, 0.999))
def test_few_documents_fill_both_splits(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], fraction: float
) -> None:
    folder = tmp_path_factory.mktemp("few")
    write_jsonl(folder / "a.jsonl", rows)
    for out in ("out", "again"):
        prepare_data(
            input=[str(folder / "a.jsonl")], out=str(folder / out), val_fraction=fraction, tokenizer="char"
        )
    assert contents(folder / "out") == contents(folder / "again")
    train, val = texts(folder / "out", "train"), texts(folder / "out", "val")
    assert train
    assert val
    if len(set(rows)) == 1:  # both splits have their part of each document
        assert [a + b for a, b in zip(train, val, strict=True)] == rows
        assert all(min(len(a), len(b)) >= 2 for a, b in zip(train, val, strict=True))
    else:
        assert [text for text in rows if text in train] == train
        assert [text for text in rows if text in val] == val
        assert len(train) + len(val) == len(rows)


@pytest.mark.parametrize(("fraction", "moved"), [(0.01, "knowing " * 10), (0.99, "知之 " * 10)])
def test_a_document_of_fitting_length_is_moved_to_an_empty_split(
    tmp_path: Path, fraction: float, moved: str
) -> None:
    rows = ["to know " * 1000, moved, "you"]
    write_jsonl(tmp_path / "a.jsonl", rows)
    out = tmp_path / "out"
    prepare_data(input=[str(tmp_path / "a.jsonl")], out=str(out), val_fraction=fraction, tokenizer="char")
    small, large = ("val", "train") if fraction < 0.5 else ("train", "val")
    assert texts(out, small) == [moved]
    assert texts(out, large) == [rows[0], rows[2]]


def test_the_only_text_beside_empty_files_is_divided_as_if_alone(tmp_path: Path) -> None:
    text = Path("gpt_core/data/tiny_shakespeare.txt").read_text(encoding="utf-8")[:2000]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(text)
    prepare_data(input=[str(tmp_path / "in")], out=str(tmp_path / "alone"))
    (tmp_path / "in" / "b.txt").touch()
    prepare_data(input=[str(tmp_path / "in")], out=str(tmp_path / "both"))
    assert contents(tmp_path / "alone") == contents(tmp_path / "both")
    (tmp_path / "c.csv").write_text(f'text\n"{text.replace(chr(34), chr(34) * 2)}"\n')
    parquet.write_table(pyarrow.table({"text": [text]}), tmp_path / "d.parquet")
    for name in ("c.csv", "d.parquet"):
        prepare_data(input=[str(tmp_path / name)], out=str(tmp_path / f"{name}.out"))
        assert contents(tmp_path / f"{name}.out") == contents(tmp_path / "alone")


def test_a_run_that_moves_a_document_to_an_empty_split_resumes(run_driver: RunDriver, tmp_path: Path) -> None:
    rows = [f"document {i} " * 40 for i in range(40)]  # none has a hash below the share
    write_jsonl(tmp_path / "a.jsonl", rows)
    args = ["--input", str(tmp_path / "a.jsonl"), "--val_fraction", "0.001", "--tokenizer", "char"]
    stop_points = ["encode:15", "encode:25", "end"]  # the second in the second pass
    said, _ = run_driver(stop_points, *args, "--out", str(tmp_path / "out"))
    assert [line for line in said if "status" in line] == ["status -9", "status -9", "status 0"]
    assert sum(line.startswith("resuming after") for line in said) == 2
    assert said.index("encode:25") < said.index(next(line for line in said if "moving" in line))
    assert "moving" not in "".join(said[said.index("end") :])
    (val,), train = texts(tmp_path / "out", "val"), texts(tmp_path / "out", "train")
    assert train == [row for row in rows if row != val]
    assert len(train) == 39


def test_shakespeare_in_gpt2s_tokens_equals_nanogpts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_data(dataset="shakespeare", out=str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "train: 301,967 tokens" in said  # nanoGPT's 301,966 and 36,059, each with one end-of-text token
    assert "val: 36,060 tokens" in said


def test_documents_stay_whole_and_copies_go_to_the_same_split(tmp_path: Path) -> None:
    rows = [f"document number {i}" for i in range(60)]
    write_jsonl(tmp_path / "a.jsonl", rows + rows)
    prepare_data(input=[str(tmp_path)], out=str(tmp_path / "out"), val_fraction=0.3)
    train = [t.removesuffix("<|endoftext|>") for t in texts(tmp_path / "out", "train")]
    val = [t.removesuffix("<|endoftext|>") for t in texts(tmp_path / "out", "val")]
    assert sorted(train + val) == sorted(rows + rows)
    assert not set(train) & set(val)
    assert 20 <= len(val) <= 52  # 36 expected

    # new documents do not move the others to another split
    write_jsonl(tmp_path / "a.jsonl", ["a new one", *rows])
    prepare_data(input=[str(tmp_path / "a.jsonl")], out=str(tmp_path / "out2"), val_fraction=0.3)
    assert {t.removesuffix("<|endoftext|>") for t in texts(tmp_path / "out2", "val")} >= set(val)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "good"}\n\n{"text": \n', "a.jsonl, line 3, is not valid JSON"),
        ("a.jsonl", b'{"text": "good"}\n["text"]\n', "a.jsonl, line 2: expected a JSON object"),
        ("a.jsonl", b'{"body": "?"}\n', 'a.jsonl, line 1 has no column "text"'),
        (
            "a.jsonl",
            b'{"text": "x \\udc00"}\n',
            "a.jsonl, line 1, contains .*udc00, half of a surrogate pair",
        ),
        ("a.txt", b"fine \xff", "a.txt is not UTF-8 at byte 5"),
        ("a.txt", b"", "The train split got 0 tokens"),
        ("a.pdf", b"%PDF", "a.pdf is not a supported file"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_files(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare_data(input=[str(tmp_path / name)], out=str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == [name]


BAD_ROWS = ['{"text": 5}', "{", '["text"]', '{"body": "x"}', '{"text": "\\ud800"}']


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Arguments of a run that a bad row has stopped after it saved progress."""
    monkeypatch.setattr("gpt_core.data.prepare_data.SAVE_SECONDS", 0)
    monkeypatch.setattr("gpt_core.data.prepare_data.PIECE_CHARACTERS", 100)  # small batches
    monkeypatch.setattr("os.fsync", lambda file: None)  # slow
    lines = [json.dumps({"text": f"document number {i}"}) for i in range(400)]
    lines[300:300] = BAD_ROWS
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    args = {"input": [str(tmp_path / "a.jsonl")], "out": str(tmp_path / "out")}
    message = r"a\.jsonl, line 301: .*not a number.*--on_bad_row skip.*progress is saved in .*\.partial"
    with pytest.raises(InputError, match=message):
        prepare_data(**args)
    return args


def test_a_bad_row_loses_no_progress_and_can_be_skipped(
    tmp_path: Path, stopped: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_data(**stopped, on_bad_row="skip")
    said, errors = capsys.readouterr()
    assert "resuming after" in said
    assert "skipped 5 rows that cannot be used" in said
    assert errors.count("skipped: ") == 5
    assert "a.jsonl, line 304 has no column" in errors
    assert not list(tmp_path.glob(".*"))
    write_jsonl(tmp_path / "a.jsonl", [f"document number {i}" for i in range(400)])
    prepare_data(input=stopped["input"], out=str(tmp_path / "clean"))
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_progress_that_the_shards_do_not_hold_is_started_over(
    tmp_path: Path, stopped: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".out.partial" / "data" / "train-00000.bin").write_bytes(b"")
    with pytest.raises(InputError, match="is shorter than its saved progress; run the command again"):
        prepare_data(**stopped, on_bad_row="skip")
    capsys.readouterr()
    prepare_data(**stopped, on_bad_row="skip")
    assert "resuming" not in capsys.readouterr().out


def test_missing_and_contradictory_options_are_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        prepare_data(input=[str(tmp_path / "nowhere.txt")], out=out)
    with pytest.raises(InputError, match="has no supported file"):
        prepare_data(input=[str(tmp_path)], out=out)
    with pytest.raises(InputError, match="exactly one of --input and --dataset"):
        prepare_data(input=[], out=str(tmp_path / "data"))
    with pytest.raises(InputError, match="exactly one of --input and --dataset"):
        prepare_data(out=out)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="already exists and is not empty"):
        prepare_data(input=[str(tmp_path / "a.txt")], out=str(tmp_path))
    with pytest.raises(InputError, match="val_fraction is 1"):
        prepare_data(input=[str(tmp_path / "a.txt")], out=out, val_fraction=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_supported_files_of_a_folder_are_read_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "A.MARKDOWN").write_text("the text of a file")
    (tmp_path / "in" / "gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "in" / "b.CSV").write_text('id,text\n1,"a row, of CSV"\n2,\n')
    (tmp_path / "in" / "c.png").write_bytes(b"")
    write_jsonl(tmp_path / "in" / "d.jsonl", [f"line {i}" for i in range(20)])
    prepare_data(input=[str(tmp_path / "in")], out=str(tmp_path / "out"), val_fraction=0.3)
    said, errors = capsys.readouterr()
    assert "skipped 1 files of other types: " in errors
    assert "in/c.png\n" in errors
    assert "in/gone.txt (a broken link)\n" in errors
    assert "skipped 1 empty documents" in said
    both = texts(tmp_path / "out", "train") + texts(tmp_path / "out", "val")
    assert {"the text of a file<|endoftext|>", "a row, of CSV<|endoftext|>"} <= set(both)
    assert len(both) == 22


def test_a_document_that_is_cut_for_encoding_has_the_tokens_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        Path("gpt_core/data/tiny_shakespeare.txt").read_text(encoding="utf-8")[:60_000]
        + "知之为知之，" * 2000
    )
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    write_jsonl(tmp_path / "b.jsonl", ["short", text, *(f"short {i}" for i in range(20))])
    gpt2 = Tokenizer.from_pretrained("gpt2")
    whole = [*gpt2.encode(text), gpt2.eos_id]
    monkeypatch.setattr("gpt_core.data.text_pieces.PIECE_CHARACTERS", 1000)
    prepare_data(input=[str(tmp_path)], out=str(tmp_path / "out"))
    (tmp_path / "b.jsonl").unlink()
    documents = []
    for split in ("train", "val"):
        (shard,) = open_split(tmp_path / "out", split)
        documents += [ids.tolist() for ids in np.split(shard.tokens, shard.documents()[1:])]
    assert len(documents) == 23
    assert documents.count(whole) == 2
    assert "cuts" not in capsys.readouterr().out

    (tmp_path / "a.txt").write_text("x" * 5000)
    prepare_data(input=[str(tmp_path / "a.txt")], out=str(tmp_path / "out2"))
    assert "4 of 4 cuts" in capsys.readouterr().out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["text", "rows"])
def test_a_run_killed_at_any_point_resumes_to_the_same_bytes(
    run_driver: RunDriver, tmp_path: Path, kind: str
) -> None:
    text = (
        Path("gpt_core/data/tiny_shakespeare.txt").read_text(encoding="utf-8")[:20_000]
        + "知之为知之。\n" * 300
    )
    if kind == "text":
        args = ["--input", str(tmp_path / "a.txt"), "--tokenizer", "char"]
        (tmp_path / "a.txt").write_text("\ufeff" + text, encoding="utf-8")
    else:
        args = ["--input", str(tmp_path / "in"), "--val_fraction", "0.3"]
        (tmp_path / "in").mkdir()
        write_jsonl(tmp_path / "in" / "a.jsonl", [*text[:5_000].split("\n\n"), "", text[5_000:15_000]])
        with gzip.open(tmp_path / "in" / "b.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": part}) + "\n\n" for part in text[15_000:16_000].split("\n"))
        (tmp_path / "in" / "c.txt").write_text("\ufeff" + text[16_000:])
        (tmp_path / "in" / "d.csv").write_text("id,text\n" + "".join(f"{i},row {i}\n" for i in range(30)))
        rows = {"text": [None, *(f"Parquet {i}" for i in range(60))]}
        parquet.write_table(pyarrow.table(rows), tmp_path / "in" / "e.parquet", row_group_size=25)
    run_driver(["end"], *args, "--out", str(tmp_path / "whole"))
    stop_points = (
        [f"encode:{n}" for n in (1, 4, 6, 3)] + [f"disk:{n}" for n in (1, 3, 5, 6, 8, 13, 16)] + ["rename"]
    )
    said, _ = run_driver([*stop_points, "end"], *args, "--out", str(tmp_path / "out"))
    assert said.count("status -9") == len(stop_points)
    assert any(line.startswith("resuming after") for line in said)
    assert said[-1] == "status 0"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_and_ctrl_c_give_one_line_and_lose_no_progress(
    run_driver: RunDriver, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(Path("gpt_core/data/tiny_shakespeare.txt").read_bytes()[:20_000])
    args = ["--input", str(tmp_path / "a.txt")]
    run_driver(["end"], *args, "--out", str(tmp_path / "whole"))
    stop_points = ["full:5000", "interrupt:1", "interrupt:10", "full:3000", "end"]
    said, errors = run_driver(stop_points, *args, "--out", str(tmp_path / "out"))
    ends = [line.removeprefix("status ") for line in said if "status" in line]
    assert ends == ["1", "-2", "-2", "1", "0"]
    full, stopped, stopped_later, full_later = errors.splitlines()
    assert "File too large; free disk space, then run the same command:" in full  # nothing was saved yet
    assert stopped.endswith(": stopped")
    assert "stopped; run the same command to resume" in stopped_later
    assert "File too large; free disk space, then run the same command to resume" in full_later
    assert not list(tmp_path.glob(".*"))
    assert any(line.startswith("resuming after") for line in said)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_progress_from_other_inputs_is_discarded(
    run_driver: RunDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_bytes(Path("gpt_core/data/tiny_shakespeare.txt").read_bytes()[:20_000])
    args = ["--input", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]
    said, _ = run_driver(["encode:15"], *args)
    assert said[-1] == "status -9"
    (tmp_path / "a.txt").write_text("other text " * 500)
    prepare_data(input=[str(tmp_path / "a.txt")], out=str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "starting over" in said
    assert ".out.partial" in said
    (train,), (val,) = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "val")
    assert train.removesuffix("<|endoftext|>") + val.removesuffix("<|endoftext|>") == "other text " * 500


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 100)
    (tmp_path / ".out.partial").mkdir()
    with (
        filelock.FileLock(tmp_path / ".out.partial" / "lock"),
        pytest.raises(InputError, match="Another process"),
    ):
        prepare_data(input=[str(tmp_path / "a.txt")], out=str(tmp_path / "out"))


def test_a_data_set_of_the_library_datasets_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    rows = [f"row number {i}" for i in range(150)]
    for part in range(2):
        half = rows[part * 75 : part * 75 + 75]
        parquet.write_table(pyarrow.table({"body": half}), tmp_path / "set" / f"{part}.parquet")
    options = {"dataset": str(tmp_path / "set"), "column": "body", "val_fraction": 0.3}
    prepare_data(out=str(tmp_path / "out"), **options)
    both = texts(tmp_path / "out", "train") + texts(tmp_path / "out", "val")
    assert sorted(t.removesuffix("<|endoftext|>") for t in both) == sorted(rows)

    source = HubSet(str(tmp_path / "set"), column="body")  # as a resume does
    pieces = list(source.read())
    positions = [piece.position for piece in pieces if piece.position]
    assert len(positions) == 2
    for position in positions:
        again = HubSet(str(tmp_path / "set"), column="body")
        assert again.identity == source.identity
        texts_after = [p.text for p in again.read(json.loads(json.dumps(position)))]
        assert texts_after == rows[position["row"] :]

    with pytest.raises(InputError, match="has no column \"text\"; it has 'body'"):
        HubSet(str(tmp_path / "set"))
    with pytest.raises(InputError, match="cannot be read: Bad split: dev"):
        HubSet(str(tmp_path / "set"), split="dev", column="body")
    with pytest.raises(InputError, match=r"data set .*nowhere cannot be read"):
        HubSet(str(tmp_path / "nowhere"))
    assert [p.name for p in tmp_path.glob(".*")] == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    shakespeare = Path("gpt_core/data/tiny_shakespeare.txt").read_text(encoding="utf-8")
    program = (
        "import sys; from gpt_core.data.prepare_data import prepare_data\n"
        "prepare_data(input=[sys.argv[1]], out=sys.argv[2], tokenizer='char', val_fraction=0.5)\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    peaks = []
    for times in (2, 30):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "a.txt").write_text(shakespeare * times)
        rows = [shakespeare[i : i + 5000] for i in range(0, len(shakespeare), 5000)]
        write_jsonl(tmp_path / "in" / "b.jsonl", rows * times)
        run = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / str(times))],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
        )
        peaks.append(int(run.stdout.splitlines()[-1]) / 1000)
    assert peaks[1] - peaks[0] < 30, peaks  # MB; the text grew by 62 MB
    assert peaks[1] < 500, peaks
