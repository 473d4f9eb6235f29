"""nginx as a plain reverse proxy, from Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "disagg" / "nginx"
_CONFIG = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream workers {{ server 127.0.0.1:{target}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://workers; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


def program() -> str:
    """Return the path of nginx.

    Where it is not installed, Debian's package is fetched and unpacked into the user's cache: to
    install it would start a service. Raises SystemExit where that is not possible either.
    """
    if found := shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return found
    path = _CACHE / "usr" / "sbin" / "nginx"
    if not path.is_file():
        _CACHE.mkdir(parents=True, exist_ok=True)
        try:
            command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", "nginx"]
            subprocess.run(command, cwd=_CACHE, check=True)
            [package] = _CACHE.glob("nginx_*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), str(_CACHE)], check=True)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise SystemExit(f"nginx is missing and could not be fetched ({error}): install nginx") from None
    return str(path)


def version() -> str:
    """Return what nginx calls itself."""
    said = subprocess.run([program(), "-v"], capture_output=True, text=True, check=True)
    return (said.stderr + said.stdout).partition("version: ")[2].strip()


@contextmanager
def nginx(folder: Path, port: int, target: int) -> Iterator[list[int]]:
    """Run nginx in front of the port `target`, and yield the ids of its processes."""
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, target=target))
    with subprocess.Popen([program(), "-c", str(config), "-e", str(folder / "nginx.log")]) as master:
        try:
            children: list[int] = []
            while not children and master.poll() is None:
                text = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text()
                children = [int(pid) for pid in text.split()]
            yield [master.pid, *children]
        finally:
            master.terminate()
            master.wait(10)
