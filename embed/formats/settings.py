"""Loading of an embedder's settings from `embedder.json`, sentence-transformers' files, or `embed/known/`."""

import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args

from embed.formats.sentence_transformers import read_modules
from embed.network.config import (
    TABLE_POOLINGS,
    EmbedderConfig,
    Pooling,
    PoolingMode,
    check_choice,
    check_type,
)
from gpt_core.common.errors import InputError
from gpt_core.common.json_files import read_json, read_text


def load_settings(folder: Path) -> EmbedderConfig:
    """The settings of the model in `folder`.

    Sources, in order of precedence: `embedder.json` in the folder; its sentence-transformers files; this
    package's settings for a known model of the folder's name. Otherwise the default is SGPT's weighted mean of
    the last layer, and a line is printed to stderr.
    """
    own = folder / "embedder.json"
    if own.is_file():
        return EmbedderConfig.from_json(read_text(own), str(own))
    if (folder / "modules.json").is_file():
        return _from_sentence_transformers(folder)
    known = resources.files("embed").joinpath("known", f"{folder.name}.json")
    if known.is_file():
        return EmbedderConfig.from_json(known.read_text(encoding="utf-8"), f"embed/known/{folder.name}.json")
    default = "the position-weighted mean of its last layer"
    print(f"{folder} has no embedding settings; using {default}.", file=sys.stderr)
    return EmbedderConfig()


def _from_sentence_transformers(folder: Path) -> EmbedderConfig:
    """Settings from the files that `modules.json` names; InputError for an unsupported module or setting."""
    modules = read_modules(folder)
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    check_type(f"prompts of {folder}", prompts, dict, "an object of prompts by name")
    if others := [name for name in ("passage", "corpus") if prompts.get(name)]:
        reason = "documents get only the prompt named `document`, as in sentence-transformers"
        print(f"{folder}: the prompt {others[0]!r} is not used: {reason}.", file=sys.stderr)
    transformer = read_json(modules.transformer / "sentence_bert_config.json")
    for key, ours in (("do_lower_case", False), ("transformer_task", "feature-extraction")):
        if transformer.get(key, ours) != ours:
            raise InputError(f"{folder} has {key} = {transformer[key]!r}; only {ours!r} is supported.")
    max_tokens = transformer.get("max_seq_length")
    if max_tokens is None:  # since about version 5.3 the limit is in the tokenizer's configuration
        max_tokens = read_json(modules.transformer / "tokenizer_config.json").get("model_max_length")
    if type(max_tokens) in (int, float) and (not max_tokens or max_tokens >= 1e9):
        max_tokens = None  # transformers writes 1e30 for a tokenizer without a limit
    pooling = TABLE_POOLINGS["sublinear" if modules.sublinear else "mean"]
    if modules.pooling is not None:
        values = read_json(modules.pooling / "config.json", optional=False)
        pooling = _sentence_transformers_pooling(values, modules.pooling)
        if modules.sublinear:
            pooling = replace(pooling, mode="sublinear")
    return EmbedderConfig(
        pooling,
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or "",
        max_tokens=int(max_tokens) if isinstance(max_tokens, float) else max_tokens,
    )


def _sentence_transformers_pooling(values: dict[str, Any], place: Path) -> Pooling:
    if values.get("include_prompt") is False:
        raise InputError(
            f"{place} has include_prompt = false; expected true: the prompt's tokens are always pooled."
        )
    modes = values.get("pooling_mode")
    if modes is None:  # older versions have one flag per mode, such as pooling_mode_mean_tokens
        flags = [key for key, on in values.items() if on is True and key.startswith("pooling_mode_")]
        modes = [flag.removeprefix("pooling_mode_").removesuffix("_tokens") for flag in flags]
    if isinstance(modes, list):
        modes = "+".join(map(str, modes))
    check_choice(f"pooling_mode in {place}", modes, get_args(PoolingMode))
    return Pooling(cast(PoolingMode, modes))
