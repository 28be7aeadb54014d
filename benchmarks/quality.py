"""What a number format does to a model: its perplexity, and how often it says what float32 says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gpt_core.data.shards import check_tokenizer, open_split
from gpt_core.data.sources import Files
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.hardware.device import DeviceName
from gpt_core.tokenizer.tokenizer import Tokenizer

WINDOW = 512  # tokens that are predicted in one forward


def read_ids(data: str, name: str, tokenizer: Tokenizer, n: int) -> list[int]:
    """The first `n` ids of a text, or fewer if it has no more.

    Args:
        data: a folder of token shards, whose split "val" is taken, or what `gpt_core.data.sources.Files` reads.
        name: of the model, for messages.
        tokenizer: the model's own.
        n: how many.

    Raises:
        InputError: if the data cannot be read, or are shards of another tokenizer.
    """
    ids: list[int] = []
    if any(Path(data).glob("*.bin")):
        shards = open_split(data, "val")
        check_tokenizer(shards, tokenizer.fingerprint, name)
        for shard in shards:
            ids += shard.tokens[: n - len(ids)].tolist()
        return ids
    for piece in Files([data]).read():
        if len(ids) >= n:
            break
        ids += tokenizer.encode(piece.text)
    return ids[:n]


@torch.inference_mode()
def predictions(
    name: str, dtype: InferenceDtype, ids: list[int], threads: int, device: DeviceName
) -> dict[str, Any]:
    """Predict each of `ids` but the first from those before it in its window of `WINDOW` tokens.

    Returns:
        loss: the mean in nats; best: (n - 1,) the token that was most probable in each place.
    """
    torch.set_num_threads(threads)
    model = load_for_inference(name, dtype, device)
    n_tokens = min(Tokenizer.from_pretrained(name).vocab_size, model.config.vocab_size)
    size = min(WINDOW, model.config.block_size)
    loss, best = 0.0, []
    for start in range(0, len(ids) - 1, size):
        window = torch.tensor(ids[start : start + size + 1], device=model.device)
        logits = model(window[None, :-1]).logits[0, :, :n_tokens].float()
        loss += float(F.cross_entropy(logits, window[1:], reduction="sum"))
        best.append(logits.argmax(-1).cpu().numpy())
    return {"loss": loss / (len(ids) - 1), "best": np.concatenate(best)}


def same_tokens(ours: NDArray, reference: NDArray) -> float:
    """In which share of the places the most probable token is the same."""
    return float((ours == reference).mean())


def same_texts(ours: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> dict[str, float]:
    """same_texts: the share of greedy texts that are the same; same_for: for how many tokens they are, on average."""
    alike = [
        next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), len(pair[0]))
        for pair in zip(ours, reference, strict=True)
    ]
    whole = [n == len(text) for n, text in zip(alike, ours, strict=True)]
    return {"same_texts": float(np.mean(whole)), "same_for": float(np.mean(alike))}
