"""Optional dependencies."""

from collections.abc import Iterator
from contextlib import contextmanager

from gpt_core.common.errors import InputError


class MissingPackage(InputError):
    """A package of the optional dependencies is not installed."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Context for imports of packages from the optional dependencies `name`.

    Raises:
        MissingPackage: if a package is missing; names it and the extra to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{error.name} is not installed; install it with: pip install 'zhizhi[{name}]'."
        ) from error
