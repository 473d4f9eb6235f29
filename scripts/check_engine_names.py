"""Checks that no code asks which engine it has, except in the engines' own modules.

An engine is one module on each side, and everything else goes by what that module says. So outside
of a file or folder that has an engine's name, no code writes such a name as a literal, imports its
constant, or compares with the name of the bundled engine. `make lint` fails where one does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "worker"))

from disagg_wire import engines  # noqa: E402  (the path above comes first)

FOLDERS = ("operator", "worker")
# The module that defines the names.
VOCABULARY = "worker/disagg_wire/engines.py"
# The file that finds an engine's module by its name.
TABLE = "engines/table.py"
# The constants by which the names are imported; that of the bundled engine may also be a default.
_CONSTANTS = {k for k, v in vars(engines).items() if v in engines.ADAPTED}
_BUNDLED = {k for k, v in vars(engines).items() if v == engines.BUILTIN} | {engines.BUILTIN}


def is_module_of_an_engine(name: str) -> bool:
    """Return whether a file may name engines: it or a folder is named so, or it is their table."""
    path = Path(name)
    return name == VOCABULARY or name.endswith(f"/{TABLE}") or bool({path.stem, *path.parts} & set(engines.ENGINES))


def names_in(source: str) -> list[int]:
    """Return the lines of a module that name an engine, or compare with one."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = {line for node in ast.walk(tree) if id(node) not in docstrings for line in _lines(node)}
    return sorted(found)


def _lines(node: ast.AST) -> Iterator[int]:
    words = engines.ADAPTED if isinstance(node, ast.Constant) else _CONSTANTS
    if _word(node) in words:
        yield getattr(node, "lineno", 1)
    elif isinstance(node, ast.ImportFrom):
        if any(alias.name in _CONSTANTS for alias in node.names):
            yield node.lineno
    elif isinstance(node, ast.Compare | ast.match_case | ast.Dict):
        # The body of a case is no part of what is compared.
        compared: list[ast.AST] = [node.pattern] if isinstance(node, ast.match_case) else [node]
        parts = [k for k in node.keys if k] if isinstance(node, ast.Dict) else compared
        for part in parts:
            for inner in ast.walk(part):
                if _word(inner) in _BUNDLED:
                    yield getattr(inner, "lineno", 1)


def _word(node: ast.AST) -> object:
    """Return the name or the text that a node is."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.value if isinstance(node, ast.Constant) else None


def problems(root: Path) -> list[str]:
    """Return one line for each place that names an engine outside of the engines' modules."""
    out = []
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        name = str(path.relative_to(root))
        if not is_module_of_an_engine(name):
            lines = names_in(path.read_text(encoding="utf-8"))
            out += [f"{name}:{line}: names an engine; ask its module instead" for line in lines]
    return out


def main() -> None:
    """Print the places; exit 1 if there are any."""
    found = problems(ROOT)
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
