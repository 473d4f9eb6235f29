"""Compare the operator with a bare loop, time edits, and write benchmarks/results/operator.md."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from tests.integration.apiserver import REPO
from tests.integration.operator_process import Operator, eventually, operator

from benchmarks.machine import machine
from benchmarks.operator import bare
from benchmarks.operator.cluster import Cluster, Replicas, cluster, cpu_s, replicas, resident_mib, servers

PAGE = REPO / "benchmarks" / "results" / "operator.md"
_NAMESPACE, _ONE, _BARE = "many", "one", "bare"
_LIMIT_S = 3600.0
_EDIT_LIMIT_S = 120.0
# As they are by default; the tests have shorter ones.
_SETTINGS = {"DISAGG_SCRAPE_INTERVAL_S": "5", "DISAGG_LOG_LEVEL": "WARNING"}
# So short that one full list and its reconciles follow on the other.
_RESYNC_S = "0.5"
GOAL_CALLS, GOAL_RATIO, GOAL_P99_S = 1.2, 1.5, 1.0


@dataclass
class Measured:
    """What was measured with one number of resources."""

    count: int
    calls: dict[str, int]
    """The calls for a single new resource."""
    operator_s: float
    bare_s: dict[int, float]
    """The seconds of the bare loop, by the number of resources that it writes at once."""
    edits_s: dict[str, list[float]]
    """The seconds from an edit to its child, by what goes on meanwhile."""
    resyncs: float
    """The reconciles of one second while full lists follow each other."""
    cpu_s: dict[str, float]
    """The CPU time of the creation: of the operator, the bare loop, and the API server for each."""
    memory_mib: float
    """The resident memory of the operator with all resources."""


class Meter:
    """The CPU time that a client and the API server use from now on."""

    def __init__(self, client: int) -> None:
        self._client, self._servers = client, servers()
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        return cpu_s(self._client), sum(map(cpu_s, self._servers))

    def used_s(self) -> tuple[float, float]:
        """Return the seconds of the client and of the API server with its etcd."""
        (client, others), (client_0, others_0) = self._now(), self._before
        return client - client_0, others - others_0


_RECONCILES = "disagg_operator_reconcile_seconds_count"


async def until_quiet(running: Operator, reconciles: float = 1) -> None:
    """Wait until an operator has made so many reconciles and makes no more."""
    last, same = -1.0, 0

    async def quiet() -> bool:
        nonlocal last, same
        now = await running.metric(_RECONCILES)
        last, same = now, same + 1 if now == last else 0
        return same >= 15 and now >= reconciles

    await eventually("the operator rests", quiet, _LIMIT_S)


async def leads(running: Operator) -> None:
    """Wait until an operator works and its watches have begun."""

    async def works() -> bool:
        return await running.metric("disagg_operator_sweep_seconds_count") > 0

    await eventually("the operator leads", works, _LIMIT_S)
    await asyncio.sleep(2)


async def create(found: Cluster, namespace: str, names: Sequence[str], at_once: int = 8) -> float:
    """Create resources as users, and return the seconds until all their objects are written."""
    started, waiting = time.monotonic(), list(reversed(names))

    async def user() -> None:
        while waiting:
            await found.kube.apply(bare.user_resource(namespace, waiting.pop()))

    async with asyncio.timeout(_LIMIT_S):
        await asyncio.gather(found.until_told(namespace, set(names)), *(user() for _ in range(at_once)))
    return time.monotonic() - started


async def edit(found: Cluster, seen: Replicas, names: Sequence[str], sizes: dict[str, int], pause_s: float) -> float:
    """Change the size of a pool of some resource, and return when its Deployment has it."""
    await asyncio.sleep(pause_s)
    name = random.choice(names)
    sizes[name] = sizes.get(name, 2) + 1
    changed = bare.user_resource(_NAMESPACE, name)
    changed["spec"]["decode"]["replicas"] = sizes[name]
    arrived = asyncio.create_task(seen.reached(f"{name}-decode", sizes[name], _EDIT_LIMIT_S))
    started = time.monotonic()
    await found.kube.apply(changed)
    return await arrived - started


async def edits(found: Cluster, names: Sequence[str], sizes: dict[str, int], count: int, pause_s: float) -> list[float]:
    """Make edits one after another, and return the seconds of each."""
    async with replicas(found, _NAMESPACE) as seen:
        await asyncio.sleep(2)  # the watch begins with what exists
        return [await edit(found, seen, names, sizes, pause_s) for _ in range(count)]


async def measure(folder: Path, count: int, edit_count: int) -> Measured:
    """Measure with so many resources on a new API server."""
    names, sizes = bare.names(count), dict[str, int]()
    async with cluster(folder) as found:
        for namespace in (_NAMESPACE, _ONE, f"{_BARE}-1", f"{_BARE}-4"):
            await found.namespace(namespace)
        async with operator(found.server, folder, _ONE, **_SETTINGS) as running:
            await leads(running)
            before = found.calls(_ONE)
            resource = bare.user_resource(_ONE, "single")
            await found.send(f"/apis/disagg.dev/v1alpha1/namespaces/{_ONE}/disaggdeployments/single", resource)
            await until_quiet(running)
            calls = found.calls(_ONE) - before
            calls["writes"] -= 1  # the user's
        bare_s, cpu = dict[int, float](), dict[str, float]()
        for at_once in (4, 1):
            started, meter = time.monotonic(), Meter(os.getpid())
            await bare.write(found.kube, f"{_BARE}-{at_once}", names, at_once)
            bare_s[at_once] = time.monotonic() - started
            cpu["bare loop"], cpu["API server for the bare loop"] = meter.used_s()
            print(f"{count}: bare loop, {at_once} at once: {bare_s[at_once]:.1f} s", flush=True)
        async with operator(found.server, folder, _NAMESPACE, **_SETTINGS) as running:
            await leads(running)
            meter = Meter(running.process.pid)
            operator_s = await create(found, _NAMESPACE, names)
            cpu["operator"], cpu["API server for the operator"] = meter.used_s()
            print(f"{count}: operator: {operator_s:.1f} s", flush=True)
            await until_quiet(running, count)
            memory = resident_mib(running.process.pid)
            took = {"idle": await edits(found, names, sizes, edit_count, 0.05)}
        print(f"{count}: edits: {sorted(took['idle'])[-3:]}", flush=True)
        async with operator(
            found.server, folder, _NAMESPACE, **_SETTINGS, DISAGG_RESYNC_INTERVAL_S=_RESYNC_S
        ) as running:
            await leads(running)
            took["start"] = await edits(found, names, sizes, edit_count // 4, 0.05)

            async def listed_again() -> bool:
                return await running.metric(_RECONCILES) >= 2 * count

            await eventually("all is listed again", listed_again, _LIMIT_S)
            begun, started = await running.metric(_RECONCILES), time.monotonic()
            took["resync"] = await edits(found, names, sizes, edit_count, 0.05)
            rate = (await running.metric(_RECONCILES) - begun) / (time.monotonic() - started)
        print(f"{count}: edits during resyncs: {sorted(took['resync'])[-3:]}", flush=True)
    return Measured(count, dict(calls), operator_s, bare_s, took, rate, cpu, memory)


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of a sample, one of its values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _bold(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text


_HEAD = """# The operator beside a bare loop that writes the same objects

