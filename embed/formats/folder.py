"""Embedder folders: a Hugging Face model folder plus the files of sentence-transformers.

    config.json, model.safetensors, tokenizer.json    the model: generates text in transformers, vLLM, llama.cpp
    modules.json, 1_Pooling/, [2_Dense/,] 3_Normalize/,
    config_sentence_transformers.json, sentence_bert_config.json    for `SentenceTransformer(folder)`
    embedder.json                                     all settings, for this package

A table of token vectors alone is saved as sentence-transformers' `StaticEmbedding` (embed/formats/static.py). Sublinear
pooling needs a module that sentence-transformers does not have; the folder then contains its source, sublinear.py.

sentence-transformers pools only a model's last hidden states. With other settings (a lower layer, the first token
excluded) no `modules.json` is written, because sentence-transformers would silently compute different vectors from it.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from embed.formats.sentence_transformers import read_modules
from embed.formats.settings import load_settings
from embed.formats.static import is_table, load_table, save_table
from embed.network.config import TABLE_POOLINGS, EmbedderConfig, Pooling
from embed.network.network import Activation, Dense, Network
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.common.json_files import read_json
from gpt_core.formats.card import Card, with_command, write_card
from gpt_core.formats.pickles import read_bin
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

TORCH_CLASSES: dict[Activation, str] = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
}
SUBLINEAR = Path(__file__).with_name("sublinear.py")
VECTORS = "Vectors"  # heading of a model card's section
ACTIVATIONS = {path.rpartition(".")[2]: activation for activation, path in TORCH_CLASSES.items()}


def load_network(folder: str | Path, config: EmbedderConfig | None = None) -> Network:
    """Load the network of an embedder's folder, in float32 and evaluation mode.

    Args:
        folder: a folder written by `save_embedder`, a sentence-transformers folder of a GPT, or a plain model folder.
        config: the settings; None: those that `load_settings` finds.

    Raises:
        InputError: for a folder with a missing file or an unsupported module.
    """
    folder = Path(folder)
    config = config or load_settings(folder)
    dense = [_load_dense(place) for place in _dense_folders(folder)]
    return Network(load_gpt(folder), config.pooling, dense).eval()


def load_gpt(folder: Path) -> GPT:
    """The GPT of an embedder's or a model's folder, in float32; of a table of token vectors, one without blocks."""
    return load_table(folder) if is_static(folder) else GPT.from_pretrained(model_folder(folder))


def model_folder(folder: Path) -> Path:
    """The folder of the GPT and its tokenizer: `folder`, or the one that its `modules.json` names."""
    return read_modules(folder).transformer if (folder / "modules.json").is_file() else folder


def is_static(folder: Path) -> bool:
    """Whether `folder` is a table of token vectors in sentence-transformers' format."""
    return (folder / "modules.json").is_file() and read_modules(folder).pooling is None


def has_own_code(folder: Path) -> bool:
    """Whether the only code that sentence-transformers would run from `folder` is this project's `sublinear.py`.

    With trust_remote_code, transformers also runs the code that an `auto_map` of its own files names.
    """
    source = folder / SUBLINEAR.name
    if not source.is_file() or source.read_bytes() != SUBLINEAR.read_bytes():
        return False
    for path in folder.rglob("*.json"):
        if path.name not in ("modules.json", "tokenizer.json") and "auto_map" in read_json(path):
            return False
    types = [str(module.get("type")) for module in read_json(folder / "modules.json", list)]
    ours = [f"{SUBLINEAR.stem}.{kind}" for kind in ("SublinearEmbedding", "SublinearPooling")]
    return all(kind in ours or kind.startswith("sentence_transformers.") for kind in types)


