"""The command that builds or updates an index."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import tyro

from embed.encoding.rank_runner import rank_runner
from embed.encoding.runner import Here, Runner
from gpt_core.common.errors import InputError
from index.building.dry_run import dry_run
from index.building.options import BuildOptions
from index.building.run import built
from index.building.watch import watch


def build_index(options: tyro.conf.OmitArgPrefixes[BuildOptions]) -> None:
    """Build an index of documents, or update an existing one.

    New documents are added, changed ones replaced, unchanged ones skipped. To continue an interrupted build, run it
    again. The input is read once before anything is written, so that a malformed line is reported at the start. Files
    in folders that cannot be read are named on stderr and left out; their documents are kept, and the exit status is 0.

    A file is recognised by its real path, however it is given, so that files of the same name in several folders are
    different documents. A document's id is the file's path below the folder that was given, or longer if another file
    has that id already.

    Args:
        options: what is built, of what, and how.
    """
    if options.dry_run:
        if int(os.environ.get("RANK", 0)) == 0:
            dry_run(options)
        return
    with _runner(options) as runner:
        if runner is None:  # a rank that has encoded for rank 0
            return
        if options.watch:
            watch(options, runner)
        else:
            with built(options, runner):
                pass


@contextmanager
def _runner(options: BuildOptions) -> Iterator[Runner | None]:
    """Where passages are encoded; None on the ranks other than 0, at the end."""
    is_rank = "RANK" in os.environ
    if options.runner == "ray":
        if is_rank:
            raise InputError("--runner ray starts its own workers; run it without torchrun.")
        from embed.encoding.ray_runner import ray_runner  # only here: Ray takes seconds to import

        with ray_runner() as ray:
            yield ray
    elif is_rank:
        with rank_runner() as rank:
            yield rank
    else:
        yield Here()
