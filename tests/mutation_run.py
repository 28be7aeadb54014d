"""Mutation testing: change one expression or statement at a time, and see whether a test fails.

    .venv/bin/python tests/mutation_run.py --mutants 200 --jobs 2 --results mutants.jsonl

Each mutant is run by the tests of its file (`TESTS`) in a copy of the tree, and is killed if a test fails, or does not
end in time. A mutant that survives shows code that no test needs. Some mutants compute the same as the original.

Importing torch takes seconds, so this process imports it once and forks a process for each mutant. It must not import
the packages under test, which each fork imports from its copy.
"""

import compileall
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import pytest
import tyro
from mutants import Mutant, all_mutants  # beside this file

TESTS = {
    "gpt_core/data/batches.py": ["tests/gpt_core/data/test_batches.py"],
    "gpt_core/generation/sampling.py": ["tests/gpt_core/generation/test_sampling.py"],
    "index/dense/block.py": ["tests/index/dense", "tests/index/search"],
    "index/dense/snapshot.py": ["tests/index/dense", "tests/index/search"],
    "index/dense/tuning.py": ["tests/index/dense"],
    "index/dense/view.py": ["tests/index/dense", "tests/index/search"],
    "index/search/filters.py": ["tests/index/search/test_filters.py", "tests/index/search/test_search.py"],
    "index/search/rank.py": ["tests/index/search"],
    "serve/answers/attribution.py": [
        "tests/serve/answers/test_attribution.py",
        "tests/serve/answers/test_contradiction.py",
    ],
}
IGNORED = shutil.ignore_patterns(".git", ".venv", "__pycache__", "build", "demo", "runs", "*.egg-info")


