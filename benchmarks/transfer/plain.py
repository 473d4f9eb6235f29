"""Two plain sockets, as the measure of what a link can carry, and the same with AES-GCM."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from benchmarks.transfer.memory import Memory

_STREAMS = 2
_PIECE_BYTES = 1 << 20
_TIMEOUT_S = 60.0


def _both(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(_STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _pieces(memory: Memory, stream: int) -> list[memoryview]:
    view = memoryview(memory.bytes)
    half = len(view) // _STREAMS
    return [view[at : at + _PIECE_BYTES] for at in range(stream * half, (stream + 1) * half, _PIECE_BYTES)]


class _Gcm:
    """AES-GCM over the pieces of one stream, with a fixed key: its cost alone is wanted."""

    def __init__(self, sends: bool) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        cipher = Cipher(algorithms.AES(b"k" * 16), modes.GCM(b"n" * 12))
        self._context = cipher.encryptor() if sends else cipher.decryptor()
        self._out = bytearray(_PIECE_BYTES + 16)

    def pass_on(self, piece: memoryview) -> memoryview:
        n = self._context.update_into(piece, self._out)
        return memoryview(self._out)[:n]


def send(host: str, port: int, memory: Memory, encrypted: bool) -> None:
    """Send the memory over two connections and wait until it has arrived."""

    def stream(i: int) -> None:
        gcm = _Gcm(sends=True) if encrypted else None
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as sock:
            sock.settimeout(None)
            sock.sendall(bytes([i]))
            for piece in _pieces(memory, i):
                sock.sendall(piece if gcm is None else gcm.pass_on(piece))
            sock.recv(1)

    _both(stream)


class Receiver:
    """The other end, listening at once."""

    def __init__(self, host: str, memory: Memory, encrypted: bool) -> None:
        self._memory = memory
        self._encrypted = encrypted
        self._server = socket.create_server((host, 0), backlog=_STREAMS)
        self.port: int = self._server.getsockname()[1]

    def receive(self) -> None:
        _both(self._stream)
        self._server.close()

    def _stream(self, _: int) -> None:
        gcm = _Gcm(sends=False) if self._encrypted else None
        sock, _ = self._server.accept()
        with sock:
            for piece in _pieces(self._memory, sock.recv(1)[0]):
                if sock.recv_into(piece, 0, socket.MSG_WAITALL) != len(piece):
                    raise ConnectionError("the sender has gone")
                if gcm is not None:
                    piece[:] = gcm.pass_on(piece)
            sock.sendall(os.urandom(1))
