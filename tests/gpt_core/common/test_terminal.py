"""Text on stdout: what the encoding of a terminal or a pipe lacks is escaped in every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = "知之为知之 🙂 é"
COMMAND = """
import json
from gpt_core.common.cli import run_command
from gpt_core.common.terminal import write_text

def show() -> None:
    text = {text!a}
    write_text(text + "\\n")
    print(json.dumps({{text: text}}, ensure_ascii=False))
    print("caf\\udce9.txt")  # a file name that is not UTF-8

run_command(show, args=[])
"""


@pytest.mark.parametrize(
    ("settings", "encoding", "line"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "ascii", r"\u77e5\u4e4b\u4e3a\u77e5\u4e4b \ud83d\ude42 \u00e9"),
        (
            {"PYTHONIOENCODING": "latin-1"},
            "latin-1",
            r"\u77e5\u4e4b\u4e3a\u77e5\u4e4b \ud83d\ude42 é",
        ),
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            "ascii",
            r"\u77e5\u4e4b\u4e3a\u77e5\u4e4b \ud83d\ude42 \u00e9",
        ),
        ({"LC_ALL": "C"}, "utf-8", TEXT),
        ({"PYTHONIOENCODING": "utf-8"}, "utf-8", TEXT),
    ],
)
def test_characters_that_stdout_lacks_are_escaped(settings: dict[str, str], encoding: str, line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(text=TEXT)],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | settings,
    )
    assert done.returncode == 0, done.stderr
    text, object, name = done.stdout.decode(encoding).splitlines()
    assert text == line
    assert json.loads(object) == {TEXT: TEXT}
    assert name == r"caf\udce9.txt"


def test_the_console_command_lists_the_commands_in_any_encoding() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zhizhi", "--help"],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"usage: zhizhi COMMAND " in done.stdout
