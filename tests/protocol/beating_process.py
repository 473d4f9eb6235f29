"""A process that sends beats and does nothing else. It holds the interpreter lock for the seconds
that come as a line on its standard input.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
from typing import Any, cast

import uvloop

from disagg_protocol.departure import Departure
from disagg_protocol.process import Process


class _Endpoint:
    draining = False
    active = 0
    needed_for_s = 0.0
    departure = Departure()

    def authorized(self, request: Any) -> bool:
        return "authorization" in request.headers

    def end(self, timeout_s: float) -> float:
        return timeout_s

    async def wait_idle(self, timeout_s: float) -> bool:
        return True


def _hold(process: Process) -> None:
    for line in sys.stdin:
        process.pulse.board.begins(0.5)
        ctypes.PyDLL(None).usleep(int(float(line) * 1e6))
        process.pulse.board.ends()


async def main() -> None:
    process = Process(cast(Any, _Endpoint()), "127.0.0.1", int(sys.argv[1]), 10.0)
    threading.Thread(target=_hold, args=(process,), daemon=True).start()
    running = asyncio.create_task(process.run())
    while process.pulse.pid is None:
        await asyncio.sleep(0.01)
    print(process.pulse.pid, flush=True)
    await running


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main())
        finally:
            os._exit(0)
