"""Effect of the dtype on a model: perplexity, and agreement with the reference dtype."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_core.data.check_tokenizer import check_tokenizer
from gpt_core.data.shards import open_split
from gpt_core.data.sources import Files
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.hardware.device import DeviceName
from gpt_core.tokenizer.tokenizer import Tokenizer

WINDOW = 512  # tokens predicted in one forward


def read_ids(data: str, name: str, tokenizer: Tokenizer, n: int) -> list[int]:
    """The first `n` ids of a text, or all if it has fewer.

    Args:
        data: a folder of token shards (their split "val" is read), or a source for `gpt_core.data.sources.Files`.
        name: model name for error messages.
        tokenizer: the model's tokenizer.
        n: maximum number of ids.

    Raises:
        InputError: if the data cannot be read or are shards of another tokenizer.
    """
    ids: list[int] = []
    if any(Path(data).glob("*.bin")):
        shards = open_split(data, "val")
        check_tokenizer(shards, tokenizer, name)
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
    """Predict each of `ids` except the first from the ids before it in its window of `WINDOW` tokens.

    Returns:
        loss: mean in nats; best: (n - 1,) the most probable id at each position.
    """
    torch.set_num_threads(threads)
    model = load_for_inference(name, dtype, device)
    n_tokens = min(Tokenizer.from_pretrained(name).vocab_size, model.config.vocab_size)
    size = min(WINDOW, model.config.block_size)
    loss, best = 0.0, []
    for start in range(0, len(ids) - 1, size):
        window = torch.tensor(ids[start : start + size + 1], device=model.device)[None]  # (1, T + 1)
        out = model(window[:, :-1], targets=window[:, 1:])
        loss += float(out.loss_sum)
        best.append(out.logits[0, :, :n_tokens].argmax(-1).cpu().numpy())  # (T,)
    return {"loss": loss / (len(ids) - 1), "best": np.concatenate(best)}


def same_tokens(ours: NDArray, reference: NDArray) -> float:
    """Fraction of positions with the same most probable token."""
    return float((ours == reference).mean())


def same_texts(ours: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> dict[str, float]:
    """same_texts: fraction of equal greedy texts; same_for: mean length of the common prefix in tokens."""
    n_common = [
        next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), len(pair[0]))
        for pair in zip(ours, reference, strict=True)
    ]
    whole = [n == len(text) for n, text in zip(n_common, ours, strict=True)]
    return {"same_texts": float(np.mean(whole)), "same_for": float(np.mean(n_common))}
