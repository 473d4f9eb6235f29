"""Numbers of a resource that can't all be kept, and those that are hardly meant."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.api.resources import good, of

from disagg_operator.api.v1alpha1 import read
from disagg_operator.controller.feasibility import infeasible, questionable, smallest_sizes, uneven

GPU = {"accelerator": {"count": 1}}


def scaled(low: int, high: int, gpus: int = 1) -> dict[str, Any]:
    return {"autoscaling": {"minReplicas": low, "maxReplicas": high}, "accelerator": {"count": gpus}}


RATIO: dict[str, Any] = {"prefill": scaled(1, 4), "decode": scaled(1, 8)}


def made(attachment: dict[str, Any], **device: Any) -> dict[str, Any]:
    rdma = {"rdmaResource": device} if device else {}
    return good(kvTransfer={"network": {"attachment": attachment, **rdma}})


def network(**more: Any) -> dict[str, Any]:
    return {"network": {"attachmentRef": {"name": "n"}, **more}}


@pytest.mark.parametrize(
    ("resource", "path", "reason"),
    [
        (good(prefill=scaled(1, 2), decode=scaled(3, 4, 2), scaling={"maxGPUs": 6}), "spec.scaling.maxGPUs",
         "Infeasible"),
        (good(prefill=GPU | {"replicas": 4}, decode=GPU, scaling={"maxGPUs": 4}), "spec.scaling.maxGPUs", "Infeasible"),
        (good(prefill=scaled(1, 2), decode=scaled(1, 4), scaling={"ratio": {"min": 5}}), "spec.scaling.ratio",
         "Infeasible"),
        (good(prefill=scaled(3, 4), decode=scaled(1, 9), scaling={"ratio": {"max": 0.2}}), "spec.scaling.ratio",
         "Infeasible"),
        (
            good(prefill=scaled(1, 9), decode=scaled(1, 9), scaling={"ratio": {"min": 4}, "maxGPUs": 4}),
            "spec.scaling.ratio", "Infeasible",
        ),
        (
            good(prefill=scaled(2, 2), decode=scaled(1, 9), scaling={"ratio": {"min": 1.2, "max": 1.4}}),
            "spec.scaling.ratio", "Infeasible",
        ),
        (
            good(kvTransfer=network(interface="a-long-fabrics9", rdmaResource={"name": "rdma/a", "quantity": 2})),
            "spec.kvTransfer.network.interface", "InvalidSpec",
        ),
        (
            good(decode=GPU, kvTransfer={"network": {"rails": [{"name": "r", "resourceName": "nvidia.com/gpu"}]}}),
            "spec.kvTransfer.network.rails[0].resourceName", "InvalidSpec",
        ),
        (
            good(prefill={"podTemplate": {"spec": {"hostNetwork": True}}}, kvTransfer=network()),
            "spec.prefill.podTemplate.spec.hostNetwork", "InvalidSpec",
        ),
        (
            good(decode={"podTemplate": {"spec": {"hostUsers": False}}},
                 kvTransfer=network(rdmaResource={"name": "rdma/a"}, rdmaMode="Root")),
            "spec.decode.podTemplate.spec.hostUsers", "InvalidSpec",
        ),
        (
            good(decode=GPU, kvTransfer=network(rdmaResource={"name": "nvidia.com/gpu"})),
            "spec.kvTransfer.network.rdmaResource.name", "InvalidSpec",
        ),
        (
            good(prefill=GPU, kvTransfer={"network": {"attachment": {"type": "sriov",
             "resourceName": "nvidia.com/gpu"}}}),
            "spec.kvTransfer.network.attachment.resourceName", "InvalidSpec",
        ),
        (
            good(decode={"deviceClaim": {"templateName": "t", "rdmaDevices": 1}}),
            "spec.decode.deviceClaim.rdmaDevices", "InvalidSpec",
        ),
        (
            good(prefill={"deviceClaim": {"templateName": "t", "rdmaDevices": 1}},
                 kvTransfer={"network": {"devicesBy": "Claim"}}),
            "spec.decode.deviceClaim", "InvalidSpec",
        ),
        (
            made({"type": "macvlan", "master": "eth1", "ipam": {"poolName": "kv"}}),
            "spec.kvTransfer.network.attachment.ipam.type", "InvalidSpec",
        ),
        (
            made({"type": "host-device", "master": "eth1", "subnet": "10.9.0.0/24"}, name="rdma/a", quantity=2),
            "spec.kvTransfer.network.attachment.master", "InvalidSpec",
        ),
        (good(decode={"accelerator": {"product": "A", "count": 0}}), "spec.decode.accelerator.product", "InvalidSpec"),
        (
            good(kvTransfer={"transport": "shm", "fallback": "Forbid"}),
            "spec.kvTransfer.transport", "NeverReady",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_met_names_its_field(resource: dict[str, Any], path: str, reason: str) -> None:
    (found,) = infeasible(read(resource))
    assert (found.path, found.reason) == (path, reason)


@pytest.mark.parametrize(
    "resource",
    [
        good(),
        good(prefill=scaled(1, 2), decode=scaled(3, 4, 2), scaling={"maxGPUs": 7}),
        good(prefill=scaled(1, 9), decode=scaled(1, 9), scaling={"ratio": {"min": 3}, "maxGPUs": 4}),
        good(prefill=scaled(3, 3), decode=scaled(1, 9), scaling={"ratio": {"min": 1.3, "max": 1.4}}),
        good(prefill=GPU, decode=GPU, scaling={"ratio": {"min": 5}}),  # nothing is scaled
        good(prefill={"replicas": 0}, decode={"replicas": 0}),
        good(decode=GPU, kvTransfer=network(rdmaResource={"name": "rdma/a"})),
        good(prefill={"accelerator": {"count": 0}}, kvTransfer=network(rdmaResource={"name": "nvidia.com/gpu"})),
        good(kvTransfer={"transport": "rdma", "fallback": "Warn", **network(rdmaResource={"name": "rdma/a"})}),
        good(
            kvTransfer={
                "network": {
                    "attachment": {"type": "host-device", "master": "eth1", "ipam": {"type": "dhcp"}},
                    "rdmaResource": {"name": "rdma/a"},
                }
            }
        ),
        good(
            kvTransfer={
                "network": {
                    "attachment": {"type": "host-device", "resourceName": "a/b", "subnet": "10.9.0.0/24"},
                    "rdmaResource": {"name": "a/b", "quantity": 2},
                }
            }
        ),
        good(
            prefill={"deviceClaim": {"templateName": "t", "rdmaDevices": 1}},
            decode={"deviceClaim": {"templateName": "t", "rdmaDevices": 2}},
            kvTransfer={"transport": "rdma", "network": {"devicesBy": "Claim"}},
        ),
        good(prefill={"deviceClaim": {"templateName": "t"}}),
        of("vllm", kvTransfer={"transport": "rdma", **network(rdmaResource={"name": "rdma/a"})}),
    ],
)
def test_what_can_be_met_is_not_refused(resource: dict[str, Any]) -> None:
    assert list(infeasible(read(resource))) == []


_BOUNDS = st.tuples(st.integers(1, 6), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(_BOUNDS, _BOUNDS, st.floats(0, 4), st.floats(0.1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 30))
def test_a_ratio_is_refused_just_when_no_sizes_keep_it(
    p: tuple[int, int], d: tuple[int, int], low: float, more: float, p_gpus: int, d_gpus: int, gpus: int
) -> None:
    scaling = {"ratio": {"min": low, "max": low + more}, "maxGPUs": gpus}
    dd = read(good(prefill=scaled(*p, p_gpus), decode=scaled(*d, d_gpus), scaling=scaling))
    some = any(
        low - 1e-9 <= decode / prefill <= low + more + 1e-9 and prefill * p_gpus + decode * d_gpus <= gpus
        for prefill in range(p[0], p[1] + 1)
        for decode in range(d[0], d[1] + 1)
    )
    assert (list(infeasible(dd)) == []) == some


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        pytest.param({}, (1, 1), id="a pair"),
        pytest.param({"prefill": scaled(2, 4), "decode": scaled(3, 8)}, (2, 3), id="the bounds"),
        pytest.param({"prefill": {"replicas": 0}, "decode": {"replicas": 0}}, (1, 1), id="declared to be 0"),
        pytest.param(RATIO | {"scaling": {"ratio": {"min": 2.5, "max": 4}}}, (1, 3), id="more decode"),
        pytest.param(RATIO | {"scaling": {"ratio": {"min": 0.1, "max": 0.5}}}, (2, 1), id="more prefill"),
        pytest.param(RATIO | {"scaling": {"ratio": {"min": 9}}}, (1, 1), id="a ratio that cannot be kept"),
    ],
)
def test_the_fewest_workers_keep_bounds_and_ratio(spec: dict[str, Any], sizes: tuple[int, int]) -> None:
    assert smallest_sizes(read(good(**spec))) == dict(zip(("prefill", "decode"), sizes, strict=True))


def test_a_pool_at_0_alone_is_questioned() -> None:
    assert [v.path for v in uneven({"prefill": 0, "decode": 2})] == ["spec.prefill.replicas"]
    assert [v.path for v in uneven({"prefill": 1, "decode": 0})] == ["spec.decode.replicas"]
    assert [*uneven({"prefill": 0, "decode": 0}), *uneven({"prefill": 1, "decode": 1})] == []


def test_gpus_that_nobody_uses_are_questioned() -> None:
    (found,) = questionable(read(good(decode={"accelerator": {"count": 8}})))
    assert str(found) == "spec.decode.accelerator.count: 8 GPUs, but parallelism.tensor uses 1"
    for used in (
        good(decode={"accelerator": {"count": 8}, "parallelism": {"tensor": 8}}),
        of("vllm", engine={"args": ["--data-parallel-size", "8"]}, decode={"accelerator": {"count": 8}}),
        good(),
    ):
        assert list(questionable(read(used))) == []


def test_a_product_of_a_maker_that_is_not_known_is_questioned() -> None:
    accelerator: dict[str, Any] = {"count": 1, "product": "MI300X", "resourceName": "example.com/gpu"}
    (found,) = questionable(read(good(prefill={"accelerator": accelerator})))
    assert (found.path, found.reason) == ("spec.prefill.accelerator.product", "ProductLabel")
    known: list[dict[str, Any]] = [
        {"resourceName": f"{group}/gpu"} for group in ("nvidia.com", "amd.com", "gpu.intel.com")
    ]
    for change in (*known, {"productLabel": "example.com/product"}, {"product": None}):
        assert list(questionable(read(good(prefill={"accelerator": accelerator | change})))) == []


def test_each_virtual_function_has_an_attachment_so_none_is_questioned() -> None:
    attachment = {"type": "sriov", "resourceName": "rdma/vf", "subnet": "10.9.0.0/24"}
    eight = {"accelerator": {"count": 8}, "parallelism": {"tensor": 8}}
    network = {"attachment": attachment, "rdmaResource": {"name": "rdma/vf", "per": "Accelerator"}}
    resource = read(good(prefill=eight, decode=eight, kvTransfer={"network": network}))
    assert [*questionable(resource), *infeasible(resource)] == []
