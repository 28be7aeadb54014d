"""Adapters of peft, such as LoRA's: merged into the model that they were trained for."""

import warnings
from pathlib import Path

import torch

from gpt_core.common.errors import InputError
from gpt_core.common.json_files import read_json
from gpt_core.formats.huggingface.config import to_hf
from gpt_core.formats.huggingface.weights import from_hf_names, to_hf_names, unwrapped, with_head
from gpt_core.hub.locate import ADAPTER_CONFIG, resolve
from gpt_core.model.gpt import GPT


def base_of(folder: Path) -> Path:
    """The folder of the model that the adapter in `folder` changes, as in transformers; `folder` without an adapter.

    It is `folder` itself where the whole model lies beside the adapter, else the model that the adapter names.

    Raises:
        InputError: if the adapter names no model, or one that is not here.
    """
    if not (folder / ADAPTER_CONFIG).exists() or (folder / "config.json").exists():
        return folder
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{folder} is an adapter whose {ADAPTER_CONFIG} has base_model_name_or_path = {name!r}; expected the model "
            "that it was trained for."
        )
    try:
        return resolve(name)
    except InputError as error:
        raise InputError(f"{folder} is an adapter of {name}, which is not here: {error}") from error


def with_adapter(model: GPT, folder: Path) -> GPT:
    """`model` in float32 with the adapter in `folder` merged into its weights by peft, as transformers computes it.

    Raises:
        InputError: if peft is not installed or cannot apply the adapter to this model; says how to merge it.
    """
    try:
        from peft import PeftModel
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise InputError(
            f"{folder} has an adapter ({ADAPTER_CONFIG}), and peft, which applies it, is not installed; install it "
            "with pip install 'zhizhi[train]', or merge the adapter where peft is: "
            f'PeftModel.from_pretrained(model, "{folder}").merge_and_unload().save_pretrained(new_folder).'
        ) from error
    raw = to_hf(model.config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries about each other
            with torch.device("meta"):
                theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
            theirs.load_state_dict(to_hf_names(model, model.state_dict()), strict=False, assign=True)
            theirs.tie_weights()
            merged = PeftModel.from_pretrained(theirs, str(folder)).merge_and_unload()
    except Exception as error:  # any: peft raises many kinds for files that do not fit the model
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{folder} has an adapter that peft cannot apply to its model of kind {raw['model_type']}: {reason}"
        ) from error
    weights, config = with_head(unwrapped(merged.state_dict(), model.config), model.config)
    with torch.device("meta"):
        adapted = GPT(config)
    adapted.load_state_dict(
        {name: w.contiguous() for name, w in from_hf_names(weights, adapted).items()}, assign=True
    )
    adapted.rope, adapted.alibi = model.rope, model.alibi
    return adapted.requires_grad_().eval()
