"""Which files of a Hugging Face repository make a model that opens here."""

import re
from collections.abc import Collection
from fnmatch import fnmatch

from gpt_core.common.errors import InputError

# beside the weights: shapes, tokenizers and templates, what sentence-transformers adds, what a licence asks to travel
SMALL = (
    "*.json",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
    "*.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
MODULE = re.compile(r"\d+_\w+")  # a folder of sentence-transformers' for one of its modules, as 1_Pooling


def model_files(files: Collection[str]) -> list[str]:
    """Those of a repository's files to fetch: the weights once, in the first format there is that we read, and what
    is small beside them; not the same weights for other frameworks.

    Args:
        files: paths in the repository.

    Raises:
        InputError: if there are no weights that open here, or several GGUF files to choose from.
    """
    chosen: list[str] = []
    places = {path.rpartition("/")[0] for path in files}
    for place in sorted(place for place in places if not place or MODULE.fullmatch(place)):
        names = [path.rpartition("/")[2] for path in files if path.rpartition("/")[0] == place]
        small = [name for name in names if any(fnmatch(name, pattern) for pattern in SMALL)]
        prefix = f"{place}/" if place else ""
        chosen += [prefix + name for name in small + _weights(names)]
    if not any(path.endswith((".safetensors", ".bin", ".gguf")) for path in chosen):
        gguf = [path for path in files if path.endswith(".gguf")]
        if gguf:
            raise InputError(
                f"It holds {len(gguf)} GGUF files ({', '.join(sorted(gguf)[:3])}, …); download the one that you want "
                "into a folder of its own."
            )
        raise InputError(
            "It holds no model.safetensors, pytorch_model.bin or .gguf file, so no weights that open here."
        )
    return sorted(chosen)


def _weights(names: list[str]) -> list[str]:
    """The files of the first format that is there."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        if f"{stem}.{ending}" in names:
            return [f"{stem}.{ending}"]
        if f"{stem}.{ending}.index.json" in names:
            return [name for name in names if fnmatch(name, f"{stem}-*.{ending}")]
    gguf = [name for name in names if name.endswith(".gguf")]
    return gguf if len(gguf) == 1 else []
