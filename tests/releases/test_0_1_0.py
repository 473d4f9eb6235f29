"""Tests of today's operator against everything that release 0.1.0 stored, rendered and kept.

Nothing of it may be misread (0.1.0/README.md).
"""

from __future__ import annotations

import ast
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.releases.recorded import CORPUS, RELEASE, Obj, exact, load, load_lines, plain, resource
from tests.wire import registries

from disagg_operator.api import DisaggDeployment, crdgen
from disagg_operator.api.status import Status
from disagg_operator.api.v1alpha1 import read
from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.policy.observation import Pods, Targets
from disagg_operator.autoscaling.policy.predictive import State
from disagg_operator.autoscaling.records import codec, decision_records
from disagg_operator.autoscaling.records.saved_state import from_json, to_json
from disagg_operator.autoscaling.records.state_store import StateStore
from disagg_operator.autoscaling.signals import metrics_page
from disagg_operator.autoscaling.signals.fold import Look, Memory, fold
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.controller import acceptance, replicas, runtime_updates
from disagg_operator.controller.replicas import Declared
from disagg_operator.desired import Facts, Images, render, renderer
from disagg_operator.desired.attachments import device_count
from disagg_operator.performance import profile_file
from disagg_operator.status import conditions
from disagg_router import settings as router_settings
from disagg_wire.roles import ROLES
from disagg_worker import settings as worker_settings

WHEEL = RELEASE / "disagg-0.1.0-py3-none-any.whl"
STATES = tuple(sorted(path.stem for path in (RELEASE / "states/scaling-state").glob("*.json")))

# ---- resources ----


def test_the_corpus_has_forty_resources() -> None:
    assert len(CORPUS) == 40
    assert sorted(path.stem for path in (RELEASE / "rendered").glob("*.json")) == list(CORPUS)


def _facts(recorded: Obj) -> Facts:
    """Return the facts of a recording, with the pins of the release."""
    images = Images(**recorded["facts"]["images"], renderer=renderer.FIRST)
    return Facts(**recorded["facts"] | {"images": images})


@pytest.mark.parametrize("name", CORPUS)
def test_a_stored_resource_becomes_the_same_objects(name: str) -> None:
    """An object that differs restarts every pod of every user who upgrades."""
    recorded = load(f"rendered/{name}.json")
    assert plain(render(read(resource(name)), _facts(recorded))) == recorded["objects"]


@pytest.mark.parametrize("name", CORPUS)
def test_the_pins_of_a_release_that_recorded_none_are_found_in_its_objects(name: str) -> None:
    recorded, dd = load(f"rendered/{name}.json"), read(resource(name))
    objects = {(obj["kind"], obj["metadata"]["name"]): obj for obj in recorded["objects"]}
    release = Images("worker:new", "router:new", adapter="adapter:new")
    chosen = runtime_updates.choose(resource(name), dd, objects, release, lambda: False)
    facts = replace(_facts(recorded), images=chosen.pins.images)
    assert _pods(plain(render(dd, facts))) == _pods(recorded["objects"])


def _pods(objects: list[Obj]) -> list[Obj]:
    return [obj["spec"]["template"] for obj in objects if obj["kind"] == "Deployment"]


def _devices(dd: DisaggDeployment) -> tuple[str, int] | None:
    """Return the RDMA resource and the most devices that a worker asks for, as a plan had them."""
    network = dd.spec.kv_transfer.network
    if dd.spec.kv_transfer.transport != "rdma" or network is None or network.rdma_resource is None:
        return None
    return network.rdma_resource.name, max(device_count(dd, role) for role in ROLES)


@pytest.mark.parametrize("name", CORPUS)
def test_a_stored_resource_is_planned_as_it_was(name: str) -> None:
    recorded = load(f"rendered/{name}.json")
    found = acceptance.assess(resource(name)).plan  # what is newly refused is served on
    assert plain([found.attachment, _devices(found.resource), found.interface]) == [
        recorded["plan"][k] for k in ("attachment", "rdma", "interface")
    ]
    # That release did not scale to zero, and its policy had other constants.
    scaling = recorded["plan"]["scaling"]
    settings = scaling["settings"] | {
        "price": 48.0, "tuning": scaling["settings"]["tuning"] | {"error_memory_s": 800.0}
    }  # fmt: skip
    assert plain(codec.plain(found.scaling)) == scaling | {"zero": None, "settings": settings}
    for role, declared in found.declared.items():
        first = replicas.decide(declared, None, None, suspended=found.scaling.suspended)
        assert first.count == recorded["facts"]["replicas"][role]
        assert first.declared == recorded["facts"]["declared"].get(role)


