"""Tests of `disagg explain` and `disagg replay` on the operator's records of the policy queue."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.api.resources import good
from tests.operator.cli.test_explain_command import recorded, records, run

from disagg_operator.autoscaling import chosen_policy
from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Folded, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.policy.queue_depth import QueueSample
from disagg_operator.autoscaling.records import decision_records
from disagg_operator.autoscaling.records.decision_log import DecisionLog
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals.fold import Memory
from disagg_operator.autoscaling.signals.policy_inputs import Seen
from disagg_operator.cli.entry import main
from disagg_operator.controller.acceptance import scale_plan

__all__ = ["recorded", "records"]  # fixtures

KEY, T0 = ("ns", "chat"), 1_700_000_000.0
POOL = {
    "autoscaling": {"minReplicas": 1, "maxReplicas": 9, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}}}
}


def plan_of(**pools: Any) -> ScalePlan:
    found = scale_plan(good(**pools, scaling={"policy": "queue"}))
    assert found is not None
    assert not found.predictive
    return found


def observation(i: int, sizes: dict[str, int], running: float) -> Observation:
    n = 5 * running
    pods = {pool: Pods(size, size) for pool, size in sizes.items()}
    return Observation(
        T0 + 5 * i, 5.0,
        PrefillSignals(pods["prefill"], n, 100 * n, 15e3 * n, 0.0, 0.0, running, 1.0, n, n),
        DecodeSignals(pods["decode"], 0.0, running, 20e3, 4e5, 100 * n, n, 100 * n, 200 * n, n, n),
    )  # fmt: skip


def decide(
    log: DecisionLog, plan: ScalePlan, memory: PolicyMemory, o: Observation, samples: dict[str, QueueSample]
) -> tuple[Mapping[str, Decision], PolicyMemory]:
    """Carry out one step of the policy, and record it."""
    seen = Seen(Folded(o, frozenset()), samples, Memory(), fresh=True, first=False)
    outcome, memory = chosen_policy.step(plan, seen, memory)
    assert outcome is not None
    log.record(KEY, outcome, dry_run=plan.dry_run)
    return outcome.decisions, memory


def record(folder: Path, plan: ScalePlan, loads: list[float | None]) -> str:
    """Return the operator's records of steps with these loads, each applied before the next one."""
    made, memory, sizes = DecisionLog(folder), PolicyMemory(), {"prefill": 1, "decode": 1}
    for i, load in enumerate(loads):
        o = observation(i, sizes, math.nan if load is None else load)
        decisions, memory = decide(made, plan, memory, o, {pool: QueueSample(o.now_s, load) for pool in plan.policies})
        sizes |= {pool: decision.to for pool, decision in decisions.items()}
    return b"".join(made.read(KEY)).decode()


BUSY = [2.0] * 20 + [200.0] * 20 + [None] * 4 + [1.0] * 40


@pytest.fixture(scope="module")
def queue_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("records"), plan_of(prefill=POOL, decode=POOL), list(BUSY))


@pytest.fixture
def queue(tmp_path: Path, queue_text: str) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text(queue_text)
    return path


def test_explain_says_what_was_seen_and_why(queue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "explain", queue)
    assert "decode: 101 requests a worker, 32 wanted: 1 -> 4 (QueueAboveTarget)" in " ".join(
        out.replace("│", " ").split()
    )
    assert "1/1 -> 4" in out
    assert "84 steps in 7 minutes, 4 of them without metrics." in out
    assert "decode: up" in out
    assert "QueueBelowTarget" in out
    assert "not all metrics are there: 7 stay (MetricsUnavailable)" in " ".join(out.replace("│", " ").split())


