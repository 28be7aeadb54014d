"""GPT-2's BPE from files in the package, for tiktoken and `tokenizers`, and a character tokenizer."""

import json
from functools import lru_cache
from pathlib import Path

import tiktoken
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

ASSETS = Path(__file__).parent / "assets" / "gpt2"
GPT2_EOS = "<|endoftext|>"
GPT2_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
# GPT-2 writes each byte as one visible character: printable bytes as themselves, the others from U+0100 on.
BYTE_OF = {chr(b): b for b in _PRINTABLE} | {
    chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in _PRINTABLE)
}


@lru_cache(maxsize=1)
def gpt2_tiktoken() -> tiktoken.Encoding:
    """GPT-2's BPE in tiktoken, from files in the package; tiktoken.get_encoding would download them."""
    ids: dict[str, int] = json.loads((ASSETS / "encoder.json").read_text(encoding="utf-8"))
    eos = ids.pop(GPT2_EOS)
    # tiktoken merges by rank; in GPT-2 the id of a token is the rank of its merge.
    ranks = {bytes(BYTE_OF[c] for c in token): i for token, i in ids.items()}
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={GPT2_EOS: eos}
    )


@lru_cache(maxsize=1)
def gpt2_rust() -> RustTokenizer:
    """GPT-2's BPE in `tokenizers`, whose file format transformers reads."""
    model = models.BPE.from_file(str(ASSETS / "encoder.json"), str(ASSETS / "vocab.bpe"))
    backend = RustTokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(GPT2_EOS, special=True, normalized=False)])
    return backend


NO_TOKEN = "\x00unknown"  # in no vocabulary, so an unknown character raises an error


def character_backend(vocab: dict[str, int], unknown: str = NO_TOKEN) -> RustTokenizer:
    """A tokenizer with one token per character.

    Args:
        vocab: id of each character.
        unknown: the token of characters that are not in `vocab`; by default they raise an error.
    """
    backend = RustTokenizer(models.WordLevel(vocab, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return backend
