"""Check that token shards were made with a tokenizer."""

from collections.abc import Iterable

from gpt_core.common.errors import InputError
from gpt_core.data.shards import Shard
from gpt_core.formats.nanogpt import nanogpt_characters
from gpt_core.tokenizer.builtin import character_backend
from gpt_core.tokenizer.tokenizer import Tokenizer


def check_tokenizer(shards: Iterable[Shard], tokenizer: Tokenizer, name: str) -> None:
    """Check that the shards were made with the tokenizer, called `name` in the message.

    A shard's header has the fingerprint of its tokenizer. nanoGPT's files have no header: they were made with the
    characters of the `meta.pkl` beside them, if it has any, else with any tokenizer.

    Raises:
        InputError: naming both tokenizers, if not.
    """
    for shard in shards:
        if shard.header is None:
            _check_characters(shard, tokenizer, name)
        elif shard.tokenizer != tokenizer.fingerprint:
            raise InputError(
                f"{shard.path} was made with the tokenizer {shard.tokenizer}, but {name} is {tokenizer.fingerprint}. "
                "Use the tokenizer in the folder of the shards, or prepare the data again."
            )


def _check_characters(shard: Shard, tokenizer: Tokenizer, name: str) -> None:
    meta = shard.path.with_name("meta.pkl")
    try:
        characters = nanogpt_characters(meta) if meta.exists() else {}
    except InputError:  # unreadable, or without characters: the user has named the tokenizer
        return
    if characters and Tokenizer(character_backend(characters)).fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"{meta} is a vocabulary of {len(characters)} characters, but the tokenizer of {name} has "
            f"{tokenizer.vocab_size} tokens; use a tokenizer with these characters, or remove meta.pkl if it is not "
            "that of the data."
        )
