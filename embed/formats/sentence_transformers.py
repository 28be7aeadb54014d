"""Reader of sentence-transformers' `modules.json`.

Supports files written by versions 2 to 6. Modules and settings that would change a vector and are not supported here
raise InputError.
"""

from dataclasses import dataclass
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.common.json_files import read_json

TABLES = ("StaticEmbedding", "SublinearEmbedding")  # the second: embed/formats/sublinear.py
POOLINGS = ("Pooling", "SublinearPooling")
FIRST = ("Transformer", *TABLES)


@dataclass(frozen=True)
class Modules:
    """Folders of an embedder's modules.

    Attributes:
        transformer: folder of the model and the tokenizer; usually the embedder's folder itself.
        pooling: folder of the pooling's settings; None for a table of token vectors, whose mean is the text's vector.
        sublinear: whether the pooling is this project's sublinear one.
        dense: folders of the dense layers, in order.
    """

    transformer: Path
    pooling: Path | None
    sublinear: bool
    dense: tuple[Path, ...]


def read_modules(folder: Path) -> Modules:
    """The modules of `folder`, from its `modules.json`.

    Raises:
        InputError: for an unsupported module or order of modules, which the message names.
    """
    transformer, pooling, dense = folder, None, []
    seen: list[str] = []
    pooled = False  # whether the modules so far give one vector for a text
    for module in read_json(folder / "modules.json", list, optional=False):
        if not isinstance(module, dict):
            raise InputError(f"{folder}/modules.json lists {module!r}; expected objects with type and path.")
        kind, place = str(module.get("type", "")).rpartition(".")[2], folder / str(module.get("path", ""))
        settings = read_json(place / "config.json") if kind not in FIRST else {}
        if kind in FIRST and not seen:
            transformer, pooled = place, kind in TABLES
        elif kind in POOLINGS and seen == ["Transformer"]:
            pooling, pooled = place, True
        elif kind == "Dense" and pooled and "Normalize" not in seen:
            dense.append(place)
        elif kind not in (*FIRST, *POOLINGS, "Dense", "Normalize"):
            raise InputError(
                f"{folder} has a module {kind!r}; expected only {', '.join((*FIRST, *POOLINGS))}, Dense and Normalize."
            )
        elif kind != "Normalize" or not pooled:
            order = ", ".join([*seen, kind])
            raise InputError(
                f"{folder} has the modules {order}; expected Transformer and Pooling, or StaticEmbedding, then Dense, "
                "then Normalize."
            )
        for key in ("module_input_name", "module_output_name"):
            if (
                kind in ("Dense", "Normalize")
                and settings.get(key, "sentence_embedding") != "sentence_embedding"
            ):
                raise InputError(
                    f"{place} has {key} = {settings[key]!r}; expected sentence_embedding, the only one supported."
                )
        seen.append(kind)
    if not pooled:
        raise InputError(f"{folder}/modules.json names no Pooling module; expected one.")
    settings = read_json(folder / "config_sentence_transformers.json")
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity != "cosine" and "Normalize" not in seen:  # for unit vectors, all similarities rank alike
        raise InputError(
            f"{folder} has similarity_fn_name {similarity!r} without a Normalize module; expected cosine, or vectors "
            "of unit length."
        )
    return Modules(transformer, pooling, any(kind.startswith("Sublinear") for kind in seen), tuple(dense))
