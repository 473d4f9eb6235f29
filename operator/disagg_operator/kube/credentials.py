"""The operator's credentials for the API server: the pod's service account or a kubeconfig."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_NAMESPACE = "default"


class NoCredentials(Exception):
    """Raised when neither a service account nor a kubeconfig exists, or it can't be read."""


@dataclass(slots=True)
class Credentials:
    """The address of an API server, how to trust it, and the identity of the client."""

    server: str
    """The URL of the API server."""
    ca_file: str | None = None
    """The file of the certificate authorities to trust; None: those of the system."""
    cert_file: str | None = None
    """The file of the client certificate, if the client identifies itself by one."""
    key_file: str | None = None
    """The file of the client certificate's private key."""
    insecure: bool = False
    """Whether to accept any server certificate."""
    namespace: str = DEFAULT_NAMESPACE
    """The namespace that is meant where none is named, as kubectl understands it."""
    read_token: Callable[[], str | None] = field(default=lambda: None)
    """A function that returns the bearer token, or None without one. It may block."""
    _token: str | None = None
    """The token as last read. `reload` reads it again, because bound tokens are rotated."""

    def __post_init__(self) -> None:
        self._token = self.read_token()

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers that authenticate a request."""
        return {} if not self._token else {"Authorization": f"Bearer {self._token}"}

    def reload(self) -> bool:
        """Read the token again (blocking). Return whether it has changed."""
        before, self._token = self._token, self.read_token()
        return self._token != before

    def ssl_context(self) -> ssl.SSLContext:
        """Return the TLS context of a connection to the API server."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.insecure:  # only if a kubeconfig sets insecure-skip-tls-verify
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


def load(environ: Mapping[str, str] = os.environ, account_dir: Path = SERVICE_ACCOUNT_DIR) -> Credentials:
    """Load the credentials from KUBECONFIG if it is set, else in-cluster, else ~/.kube/config.

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
        namespace=_own_namespace(account_dir),
        read_token=lambda: token_file.read_text(encoding="utf-8").strip(),
    )


def _own_namespace(account_dir: Path) -> str:
    try:
        return (account_dir / "namespace").read_text(encoding="utf-8").strip() or DEFAULT_NAMESPACE
    except OSError:
        return DEFAULT_NAMESPACE


def _from_kubeconfig(path: str | None) -> Credentials:
    # Imported here because the client is large and a pod with a service account never needs it.
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_kube_config(config_file=path, client_configuration=configuration)
        context = config.list_kube_config_contexts(config_file=path)[1]["context"]
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
        namespace=str(context.get("namespace") or DEFAULT_NAMESPACE),
        read_token=token,
    )
