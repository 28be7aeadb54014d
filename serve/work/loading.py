"""Open an index with its embedder, and load the generator."""

from pathlib import Path

from embed import Encoder
from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.hub.locate import resolve
from gpt_core.tokenizer.tokenizer import Tokenizer
from index import Index
from serve.work.service import encoder_of

# Tokens per sequence. SmolLM2's KV cache takes 94 MB for them in float32, and four times that for its full block_size.
MAX_CONTEXT = 2048


def load(
    index: str,
    embedder: str | None,
    generator: str | None,
    max_running: int,
    context: int = MAX_CONTEXT,
    dtype: InferenceDtype = "auto",
) -> tuple[Index, Engine | None]:
    """Open the index and load embedder and generator.

    A model that is both embedder and generator is loaded once if `dtype` is float32, in which embedders compute; else
    twice, since the optimisations for generation would change its vectors.

    Args:
        index: the index's folder.
        embedder: model folder or known name; None for the embedder named in the index.
        generator: model folder or known name; None for none.
        max_running: maximum number of sequences generated concurrently, each with a slot in the KV cache.
        context: maximum length of prompt and answer together, in tokens; limited to the model's block_size.
        dtype: number format of the generator; see `load_for_inference`.

    Raises:
        InputError: if the index or a model is missing, the index was built with another embedder or without one, or for
            an unknown dtype.
    """
    opened = Index.open(index, embedder)
    encoder = encoder_of(opened)
    if generator is None:
        return opened, None
    if dtype == "float32" and isinstance(encoder, Encoder) and resolve(generator).resolve() == encoder.folder:
        context = min(context, encoder.model.config.block_size)
        return opened, Engine(encoder.model, encoder.tokenizer, max_running=max_running, context=context)
    return opened, load_generator(generator, max_running, context, dtype)


def load_generator(
    generator: str, max_running: int, context: int = MAX_CONTEXT, dtype: InferenceDtype = "auto"
) -> Engine:
    """Load a generator; arguments and errors as for `load`."""
    folder = resolve(generator)  # resolved once: a training run may write a better checkpoint meanwhile
    model = load_for_inference(folder, dtype)
    context = min(context, model.config.block_size)
    return Engine(model, Tokenizer.from_pretrained(folder), max_running=max_running, context=context)


def served_name(model: str) -> str:
    """The name of a model in the HTTP API: a known name as it is, the last part of a folder's path."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
