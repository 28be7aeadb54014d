"""The folder of a GPT with a task's head.

    config.json, model.safetensors, tokenizer.json    opens in transformers' class for the family
    task.json                                         the task, its labels and how rows are made
    span.safetensors                                  span: the part of the head that transformers' class does not have

After a training with LoRA, `scripts/export.py --to lora` keeps only

    lora.safetensors, task.json                       what changed: a few MB, loaded with the model that it started from

For similarity and choice, transformers' classes give the logit of one row; the task compares several.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, atomic_write
from gpt_core.common.json_files import read_json
from gpt_core.formats.card import Card, with_command, write_card
from gpt_core.formats.huggingface.heads import Head, HeadKind
from gpt_core.formats.pretrained import load_with_head, save
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.hub.locate import resolve
from gpt_core.model.gpt import GPT
from gpt_core.tasks.inputs import InputFormat
from gpt_core.tasks.lora import LORA_FILE, Lora
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.settings import TASK_FILE, TaskSettings
from gpt_core.tokenizer.tokenizer import Tokenizer

SPAN_FILE = "span.safetensors"


def save_task(
    folder: Path,
    network: TaskNetwork,
    settings: TaskSettings,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor],
    card: Card,
) -> None:
    """Write a task's folder.

    Args:
        folder: created if it is missing.
        network: gives the shape.
        settings: the task's settings.
        tokenizer: the GPT's tokenizer.
        weights: the full state dict of a network without LoRA, in our names.
        card: content of the model card.
    """
    gpt_weights = {n.removeprefix("gpt."): w for n, w in weights.items() if n.startswith("gpt.")}
    gpt_weights.pop("head.weight", None)  # a language model's own output layer
    head = {n.removeprefix("head."): w for n, w in weights.items() if n.startswith("head.")}
    own = {n: w for n, w in head.items() if settings.task == "span" and not n.startswith("ends.")}
    shared = {n.removeprefix("ends."): w for n, w in head.items() if n not in own}
    pad_id = InputFormat(settings.task, tokenizer, settings.max_tokens).pad_id
    names = settings.labels or (settings.task,)
    keys = {
        "pad_token_id": pad_id,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    shell = plain_gpt(network.gpt)
    kind = head_kind(settings)
    save(
        shell,
        folder,
        gpt_weights,
        card,
        Head(kind, shared, keys if kind == "classification" else {"pad_token_id": pad_id}),
    )
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    raw = read_json(path) | {"pad_token": tokenizer.decode([pad_id]), "padding_side": "right"}
    atomic_write(path, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
    if own:
        save_tensors(folder / SPAN_FILE, {name: w.contiguous() for name, w in own.items()})
    atomic_write(folder / TASK_FILE, settings.to_json())


def plain_gpt(gpt: GPT, tie: bool = True) -> GPT:
    """A GPT of the same shape without LoRA, on the meta device; `tie`: with tied embeddings."""
    with torch.device("meta"):
        return GPT(replace(gpt.config, tie_embeddings=tie))


def head_kind(settings: TaskSettings) -> HeadKind:
    """The class of transformers that has the task's head."""
    return "span" if settings.task == "span" else "classification"


def load_task(folder: Path) -> tuple[TaskNetwork, TaskSettings, Tokenizer]:
    """Read a task's folder; the network is in float32 and in evaluation mode.

    Raises:
        InputError: for a folder that is not a task's, or is damaged.
    """
    settings = TaskSettings.load(folder)
    if is_lora(folder):
        return _on_its_base(folder, settings)
    gpt, head = load_with_head(folder, head_kind(settings))
    network = TaskNetwork(gpt, settings.task, len(settings.labels), settings.answer_tokens)
    if settings.task == "span":
        head = {f"ends.{name}": tensor for name, tensor in head.items()}
        try:
            head |= load_file(folder / SPAN_FILE)
        except (SafetensorError, FileNotFoundError) as error:
            raise InputError(
                f"{folder / SPAN_FILE} cannot be read ({error}); copy the folder again."
            ) from error
    expected = network.head.state_dict()
    for name in sorted(expected.keys() | head.keys()):
        if name not in expected or name not in head or head[name].shape != expected[name].shape:
            raise InputError(
                f"{folder}: the weights of its head ({name}) do not match {TASK_FILE}; copy it again."
            )
    network.head.load_state_dict(head)
    return network.eval(), settings, Tokenizer.from_pretrained(folder)


def is_lora(folder: Path) -> bool:
    """Whether a task's folder holds only what LoRA changed."""
    return (folder / LORA_FILE).is_file() and not (folder / "config.json").exists()


def base_of(folder: Path, lora: Lora) -> Path:
    """The folder of the model that a folder's LoRA changes.

    Raises:
        InputError: if it is not here.
    """
    try:
        return resolve(lora.init_from)
    except InputError as error:
        raise InputError(f"{folder} changes {lora.init_from}, which is not here: {error}") from error


def load_body(folder: Path) -> tuple[GPT, Tokenizer]:
    """The GPT of a model folder or of a task's folder, in float32, and its tokenizer.

    Raises:
        InputError: if it is neither, or is damaged.
    """
    if (folder / TASK_FILE).is_file():
        network, _, tokenizer = load_task(folder)
        return network.gpt, tokenizer
    return GPT.from_pretrained(folder), Tokenizer.from_pretrained(folder)


def _on_its_base(folder: Path, settings: TaskSettings) -> tuple[TaskNetwork, TaskSettings, Tokenizer]:
    """The network that LoRA made of another model."""
    lora = Lora.load(folder)
    gpt, tokenizer = load_body(base_of(folder, lora))
    if lora.n_layer > gpt.config.n_layer:
        raise InputError(
            f"{folder} has n_layer {lora.n_layer}, but {lora.init_from} has {gpt.config.n_layer} blocks; it was "
            "trained for another model."
        )
    gpt.keep_blocks(lora.n_layer)
    network = TaskNetwork(gpt, settings.task, len(settings.labels), settings.answer_tokens)
    network.load_state_dict(lora.merged(network.state_dict()))
    return network.eval(), settings, tokenizer


def export_lora(folder: Path, target: Path, dtype: torch.dtype, card: Card) -> None:
    """Write a folder of only what LoRA changed.

    Args:
        folder: the folder of a task that was trained with LoRA.
        target: the output folder.
        dtype: of the weights.
        card: the content of README.md besides the shape.

    Raises:
        InputError: for another folder.
        OSError: if it cannot be written; `target` does not exist then.
    """
    if not (folder / LORA_FILE).is_file() or not (folder / TASK_FILE).is_file():
        raise InputError(f"{folder} was not fine-tuned for a task with LoRA; export it with --to hf.")
    lora = Lora.load(folder)
    network, settings, _ = load_task(folder)
    tensors = {name: tensor.to(dtype) for name, tensor in lora.tensors.items()}
    with atomic_folder(target) as scratch:
        replace(lora, tensors=tensors).save(scratch)
        atomic_write(scratch / TASK_FILE, settings.to_json())
        n_parameters = sum(tensor.numel() for tensor in tensors.values())
        name = str(dtype).removeprefix("torch.")
        write_card(scratch, with_command(card), network.gpt.config, n_parameters, name)
