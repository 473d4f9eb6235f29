"""Traces of requests: the time of each, the length of its prompt and of its answer.

They are read from CSV, CSV.GZ, JSONL and Parquet, with the columns of
- this project (`arrival_s, prompt_tokens, output_tokens[, cached_tokens]`),
- Azure's LLM inference traces 2023 and 2024 (`TIMESTAMP, ContextTokens, GeneratedTokens`),
- BurstGPT (`Timestamp, Model, Request tokens, Response tokens, ...`; failed requests, which have no
  answer, are left out),
- Mooncake (JSONL: `timestamp` in ms, `input_length, output_length[, hash_ids]`; blocks of 512
  tokens that were seen before count as cached).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

_BLOCK_TOKENS = 512
_MOST_TOKENS = 1 << 24
# A longer trace counts from elsewhere, such as from 1970, and would be simulated for hours.
_MOST_S = 366 * 86_400.0


class TraceError(ValueError):
    """Raised for a trace that can't be read; the message names file, line and column."""


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival, one column each."""

    name: str
    arrival_s: np.ndarray[Any, Any]
    prompt_tokens: np.ndarray[Any, Any]
    cached_tokens: np.ndarray[Any, Any]  # of the prompt
    output_tokens: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """The time from 0 to the last arrival."""
        return float(self.arrival_s[-1]) if len(self) else 0.0

    def _pick(self, index: Any, arrival_s: Any, name: str) -> Trace:
        order = np.argsort(arrival_s, kind="stable")
        index = index[order]
        return Trace(
            name=name,
            arrival_s=arrival_s[order],
            prompt_tokens=self.prompt_tokens[index],
            cached_tokens=self.cached_tokens[index],
            output_tokens=self.output_tokens[index],
        )

    def times(self, copies: int, seed: int = 0) -> Trace:
        """Return a trace with several copies of each request, so that pools hold several workers.

        One copy comes as the request came, which keeps the bursts, each other one is moved by up to
        20 s.
        """
        if copies == 1:
            return self
        index, random = np.tile(np.arange(len(self)), copies), np.random.default_rng(seed)
        moved = self.arrival_s[index]
        moved[len(self) :] += random.uniform(-20.0, 20.0, len(index) - len(self))
        return self._pick(index, np.maximum(moved, 0.0), f"{self.name} x{copies}")

    def part(self, from_s: float, to_s: float) -> Trace:
        """Return the requests that arrive in [from_s, to_s), with from_s as the new 0."""
        index = np.flatnonzero((self.arrival_s >= from_s) & (self.arrival_s < to_s))
        return self._pick(index, self.arrival_s[index] - from_s, self.name)

    def faster(self, factor: float) -> Trace:
        """Return the same requests in 1/factor of the time."""
        return replace(self, arrival_s=self.arrival_s / factor)


def read(path: Path) -> Trace:
    """Read a trace from a file; the ending of its name says how. Raises TraceError."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            return _parquet(path)
        if name.endswith(".jsonl") or name.endswith(".json"):
            return _slow(path, _json_rows(path))
        if name.endswith(".csv"):
            return _csv(path)
    except (OSError, EOFError, pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: {error}") from None
    raise TraceError(f"{path}: the name must end in .csv, .csv.gz, .jsonl, .jsonl.gz or .parquet")


def _csv(path: Path) -> Trace:
    try:
        table = pa.csv.read_csv(path)
        return _trace(path, _columns(path, table))
    except (pa.ArrowInvalid, pa.ArrowKeyError, TraceError):
        pass  # a column that is no number, a row too short: read again, line by line, to say where
    with text_file(path) as file:
        rows = csv.DictReader(file)
        return _slow(path, ((rows.line_num, row) for row in rows))


def _parquet(path: Path) -> Trace:
    table = pa.parquet.read_table(path)
    try:
        return _trace(path, _columns(path, table))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TraceError):
        return _slow(path, enumerate(table.to_pylist(), 1))


