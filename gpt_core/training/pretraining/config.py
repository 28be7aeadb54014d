"""Configuration of pretraining."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_core.common.errors import InputError
from gpt_core.model.config import GPTConfig
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.config import TrainConfig


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Configuration of pretraining. Shape keys that are None take the value of the model in `init_from`."""

    data_dir: str = "data/shakespeare_char"
    """Folder with token shards and their tokenizer, from scripts/prepare_data.py."""
    tokenizer: str | None = None
    """Tokenizer of the shards; None: the one in data_dir, or nanoGPT's meta.pkl. For nanoGPT's GPT-2 BPE give gpt2."""
    align_documents: bool = False
    """Never let a window span two documents; each window lies within one document."""
    init_from: str = "scratch"
    """scratch, or the model to fine-tune: a model folder, a run's out_dir or a known model."""
    init: Literal["gpt2", "zero"] = "gpt2"
    """Initialisation from scratch. gpt2: GPT-2's; zero: GPT-2's with the projections into the residual stream zero."""
    graph: Literal["qwen3", "llama", "gpt2"] | None = None
    """Architecture, which also determines the file format. None: qwen3."""
    position: Literal["alibi"] | None = None
    """alibi: ALiBi (Press et al. 2022); only this package can open such a model. None: the graph's default, learned
    positions for gpt2, else rotary."""
    n_layer: int | None = None
    """Number of blocks. None: 12."""
    n_head: int | None = None
    """Number of attention heads. None: 12."""
    n_kv_head: int | None = None
    """Number of KV heads; fewer than n_head: grouped-query attention. None: n_head."""
    n_embd: int | None = None
    """Model width, a multiple of n_head. None: 768."""
    n_inner: int | None = None
    """Width of the MLP; None: 4 n_embd for gpt2, else 8/3 n_embd to the nearest multiple of 64."""
    block_size: int | None = None
    """Context length in tokens. None: 1024; for fine-tuning at most the model's, which is the default."""
    tie_embeddings: bool | None = None
    """Whether the output layer shares the weights of the token embedding. None: yes."""
    vocab_multiple: int = 64
    """From scratch: pad the vocabulary to a multiple of n, for faster matrix kernels; 1: no padding."""
    expected_vocab_size: int = 50257
    """Vocabulary size that a dry run assumes if there is no data; GPT-2's BPE has 50,257."""
    dropout: float = 0.0
    """Dropout probability in training."""
    batch_size: int = 480
    """Sequences of block_size tokens per step, over all ranks and accumulation steps."""
    micro_batch_size: int | None = None
    """Sequences per forward on one rank; gradients are accumulated up to batch_size. None: batch_size / ranks."""
    batch_size_start: int | None = None
    """Batch size of the first step, in sequences; None: batch_size."""
    batch_ramp_iters: int = 0
    """Steps over which the batch grows linearly from batch_size_start to batch_size."""
    eval_tokens: int = 0
    """Tokens of the validation split per evaluation, in windows spread evenly over it; 0: the whole split."""
    sample_tokens: int = 0
    """At each evaluation, print a generated text of n tokens; 0: none."""
    sample_prompt: str = "\n"
    """Prompt of the generated text."""
    eval_only: bool = False
    """Print the validation loss of the model in out_dir or init_from, and exit."""
    dry_run: bool = False
    """Print parameters, memory, measured speed, hours and tokens per parameter, and exit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "block_size", "vocab_multiple",
            "expected_vocab_size", "batch_size", "micro_batch_size", "batch_size_start",
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")
        for name in ("batch_ramp_iters", "eval_tokens", "sample_tokens"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 0.")
        if self.batch_ramp_iters and self.batch_size_start is None:
            raise InputError(
                f"batch_ramp_iters is {self.batch_ramp_iters}, but batch_size_start is not set; set it to the batch "
                "size of the first step."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; expected a number in [0, 1).")
        if self.sample_tokens and not self.sample_prompt:
            raise InputError('sample_prompt is empty; expected at least one character, such as "\\n".')

    def gpt_config(self, tokenizer: Tokenizer | None) -> GPTConfig:
        """Shape of a model trained from scratch.

        Args:
            tokenizer: determines the vocabulary size and the special ids; None: `expected_vocab_size`, no special ids.

        Raises:
            InputError: if n_embd is not a multiple of n_head, or gpt2 is to have grouped queries.
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
        if self.n_inner is not None:
            shape["n_inner"] = self.n_inner
        if self.graph == "gpt2":
            if self.n_kv_head not in (None, n_head):
                raise InputError(
                    f"n_kv_head is {self.n_kv_head}; expected n_head, {n_head}: gpt2 has no grouped-query attention."
                )
            return GPTConfig.gpt2(**shape)
        return GPTConfig(**shape, n_kv_head=self.n_kv_head or n_head, qk_norm=self.graph != "llama")

    def check_shape(self, theirs: GPTConfig, source: Path) -> None:
        """Check that the shape keys match the model to fine-tune.

        Args:
            theirs: shape of the model.
            source: path of the model, for the error message.

        Raises:
            InputError: naming the key and both values, if they differ.
        """
        given = {"graph": theirs.model_type, "block_size": theirs.block_size}
        for name in ("position", "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "tie_embeddings"):
            given[name] = getattr(theirs, name)
        for name, value in given.items():
            asked = getattr(self, name)
            fits = asked <= value if name == "block_size" and asked else asked == value
            if asked is not None and not fits:
                raise InputError(
                    f"{name} is {asked}, but {source} has {value}; fine-tuning cannot change the shape. Remove "
                    f"{name}, or set init_from to scratch."
                )
