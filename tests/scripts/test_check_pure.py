"""A module that says PURE and is not is found, and one that is may stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts.check_pure import ROOT, candidates, problems, pure_modules, read_modules

PURE = '"""PURE: decides."""\n'


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "worker/disagg_x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if not (init := folder / "worker/disagg_x/__init__.py").exists():
        init.write_text("")
    return folder


def found(folder: Path, files: dict[str, str]) -> list[str]:
    return [str(problem) for problem in problems(read_modules(tree(folder, files)))]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import httpx", "imports httpx, which is neither"),
        ("from kubernetes.client import V1Pod", "imports kubernetes.client.V1Pod, which is neither"),
        ("def f():\n    import torch", "imports torch, which is neither"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import yaml", "imports yaml, which is neither"),
        ("import disagg_x.does", "imports disagg_x.does, which is not PURE"),
        ("from disagg_x import does", "imports disagg_x.does, which is not PURE"),
        ("from disagg_x.does import act", "imports disagg_x.does, which is not PURE"),
        ("from . import does", "imports disagg_x.does, which is not PURE"),
        ("from .does import act", "imports disagg_x.does, which is not PURE"),
        ("from disagg_x.gone import act", "imports disagg_x.gone.act, which does not exist"),
        ("import socket", "imports socket: the network"),
        ("import asyncio", "imports asyncio: threads"),
        ("import urllib.request", "imports urllib.request: the network"),
        ("from threading import Lock", "imports threading.Lock: threads"),
        ("from pathlib import Path", "imports pathlib.Path: files"),
        ("import pathlib\npathlib.Path('x')", "uses pathlib.Path: files"),
        ("import os\nx = os.environ", "uses os.environ: files"),
        ("import os\nx = os.path.exists('x')", "uses os.path.exists: files"),
        ("from os import path\nx = path.isfile('x')", "uses os.path.isfile: files"),
        ("x = open('y')", "uses open: files"),
        ("x = eval('1')", "uses eval: code"),
        ("import time", "imports time: the time"),
        ("from datetime import datetime\nx = datetime.now()", "uses datetime.datetime.now: the time"),
        ("import datetime as d\nx = d.date.today()", "uses datetime.date.today: the time"),
        ("import random\nx = random.random()", "uses random.random: randomness"),
        ("from random import choice", "imports random.choice: randomness"),
        ("import random\nx = random.Random()", "calls random.Random() without a seed"),
        ("import numpy as np\nx = np.random.rand(3)", "uses numpy.random.rand: randomness"),
        ("import numpy as np\nx = np.random.default_rng()", "calls numpy.random.default_rng() without a seed"),
        ("import numpy as np\nx = np.load('x')", "uses numpy.load: files"),
    ],
)  # fmt: skip
def test_a_pure_module_that_does_more_is_named_with_the_reason(tmp_path: Path, code: str, text: str) -> None:
    lines = found(tmp_path, {"decides.py": PURE + code + "\n", "does.py": "def act(): ...\n"})
    assert any(re.match(r"disagg_x\.decides:\d+: " + re.escape(text), line) for line in lines), lines


@pytest.mark.parametrize(
    "code",
    [
        "from __future__ import annotations\nimport dataclasses, json, math, re, hashlib",
        "import numpy as np\nfrom pydantic import BaseModel\nx = np.zeros(3)",
        "import os.path\nx = os.path.join('a', 'b')",
        "from pathlib import PurePosixPath",
        "import random\ndef f(seed): return random.Random(seed).random()",
        "import numpy as np\ndef f(seed): return np.random.default_rng(seed).normal()",
        "import numpy as np\ndef f(rng: np.random.Generator): return rng.normal()",
        "from datetime import datetime, timedelta\ndef f(now: datetime): return now + timedelta(seconds=1)",
        "def f(open): return open(1)",
        "from disagg_x import values\nfrom disagg_x.values import SIZE\nimport disagg_x.values",
        "from disagg_x.room.inner import y",
    ],
)
def test_a_pure_module_may_compute(tmp_path: Path, code: str) -> None:
    files = {"values.py": PURE + "SIZE = 3\n", "room/__init__.py": '"""A room."""\n', "room/inner.py": PURE + "y = 1\n"}
    assert found(tmp_path, {"decides.py": PURE + code + "\n", **files}) == []


def test_a_package_that_imports_is_run_by_each_module_in_it(tmp_path: Path) -> None:
    files = {"room/__init__.py": '"""A room."""\nimport json\n', "room/inner.py": PURE}
    assert found(tmp_path, files) == [
        "disagg_x.room.inner:1: imports disagg_x.room, the package around it, which imports something and is not PURE"
    ]
    assert found(tmp_path, files | {"room/__init__.py": PURE + "import json\n"}) == []


def test_a_module_that_does_not_say_pure_may_do_anything(tmp_path: Path) -> None:
    assert found(tmp_path, {"does.py": '"""Sends."""\nimport socket, torch\n'}) == []


def test_the_line_of_each_problem_is_told_once(tmp_path: Path) -> None:
    lines = found(tmp_path, {"decides.py": PURE + "import socket\n\n\nimport torch\n"})
    assert [line.split(":")[1] for line in lines] == ["2", "5"]


def test_a_chain_that_could_say_pure_is_proposed_whole(tmp_path: Path) -> None:
    modules = read_modules(
        tree(
            tmp_path,
            {
                "first.py": '"""Counts."""\nfrom disagg_x import second\n',
                "second.py": '"""Adds."""\nimport math\n',
                "third.py": '"""Sends."""\nfrom disagg_x import first\nimport socket\n',
                "fourth.py": '"""Sends too."""\nfrom disagg_x import third\n',
                "fifth.py": PURE,
            },
        )
    )
    assert candidates(modules) == ["disagg_x.first", "disagg_x.second"]


def test_pure_modules_are_those_that_say_so(tmp_path: Path) -> None:
    modules = read_modules(tree(tmp_path, {"a.py": PURE, "b.py": '"""About PURE modules."""\n', "c.py": ""}))
    assert [module.name for module in pure_modules(modules)] == ["disagg_x.a"]


def test_the_projects_own_pure_modules_keep_the_contract() -> None:
    modules = read_modules(ROOT)
    assert len(pure_modules(modules)) > 90
    assert problems(modules) == []
