"""Access to the router's Service from this machine.

The base URL is the cluster IP where that is routed, and otherwise that of a port-forward.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator

from kubectl import Cluster, ClusterFailed

_FORWARD_TIMEOUT_S = 20.0


def _reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def router_url(cluster: Cluster, service: str) -> Iterator[str]:
    """Yield a base URL that works. Raises ClusterFailed when neither way works."""
    spec = cluster.get("service", service).get("spec", {})
    if not spec:
        raise ClusterFailed(f"service {cluster.namespace}/{service} does not exist")
    host, port = spec.get("clusterIP", ""), spec["ports"][0]["port"]
    if _reachable(host, port):
        yield f"http://{host}:{port}"
        return
    argv = ["kubectl", "-n", cluster.namespace, "port-forward", f"service/{service}", f":{port}"]
    with subprocess.Popen(
        argv, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as forward:
        try:
            yield f"http://127.0.0.1:{_forwarded_port(forward)}"
        finally:
            forward.terminate()
            forward.wait(timeout=10)


def _forwarded_port(forward: subprocess.Popen[str]) -> int:
    deadline_s, seen = time.monotonic() + _FORWARD_TIMEOUT_S, ""
    if forward.stdout is None:
        raise ClusterFailed("kubectl port-forward: no output")
    while time.monotonic() < deadline_s:
        if select.select([forward.stdout], [], [], 0.5)[0]:
            line = forward.stdout.readline()
            if not line:
                break
            seen += line
            if found := re.search(r"127\.0\.0\.1:(\d+)", line):
                return int(found.group(1))
    raise ClusterFailed(f"kubectl port-forward: {seen}")
