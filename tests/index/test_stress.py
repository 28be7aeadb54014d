"""A short run of the stress script, which can also be run for longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.index import stress


def test_processes_that_search_write_and_are_killed_get_no_wrong_results(tmp_path):
    script, folder = str(Path(stress.__file__)), str(tmp_path / "index")
    options = ["--seconds", "3", "--readers", "2", "--kill_every", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    ended = subprocess.run(
        [sys.executable, script, folder, *options], capture_output=True, text=True, env=environment
    )
    report = json.loads(ended.stdout)
    assert report["wrong"] == []
    assert report["searches"] > 0
    assert report["changes"] > 0
