"""Conversations: formats, what is learned of them, packing without leakage, exact losses, and fine-tuning."""

import gzip
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from gpt_core.data.batches import IGNORED
from gpt_core.hub import run_folder
from gpt_core.model.gpt import GPT
from gpt_core.tasks.chat_data import (
    PLAIN_TEMPLATE,
    ChatBatches,
    chat_batch,
    pack,
    read_conversations,
)
from gpt_core.tasks.finetune import finetune
from gpt_core.tasks.finetune_chat import chat_loss
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.gpt_core.tasks.finetune_driver import settings
from tests.tiny_models import GRAPHS, save_model


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def text_of(tokenizer, ids):
    tokens = "".join(tokenizer.rust.id_to_token(i) for i in ids)  # byte-level tokens, without a decoder
    return tokens.replace("Ċ", "\n").replace("Ġ", " ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    save_model(folder / "qwen3", "qwen3")
    rows = [{"turns": [f"say {c} {i}", f"{c}{c}", "again", c]} for i in range(10) for c in "abcdef"]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    tokenizer = Tokenizer.from_pretrained(folder / "qwen3")
    tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def test_formats(tmp_path):
    rows = [
        {"messages": [{"role": "system", "content": "s"}, *turns("a", "b")], "model": "x"},
        {"turns": ["a", "b", "c"]},
        {"turns": ["a", "", "c", "d"]},
        {"instruction": "i ", "input": "", "output": "o"},
        {"instruction": "i", "input": "n", "output": "o"},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_conversations(str(tmp_path / "x.jsonl")) == [
        [{"role": "system", "content": "s"}, *turns("a", "b")],
        turns("a", "b"),
        turns("i", "o"),
        turns("i\n\nn", "o"),
    ]
    with gzip.open(tmp_path / "x.txt.gz", "wt", encoding="utf-8") as file:
        file.write("你 好 ， 朋 友\tgo go 走 吧 ！\t再 见\n\n")
    assert read_conversations(str(tmp_path / "x.txt.gz")) == [turns("你好，朋友", "go go 走吧！")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": turns("a")}, r"line 1 is no conversation .*the roles are user"),
        ({"messages": turns("a", "b")[::-1]}, "the roles are assistant, user"),
        ({"messages": []}, "has no turn of the assistant"),
        ({"messages": [{"role": "system", "content": "s"}]}, "has no turn of the assistant"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, "is no conversation"),
        (
            {"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "x"}]},
            "not a string",
        ),
        ({"messages": "hello"}, "is no conversation"),
        ({"text": "hello"}, "has 'text'; expected messages, turns, or instruction and output"),
        ({"turns": ["a", 1]}, "turns is .* expected a list of strings"),
        ({"instruction": 5, "output": "y"}, "instruction is 5; expected a string"),
        ({"instruction": "a", "input": ["b"], "output": "y"}, r"input is \['b'\]; expected a string"),
        ({"turns": ["a"]}, "has no conversation with a reply"),
    ],
)
def test_bad_conversations_are_refused(tmp_path, row, said):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=said):
        read_conversations(str(tmp_path / "x.jsonl"))


def test_only_replies_and_their_end_are_learned(tokenizer):
    ids, learned = tokenizer.chat_replies(
        [{"role": "system", "content": "be brief"}, *turns("one", "two", "three", "four")]
    )
    assert text_of(tokenizer, ids) == (
        "System:\nbe brief\nUser:\none\nAssistant:\ntwo<eos>User:\nthree\nAssistant:\nfour<eos>"
    )
    parts = np.split(np.array(ids), np.flatnonzero(np.diff(learned)) + 1)
    assert [text_of(tokenizer, part.tolist()) for part in parts[1::2]] == ["two<eos>", "four<eos>"]


def test_replies_are_encoded_as_after_the_prompt_of_a_chat(smollm2):
    tokenizer = Tokenizer.from_pretrained(smollm2)
    talk = turns("What is <|im_end|> 知知?", "To know what", "你好", "hello\n")
    ids, learned = tokenizer.chat_replies(talk)
    for n in (1, 3):
        prompt = tokenizer.chat(talk[:n])
        assert ids[: len(prompt)] == prompt
        assert learned[len(prompt) - 1 : len(prompt) + 1] == [False, True]
        assert ids[len(prompt) :][: len(tokenizer.encode(talk[n]["content"]))] == tokenizer.encode(
            talk[n]["content"]
        )
    ends = [i for i in range(len(ids)) if learned[i] and not [*learned, False][i + 1]]
    assert {tokenizer.decode([ids[i]]) for i in ends} == {"<|im_end|>"}  # not the newline after it


def test_replies_after_the_limit_are_left_out(tokenizer):
    talk = turns(*(f"turn {i}" for i in range(40)))
    ids, learned = tokenizer.chat_replies(talk)
    some, some_learned = tokenizer.chat_replies(talk, limit=50)
    assert 50 <= len(some) < 100
    assert (some, some_learned) == (ids[: len(some)], learned[: len(some)])


def test_a_template_that_rewrites_earlier_turns_is_refused(folder):
    tokenizer = Tokenizer.from_pretrained(folder / "qwen3")
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="changes earlier turns"):
        tokenizer.chat_replies(turns("a", "b", "c", "d"))


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12), st.integers(24, 60)
)
def test_packed_rows_hold_every_conversation_once_and_whole(sizes, length):
    tokenizer = _plain()
    talks = [turns("a" * n, "b" * m + str(i)) for i, (n, m) in enumerate(sizes)]
    packs = pack(talks, tokenizer, length)
    found = []
    for ids, targets, segments in zip(packs.ids, packs.targets, packs.segments, strict=True):
        assert (np.diff(segments) >= 0).sum() + (segments == -1).any() * 1 >= 0
        for number in range(segments.max() + 1):
            (places,) = np.nonzero(segments == number)
            assert (np.diff(places) == 1).all()
            learned = targets[places] != IGNORED
            assert (targets[places][:-1][learned[:-1]] == ids[places][1:][learned[:-1]]).all()
            found.append((ids[places].tolist(), targets[places][learned].tolist()))
    wanted = []
    for talk in talks:
        ids, learned = tokenizer.chat_replies(talk)
        ids, learned = ids[: length + 1], learned[: length + 1]
        if any(learned[1:]):
            wanted.append((ids[:-1], [i for i, x in zip(ids[1:], learned[1:], strict=True) if x]))
    assert sorted(found) == sorted(wanted)


