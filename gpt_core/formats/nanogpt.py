"""Read checkpoints of nanoGPT (`ckpt.pt`) and small-gpt (`.pth`).

nanoGPT (https://github.com/karpathy/nanoGPT) and small-gpt (https://github.com/CJL196/small-gpt) compute GPT-2's graph
with the exact GELU. Models without biases get zero biases: the same function, in a format that every tool reads.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import tiktoken
import torch
from tokenizers import Tokenizer as RustTokenizer
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.formats.pickles import are_tensors, read_plain_pickle, read_torch
from gpt_core.model.config import GPTConfig
from gpt_core.tokenizer.builtin import character_backend, gpt2_tiktoken

GPT2_VOCABULARIES = (50257, 50304)  # GPT-2's, and nanoGPT's, which is padded to a multiple of 64

# Their names → ours. nanoGPT has q, k and v in one matrix, `attn.c_attn`.
TOP_TO_OURS = {
    "transformer.wte": "wte",
    "transformer.wpe": "wpe",
    "transformer.ln_f": "norm",
    "lm_head": "head",
}
NANOGPT_BLOCK = {
    "ln_1": "norm1",
    "attn.c_proj": "attn.o",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
SMALL_GPT_BLOCK = {
    "ln1": "norm1",
    "attention.W_q": "attn.q",
    "attention.W_k": "attn.k",
    "attention.W_v": "attn.v",
    "attention.out_net": "attn.o",
    "ln2": "norm2",
    "ffn.dense1": "mlp.up",
    "ffn.out_net": "mlp.down",
}
SMALL_GPT_SEP, SMALL_GPT_PAD = 1, 2  # ids of the end of a turn and the end of a dialogue
MASK_SUFFIXES = (".attn.bias", ".attention.attention.mask")  # buffers that hold the causal mask

# small-gpt was trained on dialogues of one line per turn, without system prompts
SMALL_GPT_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('small-gpt does not support system prompts') }}{% endif %}"
    "{{ m['content'] | replace('\\n', ' ') + '\\n' }}{% endfor %}"
)


def checkpoint_in(folder: Path) -> Path | None:
    """nanoGPT's `ckpt.pt` in `folder`, else small-gpt's only `.pth`, else None.

    Raises:
        InputError: if there are several `.pth`.
    """
    if (folder / "ckpt.pt").exists():
        return folder / "ckpt.pt"
    files = sorted(folder.glob("*.pth"))
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise InputError(f"{folder} holds several .pth files ({names}); put each into a separate folder.")
    return files[0] if files else None


def read_checkpoint(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Read a checkpoint of nanoGPT or small-gpt.

    Returns:
        The shape, and the weights under our names.

    Raises:
        InputError: for a damaged file, one of another project, or an invalid shape.
    """
    content = _open(path)
    if "model_args" in content:
        weights, shape, block = content["model"], content["model_args"], NANOGPT_BLOCK
    else:
        weights, shape, block = content["state_dict"], content, SMALL_GPT_BLOCK
    sizes = {
        name: _size(shape, name, path) for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
    }
    state = _our_names(weights, block)
    if shape.get("bias", True) is False:
        _add_zero_biases(state)
    head, embedding = state.get("head.weight"), state.get("wte.weight")
    if head is not None and len(head) != sizes["vocab_size"]:
        raise InputError(
            f"{path} has a head of {len(head)} outputs for {sizes['vocab_size']} tokens; that is a classifier; "
            "only language models can be loaded."
        )
    tied = head is None or (embedding is not None and torch.equal(head.float(), embedding.float()))
    if tied:
        state.pop("head.weight", None)
    special: dict[str, Any] = {}
    if shape is content:
        special = {"eos_id": (SMALL_GPT_SEP, SMALL_GPT_PAD), "pad_id": SMALL_GPT_PAD}
    elif _has_gpt2_vocabulary(path, sizes["vocab_size"]):
        special = dict.fromkeys(("bos_id", "eos_id"), gpt2_tiktoken().eot_token)
    dropout = shape.get("dropout", 0.0)
    config = GPTConfig.gpt2(
        **sizes,
        mlp="gelu_erf",
        tie_embeddings=tied,
        dropout=dropout if isinstance(dropout, float) else 0.0,
        **special,
    )
    return config, state


def read_checkpoint_tokenizer(
    path: Path,
) -> tuple[RustTokenizer | tiktoken.Encoding, dict[str, int | None], str | None]:
    """The tokenizer of a checkpoint of nanoGPT or small-gpt, from the files in its folder.

    nanoGPT: the characters of `meta.pkl`; without that file GPT-2's BPE, if the vocabulary has its size.
    small-gpt: the characters of its training text, sorted by frequency; the checkpoint names the file (`train.txt`).
    A line break is its `<sep>`, which ends a turn; `<pad>` ends a dialogue.

    Returns:
        The tokenizer, the ids of bos, eos and pad, and the chat template.

    Raises:
        InputError: for a file that is missing, damaged or belongs to another model.
    """
    content = _open(path)
    ids: dict[str, int | None] = dict.fromkeys(("bos", "eos", "pad"))
    if "model_args" not in content:
        ids |= {"eos": SMALL_GPT_PAD, "pad": SMALL_GPT_PAD}
        return character_backend(_small_gpt_vocabulary(path, content), "<unk>"), ids, SMALL_GPT_CHAT
    n_tokens = _size(content["model_args"], "vocab_size", path)
    if _has_gpt2_vocabulary(path, n_tokens):
        gpt2 = gpt2_tiktoken()
        return gpt2, ids | {"bos": gpt2.eot_token, "eos": gpt2.eot_token}, None
    return character_backend(_nanogpt_vocabulary(path, content, n_tokens)), ids, None


