"""Every key of embedding training."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from embed.network.config import PoolingMode
from gpt_core.common.errors import InputError
from gpt_core.training.config import TrainConfig


@dataclass(frozen=True)
class TrainEmbedderConfig(TrainConfig):
    """Every key of embedding training: what is trained, on which texts, with which losses."""

    max_iters: int = 1000
    """Steps to train for."""
    eval_interval: int = 100
    """Evaluate and save a checkpoint every so many steps, and at the last one."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    """muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 1e-4
    """AdamW's peak rate; LoRA and BitFit like ten times as much."""
    muon_learning_rate: float = 2e-3
    """Muon's peak rate."""
    weight_decay: float = 0.01
    """AdamW's, on what has two dimensions or more."""
    warmup_iters: int = 50
    """Steps over which the rates rise from zero."""

    init_from: str = "smollm2-135m-instruct"
    """What to start from: a model folder, an embedder, a run's out_dir or a known model."""
    n_layer: int | None = None
    """Keep only so many of the first blocks: quicker, but no longer a language model. None: all."""
    pooling: PoolingMode | None = None
    """How token states become a vector. None: the embedder's own, for a plain GPT weightedmean."""
    pooling_layer: int | None = None
    """Pool after so many blocks and the final norm; the blocks above stay, for generation. None: after all."""
    dimension: int | None = None
    """End with a dense layer to vectors of so many numbers. None: none that is not there already."""
    query_prompt: str | None = None
    """Put before queries. None: the embedder's own, for a plain GPT nothing."""
    document_prompt: str | None = None
    """Put before documents. None: likewise."""
    max_tokens: int = 256
    """The embedder's longest input in tokens, prompt included."""
    train_tokens: int | None = None
    """Cut texts to so many tokens in training. None: max_tokens."""

    trainable: Literal["full", "last-k", "lora", "bitfit"] = "full"
    """full: all weights that vectors depend on; last-k: the last blocks; lora: low-rank updates; bitfit: biases."""
    last_k: int = 2
    """last-k: how many of the last blocks before the pooling."""
    lora_rank: int = 16
    """lora: the rank."""
    lora_alpha: int = 32
    """lora: the update is scaled by lora_alpha / lora_rank."""
    dropout: float = 0.0
    """Share of the GPT's activations that is dropped in training."""

    data: tuple[str, ...] = ()
    """JSON lines of pairs, triples or texts, BEIR folders, or names of `datasets`."""
    weights: tuple[float, ...] = ()
    """How often each of them gives a batch, in proportion. Empty: by their numbers of examples."""
    query_column: str | None = None
    """Column of the queries. None: query or anchor, whichever is there."""
    positive_column: str | None = None
    """Column of what they should find. None: positive or pos."""
    negative_column: str | None = None
    """Column of hard negatives. None: negative, neg, negative_1 …, all that are there."""
    dev_data: tuple[str, ...] = ()
    """What to evaluate on. Empty: dev_examples of each set of data, held out."""
    dev_examples: int = 200
    """At most so many examples of each set are held out, and at most a tenth of it."""
    exclude: tuple[str, ...] = ()
    """Evaluation sets (BEIR folders, JSON lines): training texts that nearly equal one of theirs are left out."""

    batch_size: int = 64
    """Examples per step, over all ranks: each query is to find its positive among all of theirs."""
    n_negatives: int = 1
    """Hard negatives per query, of those that it has."""
    chunk_size: int | None = None
    """Texts per forward, by GradCache: memory for so many only, for a second forward. None: all graphs are kept."""

    temperature: float = 0.05
    """Cosines are divided by it."""
    learn_temperature: bool = False
    """Train it, too."""
    contrastive_weight: float = 1.0
    """Of InfoNCE in the loss."""
    matryoshka: tuple[int, ...] = ()
    """Apply InfoNCE and the KL divergence to these leading numbers of each vector as well, so that it may be cut."""
    false_negative_margin: float | None = None
    """Leave out candidates whose cosine exceeds the positive's by so much (Qwen3-Embedding: 0.1). None: count them."""
    guide: str | None = None
    """A sentence-transformers model whose cosines say that instead of the model's own (GISTEmbed)."""

    teacher: str | None = None
    """A sentence-transformers model whose vectors are to be imitated. They are kept in the model cache."""
    distill_weight: float = 1.0
    """Of the distance to the teacher's vectors in the loss, if there is a teacher."""
    distill_loss: Literal["cosine", "mse"] = "cosine"
    """That distance."""
    similarity_weight: float = 0.0
    """Of the KL divergence between the teacher's similarities in a batch and the model's."""

    lm_weight: float = 0.0
    """Of the language model's loss, which keeps generation alive: loss = emb + lm_weight · lm (GRIT)."""
    lm_data_dir: str | None = None
    """Token shards for it, from scripts/prepare_data.py with the model's tokenizer."""
    lm_batch_size: int = 8
    """Windows of lm_block_size tokens per step for it, over all ranks."""
    lm_block_size: int = 256
    """Tokens of such a window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and len(self.weights) != len(self.data):
            raise InputError(
                f"weights has {len(self.weights)} numbers for {len(self.data)} sets of data; expected one for each."
            )
        for weight in self.weights:
            if not weight > 0:
                raise InputError(f"weights holds {weight}; expected numbers above 0.")
        for name in ("n_layer", "pooling_layer", "dimension", "max_tokens", "train_tokens", "last_k", "lora_rank",
                     "batch_size", "chunk_size", "lm_batch_size", "lm_block_size", "dev_examples"):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")
        if self.batch_size < 2 and self.contrastive_weight:
            raise InputError(f"batch_size is {self.batch_size}; a contrastive loss needs at least 2.")
        for name in ("n_negatives", "contrastive_weight", "distill_weight", "similarity_weight", "lm_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 0.")
        for name in ("temperature", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; expected 0 up to 1.")
        if self.train_tokens is not None and self.train_tokens > self.max_tokens:
            raise InputError(f"train_tokens is {self.train_tokens}, above max_tokens, {self.max_tokens}.")
        if any(b <= a for a, b in pairwise((0, *self.matryoshka))):
            raise InputError(f"matryoshka is {self.matryoshka}; expected rising numbers of at least 1.")
        if self.similarity_weight and self.teacher is None:
            raise InputError(
                f"similarity_weight is {self.similarity_weight}, but there is no teacher; name one."
            )
        imitating = self.teacher is not None and (self.distill_weight or self.similarity_weight)
        if not self.contrastive_weight and not imitating:
            raise InputError(
                "contrastive_weight is 0 and no teacher has a weight: there is nothing to learn from; name a teacher."
            )
        if self.guide is not None and self.false_negative_margin is None:
            raise InputError(
                f"guide is {self.guide}, but false_negative_margin is not given; give 0 to leave out what the guide "
                "finds more similar than the positive."
            )
        if (self.lm_weight > 0) != (self.lm_data_dir is not None):
            raise InputError(
                f"lm_weight is {self.lm_weight} and lm_data_dir {self.lm_data_dir}; the one needs the other."
            )
        if self.lm_weight and self.n_layer is not None:
            raise InputError(
                f"n_layer is {self.n_layer}: a model without its upper blocks is no language model, which lm_weight "
                "asks for; give pooling_layer instead, which leaves them in place."
            )
        if self.n_layer is not None and self.pooling_layer is not None:
            raise InputError("n_layer and pooling_layer exclude each other: give one.")
        if self.parallel == "deepspeed":
            raise InputError(
                "parallel is deepspeed, which embedding training does not know; use ddp or fsdp2."
            )
        if self.dtype == "float16":
            raise InputError(
                "dtype is float16, whose loss scale embedding training does not know; use bfloat16 or float32."
            )
