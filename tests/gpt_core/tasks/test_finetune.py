"""Fine-tuning: it learns every task, resumes bit for bit, gives the same on two ranks, and refuses bad input."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gpt_core.common.errors import InputError
from gpt_core.hub import run_folder
from gpt_core.model.gpt import GPT
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.examples import FIELDS, Example
from gpt_core.tasks.finetune import class_weights, finetune
from gpt_core.tasks.open_data import CROPPED_TO, cropped, open_examples, unanswered
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tasks.task_model import TaskModel, predict_file
from tests import commands
from tests.gpt_core.tasks.finetune_driver import settings
from tests.gpt_core.tasks.tiny_tasks import write_tasks
from tests.tiny_models import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning")
    write_tasks(folder)
    for graph in ("qwen3", "gpt2"):
        save_model(folder / graph, graph)
    return folder


@pytest.fixture(scope="module")
def driven(folder):
    command = [Path(__file__).with_name("finetune_driver.py"), folder]
    done = commands.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"said": done.stderr}


@pytest.mark.parametrize("task", FIELDS)
def test_every_task_is_learned(folder, tmp_path, task):
    figure = {"similarity": "Pearson", "span": "EM"}.get(task, "accuracy")
    least = {"similarity": 0.8}.get(task, 0.95)
    config = settings(folder, task, str(tmp_path / "out"), max_iters=60, eval_interval=60, batch_size=32)
    found = finetune(
        replace(config, learning_rate=3e-3, warmup_iters=5, lm_weight=0.1, tokens_per_forward=4096)
    )
    assert found[figure] >= least
    rows = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()[:40]]
    right = [row.get("label", row.get("score")) for row in rows]
    if task == "span":
        right = [row["answers"]["text"][0] for row in rows]
    values = [p.value for p in TaskModel.from_pretrained(tmp_path / "out", "cpu").predict(rows)]
    if task == "similarity":
        assert sum((v > 3) == (r > 3) for v, r in zip(values, right, strict=True)) >= 34
    else:
        assert sum(str(v) == str(r) for v, r in zip(values, right, strict=True)) >= 38


@pytest.mark.parametrize("task", ["span", "choice"])
def test_a_killed_and_resumed_run_ends_bit_identical(driven, folder, task):
    assert driven[f"{task} straight"] == [0], driven["said"]
    assert driven[f"{task} killed"] == [-9, -9, 0], driven["said"]
    one, other = (folder / "runs" / f"{task} {how}" / "step-6" for how in ("straight", "killed"))
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert run_folder.load_state(one)["figures"] == run_folder.load_state(other)["figures"]


@pytest.mark.parametrize("task", ["similarity", "span"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_ranks_equal_one(driven, folder, task, parallel):
    assert driven[f"{task} {parallel}"] == [0, 0], driven["said"]
    assert driven[f"{task} one"] == [0], driven["said"]
    weights = [
        load_file(folder / "runs" / f"{task} {how}" / "step-6" / "model.safetensors")
        for how in (parallel, "one")
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("trainable", ["full", "last-k", "lora", "bitfit"])
def test_weights_that_are_not_trained_stay_as_they_are(folder, tmp_path, trainable):
    config = settings(folder, "entailment", str(tmp_path / "out"), max_iters=2, weight_decay=0.1)
    config = replace(
        config, init_from=str(folder / "gpt2"), trainable=trainable, last_k=1, lora_rank=2, n_layer=2
    )
    finetune(config)
    before = GPT.from_pretrained(folder / "gpt2").state_dict()
    after = TaskModel.from_pretrained(tmp_path / "out", "cpu").network.gpt.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name for name in changed if "blocks.2" in name} == set()
    wanted = {
        "full": set(after),
        "last-k": {n for n in after if "blocks.1." in n or n.startswith("norm")},
        "lora": {n for n in after if "blocks." in n and n.endswith("weight") and "norm" not in n},
        "bitfit": {n for n in after if "blocks." in n and n.endswith("bias")},
    }[trainable]
    unused = {n for n in wanted if n.endswith("k.bias")}  # a constant added to all scores of a query
    assert changed | unused == wanted


def test_the_command_trains_and_predicts(folder, tmp_path):
    out = tmp_path / "out"
    script = "scripts/finetune.py"
    keys = {"task": "classification", "init_from": folder / "qwen3", "data": folder / "classification.jsonl",
            "max_iters": 40, "eval_interval": 40, "warmup_iters": 5, "learning_rate": 3e-3, "out_dir": out,
            "max_tokens": 32}  # fmt: skip
    options = [str(word) for key, value in keys.items() for word in (f"--{key}", value)]
    done = commands.run([script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "for development" in done.stdout
    assert "best checkpoint" in done.stdout
    (tmp_path / "in.csv").write_text("id,review\n1,it is good so\n2,it is ugly\n")
    files = ["--input", tmp_path / "in.csv", "--out", tmp_path / "out.jsonl", "--columns", "text=review"]
    done = commands.run([script, "--predict", "--model", out, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "out.jsonl: 2 predictions" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(x["id"], x["review"], x["prediction"]) for x in lines] == [
        ("1", "it is good so", "yes"),
        ("2", "it is ugly", "no"),
    ]
    with pytest.raises(InputError, match=r"has no task\.json; expected a folder that scripts/finetune\.py"):
        predict_file(model=str(folder), input=str(tmp_path / "in.csv"), out=str(tmp_path / "other.jsonl"))
    assert not (tmp_path / "other.jsonl").exists()


def test_articles_are_not_on_both_sides_of_the_held_out_split(folder):
    examples, dev = open_examples(settings(folder, "span", "x", no_answer=0.0), "span")
    assert len(dev) == 12
    assert not {e.group for e in examples} & {e.group for e in dev}


def test_questions_without_an_answer_have_another_paragraph_of_their_article():
    def example(passage, answer):
        start = passage.index(answer)
        return Example("here", ("q", passage), spans=((start, start + len(answer)),), group="a")

    examples = [example("it is red", "red"), example("it is blue", "blue"), example("red and blue", "and")]
    found = unanswered(examples, 1.0, random.Random(0))
    assert {(e.spans, e.group) for e in found} == {((), "a")}
    assert {e.texts[1] for e in found} <= {
        "it is red",
        "it is blue",
    }  # the third paragraph has every answer but its own


@given(st.data(), st.text(alphabet="ab 知。", min_size=1, max_size=900))
def test_a_cropped_passage_keeps_the_answer_and_little_else(data, passage):
    start = data.draw(st.integers(0, len(passage) - 1))
    end = data.draw(st.integers(start + 1, len(passage)))
    spans = data.draw(st.sampled_from([(), ((start, end),), ((start, end), (0, 1))]))
    order = random.Random(data.draw(st.integers(0, 99)))
    example = Example("here", ("q", passage), spans=spans)
    piece = cropped(example, order)
    assert piece.texts[0] == "q"
    assert piece.texts[1] in passage
    assert len(piece.texts[1]) <= max(CROPPED_TO[1], end - start if spans else 0)
    assert len(piece.texts[1]) >= min(len(passage), CROPPED_TO[0]) or " " in passage
    assert piece.answers[:1] == example.answers[:1]
    for a, b in piece.spans:
        assert 0 <= a < b <= len(piece.texts[1])


def test_examples_with_an_excluded_text_are_left_out(folder, tmp_path, capsys):
    config = settings(folder, "entailment", "x")
    examples, dev = open_examples(config, "entailment")
    unwanted = {e.texts[0] for e in examples[:3]}
    (tmp_path / "no.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in unwanted))
    kept, kept_dev = open_examples(replace(config, exclude=(str(tmp_path / "no.jsonl"),)), "entailment")
    n_left_out = sum(e.texts[0] in unwanted for e in [*examples, *dev])
    assert len(kept) + len(kept_dev) == len(examples) + len(dev) - n_left_out
    assert all(e.texts[0] not in unwanted for e in [*kept, *kept_dev])
    assert f"left out: {n_left_out} of" in capsys.readouterr().out


def test_the_configured_fraction_of_training_passages_is_cropped(tmp_path):
    text = "".join(f"word{i} " for i in range(200))
    rows = [
        {
            "question": f"q{i}",
            "context": text,
            "answers": {"text": ["word99"], "answer_start": [text.index("word99")]},
        }
        for i in range(200)
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = FinetuneConfig(task="span", data=(str(tmp_path / "long.jsonl"),), no_answer=0.0, cropped=0.5)
    examples, dev = open_examples(config, "span")
    assert 60 < sum(len(e.texts[1]) <= CROPPED_TO[1] for e in examples) < 120
    assert all(e.texts[1] == text for e in dev)
    assert all(e.answers == ["word99"] for e in examples)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data": ()}, "data is empty"),
        ({"labels": ("yes", "maybe")}, "the label 'no' is none of yes, maybe"),
        ({"labels": ("yes", "no", "maybe")}, "labels has 'maybe', of which there is no example"),
        ({"labels": ("yes",)}, "expected at least two"),
        ({"class_weights": (1.0,)}, "class_weights has 1 numbers for 0 labels"),
        ({"labels": ("no", "yes"), "class_weights": (1.0, 0.0)}, "expected numbers above 0"),
        (
            {"columns": ("words=text",)},
            "once for a field, where the fields of classification are text, label",
        ),
        ({"task": "similarity", "balanced": True}, "balanced is set, but the task similarity has no labels"),
        ({"n_layer": 9}, "n_layer is 9; the n_layer of .* is 3"),
        ({"trainable": "last-k", "last_k": 4}, "last_k is 4; expected at most 3"),
        ({"trainable": "bitfit"}, "has no biases to train"),
        ({"parallel": "deepspeed", "deepspeed_config": "x"}, "which fine-tuning does not support"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"max_tokens": 2}, "max_tokens is 2; expected at least 3 for classification"),
        ({"columns": ("text=",)}, "columns contains 'text='"),
        ({"columns": ("text=a", "text=b")}, "columns contains 'text=b'"),
        ({"columns": ("text=label+text",)}, r"has no column label\+text"),
        ({"labels": ("no", "yes "), "task": "classification"}, "labels without white space around them"),
        (
            {"labels": ("no", "yes"), "class_weights": (float("nan"), 1.0)},
            "expected a finite|expected numbers above 0",
        ),
        ({"no_answer": 5.0}, "no_answer is 5.0; expected a fraction"),
        ({"exclude": ("none.jsonl",)}, "none.jsonl"),
        ({"cropped": -0.1}, "cropped is -0.1; expected a fraction"),
    ],
)
def test_bad_settings_are_refused(folder, tmp_path, keys, said):
    with pytest.raises(InputError, match=said):
        finetune(replace(settings(folder, "classification", str(tmp_path / "out")), **keys))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("step-*"))


def test_one_class_and_too_few_examples_are_refused(folder, tmp_path):
    for name, rows, said in [
        ("one", [{"text": str(i), "label": "a"} for i in range(20)], "All examples have the label 'a'"),
        (
            "few",
            [{"text": str(i), "label": str(i % 2)} for i in range(9)],
            "few.jsonl: 9 in all; expected at least ten",
        ),
    ]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(InputError, match=said):
            finetune(settings(folder, "classification", str(tmp_path / "out"), data=(str(path),)))


def test_a_rare_label_may_be_held_out(folder, tmp_path):
    rows = [{"text": f"it is {'good' if i % 2 else 'bad'} {i}", "label": "ab"[i % 2]} for i in range(39)]
    path = tmp_path / "rare.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "rare", "label": "c"}]))
    config = settings(folder, "classification", str(tmp_path / "out"), data=(str(path),), max_iters=2)
    held_out = 0
    for seed in range(12):
        _, dev = open_examples(replace(config, seed=seed), "classification")
        if "c" in {e.label for e in dev}:
            held_out += 1
            finetune(replace(config, seed=seed, out_dir=str(tmp_path / str(seed))))
            model = TaskModel.from_pretrained(tmp_path / str(seed), "cpu")
            assert model.settings.labels == ("a", "b", "c")
            break
    assert held_out


def test_answers_that_are_too_long_count_with_their_first_tokens(folder, tmp_path, capsys):
    context = "start " * 20
    row = {
        "question": "what?",
        "context": context,
        "answers": {"text": [context.strip()], "answer_start": [0]},
    }
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row | {"title": str(i)}) + "\n" for i in range(24)))
    config = settings(folder, "span", str(tmp_path / "out"), data=(str(path),), max_tokens=200, max_iters=2)
    found = finetune(replace(config, answer_tokens=3, no_answer=0.0, tokens_per_forward=4096))
    assert math.isfinite(found["val_loss"])
    assert (
        "answers of more than 3 tokens (answer_tokens), whose first ones were learned: 16"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("number", [0.1, 1e308])
def test_scores_without_variance_are_refused(folder, tmp_path, number):
    rows = [
        {"sentence1": f"a {i}", "sentence2": "b", "score": number * (i % 2 or number < 1)} for i in range(40)
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="expected different ones, whose squares are finite"):
        finetune(settings(folder, "similarity", str(tmp_path / "out"), data=(str(path),)))


def test_a_folder_of_a_task_is_no_language_model_and_an_out_dir_no_file(folder, tmp_path):
    config = settings(folder, "classification", str(tmp_path / "out"), max_iters=2)
    finetune(config)
    step = run_folder.best_or_latest(config.out_dir)
    for start in (replace(config, lm_weight=0.5), replace(config, task="chat")):
        with pytest.raises(InputError, match="was fine-tuned for a task and is no language model"):
            finetune(replace(start, init_from=str(step), out_dir=str(tmp_path / "other")))
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/x"):
        with pytest.raises(InputError, match="but that is a file, or is inside one; name a folder"):
            finetune(replace(config, out_dir=str(tmp_path / name)))


def test_predicting_keeps_the_rows_own_values(folder, tmp_path):
    config = settings(folder, "similarity", str(tmp_path / "out"), max_iters=2)
    finetune(config)
    row = {"sentence1": "a", "sentence2": "b", "score": 4.5}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    files = {"model": str(tmp_path / "out"), "input": str(tmp_path / "in.jsonl"), "device": "cpu"}
    predict_file(**files, out=str(tmp_path / "p.jsonl"))
    line = json.loads((tmp_path / "p.jsonl").read_text())
    assert line["score"] == 4.5
    assert isinstance(line["prediction"], float)
    (tmp_path / "in.jsonl").write_text(json.dumps(row | {"prediction": 1}) + "\n")
    with pytest.raises(
        InputError, match="line 1 has a prediction already, which the prediction would replace"
    ):
        predict_file(**files, out=str(tmp_path / "q.jsonl"))
    with pytest.raises(InputError, match=r"expected the name of a \.jsonl file in a folder"):
        predict_file(**files, out=str(tmp_path / "none" / "q.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out", "p.jsonl"]


def test_resuming_with_other_settings_is_refused(folder, tmp_path):
    config = settings(folder, "classification", str(tmp_path / "out"), max_iters=2)
    finetune(config)
    longer = replace(config, max_iters=4)
    for keys, said in [
        ({"batch_size": 4}, "made with batch_size = 8, but this run has 4"),
        ({"trainable": "last-k"}, "holds AdamW's state of .*, which this run does not train"),
        ({"n_layer": 2}, "does not match this configuration"),
        ({"balanced": True}, "made with balanced = False"),
        ({"lora_alpha": 1}, "made with lora_alpha = 32"),
        ({"task": "entailment", "data": (str(folder / "entailment.jsonl"),)}, "does not match|made with"),
    ]:
        with pytest.raises(InputError, match=said):
            finetune(replace(longer, **keys))
    finetune(longer)
    assert run_folder.latest(config.out_dir).name == "step-4"
    again = replace(config, out_dir=str(tmp_path / "again"), init_from=str(tmp_path / "out"))
    finetune(again)  # a fine-tuned model is a start for another fine-tuning


def test_balanced_weights_make_rare_labels_count_as_much(folder):
    examples = [Example("here", ("x",), label="ab"[i % 10 == 0]) for i in range(100)]
    config = settings(folder, "classification", "x", balanced=True)
    weights = class_weights(config, TaskSettings("classification", ("a", "b")), examples)
    assert weights.tolist() == pytest.approx([100 / 2 / 90, 100 / 2 / 10])
