"""Read and write the tokenizer of a GGUF file."""

import json
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from gpt_core.common.errors import InputError
from gpt_core.formats.gguf.container import GGUF
from gpt_core.model.config import GPTConfig
from gpt_core.tokenizer.tokenizer import Tokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

# Pre-tokenization patterns by llama.cpp's name of the scheme (`tokenizer.ggml.pre`)
SPLITS = {
    "qwen2": CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SCHEMES = ("gpt-2", "smollm", *SPLITS)

# What llama.cpp assumes where the file does not say it (llama_vocab::impl::load in llama-vocab.cpp). Not taken over: it
# takes token 11 for a missing begin or end token, which is the comma of most vocabularies.
ADD_BOS = ("llama-bpe",)  # schemes that put the begin token before a text
# Tokens that end a text whatever the file's keys say, and by whose text a missing key is found
END_TEXTS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>", "<turn|>",
    "<end_of_utterance>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
}  # fmt: skip
END_KEYS = {
    "eot": set[str](),
    "eom": set[str](),
    "fim_pad": {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"},
    "fim_rep": {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"},
    "fim_sep": {"<|file_sep|>"},
}

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType


def pre_tokenizer(scheme: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of one of SCHEMES."""
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=scheme not in SPLITS)
    if scheme in SPLITS:
        split = pre_tokenizers.Split(Regex(SPLITS[scheme]), behavior="isolated")
        return pre_tokenizers.Sequence([split, by_bytes])
    if scheme == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    return by_bytes


def read_special_ids(file: GGUF) -> tuple[dict[str, int | None], tuple[int, ...]]:
    """The ids of bos, eos and pad, None where there is no id; and all ids at which llama.cpp ends a text, eos first.

    Without an eos, the end of a turn is used as eos, since it also ends a text.
    """
    tokens = file.texts("tokenizer.ggml.tokens")

    def by_key(key: str) -> int | None:
        token = file.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None and token not in range(len(tokens)):
            raise InputError(
                f"{file.path} has tokenizer.ggml.{key}_token_id = {token!r}; expected an id below {len(tokens)}."
            )
        return token

    by_text = [i for i, text in enumerate(tokens) if text in END_TEXTS]
    eos = next((i for i in (by_key("eos"), by_key("eot"), *by_text) if i is not None), None)
    ends = [] if eos is None else [eos]
    for key, texts in END_KEYS.items():
        named = by_key(key)
        ends += [i for i, text in enumerate(tokens) if text in texts] if named is None else [named]
    return (
        {"bos": by_key("bos"), "eos": eos, "pad": by_key("padding")},
        tuple(dict.fromkeys(ends + by_text)),
    )


def read_gguf_tokenizer(path: Path) -> tuple[RustTokenizer, dict[str, int | None], str | None]:
    """The tokenizer inside a GGUF file.

    Returns:
        A `tokenizers` tokenizer, the ids of bos, eos and pad, and the chat template.

    Raises:
        InputError: for a vocabulary that is not byte-level BPE, or an unknown pre-tokenizer.
    """
    file = GGUF(path)
    kind, pre = file.require("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise InputError(f"{path} has a tokenizer of kind {kind!r}; expected gpt2, which is byte-level BPE.")
    tokens = file.texts("tokenizer.ggml.tokens")
    parted = [m.partition(" ") for m in file.texts("tokenizer.ggml.merges")]
    merges = [(left, right) for left, _, right in parted]
    types = file.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if pre not in ("default", *SCHEMES):
        raise InputError(f"{path} has the pre-tokenizer {pre!r}; expected default, {' or '.join(SCHEMES)}.")
    n_types = len(types) if isinstance(types, list) else "no list of"
    if n_types != len(tokens):
        raise InputError(
            f"{path} has {len(tokens)} tokens but {n_types} token types; convert the model again."
        )
    types = [CONTROL if t in END_TEXTS else kind for t, kind in zip(tokens, types, strict=True)]
    # An unused token only fills a row of the embedding matrix; no text produces it.
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    odd = next((pair for pair in merges if not pair[1] or "".join(pair) not in vocab), None)
    if odd is not None:  # `tokenizers` can panic on it, which no `except Exception` catches
        raise InputError(
            f"{path} has a vocabulary and merges that do not match each other: {' '.join(odd)!r} makes no token; "
            "convert the model again."
        )
    try:
        tokenizer = RustTokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(
            f"{path} has a vocabulary and merges that do not match each other: {error}."
        ) from error
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
    ids, _ = read_special_ids(file)
    _add_ends(tokenizer, tokens, ids, file)
    return tokenizer, ids, file.get("tokenizer.chat_template")


def _add_ends(tokenizer: RustTokenizer, tokens: list[str], ids: dict[str, int | None], file: GGUF) -> None:
    """Let `add_special_tokens` add bos before and eos after a text if the file, else llama.cpp's default, says so."""
    defaults = {"bos": file.get("tokenizer.ggml.pre") in ADD_BOS, "eos": False}
    ends: dict[str, int] = {
        name: i
        for name, default in defaults.items()
        if file.get(f"tokenizer.ggml.add_{name}_token", default) and (i := ids[name]) is not None
    }
    if ends:
        before, behind = ([tokens[ends[name]]] if name in ends else [] for name in ("bos", "eos"))
        single = [*before, "$A", *behind]
        special = [(tokens[i], i) for i in ends.values()]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, config: GPTConfig) -> None:
    """Add a byte-level BPE, its special tokens and its chat template.

    Rows of the embedding matrix without a token get names such as [PAD50257], as in llama.cpp's converter.

    Raises:
        InputError: for another kind of tokenizer, a pre-tokenizer that llama.cpp has no name for, or no end-of-text
            token.
    """
    backend = tokenizer.rust
    content = json.loads(backend.to_str())
    scheme = scheme_of(content)
    texts = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
    added = backend.get_added_tokens_decoder()
    tokens, types = [], []
    for i in range(config.vocab_size):
        if i in texts:
            kind = TokenType.NORMAL
            if i in added:
                kind = TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
        else:
            kind = TokenType.UNUSED
        tokens.append(texts.get(i, f"[PAD{i}]"))
        types.append(kind)
    if len(set(tokens)) < len(tokens):
        raise InputError(
            "The tokenizer has a text token of the form [PAD…], which is reserved in GGUF; export with --to hf."
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(scheme)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    _add_special_ids(writer, tokenizer, config, tokens)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _add_special_ids(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, config: GPTConfig, tokens: list[str]
) -> None:
    ids = dict.fromkeys((*tokenizer.eos_ids, *config.eos_ids))
    eos_ids = [i for i in ids if 0 <= i < len(tokens)]  # an id beyond the vocabulary ends no text
    if not eos_ids:
        raise InputError(
            "The tokenizer has no end-of-text token, and llama.cpp would use token 11 as one; set eos_token in its "
            "tokenizer_config.json."
        )
    bos_id, pad_id = (
        next((i for i in ids if i is not None), None)
        for ids in ((tokenizer.bos_id, config.bos_id), (tokenizer.pad_id, config.pad_id))
    )
    eos_id = eos_ids[0]
    writer.add_eos_token_id(eos_id)
    writer.add_bos_token_id(eos_id if bos_id is None else bos_id)  # llama.cpp would use token 11 by default
    if pad_id is not None:
        writer.add_pad_token_id(pad_id)
    # The format has keys for two further ends, of a turn and of a message; those that llama.cpp knows need none.
    known = {i for i in eos_ids if tokens[i] in END_TEXTS}
    further = sorted(eos_ids[1:], key=lambda i: i in known)
    if without_key := [i for i in further[2:] if i not in known]:
        raise InputError(
            f"The model has {len(eos_ids)} end-of-text tokens, of which GGUF cannot name {tokens[without_key[0]]!r}; "
            "name fewer as eos_token_id in config.json and generation_config.json."
        )
    for token, add in zip(further, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(token)
    plain, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    for before in (False, True):
        for behind in (False, True):
            if whole == [bos_id] * before + plain + [eos_id] * behind:
                writer.add_add_bos_token(before)
                writer.add_add_eos_token(behind)
                return
    raise InputError(
        "The tokenizer adds other tokens to a text than its begin and end token; export with --to hf."
    )


def scheme_of(content: dict[str, Any]) -> str:
    """llama.cpp's name for a tokenizer's pre-tokenization, from the content of its tokenizer.json.

    Raises:
        InputError: for a tokenizer that is not byte-level BPE, or a pre-tokenizer without a name.
    """
    bpe = content["model"]
    if bpe["type"] != "BPE":
        raise InputError(
            f"GGUF export does not support a vocabulary of kind {bpe['type']}; export with --to hf."
        )
    ours = _comparable(content["pre_tokenizer"])
    scheme = next((s for s in SCHEMES if _comparable(_as_json(pre_tokenizer(s))) == ours), None)
    plain = not any(
        bpe.get(key)
        for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback")
    )
    # both libraries drop bytes without a token, unless there is an unk_token
    whole = bpe.get("unk_token") is None or set(pre_tokenizers.ByteLevel.alphabet()) <= set(bpe["vocab"])
    normal = content["normalizer"] is None or (scheme == "qwen2" and content["normalizer"] == {"type": "NFC"})
    same_merging = bool(bpe.get("ignore_merges")) == (scheme == "llama-bpe")
    if scheme is None or not (plain and whole and normal and same_merging):
        raise InputError(
            f"The tokenizer splits or merges text in a way that llama.cpp has no name for (has: {', '.join(SCHEMES)}); "
            "export with --to hf."
        )
    return scheme


def _as_json(way: pre_tokenizers.PreTokenizer) -> Any:
    backend = RustTokenizer(models.BPE())
    backend.pre_tokenizer = way
    return json.loads(backend.to_str())["pre_tokenizer"]


def _comparable(value: Any) -> Any:
    """`value` without `trim_offsets`, which does not affect the ids."""
    if isinstance(value, dict):
        return {key: _comparable(v) for key, v in value.items() if key != "trim_offsets"}
    return [_comparable(v) for v in value] if isinstance(value, list) else value
