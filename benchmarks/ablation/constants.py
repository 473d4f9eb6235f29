"""The constants and the lines of the predictive policy, found in its source.

The policy is what a step computes: records of settings and state (`memory`) and signals are not
part of it. A constant is a number of a module, a default of the settings, or a number in
an expression other than 0, 1 and 2. A number that only resolves a histogram or guards a division is
one too.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import disagg_operator

POLICY = Path(disagg_operator.__path__[0]) / "autoscaling/policy"
MODULES = ("forecast", "learning", "miss_curve", "predictive", "sizing")
SETTINGS = {"forecast": ("Tuning",), "memory": ("Settings", "PoolLimits")}
_FREE = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Constant:
    """A number of the policy; `name` is empty for one in an expression."""

    module: str
    name: str
    values: tuple[float, ...]
    line: int


def constants() -> list[Constant]:
    """Return all constants of the policy."""
    found: list[Constant] = []
    for module in (*MODULES, "memory"):
        tree = ast.parse((POLICY / f"{module}.py").read_text())
        if module in MODULES:
            found += _of_module(module, tree)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in SETTINGS.get(module, ()):
                found += _defaults(module, node)
            elif isinstance(node, ast.FunctionDef) and module in MODULES:
                found += [Constant(module, "", (number,), at) for number, at in _numbers(node)]
    return found


def _of_module(module: str, tree: ast.Module) -> Iterator[Constant]:
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        numbers = [number for number, _ in _numbers(node.value)]
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for name, value in zip(target.elts, node.value.elts, strict=True):
                if own := [number for number, _ in _numbers(value)]:
                    yield Constant(module, ast.unparse(name), tuple(own), node.lineno)
        elif numbers:
            yield Constant(module, ast.unparse(target), tuple(numbers), node.lineno)


def _defaults(module: str, node: ast.ClassDef) -> Iterator[Constant]:
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and field.value is not None:
            numbers = tuple(number for number, _ in _numbers(field.value))
            if numbers:
                yield Constant(module, f"{node.name}.{ast.unparse(field.target)}", numbers, field.lineno)


def _numbers(tree: ast.AST) -> Iterator[tuple[float, int]]:
    """Yield the numbers of a tree that count, and their lines."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or isinstance(node.value, bool):
            continue
        if isinstance(node.value, int | float) and node.value not in _FREE:
            yield float(node.value), node.lineno


def code_lines(module: str) -> int:
    """Return the lines of a module that hold code: not those of comments and docstrings alone."""
    source = (POLICY / f"{module}.py").read_text()
    silent = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    }  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)
