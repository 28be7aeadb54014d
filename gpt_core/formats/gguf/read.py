"""GGUF, llama.cpp's file format: weights dequantised to float32, the tokenizer, the chat template.

Tensor layouts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's conversion scripts.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.formats.gguf.container import GGUF
from gpt_core.formats.gguf.rope import read_scaling
from gpt_core.model.config import GPTConfig

BLOCK = {
    "attn_norm": "norm1",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_output": "attn.o",
    "attn_q_norm": "attn.q_norm",
    "attn_k_norm": "attn.k_norm",
    "ffn_norm": "norm2",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
ROPE_FREQS = "rope_freqs.weight"  # how many times as slow each rotary pair is
TOP = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "norm", "output": "head"}

# How text is cut before byte-pair merging, by the name that llama.cpp gives the scheme (`tokenizer.ggml.pre`)
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {
    "qwen2": CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SCHEMES = ("gpt-2", "smollm", *SPLITS)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType


def pre_tokenizer(scheme: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before byte-pair merging under one of SCHEMES."""
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=scheme not in SPLITS)
    if scheme in SPLITS:
        split = pre_tokenizers.Split(Regex(SPLITS[scheme]), behavior="isolated")
        return pre_tokenizers.Sequence([split, by_bytes])
    if scheme == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    return by_bytes


