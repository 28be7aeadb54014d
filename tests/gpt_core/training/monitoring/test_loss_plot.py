"""The plot of the losses."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_core.training.monitoring.loss_plot import plot_losses, smooth


def picture(folder: Path, rows: list[dict[str, Any]]) -> bytes:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_losses(folder)
    return (folder / "loss.png").read_bytes()


def test_equal_logs_give_equal_plots_and_different_logs_different_ones(tmp_path: Path) -> None:
    training = [{"step": s, "loss": 4 / s} for s in range(1, 9)]
    validation = [{"step": 4, "val_loss": 1.5}, {"step": 8, "val_loss": 1.25}]
    both = picture(tmp_path / "run", training + validation)
    assert both == picture(tmp_path / "run", training + validation)
    others = [picture(tmp_path / "run", rows) for rows in (training, validation, [])]
    assert len({both, *others}) == 4


def test_any_folder_name_and_missing_values_can_be_plotted(tmp_path: Path) -> None:
    # a name with a character that matplotlib's font lacks and an invalid formula; values that were not finite
    rows = [{"step": 1, "loss": None}, {"step": 1, "val_loss": None}, {"step": 2, "other": 1.0}]
    assert picture(tmp_path / "知_$x^", rows).startswith(b"\x89PNG")


def test_smoothing_neither_lags_nor_bends_a_line() -> None:
    line = [3.0 - 0.01 * i for i in range(100)]
    assert smooth(line) == pytest.approx(line)
    waves = [1.0 + (-1) ** i for i in range(101)]
    assert max(abs(value - 1) for value in smooth(waves)[5:-5]) < 0.2
    assert smooth([]) == []
