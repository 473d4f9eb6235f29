"""DisaggScalers are parsed and refused as the API server would."""

from __future__ import annotations

import pytest
from tests.operator.api.test_scaler_on_apiserver import BAD
from tests.operator.controller.scalers.scalers import scaler_object

from disagg_operator.api import InvalidResource, parse_scaler


@pytest.mark.parametrize("case", BAD)
def test_a_bad_resource_is_refused(case: str) -> None:
    with pytest.raises(InvalidResource):
        parse_scaler(BAD[case][0])


def test_a_small_resource_has_defaults() -> None:
    spec = parse_scaler(scaler_object()).spec
    assert (spec.mode, spec.metrics.path, spec.pool("prefill").min_replicas) == ("Shadow", "/metrics", 1)
    assert str(spec.decode.scale_target_ref) == "Deployment d"
    assert spec.decode.scale_down_window_s is None


def test_pods_are_selected_by_labels_and_windows_are_declared() -> None:
    pool = {
        "scaleTargetRef": {"name": "p"}, "maxReplicas": 8, "podSelector": {"matchLabels": {"b": "2", "a/x": "1"}},
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
    }  # fmt: skip
    found = parse_scaler(scaler_object(prefill=pool)).spec.prefill
    assert found.pod_selector is not None
    assert found.pod_selector.as_selector() == "a/x=1,b=2"
    assert found.scale_down_window_s == 60


def test_an_empty_behavior_declares_no_window() -> None:
    pool = {"scaleTargetRef": {"name": "p"}, "maxReplicas": 8, "behavior": {}}
    assert parse_scaler(scaler_object(prefill=pool)).spec.prefill.scale_down_window_s is None
