"""The command `disagg local`: it runs a resource as processes on this machine, without a cluster.

The processes are the router and the workers of both pools. They and their environments come from
the same pure functions as the pods; their numbers come from the same autoscaling policy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import shutil
import signal
import tempfile
import time
from pathlib import Path

import yaml

from disagg_operator.api import DisaggDeployment, InvalidResource, parse_file
from disagg_operator.autoscaling import chosen_policy
from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.policy.observation import Pods
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target
from disagg_operator.autoscaling.signals.fold import Look
from disagg_operator.autoscaling.signals.metrics_page import parse
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.autoscaling.signals.policy_inputs import observe
from disagg_operator.autoscaling.signals.samples import Sample
from disagg_operator.cli import chat
from disagg_operator.cli.processes import Running, free_port, start, stop_all
from disagg_operator.controller import acceptance
from disagg_operator.desired.local_process import router_process, worker_process
from disagg_wire.roles import DECODE, PREFILL, ROLES
from disagg_wire.series import ROUTER_PAIRS, STATE

_TICK_S = 2.0
_STOP_TIMEOUT_S = 15.0
_MAX_RESTARTS = 5


class LocalError(Exception):
    """Raised when a resource can't run on this machine; the message explains why."""


def say(text: str) -> None:
    """Print a progress message."""
    print(f"\033[2m[local]\033[0m {text}", flush=True)


def read_resource(path: Path) -> DisaggDeployment:
    """Return the only DisaggDeployment of a file. Raises LocalError, which names the field."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise LocalError(f"{path}: must hold one DisaggDeployment")
        _use_local_model(raw, path)
        engine = parse_file(raw).spec.engine.known
        if engine.process is not None:
            raise LocalError(
                f"{path}: spec.engine.type: `disagg local` runs the bundled worker; {engine.name} runs in a cluster, "
                "as a container of its own"
            )
        return acceptance.accept(raw).resource
    except (OSError, yaml.YAMLError, InvalidResource, acceptance.Refused) as error:
        raise LocalError(f"{path}: {error}") from None


def _use_local_model(raw: dict[str, object], path: Path) -> None:
    """Replace a model URI that is a path inside the worker image by a path on this machine.

    For file:///models/X that is the folder models/X of the checkout that contains the resource.
    """
    spec = raw.get("spec")
    model = spec.get("model") if isinstance(spec, dict) else None
    uri = model.get("uri") if isinstance(model, dict) else None
    if not isinstance(uri, str) or not uri.startswith("file:///") or Path(uri.removeprefix("file://")).exists():
        return
    for parent in path.resolve().parents:
        if (found := parent / uri.removeprefix("file:///")).is_dir():
            assert isinstance(model, dict)
            model["uri"] = f"file://{found}"
            return


class Supervisor:
    """A supervisor that keeps the desired processes running and the membership file up to date."""

    def __init__(self, dd: DisaggDeployment, folder: Path, port: int) -> None:
        self._dd = dd
        self._folder = folder
        self._key = folder / "cluster-key"
        self._key.write_text(secrets.token_hex(32))
        self._key.chmod(0o600)
        self._members = folder / "workers.json"
        self._scaling = acceptance.accept(dd.model_dump(by_alias=True, exclude_none=True)).scaling
        self._memory = PolicyMemory()
        self._starts = {role: Starts() for role in ROLES}
        self.wanted = {role: dd.spec.pool(role).initial_replicas for role in ROLES}
        self._workers: dict[str, list[Running]] = {role: [] for role in ROLES}
        self._next = dict.fromkeys(ROLES, 0)
        self._port = port
        self._router: Running | None = None
        self._restarts = 0
        self._door = DirectDoor()

    @property
    def url(self) -> str:
        """The base URL of the router."""
        return f"http://127.0.0.1:{self._port}"

    def everything(self) -> list[Running]:
        """Return all processes, those that drain included."""
        return [*([self._router] if self._router else []), *(w for pool in self._workers.values() for w in pool)]

    async def converge(self) -> None:
        """Restart dead processes, start missing ones and drain surplus ones. Raises LocalError."""
        if self._router is None or not self._router.alive:
            self._check_restart(self._router)
            self._publish()
            spec = router_process(self._dd, self._port, str(self._key), str(self._members))
            self._router = await start(spec, self._port, self._folder)
        for role in ROLES:
            pool = self._workers[role]
            for worker in [w for w in pool if not w.alive]:
                pool.remove(worker)
                if not worker.draining:
                    self._check_restart(worker)
            active = [w for w in pool if not w.draining]
            for _ in range(self.wanted[role] - len(active)):
                port, index = free_port(), self._next[role]
                self._next[role] += 1
                pool.append(
                    await start(worker_process(self._dd, role, index, port, str(self._key)), port, self._folder)
                )
            victims = active[self.wanted[role] :]
            for worker in victims:
                worker.draining = True  # it leaves the membership first and is terminated afterwards
        self._publish()
        for worker in self.everything():
            if worker.draining:
                worker.terminate()

    def _check_restart(self, dead: Running | None) -> None:
        if dead is None:
            return
        self._restarts += 1
        say(f"{dead.spec.name} ended with status {dead.process.returncode}:\n{dead.tail()}")
        if self._restarts > _MAX_RESTARTS:
            raise LocalError(f"{dead.spec.name} keeps failing; logs are in {self._folder}")

    def _publish(self) -> None:
        members = [
            {"name": w.spec.name, "url": w.url}
            for pool in self._workers.values()
            for w in pool
            if not w.draining and w.alive
        ]
        part = self._members.with_suffix(".part")
        part.write_text(json.dumps({"workers": members}))
        part.replace(self._members)

    async def scale(self) -> None:
        """Scrape router and workers once, and carry out one step of the policy."""
        if not self._scaling.policies or self._router is None:
            return
        targets = {w.spec.name: Target(w.spec.name, "127.0.0.1", w.port) for w in self.everything() if not w.draining}
        bodies = {t.pod: body for t, body in (await self._door.fetch(targets.values())).items()}
        now_s = time.time()
        said = {name: parse(bodies[name], now_s) if name in bodies else None for name in targets}
        routers = {self._router.spec.name: said.get(self._router.spec.name)}
        workers = {role: self._answers(role, said) for role in ROLES}
        for role in ROLES:
            taken_s = {w.spec.name: w.ready_after_s for w in self._workers[role] if w.ready_after_s is not None}
            self._starts[role] = Starts({**self._starts[role].taken_s, **taken_s})
        prefill, decode = workers[PREFILL], workers[DECODE]
        look = Look(now_s, routers, prefill, decode, self._pods(PREFILL), self._pods(DECODE))
        seen = observe(look, self._memory.counters, polled=False)
        outcome, self._memory = chosen_policy.step(self._scaling, seen, self._memory)
        decisions = {} if outcome is None else outcome.decisions
        for role, decision in decisions.items():
            if decision.to != decision.current and not self._scaling.dry_run:
                value = "?" if decision.value is None else f"{decision.value:.1f}"
                why = decision.message or f"{decision.signal} {value} per worker, target {decision.target:g}"
                say(f"{role} {decision.current} -> {decision.to}: {why}")
                self.wanted[role] = decision.to

    def _answers(self, role: str, said: dict[str, Sample | None]) -> dict[str, Sample | None]:
        """Return the answers of the workers that are up. Those that still start can't answer."""
        up = [w for w in self._workers[role] if not w.draining]
        for worker in up:
            if said.get(worker.spec.name) is not None:
                worker.seen()
        return {w.spec.name: said.get(w.spec.name) for w in up if w.ready_after_s is not None}

    def _pods(self, role: str) -> Pods:
        alive = [w for w in self._workers[role] if w.alive]
        starting = tuple(w.age_s for w in alive if w.ready_after_s is None and not w.draining)
        ready = sum(w.ready_after_s is not None and not w.draining for w in alive)
        return Pods(self.wanted[role], ready, starting, sum(w.draining for w in alive), self._starts[role].mean_s)

    async def available(self) -> str | None:
        """Return None if a request can be served, else a message about what is missing."""
        assert self._router is not None
        bodies = await self._door.fetch([Target("router", "127.0.0.1", self._port)])
        healthy = [
            line
            for body in bodies.values()
            for line in body.splitlines()
            if line.startswith(f'{ROUTER_PAIRS}{{{STATE}="healthy"}}')
        ]
        if not bodies:
            return "waiting for the router"
        return (
            None
            if healthy and float(healthy[0].split()[-1]) > 0
            else "waiting for a prefill and a decode worker that can exchange KV"
        )

    async def close(self) -> None:
        """Stop all processes."""
        await stop_all(self.everything(), _STOP_TIMEOUT_S)
        await self._door.close()


