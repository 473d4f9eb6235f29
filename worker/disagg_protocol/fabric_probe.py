"""What a process finds of the network of its pod without any privilege: RDMA devices and limits.

A copy of this text runs in the containers of other engines, whose Python has nothing but the
standard library (`make generate` writes disagg_operator.engines.probe_text).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import threading
from typing import Any

POD_INTERFACE = "eth0"
_MOST_PORTS, _MOST_GIDS = 32, 4
# A buffer of any size is made of so many bytes of memory, mapped again and again.
_PIECE_BYTES = 1 << 24
_REGISTER_TIMEOUT_S = 120.0
_READ_WRITE = 7  # IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ
# What a RoCE packet has besides its payload, as the kernel counts it.
_ROCE_HEADER_BYTES = 96


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(*parts: str) -> str:
    """Return the content of a file, or an empty text if it can't be read."""
    try:
        with open(os.path.join(*parts)) as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _open_error(path: str) -> str:
    """Return why a device can't be opened, or an empty text."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _gids(port: str, interfaces: list[str]) -> list[dict[str, Any]]:
    """Return the GIDs of a port that belong to the interfaces; of InfiniBand, the first one."""
    out: list[dict[str, Any]] = []
    for index in sorted(map(int, filter(str.isdigit, _names(f"{port}/gids")))):
        gid, kind = _text(port, "gids", str(index)), _text(port, "gid_attrs/types", str(index))
        interface = _text(port, "gid_attrs/ndevs", str(index))
        infiniband = index == 0 and _text(port, "link_layer") == "InfiniBand"
        if gid.strip("0:") and (interface in interfaces or infiniband):
            out.append({"index": index, "gid": gid, "type": kind, "interface": interface})
    return out[:_MOST_GIDS]


def rdma_ports(interfaces: list[str], root: str = "/") -> list[dict[str, Any]]:
    """Return the ports of the RDMA devices in sysfs, with what is in the way of using each.

    In the shared mode of the RDMA subsystem, sysfs shows the devices of the whole node: only those
    whose uverbs device can be opened are the pod's own.
    """
    out: list[dict[str, Any]] = []
    verbs = os.path.join(root, "sys/class/infiniband_verbs")
    for uverbs in _names(verbs):
        device = _text(verbs, uverbs, "ibdev")
        ports = os.path.join(root, "sys/class/infiniband", device, "ports")
        for port in _names(ports) if device else ():
            place = os.path.join(ports, port)
            gids = _gids(place, interfaces)
            owned = [n for n in interfaces if device in _names(f"{root}/sys/class/net/{n}/device/infiniband")]
            out.append(
                {
                    "name": f"{device}:{port}",
                    "error": _open_error(os.path.join(root, "dev/infiniband", uverbs)),
                    "state": _text(place, "state").rpartition(" ")[2],
                    "link_layer": _text(place, "link_layer"),
                    "rate": _text(place, "rate"),
                    "interface": next((g["interface"] for g in gids if g["interface"]), next(iter(owned), "")),
                    "gids": gids,
                }
            )
    return out[:_MOST_PORTS]


def usable(ports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the ports that can be used: those of the pod's interfaces, if any port names one."""
    found = [port for port in ports if not port["error"] and port["state"] == "ACTIVE"]
    ours = [port for port in found if port["interface"] or port["link_layer"] == "InfiniBand"]
    return ours or found


