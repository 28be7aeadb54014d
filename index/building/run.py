"""One build: the changes of the input are written to the index."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from embed.encoding.runner import Runner
from index.building.options import BuildOptions
from index.building.reports import Outcome, print_counts, print_files, print_gone
from index.building.second_pass import SecondPass, to_delete
from index.building.survey import Survey
from index.building.target import Target
from index.index import Index
from index.reading.source_files import Below
from index.store.write import Changes


@contextmanager
def built(options: BuildOptions, runner: Runner) -> Iterator[tuple[Target, Index]]:
    """Build an index, or update it, report what was done, and yield it; `runner` encodes.

    Raises:
        InputError: for options that do not suit the index, or input that cannot be read; nothing is written then.
    """
    started = time.perf_counter()
    target = Target.of(options)
    survey = Survey.of(options, target)
    with target.opened() as index:
        if options.faiss is not None or options.recall is not None:
            index.set_faiss(options.faiss, options.recall)
        if options.store is not None:
            index.set_store(options.store)
        outcome = update(index, options, survey, options.below, runner)
        if options.refit_map:
            index.refit_map()
        index.save_snapshot()
        print_counts(index, outcome, time.perf_counter() - started)
        print_files(outcome)
        print_gone(index.files.documents(), options)
        outcome.log.print_table(survey.found.files)
        yield target, index


def update(index: Index, options: BuildOptions, survey: Survey, below: Below, runner: Runner) -> Outcome:
    """Write to `index` what `survey` found in the files and folders `below`; `runner` encodes."""
    n_deleted = 0
    if options.delete:
        n_deleted = index.delete([one.id for one in to_delete(index.files, options.delete)])
    names, longer = index.files.name(survey.found, survey.checked.row_ids, survey.checked.hashes)
    second = SecondPass(survey)
    documents = second.documents(names, index.settings.rows_per_document)
    changes = index.upsert(documents, runner=runner) if second.files else Changes()
    changes.unchanged += len(survey.kept)
    settled = [file for file in survey.changed if file.source not in second.log.again]
    index.files.remember(settled, survey.states, second.log.unread)
    missing = second.missing(index.files.documents(), below)
    if options.delete_missing:
        n_deleted += index.delete(missing)
        missing = []
    return Outcome(changes, n_deleted, missing, longer, second.log)
