"""Packages that only some people install."""

from collections.abc import Iterator
from contextlib import contextmanager

from gpt_core.common.errors import InputError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of packages that the optional dependencies `name` bring.

    Raises:
        InputError: naming the package that is missing and the extra to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; it comes with: pip install 'zhizhi[{name}]'."
        ) from error
