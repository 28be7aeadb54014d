"""The GPT: tokenizer, token shards, the model, training, checkpoints, generation.

The names below are imported when they are first used, so that `import gpt_core.common.errors` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_core.common.errors import InputError as InputError
    from gpt_core.generation.engine import Engine as Engine
    from gpt_core.generation.generate import generate as generate
    from gpt_core.generation.sampling import SamplingParams as SamplingParams
    from gpt_core.model.cache import Cache as Cache
    from gpt_core.model.config import GPTConfig as GPTConfig
    from gpt_core.model.gpt import GPT as GPT
    from gpt_core.model.gpt import GPTOutput as GPTOutput
    from gpt_core.tokenizer.tokenizer import Tokenizer as Tokenizer

_MODULES = {
    "Cache": "model.cache",
    "Engine": "generation.engine",
    "GPT": "model.gpt",
    "GPTConfig": "model.config",
    "GPTOutput": "model.gpt",
    "InputError": "common.errors",
    "SamplingParams": "generation.sampling",
    "Tokenizer": "tokenizer.tokenizer",
    "generate": "generation.generate",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
