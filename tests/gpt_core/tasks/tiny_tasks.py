"""Small made-up data for every task, which a tiny model can learn."""

import json
import random
from pathlib import Path
from typing import Any


def write_tasks(folder: Path, n: int = 120) -> None:
    """Write classification.jsonl … span.jsonl with n rows each."""
    rng = random.Random(0)
    good, bad = ("good", "nice", "fine"), ("bad", "poor", "ugly")
    rows: dict[str, list[dict[str, Any]]] = {}
    rows["classification"] = [
        {
            "text": f"it is {rng.choice(good if i % 2 else bad)} " + "so " * (i % 5),
            "label": ("no", "yes")[i % 2],
        }
        for i in range(n)
    ]
    rows["entailment"] = [
        {"premise": f"a {rng.choice(good)} {i}", "hypothesis": ("bad", "good")[i % 2], "label": i % 2}
        for i in range(n)
    ]
    rows["similarity"] = [
        {
            "sentence1": f"{i % 30} " + ("same" if i % 2 else "other"),
            "sentence2": f"same {i}",
            "score": 4 * (i % 2) + 1,
        }
        for i in range(n)
    ]
    rows["choice"] = [
        {"context": f"number {i}", "choices": ["yes", "no", "so"][: 2 + i % 2], "label": 0} for i in range(n)
    ]
    rows["span"] = []
    for i in range(n):
        colour = rng.choice(("red", "blue"))
        answers = {"text": [colour], "answer_start": [len(f"the {i} is ")]}
        rows["span"].append(
            {
                "question": "colour?",
                "context": f"the {i} is {colour} now",
                "title": f"{i // 4}",
                "answers": answers,
            }
        )
    for task, lines in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")