def save_embedder(
    folder: str | Path,
    network: Network,
    config: EmbedderConfig,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor] | None = None,
    card: Card | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an embedder's folder; the module's docstring lists the files.

    Args:
        folder: the output folder, created if it is missing.
        network: the embedder.
        config: its settings; `config.pooling` is replaced by `network.pooling`.
        tokenizer: the GPT's tokenizer.
        weights: the full state dict, for a sharded network; None: `network.state_dict()`.
        card: contents of README.md; the model's shape and vectors are added.
        dtype: of the weights on disk; transformers reads all of them as float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = network.state_dict() if weights is None else weights
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    config = replace(config, pooling=network.pooling)
    # modules.json is written last, so that a partly written folder does not open as a complete one.
    (folder / "modules.json").unlink(missing_ok=True)
    card = embedder_card(card or Card(), network, config)
    max_tokens = min(config.max_tokens or network.gpt.config.block_size, network.gpt.config.block_size)
    if is_table(network.gpt.config):
        save_table(folder, weights["gpt.wte.weight"])
        tokenizer.save(folder)
        write_card(
            folder,
            with_command(card),
            network.gpt.config,
            network.gpt.wte.weight.numel(),
            str(dtype).removeprefix("torch."),
        )
    else:
        gpt_weights = {name.removeprefix("gpt."): w for name, w in weights.items() if name.startswith("gpt.")}
        network.gpt.save_pretrained(folder, gpt_weights, card)
        settings = read_json(folder / "config.json") | {"dtype": "float32"}
        atomic_write(folder / "config.json", json.dumps(settings, indent=2) + "\n")
        _save_tokenizer(folder, tokenizer, max_tokens)
    first = 1 if is_table(network.gpt.config) else 2  # number of the module after the pooling
    for i, layer in enumerate(network.dense_layers):
        own = {name: weights[f"dense.{i}.{name}"] for name in layer.state_dict()}
        _save_dense(folder / f"{first + i}_Dense", layer, own)
    atomic_write(folder / "embedder.json", config.to_json())
    if not beyond_sentence_transformers(network.pooling, network.gpt.config):
        _save_modules(folder, network, config, max_tokens)


