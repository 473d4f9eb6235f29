"""The `generate` of transformers, timed at every call of its stopping criterion."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.engine import loop


class _Clock(StoppingCriteria):  # type: ignore[misc]
    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.marks.append(loop.now())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Transformers:
    """The Engine of transformers. Its option is dtype."""

    def __init__(self, folder: str, options: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options["dtype"]))

    def _generate(self, prompts: list[list[int]], tokens: int) -> tuple[list[tuple[float, float]], list[list[int]]]:
        clock, ids = _Clock(), torch.tensor(prompts)
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return clock.marks, out[:, ids.shape[1] :].tolist()

    def prefill(self, prompt: list[int]) -> list[tuple[float, float]]:
        start = loop.now()
        marks, _ = self._generate([prompt], 1)
        return loop.between([start, *marks])

    def decode(self, prompts: list[list[int]], steps: int) -> list[tuple[float, float]]:
        return loop.between(self._generate(prompts, steps + 1)[0])

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        found: list[int] = out[0, len(prompt) :].tolist()
        return found

    def facts(self) -> dict[str, Any]:
        return {"transformers": version("transformers"), "torch": torch.__version__}


if __name__ == "__main__":
    loop.serve(Transformers)
