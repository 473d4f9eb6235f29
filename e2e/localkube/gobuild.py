"""The cluster's programs, built from pinned Go modules into a cache folder named after the pins."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localkube.hostpkgs import with_sbin
from localkube.settings import E2E_DIR, KUBERNETES_VERSION, ClusterError, Settings
from localkube.shell import run_logged, say

_CNI = "github.com/containernetworking/plugins/plugins"
_MAJOR, _MINOR = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]


@dataclass(frozen=True)
class Group:
    """Programs that share one go.mod, and hence one build: common packages are compiled once."""

    name: str
    """The name of the group and of its folder in gomods."""
    packages: dict[str, str]  # file in the cache -> Go package
    cgo: bool = False
    """Whether the programs need cgo."""
    tags: tuple[str, ...] = ()
    """The build tags."""
    unoptimised: tuple[str, ...] = ()  # patterns of packages that are large and do nothing here

    @property
    def folder(self) -> Path:
        return E2E_DIR / "gomods" / self.name


CLUSTER = Group(
    name="cluster",
    packages={
        "bin/pause": "./pause",
        "bin/coredns": "./coredns",
        "bin/etcd": "go.etcd.io/etcd/server/v3",
        **{
            f"bin/{name}": f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl",
            )
        },
        **{
            f"bin/{name}": f"github.com/containerd/containerd/v2/cmd/{name}"
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        },
        **{f"bin/{name}": f"github.com/moby/buildkit/cmd/{name}" for name in ("buildkitd", "buildctl")},
        "bin/helm": "helm.sh/helm/v3/cmd/helm",
        "cni/multus": "gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus",
        **{f"cni/{name}": f"{_CNI}/main/{name}" for name in ("bridge", "macvlan", "loopback")},
        **{f"cni/{name}": f"{_CNI}/ipam/{name}" for name in ("host-local", "static")},
        "cni/portmap": f"{_CNI}/meta/portmap",
    },
    tags=("no_btrfs", "no_devmapper", "no_zfs", "no_aufs", "no_tracing"),
)  # fmt: skip
RUNC = Group(name="runc", packages={"bin/runc": "github.com/opencontainers/runc"}, cgo=True, tags=("seccomp",))
KIND = Group(name="kind", packages={"bin/kind": "sigs.k8s.io/kind"})
# Prometheus can discover pods and nothing else. For the packages that both groups use, this go.mod
# has the versions of the cluster and the build has its flags, so neither group compiles them again.
METRICS = Group(
    name="metrics",
    packages={
        "bin/prometheus": "github.com/prometheus/prometheus/cmd/prometheus",
        "bin/prometheus-adapter": "./prometheus-adapter",
    },
    tags=(*CLUSTER.tags, "remove_all_sd", "enable_kubernetes_sd"),
    # They are Prometheus's description of its own API, and OTLP.
    unoptimised=("github.com/pb33f/...", "go.opentelemetry.io/collector/...", "github.com/open-telemetry/..."),
)
# It checks the chart. Its version of the Kubernetes API is older than the cluster's, because it
# needs kinds that the later ones lack: that takes a minute of one core, once.
SCORE = Group(name="score", packages={"bin/kube-score": "github.com/zegl/kube-score/cmd/kube-score"})
# It is an OpenTelemetry collector too. It knows databases that no test has.
JAEGER = Group(
    name="jaeger",
    packages={"bin/jaeger": "github.com/jaegertracing/jaeger/cmd/jaeger"},
    unoptimised=(
        "github.com/ClickHouse/...", "github.com/apache/...", "github.com/elastic/...", "github.com/IBM/...",
        "github.com/aws/...", "github.com/Azure/...", "cloud.google.com/...", "google.golang.org/genproto/...",
        "github.com/dgraph-io/...", "github.com/olivere/...", "github.com/prometheus/...", "k8s.io/...",
        "go.opentelemetry.io/...", "github.com/open-telemetry/...",
    ),
)  # fmt: skip
# Controllers of other projects, beside which ours are tried. Each has the versions that it was made
# for, and hence a build of its own.
LWS = Group(name="lws", packages={"bin/lws": "sigs.k8s.io/lws/cmd"})
KEDA = Group(
    name="keda",
    packages={
        "bin/keda": "github.com/kedacore/keda/v2/cmd/operator",
        "bin/keda-adapter": "github.com/kedacore/keda/v2/cmd/adapter",
    },
    # Clients of clouds, in which nothing is asked here.
    unoptimised=(
        "github.com/aws/...", "github.com/Azure/...", "cloud.google.com/...", "google.golang.org/api/...",
        "google.golang.org/genproto/...", "github.com/gophercloud/...", "go.temporal.io/...", "github.com/newrelic/...",
        "go.mongodb.org/...", "github.com/DataDog/...", "github.com/apache/...", "github.com/microsoft/...",
    ),
)  # fmt: skip
LOCAL_GROUPS = (CLUSTER, RUNC)
# What `cluster build` knows; a cluster needs only the first ones.
NAMED_GROUPS = (*LOCAL_GROUPS, SCORE, JAEGER)
# With a Docker engine, kind's node brings Kubernetes; these are the programs that it lacks.
KIND_PROGRAMS = (
    "bin/kubectl", "bin/helm", "cni/multus", "cni/macvlan", "cni/bridge", "cni/host-local", "cni/static",
)  # fmt: skip

# There are no symbol tables and no DWARF: that saves a fifth of compiling and linking, and nobody
# debugs these programs.
_NO_DWARF = "-dwarf=false"
_COMPILE = ("-trimpath", "-buildvcs=false", "-mod=readonly", f"-gcflags=all={_NO_DWARF}")
_LINK = " ".join(
    ["-s", "-w"]
    + [
        f"-X k8s.io/component-base/version.{key}={value}"
        for key, value in (("gitVersion", KUBERNETES_VERSION), ("gitMajor", _MAJOR), ("gitMinor", _MINOR))
    ]
)
BUILD_TIMEOUT_S = 45 * 60


def _compile_flags(group: Group) -> list[str]:
    return [*_COMPILE, *(f"-gcflags={pattern}={_NO_DWARF} -N -l" for pattern in group.unoptimised)]


def pins_key(group: Group) -> str:
    """Return a key that changes with everything that determines the programs.

    These are the pins, our own sources, the flags and the architecture of the machine.
    """
    digest = hashlib.sha256()
    for path in sorted(group.folder.rglob("*")):
        if path.is_file() and (path.name in ("go.mod", "go.sum") or path.suffix == ".go"):
            digest.update(f"{path.relative_to(group.folder)}\0".encode() + path.read_bytes() + b"\0")
    flags = [*_compile_flags(group), _LINK, *group.tags, str(group.cgo), platform.machine()]
    digest.update("\0".join(flags).encode())
    return digest.hexdigest()[:16]


def programs_dir(settings: Settings, group: Group) -> Path:
    return settings.cache / "programs" / f"{group.name}-{pins_key(group)}"


def program(settings: Settings, name: str) -> Path:
    """Return the path of one program, such as `bin/kubectl`."""
    for group in (*NAMED_GROUPS, KIND, METRICS, LWS, KEDA):
        if name in group.packages:
            return programs_dir(settings, group) / name
    raise KeyError(name)


def programs_path(settings: Settings) -> str:
    """Return the PATH for the cluster's own processes, with all built programs first."""
    folders = [str(programs_dir(settings, group) / "bin") for group in LOCAL_GROUPS]
    return ":".join([*folders, with_sbin()])


