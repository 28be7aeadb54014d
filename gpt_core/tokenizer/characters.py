"""Vocabularies whose tokens are single characters."""

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

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
