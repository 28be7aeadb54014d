"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS = 30.0  # between two lines


def progress(
    items: Iterable[T], name: str, total: int | None, unit: str, note: Callable[[], str] = lambda: ""
) -> Iterator[T]:
    """Yield `items` while stderr shows their number, the rate, the time left, and a note.

    Args:
        items: what is worked on; an item is done when the next one is asked for.
        name: of the work.
        total: number of items; None if it is not known, and then neither is the time left.
        unit: what an item is called, in the plural.
        note: gives more to show.
    """
    if not sys.stderr.isatty():
        yield from _with_lines(items, name, total, unit, note)
        return
    with tqdm(total=total, desc=name, unit=f" {unit}", dynamic_ncols=True) as bar:
        for item in items:
            yield item
            bar.set_postfix_str(note(), refresh=False)
            bar.update()


def _with_lines(
    items: Iterable[T], name: str, total: int | None, unit: str, note: Callable[[], str]
) -> Iterator[T]:
    start = last = time.monotonic()
    for n, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last < SECONDS:
            continue
        last = now
        seconds = now - start
        parts = [f"{n:,} of {total:,} {unit}" if total else f"{n:,} {unit}", f"{n / seconds:,.1f} a second"]
        if total:
            parts.append(f"{tqdm.format_interval((total - n) * seconds / n)} left")
        print(f"{name}: {', '.join([*parts, *filter(None, [note()])])}", file=sys.stderr, flush=True)
