"""Progress in a log, and on a terminal."""

import io
import sys

import pytest

from gpt_core.common import progress as module
from gpt_core.common.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Each item takes ten seconds."""
    seconds = iter(range(0, 10_000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))


def test_a_log_gets_a_line_every_thirty_seconds(clock, capsys):
    assert list(progress("abcdefgh", "indexing", 8, "documents", lambda: "2 files skipped")) == list(
        "abcdefgh"
    )
    assert capsys.readouterr().err.splitlines() == [
        "indexing: 3 of 8 documents, 0.1 a second, 00:50 left, 2 files skipped",
        "indexing: 6 of 8 documents, 0.1 a second, 00:20 left, 2 files skipped",
    ]
    assert list(progress("abc", "checking", None, "documents")) == list("abc")
    assert capsys.readouterr().err == "checking: 3 documents, 0.1 a second\n"


def test_short_work_says_nothing_in_a_log(capsys):
    list(progress(range(1000), "indexing", 1000, "documents"))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_ends_with_the_work(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = progress("abc", "indexing", 3, "documents", lambda: "1 files skipped")
    assert next(shown) == "a"
    with pytest.raises(RuntimeError, match="stopped"):
        shown.throw(RuntimeError("stopped"))
    assert sys.stderr.getvalue().endswith("\n")
    assert list(progress("abc", "indexing", 3, "documents", lambda: "1 files skipped")) == list("abc")
    last = sys.stderr.getvalue().rstrip().split("\r")[-1]
    assert "3/3 [" in last
    assert "documents/s, 1 files skipped]" in last
