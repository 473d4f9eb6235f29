"""Tests of today's router and workers against the messages of release 0.1.0.

Both releases serve together while one replaces the other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from tests.connections import serving
from tests.fakes.token_worker import TokenWorker
from tests.protocol.client import body
from tests.releases.recorded import EXCHANGES, Exchange, Obj, exchanges, keys
from tests.router.stack import Stack
from tests.worker import checkpoints
from tests.worker.server import rig

from disagg_operator.status.kv_links import router_view
from disagg_protocol import bodies
from disagg_protocol.ticket import verify
from disagg_router.dispatch.attempt import Attempt, Finished, Patience
from disagg_router.dispatch.request_state import RequestState, Token
from disagg_router.dispatch.trace import Trace
from disagg_router.errors import AttemptFailed, NoRoom
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.pair_choice import Choice
from disagg_router.workers.table import WorkerTable
from disagg_router.workers.worker_info import Identity, Member, parse_info
from disagg_router.workers.worker_info import Worker as KnownWorker

KEY = b"k" * 32
WORK = [e for e in EXCHANGES if e.path in ("/internal/v1/decode", "/internal/v1/prefill")]
TAKEN = [e for e in WORK if e.status == 200]


def _kind(exchange: Exchange) -> str:
    last = exchange.lines[-1] if exchange.status == 200 else {}
    return f"{exchange.server}-{exchange.status}-{last.get('code', last.get('finish_reason', 'x'))}"


# ---- messages from a router of 0.1.0 to today's workers ----


@pytest.mark.parametrize("exchange", WORK, ids=_kind)
def test_a_body_is_read_whole(exchange: Exchange) -> None:
    body = exchange.request.encode()
    if "later" in exchange.body:
        with pytest.raises(bodies.BadRequest, match="later"):
            bodies.parse(bodies.DecodeRequest, body)
        return
    kind: Any = bodies.DecodeRequest if exchange.path.endswith("decode") else bodies.PrefillRequest
    assert bodies.parse(kind, body).model_dump(mode="json", exclude_unset=True) == exchange.body


def test_the_other_bodies_are_read_whole() -> None:
    rooms = exchanges("/internal/v1/decode-room", 204)
    roles = exchanges("/internal/v1/role", 200, 202, 409, 503)
    assert rooms
    assert roles
    for e in rooms:
        assert bodies.parse_room(e.request.encode()).model_dump(mode="json", exclude_unset=True) == e.body
    for e in roles:
        assert bodies.parse_role(e.request.encode()).model_dump(mode="json", exclude_unset=True) == e.body


def test_tickets_are_verified() -> None:
    tickets = [e.lines[0]["ticket"] for e in TAKEN if e.lines[0]["type"] == "ticket"]
    assert len(tickets) >= 6
    for ticket in tickets:
        assert verify(KEY, ticket).to_json() == ticket


# ---- messages from a worker of 0.1.0 to today's router ----


def _infos(role: str | None = None, state: str | None = None) -> list[Obj]:
    found = [e.answer for e in exchanges("/internal/v1/info", 200)]
    return [i for i in found if role in (None, i["role"]) and state in (None, i["state"])]


def _known(info: Obj, url: str) -> KnownWorker:
    found = parse_info(Member(info["pod"], url), info)
    assert found is not None
    return found


def test_every_info_is_read() -> None:
    roles = {(i["role"], i["state"]) for i in _infos()}
    assert roles >= {(role, state) for role in ("prefill", "decode") for state in ("starting", "ready")}
    assert roles >= {("decode", "draining"), ("both", "ready"), ("both", "draining")}
    for info in _infos():
        if "model" not in info:
            assert parse_info(Member("a", "http://a"), info) is None
            continue
        worker = _known(info, "http://a")
        assert (worker.role, worker.state, worker.incarnation) == (info["role"], info["state"], info["incarnation"])
        assert worker.identity == Identity(info["model"]["name"], info["model"]["digest"])
        assert (worker.compat, worker.digest, worker.revision) == (
            info["kv"]["compat"],
            info["model"]["digest"],
            info["revision"],
        )
        assert (worker.blocks_free, worker.max_running) == (info["kv"]["blocks_free"], info["limits"]["max_running"])
        assert worker.room is not None
        assert worker.room.to_json() == info["load"]["room"]
        assert worker.features == frozenset(info["features"])


class _Replay:
    """A server that answers each call as it was answered then, and keeps the requests."""

    def __init__(self, *answers: Exchange) -> None:
        self._answers = {e.path: e for e in answers}
        self.asked: list[tuple[str, Obj]] = []

    @asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        async with serving(web.post("/{path:.*}", self._handle)) as port:
            yield f"http://127.0.0.1:{port}"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, await request.json()))
        answer = self._answers[request.path]
        return web.Response(status=answer.status, text=answer.response)


@pytest.mark.parametrize("exchange", WORK, ids=_kind)
async def test_an_answer_is_understood(exchange: Exchange) -> None:
    replay, client = _Replay(exchange), WorkerClient("x")
    seen: list[Obj] = []
    failure: NoRoom | AttemptFailed | None = None
    async with replay.run() as url:
        worker = _known(_infos("decode", "ready")[0], url)
        try:
            async with client.stream(worker, exchange.path.rpartition("/")[2], exchange.body) as lines:
                seen = [line async for line in lines]
        except (NoRoom, AttemptFailed) as error:
            failure = error
        await client.close()
    if exchange.status != 200:
        assert failure is not None
        assert failure.reason == exchange.answer["error"]["code"]
        assert isinstance(failure, NoRoom) is (exchange.status in (429, 503))
        return
    if exchange.lines[-1]["type"] in ("end", "error"):
        assert (seen, failure) == (exchange.lines, None)
    else:
        assert failure is not None
        assert failure.reason == "worker_lost"


class _NoMembers:
    synced = True

    def members(self) -> dict[str, Member]:
        return {}

    async def run(self) -> None:
        await asyncio.Event().wait()


def _legs() -> Iterator[tuple[Exchange | None, Exchange | None]]:
    """Yield the exchanges of each attempt: (that of prefill, that of decode)."""
    prefills = {(e.body["request_id"], e.body["epoch"]): e for e in TAKEN if e.path.endswith("prefill")}
    for decode in (e for e in TAKEN if e.path.endswith("decode")):
        key = (decode.body["request_id"], decode.body["epoch"])
        if decode.body["mode"] == "local":
            yield None, decode
        elif key in prefills:
            yield prefills[key], decode
    for prefill in prefills.values():
        if prefill.body["ticket"] is None:
            yield prefill, None


LEGS = list(_legs())


@pytest.mark.parametrize("legs", LEGS, ids=lambda legs: "+".join(_kind(leg) for leg in legs if leg is not None))
async def test_an_attempt_with_old_workers_gives_the_same_tokens(legs: tuple[Exchange | None, Exchange | None]) -> None:
    """Today's router sends the same as the old one, and interprets the answers in the same way."""
    prefill, decode = legs
    made = [leg for leg in legs if leg is not None]
    body = made[0].body
    emitted = body["tokens"][body["prompt_tokens"] :]
    state = RequestState(
        body["request_id"],
        Identity("m", "d"),
        tuple(body["tokens"][: body["prompt_tokens"]]),
        body["sampling"],
        4,
        body["tenant"],
    )
    state.emitted, state.epoch = emitted, body["epoch"]
    expected = {line["index"]: line["token"] for leg in made for line in leg.lines if line["type"] == "token"}
    client, replay, trace, tokens, ended = WorkerClient("x"), _Replay(*made), Trace(), [], ""
    loop = asyncio.get_running_loop()
    async with replay.run() as url:
        workers = {role: _known(_infos(role, "ready")[0], url) for role in ("prefill", "decode")}
        table = WorkerTable(client, cast(Any, _NoMembers()), 1.0)
        table._workers = dict(workers)
        choice = Choice(workers["prefill"] if prefill else None, workers["decode"] if decode else None)
        due_s = loop.time() + 1.0 if any("first_token_within_s" in leg.body for leg in made) else None
        attempt = Attempt(
            client,
            table,
            choice,
            state,
            trace,
            Patience(5.0, 5.0),
            loop.time() + body["deadline_s"],
            lambda: None,
            due_s,
        )
        try:
            async for item in attempt.items():
                if isinstance(item, Token):
                    tokens.append((item.index, item.token))
                elif isinstance(item, Finished):
                    ended = item.reason
        except (AttemptFailed, NoRoom) as error:
            ended = error.reason
        await client.close()
    last = (decode or made[0]).lines[-1]
    assert ended == last.get("finish_reason", last.get("code", "worker_lost"))
    assert tokens == [(i, expected[i]) for i in sorted(expected)][: len(tokens)]
    assert len(tokens) == len(expected) or ended == "worker_lost"
    assert {path for path, _ in replay.asked} == {leg.path for leg in made}
    for path, sent in replay.asked:
        then = next(leg.body for leg in made if leg.path == path)
        moving = ("deadline_s", "first_token_within_s", "decode_room")
        assert keys(sent) == keys(then)
        assert {k: v for k, v in sent.items() if k not in moving} == {k: v for k, v in then.items() if k not in moving}


