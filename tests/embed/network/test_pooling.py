"""Pooling compared with sentence-transformers' module."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Pooling as ReferencePooling

from embed.network.config import Pooling
from embed.network.pooling import pool as pool_tokens

LENGTHS = [7, 1, 12, 5]


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Pool with token ids that no mode used here reads."""
    return pool_tokens(hidden, torch.zeros_like(mask, dtype=torch.long), mask, pooling)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A batch of LENGTHS tokens with noise as padding, its mask, and the rows without padding."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 16, generator=generator) for n in LENGTHS]
    hidden = 100 * torch.randn(len(rows), max(LENGTHS), 16, generator=generator)
    mask = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(max(LENGTHS) - len(row), None)
        hidden[i, where], mask[i, where] = row, True
    return hidden, mask, rows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", ["weightedmean", "mean", "lasttoken"])
def test_equals_sentence_transformers_in_a_batch_and_alone(mode, side):
    hidden, mask, rows = padded(side)
    reference = ReferencePooling(16, mode)
    theirs = reference({"token_embeddings": hidden, "attention_mask": mask.long()})["sentence_embedding"]
    ours = pool(hidden, mask, Pooling(mode))
    assert (ours - theirs).abs().max() <= 1e-6
    for row, vector in zip(rows, ours, strict=True):
        alone = pool(row[None], torch.ones(1, len(row), dtype=torch.bool), Pooling(mode))[0]
        assert (alone - vector).abs().max() <= 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", ["weightedmean", "mean", "lasttoken"])
def test_skip_first_pools_all_but_the_first_token(mode, side):
    hidden, mask, rows = padded(side)
    ours = pool(hidden, mask, Pooling(mode, skip_first=True))
    for row, vector in zip(rows, ours, strict=True):
        rest = row[1:] if len(row) > 1 else row  # the only token is kept
        wanted = pool(rest[None], torch.ones(1, len(rest), dtype=torch.bool), Pooling(mode))[0]
        assert (wanted - vector).abs().max() <= 1e-6


def test_unit_tokens_bounds_the_weight_of_one_token():
    hidden = torch.randn(1, 6, 16)
    hidden[0, 2] *= 1e4  # like the state of an attention sink
    mask = torch.ones(1, 6, dtype=torch.bool)
    directions = torch.nn.functional.normalize(hidden, dim=-1)
    assert torch.allclose(pool(hidden, mask, Pooling("mean", unit_tokens=True))[0], directions[0].mean(dim=0))


def test_a_row_of_padding_gives_zeros():
    for mode in ("weightedmean", "mean", "lasttoken"):
        for skip_first in (False, True):
            vector = pool(
                torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool), Pooling(mode, None, skip_first)
            )
            assert torch.equal(vector, torch.zeros(1, 4))


@settings(max_examples=50, deadline=None)
@given(left=st.integers(0, 5), right=st.integers(0, 5), n=st.integers(1, 9), seed=st.integers(0, 99))
def test_padding_never_changes_a_vector(left, right, n, seed):
    row = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    hidden = torch.cat([torch.full((left, 8), 1e3), row, torch.full((right, 8), -1e3)])[None]
    mask = torch.tensor([[False] * left + [True] * n + [False] * right])
    for mode in ("weightedmean", "mean", "lasttoken"):
        alone = pool(row[None], torch.ones(1, n, dtype=torch.bool), Pooling(mode, skip_first=True))
        assert torch.allclose(pool(hidden, mask, Pooling(mode, skip_first=True)), alone, atol=1e-5)


def test_low_precision_states_are_pooled_in_float32():
    hidden = torch.randn(2, 300, 8).bfloat16()
    mask = torch.ones(2, 300, dtype=torch.bool)
    ours = pool(hidden, mask, Pooling("weightedmean"))
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, pool(hidden.float(), mask, Pooling("weightedmean")), atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 4), max_size=9), min_size=1, max_size=4),
    left=st.integers(0, 2),
    skip_first=st.booleans(),
)
def test_the_sublinear_mean_counts_n_equal_tokens_as_the_root_of_n(rows, left, skip_first):
    states = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double()
    width = left + max(map(len, rows)) + 1
    ids, mask = torch.full((len(rows), width), 3), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, left : left + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, left : left + len(row)] = True
    ours = pool_tokens(states[ids], ids, mask, Pooling("sublinear", skip_first=skip_first))
    for row, vector in zip(rows, ours, strict=True):
        pooled = row[1:] if skip_first and len(row) > 1 else row
        roots = {token: pooled.count(token) ** 0.5 for token in pooled}
        wanted = sum((root * states[token] for token, root in roots.items()), torch.zeros(8).double())
        assert torch.allclose(vector, wanted / max(sum(roots.values()), 1e-9), atol=1e-9)
