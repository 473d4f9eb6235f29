"""PURE: What a worker says of the RDMA network that it asks for, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from disagg_wire.problems import PROBLEM, WorkerProblem, parse_problem

# The field of `info` and of the state of routers, and its parts.
FABRIC = "fabric"
ASKED = "asked"
BYTES = "bytes"
USABLE = "usable"

# Reasons of the condition NetworkReady, and of problems of workers.
NO_UVERBS_DEVICE = "NoUverbsDevice"
RAILS_INCOMPLETE = "RailsIncomplete"
MEMLOCK_TOO_LOW = "MemlockTooLow"
REGISTRATION_FAILED = "RegistrationFailed"
FABRIC_REASONS = (NO_UVERBS_DEVICE, RAILS_INCOMPLETE, MEMLOCK_TOO_LOW, REGISTRATION_FAILED)

# What engines that choose the size of their KV cache themselves should be able to register.
UNKNOWN_CACHE_BYTES = 1 << 30
# Larger reports are not read.
MAX_REPORT_BYTES = 1 << 16
_CAP_IPC_LOCK = 1 << 14
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def told(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field of `info`: a report of the probe with what follows from it.

    The report also says how many devices and bytes are asked for, which are usable, and whether
    registering that many bytes at each of them has failed.
    """
    found = problem_of(report)
    return {**report, **({} if found is None else {PROBLEM: found.as_json()})}


def problem_of(report: Mapping[str, Any]) -> WorkerProblem | None:
    """Return what is wrong with the devices or the limits of a worker, if anything is."""
    ports, ready, asked = report.get("ports") or [], report.get(USABLE) or [], int(report.get(ASKED, 0))
    devices = len({str(name).partition(":")[0] for name in ready})
    if asked and not ready:
        return WorkerProblem(NO_UVERBS_DEVICE, f"no RDMA device can be used: {_hindrances(ports)}")
    if devices < asked:
        words = f"{devices} of {asked} RDMA devices can be used ({', '.join(ready)})"
        left = [port for port in ports if port.get("name") not in ready]
        return WorkerProblem(RAILS_INCOMPLETE, f"{words}: {_hindrances(left)}" if left else words)
    limit, size, error = int(report.get("memlock_bytes", -1)), int(report.get(BYTES, 0)), report.get("error")
    needed = size * max(1, devices)
    privileged = int(str(report.get("capabilities", "0")), 16) & _CAP_IPC_LOCK
    if asked and 0 <= limit < needed and not privileged and error != "":
        words = f"memory of {amount(limit)} may be locked, and {amount(needed)} of KV is to be registered"
        return WorkerProblem(MEMLOCK_TOO_LOW, f"{words}: raise LimitMEMLOCK of the node's container runtime")
    if error:
        return WorkerProblem(REGISTRATION_FAILED, f"{amount(size)} can't be registered: {error}")
    return None


def _hindrances(ports: list[Mapping[str, Any]]) -> str:
    if not ports:
        return "the pod is shown none"
    return ", ".join(f"{p.get('name')}: {p.get('error') or p.get('state') or 'no state'}" for p in ports[:8])


def amount(size: int) -> str:
    """Return a number of bytes in words."""
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} bytes"


def words_of(field: Mapping[str, Any]) -> str:
    """Return the field of `info` in one line, for the log."""
    ports = [
        f"{p.get('name')} ({p.get('error') or p.get('state')}, {p.get('rate') or 'rate unknown'}, "
        f"{p.get('interface') or p.get('link_layer') or 'no interface'}, "
        f"GIDs {', '.join(str(g.get('index')) for g in p.get('gids') or ()) or 'none'})"
        for p in field.get("ports") or ()
    ]
    limit = int(field.get("memlock_bytes", -1))
    mtus = [f"{n} MTU {i.get('mtu')}, RoCE {i.get('roce_mtu')}" for n, i in (field.get("interfaces") or {}).items()]
    locked = "unlimited" if limit < 0 else amount(limit)
    return "; ".join(
        [*(ports or ["no RDMA device"]), *mtus, f"memlock {locked}", f"CapEff {field.get('capabilities')}"]
    )


def parse_report(text: str) -> dict[str, Any] | None:
    """Return the report in a file, or None if it holds none yet, or something else.

    It is written by a container of somebody else's image.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get(USABLE), list):
            return None
        words_of(found), problem_of(found)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found


def summary(field: Any) -> dict[str, Any] | None:
    """Return what routers pass on of the field of `info`, or None if the worker has none."""
    if not isinstance(field, Mapping) or not isinstance(ready := field.get(USABLE), list):
        return None
    found = parse_problem(field.get(PROBLEM))
    return {USABLE: [str(name)[:64] for name in ready[:64]]} | ({} if found is None else {PROBLEM: found.as_json()})
