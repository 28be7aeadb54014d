"""The vector cache: every block of texts is computed once."""

import errno
import os

import numpy as np
import pytest

from embed.encoding import vector_cache
from embed.encoding.vector_cache import cached_vectors


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path))
    monkeypatch.setattr(vector_cache, "TEXTS_PER_FILE", 3)


class Computed:
    """Fake encoder: (length, number of vowels) per text. Records the texts it gets, and fails at `fails_at`."""

    def __init__(self, fails_at: str = "") -> None:
        self.asked: list[str] = []
        self.fails_at = fails_at

    def __call__(self, texts):
        if self.fails_at in texts:
            raise KeyboardInterrupt
        self.asked += texts
        return np.array([[len(t), sum(c in "aeiou" for c in t)] for t in texts], dtype=np.float32)


TEXTS = ["one", "two", "three", "four", "five", "six", "seven"]


def test_only_new_blocks_are_computed_and_cached_vectors_are_exact():
    first, second = Computed(), Computed()
    vectors = cached_vectors("model", TEXTS, first)
    assert vectors[2].tolist() == [5, 2]
    assert first.asked == TEXTS
    longer = cached_vectors("model", [*TEXTS[:6], "eight"], second)
    assert second.asked == ["eight"]  # only the last block differs
    np.testing.assert_array_equal(longer[:6], vectors[:6])


def test_an_interruption_loses_at_most_one_block():
    with pytest.raises(KeyboardInterrupt):
        cached_vectors("model", TEXTS, Computed(fails_at="five"))
    again = Computed()
    assert len(cached_vectors("model", TEXTS, again)) == 7
    assert again.asked == TEXTS[3:]


def test_a_damaged_file_is_computed_again(tmp_path, capsys):
    vectors = cached_vectors("model", TEXTS[:3], Computed())
    (path,) = (tmp_path / "vectors").iterdir()
    for damaged in (path.read_bytes()[:-4], b"", b"junk"):
        path.write_bytes(damaged)
        again = Computed()
        np.testing.assert_array_equal(cached_vectors("model", TEXTS[:3], again), vectors)
        assert again.asked == TEXTS[:3]
        assert "is damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(path), vectors)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(vector_cache, "atomic_write", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/vectors/"):
        cached_vectors("model", TEXTS, Computed())


def test_another_model_or_order_does_not_use_the_cache():
    cached_vectors("model", TEXTS, Computed())
    for identity, texts in (("other", TEXTS), ("model", TEXTS[::-1]), ("model", ["onetwo", "three"])):
        fresh = Computed()
        cached_vectors(identity, texts, fresh)
        assert fresh.asked == texts
    assert cached_vectors("model", [], Computed()).shape == (0, 0)


def test_above_its_bound_the_cache_removes_the_files_that_were_not_used_for_the_longest_time(
    tmp_path, monkeypatch
):
    cached_vectors("model", TEXTS[:3], Computed())
    size = sum(path.stat().st_size for path in (tmp_path / "vectors").iterdir())
    for i, first in enumerate(("a", "b", "c")):
        cached_vectors("model", [first, "x", "y"], Computed())
        for path in (tmp_path / "vectors").iterdir():  # an hour passes
            used = path.stat().st_mtime - 3600
            os.utime(path, (used, used))
        if i == 1:
            cached_vectors("model", TEXTS[:3], Computed(fails_at="one"))  # used last, and so kept
    monkeypatch.setattr(vector_cache, "MAX_BYTES", 3 * size)
    cached_vectors("model", ["d", "x", "y"], Computed())
    assert sum(path.stat().st_size for path in (tmp_path / "vectors").iterdir()) <= 3 * size
    cached_vectors("model", TEXTS[:3], Computed(fails_at="one"))
    cached_vectors("model", ["c", "x", "y"], Computed(fails_at="c"))
    for lost in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            cached_vectors("model", [lost, "x", "y"], Computed(fails_at=lost))
    monkeypatch.setattr(vector_cache, "MAX_BYTES", 1)
    cached_vectors("model", ["e", "x", "y"], Computed())  # a file above the bound is the only one that stays
    cached_vectors("model", ["e", "x", "y"], Computed(fails_at="e"))
    assert len(list((tmp_path / "vectors").iterdir())) == 1
