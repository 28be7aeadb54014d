"""GPT-2's BPE, from the files that ship with the package, in both libraries that we use."""

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
# GPT-2 writes each byte as one visible character: a printable one as itself, the others from U+0100 on.
BYTE_OF = {chr(b): b for b in _PRINTABLE} | {
    chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in _PRINTABLE)
}


@lru_cache(maxsize=1)
def gpt2_tiktoken() -> tiktoken.Encoding:
    """GPT-2's BPE from the files that ship with the package; tiktoken's own way downloads them."""
    ids: dict[str, int] = json.loads((ASSETS / "encoder.json").read_text(encoding="utf-8"))
    eos = ids.pop(GPT2_EOS)
    # an id is the rank of the merge that made its token, which is what tiktoken merges by
    ranks = {bytes(BYTE_OF[c] for c in token): i for token, i in ids.items()}
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={GPT2_EOS: eos}
    )


@lru_cache(maxsize=1)
def gpt2_rust() -> RustTokenizer:
    """The same in `tokenizers`, whose file format is the one that others open."""
    model = models.BPE.from_file(str(ASSETS / "encoder.json"), str(ASSETS / "vocab.bpe"))
    backend = RustTokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(GPT2_EOS, special=True, normalized=False)])
    return backend


NO_TOKEN = "\x00unknown"  # in no vocabulary, so that an unknown character is an error and not a silent token


def character_backend(vocab: dict[str, int], unknown: str = NO_TOKEN) -> RustTokenizer:
    """A tokenizer that makes a token of each character.

    Args:
        vocab: ids of the characters.
        unknown: the token of a character that `vocab` lacks; by default such a character is an error.
    """
    backend = RustTokenizer(models.WordLevel(vocab, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return backend
