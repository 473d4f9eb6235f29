"""One end of the link, as a process: it makes the transfers that it reads from its input.

Each line is a JSON object with the name of a case; each answer says how long it took and what CPU
time this process has used for it.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import sys
import time
from typing import Any

from benchmarks.transfer import plain
from benchmarks.transfer.link import RECEIVER, SENDER
from benchmarks.transfer.memory import LAYOUT, PREFILL, TOKENS, Memory
from disagg_protocol.events import TokenEvent
from disagg_protocol.ticket import Ticket, sign, token_hash
from disagg_worker.transfer.listener import KvListener, Session
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sender import TcpKvSender, TransferDone

KEY = b"k" * 32
_PROMPT = list(range(TOKENS))
_TIMEOUT_S = 60.0
# Tokens whose KV a chunk of prefill completes.
_CHUNK_TOKENS = 2048


class _Cpu:
    """The CPU time of this process from here on, and the part of it outside of the kernel."""

    def __init__(self) -> None:
        self._user_s, self._total_s = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return os.times().user, time.process_time()

    def used(self) -> dict[str, float]:
        user_s, total_s = self._now()
        return {"user_s": user_s - self._user_s, "cpu_s": total_s - self._total_s}


def _say(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def _ticket(port: int, bound: dict[str, str]) -> Ticket:
    ticket = Ticket(
        transfer_id=secrets.token_hex(16),
        request_id="r",
        epoch=0,
        compat="c",
        decode_incarnation="decode/boot",
        host=RECEIVER,
        port=port,
        tokens=TOKENS,
        token_hash=token_hash(_PROMPT),
        lifetime_s=_TIMEOUT_S,
        **bound,
    )
    return sign(KEY, ticket)


def _send_kv(ticket: Ticket, memory: Memory) -> None:
    done: queue.SimpleQueue[TransferDone] = queue.SimpleQueue()
    sender = TcpKvSender(ticket, KEY, PREFILL, _PROMPT, (SENDER, "kvs0"), done.put)
    step = _CHUNK_TOKENS // LAYOUT.block_size_tokens
    for first in range(0, memory.n_blocks, step):
        for layer in range(LAYOUT.layers):
            sender.layer_ready(layer, first, memory.blocks(first, step))
    sender.commit(TokenEvent(0, 7))
    end = done.get(timeout=_TIMEOUT_S)
    if end.error is not None:
        raise SystemExit(end.error.message)


def _receive_kv(memory: Memory, bound: dict[str, str]) -> None:
    outcomes: queue.SimpleQueue[Received | str] = queue.SimpleQueue()
    listener = KvListener(RECEIVER, 0, KEY, LAYOUT, 100_000)
    ticket = _ticket(listener.port, bound)
    listener.expect(Session(ticket, memory, outcomes.put, lambda code, message: outcomes.put(message)))
    _say({"ticket": ticket.to_json()})
    cpu = _Cpu()
    outcome = outcomes.get(timeout=_TIMEOUT_S)
    if isinstance(outcome, str):
        raise SystemExit(outcome)
    _say(cpu.used())
    listener.close()


def _receive_plain(memory: Memory, encrypted: bool) -> None:
    receiver = plain.Receiver(RECEIVER, memory, encrypted)
    _say({"port": receiver.port})
    cpu = _Cpu()
    receiver.receive()
    _say(cpu.used())


def _send(job: dict[str, Any], memory: Memory) -> None:
    started_s, cpu = time.monotonic(), _Cpu()
    if "ticket" in job:
        _send_kv(Ticket(**job["ticket"]), memory)
    else:
        plain.send(RECEIVER, job["port"], memory, job["encrypted"])
    _say({"seconds": time.monotonic() - started_s} | cpu.used())


def main() -> None:
    sends = sys.argv[1] == "send"
    memory = Memory(1 if sends else 0)
    for line in sys.stdin:
        job = json.loads(line)
        if sends:
            _send(job, memory)
        elif "bound" in job:
            _receive_kv(memory, job["bound"])
        else:
            _receive_plain(memory, job["encrypted"])
        if not sends and not job["encrypted"] and memory.bytes[-1] != 1:
            raise SystemExit("the last byte has not arrived")


if __name__ == "__main__":
    main()
