"""Choice of dtype, threads and compilation: by capability, taken from the record of a run, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.own_process import in_own_process
from gpt_core.common.errors import InputError
from gpt_core.hardware.capability import capability
from gpt_core.hardware.device import Numerics, available_cores, peak_memory, pick_device
from gpt_core.training.config import TrainConfig
from gpt_core.training.numerics import choose_numerics

CPU = torch.device("cpu")


def choose(recorded: dict[str, Any] | None = None, n_local: int = 1, **keys: Any) -> Numerics:
    return choose_numerics(TrainConfig(**keys), CPU, n_local, recorded)


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_numerics_that_are_not_set_follow_from_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    chosen = choose()
    assert chosen.dtype == capability("cpu").dtype
    assert chosen.threads == available_cores()
    assert not chosen.compile  # on a CPU only when asked for


def test_a_resumed_run_keeps_its_recorded_numerics() -> None:
    before = Numerics("cpu", "bfloat16", 1, compile=True)
    assert choose(before.as_dict()) == before
    chosen = choose(before.as_dict(), dtype="float32", threads=3, compile="off")
    assert chosen == Numerics("cpu", "float32", 3)
    more = Numerics("cpu", "float32", 10_000).as_dict()  # recorded on a larger machine, or with fewer ranks
    assert choose(more).threads < 10_000
    assert choose(Numerics("cuda", "float16", 1, True).as_dict()).dtype != "float16"  # another kind of device


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert choose(n_local=10_000).threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose().threads == 1


def test_an_unavailable_dtype_or_device_is_refused() -> None:
    with pytest.raises(
        InputError, match="dtype is float16, which trains on cuda only, not on cpu; use bfloat16"
    ):
        choose(dtype="float16")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device is cuda, which torch does not find"):
            pick_device("cuda")


def test_autocast_computes_in_the_given_dtype() -> None:
    a = torch.ones(2, 2)
    for dtype in ("float32", "bfloat16"):
        with Numerics("cpu", dtype).autocast():
            assert (a @ a).dtype == getattr(torch, dtype)


def test_hyper_threads_and_a_quota_do_not_count_as_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    assert available_cores(tmp_path) == 4  # nothing is known about them
    for cpu in range(8):
        topology = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert available_cores(tmp_path) == 3  # 1 and 5 are threads of one core
    limit = tmp_path / "fs/cgroup/cpu.max"
    limit.parent.mkdir(parents=True)
    for content, n in (
        ("max 100000\n", 3),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("900000 100000\n", 3),
    ):
        limit.write_text(content)
        assert available_cores(tmp_path) == n


def test_the_peak_memory_is_that_of_this_process() -> None:
    """A process that a larger one has started does not begin with that one's peak."""
    large = torch.ones(2**28)  # 1 GiB
    peak = in_own_process(peak_memory, CPU)
    assert 2**26 < peak < large.nbytes < peak_memory(CPU)
