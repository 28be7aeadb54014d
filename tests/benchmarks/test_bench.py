"""The benchmarks: what they run, print and refuse. Speed is not tested."""

import json
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import attention as bench_attention
from benchmarks import learn as bench_learn
from benchmarks import train as bench_train
from benchmarks.nanogpt_peer import check_peer, rates, train_peer, write_bins
from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.data.shards import ShardWriter, open_split
from gpt_core.hardware.device import peak_memory
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests import commands

TEXT = "To know what you know, and to know what you do not: that is knowledge.\n" * 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "a.txt").write_text(TEXT)
    prepare_data(input=[str(folder / "a.txt")], tokenizer="char", out=str(folder / "data"))
    return str(folder / "data")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measure in this process: importing torch in a new one takes seconds."""
    threads = torch.get_num_threads()
    for module in (bench_attention, bench_learn, bench_train):
        monkeypatch.setattr(module, "in_own_process", lambda function, *arguments: function(*arguments))
    yield
    torch.set_num_threads(threads)


def last_line(printed: str) -> dict[str, Any]:
    report = json.loads(printed.splitlines()[-1])
    assert set(report) == {"command", "machine", "versions", "results", "ratios"}
    return report


def test_train_times_adamw_and_muon(
    data: str, in_this_process: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 4, "micro_batch_size": 2}
    bench_train.bench_train(data=data, **shape, steps=4, skip=1, rounds=2, device="cpu", compile="off")
    report = last_line(capsys.readouterr().out)
    ours, muon = report["results"]
    assert (ours["system"], muon["system"]) == ("ours", "ours, Muon")
    for row in (ours, muon):
        assert min(row["rounds"]) <= row["tokens_per_s"] <= max(row["rounds"])
        assert len(row["rounds"]) == 2
        # One thread is on a core for at most the wall time; the log rounds CPU seconds to milliseconds.
        assert 0 <= row["cpu_s_per_mtok"] <= 1.1e6 / min(row["rounds"]) + 0.002 * 1e6 / 32
        assert 0 < row["mfu"] <= 1
        assert row["memory_gib"] == pytest.approx(peak_memory(torch.device("cpu")) / 2**30, rel=0.1)
        assert (row["threads"], row["compile"]) == (1, False)
    ratio = muon["tokens_per_s"] / ours["tokens_per_s"]
    assert report["ratios"] == {"ours, Muon/ours tokens/s": pytest.approx(ratio, rel=1e-3)}


def test_a_measurement_runs_in_a_separate_process() -> None:
    assert bench_train.in_own_process(os.getpid) != os.getpid()


def test_errors_of_the_command_are_one_line(data: str) -> None:
    command = ["scripts/bench.py", "learn", "--data", data, "--systems", "nanoGPT"]
    done = commands.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "bench.py: nanoGPT runs from a checkout of nanoGPT; name it with --peer.\n"


def test_each_step_of_the_ladder_includes_the_previous_ones() -> None:
    names = ["fp32", "TF32", "bf16", "compile", "flash attention", "padded vocabulary"]
    on_gpu, on_cpu = (
        bench_train.ladder_settings(torch.device("cuda")),
        bench_train.ladder_settings(torch.device("cpu")),
    )
    assert list(on_gpu) == [f"ladder: {name}" for name in names]
    assert list(on_cpu) == [f"ladder: {name}" for name in names if name != "TF32"]
    first, *_, last = on_gpu.values()
    assert first == {
        "dtype": "float32", "compile": "off", "tf32": False, "kernel": "math", "vocab_multiple": 1
    }  # fmt: skip
    assert last == {"dtype": "bfloat16", "compile": "on", "tf32": True, "kernel": "any", "vocab_multiple": 64}


def test_rates_are_medians_after_the_first_steps() -> None:
    clocks = [(0.0, 0.0), (9.0, 5.0), (10.0, 7.0), (12.0, 9.0), (13.0, 11.0)]
    assert rates(clocks, tokens=1000, skip=1) == {"tokens_per_s": 1000.0, "cpu_s_per_mtok": 2000.0}


def test_bad_arguments_are_named(data: str, tmp_path: Path) -> None:
    for steps, skip in ((4, 3), (4, -1)):
        with pytest.raises(InputError, match=f"skip is {skip}; expected 0 to steps - 2, which is 2"):
            bench_train.bench_train(data=data, steps=steps, skip=skip)
    with pytest.raises(InputError, match="rounds is 0"):
        bench_train.bench_train(data=data, rounds=0)
    with pytest.raises(InputError, match=r"has no train\.py; --peer expects a checkout of nanoGPT"):
        bench_train.bench_train(data=data, peer=str(tmp_path))
    with pytest.raises(InputError, match=r"has no train\.py"):
        bench_learn.bench_learn(data=data, peer=str(tmp_path))
    with pytest.raises(
        InputError, match="nanoGPT tuned runs from a checkout of nanoGPT; name it with --peer"
    ):
        bench_learn.bench_learn(data=data, systems=("nanoGPT tuned", "gpt2"))
    with pytest.raises(InputError, match="--seeds is empty"):
        bench_learn.bench_learn(data=data, seeds=())
    with pytest.raises(InputError, match=r"lengths is \(0,\)"):
        bench_attention.bench_attention(lengths=(0,))
    for name in ("train.py", "model.py"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"has no configurator\.py"):
        check_peer(tmp_path)


STUB_TRAIN = """
import sys
import torch
out_dir = None
for arg in sys.argv[1:]:
    if arg.startswith("--"):
        key, value = arg[2:].split("=", 1)
        globals()[key] = value
    else:
        exec(open(arg).read())
