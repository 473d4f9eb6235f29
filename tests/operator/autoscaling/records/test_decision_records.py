"""The records of decisions are read back whole, and another policy can be asked by them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.autoscaling.policy.looks import POOLS, SETTINGS, T0, blind, observation, run

from disagg_operator.autoscaling.policy import guard, queue_pools
from disagg_operator.autoscaling.policy.guard import Outcome
from disagg_operator.autoscaling.policy.memory import State
from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.autoscaling.policy.queue_depth import QueueMemory, QueueSample
from disagg_operator.autoscaling.policy.queue_pools import QueueStart
from disagg_operator.autoscaling.records import decision_records
from disagg_operator.autoscaling.records.decision_records import JournalError, columns, read, replay, steps_of


def lines(outcomes: Iterable[Outcome | None], *, dry_run: bool = False) -> list[str]:
    """Return the log of some steps of one policy."""
    known = [outcome for outcome in outcomes if outcome is not None]
    steps = [decision_records.step_line(outcome, dry_run=dry_run) for outcome in known]
    return [json.dumps(line, allow_nan=False) for line in (decision_records.beginning(known[0]), *steps)]


def predictive(n: int = 6) -> list[Outcome | None]:
    return run(*(observation(5 * i, per_s=5.0 + 40 * i) for i in range(n)))


def queue(n: int = 6) -> list[Outcome | None]:
    """Return the outcomes of the policy `queue`, while its queue grows."""
    states: dict[str, QueueMemory] = {pool: QueueMemory() for pool in POOLS}
    out: list[Outcome | None] = []
    for i in range(n):
        o = observation(5 * i)
        samples = {pool: QueueSample(o.now_s, 10.0 * i) for pool in POOLS}
        before, (decisions, states) = states, queue_pools.step(POOLS, states, samples, o)
        fixed = guard.fixed(SETTINGS, POOLS, o)
        targets = queue_pools.targets(o, decisions)
        out.append(Outcome(o, targets, decisions, fixed, State(), QueueStart(POOLS, before), samples))
    return out


@pytest.mark.parametrize("outcomes", [predictive(), queue()], ids=["predictive", "queue"])
def test_what_was_recorded_is_read_back(outcomes: list[Outcome | None]) -> None:
    (found,) = read(lines(outcomes, dry_run=True))
    known = [outcome for outcome in outcomes if outcome is not None]
    assert found.settings == known[0].settings
    assert repr(found.state) == repr(known[0].before)
    assert found.queue == known[0].queue
    assert [repr(step.observation) for step in found.steps] == [repr(outcome.observation) for outcome in known]
    assert [step.targets for step in found.steps] == [outcome.targets for outcome in known]
    assert [step.decided for step in found.steps] == [{p: d.to for p, d in o.decisions.items()} for o in known]
    assert [step.reasons for step in found.steps] == [{p: d.reason for p, d in o.decisions.items()} for o in known]
    assert [step.samples for step in found.steps] == [dict(outcome.samples) for outcome in known]
    assert all(step.dry_run and not step.blind for step in found.steps)


def test_the_same_policy_answers_as_it_did() -> None:
    runs = read(lines(predictive(20)))
    answers = replay(runs, lambda one: decision_records.predictive_policy(one.settings, one.state))
    assert [(a.prefill, a.decode, a.reason) for a in answers] == [
        (step.targets.prefill, step.targets.decode, step.targets.reason) for step in runs[0].steps
    ]
    runs = read(lines(queue()))
    asked = [one.queue for one in runs if one.queue is not None]
    assert replay(runs, lambda _: decision_records.queue_policy(asked[0])) == [step.targets for step in runs[0].steps]


def test_the_queue_is_asked_by_what_another_policy_saw() -> None:
    (found,) = read(lines(predictive()))
    policy = decision_records.queue_policy(QueueStart({"decode": POOLS["decode"]}, {}))
    (first, *_) = replay([found], lambda _: policy)
    assert (first.prefill, first.numbers["decode_requests_per_worker"]) == (2, 10.0)


def test_each_beginning_is_a_run_and_empty_lines_are_none() -> None:
    text = [*lines(predictive(3)), "", *lines(queue(2)), "  "]
    runs = read(text)
    assert [len(one.steps) for one in runs] == [3, 2]
    assert [one.queue is not None for one in runs] == [False, True]
    assert read([]) == []


def test_a_line_that_a_writer_was_killed_in_is_left_out() -> None:
    text = lines(predictive(3))
    assert [len(one.steps) for one in read([*text, text[1][:40]])] == [3]
    assert [len(one.steps) for one in read([*text, text[1][:40], *text])] == [3, 3]


def changed(field: str, value: Any) -> str:
    """Return a step whose observation has another value."""
    step = json.loads(lines(predictive(1))[1])
    step["observation"][field] = value
    return json.dumps(step)


BEGIN, STEP, *_ = lines(predictive(1))
QUEUE_BEGIN, QUEUE_STEP, *_ = lines(queue(1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ([STEP], "line 1: the first line is no beginning"),
        (["nonsense", BEGIN], "line 1: "),
        (["[" * 100_000], "line 1: "),
        ([BEGIN, STEP[:40], STEP], "line 2: "),
        ([BEGIN, STEP[:40], STEP[:40]], "line 2: "),
        ([BEGIN, "[]"], "line 2: "),
        ([BEGIN, "{}"], "line 2: no field 'decided'"),
        ([BEGIN, json.dumps({**json.loads(STEP), "reasons": []})], "line 2: "),
        ([BEGIN, json.dumps({**json.loads(STEP), "decided": {"prefill": "many"}})], "line 2: "),
        ([json.dumps({"begin": True, "settings": {}})], "line 1: "),
        ([json.dumps({"begin": True})], "line 1: no field 'settings'"),
        ([BEGIN, changed("now_s", -1.0)], "line 2: Observation.now_s: -1"),
        ([BEGIN, changed("now_s", 1e12)], "line 2: Observation.now_s: 1e"),
        ([BEGIN, changed("now_s", None)], "line 2: Observation.now_s: nan"),
        ([BEGIN, changed("interval_s", 0.0)], "line 2: Observation.interval_s: 0"),
        ([BEGIN, changed("interval_s", None)], "line 2: Observation.interval_s: nan"),
        ([QUEUE_BEGIN, STEP], "line 2: no field 'samples'"),
        ([QUEUE_BEGIN.replace('"target": 4.0', '"target": 0.0')], "line 1: prefill.target"),
    ],
)
def test_what_is_no_record_is_refused_by_its_line(text: list[str], words: str) -> None:
    with pytest.raises(JournalError, match=f"^{words}"):
        read(text)


def test_a_look_without_metrics_may_take_no_time() -> None:
    unseen = replace(blind(0), interval_s=0.0)
    (found,) = read(lines(run(unseen)))
    assert [step.blind for step in found.steps] == [True]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_whatever_a_line_holds_it_is_refused_or_read(content: Any) -> None:
    for line in (
        content,
        {"begin": True, "settings": content, "state": content},
        json.loads(STEP) | {"targets": content},
    ):
        with contextlib.suppress(JournalError):
            read([BEGIN, json.dumps(line)])


def test_steps_are_those_from_a_time_on() -> None:
    runs = read([*lines(predictive(3)), *lines(queue(2))])
    assert len(steps_of(runs)) == 5
    assert [step.observation.now_s for step in steps_of(runs, T0 + 5)] == [T0 + 5, T0 + 10, T0 + 5]


def test_columns_are_what_was_decided_or_what_another_policy_answers() -> None:
    (found,) = read(lines(run(*(observation(5 * i) for i in range(3)), pools={"decode": POOLS["decode"]})))
    decided = columns(found.steps)
    assert decided["t_s"] == [5.0, 10.0, 15.0]
    assert decided["arrivals"] == [25.0] * 3
    assert decided["prefill_desired"] == [2.0] * 3  # not scaled: the size that it has
    assert decided["decode_desired"] == [float(step.decided["decode"]) for step in found.steps]
    other = columns(found.steps, [Targets(7, 8)] * 3)
    assert (other["prefill_desired"], other["decode_desired"]) == ([7.0] * 3, [8.0] * 3)
    assert len({len(column) for column in decided.values()}) == 1
    assert columns([]) == {}


def test_an_observation_keeps_what_is_not_known() -> None:
    (found,) = read(lines(run(blind(0))))
    (step,) = found.steps
    seen: Observation = step.observation
    assert math.isnan(seen.prefill.arrivals)
    assert math.isnan(seen.decode.kv_tokens)


def test_the_logs_of_two_operators_are_merged_by_run() -> None:
    """The first one led at 0 and at 20, the other one at 10."""

    def one_run(t: float, steps: int) -> str:
        times = [{"begin": True, "t": t}, *({"t": t + i} for i in range(steps))]
        return "".join(json.dumps(line) + "\n" for line in times)

    first, second, third = one_run(0, 3), one_run(10, 2), one_run(20, 1)
    assert decision_records.merged([first + third, second]) == first + second + third
    assert decision_records.merged([second, first + third]) == first + second + third


@pytest.mark.parametrize("log", ["", '{"begin": true, "t": 9}\n{"begin": true, "t": 5}\n', "no record\n"])
def test_a_single_log_stays_as_it_is(log: str) -> None:
    assert decision_records.merged([log]) == decision_records.merged(["", log, "\n"]) == log


def test_lines_that_are_no_records_are_kept_for_the_reader_to_refuse() -> None:
    beginning = '{"begin": true, "t": 5}\n'
    assert decision_records.merged([beginning, "no record\n"]) == "no record\n" + beginning
