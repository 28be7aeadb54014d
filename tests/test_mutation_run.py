"""Mutation testing on a tree of one function whose tests miss one kind of change."""

import json
import subprocess
import sys
from pathlib import Path

from tests.mutants import all_mutants

CODE = '''
def clip(value: int | None) -> int:
    """At least 0."""
    return max(value, 0)
'''
TESTS = """
from clip import clip

def test_clip():
    assert [clip(value) for value in (-3, 5)] == [0, 5]
"""


def test_all_kinds_of_changes_are_made_in_place():
    source = """# “
def f(a, *b):
    a.x = g(a, -1)
    b[0] += a and not b
    return [f"{y + 1}" for y in b if y]
"""
    changed = [mutant.diff.splitlines()[1].strip("+ ") for mutant in all_mutants("f.py", source)]
    assert changed == [
        "pass",  # the assignment
        "a.x = (g(-1, a))",
        "a.x = g(a, (1))",
        "a.x = g(a, -(2))",
        "a.x = g(a, -(0))",
        "pass",  # the addition
        "b[(1)] += a and not b",
        "b[(-1)] += a and not b",
        "b[0] += (a or not b)",
        "b[0] += a and (b)",
        "return None",
        'return [f"{y + 1}" for y in b if (not (y))]',
    ]


def test_survivors_are_printed_and_a_second_run_repeats_none(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "clip.py").write_text(CODE)
    (tree / "test_clip.py").write_text(TESTS)
    script, results = Path(__file__).with_name("mutation_run.py"), tmp_path / "mutants.jsonl"
    options = [
        "--root",
        tree,
        "--files",
        "clip.py=test_clip.py",
        "--results",
        results,
        "--preload",
        "hypothesis",
    ]
    command = [sys.executable, script, *options, "--jobs", "2", "--mutants"]
    for n, total in ((1, 1), (100, 4)):
        run = subprocess.run([*command, f"{n}"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        assert len(rows) == total  # the first one once
    survivor = "max(0, value)"  # it computes the same
    assert {row["outcome"] for row in rows if survivor not in row["diff"]} == {"failed"}
    assert {row["outcome"] for row in rows if survivor in row["diff"]} == {"survived"}
    assert "-    return max(value, 0)\n+    return (max(0, value))" in run.stdout
    assert "all: 3 of 4 killed (75%)" in run.stdout
    assert (tree / "clip.py").read_text() == CODE
