"""The cluster built from Go modules: bring it up, report its status, take it down."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from localkube import addons, control, gobuild, hostpkgs, network, node, pki, runtime
from localkube.proc import Daemon, recorded_pid, stop_recorded
from localkube.settings import ClusterError, Settings
from localkube.shell import run, say, wait_for

# The order in which `down` ends them: processes that would restart others or complain go first.
STOP_ORDER = (
    "kubelet", "kube-proxy", "coredns", "kube-scheduler", "kube-controller-manager", "buildkitd",
)  # fmt: skip
_CNI_STATE = Path("/var/lib/cni")


def daemons(settings: Settings) -> list[Daemon]:
    return [
        control.etcd(settings), control.apiserver(settings), control.controller_manager(settings),
        control.scheduler(settings), control.coredns(settings), control.proxy(settings),
        runtime.daemon(settings), node.daemon(settings),
    ]  # fmt: skip


def is_whole(settings: Settings) -> bool:
    """Return whether everything runs as it would be started now, and the node is ready and has its
    devices.
    """
    if not settings.kubeconfig.exists() or not network.is_whole():
        return False
    if not all(daemon.is_current() for daemon in daemons(settings)):
        return False
    try:
        return control.api_answers(settings) and node.is_ready(settings) and node.has_devices(settings)
    except ClusterError:
        return False


def require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("no Docker engine answers, and a cluster on this host itself needs root")


def build_programs(settings: Settings, names: Sequence[str] = ()) -> None:
    """Build the programs that the cache lacks.

    These are all of a cluster, or those with these file names (`etcd` for `bin/etcd`).
    """
    known = {Path(program).name: (group, program) for group in gobuild.NAMED_GROUPS for program in group.packages}
    packaged = {name: hostpkgs.FOR_TESTS[name] for name in names if name in hostpkgs.FOR_TESTS}
    unknown = [name for name in names if name not in known and name not in packaged]
    if unknown:
        raise ClusterError(f"no such program: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    hostpkgs.ensure(packaged)
    names = [name for name in names if name not in packaged]
    if packaged and not names:
        return
    names = names or [name for name, (group, _) in known.items() if group in gobuild.LOCAL_GROUPS]
    if any(known[name][0].cgo for name in names):
        hostpkgs.ensure(hostpkgs.FOR_CLUSTER)
    for group in gobuild.NAMED_GROUPS:
        wanted = [program for of, program in (known[name] for name in names) if of is group]
        if wanted:
            gobuild.build(settings, group, wanted)


def up(settings: Settings) -> None:
    require_root()
    build_programs(settings)
    if is_whole(settings):
        say("the cluster is up")
        return
    repairing = settings.kubeconfig.exists()
    try:
        _bring_up(settings)
    except ClusterError as error:
        if not repairing:
            raise
        say(f"repair failed, so the cluster is made anew ({str(error).splitlines()[0]})")
        down(settings)
        _bring_up(settings)
    say("the cluster is up")


def _bring_up(settings: Settings) -> None:
    settings.make_folders()
    if not (settings.state / "cni-state").exists():
        (settings.state / "cni-state").write_text("kept" if _CNI_STATE.exists() else "ours")
    say("starting the cluster")
    network.make(settings)
    pki.make(settings)
    for part in (runtime, control, node):
        part.write_configs(settings)
    runtime.start(settings)
    control.start_control_plane(settings)
    addons.apply(settings)
    node.start(settings)
    wait_for("the default service account", lambda: addons.default_account_exists(settings), timeout_s=60)
    settings.mode_file.write_text("local")


def unmount_below(folder: Path) -> None:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].replace("\\040", " ") for line in lines]
    for point in sorted((p for p in points if p.startswith(f"{folder}/")), key=len, reverse=True):
        run(["umount", "--lazy", point], check=False, timeout_s=20)


def _attempt(what: str, action: Callable[[], object], failures: list[str]) -> None:
    try:
        action()
    except (ClusterError, OSError) as error:
        failures.append(f"{what}: {error}")


def down(settings: Settings) -> None:
    """Stop and remove everything that `up` created.

    Each step runs even if another fails, and may run again without harm.
    """
    if not settings.state.exists():
        return
    if not settings.pids.is_dir():
        shutil.rmtree(settings.state)
        return
    require_root()
    failures: list[str] = []
    for name in STOP_ORDER:
        stop_recorded(settings.pids / f"{name}.json", grace_s=5)
    if recorded_pid(settings.pids / "containerd.json") is not None:
        _attempt("containers", lambda: runtime.end_tasks(settings), failures)
    for name in ("kube-apiserver", "etcd"):
        stop_recorded(settings.pids / f"{name}.json", grace_s=3)
    for pid_file in sorted(settings.pids.glob("*.json")):
        stop_recorded(pid_file, grace_s=5)
    _attempt("shims", lambda: node.end_shims(settings), failures)
    _attempt("cgroups", node.remove_cgroups, failures)
    _attempt("network", lambda: network.remove(settings), failures)
    _attempt("network namespaces", network.remove_namespaces, failures)
    _attempt("mounts", lambda: unmount_below(settings.state), failures)
    marker = settings.state / "cni-state"
    if marker.exists() and marker.read_text() == "ours":
        shutil.rmtree(_CNI_STATE, ignore_errors=True)
    _drop_log_links(settings)
    if failures:
        raise ClusterError("what could not be taken down:\n" + "\n".join(failures))
    shutil.rmtree(settings.state)


def _drop_log_links(settings: Settings) -> None:
    """Remove the links to the logs of containers.

    The kubelet creates them below /var/log/containers, wherever the logs themselves are.
    """
    folder = Path("/var/log/containers")
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_symlink() and str(path.readlink()).startswith(str(settings.state)):
            path.unlink(missing_ok=True)


def status(settings: Settings) -> list[tuple[str, str, str]]:
    """Return the name, the pid and the state of each part."""
    rows = []
    for daemon in daemons(settings):
        pid = daemon.pid()
        state = "running" if daemon.is_current() else "outdated" if pid else "stopped"
        rows.append((daemon.name, str(pid or "-"), state))
    if recorded_pid(settings.pids / "buildkitd.json"):
        rows.append(("buildkitd", str(recorded_pid(settings.pids / "buildkitd.json")), "running"))
    for name, probe in (
        ("API server", control.api_answers), ("node ready", node.is_ready), ("node devices", node.has_devices),
    ):  # fmt: skip
        try:
            healthy = settings.kubeconfig.exists() and probe(settings)
        except ClusterError:
            healthy = False
        rows.append((name, "-", "healthy" if healthy else "unhealthy"))
    rows.append(("network", "-", "healthy" if network.is_whole() else "unhealthy"))
    return rows
