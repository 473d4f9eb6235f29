"""Our engine compared with vLLM, llama.cpp and transformers on one processor core.

All decode and prefill the same random Llama of 88M weights.

    python -m benchmarks.engine.run [--part bf16] [--rounds 3] [--out benchmarks/results]

Every engine has one thread, pinned to the same core, and idles while another one is asked. Each
round asks all engines for a case before the next case. Values are medians over rounds (prefill) or
steps (decode), in processor time and in wall-clock time. The first round is a warm-up. Parts are
measured one after another, each together with the roof lines of the machine; the table is written
again after each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import model, peers, report, roof
from benchmarks.engine.process import Process
from benchmarks.machine import machine

PARTS = ("bf16", "fp32", "integers")
# (what to do, batch, context in tokens, steps)
CASES = (
    ("prefill", 1, 128, 1),
    ("prefill", 1, 1024, 1),
    ("decode", 1, 128, 32),
    ("decode", 1, 1024, 32),
    ("decode", 8, 128, 16),
    ("decode", 32, 128, 8),
)


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    engine: str
    model: str
    options: dict[str, Any]


def contenders(part: str) -> list[Contender]:
    if part == "integers":
        ours = [
            Contender(f"ours {q}", "ours", "bfloat16", {"dtype": "bfloat16", "quantization": q})
            for q in ("int8", "int4")
        ]
        return ours + [Contender(f"llama.cpp {q}", "llama_cpp", f"{q}.gguf", {}) for q in ("q8_0", "q4_0")]
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[part]
    options = {"dtype": dtype}
    return [
        Contender(f"ours {part}", "ours", dtype, options),
        Contender(f"vLLM {part}", "vllm", dtype, options),
        Contender(f"llama.cpp {part}", "llama_cpp", f"{dtype}.gguf", {}),
        Contender(f"transformers {part}", "transformers", dtype, options),
    ]


def prepare(name: str) -> Path:
    """Return the random model in a dtype, as a GGUF, or as a GGUF quantized by llama.cpp's own
    tool.
    """
    folder = peers.cache() / "models"
    for dtype in (torch.float32, torch.bfloat16):
        plain = str(dtype).removeprefix("torch.")
        checkpoint = model.write_random(folder / f"random-88m-{plain}", dtype)
        if name == plain:
            return checkpoint
        gguf = model.write_gguf(checkpoint, folder / f"random-88m-{plain}.gguf", dtype)
        if name == f"{plain}.gguf":
            return gguf
    target = folder / f"random-88m-{name}"
    if not target.exists():
        code = (
            "import sys, llama_cpp as c; p = c.llama_model_quantize_default_params();"
            " p.ftype = int(sys.argv[3]); p.nthread = 1;"
            " sys.exit(c.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
        )
        source, kind = folder / "random-88m-float32.gguf", {"q8_0.gguf": "7", "q4_0.gguf": "2"}[name]
        part = target.with_suffix(".part")
        subprocess.run(
            [str(peers.python("llama_cpp")), "-c", code, str(source), str(part), kind],
            check=True,
            capture_output=True,
            timeout=300,
        )
        part.replace(target)
    return target


def weight_bytes(part: str, name: str) -> float:
    """Return the bytes of weights that one step reads.

    Integers have a scale and a zero point of 4 bytes each for 128 weights, and a bfloat16 head.
    """
    count = model.matrices(model.CONFIG)
    if part != "integers":
        return count * (2 if part == "bf16" else 4)
    head: int = model.CONFIG["vocab_size"] * model.CONFIG["hidden_size"]
    return float((count - head) * ((1 if "8" in name else 0.5) + 8 / 128) + head * 2)


def roofs(part: str) -> dict[str, float]:
    dtype = torch.float32 if part == "fp32" else torch.bfloat16
    n = model.matrices(model.CONFIG) * dtype.itemsize
    products = {f"products_{tokens}_s": roof.products_s(model.CONFIG, tokens, dtype, 2) for tokens in (128, 1024)}
    return {"read_gb_per_s": roof.read_gb_per_s(n), **products}


def measure(part: str, rounds: int) -> dict[str, Any]:
    entered = contenders(part)
    made = {c.name: prepare(c.model) for c in entered}
    for c in entered:
        peers.python(c.engine)
    running = {c.name: Process(c.engine, made[c.name], c.options) for c in entered}
    times: dict[str, dict[str, list[list[float]]]] = {name: {} for name in running}
    overhead: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}
    found: list[dict[str, float]] = []
    seed = 0
    for turn in range(rounds + 1):
        for do, batch, context, steps in CASES:
            if not turn and batch * context > 128:
                continue
            for name, process in running.items():
                seed += 1
                case = f"{do} {batch}x{context}"
                vocabulary = model.CONFIG["vocab_size"]
                got = process.ask(
                    do=do, batch=batch, context=context, steps=steps if turn else 2, vocabulary=vocabulary, seed=seed
                )
                facts[name] = process.ask(do="facts")
                if turn:
                    times[name].setdefault(case, []).extend(got)
                    if "network_share" in facts[name]:
                        overhead.setdefault(f"{name}, {case}", []).append(1 - facts[name]["network_share"])
        if turn:
            found.append(roofs(part))
    for process in running.values():
        process.close()
    return {
        "machine": machine(),
        "versions": {name: {k: v for k, v in f.items() if k != "network_share"} for name, f in facts.items()},
        "rounds": rounds,
        "roofs": {key: statistics.median(f[key] for f in found) for key in found[0]},
        "weight_bytes": {name: weight_bytes(part, name) for name in running},
        "step_s": {
            name: {
                case: {"wall": statistics.median(t[0] for t in ts), "cpu": statistics.median(t[1] for t in ts)}
                for case, ts in cases.items()
            }
            for name, cases in times.items()
        },
        "overhead": {case: statistics.median(shares) for case, shares in overhead.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    # All engines use one core, so anything that runs on the others does not matter.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    store = arguments.out / "engine.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in arguments.part or PARTS:
        found = measure(part, arguments.rounds)
        results: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
        results = {p: r for p in PARTS if (r := found if p == part else results.get(p))}
        store.write_text(json.dumps(results, indent=1) + "\n")
        (arguments.out / "engine.md").write_text(report.render(results))
    print((arguments.out / "engine.md").read_text())


if __name__ == "__main__":
    main()
