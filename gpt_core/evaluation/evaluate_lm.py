"""Language-model evaluation over a split of token shards: loss, perplexity, bits per byte."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpt_core.common.errors import InputError
from gpt_core.data.batches import EVAL_TOKENS, IGNORED, Windows
from gpt_core.data.check_tokenizer import check_tokenizer
from gpt_core.data.shards import open_split
from gpt_core.data.strided_windows import StridedWindows
from gpt_core.evaluation.report import print_report
from gpt_core.generation.fast_model import prepare
from gpt_core.hardware.device import DeviceName, Numerics
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.parallel.ranks import Ranks, join
from gpt_core.training.validation import split_loss

COLUMNS = ("dataset", "split", "model", "block_size", "stride", "loss", "perplexity", "bits_per_byte")


def evaluate_lm(
    *,
    model: list[str],
    data: str,
    split: str = "val",
    block_size: int | None = None,
    stride: int | None = None,
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    device: DeviceName = "auto",
) -> None:
    """Evaluate language models on a whole split of token shards: loss, perplexity, bits per byte.

    The split is cut into windows of block_size tokens; each token except a shard's first is predicted once, from the
    tokens before it in its window. Windows do not overlap, so the first tokens of each have a short context, unless
    stride is given: then a window predicts only its last `stride` tokens. Under torchrun, the ranks share the windows.
    loss is the mean cross-entropy in nats, perplexity its exponential.
    bits_per_byte compares models with different tokenizers: the total loss in bits divided by the UTF-8 bytes of the
    predicted tokens; an end-of-text token adds loss but no bytes. Prints a table and ends with a line of JSON.

    Args:
        model: model folders, training runs' out_dir, or known names.
        data: a folder with token shards, from scripts/prepare_data.py, made with the models' tokenizer.
        split: which split to evaluate, such as val or train.
        block_size: window length in tokens; by default each model's context.
        stride: tokens from one window to the next, at most block_size; by default block_size. Small strides are slow.
        dtype: of the matrix products; int8: int8 weights, as in `sample.py --dtype int8`.
        device: auto: cuda, else mps, else cpu.
    """
    if not model:
        raise InputError("--model names nothing; expected one or more model folders or known names.")
    shards = open_split(data, split)
    tokenizers = [Tokenizer.from_pretrained(name) for name in model]
    for name, tokenizer in zip(model, tokenizers, strict=True):
        check_tokenizer(shards, tokenizer, name)
    results = []
    with join(device) as ranks:
        for name, tokenizer in zip(model, tokenizers, strict=True):
            gpt = GPT.from_pretrained(name).to(ranks.device)
            if block_size is not None and not 1 <= block_size <= gpt.config.block_size:
                raise InputError(
                    f"block_size is {block_size}; expected 1 to {gpt.config.block_size}, the context of {name}."
                )
            for shard in shards:
                shard.verify(min(tokenizer.vocab_size, gpt.config.vocab_size))
            length = block_size or gpt.config.block_size
            windows = Windows(shards, length) if stride is None else StridedWindows(shards, length, stride)
            if dtype == "int8":
                figures = score(prepare(gpt, "int8"), windows, byte_lengths(tokenizer), ranks)
            else:
                figures = score(gpt, windows, byte_lengths(tokenizer), ranks, dtype)
            row: dict[str, Any] = {"dataset": Path(data).resolve().name, "split": split, "model": name}
            row |= {"block_size": windows.block_size, "stride": stride or windows.block_size, "dtype": dtype}
            results.append(row | figures)
        if ranks.main:
            print_report(results, COLUMNS, _ratios(results))


def score(
    model: GPT,
    windows: Windows | StridedWindows,
    lengths: NDArray[np.int64],
    ranks: Ranks,
    dtype: str = "float32",
) -> dict[str, float]:
    """Loss, perplexity and bits per byte over all targets of `windows`, with the numbers of tokens and bytes.

    Args:
        model: the model, in evaluation mode.
        windows: inputs and targets.
        lengths: (V,) UTF-8 bytes of each token, from `byte_lengths`.
        ranks: the processes, among which the windows are divided.
        dtype: "float32" for the model's own dtype, or "bfloat16" for autocast.
    """
    numerics = Numerics(model.device.type, dtype)
    loss, n_targets = split_loss(model, windows, numerics, ranks, progress=ranks.main)
    batches = windows.in_order(max(1, EVAL_TOKENS // windows.block_size))
    n_bytes = sum(int(lengths[targets[targets != IGNORED].numpy()].sum()) for _, targets in batches)
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss * n_targets / math.log(2) / n_bytes if n_bytes else math.inf,
        "tokens": n_targets,
        "bytes": n_bytes,
    }


def byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Number of UTF-8 bytes of each token (V,); 0 for special tokens.

    Raises:
        InputError: for a tokenizer whose tokens decode differently depending on their neighbours.
    """
    decoder = json.dumps(json.loads(tokenizer.rust.to_str())["decoder"])
    if any(kind in decoder for kind in ("WordPiece", "BPEDecoder", "CTC")):
        raise InputError(
            "The bytes of this tokenizer's tokens depend on their neighbours; expected a byte-level, SentencePiece or "
            "character vocabulary."
        )
    lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], dtype=np.int64)
    lengths[[i for i, token in tokenizer.rust.get_added_tokens_decoder().items() if token.special]] = 0
    return lengths


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The first model's bits per byte divided by that of each other model."""
    first, *others = rows
    return {
        f"{first['model']}/{row['model']} bits_per_byte": first["bits_per_byte"] / row["bits_per_byte"]
        for row in others
    }
