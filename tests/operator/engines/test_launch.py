"""Tests of the programs in the engines' containers, by running them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from disagg_operator.engines.launch import KEY_PLACE, LAUNCH, PREPARE
from disagg_protocol import fabric_probe
from disagg_wire.fabric import parse_report, told

SHOW = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", program, *arguments]
    environment = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)


def launched(
    *facts: str, asked: str = "", words: tuple[str, ...] = (), **environment: str
) -> tuple[dict[str, str], list[str]]:
    """Return the environment and the arguments of the engine that LAUNCH runs."""
    ended = run(LAUNCH, os.devnull, *facts, asked, sys.executable, "-c", SHOW, *words, **environment)
    assert ended.returncode == 0, ended.stderr
    environment, arguments = json.loads(ended.stdout)
    return environment, arguments


@pytest.mark.parametrize(("transport", "devices"), [("tcp", "lo"), ("auto", "lo"), ("rdma", None)])
def test_the_engine_gets_the_address_and_the_devices_of_the_interface(transport: str, devices: str | None) -> None:
    environment, words = launched("lo", transport, "HOST_A,HOST_B", "1", "", words=("--x", "a b"))
    assert (environment["HOST_A"], environment["HOST_B"]) == ("127.0.0.1", "127.0.0.1")
    assert environment.get("UCX_NET_DEVICES") == devices  # lo has no RDMA device
    assert words == ["--x", "a b"]


def test_without_a_network_nothing_is_set() -> None:
    environment, _ = launched("", "auto", "HOST_A", "1", "")
    assert not {"HOST_A", "UCX_NET_DEVICES"} & set(environment)
    assert "UCX_NET_DEVICES" not in launched("lo", "tcp", "", "0", "")[0]


def test_what_the_user_has_set_stays() -> None:
    environment, _ = launched("lo", "tcp", "", "1", "", UCX_NET_DEVICES="mine:1")
    assert environment["UCX_NET_DEVICES"] == "mine:1"


def test_the_container_with_the_devices_says_what_it_finds(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    asked = {"asked": 2, "bytes": 1 << 30, "file": str(file)}
    launched("lo,lo", "rdma", "", "1", "", asked=json.dumps(asked))
    report = parse_report(file.read_text())
    assert report is not None
    assert (report["asked"], report["bytes"], report["usable"]) == (2, 1 << 30, [])
    assert report["interfaces"]["lo"]["mtu"] > 0
    assert told(report)["problem"]["reason"] == "NoUverbsDevice"
    assert list(tmp_path.iterdir()) == [file]


def test_a_report_that_can_not_be_written_keeps_no_engine_from_running() -> None:
    asked = {"asked": 1, "bytes": 0, "file": "/no/such/folder/report.json"}
    assert launched("lo", "auto", "", "0", "", asked=json.dumps(asked), words=("--x",))[1] == ["--x"]


def test_the_probe_in_the_program_is_that_of_the_worker() -> None:
    _, first, rest = Path(fabric_probe.__file__).read_text().partition("import ctypes\n")
    assert first + rest in LAUNCH


def test_an_interface_without_address_ends_the_container_with_its_name() -> None:
    ended = run(LAUNCH, os.devnull, "net9", "auto", "A", "1", "", "", "true")
    assert ended.returncode == 1
    assert "interface net9: has no address" in ended.stderr


def test_prepare_makes_a_key_that_only_the_engine_and_its_adapter_know(tmp_path: Path) -> None:
    key = tmp_path / "key"
    assert run(PREPARE, "", "", str(key)).returncode == 0
    assert len(key.read_text()) == 64
    assert key.stat().st_mode & 0o777 == 0o640
    _, words = launched("", "auto", "", "0", str(key), words=("--api-key", KEY_PLACE))
    assert words == ["--api-key", key.read_text()]


def test_a_signal_that_comes_before_the_engine_reaches_it(tmp_path: Path) -> None:
    """The kernel drops one that the first process of a container has neither a handler nor a
    mask for, and the pod would stay for its whole grace period.
    """
    key = tmp_path / "key"
    os.mkfifo(key)
    engine = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, os.devnull, "", "auto", "", "0", str(key), "", *engine])
    try:
        with key.open("w") as writer:  # it is being read
            process.send_signal(signal.SIGTERM)
            writer.write("key")
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()


def test_prepare_copies_the_small_files_of_a_model(tmp_path: Path) -> None:
    source, target = tmp_path / "model", tmp_path / "files"
    source.mkdir()
    target.mkdir()
    small = ("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "merges.txt", "a.tiktoken")
    for name in (*small, "model.safetensors"):
        (source / name).write_text(name)
    (source / "tokenizer_folder").mkdir()
    assert run(PREPARE, str(source), str(target), "").returncode == 0
    assert {path.name: path.read_text() for path in target.iterdir()} == {name: name for name in small}


def test_prepare_names_the_folder_that_is_missing(tmp_path: Path) -> None:
    ended = run(PREPARE, "/no/model", str(tmp_path), "")
    assert ended.returncode == 1
    assert "spec.model.uri: the image of the engine has no /no/model/config.json" in ended.stderr


def test_the_kubelet_finds_nothing_to_expand() -> None:
    assert "$" not in LAUNCH + PREPARE
