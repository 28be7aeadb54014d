"""The links in the documentation and the functions that docs/architecture.md names exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")]


def names_in(path):
    """Functions, classes, methods (`Class.method`) and constants that a Python file defines."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_points_to_an_existing_file(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_function_named_in_architecture_md_exists():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"`((?:gpt_core|embed|index|serve|benchmarks|scripts)/[\w/]+\.py):([\w.]+)`", page)
    assert len(steps) > 40
    for file, name in steps:
        assert name in names_in(ROOT / file), f"{file}:{name}"


def test_the_readme_links_every_sub_package():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in ("gpt_core", "embed", "index", "serve"):
        for init in (ROOT / package).glob("*/__init__.py"):
            assert f"]({package}/{init.parent.name})" in readme, init.parent
