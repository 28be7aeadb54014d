"""The heads of transformers' classes for sequence classification and question answering."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

HeadKind = Literal["classification", "span"]
CLASSES = {"gpt2": "GPT2", "gpt_neo": "GPTNeo", "llama": "Llama", "qwen3": "Qwen3"}
NAMES: dict[HeadKind, tuple[str, str]] = {  # class and module
    "classification": ("ForSequenceClassification", "score."),
    "span": ("ForQuestionAnswering", "qa_outputs."),
}
# For question answering, transformers' Llama and Qwen3 have the GPT under this name instead of "model".
SPAN_BASE = "transformer."


@dataclass(frozen=True)
class Head:
    """A head in the place of the language model's.

    Attributes:
        kind: the class.
        tensors: its weights: "weight" (n, C), and for span "bias" (2,).
        settings: keys of config.json, such as id2label and pad_token_id.
    """

    kind: HeadKind
    tensors: dict[str, Tensor]
    settings: dict[str, Any]

    def add(self, raw: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Add the head to a language model's config.json and tensors. The family zhizhi keeps its own class."""
        suffix, module = NAMES[self.kind]
        if (family := raw["model_type"]) in CLASSES:
            raw = raw | self.settings | {"architectures": [CLASSES[family] + suffix]}
        if self.kind == "span" and family in ("llama", "qwen3"):
            state = {SPAN_BASE + name.removeprefix("model."): tensor for name, tensor in state.items()}
        return raw, state | {module + name: tensor.contiguous() for name, tensor in self.tensors.items()}

    @staticmethod
    def split(state: dict[str, Tensor], kind: HeadKind) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The GPT's tensors, without a prefix that only this class has, and the head's."""
        module = NAMES[kind][1]
        head = {
            name.removeprefix(module): tensor for name, tensor in state.items() if name.startswith(module)
        }
        rest = {name: tensor for name, tensor in state.items() if not name.startswith(module)}
        if any(name.startswith(SPAN_BASE + "layers.") for name in rest):
            rest = {name.removeprefix(SPAN_BASE): tensor for name, tensor in rest.items()}
        return rest, head
