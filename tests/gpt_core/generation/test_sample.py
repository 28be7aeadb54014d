"""The sample command: several samples, files, pipes, and texts longer than the context."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt_core.common.cli import run_command
from gpt_core.common.errors import InputError
from gpt_core.evaluation.inspect_model import inspect_model
from gpt_core.generation.engine import Engine
from gpt_core.generation.prompts import read_prompt
from gpt_core.generation.sample import SAMPLING, sample
from gpt_core.generation.sampling import SamplingParams
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests import commands
from tests.tiny_models import save_model

ROOT = Path(__file__).parents[3]
CUT = "---------------\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "qwen3", "qwen3")


@pytest.fixture
def say(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(**options: Any) -> str:
        given = {"model": str(folder), "prompt": "To know", "device": "cpu", "dtype": "float32"} | options
        sampling = {
            name: given.pop(name) for name in options if name in vars(SAMPLING) and name != "overflow"
        }
        sample(sampling=replace(SAMPLING, **sampling), **given)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", ["gpt2", "./gpt2"])
def test_a_folder_called_gpt2_is_sampled_with_its_own_tokenizer(
    name: str, folder: Path, say: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert say(model=name, seed=1, max_new_tokens=8) == say(seed=1, max_new_tokens=8)


def test_samples_drawn_together_equal_those_drawn_one_by_one(say: Any) -> None:
    together = say(num_samples=11, seed=5, max_new_tokens=12).removesuffix("\n").split("\n" + CUT)
    alone = [say(seed=5 + i, max_new_tokens=12).removesuffix("\n") for i in range(11)]
    assert together == alone
    assert len(set(alone)) == 11
    assert all(text.startswith("To know") for text in alone)


def test_every_sampling_option_reaches_the_engine(say: Any, folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    engine = Engine(GPT.from_pretrained(folder), tokenizer)
    params = {"temperature": 0.2, "top_k": 90, "top_p": 0.9, "min_p": 0.2, "repetition_penalty": 1.7}
    stop = ("e", "o")
    by_hand = engine.submit("To know", SamplingParams(60, stop=stop, seed=3, **params))
    engine.run()
    text = say(max_new_tokens=60, stop=stop, seed=3, **params)
    assert text == f"To know{by_hand.text}\n"
    for name, off in {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}.items():
        assert say(max_new_tokens=60, stop=stop, seed=3, **(params | {name: off})) != text, name


def test_a_text_longer_than_the_context_slides_or_is_rejected(say: Any) -> None:
    text = say(max_new_tokens=1300, temperature=1.0, top_k=0, seed=1, num_samples=2)
    assert len(text.split(CUT)) == 2
    with pytest.raises(InputError, match=r"512"):
        say(max_new_tokens=1300, overflow="error")
    with pytest.raises(InputError, match=r"^The prompt has .* tokens.* 512"):
        say(prompt="know " * 600)


def test_special_tokens_are_parsed_only_on_request(folder: Path, say: Any) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    greedy = {"temperature": 0.0, "max_new_tokens": 8}
    engine = Engine(GPT.from_pretrained(folder), tokenizer)
    for special in (False, True):
        ids = [tokenizer.eos_id] if special else tokenizer.encode("<eos>")
        expected = "".join(engine.stream(ids, SamplingParams(**greedy)))
        assert say(prompt="<eos>", special_tokens=special, **greedy) == f"<eos>{expected}\n"
    assert Tokenizer.from_pretrained("gpt2").encode_trusted("a<|endoftext|>") == [64, 50256]
    with pytest.raises(InputError, match="The character 'z'"):
        Tokenizer.from_characters("abc").encode_trusted("abz")


def test_a_prompt_file_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("\ufeffOnce\n", encoding="utf-8")
    assert read_prompt(f"FILE:{tmp_path / 'prompt.txt'}") == "Once\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "^There is no file .*prompt.txt to read"),
        (b"", "prompt.txt is empty"),
        (b"\xef\xbb\xbf", "prompt.txt is empty"),
        (b"caf\xe9", "prompt.txt is not UTF-8 at byte 3"),
        (b"x" * 50_000_000, "^The prompt has 50000000 characters; the context holds 512 tokens"),
        (b"\0" * (64 * 2**20 + 1), "prompt.txt holds more than 64 MiB"),
    ],
)
def test_an_invalid_prompt_file_is_rejected(
    say: Any, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "prompt.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        say(prompt=f"FILE:{tmp_path / 'prompt.txt'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "^The prompt is empty"),
        ({"prompt": "\udc80"}, "lone surrogate"),
        ({"num_samples": 0}, "^num_samples is 0"),
        ({"temperature": -1.0}, "^temperature is -1"),
        ({"stop": ("",)}, "^stop is"),
        ({"seed": 2**63 - 1, "num_samples": 2}, f"^seed is {2**63}"),
        ({"dtype": "float16"}, "^dtype is float16"),
    ],
)
def test_bad_input_is_one_clear_sentence(
    say: Any, capsys: pytest.CaptureFixture[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        say(**options)
    assert capsys.readouterr().out == ""


def test_a_failing_command_prints_one_line(tmp_path: Path) -> None:
    model = GPT.from_pretrained(save_model(tmp_path / "nan", "qwen3"))
    model.save_pretrained(tmp_path / "nan", {k: v * float("nan") for k, v in model.state_dict().items()})
    for name, message in (
        (
            str(tmp_path / "nan"),
            "the best logit is nan: the model's weights contain NaN or its activations overflow. Try",
        ),
        (
            "no\nsuch\x1b[2Jmodel",
            "There is no folder or cached model no such\ufffd[2Jmodel; give a model folder",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            run_command(sample, args=["--model", name, "--prompt", "To", "--dtype", "float32"])
        assert message in str(ended.value)
        assert "\n" not in str(ended.value)
        with pytest.raises(SystemExit, match=re.escape(message)):
            run_command(inspect_model, args=["--model", name, "--prompt", "To"])


def test_samples_stream_into_a_pipe_that_closes(folder: Path) -> None:
    """A huge num_samples must neither fill the memory nor delay the first bytes."""
    command = ["-W", "error", "scripts/sample.py", "--model", str(folder), "--device", "cpu"]
    command += ["--max_new_tokens", "500", "--num_samples", str(10**12), "--prompt", "\x1b[31m know"]
    with commands.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.read(100).startswith(b"\x1b[31m know")  # escape codes are unchanged in a pipe
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, b"")
