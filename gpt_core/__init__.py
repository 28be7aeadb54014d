"""The GPT: tokenizer, token shards, the model, training, checkpoints, generation."""

from gpt_core.cache import Cache
from gpt_core.config import GPTConfig
from gpt_core.engine import Engine
from gpt_core.errors import InputError
from gpt_core.generate import generate
from gpt_core.model import GPT, GPTOutput
from gpt_core.sampling import SamplingParams
from gpt_core.tokenizer import Tokenizer

__all__ = [
    "GPT",
    "Cache",
    "Engine",
    "GPTConfig",
    "GPTOutput",
    "InputError",
    "SamplingParams",
    "Tokenizer",
    "generate",
]
