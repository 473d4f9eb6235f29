"""Tests of `disagg simulate` as a user calls it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from disagg_operator.cli import simulate_command
from disagg_operator.cli.entry import main
from disagg_operator.performance.origin import Origin
from disagg_operator.performance.profile import PROFILES, ProfileError
from disagg_operator.performance.profile_file import save


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    r = np.random.default_rng(1)
    at = np.sort(r.uniform(0, 1800, 9000))
    rows = [
        f"{t:.3f},{p},{o}" for t, p, o in zip(at, r.integers(50, 2000, 9000), r.integers(2, 200, 9000), strict=True)
    ]
    path = tmp_path / "half-hour.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return path


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    simulate_command.arguments(parser)
    return simulate_command.run(parser.parse_args(argv))


def test_scores_as_json_and_a_picture(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "day.png"
    assert run(str(trace), "--json", "--plot", str(picture)) == 0
    found = json.loads(capsys.readouterr().out)
    score = found["scores"]["predictive"]
    assert found["trace"] == "half-hour"
    assert score["requests"] == 9000
    assert score["attainment"] > 0.98
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_order_of_waiting_prompts(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One prefill worker is hardly enough; more prompts are in time by deadline, the default."""

    def in_time(*argv: str) -> float:
        assert run(str(trace), "--copies", "2", "--policy", "static:1,4", "--json", *argv) == 0
        return float(json.loads(capsys.readouterr().out)["scores"]["static:1,4"]["ttft_attainment"])

    assert (
        in_time()
        == in_time("--queue-order", "EarliestDeadline")
        > in_time("--queue-order", "FirstComeFirstServed") + 0.05
    )


@pytest.mark.slow
def test_a_table_with_bounds_baselines_and_monolithic_serving(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "day.html"
    argv = (
        "--policy",
        "all",
        "--policy",
        "static:2,2",
        "--bounds",
        "--monolithic",
        "4",
        "--link-gbps",
        "400",
        "--plot",
        str(page),
    )
    assert (
        run(
            str(trace),
            *argv,
            "--failures-per-worker-day",
            "5",
            "--grace-s",
            "inf",
            "--warm-workers",
            "2",
            "--most",
            "8",
        )
        == 0
    )
    out = capsys.readouterr().out
    for text in (
        "KEDA (1, 48)",
        "HeteroScale",
        "static:2,2",
        "cheapest fixed fleet",
        "with foresight",
        "fluid bound",
        "monolithic, 4 workers",
    ):
        assert text in out
    assert "KEDA (1, 48): decode desired" in page.read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(("--policy", "magic"), "'magic' is none of", id="policy"),
        pytest.param(("--profile", "none.json"), "neither a file nor one of", id="profile"),
        pytest.param(("--copies", "0"), "--copies", id="copies"),
        pytest.param(("--routers", "-1"), "--routers", id="routers"),
        pytest.param(("--cold-start-s", "9", "3"), "--cold-start-s", id="cold start"),
        pytest.param(("--link-gbps", "-1"), "--link-gbps", id="link"),
        pytest.param(("--copies", "1000000"), "--copies: 9000 requests", id="too many copies"),
        pytest.param(("--cold-start-s", "9", "inf"), "--cold-start-s", id="no cold start"),
        pytest.param(("--link-gbps", "nan"), "--link-gbps", id="NaN link"),
        pytest.param(("--policy", "static:0,1"), "static:0,1: prefill has 1 to 40", id="empty pool"),
        pytest.param(("--policy", "static:1,99"), "static:1,99: decode has 1 to 40", id="pool over --most"),
        pytest.param(("--most", "0"), "--most: must be 1 to 200, not 0", id="most"),
        pytest.param(("--min-decode", "0"), "--min-decode: must be 1 to 200", id="empty decode"),
        pytest.param(("--min-prefill", "9", "--most", "8"), "--min-prefill", id="smallest over --most"),
        pytest.param(("--max-gpus", "7"), "--max-gpus: 7 GPUs are fewer than the 8", id="no room for both"),
        pytest.param(("--most", "1000"), "--most", id="more than there are places for"),
        pytest.param(("--failures-per-worker-day", "-1"), "--failures-per-worker-day", id="failures"),
        pytest.param(("--tpot-ms", "0"), "--tpot-ms", id="tpot"),
        pytest.param(("--ttft-s", "nan"), "--ttft-s", id="ttft"),
        pytest.param(("--grace-s", "-1"), "--grace-s", id="grace"),
        pytest.param(("--warm-workers", "-3"), "--warm-workers", id="warm workers"),
        pytest.param(("--blind-s", "5", "1"), "--blind-s", id="blind"),
        pytest.param(("--role-flip-s", "0"), "--role-flip-s", id="role flip"),
        pytest.param(("--monolithic", "0"), "--monolithic", id="monolithic"),
        pytest.param(("--plot", "x.bmp"), "must end in .png", id="plot of an unknown kind"),
        pytest.param(("--plot", "none/x.png"), "no folder none", id="plot into nowhere"),
        pytest.param(("--plot", "x.png", "--policy", "all"), "one timeline", id="too much for a picture"),
        pytest.param(("--history", "none.csv"), "none.csv", id="history"),
    ],
)
def test_bad_arguments_are_named(
    trace: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(simulate_command, "Cluster", None)  # the error is raised before any simulation
    with pytest.raises(simulate_command.ERRORS, match=message):
        run(str(trace), *argv)


def test_a_profile_of_another_model_is_refused_and_that_in_use_is_told(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.json"
    save(PROFILES["70b-h100-tp4"], file, Origin(model="llama-3.1-70b", hardware="H100"))
    with pytest.raises(ProfileError, match=r"of the model llama-3.1-70b, not of llama-3.1-8b"):
        run(str(trace), "--profile", str(file), "--model", "llama-3.1-8b")
    asked = str(trace), "--profile", str(file), "--policy", "static:4,4", "--json"
    assert run(*asked, "--model", "llama-3.1-8b", "--any-profile") == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note.startswith(f"profile: {file}: llama-3.1-70b on H100, measured by disagg")


def test_what_is_being_done_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first word comes before the simulator is imported, and each step before it begins."""
    with pytest.raises(SystemExit):
        main(["simulate", str(tmp_path / "none.csv")])
    assert capsys.readouterr().err.splitlines()[:2] == [
        "disagg simulate: loading the simulator ...",
        f"reading {tmp_path / 'none.csv'} ...",
    ]
