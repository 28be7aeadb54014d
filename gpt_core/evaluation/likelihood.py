"""Log-likelihoods of continuations, which zero-shot tasks compare."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gpt_core.common.errors import InputError
from gpt_core.hardware.device import Numerics
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

TOKENS_PER_FORWARD = 8192  # padding included
LENGTH_STEP = 8  # rows are padded to a multiple of this


class Likelihood(NamedTuple):
    """How likely a continuation is.

    Attributes:
        total: log-probability in nats, summed over its tokens.
        n_tokens: number of its tokens.
        greedy: whether each of its tokens is the most probable one.
        filtered: the same, where the tokens that are banned as the first one do not count.
        n_cut: tokens of the context that did not fit, its first ones.
    """

    total: float
    n_tokens: int
    greedy: bool
    filtered: bool
    n_cut: int


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and its continuation, as lm-eval divides them.

    White space at the end of the context is moved to the continuation, and both are encoded as one text, whose first
    tokens, as many as the context alone has, are the context. An empty context is the token for the begin or the end of
    a text.

    Raises:
        InputError: for an empty continuation, or an empty context and a tokenizer without such a token.
    """
    moved = len(context) - len(context.rstrip())
    if moved:
        context, continuation = context[:-moved], context[-moved:] + continuation
    before = tokenizer.encode(context)
    after = tokenizer.encode(context + continuation)[len(before) :]
    if not before:
        first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if first is None:
            raise InputError("The context is empty, and the tokenizer has no token for the begin of a text.")
        before = [first]
    if not after:
        raise InputError(f"The continuation {continuation!r} has no token after {context[-40:]!r}.")
    return before, after


@torch.no_grad()
def likelihoods(
    model: GPT,
    pairs: Sequence[tuple[list[int], list[int]]],
    numerics: Numerics,
    banned_first: Tensor | None = None,
    progress: str = "",
) -> list[Likelihood]:
    """Log-likelihoods of continuations.

    Args:
        model: a GPT in evaluation mode.
        pairs: token ids of a context, at least one, and of its continuation. The context loses its first tokens if both
            are too long.
        numerics: dtype of matrix products.
        banned_first: (V,) bool, tokens that do not count for `Likelihood.filtered` as the first one; None: none.
        progress: name of the progress bar; "": no bar.

    Raises:
        InputError: for a continuation that does not fit the model's context.
    """
    size = model.config.block_size
    rows, cut = [], []
    for before, after in pairs:
        if len(after) > size:
            raise InputError(
                f"A text to score has {len(after)} tokens; the model's context holds {size}. Leave that row out."
            )
        row = before + after
        cut.append(max(0, len(row) - 1 - size))
        rows.append(row[cut[-1] :])
    found: list[Likelihood | None] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    with tqdm(total=len(rows), desc=progress, leave=False, disable=None if progress else True) as bar:
        while order:
            length = -(-(len(rows[order[0]]) - 1) // LENGTH_STEP) * LENGTH_STEP
            length = min(length, size)
            some, order = (
                order[: max(1, TOKENS_PER_FORWARD // length)],
                order[TOKENS_PER_FORWARD // length or 1 :],
            )
            ids = torch.zeros(len(some), length, dtype=torch.long)  # (B, T)
            for b, i in enumerate(some):
                ids[b, : len(rows[i]) - 1] = torch.tensor(rows[i][:-1])
            with numerics.autocast():
                hidden = model(ids.to(model.device), logits=False).hidden  # (B, T, C)
                for b, i in enumerate(some):
                    after = pairs[i][1]
                    stop = len(rows[i]) - 1
                    logits = model.logits(hidden[b, stop - len(after) : stop]).float()  # (n, V)
                    found[i] = _likelihood(logits, after, banned_first, cut[i])
            bar.update(len(some))
    return [x for x in found if x is not None]


def _likelihood(logits: Tensor, after: list[int], banned_first: Tensor | None, n_cut: int) -> Likelihood:
    targets = torch.tensor(after, device=logits.device)  # (n,)
    total = -F.cross_entropy(logits, targets, reduction="sum")  # 0-dim
    best = logits.argmax(-1)  # (n,)
    greedy = filtered = bool((best == targets).all())
    if banned_first is not None:
        best[0] = logits[0].masked_fill(banned_first, float("-inf")).argmax()
        filtered = bool((best == targets).all())
    return Likelihood(float(total), len(after), greedy, filtered, n_cut)
