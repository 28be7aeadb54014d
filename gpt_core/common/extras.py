"""Optional dependencies."""

from collections.abc import Iterator
from contextlib import contextmanager

from gpt_core.common.errors import InputError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Context for imports of packages from the optional dependencies `name`.

    Raises:
        InputError: if a package is missing; names it and the extra to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; install it with: pip install 'zhizhi[{name}]'."
        ) from error
