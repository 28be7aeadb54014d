"""A short run of the script that kills a writer, which can also be run for longer."""

import pytest

from tests.index import kills


@pytest.mark.parametrize("n", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_a_whole_index_with_every_change_that_was_done(tmp_path, n):
    report = kills.run(tmp_path / "index", n, seed=n)
    assert report["wrong"] == []
    assert report["kills"] == n