def test_pairs_single_workers_and_failovers_are_among_the_attempts() -> None:
    assert sum(p is not None and d is not None for p, d in LEGS) >= 4
    assert any(d is None for _, d in LEGS)
    assert any(p is None for p, _ in LEGS)
    assert any(
        p.body["epoch"] > 0 and len(p.body["tokens"]) > p.body["prompt_tokens"] for p, _ in LEGS if p is not None
    )


# ---- messages from both to the operator ----


def test_the_state_of_a_router_is_read() -> None:
    views = [router_view([e.answer]) for e in exchanges("/internal/v1/state", 200)]
    assert None not in views
    assert {(v.expected, v.healthy) for v in views if v is not None} >= {(1, 1)}
    assert all(
        link.transport == "tcp" and link.pod.startswith("chat-") for v in views if v is not None for link in v.workers
    )


# ---- names in today's messages ----


def _names(found: list[Obj]) -> dict[str, set[str]]:
    """Return the keys of events by type."""
    out: dict[str, set[str]] = {}
    for line in found:
        out.setdefault(line["type"], set()).update(line)
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.make(tmp_path_factory.mktemp("tiny"))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "key").write_bytes(KEY)
    return folder


async def test_todays_workers_say_the_same(tiny: Path) -> None:
    async with rig.pair(tiny) as pair:
        first, rest = await pair.generate(body(rig.prompt(40), logprobs=2))
        async with pair.decode.call("decode", body(rig.prompt(20)) | {"mode": "remote"}) as events:
            opening = await anext(events)
        local = await pair.decode.lines("decode", body(rig.prompt(20)) | {"mode": "local"})
        late = body(rig.prompt(20), max_new_tokens=200) | {"mode": "local", "deadline_s": 1e-3}
        said = _names([*first, opening, *rest, *local, *await pair.decode.lines("decode", late)])
        then = _names([line for e in TAKEN for line in e.lines])
        assert {
            kind: names - said.get(kind, set()) for kind, names in then.items() if not names <= said.get(kind, set())
        } == {}
        for role, running in (("prefill", pair.prefill), ("decode", pair.decode)):
            info = (await running.http.get("/internal/v1/info")).json()
            assert _without(keys(_infos(role, "ready")[0]), keys(info)) == []
        tokenizer = (await pair.prefill.http.get("/internal/v1/tokenizer")).json()
        assert set(exchanges("/internal/v1/tokenizer", 200)[0].answer) <= set(tokenizer)
        _, refused = await pair.prefill.refused("decode", body(rig.prompt(5)) | {"mode": "local"})
        assert refused.keys() >= exchanges("/internal/v1/prefill", 503)[0].answer["error"].keys()
        status = (await pair.decode.http.post("/internal/v1/role", json={"role": "decode"})).json()
        assert status.keys() >= exchanges("/internal/v1/role", 200)[0].answer.keys()


