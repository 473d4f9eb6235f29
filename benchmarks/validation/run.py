"""The simulator compared with the real stack.

The same requests are served by a router, a prefill worker and a decode worker here, and by the
simulator.

    python -m benchmarks.validation.run profile          # a short measurement by `disagg profile`
    python -m benchmarks.validation.run load NAME ...    # serve these loads (default: all)
    python -m benchmarks.validation.run all              # both
    python -m benchmarks.validation.run report           # simulate the same requests

`load` keeps the measurements, and `report` writes benchmarks/results/validation.md. The parts may
run one after the other, so that none takes the machine for long.

Requests arrive at their own times (Poisson), regardless of the answers. The workers run with one
thread each. The model has 88 million random weights: large enough that most of the time is spent in
the two workers and not in router and client on the same cores, and small enough for hundreds of
requests in minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from benchmarks.machine import machine
from benchmarks.validation.cores import busy_neighbours, pin_prefill
from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.cli.processes import free_port
from disagg_operator.cli.served_endpoint import ServedEndpoint
from disagg_operator.performance import profile as profiles
from disagg_operator.performance import profile_file
from disagg_operator.planning.traffic import log_normal
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.ordering import FIRST_COME, ORDERS
from disagg_operator.simulation.traces import Trace

_HERE = Path(__file__).parent
_DISAGG = str(Path(sys.executable).with_name("disagg"))
_START_S = 120.0
_KV_BYTES = 2 * 12 * 4 * 64 * 2  # of one token
_KV_TOKENS = (256 << 20) // _KV_BYTES  # in the default kvCacheSize
_SHAPE = {"vocab_size": 2048, "eos_token_id": 0, "bos_token_id": None}
_TOKENIZER = Path("models/stdlib-llama")
_PROFILE_SECONDS = 50.0
_IN_TIME = "first tokens in time %"


@dataclass(frozen=True, slots=True)
class Load:
    """A load on the stack."""

    share: float
    """The share of the prefill worker's time that the prompts take; 0 for all requests at once."""
    prompt: tuple[float, float]
    """The mean and the 99th percentile of prompt lengths, in tokens."""
    output: tuple[float, float]
    """The mean and the 99th percentile of output lengths, in tokens."""
    seconds: float = 20.0
    """The seconds during which requests arrive."""
    requests: int = 0
    """The number of requests, or 0 for no limit."""
    order: str = FIRST_COME
    """The order of waiting prompts."""


LOADS = {
    "chat 30 %": Load(0.3, (160, 400), (40, 120)),
    "chat 50 %": Load(0.5, (160, 400), (40, 120)),
    "chat 70 %": Load(0.7, (160, 400), (40, 120)),
    "chat 85 %": Load(0.85, (160, 400), (40, 120)),
    "long prompts 50 %": Load(0.5, (400, 800), (20, 60), seconds=30.0),
    "long answers 20 %": Load(0.2, (96, 240), (150, 400)),
    "all at once": Load(0.0, (160, 400), (40, 120), requests=60),
    **{f"chat 100 %, {order}": Load(1.0, (160, 400), (20, 60), seconds=60.0, order=order) for order in ORDERS},
}
# The objective by which prompts are ordered: this time, or 5 times that of the prompt alone.
_TTFT_S = 1.0


def requests(load: Load, profile: profiles.Profile, seed: int) -> Trace:
    """Return Poisson arrivals with log-normal lengths, the same for the same seed.

    Prompts have 16 to 900 tokens, answers 2 to 900.
    """
    draw = random.Random(seed)
    kinds = [log_normal(*load.prompt, "prompt"), log_normal(*load.output, "output")]
    bounds = [(16, 900), (2, 900)]

    def length(i: int) -> int:
        return min(bounds[i][1], max(bounds[i][0], round(draw.lognormvariate(kinds[i].mu, kinds[i].sigma))))

    lengths = [(length(0), length(1)) for _ in range(5000)]
    mean_s = sum(profile.isolated_s(n) for n, _ in lengths) / len(lengths)
    found: list[tuple[float, int, int]] = []
    at = 0.0
    for n, m in lengths:
        if load.share:
            at += draw.expovariate(load.share / mean_s)
        if at > load.seconds or (load.requests and len(found) >= load.requests):
            break
        found.append((at, n, m))
    arrival, prompt, output = (np.array(column) for column in zip(*found, strict=True))
    return Trace(
        "validation",
        arrival.astype(float),
        prompt.astype(np.int64),
        np.zeros(len(found), np.int64),
        output.astype(np.int64),
    )