class Runner:
    """Runs mutants in forked processes, each in one of `jobs` copies of the tree."""

    def __init__(self, root: Path, scratch: Path, tests: dict[str, list[str]], jobs: int) -> None:
        self.root, self.tests = root, tests
        self.free = [scratch / f"{i}" for i in range(jobs)]
        for copy in self.free:
            shutil.copytree(root, copy / "tree", ignore=IGNORED)
            # Compiled files that are checked by the source's hash: two mutants may have the same size and second.
            compileall.compile_dir(copy / "tree", quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        self.running: dict[int, tuple[Path, Mutant, float]] = {}
        self.limits: dict[str, float] = {}

    def time_tests(self, file: str) -> None:
        """Run a file's tests without a change; they must pass. A mutant may take five times as long."""
        copy = self.free[-1]
        self.start(Mutant(file, "", 0, "", (self.root / file).read_text()))
        _, outcome, seconds = self.wait()
        if outcome != "survived":
            output = (copy / "output").read_text()[-3000:]
            sys.exit(f"{file}: its tests do not pass without a change ({outcome}):\n{output}")
        self.limits[file] = 20 + 5 * seconds
        print(f"{file}: its tests take {seconds:.1f} s", file=sys.stderr)

    def start(self, mutant: Mutant) -> None:
        """Write the mutant into a free copy and fork a process that runs its tests there."""
        copy = self.free.pop()
        (copy / "tree" / mutant.file).write_text(mutant.source)
        pid = os.fork()
        if not pid:
            _run_tests(copy, self.tests[mutant.file])
        self.running[pid] = copy, mutant, time.monotonic()

    def wait(self) -> tuple[Mutant, str, float]:
        """Wait for any mutant; its outcome ("survived", "failed", "timeout" or pytest's exit status) and seconds."""
        while True:
            for pid, (copy, mutant, started) in self.running.items():
                seconds = time.monotonic() - started
                done, status = os.waitpid(pid, os.WNOHANG)
                late = not done and seconds > self.limits.get(mutant.file, float("inf"))
                if done or late:
                    self.stop(pid, done)
                    del self.running[pid]
                    shutil.copy(self.root / mutant.file, copy / "tree" / mutant.file)
                    self.free.append(copy)
                    code = os.waitstatus_to_exitcode(status)
                    names = {0: "survived", 1: "failed", 2: "failed"}  # 2: a module could not be imported
                    return mutant, "timeout" if late else names.get(code, f"status {code}"), seconds
            time.sleep(0.05)

    def stop(self, pid: int, done: int = 0) -> None:
        """Kill the processes that a mutant's tests started and, unless it is `done`, its own."""
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if not done:
            os.waitpid(pid, 0)


def _run_tests(copy: Path, tests: list[str]) -> None:
    """In a forked process: run tests in the copy, write the output to a file, and exit with pytest's status."""
    status = 3
    try:
        os.setsid()
        output = os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(copy / "tree")
        sys.path[0] = os.environ["PYTHONPATH"] = str(copy / "tree")
        quiet = "ignore::pytest.PytestAssertRewriteWarning"  # of what is imported before the fork
        options = ["-x", "--hypothesis-seed=0", f"--basetemp={copy / 'tmp'}", "-W", quiet]
        status = pytest.main([*options, *tests])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(
    *,
    mutants: int = 200,
    jobs: int = 1,
    seed: int = 0,
    results: Path = Path("mutants.jsonl"),
    files: tuple[str, ...] = tuple(TESTS),
    function: str | None = None,
    root: Path = Path(__file__).parents[1],
    preload: tuple[str, ...] = ("torch", "faiss", "transformers", "fastapi", "hypothesis"),
) -> None:
    """Run mutants that are drawn at random, and print those that survive.

    Args:
        mutants: number of mutants; a larger number continues the draw of a smaller one.
        jobs: mutants that run at the same time.
        seed: seed of the draw.
        results: JSON lines, one per mutant. A mutant that is in this file is not run again, unless its file or its
            tests have changed.
        files: the files to change; `file.py=tests/test_file.py,tests/folder` for a file that `TESTS` does not have.
        function: change only this function: `name` or `Class.name`.
        root: the tree.
        preload: packages that are imported once, before the forks.
    """
    named = [one.partition("=") for one in files]
    tests = {file: of_file.split(",") if of_file else TESTS[file] for file, _, of_file in named}
    drawn = [mutant for file in tests for mutant in all_mutants(file, (root / file).read_text())]
    drawn = [mutant for mutant in drawn if function in (None, mutant.function)]
    random.Random(seed).shuffle(drawn)
    keys = {mutant: _key(root, mutant, tests[mutant.file]) for mutant in drawn[:mutants]}
    results.touch()
    rows = {row["key"]: row for row in map(json.loads, results.read_text().splitlines())}
    waiting = [mutant for mutant, key in keys.items() if key not in rows]
    if waiting:
        for package in preload:
            importlib.import_module(package)
        for plugin in entry_points(group="pytest11"):
            plugin.load()
        gc.freeze()  # the forks' garbage collection skips what is loaded here
    with tempfile.TemporaryDirectory() as scratch, open(results, "a") as log:
        runner = Runner(root, Path(scratch), tests, jobs if waiting else 0)
        try:
            for file in dict.fromkeys(mutant.file for mutant in waiting):
                runner.time_tests(file)
            while waiting or runner.running:
                while waiting and runner.free:
                    runner.start(waiting.pop(0))
                mutant, outcome, seconds = runner.wait()
                row = {"key": keys[mutant], "outcome": outcome, "seconds": round(seconds, 1), **vars(mutant)}
                del row["source"]
                rows[keys[mutant]] = row
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(f"{outcome} {mutant.file}:{mutant.line} {mutant.function}", file=sys.stderr)
        finally:
            for pid in runner.running:
                runner.stop(pid)
    _report([rows[key] for key in keys.values()])


def _key(root: Path, mutant: Mutant, tests: list[str]) -> str:
    """Checksum of the changed file and of its tests."""
    paths = sorted(path for test in tests for path in [*(root / test).rglob("*.py")] or [root / test])
    return hashlib.sha256(mutant.source.encode() + b"".join(p.read_bytes() for p in paths)).hexdigest()


def _report(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["outcome"] == "survived":
            print(f"{row['file']}:{row['line']} {row['function']}\n{row['diff']}\n")
    for file in [*sorted({row["file"] for row in rows}), ""]:
        killed = [row["outcome"] != "survived" for row in rows if file in ("", row["file"])]
        print(
            f"{file or 'all'}: {sum(killed)} of {len(killed)} killed ({sum(killed) / max(len(killed), 1):.0%})"
        )


if __name__ == "__main__":
    tyro.cli(main)