def _plain():
    tokenizer = Tokenizer.from_pretrained("gpt2")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    )
    return tokenizer


def test_the_loss_of_packed_rows_is_the_sum_over_replies_alone(folder, tokenizer):
    model = GPT(GRAPHS["qwen3"]).double()
    talks = read_conversations(str(folder / "chat.jsonl"))[:9]
    packs = pack(talks, tokenizer, 200)
    assert len(packs.ids) < len(talks)
    with torch.no_grad():
        loss, count = chat_loss(model, chat_batch(packs, np.arange(len(packs.ids)), torch.device("cpu")))
        wanted, n = 0.0, 0
        for talk in talks:  # by hand, each conversation alone
            ids, learned = tokenizer.chat_replies(talk)
            logits = model(torch.tensor([ids])).logits[0]
            for i in range(1, len(ids)):
                if learned[i]:
                    wanted += float(F.cross_entropy(logits[i - 1], torch.tensor(ids[i])))
                    n += 1
    assert int(count) == n
    assert float(loss) == pytest.approx(wanted, rel=1e-10)


def test_the_gradient_does_not_depend_on_micro_batches_and_empty_ones_are_zero(folder, tokenizer):
    talks = read_conversations(str(folder / "chat.jsonl"))
    packs = pack(talks, tokenizer, 64)
    targets = packs.targets.copy()
    targets[1] = IGNORED  # a row without a target
    packs = replace(packs, targets=targets)
    found = []
    for size in (8, 2, 1):
        torch.manual_seed(0)
        model = GPT(GRAPHS["qwen3"]).double()
        batches = ChatBatches(packs, 8, size, 0, {})
        total = count = 0
        for batch in next(batches):
            loss, n = chat_loss(model, batch)
            assert math.isfinite(float(loss.detach()))
            loss.backward()
            total, count = total + float(loss.detach()), count + int(n)
        found.append((total / count, [p.grad / count for p in model.parameters()]))
    alone = chat_loss(GPT(GRAPHS["qwen3"]), chat_batch(packs, np.array([1]), torch.device("cpu")))
    assert (float(alone[0].detach()), int(alone[1])) == (0.0, 0)
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-12)
        for a, b in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_a_model_learns_to_reply(folder, tmp_path):
    config = settings(
        folder, "chat", str(tmp_path / "out"), max_iters=100, eval_interval=100, batch_size=8, warmup_iters=5,
        learning_rate=1e-2, max_tokens=128, tokens_per_forward=2048, dev_examples=6,
    )  # fmt: skip
    figures = finetune(config)
    assert figures["val_loss"] < 0.7
    model = GPT.from_pretrained(tmp_path / "out")
    tokenizer = Tokenizer.from_pretrained(run_folder.best_or_latest(tmp_path / "out"))
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    said = []
    for letter in "abc":
        ids = tokenizer.chat(turns(f"say {letter} 3"))
        start = len(ids)
        while len(ids) < start + 8 and tokenizer.eos_id not in ids[start:]:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        said.append(text_of(tokenizer, ids[start:]))
    assert said == ["aa<eos>", "bb<eos>", "cc<eos>"]


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_resumed_run_ends_bit_identical(folder, tmp_path, trainable):
    config = settings(
        folder, "chat", str(tmp_path / "a"), trainable=trainable, lora_rank=2, max_tokens=96, dropout=0.1
    )
    finetune(config)
    other = replace(config, out_dir=str(tmp_path / "b"), lr_decay_iters=6)
    finetune(replace(other, max_iters=2))
    finetune(other)
    one, two = (tmp_path / name / "step-6" for name in "ab")
    for path in one.glob("*.safetensors"):
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"columns": ("text=a",)}, "conversations have no columns"),
        ({"max_tokens": 8}, "No reply is left in the first 8 tokens"),
        ({"labels": ("a", "b")}, "the task chat has no labels"),
        ({"data": ("none.jsonl",)}, "none.jsonl' does not exist"),
        ({"data": ("none.json",)}, "'none.json' is no file; expected .jsonl"),
        ({"lm_weight": 0.5}, "the task chat has no other loss"),
    ],
)
def test_bad_settings_are_refused(folder, tmp_path, keys, said):
    with pytest.raises(InputError, match=said):
        finetune(replace(settings(folder, "chat", str(tmp_path / "out")), **keys))
