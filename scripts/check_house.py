"""The rules of the house that no linter knows.

They limit the length of files and functions and the size of CRDs, and forbid a package in operator/
itself.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import yaml

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CRD_BYTES = 120_000


def problems(root: Path) -> list[str]:
    """Return one line for each broken rule."""
    out = []
    if (root / "operator/__init__.py").exists():
        out.append("operator/__init__.py: shadows the standard library's module")
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        path = root / name
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            out.append(f"{name}: {lines} lines, {MAX_FILE_LINES} at most")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES:
                out.append(f"{name}:{node.lineno}: {node.name} has {length} lines, {MAX_FUNCTION_LINES} at most")
    for path in sorted((root / "crds").glob("*.yaml")):
        if (size := len(json.dumps(yaml.safe_load(path.read_text()), separators=(",", ":")))) > MAX_CRD_BYTES:
            out.append(f"{path.name}: {size} bytes of JSON, {MAX_CRD_BYTES} at most")
    return out


def main() -> None:
    found = problems(Path(__file__).resolve().parent.parent)
    print("\n".join(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
