"""Model cards: a README.md in a model's folder that describes the model and how it was made.

The head is Hugging Face's metadata for its hub; model cards are by Mitchell et al. 2019, "Model Cards for Model
Reporting". A card without MARK was written by the user and is never changed.
"""

import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from gpt_core.common.files import atomic_write
from gpt_core.hub.locate import KNOWN_MODELS, cache_dir, resolve
from gpt_core.model.config import GPTConfig

README = "README.md"
MARK = "<!-- written by zhizhi; without this line the card is yours and stays as you write it -->"
LICENCE_KEYS = ("license", "license_name", "license_link")
COMMANDS_SECTION = "Made with"
DERIVED_SECTIONS = ("Shape", "Licence")  # derived from the model's files
DIAGNOSTICS = (
    "activation_max",
    "attention_logit_max",
    "update_to_weight",
)  # metrics of a step, not scores of a model


@dataclass(frozen=True)
class Card:
    """The content of a model card.

    Attributes:
        head: Hugging Face's metadata: license, base_model, library_name, tags …
        sections: Markdown by heading, in order.
        licence_text: content of the file LICENSE in the model's folder; None: there is no such file.
    """

    head: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)
    licence_text: str | None = None

    @property
    def licence(self) -> str | None:
        """The licence of the weights as Hugging Face spells it, e.g. apache-2.0; None: unknown."""
        value = self.head.get("license")
        return value if isinstance(value, str) else None


def model_card(card: Card, config: GPTConfig, n_parameters: int, dtype: str) -> str:
    """The text of a card: `card` with the section Shape added at the beginning and Licence at the end."""
    family = config.model_type
    own = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["zhizhi", family]}
    terms = f"Of the weights: {card.licence}." if card.licence else "Of the weights: not stated."
    if card.licence_text is not None:
        terms += " The file LICENSE has its text."
    sections = {"Shape": shape_table(config, n_parameters, dtype)} | card.sections | {"Licence": terms}
    return _text(Card(own | card.head, sections))


def write_card(folder: Path, card: Card, config: GPTConfig, n_parameters: int, dtype: str) -> None:
    """Write README.md, and LICENSE if the card has one, unless the folder has a README.md without MARK.

    Args:
        folder: the model's folder.
        card: the content besides the shape.
        config: the model's shape.
        n_parameters: number of parameters.
        dtype: dtype of the parameters.

    Raises:
        OSError: if a file cannot be written.
    """
    if _is_ours(folder):
        atomic_write(folder / README, model_card(card, config, n_parameters, dtype))
        if card.licence_text is not None:
            atomic_write(folder / "LICENSE", card.licence_text)


def add_progress(folder: Path, step: int, figures: dict[str, float]) -> None:
    """Add the step and the evaluation's figures to the card of a checkpoint, if it has one with MARK."""
    if not (folder / README).is_file() or not _is_ours(folder):
        return
    card = read_card(folder)
    training = f"After {step:,} steps.\n\n{card.sections.get('Training', '')}".strip()
    scores = [
        f"| {name} | {value:.4f} |" for name, value in figures.items() if not name.startswith(DIAGNOSTICS)
    ]
    found = card.sections | {"Training": training}
    if scores:
        found["Scores"] = "\n".join(["| evaluation | |", "|---|---|", *scores])
    last = {name: found.pop(name) for name in (COMMANDS_SECTION, "Licence") if name in found}
    atomic_write(folder / README, _text(replace(card, sections=found | last)))


def read_card(folder: Path) -> Card:
    """The card in `folder`, without sections if it lacks MARK; an empty card if there is no readable README.md."""
    licence_text = None
    path = next((p for p in sorted(folder.glob("LICEN[CS]E*")) if p.is_file()), None)  # not a folder LICENSES
    if path is not None:
        licence_text = path.read_text(encoding="utf-8", errors="replace")
    try:
        text = (folder / README).read_text(encoding="utf-8")
        _, raw, body = text.split("---\n", 2) if text.startswith("---\n") else ("", "", text)
        head = yaml.safe_load(raw) or {}
    except (FileNotFoundError, UnicodeDecodeError, ValueError, yaml.YAMLError):
        return Card(licence_text=licence_text)
    if not isinstance(head, dict):
        head = {}
    if MARK not in body:
        return Card(head, licence_text=licence_text)
    parts = [part.partition("\n") for part in body.split("\n## ")[1:]]
    return Card(head, {title.strip(): content.strip() for title, _, content in parts}, licence_text)


