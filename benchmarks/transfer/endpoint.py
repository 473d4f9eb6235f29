"""One end of the link, as a process: it makes the transfers that it reads from its input.

Each line is a JSON object with the name of a case; each answer says how long it took and what CPU
time this process has used for it.
"""

from __future__ import annotations

import functools
import json
import math
import os
import queue
import secrets
import sys
import time
from typing import Any

from benchmarks.transfer import plain
from benchmarks.transfer.decoding import Decoding
from benchmarks.transfer.link import RECEIVER, SENDER
from benchmarks.transfer.memory import LAYOUT, PREFILL, TOKENS, Memory
from disagg_protocol.events import TokenEvent
from disagg_protocol.ticket import Ticket, sign, token_hash
from disagg_wire.engines import PROVED
from disagg_worker.transfer.listener import KvListener, Session
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sender import TcpKvSender, TransferDone

KEY = b"k" * 32
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


def _prompt(tokens: int) -> list[int]:
    return list(range(tokens))


def _ticket(port: int, bound: dict[str, Any], tokens: int) -> Ticket:
    ticket = Ticket(
        transfer_id=secrets.token_hex(16),
        request_id="r",
        epoch=0,
        compat="c",
        decode_incarnation="decode/boot",
        host=RECEIVER,
        port=port,
        tokens=tokens,
        token_hash=token_hash(_prompt(tokens)),
        lifetime_s=_TIMEOUT_S,
        **bound,
    )
    return sign(KEY, ticket)


def _send_kv(ticket: Ticket, memory: Memory, tokens_per_s: float) -> TransferDone:
    """Send the KV of a prompt that is computed at this speed, layer by layer."""
    done: queue.SimpleQueue[TransferDone] = queue.SimpleQueue()
    prompt, source = _prompt(ticket.tokens), (SENDER, "kvs0")
    if ticket.offer:
        from benchmarks.transfer import nixl_ends

        sender: TcpKvSender = nixl_ends.sender(ticket, KEY, prompt, source, done.put, memory)
    else:
        sender = TcpKvSender(ticket, KEY, PREFILL, prompt, source, done.put)
    size = LAYOUT.block_size_tokens
    due_s = time.monotonic()
    for start in range(0, ticket.tokens, _CHUNK_TOKENS):
        chunk = min(_CHUNK_TOKENS, ticket.tokens - start)
        for layer in range(LAYOUT.layers):
            due_s += chunk / tokens_per_s / LAYOUT.layers
            time.sleep(max(0.0, due_s - time.monotonic()))
            sender.layer_ready(layer, start // size, memory.blocks(start // size, chunk // size))
    sender.commit(TokenEvent(0, 7))
    end = done.get(timeout=_TIMEOUT_S)
    if end.error is not None:
        raise SystemExit(end.error.message)
    return end


def _receive_kv(memory: Memory, bound: dict[str, Any], tokens: int, decoding: Decoding | None, moved: str = "") -> None:
    """Receive the KV of a prompt; by NIXL, if `moved` is what is to move it."""
    outcomes: queue.SimpleQueue[Received | str] = queue.SimpleQueue()
    listener = KvListener(RECEIVER, 0, KEY, LAYOUT, 100_000)
    memory.n_blocks = tokens // LAYOUT.block_size_tokens
    landing = None
    if moved:
        from benchmarks.transfer import nixl_ends

        offered, landing = nixl_ends.offer(memory, "kvr0")
        bound = bound | {"offer": offered.encode()}
    ticket = _ticket(listener.port, bound, tokens)
    streams = None if decoding is None else decoding.start()
    listener.expect(Session(ticket, memory, outcomes.put, lambda _, message: outcomes.put(message), landing=landing))
    _say({"ticket": ticket.to_json()})
    cpu, began_s = _Cpu(), time.monotonic()
    outcome = outcomes.get(timeout=_TIMEOUT_S)
    if isinstance(outcome, str):
        raise SystemExit(outcome)
    used = outcome.moved
    if moved and (used is None or (used.transport, used.evidence) != (moved, PROVED)):
        raise SystemExit(f"{moved} was to move the KV, and it was {used}")
    quiet_s, busy_s = ([], []) if streams is None else streams.end(began_s)
    _say(cpu.used() | {"quiet_s": quiet_s, "busy_s": busy_s})
    listener.close()


def _receive_plain(memory: Memory, encrypted: bool) -> None:
    receiver = plain.Receiver(RECEIVER, memory, encrypted)
    _say({"port": receiver.port})
    cpu = _Cpu()
    receiver.receive()
    _say(cpu.used())


def _send(job: dict[str, Any], memory: Memory) -> None:
    started_s, cpu = time.monotonic(), _Cpu()
    exposed_s = 0.0
    if "ticket" in job:
        exposed_s = _send_kv(Ticket(**job["ticket"]), memory, job.get("tokens_per_s", math.inf)).exposed_s
    else:
        plain.send(RECEIVER, job["port"], memory, job["encrypted"])
    _say({"seconds": time.monotonic() - started_s, "exposed_s": exposed_s} | cpu.used())


def _watch() -> None:
    """Decode, and tell the steps before and after a time that is read from the input."""
    decoding = functools.cache(Decoding)
    for line in sys.stdin:
        streams = decoding(json.loads(line)["watch"]).start()
        _say({})
        quiet_s, busy_s = streams.end(json.loads(sys.stdin.readline())["began_s"])
        _say({"quiet_s": quiet_s, "busy_s": busy_s})


def main() -> None:
    if sys.argv[1] == "watch":
        _watch()
        return
    sends = sys.argv[1] == "send"
    memory = Memory(1 if sends else 0)
    decoding = functools.cache(Decoding)
    for line in sys.stdin:
        job = json.loads(line)
        if sends:
            _send(job, memory)
        elif "bound" in job:
            beside = decoding(job["decodes"]) if "decodes" in job else None
            _receive_kv(memory, job["bound"], job.get("tokens", TOKENS), beside, job.get("moved", ""))
        else:
            _receive_plain(memory, job["encrypted"])
        if not sends and not job["encrypted"] and memory.bytes[-1] != 1:
            raise SystemExit("the last byte has not arrived")


if __name__ == "__main__":
    main()
