"""Tests of the memory for loading: weights are mapped and taken over matrix by matrix, so that it
is one copy and one matrix, never two copies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.worker import checkpoints

REPO = Path(__file__).parents[3]
# The loaded model is kept until its memory has been read; samples during the load give the peak.
LOAD = """
import json, sys
import torch
from pathlib import Path
from disagg_worker.backend.select import select
from disagg_worker.model.loader import load_config
from disagg_worker.model.network import load_network

def anonymous():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

folder, backend = Path(sys.argv[1]), select("cpu", 1)
before, peak, fractions = anonymous(), 0, []
def progress(p):
    global peak
    peak = max(peak, anonymous())
    fractions.append(p.fraction)
loaded = load_network(folder, load_config(folder), torch.bfloat16, backend, on_progress=progress)
print(json.dumps({"peak": max(peak, anonymous()) - before, "after": anonymous() - before, "fractions": fractions}))
"""


@pytest.mark.slow
def test_a_load_needs_one_copy_of_the_weights(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    }
    config = {**checkpoints.TINY, **shape, "vocab_size": 4096, "dtype": "bfloat16"}
    tensors = {name: tensor.bfloat16() for name, tensor in checkpoints.random_tensors(config).items()}
    folder = checkpoints.write(tmp_path, config, tensors, shards=3)
    weights_bytes = sum(t.nbytes for t in tensors.values())
    largest_bytes = 2 * 2 * 768 * 2048  # Gate and up, one above the other.
    environment = os.environ | {"PYTHONPATH": str(REPO / "worker"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    slack_bytes = 48 << 20  # For partly used huge pages, the reader's buffer and the interpreter.
    assert measured["after"] < weights_bytes + slack_bytes
    assert measured["peak"] < weights_bytes + 2 * largest_bytes + slack_bytes
    assert measured["peak"] < 1.8 * weights_bytes
    assert measured["fractions"] == sorted(measured["fractions"])
    assert measured["fractions"][-1] > 0.99
