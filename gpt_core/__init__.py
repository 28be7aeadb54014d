"""The GPT: tokenizer, token shards, the model, training, checkpoints, generation."""

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.generate import generate
from gpt_core.generation.sampling import SamplingParams
from gpt_core.model.cache import Cache
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT, GPTOutput
from gpt_core.tokenizer.tokenizer import Tokenizer

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
