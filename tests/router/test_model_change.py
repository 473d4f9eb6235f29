"""Tests of a model that is replaced by another under load: no answer from other weights than those
of its name, and none that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.fakes.token_worker import TokenWorker
from tests.router.model_change import Fleet, Load, answer_of, fingerprint, made, team
from tests.router.stack import Stack, tokens_of

CLIENTS = 4


@asynccontextmanager
async def loaded(stack: Stack, weights: dict[str, set[str]], *names: str) -> AsyncIterator[Load]:
    """Put load on a stack, and check every answer at the end."""
    load, over = Load(stack.url, weights, *names), asyncio.Event()
    running = asyncio.create_task(load.run(CLIENTS, over))
    try:
        yield load
    finally:
        over.set()
        await running
    assert (load.wrong, load.failed) == ([], [])


async def listed(stack: Stack) -> list[str]:
    return [card["id"] for card in (await stack.http.get("/v1/models")).json()["data"]]


async def test_another_name_with_other_weights_takes_over_and_is_taken_back(tmp_path: Path) -> None:
    """The router keeps the environment of its start, whatever the workers become."""
    old, new, third = team("m", "a"), team("n", "b"), team("o", "c", 1)
    async with Stack(tmp_path, *old) as stack:
        fleet = Fleet(stack)
        async with loaded(stack, {"m": {"a"}, "n": {"b"}, "o": {"c"}}, "m") as load:
            await load.more("m=a")
            assert (await stack.complete(model="n")).status_code == 404
            # One after the other is replaced.
            await fleet.come(new[0], new[2])
            assert await listed(stack) == ["m", "n"]
            load.names = ["m", "n"]
            await load.more("n=b")
            await fleet.go(old[0], old[2])
            # An edit in the middle: a third model comes before the second has replaced the first.
            await fleet.come(*third)
            load.names = ["m", "o"]
            await load.settled(CLIENTS)
            await fleet.go(new[0], new[2])
            await load.more("o=c")
            # It is taken back: the first model's workers that are left go on, and others join them.
            load.names = ["m"]
            await load.settled(CLIENTS)
            back = team("m", "a", 1)
            await fleet.come(*back)
            await fleet.go(*third)
            await load.more("m=a")
            # And the change is made after all.
            await fleet.come(new[1], new[3])
            load.names = ["n"]
            await load.settled(CLIENTS)
            await fleet.go(old[1], old[3], *back)
            await load.more("n=b")
            await stack.until(lambda: "m" not in stack.router.table.names.listed())
            assert await listed(stack) == ["n"]
            assert (await stack.complete(model="m")).status_code == 404


async def test_other_weights_under_the_same_name_take_over_while_requests_wait(tmp_path: Path) -> None:
    old, new = team("m", "a"), team("m", "b")
    async with Stack(tmp_path, *old) as stack:
        fleet = Fleet(stack)
        for worker in (*old, *new):
            worker.slots = 2
        async with loaded(stack, {"m": {"a", "b"}}, "m") as load:
            await load.more("m=a")
            await fleet.come(new[0], new[2])
            await load.more("m=b")
            await load.more("m=a")
            await fleet.go(old[0], old[2])
            await load.more("m=b")
            await fleet.come(new[1], new[3])
            await fleet.go(old[1], old[3])
            load.weights["m"] = {"b"}
            await load.more("m=b", 40)


async def test_another_name_for_the_same_weights_takes_over(tmp_path: Path) -> None:
    old, new = team("m", "a", 1), team("n", "a", 1)
    async with Stack(tmp_path, *old) as stack:
        fleet = Fleet(stack)
        async with loaded(stack, {"m": {"a"}, "n": {"a"}}, "m") as load:
            await load.more("m=a")
            await fleet.come(*new)
            load.names = ["n"]
            await load.settled(CLIENTS)
            await fleet.go(*old)
            await load.more("n=a")
        trace = (await stack.complete(model="n")).json()["disagg"]
        assert (trace["prefill"]["pod"], trace["decode"]["pod"]) == (new[0].name, new[1].name)


async def test_where_no_two_pairs_fit_both_names_wait_while_the_pools_switch(tmp_path: Path) -> None:
    old, new = team("m", "a", 1), team("n", "b", 1)
    async with Stack(tmp_path, *old) as stack:
        fleet = Fleet(stack)
        await fleet.go(*old)
        for worker in new:
            worker.state, worker.loads = "starting", True
            await worker.start()
        stack.workers += new
        stack.publish(*new)
        await stack.until(lambda: "n" in stack.router.table.names._coming)
        asked = {name: [asyncio.create_task(stack.complete(model=name)) for _ in range(3)] for name in ("m", "n")}
        await stack.until(lambda: stack.router.queue.hold.waiting == 6)
        assert await stack.metric('disagg_router_waiting_requests{pool="decode"}') == 6
        assert (await stack.state())["held"] == 6
        assert (await stack.complete(model="other")).status_code == 404
        for worker in new:
            worker.state, worker.loads = "ready", False
        answers = [(await task).json() for task in asked["n"]]
        assert {a["choices"][0]["text"] for a in answers} == {answer_of("b", "hello", 5, 8)}
        assert min(a["disagg"]["queue_s"] for a in answers) > 0
        # The first model will not come any more, and nobody waits for it in vain.
        assert {(await task).status_code for task in asked["m"]} == {404}
        assert await stack.metric('disagg_router_held_requests_total{outcome="served"}') == 3


async def test_a_change_that_is_taken_back_while_both_names_wait_serves_those_who_waited(tmp_path: Path) -> None:
    old = team("m", "a", 1)
    async with Stack(tmp_path, *old) as stack:
        fleet = Fleet(stack)
        await fleet.go(*old)
        asked = [asyncio.create_task(stack.complete()) for _ in range(3)]
        await stack.until(lambda: stack.router.queue.hold.waiting == 3)
        await fleet.come(*team("m", "a", 1))
        assert {(await task).json()["choices"][0]["text"] for task in asked} == {answer_of("a", "hello", 5, 8)}
        assert await stack.metric('disagg_router_held_requests_total{outcome="served"}') == 3


async def test_too_much_that_waits_for_a_model_and_too_long_a_wait_are_told_to_come_back(tmp_path: Path) -> None:
    async with Stack(tmp_path, queue_max_depth=2, queue_max_bytes=300, queue_max_wait_s=2.0) as stack:
        big = await stack.complete("x" * 300)
        waiting = [asyncio.create_task(stack.complete()) for _ in range(2)]
        await stack.until(lambda: stack.router.queue.hold.waiting == 2)
        answers = [big, await stack.complete(), *await asyncio.gather(*waiting)]
        for answer in answers:
            said = (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"])
            assert said == (503, "starting", "5")
        assert stack.router.queue.hold.waiting == 0
        assert await stack.metric('disagg_router_held_requests_total{outcome="refused"}') == 2
        assert await stack.metric('disagg_router_held_requests_total{outcome="expired"}') == 2


async def test_a_client_that_leaves_while_its_model_is_away_is_not_counted_any_more(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        asked = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.hold.waiting == 1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await stack.until(lambda: stack.router.active == 0)
        assert stack.router.queue.hold.waiting == 0
        assert await stack.metric('disagg_router_held_requests_total{outcome="cancelled"}') == 1


async def test_a_name_that_is_gone_for_good_does_not_exist(tmp_path: Path) -> None:
    others = team("n", "b", 1)
    async with Stack(tmp_path, *team("m", "a", 1), *others, name_memory_s=0.2) as stack:
        await Fleet(stack).go(*others)
        await stack.until(lambda: stack.router.table.names.last("n") is None)
        assert (await stack.complete(model="n")).json()["error"]["code"] == "model_not_found"
        assert await listed(stack) == ["m"]


async def test_a_worker_that_is_not_ready_for_its_pool_tells_which_model_is_coming(tmp_path: Path) -> None:
    worker = made("prefill", "n", "b")
    worker.state, worker.loads = "starting", True
    async with Stack(tmp_path, *team("m", "a", 1)) as stack:
        await worker.start()
        stack.workers.append(worker)
        content = stack._members.read_text().replace(
            '{"workers": [', f'{{"workers": [{{"name": "x", "url": "{worker.url}", "ready": false}}, '
        )
        stack._members.write_text(content)
        await stack.until(lambda: stack.router.table.names.known("n", 0.0))
        asked = asyncio.create_task(stack.complete(model="n"))
        await stack.until(lambda: stack.router.queue.hold.waiting == 1)
        assert await listed(stack) == ["m"]
        # It is never used while it is not ready for its pool, whatever it says of itself.
        worker.state, worker.loads = "ready", False
        stack.publish(*stack.workers[:2])
        await stack.until(lambda: not stack.router.table.names.known("n", 0.0))
        assert worker.seen.bodies == []
        asked.cancel()


async def test_workers_that_report_no_name_serve_the_configured_one(tmp_path: Path) -> None:
    pool = [TokenWorker("p", "prefill"), TokenWorker("d", "decode")]
    for worker in pool:
        worker.model, worker.features = None, None
    async with Stack(tmp_path, *pool) as stack:
        assert (await stack.complete()).status_code == 200
        assert all("digest" not in body for worker in pool for body in worker.seen.bodies)


async def test_a_worker_that_has_other_weights_since_the_last_poll_is_not_used(tmp_path: Path) -> None:
    pool = team("m", "a", 1)
    async with Stack(tmp_path, *pool, poll_interval_s=30) as stack:
        for worker in pool:
            worker.digest, worker.weights = "other", "other"
        asked = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        for worker in pool:
            worker.digest, worker.weights = "a-digest-of-weights", "a"
        assert (await asked).json()["choices"][0]["text"] == answer_of("a", "hello", 5, 8)


async def test_a_full_model_keeps_nobody_waiting_who_asks_for_another(tmp_path: Path) -> None:
    full, free = team("m", "a", 1), team("n", "b", 1)
    async with Stack(tmp_path, *full, *free) as stack:
        full[1].slots = 0
        asked = [asyncio.create_task(stack.complete()) for _ in range(3)]
        await stack.until(lambda: stack.router.queue.waiting("decode") == 3)
        answer = (await stack.complete(model="n")).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["queue_s"]) == (answer_of("b", "hello", 5, 8), 0.0)
        full[1].slots = 64
        assert {(await task).json()["choices"][0]["text"] for task in asked} == {answer_of("a", "hello", 5, 8)}


async def test_requests_that_wait_go_on_with_the_weights_that_replace_theirs(tmp_path: Path) -> None:
    old = team("m", "a", 1)
    async with Stack(tmp_path, *old) as stack:
        fleet = Fleet(stack)
        old[1].slots = 0
        asked = [asyncio.create_task(stack.complete()) for _ in range(5)]
        await stack.until(lambda: stack.router.queue.waiting("decode") == 5)
        await fleet.go(*old)
        await stack.until(lambda: stack.router.queue.hold.waiting == 5)
        await fleet.come(*team("m", "b", 1))
        answers = [(await task).json() for task in asked]
        assert {a["choices"][0]["text"] for a in answers} == {answer_of("b", "hello", 5, 8)}
        assert {a["system_fingerprint"] for a in answers} == {fingerprint("b")}
        assert await stack.metric("disagg_router_arrivals_total") == 5


async def _stream(stack: Stack, got: asyncio.Event) -> tuple[str, str]:
    """Return the text of a stream and the code of its error; `got` is set at its first text."""
    text, code = "", ""
    chunks = await stack.openai.completions.create(model="m", prompt="hello", max_tokens=20, seed=5, stream=True)
    try:
        async for chunk in chunks:
            text += chunk.choices[0].text
            got.set()
    except Exception as error:
        code = str(getattr(error, "code", None))
    return text, code


async def test_a_stream_goes_on_only_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    old, new = team("m", "a", 1), team("m", "b", 1)
    async with Stack(tmp_path, *old, queue_max_wait_s=5) as stack:
        fleet, got = Fleet(stack), asyncio.Event()
        old[1].token_interval_s = 0.05
        stream = asyncio.create_task(_stream(stack, got))
        asked = asyncio.create_task(stack.complete(max_tokens=20))
        await got.wait()
        await stack.until(lambda: old[1].running == 2)
        fleet.listed.remove(old[1])
        fleet._publish()
        await old[1].stop()
        await fleet.come(*new)
        # The answer that nobody has seen a part of begins anew.
        whole = (await asked).json()
        assert (whole["choices"][0]["text"], whole["system_fingerprint"]) == (
            answer_of("b", "hello", 5, 20),
            fingerprint("b"),
        )
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        await fleet.come(made("decode", "m", "a"))
        assert await stream == (answer_of("a", "hello", 5, 20), "")


async def test_a_stream_whose_weights_do_not_come_back_ends_with_an_error(tmp_path: Path) -> None:
    old = team("m", "a", 1)
    async with Stack(tmp_path, *old, *team("m", "b", 1), queue_max_wait_s=1) as stack:
        for worker in stack.workers:
            worker.token_interval_s = 0.05
        got = asyncio.Event()
        stack.workers[2].state = stack.workers[3].state = "draining"
        await stack.until(lambda: stack.router.table.catalogue.live()["m"].digest.startswith("a"))
        await stack.until(lambda: len(stack.router.table.catalogue.offers["m"]) == 1)
        asked = asyncio.create_task(_stream(stack, got))
        await got.wait()
        stack.workers[2].state = stack.workers[3].state = "ready"
        stack.publish(*stack.workers[2:])
        await asyncio.gather(*(w.stop() for w in old))
        text, code = await asked
        assert code == "starting"
        assert answer_of("a", "hello", 5, 20).startswith(text)
        assert len(tokens_of(text)) < 20


async def test_a_name_of_a_lora_adapter_is_one_of_its_own(tmp_path: Path) -> None:
    """Two adapters of one name and one model are never mixed, and both answer while one leaves."""
    old, new = team("m", "a", 1), team("m", "a", 1)
    for worker, digest in ((old[0], "1"), (old[1], "1"), (new[0], "2"), (new[1], "2")):
        worker.features, worker.adapters = ["digest", "adapter"], ["sql"]
        worker.adapter_digests = {"sql": digest}
    async with Stack(tmp_path, *old, *new) as stack:
        fingerprints = set()
        for _ in range(30):
            answer = (await stack.complete(model="sql")).json()
            fingerprints.add(answer["system_fingerprint"])
            pods = {answer["disagg"]["prefill"]["pod"], answer["disagg"]["decode"]["pod"]}
            assert pods in ({w.name for w in old}, {w.name for w in new})
        assert len(fingerprints) == 2
        await Fleet(stack).go(*old)
        assert (await stack.complete(model="sql")).json()["disagg"]["decode"]["pod"] == new[1].name
