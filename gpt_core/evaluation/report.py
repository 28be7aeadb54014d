"""Reports of `eval.py` and `bench.py`: a table, then one line of JSON."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gpt_core.hardware.device import available_cores


def print_report(
    results: Sequence[dict[str, Any]],
    columns: Sequence[str],
    ratios: dict[str, float],
    packages: Sequence[str] = (),
) -> None:
    """Print `columns` of `results` as a table, then everything as one JSON object on the last line.

    Args:
        results: rows; numbers have four decimals in the table and six in the JSON. A list of two numbers is an
            interval.
        columns: keys of a row that the table shows.
        ratios: "ours/peer figure" → our figure divided by the peer's.
        packages: installed packages whose versions are reported, besides Python, torch and zhizhi.
    """
    _print_table(results, columns)
    report = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "zhizhi", *packages)},
        "results": [_rounded(row) for row in results],
        "ratios": _rounded(ratios),
    }
    print(json.dumps(report, ensure_ascii=False), flush=True)


def machine() -> dict[str, Any]:
    """The machine: processor, cores available to this process, threads, memory in GiB, GPU."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(one) for one in value]
        return round(value, 6) if isinstance(value, float) else value

    return {key: rounded(value) for key, value in row.items()}


def _cell(value: Any) -> str:
    if isinstance(value, list):  # bounds of an interval
        return " to ".join(f"{end:+.4f}" for end in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    cells = [list(columns)]
    for row in rows:
        cells.append([_cell(row.get(column, "")) for column in columns])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
