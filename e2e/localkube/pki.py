"""Keys, certificates, tokens and kubeconfigs of the local cluster, created with openssl."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

from localkube.proc import write_atomically
from localkube.settings import API_PORT, API_SERVICE_IP, NODE_IP, NODE_NAME, Settings
from localkube.shell import run

# User -> (name that the API server sees, groups). With tokens, they need no certificates.
USERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("kubernetes-admin", ("system:masters",)),
    "kubelet": (f"system:node:{NODE_NAME}", ("system:nodes",)),
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    "proxy": ("system:kube-proxy", ()),
    "coredns": ("disagg:coredns", ()),
    "multus": ("disagg:multus", ()),
}
_DAYS = "3650"


def _key_args() -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", _DAYS]


def _authority(folder: Path, name: str) -> None:
    if (folder / f"{name}.crt").exists():
        return
    run(
        ["openssl", "req", "-x509", *_key_args(), "-subj", f"/CN=disagg-e2e-{name}",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
         "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"],
    )  # fmt: skip


def _certificate(folder: Path, name: str, authority: str, subject: str, names: str, usage: str) -> None:
    if (folder / f"{name}.crt").exists():
        return
    argv: list[str | Path] = ["openssl", "req", "-x509", *_key_args()]
    argv += ["-CA", folder / f"{authority}.crt", "-CAkey", folder / f"{authority}.key", "-subj", subject]
    argv += ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"extendedKeyUsage={usage}"]
    argv += ["-addext", "keyUsage=critical,digitalSignature"]
    if names:
        argv += ["-addext", f"subjectAltName={names}"]
    # The certificate is written last, and gets its final name only when it is whole: a rerun looks
    # for its existence.
    run([*argv, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt.part"])
    (folder / f"{name}.crt.part").replace(folder / f"{name}.crt")


def make(settings: Settings) -> None:
    """Create everything that does not exist yet.

    Existing files stay, so that a repaired cluster keeps its identity.
    """
    folder = settings.pki
    for authority in ("ca", "front-proxy-ca"):
        _authority(folder, authority)
    names = [f"IP:{NODE_IP}", "IP:127.0.0.1", f"IP:{API_SERVICE_IP}", "DNS:localhost"]
    service = ["kubernetes", "default", "svc", "cluster", "local"]
    names += [f"DNS:{'.'.join(service[:count])}" for count in range(1, len(service) + 1)]
    _certificate(folder, "apiserver", "ca", "/CN=kube-apiserver", ",".join(names), "serverAuth")
    _certificate(
        folder, "apiserver-kubelet", "ca", "/O=system:masters/CN=kube-apiserver-kubelet-client", "", "clientAuth"
    )
    _certificate(folder, "front-proxy", "front-proxy-ca", "/CN=front-proxy-client", "", "clientAuth")
    if not (folder / "sa.pub").exists():
        run(
            ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", folder / "sa.key"]
        )
        run(["openssl", "pkey", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub"])
    _tokens_and_kubeconfigs(settings)


def _tokens_and_kubeconfigs(settings: Settings) -> None:
    token_file = settings.pki / "tokens.csv"
    if not token_file.exists():
        lines = []
        for number, (name, groups) in enumerate(USERS.values()):
            lines.append(f'{secrets.token_hex(24)},{name},{number},"{",".join(groups)}"')
        write_atomically(token_file, "\n".join(lines) + "\n")
    tokens = [line.partition(",")[0] for line in token_file.read_text().splitlines()]
    authority = base64.b64encode((settings.pki / "ca.crt").read_bytes()).decode()
    for user, token in zip(USERS, tokens, strict=True):
        path = settings.kubeconfig if user == "admin" else kubeconfig_of(settings, user)
        write_atomically(path, _kubeconfig(user, token, authority))


def kubeconfig_of(settings: Settings, user: str) -> Path:
    return settings.pki / f"{user}.kubeconfig"


def _kubeconfig(user: str, token: str, authority: str) -> str:
    name = "disagg-e2e"
    server = {"server": f"https://{NODE_IP}:{API_PORT}", "certificate-authority-data": authority}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": server}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
            "current-context": name,
        },
        indent=1,
    )