big = bytearray(30_000_000)
for step in range(3):
    torch.nn.utils.clip_grad_norm_([], 1.0)
"""
STUB_TORCH = """
class cuda:
    is_available = staticmethod(lambda: False)
class nn:
    class utils:
        clip_grad_norm_ = staticmethod(lambda *args: 0.0)
def save(content, path): pass
def manual_seed(seed): pass
def get_num_threads(): return 1
"""


def test_a_peer_is_timed_and_its_memory_is_its_own(tmp_path: Path) -> None:
    """A program of nanoGPT's form, without torch: it is far smaller than this process, which starts it."""
    for name, text in (("train.py", STUB_TRAIN), ("torch.py", STUB_TORCH)):
        (tmp_path / name).write_text(text)
    watched = train_peer(tmp_path, tmp_path / "out", {"max_iters": 3})
    assert len(watched["steps"]) == 3
    assert 30e6 < watched["memory"] < 80e6 < peak_memory(torch.device("cpu"))


def test_nanogpt_gets_the_same_ids(data: str, tmp_path: Path) -> None:
    write_bins(data, tmp_path / "char")
    for split in ("train", "val"):
        theirs = np.fromfile(tmp_path / "char" / f"{split}.bin", dtype=np.uint16)
        assert theirs.tolist() == [i for s in open_split(data, split) for i in s.tokens.tolist()]
    vocab_size = Tokenizer.from_pretrained(data).vocab_size
    assert pickle.loads((tmp_path / "char" / "meta.pkl").read_bytes()) == {"vocab_size": vocab_size}

    gpt2 = Tokenizer.from_pretrained("gpt2")
    (tmp_path / "shards").mkdir()
    for split in ("train", "val"):
        with ShardWriter(tmp_path / "shards", split, gpt2.vocab_size, gpt2.fingerprint) as writer:
            writer.add(gpt2.encode(TEXT))
    gpt2.save(tmp_path / "shards")
    write_bins(tmp_path / "shards", tmp_path / "gpt2")
    assert not (tmp_path / "gpt2" / "meta.pkl").exists()  # without it nanoGPT uses GPT-2's padded vocabulary


