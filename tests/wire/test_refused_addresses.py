"""The addresses at which clouds hand out credentials."""

from __future__ import annotations

import pytest

from disagg_wire.refused_addresses import refused_address, refused_host


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("169.254.169.254", True), ("::ffff:169.254.169.254", True), ("fe80::1%eth0", True), ("fd00:ec2::254", True),
        ("fd20:ce::254", True), ("10.0.0.1", False), ("127.0.0.1", False), ("fd12::1", False), ("192.0.2.7", False),
    ],
)  # fmt: skip
def test_addresses_at_which_clouds_hand_out_credentials_are_refused(address: str, refused: bool) -> None:
    assert refused_address(address) is refused
    assert refused_host(address) is refused


@pytest.mark.parametrize(
    ("host", "refused"),
    [("[fe80::1]", True), ("[::1]", False), ("vllm.prod", False), ("2852039166", False), ("", False)],
)
def test_a_name_is_no_address(host: str, refused: bool) -> None:
    assert refused_host(host) is refused


def test_what_is_no_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="vllm"):
        refused_address("vllm")
