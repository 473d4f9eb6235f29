"""Check the rules of the house that no linter knows.

They limit lengths, the size of the CRDs, names and the openings of docstrings.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CRD_BYTES = 120_000
MAX_FRAGMENT_SHARE = 0.03
PACKAGES = (
    "operator/disagg_operator",
    "worker/disagg_wire",
    "worker/disagg_protocol",
    "worker/disagg_worker",
    "worker/disagg_adapter",
    "worker/disagg_router",
)
# Folders beside each other that implement one interface have files of the same names.
SIBLINGS = ("worker/disagg_worker/backend/cpu", "worker/disagg_worker/backend/cuda")
# Recorded with release 0.1.0: never edited.
RECORDED = "tests/releases/0.1.0/"
# A docstring that opens with one of these is a fragment of a sentence.
FRAGMENTS = frozenset(
    ["of", "who", "whom", "what", "which", "that", "those", "where", "when", "how"],
)
# Endings that do not make another word of a file name.
ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ors", "or", "ies", "ed", "ion", "s", "e", "y")


def problems(root: Path) -> list[str]:
    """Return one line for each broken rule."""
    out = []
    if (root / "operator/__init__.py").exists():
        out.append("operator/__init__.py: shadows the standard library's module")
    trees: dict[str, ast.Module] = {}
    for name in _python_files(root):
        text = (root / name).read_text(encoding="utf-8")
        trees[name] = ast.parse(text)
        out.extend(_lengths(name, text, trees[name]))
    for package in PACKAGES:
        inside = {name: tree for name, tree in trees.items() if name.startswith(f"{package}/")}
        out.extend(_classes_twice(package, inside))
        out.extend(_files_twice(package, inside))
        out.extend(_file_twins(package, inside))
    out.extend(_fragments(trees))
    for path in sorted((root / "crds").glob("*.yaml")):
        if (size := len(json.dumps(yaml.safe_load(path.read_text()), separators=(",", ":")))) > MAX_CRD_BYTES:
            out.append(f"{path.name}: {size} bytes of JSON, {MAX_CRD_BYTES} at most")
    return out


def _python_files(root: Path) -> list[str]:
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in listed if (root / name).exists() and not name.startswith(RECORDED)]


def _lengths(name: str, text: str, tree: ast.Module) -> Iterator[str]:
    if (lines := text.count("\n")) > MAX_FILE_LINES:
        yield f"{name}: {lines} lines, {MAX_FILE_LINES} at most"
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {length} lines, {MAX_FUNCTION_LINES} at most"


def _classes_twice(package: str, trees: dict[str, ast.Module]) -> Iterator[str]:
    where: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                where[f"class {node.name}"].append(name)
    return _twice(package, where)


def _files_twice(package: str, trees: dict[str, ast.Module]) -> Iterator[str]:
    where: dict[str, list[str]] = defaultdict(list)
    for name in trees:
        if not Path(name).name.startswith("__"):
            where[f"the file name {Path(name).name}"].append(name)
    return _twice(package, where)


def _twice(package: str, where: dict[str, list[str]]) -> Iterator[str]:
    for thing, files in sorted(where.items()):
        if len(files) > 1 and not _are_siblings(files):
            yield f"{package}: {thing} stands in {', '.join(files)}"


def _file_twins(package: str, trees: dict[str, ast.Module]) -> Iterator[str]:
    """Names that differ in nothing but an ending, such as queue and queueing."""
    where: dict[str, set[str]] = defaultdict(set)
    for name in trees:
        if not Path(name).name.startswith("__"):
            where["_".join(map(_stem, Path(name).stem.split("_")))].add(Path(name).stem)
    for names in where.values():
        if len(names) > 1:
            yield f"{package}: the file names {', '.join(sorted(names))} are near twins"


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word.removesuffix(ending)
    return word


def _are_siblings(files: list[str]) -> bool:
    folders = {str(Path(file).parent) for file in files}
    return len(folders) == len(files) and folders <= set(SIBLINGS)


def _fragments(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Docstrings that open with a relative or question word; a few are allowed."""
    total, found = 0, []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            words = (ast.get_docstring(node) or "").removeprefix("PURE: ").split()
            if not words:
                continue
            total += 1
            if words[0].strip("`,.:;\"'").lower() in FRAGMENTS:
                found.append(f"{name}:{getattr(node, 'lineno', 1)}: {' '.join(words[:6])} ...")
    if total and len(found) / total > MAX_FRAGMENT_SHARE:
        yield f"{len(found)} of {total} docstrings open with a fragment, {MAX_FRAGMENT_SHARE:.0%} at most:"
        yield from found


def main() -> None:
    """Print the broken rules; exit 1 if there are any."""
    found = problems(Path(__file__).resolve().parent.parent)
    print("\n".join(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
