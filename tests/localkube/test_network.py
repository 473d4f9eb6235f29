"""Tests of the network namespaces of pods among others, in a mount namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_POD_AND_ANOTHER = """
import subprocess
import sys
from pathlib import Path

from localkube import network

folder = Path(sys.argv[1])
# What the machine has there stays, but for this process.
subprocess.run(["umount", "--recursive", "--lazy", str(folder)], check=False, stderr=subprocess.DEVNULL)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
network.share_namespaces(folder)
network.share_namespaces(folder)
pod = folder / "cni-1"
pod.touch()
subprocess.run(["mount", "--bind", "/proc/self/ns/net", str(pod)], check=True)
subprocess.run(["ip", "netns", "add", "other"], check=True)
network.remove_namespaces(folder)
print(sorted(path.name for path in folder.iterdir()))
subprocess.run(["ip", "netns", "delete", "other"], check=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_namespaces_of_pods_go_and_those_of_others_stay() -> None:
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", _POD_AND_ANOTHER, "/run/netns"]
    env = {**os.environ, "PYTHONPATH": f"{REPO}/e2e", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "['other']"), done.stderr
