"""Model folders: Hugging Face's layout both ways, and GGUF in.

Our parameters have one set of names for all families; the tables below say what Hugging Face calls them.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_core.attention import Rope
from gpt_core.config import GPTConfig, from_hf, to_hf
from gpt_core.errors import InputError
from gpt_core.files import atomic_write, fsync_path
from gpt_core.gguf_file import read_gguf
from gpt_core.hub import gguf_in, resolve
from gpt_core.model import GPT

# Llama and Qwen3, per block and outside the blocks
ROTARY_BLOCK = {
    "norm1": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "norm2": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
ROTARY_TOP = {"wte": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
# GPT-2: q, k and v are one matrix, and every matrix of a block is a "Conv1D", stored transposed
GPT2_BLOCK = {
    "norm1": "ln_1",
    "attn.q": "attn.c_attn",
    "attn.k": "attn.c_attn",
    "attn.v": "attn.c_attn",
    "attn.o": "attn.c_proj",
    "norm2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
GPT2_TOP = {"wte": "transformer.wte", "wpe": "transformer.wpe", "norm": "transformer.ln_f", "head": "lm_head"}


def load(name_or_folder: str | Path) -> GPT:
    """Load a GPT in float32 and evaluation mode; see `GPT.from_pretrained`."""
    folder = resolve(name_or_folder)
    if (folder / "config.json").exists():
        config = _read_config(folder / "config.json")
        model = _empty(config)
        state = _from_hf_names(_read_tensors(folder), model)
    elif gguf := gguf_in(folder):
        config, state = read_gguf(gguf)
        model = _empty(config)
    else:
        raise InputError(f"{folder} is not a model folder: it has neither config.json nor a .gguf file.")
    _assign(model, state, folder)
    return model.eval()


def save(model: GPT, folder: Path, weights: dict[str, Tensor] | None) -> None:
    """Write `model` as a Hugging Face folder; see `GPT.save_pretrained`."""
    raw = to_hf(model.config)
    state = _to_hf_names(model, model.state_dict() if weights is None else weights)
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


def _names(model: GPT) -> dict[str, str]:
    """Our parameter names → Hugging Face's, for this model's family."""
    gpt2 = model.config.model_type == "gpt2"
    block, top = (GPT2_BLOCK, GPT2_TOP) if gpt2 else (ROTARY_BLOCK, ROTARY_TOP)
    names = {}
    for ours in model.state_dict():
        path, _, kind = ours.rpartition(".")  # kind: weight or bias
        if path.startswith("blocks."):
            _, layer, part = path.split(".", 2)
            prefix = f"transformer.h.{layer}" if gpt2 else f"model.layers.{layer}"
            names[ours] = f"{prefix}.{block[part]}.{kind}"
        else:
            names[ours] = f"{top[path]}.{kind}"
    return names


def _is_conv1d(name: str) -> bool:
    return ".c_" in name and name.endswith(".weight")


def _from_hf_names(raw: dict[str, Tensor], model: GPT) -> dict[str, Tensor]:
    """Rename what a Hugging Face file holds, split GPT-2's fused matrix, and drop what is no weight."""
    if model.config.model_type == "gpt2":
        # both key styles: with the language model's prefix "transformer.", and the bare model's without
        raw = {
            k if k.startswith(("transformer.", "lm_head")) else f"transformer.{k}": v for k, v in raw.items()
        }
        # old files carry the causal mask as a buffer
        raw = {k: v for k, v in raw.items() if not k.endswith((".attn.bias", ".attn.masked_bias"))}
    else:  # the bare model, as sentence-transformers saves it, has no prefix "model."
        raw = {k if k.startswith(("model.", "lm_head")) else f"model.{k}": v for k, v in raw.items()}
    if model.head is None:
        raw.pop("lm_head.weight", None)  # a tied head that was written twice
    state: dict[str, Tensor] = {}
    used = set()
    for ours, theirs in _names(model).items():
        if theirs not in raw:
            continue
        used.add(theirs)
        tensor = raw[theirs].t() if _is_conv1d(theirs) else raw[theirs]
        if ".c_attn." in theirs:
            part = ("q", "k", "v").index(ours.split(".")[-2])
            tensor = tensor.chunk(3)[part]
        state[ours] = tensor.contiguous()
    state |= {name: raw[name] for name in raw.keys() - used if not name.endswith("rotary_emb.inv_freq")}
    return state


def _to_hf_names(model: GPT, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_from_hf_names`."""
    parts: dict[str, list[Tensor]] = {}
    for ours, theirs in _names(model).items():
        parts.setdefault(theirs, []).append(state[ours])  # q, k, v meet in this order
    return {
        name: (torch.cat(ts).t() if _is_conv1d(name) else torch.cat(ts)).contiguous()
        for name, ts in parts.items()
    }