def _open(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: nanoGPT's has "model_args", small-gpt's has not."""
    content = read_torch(path)
    if isinstance(content, dict):
        if isinstance(content.get("model_args"), dict) and are_tensors(content.get("model")):
            return content
        if "n_layer" in content and are_tensors(content.get("state_dict")):
            return {name: value for name, value in content.items() if name != "model_args"}
    raise InputError(
        f"{path} is not a checkpoint of nanoGPT (model, model_args) or small-gpt (state_dict, n_layer, …)."
    )


def _size(shape: dict[str, Any], name: str, path: Path) -> int:
    value = shape.get(name)
    if type(value) is not int or value < 1:
        raise InputError(f"{path} has {name} = {value!r}; expected a whole number of at least 1.")
    return value


def _our_names(weights: dict[str, Tensor], block: dict[str, str]) -> dict[str, Tensor]:
    """Rename the weights, split nanoGPT's fused q, k, v matrix, and drop buffers."""
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        name = name.removeprefix("_orig_mod.")  # torch.compile's
        if name.endswith(MASK_SUFFIXES) or tensor.dim() == 0:
            continue
        stem, _, kind = name.rpartition(".")  # kind: weight or bias
        if not stem.startswith("transformer.h."):
            state[f"{TOP_TO_OURS.get(stem, stem)}.{kind}"] = tensor
            continue
        layer, _, part = stem.removeprefix("transformer.h.").partition(".")
        if part == "attn.c_attn":
            for third, ours in zip(tensor.tensor_split(3), ("q", "k", "v"), strict=True):
                state[f"blocks.{layer}.attn.{ours}.{kind}"] = third
        else:
            state[f"blocks.{layer}.{block.get(part, part)}.{kind}"] = tensor
    return state


def _add_zero_biases(state: dict[str, Tensor]) -> None:
    """Add the missing biases of a model without biases, as zeros."""
    for name, weight in list(state.items()):
        stem = name.removesuffix(".weight")
        if stem.startswith(("blocks.", "norm")) and stem != name:
            state.setdefault(f"{stem}.bias", torch.zeros(len(weight)))


def _has_gpt2_vocabulary(path: Path, n_tokens: int) -> bool:
    """Whether nanoGPT's checkpoint `path` uses GPT-2's BPE: it has its size, and no other vocabulary in its folder."""
    other = any(path.with_name(name).exists() for name in ("meta.pkl", "tokenizer.json"))
    return n_tokens in GPT2_VOCABULARIES and not other


def _nanogpt_vocabulary(path: Path, content: dict[str, Any], n_tokens: int) -> dict[str, int]:
    """Ids of the characters in the `meta.pkl` beside nanoGPT's checkpoint `path`."""
    meta_path = path.with_name("meta.pkl")
    if not meta_path.exists():
        settings = content.get("config")
        name = settings.get("dataset") if isinstance(settings, dict) else None
        raise InputError(
            f"{path.parent} lacks the vocabulary of its {n_tokens} tokens; put the meta.pkl of nanoGPT's data folder "
            f"{f'({name}) ' if isinstance(name, str) else ''}beside {path.name}."
        )
    vocab = nanogpt_characters(meta_path)
    if len(vocab) != n_tokens:
        raise InputError(
            f"{meta_path} has {len(vocab)} characters, but {path.name} has {n_tokens} tokens; "
            "use the meta.pkl of its training data."
        )
    return vocab


def nanogpt_characters(meta_path: Path) -> dict[str, int]:
    """Ids of the characters in nanoGPT's `meta.pkl`.

    Raises:
        InputError: if the file has no such table.
    """
    meta = read_plain_pickle(meta_path)
    vocab = meta.get("stoi") if isinstance(meta, dict) else None
    if (
        not isinstance(vocab, dict)
        or not all(isinstance(c, str) and len(c) == 1 and type(i) is int for c, i in vocab.items())
        or sorted(vocab.values()) != list(range(len(vocab)))
        or any("\ud800" <= c <= "\udfff" for c in vocab)  # half of a surrogate pair
    ):
        raise InputError(
            f"{meta_path} has no table `stoi` from characters to the ids 0, 1, 2, …; copy it from nanoGPT again."
        )
    return vocab


def _small_gpt_vocabulary(path: Path, content: dict[str, Any]) -> dict[str, int]:
    """Ids of the tokens of small-gpt's checkpoint `path`, counted in its training text as small-gpt does."""
    n_tokens = _size(content, "vocab_size", path)
    named = content.get("dataset")
    name = re.split(r"[/\\]", named)[-1] if isinstance(named, str) else ""
    text_path = path.parent / (name or "train.txt")
    if not text_path.is_file():
        raise InputError(
            f"{path.parent} lacks {text_path.name}, the text that {path.name} was trained on, from which its "
            "vocabulary is built; put it there."
        )
    try:
        text = text_path.read_text(encoding="utf-8")  # converts line breaks to "\n", as small-gpt does
    except UnicodeDecodeError as error:
        raise InputError(
            f"{text_path} is not UTF-8 at byte {error.start}; convert it to UTF-8 first."
        ) from error
    # Dialogues are separated by an empty line, which is not a token. Ties stay in the order of first occurrence.
    counts = Counter(text.replace("\n\n", ""))
    counts.pop("\n", None)
    tokens = ["<unk>", "\n", "<pad>", *(character for character, _ in counts.most_common())]
    if len(tokens) > n_tokens:
        raise InputError(
            f"{text_path} makes a vocabulary of {len(tokens)} tokens, but {path.name} has {n_tokens}; use the "
            "text that it was trained on."
        )
    return {token: i for i, token in enumerate(tokens)}