def _sizes(folder: Path) -> dict[str, int]:
    try:
        recorded = json.loads((folder / "stamp.json").read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): int(size) for name, size in recorded.items()}


def missing(settings: Settings, group: Group, names: Sequence[str] | None = None) -> list[str]:
    """Return the programs that are missing or not whole.

    A killed build or a truncated file is recognized by a size that the stamp does not have.
    """
    folder = programs_dir(settings, group)
    sizes = _sizes(folder)

    def whole(name: str) -> bool:
        path = folder / name
        return name in sizes and path.is_file() and path.stat().st_size == sizes[name]

    return [name for name in (names or list(group.packages)) if not whole(name)]


def _go_env(group: Group) -> dict[str, str]:
    env = {**os.environ, "CGO_ENABLED": "1" if group.cgo else "0", "GOFLAGS": "", "GOWORK": "off", "PATH": with_sbin()}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if "GOGC" not in env and pages > 12 * 2**30:
        env["GOGC"] = "400"  # the compiler spends less time collecting where memory is plentiful
    return env


def _produced(package: str) -> str:
    """Return the file name that `go build -o FOLDER/` gives a program.

    It is the last part of the package's path that is not a version.
    """
    parts = [part for part in package.split("/") if part not in ("v2", "v3", "v4")]
    return parts[-1]


def build(settings: Settings, group: Group, names: Sequence[str] | None = None) -> None:
    """Build everything that is missing.

    One `go build` does all of it, so that nothing is compiled twice and every core is busy.
    """
    wanted = missing(settings, group, names)
    if not wanted:
        return
    go = shutil.which("go", path=f"{with_sbin()}:/usr/local/go/bin")
    if go is None:
        raise ClusterError("Go is needed to build the cluster's programs, and `go` is not on the PATH")
    folder = programs_dir(settings, group)
    part = folder / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    started_s = time.monotonic()
    reported: set[str] = set()
    last_line_s = [started_s]

    def report() -> None:
        now_s = time.monotonic()
        for name in wanted:
            if name not in reported and (part / _produced(group.packages[name])).exists():
                reported.add(name)
                say(f"[{len(reported)}/{len(wanted)}] built {Path(name).name} … {now_s - started_s:.0f} s")
                last_line_s[0] = now_s
        if now_s - last_line_s[0] > 20:
            say(f"[{len(reported)}/{len(wanted)}] compiling Go modules of `{group.name}` … {now_s - started_s:.0f} s")
            last_line_s[0] = now_s

    say(f"building {len(wanted)} programs of `{group.name}` from Go modules (kept in {folder})")
    argv = [go, "build", *_compile_flags(group), "-tags", ",".join(group.tags), "-ldflags", _LINK, "-o", f"{part}/"]
    argv += [group.packages[name] for name in wanted]
    log = settings.cache / "logs" / f"build-{group.name}.log"
    run_logged(argv, log, timeout_s=BUILD_TIMEOUT_S, env=_go_env(group), cwd=group.folder, poll=report)
    report()
    sizes = _sizes(folder)
    for name in wanted:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (part / _produced(group.packages[name])).replace(target)
        sizes[name] = target.stat().st_size
    stamp = folder / "stamp.json.part"
    stamp.write_text(json.dumps(sizes, indent=1))
    stamp.replace(folder / "stamp.json")
    shutil.rmtree(part, ignore_errors=True)
    say(f"built `{group.name}` in {time.monotonic() - started_s:.0f} s")
