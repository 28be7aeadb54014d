"""The data order: every window once per epoch for any number of ranks, and a resume that needs two integers."""

import os
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from gpt_core.data import batches as loader
from gpt_core.data.batches import IGNORED, Batches, Windows
from gpt_core.data.permutation import permute
from gpt_core.data.shards import HEADER, Shard, ShardWriter, open_split


def shards(*lengths: int) -> list[Shard]:
    """Shards in memory; each token's id is its position in all shards together."""
    tokens = np.split(np.arange(sum(lengths), dtype=np.uint32), np.cumsum(lengths)[:-1])
    return [Shard(Path(f"shard-{i}"), t, None) for i, t in enumerate(tokens)]


@dataclass(frozen=True)
class Documents(Shard):
    """A shard in memory with the offsets of its documents."""

    offsets: tuple[int, ...] = (0,)

    def documents(self) -> np.ndarray:
        return np.array(self.offsets, dtype=np.int64)


def with_documents(*documents: list[int]) -> list[Shard]:
    """One shard per list of document lengths; ids as in `shards`."""
    plain = shards(*(sum(lengths) for lengths in documents))
    header = np.zeros((), HEADER)
    return [
        Documents(s.path, s.tokens, header, tuple(np.cumsum([0, *lengths[:-1]]).tolist()) if lengths else ())
        for s, lengths in zip(plain, documents, strict=True)
    ]


def seen(step: list[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    """The window of each row of a step, identified by its first id."""
    return [int(ids[0]) for micro_batch in step for ids in micro_batch[0]]


def n_threads() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5000), st.integers(0, 2**63), st.integers(0, 1000))
def test_the_order_of_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(n), n, seed, epoch)) == list(range(n))


def test_orders_of_different_seeds_and_epochs_are_uncorrelated() -> None:
    n = 1000
    orders = [permute(np.arange(n), n, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    orders.append(np.arange(n))
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).sum() < 10  # 1 expected of two random permutations
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.15  # random ones have a standard deviation of 0.03
    # neighbours in the text are not neighbours in the epoch
    assert np.abs(np.diff(orders[0])).mean() == pytest.approx(n / 3, rel=0.15)


def test_the_order_is_fixed_across_versions() -> None:
    assert permute(np.arange(12), 12, 1337, 0).tolist() == [2, 5, 6, 8, 9, 7, 11, 1, 4, 10, 0, 3]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(1, 9))
def test_every_token_but_a_shards_first_is_a_target_once(lengths: list[int], block_size: int) -> None:
    parts = shards(*lengths)
    if max(lengths) < 2:
        with pytest.raises(InputError, match="nothing to predict"):
            Windows(parts, block_size)
        return
    windows = Windows(parts, block_size)
    targets = []
    for ids, after in windows.in_order(batch_size=3):
        assert ids.shape == after.shape == (len(ids), block_size)
        real = after != IGNORED
        assert (after[real] == ids[real] + 1).all()  # ids are consecutive inside a shard
        targets += after[real].tolist()
    assert targets == [t for s in parts for t in s.tokens[1:].tolist()]
    assert windows.n_targets == len(targets)


lengths_of_documents = st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=1, max_size=4)


@settings(deadline=None, max_examples=50)
@given(lengths_of_documents, st.integers(1, 5), st.integers(1, 4))
def test_aligned_windows_stay_in_their_document(
    documents: list[list[int]], block_size: int, batch_size: int
) -> None:
    parts = with_documents(*documents)
    if all(length < 2 for lengths in documents for length in lengths):
        with pytest.raises(InputError, match="no document of two tokens"):
            Windows(parts, block_size, align_documents=True)
        return
    windows = Windows(parts, block_size, align_documents=True)
    rows = [row for batch in windows.in_order(batch_size) for row in zip(*batch, strict=True)]
    begin, expected = 0, []
    for length in (length for lengths in documents for length in lengths):
        for start in range(begin, begin + length - 1, block_size):
            stop = min(start + block_size, begin + length - 1)
            expected.append((list(range(start, stop)), list(range(start + 1, stop + 1))))
        begin += length
    real = [(ids[after != IGNORED].tolist(), after[after != IGNORED].tolist()) for ids, after in rows]
    assert real == expected
    assert windows.n_targets == sum(len(after) for _, after in expected)
    assert [windows[i].tolist() for i in range(len(windows))] == [
        [*ids, after[-1]] for ids, after in expected
    ]


