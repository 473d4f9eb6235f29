"""Show where the CPU time of a transfer goes, at both ends, as the lines of a table.

`perf` takes samples of the two processes while they make transfers on one link. Needs root.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.transfer.__main__ import CASES, GB
from benchmarks.transfer.link import link
from benchmarks.transfer.process import End

# Samples are of the first part whose pattern is found in "object symbol".
PARTS = {
    "check": r"_rust\.|crc32c",
    "copies between process and socket": r"_copy_(from|to)_iter",
    "rest of the kernel: packets, wake-ups, memory": r"\[kernel",
    "Python": r"",
}
_WAIT_S = 30.0


def _recording(end: End, into: Path) -> subprocess.Popen[bytes]:
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "2000", "-o", str(into), "-p", str(end.pid)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def shares(report: Iterable[str]) -> dict[str, float]:
    """Return the share of each part in the lines "12.3% object symbol" of a report."""
    found = dict.fromkeys(PARTS, 0.0)
    for line in report:
        match = re.match(r"\s*([\d.]+)%\s+(.*)", line)
        if match:
            part = next(name for name, pattern in PARTS.items() if re.search(pattern, match[2]))
            found[part] += float(match[1]) / 100
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}


def _report(recorded: Path) -> dict[str, float]:
    command = ["perf", "report", "-i", str(recorded), "--sort", "dso,sym", "--stdio", "-g", "none"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return shares(text.splitlines())


def _transfer(sender: End, receiver: End, job: dict[str, Any]) -> tuple[float, float]:
    """Return the CPU time of both ends, in seconds a GB."""
    receiver.tell(job)
    sender.tell(job | receiver.hear())
    return sender.hear()["cpu_s"] / GB, receiver.hear()["cpu_s"] / GB


def measure(rate: int | None, rounds: int, job: dict[str, Any]) -> list[dict[str, float]]:
    """Return the seconds of CPU a GB of each part, at the sender and at the receiver."""
    with link(rate) as (at_sender, at_receiver), tempfile.TemporaryDirectory() as home:
        ends = End(at_sender, "send"), End(at_receiver, "receive")
        _transfer(*ends, job)  # The first one touches the memory.
        files = [Path(home) / str(i) for i in range(len(ends))]
        recorders = [_recording(end, file) for end, file in zip(ends, files, strict=True)]
        time.sleep(1.0)  # Nothing tells that perf has begun.
        used = [_transfer(*ends, job) for _ in range(rounds)]
        for recorder in recorders:
            recorder.send_signal(signal.SIGINT)
            recorder.wait(_WAIT_S)
        for end in ends:
            end.close()
        whole = [statistics.median(cpu) for cpu in zip(*used, strict=True)]
        found = [_report(file) for file in files]
    return [
        {name: share * cpu_s for name, share in part.items()} | {"all": cpu_s}
        for part, cpu_s in zip(found, whole, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rate", type=int, default=20, help="in Gb/s; 0 is a link without a limit")
    arguments = parser.parse_args()
    print("| end | what | " + " | ".join([*PARTS, "all"]) + " |")
    print("|---|---|" + "---|" * (len(PARTS) + 1))
    for name in [name for name in CASES if "AES" not in name and "version 1" not in name]:
        for end, parts in zip(
            ("sender", "receiver"), measure(arguments.rate or None, arguments.rounds, CASES[name]), strict=True
        ):
            print(f"| {end} | {name} | " + " | ".join(f"{value:.3f}" for value in parts.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
