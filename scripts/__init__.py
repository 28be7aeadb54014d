"""The commands, installed as the package `zhizhi`, and the library's names: `from zhizhi import GPT, Index`.

The names are imported when they are first used, so that a command's --help does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed import Encoder as Encoder
    from embed import load_embedder as load_embedder
    from gpt_core import GPT as GPT
    from gpt_core import GPTConfig as GPTConfig
    from gpt_core import Tokenizer as Tokenizer
    from gpt_core import generate as generate
    from index import Index as Index
    from serve import create_app as create_app

_PACKAGES = {
    "Encoder": "embed",
    "GPT": "gpt_core",
    "GPTConfig": "gpt_core",
    "Index": "index",
    "Tokenizer": "gpt_core",
    "create_app": "serve",
    "generate": "gpt_core",
    "load_embedder": "embed",
}
__all__ = list(_PACKAGES)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return getattr(import_module(_PACKAGES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
