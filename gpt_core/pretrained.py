"""Model folders: Hugging Face's layout both ways, and GGUF in."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_core.attention import Rope
from gpt_core.config import GPTConfig
from gpt_core.errors import InputError
from gpt_core.files import atomic_write, fsync_path
from gpt_core.foreign import checkpoint_in, read_checkpoint
from gpt_core.gguf_file import read_gguf
from gpt_core.hf_config import from_hf, to_hf
from gpt_core.hub import gguf_in, resolve
from gpt_core.model import GPT
from gpt_core.weight_names import from_hf_names, to_hf_names


def load(name_or_folder: str | Path) -> GPT:
    """Load a GPT in float32 and evaluation mode; see `GPT.from_pretrained`."""
    folder = resolve(name_or_folder)
    if (folder / "config.json").exists():
        config = _read_config(folder / "config.json")
        model = _empty(config)
        state = from_hf_names(_read_tensors(folder), model)
    elif gguf := gguf_in(folder):
        config, state = read_gguf(gguf)
        model = _empty(config)
    elif checkpoint := checkpoint_in(folder):
        config, state = read_checkpoint(checkpoint)
        model = _empty(config)
    else:
        raise InputError(
            f"{folder} is not a model folder: it has no config.json, no .gguf file, no ckpt.pt of nanoGPT and no .pth "
            "of small-gpt."
        )
    _assign(model, state, folder)
    return model.eval()


def save(model: GPT, folder: Path, weights: dict[str, Tensor] | None) -> None:
    """Write `model` as a Hugging Face folder; see `GPT.save_pretrained`."""
    raw = to_hf(model.config)
    state = to_hf_names(model, model.state_dict() if weights is None else weights)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".model.safetensors.tmp"
    try:
        save_file(state, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors' files are for their owner alone
        fsync_path(temporary)
        temporary.replace(folder / "model.safetensors")
    finally:
        temporary.unlink(missing_ok=True)
    atomic_write(folder / "config.json", json.dumps(raw, indent=2) + "\n")


def _empty(config: GPTConfig) -> GPT:
    """A GPT without memory for its weights; only the rotary tables, which no file holds, are real."""
    with torch.device("meta"):
        model = GPT(config)
    if model.rope is not None:
        model.rope = Rope(config)
    return model


def _assign(model: GPT, state: dict[str, Tensor], folder: Path) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} weights that its config asks for, first {missing[0]}."
        )
    unknown = sorted(state.keys() - expected.keys())
    if unknown:
        raise InputError(
            f"{folder} holds {len(unknown)} weights that its config has no place for, first {unknown[0]}."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, its config asks for {tuple(expected[name].shape)}."
            )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    model.requires_grad_()  # assigned tensors arrive frozen


def _read_config(path: Path) -> GPTConfig:
    try:
        return from_hf(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path} lacks the key {error}, which its model_type needs.") from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the shards that its index file names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        files = [folder / "model.safetensors"]
    elif index.exists():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        raise InputError(f"{folder} has a config.json but no model.safetensors; put the weights beside it.")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except FileNotFoundError as error:
            raise InputError(
                f"{file} is missing; {index.name} names it. Copy the whole folder again."
            ) from error
        except SafetensorError as error:
            raise InputError(f"{file} is damaged ({error}); copy or fetch it again.") from error
    return state
