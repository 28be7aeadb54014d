"""Score a model, with baselines beside it."""

from gpt_core.doors import open_door
from index.evaluate import evaluate_retrieval
from serve.attribution_eval import evaluate_attribution


def main() -> None:
    open_door({"retrieval": evaluate_retrieval, "attribution": evaluate_attribution})


if __name__ == "__main__":
    main()
