"""The modules that a sentence-transformers folder names, as far as this encoder computes the same.

Versions 2 to 6 of that library wrote the files read here; what decides a vector and is not ours is refused.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError


@dataclass(frozen=True)
class Modules:
    """Where the parts of an embedder lie.

    Attributes:
        transformer: folder of the model and the tokenizer; mostly the embedder's own.
        pooling: folder of the pooling's settings.
        dense: folders of the dense layers, in order.
    """

    transformer: Path
    pooling: Path
    dense: tuple[Path, ...]


def read_json(path: Path, kind: type = dict, optional: bool = True) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        kind: what it must hold: dict or list.
        optional: give an empty `kind` for a missing file.

    Raises:
        InputError: for a missing file that is not optional, and for one that holds something else.
    """
    if path.is_file():
        return parse_json(read_text(path), str(path), kind)
    if optional:
        return kind()
    raise InputError(f"{path} is missing; expected it in a sentence-transformers folder.")


def read_text(path: Path) -> str:
    """The content of a text file; InputError for one that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None


def parse_json(text: str, source: str, kind: type) -> Any:
    """`text` as JSON of a kind; InputError names `source`."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(values, kind):
        raise InputError(f"{source} holds a JSON {type(values).__name__}; expected a {kind.__name__}.")
    return values


def read_modules(folder: Path) -> Modules:
    """The modules of `folder`, from its `modules.json`.

    Raises:
        InputError: for a module, or an order of them, that this encoder does not have; names it.
    """
    transformer, pooling, dense = folder, None, []
    seen: list[str] = []
    for module in read_json(folder / "modules.json", list, optional=False):
        if not isinstance(module, dict):
            raise InputError(f"{folder}/modules.json lists {module!r}; expected objects with type and path.")
        kind, place = str(module.get("type", "")).rpartition(".")[2], folder / str(module.get("path", ""))
        settings = read_json(place / "config.json") if kind != "Transformer" else {}
        if kind == "Transformer" and not seen:
            transformer = place
        elif kind == "Pooling" and seen == ["Transformer"]:
            pooling = place
        elif kind == "Dense" and pooling is not None and "Normalize" not in seen:
            dense.append(place)
        elif kind not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise InputError(
                f"{folder} has a module {kind!r}; this encoder knows Transformer, Pooling, Dense and Normalize."
            )
        elif kind != "Normalize" or pooling is None:
            order = ", ".join([*seen, kind])
            raise InputError(
                f"{folder} has the modules {order}; expected Transformer, Pooling, then Dense, then Normalize."
            )
        for key in ("module_input_name", "module_output_name"):
            if (
                kind in ("Dense", "Normalize")
                and settings.get(key, "sentence_embedding") != "sentence_embedding"
            ):
                raise InputError(
                    f"{place} has {key} = {settings[key]!r}; this encoder has vectors of texts alone."
                )
        seen.append(kind)
    if pooling is None:
        raise InputError(f"{folder}/modules.json names no Pooling module; expected one.")
    settings = read_json(folder / "config_sentence_transformers.json")
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity != "cosine" and "Normalize" not in seen:  # of unit vectors, the others order alike
        raise InputError(
            f"{folder} compares by {similarity!r} vectors of any length; this encoder's have unit length."
        )
    return Modules(transformer, pooling, tuple(dense))
