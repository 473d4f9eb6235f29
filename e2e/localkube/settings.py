"""Folders, names and addresses of the cluster, and the versions that are pinned outside go.mod."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

E2E_DIR = Path(__file__).resolve().parent.parent
REPO_DIR = E2E_DIR.parent

NODE_NAME = "disagg-node"
NODE_BRIDGE = "disagg-node0"
NODE_IP = "172.30.0.1"
POD_BRIDGE = "disagg-pods0"
POD_GATEWAY = "10.244.0.1"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"
DNS_PORT = 10053
API_PORT = 6443
ETCD_PORT = 23790
ETCD_PEER_PORT = 23800
# One end of a veth pair stands in for the RDMA card: macvlan needs a parent link, and not every
# kernel has `dummy`.
NIC = "disagg-rdma0"
NIC_PEER = "disagg-rdma0p"
NFT_TABLE = "disagg-e2e"
# In every cgroup hierarchy, everything that runs below this group is a pod of this cluster, so
# `down` may end it.
CGROUP = "disagg-e2e"

KUBERNETES_VERSION = "v1.37.2"
PAUSE_IMAGE = "disagg.dev/pause:1"
BASE_IMAGE = "python:3.11-slim-bookworm"
KIND_CLUSTER = "disagg-e2e"

EXTENDED_RESOURCES = {"nvidia.com/gpu": 64, "rdma/hca_shared_devices_a": 64}
NODE_LABELS = {"nvidia.com/gpu.product": "DISAGG-CPU-SIM"}
MAX_PODS = 110


class ClusterError(RuntimeError):
    """Raised for errors that a person must read.

    The text tells what was waited for and shows the end of the log.
    """


class ProcessDied(ClusterError):
    """Raised when a process that was waited for is gone, so that further waiting cannot help."""


def _folder(variable: str, default: str) -> Path:
    configured = os.environ.get(variable, "")
    root = Path(configured) if configured.startswith("/") else Path.home() / default
    return root / "disagg"


@dataclass(frozen=True)
class Settings:
    """The folders in use. The cache outlives `down`; the state does not."""

    cache: Path
    state: Path

    @classmethod
    def from_env(cls) -> Settings:
        return cls(
            cache=_folder("XDG_CACHE_HOME", ".cache") / "e2e", state=_folder("XDG_STATE_HOME", ".local/state") / "e2e"
        )

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pids(self) -> Path:
        return self.state / "pids"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def configs(self) -> Path:
        return self.state / "config"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "admin.kubeconfig"

    @property
    def kubelet_root(self) -> Path:
        return self.state / "kubelet"

    @property
    def containerd_root(self) -> Path:
        # This is in the cache, so that images outlive `down` and the next `up` need not build them
        # again.
        return self.cache / "containerd"

    @property
    def buildkit_root(self) -> Path:
        return self.cache / "buildkit"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "run" / "containerd.sock"

    @property
    def buildkit_socket(self) -> Path:
        return self.state / "run" / "buildkitd.sock"

    def built_images(self, mode: str) -> Path:
        """Return the folder of the notes on what each image was built from.

        They are kept as long as the images: containerd's store outlives `down`, kind's does not.
        """
        return (self.cache if mode == "local" else self.state) / "images"

    @property
    def cni_conf(self) -> Path:
        return self.state / "cni" / "net.d"

    @property
    def mode_file(self) -> Path:
        return self.state / "mode"

    @property
    def own_kubeconfigs(self) -> tuple[Path, Path]:
        return (self.kubeconfig, self.state / "kind.kubeconfig")

    def make_folders(self) -> None:
        for folder in (self.cache, self.logs, self.pids, self.pki, self.configs, self.cni_conf, self.state / "run"):
            folder.mkdir(parents=True, exist_ok=True)
        # Tokens and keys are stored in it.
        self.state.chmod(0o700)
        longest = str(self.kubelet_root / "pod-resources" / "kubelet.sock")
        if len(longest) > 100:
            raise ClusterError(f"the state folder's path is too long for a Unix socket: {longest}; set XDG_STATE_HOME")


def external_kubeconfig(settings: Settings) -> Path | None:
    """Return the kubeconfig of a cluster that the user chose, or None.

    A kubeconfig that `env` printed is our own and does not count.
    """
    chosen = os.environ.get("DISAGG_USE_KUBECONFIG") or os.environ.get("KUBECONFIG") or ""
    if not chosen:
        return None
    path = Path(chosen.split(os.pathsep)[0]).expanduser()
    own = {str(candidate) for candidate in settings.own_kubeconfigs}
    return None if str(path) in own else path
