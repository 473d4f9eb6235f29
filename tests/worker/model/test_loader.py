"""Weights are read whole and right, or refused with the name of the file and tensor at fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.worker import checkpoints
from tests.worker.checkpoints import TINY

from disagg_worker.engine.api import ModelError
from disagg_worker.model.config import parse_config
from disagg_worker.model.loader import load_config, load_weights, pick_dtype, resolve, tokenizer_files

EMBEDDING = "model.embed_tokens.weight"


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return load_weights(folder, load_config(folder), dtype).tensors


def test_shards_hold_the_same_as_one_file(tmp_path: Path) -> None:
    whole = _load(checkpoints.make(tmp_path / "one"))
    sharded = _load(checkpoints.make(tmp_path / "three", shards=3))
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[n], sharded[n]) for n in whole)


def test_tensors_get_the_asked_type(tmp_path: Path) -> None:
    assert {t.dtype for t in _load(checkpoints.make(tmp_path), torch.bfloat16).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("setting", "stored", "expected"),
    [
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "float32", torch.float32),
        ("auto", "float16", torch.bfloat16),
        ("float32", "bfloat16", torch.float32),
    ],
)
def test_the_type_computed_in_is(setting: str, stored: str, expected: torch.dtype) -> None:
    assert pick_dtype(setting, parse_config({**TINY, "dtype": stored}, {})) is expected


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ModelError, match="'int4' is not supported"):
        pick_dtype("int4", parse_config(TINY, {}))


def test_the_digest_follows_config_and_weights_and_nothing_else(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return load_weights(folder, load_config(folder), torch.float32).digest

    first = digest(checkpoints.make(tmp_path / "a"))
    assert digest(checkpoints.make(tmp_path / "b")) == first
    (tmp_path / "b" / "README.md").write_text("hello")
    assert digest(tmp_path / "b") == first
    assert digest(checkpoints.make(tmp_path / "c", seed=1)) != first
    assert digest(checkpoints.make(tmp_path / "d", rope_theta=20000.0)) != first


def _broken(kind: str, tensors: dict[str, torch.Tensor]) -> None:
    if kind == "shape":
        tensors[EMBEDDING] = tensors[EMBEDDING][:-1].contiguous()
    elif kind == "nan":
        tensors["model.norm.weight"][3] = torch.nan
    elif kind == "missing":
        del tensors["model.layers.1.mlp.down_proj.weight"]
    elif kind == "foreign":
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    elif kind == "integer":
        tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("shape", r"model.safetensors: model.embed_tokens.weight has shape \(96, 32\), config.json says \(97, 32\)"),
        ("nan", "model.norm.weight holds NaN"),
        ("missing", r"tensor model.layers.1.mlp.down_proj.weight is missing \(1 in all\)"),
        ("foreign", "q_norm.weight is not part of LlamaForCausalLM"),
        ("integer", "model.norm.weight is stored as torch.int8"),
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, kind: str, says: str) -> None:
    tensors = checkpoints.random_tensors(TINY)
    _broken(kind, tensors)
    with pytest.raises(ModelError, match=says):
        _load(checkpoints.write(tmp_path, TINY, tensors))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: "):
        _load(tmp_path)


@pytest.mark.parametrize(
    "content", ['{"weight_map": {"a": "../secret"}}', '{"weight_map": {"a": "gone.safetensors"}}', "{}x", '{"weight_map": 3}']
)
def test_a_bad_index_is_refused(tmp_path: Path, content: str) -> None:
    checkpoints.make(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError):
        _load(tmp_path)


def test_an_untied_head_stored_beside_tied_embeddings_is_ignored(tmp_path: Path) -> None:
    tensors = checkpoints.random_tensors(TINY) | {"lm_head.weight": torch.zeros(97, 32)}
    assert "lm_head.weight" not in _load(checkpoints.write(tmp_path, TINY, tensors))


def test_folders_are_found_by_uri(tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path / "mount" / "models" / "tiny")
    assert resolve(f"file://{folder}", tmp_path, tmp_path) == folder
    assert resolve("pvc://claim/models/tiny", tmp_path / "mount", tmp_path) == folder


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://bucket/x", "scheme must be hf, pvc or file"),
        ("tiny", "scheme must be hf, pvc or file"),
        ("file://relative/path", "must be absolute"),
        ("file:///nowhere/at/all", "holds no config.json"),
        ("pvc://claim/../../etc", "leaves the claim"),
        ("hf://noorg", "must be hf://org/name"),
        ("hf://a/b/c", "must be hf://org/name"),
        ("hf://a/b@", "must be hf://org/name"),
    ],
)
def test_a_uri_that_leads_nowhere_is_refused(tmp_path: Path, uri: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        resolve(uri, tmp_path, tmp_path)


def test_the_tokenizer_files_travel_with_their_digest(tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        tokenizer_files(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    files = tokenizer_files(folder)
    assert (files["tokenizer_json"], files["chat_template"]) == ("{}", "x")
    (folder / "chat_template.jinja").write_text("y")
    assert tokenizer_files(folder)["chat_template"] == "y"
    assert tokenizer_files(folder)["digest"] != files["digest"]
