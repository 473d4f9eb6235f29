"""A real kube-apiserver with etcd, on free ports, for one test session.

There is no kubelet and no controller, so nothing answers for pods.

The programs are those of the local test cluster: `e2e/cluster build` builds them. A missing one
fails the tests by name.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.ports import free_port

REPO = Path(__file__).resolve().parents[2]
TOKEN = "admin-token-of-a-throw-away-server"
LIMITED_TOKEN = "limited-token-of-a-throw-away-server"
LIMITED_USER = "limited"
_START_TIMEOUT_S = 60.0


def program_path(name: str) -> str:
    """Return the path of a program, found by PATH or by `e2e/cluster env`.

    If it is missing, the test fails with its name.
    """
    found = shutil.which(name)
    if found is None:
        env = subprocess.run(
            [sys.executable, str(REPO / "e2e/cluster"), "env"], capture_output=True, text=True, timeout=60, check=False
        ).stdout
        paths = [line.removeprefix("export PATH=") for line in env.splitlines() if line.startswith("export PATH=")]
        found = shutil.which(name, path=paths[0]) if paths else None
    if found is None:
        pytest.fail(f"{name} is missing: run `e2e/cluster build` to build it")
    return found


@dataclass(frozen=True)
class ApiServer:
    """A running API server.

    `kubeconfig` has full rights; `limited_kubeconfig` (user LIMITED_USER) has none until a test
    grants some.
    """

    url: str
    kubeconfig: Path
    limited_kubeconfig: Path
    audit_log: Path

    def audited(self) -> list[dict[str, Any]]:
        """Return the audit log, but for a line that is just being written."""
        *lines, _ = self.audit_log.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def forbidden(self, user: str) -> list[str]:
        """Return the requests that were refused to `user`, as "verb path"."""
        refused = [
            e
            for e in self.audited()
            if e["user"].get("username") == user and e.get("responseStatus", {}).get("code") == 403
        ]
        return sorted({f"{e['verb']} {e['requestURI'].partition('?')[0]}" for e in refused})


def _certificate(folder: Path) -> None:
    config = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", config, "-keyout", str(folder / "tls.key"),
         "-out", str(folder / "tls.crt")],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip


def _etcd(folder: Path, client: int, peer: int) -> list[str]:
    url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    return [
        program_path("etcd"), f"--data-dir={folder}/etcd", "--name=t", f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}", f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=t={peer_url}", "--unsafe-no-fsync", "--log-level=error",
    ]  # fmt: skip


def _apiserver(folder: Path, port: int, etcd: int) -> list[str]:
    return [
        program_path("kube-apiserver"), "--bind-address=127.0.0.1", f"--secure-port={port}",
        f"--etcd-servers=http://127.0.0.1:{etcd}", "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=RBAC", f"--token-auth-file={folder}/tokens.csv",
        f"--tls-cert-file={folder}/tls.crt", f"--tls-private-key-file={folder}/tls.key",
        "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={folder}/tls.crt",
        f"--service-account-signing-key-file={folder}/tls.key", "--disable-admission-plugins=ServiceAccount",
        f"--audit-policy-file={folder}/audit.yaml", f"--audit-log-path={folder}/audit.log", "--audit-log-mode=blocking",
        f"--advertise-address={_own_address()}", "--endpoint-reconciler-type=none",
    ]  # fmt: skip


def _own_address() -> str:
    """Return an address to advertise.

    The API server refuses loopback addresses, and nothing connects to this one.
    """
    return str(ipaddress.ip_address("192.0.2.1"))


def _write_files(folder: Path, port: int) -> Path:
    _certificate(folder)
    (folder / "tokens.csv").write_text(
        f'{TOKEN},admin,admin,"system:masters"\n{LIMITED_TOKEN},{LIMITED_USER},{LIMITED_USER}\n'
    )
    policy = {
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    }  # fmt: skip
    (folder / "audit.yaml").write_text(json.dumps(policy))
    _kubeconfig(folder, "limited.kubeconfig", port, LIMITED_TOKEN)
    return _kubeconfig(folder, "kubeconfig", port, TOKEN)


def _kubeconfig(folder: Path, name: str, port: int, token: str) -> Path:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(folder / "tls.crt")}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "t",
        "clusters": [{"name": "t", "cluster": cluster}], "users": [{"name": "t", "user": {"token": token}}],
        "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
    }  # fmt: skip
    path = folder / name
    path.write_text(json.dumps(config))
    return path


def _wait_ready(url: str, ca: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    context = ssl.create_default_context(cafile=str(ca))
    request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
    ends_at = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < ends_at:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=2, context=context) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"kube-apiserver did not become ready:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


class Machine:
    """The process of an API server, which a test may kill and start again."""

    def __init__(self, folder: Path, port: int, etcd: int) -> None:
        self._folder = folder
        self._command = _apiserver(folder, port, etcd)
        self._url = f"https://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._process = _run(self._folder, "apiserver", self._command)
        _wait_ready(self._url, self._folder / "tls.crt", self._process, self._folder / "apiserver.log")

    def kill(self) -> None:
        """End it as a machine that loses power does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None:
            _stop(self._process)


class Store:
    """The process of etcd, whose data a test may put aside, and bring back as a backup.

    It is stopped for that: its folder is then all that there is.
    """

    def __init__(self, folder: Path, client: int, peer: int) -> None:
        self._folder = folder
        self._command = _etcd(folder, client, peer)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = _run(self._folder, "etcd", self._command)

    def stop(self) -> None:
        if self._process is not None:
            _stop(self._process)

    def back_up(self) -> None:
        shutil.copytree(self._folder / "etcd", self._folder / "backup")

    def restore(self) -> None:
        shutil.rmtree(self._folder / "etcd")
        shutil.copytree(self._folder / "backup", self._folder / "etcd")


def _run(folder: Path, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    with open(folder / f"{name}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)


@contextlib.contextmanager
def restorable_api_server(folder: Path) -> Iterator[tuple[ApiServer, Machine, Store]]:
    """Run etcd and kube-apiserver in `folder`; both are gone afterwards."""
    port, client, peer = free_port(), free_port(), free_port()
    kubeconfig = _write_files(folder, port)
    machine, store = Machine(folder, port, client), Store(folder, client, peer)
    with contextlib.ExitStack() as stack:
        stack.callback(store.stop)
        store.start()
        stack.callback(machine.stop)
        machine.start()
        audit_log, limited = folder / "audit.log", folder / "limited.kubeconfig"
        yield ApiServer(f"https://127.0.0.1:{port}", kubeconfig, limited, audit_log), machine, store


@contextlib.contextmanager
def mortal_api_server(folder: Path) -> Iterator[tuple[ApiServer, Machine]]:
    """Run etcd and kube-apiserver in `folder`; both are gone afterwards."""
    with restorable_api_server(folder) as (running, machine, _):
        yield running, machine


@contextlib.contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """Run etcd and kube-apiserver in `folder`; both are gone afterwards."""
    with mortal_api_server(folder) as (running, _):
        yield running
