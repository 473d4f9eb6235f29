"""The limits of the machine, measured in the same run with one thread.

They are the bytes read from memory and the products of matrices with torch.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

_SOURCE = Path(__file__).with_name("roof.cpp")


def read_gb_per_s(n_bytes: int) -> float:
    """Return the best rate of several ways of reading `n_bytes` once."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/roof"
        subprocess.run(["g++", "-O3", "-march=native", "-w", str(_SOURCE), "-o", program], check=True, timeout=60)
        out = subprocess.run([program, str(n_bytes)], check=True, capture_output=True, text=True, timeout=120)
    return max(float(line) for line in out.stdout.split())


def _median_s(f: Callable[[], Any], times: int) -> float:
    f()
    found = []
    for _ in range(times):
        start = time.process_time()
        f()
        found.append(time.process_time() - start)
    return statistics.median(found)


def _products(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
    for w in weights:
        torch.nn.functional.linear(x, w)


def products_s(config: dict[str, Any], tokens: int, dtype: torch.dtype, times: int = 5) -> float:
    """Return the seconds that torch.matmul takes for the products of one prefill, and nothing else.

    They are every matrix of every layer, the head for one row, and the two products of attention,
    of which half is counted because half is masked.
    """
    torch.set_num_threads(1)
    h, inner, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    qkv = (heads + 2 * config["num_key_value_heads"]) * d
    total = 0.0
    for out, inputs in ((qkv, h), (h, heads * d), (2 * inner, h), (h, inner)):
        # There is one weight for each layer: a matrix that stays in the cache would not be
        # realistic.
        weights = [torch.randn(out, inputs).to(dtype) for _ in range(layers)]
        x = torch.randn(tokens, inputs).to(dtype)
        total += _median_s(partial(_products, x, weights), times)
    q, k, v = (torch.randn(heads, tokens, d).to(dtype) for _ in range(3))
    p = torch.rand(heads, tokens, tokens).to(dtype)
    total += layers / 2 * _median_s(lambda: (q @ k.transpose(1, 2), p @ v), times)
    head, row = torch.randn(config["vocab_size"], h).to(dtype), torch.randn(1, h).to(dtype)
    return float(total + _median_s(lambda: torch.nn.functional.linear(row, head), times))
