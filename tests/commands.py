"""Run Python scripts in child processes that do not spend seconds on importing torch and other large packages.

    commands.run(["scripts/sample.py", "--model", folder], capture_output=True, text=True)
    commands.Popen(["-W", "error", "scripts/chat.py"], stdin=subprocess.PIPE)

are `python scripts/sample.py --model …` and `python -W error scripts/chat.py`, with the options of `subprocess`. Each
pytest process has one multiprocessing fork server, which has imported `PRELOAD` and forks a child per command.

A command gets a fresh interpreter if its environment differs from the server's in a variable that matters during
imports. Tests of imports, of the interpreter's options, of peak memory and of launchers use `subprocess`.
"""

import atexit
import inspect
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import threading
import warnings
from multiprocessing import reduction
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
PRELOAD = [
    "benchmarks.learn", "embed.training.train", "gpt_core.tasks.command", "gpt_core.training.pretraining.pretrain",
    "serve.ask", "serve.run_server", "tests.training_imports", "torch.distributed.fsdp",
]  # fmt: skip
# Prefixes of variables that the interpreter, a C library or a package reads when it is loaded
AT_IMPORT = (
    "CUDA", "DS_", "GOMP_", "HF_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON",
    "PYTORCH_ALLOC", "PYTORCH_JIT", "TORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_COMPILE_", "TRANSFORMERS_", "TZ",
)  # fmt: skip
OPTIONS = {"stdin", "stdout", "stderr", "text", "cwd", "env", "start_new_session"}
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")  # subprocess's names

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)
_environment: dict[str, str] = {}  # the server's


def run(
    args: list[Any], input: Any = None, capture_output: bool = False, timeout: float | None = None, **options: Any
) -> "subprocess.CompletedProcess[Any]":  # fmt: skip
    """`subprocess.run` of `python *args`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            stdout, stderr = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


def Popen(args: list[Any], **options: Any) -> "subprocess.Popen[Any]":
    """`subprocess.Popen` of `python *args`: a script and its arguments, after `-W error` if wanted."""
    assert options.keys() <= OPTIONS, f"use subprocess for {options.keys() - OPTIONS}"
    if not _environment:
        _environment.update(os.environ)
    wanted = options.setdefault("env", os.environ)
    for name in _environment.keys() | wanted.keys():
        if name.startswith(AT_IMPORT) and _environment.get(name) != wanted.get(name):
            # The server's children have pytest's sys.path, with the root of the repository.
            path = os.pathsep.join(filter(None, [str(ROOT), wanted.get("PYTHONPATH")]))
            return subprocess.Popen(
                [sys.executable, *args], **options | {"env": {**wanted, "PYTHONPATH": path}}
            )
    return _Forked(args, **options)


class _Forked(subprocess.Popen[Any]):
    """A process that the server forks; the base class makes the pipes and exchanges data."""

    def _execute_child(self, *args: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*args).arguments  # type: ignore[misc]
        pipes = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        streams = [_Stream(number if pipe == -1 else pipe) for number, pipe in enumerate(pipes)]
        words, folder = [os.fsdecode(word) for word in given["args"]], os.path.abspath(given["cwd"] or ".")
        arguments = (words, folder, dict(given["env"]), given["start_new_session"], streams)
        # daemon: it ends with pytest at the latest
        self._process = _context.Process(target=_run_script, args=arguments, daemon=True)
        try:
            self._process.start()
        finally:
            self._close_pipe_fds(*(given[name] for name in PIPES))  # type: ignore[attr-defined]
        self.pid, self._child_created = self._process.pid, True

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode


class _Stream:
    """A file descriptor; the child receives a duplicate, as an integer."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return operator.methodcaller("detach"), (reduction.DupFd(self.number),)


def _run_script(words: list[str], folder: str, env: Any, new_session: bool, streams: list[int]) -> None:
    """In the child: what the interpreter does from its start to its end."""
    multiprocessing.current_process().daemon = False  # a command may have children
    if new_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    text = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors, "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, **text)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", **text)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, **text | {"errors": sys.stderr.errors})  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.orig_argv = [sys.executable, *words]
    if words[:2] == ["-W", "error"]:
        warnings.simplefilter("error")
        words = words[2:]
    sys.argv, script = words, os.path.abspath(words[0])
    sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__file__ = script
    status: Any = 0
    try:
        exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        error.__traceback__ = sys.exc_info()[2].tb_next  # without this function
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if status == -signal.SIGINT:
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(status)
