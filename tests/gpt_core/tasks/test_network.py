"""The network of every task: independence of padding and of the other rows, masks, and the language model's loss."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gpt_core.hardware.device import Numerics
from gpt_core.model.gpt import GPT
from gpt_core.tasks.batches import Collator
from gpt_core.tasks.examples import FIELDS, read_examples
from gpt_core.tasks.finetune import task_loss
from gpt_core.tasks.inputs import InputFormat
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.predictions import forward, mean_loss, predictions
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.gpt_core.tasks.tiny_tasks import write_tasks
from tests.tiny_models import GRAPHS, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, 24)
    save_model(folder / "qwen3", "qwen3")
    return folder


def made(folder, task, lm=False, padding_mask=True):
    torch.manual_seed(1)
    labels = {"classification": ("no", "yes"), "entailment": ("0", "1")}.get(task, ())
    network = TaskNetwork(GPT(GRAPHS["qwen3"]).double(), task, len(labels), 4, lm).double()
    settings = TaskSettings(task, labels, 48, mean=3.0, deviation=2.0, answer_tokens=4)
    inputs = InputFormat(task, Tokenizer.from_pretrained(folder / "qwen3"), 48)
    examples = read_examples(str(folder / f"{task}.jsonl"), task, {})
    settings = replace(settings, padding_mask=padding_mask)
    return network.eval(), settings, Collator(inputs, settings), examples


def units_of(collate, examples):
    return [
        u
        for e, rows in zip(examples, collate.inputs.rows(examples), strict=True)
        for u in collate.units(e, rows)
    ]


@pytest.mark.parametrize("task", FIELDS)
def test_logits_and_loss_do_not_depend_on_the_batch(folder, task):
    network, settings, collate, examples = made(folder, task)
    together = forward(network, collate, examples, Numerics(), 10**6)
    alone = forward(network, collate, examples, Numerics(), 1)
    assert mean_loss(settings, together) == pytest.approx(mean_loss(settings, alone), abs=1e-6)
    for a, b in zip(predictions(settings, together), predictions(settings, alone), strict=True):
        assert a.value == pytest.approx(b.value, abs=1e-6)
        assert a.score == pytest.approx(b.score, abs=1e-6)


@pytest.mark.parametrize("task", FIELDS)
@pytest.mark.parametrize("lm_weight", [0.0, 0.5])
def test_the_gradient_does_not_depend_on_micro_batches(folder, task, lm_weight):
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64) if task == "classification" else None
    found = []
    for tokens in (10**6, 100):
        network, settings, collate, examples = made(folder, task, lm=lm_weight > 0)
        loss_function = task_loss(settings, weights, lm_weight)
        total = count = torch.zeros((), dtype=torch.float64)
        for batch in collate.micro_batches(units_of(collate, examples), tokens)[1]:
            loss, n = loss_function(network, replace(batch, weight=batch.weight.double()))
            loss.backward()
            total, count = total + loss.detach(), count + n
        found.append((total / count, [p.grad / count for p in network.parameters() if p.grad is not None]))
    assert found[0][0] == pytest.approx(float(found[1][0]), abs=1e-6)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_similarity_does_not_depend_on_the_order_of_the_sentences(folder):
    network, settings, collate, examples = made(folder, "similarity")
    turned = [replace(e, texts=e.texts[::-1]) for e in examples]
    there, back = (
        predictions(settings, forward(network, collate, x, Numerics(), 10**6)) for x in (examples, turned)
    )
    assert [p.value for p in there] == pytest.approx([p.value for p in back], abs=1e-9)
    assert len({round(float(p.value), 9) for p in there}) > 1


def test_the_language_models_loss_is_the_mean_over_an_examples_tokens(folder):
    network, _, collate, examples = made(folder, "choice", lm=True)
    units = units_of(collate, examples[:3])
    batch = collate.batch(units)
    found = network(batch.ids, batch.begins, batch.ends, batch.counts).lm
    wanted = []
    for unit in units:
        rows = []
        for row in unit.rows:
            ids = torch.from_numpy(row.ids).long()[None]
            rows.append(F.cross_entropy(network.gpt(ids).logits[0, :-1], ids[0, 1:]))
        wanted.append(torch.stack(rows).mean())
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-9, rtol=0)


def test_only_short_forward_spans_of_the_passage_have_logits(folder):
    network, _, collate, examples = made(folder, "span")
    units = units_of(collate, examples[:5])
    batch = collate.batch(units)
    out = network(batch.ids, batch.begins, batch.ends, batch.counts).logits
    length = batch.ids.shape[1]
    assert out.shape == (5, length**2 + 1)
    for row, begin, end in zip(out[:, :-1].view(5, length, length), batch.begins, batch.ends, strict=True):
        allowed = {
            (i, j) for i in range(int(begin), int(end)) for j in range(i, min(i + 4, int(end)))
        }  # answer_tokens is 4
        assert {tuple(place) for place in row.isfinite().nonzero().tolist()} == allowed
        assert math.isinf(float(row.detach().min()))


def test_without_a_padding_mask_padding_changes_the_logits(folder):
    network, _, collate, examples = made(folder, "classification")
    _, _, other, _ = made(folder, "classification", padding_mask=False)
    masked, unmasked = (forward(network, c, examples, Numerics(), 10**6) for c in (collate, other))
    assert any(
        not torch.allclose(a, b, atol=1e-4) for a, b in zip(masked.logits, unmasked.logits, strict=True)
    )
