"""Tests of every supported family against transformers in float32: whole prompts, prompts in chunks
and decoding, on every backend of this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.worker.runner import Runner, fed

from disagg_worker.backend.interface import Backend
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.backend.select import select

# The largest permitted difference of a logit; values are of the order of 1.
TOLERANCE = 1e-4
TOKENS = [(7 * i * i + 3 * i) % 89 for i in range(45)]
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 8},
    "one kv head": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "hidden_size": 32,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
    "as many kv heads": {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_size": 40,
        "head_dim": 20,
        "intermediate_size": 72,
    },
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("Llama", {}),
    "llama 3.1": ("Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear scaling": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral with a window": ("Mistral", {"sliding_window": 7}),
    "qwen 2": ("Qwen2", {}),
    "qwen 2.5, yarn": ("Qwen2", {"rope_parameters": {**YARN, "rope_theta": 1000000.0}}),
    "qwen 2 with windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen 3": ("Qwen3", {}),
    "qwen 3 with biases and windows": (
        "Qwen3",
        {"attention_bias": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
}
COMMON: dict[str, Any] = {
    "vocab_size": 89,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


class Checked:
    """A checkpoint that transformers has made and written, with its logits at every position."""

    def __init__(self, folder: Path, family: str, shape: str) -> None:
        import transformers

        name, changes = FAMILIES[family]
        config = getattr(transformers, f"{name}Config")(**{**COMMON, **SHAPES[shape], **changes})
        config._attn_implementation = "eager"
        torch.manual_seed(3)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            # Weights are large enough for attention to be selective, and biases are not zero.
            torch.nn.init.normal_(
                parameter, 1.0 if parameter.dim() == 1 and parameter.std() == 0 and parameter.mean() == 1 else 0.0, 0.2
            )
        model.save_pretrained(folder)
        self.folder = folder
        with torch.inference_mode():
            self.logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]


BACKENDS: dict[str, Callable[[], Backend]] = {
    "plain": lambda: PlainBackend(torch.device("cpu")),
    "cpu": lambda: select("cpu", 1),
}


@pytest.fixture(scope="module", params=[(f, s) for f in FAMILIES for s in SHAPES], ids=lambda p: f"{p[0]}, {p[1]}")
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    return Checked(tmp_path_factory.mktemp("model"), *request.param)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_are_those_of_transformers(checked: Checked, backend: str) -> None:
    runner = Runner(checked.folder, BACKENDS[backend]())
    whole = runner.prefill((fed(TOKENS), len(TOKENS)))[0]
    assert float((whole - checked.logits[-1]).abs().max()) <= TOLERANCE
    s = fed(TOKENS[:23])
    runner.prefill((s, 9))  # The first of two chunks ends within a block.
    found = [runner.prefill((s, 14))[0]]
    for token in TOKENS[23:]:
        s.tokens.append(token)
        found.append(runner.decode(s)[0])
    assert float((torch.stack(found) - checked.logits[22:]).abs().max()) <= TOLERANCE
