"""Holds PURE modules to their word.

A module whose docstring starts with PURE decides and does nothing: it imports, directly or not,
only the standard library, pydantic, numpy and other PURE modules, it reads and writes nothing, and
the time and randomness are arguments. `make lint` fails where one does more.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("operator", "worker")

# Packages from outside that compute and do nothing else.
COMPUTING = frozenset({"pydantic", "numpy"})

FILES = "files are read and written by the caller"
NETWORK = "the network is the caller's"
TASKS = "threads, processes and event loops are the caller's"
CLOCK = "the time is an argument"
CHANCE = "randomness is an argument: a random.Random or numpy.random.Generator with its seed"
SURROUNDINGS = "what the process finds around it is an argument"
LOADING = "code is imported by import statements only"

# Modules, or names in them, that a PURE module may not touch, and the reason that is printed. All
# that is below such a name is refused with it, except ALLOWED.
FORBIDDEN: Mapping[str, str] = {
    **dict.fromkeys(("os", "io", "shutil", "tempfile", "glob", "fileinput", "mmap", "fcntl", "pathlib.Path"), FILES),
    **dict.fromkeys(("pathlib.PosixPath", "pathlib.WindowsPath", "sqlite3", "dbm", "shelve", "pickle"), FILES),
    **dict.fromkeys(("zipfile", "tarfile", "linecache", "builtins.open", "builtins.print", "builtins.input"), FILES),
    **dict.fromkeys(("numpy.load", "numpy.save", "numpy.savez", "numpy.savez_compressed", "numpy.loadtxt"), FILES),
    **dict.fromkeys(("numpy.savetxt", "numpy.genfromtxt", "numpy.fromfile", "numpy.memmap", "logging"), FILES),
    **dict.fromkeys(("socket", "socketserver", "ssl", "select", "selectors", "http", "urllib.request"), NETWORK),
    **dict.fromkeys(("ftplib", "smtplib", "imaplib", "poplib", "xmlrpc", "webbrowser"), NETWORK),
    **dict.fromkeys(("asyncio", "subprocess", "multiprocessing", "threading", "_thread", "concurrent"), TASKS),
    **dict.fromkeys(("queue", "signal", "sched", "atexit", "pty"), TASKS),
    **dict.fromkeys(("time", "datetime.datetime.now", "datetime.datetime.utcnow"), CLOCK),
    **dict.fromkeys(("datetime.datetime.today", "datetime.date.today"), CLOCK),
    **dict.fromkeys(("random", "numpy.random", "secrets", "uuid.uuid1", "uuid.uuid4"), CHANCE),
    **dict.fromkeys(("sys.argv", "sys.stdin", "sys.stdout", "sys.stderr", "sys.exit", "sys.modules"), SURROUNDINGS),
    **dict.fromkeys(("platform", "getpass", "pwd", "grp", "locale", "argparse", "resource", "gc"), SURROUNDINGS),
    **dict.fromkeys(("importlib", "pkgutil", "runpy", "ctypes", "sys.path", "builtins.__import__"), LOADING),
    **dict.fromkeys(("builtins.eval", "builtins.exec", "builtins.compile"), LOADING),
}
ALLOWED = frozenset({
    "os.path.basename", "os.path.commonpath", "os.path.dirname", "os.path.join", "os.path.normpath", "os.path.split",
    "os.path.splitext", "io.BytesIO", "io.StringIO", "http.HTTPStatus", "random.Random", "numpy.random.Generator",
    "numpy.random.default_rng",
})  # fmt: skip
# Without an argument these take their seed from the operating system.
SEEDED = frozenset({"random.Random", "numpy.random.default_rng"})


@dataclass(frozen=True)
class Module:
    """A module of the project as its source text has it."""

    name: str
    path: Path
    tree: ast.Module
    is_package: bool

    @property
    def pure(self) -> bool:
        return (ast.get_docstring(self.tree) or "").startswith("PURE")

    @property
    def imports_nothing(self) -> bool:
        return not any(name.partition(".")[0] != "__future__" for name, _ in imported(self))


@dataclass(frozen=True)
class Problem:
    """A line of a PURE module that does not keep the contract."""

    module: Module
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.module.name}:{self.line}: {self.text}"


def read_modules(root: Path, folders: Iterable[str] = FOLDERS) -> dict[str, Module]:
    """Return every module of the packages in `folders`, by its dotted name."""
    found = {}
    for folder in folders:
        for path in sorted((root / folder).glob("disagg_*/**/*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")), is_package)
    return found


def pure_modules(modules: Mapping[str, Module]) -> list[Module]:
    """Return the modules whose docstring starts with PURE, sorted by name."""
    return [modules[name] for name in sorted(modules) if modules[name].pure]


def imported(module: Module) -> Iterator[tuple[str, int]]:
    """Yield the dotted name and line of all imports, those in functions and for types too.

    `from a import b` yields `a.b`, whether `b` is a module or a name in one.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{_origin(module, node)}.{alias.name}", node.lineno


