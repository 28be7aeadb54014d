"""Fit the ranker of answers and its thresholds."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from serve.evaluation.fit_answers import fit_answers


def main() -> None:
    run_command(fit_answers)


if __name__ == "__main__":
    main()
