"""Score a model, with baselines beside it."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.evaluate_sts import evaluate_sts
from gpt_core.doors import open_door
from gpt_core.evaluate_lm import evaluate_lm
from index.evaluate import evaluate_retrieval
from serve.attribution_eval import evaluate_attribution


def main() -> None:
    open_door(
        {
            "lm": evaluate_lm,
            "sts": evaluate_sts,
            "retrieval": evaluate_retrieval,
            "attribution": evaluate_attribution,
        }
    )


if __name__ == "__main__":
    main()
