"""`parse` refuses the same as CEL and names the field; valid resources get their defaults."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.api.resources import BAD, BAD_TEMPLATES, UNKNOWN, Obj, good, watched
from tests.operator.desired.facts import FACTS

from disagg_operator.api import InvalidResource, parse, parse_file
from disagg_operator.desired import render


@pytest.mark.parametrize("case", BAD)
def test_a_bad_resource_is_refused_by_name(case: str) -> None:
    resource, _, words = BAD[case]
    with pytest.raises(InvalidResource) as caught:
        parse(resource)
    assert words in str(caught.value)


def test_a_password_in_a_url_is_refused_without_being_shown() -> None:
    with pytest.raises(InvalidResource) as caught:
        parse(watched("https://me:hunter2@host"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_a_pod_template_that_can_not_be_merged_is_refused_by_name(case: str) -> None:
    resource, words = BAD_TEMPLATES[case]
    with pytest.raises(InvalidResource) as caught:
        parse(resource)
    assert words in str(caught.value)


def test_a_subnet_with_addresses_for_workers_and_another_interface_are_good() -> None:
    for subnet in ("10.9.0.0/24", "10.9.0.1/24", "10.9.0.0/30"):
        attachment = {"type": "macvlan", "master": "eth1", "subnet": subnet}
        network = {"attachment": attachment, "interface": "net2"}
        found = parse(good(kvTransfer={"network": network})).spec.kv_transfer
        assert found.network is not None
        assert found.network.attachment is not None
        assert found.network.attachment.subnet == subnet
        assert not found.forbids_fallback
    ipam = {"type": "sriov", "resourceName": "a/b", "ipam": {"type": "dhcp"}}
    parse(good(kvTransfer={"network": {"attachment": ipam}}))
    with pytest.raises(InvalidResource, match="eth0 is an interface of every pod"):
        parse(good(kvTransfer={"network": {"attachment": ipam, "interface": "eth0"}}))
    wrong = {
        "10.300.0.0/24": "no subnet",
        "10.9.0.0/64": "no subnet",
        # Of these the pods would never get an address that they can use.
        "fd00::/64": "no IPv4 addresses",
        "10.9.0.0/31": "too small",
        "10.9.0.1/32": "too small",
    }
    for subnet, words in wrong.items():
        attachment = {"type": "macvlan", "master": "eth1", "subnet": subnet}
        with pytest.raises(InvalidResource, match=words):
            parse(good(kvTransfer={"network": {"attachment": attachment}}))


def test_rdma_devices_come_by_a_resource_by_rails_or_by_claims() -> None:
    claimed: Obj = {"devicesBy": "Claim"}
    plain: Obj = {"attachmentRef": {"name": "n"}}
    rails: Obj = {"rails": [{"name": "r", "resourceName": "rdma/a"}]}
    resource: Obj = {"name": "rdma/a", "quantity": 2, "per": "Accelerator"}
    for network, some in ((plain, False), (rails, True), (claimed, True), (plain | claimed, True),
                          (plain | {"rdmaResource": resource}, True)):  # fmt: skip
        transfer = parse(good(kvTransfer={"network": network})).spec.kv_transfer
        assert transfer.network is not None
        assert (transfer.may_use_rdma, transfer.network.has_devices) == (some, some)
        if (device := transfer.network.rdma_resource) is not None:
            assert [device.devices(gpus) for gpus in (0, 1, 8)] == [2, 2, 16]
    parse(good(kvTransfer={"transport": "rdma", "network": claimed}))
    for network in (claimed | rails, plain | claimed | {"rdmaResource": resource}):
        with pytest.raises(InvalidResource, match="devicesBy Claim stands for rdmaResource and rails"):
            parse(good(kvTransfer={"network": network}))


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_field_is_refused_in_a_file_and_passed_over_in_the_cluster(case: str) -> None:
    resource, path = UNKNOWN[case]
    with pytest.raises(InvalidResource) as caught:
        parse_file(resource)
    assert str(caught.value) == f"{path}: unknown field"
    assert parse(resource).metadata.name == "chat"  # stored by a later version of the CRD, but still served


def test_what_is_left_out_gets_its_default() -> None:
    spec = parse(good()).spec
    assert spec.model.served_name == "m"
    assert (spec.prefill.initial_replicas, spec.router.replicas, spec.kv_transfer.transport) == (1, 2, "auto")
    assert spec.security.network_policy
    assert spec.kv_transfer.network is None


@pytest.mark.parametrize(
    ("kv_transfer", "forbids"),
    [
        ({}, False),
        ({"transport": "rdma"}, True),
        ({"transport": "rdma", "fallback": "Warn"}, False),
        ({"fallback": "Forbid"}, True),
    ],
)
def test_a_fallback_is_forbidden_where_rdma_is_asked_for_unless_the_user_says_otherwise(
    kv_transfer: dict[str, object], forbids: bool
) -> None:
    network = {"attachmentRef": {"name": "n"}, "rdmaResource": {"name": "rdma/hca"}}
    assert parse(good(kvTransfer={**kv_transfer, "network": network})).spec.kv_transfer.forbids_fallback is forbids


def test_the_scaling_window_and_target_are_read_from_the_vocabulary_of_the_hpa() -> None:
    metrics = [{"type": "QueueDepth", "target": {"averageValue": "2.5"}}]
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 15}}
    pool = parse(
        good(prefill={"autoscaling": {"maxReplicas": 3, "metrics": metrics, "behavior": behavior}})
    ).spec.prefill
    assert pool.autoscaling is not None
    assert (pool.autoscaling.queue_target(9.0), pool.autoscaling.scale_down_window_s, pool.initial_replicas) == (
        2.5,
        15,
        1,
    )


_KEYS = st.sampled_from(
    ["model", "uri", "prefill", "decode", "replicas", "podTemplate", "spec", "containers", "env", "name"]
)
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(_ANYTHING, _ANYTHING)
def test_whatever_stands_in_the_spec_is_rendered_or_refused_and_never_an_error_of_another_kind(
    spec: object, pool: object
) -> None:
    for candidate in ({**good(), "spec": spec}, good(prefill=pool)):
        with contextlib.suppress(InvalidResource):
            render(parse(candidate), FACTS)


def test_yaml_numbers_and_texts_mean_the_same_resources() -> None:
    text = yaml.safe_load("{requests: {cpu: 1, memory: 1Gi}, limits: {cpu: '1'}}")
    resources = parse(good(prefill={"resources": text})).spec.prefill.resources
    assert resources is not None
    assert resources.as_pod() == {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1"}}
