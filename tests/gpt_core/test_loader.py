"""The data order: every window once per epoch for any number of ranks, and a resume that needs one integer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.errors import InputError
from gpt_core.loader import IGNORED, Batches, Windows, permute
from gpt_core.shards import Shard


def shards(*lengths: int) -> list[Shard]:
    """Shards in memory whose ids are all different: the place in the whole run."""
    tokens = np.split(np.arange(sum(lengths), dtype=np.uint32), np.cumsum(lengths)[:-1])
    return [Shard(Path(f"shard-{i}"), t, None) for i, t in enumerate(tokens)]


def seen(step: list[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    """Which window each row of a step is, told by its first id."""
    return [int(ids[0]) for micro_batch in step for ids in micro_batch[0]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5000), st.integers(0, 2**63), st.integers(0, 1000))
def test_the_order_of_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(n), n, seed, epoch)) == list(range(n))


def test_orders_of_seeds_and_epochs_have_nothing_to_do_with_each_other() -> None:
    n = 1000
    orders = [permute(np.arange(n), n, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    orders.append(np.arange(n))
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).sum() < 10  # 1 expected of two random permutations
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.15  # 0.03 is the spread of random ones
    # neighbours in the text are not neighbours in the epoch
    assert np.abs(np.diff(orders[0])).mean() == pytest.approx(n / 3, rel=0.15)


def test_the_order_never_changes_under_a_running_experiment() -> None:
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


@settings(deadline=None, max_examples=30)
@given(st.integers(7, 200), st.integers(1, 4), st.integers(1, 3), st.integers(0, 100))
def test_an_epoch_shows_each_window_once_for_any_number_of_ranks(
    n_windows: int, micro_batch_size: int, accumulation: int, seed: int
) -> None:
    windows = Windows(shards(n_windows * 3 + 1), block_size=3)
    batch_size = micro_batch_size * accumulation * 6  # divisible for 1, 2 and 3 ranks
    n_steps = 2 * -(-n_windows // batch_size)
    streams = {}
    for world_size in (1, 2, 3):
        ranks = [
            Batches(windows, batch_size, micro_batch_size, seed, r, world_size) for r in range(world_size)
        ]
        steps = [[seen(next(rank)) for rank in ranks] for _ in range(n_steps)]
        streams[world_size] = [window for step in steps for rank in step for window in rank]
    assert streams[1] == streams[2] == streams[3]
    for epoch in range(len(streams[1]) // n_windows):
        part = streams[1][epoch * n_windows : (epoch + 1) * n_windows]
        assert sorted(part) == list(range(0, 3 * n_windows, 3))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.sampled_from([(6, 1), (4, 2), (12, 3), (2, 1)]))
def test_a_resume_goes_on_where_it_was_with_any_batch_size_and_ranks(
    done: int, then: tuple[int, int]
) -> None:
    windows = Windows(shards(100), block_size=3)
    whole = Batches(windows, 6, 2, seed=5)
    order = [window for _ in range(done + 20) for window in seen(next(whole))]

    first = Batches(windows, 6, 3, seed=5)
    for _ in range(done):
        next(first)
    batch_size, world_size = then
    ranks = [Batches(windows, batch_size, 1, 5, r, world_size) for r in range(world_size)]
    for rank in ranks:
        rank.load_state_dict(first.state_dict())
    rest = [window for _ in range(10) for rank in ranks for window in seen(next(rank))]
    assert rest == order[6 * done :][: len(rest)]


def test_a_position_in_other_data_is_refused() -> None:
    state = Batches(Windows(shards(100), 3), 6, 2, seed=5).state_dict()
    with pytest.raises(InputError, match="n_windows = 33, but this run has 30"):
        Batches(Windows(shards(91), 3), 6, 2, seed=5).load_state_dict(state)
    with pytest.raises(InputError, match="seed = 5, but this run has 6"):
        Batches(Windows(shards(100), 3), 6, 2, seed=6).load_state_dict(state)


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "world_size"), [(12, 5, 1), (12, 4, 2), (0, 1, 1), (4, 0, 1)]
)
def test_batch_sizes_that_do_not_divide(batch_size: int, micro_batch_size: int, world_size: int) -> None:
    with pytest.raises(InputError, match=f"batch_size is {batch_size}.*micro_batch_size .{micro_batch_size}"):
        Batches(Windows(shards(100), 3), batch_size, micro_batch_size, 1, 0, world_size)
