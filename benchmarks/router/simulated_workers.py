"""A prefill and a decode worker that compute nothing, in one process.

They speak the protocol of workers (docs/protocol.md), and the decode worker answers
/v1/completions as well, with the same tokens at the same times, for clients and proxies that
speak OpenAI's API. A prompt takes PREFILL_S; the pause between two tokens, in microseconds, is the
`seed` of the request. `python -m benchmarks.router.simulated_workers PREFILL_PORT DECODE_PORT`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import uvloop

from disagg_protocol.bodies import encode_token
from disagg_wire.protocol import DECODE_PATH, FEATURES, INFO_PATH, PREFILL_PATH, TOKENIZER_PATH

MODEL = "m"
PREFILL_S = 0.01
FOLDER = Path(__file__).resolve().parents[2] / "models" / "stdlib-llama"
TOKEN = 300
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = {
    "id": f"cmpl-{'0' * 24}",
    "created": 1,
    "model": MODEL,
    "system_fingerprint": "fp_0123456789",
    "object": "text_completion",
    "choices": [{"index": 0, "finish_reason": None, "text": " self", "logprobs": None}],
}
_EVENT = b"data: " + json.dumps(_CHUNK, separators=(",", ":")).encode() + b"\n\n"


class Stream:
    """An answer in pieces, of which each is sent at its time."""

    def __init__(self, transport: asyncio.WriteTransport, kind: bytes) -> None:
        self._transport = transport
        transport.write(_HEAD % kind)

    def write(self, piece: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end(self, piece: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(piece), piece))

    def tokens(self, first: int, count: int, pause_s: float, event: Callable[[int], bytes], last: bytes) -> None:
        """Send the tokens from number `first` on, the first one after a pause, and then `last`."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + pause_s

        def send(number: int) -> None:
            if self._transport.is_closing():
                return
            if number == count:
                self.end(last)
                return
            self.write(event(number))
            loop.call_at(due_s + (number + 1 - first) * pause_s, send, number + 1)

        loop.call_at(due_s, send, first)


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


_END = _line({"type": "end", "finish_reason": "length"})


class Workers:
    """The two workers."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[], None]] = {}
        config = json.loads((FOLDER / "tokenizer_config.json").read_text())
        files = {"digest": "d", "tokenizer_json": (FOLDER / "tokenizer.json").read_text(), "tokenizer_config": config}
        self._tokenizer = files | {"chat_template": config["chat_template"]}

    def answer(self, role: str, path: str, body: bytes, transport: asyncio.WriteTransport) -> None:
        if path == INFO_PATH:
            _whole(transport, self._info(role))
        elif path == TOKENIZER_PATH:
            _whole(transport, self._tokenizer)
        elif path == DECODE_PATH:
            self._decode(json.loads(body), Stream(transport, b"application/x-ndjson"))
        elif path == PREFILL_PATH:
            self._prefill(json.loads(body), Stream(transport, b"application/x-ndjson"))
        elif path == "/v1/completions":
            self._complete(json.loads(body), Stream(transport, b"text/event-stream"))
        else:
            _whole(transport, {})

    def _info(self, role: str) -> dict[str, Any]:
        model = {"name": MODEL, "digest": "d", "vocab_size": 2048, "max_model_len": 1 << 16, "eos_token_ids": [0]}
        kv = {"compat": "c", "host": "127.0.0.1", "port": 1, "interface": "net1", "transport": "tcp"}
        sizes = {"block_size_tokens": 16, "bytes_per_token": 64, "blocks_total": 1 << 24, "blocks_free": 1 << 24}
        return {
            "protocol": 1,
            "incarnation": role,
            "pod": role,
            "role": role,
            "state": "ready",
            "revision": "r",
            "model_name": MODEL,
            "features": list(FEATURES),
            "model": model | {"bos_token_id": None},
            "kv": kv | sizes,
            "limits": {"max_running": 4096, "max_waiting": 4096},
            "load": {"waiting_requests": 0, "waiting_tokens": 0, "running_requests": 0},
        }

    def _decode(self, body: dict[str, Any], stream: Stream) -> None:
        asked, transfer = body["sampling"], secrets.token_hex(16)
        ticket = {"transfer_id": transfer, "request_id": body["request_id"], "epoch": body["epoch"], "compat": "c"}
        ticket |= {"decode_incarnation": "decode", "host": "127.0.0.1", "port": 1, "tokens": len(body["tokens"])}
        stream.write(_line({"type": "ticket", "ticket": ticket | {"token_hash": "", "lifetime_s": 30.0, "mac": ""}}))
        accepted = _line(
            {"type": "accepted", "path": "remote", "kv_bytes": 1, "transfer_s": 0.001, "interface": "net1"}
        )

        def go_on() -> None:
            stream.write(accepted)
            count, pause_s = asked["max_new_tokens"], asked["seed"] / 1e6
            stream.tokens(1, count, pause_s, lambda number: encode_token(number, TOKEN), _END)

        self._waiting[transfer] = go_on

    def _prefill(self, body: dict[str, Any], stream: Stream) -> None:
        go_on = self._waiting.pop(body["ticket"]["transfer_id"])
        moved = {"type": "transferred", "kv_bytes": 1, "transfer_s": 0.001, "exposed_s": 0.0}
        rest = _line(moved | {"interface": "net1", "peer": "127.0.0.1:1"})
        rest += _line({"type": "end", "finish_reason": "prefilled"})

        def done() -> None:
            stream.end(encode_token(0, TOKEN) + rest)
            go_on()

        asyncio.get_running_loop().call_later(PREFILL_S, done)

    @staticmethod
    def _complete(body: dict[str, Any], stream: Stream) -> None:
        def done() -> None:
            stream.write(_EVENT)
            stream.tokens(1, body["max_tokens"], body["seed"] / 1e6, lambda _: _EVENT, b"data: [DONE]\n\n")

        asyncio.get_running_loop().call_later(PREFILL_S, done)


def _whole(transport: asyncio.WriteTransport, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    transport.write(head.encode() + body)


class Connection(asyncio.Protocol):
    """A connection to one of the workers."""

    def __init__(self, workers: Workers, role: str) -> None:
        self._workers = workers
        self._role = role
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, separator, rest = self._held.partition(b"\r\n\r\n")
        if not separator:
            return
        _, _, length = head.lower().partition(b"content-length:")
        size = int(length.split(b"\r\n")[0]) if length else 0
        if len(rest) < size:
            return
        self._held = rest[size:]
        path = head.split(b" ", 2)[1].decode()
        self._workers.answer(self._role, path, rest[:size], self._transport)


async def _serve(ports: dict[str, int]) -> None:
    workers, loop = Workers(), asyncio.get_running_loop()
    for role, port in ports.items():
        await loop.create_server(lambda role=role: Connection(workers, role), "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.Event().wait()


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve({"prefill": int(sys.argv[1]), "decode": int(sys.argv[2])}))


if __name__ == "__main__":
    main()
