"""Fine-tune a GPT for a task, or predict with a fine-tuned model."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.tasks.command import run_finetune


def main() -> None:
    run_finetune()


if __name__ == "__main__":
    main()
