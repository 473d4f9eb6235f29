"""Policies are found by their names; the predictive one learns from the past and its workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.operator.simulation.loads import PROFILE, day

from disagg_operator.simulation import named_policies
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.score import score
from disagg_operator.simulation.traces import TraceError

SETUP = Setup(PROFILE, most=20)


def test_policies_by_name() -> None:
    assert named_policies.names(SETUP)[0] == named_policies.PREDICTIVE
    for name in named_policies.names(SETUP):
        assert callable(named_policies.make(name, SETUP))
    message = "'magic' is none of predictive, static:PREFILL,DECODE, APA"
    with pytest.raises(named_policies.PolicyError, match=message):
        named_policies.make("magic", SETUP)


def test_a_wrong_profile_is_learned_away() -> None:
    """A profile that says workers are twice as fast as they are does not cost more in the end."""
    halved = ("a_s", "b_s_per_token", "d_s", "e_s_per_sequence")
    trace, wrong = day(), replace(PROFILE, **{name: getattr(PROFILE, name) / 2 for name in halved})

    def run(**changes: object) -> float:
        settings = replace(named_policies.settings_of(SETUP), **changes)  # type: ignore[arg-type]
        policy = named_policies.Predictive(settings)
        result = score(Cluster(trace, SETUP).run(policy))
        return result.gpu_hours * (1 + 40 * max(0.0, 0.99 - result.attainment))

    right = run()
    assert run(profile=wrong) == pytest.approx(right, rel=0.1)
    assert run(profile=wrong, learn=False) > 1.05 * right


def test_history_is_scaled_and_ends_where_the_trace_begins(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("minute,requests,prompt_tokens,output_tokens\n-2,10,100,50\n-1,12,120,60\n")
    found = named_policies.read_history(path, 2)
    numbers = [(m.at_s, m.requests, m.prompt_tokens, m.output_tokens) for m in found]
    assert numbers == [(-60.0, 20, 200, 100), (0.0, 24, 240, 120)]
    path.write_text("minute,requests,prompt_tokens,output_tokens\n-2,10,many,50\n")
    with pytest.raises(TraceError, match=r"h\.csv:2"):
        named_policies.read_history(path)
