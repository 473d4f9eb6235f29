"""Certificates for the servers of tests."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate, which is its own authority."""

    crt: Path
    key: Path

    @property
    def pem(self) -> str:
        return self.crt.read_text()

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.crt, self.key)
        return context


def certificate(folder: Path, name: str = "tls", subject: str = "IP:127.0.0.1,DNS:localhost") -> Certificate:
    """Create a new certificate and its key."""
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName={subject}", "-keyout", str(made.key),
         "-out", str(made.crt)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return made
