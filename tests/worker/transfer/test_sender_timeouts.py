"""Tests of what a sender raises."""

from __future__ import annotations

from disagg_worker.transfer.sender_timeouts import NixlFailed, TransferFailed


def test_a_failure_has_the_code_of_the_peer_if_that_has_said_one() -> None:
    refused = TransferFailed("cancelled: the request was cancelled", "cancelled")
    assert (str(refused), refused.code) == ("cancelled: the request was cancelled", "cancelled")
    assert NixlFailed("NIXL: gone").code == ""
    assert isinstance(NixlFailed(""), TransferFailed)
