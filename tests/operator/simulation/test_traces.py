"""Every published format is read as what it says, and a bad row is named by its line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from disagg_operator.simulation.traces import Trace, TraceError, read

OURS = "arrival_s,prompt_tokens,output_tokens\n0.5,100,7\n2.25,30,1\n"
OURS_CACHED = "arrival_s,prompt_tokens,output_tokens,session_id,cached_tokens\n0.5,100,7,a,64\n2.25,30,1,b,0\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE_2023 = f"{AZURE}2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
AZURE_2024 = f"{AZURE}2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.017335+00:00,2399,6\n"
BURST_GPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n118,GPT-4,417,276,693,API log\n"
)
MOONCAKE = "\n".join(
    json.dumps({"timestamp": at, "input_length": n, "output_length": out, "hash_ids": ids})
    for at, n, out, ids in ((0, 1100, 52, [1, 2, 3]), (27_482, 1700, 26, [1, 2, 9, 10]), (30_535, 600, 3, [9, 1]))
)


def as_csv(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "day.csv"
        path.write_text(text)
        return path

    return write


def as_gzip(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "day.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
        return path

    return write


def as_json(text: str, gz: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / ("day.jsonl.gz" if gz else "day.jsonl")
        path.write_bytes(gzip.compress(text.encode()) if gz else text.encode())
        return path

    return write


def as_parquet(folder: Path) -> Path:
    path = folder / "day.parquet"
    columns = {"arrival_s": [2.25, 0.5], "prompt_tokens": [30, 100], "output_tokens": [1, 7]}
    pa.parquet.write_table(pa.table(columns), path)
    return path


def as_table(**columns: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "day.parquet"
        pa.parquet.write_table(pa.table(columns), path)
        return path

    return write


TIMES = [datetime(2024, 5, 10, 0, 0, 0, 9930, UTC), datetime(2024, 5, 10, 0, 0, 1, 17335, UTC)]


# Arrivals, prompts, cached tokens and outputs that are read from OURS, and from MOONCAKE.
TWO = ([0.5, 2.25], [100, 30], [0, 0], [7, 1])
THREE = ([0.0, 27.482, 30.535], [1100, 1700, 600], [0, 1024, 600], [52, 26, 3])


@pytest.mark.parametrize(
    ("write", "arrival_s", "prompt", "cached", "output"),
    [
        pytest.param(as_csv(OURS), *TWO, id="ours"),
        pytest.param(as_gzip(OURS), *TWO, id="ours, gzip"),
        pytest.param(as_parquet, *TWO, id="Parquet, sorted by arrival"),
        pytest.param(as_csv(OURS_CACHED), [0.5, 2.25], [100, 30], [64, 0], [7, 1], id="cached tokens"),
        pytest.param(as_csv(AZURE_2023), [0.0, 4.314579], [374, 396], [0, 0], [44, 109], id="Azure 2023"),
        pytest.param(as_csv(AZURE_2024), [0.0, 1.007405], [2162, 2399], [0, 0], [5, 6], id="Azure 2024"),
        pytest.param(
            as_csv(BURST_GPT), [5.0, 118.0], [472, 417], [0, 0], [18, 276], id="BurstGPT without failed requests",
        ),
        pytest.param(as_json(MOONCAKE), *THREE, id="Mooncake, blocks seen before are cached"),
        pytest.param(
            as_table(TIMESTAMP=TIMES, ContextTokens=[2162, 2399], GeneratedTokens=[5, 6]),
            [0.0, 1.007405], [2162, 2399], [0, 0], [5, 6], id="Azure, Parquet",
        ),
        pytest.param(
            as_table(TIMESTAMP=[str(t) for t in TIMES], ContextTokens=[2162, 2399], GeneratedTokens=[5, 6]),
            [0.0, 1.007405], [2162, 2399], [0, 0], [5, 6], id="Azure, Parquet with times as text",
        ),
        pytest.param(
            as_table(
                timestamp=[0, 27_482], input_length=[1100, 1700], output_length=[52, 26],
                hash_ids=[[1, 2, 3], [1, 2, 9, 10]],
            ),
            [0.0, 27.482], [1100, 1700], [0, 1024], [52, 26], id="Mooncake, Parquet",
        ),
        pytest.param(as_json(MOONCAKE, gz=True), *THREE, id="JSONL.GZ"),
    ],
)  # fmt: skip
def test_formats(
    tmp_path: Path,
    write: Callable[[Path], Path],
    arrival_s: list[float],
    prompt: list[int],
    cached: list[int],
    output: list[int],
) -> None:
    trace = read(write(tmp_path))
    assert trace.name == "day"
    assert trace.arrival_s == pytest.approx(np.array(arrival_s), abs=1e-6)
    assert trace.prompt_tokens.tolist() == prompt
    assert trace.cached_tokens.tolist() == cached
    assert trace.output_tokens.tolist() == output


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(as_csv(OURS + "x,5,5\n"), "day.csv:4: arrival_s: 'x'", id="no number"),
        pytest.param(
            as_csv(OURS + "3,5.5,5\n"), "day.csv:4: prompt_tokens: '5.5' is no whole number", id="half a token",
        ),
        pytest.param(as_csv(OURS + "3,0,5\n"), "day.csv:4: prompt_tokens: '0'", id="empty prompt"),
        pytest.param(as_csv(OURS + "3,5,0\n"), "day.csv:4: output_tokens: '0'", id="no answer"),
        pytest.param(as_csv(OURS + "nan,5,5\n"), "day.csv:4: arrival_s: 'nan'", id="NaN"),
        pytest.param(as_csv(OURS + "-1,5,5\n"), "day.csv:4: arrival_s: '-1'", id="before the beginning"),
        pytest.param(as_csv(OURS + "3,5,5,5\n"), "day.csv:4: has more values than the 3 columns", id="long row"),
        pytest.param(
            as_csv(OURS + "1.7e9,5,5\n"), "19676 days after the beginning: times count from there",
            id="seconds since 1970",
        ),
        pytest.param(
            as_table(arrival_s=[0.5, 2.0], prompt_tokens=[5, 5], output_tokens=[3, None]),
            "day.parquet:2: output_tokens: None", id="no value, Parquet",
        ),
        pytest.param(
            as_table(arrival_s=[0.5, 2.0], prompt_tokens=[5, -5], output_tokens=[3, 3]),
            "day.parquet:2: prompt_tokens: -5 is no whole number of at least 1", id="negative, Parquet",
        ),
        pytest.param(as_csv(OURS + "3,5\n"), "day.csv:4: output_tokens: None", id="short row"),
        pytest.param(as_csv(OURS + "3,99999999999,5\n"), "day.csv:4: prompt_tokens: out of range", id="absurd length"),
        pytest.param(
            as_csv(OURS_CACHED + "3,5,5,c,6\n"), "day.csv:4: cached_tokens: out of range",
            id="more cached than prompt",
        ),
        pytest.param(
            as_csv(AZURE_2023 + "yesterday,5,5\n"), "day.csv:4: TIMESTAMP: 'yesterday' is no time", id="no time",
        ),
        pytest.param(as_json(MOONCAKE + "\n{"), "day.jsonl:4: ", id="broken JSON"),
        pytest.param(as_json(MOONCAKE + "\n[1]"), "day.jsonl:4: not an object", id="no object"),
        pytest.param(as_json('{"timestamp": 1, "input_length": 5}'), "of no known format", id="column missing"),
        pytest.param(as_csv("a,b\n1,2\n"), "columns a, b are of no known format", id="unknown columns"),
        pytest.param(as_csv("arrival_s,prompt_tokens,output_tokens\n"), "holds no request", id="only a header"),
        pytest.param(lambda folder: folder / "none.csv", "no such file", id="no file"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(TraceError) as caught:
        read(write(tmp_path))
    assert message in str(caught.value)


def test_a_broken_archive_and_an_unknown_ending_are_named(tmp_path: Path) -> None:
    (tmp_path / "day.csv.gz").write_bytes(gzip.compress(OURS.encode())[:30])
    with pytest.raises(TraceError, match=r"day\.csv\.gz"):
        read(tmp_path / "day.csv.gz")
    (tmp_path / "day.txt").write_text(OURS)
    with pytest.raises(TraceError, match="must end in"):
        read(tmp_path / "day.txt")


def test_copies_parts_and_speed() -> None:
    n = np.array([5, 6, 7])
    trace = Trace("t", np.array([0.0, 100.0, 200.0]), n, np.zeros(3, int), n)
    many = trace.times(4)
    assert len(many) == 12
    assert (np.diff(many.arrival_s) >= 0).all()
    assert sorted(many.prompt_tokens.tolist()) == sorted([5, 6, 7] * 4)
    assert np.abs(many.arrival_s - 100 * (many.prompt_tokens - 5)).max() <= 20
    part = trace.part(100.0, 200.0)
    assert (part.arrival_s.tolist(), part.prompt_tokens.tolist()) == ([0.0], [6])
    assert trace.faster(4.0).span_s == 50.0


def test_one_of_the_copies_stays_where_it_was_so_that_bursts_stay_bursts() -> None:
    at = np.repeat(np.arange(40.0, 4000.0, 10.0), 5)  # five at once every ten seconds
    trace = Trace("t", at, np.arange(1, len(at) + 1), np.zeros(len(at), int), np.full(len(at), 9))
    many = trace.times(2)
    together, n = np.unique(many.arrival_s, return_counts=True)
    np.testing.assert_array_equal(together[n == 5], np.unique(at))
    others = many.arrival_s[np.isin(many.arrival_s, at, invert=True)]
    assert len(others) == len(at)
    assert np.unique(others).size == len(others)  # moved each on its own
    by_request = many.arrival_s[np.argsort(many.prompt_tokens, kind="stable")].reshape(-1, 2)
    moved = np.sort(by_request - at[:, None], axis=1)
    assert 19 < np.abs(moved).max() <= 20
