"""Open the token shards and the tokenizer of pretraining."""

from pathlib import Path

from tqdm import tqdm

from gpt_core.common.errors import InputError
from gpt_core.data.check_tokenizer import check_tokenizer
from gpt_core.data.shards import Shard, open_split
from gpt_core.formats.nanogpt import nanogpt_characters
from gpt_core.tokenizer.builtin import character_backend
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.pretraining.config import PretrainConfig


def open_data(config: PretrainConfig) -> tuple[Tokenizer, dict[str, list[Shard]]]:
    """Open the tokenizer and the shards of the splits "train" and "val".

    Raises:
        InputError: if one of them is missing, or a shard is truncated or was made with another tokenizer.
    """
    splits = {name: open_split(config.data_dir, name) for name in ("train", "val")}
    meta = Path(config.data_dir, "meta.pkl")  # nanoGPT's vocabulary of characters
    if config.tokenizer is not None or meta.with_name("tokenizer.json").exists():
        tokenizer = Tokenizer.from_pretrained(config.tokenizer or config.data_dir)
    elif meta.exists():
        tokenizer = Tokenizer(character_backend(nanogpt_characters(meta)))
    else:
        raise InputError(
            f"{config.data_dir} has no tokenizer.json and no meta.pkl; give --tokenizer (gpt2 for nanoGPT data with "
            "GPT-2's BPE)."
        )
    for shards in splits.values():
        check_tokenizer(shards, tokenizer, config.tokenizer or config.data_dir)
    return tokenizer, splits


def verify(splits: dict[str, list[Shard]], vocab_size: int) -> None:
    """Read every shard and check its checksum and that its ids are below `vocab_size`.

    Raises:
        InputError: naming the damaged shard.
    """
    for name, shards in splits.items():
        for shard in tqdm(shards, desc=f"checking {name} shards", leave=False, disable=None):
            shard.verify(vocab_size)
