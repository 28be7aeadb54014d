"""Load model folders (Hugging Face, GGUF, nanoGPT, small-gpt) and save Hugging Face folders."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.common.json_files import read_json
from gpt_core.formats.card import Card, with_command, write_card
from gpt_core.formats.gguf.container import GGUF
from gpt_core.formats.gguf.read import read_gguf, read_gguf_config
from gpt_core.formats.huggingface.adapter import base_of, with_adapter
from gpt_core.formats.huggingface.config import from_hf, generation_eos_ids, generation_settings, to_hf
from gpt_core.formats.huggingface.heads import Head, HeadKind
from gpt_core.formats.huggingface.weights import from_hf_names, to_hf_names, unwrapped, with_head
from gpt_core.formats.nanogpt import checkpoint_in, read_checkpoint
from gpt_core.formats.pickles import read_bin
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.hub.locate import ADAPTER_CONFIG, TASK_FILE, gguf_in, resolve
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.model.masks import Alibi
from gpt_core.model.rope import Rope


def load(name_or_folder: str | Path, dtype: torch.dtype = torch.float32) -> GPT:
    """Load a GPT in evaluation mode, one tensor at a time into `dtype`; see `GPT.from_pretrained`."""
    folder = resolve(name_or_folder)
    if (folder / TASK_FILE).exists():
        raise InputError(
            f"{folder} was fine-tuned for a task and is no language model; use it with scripts/finetune.py, or give "
            "the model that it was made from."
        )
    if (folder / ADAPTER_CONFIG).exists():
        model = with_adapter(_load(base_of(folder), torch.float32), folder)
        return model.to(dtype)
    return _load(folder, dtype)


def read_config(name_or_folder: str | Path) -> GPTConfig:
    """The config of a model without its weights, as its files describe it.

    Raises:
        InputError: as `load`.
    """
    folder = base_of(resolve(name_or_folder))
    if (folder / "config.json").exists():
        return _read_config(folder)
    if gguf := gguf_in(folder):
        return read_gguf_config(GGUF(gguf))
    if checkpoint := checkpoint_in(folder):
        return read_checkpoint(checkpoint)[0]
    raise _no_model(folder)


def load_with_head(folder: Path, kind: HeadKind) -> tuple[GPT, dict[str, Tensor]]:
    """Load the GPT of a folder that `save` wrote with a head, in float32, and the head's tensors by their names.

    Raises:
        InputError: as `load`.
    """
    raw, tensors = Head.split(_read_tensors(folder), kind)
    return _from_hf(folder, _read_config(folder), raw, torch.float32), tensors


def _load(folder: Path, dtype: torch.dtype) -> GPT:
    if (folder / "config.json").exists():
        return _from_hf(folder, _read_config(folder), _read_tensors(folder), dtype)
    if gguf := gguf_in(folder):
        config, state = read_gguf(gguf, dtype)
        model = _empty(config)
    elif checkpoint := checkpoint_in(folder):
        config, state = read_checkpoint(checkpoint)
        model = _empty(config)
    else:
        raise _no_model(folder)
    _assign(model, state, folder, dtype)
    return model.eval()


def _from_hf(folder: Path, config: GPTConfig, raw: dict[str, Tensor], dtype: torch.dtype) -> GPT:
    try:
        raw, config = with_head(unwrapped(raw, config), config)
    except InputError as error:
        raise InputError(f"{folder} cannot be loaded: {error}.") from error
    model = _empty(config)
    state = from_hf_names(raw, model)
    del raw
    _assign(model, state, folder, dtype)
    return model.eval()


def _no_model(folder: Path) -> InputError:
    return InputError(
        f"{folder} is not a model folder: it has no config.json, no .gguf file, no ckpt.pt of nanoGPT and no .pth "
        "of small-gpt; give a folder with one of them."
    )


def save(
    model: GPT,
    folder: Path,
    weights: dict[str, Tensor] | None,
    card: Card | None,
    head: Head | None = None,
) -> None:
    """Write `model` as a Hugging Face folder; see `GPT.save_pretrained`.

    Args:
        model: the GPT.
        folder: the folder.
        weights: its weights; None: its own.
        card: content of the model card.
        head: a head instead of the language model's, with tied embeddings.
    """
    weights = model.state_dict() if weights is None else weights
    if "blocks.0.attn.q.weight" not in weights:
        raise InputError(
            "This model's weights are merged or in 8 bits for fast generation and cannot be saved; save the model from "
            "GPT.from_pretrained instead."
        )
    raw = to_hf(model.config) | {"dtype": str(weights["wte.weight"].dtype).removeprefix("torch.")}
    state = to_hf_names(model, weights)
    if head is not None:
        raw, state = head.add(raw, state)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", state, {"format": "pt"})
    atomic_write(folder / "config.json", json.dumps(raw, indent=2) + "\n")
    settings = json.dumps(generation_settings(model.config), indent=2)
    atomic_write(folder / "generation_config.json", settings + "\n")
    n_parameters = sum(w.numel() for w in weights.values())
    write_card(folder, with_command(card or Card()), model.config, n_parameters, raw["dtype"])


def _empty(config: GPTConfig) -> GPT:
    """A GPT on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return GPT(config)


def _assign(model: GPT, state: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Give `model` the weights in `state`, which is emptied, in `dtype`."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    others = f"{len(unknown)} weights that its config does not define, first {unknown[0]}" if unknown else ""
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} weights that its config requires, first {missing[0]}"
            + (f"; it holds {others}." if others else ".")
        )
    if others:
        raise InputError(f"{folder} holds {others}.")
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{folder}: {name} has dtype {kind}; expected numbers of 16 or 32 bits, not quantised."
            )
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, its config requires {tuple(expected[name].shape)}."
            )
    # Each tensor is freed when it is converted, so that never all of them are in memory in two dtypes.
    weights = {name: state.pop(name).to(dtype).contiguous() for name in list(state)}
    model.load_state_dict(weights, assign=True)
    model.requires_grad_()  # assigned tensors have requires_grad False
    # Position tables are not in files. Built last: a config that contradicts the weights may define huge tables.
    if model.rope is not None:
        model.rope = Rope(model.config)
    if model.alibi is not None:
        model.alibi = Alibi(model.config)
    model.to(dtype)


def _read_config(folder: Path) -> GPTConfig:
    path = folder / "config.json"
    raw = read_json(path, optional=False)
    try:
        config = from_hf(raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path} lacks the key {error}, which its model_type needs.") from error
    # Chat models often name the token that ends a turn only there.
    path = folder / "generation_config.json"
    settings = read_json(path)
    try:
        return config.with_eos(generation_eos_ids(settings))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a Hugging Face folder, from one file or its shards; safetensors is preferred to pickles."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if not index.exists():
            continue
        state: dict[str, Tensor] = {}
        for file in _shards(index):
            if not file.exists():
                raise InputError(f"{file} is missing; {index.name} names it. Copy the whole folder again.")
            state |= _read_file(file)
        return state
    raise InputError(
        f"{folder} has a config.json but no model.safetensors and no pytorch_model.bin; put the weights there."
    )


def _shards(index: Path) -> list[Path]:
    """The files named by an index of weights, in the index's folder."""
    try:
        names = sorted(set(read_json(index, optional=False)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index} is not an index of weights ({error!r}); copy or fetch it again."
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise InputError(f"{index} names the file {name!r}; expected names of files in its folder.")
    return [index.parent / name for name in names]


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".bin":
        return read_bin(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged ({error}); copy or fetch it again.") from error
    except OSError as error:  # safetensors' error does not name the file
        raise OSError(f"{file} cannot be read: {error}") from error
