"""The cluster where a Docker engine runs: kind.

Multus and a second network are added to its node by hand.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from localkube import addons, gobuild
from localkube.proc import write_atomically
from localkube.settings import (
    E2E_DIR,
    EXTENDED_RESOURCES,
    KIND_CLUSTER,
    NIC,
    NIC_PEER,
    NODE_LABELS,
    ClusterError,
    Settings,
)
from localkube.shell import clean_env, run, say, wait_for

_NODE = f"{KIND_CLUSTER}-control-plane"
_CREATE_TIMEOUT_S = 600


def engine_answers() -> bool:
    """Return whether the Docker engine answers; a client alone is not enough."""
    if shutil.which("docker") is None:
        return False
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def kubeconfig(settings: Settings) -> Path:
    return settings.own_kubeconfigs[1]


def build_programs(settings: Settings) -> None:
    gobuild.build(settings, gobuild.KIND)
    gobuild.build(settings, gobuild.CLUSTER, gobuild.KIND_PROGRAMS)


def _kind(settings: Settings, *words: str, timeout_s: float = 120, check: bool = True) -> str:
    return run([gobuild.program(settings, "bin/kind"), *words], timeout_s=timeout_s, check=check).stdout


def kubectl(settings: Settings, *words: str, stdin: str | None = None, timeout_s: float = 60) -> str:
    argv: list[str | Path] = [gobuild.program(settings, "bin/kubectl"), f"--kubeconfig={kubeconfig(settings)}", *words]
    return run(argv, stdin=stdin, timeout_s=timeout_s, env=clean_env()).stdout


def in_node(*words: str, stdin: str | None = None, check: bool = True) -> str:
    return run(["docker", "exec", "-i", _NODE, *words], stdin=stdin, check=check).stdout


def exists(settings: Settings) -> bool:
    return KIND_CLUSTER in _kind(settings, "get", "clusters", check=False).split()


def _node_runs() -> bool:
    done = run(["docker", "inspect", "--format", "{{.State.Running}}", _NODE], check=False)
    return done.stdout.strip() == "true"


def _create(settings: Settings) -> None:
    say("creating a kind cluster")
    config = E2E_DIR / "kind" / "config.json"
    words = ("create", "cluster", "--name", KIND_CLUSTER, "--config", str(config), "--wait", "300s")
    _kind(settings, *words, "--kubeconfig", str(kubeconfig(settings)), timeout_s=_CREATE_TIMEOUT_S)


def _second_network() -> None:
    """Create a veth pair in the node; its end has the name of the link that macvlan attachments
    use.
    """
    if in_node("ip", "-o", "link", "show", NIC, check=False).strip():
        return
    in_node("ip", "link", "add", NIC, "type", "veth", "peer", "name", NIC_PEER)
    for link in (NIC, NIC_PEER):
        in_node("ip", "link", "set", link, "up")


def _copy_plugins(settings: Settings) -> None:
    for name in gobuild.KIND_PROGRAMS:
        if name.startswith("cni/"):
            source = gobuild.program(settings, name)
            run(["docker", "cp", str(source), f"{_NODE}:/opt/cni/bin/{source.name}"], timeout_s=120)


def _install_multus(settings: Settings) -> None:
    """Install Multus in front of kind's own network, with a token that outlives the cluster."""
    subject = {"kind": "ServiceAccount", "name": "multus", "namespace": "kube-system"}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "multus", "namespace": "kube-system"}}
    items = [
        addons.attachment_crd(),
        account,
        *addons.cluster_role("disagg-e2e-multus", addons.multus_rules(), subject),
    ]
    kubectl(settings, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=addons.as_list(items))
    token = kubectl(settings, "create", "token", "multus", "-n", "kube-system", "--duration=8760h").strip()
    cluster = {"server": "https://127.0.0.1:6443", "certificate-authority": "/etc/kubernetes/pki/ca.crt"}
    access = {
        "apiVersion": "v1", "kind": "Config", "current-context": "multus",
        "clusters": [{"name": "kind", "cluster": cluster}],
        "users": [{"name": "multus", "user": {"token": token}}],
        "contexts": [{"name": "multus", "context": {"cluster": "kind", "user": "multus"}}],
    }  # fmt: skip
    in_node("sh", "-c", "umask 077; cat > /etc/cni/multus.kubeconfig", stdin=json.dumps(access))
    primary = json.loads(in_node("cat", "/etc/cni/net.d/10-kindnet.conflist"))
    conf = {
        "cniVersion": primary["cniVersion"], "name": "multus", "type": "multus",
        "kubeconfig": "/etc/cni/multus.kubeconfig", "binDir": "/opt/cni/bin",
        "capabilities": {"portMappings": True}, "delegates": [primary],
    }  # fmt: skip
    # This file is written last: from here on, new pods go through Multus.
    in_node("sh", "-c", "cat > /etc/cni/net.d/00-multus.conf.part", stdin=json.dumps(conf))
    in_node("mv", "/etc/cni/net.d/00-multus.conf.part", "/etc/cni/net.d/00-multus.conf")


def _claim_devices(settings: Settings) -> None:
    capacity = {name: str(count) for name, count in EXTENDED_RESOURCES.items()}
    patch = json.dumps({"status": {"capacity": capacity, "allocatable": capacity}})
    kubectl(settings, "patch", "node", _NODE, "--subresource=status", "--type=merge", "-p", patch)
    labels = [f"{key}={value}" for key, value in NODE_LABELS.items()]
    kubectl(settings, "label", "node", _NODE, "--overwrite", *labels)


def _answers(settings: Settings) -> bool:
    return kubectl(settings, "get", "--raw", "/readyz").strip() == "ok"


def up(settings: Settings) -> None:
    settings.make_folders()
    build_programs(settings)
    if exists(settings) and not _node_runs():
        run(["docker", "start", _NODE], timeout_s=60)
    if not exists(settings):
        _create(settings)
    write_atomically(kubeconfig(settings), _kind(settings, "get", "kubeconfig", "--name", KIND_CLUSTER))
    settings.mode_file.write_text("kind")
    wait_for("kind's API server to be ready", lambda: _answers(settings), timeout_s=180)
    _second_network()
    _copy_plugins(settings)
    _install_multus(settings)
    _claim_devices(settings)
    kubectl(settings, "wait", "--for=condition=Ready", f"node/{_NODE}", "--timeout=120s", timeout_s=150)
    say("the cluster is up")


def down(settings: Settings) -> None:
    if not settings.state.exists():
        return
    if not engine_answers():
        raise ClusterError("the cluster is kind's, and the Docker engine that holds it does not answer")
    build_programs(settings)
    _kind(settings, "delete", "cluster", "--name", KIND_CLUSTER, timeout_s=180)
    shutil.rmtree(settings.state)


def status(settings: Settings) -> list[tuple[str, str, str]]:
    runs = engine_answers() and _node_runs()
    rows = [("kind node", "-", "running" if runs else "stopped")]
    try:
        healthy = runs and _answers(settings)
    except ClusterError:
        healthy = False
    return [*rows, ("API server", "-", "healthy" if healthy else "unhealthy")]


def load_image(settings: Settings, name: str) -> None:
    _kind(settings, "load", "docker-image", name, "--name", KIND_CLUSTER, timeout_s=900)


def load_archive(settings: Settings, path: Path) -> None:
    _kind(settings, "load", "image-archive", str(path), "--name", KIND_CLUSTER, timeout_s=900)