def derived(model: str, folder: Path) -> Card:
    """The card that a model inherits from its source model: licence, base model, history.

    Args:
        model: the source model, as the user named it.
        folder: the source model's folder.

    Returns:
        A card without the sections derived from the source model's files.
    """
    source = read_card(folder)
    head = {key: source.head[key] for key in (*LICENCE_KEYS, "base_model") if key in source.head}
    if folder == cache_dir() / "models" / model:  # not another folder of that name
        if model in KNOWN_MODELS:
            head = {"license": KNOWN_MODELS[model].licence} | head | {"base_model": KNOWN_MODELS[model].hub}
        else:  # from the hub
            head["base_model"] = model
    if source.licence_text is not None:
        head = {"license": "other", "license_link": "LICENSE"} | head
    history = {name: text for name, text in source.sections.items() if name not in DERIVED_SECTIONS}
    return Card(head, history, source.licence_text)


def trained(config: Any, data: list[str], init_from: str | None, resume: Path | None) -> Card:
    """The card of a trained model.

    Args:
        config: the training's configuration, a dataclass instance.
        data: descriptions of the training data, one line each.
        init_from: the initial model, as the user named it; None: random weights.
        resume: the checkpoint that training resumes from; None: training starts at step 0.
    """
    start = Card()
    if resume is not None:
        start = derived(init_from or "", resume)
    elif init_from is not None:
        start = derived(init_from, resolve(init_from))
    origin = "From random weights" if init_from is None else f"From `{init_from}`"
    changed = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default
    }
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
    settings = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()
    sections = {
        "Data": "\n".join(f"- {line}" for line in data),
        "Training": f"{origin}, with\n\n```yaml\n{settings}\n```",
    }
    if COMMANDS_SECTION in start.sections:
        sections[COMMANDS_SECTION] = start.sections[COMMANDS_SECTION]
    return replace(start, sections=sections)


def with_command(card: Card) -> Card:
    """The card with the current command line appended to those of its source models."""
    command = command_line()
    before = card.sections.get(COMMANDS_SECTION, "").removeprefix("```sh\n").removesuffix("\n```")
    lines = before.splitlines()
    if command is None or lines[-1:] == [command]:
        return card
    block = "\n".join(["```sh", *lines, command, "```"])
    return replace(card, sections=card.sections | {COMMANDS_SECTION: block})


def command_line() -> str | None:
    """The current command line, quoted for a shell; None if the process is not one of this package's commands.

    Contains only what the user typed: no absolute folder of this machine and no environment variables.
    """
    script = Path(sys.argv[0])
    if sys.argv[0].startswith("zhizhi "):
        words = sys.argv[0].split()
    elif script.parent.name == "scripts" and script.suffix == ".py":
        launcher = "python"
        if "LOCAL_RANK" in os.environ:
            launcher = f"torchrun --nproc_per_node {os.environ.get('LOCAL_WORLD_SIZE', '1')}"
        words = [*launcher.split(), f"scripts/{script.name}"]
    else:
        return None
    typed = [arg for arg in sys.argv[1:] if not arg.startswith("--local_rank")]
    return " ".join([*words, *map(_quoted, typed)])


def shape_table(config: GPTConfig, n_parameters: int, dtype: str) -> str:
    """The shape of a model as a Markdown table."""
    rows = {
        "parameters": f"{n_parameters:,}, in {dtype}",
        "architecture": config.model_type,
        "layers": config.n_layer,
        "width": config.n_embd,
        "heads": f"{config.n_head} of {config.head_dim}, {config.n_kv_head} of keys and values",
        "width of the MLP": config.n_inner,
        "context": f"{config.block_size:,} tokens",
        "vocabulary": f"{config.vocab_size:,}",
        "output layer": "the token embeddings" if config.tie_embeddings else "its own",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _quoted(word: str) -> str:
    """A word quoted for a shell, on one line; control characters use bash's $'…' quoting."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.encode("unicode_escape").decode().replace("'", "\\'")
    return f"$'{escaped}'"


def _text(card: Card) -> str:
    head = yaml.safe_dump(card.head, sort_keys=False, allow_unicode=True)
    sections = "\n\n".join(f"## {title}\n\n{content}" for title, content in card.sections.items())
    return f"---\n{head}---\n{MARK}\n\n# About this model\n\n{sections}\n"


def _is_ours(folder: Path) -> bool:
    """Whether README.md may be written: it does not exist, or it contains MARK."""
    path = folder / README
    return not path.exists() or MARK.encode() in path.read_bytes()
