"""Prepare a model for fast inference: choose the dtype, merge linear layers, pack or quantise the weights.

The prepared model computes the same function, but its weights can be neither trained nor saved.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.generation.int8 import replace_linears, to_int8
from gpt_core.hardware.capability import capability
from gpt_core.hardware.device import DeviceName, pick_device, wall_seconds
from gpt_core.hardware.onednn import PackedLinear, packs
from gpt_core.model.attention import Attention
from gpt_core.model.cache import Cache
from gpt_core.model.gpt import GPT, Block
from gpt_core.model.layers import MLP

MIN_THREAD_SPEEDUP = 1.1  # one thread is used if it is this many times faster than all
RECHECK_SECONDS = 10.0  # after which a choice of one thread is measured again, in another moment
TIMED_CONTEXT = 256  # cached tokens per sequence when timing thread counts: attention gains from threads, too
InferenceDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def load_for_inference(
    name_or_folder: str | Path, dtype: InferenceDtype = "auto", device: DeviceName = "auto"
) -> GPT:
    """Load a model for inference.

    Args:
        name_or_folder: as for `GPT.from_pretrained`.
        dtype: of weights and activations. int8: int8 weights, the rest in bfloat16. auto: bfloat16 on
            machines that multiply it fast (`capability`), else float32; never int8, which changes the outputs.
        device: auto is cuda, else mps, else cpu.

    Raises:
        InputError: as `GPT.from_pretrained` and `pick_device`; for an unknown dtype, and for float16 on a CPU.
    """
    if dtype not in get_args(InferenceDtype):
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(get_args(InferenceDtype))}.")
    place = pick_device(device)
    if dtype == "float16" and place.type == "cpu":
        raise InputError(
            "dtype is float16, which is slow and coarse on a CPU; use bfloat16, float32 or int8."
        )
    if dtype == "auto":
        dtype = capability(place.type).dtype
    model = GPT.from_pretrained(name_or_folder, _torch_dtype(dtype))
    return prepare(model.to(place), dtype)


def _torch_dtype(dtype: InferenceDtype) -> torch.dtype:
    """The dtype of the weights that `dtype` begins with: int8 is made of bfloat16."""
    return torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)


def prepare(model: GPT, dtype: InferenceDtype = "float32") -> GPT:
    """Prepare `model` for inference, in place; `dtype` as for `load_for_inference`."""
    model = model.requires_grad_(False).eval()
    if dtype == "auto":
        dtype = capability(model.device.type).dtype
    model = model.to(_torch_dtype(dtype))
    merge(model)
    if dtype == "int8":
        return to_int8(model)
    if packs(model.device, model.dtype):
        replace_linears(model, lambda layer: PackedLinear(layer.weight, layer.bias))
        head = model.wte if model.head is None else model.head
        assert isinstance(head.weight, Tensor)
        model.head = PackedLinear(head.weight)
    return model


def merge(model: GPT) -> None:
    """Merge q, k and v into one linear layer, and the MLP's gate and up into another: fewer, larger matmuls."""
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attn = MergedAttention(block.attn)
        if block.mlp.gate is not None:
            block.mlp = MergedMLP(block.mlp)  # type: ignore[assignment]


class MergedAttention(Attention):
    """`Attention` with one linear layer for queries, keys and values.

    Args:
        plain: the layer to replace; its other modules are reused.
    """

    def __init__(self, plain: Attention) -> None:
        nn.Module.__init__(self)
        self.layer, self.head_dim = plain.layer, plain.head_dim
        self.dropout, self.scaled = plain.dropout, plain.scaled
        self.n_heads = [linear.out_features // plain.head_dim for linear in (plain.q, plain.k, plain.v)]
        self.qkv = _stacked(plain.q, plain.k, plain.v)
        self.o, self.q_norm, self.k_norm = plain.o, plain.q_norm, plain.k_norm
        self.train(plain.training)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention.project`."""
        q, k, v = self.qkv(x).view(*x.shape[:2], -1, self.head_dim).split(self.n_heads, dim=2)
        return q, k, v


class MergedMLP(nn.Module):
    """A SwiGLU `MLP` with one linear layer for gate and up.

    Args:
        plain: the layer to replace; its down layer is reused.
    """

    def __init__(self, plain: MLP) -> None:
        super().__init__()
        assert plain.gate is not None
        self.gate_up = _stacked(plain.gate, plain.up)
        self.down = plain.down

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, n_inner) each
        return self.down(F.silu(gate) * up)


def _stacked(*layers: nn.Linear) -> nn.Linear:
    """One linear layer whose output is the concatenation of those of `layers`."""
    weight = torch.cat([layer.weight for layer in layers])
    merged = nn.Linear(weight.shape[1], weight.shape[0], bias=layers[0].bias is not None, device="meta")
    merged.weight = nn.Parameter(weight, requires_grad=False)
    if layers[0].bias is not None:
        merged.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return merged


_n_threads: dict[tuple[object, ...], tuple[int, float]] = {}  # the choice, and until when it holds


def decode_threads(model: GPT, n_rows: int = 1) -> int:
    """The fastest number of CPU threads for decoding one token of `n_rows` sequences: 1 or torch's current number.

    For products of few rows, starting threads may cost more than it saves. It depends on the processor, the model's
    width, the number of rows and on whether idle threads sleep (OMP_WAIT_POLICY), so no fixed number is right
    (docs/log.md, "What does not make decoding faster on a CPU"). So it is measured, for models of the same shape and
    dtype: all threads, unless one is faster by MIN_THREAD_SPEEDUP in two measurements. Another process may have been
    busy during both, so a choice of one thread is measured once more in a call RECHECK_SECONDS later, and then kept.
    """
    n_threads = torch.get_num_threads()
    if model.device.type != "cpu" or n_threads == 1:
        return n_threads
    kinds = (type(module) for module in model.blocks[0].modules())
    key = (str(model.config), model.dtype, n_rows, n_threads, *kinds)
    chosen, valid_until = _n_threads.get(key, (0, 0.0))
    if time.monotonic() >= valid_until:
        n_cached = min(TIMED_CONTEXT, model.config.block_size)
        cache = Cache(model.config, n_rows, dtype=model.dtype, length=n_cached)
        tokens, slots = torch.zeros(n_rows, 1, dtype=torch.long), list(range(n_rows))

        @torch.inference_mode()
        def step() -> None:
            cache.lengths[:] = n_cached - 1
            model.logits(model(tokens, cache=cache.rows(slots), logits=False).hidden)

        def one_is_faster() -> bool:
            seconds: dict[int, list[float]] = {1: [], n_threads: []}
            for _ in range(5):
                for n, times in seconds.items():  # alternating, so that short disturbances affect both
                    with cpu_threads(n):
                        times.append(wall_seconds(step, model.device))
            return MIN_THREAD_SPEEDUP * min(seconds[1]) < min(seconds[n_threads])

        first = chosen == 0
        chosen = 1 if one_is_faster() and one_is_faster() else n_threads
        valid_until = time.monotonic() + RECHECK_SECONDS if first and chosen == 1 else math.inf
        _n_threads[key] = chosen, valid_until
    return chosen


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Context manager: set torch's number of CPU threads to `n`.

    A Python thread that first uses torch inside the block keeps this number. Threads that compute beside an engine
    must therefore use torch once before, as in `serve.work.threads`, or call `torch.set_num_threads`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
