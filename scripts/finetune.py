"""Fine-tune a GPT for a task, or predict with a fine-tuned model."""

import sys

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.cli import run_command
from gpt_core.tasks.config import FinetuneConfig
from gpt_core.tasks.finetune import finetune
from gpt_core.tasks.task_model import predict_file
from gpt_core.training.parallel.ranks import end_at_once


def main() -> None:
    if "--predict" in sys.argv[1:]:
        run_command(predict_file, args=[arg for arg in sys.argv[1:] if arg != "--predict"])
        return
    with end_at_once():
        run_command(finetune, config=FinetuneConfig)


if __name__ == "__main__":
    main()