@pytest.mark.parametrize("name", CORPUS)
def test_the_environment_of_a_pod_from_before_is_understood(name: str) -> None:
    for obj in load(f"rendered/{name}.json")["objects"]:
        if obj["kind"] != "Deployment":
            continue
        containers = obj["spec"]["template"]["spec"]["containers"]
        (variables,) = ([*c["env"]] for c in containers if c["name"] == "main")
        environment = {v["name"]: v.get("value", "127.0.0.1" if "valueFrom" in v else "") for v in variables}
        if obj["metadata"]["labels"]["app.kubernetes.io/component"] == "router":
            router = router_settings.from_environment(environment)
            assert router.model_name == environment["DISAGG_MODEL_NAME"]
        else:
            worker = worker_settings.from_environment(environment)
            assert (worker.role, worker.revision) == (environment["DISAGG_ROLE"], environment["DISAGG_REVISION"])


def _uncovered(schema: Obj, values: list[Any], path: str) -> list[str]:
    """Return the fields, choices and truth values of a schema that no value uses."""
    if not values:
        return [path]
    missing = [f"{path}={choice}" for choice in schema.get("enum", ()) if choice not in values]
    if schema.get("type") == "boolean":
        missing += [f"{path}={choice}" for choice in (True, False) if choice not in values]
    for name, inner in schema.get("properties", {}).items():
        missing += _uncovered(inner, [v[name] for v in values if name in v], f"{path}.{name}")
    if "items" in schema:
        missing += _uncovered(schema["items"], [item for v in values for item in v], f"{path}[]")
    return missing


def _schema(crd: Obj) -> Obj:
    (version,) = crd["spec"]["versions"]
    found: Obj = version["schema"]["openAPIV3Schema"]
    return found


def _released_crd(name: str) -> Obj:
    found: Obj = yaml.safe_load((RELEASE / "crds" / name).read_text())
    return found


def test_the_corpus_uses_every_field_and_every_choice() -> None:
    schema = _schema(_released_crd("disagg.dev_disaggdeployments.yaml"))
    assert _uncovered(schema["properties"]["spec"], [resource(name)["spec"] for name in CORPUS], "spec") == []


def _lost(before: Obj, now: Obj, path: str) -> Iterator[str]:
    """Yield everything that one schema allowed and the other does not.

    Descriptions and CEL may change: the corpus holds the rules.
    """
    for key, value in before.items():
        here, kept = f"{path}.{key}", now.get(key)
        if key in ("description", "required", "x-kubernetes-validations"):
            continue
        if key == "enum":
            yield from (f"{here}: {choice}" for choice in value if kept is not None and choice not in kept)
        elif key == "properties":
            yield from (f"{path}.{name}: gone" for name in value if name not in now.get(key, {}))
            for name in value.keys() & now.get(key, {}).keys():
                yield from _lost(value[name], now[key][name], f"{path}.{name}")
        elif isinstance(value, dict) and isinstance(kept, dict):
            yield from _lost(value, kept, here)
        elif (
            kept != value
            and not (key.startswith("max") and kept > value)
            and not (key.startswith("min") and kept < value)
        ):
            yield f"{here}: {value!r} is now {kept!r}"
    if more := set(now.get("required", ())) - set(before.get("required", ())):
        yield f"{path}: {more} is required"


@pytest.mark.parametrize("name", ["disagg.dev_disaggdeployments.yaml", "disagg.dev_disaggpools.yaml"])
def test_the_crds_take_what_they_took(name: str) -> None:
    """A field that is gone is pruned from every stored resource."""
    before, now = _released_crd(name), crdgen.generate()[name]
    assert list(_lost(_schema(before), _schema(now), "")) == []
    for part in ("names", "scope", "group"):
        assert now["spec"][part] == before["spec"][part]
    (old,), (new,) = before["spec"]["versions"], now["spec"]["versions"]
    assert new["name"] == old["name"]
    assert new["subresources"] == old["subresources"]
    assert {c["name"] for c in old["additionalPrinterColumns"]} <= {c["name"] for c in new["additionalPrinterColumns"]}


# ---- state that is kept from one process to the next ----


class _OneConfigMap:
    def __init__(self, content: Obj) -> None:
        self._content = content

    async def get(self, *_: object) -> Obj:
        return self._content


