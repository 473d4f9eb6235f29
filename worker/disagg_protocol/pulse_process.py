"""The process that sends a worker's beats (`python -m disagg_protocol.pulse_process`).

The worker hands it the connections of routers, with their heads sent. It has an interpreter of its
own, so that no step and no extension that holds the worker's interpreter lock delays a beat. While
the worker is stopped (SIGSTOP, a debugger), it sends none. It ends with the worker.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from disagg_protocol.pulse_board import PulseBoard
from disagg_wire.pulse import INTERVAL_S

_MAX_MESSAGE_BYTES = 64
# The states of a process that does not run on: stopped, traced, dead.
_STOPPED = frozenset(b"TtZX")


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped or gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].lstrip()[0] in _STOPPED
    except (OSError, IndexError):
        return True


def chunk(line: bytes) -> bytes:
    """Return a line as a chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(line), line)


class Sender:
    """The connections to routers, by the worker's numbers for them."""

    def __init__(self) -> None:
        self._connections: dict[int, socket.socket] = {}

    def add(self, number: int, fd: int) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        self._connections[number] = sock

    def drop(self, number: int) -> None:
        if (sock := self._connections.pop(number, None)) is not None:
            sock.close()

    def send(self, content: bytes) -> None:
        """Send to all. A router that does not read misses beats."""
        for number, sock in list(self._connections.items()):
            try:
                whole = sock.send(content) == len(content)
            except BlockingIOError:
                continue
            except OSError:
                whole = False
            if not whole:
                self._hang_up(number, sock)

    def _hang_up(self, number: int, sock: socket.socket) -> None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The router has gone already.
        self.drop(number)


def serve(control: socket.socket, board: PulseBoard, worker: int) -> None:
    """Send beats until the worker has closed its end of `control`."""
    sender, due_s = Sender(), time.monotonic()
    while True:
        control.settimeout(max(0.001, due_s - time.monotonic()))
        try:
            message, fds, _, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, 1)
        except TimeoutError:
            due_s = max(due_s + INTERVAL_S, time.monotonic())
            board.reader_runs()
            if not is_stopped(worker):
                sender.send(chunk(board.beat().line()))
            continue
        if not message:
            return
        number = int(message[1:])
        if message[:1] == b"+" and fds:
            sender.add(number, fds[0])
        else:
            sender.drop(number)


def main() -> None:
    # Those who end the worker's process group mean the worker, which ends this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    control_fd, board_fd, worker = (int(word) for word in sys.argv[1:4])
    with socket.socket(fileno=control_fd) as control:
        serve(control, PulseBoard(board_fd), worker)
    os._exit(0)


if __name__ == "__main__":
    main()
