"""Tests of today's sender and listener against KV transfers of release 0.1.0, byte by byte."""

from __future__ import annotations

import queue
import secrets
import socket
from typing import Any

import pytest
from tests.fakes.kv_memory import KvMemory
from tests.releases.recorded import RELEASE, load

from disagg_protocol.events import ErrorEvent, TokenEvent
from disagg_protocol.ticket import Ticket, verify
from disagg_worker.transfer import frames
from disagg_worker.transfer.listener import KvListener, Session
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sender import TcpKvSender, TransferDone
from disagg_worker.transfer.sender_timeouts import SenderTimeouts
from disagg_worker.values.layouts import KvLayout

KEY = b"k" * 32
TRANSFERS = ("whole", "slow", "given-up", "unannounced")


class _Memory(KvMemory):
    """The blocks of one sequence."""

    held_blocks = 0

    def __init__(self, layout: KvLayout, n_blocks: int) -> None:
        super().__init__(layout, n_blocks, bytes(range(251)))

    def written_in_region(self) -> None:
        raise AssertionError("only NIXL writes in the region")

    def release(self) -> None:
        pass


def _stream(name: str, direction: str) -> bytes:
    return (RELEASE / "transfer" / f"{name}.{direction}.bin").read_bytes()


@pytest.mark.parametrize("direction", ["sent", "answered"])
@pytest.mark.parametrize("name", TRANSFERS)
def test_frames_are_read_and_written_as_they_were(name: str, direction: str) -> None:
    stream, out = _stream(name, direction), b""
    for entry in load(f"transfer/{name}.json")[direction]:
        raw = stream[entry["offset"] : entry["offset"] + frames.HEADER_BYTES]
        header = frames.decode_header(raw)
        payload = stream[entry["offset"] + frames.HEADER_BYTES :][: header.length_bytes]
        frames.check_crc(raw, [payload], header.crc32)
        assert (header.type.name, header.layer, header.seq) == (entry["type"], entry["layer"], entry["seq"])
        assert (header.first_block, header.n_blocks, header.crc32) == (
            entry["first_block"],
            entry["n_blocks"],
            entry["crc32"],
        )
        out += frames.encode_header(header, [payload])[0] + payload
    assert out == stream


def _all_of(sock: socket.socket) -> bytes:
    out = b""
    while piece := sock.recv(1 << 16):
        out += piece
    return out


@pytest.mark.parametrize("name", TRANSFERS)
def test_todays_decode_worker_takes_what_was_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    r = load(f"transfer/{name}.json")
    monkeypatch.setattr(secrets, "token_bytes", lambda n: bytes.fromhex(r["challenge"]))
    layout = KvLayout(**r["layout"])
    target, outcomes = _Memory(layout, r["blocks"]), queue.SimpleQueue[Any]()
    target.bytes = bytearray(len(target.bytes))
    listener = KvListener("127.0.0.1", 0, KEY, layout, r["vocab_size"])
    try:
        if name != "unannounced":
            listener.expect(
                Session(Ticket(**r["ticket"]), target, outcomes.put, lambda code, message: outcomes.put(code))
            )
        with socket.create_connection((listener.host, listener.port), timeout=10) as sock:
            sock.sendall(_stream(name, "sent"))
            sock.shutdown(socket.SHUT_WR)
            assert _all_of(sock) == _stream(name, "answered")
    finally:
        listener.close()
    if r["error"] is None:
        received = outcomes.get(timeout=5)
        assert isinstance(received, Received)
        assert (received.first_token, target.bytes) == (r["first_token"]["token"], _Memory(layout, r["blocks"]).bytes)


@pytest.mark.parametrize("name", ["whole", "given-up"])
def test_todays_prefill_worker_sends_what_was_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    r = load(f"transfer/{name}.json")
    layout, first = KvLayout(**r["layout"]), r["first_token"]
    source, done, connect = _Memory(layout, r["blocks"]), queue.SimpleQueue[TransferDone](), socket.create_connection
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(socket, "create_connection", lambda address, **more: connect(server.getsockname()))
        sender = TcpKvSender(
            Ticket(**r["ticket"]), KEY, "prefill-uid/boot", r["tokens"], ("", "lo"), done.put, SenderTimeouts()
        )
        for entry in (e for e in r["sent"] if e["type"] == "LAYER"):
            blocks = range(entry["first_block"], entry["first_block"] + entry["n_blocks"])
            sender.layer_ready(entry["layer"], entry["first_block"], source.blocks(blocks.start, len(blocks)))
        if name == "whole":
            sender.commit(
                TokenEvent(first["index"], first["token"], first["logprob"], tuple(map(tuple, first["top_logprobs"])))
            )
        else:
            sender.abort(ErrorEvent("finished", "the first token ends the request", retryable=False))
        peer, _ = server.accept()
        with peer:
            peer.settimeout(10)
            end = None if name == "whole" else r["answered"][1]["offset"]  # a sender that gives up reads no answer
            peer.sendall(_stream(name, "answered")[:end])
            assert _all_of(peer) == _stream(name, "sent")
    error = done.get(timeout=10).error
    assert (None if error is None else error.code) == r["error"]


@pytest.mark.parametrize("name", TRANSFERS)
def test_tickets_are_verified(name: str) -> None:
    ticket = load(f"transfer/{name}.json")["ticket"]
    assert verify(KEY, ticket).to_json() == ticket