def test_replay_is_exact_and_says_where_other_rules_or_another_policy_would_decide_otherwise(
    queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "queue: differs in 0 of 84 steps" in run(capsys, "replay", queue)
    other = run(capsys, "replay", queue, "--set", "decode.target=10", "--set", "prefill.max_replicas=12")
    assert "differs in 0 of" not in other
    assert "10 wanted" in " ".join(other.replace("│", " ").split())
    assert "static:3,4: differs in" in run(capsys, "replay", queue, "--policy", "static:3,4")
    assert "workers of work expected" in " ".join(
        run(capsys, "replay", queue, "--policy", "predictive").replace("│", " ").split()
    )


def test_the_policy_queue_is_asked_what_it_would_have_done_instead_of_another(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, "replay", records, "--policy", "queue", "--set", "decode.target=2")
    assert "queue, decode.target=2: differs in" in out
    assert "(QueueAboveTarget)" in out


def test_a_pool_that_is_not_scaled_keeps_its_size(tmp_path: Path) -> None:
    (one,) = decision_records.read(record(tmp_path, plan_of(decode=POOL), [2.0, 200.0]).splitlines())
    assert one.queue is not None
    assert set(one.queue.pools) == {"decode"}
    assert (one.settings.prefill.least, one.settings.prefill.most) == (1, 1)
    assert [(s.targets.prefill, s.targets.decode) for s in one.steps] == [(1, 1), (1, 4)]
    assert set(one.steps[1].decided) == {"decode"}


def test_other_rules_begin_on_their_own_from_what_is_remembered(tmp_path: Path) -> None:
    made, memory = DecisionLog(tmp_path), PolicyMemory()
    for i, target in enumerate((POOL, POOL, {"autoscaling": {"maxReplicas": 5}})):
        o = observation(i, {"prefill": 1, "decode": 1}, 3.0)
        _, memory = decide(made, plan_of(decode=target), memory, o, {"decode": QueueSample(o.now_s, 3.0)})
    runs = decision_records.read(b"".join(made.read(KEY)).decode().splitlines())
    assert [len(run.steps) for run in runs] == [2, 1]
    assert runs[1].queue is not None
    assert len(runs[1].queue.states["decode"].samples) == 2


@given(
    st.lists(st.none() | st.floats(0, 1e4) | st.just(math.nan), max_size=60),
    st.sampled_from([POOL, {"autoscaling": {"maxReplicas": 3}}]),
)
def test_replay_of_the_same_rules_is_exact_whatever_was_seen(
    tmp_path_factory: pytest.TempPathFactory, loads: list[float | None], pool: dict[str, object]
) -> None:
    runs = decision_records.read(
        record(tmp_path_factory.mktemp("r"), plan_of(prefill=pool, decode=pool), loads).splitlines()
    )
    again = decision_records.replay(
        runs, lambda run: decision_records.queue_policy(run.queue) if run.queue is not None else pytest.fail("no queue")
    )
    assert [(t.prefill, t.decode, t.reason) for t in again] == [
        (s.targets.prefill, s.targets.decode, s.targets.reason) for s in decision_records.steps_of(runs)
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "decode.aim=1"], "--set decode.aim: no such setting"),
        (["--set", "budget=0.01"], "--set budget: no such setting"),
        (["--set", "decode=1"], "--set decode: no such setting"),
        (["--set", "decode.target=0"], "--set decode.target: must be a number of requests above 0"),
        (["--set", "decode.min_replicas=10"], "--set decode.min_replicas"),
        (["--set", "decode.tolerance=-1.0"], "--set decode.tolerance"),
        (["--policy", "static:1,1", "--set", "decode.target=4.0"], "predictive and queue alone"),
    ],
)
def test_bad_arguments_are_named(queue: Path, argv: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["replay", str(queue), *argv])
    assert words in str(refused.value)


def test_records_that_lack_what_the_policy_went_by_are_named_by_line(queue: Path) -> None:
    begin, first, *rest = queue.read_text().splitlines()
    bad = json.loads(begin)
    bad["queue"]["pools"]["decode"]["target"] = 0.0
    for lines, words in (
        ([json.dumps(bad), first, *rest], "line 1: decode.target"),
        (
            [begin, json.dumps({k: v for k, v in json.loads(first).items() if k != "samples"}), *rest],
            "line 2: no field 'samples'",
        ),
    ):
        queue.write_text("\n".join(lines) + "\n")
        with pytest.raises(SystemExit) as refused:
            main(["explain", str(queue)])
        assert words in str(refused.value)


def test_records_of_both_policies_are_read_and_replayed_as_one(
    queue: Path, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.write_text(recorded + queue.read_text())
    assert "predictive and queue: differs in 0 of" in run(capsys, "replay", queue, "--since", "1d")
