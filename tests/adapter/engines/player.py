"""Makes the calls that conversations name, and says what came of them in JSON.

Replays and recordings make the same calls, so that what a real engine did can be compared with what
its source was read to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict
from typing import Any

from disagg_adapter.engines.contract import (
    Delta,
    Engine,
    EngineFault,
    EngineOptions,
    HandOver,
    NotReady,
    Unusable,
    Work,
)
from disagg_adapter.engines.http_client import EngineHttp
from disagg_adapter.engines.table import ENGINES
from disagg_protocol.bodies import Sampling
from disagg_protocol.errors import InvalidInput
from disagg_wire.ports import BOOTSTRAP_PORT

Json = dict[str, Any]
OPTIONS: Json = {
    "model": "m",
    "lease_s": 60.0,
    "role": "both",
    "experimental": False,
    "host": "127.0.0.1",
    "bootstrap_port": BOOTSTRAP_PORT,
}
DEFAULTS: Json = {"seed": 7, "max_new_tokens": 4, "temperature": 0.0, "stop_token_ids": [2]}


def work_of(raw: Mapping[str, Any]) -> Work:
    tokens = raw.get("tokens", [11, 12, 13, 14, 15])
    return Work(
        request_id=raw.get("request_id", "request-1"),
        tokens=tokens,
        prompt_tokens=raw.get("prompt_tokens", len(tokens)),
        sampling=Sampling.model_validate_json(json.dumps(DEFAULTS | raw.get("sampling", {}))),
        tenant=raw.get("tenant", ""),
        adapter=raw.get("adapter"),
    )


def engine_of(header: Mapping[str, Any], url: str) -> Engine:
    options = OPTIONS | header.get("options", {})
    return ENGINES[header["engine"]](EngineHttp(url, header.get("key")), EngineOptions(**options))


async def play(engine: Engine, call: Mapping[str, Any], hanging: asyncio.Event) -> Json:
    """Identify the engine, make the calls one after the other, and return what came of the last.

    `hanging` is set when the engine has nothing more to say.
    """
    try:
        if call["api"] != "identify":
            await engine.identify()
        for before in call.get("before", ()):
            with contextlib.suppress(EngineFault):
                await _play(engine, before, hanging)
        return await _play(engine, call, hanging)
    except InvalidInput as error:
        return {"refused": str(error).partition(":")[0]}
    except EngineFault as fault:
        return {"fault": fault.code, "retryable": fault.retryable}
    except Unusable as error:
        return {"unusable": error.reason}
    except NotReady:
        return {"not_ready": True}


async def _play(engine: Engine, call: Mapping[str, Any], hanging: asyncio.Event) -> Json:
    api, work = call["api"], work_of(call.get("work", {}))
    if api == "identify":
        found = asdict(await engine.identify())
        return {"identity": found | {"features": sorted(found["features"]), "adapters": list(found["adapters"])}}
    if api == "read":
        readings = asdict(await engine.read())
        return {"readings": {k: v for k, v in readings.items() if v == v or not isinstance(v, float)}}
    if api == "probe":
        await engine.probe()
        return {"alive": True}
    engine.check(work)
    if api == "prefill":
        return await _prefill(engine.prefill(work), call, hanging)
    if api == "decode":
        engine.check_handover(call["handover"]["parameters"])
        return await _read(engine.decode(work, HandOver(**call["handover"])), call, hanging)
    return await _read(engine.generate(work), call, hanging)


async def _prefill(handovers: AsyncGenerator[HandOver], call: Mapping[str, Any], hanging: asyncio.Event) -> Json:
    leave = asyncio.create_task(hanging.wait())
    first = asyncio.ensure_future(anext(handovers))
    try:
        tasks: set[asyncio.Future[Any]] = {first, leave}
        await asyncio.wait(tasks if call.get("close") == "hanging" else {first}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            return {"closed": True}
        handover = first.result()
        out = {"handover": handover.parameters, "first_token": handover.first_token}
        if call.get("close") == "hanging":
            await asyncio.wait_for(leave, 10)
            return out | {"closed": True}
        handover.taken()
        async for _ in handovers:
            raise AssertionError("a second hand-over")
        return out
    finally:
        first.cancel()
        leave.cancel()
        await asyncio.wait({first})
        await handovers.aclose()


async def _read(deltas: AsyncGenerator[Delta], call: Mapping[str, Any], hanging: asyncio.Event) -> Json:
    """Read a stream; with `close`, until the engine has nothing more to say."""
    found: list[Delta] = []

    async def read() -> None:
        async for delta in deltas:
            found.append(delta)
            if delta.finish_reason is not None:
                return

    reading = asyncio.create_task(read())
    try:
        if call.get("close") == "hanging":
            await asyncio.wait_for(hanging.wait(), 10)
            # What was sent last is on its way still.
            async with asyncio.timeout(10):
                while sum(len(d.outputs) for d in found) < call.get("tokens", 0):
                    await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading})
            return _summary(found) | {"closed": True}
        await reading
        return _summary(found)
    finally:
        await deltas.aclose()


def _summary(deltas: list[Delta]) -> Json:
    outputs = [o for d in deltas for o in d.outputs]
    out: Json = {
        "tokens": [o.token for o in outputs],
        "finish": deltas[-1].finish_reason if deltas else None,
        "cached": next((d.cached_tokens for d in deltas if d.cached_tokens is not None), None),
    }
    if any(o.logprob is not None for o in outputs):
        assert all(o.logprob is not None and math.isfinite(o.logprob) for o in outputs)
        out["logprobs"] = [[o.logprob, [list(pair) for pair in o.top_logprobs]] for o in outputs]
    return out
