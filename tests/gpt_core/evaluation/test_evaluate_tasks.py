"""Zero-shot tasks: the same log-likelihoods as transformers, each task's reading, ranks, and what is refused."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt_core.common.errors import InputError
from gpt_core.evaluation.evaluate_tasks import evaluate_tasks, function_word_tokens
from gpt_core.evaluation.likelihood import encode_pair, likelihoods
from gpt_core.evaluation.zero_shot import read_questions
from gpt_core.hardware.device import Numerics
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.tiny_models import save_model

ROWS = {
    "hellaswag": {
        "activity_label": "Pole vault", "ctx_a": "A man [x] runs.", "ctx_b": "he", "endings": ["jumps  high.", "eats.",
        "sleeps [title] well.", "so."], "label": 2,
    },
    "piqa": {"goal": "open a jar", "sol1": "turn it", "sol2": "eat it", "label": 1},
    "blimp": {"sentence_good": "He knows.", "sentence_bad": "He know.", "uid": "agreement"},
    "lambada": {"text": "to know what you do not know"},
}  # fmt: skip
TABLE = "Question Stem\tChoices\tAnswer Key\nThe sun is\t(A) hot (B) cold (C) old (D) a star\tC\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for graph in ("gpt2", "qwen3"):
        save_model(folder / graph, graph)
        backend = RustTokenizer.from_file(str(folder / graph / "tokenizer.json"))
        backend.decoder = decoders.ByteLevel()
        backend.save(str(folder / graph / "tokenizer.json"))
    for name, row in ROWS.items():
        rows = [row]
        if name == "blimp":
            rows = [row, row | {"sentence_good": "a", "sentence_bad": "b"}, row | {"uid": "island"}]
        if name == "piqa":
            rows = [row | {"sol1": f"turn it {i}", "label": i % 2} for i in range(7)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "openbookqa.tsv").write_text(TABLE)
    return folder


def files(folder):
    return [str(folder / f"{name}.jsonl") for name in ROWS] + [str(folder / "openbookqa.tsv")]


def test_prompts(folder):
    questions = {name: read_questions(folder / f"{name}.jsonl")[1][0] for name in ROWS}
    assert questions["hellaswag"].context == "Pole vault: A man runs. He"
    assert questions["hellaswag"].continuations == (" jumps high.", " eats.", " sleeps. well.", " so.")
    assert (questions["piqa"].context, questions["piqa"].continuations[1]) == (
        "Question: open a jar\nAnswer:",
        " eat it",
    )
    assert (questions["lambada"].context, questions["lambada"].continuations[0]) == (
        "to know what you do not",
        " know",
    )
    question = read_questions(folder / "openbookqa.tsv")[1][0]
    assert (question.context, question.continuations, question.right) == (
        "The sun is",
        (" hot", " cold", " old", " a star"),
        2,
    )


@pytest.mark.parametrize("graph", ["gpt2", "qwen3"])
def test_likelihoods_are_those_of_transformers(folder, graph):
    model, tokenizer = GPT.from_pretrained(folder / graph), Tokenizer.from_pretrained(folder / graph)
    theirs = AutoModelForCausalLM.from_pretrained(folder / graph).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(folder / graph)
    texts = [
        ("to know what", " you know"),
        ("知之", "为知之"),
        ("", "a laptop"),
        ("x ", "y"),
        ("the " * 300, "end"),
    ]
    pairs = [encode_pair(tokenizer, *text) for text in texts]
    found = likelihoods(model, pairs, Numerics())
    for (before, after), one in zip(texts, found, strict=True):
        ids = their_tokenizer(before + after)["input_ids"]
        n_before = len(their_tokenizer(before.rstrip())["input_ids"])
        ids, n_before = (ids, n_before) if before else ([tokenizer.eos_id, *ids], 1)
        kept = ids[-513:]
        with torch.no_grad():
            scores = theirs(torch.tensor([kept[:-1]])).logits[0].log_softmax(-1)
        targets = torch.tensor(ids[n_before:])
        rows = scores[-len(targets) :]
        assert one.total == pytest.approx(float(rows.gather(1, targets[:, None]).sum()), abs=1e-4)
        assert one.greedy == bool((rows.argmax(-1) == targets).all())
        assert (one.n_tokens, one.n_cut) == (len(targets), len(ids) - len(kept))


def test_the_report(folder, capsys):
    evaluate_tasks(model=[str(folder / "qwen3")], data=files(folder), device="cpu")
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["results"]
    assert [row["variant"] for row in rows] == [
        "hellaswag", "piqa", "blimp", "lambada_openai", "lambada_stopwords", "openbookqa",
    ]  # fmt: skip
    assert [row["n"] for row in rows] == [1, 7, 3, 1, 1, 1]
    assert len(table) == 7
    model, tokenizer = GPT.from_pretrained(folder / "qwen3"), Tokenizer.from_pretrained(folder / "qwen3")
    good, bad = (
        likelihoods(model, [encode_pair(tokenizer, "", text)], Numerics())[0].total for text in ("a", "b")
    )
    one, two = (
        likelihoods(model, [encode_pair(tokenizer, "", text)], Numerics())[0].total
        for text in ("He knows.", "He know.")
    )
    # the mean over the paradigms: two sentences of agreement, one of island
    assert rows[2]["accuracy"] == pytest.approx((((one > two) + (good > bad)) / 2 + (one > two)) / 2)
    evaluate_tasks(model=[str(folder / "qwen3")], data=[str(folder / "piqa.jsonl")], limit=3, device="cpu")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]["n"] == 3


def test_function_words_are_not_the_most_probable_first_token_with_the_filter():
    tokenizer = Tokenizer.from_pretrained("gpt2")

    class Shape:
        config = type("Config", (), {"vocab_size": 50304})
        device = torch.device("cpu")

    banned = function_word_tokens(tokenizer, Shape())
    for text, expected in (
        (" the", True),
        (" The", True),
        (".", True),
        ("\n", True),
        (" cat", False),
        (" 3", False),
    ):
        (token,) = tokenizer.encode(text)
        assert bool(banned[token]) == expected, text


def test_two_ranks_share_the_questions(folder, capsys):
    arguments = {"model": [str(folder / "qwen3")], "data": files(folder), "device": "cpu"}
    evaluate_tasks(**arguments)
    one = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    script = folder / "ranks.py"
    script.write_text(
        "from gpt_core.evaluation.evaluate_tasks import evaluate_tasks\n"
        + f"evaluate_tasks(**{arguments!r})\n"
    )
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(script),
    ]
    done = subprocess.run(
        launcher,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["results"] == one


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", '{"a": 1}\n', "has the columns a; expected those of hellaswag"),
        ("x.jsonl", "", "has no rows"),
        (
            "x.jsonl",
            json.dumps(ROWS["piqa"] | {"label": 2}) + "\n",
            "line 1 is no row of piqa: the label is 2 of 2 choices; expected 0 to 1",
        ),
        (
            "x.jsonl",
            json.dumps(ROWS["piqa"]) + '\n{"goal": "x"}\n',
            "line 2 has no sol1, which rows of piqa have",
        ),
        ("x.jsonl", json.dumps(ROWS["piqa"] | {"label": 0.7}) + "\n", "the label is 0.7 of 2 choices"),
        ("x.jsonl", json.dumps(ROWS["piqa"] | {"label": True}) + "\n", "the label is True of 2 choices"),
        ("x.jsonl", json.dumps(ROWS["piqa"] | {"sol1": None}) + "\n", "sol1 is 'None'; expected a text"),
        (
            "x.jsonl",
            json.dumps(ROWS["hellaswag"] | {"endings": "abc"}) + "\n",
            "endings is 'abc'; expected a list",
        ),
        ("x.jsonl", json.dumps(ROWS["hellaswag"] | {"endings": ["a"], "label": 0}) + "\n", "0 of 1 choices"),
        ("x.jsonl", json.dumps(ROWS["blimp"] | {"sentence_good": 5}) + "\n", "sentence_good is '5'"),
        ("x.jsonl", '{"text": "word"}\n', "text is 'word'; expected at least two words"),
        ("x.jsonl", '{"text": " "}\n', "text is ' '; expected a text"),
        ("x.tsv", TABLE.replace("(B)", "(A)"), "Choices is '(A) hot (A) cold"),
        ("x.tsv", TABLE.replace("cold", ""), "Choices is '(A) hot (B)  (C)"),
        ("x.tsv", TABLE.replace("\tC\n", "\tE\n"), "line 2 is no row of openbookqa"),
        ("x.txt", "a", "unknown file type"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(said)):
        read_questions(tmp_path / name)
