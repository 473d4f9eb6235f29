"""Tests of finding, compiling and refusing CPU kernels, and of the choice of a backend."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.worker.backend import kernels

from disagg_worker.backend import select
from disagg_worker.backend.cpu import build, library
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.values.choices import Numerics

V3 = "processor : 0\nflags\t\t: fpu sse2 avx avx2 fma bmi1 bmi2\n"
V4 = V3.replace("bmi2", "bmi2 avx512f avx512bw avx512cd avx512dq avx512vl")

BF16 = V4.replace("avx512vl", "avx512vl avx512_bf16")


@pytest.mark.parametrize(
    ("cpuinfo", "levels"),
    [
        (BF16, ["x86-64-v4-bf16", "x86-64-v4", "x86-64-v3"]),
        (V4, ["x86-64-v4", "x86-64-v3"]),
        (V3, ["x86-64-v3"]),
        ("flags : sse2 avx\n", []),
        ("Features : asimd\n", []),
        ("", []),
    ],
)
def test_levels_by_cpu(cpuinfo: str, levels: list[str]) -> None:
    assert build.supported_levels(cpuinfo) == levels


@pytest.mark.slow
def test_images_bring_kernels_for_every_level_and_need_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = kernels.CACHE / build.file_name("all").removesuffix(".so")
    subprocess.run([sys.executable, "-m", "disagg_worker.backend.cpu.build", "--out", out], check=True, cwd="worker")
    assert {p.name for p in out.glob("*.so")} == {build.file_name(level) for level in build.LEVELS}
    monkeypatch.setenv("PATH", str(tmp_path))
    environment = {"DISAGG_KERNELS": str(out), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    path = build.find(environment, Path("/proc/cpuinfo").read_text())
    assert path.parent == out
    assert library.load(path).disagg_panel() in (16, 32)


def test_without_compiler_or_kernels_the_reason_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.KernelsUnavailable, match=r"no g\+\+"):
        build.find({"XDG_CACHE_HOME": str(tmp_path)}, V3)
    with pytest.raises(build.KernelsUnavailable, match="AVX2"):
        build.find({"XDG_CACHE_HOME": str(tmp_path)}, "")


def test_a_machine_without_kernels_falls_back_to_torch_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DISAGG_KERNELS", raising=False)
    with caplog.at_level(logging.WARNING):
        backend = select.select("cpu", 1)
    assert isinstance(backend, PlainBackend)
    assert "no g++" in caplog.text


def test_a_failing_compiler_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho broken toolchain >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(build.KernelsUnavailable, match="broken toolchain"):
        build.compile_level("x86-64-v3", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.so*[0-9]"))


@pytest.mark.parametrize(("device", "name"), [("plain", "torch"), ("cpu", "cpu")])
def test_select(device: str, name: str) -> None:
    backend = select.select(device, 1)
    assert (backend.name, backend.device) == (name, torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "numerics", "kind"),
    [
        ("cpu", "exact", "CpuBackend"),
        ("cpu", "fast", "CpuBackend"),
        ("plain", "auto", "PlainBackend"),
        ("plain", "fast", "PlainBackend"),
        ("plain", "exact", "RowByRowBackend"),
    ],
)
def test_exact_numerics_are_kept_or_not_promised(device: str, numerics: Numerics, kind: str) -> None:
    backend = select.select(device, 1, numerics=numerics)
    assert type(backend).__name__ == kind
    assert backend.exact == (kind != "PlainBackend")


def test_exact_numerics_are_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "on_device", lambda *_: PlainBackend(torch.device("cuda")))
    assert not select.select("cuda", 1).exact
    with pytest.raises(ValueError, match="numerics: exact is not supported on a GPU"):
        select.select("cuda", 1, numerics="exact")


def test_auto_takes_what_the_machine_has() -> None:
    assert select.select("auto", 1).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="device: 'tpu'"):
        select.select("tpu", 1)
