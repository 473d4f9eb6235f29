"""Tests of the ports that tests give to servers."""

from __future__ import annotations

import socket
import subprocess
import sys

from tests.ports import _given_away, free_port


def test_no_two_processes_get_the_same_port_and_the_kernel_gives_away_none() -> None:
    mine = [free_port() for _ in range(3)]
    code = "from tests.ports import free_port\nprint(*[free_port() for _ in range(3)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    theirs = [int(word) for word in other.stdout.split()]
    assert len({*mine, *theirs}) == 6
    assert not any(port in _given_away() for port in mine + theirs)


def test_a_port_on_which_somebody_listens_is_left_out() -> None:
    taken = free_port() + 1
    with socket.create_server(("127.0.0.2", taken)):
        assert free_port() != taken
