"""Renders chat templates, the Jinja sources of models' conversation formats, which are untrusted."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.tokenizer.template_sandbox import MAX_CPU_SECONDS

_PROGRAM = Path(__file__).with_name("template_sandbox.py")


class _Renderer:
    """A rendering process, started at the first request and again after a template has crashed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._inherited: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """The reply of the process, `{"text"}` or `{"refused"}`; if the template crashed it, the reason."""
        with self._lock:
            if os.name != "posix":
                return {"refused": "only POSIX systems can limit the time and memory that a template takes"}
            if self._process is None:
                command = [sys.executable, "-P", str(_PROGRAM)]
                pipe, null = subprocess.PIPE, subprocess.DEVNULL
                self._process = subprocess.Popen(  # in a separate process group, which Ctrl-C does not signal
                    command, stdin=pipe, stdout=pipe, stderr=null, text=True, process_group=0
                )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            reply = ""
            try:
                print(json.dumps(request), file=self._process.stdin, flush=True)
                reply = self._process.stdout.readline()
            except BrokenPipeError:
                pass
            finally:  # after an interruption, too: the next request must not read this reply
                code = 0 if reply else self._end()
        if reply:
            return json.loads(reply)
        if code == -signal.SIGPROF:
            return {"refused": f"it takes more than {MAX_CPU_SECONDS:g} s of CPU time"}
        return {"refused": f"it crashed the rendering process (exit status {code})"}

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        with suppress(BrokenPipeError), process:  # closes the pipes and waits, even if a request is unread
            pass
        return process.returncode

    def stop(self) -> None:
        """Kill the process, if it runs."""
        if self._process is not None:
            self._end()

    def reset_after_fork(self) -> None:
        """In a forked child, drop the parent's process; the next request starts a new one."""
        self._lock = threading.Lock()
        self._inherited, self._process = self._process, None  # referenced, since Popen.__del__ would poll it


_renderer = _Renderer()
atexit.register(_renderer.stop)
if hasattr(os, "register_at_fork"):  # missing on Windows, which has no fork
    os.register_at_fork(after_in_child=_renderer.reset_after_fork)


def render(
    template: str, messages: list[dict[str, str]], special_tokens: dict[str, str], reply: bool = True
) -> str:
    """Render a conversation as text.

    The template gets the variables of transformers' `apply_chat_template`. It runs in Jinja's sandbox, in a separate
    process with limits on CPU time and memory.

    Args:
        template: Jinja source.
        messages: `{"role", "content"}`, oldest first.
        special_tokens: those of `bos_token`, `eos_token`, `pad_token` that the tokenizer has.
        reply: whether the text ends where the assistant's reply starts, instead of after the last message.

    Raises:
        InputError: if the template fails, rejects the messages, violates the sandbox or exceeds a limit.
    """
    values: dict[str, Any] = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": reply,
    }
    answer = _renderer.ask({"template": template, "values": values | special_tokens})
    if "refused" in answer:
        raise InputError(
            f"The model's chat template rejects these messages: {answer['refused'].rstrip('.')}."
        )
    return answer["text"]