def test_aligned_windows_of_files(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 100, "x", shard_tokens=8) as writer:
        for ids in ([1, 2, 3, 4, 5], [6], [], [7, 8, 9], [10, 11], [12, 13, 14, 15]):
            writer.add(ids)
    windows = Windows(open_split(tmp_path, "train"), 3, align_documents=True)
    assert [windows[i].tolist() for i in range(len(windows))] == [
        [1, 2, 3, 4], [4, 5], [7, 8, 9], [10, 11], [12, 13, 14, 15]
    ]  # fmt: skip
    np.arange(9, dtype="<u2").tofile(tmp_path / "val.bin")
    with pytest.raises(InputError, match=r"val\.bin does not say where its documents begin"):
        Windows(open_split(tmp_path, "val"), 3, align_documents=True)


def test_reading_releases_mapped_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that were read stay resident until the file is unmapped. Unmapping does not change the ids."""

    def resident() -> int:
        (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssFile")]
        return int(line.split()[1]) // 1024

    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path, "train", 2**16, "x") as writer:
        writer.add(rng.integers(0, 2**16, 2**25))
    peaks, sums = [], []
    for every in (2**62, 2**6):
        monkeypatch.setattr(loader, "ROWS_PER_RELEASE", every)
        windows = Windows(open_split(tmp_path, "train"), 4096)
        before, total, peak = resident(), 0, 0
        for _, targets in windows.in_order(64):
            total += int(targets[targets != IGNORED].sum())
            peak = max(peak, resident() - before)
        peaks.append(peak)
        sums.append(total)
        del windows
    assert sums[0] == sums[1]
    assert peaks[0] >= 60  # MB; the file has 64
    assert peaks[1] < 20


@pytest.mark.parametrize("align", [False, True])
@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(2, 30), min_size=8, max_size=30),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 100),
    st.integers(0, 40),
)
def test_an_epoch_shows_each_window_once_for_any_number_of_ranks(
    align: bool, lengths: list[int], micro_batch_size: int, accumulation: int, seed: int, ramp_steps: int
) -> None:
    windows = Windows(with_documents(lengths), block_size=3, align_documents=align)
    unit = micro_batch_size * 6  # divisible for 1, 2 and 3 ranks
    n_windows, batch_size = len(windows), unit * accumulation
    n_steps = 2 * -(-n_windows // unit)
    streams = {}
    for world_size in (1, 2, 3):
        ranks = [
            Batches(
                windows, batch_size, micro_batch_size * 6 // world_size, seed, r, world_size,
                batch_size_start=unit if ramp_steps else None, ramp_steps=ramp_steps,
            )
            for r in range(world_size)
        ]  # fmt: skip
        steps = [[seen(next(rank)) for rank in ranks] for _ in range(n_steps)]
        streams[world_size] = [window for step in steps for rank in step for window in rank]
        for rank in ranks:
            rank.close()
    assert streams[1] == streams[2] == streams[3]
    epochs = [
        streams[1][epoch * n_windows : (epoch + 1) * n_windows]
        for epoch in range(len(streams[1]) // n_windows)
    ]
    firsts = [int(windows[i][0]) for i in range(n_windows)]
    for epoch in epochs:
        assert sorted(epoch) == firsts
    assert len(epochs) >= 2


@pytest.mark.parametrize("align", [False, True])
@settings(deadline=None, max_examples=20)
@given(st.integers(1, 30), st.sampled_from([(6, 1), (4, 2), (12, 3), (2, 1)]))
def test_a_resume_continues_at_its_position_with_any_batch_size_and_ranks(
    align: bool, done: int, then: tuple[int, int]
) -> None:
    windows = Windows(with_documents([50, 2, 19, 29]), block_size=3, align_documents=align)
    whole = Batches(windows, 6, 2, seed=5)
    order = [window for _ in range(done + 20) for window in seen(next(whole))]

    first = Batches(windows, 6, 3, seed=5)
    for _ in range(done):
        next(first)
    batch_size, world_size = then
    ranks = [Batches(windows, batch_size, None, 5, r, world_size) for r in range(world_size)]
    for rank in ranks:
        next(rank)  # the step that the thread then prefetches must be discarded
        rank.load_state_dict(first.state_dict())
    rest = [window for _ in range(10) for rank in ranks for window in seen(next(rank))]
    assert rest == order[6 * done :][: len(rest)]
    for stream in (whole, first, *ranks):
        stream.close()


def test_the_batch_grows_linearly_also_after_a_resume() -> None:
    windows = Windows(shards(1000), block_size=3)

    def stream(rank: int = 0, world_size: int = 1) -> Batches:
        return Batches(windows, 24, 2, 1, rank, world_size, batch_size_start=4, ramp_steps=5)

    batches = stream()
    whole = [next(batches) for _ in range(7)]
    assert [len(step) for step in whole] == [2, 4, 6, 8, 10, 12, 12]  # micro-batches, all of one shape
    assert {ids.shape for step in whole for ids, _ in step} == {(2, 3)}
    assert batches.state_dict().items() >= {"position": 108, "step": 7, "seed": 1, "n_windows": 333}.items()

    first = stream()
    for _ in range(2):
        next(first)
    ranks = [stream(rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(first.state_dict())
    rest = [[window for rank in ranks for window in seen(next(rank))] for _ in range(5)]
    assert rest == [seen(step) for step in whole[2:]]
    for each in (batches, first, *ranks):
        each.close()


def test_without_micro_batch_size_a_micro_batch_is_the_whole_share_of_a_rank() -> None:
    batches = Batches(Windows(shards(100), 3), 12, None, 1, 0, 2, batch_size_start=2, ramp_steps=3)
    assert [[len(ids) for ids, _ in next(batches)] for _ in range(4)] == [[1], [2], [4], [6]]
    batches.close()


def test_describe_names_the_windows_of_a_step() -> None:
    batches = Batches(Windows(shards(10, 91), 3), 20, 5, seed=5, batch_size_start=5, ramp_steps=1)
    first = seen(next(batches))[0]
    path, token = ("shard-0", first) if first < 10 else ("shard-1", first - 10)
    named = f"windows 0 to 4 of epoch 0 in the order of seed 5, the first of them at token {token} of {path}"
    assert batches.describe(1) == named
    next(batches), next(batches)
    assert batches.describe(1) == named
    assert batches.describe(2).startswith("windows 5 to 24 of epoch 0 in the order")
    assert batches.describe(3).startswith("windows 25 of epoch 0 to 11 of epoch 1 in the order")
    batches.close()


def test_the_next_step_is_prefetched_and_counts_only_when_taken() -> None:
    made = threading.Event()

    class Watched(Windows):
        n_calls = 0

        def rows(self, indices: object) -> tuple[torch.Tensor, torch.Tensor]:
            self.n_calls += 1
            if self.n_calls == 2:
                made.set()
            return super().rows(indices)  # type: ignore[arg-type]

    before = n_threads()
    batches = Batches(Watched(shards(100), 3), 4, 4, seed=1)
    assert n_threads() == before  # no thread before the first step
    next(batches)
    assert made.wait(10)
    assert batches.state_dict()["position"] == 4
    batches.close()
    assert n_threads() == before
    assert batches.state_dict()["position"] == 4
    again = Batches(Windows(shards(100), 3), 4, 4, seed=1)
    next(again)
    assert seen(next(batches)) == seen(next(again))  # continues after close
    batches.close()
    again.close()


def test_a_failure_in_the_thread_is_raised_by_the_step_that_needed_it() -> None:
    class Failing(Windows):
        n_calls, failing = 0, True

        def rows(self, indices: object) -> tuple[torch.Tensor, torch.Tensor]:
            self.n_calls += 1
            if self.failing and self.n_calls >= 3:
                raise OSError("the disk is gone")
            return super().rows(indices)  # type: ignore[arg-type]

    windows = Failing(shards(100), 3)
    batches = Batches(windows, 4, 4, seed=1)
    next(batches)
    second = next(batches)
    state = batches.state_dict()
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)
        assert batches.state_dict() == state
    windows.failing = False
    third = next(batches)
    batches.close()
    same = Batches(Windows(shards(100), 3), 4, 4, seed=1)
    next(same)
    assert [seen(second), seen(third)] == [seen(next(same)), seen(next(same))]
    same.close()


def test_a_forked_child_continues_with_a_new_thread() -> None:
    batches, same = (Batches(Windows(shards(100), 3), 4, 4, seed=1) for _ in range(2))
    next(batches), next(same)
    expected = seen(next(same))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork with running threads
        child = os.fork()
    if child == 0:
        right = False
        try:
            right = seen(next(batches)) == expected
            batches.close()
        finally:
            os._exit(0 if right else 1)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline, os.kill(child, 9)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    assert seen(next(batches)) == expected
    batches.close()
    same.close()


def test_a_position_in_other_data_is_refused() -> None:
    state = Batches(Windows(shards(100), 3), 6, 2, seed=5).state_dict()
    with pytest.raises(InputError, match="n_windows = 33, but this run has 30"):
        Batches(Windows(shards(91), 3), 6, 2, seed=5).load_state_dict(state)
    with pytest.raises(InputError, match="seed = 5, but this run has 6"):
        Batches(Windows(shards(100), 3), 6, 2, seed=6).load_state_dict(state)


@pytest.mark.parametrize(
    ("sizes", "keys", "message"),
    [
        ((12, 5, 1), {}, r"batch_size is 12; .* multiple of micro_batch_size \(5\) times .* ranks \(1\)"),
        ((12, 4, 2), {}, r"batch_size is 12; .* multiple of micro_batch_size \(4\) times .* ranks \(2\)"),
        ((13, None, 2), {}, r"batch_size is 13; it must be a multiple of the number of ranks \(2\)"),
        ((0, 1, 1), {}, "batch_size is 0"),
        ((-4, None, 2), {}, "batch_size is -4"),
        ((4, 0, 1), {}, r"batch_size is 4; .* micro_batch_size \(0\)"),
        ((12, 4, 1), {"batch_size_start": 6, "ramp_steps": 9}, r"batch_size_start is 6; .*size \(4\)"),
        ((12, 4, 1), {"batch_size_start": 16, "ramp_steps": 9}, "batch_size_start is 16; .* at most batch_size, 12"),
        ((12, 4, 1), {"batch_size_start": 8}, "batch_size_start is 8, .* grows over 0 steps; expected at least 1"),
    ],
)  # fmt: skip
def test_batch_sizes_that_do_not_divide_are_refused(
    sizes: tuple[int, int | None, int], keys: dict[str, int], message: str
) -> None:
    batch_size, micro_batch_size, world_size = sizes
    with pytest.raises(InputError, match=message):
        Batches(Windows(shards(100), 3), batch_size, micro_batch_size, 1, 0, world_size, **keys)


def test_a_position_in_another_text_of_the_same_length_is_refused(tmp_path: Path) -> None:
    batches = []
    for name, ids in (("one", [1, 2, 3, 4, 5]), ("same", [1, 2, 3, 4, 5]), ("other", [1, 2, 3, 4, 6])):
        (tmp_path / name).mkdir()
        with ShardWriter(tmp_path / name, "train", 100, "x") as writer:
            writer.add(ids)
        batches.append(Batches(Windows(open_split(tmp_path / name, "train"), 2), 2, 2, seed=5))
    one, same, other = batches
    same.load_state_dict(one.state_dict())
    with pytest.raises(InputError, match=r"data_checksum = .* but this run has"):
        other.load_state_dict(one.state_dict())


def test_a_position_in_other_data_of_nanogpt_is_refused(tmp_path: Path) -> None:
    """Its files have no header, so their ids are compared."""
    batches = []
    for name, last in (("one", 5), ("same", 5), ("other", 6)):
        (tmp_path / name).mkdir()
        np.array([1, 2, 3, 4, last], dtype="<u2").tofile(tmp_path / name / "train.bin")
        batches.append(Batches(Windows(open_split(tmp_path / name, "train"), 2), 2, 2, seed=5))
    one, same, other = batches
    same.load_state_dict(one.state_dict())
    with pytest.raises(InputError, match=r"data_checksum = .* but this run has"):
        other.load_state_dict(one.state_dict())