# ---- the real stack ----


def model(folder: Path) -> Path:
    """Write the checkpoint unless it exists, and return its folder."""
    if not (folder / "config.json").is_file():
        from safetensors.torch import save_file

        from benchmarks.engine.model import CONFIG, random_tensors

        folder.mkdir(parents=True, exist_ok=True)
        config = {**CONFIG, **_SHAPE}
        save_file(
            {k: t.bfloat16() for k, t in random_tensors(config)},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(_TOKENIZER / name, folder)
        (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    return folder


@contextmanager
def stack(folder: Path, cpus: tuple[int, int] | None, order: str, profile: profiles.Profile | None) -> Iterator[str]:
    """Run `disagg local` with the deployment, and yield the base URL of its API.

    From the profile, the router knows how long a prompt takes alone.
    """
    port = free_port()
    resource = yaml.safe_load((_HERE / "deployment.yaml").read_text())
    resource["spec"]["model"] = {"uri": f"file://{model(folder / 'model').resolve()}", "name": "validation"}
    resource["spec"]["router"]["queue"] = {"order": order}
    resource["spec"]["objectives"] = {"ttftSeconds": {"p99": _TTFT_S}}
    if profile is not None:
        p = profile
        prefill = {"base": p.a_s, "perToken": p.b_s_per_token, "perToken2": p.c_s_per_token2}
        decode = {
            "base": p.d_s,
            "perSequence": p.e_s_per_sequence,
            "perKvToken": p.f_s_per_token,
            "kvTokens": _KV_TOKENS,
        }
        resource["spec"]["scaling"] = {"profile": {"prefill": prefill, "decode": decode}}
    (folder / "deployment.yaml").write_text(yaml.safe_dump(resource))
    command = [_DISAGG, "local", "-f", str(folder / "deployment.yaml"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait(child, url)
            if cpus is not None:
                pin_prefill(child.pid, cpus[0])
            yield url
        finally:
            child.send_signal(signal.SIGINT)
            child.wait(60)


def _wait(child: subprocess.Popen[bytes], url: str) -> None:
    body = {"model": "validation", "prompt": "x", "max_tokens": 2}
    until_s = time.monotonic() + _START_S
    while True:
        try:
            if httpx.post(f"{url}/completions", json=body, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if child.poll() is not None or time.monotonic() > until_s:
            raise RuntimeError("the stack does not serve")
        time.sleep(0.2)


async def serve(url: str, trace: Trace) -> dict[str, list[float]]:
    """Send each request at its time, and return times in seconds from the beginning of the
    trace.
    """
    rows: list[tuple[float, float, float, float]] = []
    async with ServedEndpoint(url, None, None) as endpoint:
        await asyncio.gather(*(endpoint.ask(endpoint.prompt(64), 8) for _ in range(8)))
        begin_s = time.monotonic() + 0.2

        async def one(i: int) -> None:
            prompt = endpoint.prompt(int(trace.prompt_tokens[i]))
            await asyncio.sleep(begin_s + float(trace.arrival_s[i]) - time.monotonic())
            answer = await endpoint.ask(prompt, int(trace.output_tokens[i]))
            if answer.output_tokens != trace.output_tokens[i] or answer.prompt_tokens != trace.prompt_tokens[i]:
                raise RuntimeError(f"request {i}: {answer.prompt_tokens} and {answer.output_tokens} tokens")
            rows.append((i, answer.sent_s - begin_s, answer.events_s[0] - begin_s, answer.events_s[-1] - begin_s))

        async with asyncio.TaskGroup() as group:
            for i in range(len(trace)):
                group.create_task(one(i))
    rows.sort()
    asked = {
        "arrival_s": trace.arrival_s.tolist(),
        "prompt_tokens": trace.prompt_tokens.tolist(),
        "output_tokens": trace.output_tokens.tolist(),
    }
    return asked | {name: [row[1 + i] for row in rows] for i, name in enumerate(("sent_s", "first_s", "last_s"))}


# ---- prediction and comparison ----


def predict(trace: Trace, profile: profiles.Profile, order: str) -> dict[str, Any]:
    """Return the prediction of the simulator for the same requests on one worker of each kind."""
    setup = Setup(
        profile,
        ttft_least_s=_TTFT_S,
        initial=(1, 1),
        most=1,
        unscored_s=0.0,
        aligned=True,
        routers=1,
        drop_s=math.inf,
        queue_order=order,
    )
    s = Cluster(trace, setup).run(lambda _: Targets(1, 1)).requests
    return {"sent_s": s.arrival_s, "first_s": s.first_s, "last_s": s.last_s}


def figures(trace: Trace, times: dict[str, Any], profile: profiles.Profile) -> dict[str, float]:
    """Return the figures of one load.

    They are TTFT and TPOT in ms at the median and the 99th percentile, output tokens per second
    from the first request to the last token, and the share of first tokens in time.
    """
    sent, first, last = (np.asarray(times[name]) for name in ("sent_s", "first_s", "last_s"))
    many = trace.output_tokens > 1
    limits_s = [max(_TTFT_S, 5 * profile.isolated_s(float(n))) for n in trace.prompt_tokens]
    ttft, tpot = 1e3 * (first - sent), 1e3 * (last - first)[many] / (trace.output_tokens - 1)[many]
    return {
        "TTFT p50 ms": float(np.median(ttft)), "TTFT p99 ms": float(np.quantile(ttft, 0.99)),
        "TPOT p50 ms": float(np.median(tpot)), "TPOT p99 ms": float(np.quantile(tpot, 0.99)),
        "tokens/s": float(trace.output_tokens.sum() / (last.max() - sent.min())),
        _IN_TIME: 100 * float(np.mean(ttft <= 1e3 * np.array(limits_s))),
    }  # fmt: skip


def report(folder: Path, out: Path, note: str) -> str:
    """Write all figures and the table to `out`, and return the table as Markdown."""
    profile = profile_file.load(str(folder / "profile.json"))
    raw: dict[str, Any] = {"machine": machine(), "profile": asdict(profile), "loads": {}}
    head = ("TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "TPOT p99 ms", "tokens/s")
    lines = [
        "# The simulator against the bundled engine", "",
        f"Generated by `make bench-validation`. {machine()}.", "",
        "A router, one prefill worker and one decode worker with one thread each (`benchmarks/validation`) served each",
        "list of requests. The simulator served the same lists, based on the profile that `disagg profile` fitted in",
        f"{_PROFILE_SECONDS:.0f} s. The cells contain measured / predicted (error of the prediction). "
        "The goal is 10 % at the median and in",
        "tokens/s, and 20 % at p99; cells in **bold** miss it.", "",
        "| load | requests | " + " | ".join(head) + " |", "|---|---|" + "---|" * len(head),
    ]  # fmt: skip
    for name in LOADS:
        file = folder / f"{name}.json"
        if not file.is_file():
            continue
        measured = json.loads(file.read_text())
        prompt, output = (np.array(measured[k], np.int64) for k in ("prompt_tokens", "output_tokens"))
        trace = Trace(name, np.array(measured["arrival_s"]), prompt, np.zeros(len(prompt), np.int64), output)
        predicted = predict(trace, profile, LOADS[name].order)
        real, said = (figures(trace, times, profile) for times in (measured, predicted))
        raw["loads"][name] = {"requests": len(trace), "measured": real, "predicted": said}
        lines.append(f"| {name} | {len(trace)} | " + " | ".join(_cell(k, real[k], said[k]) for k in head) + " |")
    lines += _orders(raw["loads"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "validation.json").write_text(json.dumps(raw, indent=1) + "\n")
    lines += ["", *_profile_lines(profile), *(["", note] if note else [])]
    text = "\n".join(lines) + "\n"
    (out / "validation.md").write_text(text)
    return text


def _orders(loads: dict[str, Any]) -> list[str]:
    """Return what the order of waiting prompts changes, for loads that were served with both
    orders.
    """
    lines = []
    for name in (n for n in LOADS if LOADS[n].order != FIRST_COME and n in loads):
        other = name.replace(LOADS[name].order, FIRST_COME)
        if other not in loads:
            continue
        shares = [f"{loads[n][k][_IN_TIME]:.0f} %" for n in (other, name) for k in ("measured", "predicted")]
        text = (
            "First tokens within max({:g} s, 5 times the time alone) at {}: "
            "{} in order of arrival (predicted {}), {} by deadline (predicted {})."
        )
        lines += ["", text.format(_TTFT_S, name.partition(",")[0], *shares)]
    return lines


def _profile_lines(p: profiles.Profile) -> list[str]:
    prefill = (
        f"{1e3 * p.a_s:.2f} ms + {1e6 * p.b_s_per_token:.0f} us per token + {1e9 * p.c_s_per_token2:.0f} ns per token^2"
    )
    step = f"{1e3 * p.d_s:.2f} ms + {1e6 * p.e_s_per_sequence:.0f} us per sequence"
    step += f" + {1e6 * p.f_s_per_token:.2f} us per token in the cache"
    step += f" + {1e6 * p.h_s_per_sequence2:.1f} us per sequence^2"
    step += f", {1e3 * p.take_in_s:.1f} ms for each sequence that joins"
    rest = f"overhead {1e3 * p.overhead_s:.1f} ms, hand-over {1e3 * p.handover_s:.1f} ms"
    rest += f", {1e3 * p.front_s:.1f} ms per request at the router"
    wait = f"prompts shorter than {p.batch_full_tokens} tokens wait {1e3 * p.batch_wait_s:.0f} ms"
    return [f"Profile: prefill {prefill}; decode step {step}; {rest}; {wait}."]


def _cell(name: str, real: float, said: float) -> str:
    error = said / real - 1
    text = f"{real:.4g} / {said:.4g} ({100 * error:+.0f} %)"
    return f"**{text}**" if abs(error) > (0.20 if "p99" in name else 0.10) else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("profile", "load", "all", "report"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(LOADS).replace("%", "%%"))
    parser.add_argument(
        "--folder", type=Path, default=Path("build/validation"), help="where the parts keep what they measured"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--note", default="", help="of this run, into the report")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "profile.json"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is stopped, too
    if args.part == "report":
        print(report(args.folder, args.out, args.note))
        return
    with busy_neighbours() as cpus:
        if args.part != "load":
            with stack(args.folder, cpus, FIRST_COME, None) as url:
                command = [_DISAGG, "profile", url, "--kv-tokens", str(_KV_TOKENS), "--out", str(file)]
                subprocess.run(
                    [*command, "--seconds", str(_PROFILE_SECONDS), "--max-prompt-tokens", "800", "--max-batch", "64"],
                    check=True,
                )
        if args.part == "profile":
            return
        profile, names = profile_file.load(str(file)), args.names or list(LOADS)
        for order in ORDERS:
            chosen = [name for name in names if LOADS[name].order == order]
            if not chosen:
                continue
            with stack(args.folder, cpus, order, profile) as url:
                for name in chosen:
                    trace = requests(LOADS[name], profile, seed=7)
                    print(f"{name}: {len(trace)} requests", flush=True)
                    (args.folder / f"{name}.json").write_text(json.dumps(asyncio.run(serve(url, trace))))


if __name__ == "__main__":
    main()
