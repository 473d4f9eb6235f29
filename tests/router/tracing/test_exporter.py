"""Tests of the way of spans to a collector, which may be dead, slow or of another opinion."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.certificates import certificate
from tests.ports import free_port
from tests.router.tracing.collector import collector

from disagg_router.tracing import exporter as exporting
from disagg_router.tracing.exporter import Collector, Counts, Exporter, headers_in
from disagg_router.tracing.otlp import rejected_spans
from disagg_router.tracing.span_queue import SpanQueue


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_FIRST_PAUSE_S", 0.01)


def message(name: str = "a", spans: int = 1) -> bytes:
    found = ExportTraceServiceRequest()
    scoped = found.resource_spans.add().scope_spans.add()
    for _ in range(spans):
        scoped.spans.add(name=name)
    content: bytes = found.SerializeToString()
    return content


class Sent:
    """An exporter with what it counts."""

    def __init__(self, url: str, most_spans: int = 100, **fields: object) -> None:
        self.counted: Counter[str] = Counter()
        counts = Counts(lambda n: self.counted.update(exported=n), lambda why, n: self.counted.update({why: n}))
        at = Collector(url, interval_s=0.01, **fields)  # type: ignore[arg-type]
        self.queue = SpanQueue(most_spans, 1 << 20)
        self.exporter = Exporter(at, self.queue, counts, rejected_spans)

    async def __aenter__(self) -> Sent:
        self.running = asyncio.create_task(self.exporter.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.exporter.close(0.2)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)


async def test_messages_are_sent_together_and_their_room_is_given_back() -> None:
    async with collector() as at, Sent(at.url) as sent:
        sent.exporter.add(message("a", 2), 2)
        sent.exporter.add(message("b", 3), 3)
        await at.until("b", 3)
        await sent.until(lambda: sent.queue.spans == 0)
        assert [s.name for s in at.spans] == ["a", "a", "b", "b", "b"]
        assert len(at.headers) == 1
        assert at.headers[0]["content-type"] == "application/x-protobuf"
        assert sent.counted == {"exported": 5}


async def test_what_may_succeed_later_is_tried_again_and_the_rest_is_not() -> None:
    async with collector() as at, Sent(at.url) as sent:
        at.answers = [503, 429]
        sent.exporter.add(message("again"), 1)
        await at.until("again")
        at.answers = [400]
        sent.exporter.add(message("never", 2), 2)
        await sent.until(lambda: sent.counted["rejected"] == 2)
        at.answers = [503] * 4
        sent.exporter.add(message("given up"), 1)
        await sent.until(lambda: sent.counted["failed"] == 1)
        sent.exporter.add(message("later"), 1)
        await at.until("later")
        await sent.until(lambda: sent.queue.spans == 0)
        assert sent.counted == {"exported": 2, "rejected": 2, "failed": 1}


async def test_spans_that_a_collector_refuses_within_a_message_are_counted() -> None:
    async with collector() as at, Sent(at.url) as sent:
        at.refuses = 2
        sent.exporter.add(message("a", 5), 5)
        await sent.until(lambda: sent.queue.spans == 0 and bool(sent.counted))
        assert sent.counted == {"exported": 3, "rejected": 2}


async def test_a_collector_that_is_dead_or_silent_costs_spans_alone_and_may_come_back() -> None:
    port = free_port()
    async with Sent(f"http://127.0.0.1:{port}", most_spans=4, timeout_s=0.2) as sent:
        for _ in range(20):
            if sent.exporter.has_room(1):
                sent.exporter.add(message(), 1)
        assert sent.queue.spans == 4
        assert sent.counted["queue_full"] == 16
        await sent.until(lambda: sent.queue.spans == 0)
        assert sent.counted["failed"] == 4
        async with collector(port=port) as at:
            at.silent = True
            sent.exporter.add(message("slow"), 1)
            await sent.until(lambda: sent.counted["failed"] == 5)
            at.silent = False
            sent.exporter.add(message("back"), 1)
            await at.until("back")


async def test_at_the_end_what_is_left_is_sent_once_and_not_waited_for_longer() -> None:
    async with collector() as at:
        sent = Sent(at.url)
        sent.exporter.add(message("last"), 1)
        await sent.exporter.close(20)
        assert [s.name for s in at.spans] == ["last"]
        at.silent = True
        sent = Sent(at.url, timeout_s=60)
        sent.exporter.add(message("lost", 3), 3)
        await sent.exporter.close(0.05)
        assert sent.counted == {"ended": 3}


async def test_what_is_being_sent_when_the_router_ends_is_not_lost() -> None:
    async with collector() as at:
        at.silent = True
        async with Sent(at.url, timeout_s=60) as sent:
            sent.exporter.add(message("half"), 1)
            await sent.until(lambda: bool(at.headers))
            at.silent = False
            sent.running.cancel()
            await asyncio.gather(sent.running, return_exceptions=True)
            await sent.exporter.close(20)
            assert [s.name for s in at.spans] == ["half"]
            assert sent.counted == {"exported": 1}


async def test_headers_come_from_a_file_and_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("authorization: Bearer one\nx-scope: a:b\n")
    async with collector() as at, Sent(at.url, headers_file=file) as sent:
        sent.exporter.add(message("a"), 1)
        await at.until("a")
        file.write_text("authorization: Bearer two\n")
        os.utime(file, (1, 1))
        sent.exporter.add(message("b"), 1)
        await at.until("b")
        assert [(h["authorization"], h.get("x-scope")) for h in at.headers] == [
            ("Bearer one", "a:b"), ("Bearer two", None),
        ]  # fmt: skip


async def test_a_file_that_cannot_be_used_is_not_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "headers"
    file.write_bytes(b"\xff-secret: 1")
    async with collector() as at, Sent(at.url, headers_file=file) as sent:
        sent.exporter.add(message("a"), 1)
        await sent.until(lambda: sent.counted["rejected"] == 1)
        file.write_text("my-secret")
        os.utime(file, (1, 1))
        sent.exporter.add(message("a"), 1)
        await sent.until(lambda: sent.counted["rejected"] == 2)
        file.unlink()
        sent.exporter.add(message("a"), 1)
        await sent.until(lambda: sent.counted["failed"] == 1)
        assert not at.headers
    assert "secret" not in caplog.text
    assert caplog.text.count("spans do not reach") == 1  # a minute has not passed


async def test_a_redirect_is_not_followed() -> None:
    async with collector() as at, Sent(at.url) as sent:
        at.answers = [307]
        sent.exporter.add(message("a"), 1)
        await sent.until(lambda: sent.counted["rejected"] == 1)


def test_lines_that_are_no_headers() -> None:
    assert headers_in("") == {}
    assert headers_in("\n a : b \n") == {"a": "b"}
    for text in ("a", ": b", "\u00e4: b", "a: \x00"):
        with pytest.raises(ValueError, match="Name: value"):
            headers_in(text)


def test_the_path_is_appended_unless_it_is_there() -> None:
    assert Collector("http://c:4318").url == Collector("http://c:4318/v1/traces/").url == "http://c:4318/v1/traces"
    assert Collector("http://c/otlp/").url == "http://c/otlp/v1/traces"


def test_an_answer_that_is_no_message_refuses_nothing() -> None:
    assert rejected_spans(b"\xff\xff") == rejected_spans(b"") == 0


async def test_a_collector_proves_itself_by_the_authority_of_a_file(tmp_path: Path) -> None:
    good, other = certificate(tmp_path), certificate(tmp_path, "other")
    authority = tmp_path / "ca.crt"
    authority.write_text(other.pem)
    async with collector(good.server_context()) as at, Sent(at.url, ca_file=authority) as sent:
        sent.exporter.add(message("stranger"), 1)
        await sent.until(lambda: sent.counted["failed"] == 1)
        authority.write_text(good.pem)
        os.utime(authority, (1, 1))
        sent.exporter.add(message("known"), 1)
        await at.until("known")
        assert [s.name for s in at.spans] == ["known"]
        authority.write_text("nothing")
        os.utime(authority, (2, 2))
        sent.exporter.add(message("unusable"), 1)
        await sent.until(lambda: sent.counted["rejected"] == 1)
