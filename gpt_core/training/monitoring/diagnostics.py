"""Early warnings of divergence: largest activations and attention logits, update sizes."""

import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt_core.model.attention import attend
from gpt_core.training.optim import is_block_matrix


class Maxima(TorchFunctionMode):
    """Context manager that records the largest absolute activation and attention logit of each block.

    It records all forwards inside the context and does not change the model. Only the first sequence of each batch is
    measured, so the overhead is small. It cannot see compiled code: use `torch.compiler.set_stance("force_eager")`.

        with Maxima(model) as maxima:
            model(ids)
        maxima.figures()

    Args:
        model: a GPT, or another module with an `nn.ModuleList` `blocks` whose modules call `attend`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        blocks = model.blocks
        assert isinstance(blocks, nn.ModuleList)
        self._blocks = blocks
        self._layer: int | None = None  # layer whose forward is running
        self._activations: dict[int, list[Tensor]] = {}
        self._logits: dict[int, list[Tensor]] = {}

    def __enter__(self) -> "Maxima":
        self._hooks = []
        for layer, block in enumerate(self._blocks):
            self._hooks.append(block.register_forward_pre_hook(self._before(layer)))
            self._hooks.append(block.register_forward_hook(self._after(layer)))
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is attend and self._layer is not None:
            q, k, v, mask = args[:4]
            with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
                self._logits.setdefault(self._layer, []).append(
                    largest_logit(q, k, v, mask, is_causal=mask is None)
                )
        return func(*args, **(kwargs or {}))

    def activations(self) -> list[float]:
        """Largest absolute value of the residual stream after each block, one per layer."""
        return [_largest(self._activations.get(layer)) for layer in range(len(self._blocks))]

    def attention_logits(self) -> list[float]:
        """Largest unmasked attention logit q·k/√d, one per layer."""
        return [_largest(self._logits.get(layer)) for layer in range(len(self._blocks))]

    def figures(self) -> dict[str, float]:
        """Maxima over all layers and the layers (from 0) in which they occur, for the log."""
        figures: dict[str, float] = {}
        for name, values in (
            ("activation_max", self.activations()),
            ("attention_logit_max", self.attention_logits()),
        ):
            value = max(values, key=lambda v: math.inf if math.isnan(v) else v)  # NaN ranks above everything
            figures |= {name: value, f"{name}_layer": values.index(value)}
        return figures

    def _before(self, layer: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: Any) -> None:
            self._layer = layer

        return hook

    def _after(self, layer: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: Any, output: Tensor) -> None:
            self._layer = None
            self._activations.setdefault(layer, []).append(output[:1].detach().abs().amax())

        return hook


def largest_logit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Largest unmasked attention logit of the first sequence; float32, 0-dim.

    Same arguments as `scaled_dot_product_attention`: query (B, n_head, T, d), key (B, n_kv_head, S, d), attn_mask
    boolean or additive, broadcast to (B, n_head, T, S). Heads are computed one by one, so memory is T·S elements.
    """
    n_head, n_tokens, n_seen = query.shape[1], query.shape[2], key.shape[2]
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else scale
    if is_causal:
        attn_mask = torch.ones(n_tokens, n_seen, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        attn_mask = attn_mask.expand(query.shape[0], n_head, n_tokens, n_seen)[0]
    largest = []
    for head in range(n_head):
        k = key[0, head // (n_head // key.shape[1])]
        logits = query[0, head].float() @ k.float().mT * scale
        if attn_mask is not None:
            mask = attn_mask[head]
            logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
        largest.append(logits.amax())
    return torch.stack(largest).amax()


class UpdateToWeight:
    """Context manager around an optimizer step: its size relative to the weights, ‖after - before‖ / ‖before‖.

    Computed over all matrices of the blocks (Muon's parameters), and over the rest; about 1e-3 is usual with AdamW. If
    parameters are sharded (DTensors), all ranks must enter and leave it together. The copy of the parameters exists
    only inside the context, where no activations are in memory.

    Args:
        parameters: by name; {}: nothing is copied or computed.

    Attributes:
        figures: {"update_to_weight_matrices", "update_to_weight_rest"} after the context; a kind without parameters
            is left out.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._before: dict[str, Tensor] = {}
        self.figures: dict[str, float] = {}

    def __enter__(self) -> "UpdateToWeight":
        self._before = {name: p.detach().clone() for name, p in self._parameters.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before, self._before = self._before, {}
        if kind is not None:
            return
        norms: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        for name, p in self._parameters.items():
            old = before.pop(name)
            which = "matrices" if is_block_matrix(name, p) else "rest"
            moved, length = norms.setdefault(f"update_to_weight_{which}", ([], []))
            length.append(_norm(old))
            moved.append(_norm(old.sub_(p.detach())))
        self.figures = {
            which: (torch.stack(moved).norm() / torch.stack(length).norm()).item()
            for which, (moved, length) in norms.items()
        }


def _norm(x: Tensor) -> Tensor:
    """L2 norm of `x`; of a DTensor, over the shards of all ranks."""
    norm = torch.linalg.vector_norm(x)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _largest(values: list[Tensor] | None) -> float:
    return torch.stack(values).amax().item() if values else -math.inf
