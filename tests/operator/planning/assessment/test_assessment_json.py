"""Tests of an assessment as JSON."""

from __future__ import annotations

import json

import pytest
from tests.operator.planning.assessment.test_comparison import assessment
from tests.operator.planning.assessment.test_interference import watched
from tests.operator.planning.assessment.test_request_load import read

from disagg_operator.planning.assessment import interference
from disagg_operator.planning.assessment.assessment_json import as_data
from disagg_operator.planning.assessment.comparison import ServiceAssessment

SEEN = interference.judge(read(windows=watched(10e-6)), 0.01)


@pytest.mark.parametrize(
    "found",
    [assessment(40, 80, 60), assessment(None, None, interference=SEEN), assessment(40, 80, 60, plan=None, engine="")],
    ids=["whole", "infeasible", "no plan"],
)
def test_it_is_valid_json(found: ServiceAssessment) -> None:
    data = json.loads(json.dumps(as_data(found), allow_nan=False))
    assert data["workload"]["prompt_tokens"]["tail"] == {"low": 20.0, "high": 50.0}
    assert (data["plan"] is None) == (found.plan is None)
    assert data["prefill_disturbs_decode"]["verdict"] == found.interference.verdict
    if found.today is not None:
        assert data["today"]["gpu_hours_per_hour"] == 60