def text_file(path: Path) -> io.TextIOBase:
    """Open a file that may be compressed."""
    compressed = path.name.endswith(".gz")
    # SIM115: the wrapper closes it.
    raw: Any = gzip.open(path, "rb") if compressed else path.open("rb")  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8", newline="")


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with text_file(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TraceError(f"{path}:{number}: {error}") from None
            if not isinstance(row, dict):
                raise TraceError(f"{path}:{number}: not an object")
            yield number, row


# ---- columns ----

# The names of the columns (arrival, prompt, output, cached) of each format.
_FORMATS = (
    ("arrival_s", "prompt_tokens", "output_tokens", "cached_tokens"),
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens", ""),
    ("Timestamp", "Request tokens", "Response tokens", ""),
    ("timestamp", "input_length", "output_length", ""),
)


def _format(path: Path, names: set[str]) -> tuple[str, str, str, str]:
    for found in _FORMATS:
        if set(found[:3]) <= names:
            return found
    columns = ", ".join(sorted(names))
    raise TraceError(f"{path}: columns {columns} are of no known format (arrival_s, prompt_tokens, output_tokens)")


def _columns(path: Path, table: pa.Table) -> tuple[Any, Any, Any, Any]:
    """Return the four columns as arrays.

    Raises TraceError or ArrowInvalid where a value is no number.
    """
    arrival, prompt, output, cached = _format(path, set(table.column_names))
    times = table[arrival]
    if pa.types.is_timestamp(times.type):
        seconds = times.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy() / 1e6
        seconds = seconds - seconds.min(initial=np.inf)
    elif pa.types.is_string(times.type):
        raise TraceError("text")
    else:
        seconds = times.to_numpy().astype(np.float64)
    if arrival == "timestamp":
        seconds = seconds / 1000.0
    absent = np.zeros(len(table), np.int64)
    lengths = [table[c].to_numpy() if c in table.column_names else absent for c in (prompt, output, cached)]
    if "hash_ids" in table.column_names:
        raise TraceError("hash_ids are read row by row")
    keep = np.ones(len(table), bool) if arrival != "Timestamp" else lengths[1] > 0
    return seconds[keep], lengths[0][keep], lengths[1][keep], lengths[2][keep]


def _trace(path: Path, columns: tuple[Any, Any, Any, Any]) -> Trace:
    arrival, prompt, output, cached = columns
    for values in (prompt, output, cached):
        whole = np.issubdtype(values.dtype, np.integer)
        if not whole or (len(values) and not 0 <= values.min() <= values.max() <= _MOST_TOKENS):
            raise TraceError(f"{path}: a length is no whole number of 0 to {_MOST_TOKENS} tokens")
    good = bool(np.isfinite(arrival).all() and (cached <= prompt).all())
    if len(prompt):
        good = good and bool(arrival.min() >= 0 and min(prompt.min(), output.min()) > 0)
    if not good:
        raise TraceError(f"{path}: an arrival or a length is out of range")
    if len(arrival) == 0:
        raise TraceError(f"{path}: holds no request")
    if arrival.max() > _MOST_S:
        days = arrival.max() / 86_400
        message = f"the last request comes {days:.0f} days after the beginning: times count from there, in s"
        raise TraceError(f"{path}: {message}")
    order = np.argsort(arrival, kind="stable")
    return Trace(
        name=path.name.split(".")[0],
        arrival_s=arrival[order],
        prompt_tokens=prompt[order].astype(np.int64),
        cached_tokens=cached[order].astype(np.int64),
        output_tokens=output[order].astype(np.int64),
    )


# ---- row by row, which tells the line of a bad value ----


def _slow(path: Path, rows: Iterator[tuple[int, dict[str, Any]]]) -> Trace:
    found: list[tuple[float, int, int, int]] = []
    columns: tuple[str, str, str, str] | None = None
    seen: set[int] = set()
    begin_s = math.inf
    for number, row in rows:
        columns = columns or _format(path, {k for k in row if k})
        at, prompt, output, cached = columns
        if None in row:  # csv.DictReader's name for values without a column
            raise TraceError(f"{path}:{number}: has more values than the {len(row) - 1} columns")

        value = partial(_value, f"{path}:{number}", row)
        seconds = value(at, _seconds, -math.inf if at == "TIMESTAMP" else 0.0)
        begin_s = min(begin_s, seconds if at == "TIMESTAMP" else 0.0)
        n_output = int(value(output, _whole, 0 if at == "Timestamp" else 1))
        n_prompt = int(value(prompt, _whole, 1))
        n_cached = int(value(cached, _whole, 0)) if cached in row else _cached(row, seen, n_prompt)
        limits = (prompt, n_prompt, _MOST_TOKENS), (output, n_output, _MOST_TOKENS), (cached, n_cached, n_prompt)
        for column, n, most in limits:
            if n > most:
                raise TraceError(f"{path}:{number}: {column}: out of range, {n} is more than {most}")
        if n_output:
            found.append((seconds / (1000.0 if at == "timestamp" else 1.0), n_prompt, n_output, n_cached))
    arrays = [np.array(column) for column in zip(*found, strict=True)] or [np.zeros(0), *[np.zeros(0, np.int64)] * 3]
    arrival_s = arrays[0].astype(np.float64) - (begin_s if found else 0.0)
    return _trace(path, (arrival_s, arrays[1], arrays[2], arrays[3]))


def _value(where: str, row: dict[str, Any], column: str, read: Callable[[Any], float], least: float) -> float:
    """Return a row's value in a column. Raises TraceError."""
    try:
        got = read(row[column])
    except (ValueError, TypeError, KeyError, OverflowError):
        got = math.nan
    if not (math.isfinite(got) and least <= got):
        kind = "time" if math.isinf(least) else f"{'whole ' if read is _whole else ''}number of at least {least:g}"
        raise TraceError(f"{where}: {column}: {row.get(column)!r} is no {kind}")
    return got


def _whole(value: Any) -> float:
    number = float(value)
    return number if number == int(number) else math.nan


def _seconds(value: Any) -> float:
    if isinstance(value, datetime):
        return value.timestamp()
    try:
        return float(value)
    except ValueError:
        return datetime.fromisoformat(str(value).strip()[:26]).timestamp()


def _cached(row: dict[str, Any], seen: set[int], prompt_tokens: int) -> int:
    """Return the tokens of the leading blocks that an unbounded prefix cache holds already."""
    ids = row.get("hash_ids")
    if not isinstance(ids, list):
        return 0
    known = next((i for i, block in enumerate(ids) if block not in seen), len(ids))
    seen.update(ids)
    return min(known * _BLOCK_TOKENS, prompt_tokens)
