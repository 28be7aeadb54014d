"""A model of this project in lm-eval (EleutherAI's lm-evaluation-harness), for its hundreds of tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from gpt_core.common.extras import extra
from gpt_core.evaluation.likelihood import encode_pair, likelihoods
from gpt_core.generation.generate import generate
from gpt_core.hardware.device import DeviceName, Numerics, pick_device
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

with extra("lm-eval"):
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window


class LMEvalModel(LM):
    """`lm_eval.simple_evaluate(model=LMEvalModel("M"), tasks=["piqa"])`.

    Args:
        model: a model folder, a run's out_dir or a known name.
        device: auto: cuda, else mps, else cpu.
        dtype: of the matrix products.

    Raises:
        InputError: as `GPT.from_pretrained`, or if lm-eval is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        device: DeviceName = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.gpt = GPT.from_pretrained(model).to(pick_device(device))
        self.tokens = Tokenizer.from_pretrained(model)
        self.numerics = Numerics(self.gpt.device.type, dtype)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one."""
        pairs = [encode_pair(self.tokens, *request.args) for request in requests]
        found = likelihoods(
            self.gpt, pairs, self.numerics, progress="" if disable_tqdm else "log-likelihoods"
        )
        return [(one.total, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, whose tokens are each predicted once, in windows of the whole context."""
        first, _ = encode_pair(self.tokens, "", ".")
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            cut = get_rolling_token_windows(self.tokens.encode(text), first[0], self.gpt.config.block_size, 1)
            for window in map(make_disjoint_window, cut):
                windows.append(window)
                owners.append(i)
        found = likelihoods(self.gpt, windows, self.numerics, progress="" if disable_tqdm else "texts")
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, found, strict=True):
            totals[owner] += one.total
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A text after each context, greedy unless the task samples, up to its stop strings."""
        texts = []
        for request in requests:
            context, settings = request.args
            stop = settings.get("until") or []
            texts.append(
                generate(
                    self.gpt,
                    self.tokens,
                    context,
                    max_new_tokens=settings.get("max_gen_toks", 256),
                    temperature=settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0,
                    stop=(stop,) if isinstance(stop, str) else tuple(stop),
                    overflow="slide",
                )
            )
        return texts
