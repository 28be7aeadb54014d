"""Score a model, with baselines beside it."""

from gpt_core.doors import open_door
from index.evaluate import evaluate_retrieval


def main() -> None:
    open_door({"retrieval": evaluate_retrieval})


if __name__ == "__main__":
    main()
