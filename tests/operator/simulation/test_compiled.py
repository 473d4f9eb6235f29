"""Compiled code is never older than any of the sources that it was made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from disagg_operator.simulation import compiled

# A run with every kind of event; prints a digest of all that came out.
RUN = """
import hashlib, math
from dataclasses import replace
from disagg_operator.simulation import monolithic_workers
from disagg_operator.simulation.cluster import Cluster
from tests.operator.simulation.loads import PROFILE, SETUP, Restless, poisson
digest = hashlib.sha256()
engine = replace(PROFILE, batch_wait_s=0.05, batch_full_tokens=2000, take_in_s=0.001)
linked = replace(PROFILE, transfer_s_per_token=1e-5, handover_s=0.01)
for seed in range(2):
    for profile in (engine, linked):
        for order in ("FirstComeFirstServed", "EarliestDeadline"):
            setup = replace(
                SETUP, profile=profile, queue_order=order, aligned=seed == 1, drop_s=6.0, seed=seed,
                cold_start_s=(5.0, 20.0), grace_s=10.0, failures_per_worker_hour=20.0,
            )
            cluster = Cluster(poisson(25, 800, seed), setup).run(Restless(seed, flip=True))
            s = cluster.columns
            for column in (*s.requests, *s.prefill, *s.decode, *s.queues):
                digest.update(column.tobytes())
            digest.update(repr(cluster.counters).encode())
served = monolithic_workers.serve(poisson(9, 500, 3), replace(PROFILE, kv_tokens=9000, max_running=6), 2, 512)
digest.update(served.first_s.tobytes() + served.last_s.tobytes())
print(digest.hexdigest())
"""

CALLEE = "from compiled import njit\n\n@njit\ndef answer():\n    return {}\n"
CALLER = """from compiled import njit
from callee import answer

@njit
def ask():
    return answer()

print(ask())
"""


@pytest.mark.slow
def test_a_caller_in_another_file_is_compiled_again(tmp_path: Path) -> None:
    shutil.copy(compiled.__file__, tmp_path / "compiled.py")
    (tmp_path / "caller.py").write_text(CALLER)
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}

    def answers(n: int) -> str:
        (tmp_path / "callee.py").write_text(CALLEE.format(n))
        done = subprocess.run(
            [sys.executable, "-B", "caller.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout.strip()

    assert [answers(11), answers(11), answers(22)] == ["11", "11", "22"]
    (kept,) = (tmp_path / "__pycache__").glob("simulator-*")
    assert list(kept.rglob("*.nbi"))


def test_what_other_sources_left_goes_and_what_the_user_chose_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("1")
    old = compiled.cache_folder(tmp_path, "")
    old.mkdir(parents=True)
    (tmp_path / "__pycache__" / "one.pyc").write_text("")
    assert compiled.cache_folder(tmp_path, "") == old
    assert old.exists()

    (tmp_path / "one.py").write_text("2")
    new = compiled.cache_folder(tmp_path, "")
    assert new != old
    assert [p.name for p in (tmp_path / "__pycache__").iterdir()] == ["one.pyc"]

    chosen = tmp_path / "chosen"
    (chosen / old.name).mkdir(parents=True)
    assert compiled.cache_folder(tmp_path, str(chosen)) == chosen / new.name
    assert (chosen / old.name).exists()


@pytest.mark.slow
def test_uncompiled_code_does_the_same() -> None:
    root = Path(__file__).parents[3]

    def digest(disable_jit: str) -> str:
        path = os.pathsep.join([str(root / "operator"), str(root)])
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            env={**os.environ, "NUMBA_DISABLE_JIT": disable_jit, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=250,
            check=True,
        )
        return done.stdout

    assert digest("1") == digest("0")
