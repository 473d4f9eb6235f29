"""The kubelet, its cgroups, and the devices that the node claims to have."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from localkube import pki
from localkube.control import kubectl
from localkube.gobuild import program, programs_path
from localkube.proc import Daemon, stop_pid, write_atomically
from localkube.settings import (
    CGROUP,
    DNS_SERVICE_IP,
    EXTENDED_RESOURCES,
    MAX_PODS,
    NODE_IP,
    NODE_LABELS,
    NODE_NAME,
    ClusterError,
    Settings,
)
from localkube.shell import wait_for

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """Return the mount point of each cgroup hierarchy.

    Version 2 has one hierarchy, version 1 has one for each controller.
    """
    if (_CGROUP_ROOT / "cgroup.controllers").exists():
        return [_CGROUP_ROOT]
    return sorted(path for path in _CGROUP_ROOT.iterdir() if path.is_dir() and (path / "cgroup.procs").exists())


def make_cgroups() -> None:
    for root in hierarchies():
        folder = root / CGROUP
        folder.mkdir(exist_ok=True)
        # In version 1, an empty set of processors or memory nodes would let no process in.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (folder / name).exists() and not (folder / name).read_text().strip():
                (folder / name).write_text((root / name).read_text())


def remove_cgroups(*, timeout_s: float = 20) -> None:
    """End the processes that still run in the cluster's cgroups, and remove the cgroups, deepest
    first.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        left = [root / CGROUP for root in hierarchies() if (root / CGROUP).is_dir()]
        if not left:
            return
        for top in left:
            for folder, _, _ in os.walk(top, topdown=False):
                _kill_all(Path(folder))
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        if time.monotonic() > deadline_s:
            raise ClusterError(f"waited {timeout_s:.0f} s for {left[0]} to become empty")
        time.sleep(0.05)


def _kill_all(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def end_shims(settings: Settings) -> None:
    """End the shims of our containerd, identified by their name and the socket they were started
    for.
    """
    shim, socket = "containerd-shim-runc-v2", str(settings.containerd_socket)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if Path(argv[0]).name == shim and socket in argv:
                stop_pid(int(entry.name), grace_s=0.5)


def _kubelet_config(settings: Settings) -> str:
    tiny = {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"}
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_IP,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True, "cacheTTL": "10s"},
                "x509": {"clientCAFile": str(settings.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [DNS_SERVICE_IP],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{settings.containerd_socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "maxPods": MAX_PODS,
            "podLogsDir": str(settings.state / "pod-logs"),
            "volumePluginDir": str(settings.state / "volume-plugins"),
            # The disk is the user's; a nearly full one must not evict the pods of a test, nor
            # remove the images.
            "evictionHard": tiny,
            "evictionPressureTransitionPeriod": "10s",
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "5s",
            "nodeStatusReportFrequency": "10s",
            "registryPullQPS": 0,
            "eventRecordQPS": 50,
            "serializeImagePulls": False,
        },
        indent=1,
    )


def write_configs(settings: Settings) -> None:
    write_atomically(settings.configs / "kubelet.json", _kubelet_config(settings))


def daemon(settings: Settings) -> Daemon:
    labels = ",".join(f"{key}={value}" for key, value in NODE_LABELS.items())
    argv = (
        str(program(settings, "bin/kubelet")), f"--config={settings.configs / 'kubelet.json'}",
        f"--kubeconfig={pki.kubeconfig_of(settings, 'kubelet')}", f"--root-dir={settings.kubelet_root}",
        f"--hostname-override={NODE_NAME}", f"--node-ip={NODE_IP}", f"--node-labels={labels}",
        f"--cert-dir={settings.pki / 'kubelet'}",
    )  # fmt: skip
    return Daemon("kubelet", argv, settings)


def _node(settings: Settings) -> dict[str, dict[str, dict[str, str]]]:
    node: dict[str, dict[str, dict[str, str]]] = json.loads(kubectl(settings, "get", "node", NODE_NAME, "-o", "json"))
    return node


def is_ready(settings: Settings) -> bool:
    path = '{.status.conditions[?(@.type=="Ready")].status}'
    return kubectl(settings, "get", "node", NODE_NAME, "-o", f"jsonpath={path}").strip() == "True"


def has_devices(settings: Settings) -> bool:
    allocatable = _node(settings)["status"]["allocatable"]
    return all(allocatable.get(name) == str(count) for name, count in EXTENDED_RESOURCES.items())


def claim_devices(settings: Settings) -> None:
    """Set the capacity of the node by hand.

    No plugin serves these devices, and this is the way that Kubernetes documents for such extended
    resources.
    """
    capacity = {name: str(count) for name, count in EXTENDED_RESOURCES.items()}
    patch = json.dumps({"status": {"capacity": capacity, "allocatable": capacity}})
    kubectl(settings, "patch", "node", NODE_NAME, "--subresource=status", "--type=merge", "-p", patch)


def start(settings: Settings) -> None:
    make_cgroups()
    kubelet = daemon(settings)
    kubelet.start({"PATH": programs_path(settings)})

    def ready() -> bool:
        kubelet.must_live()
        return is_ready(settings)

    wait_for(f"node {NODE_NAME} to be Ready", ready, timeout_s=90, log=kubelet.log)

    def claimed() -> bool:
        if not has_devices(settings):
            claim_devices(settings)
        return has_devices(settings)

    wait_for("the node's extended resources", claimed, timeout_s=60, log=kubelet.log)
