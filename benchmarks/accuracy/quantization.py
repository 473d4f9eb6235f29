"""The cost of each quantization in accuracy, on text that the trained model has not read.

It is measured as cross-entropy and greedy agreement.

    python -m benchmarks.accuracy.quantization [--out benchmarks/results]

Only weights are quantized, as at load (engine setting `quantization`). `reference` computes in
plain torch in float32 on the exact values of the weights, so that the change is caused by the
weights alone; `kernels` is what a CPU worker runs, with the KV cache in bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.texts import MODEL, PACKAGES, held_out
from benchmarks.machine import machine
from disagg_worker.backend.interface import Backend, Batch, Chunk, DenseWeight, Weight
from disagg_worker.backend.plain import PlainBackend, dequantized
from disagg_worker.backend.select import select
from disagg_worker.model.checkpoint import Checkpoint
from disagg_worker.model.config import ModelConfig
from disagg_worker.model.decoder import Decoder
from disagg_worker.model.loader import load_config
from disagg_worker.model.quantization import quantize, to_fp8
from disagg_worker.model.weights import FloatWeights, Shard, Split, WeightSource

TEXTS, LEAST_TOKENS, MOST_TOKENS = 64, 96, 512


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of storing and computing the weights."""

    name: str
    """The name in the report."""
    dtype: torch.dtype = torch.bfloat16
    """The data type of the model."""
    kind: str = "none"
    """The quantization: "none", "int8", "int4" or "fp8"."""
    group: int = 0
    """The number of inputs that share a scale."""
    kernels: bool = False
    """Whether the CPU kernels compute; otherwise plain torch does, in float32."""


VARIANTS = (
    Variant("fp32", torch.float32),
    Variant("bf16, kernels", kernels=True),
    Variant("fp8 weights, one scale per row", kind="fp8"),
    *(Variant(f"int8, groups of {g}", kind="int8", group=g) for g in (128, 64, 32)),
    *(Variant(f"int4, groups of {g}", kind="int4", group=g) for g in (128, 64, 32)),
    Variant("int8, groups of 64, kernels", kind="int8", group=64, kernels=True),
    Variant("int4, groups of 64, kernels", kind="int4", group=64, kernels=True),
)


class Quantized:
    """A WeightSource that quantizes as model.quantization does, with a given group size."""

    def __init__(self, source: WeightSource, variant: Variant) -> None:
        self._source, self._variant = source, variant
        self.embedding, self.head, self.vector, self.bias = source.embedding, source.head, source.vector, source.bias

    def matrix(self, names: Sequence[str], split: Split) -> Weight:
        weight = self._source.matrix(names, split)
        v = self._variant
        if v.kind == "none" or not isinstance(weight, DenseWeight):
            return weight
        group = v.group if v.group and weight.weight.shape[1] % v.group == 0 else 32
        made = to_fp8(weight.weight) if v.kind == "fp8" else quantize(weight.weight, int(v.kind[3:]), group)
        return made if v.kernels else DenseWeight(dequantized(made))


def network(variant: Variant, config: ModelConfig) -> Decoder:
    backend: Backend = select("cpu", 1) if variant.kernels else PlainBackend(torch.device("cpu"))
    with Checkpoint(MODEL, None) as checkpoint:
        # Plain torch computes in the data type of the model; float32 holds every stored value.
        source = FloatWeights(checkpoint, config, variant.dtype if variant.kernels else torch.float32, Shard())
        return Decoder(config, Quantized(source, variant), backend, MOST_TOKENS)


@torch.inference_mode()
def logits(net: Decoder, ids: list[int], cache: torch.Tensor) -> torch.Tensor:
    """Return the logits of every position of one text, [tokens, vocab]."""
    at, size = torch.arange(len(ids)), cache.shape[4]
    table = torch.arange(-(-len(ids) // size))
    return net.forward(Batch(torch.tensor(ids), at, at, at, (Chunk(0, len(ids), 0, table),)), cache)


def evaluate(
    variant: Variant, texts: list[list[int]], reference: list[torch.Tensor] | None
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Return the figures of a variant, and the likeliest tokens of each text.

    The figures are the cross-entropy (nats per token) over all texts, and how often the likeliest
    token is that of the reference.
    """
    config = load_config(MODEL)
    net = network(variant, config)
    cache_dtype = torch.bfloat16 if variant.kernels else torch.float32
    cache = torch.zeros(MOST_TOKENS // 16, config.layers, 2, config.kv_heads, 16, config.head_dim, dtype=cache_dtype)
    loss, count, same, best = 0.0, 0, 0, []
    for i, ids in enumerate(texts):
        found = logits(net, ids, cache).double()
        loss += torch.nn.functional.cross_entropy(found[:-1], torch.tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
        best.append(found.argmax(-1))
        same += int((best[i] == (reference[i] if reference else best[i])).sum())
    mean = loss / count
    return {
        "cross_entropy": mean,
        "perplexity": torch.tensor(mean).exp().item(),
        "same_token": same / sum(map(len, texts)),
    }, best


def render(results: dict[str, Any]) -> str:
    out = [
        "# Accuracy cost of quantisation\n",
        f"Generated by `make bench-accuracy`. {results['machine']}, torch {results['torch']}.\n",
        "The model is models/stdlib-llama (5 million weights; small models are more sensitive than large ones). The",
        f"test data are {results['tokens']} tokens of {results['texts']} docstrings of {', '.join(PACKAGES)},",
        "none of which are in its training data. `change` is the change in cross-entropy compared with fp32;",
        "`same token` is how often the most likely next token is that of fp32.\n",
        "Rows without `kernels` compute in float32 on the exact values of the quantised weights. Rows with it run",
        "the kernels of the CPU worker with the KV cache in bfloat16. The checkpoint is stored in bfloat16, so bf16",
        "weights alone lose nothing. fp8 weights are intended for GPUs; here, their values are computed in float32.\n",
        "| weights | cross-entropy (nats per token) | change | perplexity | same token |",
        "|---|---|---|---|---|",
    ]
    base = results["variants"]["fp32"]["cross_entropy"]
    for name, r in results["variants"].items():
        change = f"{r['cross_entropy'] - base:+.5f} ({100 * (r['cross_entropy'] / base - 1):+.3f} %)"
        out.append(
            f"| {name} | {r['cross_entropy']:.5f} | {change} | {r['perplexity']:.3f} | {100 * r['same_token']:.2f} % |"
        )
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    folder: Path = parser.parse_args().out
    torch.set_num_threads(1)
    texts = held_out(TEXTS, LEAST_TOKENS, MOST_TOKENS)
    reference: list[torch.Tensor] | None = None
    found = {}
    for variant in VARIANTS:
        found[variant.name], best = evaluate(variant, texts, reference)
        reference = reference or best
    results = {
        "machine": machine(),
        "torch": torch.__version__,
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
        "variants": found,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accuracy.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "accuracy.md").write_text(render(results))
    print(render(results))


if __name__ == "__main__":
    main()
