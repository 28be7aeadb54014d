"""Conversations: which messages fit the prompt, and the chat command on a terminal (a pty) and in a pipe."""

import io
import json
import os
import select
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders

from gpt_core.common.errors import InputError
from gpt_core.generation import conversation
from gpt_core.generation.chat import SAMPLING, chat
from gpt_core.generation.conversation import Conversation
from gpt_core.generation.engine import Engine
from gpt_core.generation.sampling import SamplingParams
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests import commands
from tests.tiny_models import save_model

ROOT = Path(__file__).parents[3]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
ENDLESS = GPTConfig(
    vocab_size=320, block_size=32768, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, head_dim=8, n_inner=16
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a chat template and no EOS token, so that no answer ends by itself."""
    folder = save_model(tmp_path_factory.mktemp("models") / "talker", "qwen3")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    tokenizer = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.decoder = decoders.ByteLevel()  # so that the output contains control characters, too
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def endless(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer; a random model with a context so long that no answer ends during a test."""
    other = tmp_path_factory.mktemp("models") / "endless"
    torch.manual_seed(0)
    GPT(ENDLESS).save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    return other


@pytest.fixture
def say(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command on lines of input; returns stdout, stderr and the exit status."""

    def run(lines: str, **options: Any) -> tuple[str, str, int]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = 0
        try:
            given = {"model": str(folder), "device": "cpu", "dtype": "float32", "seed": 1} | options
            sampling = {name: given.pop(name) for name in list(given) if name in vars(SAMPLING)}
            chat(sampling=replace(SAMPLING, **sampling), **given)
        except SystemExit as end:
            code = int(str(end.code))
        return *capsys.readouterr(), code

    return run


def by_hand(folder: Path, messages: list[dict[str, str]], seed: int, n: int) -> str:
    tokenizer = Tokenizer.from_pretrained(folder)
    engine = Engine(GPT.from_pretrained(folder), tokenizer)
    params = SamplingParams(n, temperature=0.7, top_p=0.9, seed=seed)
    return "".join(engine.stream(tokenizer.chat(messages), params))


def test_an_answer_continues_the_whole_conversation(say: Any, folder: Path) -> None:
    out, err, code = say("知之\n\n  \nand?\n", system="Be brief.", max_new_tokens=9)
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "知之"}]
    said.append({"role": "assistant", "content": by_hand(folder, said, seed=1, n=9)})
    said.append({"role": "user", "content": "and?"})
    said.append({"role": "assistant", "content": by_hand(folder, said, seed=2, n=9)})
    assert out == f"{said[2]['content']}\n{said[4]['content']}\n"
    assert err.count("cut after 9 tokens") == 2
    assert code == 0


def test_lines_and_blocks_and_commands(say: Any, folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "知 talk.json"
    lines = f'first\n/reset\n"""a\n  b\\\n/reset\n"""\n/save {saved}\n"""one line"""\n/exit\nnot read\n'
    out, err, code = say(lines, max_new_tokens=3)
    assert code == 0
    assert "new conversation" in err
    assert f"[saved 2 messages to {saved}]" in err
    content = json.loads(saved.read_text())
    assert content["messages"][0]["content"] == "a\n  b\\\n/reset"
    assert content["messages"][1]["finish_reason"] == "length"
    assert content["messages"][1]["content"] in out
    assert saved.read_text().count("\n") == 1  # one line, so that the file is valid JSONL, too

    lines = (
        f'"""/exit is how one leaves vim"""\n"""\n/etc/hosts\nis what?\n"""\n/save {tmp_path}/block.json\n'
    )
    _, err, code = say(lines, max_new_tokens=3)
    assert (code, "There is no command" in err) == (0, False)
    asked = json.loads((tmp_path / "block.json").read_text())["messages"][::2]
    assert [m["content"] for m in asked] == ["/exit is how one leaves vim", "/etc/hosts\nis what?"]

    (tmp_path / "other.txt").write_text("mine")
    _, err, code = say(f"more\n/save {tmp_path / 'other.txt'}\n", max_new_tokens=3)
    assert "other.txt is not valid JSON" in err
    assert code == 1
    assert (tmp_path / "other.txt").read_text() == "mine"
    _, err, _ = say(f"more\n/save {saved}\n", load=str(saved), max_new_tokens=3)
    assert f"[saved 4 messages to {saved}]" in err
    assert json.loads(saved.read_text())["messages"][:2] == content["messages"]
    model, messages = conversation.load(saved)
    assert messages[2]["content"] == "more"
    assert "was with" not in err
    content["model"] = "another"
    saved.write_text(json.dumps(content))
    _, err, _ = say("", load=str(saved))
    assert err == f"[the conversation in {saved} was with another; {model} continues it]\n"
    del content["model"]
    saved.write_text(json.dumps(content))
    assert say("", load=str(saved))[1] == ""


def test_a_rejected_line_does_not_end_the_conversation(say: Any, tmp_path: Path) -> None:
    lines = f"{'know ' * 200}\n{'x' * 100000}\n/what\n/save\n/save {tmp_path}/absent/x.json\n"
    lines += "/save ~nosuchuser/x.json\n/save a\0b\n\udc80\nfine\n"
    out, err, code = say(lines, max_new_tokens=4, context=64)
    assert code == 1
    assert out.count("\n") == 1
    notes = err.splitlines()
    assert len(notes) == 9
    for note, expected in zip(
        notes,
        (
            "The message takes 2",
            "The message has 100000 characters; the context holds 60 tokens",
            "There is no command /what",
            "/save needs the name of a file",
            "No such file or directory",
            "~nosuchuser/x.json",
            "NUL byte",
            "lone surrogate",
            "cut after 4 tokens",
        ),
        strict=True,
    ):
        assert expected in note
        assert note.startswith("[")
        assert "Traceback" not in note


def test_the_oldest_turns_are_dropped_from_a_full_context(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    system = {"role": "system", "content": "知"}
    talk = Conversation(tokenizer, context=100, max_new_tokens=20, messages=[system])
    turns: list[dict[str, str]] = []
    forgotten = []
    for i in range(12):
        question = {"role": "user", "content": f"know {i} " * (1 + 2 * (i == 9))}
        ids = talk.prompt(question["content"])
        assert len(ids) <= 80
        assert ids == tokenizer.chat([system, *turns[2 * talk.n_forgotten :], question])
        if talk.n_forgotten:  # no more turns were dropped than necessary
            one_more = turns[2 * talk.n_forgotten - 2 :]
            grew = not forgotten or talk.n_forgotten > forgotten[-1]
            assert len(tokenizer.chat([system, *one_more, question])) > 80 or not grew
        forgotten.append(talk.n_forgotten)
        talk.add(question["content"], "yes", "stop")
        turns += [question, {"role": "assistant", "content": "yes"}]
    assert forgotten == sorted(forgotten)
    assert 0 < forgotten[-1] < 11
    assert talk.messages == [system, *turns]
    talk.reset()
    assert talk.messages == [system]
    with pytest.raises(
        InputError, match=r"The message takes \d+ tokens.* holds 100, of which 20 are reserved"
    ):
        talk.prompt("know " * 60)
    assert talk.n_forgotten == 0


def test_a_full_context_is_reported_on_stderr(say: Any) -> None:
    out, err, code = say("know " * 5 + "\nto know\nwhat\n" * 5, max_new_tokens=20, context=90)
    assert code == 0
    assert out.count("\n") >= 11
    assert "the context of 90 tokens is full: the oldest" in err


def test_a_loaded_conversation_that_does_not_fit_is_reported(say: Any, tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "know " * 5}, {"role": "assistant", "content": "to know"}]
    conversation.save(tmp_path / "talk.json", "any", turn * 8)
    _, err, code = say("what\n", load=str(tmp_path / "talk.json"), max_new_tokens=20, context=90)
    assert code == 0
    assert err.count("the context of 90 tokens is full: the oldest") == 1


def test_a_base_model_without_a_chat_template_is_rejected(tmp_path: Path, say: Any) -> None:
    base = save_model(tmp_path / "base", "gpt2")
    with pytest.raises(InputError, match=r"base has no chat template.*use scripts/sample\.py"):
        say("", model=str(base))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("[]", "holds a list; expected an object"),
        ("[" * 100_000, "is not valid JSON: maximum recursion depth"),
        ('{"messages": 3}', "is not a saved conversation .TypeError"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "the roles are user"),
        ('{"messages": [{"role": "user"}, {"role": "assistant", "content": ""}]}', "KeyError: 'content'"),
        (
            '{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": ""}]}',
            "not a string",
        ),
    ],
)
def test_an_invalid_conversation_file_is_rejected(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=f"x.json .*{message}"):
        conversation.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load": "absent.json"}, r"^There is no file absent\.json"),
        ({"system": "FILE:absent.txt"}, r"^There is no file absent\.txt"),
        ({"system": "x", "load": "y"}, "^A loaded conversation"),
        ({"system": "know " * 150, "context": 64}, "with the system prompt"),
        ({"temperature": -1.0}, "^temperature is -1"),
        ({"context": 0}, "^context is 0"),
        ({"context": 100_000}, "^context is 100000"),
    ],
)
def test_bad_input_is_one_clear_sentence(say: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        say("", **options)


def command(model: Path, *options: str) -> list[str]:
    start = ["scripts/chat.py", "--model", str(model), "--device", "cpu"]
    return [*start, "--dtype", "float32", "--seed", "1", *options]


def test_a_pipe_gets_answers_and_nothing_else(folder: Path) -> None:
    words = ["-W", "error", *command(folder, "--max_new_tokens", "5")]
    done = commands.run(words, input=b"a\n/help\ncaf\xe9\nb", capture_output=True, cwd=ROOT)
    assert done.returncode == 1  # because one line is not UTF-8
    assert b"lone surrogate" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.count(b"\n") >= 2
    assert b"\x1b" not in done.stdout
    assert b"> " not in done.stdout
    assert b"/reset" in done.stderr
    assert b"/reset" not in done.stdout


class Terminal:
    """The chat command on a new terminal."""

    def __init__(self, *args: str) -> None:
        self.fd, its_end = os.openpty()
        launch = ["-W", "error", Path(__file__).with_name("terminal_driver.py"), *args]
        self.process = commands.Popen(
            launch, stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True, cwd=ROOT
        )
        os.close(its_end)
        self.seen = b""

    def until(self, text: str, seconds: float = 120) -> str:
        """Read until `text` appears; return the output before it."""
        end = time.monotonic() + seconds
        while text.encode() not in self.seen:
            left = end - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.fd], [], [], left)[0]:
                self.seen += os.read(self.fd, 65536)
        shown, self.seen = self.seen.split(text.encode(), 1)
        return shown.decode(errors="replace")

    def so_far(self, seconds: float) -> str:
        """The output until the process is silent for `seconds`, or ends."""
        shown = self.seen
        while select.select([self.fd], [], [], seconds)[0]:
            try:
                shown += os.read(self.fd, 65536)
            except OSError:  # the process ended, see `end`
                break
        self.seen = b""
        return shown.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """Read to the end; the process's exit code, negative for a signal."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:  # how Linux reports that the other end is closed
                break
        os.close(self.fd)
        return self.process.wait(60)


def test_chat_on_a_terminal(endless: Path, tmp_path: Path) -> None:
    terminal = Terminal(*command(endless, "--max_new_tokens", "10000"))
    terminal.until("Ctrl-D leaves]")
    terminal.until("> ")
    for question in ("first", "second"):
        terminal.type(f"{question}\n")
        terminal.until(f"{question}\r\n")
        while len(terminal.seen) < 200:  # the answer streams
            terminal.seen += os.read(terminal.fd, 65536)
        terminal.type("\x03")
        answer = terminal.until("[stopped; the partial answer stays in the conversation]")
        assert "Traceback" not in answer
        assert "\ufffd" in answer  # control characters of the model are replaced on a terminal
        assert not {*map(chr, range(32))} & {*answer} - {*"\t\r\n"}
        terminal.until("> ")
    terminal.type(f"/save {tmp_path}/talk.json\n")
    terminal.until("[saved 4 messages")
    first, answer, second, _ = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert (first["content"], second["content"]) == ("first", "second")
    assert answer["finish_reason"] == "cancelled"
    assert answer["content"]
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_ctrl_c_without_an_answer_quits(folder: Path) -> None:
    terminal = Terminal(*command(folder, "--max_new_tokens", "3"))
    terminal.until("> ")
    terminal.type("hello\n")
    terminal.until("cut after 3 tokens")
    terminal.until("> ")
    shown = ""
    for _ in range(10):  # readline may miss a signal that arrives just as it starts to wait
        terminal.type("\x03")
        shown += terminal.so_far(5)
        if "stopped" in shown:
            break
    assert "Traceback" not in shown
    assert terminal.end() == -signal.SIGINT
