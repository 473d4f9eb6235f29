"""What the owner of an operator grants, by namespace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from disagg_operator.api.namespace_policy import NamespacePolicy, Permission, Policy
from disagg_operator.settings import BadSettings, load

IMAGES = {"DISAGG_WORKER_IMAGE": "w", "DISAGG_ROUTER_IMAGE": "r"}
VALUE = {
    "namespaces": {
        "*": {"images": ["registry.example.com/*", "busybox"]},
        "team-a": {"allow": ["HostPath"], "networkAttachments": ["nets/fab*"], "prometheusHosts": ["*.Monitoring.svc"]},
    }
}


def test_a_namespace_has_its_own_entry_or_that_of_all_others() -> None:
    policy = Policy.model_validate(VALUE)
    assert policy.of("team-a").allow == (Permission.HOST_PATH,)
    assert policy.of("team-b") == policy.of("team-c") == policy.namespaces["*"]
    assert Policy().of("team-b") == NamespacePolicy()
    assert json.loads(str(policy)) == VALUE


def test_a_star_stands_for_any_characters_and_nothing_else_is_special() -> None:
    a, b = Policy.model_validate(VALUE).of("team-a"), Policy.model_validate(VALUE).of("b")
    assert b.allows_image("registry.example.com/a/b:1")
    assert b.allows_image("busybox")
    assert not b.allows_image("registryXexample.com/a")
    assert not b.allows_image("busybox:1")
    assert a.allows_image("anything")
    assert a.allows_attachment("nets", "fabric")
    assert not a.allows_attachment("nets", "other")
    assert not b.allows_attachment("nets", "fabric")
    assert a.allows_prometheus("thanos.monitoring.SVC")
    assert not a.allows_prometheus("monitoring.svc.evil")
    assert a.allows(Permission.HOST_PATH)
    assert not a.allows(Permission.PRIVILEGED)


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [(["*"], False), (["*.254"], False), (["169.254.*"], True), (["*", "169.254.169.254"], True), (["[fe80:*"], False)],
)
def test_a_link_local_upstream_must_be_named(patterns: list[str], allowed: bool) -> None:
    policy = NamespacePolicy(upstream_hosts=tuple(patterns), tracing_hosts=tuple(patterns))
    assert policy.allows_tracing("169.254.169.254") is allowed
    assert policy.allows_tracing("vllm.prod") is ("*" in patterns)
    assert policy.allows_upstream("169.254.169.254") is allowed
    assert policy.allows_upstream("[FE80::1]") is (patterns == ["[fe80:*"])
    assert policy.allows_upstream("vllm.prod") is ("*" in patterns)


@pytest.mark.parametrize("wrong", [{"allow": ["Root"]}, {"imagse": []}, {"images": "x"}])
def test_what_is_misspelt_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        NamespacePolicy.model_validate(wrong)


def test_the_example_of_the_documentation_is_one() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/permissions.md").read_text()
    block = text.partition("```yaml\n")[2].partition("```")[0]
    policy = Policy.model_validate(yaml.safe_load(block)["policy"])
    assert policy.of("team-a").allow == (Permission.HOST_PATH, Permission.PRIVILEGED)
    for permission in Permission:
        assert f"| `{permission}` |" in text


def test_it_is_a_setting() -> None:
    assert load(IMAGES).policy == Policy()
    assert load({**IMAGES, "DISAGG_POLICY": json.dumps(VALUE)}).policy == Policy.model_validate(VALUE)
    for wrong in ("{", '{"namespace": {}}'):
        with pytest.raises(BadSettings, match="DISAGG_POLICY"):
            load({**IMAGES, "DISAGG_POLICY": wrong})
