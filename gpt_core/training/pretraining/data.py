"""Open the token shards and the tokenizer of pretraining."""

from pathlib import Path

from tqdm import tqdm

from gpt_core.common.errors import InputError
from gpt_core.data.shards import Shard, check_tokenizer, open_split
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.pretraining.config import PretrainConfig


def open_data(config: PretrainConfig) -> tuple[Tokenizer, dict[str, list[Shard]]]:
    """Open the tokenizer and the shards of the splits "train" and "val".

    Raises:
        InputError: if one of them is missing, or a shard is truncated or was made with another tokenizer.
    """
    splits = {name: open_split(config.data_dir, name) for name in ("train", "val")}
    if config.tokenizer is None and not Path(config.data_dir, "tokenizer.json").exists():
        raise InputError(
            f"{config.data_dir} has no tokenizer.json; give --tokenizer (gpt2 for nanoGPT data with GPT-2's BPE)."
        )
    tokenizer = Tokenizer.from_pretrained(config.tokenizer or config.data_dir)
    for shards in splits.values():
        check_tokenizer(shards, tokenizer.fingerprint, config.tokenizer or config.data_dir)
    return tokenizer, splits


def verify(splits: dict[str, list[Shard]], vocab_size: int) -> None:
    """Read every shard and check its checksum and that its ids are below `vocab_size`.

    Raises:
        InputError: naming the damaged shard.
    """
    for name, shards in splits.items():
        for shard in tqdm(shards, desc=f"checking {name} shards", leave=False, disable=None):
            shard.verify(vocab_size)
