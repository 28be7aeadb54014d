"""The command line of fine-tuning: training by default, prediction with --predict."""

import sys

from gpt_core.common.cli import run_command
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.finetune import finetune
from gpt_core.tasks.task_model import predict_file
from gpt_core.training.parallel.ranks import end_at_once

PREDICT = "--predict"


def run_finetune() -> None:
    """Run `predict_file` if the command line has --predict, else `finetune`."""
    if PREDICT in sys.argv[1:]:
        run_command(predict_file, selected_by=PREDICT)
        return
    with end_at_once():
        run_command(finetune, config=FinetuneConfig)
