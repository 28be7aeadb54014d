"""A command of tests/commands.py does what the same command does in a fresh interpreter."""

import os
import signal
import subprocess
import sys

import pytest

from tests import commands

SCRIPT = """
import atexit, os, sys, threading, time, warnings
print(__name__, sys.argv, sys.orig_argv[1:], sys.path[0], os.getcwd(), os.environ.get("GIVEN"), "HOME" in os.environ)
print(sys.stdin.encoding, sys.stdin.errors, sys.stdout.encoding, sys.stdout.line_buffering, os.isatty(1), "知")
print(sys.stdin.read(), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())
print(sys.stderr.encoding, sys.stderr.errors, "é\\udce9", file=sys.stderr)
atexit.register(print, "atexit")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
"""
ENDS = {
    "end": "",
    "status": "sys.exit(3)",
    "text": "sys.exit('one line')",
    "bug": "def f():\n    raise ValueError('x')\nf()",
    "warning": "warnings.warn('old')",
    "ctrl-c": "raise KeyboardInterrupt",
    "SIGTERM": "sys.stdout.flush(); os.kill(os.getpid(), 15)",
}


def both(args, **options):
    """(returncode, stdout, stderr) of the command, and of a fresh interpreter."""
    options["capture_output"] = True
    runs = (commands.run(args, **options), subprocess.run([sys.executable, *args], **options))
    return [(done.returncode, done.stdout, done.stderr) for done in runs]


@pytest.mark.parametrize("end", ENDS)
def test_status_and_messages_are_those_of_a_fresh_interpreter(tmp_path, end):
    script = tmp_path / "scripts" / "a.py"
    script.parent.mkdir()
    script.write_text(SCRIPT + ENDS[end])
    options = ["-W", "error"] if end == "warning" else []
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | {"GIVEN": "é"}
    ours, fresh = both(
        [*options, "scripts/a.py", "--x", "知", tmp_path],
        input="one\n知\n".encode(),
        cwd=tmp_path,
        env=environment,
        start_new_session=end == "status",
    )
    assert ours == fresh


def test_a_users_mistake_gives_the_same_line():
    ours, fresh = both(["scripts/fetch_model.py", "/etc"])
    assert ours == fresh
    assert ours[0] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_the_process_that_popen_names(tmp_path, number):
    (tmp_path / "a.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    with commands.Popen([tmp_path / "a.py"], stdout=-1, stderr=-1, text=True) as process:
        assert int(process.stdout.readline()) == process.pid
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == -number
    assert said.endswith("KeyboardInterrupt\n" if number == signal.SIGINT else "")


def test_a_command_that_takes_too_long_is_killed(tmp_path):
    (tmp_path / "a.py").write_text("import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        commands.run([tmp_path / "a.py"], timeout=0.1)


def test_large_packages_are_imported_before_and_no_thread_runs(tmp_path):
    (tmp_path / "a.py").write_text(
        "import os, sys\n"
        "print('torch' in sys.modules, 'zhizhi' in sys.modules, len(os.listdir('/proc/self/task')))"
    )
    script = [tmp_path / "a.py"]
    assert commands.run(script, capture_output=True, text=True).stdout == "True False 1\n"
    # read by libraries while they are loaded
    environment = os.environ | {"OMP_NUM_THREADS": "7"}
    assert commands.run(script, capture_output=True, text=True, env=environment).stdout == "False False 1\n"
