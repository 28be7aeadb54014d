"""A diagram of how far the probabilities of answers can be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt_core.evaluation.plots import new_figure, save_figure, style_axes
from serve.evaluation.metrics import precisions

if TYPE_CHECKING:
    from serve.evaluation.evaluate_qa import Outcome

BINS = 10


def plot_confidence(path: Path, present: "Sequence[Outcome]", others: "Sequence[Outcome]") -> None:
    """Draw reliability and risk against coverage as a PNG.

    Left: of the questions whose probability is in a tenth of the scale, the share for which it came true; on the
    diagonal the probabilities are exact. Right: the share of wrong answers if only the surest are given.

    Args:
        path: the file.
        present: outcomes of questions that the corpus answers.
        others: outcomes of questions that it does not answer.
    """
    outcomes = [*present, *others]
    is_present = np.arange(len(outcomes)) < len(present)
    right = np.array([o.right for o in outcomes])
    is_right = np.array([o.is_right > 0.5 for o in outcomes])
    in_corpus = np.array([o.present for o in outcomes])
    figure = new_figure(9, 4)
    left, beside = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    for name, p, truth, color in (
        ("this quote is right", right, is_right, "#1f4e8c"),
        ("the corpus answers", in_corpus, is_present, "#c8501e"),
    ):
        bins = np.minimum((p * BINS).astype(int), BINS - 1)
        filled = [i for i in range(BINS) if (bins == i).any()]
        left.plot(
            [p[bins == i].mean() for i in filled],
            [truth[bins == i].mean() for i in filled],
            marker="o", markersize=4, color=color, label=name,
        )  # fmt: skip
    left.set(title="reliability", xlabel="probability", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False, fontsize=8)
    wrong = 1 - precisions(right[is_present], is_right[is_present])
    beside.plot(np.arange(1, len(wrong) + 1) / len(wrong), wrong, color="#1f4e8c")
    beside.axhline(0.1, color="0.7", linewidth=0.8)
    beside.set(
        title="risk and coverage", xlabel="share answered", ylabel="share of these that is wrong", xlim=(0, 1)
    )
    for axes in (left, beside):
        style_axes(axes)
    save_figure(figure, path)
