"""Figures of predictions: SQuAD's exact match and F1, and correlations."""

import pytest

from gpt_core.tasks.metrics import correlations, exact_match, f1


@pytest.mark.parametrize(
    ("text", "answers", "em", "expected"),
    [
        ("The Denver Broncos!", ["denver broncos"], 1, 1),
        ("Denver", ["Denver Broncos", "Broncos"], 0, 2 / 3),
        ("", ["x"], 0, 0),
        ("x", [], 0, 0),
        ("《战国无双3》", ["战国无双3"], 1, 1),
        ("光荣公司", ["光荣"], 0, 2 / 3),
    ],
)
def test_exact_match_and_f1_are_squads(text, answers, em, expected):
    assert exact_match(text, answers) == em
    assert f1(text, answers) == pytest.approx(expected)


def test_correlations():
    found = correlations([1.0, 2.0, 10.0], [1.0, 3.0, 4.0])
    assert found["Spearman"] == pytest.approx(1)
    assert found["Pearson"] == pytest.approx(111 / (438 * 42) ** 0.5)
    assert correlations([1.0, 1.0], [1.0, 2.0]) == {"Pearson": 0.0, "Spearman": 0.0}
