"""The GPT: tokenizer, token shards, the model, training, checkpoints, generation."""

from gpt_core.cache import Cache
from gpt_core.config import GPTConfig
from gpt_core.errors import InputError
from gpt_core.model import GPT, GPTOutput
from gpt_core.tokenizer import Tokenizer

__all__ = ["GPT", "Cache", "GPTConfig", "GPTOutput", "InputError", "Tokenizer"]
