"""Filters as they are written on the command line."""

import json
import re
from typing import Any

from gpt_core.common.errors import InputError
from index.search.filters import Filter, fields_of

OPERATOR = re.compile(r"(?s)\s*([^<>=!]*[^<>=!\s])\s*(>=|<=|!=|=|>|<)(?![<>=])\s*(.*?)\s*")
KEYS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt", "!=": "ne"}


def parse_filter(words: list[str]) -> Filter:
    """Parse filters: `field=value`, `!=`, `>=`, `<=`, `>`, `<`, or a filter in JSON; all of them must hold.

    White space around the field and the value is no part of them. A value that is a JSON number, true or false is
    compared as such and, for `=` and `!=`, also as text. Several values of one field are alternatives (for `!=`: none
    of them may be there).

    Raises:
        InputError: for a malformed filter.
    """
    wanted: Filter = {}
    whole: list[Filter] = []
    for word in words:
        if word.lstrip().startswith("{"):
            whole.append(_json(word))
            continue
        match = OPERATOR.fullmatch(word)
        if not match:
            raise InputError(
                f"filter {word!r}; expected field=value, !=, >=, <=, > or <, or a filter in JSON such as "
                '{"year": {"gte": 2020}}.'
            )
        name, sign, text = match.groups()
        value = _typed(text)
        values = [text] if value == text else [text, value]
        if sign == "=":
            known = wanted.setdefault(name, [])
            if not isinstance(known, list):
                raise InputError(f"filter {word!r}: give {name} either values or bounds.")
            known += values
            continue
        bounds = wanted.setdefault(name, {})
        if not isinstance(bounds, dict):
            raise InputError(f"filter {word!r}: give {name} either values or bounds.")
        key = KEYS[sign]
        if key == "ne":
            bounds[key] = [*bounds.get(key, []), *values]
        elif key in bounds:
            raise InputError(f"filter {word!r}: {name}{sign}{bounds[key]} is given, too; give one of them.")
        else:
            bounds[key] = value
    return {"$and": [*whole, wanted]} if whole else wanted


def _json(word: str) -> Filter:
    try:
        found = json.loads(word)
    except (ValueError, RecursionError) as error:
        raise InputError(f"filter {word!r} is not valid JSON: {error}.") from None
    list(fields_of(found))  # says what is no filter
    return found


def _typed(text: str) -> Any:
    """A number, true or false, if `text` is one that a filter can have; else the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) and abs(value) < 2**63 else text  # NaN is not less
