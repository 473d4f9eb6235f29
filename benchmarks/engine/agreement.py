"""Greedy tokens of the trained model by four engines in float32: identical, or different only where
two tokens tie.

    python -m benchmarks.engine.agreement [--out benchmarks/results]

transformers is the reference. Where another engine leaves it, the gap between the two likeliest
logits there tells a tie (rounding in another order decides) from a fault; the command fails on a
gap of 1e-4 or more.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.texts import MODEL, held_out
from benchmarks.engine import model, peers
from benchmarks.engine.process import Process
from benchmarks.machine import machine

PROMPTS, TOKENS, TIE = 48, 48, 1e-4
END = 0


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def gap(network: Any, tokens: list[int]) -> float:
    """Between the two likeliest next tokens."""
    with torch.inference_mode():
        best = network(torch.tensor([tokens])).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


def compare(
    reference: list[list[int]], found: list[list[int]], prompts: list[list[int]], network: Any
) -> dict[str, Any]:
    """How many are identical, and where the others leave the reference: prompt, position, gap."""
    differing = []
    for i, (expected, got) in enumerate(zip(reference, found, strict=True)):
        if expected != got:
            at = next(
                (k for k, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got))
            )
            differing.append({"prompt": i, "position": at, "gap": gap(network, prompts[i] + expected[:at])})
    return {"identical": len(found) - len(differing), "differing": differing}


def render(results: dict[str, Any]) -> str:
    out = [
        "# Greedy tokens: four engines, one model\n",
        f"Made by `make bench-agreement`. {results['machine']}.\n",
        "models/stdlib-llama in float32 (weights, activations, KV cache), one thread;",
        f"{results['prompts']} prompts of {results['shortest']} to {results['longest']} tokens from docstrings that it has not read,",
        f"up to {TOKENS} tokens each ({results['tokens']} in all). Reference: transformers. A tie: the two likeliest logits are less than",
        f"{TIE:g} apart.\n",
        "| engine | identical | different at a tie | different otherwise | widest gap left at |",
        "|---|---|---|---|---|",
    ]
    for name, r in results["engines"].items():
        ties = sum(d["gap"] < TIE for d in r["differing"])
        widest = max((d["gap"] for d in r["differing"]), default=None)
        shown = "-" if widest is None else f"{widest:.1e}"
        out.append(
            f"| {name} | {r['identical']} of {results['prompts']} | {ties} | {len(r['differing']) - ties} | {shown} |"
        )
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    folder: Path = parser.parse_args().out
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    (peers.cache() / "models").mkdir(parents=True, exist_ok=True)
    gguf = model.write_gguf(MODEL, peers.cache() / "models" / "stdlib-llama-float32.gguf", torch.float32)
    prompts = [ids[: 6 + i] for i, ids in enumerate(held_out(PROMPTS, 96, 96))]
    network = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    engines: dict[str, tuple[str, Path, dict[str, Any]]] = {
        "transformers": ("transformers", MODEL, {"dtype": "float32"}),
        "ours, CPU kernels": ("ours", MODEL, {"dtype": "float32"}),
        "ours, plain torch": ("ours", MODEL, {"dtype": "float32", "device": "plain"}),
        "vLLM": ("vllm", MODEL, {"dtype": "float32"}),
        "llama.cpp": ("llama_cpp", gguf, {"kv": "f32"}),
    }
    made: dict[str, list[list[int]]] = {}
    facts: dict[str, Any] = {}
    for name, (engine, path, options) in engines.items():
        process = Process(engine, path, options)
        made[name] = [until_end(process.ask(do="greedy", prompt=p, tokens=TOKENS)) for p in prompts]
        facts[name] = process.ask(do="facts")
        process.close()
    reference = made["transformers"]
    results: dict[str, Any] = {
        "machine": machine(),
        "versions": facts,
        "prompts": len(prompts),
        "shortest": min(map(len, prompts)),
        "longest": max(map(len, prompts)),
        "tokens": sum(map(len, reference)),
        "engines": {
            name: compare(reference, found, prompts, network) for name, found in made.items() if name != "transformers"
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agreement.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "agreement.md").write_text(render(results))
    print(render(results))
    sys.exit(any(d["gap"] >= TIE for r in results["engines"].values() for d in r["differing"]))


if __name__ == "__main__":
    main()
