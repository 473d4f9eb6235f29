"""The operator process behind an API server that is late, forgetful, overloaded or away.

Each test names the faults of docs/reliability.md that it shows.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from tests.integration.apiserver import ApiServer
from tests.integration.cluster_state import collect_garbage, delete_resource, objects, rests, snapshot, uids
from tests.integration.edited_resource import QUICK, edit, resting_operator, shown
from tests.integration.faulty_api import Asked, FaultyApi, refusal
from tests.integration.operator_process import Cluster, Operator, eventually, operator

from disagg_operator.kube.resources import SERVICE
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

DEAF = {"DISAGG_RESYNC_INTERVAL_S": "3600"}


async def watching(api: FaultyApi, cluster: Cluster) -> None:
    """Wait until all four kinds are watched."""

    async def all_kinds() -> bool:
        return len({a.path for a in api.asked if a.watches and a.status == 200}) >= 4

    await eventually("all kinds are watched", all_kinds)


async def killed_at_writes(
    server: ApiServer, api: FaultyApi, cluster: Cluster, folder: Path, every: int, *, carried_out: bool
) -> int:
    """Kill the operator at its n-th write, again and again, until one has nothing left to write.

    Returns the number of operators that died.
    """
    for died in range(60):
        async with operator(api.server, folder, cluster.namespace, 0.0, **QUICK) as running:
            before = len(api.writes)

            async def at_a_write(asked: Asked, running: Operator = running, before: int = before) -> bool:
                if asked.writes and len(api.writes) - before >= every and running.process.returncode is None:
                    running.process.kill()
                    return False
                return True

            async def instead(asked: Asked, at: Any = at_a_write) -> web.Response | None:
                return None if await at(asked) else refusal(500)

            api.without_faults()
            if carried_out:
                api.tells = at_a_write
            else:
                api.answer = instead

            async def over(running: Operator = running) -> bool:
                writes, resyncs = len(api.writes), api.resyncs

                async def died_or_listed() -> bool:
                    return running.process.returncode is not None or api.resyncs >= resyncs + 4

                await eventually("it dies or lists everything", died_or_listed)
                return running.process.returncode is not None or len(api.writes) == writes

            await eventually("it dies or rests", over, 60.0)
            died_now = running.process.returncode is not None
        if not died_now:
            api.without_faults()
            return died
    raise AssertionError("the operators never come to an end")


@pytest.mark.parametrize(
    "every",
    [
        pytest.param(5, id="every fifth"),
        pytest.param(2, id="every second", marks=pytest.mark.long),
    ],
)
async def test_f16_killed_at_its_writes_it_ends_in_the_same_state_as_if_it_had_not_been(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path, every: int
) -> None:
    edits: tuple[dict[str, Any], ...] = ({}, {"decode": {"replicas": 3}, "security": {"networkPolicy": False}})
    ends = []
    async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:
        for number, spec in enumerate(edits):
            await edit(cluster, f"edit {number}", **spec)
            await shown(cluster, f"edit {number}")
            await rests(api)
            ends.append(await snapshot(cluster))
        await delete_resource(cluster)
        await collect_garbage(cluster)
        assert await running.stop() == 0
    assert await objects(cluster) == []
    for number, spec in enumerate(edits):
        await edit(cluster, f"edit {number}", **spec)
        died = await killed_at_writes(server, api, cluster, tmp_path, every, carried_out=number == 0)
        if number == 0:
            assert died > 0
        assert await snapshot(cluster) == ends[number]


async def test_f17_events_that_come_late_do_no_harm_to_what_came_after_them(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    late = asyncio.Event()

    async def waits(_: int, __: Obj) -> bool:
        await late.wait()
        return True

    async with resting_operator(api, cluster, tmp_path) as running:
        api.passes = waits
        await delete_resource(cluster)
        await collect_garbage(cluster)
        await edit(cluster, "two", decode={"replicas": 5})
        # The full lists tell of the new resource, and no watch of the old one's end.
        await shown(cluster, "two")
        await rests(api)
        before = await uids(cluster)
        late.set()
        await edit(cluster, "three", decode={"replicas": 5})
        await shown(cluster, "three")
        await rests(api)
        assert await uids(cluster) == before
        assert await cluster.replicas("decode") == (5, 5)
        assert [a for a in api.writes if a.verb == "DELETE"] == []
        assert await running.stop() == 0


async def test_f18_what_the_watches_miss_is_found_by_the_next_full_list(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async def swallowed(_: int, event: Obj) -> bool:
        return bool(event["type"] == "BOOKMARK")

    api.passes = swallowed
    async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:
        await edit(cluster, "one")
        await shown(cluster, "one")
        await edit(cluster, "two", security={"networkPolicy": False})
        await shown(cluster, "two")
        await rests(api)
        assert await running.stop() == 0


async def test_f18_a_watch_that_is_gone_or_silent_is_opened_anew(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    settings = DEAF | {"DISAGG_WATCH_SILENCE_S": "2"}
    async with operator(api.server, tmp_path, cluster.namespace, **settings) as running:
        await watching(api, cluster)
        await edit(cluster, "one")
        await shown(cluster, "one")
        # Each watch ends with what an API server says of a version that it does not have any more.
        opened = api.watches
        api.end_watches = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
        await edit(cluster, "two")

        async def ended() -> bool:
            return api.watches > opened

        await eventually("a watch is opened anew", ended)
        api.end_watches = None
        await shown(cluster, "two")

        # Those that are open by now never say anything again, and do not end either.
        last = api.watches

        async def silent(number: int, _: Obj) -> bool:
            return number > last

        api.passes = silent
        await edit(cluster, "three")
        await shown(cluster, "three")
        assert running.process.returncode is None
        assert await running.stop() == 0


async def test_f18_without_a_full_list_for_long_the_liveness_probe_fails_until_there_is_one(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    settings = QUICK | {"DISAGG_HEARTBEAT_TIMEOUT_S": "3"}

    async with operator(api.server, tmp_path, cluster.namespace, **settings) as running:

        async def probe(status: int, words: str) -> bool:
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = await http.get(f"http://127.0.0.1:{running.port}/livez")
            return answer.status_code == status and words in answer.text

        await edit(cluster, "one")
        await shown(cluster, "one")
        await eventually("it is alive", lambda: probe(200, "ok"))

        async def without_lists(asked: Asked) -> web.Response | None:
            return refusal(503) if asked.verb == "GET" and "limit" in asked.query and not asked.watches else None

        api.answer = without_lists
        await eventually("the kubelet would restart it", lambda: probe(503, "no full list for"))
        api.without_faults()
        await eventually("it is alive again", lambda: probe(200, "ok"))
        assert await running.stop() == 0


async def test_f18_what_was_deleted_while_a_watch_was_gone_is_missed_when_it_is_opened_anew(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with operator(api.server, tmp_path, cluster.namespace, **DEAF) as running:
        await watching(api, cluster)
        await edit(cluster, "one")
        await shown(cluster, "one")
        service = await cluster.kube.get(SERVICE, cluster.namespace, "chat-router")
        assert service is not None
        # Of the deletion, the watch says that it can't be continued.
        api.end_watches = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
        await cluster.kube.delete(service)

        async def is_back() -> bool:
            return await cluster.kube.get(SERVICE, cluster.namespace, "chat-router") is not None

        await eventually("the child is made again", is_back)
        api.end_watches = None
        assert await running.stop() == 0


async def test_f19_an_api_server_that_refuses_is_asked_less_often_and_all_is_done_once_it_answers(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with resting_operator(api, cluster, tmp_path) as running:
        before, kept = await uids(cluster), await snapshot(cluster)

        # First it is overloaded, and says when to come back.
        async def overloaded(asked: Asked) -> web.Response | None:
            return refusal(429, after_s=2) if asked.path.endswith("/chat") else None

        api.answer, start = overloaded, len(api.asked)
        await edit(cluster, "two")

        def refused() -> list[Asked]:
            return [a for a in api.asked[start:] if a.path.endswith("/disaggdeployments/chat") and a.status == 429]

        async def asked_thrice() -> bool:
            return len(refused()) >= 3

        await eventually("it has asked three times", asked_thrice)
        times = [a.at_s for a in refused()]
        assert all(later - earlier >= 1.9 for earlier, later in itertools.pairwise(times)), times

        # Then it fails, watches and lists included.
        async def failing(asked: Asked) -> web.Response | None:
            return refusal(503)

        api.answer, api.end_watches = failing, {"kind": "Status", "code": 410, "message": "for a test"}

        async def failed() -> bool:
            return "(failure 2)" in running.log.read_text()

        await eventually("reconciles fail again and again", failed, 60.0)
        assert running.process.returncode is None
        assert await uids(cluster) == before
        assert await snapshot(cluster) == kept

        # Then it is slow.
        async def slow(asked: Asked) -> web.Response | None:
            await asyncio.sleep(0.3)
            return None

        api.without_faults()
        api.answer = slow
        await shown(cluster, "two", 60.0)
        await rests(api)
        assert await uids(cluster) == before
        assert await running.stop() == 0


@pytest.mark.long
async def test_f19_after_two_minutes_without_an_answer_the_same_process_goes_on(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:
        await edit(cluster, "one")
        await shown(cluster, "one")

        async def failing(asked: Asked) -> web.Response | None:
            return refusal(503)

        api.answer, api.end_watches = failing, {"kind": "Status", "code": 410, "message": "for a test"}
        await edit(cluster, "two")
        await asyncio.sleep(120)
        assert running.process.returncode is None
        api.without_faults()
        await shown(cluster, "two", 60.0)
        assert await running.stop() == 0
