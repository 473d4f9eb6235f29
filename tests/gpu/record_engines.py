"""Records conversations with a real SGLang or LMDeploy engine, in the format of those that are
replayed (tests/fakes/scripted_engine.py).

    python -m tests.gpu.record_engines sglang http://127.0.0.1:30000 --model m --out recorded

The calls are those of the conversations that were written down from the sources, as far as an
engine at an address can answer them; rows in which an engine dies or hangs need someone who ends
it. With --prefill, the first address is decode's, and a hand-over is recorded on both sides. None
of this has been run on a real engine: no GPU was available. The recorder itself is tested on an
engine that replays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from tests.adapter.engines import player
from tests.fakes.scripted_engine import load_conversation

CONVERSATIONS = Path(__file__).parents[1] / "adapter/engines/conversations"
# What an engine answers by itself. The others are failures, which somebody must cause.
_PLAIN = ("generate", "length", "choice", "json_schema", "logprobs", "resumed", "cancel")
_HOP = ("transfer-encoding", "content-length", "content-encoding", "connection", "date", "server")


def recordable(path: Path) -> bool:
    """Return whether the calls of a conversation can be made on an engine of role both."""
    header = load_conversation(path).header
    if header.get("options", {}).get("role", "both") != "both" or header["call"].get("work", {}).get("adapter"):
        return False
    if header["call"]["api"] == "generate":
        return (
            "refused" in header["outcome"]
            or any(f"_{word}" in f"_{path.stem}" for word in _PLAIN[1:])
            or (path.stem == "generate")
        )
    return path.stem in ("probe", "probe_both", "read", "identify_both")


class Recorder:
    """A proxy before an engine that writes down what passes."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.url = ""
        self.steps: list[dict[str, Any]] = []
        self.hanging = asyncio.Event()
        self.leave_after: int | None = None
        """The number of events after which the client leaves; None: it stays."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        body = json.loads(content) if content else None
        sent = {"method": request.method, "path": request.path_qs} | ({"body": body} if body is not None else {})
        answer: dict[str, Any] = {}
        self.steps.append({"request": sent, "answer": answer})
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("authorization", "content-type")}
        trace = aiohttp.TraceConfig()
        if self.leave_after == 0 and body and body.get("stream"):
            # The client leaves when the engine has the request, whether it answers or not.
            answer |= {"events": [], "end": "hang"}
            trace.on_request_chunk_sent.append(self._sent)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), trace_configs=[trace]) as session,
            session.request(request.method, self._target + request.path_qs, data=content, headers=headers) as got,
        ):
            answer["status"] = got.status
            if "event-stream" in got.headers.get("content-type", ""):
                return await self._relay(request, got, answer)
            text = await got.text()
            try:
                answer["json"] = json.loads(text)
            except ValueError:
                answer["text"] = text
            kept = {k: v for k, v in got.headers.items() if k.lower() not in _HOP}
            return web.Response(status=got.status, text=text, headers=kept)

    async def _relay(
        self, request: web.Request, got: aiohttp.ClientResponse, answer: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=got.status, headers={"content-type": "text/event-stream"})
        events: list[dict[str, Any]] = answer.setdefault("events", [])
        answer["end"] = "close"
        try:
            await response.prepare(request)
            last_s = time.monotonic()
            async for line in got.content:
                if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                    now_s = time.monotonic()
                    events.append({"delay_ms": round((now_s - last_s) * 1000), "data": json.loads(line[5:])})
                    last_s = now_s
                elif line.startswith(b"data:"):
                    answer["end"] = "done"
                await response.write(line)
                if len(events) == self.leave_after:
                    self.hanging.set()
                    await asyncio.Event().wait()
        except (asyncio.CancelledError, ConnectionError):
            answer["end"] = "hang"
            raise
        except aiohttp.ClientError:
            assert request.transport is not None
            request.transport.abort()
        return response

    async def _sent(self, *_: Any) -> None:
        self.hanging.set()


@asynccontextmanager
async def recording(target: str, leave_after: int | None = None) -> AsyncIterator[Recorder]:
    """Run a recorder on a free port of this machine."""
    recorder = Recorder(target.rstrip("/"))
    recorder.leave_after = leave_after
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", recorder.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    recorder.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield recorder
    finally:
        await runner.cleanup()


async def record(header: dict[str, Any], target: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make the calls of a conversation on a real engine. Return what came of them, and the steps
    that they took.
    """
    call = header["call"]
    leave_after = call.get("tokens", 0) if call.get("close") == "hanging" else None
    async with recording(target, leave_after) as recorder:
        engine = player.engine_of(header, recorder.url)
        try:
            outcome = await player.play(engine, call, recorder.hanging)
        finally:
            await engine.close()
    return outcome, recorder.steps


async def record_pair(header: dict[str, Any], prefill: str, decode: str) -> tuple[Any, list[Any], list[Any]]:
    """Hand one prompt over; return decode's outcome and the steps of both sides."""
    host = urlsplit(prefill).hostname
    async with recording(prefill) as at_prefill, recording(decode) as at_decode:
        options = header.get("options", {})
        first = player.engine_of(header | {"options": options | {"role": "prefill", "host": host}}, at_prefill.url)
        second = player.engine_of(header | {"options": options | {"role": "decode"}}, at_decode.url)
        try:
            await first.identify()
            handovers = first.prefill(player.work_of({}))
            handover = await anext(handovers)
            call = {"api": "decode", "handover": {"parameters": handover.parameters}}
            outcome = await player.play(second, call, asyncio.Event())
            handover.taken()
            async for _ in handovers:
                pass
        finally:
            await first.close()
            await second.close()
    return outcome, at_prefill.steps, at_decode.steps


def write(path: Path, header: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """Write a conversation."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in [header, *steps]), encoding="utf-8")


def recorded_header(header: dict[str, Any], outcome: dict[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the header of a recording: its version is the one that the engine reported."""
    found = [s["answer"]["json"].get("version") for s in steps if s["request"]["path"] == "/server_info"]
    version = str(found[0]) if found and found[0] else header["version"]
    today = datetime.now(UTC).date().isoformat()
    return header | {"version": version, "date": today, "sources": [], "recorded": True, "outcome": outcome}


async def main() -> None:
    """Record all conversations of one engine."""
    parser = argparse.ArgumentParser(description="Record conversations with a real engine.")
    parser.add_argument("engine", choices=["sglang", "lmdeploy"])
    parser.add_argument("url", help="the engine; with --prefill, decode's")
    parser.add_argument("--prefill", help="the address of prefill's engine")
    parser.add_argument("--model", default="m", help="the name under which the engine serves its model")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the files")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.prefill:
        options = {"model": given.model, "experimental": True}
        header = {"engine": given.engine, "version": "", "about": "A hand-over.", "options": options, "call": {}}
        outcome, *sides = await record_pair(header, given.prefill, given.url)
        for role, steps in zip(("prefill", "decode"), sides, strict=True):
            write(given.out / f"{role}.jsonl", recorded_header(header, outcome, steps), steps)
        return
    for path in sorted((CONVERSATIONS / given.engine).glob("*.jsonl")):
        if recordable(path):
            header = load_conversation(path).header
            header["options"] = header.get("options", {}) | {"model": given.model}
            outcome, steps = await record(header, given.url)
            write(given.out / path.name, recorded_header(header, outcome, steps), steps)


if __name__ == "__main__":
    asyncio.run(main())
