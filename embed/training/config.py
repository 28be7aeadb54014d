"""Configuration of embedding training."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from embed.network.config import MapKind, PoolingMode
from gpt_core.common.errors import InputError
from gpt_core.training.trainable import TrainableConfig


@dataclass(frozen=True)
class TrainEmbedderConfig(TrainableConfig):
    """Configuration of embedding training: model, data, losses, and the keys of the training loop."""

    max_iters: int = 1000
    """Number of training steps."""
    eval_interval: int = 100
    """Evaluate and save a checkpoint every n steps, and after the last one."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    """muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate; LoRA and BitFit need about ten times as much."""
    dense_learning_rate: float | None = None
    """AdamW's peak learning rate of the dense layers after the pooling; None: learning_rate."""
    muon_learning_rate: float = 2e-3
    """Muon's peak learning rate."""
    weight_decay: float = 0.01
    """AdamW's weight decay, for tensors of two or more dimensions."""
    warmup_iters: int = 50
    """Steps of linear warm-up of the learning rates from zero."""

    init_from: str = "smollm2-135m-instruct"
    """Model to start from: a model folder, an embedder, a run's out_dir or a known model; scratch: random weights."""
    tokenizer: str | None = None
    """For init_from scratch: folder of the tokenizer, from scripts/train_tokenizer.py."""
    table_start: Literal["random", "teacher"] = "random"
    """For init_from scratch: a token's vector is random, or the teacher's vector of the token's text less their mean;
    times its SIF weight."""
    n_layer: int | None = None
    """Keep only the first n blocks: faster, but no longer a language model. None: all. For scratch: number of blocks;
    0: a table of token vectors, whose mean is a text's vector. From a table: number of blocks to add above it."""
    n_embd: int | None = None
    """For scratch and for blocks above a table: width of the states; the latter need more than the table has."""
    n_head: int = 6
    """For scratch and for blocks above a table: attention heads."""
    n_kv_head: int | None = None
    """For scratch and for blocks above a table: heads of keys and values. None: n_head."""
    head_dim: int | None = None
    """For scratch and for blocks above a table: width of a head. None: n_embd / n_head."""
    n_inner: int | None = None
    """For scratch and for blocks above a table: width of the MLP. None: 8/3 of n_embd, to a multiple of 64."""
    pooling: PoolingMode | None = None
    """Pooling of token states. None: the embedder's own; for a plain GPT weightedmean."""
    corpus_map: MapKind | None = None
    """The map that an index fits on its corpus, of no effect in training. None: the embedder's own; if new, none."""
    pooling_layer: int | None = None
    """Pool after n blocks and the final norm; later blocks are kept for generation. None: after all blocks."""
    dimension: int | None = None
    """Add a dense layer to vectors of n dimensions. None: no new layer."""
    query_prompt: str | None = None
    """Prompt prepended to queries. None: the embedder's own; for a plain GPT none."""
    document_prompt: str | None = None
    """Prompt prepended to documents. None: the embedder's own; for a plain GPT none."""
    max_tokens: int = 256
    """The embedder's longest input in tokens, prompt included."""
    train_tokens: int | None = None
    """Truncate texts to n tokens in training. None: max_tokens."""

    data: tuple[str, ...] = ()
    """Training data: JSON lines of pairs, triples or texts, BEIR folders, or names of `datasets`."""
    weights: tuple[float, ...] = ()
    """Relative frequency of batches from each dataset of data. Empty: in proportion to the number of examples."""
    query_column: str | None = None
    """Column of the queries. None: query or anchor."""
    positive_column: str | None = None
    """Column of the positives. None: positive or pos."""
    negative_column: str | None = None
    """Column of hard negatives. None: all existing columns of negative, neg, negative_1 …"""
    dev_data: tuple[str, ...] = ()
    """Evaluation data. Empty: dev_examples of each training dataset are held out."""
    dev_examples: int = 200
    """Maximum number of examples held out from each dataset, which is also at most a tenth of the dataset."""
    exclude: tuple[str, ...] = ()
    """Evaluation sets (BEIR folders, JSON lines): examples with near-duplicates of their texts are removed."""

    batch_size: int = 64
    """Examples per step, over all ranks; the candidates of all of them are in-batch negatives."""
    group_by: str | None = None
    """An embedder, such as a table, whose vectors divide each dataset into groups of similar positives; a batch is made
    of whole groups, so that the positives are hard negatives of each other. None: no groups."""
    group_size: int = 16
    """For group_by: examples of a group; batch_size is a multiple of it."""
    n_negatives: int = 1
    """Maximum number of hard negatives per query."""
    chunk_size: int | None = None
    """GradCache: texts per forward; saves memory at the cost of a second forward pass. None: no GradCache."""

    temperature: float = 0.05
    """Temperature: cosines are divided by it."""
    learn_temperature: bool = False
    """Whether to train the temperature."""
    contrastive_weight: float = 1.0
    """Weight of InfoNCE in the loss."""
    matryoshka: tuple[int, ...] = ()
    """Also apply InfoNCE and the KL divergence to these leading dimensions, so that vectors may be truncated."""
    false_negative_margin: float | None = None
    """Mask candidates whose cosine exceeds the positive's by this margin (Qwen3-Embedding: 0.1). None: no mask."""
    guide: str | None = None
    """A sentence-transformers model whose cosines decide false_negative_margin instead of the model's (GISTEmbed)."""

    teacher: str | None = None
    """A sentence-transformers model whose vectors are distilled. The vectors are saved in the model cache."""
    distill_weight: float = 1.0
    """Weight of the distance to the teacher's vectors in the loss."""
    distill_loss: Literal["cosine", "mse"] = "cosine"
    """Distance to the teacher's vectors."""
    similarity_weight: float = 0.0
    """Weight of the KL divergence between the teacher's and the model's similarities within a batch."""
    teacher_temperature: float | None = None
    """For similarity_weight: temperature of the teacher's similarities. None: temperature. multilingual-e5-small has
    cosines of 0.7 to 1 and was trained with 0.01."""

    lm_weight: float = 0.0
    """Weight of the language model's loss, which preserves generation: loss = emb + lm_weight · lm (GRIT)."""
    lm_data_dir: str | None = None
    """Token shards for the language model's loss, from scripts/prepare_data.py with the model's tokenizer."""
    lm_batch_size: int = 8
    """Windows of lm_block_size tokens per step for the language model's loss, over all ranks."""
    lm_block_size: int = 256
    """Tokens per window of the language model's loss."""

    def learning_rate_of(self, name: str, n_dims: int) -> float:
        """AdamW's peak learning rate of the parameter `name`, which has `n_dims` dimensions."""
        if ".dense." in name:
            return self.dense_learning_rate or self.learning_rate
        return super().learning_rate_of(name, n_dims)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and len(self.weights) != len(self.data):
            raise InputError(
                f"weights has {len(self.weights)} numbers for {len(self.data)} datasets; expected one for each."
            )
        for weight in self.weights:
            if not weight > 0:
                raise InputError(f"weights contains {weight}; expected numbers above 0.")
        if self.n_layer is not None and self.n_layer < 0:
            raise InputError(f"n_layer is {self.n_layer}; expected at least 0.")
        for name in ("pooling_layer", "dimension", "n_embd", "n_head", "n_kv_head", "head_dim", "n_inner", "max_tokens",
                     "train_tokens", "batch_size", "group_size", "chunk_size", "lm_batch_size",
                     "lm_block_size", "dev_examples"):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")
        if self.batch_size < 2 and self.contrastive_weight:
            raise InputError(f"batch_size is {self.batch_size}; a contrastive loss needs at least 2.")
        for name in ("n_negatives", "contrastive_weight", "distill_weight", "similarity_weight", "lm_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 0.")
        for name in ("temperature", "teacher_temperature"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} is {value}; expected more than 0.")
        if self.train_tokens is not None and self.train_tokens > self.max_tokens:
            raise InputError(
                f"train_tokens is {self.train_tokens}; expected at most max_tokens, which is {self.max_tokens}."
            )
        if any(b <= a for a, b in pairwise((0, *self.matryoshka))):
            raise InputError(f"matryoshka is {self.matryoshka}; expected ascending numbers of at least 1.")
        if self.table_start == "teacher" and self.teacher is None:
            raise InputError("table_start is teacher, but teacher is not set; name one.")
        if self.similarity_weight and self.teacher is None:
            raise InputError(
                f"similarity_weight is {self.similarity_weight}, but teacher is not set; name one."
            )
        if not self.contrastive_weight and not self.imitates:
            raise InputError(
                "contrastive_weight is 0 and no teacher has a weight, so the loss is empty; name a teacher or give a "
                "contrastive_weight."
            )
        if self.guide is not None and self.false_negative_margin is None:
            raise InputError(
                f"guide is {self.guide}, but false_negative_margin is not set; give 0 to mask candidates that the "
                "guide finds more similar than the positive."
            )
        if (self.lm_weight > 0) != (self.lm_data_dir is not None):
            raise InputError(
                f"lm_weight is {self.lm_weight} and lm_data_dir is {self.lm_data_dir}; set both or neither."
            )
        if self.lm_weight and self.n_layer is not None:
            raise InputError(
                f"n_layer is {self.n_layer}, but lm_weight needs a language model with all its blocks; give "
                "pooling_layer instead, which keeps the later blocks."
            )
        if self.n_layer is not None and self.pooling_layer is not None:
            raise InputError("n_layer and pooling_layer are mutually exclusive; give only one of them.")
        if self.parallel == "deepspeed":
            raise InputError(
                "parallel is deepspeed, which embedding training does not support; use ddp or fsdp2."
            )
        if self.dtype == "float16":
            raise InputError(
                "dtype is float16, but embedding training does not support loss scaling; use bfloat16 or float32."
            )

    @property
    def imitates(self) -> bool:
        """Whether the loss compares vectors with the teacher's."""
        return self.teacher is not None and (self.distill_weight > 0 or self.similarity_weight > 0)
