"""Files of weights as other tools leave them: untied heads, wrappers' prefixes, adapters, Trainer's folders; held
against transformers and peft."""

import json
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt_core import GPT, GPTConfig, InputError, Tokenizer
from gpt_core.formats.pretrained import read_config
from tests.tiny_models import save_model

IDS = torch.randint(0, 70, (2, 12), generator=torch.Generator().manual_seed(0))
SHAPE = {"vocab_size": 70, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
GRAPHS = {
    "gpt2": GPTConfig.gpt2(**SHAPE),
    "gpt_neo": GPTConfig.gpt2(**SHAPE, attn_bias="output", scale_attention=False),
    "llama": GPTConfig(**SHAPE, n_kv_head=1, head_dim=8, n_inner=24, qk_norm=False),
    "qwen3": GPTConfig(**SHAPE, n_kv_head=1, head_dim=8, n_inner=24),
    "zhizhi": GPTConfig.gpt2(**SHAPE, position="alibi"),
}
EMBEDDING = dict.fromkeys(("gpt2", "gpt_neo"), "transformer.wte.weight")
EMBEDDING |= dict.fromkeys(("llama", "qwen3"), "model.embed_tokens.weight")
HEAD = "lm_head.weight"


@pytest.fixture(params=GRAPHS)
def folder(request, tmp_path) -> Path:
    torch.manual_seed(1)
    model = GPT(GRAPHS[request.param])
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, renamed) -> dict[str, torch.Tensor]:
    """Write the tensors of `folder` as `renamed` returns them; returns those before."""
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file(renamed({name: tensor.clone() for name, tensor in state.items()}), file, {"format": "pt"})
    return state


@torch.no_grad()
def their_logits(folder: Path) -> torch.Tensor:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


@torch.no_grad()
def our_logits(folder: Path) -> torch.Tensor:
    return GPT.from_pretrained(folder)(IDS).logits


@pytest.mark.parametrize("folder", EMBEDDING, indirect=True)
def test_a_tied_config_and_another_head_are_untied_as_in_transformers(folder, capsys):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    change(folder, lambda state: state | {HEAD: torch.randn(70, 16)})
    assert (our_logits(folder) - their_logits(folder)).abs().max() < 1e-4
    assert "differs from the token embeddings" in capsys.readouterr().err
    model = GPT.from_pretrained(folder)
    assert not model.config.tie_embeddings
    model.save_pretrained(folder / "again")
    assert torch.equal(our_logits(folder / "again"), our_logits(folder))
    # the same matrix twice is tied, and one of the two alone is both
    capsys.readouterr()
    change(folder, lambda state: state | {HEAD: state[EMBEDDING[kind]].clone()})
    assert (our_logits(folder) - their_logits(folder)).abs().max() < 1e-4
    assert GPT.from_pretrained(folder).config.tie_embeddings
    change(folder, lambda state: {name: w for name, w in state.items() if name != EMBEDDING[kind]})
    assert (our_logits(folder) - their_logits(folder)).abs().max() < 1e-4
    assert GPT.from_pretrained(folder).config.tie_embeddings
    assert "differs" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "module._orig_mod.", "model.", "base_model.model.", "_orig_mod.module.model."],
)
def test_prefixes_of_wrappers_are_removed(folder, prefix):
    expected = our_logits(folder)
    state = change(folder, lambda state: {prefix + name: w for name, w in state.items()})
    assert torch.equal(our_logits(folder), expected)
    first = next(iter(state))
    change(folder, lambda raw: raw | {first: state[first]})
    with pytest.raises(InputError, match=rf"holds {first} twice, also as .*{first}; remove one"):
        our_logits(folder)


def test_wrappers_inside_a_name_are_removed_and_unknown_names_are_kept(folder):
    expected = our_logits(folder)
    inner = lambda name: ".".join([*name.split(".")[:-1], "_fsdp_wrapped_module", name.split(".")[-1]])  # noqa: E731
    change(folder, lambda state: {inner(name): w for name, w in state.items()})
    assert torch.equal(our_logits(folder), expected)
    change(folder, lambda state: {f"encoder.{name}": w for name, w in state.items()})
    with pytest.raises(InputError, match=r"lacks \d+ weights .*; it holds \d+ weights .*, first encoder\."):
        our_logits(folder)


def test_trainers_output_folder_names_its_checkpoints(tmp_path):
    for step in (500, 1000):
        save_model(tmp_path / "out" / f"checkpoint-{step}", "qwen3")
    for load in (GPT.from_pretrained, Tokenizer.from_pretrained, read_config):
        with pytest.raises(
            InputError, match=r"holds checkpoints of transformers' Trainer .* such as .*-1000, the"
        ):
            load(tmp_path / "out")
    save_model(tmp_path / "out", "qwen3")  # what Trainer saves at the end
    assert GPT.from_pretrained(tmp_path / "out").config.n_layer == 3


# peft and transformers warn about each other's deprecated names
quiet = pytest.mark.filterwarnings("ignore")


def adapter(folder: Path, **settings: object) -> peft.PeftModel:
    torch.manual_seed(2)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(base, config)


@quiet
@pytest.mark.parametrize("folder", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head"], "use_rslora": True}])
def test_an_adapter_is_merged_as_transformers_computes_it(folder, settings, tmp_path):
    adapter(folder, **settings).save_pretrained(tmp_path / "adapter")
    apart = their_logits(tmp_path / "adapter")
    assert (apart - our_logits(folder)).abs().max() > 0.1
    assert (our_logits(tmp_path / "adapter") - apart).abs().max() < 1e-4
    assert read_config(tmp_path / "adapter") == read_config(folder)
    for file in (tmp_path / "adapter").glob("adapter_*"):  # beside the model's own files
        (folder / file.name).write_bytes(file.read_bytes())
    beside = their_logits(folder)
    assert (our_logits(folder) - beside).abs().max() < 1e-4


@quiet
@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_an_adapter_that_cannot_be_merged_is_refused(folder, tmp_path, monkeypatch):
    out = tmp_path / "adapter"
    adapter(folder).save_pretrained(out)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)  # as if it were not installed
        with pytest.raises(InputError, match=r"peft, which applies it, is not installed; .*merge_and_unload"):
            GPT.from_pretrained(out)
    settings = json.loads((out / "adapter_config.json").read_text())
    for change, message in (
        ({"base_model_name_or_path": "some/model"}, "is an adapter of some/model, which is not here"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path = None; expected the model"),
        ({"target_modules": ["nothing"]}, "has an adapter that peft cannot apply to its model of kind llama"),
    ):
        (out / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(InputError, match=message):
            GPT.from_pretrained(out)
    # weights that were saved with the adapter inside
    state = adapter(folder).state_dict()
    save_file({name: w.clone().contiguous() for name, w in state.items()}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"holds the weights of an adapter, first .*merge_and_unload"):
        GPT.from_pretrained(folder)
