"""Prompts, and the comparison of generated tokens with those of transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer

from disagg_protocol.sampling_params import SamplingParams

MODEL = Path(__file__).parents[2] / "models" / "stdlib-llama"
PROMPTS, NEW_TOKENS, LONGEST_TOKENS = 100, 16, 1500
# Two logits that differ by less are a tie: the order of a float32 sum decides it, and either token
# is right.
TIE = 1e-4
SAMPLING = SamplingParams(seed=0, max_new_tokens=NEW_TOKENS, temperature=0.0)


def prompts() -> list[list[int]]:
    """Return prompts of real text and noise, with lengths from 1 to 1,500 that are spread evenly
    over their logarithm.
    """
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids: list[int] = tokenizer.encode((json.__doc__ or "") + Path(json.__file__).read_text(encoding="utf-8") * 2).ids
    rng = random.Random(7)
    lengths = [1, LONGEST_TOKENS, *(int(LONGEST_TOKENS ** rng.random()) for _ in range(PROMPTS - 2))]
    out = []
    for i, n in enumerate(lengths):
        start = rng.randrange(len(ids) - n)
        out.append([rng.randrange(2048) for _ in range(n)] if i % 10 == 9 else ids[start : start + n])
    return out


@torch.inference_mode()
def ties_and_errors(model: torch.nn.Module, prompt: list[int], found: list[int]) -> tuple[int, int]:
    """Compare each token with the best of transformers' logits after the same tokens.

    Returns the number of ties that went another way, and the number of real differences.
    """
    logits = model(torch.tensor([prompt + found[:-1]])).logits[0, len(prompt) - 1 :]
    short = logits.max(dim=-1).values - logits[torch.arange(len(found)), torch.tensor(found)]
    return int(((short > 0) & (short <= TIE)).sum()), int((short > TIE).sum())
