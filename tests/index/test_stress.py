"""A short run of the stress script, which can also be run for longer."""

import json

from tests import commands
from tests.index import stress


def test_processes_that_search_write_and_are_killed_get_no_wrong_results(tmp_path):
    options = ["--seconds", "3", "--readers", "2", "--kill_every", "1"]
    ended = commands.run([stress.__file__, tmp_path / "index", *options], capture_output=True, text=True)
    report = json.loads(ended.stdout)
    assert report["wrong"] == []
    assert report["searches"] > 0
    assert report["changes"] > 0
