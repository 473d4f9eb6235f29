"""The control plane of the local cluster.

It consists of etcd, the API server, the controllers, the scheduler, cluster DNS and kube-proxy.
"""

from __future__ import annotations

import json
from pathlib import Path

from localkube import pki
from localkube.gobuild import program, programs_path
from localkube.proc import Daemon, write_atomically
from localkube.settings import (
    API_PORT,
    DNS_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    NODE_IP,
    NODE_NAME,
    POD_CIDR,
    SERVICE_CIDR,
    Settings,
)
from localkube.shell import clean_env, run, wait_for


def etcd(settings: Settings) -> Daemon:
    client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PEER_PORT}"
    argv = (
        str(program(settings, "bin/etcd")), f"--data-dir={settings.state}/etcd", "--name=disagg",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=disagg={peer}",
        # A test cluster may lose its last writes with the machine; waiting for the disk would cost
        # time in every test.
        "--unsafe-no-fsync", "--log-level=warn", "--auto-compaction-retention=10m",
    )  # fmt: skip
    return Daemon("etcd", argv, settings)


def apiserver(settings: Settings) -> Daemon:
    folder = settings.pki
    argv = (
        str(program(settings, "bin/kube-apiserver")),
        f"--bind-address={NODE_IP}", f"--advertise-address={NODE_IP}", f"--secure-port={API_PORT}",
        f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}", f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
        f"--client-ca-file={folder}/ca.crt", f"--token-auth-file={folder}/tokens.csv",
        f"--tls-cert-file={folder}/apiserver.crt", f"--tls-private-key-file={folder}/apiserver.key",
        f"--kubelet-client-certificate={folder}/apiserver-kubelet.crt",
        f"--kubelet-client-key={folder}/apiserver-kubelet.key", "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={folder}/sa.pub", f"--service-account-signing-key-file={folder}/sa.key",
        # The aggregation layer is for metrics adapters that serve an API of their own.
        f"--requestheader-client-ca-file={folder}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client", "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={folder}/front-proxy.crt", f"--proxy-client-key-file={folder}/front-proxy.key",
    )  # fmt: skip
    return Daemon("kube-apiserver", argv, settings)


def controller_manager(settings: Settings) -> Daemon:
    folder, config = settings.pki, pki.kubeconfig_of(settings, "controller-manager")
    argv = (
        str(program(settings, "bin/kube-controller-manager")), f"--kubeconfig={config}", "--bind-address=127.0.0.1",
        f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}", "--leader-elect=false",
        f"--root-ca-file={folder}/ca.crt", f"--service-account-private-key-file={folder}/sa.key",
        "--use-service-account-credentials=true", f"--cluster-signing-cert-file={folder}/ca.crt",
        f"--cluster-signing-key-file={folder}/ca.key", "--allocate-node-cidrs=false",
        "--horizontal-pod-autoscaler-sync-period=5s",
    )  # fmt: skip
    return Daemon("kube-controller-manager", argv, settings)


def scheduler(settings: Settings) -> Daemon:
    config = pki.kubeconfig_of(settings, "scheduler")
    argv = (
        str(program(settings, "bin/kube-scheduler")), f"--kubeconfig={config}", "--leader-elect=false",
        f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}", "--bind-address=127.0.0.1",
    )  # fmt: skip
    return Daemon("kube-scheduler", argv, settings)


def proxy(settings: Settings) -> Daemon:
    config = settings.configs / "kube-proxy.json"
    return Daemon("kube-proxy", (str(program(settings, "bin/kube-proxy")), f"--config={config}"), settings)


def coredns(settings: Settings) -> Daemon:
    argv = (str(program(settings, "bin/coredns")), "-conf", str(settings.configs / "Corefile"))
    return Daemon("coredns", argv, settings)


def _proxy_config(settings: Settings) -> str:
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": POD_CIDR,
            "hostnameOverride": NODE_NAME,
            "bindAddress": NODE_IP,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "oomScoreAdj": 0,
            # The limits of the connection table are left to the host.
            "conntrack": {"maxPerCore": 0, "min": 0},
            "nftables": {"syncPeriod": "30s", "minSyncPeriod": "100ms"},
            "clientConnection": {"kubeconfig": str(pki.kubeconfig_of(settings, "proxy"))},
        }
    )


def _corefile(settings: Settings) -> str:
    # Answers live for a short time: a test that replaces a pod must not wait for a name to expire.
    return f"""
cluster.local:{DNS_PORT} in-addr.arpa:{DNS_PORT} {{
    bind {NODE_IP}
    errors
    health 127.0.0.1:10054
    ready 127.0.0.1:10055
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {pki.kubeconfig_of(settings, "coredns")}
        pods insecure
        ttl 2
    }}
}}
.:{DNS_PORT} {{
    bind {NODE_IP}
    errors
    cache 30
    forward . /etc/resolv.conf
}}
"""


def write_configs(settings: Settings) -> None:
    write_atomically(settings.configs / "kube-proxy.json", _proxy_config(settings))
    write_atomically(settings.configs / "Corefile", _corefile(settings))


def kubectl(
    settings: Settings, *words: str, stdin: str | None = None, check: bool = True, timeout_s: float = 30
) -> str:
    argv: list[str | Path] = [program(settings, "bin/kubectl"), f"--kubeconfig={settings.kubeconfig}"]
    argv += ["--request-timeout=15s", *words]
    return run(argv, stdin=stdin, check=check, timeout_s=timeout_s, env=clean_env()).stdout


def api_answers(settings: Settings) -> bool:
    return kubectl(settings, "get", "--raw", "/readyz", timeout_s=20).strip() == "ok"


def start_control_plane(settings: Settings) -> None:
    etcd(settings).start()
    api = apiserver(settings)
    api.start()

    def answers() -> bool:
        etcd(settings).must_live()
        api.must_live()
        return api_answers(settings)

    wait_for("the API server to be ready", answers, timeout_s=90, log=api.log)
    for part in (controller_manager(settings), scheduler(settings), coredns(settings), proxy(settings)):
        part.start({"PATH": programs_path(settings)})
