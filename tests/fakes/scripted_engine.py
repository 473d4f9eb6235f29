"""An engine that replays a conversation on a real socket, step by step.

A conversation is a file of JSON lines. The first line names the engine, its version, the files of
its source that the answers were written down from, the date, the call to the adapter's module and
what must come of it. Each other line is a step: a request that must come next, of whose body the
step names a part ("*" stands for any value), and the answer. Any other request fails the test.

The answer has a status and `json`, `text` or `events`, each event with `delay_ms`; the event
{"hanging": true} sends nothing, and lets the client leave. `end` says how the answer ends: "done",
"close" (the connection breaks) or "hang" (the client must close it).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from tests.connections import serving


@dataclass(frozen=True)
class Conversation:
    """A conversation, as it is in its file."""

    header: dict[str, Any]
    steps: list[dict[str, Any]]


def load_conversation(path: Path, port: int = 0) -> Conversation:
    """Read a file, in which {port} stands for the port of the engine."""
    text = path.read_text(encoding="utf-8").replace("{port}", str(port))
    header, *steps = (json.loads(line) for line in text.splitlines())
    return Conversation(header, steps)


def covers(expected: Any, found: Any) -> bool:
    """Return whether all that is expected is in what was found."""
    if expected == "*":
        return True
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(k in found and covers(v, found[k]) for k, v in expected.items())
    return bool(expected == found and type(expected) is type(found))


class ScriptedEngine:
    """One engine for one conversation."""

    def __init__(self) -> None:
        self.header: dict[str, Any] = {}
        self.steps: list[dict[str, Any]] = []
        self._next = 0
        self.problems: list[str] = []
        self.hanging = asyncio.Event()
        """Set when an answer has been sent as far as it goes and is not ended."""
        self._taken = asyncio.Event()
        self._gone: list[asyncio.Event] = []
        self.url = ""

    def load(self, path: Path, port: int) -> None:
        conversation = load_conversation(path, port)
        self.header, self.steps = conversation.header, conversation.steps
        if not self.steps:
            self._taken.set()
        self.url = f"http://127.0.0.1:{port}"

    async def finish(self) -> None:
        """Wait until all steps have been taken and the client has closed what hung."""
        assert not self.problems, self.problems
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._taken.wait(), 10)
        assert self._next == len(self.steps), f"not asked for: {[s['request'] for s in self.steps[self._next :]]}"
        for gone in self._gone:
            await asyncio.wait_for(gone.wait(), 10)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        found = {
            "method": request.method,
            "path": request.path_qs,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": json.loads(body) if body else None,
        }
        if self._next == len(self.steps):
            self.problems.append(f"one request too many: {found}")
            return web.Response(status=599)
        step = self.steps[self._next]
        self._next += 1
        if self._next == len(self.steps):
            self._taken.set()
        if not covers(step["request"], found):
            self.problems.append(f"expected {step['request']}, not {found}")
            return web.Response(status=599)
        return await self._answer(request, step["answer"])

    async def _answer(self, request: web.Request, answer: dict[str, Any]) -> web.StreamResponse:
        end = answer.get("end", "done")
        if end == "done" and "events" not in answer:
            text = json.dumps(answer["json"]) if "json" in answer else answer.get("text", "")
            return web.Response(status=answer.get("status", 200), text=text, headers=answer.get("headers"))
        gone = asyncio.Event()
        if end == "hang":
            self._gone.append(gone)
        kind = {"content-type": "text/event-stream"} if "events" in answer else {}
        response = web.StreamResponse(status=answer.get("status", 200), headers=kind | answer.get("headers", {}))
        try:
            if "events" in answer:
                await response.prepare(request)
            for event in answer.get("events", ()):
                await asyncio.sleep(event.get("delay_ms", 0) / 1000)
                if "hanging" in event:
                    self.hanging.set()
                else:
                    await response.write(event["raw"].encode() if "raw" in event else sse(event["data"]))
            if end == "hang":
                self.hanging.set()
                await asyncio.Event().wait()
        except (asyncio.CancelledError, ConnectionError):
            gone.set()
            raise
        if end == "close":
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(b"data: [DONE]\n\n")
        return response


def sse(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@asynccontextmanager
async def scripted(path: Path) -> AsyncIterator[ScriptedEngine]:
    """Run the engine of a conversation on a free port of this machine."""
    engine = ScriptedEngine()
    routes = web.route("*", "/{path:.*}", engine.handle)
    async with serving(routes, most_bytes=64 << 20, handler_cancellation=True, shutdown_timeout=1) as port:
        engine.load(path, port)
        yield engine