def _without(before: Any, now: Any, path: str = "") -> list[str]:
    """Return the names in `before` that `now` lacks."""
    if isinstance(before, list) and isinstance(now, list):
        return _without(before[0], now[0], f"{path}[]") if before and now else []
    if not isinstance(before, dict):
        return []
    if not isinstance(now, dict):
        return [path]
    return [
        x for k, v in before.items() for x in ([f"{path}.{k}"] if k not in now else _without(v, now[k], f"{path}.{k}"))
    ]


async def test_todays_router_says_the_same(tmp_path: Path) -> None:
    recorded = {e.path: e for e in exchanges("/internal/v1/state", 200)}["/internal/v1/state"]
    async with Stack(tmp_path, TokenWorker("p", "prefill"), TokenWorker("d", "decode")) as stack:
        assert _without(keys(recorded.answer), keys(await stack.state())) == []
        whole = next(e for e in exchanges("/v1/completions", 200) if e.response.startswith("{"))
        assert _without(keys(whole.answer), keys((await stack.complete()).json())) == []
        bad = await stack.http.post("/v1/chat/completions", content="{")
        error = next(e for e in exchanges("/v1/chat/completions", 400) if e.request == "{")
        assert (bad.status_code, bad.json()) == (400, error.answer)


def test_the_kinds_of_messages_are_all_here() -> None:
    """This makes sure that nothing is lost when messages are recorded anew."""
    events = {
        json.dumps([line["type"], line.get("code", line.get("finish_reason"))]) for e in TAKEN for line in e.lines
    }
    assert events >= {
        json.dumps(pair)
        for pair in (
            ("ticket", None),
            ("accepted", None),
            ("token", None),
            ("transferred", None),
            ("end", "stop"),
            ("end", "length"),
            ("end", "prefilled"),
            ("error", "transfer_failed"),
            ("error", "ticket_expired"),
            ("error", "deadline_exceeded"),
            ("error", "draining"),
        )
    }
    codes = {
        e.answer["error"]["code"]
        for e in EXCHANGES
        if e.server != "router" and e.status >= 400 and e.response.startswith("{")
    }
    assert codes == {
        "invalid_request",
        "unauthorized",
        "prompt_too_long",
        "no_capacity",
        "starting",
        "draining",
        "other_role",
        "role_changing",
    }
