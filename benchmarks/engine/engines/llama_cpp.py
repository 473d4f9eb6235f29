"""The engine llama.cpp, through the C API that llama-cpp-python binds.

A step is one `llama_decode` and the greedy choice by numpy.
"""

from __future__ import annotations

import ctypes
import importlib
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.engine import loop

_CONTEXT_TOKENS = 8192
_SEQUENCES = 32


class LlamaCpp:
    """The Engine of llama.cpp. Its option is kv: "f16", which is the default there, or "f32"."""

    def __init__(self, file: str, options: dict[str, Any]) -> None:
        self._c: Any = importlib.import_module("llama_cpp")
        c = self._c
        c.llama_backend_init()
        model = c.llama_model_load_from_file(file.encode(), c.llama_model_default_params())
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = _CONTEXT_TOKENS, 2048, _SEQUENCES
        params.n_threads = params.n_threads_batch = 1
        params.kv_unified = True
        if options.get("kv") == "f32":
            params.type_k = params.type_v = c.GGML_TYPE_F32
        self._context = c.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp made no context")
        self._vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
        self._batch = c.llama_batch_init(2048, 0, 1)

    def _compute(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Compute rows of (token, position, sequence, whether its logits are wanted)."""
        b = self._batch
        b.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, wanted
            b.seq_id[i][0] = sequence
        if code := self._c.llama_decode(self._context, b):
            raise RuntimeError(f"llama_decode: {code}")

    def _best(self, i: int) -> int:
        at = self._c.llama_get_logits_ith(self._context, i)
        found = np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_float)), shape=(self._vocabulary,))
        return int(found.argmax())

    def _clear(self) -> None:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)

    def _prompt(self, prompt: list[int], sequence: int) -> int:
        last = len(prompt) - 1
        self._compute([(token, i, sequence, i == last) for i, token in enumerate(prompt)])
        return self._best(last)

    def prefill(self, prompt: list[int]) -> list[tuple[float, float]]:
        self._clear()
        start = loop.now()
        self._prompt(prompt, 0)
        return loop.between([start, loop.now()])

    def decode(self, prompts: list[list[int]], steps: int) -> list[tuple[float, float]]:
        self._clear()
        tokens = [self._prompt(p, i) for i, p in enumerate(prompts)]
        marks = [loop.now()]
        for step in range(steps):
            self._compute([(t, len(prompts[i]) + step, i, True) for i, t in enumerate(tokens)])
            tokens = [self._best(i) for i in range(len(tokens))]
            marks.append(loop.now())
        return loop.between(marks)

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        self._clear()
        out = [self._prompt(prompt, 0)]
        while len(out) < tokens:
            self._compute([(out[-1], len(prompt) + len(out) - 1, 0, True)])
            out.append(self._best(0))
        return out

    def facts(self) -> dict[str, Any]:
        return {"llama-cpp-python": version("llama-cpp-python"), "system": self._c.llama_print_system_info().decode()}


if __name__ == "__main__":
    loop.serve(LlamaCpp)
