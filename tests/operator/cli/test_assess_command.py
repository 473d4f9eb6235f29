"""Tests of `disagg assess` as a user calls it: engines and Prometheus answer over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.certificates import Certificate, certificate
from tests.operator.planning.assessment.pages import Page

from disagg_operator.cli import assess_command
from disagg_operator.cli.entry import main
from disagg_operator.planning.assessment.bounded_http import MOST_BYTES
from disagg_operator.planning.assessment.readings import AssessError

SMALL = ("--model", "llama-3.1-8b", "--for", "1s")


class Server:
    """An HTTP server whose answers a test sets, by path."""

    def __init__(self, tls: Certificate | None = None) -> None:
        outer = self
        self.answers: dict[str, Any] = {}
        self.tokens: set[str | None] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.tokens.add(self.headers.get("authorization"))
                answer = outer.answers.get(self.path.partition("?")[0])
                self.send_response(200 if answer is not None else 404)
                self.end_headers()
                self.wfile.write((answer() if callable(answer) else answer or "").encode())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._http.socket = tls.server_context().wrap_socket(self._http.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def serving(engine: str = "vllm", model: str = "llama-3.1-8b") -> Any:
    """Return an engine's page that has ten more requests at each look."""
    page = Page(engine, model)

    def answer() -> str:
        for _ in range(10):
            page.request(1200, 40, cached=300)
        page.numbers["running"] = 4
        return page.text()

    return answer


