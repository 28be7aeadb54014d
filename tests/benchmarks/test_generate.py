"""The generation benchmark: all systems do the same work; what it prints and refuses."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import generate as bench_generate
from benchmarks.decode import llama_cpp, rates, weight_bytes
from benchmarks.generate import cut_prompts
from benchmarks.quality import predictions, read_ids, same_texts
from benchmarks.quotes import read_questions
from gpt_core.common.errors import InputError
from gpt_core.data.prepare_data import prepare_data
from gpt_core.data.shards import open_split
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.tiny_models import GRAPHS, save_model

TEXT = "To know what you know, and to know what you do not: that is knowledge. 知之为知之。\n" * 20
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "qwen3")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measure in this process: importing torch in a new one takes seconds."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(bench_generate, "in_own_process", lambda function, *arguments: function(*arguments))
    yield
    torch.set_num_threads(threads)


def write_squad(path: Path, n: int) -> str:
    paragraphs = [
        {"context": f"Book {i} says what knowledge is.", "qas": [{"question": "Which book?"}]}
        for i in range(n)
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": [*paragraphs, {"context": "", "qas": []}]}]}))
    return str(path)


def test_all_systems_write_the_same_texts_and_are_compared(
    model: Path, text: str, tmp_path: Path, in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_generate.bench_generate(
        model=str(model), data=text, dtypes=("float32", "int8"), prompt_tokens=12, new_tokens=6, rounds=2,
        eval_tokens=100, squad=write_squad(tmp_path / "q.json", 2), draft=4, threads=1, device="cpu",
    )  # fmt: skip
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert "llama.cpp is left out" in printed.err
    rows = {(row["system"], row["dtype"]): row for row in report["results"]}
    peer, ours, int8 = rows["transformers", "float32"], rows["ours", "float32"], rows["ours", "int8"]
    for row in (peer, ours, int8):
        assert row["prefill_per_s"] > 0
        assert row["decode_per_s"] > 0
        assert row["cpu_ms_per_token"] > 0
        assert len(row["rounds"]) == 2
    assert (peer["same_texts"], peer["same_for"], ours["same_texts"], ours["same_next"]) == (1, 6, 1, 1)
    assert int8["mb_per_token"] < 0.5 * ours["mb_per_token"]
    assert int8["perplexity"] == pytest.approx(ours["perplexity"], rel=0.05)
    ratios = report["ratios"]
    for name, expected in (
        (
            "ours float32/transformers float32 tokens/s",
            ours["decode_per_s"] / peer["decode_per_s"],
        ),
        (
            "ours int8, with/without a cache tokens/s",
            int8["decode_per_s"] / int8["uncached_per_s"],
        ),
        ("ours float32, 8 requests/1 tokens/s", ours["concurrent_per_s"] / ours["decode_per_s"]),
        ("same answers with and without drafts, answers", 1),
    ):
        assert ratios[name] == pytest.approx(expected, rel=1e-3)
    plain, guessing = rows["draft 0, answers", "float32"], rows["draft 4, answers", "float32"]
    assert plain["answers"] == guessing["answers"] == guessing["same_answers"] == 2
    assert guessing["tokens_per_step"] >= plain["tokens_per_step"] >= 1


def test_prompts_differ() -> None:
    ids = list(range(500))
    rounds = cut_prompts(ids, 3, 200, "a.txt")
    prompts = [tuple(prompt) for prompts in rounds for prompt in prompts]
    assert len(set(prompts)) == len(prompts) == 33
    assert {len(prompt) for prompt in prompts} == {200}
    with pytest.raises(InputError, match="has 300 tokens; expected at least 332 for 3 rounds"):
        cut_prompts(ids[:300], 3, 300, "a.txt")


def test_predictions_are_those_of_the_model(text: str, model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(model)
    ids = read_ids(text, "m", tokenizer, 601)  # longer than one window of 512 tokens
    assert ids == tokenizer.encode(TEXT)[:601]
    found = predictions(str(model), "float32", ids, torch.get_num_threads(), "cpu")
    gpt = GPT.from_pretrained(model).eval()
    with torch.inference_mode():
        parts = [gpt(torch.tensor([ids[a:b]])).logits[0] for a, b in ((0, 512), (512, 600))]
    logits = torch.cat(parts)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, torch.tensor(ids[1:]))), abs=1e-5)
    assert found["best"].tolist() == logits.argmax(-1).tolist()

    prepare_data(input=[text], tokenizer=str(model), out=str(tmp_path / "shards"))
    theirs = read_ids(str(tmp_path / "shards"), "m", tokenizer, 40)
    assert theirs == open_split(tmp_path / "shards", "val")[0].tokens[:40].tolist()
    with pytest.raises(InputError, match="gpt2"):
        read_ids(str(tmp_path / "shards"), "gpt2", Tokenizer.from_pretrained("gpt2"), 40)


def test_only_weights_that_a_step_reads_are_counted() -> None:
    config = replace(GRAPHS["qwen3"], tie_embeddings=True)
    tied, apart = GPT(config), GPT(replace(config, tie_embeddings=False))
    n_parameters = sum(p.numel() for p in tied.parameters())
    assert weight_bytes(tied) == weight_bytes(apart) == 4 * n_parameters


def test_rates_use_wall_and_cpu_time() -> None:
    figures = rates((10.0, 1.0), (12.0, 5.0), (13.0, 6.5), n_prompt=100, n_new=50)
    assert figures == {
        "prefill_per_s": 50.0, "prefill_cpu_ms": 40.0, "decode_per_s": 50.0, "cpu_ms_per_token": 30.0
    }  # fmt: skip


def test_texts_are_compared_up_to_their_first_difference() -> None:
    found = same_texts([[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 5, 3]])
    assert found == {"same_texts": 0.5, "same_for": 2.0}


def test_bad_arguments_are_named(model: Path, text: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"model": str(model), "data": text}
    for wrong, message in (
        ({"rounds": 0}, "rounds is 0; expected at least 1"),
        ({"draft": 0}, "draft is 0; expected at least 1"),
        ({"dtypes": ()}, "dtypes is empty"),
        ({"eval_tokens": -1}, "eval_tokens is -1"),
        ({"prompt_tokens": 500}, r"prompt_tokens \+ new_tokens is 628; expected at most 503 for"),
        ({"squad": str(tmp_path / "none.json")}, r"none\.json cannot be read: No such file"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            bench_generate.bench_generate(**keys, **wrong)
    for content in ("{", "[]", '{"data": [{"paragraphs": [{"context": 1}]}]}'):
        (tmp_path / "q.json").write_text(content)
        with pytest.raises(InputError, match="is not SQuAD's JSON"):
            read_questions(str(tmp_path / "q.json"), 3)
    with pytest.raises(InputError, match="has no questions"):
        read_questions(write_squad(tmp_path / "q.json", 0), 3)
    assert len(read_questions(write_squad(tmp_path / "q.json", 5), 3)) == 3


def test_a_python_without_llama_cpp_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not run m\.gguf with .*: ModuleNotFoundError: .*llama_cpp"):
        llama_cpp(sys.executable, str(tmp_path / "m.gguf"), [[1], [2]], 3, 1)
    with pytest.raises(InputError, match="nowhere does not start: No such file or directory"):
        llama_cpp(str(tmp_path / "nowhere"), "m.gguf", [[1], [2]], 3, 1)


def test_figures_are_finite_without_the_optional_measurements(
    model: Path, text: str, in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_generate.bench_generate(
        model=str(model), data=text, dtypes=("bfloat16",), prompt_tokens=4, new_tokens=2, rounds=1, eval_tokens=0,
        threads=1, device="cpu",
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["system"] for row in report["results"]] == ["transformers", "ours"]
    assert all(math.isfinite(ratio) for ratio in report["ratios"].values())
