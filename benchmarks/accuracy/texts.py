"""Text that the bundled model has not read.

It consists of the docstrings of packages outside the standard library, as pinned by requirements/.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

MODEL = Path(__file__).resolve().parents[2] / "models" / "stdlib-llama"
PACKAGES = ("numpy", "networkx", "aiohttp", "jinja2", "pydantic", "starlette", "prometheus_client")


def docstrings(package: str) -> Iterator[str]:
    """Yield the docstrings of modules, classes and functions, file by file."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).rglob("*.py")):
            if "test" in str(path.relative_to(folder)):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
                    text := ast.get_docstring(node)
                ):
                    yield text


def held_out(texts: int, least_tokens: int, most_tokens: int) -> list[list[int]]:
    """Return the token ids of `texts` docstrings, from all packages in turn.

    Each has at least `least_tokens` and is cut to `most_tokens`.
    """
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    sources = [docstrings(p) for p in PACKAGES if importlib.util.find_spec(p)]
    out: list[list[int]] = []
    while sources and len(out) < texts:
        for source in list(sources):
            for text in source:
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                if len(ids) >= least_tokens:
                    out.append(ids[:most_tokens])
                    break
            else:
                sources.remove(source)
    return out[:texts]
