"""Every key of pretraining."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_core.common.errors import InputError
from gpt_core.model.config import GPTConfig
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.config import TrainConfig


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Every key of pretraining. Keys of the model's shape whose default is None follow the model of `init_from`."""

    data_dir: str = "data/shakespeare_char"
    """Folder with token shards and their tokenizer, from scripts/prepare_data.py."""
    tokenizer: str | None = None
    """The shards' tokenizer; None: the one in data_dir. nanoGPT's .bin files need it, for GPT-2's BPE: gpt2."""
    align_documents: bool = False
    """Let no window of the data span two documents: each begins one, or goes on with it."""
    init_from: str = "scratch"
    """scratch, or what to fine-tune: a model folder, a run's out_dir or a known model."""
    init: Literal["gpt2", "zero"] = "gpt2"
    """From scratch: GPT-2's initial weights, or with those zero that add to the residual stream."""
    graph: Literal["qwen3", "llama", "gpt2"] | None = None
    """Whose architecture, and so whose file format. None: qwen3."""
    position: Literal["alibi"] | None = None
    """alibi: distances instead of positions (Press et al. 2022), in a format that only this package opens. None: the
    graph's own, learned for gpt2, else rotary."""
    n_layer: int | None = None
    """Blocks. None: 12."""
    n_head: int | None = None
    """Attention heads. None: 12."""
    n_kv_head: int | None = None
    """Heads of keys and values; fewer than n_head: grouped-query attention. None: n_head."""
    n_embd: int | None = None
    """Width, a multiple of n_head. None: 768."""
    n_inner: int | None = None
    """Width of the MLP; None: 4 n_embd for gpt2, else 8/3 n_embd to the nearest multiple of 64."""
    block_size: int | None = None
    """Context, in tokens. None: 1024; fine-tuning: all that the model has, or fewer."""
    tie_embeddings: bool | None = None
    """Whether the output layer is the token embedding. None: yes."""
    vocab_multiple: int = 64
    """From scratch: pad the vocabulary to a multiple of this, which matrix kernels like; 1: as it is."""
    expected_vocab_size: int = 50257
    """The vocabulary that a dry run reckons with while there is no data; GPT-2's BPE has 50,257."""
    dropout: float = 0.0
    """Share of activations that is dropped in training."""
    batch_size: int = 480
    """Sequences of block_size tokens per step, over all ranks and accumulation."""
    micro_batch_size: int | None = None
    """Sequences per forward on one rank; the rest of batch_size is accumulated. None: all of a rank's share."""
    batch_size_start: int | None = None
    """Begin with steps of so many sequences; None: batch_size."""
    batch_ramp_iters: int = 0
    """Steps over which the batch grows from batch_size_start to batch_size, linearly."""
    sample_tokens: int = 0
    """At each evaluation, show a text of so many tokens; 0: none."""
    sample_prompt: str = "\n"
    """What that text begins with."""
    eval_only: bool = False
    """Print the validation loss of what init_from or out_dir holds, and end."""
    dry_run: bool = False
    """Print parameters, memory, measured speed, hours and tokens per parameter, and end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "block_size", "vocab_multiple",
            "expected_vocab_size", "batch_size", "micro_batch_size", "batch_size_start",
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")
        for name in ("batch_ramp_iters", "sample_tokens"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 0.")
        if self.batch_ramp_iters and self.batch_size_start is None:
            raise InputError(
                f"batch_ramp_iters is {self.batch_ramp_iters}, but there is no batch_size_start; give the size that "
                "the batch begins with."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; expected a share in [0, 1).")
        if self.sample_tokens and not self.sample_prompt:
            raise InputError('sample_prompt is empty; a text needs a beginning, such as "\\n".')

    def gpt_config(self, tokenizer: Tokenizer | None) -> GPTConfig:
        """The shape of a model from scratch, for this tokenizer; None: for a vocabulary of `expected_vocab_size`.

        Raises:
            InputError: if the numbers do not fit together.
        """
        n_head, n_embd = self.n_head or 12, self.n_embd or 768
        if n_embd % n_head:
            raise InputError(f"n_embd is {n_embd}; expected a multiple of n_head, which is {n_head}.")
        vocab_size = self.expected_vocab_size if tokenizer is None else tokenizer.vocab_size
        shape: dict[str, Any] = {
            "vocab_size": -(-vocab_size // self.vocab_multiple) * self.vocab_multiple,
            "block_size": self.block_size or 1024,
            "n_layer": self.n_layer or 12,
            "n_head": n_head,
            "n_embd": n_embd,
            "dropout": self.dropout,
            "tie_embeddings": self.tie_embeddings is not False,
        }
        if self.position is not None:
            shape["position"] = self.position
        if tokenizer is not None:
            shape |= {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        if self.graph == "gpt2":
            if self.n_kv_head not in (None, n_head):
                raise InputError(f"n_kv_head is {self.n_kv_head}; the graph gpt2 has no grouped queries.")
            return GPTConfig.gpt2(**shape, n_inner=self.n_inner or 4 * n_embd)
        return GPTConfig(
            **shape,
            n_kv_head=self.n_kv_head or n_head,
            head_dim=n_embd // n_head,
            n_inner=self.n_inner or max(64, round(n_embd * 8 / 3 / 64) * 64),
            qk_norm=self.graph != "llama",
        )

    def check_shape(self, theirs: GPTConfig, source: Path) -> None:
        """Make sure that no key asks the model in `source`, which is fine-tuned, for another shape than it has.

        Raises:
            InputError: naming the key and both values.
        """
        given = {"graph": theirs.model_type, "block_size": theirs.block_size}
        for name in ("position", "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "tie_embeddings"):
            given[name] = getattr(theirs, name)
        for name, value in given.items():
            asked = getattr(self, name)
            fits = asked <= value if name == "block_size" and asked else asked == value
            if asked is not None and not fits:
                raise InputError(
                    f"{name} is {asked}, but {source} has {value}; a model that is fine-tuned keeps its shape. Leave "
                    f"{name} out, or set init_from to scratch."
                )
