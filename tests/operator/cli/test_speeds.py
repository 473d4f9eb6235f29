"""Tests of where the speeds of a plan and of a simulation come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from disagg_operator.cli import speeds
from disagg_operator.performance import kernel_tables, profile_file
from disagg_operator.performance.model_shape import KNOWN, ModelShape
from disagg_operator.performance.origin import Origin
from disagg_operator.performance.profile import PROFILES, ProfileError
from disagg_operator.performance.table_fit import FromTables

LLAMA = KNOWN["llama-3.1-70b"]
SOURCE = kernel_tables.TableSource("h100_sxm", "vllm")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was asked of the kernel tables, which answer with a published profile."""
    seen: list[tuple[str, int]] = []

    def read(
        source: kernel_tables.TableSource, model: ModelShape, tensor: int = 0, say: Callable[[str], None] = print
    ) -> list[kernel_tables.TableProfile]:
        seen.append((model.name, tensor))
        profile = PROFILES["70b-h100-tp4"]
        return [kernel_tables.TableProfile(profile, "the tables", FromTables(profile, ()))]

    monkeypatch.setattr(kernel_tables, "read", read)
    return seen


def test_a_plan_takes_files_and_tables(asked: list[tuple[str, int]], tmp_path: Path) -> None:
    file = tmp_path / "a100.json"
    profile_file.save(PROFILES["70b-a100-tp4"], file, Origin("llama-3.1-70b", hardware="A100"))
    found = speeds.of_model({"A100": str(file)}, [SOURCE], LLAMA, False)
    assert sorted(found.profiles) == ["A100", "H100"]
    assert found.profiles["H100"] == [PROFILES["70b-h100-tp4"]]
    assert len(found.words) == 2
    assert "the tables" in found.words
    assert asked == [("llama-3.1-70b", 0)]


@pytest.mark.usefixtures("asked")
def test_the_speeds_of_a_gpu_are_given_once() -> None:
    with pytest.raises(ProfileError, match="H100 are given twice"):
        speeds.of_model({"H100": "70b-h100-tp4"}, [SOURCE], LLAMA, False)


def test_a_simulation_takes_a_published_profile_or_tables_of_a_model(asked: list[tuple[str, int]]) -> None:
    assert speeds.of_worker("70b-a100-tp4", "", None, False) == (PROFILES["70b-a100-tp4"], "70b-a100-tp4")
    found, words = speeds.of_worker(str(SOURCE), "meta-llama/Llama-3.1-70B-Instruct", 4, False)
    assert found == PROFILES["70b-h100-tp4"]
    assert words == "aisimulate:h100_sxm/vllm: the tables"
    assert asked == [("llama-3.1-70b", 4)]


@pytest.mark.parametrize(
    ("name", "model", "tensor", "why"),
    [
        (str(SOURCE), "", None, "needs --model"),
        (str(SOURCE), "nobody/knows-it", None, "needs --model"),
        ("70b-a100-tp4", "", 4, "--tensor"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, model: str, tensor: int | None, why: str) -> None:
    with pytest.raises(ProfileError, match=why):
        speeds.of_worker(name, model, tensor, False)
