"""Tests of the addresses of network interfaces, as the kernel reports them."""

from __future__ import annotations

import pytest

from disagg_protocol.network_interfaces import interface_of, ipv4_of, wait_for_ipv4


def test_the_loopback_carries_its_address() -> None:
    assert ipv4_of("lo") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert wait_for_ipv4("lo", 0.0) == "127.0.0.1"


def test_an_address_that_nobody_carries_has_no_interface() -> None:
    assert interface_of("192.0.2.1") == ""
    assert ipv4_of("no-such-if0") is None


def test_an_interface_that_does_not_come_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"DISAGG_KV_INTERFACE: net9 has no IPv4 address after 0\.05 s"):
        wait_for_ipv4("net9", 0.05)
