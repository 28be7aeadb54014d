"""Conversations with a model, on the terminal or through a pipe."""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.common.signals import StopSignal, act
from gpt_core.common.terminal import until_nobody_reads, write_text
from gpt_core.generation import conversation
from gpt_core.generation.conversation import Conversation, Message
from gpt_core.generation.engine import Engine
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.generation.prompts import read_prompt
from gpt_core.generation.sample import follow
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hardware.device import DeviceName
from gpt_core.hub.locate import DEFAULT_MODEL, resolve
from gpt_core.tokenizer.tokenizer import Tokenizer

BLOCK = '"""'  # begins and ends a message of several lines
HELP = f"""\
A line is a message; one of several lines begins and ends with {BLOCK}
/reset      begin anew, with the same system prompt
/save FILE  write the conversation, as JSON
/help       this
/exit       leave; so does Ctrl-D
Ctrl-C stops an answer; while there is none it leaves."""


def chat(
    *,
    model: str = DEFAULT_MODEL,
    system: str | None = None,
    load: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 0.9,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    context: int | None = None,
    device: DeviceName = "auto",
    dtype: InferenceDtype = "auto",
) -> None:
    """Talk with a model, each line a message; /help lists the commands. Answers alone go to stdout.

    Args:
        model: a model folder, a run's out_dir (its best checkpoint, else its latest), or a known model.
        system: what the model is told before the conversation, or FILE:path to read it from a file; without it the
            model's own chat template may have something to say.
        load: go on with the conversation that /save wrote to this file.
        max_new_tokens: the longest answer, in tokens; at most half of the context.
        temperature: 0 takes the best token always; above 1 is more varied, below 1 less.
        top_k: draw from the k best tokens only; 0 is off.
        top_p: draw from the fewest best tokens that hold this share of the probability; 1 is off.
        min_p: drop the tokens that are less probable than min_p times the best one; 0 is off.
        repetition_penalty: above 1, tokens that the conversation holds become less likely; 1 is off.
        seed: makes the answers reproducible; None draws others each time.
        context: tokens of the conversation that the model reads, answer included; all that it can by default. The
            oldest turns that do not fit are not read any more, which is said.
        device: auto is cuda, else mps, else cpu.
        dtype: of the weights; auto is the faster of bfloat16 and float32 on this machine. int8 is smaller and changes
            the model slightly.
    """
    params = SamplingParams(
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    if system is not None and load is not None:
        raise InputError("A loaded conversation has its own beginning; give either --system or --load.")
    messages: list[Message] = [] if load is None else conversation.load(Path(load))
    if system is not None:
        messages = [{"role": "system", "content": read_prompt(system)}]
    folder = resolve(model)  # once: a run may write a better checkpoint meanwhile
    tokenizer = Tokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise InputError(
            f"{model} has no chat template: it completes text but was not taught to chat; "
            "use scripts/sample.py instead."
        )
    engine = Engine(load_for_inference(folder, dtype, device), tokenizer, max_running=1, context=context)
    n_answer = min(max_new_tokens, max(1, engine.context // 2))
    talk = Conversation(tokenizer, engine.context, n_answer, messages)
    talk.prompt("")  # refuses now what no message could change, such as a template without a system prompt
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no UTF-8 spoil their own line alone
    if sys.stdin.isatty():
        _note(f"{model}; /help lists the commands, Ctrl-D leaves")
    if talk.n_forgotten:
        _note_forgotten(engine, talk)  # of the loaded conversation
    with until_nobody_reads():
        if (
            not _talk(model, engine, talk, replace(params, max_new_tokens=n_answer))
            and not sys.stdin.isatty()
        ):
            sys.exit(1)


def _talk(model: str, engine: Engine, talk: Conversation, params: SamplingParams) -> bool:
    """Answer messages until there are none; return whether none was refused."""
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
    """Stream the answer to `message` and keep both; Ctrl-C ends it early."""
    n_forgotten = talk.n_forgotten
    with StopSignal() as stop:
        ids = talk.prompt(message)
        if talk.n_forgotten > n_forgotten:
            _note_forgotten(engine, talk)
        request = engine.submit(ids, params)
        follow(engine, request, lambda: stop.asked > 0)
        write_text("\n")
    if stop.asked == signal.SIGTERM:
        act(stop.asked)
    if request.finish_reason == "cancelled" and not request.text:
        _note("stopped before the first word; the message is not kept")
        return
    talk.add(message, request.text, request.finish_reason)
    if request.finish_reason == "cancelled":
        _note("stopped; what there is of the answer is kept")
    elif request.finish_reason == "length":
        _note(f"cut after {len(request.token_ids)} tokens; --max_new_tokens allows up to half of the context")


def _command(line: str, model: str, talk: Conversation) -> None:
    name, _, argument = line.partition(" ")
    path = Path(os.path.expanduser(argument.strip()))  # which leaves ~nobody as it is
    if name == "/help":
        print(HELP, file=sys.stderr)
    elif name == "/reset":
        talk.reset()
        _note("the conversation begins anew")
    elif name == "/save" and "\0" in argument:
        raise InputError(f"/save {argument!r} has a NUL byte, which no file's name may hold.")
    elif name == "/save" and argument.strip():
        if path.exists():
            conversation.load(path)  # nothing but a conversation is written over
        conversation.save(path, model, talk.messages)
        _note(f"saved {len(talk.messages)} messages to {path}")
    elif name == "/save":
        raise InputError("/save needs the name of a file to write.")
    else:
        raise InputError(
            f"There is no command {name}; /help lists them. A space before it makes it a message."
        )


def _read_message() -> tuple[str, bool] | None:
    """The next message, and whether it may be a command: a line may, a block not; None at the end of the input."""
    line = _read_line("> ")
    if line is None:
        return None
    if not line.startswith(BLOCK):
        return line, True
    block = line.removeprefix(BLOCK)
    while not block.endswith(BLOCK) and (line := _read_line("… ")) is not None:
        block += "\n" + line
    return block.removesuffix(BLOCK).strip("\n"), False


def _read_line(prompt: str) -> str | None:
    """A line without its end. On a terminal it can be edited, with the earlier ones at the arrow keys."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # not every system has it
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
        f"the context of {engine.context} tokens is full: of the conversation the oldest "
        f"{2 * talk.n_forgotten} messages are not read any more"
    )


def _note(text: str) -> None:
    """Say something that is no answer."""
    print(f"[{text}]", file=sys.stderr, flush=True)
