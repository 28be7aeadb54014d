"""The chat command: a conversation with a model, on a terminal or through a pipe."""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path

import tyro

from gpt_core.common.errors import InputError
from gpt_core.common.signals import StopSignal, raise_for_signal
from gpt_core.common.terminal import ignore_broken_pipe, write_text
from gpt_core.generation import conversation
from gpt_core.generation.conversation import Conversation, Message
from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.generation.prompts import read_prompt
from gpt_core.generation.sample import follow
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import DEFAULT_GENERATOR, resolve
from gpt_core.tokenizer.tokenizer import Tokenizer

SAMPLING = SamplingParams(max_new_tokens=512, temperature=0.7, top_p=0.9)
MULTILINE_QUOTE = '"""'  # begins and ends a message of several lines
HELP = f"""\
A line is a message; a message of several lines begins and ends with {MULTILINE_QUOTE}
/reset      start a new conversation with the same system prompt
/save FILE  write the conversation, as JSON
/help       print this list
/exit       quit; Ctrl-D does the same
Ctrl-C stops the current answer; without one it quits."""


def chat(
    *,
    model: str = DEFAULT_GENERATOR,
    system: str | None = None,
    load: str | None = None,
    sampling: tyro.conf.OmitArgPrefixes[SamplingParams] = SAMPLING,
    context: int | None = None,
    device: DeviceName = "auto",
    dtype: InferenceDtype = "auto",
) -> None:
    """Chat with a model, one message per line; /help lists the commands. Only answers go to stdout.

    Args:
        model: a model folder, a run's out_dir (its best checkpoint, else its latest), or a known model.
        system: the system prompt, or FILE:path to read it from a file; without it, the chat template's default
            system prompt, if it has one.
        load: continue the conversation that /save wrote to this file; a note says if it was with another model.
        sampling: how to choose the tokens of an answer; an answer takes at most half of the context.
        context: context length in tokens, answer included; the model's maximum by default. The oldest turns that do
            not fit are dropped from the prompt, with a note on stderr.
        device: auto is cuda, else mps, else cpu.
        dtype: of the weights; auto is the faster of bfloat16 and float32 on this machine. int8 is smaller and changes
            the outputs slightly.
    """
    if system is not None and load is not None:
        raise InputError(
            "A loaded conversation keeps its own system prompt; give either --system or --load, not both."
        )
    earlier, messages = (None, list[Message]()) if load is None else conversation.load(Path(load))
    if system is not None:
        messages = [{"role": "system", "content": read_prompt(system)}]
    folder = resolve(model)  # only once: a training run may write a better checkpoint meanwhile
    tokenizer = Tokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise InputError(
            f"{model} has no chat template: it is a base model that only continues text; "
            "use scripts/sample.py instead."
        )
    engine = Engine(load_for_inference(folder, dtype, device), tokenizer, max_running=1, context=context)
    n_answer = min(sampling.max_new_tokens or engine.context, max(1, engine.context // 2))
    talk = Conversation(tokenizer, engine.context, n_answer, messages)
    talk.prompt("")  # raises now if the system prompt is too long or the template does not take one
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # invalid UTF-8 makes only its own line fail
    if sys.stdin.isatty():
        _note(f"{model}; /help lists the commands, Ctrl-D leaves")
    if earlier not in (None, model):
        _note(f"the conversation in {load} was with {earlier}; {model} continues it")
    if talk.n_forgotten:
        _note_forgotten(engine, talk)  # turns of the loaded conversation that do not fit
    with ignore_broken_pipe():
        if (
            not _chat_loop(model, engine, talk, replace(sampling, max_new_tokens=n_answer))
            and not sys.stdin.isatty()
        ):
            sys.exit(1)


def _chat_loop(model: str, engine: Engine, talk: Conversation, params: SamplingParams) -> bool:
    """Answer messages until the input ends; return whether all of them succeeded."""
    all_went_well = True
    n_answers = 0
    while (read := _read_message()) is not None:
        message, may_be_command = read
        try:
            if may_be_command and message.startswith("/"):
                if message.split()[0] == "/exit":
                    break
                _command(message, model, talk)
            elif message.strip():
                seed = None if params.seed is None else params.seed + n_answers
                _answer(message, engine, talk, replace(params, seed=seed))
                n_answers += 1
        except (InputError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            _note(str(error))
            all_went_well = False
    return all_went_well


def _answer(message: str, engine: Engine, talk: Conversation, params: SamplingParams) -> None:
    """Stream the answer to `message` and add both to the conversation; Ctrl-C stops it early."""
    n_forgotten = talk.n_forgotten
    with StopSignal() as stop:
        ids = talk.prompt(message)
        if talk.n_forgotten > n_forgotten:
            _note_forgotten(engine, talk)
        request = engine.submit(ids, params)
        follow(engine, request, lambda: stop.received > 0)
        write_text("\n")
    if stop.received == signal.SIGTERM:
        raise_for_signal(stop.received)
    if request.finish_reason == "cancelled" and not request.text:
        _note("stopped before the first word; the message is discarded")
        return
    talk.add(message, request.text, request.finish_reason)
    if request.finish_reason == "cancelled":
        _note("stopped; the partial answer stays in the conversation")
    elif request.finish_reason == "length":
        _note(f"cut after {len(request.token_ids)} tokens; raise --max_new_tokens, up to half of the context")


def _command(line: str, model: str, talk: Conversation) -> None:
    name, _, argument = line.partition(" ")
    path = Path(os.path.expanduser(argument.strip()))  # leaves ~name as it is if there is no such user
    if name == "/help":
        print(HELP, file=sys.stderr)
    elif name == "/reset":
        talk.reset()
        _note("new conversation")
    elif name == "/save" and "\0" in argument:
        raise InputError(f"/save {argument!r} has a NUL byte, which file names cannot contain.")
    elif name == "/save" and argument.strip():
        if path.exists():
            conversation.load(path)  # raises unless it is a conversation: never overwrite other files
        conversation.save(path, model, talk.messages)
        _note(f"saved {len(talk.messages)} messages to {path}")
    elif name == "/save":
        raise InputError("/save needs the name of a file to write, such as /save talk.json.")
    else:
        raise InputError(
            f"There is no command {name}; /help lists them. To send it as a message, put a space before it."
        )


def _read_message() -> tuple[str, bool] | None:
    """The next message and whether it may be a command (single lines only); None at the end of the input."""
    line = _read_line("> ")
    if line is None:
        return None
    if not line.startswith(MULTILINE_QUOTE):
        return line, True
    block = line.removeprefix(MULTILINE_QUOTE)
    while not block.endswith(MULTILINE_QUOTE) and (line := _read_line("… ")) is not None:
        block += "\n" + line
    return block.removesuffix(MULTILINE_QUOTE).strip("\n"), False


def _read_line(prompt: str) -> str | None:
    """A line without its newline; None at the end of the input. A terminal gets line editing and history."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # readline is missing on some systems
            import readline  # noqa: F401
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def _note_forgotten(engine: Engine, talk: Conversation) -> None:
    _note(
        f"the context of {engine.context} tokens is full: the oldest {2 * talk.n_forgotten} messages are "
        "dropped from the prompt"
    )


def _note(text: str) -> None:
    """Print a note to stderr, in brackets."""
    print(f"[{text}]", file=sys.stderr, flush=True)
