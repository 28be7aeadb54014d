"""The loss plot drawn at the end of training."""

import io
import itertools
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.files import atomic_write

SMOOTHING_FRACTION = 0.03  # half-width of the moving average, as a fraction of the rows


def plot_losses(out_dir: Path) -> None:
    """Draw `out_dir/loss.png` from `out_dir/log.jsonl`; the same log gives the same bytes.

    Without matplotlib, prints a note to stderr and draws nothing.
    """
    try:
        with extra("train"):
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
    except InputError as error:
        print(f"No loss plot: {error}", file=sys.stderr)
        return

    rows = [json.loads(line) for line in (out_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    validation = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if losses:
        steps, values = zip(*losses, strict=True)
        axes.plot(steps, values, color="#9db8d9", linewidth=0.7, label="training")
        axes.plot(steps, smooth(values), color="#1f4e8c", linewidth=1.6, label="training, smoothed")
    if validation:
        steps, values = zip(*validation, strict=True)
        best = min(validation, key=lambda point: point[1])
        label = f"validation; best {best[1]:.4f} at step {best[0]}, last {values[-1]:.4f}"
        axes.plot(steps, values, color="#c8501e", marker="o", markersize=4, linewidth=1.2, label=label)
    if losses or validation:
        axes.legend(frameon=False)
    axes.set_title(out_dir.resolve().name, parse_math=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per target)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)

    picture = io.BytesIO()
    with warnings.catch_warnings():
        # The folder name may have characters missing in matplotlib's default font; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(picture, format="png", metadata={"Software": None})
    atomic_write(out_dir / "loss.png", picture.getvalue())


def smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average; the window is symmetric and shrinks towards the ends, so the curve has no lag."""
    sums = [0.0, *itertools.accumulate(values)]
    smoothed = []
    for i in range(len(values)):
        width = min(round(SMOOTHING_FRACTION * len(values)), i, len(values) - 1 - i)
        smoothed.append((sums[i + width + 1] - sums[i - width]) / (2 * width + 1))
    return smoothed