def embedder_card(card: Card, network: Network, config: EmbedderConfig) -> Card:
    """The model card `card` with the section and tags of an embedder added."""
    pooling = network.pooling
    rows = {
        "dimensions": network.dimension,
        "pooling": pooling.mode if pooling.layer is None else f"{pooling.mode} after block {pooling.layer}",
        "query prompt": f"`{json.dumps(config.query_prompt, ensure_ascii=False)}`",
        "document prompt": f"`{json.dumps(config.document_prompt, ensure_ascii=False)}`",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    head: dict[str, object] = {}
    if not beyond_sentence_transformers(pooling, network.gpt.config):
        head = {
            "library_name": "sentence-transformers",
            "pipeline_tag": "sentence-similarity",
            "tags": ["zhizhi", network.gpt.config.model_type, "sentence-transformers", "feature-extraction"],
        }
    return replace(card, head=head | card.head, sections={VECTORS: table} | card.sections)


def beyond_sentence_transformers(pooling: Pooling, config: GPTConfig) -> str:
    """Why sentence-transformers cannot compute a pooling of a model of this shape, as a phrase; "" if it can."""
    if is_table(config):
        known = pooling in TABLE_POOLINGS.values()
        return "" if known else "a table of token vectors has another pooling than their mean"
    if config.position == "alibi":
        return "the model has ALiBi positions, which no supported format can describe"
    if pooling.skip_first:
        return "the first token is excluded (pooling.skip_first)"
    if pooling.unit_tokens:
        return "token states are normalised before pooling (pooling.unit_tokens)"
    if pooling.layer is not None and (pooling.layer < config.n_layer or not pooling.final_norm):
        normed = "with" if pooling.final_norm else "without"
        return (
            f"the states after block {pooling.layer} of {config.n_layer} are pooled {normed} the final norm"
        )
    return ""


def pad_token_id(tokenizer: Tokenizer) -> int:
    """The id to pad with: the tokenizer's pad, end or begin token, the first of them that exists.

    Raises:
        InputError: if the tokenizer has none of them.
    """
    for token_id in (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id):
        if token_id is not None:
            return token_id
    raise InputError(
        "The tokenizer has no pad, end or begin token; name a pad_token in its tokenizer_config.json."
    )


def _save_tokenizer(folder: Path, tokenizer: Tokenizer, max_tokens: int) -> None:
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    settings |= {
        "pad_token": tokenizer.decode([pad_token_id(tokenizer)]),
        "padding_side": "right",
        "model_max_length": max_tokens,
    }
    atomic_write(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _save_modules(folder: Path, network: Network, config: EmbedderConfig, max_tokens: int) -> None:
    """Write the module files of sentence-transformers, version 2 or later."""

    def write(name: str, values: object) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        atomic_write(folder / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    sublinear = network.pooling.mode == "sublinear"
    first = ["SublinearEmbedding" if sublinear else "StaticEmbedding"]
    if not is_table(network.gpt.config):
        first = ["Transformer", "SublinearPooling" if sublinear else "Pooling"]
        write(
            f"1_{first[1]}/config.json",
            {
                "word_embedding_dimension": network.gpt.config.n_embd,
                "pooling_mode_cls_token": False,
                "pooling_mode_mean_tokens": network.pooling.mode in ("mean", "sublinear"),
                "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
                "pooling_mode_weightedmean_tokens": network.pooling.mode == "weightedmean",
                "pooling_mode_lasttoken": network.pooling.mode == "lasttoken",
                "include_prompt": True,
            },
        )
        write("sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    if sublinear:
        atomic_write(folder / SUBLINEAR.name, SUBLINEAR.read_text(encoding="utf-8"))
    kinds = [*first, *["Dense"] * len(network.dense), "Normalize"]
    (folder / f"{len(kinds) - 1}_Normalize").mkdir(exist_ok=True)
    write(f"{len(kinds) - 1}_Normalize/config.json", {})  # git and some archives drop empty folders
    prompts = {"query": config.query_prompt, "document": config.document_prompt}
    write(
        "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"{SUBLINEAR.stem if kind.startswith('Sublinear') else 'sentence_transformers.models'}.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    write("modules.json", modules)


def _dense_folders(folder: Path) -> list[Path]:
    if (folder / "modules.json").is_file():
        return list(read_modules(folder).dense)
    folders = [path for path in folder.glob("*_Dense") if path.name.removesuffix("_Dense").isdecimal()]
    return sorted(folders, key=lambda path: int(path.name.removesuffix("_Dense")))


def _save_dense(folder: Path, layer: Dense, weights: dict[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    settings = {
        "in_features": layer.linear.in_features,
        "out_features": layer.linear.out_features,
        "bias": layer.linear.bias is not None,
        "activation_function": TORCH_CLASSES[layer.activation],
    }
    atomic_write(folder / "model.safetensors", save({name: w.contiguous() for name, w in weights.items()}))
    atomic_write(folder / "config.json", json.dumps(settings, indent=2) + "\n")


def _load_dense(place: Path) -> Dense:
    settings = read_json(place / "config.json", optional=False)
    name = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = ACTIVATIONS.get(name.rpartition(".")[2])
    if activation is None:
        raise InputError(f"{place} has the activation {name!r}; expected one of {', '.join(ACTIVATIONS)}.")
    if settings.get("use_residual"):
        raise InputError(f"{place} has use_residual = true; expected false: residuals are not supported.")
    try:
        layer = Dense(
            settings["in_features"], settings["out_features"], settings.get("bias", True), activation
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{place}/config.json does not describe a dense layer: {error!r}.") from None
    if not any((place / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise InputError(
            f"{place} has neither model.safetensors nor pytorch_model.bin; copy the folder again."
        )
    try:
        if (place / "model.safetensors").is_file():
            state = load_file(place / "model.safetensors")
        else:  # written by sentence-transformers before about version 2.3
            state = read_bin(place / "pytorch_model.bin")
        layer.load_state_dict({name: w.float() for name, w in state.items()})
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"The weights in {place} do not match its config.json: {error}") from None
    return layer