def assess(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(["assess", *arguments])
    code, out = left.value.code, capsys.readouterr().out
    return (code, out) if isinstance(code, int) else (2, str(code))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_running_engine(server: Server, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    server.answers["/metrics"] = serving(engine, "meta-llama/Llama-3.1-8B-Instruct")
    code, out = assess(capsys, server.url, "--for", "1s", "--gpus-per-worker", "2", "--price", "H100=3")
    assert code == 0
    for words in (
        f"{engine} meta-llama/Llama-3.1-8B-Instruct",
        "mean 1,200 tokens, half have up to 1,000 to 2,000, p99 1,000 to 2,000",
        "mean 40 tokens",
        "25.0 % of the prompt tokens came from a cache",
        "TTFT 100.00 %, TPOT 100.00 % of the requests (asked: 99 %)",
        "1 worker (found) of 2 H100",
        "It is not known whether prefill disturbs decode: too little was seen: 0 of 1 looks",
        "6.00 an hour",
        "Stay with one pool: two pools would cost",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 120


def test_json_and_workers_that_are_given(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server.answers["/metrics"] = serving()
    (tmp_path / "token").write_text("s3cr3t\n")
    words = ("--workers", "6", "-o", "json", "--rate", "40", "--token-file", str(tmp_path / "token"))
    code, out = assess(capsys, f"{server.url}/v1", *SMALL, *words)
    data = json.loads(out)
    assert code == 0
    assert data["today"] == {"workers": 6, "counted": False, "gpus": 6, "gpu": "H100", "gpu_hours_per_hour": 6.0}
    assert data["plan"]["traffic"]["requests_per_s"] == 40
    assert data["advice"] == "one-pool"
    assert data["workload"]["cached_share"] == 0.25
    assert server.tokens == {"Bearer s3cr3t"}


def test_an_engine_behind_tls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    server = Server(tls)
    try:
        server.answers["/metrics"] = serving()
        code, out = assess(capsys, server.url, *SMALL)
        assert (code, "CERTIFICATE_VERIFY_FAILED" in out) == (2, True)
        assert assess(capsys, server.url, *SMALL, "--ca-file", str(tls.crt))[0] == 0
    finally:
        server.close()


def test_several_engines(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    other = Server()
    try:
        server.answers["/metrics"], other.answers["/metrics"] = serving(), serving()
        code, out = assess(capsys, server.url, other.url, *SMALL, "-o", "json")
        assert (code, json.loads(out)["today"]["workers"]) == (0, 2)
        other.answers["/metrics"] = serving(model="other")
        _, out = assess(capsys, server.url, other.url, *SMALL)
        assert out == "disagg assess: the engines serve several models: llama-3.1-8b, other"
    finally:
        other.close()


def test_a_look_that_fails_is_left_out(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page, looks = serving(), iter([True, True, False, True, True])
    server.answers["/metrics"] = lambda: page() if next(looks, True) else "nothing"
    code, out = assess(capsys, server.url, *SMALL, "--for", "3s", "-o", "json")
    assert (code, json.loads(out)["workload"]["requests"]) == (0, 20)


def test_a_log_of_requests(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [f"{i / 10:.1f},{1000 + i % 7},{50 + i % 3}\n" for i in range(20_000 * 5)]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(rows))
    code, out = assess(capsys, str(path), "--model", "llama-3.1-8b", "--workers", "3")
    assert code == 0
    for words in (
        "10/s, busiest 10/s",
        "p99 1,006",
        "Requests/s",
        "│ 02   │ 10.00 │",
        "a log of requests has no times of",
    ):
        assert words in out
    assert "between two bounds" not in out


def test_without_a_model_there_is_no_plan(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/metrics"] = serving(model="ours")
    code, out = assess(capsys, server.url, "--for", "1s")
    assert code == 0
    assert "No plan: --model names the model to plan for." in out


def test_objectives_that_nothing_meets(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/metrics"] = serving()
    code, out = assess(capsys, server.url, *SMALL, "--ttft", "0.001")
    assert code == 1
    assert "No plan: no deployment on these GPUs meets the objectives." in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--for", "soon"), "--for: 'soon' is not a time of 1s to 31d"),
        (("--for", "0"), "--for: '0' is not a time"),
        (("--since", "5m"), "--since: '5m' is not a time of 600s to 31d"),
        (("--workers", "0"), "--workers: must be 1 to 100,000, not 0"),
        (("--gpus-per-worker", "-1"), "--gpus-per-worker: must be 1 to 100,000, not -1"),
        (("--rate", "nan"), "--rate: must be more than 0 and at most a million, not nan"),
        (("--tpot-ms", "0"), "--tpot-ms: must be more than 0"),
        (("--worker-gpu", "A100", "--price", "H100=3"), "--worker-gpu: the price of A100 is missing"),
        (("--model", "nothing"), "model: 'nothing' is neither a config.json"),
        (("--token-file", "/does/not/exist"), "/does/not/exist"),
        (("--ca-file", "/does/not/exist"), "No such file or directory"),
    ],
)
def test_arguments_that_are_refused(
    server: Server, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    server.answers["/metrics"] = serving()
    code, out = assess(capsys, server.url, *SMALL, *arguments)
    assert code == 2
    assert words in out


def test_sources_that_are_refused(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        code, out = assess(capsys, *arguments, *SMALL)
        assert code == 2
        return out

    assert "no such file" in refused(str(tmp_path / "none.csv"))
    assert refused("a.csv", "b.csv") == "disagg assess: give one file, one Prometheus, or the URLs of engines"
    assert refused(*(f"http://127.0.0.1:{port}" for port in range(1, 66))).startswith("disagg assess: 65 engines")
    assert "127.0.0.1:9/metrics" in refused("http://127.0.0.1:9")
    neither = refused(server.url)
    assert neither.startswith("disagg assess: neither a Prometheus nor an engine with metrics of vllm or sglang: http")
    assert neither.endswith("answers 404, and not as a Prometheus does")
    server.answers["/api/v1/query"] = '{"status": "success", "data": {"result": []}}'
    assert "has no series of an engine in the last hour; see --select" in refused(server.url)
    server.answers["/api/v1/query"] = '{"status": "success", "data": {"result": [{"metric": 7, "value": [1, "2"]}]}}'
    assert "not as a Prometheus does" in refused(server.url)
    server.answers["/api/v1/query"] = "[" * 200_000
    assert "not as a Prometheus does" in refused(server.url)
    for odd in (
        {"metric": {}, "value": [0, 10**400]},
        {"metric": {}, "value": [10**400, "1"]},
        {"metric": {}, "value": ["soon", "1"]},
        {"metric": {"le": "x"}, "value": [0, "1"]},
    ):
        server.answers["/api/v1/query"] = json.dumps({"status": "success", "data": {"result": [odd]}})
        assert "not as a Prometheus does" in refused(server.url)
    two = [{"metric": {"model_name": name}, "value": [0, "1"]} for name in ("a", "b")]
    server.answers["/api/v1/query"] = json.dumps({"status": "success", "data": {"result": two}})
    assert "there are several models (a, b): choose one by --select 'model_name=\"a\"'" in refused(server.url)
    assert "is a Prometheus: give it alone" in refused(server.url, "http://127.0.0.1:9")
    server.answers["/metrics"] = "x" * (MOST_BYTES + 1)
    assert "the answer is over 16 MiB" in refused(server.url)
    assert '--select: \'a="}\' is not LABEL="VALUE"' in refused(server.url, "--select", 'a="}')


def test_an_engine_that_goes_is_an_error(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page, looks = serving(), iter([True, True])
    server.answers["/metrics"] = lambda: page() if next(looks, False) else "gone"
    assert assess(capsys, server.url, *SMALL)[0] == 2


def test_times() -> None:
    found = [assess_command.seconds_of(text, "--for") for text in ("90", "90s", "2m", "1.5h", "1d")]
    assert found == [90, 90, 120, 5400, 86_400]
    with pytest.raises(AssessError, match="--for"):
        assess_command.seconds_of("", "--for")
