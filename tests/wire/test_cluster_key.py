"""Tests of the cluster key: a missing or short one is refused, and its bearer never changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_wire.cluster_key import MIN_KEY_BYTES, ClusterKeyError, bearer_of, read_key


def test_the_key_is_the_content_of_the_file_without_white_space_around_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\n" + b"k" * MIN_KEY_BYTES + b" \n")
    assert read_key(file) == b"k" * MIN_KEY_BYTES


@pytest.mark.parametrize("content", [None, b"", b" " * 64, b"k" * (MIN_KEY_BYTES - 1), b"k" * 31 + b"\n"])
def test_a_missing_or_short_key_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ClusterKeyError):
        read_key(file)


def test_the_bearer_never_changes() -> None:
    """Routers and workers of two releases use it together; computed with openssl dgst -hmac."""
    assert bearer_of(b"k" * 32) == "8cc8b6de8f075f88226853730a6a9eace9589e04c4247c84d5d39ae402fb72fb"
