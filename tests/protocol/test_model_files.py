"""Tests of what the folder of a model tells about its source, and of files that are too large."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_protocol import model_files
from disagg_protocol.errors import ModelError
from disagg_protocol.model_files import read_json, source_revision, tokenizer_files


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


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "\udcff"])
def test_what_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json"):
        read_json(file)


def test_files_are_read_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("{}" + " " * 100)
    assert tokenizer_files(tmp_path)["tokenizer_config"] == {}
    for limit in ("_MOST_TEMPLATE_BYTES", "_MOST_BYTES", "_MOST_TOKENIZER_BYTES"):
        monkeypatch.setattr(model_files, limit, 100)
        with pytest.raises(ModelError, match="102 bytes, at most 100"):
            tokenizer_files(tmp_path)
