"""Tests of `disagg explain` and `disagg replay` on records that the policy itself wrote."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from disagg_operator.autoscaling.policy import guard
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.policy.guard import Predicting
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Folded, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.policy.predictive import PoolLimits, Settings
from disagg_operator.autoscaling.records import codec
from disagg_operator.cli import decision_source
from disagg_operator.cli.entry import main
from disagg_operator.performance.profile import PROFILES

SETTINGS = Settings(PROFILES["8b-h100"], 0.06, PoolLimits(1, 10), PoolLimits(1, 10))
T0 = 1_700_000_000.0


@pytest.fixture(scope="module")
def recorded() -> str:
    """Return the records of twenty minutes: low load, high load, then a minute without metrics."""
    pools = {"prefill": PoolRules(1, 10, 4.0), "decode": PoolRules(1, 10, 32.0)}
    sizes = {"prefill": 1, "decode": 1}
    lines: list[dict[str, Any]] = [
        {"begin": True, "t": T0, "settings": codec.plain(SETTINGS), "state": codec.plain(Predicting().state)}
    ]
    memory = Predicting()
    for i in range(240):
        n = 5 * (2.0 if i < 100 else 300.0)
        o = Observation(
            T0 + 5 * i, 5.0,
            PrefillSignals(
                Pods(sizes["prefill"], sizes["prefill"]), n, 100 * n, 15e3 * n, 0.0, 0.0, 1.0, 1.0, n, 0.99 * n
            ),
            DecodeSignals(
                Pods(sizes["decode"], sizes["decode"]), 0.0, 20.0, 20e3, 4e5, 100 * n, n, 100 * n, 200 * n, n, n
            ),
        )  # fmt: skip
        if i >= 228:
            o = replace(o, prefill=PrefillSignals(o.prefill.pods), decode=DecodeSignals(o.decode.pods))
        outcome, memory = guard.step(SETTINGS, pools, {}, Folded(o, frozenset()), memory)
        if outcome is None:
            continue
        decided = {name: d.to for name, d in outcome.decisions.items()}
        reasons = {name: d.reason for name, d in outcome.decisions.items()}
        lines.append(
            {
                "t": o.now_s,
                "observation": codec.plain(o),
                "targets": codec.plain(outcome.targets),
                "decided": decided,
                "reasons": reasons,
            }
        )
        sizes |= decided
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def records(tmp_path: Path, recorded: str) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text(recorded)
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in argv])
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def test_explain_tells_changes_with_their_reasons(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "explain", records)
    assert "workers of work expected" in out
    assert "no metrics" in out
    assert "->" in out
    assert "of them without metrics" in out
    assert "99.00 % of" in out
    assert len(out.splitlines()) < 120  # of 240 steps
    last_minute = run(capsys, "explain", records, "--since", "60s", "--all")
    assert "2.00" not in last_minute


def test_replay_of_the_same_policy_is_exact_and_of_another_shows_where_it_differs(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = run(capsys, "replay", records)
    assert "differs in 0 of" in same
    more = run(capsys, "replay", records, "--set", "over_provisioning=3", "--set", "decode.most=20")
    assert "where it differs" in more
    assert "differs in 0 of" not in more
    other = run(capsys, "replay", records, "--policy", "static:3,4")
    assert "static:3,4" in other


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "nothing=1"], "no such setting"),
        (["--set", "budget"], "is not K=V"),
        (["--set", "budget=much"], "is no number"),
        (["--set", "budget='x'"], "budget"),
        (["--policy", "guess"], "policy: 'guess'"),
        (["--policy", "static:1,1", "--set", "budget=1.0"], "of predictive and queue alone"),
        (["--since", "soon"], "--since"),
    ],
)
def test_bad_arguments_are_named(records: Path, argv: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["replay", str(records), *argv])
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no decisions are recorded"),
        ("{}\n", "line 1: the first line is no beginning"),
        ("nonsense\n", "line 1: "),
        ('{"begin": true, "settings": {}}\n', "line 1: "),
    ],
)
def test_a_file_that_holds_no_records_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(SystemExit) as refused:
        main(["explain", str(path)])
    assert words in str(refused.value)


def changed(records: Path, **fields: object) -> None:
    """Replace values in the third line: fields of the observation, or else of the record."""
    lines = records.read_text().splitlines()
    row = json.loads(lines[2])
    for name, value in fields.items():
        (row["observation"] if name in row["observation"] else row)[name] = value
    lines[2] = json.dumps(row)
    records.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"now_s": None}, "line 3: Observation.now_s: nan is no time"),
        ({"now_s": 1e300}, "line 3: Observation.now_s: 1e+300 is no time"),
        ({"now_s": -5.0}, "line 3: Observation.now_s: -5 is no time"),
        ({"interval_s": 0.0}, "line 3: Observation.interval_s: 0 is not more than 0"),
        ({"decided": {"prefill": float("inf")}}, "line 3: cannot convert float infinity"),
        ({"decided": [1, 2]}, "line 3: "),
    ],
)
def test_what_can_not_have_been_seen_is_named_by_its_line(records: Path, fields: dict[str, object], words: str) -> None:
    changed(records, **fields)
    with pytest.raises(SystemExit) as refused:
        main(["explain", str(records)])
    assert words in str(refused.value)


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xd0\x00\xff")
    (tmp_path / "deep").write_text("[" * 100_000)
    for name, words in (("binary", "is no text"), ("deep", "line 1: "), (".", "is a folder")):
        with pytest.raises(SystemExit) as refused:
            main(["explain", str(tmp_path / name)])
        assert words in str(refused.value)


def test_a_line_that_its_writer_was_killed_in_costs_that_line_alone(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = records.read_text()
    begin, *lines = text.splitlines(keepends=True)
    records.write_text(text[:-40])
    assert f"{len(lines) - 1} steps" in run(capsys, "explain", records)
    records.write_text(text[:-40] + "\n" + begin + lines[0])
    assert f"{len(lines)} steps" in run(capsys, "explain", records)
    assert "differs in" in run(capsys, "replay", records)
    records.write_text(begin + lines[0][:-40] + "\n" + lines[1])
    with pytest.raises(SystemExit) as refused:
        main(["explain", str(records)])
    assert "line 2: " in str(refused.value)


@pytest.mark.slow
def test_a_clock_that_was_set_back_mixes_up_nothing(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, *lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join([begin, *lines[100:], *lines[:100]]))
    assert f"{len(lines)} steps in 20 minutes" in run(capsys, "explain", records, "--plot", tmp_path / "a.png")
    assert "differs in" in run(capsys, "replay", records)


@pytest.mark.slow
def test_both_draw(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "explain", records, "--plot", tmp_path / "a.png")
    run(capsys, "replay", records, "--set", "over_provisioning=2.0", "--plot", tmp_path / "b.html")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "b.html").read_text()
    assert "as it was decided: prefill desired" in page
    assert "(what was wanted): decode desired" in page


@pytest.mark.parametrize("recorded_too", [False, True])
def test_explain_says_since_when_and_why_a_deployment_is_at_zero(
    recorded: str, recorded_too: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zero = {"type": "ScaledToZero", "status": "True", "reason": "Idle", "message": "no request for 600 s"}
    since = {"lastTransitionTime": "2026-01-01T00:00:00Z"}

    async def resource(namespace: str, name: str) -> dict[str, Any]:
        assert (namespace, name) == ("ns", "chat")
        return {"status": {"conditions": [zero | since]}}

    async def fetch(namespace: str, name: str) -> str:
        return recorded if recorded_too else ""

    monkeypatch.setattr(decision_source, "_resource", resource)
    monkeypatch.setattr(decision_source, "_fetch", fetch)
    with pytest.raises(SystemExit) as ended:
        main(["explain", "chat", "-n", "ns"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert re.match(r"Both pools are at zero for \d+ h \d+ min: no request for 600 s\.\n", said)
    assert ("decisions (UTC)" in said) is recorded_too
