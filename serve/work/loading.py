"""Open an index with its embedder, and the generator beside it."""

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.hub.locate import resolve
from gpt_core.tokenizer.tokenizer import Tokenizer
from index import Index

# Tokens per request; SmolLM2's cache takes 94 MB for them in float32, its whole block_size four times that
CONTEXT = 2048


def load(
    index: str,
    embedder: str | None,
    generator: str,
    max_running: int,
    context: int = CONTEXT,
    dtype: InferenceDtype = "auto",
) -> tuple[Index, Engine]:
    """Open what answering takes.

    A model that is both embedder and generator is loaded once if `dtype` is float32, in which embedders compute; else
    twice, since what makes a model generate faster would change its vectors.

    Args:
        index: folder.
        embedder: model folder or known name; None for the name that the index remembers.
        generator: model folder or known name.
        max_running: answers that are generated at once, each with a slot in the cache.
        context: longest prompt and answer together, in tokens; no more than the model's own.
        dtype: number format of the generator; see `load_for_inference`.

    Raises:
        InputError: if anything is missing, the index was built with another embedder, or there is no such dtype.
    """
    opened = Index.open(index, embedder)
    encoder = opened.encoder
    if encoder is None:
        raise InputError(f"{index} was built of ready vectors; questions need an index with an embedder.")
    folder = resolve(generator)  # once: a run may write a better checkpoint meanwhile
    if dtype == "float32" and folder == resolve(embedder or opened.settings.embedder):
        model, tokenizer = encoder.model, encoder.tokenizer
    else:
        model, tokenizer = load_for_inference(folder, dtype), Tokenizer.from_pretrained(folder)
    context = min(context, model.config.block_size)
    return opened, Engine(model, tokenizer, max_running=max_running, context=context)
