"""Configuration of fine-tuning."""

from dataclasses import dataclass
from typing import Literal

from gpt_core.common.errors import InputError
from gpt_core.tasks.examples import Task, column_names
from gpt_core.training.trainable import TrainableConfig

LEAST_TOKENS = {"classification": 3, "span": 8, "chat": 2}  # that a row needs; other tasks 5


@dataclass(frozen=True)
class FinetuneConfig(TrainableConfig):
    """Configuration of fine-tuning: task, model, data, and the keys of the training loop."""

    max_iters: int = 1000
    """Number of training steps."""
    eval_interval: int = 100
    """Evaluate and save a checkpoint every n steps, and after the last one."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    """muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 5e-5
    """AdamW's peak learning rate; LoRA and BitFit need about ten times as much."""
    head_learning_rate: float | None = None
    """AdamW's peak learning rate of the task's head; None: learning_rate."""
    weight_decay: float = 0.01
    """AdamW's weight decay, for tensors of two or more dimensions."""
    warmup_iters: int = 50
    """Steps of linear warm-up of the learning rates from zero."""

    task: Literal[Task, "chat"] = "classification"
    """classification: a label for a text; entailment: a label for a premise and a hypothesis; similarity: a score for
    two sentences; choice: the best of several continuations; span: the words of a passage that answer a question; chat:
    the replies of conversations, which gives a language model again."""
    init_from: str = "smollm2-135m-instruct"
    """Model to start from: a model folder, a run's out_dir or a known model."""
    n_layer: int | None = None
    """Keep only the first n blocks. None: all."""

    data: tuple[str, ...] = ()
    """Training data: .jsonl, .csv or .tsv (.gz, .xz), SQuAD's .json for span, or names of `datasets`. For chat lines of
    {"messages": …}, as scripts/chat.py saves them, {"turns": […]} or {"instruction", "input", "output"}; or .txt with a
    conversation a line and tabs between its turns."""
    columns: tuple[str, ...] = ()
    """Columns of the data with other names than the task's fields, such as text=review. Choices in several columns:
    choices=sol1+sol2."""
    dev_data: tuple[str, ...] = ()
    """Development data. Empty: dev_examples of the training data are held out."""
    exclude: tuple[str, ...] = ()
    """Files of the same kinds with texts that must not be learned, such as {"text": …}: training examples that have one
    of them as their text, passage or premise are left out. Not for chat."""
    dev_examples: int = 1000
    """Maximum number of examples that are held out, which is also at most a tenth of the data, or used of dev_data."""
    labels: tuple[str, ...] = ()
    """For classification and entailment: the labels. Empty: those in the training data, sorted."""
    class_weights: tuple[float, ...] = ()
    """For classification and entailment: weight of each of `labels` in the loss. Empty: 1."""
    balanced: bool = False
    """Weight labels in inverse proportion to their frequency in the training data."""
    lm_weight: float = 0.0
    """Weight of the language model's loss on the same texts, as in GPT-1."""
    max_tokens: int = 256
    """Longest row in tokens. Of longer ones the longest text loses its last tokens; a passage for span is divided into
    overlapping parts instead; a conversation loses its last tokens. For chat also the length of a row in which several
    conversations are packed."""
    padding_mask: bool = True
    """False: shorter rows begin with padding up to max_tokens that is read like text, to measure what that costs."""
    answer_tokens: int = 30
    """For span: longest answer in tokens."""
    no_answer: float = 0.3
    """For span: questions repeated with another paragraph of their article, which does not hold the answer, as a
    fraction of all questions."""
    cropped: float = 0.0
    """For span: fraction of the training passages that are cropped to a piece around the answer as short as a quote."""
    batch_size: int = 32
    """Examples per step, over all ranks."""
    tokens_per_forward: int = 4096
    """Tokens of a micro-batch, padding included; it does not change the result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "n_layer", "dev_examples", "max_tokens", "answer_tokens", "batch_size", "tokens_per_forward",
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")
        if self.head_learning_rate is not None and not self.head_learning_rate > 0:
            raise InputError(f"head_learning_rate is {self.head_learning_rate}; expected more than 0.")
        if self.lm_weight < 0:
            raise InputError(f"lm_weight is {self.lm_weight}; expected at least 0.")
        for name in ("no_answer", "cropped"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"{name} is {value}; expected a fraction, 0 to 1.")
        least = LEAST_TOKENS.get(self.task, 5)
        if self.max_tokens < least:
            raise InputError(f"max_tokens is {self.max_tokens}; expected at least {least} for {self.task}.")
        if self.lm_weight and self.task == "chat":
            raise InputError(
                f"lm_weight is {self.lm_weight}, but the task chat has no other loss; remove it."
            )
        if self.exclude and self.task == "chat":
            raise InputError("exclude is set, but the task chat has no texts to leave out; remove it.")
        self.column_names()
        labelled = self.task in ("classification", "entailment")
        for name in ("labels", "class_weights", "balanced"):
            if getattr(self, name) and not labelled:
                raise InputError(
                    f"{name} is set, but the task {self.task} has no labels; it is for classification and entailment."
                )
        if self.labels != tuple(label.strip() for label in self.labels):
            raise InputError(f"labels is {self.labels}; expected labels without white space around them.")
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise InputError(f"labels is {self.labels}; expected at least two, all different.")
        if self.class_weights and len(self.class_weights) != len(self.labels):
            raise InputError(
                f"class_weights has {len(self.class_weights)} numbers for {len(self.labels)} labels; give both, of "
                "equal length."
            )
        if self.class_weights and (self.balanced or not all(0 < w < 1e6 for w in self.class_weights)):
            raise InputError(
                f"class_weights is {self.class_weights}; expected numbers above 0 and below a million, and not "
                "with balanced."
            )
        if self.parallel == "deepspeed":
            raise InputError("parallel is deepspeed, which fine-tuning does not support; use ddp or fsdp2.")

    def column_names(self) -> dict[str, str]:
        """Column of each field that `columns` names.

        Raises:
            InputError: for an entry that is not field=column, or another field.
        """
        if self.task == "chat":
            if self.columns:
                raise InputError("columns is set, but conversations have no columns; remove it.")
            return {}
        return column_names(self.columns, self.task)

    def learning_rate_of(self, name: str, n_dims: int) -> float:
        """AdamW's peak learning rate of the parameter `name`, which has `n_dims` dimensions."""
        if name.startswith("head."):
            return self.head_learning_rate or self.learning_rate
        return super().learning_rate_of(name, n_dims)
