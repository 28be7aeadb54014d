"""The process in which chat templates run. chat_template.py starts it as a script, so it imports nothing of ours.

A template comes from a stranger. Jinja's sandbox keeps it from Python; this process keeps it from our time and memory,
which the sandbox does not: `'a' * 10**10`, nested loops, strings that square themselves. One that spends too much here
ends with the process, whatever it was doing.

One JSON object a line on stdin, `{"template", "values"}`; for each one on stdout, `{"text"}` or `{"refused"}`.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

CPU_SECONDS = 2.0  # of one rendering; a usual one takes a thousandth of that
MEMORY = 2**30  # bytes of address space
LONGEST = 2**24  # characters of a rendered conversation


class Generation(jinja2.ext.Extension):
    """The tag that some templates put around what the assistant says, for those who train on it: here only a scope."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Take everything up to `{% endgeneration %}` as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, in which even to look at what is out of bounds is an error, not an empty value."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Refuse an attribute that leads to Python or changes the messages."""
        raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__} is not allowed")


class Namespace(jinja2.utils.Namespace):
    """Jinja's, without names that begin with an underscore, through which a template could reach Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Take `{% set namespace.name = value %}`."""
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore: {name}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    made = Namespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes that jinja2's own filter makes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    """The template in the environment that transformers gives to chat templates."""
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda pattern: datetime.now().strftime(pattern),
        "namespace": _namespace,
    }
    return environment.from_string(source)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Render `request["template"]` with `request["values"]`."""
    pieces, length = [], 0
    try:
        for piece in compiled(request["template"]).generate(**request["values"]):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST:
                return {"refused": f"it makes more than {LONGEST} characters of them"}
        return {"text": "".join(pieces)}
    except RecursionError:
        return {"refused": "it calls itself without an end"}
    except MemoryError:
        pieces.clear()
        return {"refused": f"it needs more than {MEMORY >> 30} GiB of memory for them"}
    except Exception as error:  # a template can raise whatever its expressions lead to
        return {"refused": " ".join(str(error).split())[:300] or type(error).__name__}


def main() -> None:
    """Answer until stdin ends."""
    with suppress(ValueError, OSError):  # not every system can hold a process to this
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # then SIGPROF ends the process
        reply = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
