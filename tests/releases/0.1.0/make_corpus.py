"""Render corpus/*.yaml into rendered/*.json, with facts that never change."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from disagg_operator import plan, replicas
from disagg_operator.api import parse_file
from disagg_operator.autoscaling import codec
from disagg_operator.desired import Facts, Images, render

HERE = Path(__file__).resolve().parent
UID = "11111111-2222-3333-4444-555555555555"
POOL_UIDS = {"prefill": "aaaaaaaa-0000-0000-0000-000000000001", "decode": "aaaaaaaa-0000-0000-0000-000000000002"}
IMAGES = Images("registry.example/disagg/worker:0.1.0", "registry.example/disagg/router:0.1.0", "IfNotPresent")


def rendered(raw: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a resource: the facts that it was rendered with, the objects, and what the scrape loop goes by."""
    parse_file(raw)
    found = plan.read(raw)
    pools = {
        role: replicas.decide(declared, None, None, suspended=found.scaling.suspended)
        for role, declared in found.declared.items()
    }
    facts = Facts(
        uid=UID,
        replicas={role: pool.count for role, pool in pools.items()},
        declared={role: pool.declared for role, pool in pools.items() if pool.declared is not None},
        pool_uids=POOL_UIDS,
        images=IMAGES,
        cluster_key="ab" * 32,
        attachments_available=True,
    )
    return {
        "facts": asdict(facts),
        "objects": render(found.resource, facts),
        "plan": {
            "scaling": codec.plain(found.scaling),
            "attachment": found.attachment,
            "rdma": found.rdma,
            "interface": found.interface,
        },
    }


def main() -> None:
    out = HERE / "rendered"
    out.mkdir(exist_ok=True)
    for path in sorted((HERE / "corpus").glob("*.yaml")):
        content = rendered(yaml.safe_load(path.read_text()))
        (out / f"{path.stem}.json").write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
