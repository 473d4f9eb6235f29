"""Tests of the model's small files: where they are found and what they tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from disagg_adapter.model_folder import find, load
from disagg_protocol.errors import ModelError

CONFIG: dict[str, Any] = {
    "vocab_size": 2048,
    "eos_token_id": 7,
    "bos_token_id": 1,
    "dtype": "float32",
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
}


def model(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_folder_is_the_model_itself_or_a_cache_of_the_hub(tmp_path: Path) -> None:
    uri = "hf://org/model"
    assert find(tmp_path, uri) is None
    home = tmp_path / "models--org--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc\n")
    assert find(tmp_path, uri) is None  # it is still being downloaded
    snapshot = model(home / "snapshots" / "abc")
    assert find(tmp_path, uri) == snapshot
    assert find(tmp_path, "hf://org/other") is None
    pinned = model(home / "snapshots" / "def")
    assert find(tmp_path, f"{uri}@def") == pinned
    (home / "refs" / "v1").write_text("def")
    assert find(tmp_path, f"{uri}@v1") == pinned
    assert find(tmp_path, f"{uri}@../../..") is None
    model(tmp_path)
    assert find(tmp_path, uri) == tmp_path


def test_what_the_files_tell(tmp_path: Path) -> None:
    found = load(model(tmp_path), "hf://m", "auto")
    assert (found.vocab_size, found.eos_token_ids, found.bos_token_id) == (2048, (7,), 1)
    assert found.kv_bytes_per_token == 2 * 4 * 2 * 8 * 4
    assert set(found.tokenizer) == {"digest", "tokenizer_json", "tokenizer_config", "chat_template"}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert load(tmp_path, "hf://m", "auto").eos_token_ids == (8, 9)


@pytest.mark.parametrize(
    ("changes", "dtype", "expected"),
    [
        ({}, "bfloat16", 2 * 4 * 2 * 8 * 2),
        ({"dtype": None}, "auto", 2 * 4 * 2 * 8 * 2),
        ({"dtype": None, "torch_dtype": "float32"}, "auto", 2 * 4 * 2 * 8 * 4),
        ({"head_dim": 16}, "float16", 2 * 4 * 2 * 16 * 2),
        ({"num_key_value_heads": None}, "float16", 2 * 4 * 8 * 8 * 2),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, "bfloat16", 4 * 2 * 576),
    ],
)
def test_the_kv_of_a_token(tmp_path: Path, changes: dict[str, Any], dtype: str, expected: int) -> None:
    assert load(model(tmp_path, **changes), "hf://m", dtype).kv_bytes_per_token == expected


def test_a_model_that_reads_images_keeps_its_text_part_apart(tmp_path: Path) -> None:
    (model(tmp_path) / "config.json").write_text(json.dumps({"text_config": CONFIG, "vocab_size": "none"}))
    assert load(tmp_path, "hf://m", "auto").vocab_size == 2048


def test_the_digest_covers_what_makes_a_model_another_one(tmp_path: Path) -> None:
    folder = model(tmp_path)
    digests = [load(folder, "hf://m", "auto").digest, load(folder, "hf://n", "auto").digest]
    for name, text in (
        ("config.json", json.dumps(CONFIG | {"rope_theta": 5})),
        ("tokenizer.json", '{"a": 1}'),
        ("model.safetensors.index.json", "{}"),
        ("quantize_config.json", "{}"),
    ):
        (folder / name).write_text(text)
        digests.append(load(folder, "hf://m", "auto").digest)
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    digests.append(load(folder, "hf://m", "auto").digest)
    (folder / "model.safetensors").write_bytes(bytes(100_001))
    digests.append(load(folder, "hf://m", "auto").digest)
    (folder / "model.safetensors").write_bytes(bytes(50_000) + bytes([1]) * 50_001)
    digests.append(load(folder, "hf://m", "auto").digest)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    digests.append(load(folder, "hf://m", "auto").digest)
    assert len(set(digests)) == len(digests)


def test_two_commits_of_a_model_from_the_hub_are_two_models(tmp_path: Path) -> None:
    home = tmp_path / "models--org--model" / "snapshots"
    found = [load(model(home / commit), "hf://org/model", "auto") for commit in ("abc", "def")]
    assert [f.revision for f in found] == ["abc", "def"]
    assert found[0].digest != found[1].digest
    assert load(model(tmp_path / "plain"), "hf://org/model", "auto").revision == ""


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("config.json", "{}", "vocab_size"),
        ("config.json", '{"vocab_size": "many"}', "vocab_size"),
        ("config.json", "[]", r"config\.json"),
        ("config.json", "{", r"config\.json"),
        ("generation_config.json", '{"eos_token_id": "</s>"}', "eos_token_id"),
        ("generation_config.json", "no", r"generation_config\.json"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str, named: str) -> None:
    (model(tmp_path) / name).write_text(text)
    with pytest.raises(ModelError, match=named):
        load(tmp_path, "hf://m", "auto")


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (model(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load(tmp_path, "hf://m", "auto")
