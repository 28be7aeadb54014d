"""Datasets of the library `datasets`, named on the command line."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpt_core.common.errors import InputError
from gpt_core.data.tables import open_dataset
from index.reading.formats.tables import Sheet, values

DATASETS = "datasets:"
ROWS_PER_BATCH = 1024


class Dataset(NamedTuple):
    """A dataset on the Hugging Face hub, in a folder of files, or in a folder that `save_to_disk` wrote.

    Attributes:
        name: name on the hub, or real path of the folder.
        config: "" for the only or default configuration.
        split: "" for all.
    """

    name: str
    config: str
    split: str

    @classmethod
    def parse(cls, text: str) -> "Dataset":
        """Parse "datasets:NAME[/CONFIG][:SPLIT]", where NAME may be OWNER/NAME or a folder.

        Raises:
            InputError: for another form.
        """
        name, _, split = text.removeprefix(DATASETS).partition(":")
        parts = name.split("/")
        for n in range(len(parts), 0, -1):
            folder = "/".join(parts[:n])
            if os.path.isdir(folder):
                return cls(os.path.realpath(folder), "/".join(parts[n:]), split)
        if not name or len(parts) > 3 or not all(parts):
            raise InputError(
                f"{text} is no dataset; expected datasets:OWNER/NAME, datasets:OWNER/NAME/CONFIG or datasets:FOLDER, "
                "optionally with a split, as in datasets:OWNER/NAME:train."
            )
        return cls("/".join(parts[:2]), "/".join(parts[2:]), split)

    def __str__(self) -> str:
        name = f"{self.name}/{self.config}" if self.config else self.name
        return f"{name}:{self.split}" if self.split else name


def read_dataset(text: str) -> list[Sheet]:
    """The splits of the dataset that "datasets:…" names; they have no names, as a Parquet file has none.

    Raises:
        InputError: for a dataset that cannot be read.
        MissingPackage: if the library is not installed.
    """
    dataset = Dataset.parse(text)
    splits = open_dataset(dataset.name, dataset.config or None, dataset.split or None)

    def rows(split: Any) -> Iterator[dict[str, Any]]:
        for batch in split.with_format("arrow").iter(ROWS_PER_BATCH):
            yield from values(batch)

    return [Sheet("", rows(split)) for split in splits.values()]