async def _wait_available(supervisor: Supervisor, timeout_s: float) -> None:
    deadline_s, last = time.monotonic() + timeout_s, ""
    while (missing := await supervisor.available()) is not None:
        if time.monotonic() > deadline_s:
            raise LocalError(f"not up after {timeout_s:g} s: {missing}")
        if missing != last:
            say(missing)
            last = missing
        await supervisor.converge()
        await asyncio.sleep(0.3)


async def _serve(supervisor: Supervisor, arguments: argparse.Namespace, dd: DisaggDeployment) -> int:
    started_s = time.monotonic()
    await supervisor.converge()
    await _wait_available(supervisor, arguments.timeout_s)
    model = dd.spec.model.served_name
    say(f"serving {model} on {supervisor.url}/v1 after {time.monotonic() - started_s:.1f} s")
    if arguments.ask:
        print(f"\n> {arguments.ask}\n", flush=True)
        try:
            trace = await asyncio.to_thread(chat.stream_chat, supervisor.url, model, arguments.ask)
        except chat.ChatFailed as error:
            raise LocalError(f"the answer failed: {error}") from None
        print("\n\n" + "\n".join(f"  {line}" for line in chat.explain(trace)) + "\n", flush=True)
        if arguments.once:
            return 0
    question = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    say(f"try: curl {supervisor.url}/v1/chat/completions -H 'content-type: application/json' -d '{question}'")
    say("press Ctrl-C to stop")
    while True:
        await supervisor.scale()
        await supervisor.converge()
        await asyncio.sleep(_TICK_S)


async def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit status. Raises LocalError."""
    dd = read_resource(arguments.file)
    folder = Path(tempfile.mkdtemp(prefix="disagg-local-"))
    supervisor = Supervisor(dd, folder, arguments.port)
    work = asyncio.create_task(_serve(supervisor, arguments, dd))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, work.cancel)
    failed = True
    try:
        status = await work
        failed = False
        return status
    except asyncio.CancelledError:
        failed = False
        return 0
    finally:
        say("stopping")
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor.close()
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
