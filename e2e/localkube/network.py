"""Bridges, the stand-in NIC, forwarding and masquerading, created by `up` and removed by `down`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from localkube.hostpkgs import with_sbin
from localkube.proc import write_atomically
from localkube.settings import (
    NFT_TABLE,
    NIC,
    NIC_PEER,
    NODE_BRIDGE,
    NODE_IP,
    POD_BRIDGE,
    POD_CIDR,
    POD_GATEWAY,
    Settings,
)
from localkube.shell import run, say

# Replies of a Service's backend must pass the address translation of the host even if both pods are
# on one bridge.
_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
# There are many pods, and each of them watches many files, while the defaults of the kernel are
# made for a desktop.
_AT_LEAST = {"fs/inotify/max_user_instances": 1024, "fs/inotify/max_user_watches": 524288}
_KUBE_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
_NAMESPACES = Path("/run/netns")


def _system(*argv: str, check: bool = True) -> str:
    return run(argv, check=check, env={**os.environ, "PATH": with_sbin()}, timeout_s=20).stdout


def link_exists(name: str) -> bool:
    return Path(f"/sys/class/net/{name}").exists()


def _remember(settings: Settings, values: dict[str, str]) -> None:
    path = settings.state / "sysctl.json"
    if not path.exists():
        write_atomically(path, json.dumps(values))


def _set_sysctls(settings: Settings) -> None:
    root = Path("/proc/sys")
    if not (root / "net/bridge").exists():
        _system("modprobe", "br_netfilter", check=False)
    wanted = dict(_SYSCTLS)
    for name, least in _AT_LEAST.items():
        if (root / name).exists() and int((root / name).read_text()) < least:
            wanted[name] = str(least)
    wanted = {name: value for name, value in wanted.items() if (root / name).exists()}
    _remember(settings, {name: (root / name).read_text().strip() for name in wanted})
    for name, value in wanted.items():
        if (root / name).read_text().strip() != value:
            (root / name).write_text(value)


def _bridge(name: str, address: str) -> None:
    if not link_exists(name):
        _system("ip", "link", "add", name, "type", "bridge")
    _system("ip", "link", "set", name, "up")
    _system("ip", "address", "replace", address, "dev", name)


def masquerade_rules() -> str:
    """Return the rules for the traffic of pods.

    Pods reach the outside world with the address of the host; among themselves and towards the node
    they keep their own addresses.
    """
    return f"""
table ip {NFT_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {POD_CIDR} ip daddr != {{ {POD_CIDR}, {NODE_IP} }} masquerade
  }}
}}
"""


def share_namespaces(folder: Path = _NAMESPACES) -> None:
    """Make the folder of network namespaces a shared mount, as `ip netns add` does.

    If `ip` did so later, its mount would cover those of the pods, which could then not be removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if run(["mountpoint", "-q", str(folder)], check=False, timeout_s=20).returncode != 0:
        _system("mount", "--bind", str(folder), str(folder))
        _system("mount", "--make-shared", str(folder))


def remove_namespaces(folder: Path = _NAMESPACES) -> None:
    """Remove the network namespaces of pods, which containerd names cni-…."""
    for path in folder.glob("cni-*") if folder.is_dir() else ():
        _system("umount", "--lazy", str(path), check=False)
        path.unlink(missing_ok=True)


def make(settings: Settings) -> None:
    _set_sysctls(settings)
    share_namespaces()
    _bridge(NODE_BRIDGE, f"{NODE_IP}/24")
    _bridge(POD_BRIDGE, f"{POD_GATEWAY}/24")
    if not link_exists(NIC):
        _system("ip", "link", "add", NIC, "type", "veth", "peer", "name", NIC_PEER)
    for link in (NIC, NIC_PEER):
        _system("ip", "link", "set", link, "up")
    _system("ip", "link", "set", "lo", "up")
    rules = f"add table ip {NFT_TABLE}\ndelete table ip {NFT_TABLE}\n{masquerade_rules()}"
    run(["nft", "-f", "-"], stdin=rules, env={**os.environ, "PATH": with_sbin()})


def is_whole() -> bool:
    return all(link_exists(name) for name in (NODE_BRIDGE, POD_BRIDGE, NIC))


def remove(settings: Settings) -> None:
    """Remove everything that `make` created, and kube-proxy's own tables; missing ones are
    skipped.
    """
    for link in (NIC, NODE_BRIDGE, POD_BRIDGE):
        if link_exists(link):
            _system("ip", "link", "delete", link, check=False)
    for family, table in (("ip", NFT_TABLE), *_KUBE_TABLES):
        if _nft_has(family, table):
            _system("nft", "delete", "table", family, table, check=False)
    path = settings.state / "sysctl.json"
    if path.exists():
        for name, value in json.loads(path.read_text()).items():
            try:
                (Path("/proc/sys") / name).write_text(value)
            except OSError as error:
                say(f"could not set {name} back to {value}: {error}")


def _nft_has(family: str, table: str) -> bool:
    try:
        tables = _system("nft", "list", "tables", check=False)
    except RuntimeError:
        return False
    return f"table {family} {table}" in tables.splitlines()