def raise_memlock() -> int:
    """Raise the limit of locked memory as far as it goes; return it in bytes, or -1 for none."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    return -1 if limit == resource.RLIM_INFINITY else limit


def capabilities(status: str = "/proc/self/status") -> int:
    """Return the effective capabilities of this process, as a mask."""
    lines = dict(line.partition(":")[::2] for line in _text(status).splitlines())
    return int(lines.get("CapEff", "0").strip() or "0", 16)


def _roce_mtu(mtu: int) -> int:
    return max((size for size in (256, 512, 1024, 2048, 4096) if size + _ROCE_HEADER_BYTES <= mtu), default=0)


def look(interfaces: list[str], root: str = "/") -> dict[str, Any]:
    """Return what this process finds, for its log, for routers and for the operator."""
    mtus = {name: int(_text(root, "sys/class/net", name, "mtu") or 0) for name in interfaces}
    return {
        "ports": rdma_ports(interfaces, root),
        "interfaces": {name: {"mtu": mtu, "roce_mtu": _roce_mtu(mtu)} for name, mtu in mtus.items()},
        "memlock_bytes": raise_memlock(),
        "capabilities": f"{capabilities():016x}",
    }


def environment(interfaces: list[str], ports: list[dict[str, Any]], transport: str, root: str = "/") -> dict[str, str]:
    """Return the variables of UCX, NCCL and gloo for the interfaces and RDMA ports of a worker.

    UCX uses one device of several unless it is told how many. NCCL and gloo, which start their
    connections over TCP, get the pod's own interface, where policies are in force.
    """
    there = _names(os.path.join(root, "sys/class/net"))
    names = [] if transport == "tcp" else [port["name"] for port in usable(ports)]
    devices = names if transport == "rdma" else [*names, *(name for name in interfaces if name in there)]
    out = {"UCX_NET_DEVICES": ",".join(devices)} if devices else {}
    if names:
        out["NCCL_IB_HCA"] = "=" + ",".join(names)
    if len(names) > 1:
        out["UCX_MAX_RMA_RAILS"] = str(len(names))
    if interfaces and POD_INTERFACE in there:
        out["NCCL_SOCKET_IFNAME"] = f"={POD_INTERFACE}"
        out["GLOO_SOCKET_IFNAME"] = POD_INTERFACE
    return out


def _reserve(size: int) -> int:
    """Return the address of `size` bytes of memory that take up _PIECE_BYTES."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    start = libc.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    file = os.memfd_create("registered")
    try:
        os.ftruncate(file, min(size, _PIECE_BYTES))
        for offset in range(0, size, _PIECE_BYTES):
            length, fixed = min(_PIECE_BYTES, size - offset), 0x10
            place = libc.mmap(start + offset, length, 3, mmap.MAP_SHARED | fixed, file, 0)
            if place != start + offset:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(file)
    return int(start)


def _registered(devices: list[str], size: int, library: str) -> str:
    """Register memory at all devices at the same time, and give it back; return an error or ""."""
    verbs = ctypes.CDLL(library, use_errno=True)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    for name in ("ibv_open_device", "ibv_alloc_pd", "ibv_reg_mr", "ibv_get_device_list"):
        getattr(verbs, name).restype = pointer
    for name in ("ibv_open_device", "ibv_alloc_pd", "ibv_get_device_name", "ibv_free_device_list"):
        getattr(verbs, name).argtypes = [pointer]
    for name in ("ibv_dereg_mr", "ibv_dealloc_pd", "ibv_close_device"):
        getattr(verbs, name).argtypes = [pointer]
    verbs.ibv_get_device_name.restype = ctypes.c_char_p
    verbs.ibv_reg_mr.argtypes = [pointer, pointer, ctypes.c_size_t, number]
    verbs.ibv_get_device_list.argtypes = [ctypes.POINTER(number)]
    count, undo, address = number(0), [], _reserve(size)
    listed = verbs.ibv_get_device_list(ctypes.byref(count))
    try:
        for handle in (pointer * count.value).from_address(listed) if listed else ():
            name = verbs.ibv_get_device_name(handle).decode()
            if name not in devices:
                continue
            for step, give_back, arguments in (
                ("ibv_open_device", verbs.ibv_close_device, ()),
                ("ibv_alloc_pd", verbs.ibv_dealloc_pd, ()),
                ("ibv_reg_mr", verbs.ibv_dereg_mr, (address, size, _READ_WRITE)),
            ):
                handle = getattr(verbs, step)(handle, *arguments)
                if not handle:
                    return f"{step} at {name}: {os.strerror(ctypes.get_errno() or errno.EIO)}"
                undo.append((give_back, handle))
        return "" if undo else "libibverbs lists none of the devices"
    finally:
        for give_back, handle in reversed(undo):
            give_back(handle)
        if listed:
            verbs.ibv_free_device_list(listed)
        ctypes.CDLL(None).munmap(pointer(address), ctypes.c_size_t(size))


def register(ports: list[dict[str, Any]], size: int, library: str = "libibverbs.so.1") -> str | None:
    """Register a buffer at all usable devices; return "", an error, or None if nothing was tried.

    A driver that hangs must not keep the worker from starting, so it is tried in another thread.
    """
    devices, answer = sorted({port["name"].partition(":")[0] for port in usable(ports)}), list[str | None]()

    def attempt() -> None:
        try:
            answer.append(_registered(devices, size, library))
        except OSError as error:
            answer.append(None if "cannot open shared object" in str(error) else str(error))
        except AttributeError as error:
            answer.append(str(error))

    if not devices or not size:
        return None
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(_REGISTER_TIMEOUT_S)
    return answer[0] if answer else f"no answer within {_REGISTER_TIMEOUT_S:g} s"