def read_gguf(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Read a GGUF file of architecture gpt2, llama or qwen3.

    Returns:
        The shape, and float32 weights under our names.

    Raises:
        InputError: for a torn file, another architecture, or a RoPE scaling that this GPT does not compute.
    """
    file = GGUF(path)
    arch = file.need("general.architecture")
    if arch not in ("gpt2", "llama", "qwen3"):
        raise InputError(f"{path} has architecture {arch!r}; expected gpt2, llama or qwen3.")
    config = _config(arch, file)
    state: dict[str, Tensor] = {}
    for name in file.places:
        if name == ROPE_FREQS:
            continue
        value = file.tensor(name)
        stem, _, kind = name.rpartition(".")
        in_block = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        if in_block is None:
            state[f"{TOP.get(stem, stem)}.{kind}"] = value
            continue
        prefix, part = f"blocks.{in_block[1]}", in_block[2]
        if part == "attn_qkv":  # GPT-2
            for third, ours in zip(value.tensor_split(3), ("q", "k", "v"), strict=True):
                state[f"{prefix}.attn.{ours}.{kind}"] = third.contiguous()
            continue
        if arch == "llama" and part in ("attn_q", "attn_k"):
            value = _unpermute(value, config.n_head if part == "attn_q" else config.n_kv_head)
        state[f"{prefix}.{BLOCK.get(part, part)}.{kind}"] = value
    return config, state


def _config(arch: str, file: GGUF) -> GPTConfig:
    def number(key: str, default: float | None, whole: bool = False) -> Any:
        value = file.need(f"{arch}.{key}") if default is None else file.get(f"{arch}.{key}", default)
        if type(value) not in ((int,) if whole else (int, float)) or value <= 0:
            wanted = "a whole number of at least 1" if whole else "a number above 0"
            raise InputError(f"{file.path} has {arch}.{key} = {value!r}; expected {wanted}.")
        return value

    def size(key: str, default: int | None = None) -> int:
        return number(key, default, whole=True)

    n_embd, n_head = size("embedding_length"), size("attention.head_count")
    ids: dict[str, Any] = _special_ids(file)
    turn = ids.pop("eot")
    if turn is not None and turn != ids["eos"]:
        ids["eos"] = (ids["eos"], turn)
    common = {f"{name}_id": i for name, i in ids.items()} | {
        "vocab_size": len(file.texts("tokenizer.ggml.tokens")), "block_size": size("context_length"),
        "n_layer": size("block_count"), "n_head": n_head, "n_embd": n_embd, "n_inner": size("feed_forward_length"),
        "tie_embeddings": "output.weight" not in file.places,
    }  # fmt: skip
    if arch == "gpt2":
        return GPTConfig.gpt2(**common, norm_eps=number("attention.layer_norm_epsilon", None))
    head_dim = size("attention.key_length", n_embd // n_head)
    if (turned := size("rope.dimension_count", head_dim)) != head_dim:
        raise InputError(
            f"{file.path} has {arch}.rope.dimension_count = {turned}; this GPT turns whole heads, {head_dim} wide."
        )
    factors = file.tensor(ROPE_FREQS) if ROPE_FREQS in file.places else None
    return GPTConfig(
        **common,
        n_kv_head=size("attention.head_count_kv", n_head),
        head_dim=head_dim,
        attn_bias="blk.0.attn_q.bias" in file.places,
        mlp_bias="blk.0.ffn_up.bias" in file.places,
        qk_norm=arch == "qwen3",
        rope_theta=number("rope.freq_base", 10000.0),
        rope_scaling=read_scaling(arch, file.metadata, factors, file.path),
        norm_eps=number("attention.layer_norm_rms_epsilon", None),
    )


def _special_ids(file: GGUF) -> dict[str, int | None]:
    """The ids of bos, eos, pad and eot, None where the file names none.

    eot, the end of a turn, ends a text, too, and stands in for eos where there is none.
    """
    n_tokens, ids = len(file.texts("tokenizer.ggml.tokens")), {}
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding", "eot": "eot"}.items():
        ids[name] = file.get(f"tokenizer.ggml.{key}_token_id")
        if ids[name] is not None and ids[name] not in range(n_tokens):
            raise InputError(
                f"{file.path} has tokenizer.ggml.{key}_token_id = {ids[name]!r}; expected one of its {n_tokens} tokens."
            )
    return ids | {"eos": ids["eot"] if ids["eos"] is None else ids["eos"]}


def _unpermute(weight: Tensor, n_head: int) -> Tensor:
    """llama.cpp turns neighbouring pairs (x_2i, x_2i+1) where we turn (x_i, x_i+half): reorder the rows back."""
    out, *rest = weight.shape
    if out % (2 * n_head):  # of no such heads: whoever compares it with the shape refuses it as it is
        return weight
    return (
        weight.view(n_head, out // n_head // 2, 2, *rest).transpose(1, 2).reshape(weight.shape).contiguous()
    )


def read_gguf_tokenizer(path: Path) -> tuple[RustTokenizer, dict[str, int | None], str | None]:
    """The tokenizer inside a GGUF file.

    Returns:
        A `tokenizers` tokenizer, the ids of bos, eos and pad, and the chat template.

    Raises:
        InputError: for a vocabulary that is not byte-level BPE, or an unknown way of cutting text before the merges.
    """
    file = GGUF(path)
    kind, pre = file.need("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise InputError(f"{path} has a tokenizer of kind {kind!r}; expected gpt2, which is byte-level BPE.")
    tokens = file.texts("tokenizer.ggml.tokens")
    parted = [m.partition(" ") for m in file.texts("tokenizer.ggml.merges")]
    merges = [(left, right) for left, _, right in parted]
    types = file.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if pre not in ("default", *SCHEMES):
        raise InputError(f"{path} cuts text by {pre!r}; expected default, {' or '.join(SCHEMES)}.")
    # an unused token stands for a row of the model's matrix that no text comes to
    n_types = len(types) if isinstance(types, list) else "no list of"
    if n_types != len(tokens):
        raise InputError(
            f"{path} has {len(tokens)} tokens but {n_types} token types; convert the model again."
        )
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    odd = next((pair for pair in merges if not pair[1] or "".join(pair) not in vocab), None)
    if odd is not None:  # over which `tokenizers` can panic, which is no Exception
        raise InputError(
            f"{path} has a vocabulary and merges that do not fit together: {' '.join(odd)!r} makes no token."
        )
    try:
        tokenizer = RustTokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # tokenizers has no narrower one
        raise InputError(f"{path} has a vocabulary and merges that do not fit together: {error}.") from error
    tokenizer.pre_tokenizer = pre_tokenizer("gpt-2" if pre == "default" else pre)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    for special in (True, False):
        wanted = CONTROL if special else USER_DEFINED
        added = [
            AddedToken(t, special=special, normalized=False)
            for t, k in zip(tokens, types, strict=True)
            if k == wanted
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    ids = _special_ids(file)
    del ids["eot"]
    _add_ends(tokenizer, tokens, ids, file)
    return tokenizer, ids, file.get("tokenizer.chat_template")


def _add_ends(tokenizer: RustTokenizer, tokens: list[str], ids: dict[str, int | None], file: GGUF) -> None:
    """Where the file says so, `add_special_tokens` puts bos before a text and eos behind it."""
    ends: dict[str, int] = {
        name: i
        for name in ("bos", "eos")
        if file.get(f"tokenizer.ggml.add_{name}_token", False) and (i := ids[name]) is not None
    }
    if ends:
        before, behind = ([tokens[ends[name]]] if name in ends else [] for name in ("bos", "eos"))
        single = [*before, "$A", *behind]
        special = [(tokens[i], i) for i in ends.values()]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
