"""Who the operator is to the API server: the pod's service account, or a kubeconfig."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class NoCredentials(Exception):
    """Neither a service account nor a kubeconfig was found, or it can't be read."""


@dataclass(slots=True)
class Credentials:
    """Server, trust and identity.

    `token` is read again by `reload`, because bound tokens are rotated.
    """

    server: str
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure: bool = False
    read_token: Callable[[], str | None] = field(default=lambda: None)
    _token: str | None = None

    def __post_init__(self) -> None:
        self._token = self.read_token()

    def headers(self) -> dict[str, str]:
        return {} if not self._token else {"Authorization": f"Bearer {self._token}"}

    def reload(self) -> bool:
        """Read the token again (blocking). True if it has changed."""
        before, self._token = self._token, self.read_token()
        return self._token != before

    def ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.insecure:  # only where a kubeconfig says insecure-skip-tls-verify
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


def load(environ: Mapping[str, str] = os.environ, account_dir: Path = SERVICE_ACCOUNT_DIR) -> Credentials:
    """From KUBECONFIG when it is set, else in-cluster, else ~/.kube/config.

    Raises NoCredentials.
    """
    if not environ.get("KUBECONFIG") and (account_dir / "token").exists():
        return _in_cluster(environ, account_dir)
    return _from_kubeconfig(environ.get("KUBECONFIG"))


def _in_cluster(environ: Mapping[str, str], account_dir: Path) -> Credentials:
    host = environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    token_file = account_dir / "token"
    return Credentials(
        server=f"https://{host}:{port}",
        ca_file=str(account_dir / "ca.crt"),
        read_token=lambda: token_file.read_text(encoding="utf-8").strip(),
    )


def _from_kubeconfig(path: str | None) -> Credentials:
    # Imported here: the client is large, and a pod with a service account never needs it.
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_kube_config(config_file=path, client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise NoCredentials(f"no usable kubeconfig: {error}") from error

    def token() -> str | None:
        value = configuration.get_api_key_with_prefix("authorization") or configuration.get_api_key_with_prefix(
            "BearerToken"
        )
        return None if not value else str(value).removeprefix("Bearer ").strip()

    return Credentials(
        server=str(configuration.host),
        ca_file=configuration.ssl_ca_cert,
        cert_file=configuration.cert_file,
        key_file=configuration.key_file,
        insecure=not configuration.verify_ssl,
        read_token=token,
    )
