"""Text of Jupyter notebooks."""

import json
from pathlib import Path
from typing import Any

from index.reading.formats.encoding import decode
from index.reading.formats.extracted import Extracted, Unreadable


def read_notebook(path: Path) -> Extracted:
    """The cells of a notebook: Markdown as it is, code in fences with its printed output.

    Raises:
        Unreadable: if it is no notebook.
    """
    try:
        notebook = json.loads(decode(path.read_bytes())[0])
        worksheets = notebook.get("worksheets") or [notebook]  # of version 3
        cells = [cell for sheet in worksheets for cell in sheet["cells"]]
        metadata = notebook.get("metadata") or {}
        kernel, info = metadata.get("kernelspec") or {}, metadata.get("language_info") or {}
        language = kernel.get("language") or info.get("name") or ""
        text = "\n\n".join(block for cell in cells for block in _cell(cell, language) if block.strip())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Unreadable(f"it is no Jupyter notebook ({type(error).__name__}: {error}).") from None
    return Extracted(text, "", {"language": language} if isinstance(language, str) and language else {})


def _cell(cell: dict[str, Any], language: str) -> list[str]:
    source = _joined(cell.get("source", cell.get("input", "")))
    if cell["cell_type"] == "heading":
        return [f"{'#' * min(max(int(cell.get('level', 1)), 1), 6)} {source}"]
    if cell["cell_type"] != "code":
        return [source]
    blocks = [f"```{language}\n{source.rstrip()}\n```"] if source.strip() else []
    for output in cell.get("outputs", []):
        data = output.get("data") or output
        printed = _joined(data.get("text/plain", output.get("text", ""))).strip("\n")
        if printed:
            blocks.append(f"```\n{printed}\n```")
    return blocks


def _joined(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)
