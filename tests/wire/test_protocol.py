"""Tests that docs/protocol.md and the constants of the protocol name the same things."""

from __future__ import annotations

import re
from pathlib import Path

from disagg_wire import codes, protocol
from disagg_wire.cluster_key import MIN_KEY_BYTES

PAGE = (Path(__file__).parents[2] / "docs/protocol.md").read_text()
CODES = {value for name, value in vars(codes).items() if name.isupper()}
PATHS = {value for name, value in vars(protocol).items() if name.endswith("_PATH")}


def test_every_error_code_is_documented_and_every_documented_one_exists() -> None:
    (table,) = re.findall(r"\| error code \| where \|\n\|---\|---\|\n((?:\|.*\|\n)+)", PAGE)
    listed = {code for row in table.splitlines() for code in re.findall(r"`(\w+)`", row.split("|")[1])}
    elsewhere = {codes.ROLE_CHANGING}  # it is the answer of one call, which has a table of its own
    assert f"409 `{codes.ROLE_CHANGING}`" in PAGE
    # FINISHED stays within a worker and its transfer.
    assert listed | elsewhere == CODES - {codes.FINISHED}


def test_every_path_is_documented_and_every_documented_one_exists() -> None:
    assert set(re.findall(r"/internal/v1/[\w-]+", PAGE)) <= PATHS
    assert {path for path in PATHS if f"`{path}`" not in PAGE and f" {path}`" not in PAGE} == set()


def test_the_version_the_features_and_the_key_are_as_documented() -> None:
    assert f"The protocol version is {protocol.PROTOCOL_VERSION};" in PAGE
    assert f'"protocol": {protocol.PROTOCOL_VERSION},' in PAGE
    features = {value for name, value in vars(protocol).items() if name.startswith("FEATURE_")}
    assert set(protocol.FEATURES) <= features
    section = PAGE.split("### `features`")[1].split("### ")[0]
    assert features == set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert f"at least {MIN_KEY_BYTES} bytes" in PAGE
    assert f"`{protocol.STARTING}`, `{protocol.READY}` or `{protocol.DRAINING}`" in PAGE
