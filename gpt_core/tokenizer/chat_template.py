"""Chat templates: a model's own way of writing a conversation, as a Jinja source that may be a stranger's."""

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
from gpt_core.tokenizer.template_sandbox import CPU_SECONDS

_PROGRAM = Path(__file__).with_name("template_sandbox.py")


class _Renderer:
    """A process that renders, begun when it is first needed and again when a template has ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._inherited: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """What the process answers; if the template ended it, why."""
        with self._lock:
            if self._process is None:
                command = [sys.executable, "-P", str(_PROGRAM)]
                pipe, null = subprocess.PIPE, subprocess.DEVNULL
                self._process = subprocess.Popen(  # in a group of its own, where Ctrl-C does not reach it
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
            finally:  # nor may what an interruption left unread answer the next request
                code = 0 if reply else self._end()
        if reply:
            return json.loads(reply)
        if code == -signal.SIGPROF:
            return {"refused": f"it takes more than {CPU_SECONDS:g} s of processor time"}
        return {"refused": f"it ended the process that renders (code {code})"}

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        with suppress(BrokenPipeError), process:  # closes the pipes, also over what was never read, and waits
            pass
        return process.returncode

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._end()

    def forget(self) -> None:
        """After a fork: the process is the parent's, and the child begins its own."""
        self._lock = threading.Lock()
        self._inherited, self._process = self._process, None  # kept, since to drop it would be to wait for it


_renderer = _Renderer()
atexit.register(_renderer.stop)
if hasattr(os, "register_at_fork"):  # which Windows lacks, as it lacks fork
    os.register_at_fork(after_in_child=_renderer.forget)


def render(template: str, messages: list[dict[str, str]], special_tokens: dict[str, str]) -> str:
    """The text of a conversation that is ready for the assistant's turn.

    The template sees what transformers' `apply_chat_template` gives it. It runs in Jinja's sandbox, in a process of
    its own whose processor time and memory are limited.

    Args:
        template: Jinja source.
        messages: `{"role", "content"}`, oldest first.
        special_tokens: `bos_token`, `eos_token`, `pad_token`, those that there are.

    Raises:
        InputError: if the template fails, refuses the messages, tries to leave its sandbox or spends too much.
    """
    values: dict[str, Any] = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    reply = _renderer.ask({"template": template, "values": values | special_tokens})
    if "refused" in reply:
        raise InputError(
            f"The model's chat template does not take these messages: {reply['refused'].rstrip('.')}."
        )
    return reply["text"]