def test_attention_lists_unsupported_kernels(
    in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_attention.bench_attention(lengths=(32,), head_dims=(16,), n_head=2, dtype="float32", device="cpu")
    report = last_line(capsys.readouterr().out)
    flash, efficient, math_ = report["results"]
    assert [row["kernel"] for row in (flash, efficient, math_)] == ["flash", "efficient", "math"]
    assert efficient["note"] == "not supported on this device for float32"
    assert "forward_ms" not in efficient
    for row in (flash, math_):
        assert 0 < row["forward_ms"] < row["forward_backward_ms"] * 5
        assert row["memory_mib"] >= 0
    ratio = flash["forward_backward_ms"] / math_["forward_backward_ms"]
    assert report["ratios"] == {"flash/math ms T=32 head_dim=16": pytest.approx(ratio, rel=1e-3)}


@pytest.fixture
def presets(tmp_path: Path) -> str:
    """Our two presets with a tiny model."""
    folder = tmp_path / "presets"
    folder.mkdir()
    shape = "n_layer: 1\nn_head: 2\nn_embd: 16\nblock_size: 8\nbatch_size: 4\nvocab_multiple: 1\n"
    (folder / "shakespeare_char_cpu.yaml").write_text(shape)
    (folder / "shakespeare_char_cpu_gpt2.yaml").write_text(shape + "graph: gpt2\n")
    return str(folder)


def test_learn_resumes_where_it_was_stopped(
    data: str, presets: str, tmp_path: Path, in_this_process: None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    systems: tuple[bench_learn.SystemName, ...] = ("gpt2", "qwen3", "gpt2 zero rotary")
    arguments: dict[str, Any] = {
        "data": data, "presets": presets, "out": str(tmp_path / "out"), "seeds": (1, 2), "steps": 4,
        "eval_interval": 2, "target": 0.5,
    }  # fmt: skip
    bench_learn.bench_learn(**arguments, systems=systems[:1])
    capsys.readouterr()
    trained = []

    def learn(settings: dict[str, Any]) -> bench_learn.Curve:
        trained.append((settings["graph"], settings.get("position"), settings["seed"]))
        return real(settings)

    real = bench_learn.learn
    monkeypatch.setattr(bench_learn, "learn", learn)
    bench_learn.bench_learn(**arguments, systems=systems)
    assert trained == [
        (None, None, 1), ("gpt2", "rope", 1), (None, None, 2), ("gpt2", "rope", 2)
    ]  # fmt: skip
    report = last_line(capsys.readouterr().out)
    vocab_size = Tokenizer.from_pretrained(data).vocab_size
    for row in report["results"]:
        assert row["lowest"] <= row["loss"] <= row["highest"]
        assert abs(row["loss"] - math.log(vocab_size)) < 1
        assert [point[0] for point in row["curve"]] == [2, 4]
        assert 0 < row["curve"][0][1] < row["cpu_s"] == pytest.approx(row["curve"][1][1], abs=1e-5)
        assert row["cpu_s_to_target"] is None
    assert len({row["loss"] for row in report["results"]}) == 3
    assert report["ratios"] == {}

    trained.clear()
    bench_learn.bench_learn(**(arguments | {"seeds": (1,), "eval_interval": 4}), systems=("qwen3",))
    assert trained == [(None, None, 1)]  # trained again: the saved result has other settings


def test_cpu_seconds_are_interpolated_between_evaluations() -> None:
    curve: bench_learn.Curve = [(250, 10.0, 2.0), (500, 20.0, 1.8), (750, 30.0, 1.6), (1000, 40.0, 1.7)]
    assert bench_learn.cpu_seconds_to(1.7, curve) == pytest.approx(25.0)
    assert bench_learn.cpu_seconds_to(1.8, curve) == pytest.approx(20.0)
    assert bench_learn.cpu_seconds_to(1.5, curve) is None


def test_a_peer_that_misses_the_target_bounds_the_ratio() -> None:
    reached: bench_learn.Curve = [(1, 5.0, 2.0), (2, 10.0, 1.5)]
    missed: bench_learn.Curve = [(1, 20.0, 2.0), (2, 40.0, 1.9)]
    ours = bench_learn.summarise("gpt2", [reached, reached], 1.75)
    tuned = bench_learn.summarise("nanoGPT tuned", [reached, missed], 1.75)
    slow = bench_learn.summarise("nanoGPT", [reached], 1.75)
    assert (ours["cpu_s_to_target"], tuned["cpu_s_to_target"], tuned["loss"]) == (7.5, None, 1.7)
    assert bench_learn.ratios({"gpt2": ours, "nanoGPT tuned": tuned, "nanoGPT": slow}, 1.75) == {
        "gpt2/nanoGPT loss": 1.0, "gpt2/nanoGPT CPU-s to 1.75": 1.0,
        "gpt2/nanoGPT tuned loss": pytest.approx(1.5 / 1.7), "gpt2/nanoGPT tuned CPU-s to 1.75, at most": 0.3,
    }  # fmt: skip
