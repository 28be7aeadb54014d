"""The token shards and the tokenizer that pretraining reads."""

from pathlib import Path

from tqdm import tqdm

from gpt_core.common.errors import InputError
from gpt_core.data.shards import Shard, check_tokenizer, open_split
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.pretraining.config import PretrainConfig


def open_data(config: PretrainConfig) -> tuple[Tokenizer, dict[str, list[Shard]]]:
    """The tokenizer, and the shards of the splits "train" and "val".

    Raises:
        InputError: if either is missing, a shard is torn, or it was made with another tokenizer.
    """
    splits = {name: open_split(config.data_dir, name) for name in ("train", "val")}
    if config.tokenizer is None and not Path(config.data_dir, "tokenizer.json").exists():
        raise InputError(
            f"{config.data_dir} has no tokenizer.json; give --tokenizer, for nanoGPT's data of GPT-2's BPE: gpt2."
        )
    tokenizer = Tokenizer.from_pretrained(config.tokenizer or config.data_dir)
    for shards in splits.values():
        check_tokenizer(shards, tokenizer.fingerprint, config.tokenizer or config.data_dir)
    return tokenizer, splits


def verify(splits: dict[str, list[Shard]], vocab_size: int) -> None:
    """Read every shard once and hold it against its checksum and the vocabulary.

    Raises:
        InputError: naming the shard that is damaged.
    """
    for name, shards in splits.items():
        for shard in tqdm(shards, desc=f"checking {name} shards", leave=False, disable=None):
            shard.verify(vocab_size)
