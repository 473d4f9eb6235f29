"""Tests of the probe of a pod's network, on folders like those of the kernel and on a library that
locks memory as the kernel does.
"""

from __future__ import annotations

import ctypes
import json
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from disagg_protocol import fabric_probe

# The functions of libibverbs that are called. Like the driver, it pins what is registered, within
# the limit of locked memory, and counts it for each device.
VERBS = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
static char *names[] = {"mlx5_0", "mlx5_1", NULL};
static struct { void *start; size_t size; } pinned[8];
void **ibv_get_device_list(int *count) {
  void **list = calloc(3, sizeof *list);
  list[0] = names[0]; list[1] = names[1];
  *count = 2;
  return list;
}
void ibv_free_device_list(void **list) { free(list); }
const char *ibv_get_device_name(void *device) { return device; }
void *ibv_open_device(void *device) { return device; }
void *ibv_alloc_pd(void *context) { return context; }
int ibv_close_device(void *context) { return 0; }
int ibv_dealloc_pd(void *pd) { return 0; }
void *ibv_reg_mr(void *pd, void *start, size_t size, int access) {
  for (int i = 0; i < 8; i++)
    if (!pinned[i].size) {
      void *own = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (access != 7 || own == MAP_FAILED || mlock(own, size)) return NULL;
      memset(start, 1, 1); memset((char *)start + size - 1, 1, 1);
      pinned[i].start = own; pinned[i].size = size;
      return &pinned[i];
    }
  return NULL;
}
int ibv_dereg_mr(void *region) {
  typeof(&pinned[0]) found = region;
  munmap(found->start, found->size);
  found->size = 0;
  return 0;
}
"""


def device(root: Path, number: int, *, interface: str = "", state: str = "4: ACTIVE", openable: bool = True) -> None:
    """Make an RDMA device with one port as sysfs shows it, and its uverbs device."""
    name = f"mlx5_{number}"
    verbs = root / f"sys/class/infiniband_verbs/uverbs{number}"
    port = root / f"sys/class/infiniband/{name}/ports/1"
    for folder in (verbs, port / "gids", port / "gid_attrs/types", port / "gid_attrs/ndevs", root / "dev/infiniband"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "sys/class/infiniband_verbs/abi_version").write_text("6\n")
    (verbs / "ibdev").write_text(f"{name}\n")
    (port / "state").write_text(f"{state}\n")
    (port / "link_layer").write_text("Ethernet\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    for index, gid in enumerate(("fe80::1", "0000:0000:0000:0000:0000:0000:0000:0000", "::ffff:10.0.0.1")):
        (port / f"gids/{index}").write_text(f"{gid}\n")
        (port / f"gid_attrs/types/{index}").write_text("RoCE v2\n" if index else "IB/RoCE v1\n")
        (port / f"gid_attrs/ndevs/{index}").write_text(f"{interface if index else 'p0'}\n")
    if openable:
        (root / f"dev/infiniband/uverbs{number}").touch()


def ports(root: Path, *interfaces: str) -> list[dict[str, Any]]:
    return fabric_probe.rdma_ports(list(interfaces), str(root))


def names(found: list[dict[str, Any]]) -> list[str]:
    return [port["name"] for port in fabric_probe.usable(found)]


def test_only_devices_that_can_be_opened_are_the_pods_own(tmp_path: Path) -> None:
    """In the shared mode of the kernel, sysfs shows the devices of all pods of the node."""
    device(tmp_path, 0, interface="net1")
    device(tmp_path, 1, interface="net2", openable=False)
    device(tmp_path, 2, interface="net1", state="1: DOWN")
    found = ports(tmp_path, "net1", "net2")
    assert [port["error"] for port in found] == ["", "No such file or directory", ""]
    assert names(found) == ["mlx5_0:1"]
    assert found[0]["gids"] == [{"index": 2, "gid": "::ffff:10.0.0.1", "type": "RoCE v2", "interface": "net1"}]


def test_of_all_devices_those_of_the_attached_interfaces_are_used(tmp_path: Path) -> None:
    device(tmp_path, 0, interface="net1")
    device(tmp_path, 1)
    assert names(ports(tmp_path, "net1")) == ["mlx5_0:1"]
    # Where no device belongs to an interface, all that can be opened are used.
    assert names(ports(tmp_path, "net7")) == ["mlx5_0:1", "mlx5_1:1"]


def test_a_virtual_function_belongs_to_its_interface(tmp_path: Path) -> None:
    device(tmp_path, 0)
    (tmp_path / "sys/class/net/net1/device/infiniband/mlx5_0").mkdir(parents=True)
    assert ports(tmp_path, "net1")[0]["interface"] == "net1"


def test_an_infiniband_port_needs_no_interface(tmp_path: Path) -> None:
    device(tmp_path, 0)
    device(tmp_path, 1)
    (tmp_path / "sys/class/infiniband/mlx5_1/ports/1/link_layer").write_text("InfiniBand\n")
    found = ports(tmp_path, "net1")
    assert names(found) == ["mlx5_1:1"]
    assert [gid["index"] for gid in found[1]["gids"]] == [0]


def test_without_any_device_nothing_is_found(tmp_path: Path) -> None:
    assert ports(tmp_path, "net1") == []
    assert fabric_probe.register([], 1 << 20) is None


@pytest.mark.parametrize(
    ("transport", "expected"),
    [
        ("auto", {"UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:1,net1,net2"}),
        ("rdma", {"UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:1"}),
        ("tcp", {"UCX_NET_DEVICES": "net1,net2"}),
    ],
)
def test_libraries_get_the_devices_of_the_transport(tmp_path: Path, transport: str, expected: dict[str, str]) -> None:
    device(tmp_path, 0, interface="net1")
    device(tmp_path, 1, interface="net2")
    interfaces = ["net1", "net2", "net3"]
    for name in interfaces[:2]:  # the third one never came
        (tmp_path / f"sys/class/net/{name}").mkdir(parents=True)
    rdma = {"NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1", "UCX_MAX_RMA_RAILS": "2"} if transport != "tcp" else {}
    found = fabric_probe.environment(interfaces, ports(tmp_path, *interfaces), transport, str(tmp_path))
    assert found == expected | rdma
    (tmp_path / "sys/class/net/eth0").mkdir(parents=True)
    more = fabric_probe.environment(interfaces, ports(tmp_path, *interfaces), transport, str(tmp_path))
    assert more == found | {"NCCL_SOCKET_IFNAME": "=eth0", "GLOO_SOCKET_IFNAME": "eth0"}


def test_the_limits_and_mtus_are_told(tmp_path: Path) -> None:
    for name, mtu in (("net1", "9000"), ("net2", "1500")):
        (tmp_path / f"sys/class/net/{name}").mkdir(parents=True)
        (tmp_path / f"sys/class/net/{name}/mtu").write_text(mtu)
    found = fabric_probe.look(["net1", "net2", "net3"], str(tmp_path))
    assert found["interfaces"] == {
        "net1": {"mtu": 9000, "roce_mtu": 4096},
        "net2": {"mtu": 1500, "roce_mtu": 1024},
        "net3": {"mtu": 0, "roce_mtu": 0},
    }
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert limit[0] == limit[1]  # it is raised as far as it goes
    assert found["memlock_bytes"] in (limit[1], -1)
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nCapEff:\t0000000000004000\nCapBnd:\t000001ffffffffff\n")
    assert fabric_probe.capabilities(str(status)) == 1 << 14
    assert fabric_probe.capabilities(str(tmp_path / "none")) == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "verbs.c").write_text(VERBS)
    out = folder / "libibverbs.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", out, folder / "verbs.c"], check=True)
    return out


def registered(library: Path, size: int, limit: int, *devices: int) -> str | None:
    """Return what `register` answers in a process without capabilities and with this limit."""
    program = textwrap.dedent(
        f"""
        import ctypes, json, resource, sys
        space = {{}}
        exec(sys.stdin.read(), space)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, ({limit}, {limit}))
        assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
        assert space["capabilities"]() == 0
        ports = [dict(name=f"mlx5_{{n}}:1", error="", state="ACTIVE", interface="net1") for n in {list(devices)}]
        print(json.dumps(space["register"](ports, {size}, {str(library)!r})))
        """
    )
    with open(fabric_probe.__file__) as source:
        argv = [sys.executable, "-I", "-c", program]
        ended = subprocess.run(argv, stdin=source, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found: str | None = json.loads(ended.stdout)
    return found


# Two of them are below the limit of 8 MiB that containers usually have.
SIZE = 2 << 20


def test_a_buffer_is_registered_at_each_device(library: Path) -> None:
    assert registered(library, SIZE, 5 << 20, 0, 1) == ""


def test_a_limit_that_is_too_low_shows_when_memory_is_registered(library: Path) -> None:
    assert registered(library, SIZE, 1 << 20, 0) == "ibv_reg_mr at mlx5_0: Cannot allocate memory"


def test_the_limit_counts_what_all_devices_register(library: Path) -> None:
    assert registered(library, SIZE, 3 << 20, 0, 1) == "ibv_reg_mr at mlx5_1: Cannot allocate memory"


def test_without_the_library_or_the_device_it_is_said(library: Path, tmp_path: Path) -> None:
    assert registered(tmp_path / "none.so", SIZE, 8 << 20, 0) is None
    assert registered(library, SIZE, 8 << 20, 7) == "libibverbs lists none of the devices"


def test_a_buffer_takes_up_little_memory_whatever_its_size() -> None:
    piece = fabric_probe._PIECE_BYTES
    size = 3 * piece + 4096
    start = fabric_probe._reserve(size)
    ctypes.memset(start + 5, 7, 1)
    assert [ctypes.string_at(start + n * piece + 5, 1) for n in range(4)] == [b"\x07"] * 4
    ctypes.memset(start + size - 1, 7, 1)
    ctypes.CDLL(None).munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))
