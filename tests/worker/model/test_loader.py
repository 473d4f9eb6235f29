"""Tests of loading: weights are read completely and correctly, or refused with the names of the
file and the tensor.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.worker import checkpoints
from tests.worker.checkpoints import TINY

from disagg_protocol.errors import ModelError
from disagg_protocol.model_files import tokenizer_files
from disagg_worker.model.checkpoint import Checkpoint, LoadProgress
from disagg_worker.model.config import parse_config
from disagg_worker.model.loader import load_config, pick_dtype, resolve
from disagg_worker.model.weights import FloatWeights, Shard, expected_shapes

EMBEDDING = "model.embed_tokens.weight"


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return every tensor as the network would get it."""
    config = load_config(folder)
    with Checkpoint(folder) as checkpoint:
        source = FloatWeights(checkpoint, config, dtype, Shard())
        return {name: source.vector(name) for name, _ in expected_shapes(config)}


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
    assert pick_dtype(setting, parse_config({**TINY, "dtype": stored}, {}), "cpu") is expected


@pytest.mark.parametrize("setting", ["int4", "float16"])
def test_a_type_that_can_not_be_computed_in_is_refused(setting: str) -> None:
    with pytest.raises(ModelError, match=f"'{setting}' is not supported"):
        pick_dtype(setting, parse_config(TINY, {}), "cpu")


def test_a_gpu_computes_in_float16() -> None:
    assert pick_dtype("auto", parse_config({**TINY, "dtype": "float16"}, {}), "cuda") is torch.float16


def test_progress_ends_with_everything_read(tmp_path: Path) -> None:
    folder, seen = checkpoints.make(tmp_path, shards=2), list[LoadProgress]()
    config = load_config(folder)
    with Checkpoint(folder, seen.append) as checkpoint:
        source = FloatWeights(checkpoint, config, torch.float32, Shard())
        for name, _ in expected_shapes(config):
            source.vector(name)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.9 < fractions[-1] <= 1
    assert "% of 0.00 GB" in str(seen[-1])


def test_the_parts_of_all_ranks_make_the_whole(tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path, attention_bias=True)
    config = load_config(folder)
    at = "model.layers.0."
    with Checkpoint(folder) as checkpoint:
        whole = FloatWeights(checkpoint, config, torch.float32, Shard())
        ranks = [FloatWeights(checkpoint, config, torch.float32, Shard(r, 2)) for r in (0, 1)]
        down = [r.matrix([at + "mlp.down_proj"], "inputs").weight for r in ranks]
        assert torch.equal(torch.cat(down, dim=1), whole.matrix([at + "mlp.down_proj"], "inputs").weight)
        names = [f"{at}self_attn.{p}_proj" for p in "kv"]
        rows = [r.matrix(names, "outputs").weight.view(2, -1, 32) for r in ranks]
        assert torch.equal(torch.cat(rows, dim=1).flatten(0, 1), whole.matrix(names, "outputs").weight)
        biases = [r.bias([at + "self_attn.o_proj"], "inputs") for r in ranks]
        assert biases[0] is not None
        assert biases[1] is None


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ModelError, match=r"parallelism 4 does not divide config\.json's num_key_value_heads 2"):
        Shard(0, 4).check(parse_config(TINY, {}))


def test_the_digest_follows_config_and_weights_and_nothing_else(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        with Checkpoint(folder) as checkpoint:
            return checkpoint.digest()

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
    "content",
    ['{"weight_map": {"a": "../secret"}}', '{"weight_map": {"a": "gone.safetensors"}}', "{}x", '{"weight_map": 3}'],
)
def test_a_bad_index_is_refused(tmp_path: Path, content: str) -> None:
    checkpoints.make(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError):
        _load(tmp_path)


def test_an_untied_head_stored_beside_tied_embeddings_is_ignored(tmp_path: Path) -> None:
    tensors = checkpoints.random_tensors(TINY) | {"lm_head.weight": torch.full((97, 32), torch.nan)}
    assert _load(checkpoints.write(tmp_path, TINY, tensors))


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