def problems(modules: Mapping[str, Module]) -> list[Problem]:
    """Return each line on which a PURE module does or imports more than it may."""
    roots = {name.partition(".")[0] for name in modules}
    found = []
    for module in pure_modules(modules):
        lines = [*_parents(module.name, modules, 1)]
        for name, line in imported(module):
            lines += _import_problems(name, line, modules, roots)
        lines += _uses(module)
        found += [Problem(module, line, text) for line, text in sorted(set(lines))]
    return found


def candidates(modules: Mapping[str, Module]) -> list[str]:
    """Return the modules that would keep the contract and do not say PURE, empty packages left out.

    A module is taken as PURE as long as nothing speaks against it, so that a chain of modules that
    import each other is found whole.
    """
    assumed = {name: _marked(module) for name, module in modules.items()}
    while broken := {problem.module.name for problem in problems(assumed)}:
        for name in broken:
            assumed[name] = _unmarked(assumed[name])
    return [
        name
        for name, module in sorted(assumed.items())
        if module.pure and not modules[name].pure and not (module.is_package and module.imports_nothing)
    ]


def _import_problems(name: str, line: int, modules: Mapping[str, Module], roots: set[str]) -> Iterator[tuple[int, str]]:
    top = name.partition(".")[0]
    if top in roots:
        target = name if name in modules else name.rpartition(".")[0]
        if target not in modules:
            yield line, f"imports {name}, which does not exist"
        elif not modules[target].pure:
            if not (modules[target].is_package and modules[target].imports_nothing):
                yield line, f"imports {target}, which is not PURE"
            yield from _parents(target, modules, line)
    elif top in sys.stdlib_module_names or top in COMPUTING:
        if reason := _refusal(name):
            yield line, f"imports {name}: {reason}"
    else:
        yield line, f"imports {name}, which is neither the standard library, pydantic, numpy nor a PURE module"


def _parents(name: str, modules: Mapping[str, Module], line: int) -> Iterator[tuple[int, str]]:
    """Yield a problem for each package above `name` that is not PURE: importing `name` runs it.

    The packages above a PURE module are looked at where that module is.
    """
    while "." in name:
        name = name.rpartition(".")[0]
        if name in modules and not modules[name].pure and not modules[name].imports_nothing:
            yield line, f"imports {name}, the package around it, which imports something and is not PURE"


def _uses(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the names that the module reads through its imports, or from builtins, and may not."""
    aliases = _aliases(module)
    bound = {
        node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    bound |= {node.arg for node in ast.walk(module.tree) if isinstance(node, ast.arg)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = _dotted(node.func, aliases)
            if called in SEEDED and not (node.args or node.keywords):
                yield node.lineno, f"calls {called}() without a seed: {CHANCE}"
        elif isinstance(node, ast.Attribute):
            used = _dotted(node, aliases)
            if used and (reason := _refusal(used)):
                yield node.lineno, f"uses {used}: {reason}"
        elif isinstance(node, ast.Name) and node.id not in aliases and node.id not in bound:
            reason = FORBIDDEN.get(f"builtins.{node.id}")
            if reason:
                yield node.lineno, f"uses {node.id}: {reason}"


def _refusal(name: str) -> str | None:
    """Return why `name` is refused, or None.

    A name that holds an allowed one (`os` holds `os.path.join`) is not refused itself: what is read
    through it is looked at instead.
    """
    if any(name == allowed or name.startswith(allowed + ".") or allowed.startswith(name + ".") for allowed in ALLOWED):
        return None
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if reason := FORBIDDEN.get(".".join(parts[:length])):
            return reason
    return None


def _origin(module: Module, node: ast.ImportFrom) -> str:
    """Return the absolute name of the module after `from`."""
    if not node.level:
        return node.module or ""
    around = module.name.split(".")
    around = around[: len(around) - node.level + module.is_package]
    return ".".join([*around, *([node.module] if node.module else [])])


def _aliases(module: Module) -> dict[str, str]:
    """Return the local names that stand for an imported one, with its dotted name."""
    found = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{_origin(module, node)}.{alias.name}"
    return found


def _dotted(node: ast.expr, aliases: Mapping[str, str]) -> str | None:
    """Return the imported name that an expression such as `np.random.rand` stands for, or None."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value, aliases)):
        return f"{base}.{node.attr}"
    return None


def _marked(module: Module) -> Module:
    return Module(module.name, module.path, _with_docstring(module.tree, "PURE"), module.is_package)


def _unmarked(module: Module) -> Module:
    return Module(module.name, module.path, _with_docstring(module.tree, ""), module.is_package)


def _with_docstring(tree: ast.Module, text: str) -> ast.Module:
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    return ast.Module([ast.Expr(ast.Constant(text)), *body], tree.type_ignores)


def main() -> None:
    parser = argparse.ArgumentParser(description="Check that PURE modules import and do nothing but compute.")
    parser.add_argument("--list", action="store_true", help="print the PURE modules and their files")
    parser.add_argument("--candidates", action="store_true", help="print modules that could say PURE and do not")
    options = parser.parse_args()
    modules = read_modules(ROOT)
    if options.list:
        print("\n".join(f"{module.name} {module.path.relative_to(ROOT)}" for module in pure_modules(modules)))
    elif options.candidates:
        print("\n".join(candidates(modules)))
    else:
        found = problems(modules)
        print("\n".join(map(str, found)), end="\n" if found else "")
        sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