def _as_kept(state: Obj) -> Obj:
    """Return a state of that release as this one keeps it.

    Of the errors, only the short memory is kept, and an interval has the weight 1 in a profile.
    """
    fresh = exact(asdict(State()))
    out: Obj = fresh | state
    out["learned"] = {
        role: evidence | {name: pytest.approx([n / 400 for n in evidence[name]]) for name in ("squares", "products")}
        for role, evidence in state["learned"].items()
    }
    for role in ("prefill", "decode"):
        demand = state[role]["demand"]
        errors = []
        if demand["errors"]:
            short = demand["errors"][0]
            errors = [sum(short[:13]), *short[13:36], sum(short[36:])]
        pool = {name: value for name, value in state[role].items() if name in fresh[role]}
        out[role] = pool | {"demand": demand | {"errors": pytest.approx(errors)}}
    return out


@pytest.mark.parametrize("name", STATES)
async def test_a_scaling_state_is_loaded_whole(name: str, tmp_path: Path) -> None:
    recorded = load(f"states/scaling-state/{name}.json")
    meta, content = recorded["configMap"]["metadata"], recorded["content"]
    store = StateStore(cast(Any, _OneConfigMap(recorded["configMap"])))
    keeper = StateKeeper(store, cast(Any, None), lambda: content["saved_s"] + 60.0)
    entry = Live(meta["ownerReferences"][0]["uid"])
    owner = (meta["namespace"], meta["ownerReferences"][0]["name"])
    assert await keeper.ready(owner, entry, acceptance.accept(resource("29-predictive-every-field")).scaling)
    state = entry.memory.predicting.state
    assert exact(asdict(state)) == _as_kept(recorded["state"])
    assert (exact(asdict(state)) == exact(asdict(State()))) is (name == "nothing")
    assert {pool: dict(starts.taken_s) for pool, starts in entry.starts.items()} == content["starts"]
    assert exact(asdict(from_json(plain(to_json(state))))) == _as_kept(recorded["state"])


def _same(found: Targets, recorded: Obj) -> bool:
    """Return whether sizes and words are identical, and numbers equal within rounding.

    Another machine may round numbers differently.
    """
    values = {key: math.nan if value is None else value for key, value in recorded["numbers"].items()}
    new = {"numbers": None, "unmet": {}, "limits": found.limits}
    known = {key: value for key, value in recorded.items() if not key.endswith("_ahead")}
    return plain(codec.plain(found)) | {"numbers": None} == known | new and found.numbers == pytest.approx(
        values, rel=1e-9, nan_ok=True
    )


@pytest.mark.parametrize("policy", ["predictive", "queue"])
def test_recorded_decisions_are_read_and_made_again(policy: str) -> None:
    runs = decision_records.read((RELEASE / f"states/records/{policy}.jsonl").read_text().splitlines())
    recorded = [line for line in load_lines(f"states/records/{policy}.jsonl") if "begin" not in line]
    assert len(recorded) >= 60
    assert [len(run.steps) for run in runs] == ([60] if policy == "predictive" else [40, 30])
    for step, line in zip(decision_records.steps_of(runs), recorded, strict=True):
        observation = plain(codec.plain(step.observation))
        assert [observation[role]["pods"].pop("unplaced_s") for role in ("prefill", "decode")] == [[], []]
        assert (observation["prefill"].pop("to_decode"), observation["decode"].pop("rest_s")) == (0.0, 0.0)
        assert observation == line["observation"]
        assert (step.decided, step.reasons, step.dry_run) == (line["decided"], line["reasons"], line["dryRun"])
        assert plain(codec.plain(step.samples)) == line.get("samples", {})

    def policy_of(run: decision_records.Run) -> decision_records.Policy:
        return (
            decision_records.predictive_policy(run.settings, run.state)
            if run.queue is None
            else decision_records.queue_policy(run.queue)
        )

    for made, line in zip(decision_records.replay(runs, policy_of), recorded, strict=True):
        if policy == "queue":
            assert _same(made, line["targets"]), line["t"]
        else:  # today's policy has other answers, but no worse reason for them
            bounds = [runs[0].settings.limits(role) for role in ("prefill", "decode")]
            assert all(b.least <= n <= b.most for b, n in zip(bounds, (made.prefill, made.decode), strict=True))
            then = line["targets"]
            assert made.prefill == pytest.approx(then["prefill"], rel=0.2, abs=2)
            assert made.decode == pytest.approx(then["decode"], rel=0.2, abs=2)


