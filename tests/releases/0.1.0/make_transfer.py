"""Record the bytes of KV transfers over TCP between this release's sender and listener, both ways."""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disagg_worker.engine.api import ErrorEvent, KvLayout, TokenEvent

from disagg_worker.transfer.frames import HEADER_BYTES, FrameType, decode_header
from disagg_worker.transfer.listener import KvListener, Session
from disagg_worker.transfer.sender import SenderTimeouts, TcpKvSender, TransferDone
from disagg_worker.transfer.ticket import Ticket, sign, token_hash

HERE = Path(__file__).resolve().parent
OUT = HERE / "transfer"
KEY = b"k" * 32
CHALLENGE = bytes(range(32))
LAYOUT = KvLayout(layers=3, kv_heads=2, head_dim=4, block_size_tokens=4, dtype="float32", itemsize_bytes=4)
TOKENS = list(range(10, 20))
BLOCKS = 3
VOCAB = 64
FIRST = TokenEvent(0, 7, -0.25, ((7, -0.25), (3, -1.5)), 4)
# Where the recorded ticket says that the decode worker is; what is recorded must not change with each run.
PORT = 39000


class Memory:
    """The blocks of one sequence, as an engine would hold them."""

    def __init__(self, content: bytes) -> None:
        self.bytes = bytearray(content)
        self.n_blocks = BLOCKS

    def layer_view(self, layer: int, block: int) -> memoryview:
        start = (block * LAYOUT.layers + layer) * LAYOUT.layer_block_bytes
        return memoryview(self.bytes)[start : start + LAYOUT.layer_block_bytes]

    def release(self) -> None:
        pass


class Tap:
    """A relay that keeps what goes through it: `sent` by prefill, `answered` by decode."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.sent, self.answered = bytearray(), bytearray()
        self._server = socket.create_server(("127.0.0.1", PORT))
        self._target = target
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        near = self._server.accept()[0]
        with near, socket.create_connection(self._target) as far:
            back = threading.Thread(target=self._copy, args=(far, near, self.answered))
            back.start()
            self._copy(near, far, self.sent)
            back.join()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        while data := source.recv(1 << 16):
            kept += data
            sink.sendall(data)
        with contextlib.suppress(OSError):  # it has hung up
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._thread.join()
        self._server.close()


def make_ticket(name: str) -> Ticket:
    ticket = Ticket(
        transfer_id=token_hash([len(name)])[:32], request_id=f"request-{name}", epoch=1, compat="c" * 64,
        decode_incarnation="decode-uid/boot", host="127.0.0.1", port=PORT, tokens=len(TOKENS), token_hash=token_hash(TOKENS),
        lifetime_s=30.0,
    )  # fmt: skip
    return sign(KEY, ticket)


def frames(stream: bytes) -> list[dict[str, Any]]:
    """What is in a direction, frame by frame."""
    out, at = [], 0
    while at < len(stream):
        header = decode_header(stream[at : at + HEADER_BYTES])
        payload = stream[at + HEADER_BYTES : at + HEADER_BYTES + header.length_bytes]
        entry: dict[str, Any] = {
            "type": header.type.name, "offset": at, "layer": header.layer, "seq": header.seq, "first_block": header.first_block,
            "n_blocks": header.n_blocks, "length_bytes": header.length_bytes, "crc32": header.crc32,
        }  # fmt: skip
        if header.type not in (FrameType.LAYER, FrameType.CHALLENGE) and payload:
            entry["content"] = json.loads(payload)
        out.append(entry)
        at += HEADER_BYTES + header.length_bytes
    return out


def transfer(
    name: str, drive: Callable[[TcpKvSender], None], timeouts: SenderTimeouts | None = None, announced: bool = True
) -> None:
    """One whole transfer. `drive` is what the engine does with the sender."""
    listener = KvListener("127.0.0.1", 0, KEY, LAYOUT, VOCAB)
    ticket, target = make_ticket(name), Memory(bytes(LAYOUT.layers * BLOCKS * LAYOUT.layer_block_bytes))
    outcomes: queue.SimpleQueue[object] = queue.SimpleQueue()
    done: queue.SimpleQueue[TransferDone] = queue.SimpleQueue()
    if announced:
        listener.expect(Session(ticket, target, outcomes.put, lambda code, message: outcomes.put([code, message])))
    tap = Tap((listener.host, listener.port))
    drive(TcpKvSender(ticket, KEY, "prefill-uid/boot", TOKENS, ("127.0.0.1", "lo"), done.put, timeouts))
    error = done.get(timeout=20).error
    tap.close()
    listener.close()
    (OUT / f"{name}.sent.bin").write_bytes(tap.sent)
    (OUT / f"{name}.answered.bin").write_bytes(tap.answered)
    content = {
        "key": KEY.decode(), "challenge": CHALLENGE.hex(), "tokens": TOKENS, "vocab_size": VOCAB, "blocks": BLOCKS,
        "layout": {f: getattr(LAYOUT, f) for f in LAYOUT.__dataclass_fields__}, "ticket": ticket.to_json(),
        "first_token": {"index": FIRST.index, "token": FIRST.token, "logprob": FIRST.logprob, "top_logprobs": FIRST.top_logprobs},
        "error": None if error is None else error.code, "sent": frames(bytes(tap.sent)), "answered": frames(bytes(tap.answered)),
    }  # fmt: skip
    (OUT / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def whole(sender: TcpKvSender) -> None:
    """Each layer, in two pieces where it has several blocks, and the commit."""
    source = Memory((bytes(range(251)) * 20)[: LAYOUT.layers * BLOCKS * LAYOUT.layer_block_bytes])
    for layer in range(LAYOUT.layers):
        sender.layer_ready(layer, 0, [source.layer_view(layer, b) for b in range(2)])
        sender.layer_ready(layer, 2, [source.layer_view(layer, 2)])
    sender.commit(FIRST)


def given_up(sender: TcpKvSender) -> None:
    source = Memory((bytes(range(251)) * 20)[: LAYOUT.layers * BLOCKS * LAYOUT.layer_block_bytes])
    sender.layer_ready(0, 0, [source.layer_view(0, b) for b in range(BLOCKS)])
    sender.abort(ErrorEvent("finished", "the first token ends the request", retryable=False))


def slow(sender: TcpKvSender) -> None:
    """The engine takes its time: two frames of PROGRESS."""
    source = Memory((bytes(range(251)) * 20)[: LAYOUT.layers * BLOCKS * LAYOUT.layer_block_bytes])
    sender.layer_ready(0, 0, [source.layer_view(0, b) for b in range(BLOCKS)])
    threading.Event().wait(0.5)
    for layer in range(1, LAYOUT.layers):
        sender.layer_ready(layer, 0, [source.layer_view(layer, b) for b in range(BLOCKS)])
    sender.commit(FIRST)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    secrets.token_bytes = lambda nbytes=None: CHALLENGE
    transfer("whole", whole)
    transfer("slow", slow, SenderTimeouts(progress_s=0.2))
    transfer("given-up", given_up)
    transfer("unannounced", whole, announced=False)


if __name__ == "__main__":
    main()
