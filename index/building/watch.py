"""Keep an index up to date with its input while files change."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from embed.encoding.runner import Runner
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.list_files import has_ending
from gpt_core.common.signals import StopSignal, raise_for_signal
from gpt_core.common.terminal import printable
from index.building.options import BuildOptions
from index.building.reports import print_counts, print_files
from index.building.run import built, update
from index.building.survey import Survey
from index.building.target import Target
from index.index import Index
from index.reading.source_files import KINDS, Below
from index.store.store import FILE, BusyError, Store

SETTLE_MS = 100  # changes that follow each other within this time are handled together …
MOST_MS = 1000  # … but no later than this after the first
WAIT_MS = 250  # until other folders, and a signal to stop, are looked at


def watch(options: BuildOptions, runner: Runner) -> None:
    """Build an index, then update it after each change of its input, until SIGINT (Ctrl-C) or SIGTERM.

    Only files that changed are read. An update that fails is reported, and tried again with the next change; while
    another process writes to the index, it waits. A signal ends the watch after the update in progress.

    Raises:
        InputError: as `built`, or if the index or a folder of the input is deleted.
    """
    changes = _changes(options)
    next(changes)  # what changes during the build is seen afterwards
    with built(options, runner) as (target, index):
        later = replace(options, delete=(), refit_map=False)
        target = replace(target, options=later, encoder=None)
        _say(f"watching {', '.join(options.input)}; Ctrl-C ends it")
        with StopSignal() as stop:
            pending: set[str] = set()
            busy = False
            while not stop.received:
                changed = next(changes)
                pending |= changed
                if not pending or not (changed or busy):
                    continue
                _check_there(options)
                try:
                    _update(index, target, pending, runner)
                except BusyError as error:
                    if not busy:
                        _say(f"{error} The update waits.")
                    busy = True
                    continue
                except (InputError, OSError) as error:
                    _say(f"{error} The update is tried again after the next change.")
                else:
                    pending.clear()
                busy = False
        index.save_snapshot()
    raise_for_signal(stop.received)


def _update(index: Index, target: Target, changed: set[str], runner: Runner) -> None:
    """Bring `index` up to date with the files and folders `changed`, and print what was done."""
    started = time.perf_counter()
    options = target.options
    with closing(Store(target.folder)) as store, store.lock():
        pass  # else the files would be read in vain
    # A .gitignore file decides about other files.
    everything = options.gitignore and any(os.path.basename(path) == ".gitignore" for path in changed)
    only = options.below if everything else Below(changed)
    survey = Survey.of(options, target, only)
    outcome = update(index, options, survey, only, runner)
    counts = outcome.changes
    if counts.added or counts.updated or outcome.n_deleted:
        print_counts(index, outcome, time.perf_counter() - started)
    print_files(outcome)
    sys.stdout.flush()


def _check_there(options: BuildOptions) -> None:
    """Raise InputError if the index or a folder of the input is gone, as when a disk is unmounted."""
    if not (Path(options.index) / FILE).exists():
        raise InputError(f"{options.index} was deleted; the watch ends.")
    for path in options.input:
        if not has_ending(Path(path), KINDS) and not os.path.isdir(path):
            raise InputError(f"{path} is no longer there; the watch ends, and the index keeps its documents.")


def _changes(options: BuildOptions) -> Iterator[set[str]]:
    """Yield the real paths of what changed in the input since the last time, an empty set about every WAIT_MS."""
    with extra("documents"):
        from watchfiles import Change
        from watchfiles import watch as follow
    real = list(map(os.path.realpath, options.input))
    folders = [path for path in real if os.path.isdir(path)]
    # An editor may save by renaming, which gives a path another file: the folder of a given file is watched.
    files = set(real) - set(folders)
    index = Below([os.path.realpath(options.index)])

    def matters(change: Change, path: str) -> bool:
        if path in files:
            return True
        below = [path.removeprefix(folder) for folder in folders if Path(path).is_relative_to(folder)]
        name = os.path.basename(path)
        is_hidden = any("/." in one.removesuffix("/.gitignore") for one in below)
        if not below or is_hidden or path in index:
            return False
        is_file = has_ending(Path(name), KINDS)
        return is_file or name == ".gitignore" or change == Change.deleted or os.path.isdir(path)

    parents = {os.path.dirname(path) for path in files if os.path.exists(path)}
    watches = [(folders, True), (sorted(parents), False)]
    streams = [
        follow(
            *paths,
            watch_filter=matters,
            debounce=MOST_MS,
            step=SETTLE_MS,
            rust_timeout=WAIT_MS,
            yield_on_timeout=True,
            recursive=is_deep,
        )
        for paths, is_deep in watches
        if paths
    ]
    for stream in streams:
        next(stream)  # begins to follow
    yield set()
    while True:
        for stream in streams:
            yield {path for _, path in next(stream)}


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
