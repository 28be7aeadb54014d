"""Groups of similar examples, and batches made of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed.training.batches import Collator, MixedBatches
from embed.training.config import TrainEmbedderConfig
from embed.training.data import attach_groups, open_data
from embed.training.groups import groups_of_similar
from embed.training.train import train_embedder
from gpt_core.common.errors import InputError
from gpt_core.data.train_tokenizer import train_tokenizer
from gpt_core.training.parallel.ranks import ALONE

TOPICS = ["bread flour oven", "stone granite quarry", "river flood water", "cloud storm rain"]


@given(st.integers(1, 60), st.integers(1, 9), st.booleans())
def test_groups_have_every_row(n, size, equal):
    vectors = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)
    groups = groups_of_similar(vectors * (not equal), size)
    assert groups.shape == (-(-n // size), size)
    assert set(groups.ravel()) == set(range(n))
    assert len(set(groups.ravel()[:n])) == n  # only the last group repeats rows


def test_groups_are_the_clusters_of_well_separated_rows():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((8, 16)).astype(np.float32)
    topics = rng.permutation(np.repeat(np.arange(8), 6))
    vectors = centres[topics] + 0.01 * rng.standard_normal((48, 16)).astype(np.float32)
    groups = topics[groups_of_similar(vectors, 6)]
    # A median may divide a cluster, but most groups are whole clusters.
    assert sum(len(set(group)) == 1 for group in groups.tolist()) >= 6


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A table's training over pairs of four topics, grouped by a table trained before."""
    folder = tmp_path_factory.mktemp("groups")
    rng = np.random.default_rng(0)
    words = [" ".join(rng.permutation(topic.split())) for topic in TOPICS * 30]
    rows = [{"query": f"{text} {i}", "positive": f"{i} {text} {text}"} for i, text in enumerate(words)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_tokenizer(
        out=str(folder / "tokenizer"), vocab_size=300, input=[str(folder / "pairs.jsonl")], column="positive"
    )
    config = TrainEmbedderConfig(
        init_from="scratch", tokenizer=str(folder / "tokenizer"), n_layer=0, n_embd=16,
        data=(str(folder / "pairs.jsonl"),), out_dir=str(folder / "first"), batch_size=16, max_iters=4,
        eval_interval=2, warmup_iters=1, learning_rate=1e-2, threads=1, device="cpu", dtype="float32",
    )  # fmt: skip
    train_embedder(config)
    return replace(config, out_dir=str(folder / "second"), group_by=str(folder / "first"), group_size=4)


def test_a_batch_is_made_of_whole_groups(config):
    (data,), _ = open_data(config)
    attach_groups(config, [data], ALONE)
    assert data.groups is not None
    batches = MixedBatches(
        [data], [1.0], 16, 0, Collator(lambda texts: [[0]] * len(texts), {"query": "", "document": ""}, 1)
    )
    seen = []
    for nth in range(len(data.groups) // 4):
        places = batches._places(0, nth)
        assert {epoch for _, epoch in places} == {0}
        groups = np.array([i for i, _ in places]).reshape(4, 4)
        seen += [tuple(group) for group in groups.tolist()]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(map(tuple, data.groups.tolist()))
    alike = [len({frozenset(data.examples[i].query.split()[:3]) for i in group}) for group in data.groups]
    assert np.mean(alike) < 2  # of four topics


def test_a_training_with_groups_resumes(config):
    train_embedder(replace(config, max_iters=2))
    figures = train_embedder(config)
    whole = train_embedder(replace(config, out_dir=config.out_dir + "-whole"))
    assert figures == pytest.approx(whole)
    with pytest.raises(InputError, match=r"groups = 4 by .* but this run has None"):
        train_embedder(replace(config, group_by=None, max_iters=6))


def test_a_batch_that_is_no_multiple_of_the_groups_is_refused(config):
    with pytest.raises(
        InputError, match="batch_size is 18; expected a multiple of the size of the groups of pairs, 4"
    ):
        train_embedder(replace(config, batch_size=18, out_dir=config.out_dir + "-bad"))
