"""Tests of `disagg plan`: its arguments, and its output as table, JSON, YAML and HTML."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator.cli.html_charts import charts_of

from disagg_operator.api import parse_file
from disagg_operator.cli.entry import main
from disagg_operator.performance import kernel_tables
from disagg_operator.performance.model_shape import ModelShape
from disagg_operator.performance.origin import Origin
from disagg_operator.performance.profile import PROFILES
from disagg_operator.performance.profile_file import save
from disagg_operator.performance.table_fit import FromTables
from disagg_wire.version import VERSION

SMALL = ["--prompt-tokens", "500,2000", "--output-tokens", "150"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(["plan", *arguments])
    code = left.value.code
    out = capsys.readouterr().out
    return (code, out) if isinstance(code, int) else (2, str(code))


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(capsys, "meta-llama/Llama-3.1-8B-Instruct", "--rate", "100", *SMALL, "--gpus", "H100,L40S")
    assert code == 0
    for words in (
        "Recommended:",
        "131,072 bytes a token",
        "disaggregated",
        "monolithic",
        "rdma-400 (planned)",
        "ethernet-25",
        "tensor 1",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 120


def test_json_yaml_and_html(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = "--yaml", str(tmp_path / "cr.yaml"), "--html", str(tmp_path / "r.html")
    code, out = plan(
        capsys, "meta-llama/Llama-3.1-70B", "--rate", "80", *SMALL, "--price", "H100=2.5", "--json", *files
    )
    data = json.loads(out)
    assert code == 0
    pools = {p["role"]: p for p in data["deployments"]["disaggregated"]["pools"]}
    cost = data["deployments"]["disaggregated"]["cost_per_hour"]
    assert cost == 2.5 * sum(p["gpus"] for p in pools.values())
    spec = parse_file(yaml.safe_load((tmp_path / "cr.yaml").read_text())).spec
    assert (spec.prefill.replicas, spec.decode.replicas) == (pools["prefill"]["replicas"], pools["decode"]["replicas"])
    assert (tmp_path / "cr.yaml").read_text().startswith("# Recommended:")
    page = (tmp_path / "r.html").read_text()
    tags: list[str] = []
    links: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            links.extend(
                v or "" for k, v in attrs if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")
            )

    Reader().feed(page)
    assert tags.count("table") == 5
    assert [c["title"].partition(",")[0] for c in charts_of(page)] == [
        "Cost over load", "Prefill of one prompt", "Decode step", "KV transfer",
    ]  # fmt: skip
    assert f"disagg {VERSION}<br><code>disagg plan meta-llama/Llama-3.1-70B --rate 80 " in page
    assert links == []  # the page loads nothing from elsewhere
    assert data["headline"] in page


def test_a_mixture_of_experts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["deepseek-ai/DeepSeek-V3", "--rate", "20", *SMALL, "--gpus", "H200"]
    code, out = plan(capsys, *asked, "--json", "--html", str(tmp_path / "r.html"))
    data = json.loads(out)
    assert code == 0
    assert data["model"]["kv_bytes_per_token"] == 70_272
    assert (round(data["model"]["parameters"] / 1e9), round(data["model"]["active_parameters"] / 1e9, 1)) == (671, 36.6)
    pools = data["deployments"]["disaggregated"]["pools"]
    assert {p["tensor_parallel"] * p["expert_parallel"] for p in pools} == {8}
    assert "8 of 256 experts" in (tmp_path / "r.html").read_text()
    code, table = plan(capsys, *asked)
    assert "671B parameters, 36.6B of them for a token" in table
    assert max(map(len, table.splitlines())) <= 120
    code, refused = plan(capsys, *asked, "--yaml", str(tmp_path / "cr.yaml"))
    assert "has no mixtures of experts and no latent attention" in refused
    assert not (tmp_path / "cr.yaml").exists()


@pytest.mark.slow
def test_a_mixture_of_experts_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    """The simulation, which uses a straight line, agrees with the formulas within one replica."""
    asked = ["gpt-oss-120b", "--rate", "30", *SMALL, "--gpus", "H100", "--highest-rate", "100", "--json"]
    planned, simulated = (
        json.loads(plan(capsys, *asked, *more)[1])["deployments"]["disaggregated"] for more in ([], ["--simulate"])
    )
    assert simulated["feasible"]
    assert simulated["tpot_s"] <= 0.05
    for before, after in zip(planned["pools"], simulated["pools"], strict=True):
        assert abs(before["replicas"] - after["replicas"]) <= 1


def test_weights_of_fewer_bits_than_the_checkpoint_has(capsys: pytest.CaptureFixture[str]) -> None:
    """Kimi K2 fits a node of H200 in 4 bits, but not in FP8; the experts of gpt-oss get 16 bits."""
    sizes = []
    for name, bits in (("kimi-k2", "4"), ("gpt-oss-20b", "16")):
        code, out = plan(capsys, name, "--rate", "5", *SMALL, "--gpus", "H200", "--weight-bits", bits, "--json")
        assert code == 0
        sizes.append(round(json.loads(out)["model"]["weight_bytes"] / 1e9))
    assert sizes == [515, 42]


def test_infeasible_is_said_with_the_limit_and_the_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out = plan(
        capsys, "llama-3.1-70b", "--rate", "10", *SMALL, "--tpot-ms", "2", "--html", str(tmp_path / "r.html")
    )
    assert code == 1
    assert "Infeasible" in out
    assert "tpot" in out
    assert "2 ms is asked" in out
    assert "verdict bad" in (tmp_path / "r.html").read_text()


def test_a_config_file_and_a_measured_profile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    model = str(Path(pytestconfig.rootpath) / "models" / "stdlib-llama")
    save(PROFILES["8b-h100"], tmp_path / "p.json")
    code, out = plan(capsys, model, "--rate", "5", *SMALL, "--profile", f"H100={tmp_path / 'p.json'}", "--json")
    assert code == 0
    data = json.loads(out)
    assert (data["model"]["name"], data["model"]["kv_bytes_per_token"]) == ("stdlib-llama", 3072)
    assert data["model"]["active_parameters"] == data["model"]["parameters"]
    assert "H100: times of the given profile." in data["notes"]


def test_a_profile_of_another_model_or_gpu_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "p.json"
    save(PROFILES["8b-h100"], file, Origin(model="org/other-model", hardware="H100"))
    asked = ["llama-3.1-8b", "--rate", "5", *SMALL, "--profile", f"H100={file}"]
    assert plan(capsys, *asked) == (
        2,
        f"disagg plan: {file}: is a profile of the model org/other-model, not of llama-3.1-8b; measure that with "
        "`disagg profile`, or use it nevertheless with --any-profile",
    )
    page = tmp_path / "r.html"
    assert plan(capsys, *asked, "--any-profile", "--html", str(page))[0] == 0
    assert f"profile: H100: {file}: org/other-model on H100, measured by disagg" in page.read_text()
    save(PROFILES["8b-h100"], file, Origin(model="meta-llama/Llama-3.1-8B-Instruct", hardware="A100"))
    assert "is a profile of A100, not of H100" in plan(capsys, *asked)[1]


def test_weights_that_were_planned_at_8_bits_are_asked_for_at_8_bits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["--rate", "80", *SMALL, "--yaml", str(tmp_path / "cr.yaml"), "--weight-bits"]
    assert plan(capsys, "meta-llama/Llama-3.1-70B", *asked, "8")[0] == 0
    assert yaml.safe_load((tmp_path / "cr.yaml").read_text())["spec"]["engine"] == {"quantization": "fp8"}
    assert plan(capsys, "meta-llama/Llama-3.1-70B", *asked, "16")[0] == 0
    assert "engine" not in yaml.safe_load((tmp_path / "cr.yaml").read_text())["spec"]


def test_each_pool_may_have_its_own_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--prefill-gpus", "H100", "--decode-gpus", "A100", "--price", "H100=3", "--price", "A100=2"]
    _, out = plan(capsys, "llama-3.1-8b", "--rate", "50", *SMALL, *own, "--json")
    pools = json.loads(out)["deployments"]["disaggregated"]["pools"]
    assert [(p["role"], p["gpu"]) for p in pools] == [("prefill", "H100"), ("decode", "A100")]


@pytest.mark.slow
def test_a_trace_is_simulated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = "".join(f"{i / 20},{200 + 37 * (i % 40)},{20 + i % 90}\n" for i in range(4000))
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    arguments = [
        "llama-3.1-8b",
        "--trace",
        str(tmp_path / "t.csv"),
        "--uri",
        "hf://a/b",
        "--yaml",
        str(tmp_path / "cr.yaml"),
    ]
    code, out = plan(capsys, *arguments, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["simulated"]
    assert data["traffic"]["requests_per_s"] == pytest.approx(20, rel=0.01)
    assert {p["limited_by"] for p in data["deployments"]["disaggregated"]["pools"]} == {"simulation"}
    spec = parse_file(yaml.safe_load((tmp_path / "cr.yaml").read_text())).spec
    assert spec.prefill.autoscaling is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model", "--rate", "1", *SMALL], "model: 'no-such-model'"),
        (["llama-3.1-8b", "--rate", "1"], "--prompt-tokens"),
        (["llama-3.1-8b", "--rate", "0", *SMALL], "--rate"),
        (["llama-3.1-8b", "--rate", "nan", *SMALL], "--rate"),
        (["llama-3.1-8b", "--rate", "1", "--prompt-tokens", "many", "--output-tokens", "1"], "--prompt-tokens: 'many'"),
        (["llama-3.1-8b", "--rate", "1", "--prompt-tokens", "9,8", "--output-tokens", "1"], "--prompt-tokens"),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--gpus", "H100,Z80"], "--gpus: 'Z80'"),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--price", "H100"], "--price: 'H100'"),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--price", "H100=-1"], "--price: H100=-1"),
        (
            ["llama-3.1-8b", "--rate", "1", *SMALL, "--gpus", "H100,A100", "--price", "H100=2"],
            "price of A100 is missing",
        ),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--percentile", "100"], "--percentile"),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--ttft", "0"], "--ttft"),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--yaml", "x.yaml"], "--uri"),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--yaml", "x.yaml", "--uri", "s3://x"], "spec.model.uri"),
        (
            ["llama-3.1-8b", "--rate", "1", *SMALL, "--yaml", "x.yaml", "--uri", "hf://a/b", "--kv-bits", "8"],
            "--kv-bits 8",
        ),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--html", "none/x.html"], "there is no folder none"),
        (["llama-3.1-8b", "--rate", "1", *SMALL, "--profile", "H100=nowhere.json"], "nowhere.json"),
        (["llama-3.1-8b", "--trace", "nowhere.csv"], "nowhere.csv: no such file"),
        (["llama-3.1-8b", "--trace", "nowhere.csv", "--rate", "1"], "--trace: brings rate"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["plan", *arguments])
    assert words in str(left.value.code)
    assert capsys.readouterr().out == ""  # the error is raised before any work


def test_kernel_tables_name_the_gpu_and_the_profiles_of_a_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(source: kernel_tables.TableSource, model: ModelShape, **other: Any) -> list[kernel_tables.TableProfile]:
        profile = PROFILES["70b-h200-tp4"]
        return [kernel_tables.TableProfile(profile, f"{model.name} from tables", FromTables(profile, ()))]

    monkeypatch.setattr(kernel_tables, "read", read)
    code, out = plan(capsys, "llama-3.1-70b", "--rate", "50", *SMALL, "--profile", "aisimulate:h200_sxm/vllm")
    assert code == 0
    assert "x H200" in out
    assert "H200: times of the given profile." in out
    assert "profile of llama-3.1-70b from tables" in out
