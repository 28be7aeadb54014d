"""Evaluate models, and baselines on the same data."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.evaluation.sts import evaluate_sts
from gpt_core.common.cli import run_command
from gpt_core.evaluation.evaluate_lm import evaluate_lm
from gpt_core.evaluation.evaluate_tasks import evaluate_tasks
from index.evaluation.retrieval import evaluate_retrieval
from serve.evaluation.evaluate_attribution import evaluate_attribution
from serve.evaluation.evaluate_qa import evaluate_qa


def main() -> None:
    run_command(
        {
            "lm": evaluate_lm,
            "tasks": evaluate_tasks,
            "sts": evaluate_sts,
            "retrieval": evaluate_retrieval,
            "qa": evaluate_qa,
            "attribution": evaluate_attribution,
        }
    )


if __name__ == "__main__":
    main()
