"""The process in which chat templates run. chat_template.py starts it as a script, so it imports nothing from zhizhi.

Templates are untrusted. Jinja's sandbox prevents access to Python, but not excessive use of time and memory:
`'a' * 10**10`, nested loops, strings that are squared repeatedly. This process has limits for both; a template that
takes too much CPU time ends the process.

Protocol: one JSON object per line on stdin, `{"template", "values"}`; for each, `{"text"}` or `{"refused"}` on stdout.
"""

import json
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

MAX_CPU_SECONDS = 2.0  # per rendering, which normally takes 2 ms
MAX_MEMORY = 2**30  # address space in bytes
MAX_CHARACTERS = 2**24  # length of a rendered conversation


class Generation(jinja2.ext.Extension):
    """The tag `{% generation %}`, which marks the assistant's text for training masks; here it is a plain scope."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Parse the body up to `{% endgeneration %}`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which reading an unsafe attribute is an error instead of an undefined value."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Raise for an attribute that gives access to Python or changes the messages."""
        raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__} is not allowed")


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that start with an underscore, which could give access to Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Execute `{% set namespace.name = value %}`."""
        if str(name).startswith("_"):
            raise SecurityError(f"the name {name} in a namespace begins with an underscore")
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
    """JSON without the HTML escapes of jinja2's filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    """The compiled template, in the same environment as in transformers."""
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
            if length > MAX_CHARACTERS:
                return {"refused": f"its output exceeds {MAX_CHARACTERS} characters"}
        return {"text": "".join(pieces)}
    except RecursionError:
        return {"refused": "it recurses without end"}
    except MemoryError:
        pieces.clear()
        return {"refused": f"it needs more than {MAX_MEMORY >> 30} GiB of memory"}
    except Exception as error:  # an expression of a template can raise anything
        return {"refused": " ".join(str(error).split())[:300] or type(error).__name__}


def main() -> None:
    """Answer requests until stdin is closed."""
    import resource  # here, since the module is imported on Windows, too, which lacks it

    with suppress(ValueError, OSError):  # not every system supports the limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)  # SIGPROF then ends the process
        reply = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
