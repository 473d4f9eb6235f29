"""The number of calls to the API server that a new resource costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, Operator, eventually, operator

from disagg_operator.kube.resources import CONTROLLER_REVISION, DISAGG_SCALER
from disagg_operator.vocabulary import FIELD_MANAGER

pytestmark = pytest.mark.apiserver

_OWN = ("chat-cluster-key", "chat-accepted-spec")


def calls(server: ApiServer, namespace: str, skip: int = 0) -> list[tuple[str, str, bool]]:
    """Return the operator's calls about a namespace, as (verb, path, whether it was a dry run)."""
    out = []
    for entry in server.audited():
        about = entry.get("objectRef") or {}
        ours = entry.get("userAgent") == FIELD_MANAGER and about.get("namespace") == namespace
        # DisaggScalers are looked at every 15 s, and own objects that may not be watched every 4 s.
        looks = about.get("resource") == DISAGG_SCALER.plural or (entry["verb"] == "get" and about.get("name") in _OWN)
        if ours and not looks:
            path, _, query = entry["requestURI"].partition("?")
            out.append((str(entry["verb"]), path.partition(f"/{namespace}/")[2], "dryRun=" in query))
    return out[skip:]


async def at_rest(running: Operator) -> None:
    """Wait until the operator has reconciled, and writes nothing any more."""
    last, same = (0.0, 0.0), 0

    async def rests() -> bool:
        nonlocal last, same
        now = (
            await running.metric("disagg_operator_api_writes_total"),
            await running.metric("disagg_operator_reconcile_seconds_count"),
        )
        last, same = now, same + 1 if now == last else 0
        return same >= 15 and now[1] > 0

    await eventually("the operator rests", rests)


async def test_a_new_resource_is_judged_once_and_written_once_and_nothing_is_read(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    async with operator(server, tmp_path, cluster.namespace) as running:

        async def has_listed() -> bool:
            made = calls(server, cluster.namespace)
            return [path for verb, path, _ in made if verb == "list"].count(CONTROLLER_REVISION.plural) == 2

        await eventually("it has listed everything, also for its term", has_listed)
        before = len(calls(server, cluster.namespace))
        await cluster.apply_resource()
        skip = before + 1  # the test's own call
        await at_rest(running)
        made = calls(server, cluster.namespace, skip)
    writes = [path for verb, path, dry in made if verb in ("create", "patch", "delete") and not dry]
    judged = [path for verb, path, dry in made if dry]
    assert [path for path, times in Counter(writes).items() if times > 1] == []
    assert [path for path, times in Counter(judged).items() if times > 1] == []
    assert [(verb, path) for verb, path, dry in made if verb in ("get", "list")] == []
    assert len(made) == len(writes) + len(judged)
