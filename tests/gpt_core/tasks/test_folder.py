"""Folders of tasks: the same logits in transformers, the same predictions after saving, damaged files."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from gpt_core.common.errors import InputError
from gpt_core.formats.card import Card
from gpt_core.hardware.device import Numerics
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tasks.batches import Collator
from gpt_core.tasks.examples import read_examples
from gpt_core.tasks.folder import load_task, save_task
from gpt_core.tasks.inputs import InputFormat
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.predictions import forward
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tasks.task_model import TaskModel
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.gpt_core.tasks.tiny_tasks import write_tasks
from tests.tiny_models import GRAPHS, save_model

SMALL = {"vocab_size": 320, "block_size": 512, "n_layer": 2, "n_head": 4, "n_embd": 32, "n_inner": 48}
ALL_GRAPHS = GRAPHS | {
    "llama": GPTConfig(
        **SMALL, qk_norm=False, tie_embeddings=False
    ),
    "gpt_neo": GPTConfig(
        **SMALL, position="learned", norm="layernorm",
        mlp="gelu", attn_bias="output", mlp_bias=True, qk_norm=False, scale_attention=False, window=8,
        window_layers=(1,),
    ),
    "zhizhi": GPTConfig(**SMALL, position="alibi"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    write_tasks(folder, 12)
    save_model(folder / "tokenizer", "qwen3")
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer")
    for graph, config in ALL_GRAPHS.items():
        for task in ("classification", "span", "similarity"):
            torch.manual_seed(2)
            labels = ("no", "yes", "so") if task == "classification" else ()
            network = TaskNetwork(GPT(config), task, len(labels), 5)
            settings = TaskSettings(task, labels, 40, answer_tokens=5, mean=2.5)
            save_task(folder / f"{task}-{graph}", network, settings, tokenizer, network.state_dict(), Card())
            reference = Collator(InputFormat(task, tokenizer, 40), settings)
            examples = read_examples(str(folder / f"{task}.jsonl"), task, {})
            done = forward(network.eval(), reference, examples, Numerics(), 500)
            torch.save(done.logits, folder / f"{task}-{graph}.pt")
    return folder


@pytest.mark.parametrize("graph", ALL_GRAPHS)
@pytest.mark.parametrize("task", ["classification", "span", "similarity"])
def test_a_saved_folder_gives_the_same_logits(folder, graph, task):
    network, settings, tokenizer = load_task(folder / f"{task}-{graph}")
    collate = Collator(InputFormat(task, tokenizer, 40), settings)
    examples = read_examples(str(folder / f"{task}.jsonl"), task, {})
    found = forward(network, collate, examples, Numerics(), 500).logits
    for a, b in zip(found, torch.load(folder / f"{task}-{graph}.pt"), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("graph", ["qwen3", "gpt2", "llama", "gpt_neo"])
def test_transformers_gives_the_same_logits(folder, graph):
    network, settings, tokenizer = load_task(folder / f"classification-{graph}")
    inputs = InputFormat("classification", tokenizer, 40)
    examples = read_examples(str(folder / "classification.jsonl"), "classification", {})
    units = [u for e, rows in zip(examples, inputs.rows(examples), strict=True)
             for u in Collator(inputs, settings).units(e, rows)]  # fmt: skip
    batch = Collator(inputs, settings).batch(units)
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        folder / f"classification-{graph}", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.config.id2label == {0: "no", 1: "yes", 2: "so"}
    with torch.no_grad():
        ours = network(batch.ids, batch.begins, batch.ends, batch.counts).logits
        mask = (torch.arange(batch.ids.shape[1]) <= batch.ends[:, None]).long()
        torch.testing.assert_close(theirs(batch.ids, attention_mask=mask).logits, ours, atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(folder / f"classification-{graph}").pad_token_id == inputs.pad_id


@pytest.mark.parametrize("graph", ["qwen3", "gpt2", "llama", "gpt_neo"])
def test_transformers_gives_the_same_logits_of_starts_and_ends(folder, graph):
    network, _, tokenizer = load_task(folder / f"span-{graph}")
    inputs = InputFormat("span", tokenizer, 40)
    row = inputs.rows(read_examples(str(folder / "span.jsonl"), "span", {}))[0][0]
    ids = torch.from_numpy(row.ids).long()[None]
    theirs, info = AutoModelForQuestionAnswering.from_pretrained(
        folder / f"span-{graph}", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        out = theirs(ids)
        ours = network.head.ends(network.gpt(ids, logits=False).hidden)
    torch.testing.assert_close(torch.stack((out.start_logits, out.end_logits), -1), ours, atol=1e-5, rtol=0)


def test_predictions_of_rows(folder):
    model = TaskModel.from_pretrained(folder / "classification-qwen3", "cpu")
    found = model.predict([{"review": "good"}, {"review": "bad " * 60, "label": 7}], {"text": "review"})
    assert [sum(p.details["scores"].values()) for p in found] == pytest.approx([1, 1])
    assert found[0].score == max(found[0].details["scores"].values())
    assert model.n_cut == 1
    with pytest.raises(InputError, match=r"row 2 has no column text"):
        model.predict([{"text": "good"}, {"words": "bad"}])
    assert model.predict([]) == []
    spans = TaskModel.from_pretrained(folder / "span-qwen3", "cpu")
    context = "红色的天空 and more words than one row can hold, " * 5
    (answer,) = spans.predict([{"question": "colour?", "context": context}])
    details = answer.details
    for context in ("   ", "  a  ", "\n\n"):
        (blank,) = spans.predict([{"question": "colour?", "context": context}])
        assert blank.value == context.strip() or (blank.value, blank.details["start"]) == ("", None)
        assert not blank.value or context[blank.details["start"] : blank.details["end"]] == blank.value
    context = "红色的天空 and more words than one row can hold, " * 5
    assert answer.value == ("" if details["start"] is None else context[details["start"] : details["end"]])
    assert answer.score + (details["score_none"] if answer.value else 0) <= 1 + 1e-6


def test_damaged_folders_are_refused(folder, tmp_path):
    for name, damage, said in [
        ("task.json", lambda p: p.unlink(), "has no task.json"),
        (
            "task.json",
            lambda p: p.write_text(p.read_text().replace('"span"', '"spam"')),
            "does not describe a task",
        ),
        ("task.json", lambda p: p.write_text(json.dumps({"task": "span"})), "does not describe a task"),
        ("task.json", lambda p: p.write_text("{"), "task.json"),
        ("span.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-9]), "span.safetensors cannot be read"),
        ("span.safetensors", lambda p: p.unlink(), "span.safetensors cannot be read"),
        ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-9]), "model.safetensors is damaged"),
    ]:
        broken = tmp_path / "broken"
        shutil.copytree(folder / "span-qwen3", broken)
        damage(broken / name)
        with pytest.raises(InputError, match=said):
            load_task(broken)
        shutil.rmtree(broken)
    shutil.copytree(folder / "classification-qwen3", tmp_path / "labels")
    path = tmp_path / "labels" / "task.json"
    path.write_text(path.read_text().replace('"so"', '"so", "la"').replace('["no"', '["no"'))
    with pytest.raises(InputError, match=r"the weights of its head .weight. do not match task\.json"):
        load_task(tmp_path / "labels")