def test_the_marks_of_pools_mean_what_they_meant() -> None:
    for case in load_lines("states/pools.jsonl"):
        bounds = case["declared"]["bounds"]
        declared = Declared(case["declared"]["replicas"], None if bounds is None else tuple(bounds))
        made = replicas.decide(declared, case["pool"], case["wanted"], suspended=case["suspended"])
        # That release left a pool alone at 0.
        assert asdict(made) == case["answer"] | {"kept": 0}, case


def test_a_stored_status_is_read_and_kept() -> None:
    stored = load("states/statuses.json")
    for one in stored:
        assert Status.model_validate(one).model_dump(by_alias=True, exclude_unset=True) == one
        assert {
            k: v
            for k, v in conditions.refused(1, "X", "y", one, "now").items()
            if k not in ("conditions", "observedGeneration")
        } == {k: v for k, v in one.items() if k not in ("conditions", "observedGeneration")}
    message = "spec.model.uri: uri must not contain .."
    assert conditions.refused(5, "InvalidSpec", message, stored[-1], "2030-01-01T00:00:00Z") == stored[-1]


def test_a_measured_profile_is_loaded() -> None:
    found = profile_file.load(str(RELEASE / "states/profile.json"))
    assert asdict(found) | load("states/profile.json") == asdict(found)


# ---- metrics ----


def _exposed(text: str) -> dict[str, frozenset[str]]:
    """Return the labels of a page of /metrics by series."""
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, frozenset()) | sample.labels.keys()
    return found


def _renamed(name: str, labels: frozenset[str]) -> tuple[str, frozenset[str]]:
    """Return what a series has become, as CHANGELOG.md and docs/upgrades.md tell."""
    if name == "disagg_worker_info":
        labels -= {"incarnation"}
    if name == "disagg_operator_api_writes":
        name += "_total"
    return name, frozenset("disagg_deployment" if label == "deployment" else label for label in labels)


@pytest.mark.parametrize("page", ["operator", "router", "prefill", "decode"])
def test_every_series_is_still_there(page: str) -> None:
    """Dashboards, alerts and HPA rules name them."""
    exposed = _exposed((RELEASE / "metrics" / f"{page}.txt").read_text())
    before = dict(_renamed(*one) for one in exposed.items() if not one[0].endswith("_created"))
    now = registries.series(registries.PROCESSES.get(page, registries.worker)())
    assert {name: labels for name, labels in before.items() if not labels <= now.get(name, frozenset())} == {}
    assert set(before) - set(now) == set()


def test_the_pages_of_workers_and_routers_from_before_are_an_observation() -> None:
    """During an upgrade, the new operator observes the old pods."""
    texts = {name: (RELEASE / "metrics" / f"{name}.txt").read_text() for name in ("router", "prefill", "decode")}
    memory = Memory()
    for at_s in (1000.0, 1100.0, 1105.0):
        seen = {name: {name: metrics_page.parse(text, at_s)} for name, text in texts.items()}
        folded, memory = fold(
            Look(at_s, seen["router"], seen["prefill"], seen["decode"], Pods(1, 1), Pods(1, 1)), memory
        )
    assert folded.partial == frozenset()
    for part in (folded.observation.prefill, folded.observation.decode):
        unknown = [k for k, v in asdict(part).items() if isinstance(v, float) and math.isnan(v)]
        assert unknown == []


# ---- the folder itself ----


def test_the_makers_of_the_recordings_import_what_the_wheel_holds() -> None:
    """They run with the released code, so they must not name a module that was moved since."""
    with zipfile.ZipFile(WHEEL) as wheel:
        names = set(wheel.namelist())
    for path in RELEASE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (module := node.module or "").startswith("disagg_"):
                parts = [module.replace(".", "/"), *(f"{module}.{a.name}".replace(".", "/") for a in node.names)]
                assert {f"{parts[0]}.py", f"{parts[0]}/__init__.py"} & names, f"{path.name}: {module}"
                if f"{parts[0]}.py" not in names and f"{parts[0]}/__init__.py" not in names:
                    assert {f"{p}.py" for p in parts[1:]} <= names, f"{path.name}: {module}"


def test_the_wheel_is_small() -> None:
    assert WHEEL.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("module", "missing"), [("disagg_operator", "DISAGG_WORKER_IMAGE"), ("disagg_router", "DISAGG_MODEL_NAME")]
)
def test_the_wheel_still_runs(module: str, missing: str, tmp_path: Path) -> None:
    """It runs with today's dependencies, far enough to ask for its settings."""
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(tmp_path)
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    here = f"assert {module}.__file__.startswith({str(tmp_path)!r})"
    code = f"import runpy, {module}; {here}; runpy.run_module({module!r}, run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode in (1, 2)
    assert missing in ran.stderr
