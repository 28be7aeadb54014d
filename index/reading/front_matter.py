"""Front matter: the block of YAML fields at the beginning of a Markdown file."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.events import AliasEvent

# As in Pandoc, a line of three hyphens that a blank line follows is a horizontal rule.
BEGIN = re.compile(r"---[ \t]*\r?\n(?![ \t]*\r?\n)")
END = re.compile(r"^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)", re.MULTILINE)
MAX_NESTED = 20  # lists and objects in brackets; PyYAML's time grows with the square of their depth
FIELD = re.compile(r"^([^\s:#-][^:\n]*):[ \t]+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True)
class FrontMatter:
    """The front matter of a text.

    Attributes:
        fields: names and values; JSON represents the values.
        end: offset of the text behind the block.
        problem: why the block is no valid YAML; None if it is. `fields` are then those of single lines.
    """

    fields: dict[str, Any]
    end: int
    problem: str | None = None


def read_front_matter(text: str) -> FrontMatter | None:
    """The front matter at the beginning of `text`; None if there is none, as in a text that begins with a rule.

    Values are those of YAML 1.2 (`NO`, `12:30` and dates are text), with one exception: a number that is not written as
    JSON writes it (`0123`, `3.10`, `1e3`) is text, so that a version, an ISBN or a hash stays what it is. Aliases are
    not read: a few hundred bytes of them can stand for gigabytes.
    """
    begin = BEGIN.match(text)
    end = END.search(text, begin.end()) if begin else None
    if begin is None or end is None:
        return None
    block = text[begin.end() : end.start()]
    try:
        loaded = _load(block)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 2}: " if error.problem_mark else ""
        problem = f"{line}{error.problem}"[:100]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = str(error).partition("\n")[0]
    else:
        if isinstance(loaded, dict) or not block.strip():
            return FrontMatter(loaded or {}, end.end())
        return None
    fields = {match[1].strip(): _value(match[2].strip()) for match in FIELD.finditer(block)}
    return FrontMatter(fields, end.end(), problem) if fields else None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema without aliases and unusual numbers; PyYAML's own loaders read YAML 1.1."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level == MAX_NESTED:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_NESTED} brackets", problem_mark=self.get_mark()
            )
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"the alias *{event.anchor}", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
}
_Loader.yaml_implicit_resolvers = {}
for kind, pattern, first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"0|-?[1-9][0-9]{0,17}", list("-0123456789")),
    ("float", r"-?(0|[1-9][0-9]{0,14})\.([0-9]{0,14}[1-9]|0)", list("-0123456789")),
]:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z"), first)


def _value(text: str) -> Any:
    """The value of a single line: a scalar or a list of YAML, else the text as it is."""
    try:
        value = _load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return text if isinstance(value, dict) else value


def _load(text: str) -> Any:
    """YAML as data that JSON can represent.

    Raises:
        ValueError: for half of a surrogate pair, or a number that a tag asks for and the text is not.
    """
    value = _as_json(yaml.load(text, _Loader))
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _as_json(value: Any) -> Any:
    """YAML data with keys that are strings and without infinite numbers, which the tag !!float can make."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
