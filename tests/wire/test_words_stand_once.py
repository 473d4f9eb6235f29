"""Tests that no other module repeats a word of disagg_wire as a string literal."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from disagg_wire import codes, labels, protocol
from disagg_wire import environment as env
from disagg_wire import series as names_of_series

REPO = Path(__file__).parents[2]
MODULES = sorted(
    path
    for folder in ("operator", "worker")
    for path in (REPO / folder).rglob("*.py")
    if "disagg_wire" not in path.parts
)
VARIABLES = {
    str(name)
    for kind in (
        env.WorkerVariable,
        env.WorkerOption,
        env.AdapterVariable,
        env.AdapterOption,
        env.RouterVariable,
        env.RouterOption,
        env.OperatorVariable,
    )
    for name in kind
}


def _constants(module: object, start: str) -> set[str]:
    """Return the strings of a module's constants that begin with `start`."""
    found = {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}
    return {value for value in found if value.startswith(start)}


# Words that can mean only one thing wherever they stand; `disagg_worker` is also a package.
DISTINCTIVE = (
    VARIABLES
    | {name for name in _constants(names_of_series, "disagg_") if name.count("_") >= 2}
    | _constants(protocol, "/internal/v1/")
    | _constants(labels, "disagg.dev/")
    | {"disagg-http-v1"}
)
# Only workers use these codes; some errors of OpenAI's API, which routers answer, have equal names.
SPEAK = {"disagg_worker", "disagg_adapter", "disagg_protocol"}
OF_WORKERS = {value for value in _constants(codes, "") if "_" in value}
# The build of the image runs this file alone, without the package of the words.
ALONE = {"worker/disagg_worker/backend/cpu/build.py": {env.WorkerOption.KERNELS}}


def _literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every string constant that is not a docstring."""
    expressions = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    docstrings = {id(value) for value in expressions if isinstance(value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            if isinstance(node.value, str):
                yield node.lineno, node.value
            elif isinstance(node.value, bytes):
                yield node.lineno, node.value.decode("latin-1")


def repeated(source: str, words: set[str]) -> list[tuple[int, str]]:
    """Return the line and the word of each literal that is or contains one of the words."""
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(words)))})(?!\w)")
    return [(line, found) for line, text in _literals(ast.parse(source)) for found in pattern.findall(text)]


def test_no_module_repeats_a_shared_word() -> None:
    found = {}
    for path in MODULES:
        name = str(path.relative_to(REPO))
        words = DISTINCTIVE | (OF_WORKERS if SPEAK & set(path.parts) else set())
        if hits := repeated(path.read_text(), words - ALONE.get(name, set())):
            found[name] = hits
    assert found == {}


def test_the_scan_finds_words_in_texts_but_not_in_docstrings_nor_within_longer_words() -> None:
    source = '''"""DISAGG_PORT"""
import x
a = "DISAGG_PORT"
def f():
    """Reads DISAGG_PORT."""
    return f"{a}/internal/v1/info", b"disagg-http-v1", "DISAGG_PORTS", "disagg_router_pairs{state}"
'''
    words = {word for _, word in repeated(source, DISTINCTIVE)}
    assert words == {"DISAGG_PORT", "/internal/v1/info", "disagg-http-v1", "disagg_router_pairs"}
