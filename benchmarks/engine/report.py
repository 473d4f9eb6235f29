"""The table of run.py. PURE."""

from __future__ import annotations

from typing import Any

from benchmarks.engine import model

_HEAD = """# The engine beside others, one processor core

Made by `make bench-engine`. The same random Llama of 88 million weights for all (width 768, 12 layers, 12 query and 4 KV heads, vocabulary
8,192); one thread each on one core, asked in turn. Tokens a second by processor time, in brackets by wall clock; `32x128` is a batch of 32
sequences whose prompts have 128 tokens. Ours is the whole engine (queues, schedulers, sampler, sinks), as is vLLM (its LLMEngine stepped
by hand); llama.cpp is its C API with a greedy choice; transformers is `generate`.
"""


def _rate(case: str, step_s: float) -> float:
    do, shape = case.split()
    batch, context = map(int, shape.split("x"))
    return (context if do == "prefill" else batch) / step_s


def kv_bytes(case: str, itemsize: int) -> float:
    """What a decode step reads of the cache."""
    batch, context = map(int, case.split()[1].split("x"))
    c = model.CONFIG
    return float(2 * c["num_hidden_layers"] * c["num_key_value_heads"] * c["head_dim"] * itemsize * batch * context)


def _shares(part: str, found: dict[str, Any]) -> list[str]:
    """How near our engine is to the roofs."""
    lines = []
    gb_per_s = found["roofs"]["read_gb_per_s"]
    for name, cases in found["step_s"].items():
        if not name.startswith("ours"):
            continue
        for case, times in cases.items():
            over = f"{100 * found['overhead'][f'{name}, {case}']:.1f} %"
            if case.startswith("decode"):
                n_bytes = found["weight_bytes"][name] + kv_bytes(case, 4 if part == "fp32" else 2)
                least_s = n_bytes / gb_per_s / 1e9
                roof = f"{n_bytes / 1e6:.0f} MB at {gb_per_s:.1f} GB/s: {1e3 * least_s:.2f} ms"
            else:
                least_s = found["roofs"][f"products_{case.split('x')[1]}_s"]
                roof = f"torch.matmul of the same products: {1e3 * least_s:.1f} ms"
            lines.append(
                f"| {name} | {case} | {1e3 * times['cpu']:.2f} ms | {roof} | {100 * least_s / times['cpu']:.0f} % | {over} |"
            )
    return lines


def render(results: dict[str, Any]) -> str:
    out = [_HEAD]
    for part, found in results.items():
        cases = list(next(iter(found["step_s"].values())))
        out += [f"\n## {part}\n", f"{found['machine']}; {found['rounds']} rounds.\n"]
        out += ["| tokens/s | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
        for name, times in found["step_s"].items():
            cells = (f"{_rate(c, times[c]['cpu']):.0f} ({_rate(c, times[c]['wall']):.0f})" for c in cases)
            out.append(f"| {name} | " + " | ".join(cells) + " |")
        out += [
            "\n| ours | case | a step | roof, measured in the same run | share of it | scheduler, sampler and Python |",
            "|---" * 6 + "|",
        ]
        out += _shares(part, found)
        versions = {f"{k} {v}" for facts in found["versions"].values() for k, v in facts.items() if k != "system"}
        out.append("\n" + ", ".join(sorted(versions)) + ".")
    return "\n".join(out) + "\n"
