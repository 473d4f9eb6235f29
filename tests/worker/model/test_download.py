"""Tests of hf:// models: they are downloaded from the endpoint and with the token of the
environment, and only the files of a model are fetched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes import hub
from tests.worker import checkpoints

# It runs in a process of its own, because huggingface_hub reads its environment when imported.
PROGRAM = """
import sys
from pathlib import Path
import torch
from disagg_worker.backend.plain import PlainBackend
from disagg_protocol.errors import ModelError
from disagg_worker.model.loader import load_config, pick_dtype, resolve
from disagg_worker.model.network import load_network
try:
    folder = resolve(sys.argv[1], Path("/"), Path(sys.argv[2]))
    config = load_config(folder)
    print(load_network(folder, config, pick_dtype("auto", config, "cpu"), PlainBackend(torch.device("cpu"))).digest)
except ModelError as error:
    print("ModelError", error)
"""


def _download(url: str, token: str, uri: str, cache: Path) -> str:
    path = os.pathsep.join([str(Path(__file__).parents[3] / "worker"), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "PYTHONPATH": path,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", PROGRAM, uri, str(cache)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_without_code(tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path / "tiny", shards=2)
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with hub.serve(folder, "hf_secret") as server:
        digest = _download(server.url, "hf_secret", "hf://org/tiny@v1", tmp_path / "cache")
        assert len(digest) == 64
        wanted = {p.name for p in folder.iterdir()} - {"modeling_evil.py", "pytorch_model.bin"}
        assert sorted(server.downloaded) == sorted(wanted)
        assert _download(server.url, "hf_secret", "hf://org/tiny@v1", tmp_path / "cache") == digest
        assert sorted(server.downloaded) == sorted(wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "uri"), [("wrong", "hf://org/tiny@v1"), ("hf_secret", "hf://org/gone@v1")], ids=["token", "name"]
)
def test_a_refusal_of_the_hub_names_the_uri_and_keeps_the_token(tmp_path: Path, token: str, uri: str) -> None:
    folder = checkpoints.make(tmp_path / "tiny")
    with hub.serve(folder, "hf_secret") as server:
        said = _download(server.url, token, uri, tmp_path / "cache")
    assert said.startswith(f"ModelError model uri {uri}: ")
    assert token not in said
