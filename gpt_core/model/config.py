"""The shape of a GPT."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from gpt_core.common.errors import InputError
from gpt_core.model.rope_scaling import RopeScaling

MAX_DIMENSION = 2**24  # bound of every size but n_layer; a larger value means a damaged file
MAX_LAYERS = 2**12  # bound of n_layer
CHOICES: dict[str, tuple[Any, ...]] = {
    "position": ("rope", "learned", "alibi"),
    "norm": ("rmsnorm", "layernorm"),
    "mlp": ("swiglu", "gelu", "gelu_erf"),
    "attn_bias": (True, False, "output"),
}


COUNTS = ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "head_dim", "n_inner")


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The default graph is Qwen3's; switches make it exactly Llama's, GPT-2's or GPT-Neo's.

    Sizes that are None follow from the others: one KV head per head, heads that share the width, and an MLP of 8/3 of
    the width, to the nearest multiple of 64.

    Raises:
        InputError: for a value that is out of range or contradicts another one.
    """

    vocab_size: int = 50304
    block_size: int = 1024  # the longest context, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int = None  # type: ignore[assignment]  # fewer than n_head: grouped-query attention
    n_embd: int = 768
    head_dim: int = None  # type: ignore[assignment]
    n_inner: int = None  # type: ignore[assignment]  # width of the MLP
    position: Literal["rope", "learned", "alibi"] = "rope"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    # gelu: the tanh approximation, as in GPT-2; gelu_erf: exact, as in nanoGPT
    mlp: Literal["swiglu", "gelu", "gelu_erf"] = "swiglu"
    attn_bias: bool | Literal["output"] = False  # output: only the output projection, as in GPT-Neo
    mlp_bias: bool = False
    qk_norm: bool = True  # RMSNorm over each head's query and key, before the rotation
    scale_attention: bool = True  # multiply q·kᵀ by 1/√head_dim; GPT-Neo does not
    # In `window_layers` a token attends to this many tokens, itself included; None: no layer has a window.
    window: int | None = None
    window_layers: tuple[int, ...] = ()  # indices of the layers with that window, from 0
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    dropout: float = 0.0
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        given = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        self._check_counts(given)
        if self.head_dim is None and self.n_embd % self.n_head:
            raise InputError(
                f"n_embd is {self.n_embd}; expected a multiple of n_head, which is {self.n_head}, or a head_dim."
            )
        derived = {
            "n_kv_head": self.n_head,
            "head_dim": self.n_embd // self.n_head,
            "n_inner": max(64, round(self.n_embd * 8 / 3 / 64) * 64),
        }
        for name, size in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, size)  # the dataclass is frozen
        self._check_counts(tuple(derived))
        self._check_values()

    def _check_counts(self, names: tuple[str, ...]) -> None:
        for name in names:
            # Without blocks a GPT is a table of token vectors, which an embedder may be.
            least, most = (0, MAX_LAYERS) if name == "n_layer" else (1, MAX_DIMENSION)
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= most:
                raise InputError(f"{name} is {size!r}; expected a whole number from {least} to {most}.")

    def _check_values(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise InputError(f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}.")
        if not 0 <= self.norm_eps < 1:
            raise InputError(f"norm_eps is {self.norm_eps}; expected a number from 0 to 1, such as 1e-6.")
        if not 1 < self.rope_theta < math.inf:
            raise InputError(f"rope_theta is {self.rope_theta}; expected a number above 1, such as 10000.")
        if self.n_head % self.n_kv_head:
            raise InputError(f"n_kv_head is {self.n_kv_head}; it must divide n_head, which is {self.n_head}.")
        if self.position == "rope" and self.head_dim % 2:
            raise InputError(
                f"head_dim is {self.head_dim}; rotary positions rotate pairs and need an even number."
            )
        if self.rope_scaling is not None and self.position != "rope":
            raise InputError(f"position is {self.position}; rope_scaling needs position='rope'.")
        if (self.window is None) != (not self.window_layers) or (self.window is not None and self.window < 1):
            raise InputError(
                f"window is {self.window} and window_layers is {self.window_layers}; expected both, the window of at "
                "least 1 token, or neither."
            )
        if sorted(set(self.window_layers) & set(range(self.n_layer))) != list(self.window_layers):
            raise InputError(
                f"window_layers is {self.window_layers}; expected ascending layers from 0 to {self.n_layer - 1}."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; expected a probability in [0, 1).")

    @classmethod
    def gpt2(
        cls,
        *,
        vocab_size: int = 50257,
        block_size: int = 1024,
        n_layer: int = 12,
        n_head: int = 12,
        n_embd: int = 768,
        dropout: float = 0.0,
        **other: Any,
    ) -> "GPTConfig":
        """GPT-2's graph: learned positions, LayerNorm, GELU, biases everywhere, a tied head."""
        if n_embd % n_head:
            raise InputError(f"n_embd is {n_embd}; GPT-2 needs a multiple of n_head, which is {n_head}.")
        shape: dict[str, Any] = {
            "vocab_size": vocab_size, "block_size": block_size, "n_layer": n_layer, "n_head": n_head,
            "n_kv_head": n_head, "n_embd": n_embd, "head_dim": n_embd // n_head, "n_inner": 4 * n_embd,
            "position": "learned", "norm": "layernorm", "mlp": "gelu", "attn_bias": True, "mlp_bias": True,
            "qk_norm": False, "tie_embeddings": True, "norm_eps": 1e-5, "dropout": dropout,
        }  # fmt: skip
        return cls(**(shape | other))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end a sequence."""
        if self.eos_id is None:
            return ()
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)

    def with_blocks(self, n_layer: int) -> "GPTConfig":
        """The config of the first `n_layer` blocks."""
        kept = tuple(layer for layer in self.window_layers if layer < n_layer)
        return replace(self, n_layer=n_layer, window_layers=kept, window=self.window if kept else None)

    def with_eos(self, ids: Iterable[int]) -> "GPTConfig":
        """This config with further ids that end a sequence, after its own ones."""
        every = tuple(dict.fromkeys((*self.eos_ids, *ids)))
        if every == self.eos_ids:
            return self
        return replace(self, eos_id=every[0] if len(every) == 1 else every)

    @property
    def model_type(self) -> str:
        """The Hugging Face family that computes exactly this graph: "gpt2", "gpt_neo", "llama" or "qwen3".

        Any graph with ALiBi is "zhizhi", which transformers does not know and therefore refuses to load.

        Raises:
            InputError: if no family does; saved under another family's name, other tools would compute another graph.
        """
        if self.position == "alibi":
            return "zhizhi"
        graph = (self.position, self.norm, "gelu" if self.mlp == "gelu_erf" else self.mlp)
        if graph == ("learned", "layernorm", "gelu"):
            whole_heads = self.n_kv_head == self.n_head and self.head_dim * self.n_head == self.n_embd
            if whole_heads and self.mlp_bias and not self.qk_norm:
                if self.attn_bias is True and not self.window_layers:
                    return "gpt2"
                if self.attn_bias == "output" and not self.scale_attention:
                    return "gpt_neo"
        elif graph == ("rope", "rmsnorm", "swiglu") and self.scale_attention and self.attn_bias != "output":
            if self.qk_norm and not self.mlp_bias:
                return "qwen3"
            if not self.qk_norm and not self.window_layers:
                return "llama"
        raise InputError(
            f"No Hugging Face family has position={self.position}, norm={self.norm}, mlp={self.mlp}, "
            f"attn_bias={self.attn_bias}, mlp_bias={self.mlp_bias}, qk_norm={self.qk_norm}, "
            f"scale_attention={self.scale_attention}, window_layers={self.window_layers}; "
            "change them to the graph of gpt2, gpt_neo, llama or qwen3."
        )
