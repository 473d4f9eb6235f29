"""The simulator compared with the real stack.

The same requests are served by a router, a prefill worker and a decode worker here, and by the
simulator.

    python -m benchmarks.validation.run profile NAME ... # a short measurement by `disagg profile`
    python -m benchmarks.validation.run load NAME ...    # serve these loads (default: all)
    python -m benchmarks.validation.run all NAME ...     # both
    python -m benchmarks.validation.run report           # simulate the same requests

`load` keeps the measurements, and `report` writes benchmarks/results/validation.md. Loads that were
not measured keep the rows that they had there. The parts may run one after the other, so that none
takes the machine for long.

Requests arrive at their own times (Poisson), regardless of the answers. The workers run with one
thread each. The model has 88 million random weights: large enough that most of the time is spent in
the two workers and not in router and client on the same cores, and small enough for hundreds of
requests in minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from benchmarks.machine import machine
from benchmarks.validation import vllm_pair
from benchmarks.validation.cores import busy_neighbours, pin_prefill
from benchmarks.validation.loads import LOADS, PROFILE_SECONDS, TTFT_S, requests
from benchmarks.validation.page import load_file, profile_file_of, report
from disagg_operator.cli.processes import free_port
from disagg_operator.cli.served_endpoint import ServedEndpoint
from disagg_operator.performance import profile as profiles
from disagg_operator.performance import profile_file
from disagg_operator.simulation.ordering import FIRST_COME, ORDERS
from disagg_operator.simulation.traces import Trace
from disagg_wire.engines import BUILTIN, VLLM

_HERE = Path(__file__).parent
_DISAGG = str(Path(sys.executable).with_name("disagg"))
_START_S = 120.0
_KV_BYTES = 2 * 12 * 4 * 64 * 2  # of one token
_KV_TOKENS = (256 << 20) // _KV_BYTES  # in the default kvCacheSize
_SHAPE = {"vocab_size": 2048, "eos_token_id": 0, "bos_token_id": None}
_TOKENIZER = Path("models/stdlib-llama")


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
    resource["spec"]["objectives"] = {"ttftSeconds": {"p99": TTFT_S}}
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


def keep(folder: Path, name: str, here: dict[str, str], found: dict[str, list[float]]) -> None:
    load_file(folder, name).write_text(json.dumps(here | found))


def bundled(folder: Path, part: str, names: list[str], cpus: tuple[int, int] | None, here: dict[str, str]) -> None:
    """Measure a profile of the bundled workers, or these loads, or both."""
    file = profile_file_of(folder, BUILTIN)
    if part != "load":
        with stack(folder, cpus, FIRST_COME, None) as url:
            command = [_DISAGG, "profile", url, "--kv-tokens", str(_KV_TOKENS), "--out", str(file)]
            command += ["--seconds", str(PROFILE_SECONDS), "--max-prompt-tokens", "800", "--max-batch", "64"]
            subprocess.run(command, check=True)
    if part == "profile":
        return
    profile = profile_file.load(str(file))
    for order in ORDERS:
        chosen = [name for name in names if LOADS[name].order == order]
        if not chosen:
            continue
        with stack(folder, cpus, order, profile) as url:
            for name in chosen:
                keep(folder, name, here, asyncio.run(serve(url, traced(name, profile))))


async def other(folder: Path, part: str, names: list[str], cpus: tuple[int, int] | None, here: dict[str, str]) -> None:
    """Do what `bundled` does with a pair of vLLM."""
    file = profile_file_of(folder, VLLM)
    async with vllm_pair.pair(model(folder / "model").resolve(), cpus) as pair:
        if part != "load":
            await vllm_pair.profile(pair, file)
        if part == "profile":
            return
        profile = profile_file.load(str(file))
        for name in names:
            keep(folder, name, here, await serve(f"{pair.url}/v1", traced(name, profile)))


def traced(name: str, profile: profiles.Profile) -> Trace:
    trace = requests(LOADS[name], profile, seed=7)
    print(f"{name}: {len(trace)} requests", flush=True)
    return trace


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
    if unknown := [name for name in args.names if name not in LOADS]:
        parser.error(f"{unknown[0]!r} is no load")
    args.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is stopped, too
    if args.part == "report":
        print(report(args.folder, args.out, args.note))
        return
    here = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine()}
    wanted = {e: [n for n in args.names or LOADS if LOADS[n].engine == e] for e in (BUILTIN, VLLM)}
    with busy_neighbours() as cpus:
        if wanted[BUILTIN]:
            bundled(args.folder, args.part, wanted[BUILTIN], cpus, here)
        if wanted[VLLM]:
            asyncio.run(other(args.folder, args.part, wanted[VLLM], cpus, here))


if __name__ == "__main__":
    main()
