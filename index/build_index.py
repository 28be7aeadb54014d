"""The command that builds or updates an index."""

import tyro

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
        dry_run(options)
    elif options.watch:
        watch(options)
    else:
        with built(options):
            pass
