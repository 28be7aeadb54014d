"""Training and evaluation data of an embedder, from a configuration."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from embed.data.near_duplicates import without_near_duplicates
from embed.data.pairs import Columns, Example, read_examples
from embed.encoding.encoder import Encoder
from embed.encoding.peer_model import Teacher
from embed.text.key import text_key
from embed.training.batches import TaskData
from embed.training.config import TrainEmbedderConfig
from embed.training.groups import groups_of_similar
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.data.batches import Batches, Windows
from gpt_core.data.check_tokenizer import check_tokenizer
from gpt_core.data.shards import open_split
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.parallel.ranks import Ranks
from gpt_core.training.pretraining.data import verify

GROUPED_CHARACTERS = 512  # the start of a positive tells its topic; tokenising it takes most of the time


def open_data(config: TrainEmbedderConfig) -> tuple[list[TaskData], list[TaskData]]:
    """Open the training datasets and the evaluation datasets.

    Raises:
        InputError: for data that cannot be read or has too few examples.
    """
    columns = Columns(config.query_column, config.positive_column, config.negative_column)
    sets: list[TaskData] = []
    dev_sets: list[TaskData] = []
    for source in config.data:
        examples = read_examples(source, columns=columns)
        if config.exclude:
            examples = without_near_duplicates(source, examples, config.exclude)
        if not config.dev_data:
            n = min(config.dev_examples, len(examples) // 10)
            if n == 0:
                raise InputError(
                    f"{source} has {len(examples)} examples, too few to hold out a tenth of them for evaluation; give "
                    "more data, or --dev_data."
                )
            examples, held_out = hold_out(examples, n, config.seed)
            dev_sets.append(TaskData(name_of(source, dev_sets), held_out))
        sets.append(TaskData(name_of(source, sets), examples))
        if not sets[-1].paired and not config.imitates:
            raise InputError(
                f"{source} contains texts without positives, which need a teacher; name a teacher, or give pairs."
            )
    for source in config.dev_data:
        dev_sets.append(TaskData(name_of(source, dev_sets), read_examples(source, "dev", columns)))
    return sets, dev_sets


def hold_out(examples: Sequence[Example], n: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out about `n` examples; examples with the same first positive (or text) are never separated.

    Returns:
        The remaining examples, and the held-out ones.
    """
    order = np.random.default_rng(seed).permutation(len(examples))
    held: set[str] = set()
    count = 0
    by_text: dict[str, int] = {}
    for example in examples:
        text = _target(example)
        by_text[text] = by_text.get(text, 0) + 1
    for i in order:
        text = _target(examples[i])
        if count >= n:
            break
        if text not in held:
            held.add(text)
            count += by_text[text]
    rest = [example for example in examples if _target(example) not in held]
    return rest, [example for example in examples if _target(example) in held]


def _target(example: Example) -> str:
    return text_key(example.positives[0] if example.positives else example.query)


def name_of(source: str, others: Sequence[TaskData]) -> str:
    """A dataset's name in messages and metrics: the folder's name, or the file's without extensions; made unique."""
    path = Path(source)
    name = path.resolve().name if path.is_dir() else path.name.partition(".")[0]
    n = sum(data.name.rpartition("-")[0] == name or data.name == name for data in others)
    return f"{name}-{n + 1}" if n else name


def attach_vectors(config: TrainEmbedderConfig, sets: Sequence[TaskData], ranks: Ranks) -> int | None:
    """Set the datasets' vectors of teacher and guide; rank 0 computes those that are not in the model cache.

    Returns:
        The dimension of the teacher's vectors; None without a teacher to imitate.
    """
    dimension = None
    imitated = config.teacher if config.imitates else None  # else it only gives a table's start
    for name, role in ((imitated, "teacher"), (config.guide, "guide")):
        if name is None:
            continue
        model = Teacher(name, config.train_tokens or config.max_tokens, str(ranks.device))
        for data in sets:
            if ranks.main:
                data.vectors(model.encode)
            ranks.barrier()
            setattr(data, role, data.vectors(model.encode))
        if role == "teacher":
            dimension = model.dimension
    return dimension


def attach_groups(config: TrainEmbedderConfig, sets: Sequence[TaskData], ranks: Ranks) -> None:
    """Set the groups of similar examples of all datasets of pairs with two groups or more.

    Rank 0 computes them once and saves them in out_dir/groups.npz, so that a resumed run has the same.
    """
    if config.group_by is None:
        return
    large = [data for data in sets if data.paired and len(data.examples) >= 2 * config.group_size]
    checksums = [data.checksum() for data in large]
    path = Path(config.out_dir, "groups.npz")

    def groups() -> dict[str, NDArray[np.int64]]:
        if path.is_file():
            with np.load(path) as saved:
                return dict(saved)
        encoder = Encoder.from_pretrained(config.group_by or "", device="auto")
        found: dict[str, Any] = {}
        for data, checksum in zip(tqdm(large, desc="grouping", disable=None), checksums, strict=True):
            texts = [example.positives[0][:GROUPED_CHARACTERS] for example in data.examples]
            found[checksum] = groups_of_similar(
                encoder.encode_document(texts), config.group_size, config.seed
            )
        buffer = BytesIO()
        np.savez(buffer, **found)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, buffer.getvalue())
        return found

    by_checksum = ranks.on_main(groups)
    for data, checksum in zip(large, checksums, strict=True):
        data.groups = by_checksum.get(checksum)
        if data.groups is None or data.groups.shape[1] != config.group_size:
            raise InputError(
                f"{path} has no groups of {config.group_size} examples of {data.name}; the data or group_size changed: "
                "choose another out_dir."
            )


def open_lm(
    config: TrainEmbedderConfig, tokenizer: Tokenizer, n_rows: int, ranks: Ranks
) -> tuple[Batches, Windows]:
    """Open the token shards of the language model's loss: the training stream, and the validation windows.

    Args:
        config: names the shards.
        tokenizer: the embedder's tokenizer.
        n_rows: number of token embeddings of the GPT.
        ranks: this process; rank 0 reads all shards once to check them.

    Raises:
        InputError: for shards that are missing, damaged, of another tokenizer, or with ids that the GPT does not have.
    """
    assert config.lm_data_dir is not None
    splits = {name: open_split(config.lm_data_dir, name) for name in ("train", "val")}
    for shards in splits.values():
        check_tokenizer(shards, tokenizer, config.init_from)
    ranks.on_main(lambda: verify(splits, min(tokenizer.vocab_size, n_rows)))
    training, validation = (Windows(shards, config.lm_block_size) for shards in splits.values())
    stream = Batches(
        training, config.lm_batch_size, None, config.seed, ranks.rank, ranks.world_size, ranks.device
    )
    return stream, validation
