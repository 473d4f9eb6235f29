"""The commands of `e2e/cluster`."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from localkube import gobuild, images, kindcluster, local, program_images
from localkube.settings import NIC, ClusterError, Settings, external_kubeconfig
from localkube.shell import locked, run, say

_LOCK_TIMEOUT_S = 45 * 60
_ON_DEMAND = frozenset(images.IMAGES) - frozenset(images.USUAL)
_NAMES_HELP = f"some of: {', '.join(images.IMAGES)}; default: all but {', '.join(sorted(_ON_DEMAND))}"


def mode_of(settings: Settings) -> str:
    """Return the kind of cluster that is meant: "external", "kind" or "local".

    It is the user's own, or else the one that is up, or else the one that `up` would create.
    """
    if external_kubeconfig(settings) is not None:
        return "external"
    if settings.mode_file.exists():
        return settings.mode_file.read_text().strip()
    return "kind" if kindcluster.engine_answers() else "local"


def _kubeconfig(settings: Settings, mode: str) -> Path:
    external = external_kubeconfig(settings)
    if external is not None:
        return external
    return kindcluster.kubeconfig(settings) if mode == "kind" else settings.kubeconfig


def check_external(path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ClusterError("`kubectl` is needed to reach the cluster of your kubeconfig, and it is not on the PATH")
    argv = [kubectl, f"--kubeconfig={path}", "--request-timeout=15s", "get", "--raw", "/readyz"]
    run(argv, timeout_s=30)
    say(f"the cluster of {path} answers")


def up(settings: Settings, names: Sequence[str]) -> None:
    """Bring the cluster up, and build these images into it."""
    mode = mode_of(settings)
    if mode == "external":
        check_external(_kubeconfig(settings, mode))
        return
    prepared = images.start_preparing(settings, mode, names) if names else None
    if mode == "kind":
        kindcluster.up(settings)
    else:
        local.up(settings)
    if prepared is not None:
        images.build_all(settings, mode, names, prepared)


def down(settings: Settings, purge: bool) -> None:
    mode = mode_of(settings)
    if mode == "external":
        say("the cluster is the user's own: nothing to take down")
    elif mode == "kind":
        kindcluster.down(settings)
    else:
        local.down(settings)
    if purge and settings.cache.exists():
        shutil.rmtree(settings.cache)
    say("the cluster is down")


def show_status(settings: Settings) -> int:
    mode = mode_of(settings)
    if mode == "external":
        check_external(_kubeconfig(settings, mode))
        return 0
    rows = kindcluster.status(settings) if mode == "kind" else local.status(settings)
    for name, pid, state in rows:
        print(f"{name:<26}{pid:>9}  {state}")
    return 0 if all(state in ("running", "healthy") for _, _, state in rows) else 1


def env_lines(settings: Settings) -> list[str]:
    mode = mode_of(settings)
    variables = {"KUBECONFIG": str(_kubeconfig(settings, mode)), "DISAGG_E2E_MODE": mode}
    if mode != "external":
        folders = [str(gobuild.programs_dir(settings, group) / "bin") for group in (gobuild.CLUSTER, gobuild.SCORE)]
        variables["PATH"] = os.pathsep.join([*folders, os.environ.get("PATH", "")])
        variables["DISAGG_E2E_NIC"] = NIC
        # The addresses of the cluster are on this machine, and a proxy could not reach them.
        no_proxy = [os.environ.get("NO_PROXY", ""), "172.30.0.0/16,10.244.0.0/16,10.96.0.0/16,127.0.0.1,localhost"]
        variables["NO_PROXY"] = variables["no_proxy"] = ",".join(dict.fromkeys(filter(None, no_proxy)))
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster", description="A Kubernetes cluster for tests and the demo.")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="bring the cluster up, or repair it; nothing is done when it is up")
    starting.add_argument("--images", action="store_true", help="also build and load the project's images")
    starting.add_argument(
        "--with",
        dest="more",
        action="append",
        default=[],
        choices=sorted(_ON_DEMAND),
        help="with --images: this image, too, which is built only when it is named",
    )
    stopping = commands.add_parser("down", help="stop everything and remove the state; built programs are kept")
    stopping.add_argument("--purge", action="store_true", help="remove built programs and images, too")
    commands.add_parser("status", help="list the cluster's parts; exits 1 unless all are well")
    commands.add_parser("env", help="print `export` lines for `eval`")
    building = commands.add_parser("images", help="build the project's images and load them into the cluster")
    building.add_argument("names", nargs="*", metavar="NAME", help=_NAMES_HELP)
    custom = commands.add_parser("image", help="build any Dockerfile into the cluster")
    custom.add_argument("--file", type=Path, required=True, help="the Dockerfile")
    custom.add_argument("--context", type=Path, required=True, help="the build's folder")
    custom.add_argument("--tag", required=True, help="the image's name")
    custom.add_argument("--wheels", type=Path, help="folder for the build context named `wheels`")
    custom.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    loading = commands.add_parser("load", help="load image archives (docker save, OCI) into the cluster")
    loading.add_argument("archives", nargs="+", type=Path)
    commands.add_parser(
        "monitoring", help="build Prometheus and prometheus-adapter as images and load them into the cluster"
    )
    commands.add_parser("autoscalers", help="the same for the controllers of LeaderWorkerSet and KEDA")
    programs = commands.add_parser("build", help="only build the local cluster's programs into the cache")
    programs.add_argument("names", nargs="*", metavar="NAME", help="such as etcd or kube-apiserver; default all")
    return parser


def _dispatch(settings: Settings, given: argparse.Namespace) -> int:
    if given.command == "status":
        return show_status(settings)
    if given.command == "env":
        print("\n".join(env_lines(settings)))
        return 0
    with locked(settings.state.with_name("e2e.lock"), timeout_s=_LOCK_TIMEOUT_S):
        if given.command == "up":
            up(settings, (*images.USUAL, *given.more) if given.images else ())
        elif given.command == "down":
            down(settings, given.purge)
        elif given.command == "images":
            images.build_all(settings, mode_of(settings), tuple(given.names))
        elif given.command == "image":
            images.build_custom(settings, mode_of(settings), given)
        elif given.command == "load":
            images.load(settings, mode_of(settings), given.archives)
        elif given.command == "monitoring":
            program_images.load(settings, mode_of(settings), gobuild.METRICS)
        elif given.command == "autoscalers":
            program_images.load(settings, mode_of(settings), gobuild.LWS, gobuild.KEDA)
        elif given.command == "build":
            local.build_programs(settings, tuple(given.names))
    return 0


def main(argv: list[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    try:
        return _dispatch(Settings.from_env(), given)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