`{command}`, {date}, on {machine}.
Load average at the start {load:.1f}, niceness {nice}.

The API server and its etcd are real, on the same cores; there is no controller and no kubelet. The operator is a
process of its own with its default settings. The bare loop sends the same writes for as many resources, the resources
themselves among them, with the same client: one resource after another, or four at once, as many as the operator's
workers. An edit raises `decode.replicas` of some resource; its time ends when a watch shows the Deployment. "During
resyncs", full lists of everything follow each other without a pause; "at the start", the operator has just begun its
term, and reads every resource from the API server. Bold: a missed goal.

One new resource costs {total} calls: {writes} writes, {dry} dry runs and {reads} reads, {ratio:.2f} a write (goal: at
most {goal}).
"""


def page(found: Sequence[Measured], load: float, sizes: str, edit_count: int) -> str:
    """Return the page of results."""
    calls = found[0].calls
    total, writes = sum(calls.values()), calls["writes"]
    head = _HEAD.format(
        command=f'make bench-operator SIZES="{sizes}" EDITS={edit_count}',
        date=time.strftime("%Y-%m-%d", time.gmtime()), machine=machine(), load=load, nice=os.nice(0),
        total=_bold(str(total), total > GOAL_CALLS * writes), writes=writes, dry=calls.get("dry runs", 0),
        reads=calls.get("reads", 0), ratio=total / writes, goal=GOAL_CALLS,
    )  # fmt: skip
    lines = [
        head,
        "| resources created at once | operator, s | bare loop, s | ratio (goal 1.5) | four at once, s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for m in found:
        ratio, other = m.operator_s / m.bare_s[1], m.operator_s / m.bare_s[4]
        lines.append(
            f"| {m.count:,} | {m.operator_s:.1f} | {m.bare_s[1]:.1f} | {_bold(f'{ratio:.2f}', ratio > GOAL_RATIO)} "
            f"| {m.bare_s[4]:.1f} | {_bold(f'{other:.2f}', other > GOAL_RATIO)} |"
        )
    lines += [
        "", "| CPU time of one new resource, ms | operator | API server and etcd | bare loop | API server and etcd |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for m in found:
        parts = ("operator", "API server for the operator", "bare loop", "API server for the bare loop")
        lines.append(f"| {m.count:,} | {' | '.join(f'{m.cpu_s[part] / m.count * 1000:.0f}' for part in parts)} |")
    lines += [
        "", *(f"With {m.count:,} resources, the operator holds {m.memory_mib:.0f} MiB." for m in found),
        "", "| edit to child, s | resources | edits | p50 | p99 (goal 1.0) | worst | reconciles/s |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    names = {"idle": "nothing else goes on", "resync": "during resyncs", "start": "at the start"}
    for m in found:
        for kind, words in names.items():
            took = m.edits_s[kind]
            p99, rate = quantile(took, 0.99), f"{m.resyncs:.0f}" if kind == "resync" else ""
            lines.append(
                f"| {words} | {m.count:,} | {len(took)} | {quantile(took, 0.5):.2f} "
                f"| {_bold(f'{p99:.2f}', p99 > GOAL_P99_S)} | {max(took):.2f} | {rate} |"
            )
    return "\n".join(lines) + "\n"


def measured(count: int, edit_count: int, keep: Path | None) -> Measured:
    """Measure with so many resources, or return what an earlier run has kept."""
    kept = None if keep is None else keep / f"{count}-{edit_count}.json"
    form = TypeAdapter(Measured)
    if kept is not None and kept.exists():
        return form.validate_json(kept.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), count, edit_count))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(form.dump_json(found))
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="100 300 1000", help="numbers of resources")
    parser.add_argument("--edits", type=int, default=200, help="number of edits")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    parser.add_argument("--keep", type=Path, help="a folder for what was measured: it is not measured again")
    arguments = parser.parse_args()
    load, found = os.getloadavg()[0], []
    for count in map(int, arguments.sizes.split()):
        found.append(measured(count, arguments.edits, arguments.keep))
        arguments.out.write_text(page(found, load, arguments.sizes, arguments.edits))
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
