"""Mutants of a source file: copies in which one expression or statement is changed."""

import ast
import difflib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

PAIRS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, And Or, Add Sub, Mult Div, BitAnd BitOr"
OPERATORS = {"FloorDiv": "Mult", "Mod": "Mult", "Pow": "Mult"}
for first, second in (pair.split() for pair in PAIRS.split(", ")):
    OPERATORS |= {first: second, second: first}


@dataclass(frozen=True)
class Mutant:
    """A changed file: its path in the tree, its whole new source, and what changed, for people."""

    file: str
    function: str
    line: int
    diff: str
    source: str = field(repr=False)


def all_mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of the functions and classes in `source` that compile and differ, in the order of the source."""
    encoded = source.encode()  # ast counts columns in bytes
    starts = [0, *accumulate(map(len, encoded.splitlines(keepends=True)))]
    original = ast.dump(ast.parse(source))
    found = {}
    for function, node, replacement in _changes(ast.parse(source)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        changed = (encoded[:begin] + replacement.encode() + encoded[end:]).decode()
        with suppress(SyntaxError):
            compile(changed, file, "exec")
            if ast.dump(ast.parse(changed)) == original:  # such as f(0, 0) with its arguments exchanged
                continue
            lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm="")
            diff = "\n".join(line for line in list(lines)[2:] if not line.startswith("@@"))
            found[changed] = Mutant(file, function, node.lineno, diff, changed)
    return list(found.values())


def _changes(tree: ast.AST, function: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every change: the qualified name of the function or class, the node, and the text that replaces the node."""
    if isinstance(tree, ast.FunctionDef | ast.ClassDef):
        function = f"{function}.{tree.name}".strip(".")
    for name, value in ast.iter_fields(tree):
        for node in value if isinstance(value, list) else [value]:
            # Annotations do not run; inside f-strings, ast's columns are wrong before Python 3.12.
            if (
                name in ("annotation", "returns")
                or isinstance(node, ast.JoinedStr)
                or not isinstance(node, ast.AST)
            ):
                continue
            if function and hasattr(node, "lineno"):
                yield from ((function, node, text) for text in _replacements(node))
                if name in ("test", "ifs"):
                    yield function, node, f"(not ({ast.unparse(node)}))"
            yield from _changes(node, function)


def _replacements(node: Any) -> Iterator[str]:
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield _with(node, ops=[*ops[:i], _other(op), *ops[i + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op).__name__ in OPERATORS:
            yield _with(node, op=_other(op))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield repr(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (f"({value + 1})", f"({value - 1})")
        case ast.Call(args=[one, other, *rest]) if not isinstance(one, ast.Starred):
            yield _with(node, args=[other, one, *rest])
        case ast.Return(value=ast.AST()):
            yield "return None"
        case ast.Raise() | ast.Continue() | ast.Break() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"


def _other(op: ast.AST) -> ast.AST:
    return getattr(ast, OPERATORS[type(op).__name__])()


def _with(node: Any, **fields: Any) -> str:
    """The source of an expression with other fields, in parentheses, so that it fits in every place."""
    return f"({ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **fields}))})"
