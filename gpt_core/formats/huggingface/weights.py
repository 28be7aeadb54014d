"""Map between our weight names, the same for all families, and Hugging Face's names of each family."""

import re
import sys
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT


class Names(NamedTuple):
    """Weight names of one family.

    Attributes:
        base: prefix of the base model's names in the language model.
        blocks: name of the list of blocks, without `base`.
        block: parts of a block, ours → theirs.
        top: parts outside the blocks, without `base` and without the head, which has no prefix.
    """

    base: str
    blocks: str
    block: dict[str, str]
    top: dict[str, str]


ROTARY = Names(
    "model.",
    "layers",
    {
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
    },
    {"wte": "embed_tokens", "norm": "norm"},
)
# q, k and v are one matrix, and every matrix of a block is a "Conv1D", stored transposed
GPT2 = Names(
    "transformer.",
    "h",
    {
        "norm1": "ln_1",
        "attn.q": "attn.c_attn",
        "attn.k": "attn.c_attn",
        "attn.v": "attn.c_attn",
        "attn.o": "attn.c_proj",
        "norm2": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    },
    {"wte": "wte", "wpe": "wpe", "norm": "ln_f"},
)
GPT_NEO = GPT2._replace(
    block=GPT2.block
    | {
        "attn.q": "attn.attention.q_proj",
        "attn.k": "attn.attention.k_proj",
        "attn.v": "attn.attention.v_proj",
        "attn.o": "attn.attention.out_proj",
    },
)
FAMILIES = {"gpt2": GPT2, "gpt_neo": GPT_NEO, "llama": ROTARY, "qwen3": ROTARY}
HEAD = "lm_head"
# Buffers in files that are not weights: rotary frequencies, and causal masks in old files of GPT-2 and GPT-Neo
BUFFER_SUFFIXES = (
    ".rotary_emb.inv_freq",
    *(".attn.bias", ".attn.masked_bias", ".attn.attention.bias", ".attn.attention.masked_bias"),
)

# Names that wrappers of a model put into the names of its weights: torch.compile, FSDP and activation checkpointing
# anywhere; DDP and DeepSpeed (module), peft and training frameworks before the whole name.
WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
OUTER_PREFIXES = ("module.", "base_model.model.", "model.")
# Weights of an adapter, which changes the model's own weights
ADAPTER = re.compile(
    r"\.(lora_|base_layer\.|modules_to_save\.|original_module\.|ia3_|oft_|boft_|hada_|lokr_|vera_)"
)


def hf_names(model: GPT) -> dict[str, str]:
    """Our parameter names → Hugging Face's for the model's family; the family "zhizhi" uses our names."""
    if model.config.model_type == "zhizhi":
        return {name: name for name in model.state_dict()}
    family = FAMILIES[model.config.model_type]
    names = {}
    for ours in model.state_dict():
        path, _, kind = ours.rpartition(".")  # kind: weight or bias
        if path.startswith("blocks."):
            _, layer, part = path.split(".", 2)
            names[ours] = f"{family.base}{family.blocks}.{layer}.{family.block[part]}.{kind}"
        elif path == "head":
            names[ours] = f"{HEAD}.{kind}"
        else:
            names[ours] = f"{family.base}{family.top[path]}.{kind}"
    return names


def unwrapped(raw: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The tensors of a Hugging Face file by the names of the family's language model, without buffers.

    Prefixes of wrappers such as torch.compile and DDP are removed, and the prefix `base` is added where it is missing,
    as in the base models that sentence-transformers saves. Other tensors keep their names.

    Raises:
        InputError: for the weights of an adapter, or two tensors of one name.
    """
    if adapted := next((name for name in raw if ADAPTER.search(name)), None):
        raise InputError(
            f"it holds the weights of an adapter, first {adapted}; save the merged model instead: "
            "model.merge_and_unload().save_pretrained(folder) in peft"
        )
    family = FAMILIES.get(config.model_type)
    base = "" if family is None else family.base
    parts = (
        ("blocks", "wte", "wpe", "norm", "head") if family is None else (family.blocks, *family.top.values())
    )
    inner = tuple(f"{part}." for part in parts)
    known = (f"{HEAD}.", *inner, *(base + part for part in inner))
    found: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        if name.endswith(BUFFER_SUFFIXES):
            continue
        new = WRAPPERS.sub("", name).removeprefix(".")
        while not new.startswith(known) and (prefix := next(filter(new.startswith, OUTER_PREFIXES), None)):
            new = new.removeprefix(prefix)
        new = new if new.startswith(known) else name
        new = base + new if new.startswith(inner) and not new.startswith(base) else new
        if new in found:
            raise InputError(f"it holds {new} twice, also as {name}; remove one of the two tensors")
        found[new] = tensor
    return found


def with_head(raw: dict[str, Tensor], config: GPTConfig) -> tuple[dict[str, Tensor], GPTConfig]:
    """Settle, as transformers does, what the output layer of a model is whose config ties it to the embedding.

    A file may hold only one of the two matrices, which is both then; or two that differ, which are not tied, with a
    note on stderr.

    Args:
        raw: tensors by the names of `unwrapped`.
        config: the model's config.
    """
    if not config.tie_embeddings or config.model_type == "zhizhi":
        return raw, config
    family = FAMILIES[config.model_type]
    embedding, head = f"{family.base}{family.top['wte']}.weight", f"{HEAD}.weight"
    if head not in raw:
        return raw, config
    rest = {name: tensor for name, tensor in raw.items() if name != head}
    if embedding not in raw:
        return rest | {embedding: raw[head]}, config
    if raw[head].shape == raw[embedding].shape and not (raw[head] != raw[embedding]).any():
        return rest, config
    print(
        "tie_word_embeddings is true in config.json, but the output layer in the file differs from the token "
        "embeddings; the model has an output layer of its own",
        file=sys.stderr,
    )
    return raw, replace(config, tie_embeddings=False)


def from_hf_names(raw: dict[str, Tensor], model: GPT) -> dict[str, Tensor]:
    """Rename the tensors of `unwrapped` to ours and split GPT-2's fused q, k, v matrix, without copies.

    Tensors that `model` does not have keep their names.
    """
    if model.config.model_type == "zhizhi":
        return raw
    conv1d = model.config.model_type == "gpt2"
    state: dict[str, Tensor] = {}
    used = set()
    for ours, theirs in hf_names(model).items():
        if theirs not in raw:
            continue
        used.add(theirs)
        # The caller checks shapes; tensors of a wrong shape must not raise here.
        tensor = raw[theirs]
        if conv1d and _is_conv1d(theirs) and tensor.dim() == 2:
            tensor = tensor.t()
        if ".c_attn." in theirs and tensor.dim():
            tensor = tensor.tensor_split(3)[("q", "k", "v").index(ours.split(".")[-2])]
        state[ours] = tensor
    return state | {name: raw[name] for name in raw.keys() - used}


def to_hf_names(model: GPT, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_hf_names`, for a `state_dict` of `model`."""
    conv1d = model.config.model_type == "gpt2"
    parts: dict[str, list[Tensor]] = {}
    for ours, theirs in hf_names(model).items():
        parts.setdefault(theirs, []).append(state[ours])  # in the order q, k, v
    return {
        name: (torch.cat(ts).t() if conv1d and _is_conv1d(name) else torch.cat(ts)).contiguous()
        for name, ts in parts.items()
    }


def _is_conv1d(name: str) -> bool:
    return ".c_" in name and name.endswith(".weight")
