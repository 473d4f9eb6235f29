"""Tests of what the folder of a model tells about its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_protocol.model_files import source_revision


@pytest.mark.parametrize(
    ("folder", "commit"),
    [
        ("/cache/hub/models--org--name/snapshots/abc123", "abc123"),
        ("/cache/models--a/snapshots/def", "def"),
        ("/mnt/model", ""),
        ("/mnt/model/snapshots/abc", ""),
        ("/cache/models--a/blobs/abc", ""),
        ("/", ""),
    ],
)
def test_the_commit_is_known_for_folders_of_the_hubs_cache(folder: str, commit: str) -> None:
    assert source_revision(Path(folder)) == commit
