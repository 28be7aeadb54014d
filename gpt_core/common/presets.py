"""Configurations: a dataclass with defaults, which a YAML preset overrides; the command line overrides both."""

import argparse
import dataclasses
import difflib
import json
import re
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from gpt_core.common.errors import InputError

T = TypeVar("T")


def read_config(kind: type[T], *, prog: str, description: str | None, args: list[str] | None) -> T:
    """Build the dataclass `kind` from a command line: `[--config PRESET.yaml] [--key value …]`.

    Raises:
        InputError: for an invalid preset; names the key.
        SystemExit: 2 for a bad command line, 0 after --help.
    """
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    before.add_argument("--config", nargs="?")
    path = before.parse_known_args(args)[0].config
    preset = kind() if path is None else read_preset(kind, path)

    def command(config: str | None = None, keys: tyro.conf.OmitArgPrefixes[kind] = preset) -> Any:  # type: ignore[valid-type]
        """Its signature defines the command line.

        Args:
            config: YAML preset; keys on the command line override it.
            keys: model, data and training settings.
        """
        return keys

    return tyro.cli(command, prog=prog, description=description, args=args, use_underscores=True)


def read_preset(kind: type[T], path: str | Path) -> T:
    """Read a YAML file of flat keys into the dataclass `kind`; missing keys keep their default.

    Raises:
        InputError: for a missing or invalid file, an unknown key, or a value of the wrong type.
    """
    try:
        raw: Any = yaml.load(find_preset(path).read_text(encoding="utf-8"), _Loader) or {}
    except FileNotFoundError as error:
        raise InputError(f"There is no preset {path}; the presets of zhizhi are in configs/.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} contains a {type(raw).__name__}; expected lines of the form `key: value`.")
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}."
            raise InputError(f"{path}: unknown key {key!r}; {hint}")
    try:
        # In strict mode only JSON's types are converted: lists to tuples and integers to floats.
        return TypeAdapter(kind).validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(mistake := first.get("ctx", {}).get("error"), InputError):  # from __post_init__
            raise InputError(f"{path}: {mistake}") from error
        if not first["loc"]:  # not even JSON
            raise InputError(
                f"{path}: a text has half of a surrogate pair, which is no character."
            ) from error
        raise InputError(
            f"{path}: {first['loc'][0]} is {first['input']!r}; {first['msg'].lower()}."
        ) from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads 3e-4 as a number, as YAML 1.2 does; YAML 1.1 demands 3.0e-4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def find_preset(path: str | Path) -> Path:
    """`path` if it exists; else, for `configs/NAME`, the preset NAME of the installed package."""
    path = Path(path)
    if not path.exists() and path.parts[:-1] == ("configs",):
        with suppress(ModuleNotFoundError):  # the package is not installed
            return Path(str(resources.files("zhizhi.configs") / path.name))
    return path
