"""A folder of only what LoRA changed predicts as the whole model does, and is refused where it does not fit."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from embed.formats.export import export_model
from gpt_core.common.errors import InputError
from gpt_core.tasks.finetune import finetune
from gpt_core.tasks.lora import LORA_FILE
from gpt_core.tasks.task_model import TaskModel
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.gpt_core.tasks.finetune_driver import settings
from tests.gpt_core.tasks.tiny_tasks import write_tasks
from tests.tiny_models import save_model

LORA = {"trainable": "lora", "lora_rank": 2, "lora_alpha": 6, "n_layer": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    write_tasks(folder)
    for graph in ("gpt2", "qwen3"):
        save_model(folder / graph, graph)
    for task in ("span", "classification"):
        finetune(settings(folder, task, str(folder / task), init_from=str(folder / "gpt2"), **LORA))
        export_model(str(folder / f"{task}-lora"), model=str(folder / task), to="lora", dtype="float32")
    return folder


def rows(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()[:40]]


@pytest.mark.parametrize("task", ["span", "classification"])
def test_it_predicts_as_the_whole_model(folder, task):
    whole = TaskModel.from_pretrained(folder / task, "cpu").predict(rows(folder, task))
    small = TaskModel.from_pretrained(folder / f"{task}-lora", "cpu").predict(rows(folder, task))
    for one, other in zip(whole, small, strict=True):
        assert one.value == other.value
        assert one.score == pytest.approx(other.score, abs=1e-5)
    names = {path.name for path in (folder / f"{task}-lora").iterdir()}
    assert names == {"lora.safetensors", "task.json", "README.md"}


def test_bfloat16_halves_it(folder, tmp_path):
    export_model(str(tmp_path / "half"), model=str(folder / "span-lora"), to="lora")
    sizes = [
        sum(t.nbytes for t in load_file(path / LORA_FILE).values())
        for path in (tmp_path / "half", folder / "span-lora")
    ]
    assert 2 * sizes[0] == sizes[1]
    whole, half = (
        TaskModel.from_pretrained(path, "cpu").predict(rows(folder, "span"))
        for path in (folder / "span", tmp_path / "half")
    )
    for one, other in zip(whole, half, strict=True):
        assert one.score == pytest.approx(other.score, abs=0.05)


def test_it_is_no_language_model(folder):
    with pytest.raises(InputError, match=r"only what LoRA changed of a model.* finetune.py --predict"):
        Tokenizer.from_pretrained(folder / "span-lora")


def test_another_training_starts_from_it(folder, tmp_path):
    config = settings(
        folder, "span", str(tmp_path / "more"), init_from=str(folder / "span-lora"), max_iters=2
    )
    finetune(config)
    TaskModel.from_pretrained(tmp_path / "more", "cpu").predict(rows(folder, "span"))


def test_folders_that_do_not_fit_are_refused(folder, tmp_path):
    def changed(name: str, change) -> Path:
        shutil.copytree(folder / "span-lora", tmp_path / name)
        path = tmp_path / name / LORA_FILE
        tensors = load_file(path)
        values = {"init_from": str(folder / "gpt2"), "n_layer": 2, "scale": 3.0}
        tensors, values = change(tensors, values)
        save_file(tensors, path, {"lora": json.dumps(values)})
        return tmp_path / name

    first = "gpt.blocks.0.attn.q.lora_A.default.weight"
    other = "do not match the first 2 blocks of .*; they were trained for another model"
    for name, change, said in [
        ("base", lambda t, v: (t, v | {"init_from": str(folder / "qwen3")}), other),
        ("half", lambda t, v: ({n: x for n, x in t.items() if n != first}, v), other),
        ("wide", lambda t, v: (t | {first: t[first][:1].contiguous()}, v), other),
        ("head", lambda t, v: ({n: x for n, x in t.items() if n != "head.none.bias"}, v), other),
        ("none", lambda t, v: (t, v | {"init_from": "nowhere"}), "changes nowhere, which is not here: .*"),
        ("deep", lambda t, v: (t, v | {"n_layer": 99}), "has n_layer 99, but .* has 3 blocks"),
        ("zero", lambda t, v: (t, v | {"n_layer": 0}), "has n_layer 0 and scale 3.0; copy the folder again"),
        ("keys", lambda t, v: (t, {}), "cannot be read .'init_from'.; copy the folder again"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            TaskModel.from_pretrained(changed(name, change))
    broken = changed("broken", lambda t, v: (t, v))
    (broken / LORA_FILE).write_bytes((broken / LORA_FILE).read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read"):
        TaskModel.from_pretrained(broken)


def test_only_lora_of_a_task_is_exported(folder, tmp_path):
    with pytest.raises(InputError, match="was not fine-tuned for a task with LoRA; export it with --to hf"):
        export_model(str(tmp_path / "out"), model=str(folder / "gpt2"), to="lora")
    with pytest.raises(InputError, match="--to lora has no dtype q8_0; expected float32 or bfloat16"):
        export_model(str(tmp_path / "out"), model=str(folder / "span"), to="lora", dtype="q8_0")
    assert not (tmp_path / "out").exists()
