"""The shape of a GPT, and how that shape is written in Hugging Face's `config.json`."""

from dataclasses import dataclass
from typing import Any, Literal

from gpt_core.errors import InputError


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The default graph is Qwen3's; switches turn it into exactly Llama's or exactly GPT-2's.

    Raises:
        InputError: if the numbers do not fit together.
    """

    vocab_size: int = 50304
    block_size: int = 1024  # the longest context, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int = 12  # fewer than n_head: grouped-query attention
    n_embd: int = 768
    head_dim: int = 64
    n_inner: int = 2048  # width of the MLP
    position: Literal["rope", "learned"] = "rope"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    # gelu: the tanh approximation, as GPT-2; gelu_erf: exact, as nanoGPT
    mlp: Literal["swiglu", "gelu", "gelu_erf"] = "swiglu"
    attn_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = True  # RMSNorm over each head's query and key, before the rotation
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    dropout: float = 0.0
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "block_size",
            "n_layer",
            "n_head",
            "n_kv_head",
            "n_embd",
            "head_dim",
            "n_inner",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; a GPT needs at least 1.")
        if self.n_head % self.n_kv_head:
            raise InputError(f"n_kv_head is {self.n_kv_head}; it must divide n_head, which is {self.n_head}.")
        if self.position == "rope" and self.head_dim % 2:
            raise InputError(
                f"head_dim is {self.head_dim}; rotary positions turn pairs and need an even number."
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
        """Every id that ends a text."""
        if self.eos_id is None:
            return ()
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)

    @property
    def model_type(self) -> str:
        """The Hugging Face family that computes exactly this graph: "gpt2", "llama" or "qwen3".

        Raises:
            InputError: if none does, so that nobody saves a model that others would misread.
        """
        graph = (self.position, self.norm, self.mlp)
        if graph in (("learned", "layernorm", "gelu"), ("learned", "layernorm", "gelu_erf")):
            fits = self.attn_bias and self.mlp_bias and not self.qk_norm and self.n_kv_head == self.n_head
            if fits and self.head_dim * self.n_head == self.n_embd:
                return "gpt2"
        elif graph == ("rope", "rmsnorm", "swiglu"):
            if self.qk_norm and not self.mlp_bias:
                return "qwen3"
            if not self.qk_norm:
                return "llama"
        raise InputError(
            f"No Hugging Face family has position={self.position}, norm={self.norm}, mlp={self.mlp}, "
            f"attn_bias={self.attn_bias}, mlp_bias={self.mlp_bias}, qk_norm={self.qk_norm}; "
            "change them to the graph of gpt2, llama or qwen3."
        )


# The keys of a Hugging Face `config.json` that hold a size, another number, an object
SIZES = {
    *("vocab_size", "n_positions", "n_layer", "n_head", "n_embd", "n_inner", "max_position_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim"),
    "intermediate_size",
}
NUMBERS = {"layer_norm_epsilon", "rms_norm_eps", "rope_theta", "resid_pdrop", "attention_dropout"}
OBJECTS = {"rope_parameters", "rope_scaling"}


def from_hf(raw: dict[str, Any]) -> GPTConfig:
    """Read the content of a Hugging Face `config.json`.

    Raises:
        InputError: for a family, or a value of a key, that this GPT does not compute.
    """
    if not isinstance(raw, dict):
        raise InputError(f"config.json holds a {type(raw).__name__}; expected an object.")
    raw = {key: value for key, value in raw.items() if value is not None}
    _check_types(raw)
    family = raw.get("model_type")
    if family not in ("gpt2", "llama", "qwen3"):
        raise InputError(f"config.json has model_type {family!r}; expected gpt2, llama or qwen3.")
    eos = raw.get("eos_token_id")
    common: dict[str, Any] = {
        "vocab_size": raw["vocab_size"],
        "bos_id": raw.get("bos_token_id"),
        "eos_id": tuple(eos) if isinstance(eos, list) else eos,
        "pad_id": raw.get("pad_token_id"),
    }
    if family == "gpt2":
        _expect(raw, "activation_function", ("gelu_new", "gelu_pytorch_tanh", "gelu"), default="gelu_new")
        _expect(raw, "scale_attn_weights", (True,), default=True)
        _expect(raw, "scale_attn_by_inverse_layer_idx", (False,), default=False)
        return GPTConfig.gpt2(
            block_size=raw["n_positions"],
            n_layer=raw["n_layer"],
            n_head=raw["n_head"],
            n_embd=raw["n_embd"],
            n_inner=raw.get("n_inner") or 4 * raw["n_embd"],
            norm_eps=raw.get("layer_norm_epsilon", 1e-5),
            tie_embeddings=raw.get("tie_word_embeddings", True),
            dropout=raw.get("resid_pdrop", 0.0),
            mlp="gelu_erf" if raw.get("activation_function") == "gelu" else "gelu",
            **common,
        )
    _expect(raw, "hidden_act", ("silu",), default="silu")
    _expect(raw, "use_sliding_window", (False,), default=False)
    # transformers 5 keeps the rotary settings in `rope_parameters`, before it in `rope_theta` and `rope_scaling`
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    _expect(rope, "rope_type", ("default",), default=rope.get("type", "default"))
    n_head = raw["num_attention_heads"]
    return GPTConfig(
        block_size=raw["max_position_embeddings"],
        n_layer=raw["num_hidden_layers"],
        n_head=n_head,
        n_kv_head=raw.get("num_key_value_heads") or n_head,
        n_embd=raw["hidden_size"],
        head_dim=raw.get("head_dim") or raw["hidden_size"] // n_head,
        n_inner=raw["intermediate_size"],
        attn_bias=raw.get("attention_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
        qk_norm=family == "qwen3",
        tie_embeddings=raw.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10000.0)),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        dropout=raw.get("attention_dropout", 0.0),
        **common,
    )


def _check_types(raw: dict[str, Any]) -> None:
    for key, value in raw.items():
        if key in SIZES and (type(value) is not int or value < 1):
            raise InputError(f"config.json has {key} = {value!r}; expected a whole number of at least 1.")
        if key in NUMBERS and type(value) not in (int, float):
            raise InputError(f"config.json has {key} = {value!r}; expected a number.")
        if key in OBJECTS and not isinstance(value, dict):
            raise InputError(f"config.json has {key} = {value!r}; expected an object.")


def to_hf(config: GPTConfig) -> dict[str, Any]:
    """The content of a Hugging Face `config.json` that describes `config`; the inverse of `from_hf`."""
    family = config.model_type
    common: dict[str, Any] = {
        "model_type": family,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_id) if isinstance(config.eos_id, tuple) else config.eos_id,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": "float32",
    }
    if family == "gpt2":
        return common | {
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.block_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "n_inner": config.n_inner,
            "activation_function": "gelu" if config.mlp == "gelu_erf" else "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    return common | {
        "architectures": ["LlamaForCausalLM" if family == "llama" else "Qwen3ForCausalLM"],
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "hidden_size": config.n_embd,
        "head_dim": config.head_dim,
        "intermediate_size": config.n_inner,
        "hidden_act": "silu",
        "attention_bias": config.attn_bias,
        "mlp_bias": config.mlp_bias,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "attention_dropout": config.dropout,
    }


def _expect(raw: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> None:
    value = raw.get(key, default)
    if value not in allowed:
        wanted = " or ".join(repr(a) for a in allowed)
        raise InputError(f"config.json has {key} = {value!r}; this GPT computes only {wanted}.")
