"""The container runtime: the configuration of containerd, CNI, the pause image, and cleaning up."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from localkube import oci, pki
from localkube.gobuild import program, programs_path
from localkube.proc import Daemon, stop_recorded, write_atomically
from localkube.settings import PAUSE_IMAGE, POD_BRIDGE, POD_CIDR, ClusterError, Settings
from localkube.shell import run, say, wait_for

NAMESPACE = "k8s.io"


def _config(settings: Settings) -> str:
    runc = program(settings, "bin/runc")
    cni = program(settings, "cni/bridge").parent
    cri = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""version = 3
root = '{settings.containerd_root}'
state = '{settings.state}/run/containerd'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.erofs']

[grpc]
  address = '{settings.containerd_socket}'

[plugins.'io.containerd.internal.v1.opt']
  path = '{settings.state}/opt'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE_IMAGE}'

[{cri}]
  # Without CAP_SYS_RESOURCE no process may lower its score, and every sandbox would die in its first step.
  restrict_oom_score_adj = true
  [{cri}.cni]
    bin_dirs = ['{cni}']
    conf_dir = '{settings.cni_conf}'
  [{cri}.containerd]
    default_runtime_name = 'runc'
  [{cri}.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [{cri}.containerd.runtimes.runc.options]
      BinaryName = '{runc}'
      SystemdCgroup = false
"""


def _multus_conf(settings: Settings) -> str:
    """Return the configuration of Multus, which is the network that the kubelet knows.

    It calls the bridge for eth0 and adds the networks that a pod's annotation asks for.
    """
    ipam = {"type": "host-local", "dataDir": str(settings.state / "cni" / "ipam"), "ranges": [[{"subnet": POD_CIDR}]]}
    bridge = {
        "type": "bridge", "bridge": POD_BRIDGE, "isGateway": True, "hairpinMode": True,
        "ipam": {**ipam, "routes": [{"dst": "0.0.0.0/0"}]},
    }  # fmt: skip
    portmap = {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": True}}
    conf = {
        "cniVersion": "1.0.0",
        "name": "multus",
        "type": "multus",
        "kubeconfig": str(pki.kubeconfig_of(settings, "multus")),
        "cniDir": str(settings.state / "cni" / "multus"),
        "binDir": str(program(settings, "cni/bridge").parent),
        "capabilities": {"portMappings": True},
        "delegates": [{"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, portmap]}],
    }
    return json.dumps(conf, indent=1)


def write_configs(settings: Settings) -> None:
    write_atomically(settings.configs / "containerd.toml", _config(settings))
    write_atomically(settings.cni_conf / "00-multus.conf", _multus_conf(settings))


def daemon(settings: Settings) -> Daemon:
    argv = (str(program(settings, "bin/containerd")), "--config", str(settings.configs / "containerd.toml"))
    return Daemon("containerd", argv, settings)


def ctr(settings: Settings, *words: str, check: bool = True, timeout_s: float = 60, namespace: str = NAMESPACE) -> str:
    tool = program(settings, "bin/ctr")
    argv: list[str | Path] = [tool, "--address", settings.containerd_socket, "--namespace", namespace, *words]
    return run(argv, check=check, timeout_s=timeout_s).stdout


def has_image(settings: Settings, name: str) -> bool:
    full = name if "/" in name else f"docker.io/library/{name}"
    return full in ctr(settings, "images", "list", "--quiet").split()


def prune_images(settings: Settings) -> None:
    """Remove images that a rebuild has left without a name.

    The image collection of the kubelet is off, and the image of a worker has gigabytes.
    """
    rows = [line.split() for line in ctr(settings, "images", "list").splitlines()[1:]]
    digests = {row[0]: row[2] for row in rows if len(row) > 2}
    named = {digest for name, digest in digests.items() if not name.startswith("sha256:")}
    nameless = [name for name, digest in digests.items() if name.startswith("sha256:") and digest not in named]
    if nameless:
        ctr(settings, "images", "delete", *nameless, check=False, timeout_s=120)


def start(settings: Settings) -> None:
    """Start containerd.

    If the store has lost files since it was last used, it is emptied, and images are built again.
    """
    _start_daemon(settings)
    lost = _lost_blobs(settings)
    if lost:
        if ctr(settings, "tasks", "list", "--quiet").split():
            raise ClusterError(f"the image store lacks {len(lost)} of its files while containers run on it")
        say(f"the image store lacks {len(lost)} of its files: it is emptied, and images are built again")
        _empty_store(settings)
        _start_daemon(settings)
    if not has_image(settings, PAUSE_IMAGE):
        _load_pause(settings)


def _lost_blobs(settings: Settings) -> set[str]:
    """Return the blobs that containerd's database lists and its folder lacks.

    That happens if a cache was copied or only half written, and every build would fail because of
    it.
    """
    namespaces = ctr(settings, "namespaces", "list", "--quiet").split()
    known = {
        blob for name in namespaces for blob in ctr(settings, "content", "list", "--quiet", namespace=name).split()
    }
    folder = settings.containerd_root / "io.containerd.content.v1.content" / "blobs"
    return {blob for blob in known if not folder.joinpath(*blob.split(":", 1)).is_file()}


def _empty_store(settings: Settings) -> None:
    for name in ("buildkitd", "containerd"):
        stop_recorded(settings.pids / f"{name}.json")
    # The cache of BuildKit and the notes on built images refer to the same files.
    for folder in (settings.containerd_root, settings.buildkit_root, settings.built_images("local")):
        shutil.rmtree(folder, ignore_errors=True)


def _start_daemon(settings: Settings) -> None:
    containerd = daemon(settings)
    containerd.start({"PATH": programs_path(settings)})

    def answers() -> bool:
        containerd.must_live()
        return bool(ctr(settings, "version", timeout_s=10))

    wait_for("containerd to answer", answers, timeout_s=60, log=containerd.log)


def _load_pause(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(dir=settings.state) as folder:
        config: dict[str, object] = {"Entrypoint": ["/pause"], "User": "65535:65535"}
        archive = oci.write_archive(Path(folder), {"pause": program(settings, "bin/pause")}, config, name=PAUSE_IMAGE)
        ctr(settings, "images", "import", str(archive))


def end_tasks(settings: Settings) -> None:
    """Remove every container that the running containerd still knows; images stay."""
    tasks = ctr(settings, "tasks", "list", "--quiet", check=False).split()
    if tasks:
        ctr(settings, "tasks", "delete", "--force", *tasks, check=False, timeout_s=120)
    containers = ctr(settings, "containers", "list", "--quiet", check=False).split()
    if containers:
        ctr(settings, "containers", "delete", *containers, check=False, timeout_s=120)
