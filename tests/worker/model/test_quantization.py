"""Tests of weight-only quantisation: its error is bounded, stored formats are read as their makers
write them, and all others are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples
from tests.worker import checkpoints
from tests.worker.backend import kernels
from tests.worker.checkpoints import TINY
from tests.worker.oracle import MODEL
from tests.worker.runner import Runner, fed

from disagg_protocol.errors import ModelError
from disagg_worker.backend.interface import Backend, GroupQuantizedWeight
from disagg_worker.backend.plain import PlainBackend, dequantized
from disagg_worker.model.loader import load_config
from disagg_worker.model.network import load_network
from disagg_worker.model.quantization import cut, quantize, to_fp8, unpack
from disagg_worker.model.quantization_config import parse_quantization
from disagg_worker.model.weights import Shard

PLAIN = PlainBackend(torch.device("cpu"))
CONFIG: dict[str, Any] = {**TINY, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
LINEAR = ("_proj.weight",)


@settings(max_examples=examples(60))
@given(st.integers(0, 2**32), st.sampled_from([4, 8]), st.sampled_from([16, 32, 64]), st.floats(0.01, 100))
def test_a_value_moves_by_half_a_step_at_most_unless_its_group_is_clipped(
    seed: int, bits: int, group: int, size: float
) -> None:
    weight = size * torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    q = quantize(weight, bits, group)
    error = (dequantized(q) - weight).abs().view(6, -1, group)
    if bits == 8:
        assert bool((error <= q.scale[..., None] * 0.501).all())
    plain = (
        (weight.view(6, -1, group).amax(-1).clamp(min=0) - weight.view(6, -1, group).amin(-1).clamp(max=0))
        / (2**bits - 1)
    ) / 2
    # Clipping may increase the error of the largest value, but never that of the whole group.
    assert bool((error.square().mean(-1) <= (plain * 1.01).square() + 1e-12).all())
    assert int(q.q.max()) < 2**bits


def test_zeros_and_constants_survive() -> None:
    for weight in (torch.zeros(2, 32), torch.full((2, 32), 0.5)):
        for bits in (4, 8):
            torch.testing.assert_close(
                dequantized(quantize(weight, bits, 32)), weight, atol=1e-6, rtol=0.13 if bits == 4 else 1e-3
            )


def test_fp8_is_within_its_mantissa() -> None:
    weight = torch.randn(5, 64)
    torch.testing.assert_close(dequantized(to_fp8(weight)), weight, rtol=2**-4, atol=float(weight.abs().max()) * 2**-9)


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int [rows, n] into int32 [rows, n * bits / 32], the lowest bits first."""
    per_word = 32 // bits
    words = (values.long().view(values.shape[0], -1, per_word) << (torch.arange(per_word) * bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking_reverses_packing(bits: int) -> None:
    values = torch.randint(0, 2**bits, (3, 64))
    assert torch.equal(unpack(_pack(values, bits), bits).long(), values)


def _gptq(name: str, w: GroupQuantizedWeight) -> dict[str, torch.Tensor]:
    return {
        f"{name}.qweight": _pack(w.q, w.bits).t().contiguous(),
        f"{name}.qzeros": _pack((w.zero - 1).long().t() & (2**w.bits - 1), w.bits),
        f"{name}.scales": w.scale.t().contiguous(),
        f"{name}.g_idx": (torch.arange(w.q.shape[1]) // w.group_size).int(),
    }


def _awq(name: str, w: GroupQuantizedWeight) -> dict[str, torch.Tensor]:
    def order(values: torch.Tensor) -> torch.Tensor:
        eight = values.view(values.shape[0], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return _pack(eight.flatten(1), 4)

    return {
        f"{name}.qweight": order(w.q.t().contiguous()),
        f"{name}.qzeros": order(w.zero.long().t().contiguous()),
        f"{name}.scales": w.scale.t().contiguous(),
    }


def _packed(name: str, w: GroupQuantizedWeight) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight_packed": _pack(w.q, w.bits),
        f"{name}.weight_scale": w.scale,
        f"{name}.weight_shape": torch.tensor(w.q.shape),
    }


def _int8(name: str, w: GroupQuantizedWeight) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": (w.q.int() - 128).to(torch.int8), f"{name}.weight_scale": w.scale[:, :1].contiguous()}


def _compressed(kind: str, bits: int, strategy: str, **weights: Any) -> dict[str, Any]:
    scheme = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": 32, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }


Packer = Callable[[str, GroupQuantizedWeight], dict[str, torch.Tensor]]
FORMATS: dict[str, tuple[dict[str, Any], Packer, int, int, bool]] = {
    "gptq 4": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, _gptq, 4, 32, False),
    "gptq 8": ({"quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": False}, _gptq, 8, 32, False),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, _awq, 4, 32, False),
    "compressed-tensors 4": (_compressed("pack-quantized", 4, "group"), _packed, 4, 32, True),
    "compressed-tensors 8": (_compressed("int-quantized", 8, "channel"), _int8, 8, 0, True),
}


def _symmetric(weight: torch.Tensor, bits: int, group: int) -> GroupQuantizedWeight:
    values = weight.view(weight.shape[0], -1, group)
    scale = values.abs().amax(-1) / (2 ** (bits - 1) - 1)
    zero = torch.full_like(scale, 2.0 ** (bits - 1))
    q = (values / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return GroupQuantizedWeight(bits, group, q.view(weight.shape), scale, zero)


def _stored(folder: Path, kind: str) -> tuple[Path, Path]:
    """Write a checkpoint in a format, and one with the same values as floats."""
    config, pack, bits, group, symmetric = FORMATS[kind]
    tensors = checkpoints.random_tensors(CONFIG)
    packed: dict[str, torch.Tensor] = {}
    for name, weight in list(tensors.items()):
        if not name.endswith(LINEAR):
            packed[name] = weight
            continue
        size = group or weight.shape[1]
        w = _symmetric(weight, bits, size) if symmetric else quantize(weight, bits, size)
        tensors[name] = dequantized(w)
        packed |= pack(name.removesuffix(".weight"), w)
    floats = checkpoints.write(folder / "floats", CONFIG, tensors)
    return checkpoints.write(folder / "stored", {**CONFIG, "quantization_config": config}, packed), floats


# The CPU kernels are those of the lowest level, since higher ones may round the inputs.
BACKENDS: dict[str, Callable[[], Backend]] = {
    "plain": lambda: PLAIN,
    "cpu": lambda: kernels.backend(kernels.LEVELS[-1]),
}
TOKENS = [(7 * i * i + 3 * i) % 97 for i in range(20)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_stored_checkpoint_computes_what_its_values_say(tmp_path: Path, kind: str, backend: str) -> None:
    stored, floats = _stored(tmp_path, kind)
    runner, exact = Runner(stored, BACKENDS[backend]()), Runner(floats, PLAIN)
    s, e = fed(TOKENS[:-1]), fed(TOKENS[:-1])
    torch.testing.assert_close(runner.prefill((s, 19)), exact.prefill((e, 19)), atol=2e-4, rtol=2e-4)
    s.tokens.append(TOKENS[-1])
    e.tokens.append(TOKENS[-1])
    torch.testing.assert_close(runner.decode(s), exact.decode(e), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("split", ["outputs", "inputs"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_parts_of_all_ranks_make_the_whole(split: Any, bits: int) -> None:
    whole = quantize(torch.randn(8, 64), bits, 32)
    parts = [cut(whole, split, Shard(r, 2), "x") for r in (0, 1)]
    floats = [dequantized(p) for p in parts if isinstance(p, GroupQuantizedWeight)]
    assert torch.equal(torch.cat(floats, dim=0 if split == "outputs" else 1), dequantized(whole))


def test_a_group_can_not_be_cut_through() -> None:
    with pytest.raises(ModelError, match="does not divide the 3 groups of x"):
        cut(quantize(torch.randn(8, 96), 4, 32), "inputs", Shard(0, 2), "x")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "bitsandbytes"}, "quant_method: 'bitsandbytes'"),
    ({"quant_method": "gptq", "bits": 3}, "bits: 3"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format: 'marlin'"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size: 0"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version: 'gemv'"),
    ({"quant_method": "compressed-tensors"}, "config_groups"),
    (_compressed("marlin-24", 4, "group"), "format: 'marlin-24'"),
    (_compressed("pack-quantized", 4, "group", symmetric=False), "weights.symmetric: False"),
    (_compressed("pack-quantized", 4, "block"), "weights.strategy: 'block'"),
    (_compressed("pack-quantized", 4, "group", actorder="group"), "weights.actorder: 'group'"),
]


@pytest.mark.parametrize(("raw", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_can_not_be_read_is_refused_by_name(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=f"quantization_config.*{says}"):
        parse_quantization(raw)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.pop("model.layers.0.mlp.up_proj.qzeros"), "up_proj.qzeros is missing"),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.g_idx": torch.randperm(64).int()}),
            "g_idx: groups out of order",
        ),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.scales": torch.ones(2, 64)}), "up_proj: "),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.oddity": torch.ones(1)}), "oddity is not part of"),
    ],
    ids=["no zeros", "activation order", "wrong scales", "unknown tensor"],
)
def test_a_spoiled_checkpoint_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = _stored(tmp_path, "gptq 4")
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=says):
        load_network(folder, load_config(folder), torch.float32, PLAIN)


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    folder, _ = _stored(tmp_path, "awq")
    with pytest.raises(ModelError, match="quantised already"):
        load_network(folder, load_config(folder), torch.float32, PLAIN, quantization="int8")


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "at_least"), [("int8", 0.95), ("fp8", 0.8), ("int4", 0.6)])
def test_the_trained_model_keeps_its_mind(quantization: Any, at_least: float) -> None:
    """Check that the likeliest next token stays the same at most positions, and that the digest
    tells the weights apart.
    """
    config = load_config(MODEL)
    exact = load_network(MODEL, config, torch.float32, PLAIN)
    rough = load_network(MODEL, config, torch.float32, PLAIN, quantization=quantization)
    assert rough.digest == f"{exact.digest}+{quantization}"
    tokens = [(11 * i * i + 5 * i) % 2048 for i in range(24)]
    runs = [Runner(MODEL, PLAIN) for _ in (exact, rough)]
    same = 0
    for r, loaded in zip(runs, (exact, rough), strict=True):
        r.network = loaded.network
    for n in range(1, 25):
        a, b = (r.prefill((fed(tokens[:n]), n))[0] for r in runs)
        same += int(a.argmax() == b.argmax())
    assert same / 24 >= at_least
