"""Tests that the documents agree with the repository.

YAML blocks are valid resources, and the commands and files that are named exist.
"""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from pydantic.alias_generators import to_camel
from tests.operator.api.resources import good
from tests.operator.autoscaling.policy.looks import POOLS, SETTINGS, observation

from disagg_operator.api import parse_file, parse_scaler
from disagg_operator.api.admission import unknown_fields
from disagg_operator.api.disagg_scaler import DisaggScalerSpec, PoolMetrics, ScaledPool
from disagg_operator.api.scaling import ScalingSpec
from disagg_operator.autoscaling.policy import guard
from disagg_operator.autoscaling.policy.guard import Predicting
from disagg_operator.autoscaling.policy.observation import Folded
from disagg_operator.controller import drain_ends
from disagg_operator.controller.scalers import scale_targets
from disagg_operator.rollout import telling
from disagg_operator.status import changes, last_words, unsettled, zero_state
from disagg_wire import problems
from disagg_wire.engines import ADAPTED, VLLM
from disagg_wire.series import READ_OF_ROUTERS, READ_OF_WORKERS

# The reasons of conditions with which all is well need no page.
_GOOD = {
    "AsSpecified", "MetricsFound", "NetworkFound", "PairsHealthy", "PodsReady", "PromptsTransferred", "Ready",
    "UpToDate", "Valid",
}  # fmt: skip
REPO = Path(__file__).parents[1]
PAGES = [*sorted(REPO.glob("*.md")), *sorted((REPO / "docs").glob("*.md"))]


def _yaml_blocks(page: Path) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_resource_on_a_page_is_valid(page: Path) -> None:
    for part in (part for block in _yaml_blocks(page) for part in yaml.safe_load_all(block)):
        if isinstance(part, dict) and part.get("kind") == "DisaggDeployment":
            parse_file(part)
        if isinstance(part, dict) and part.get("kind") == "DisaggScaler":
            assert list(unknown_fields(parse_scaler(part), part)) == []


def test_the_readme_begins_with_a_resource_that_asks_for_gpus_and_for_an_engine_that_people_take() -> None:
    spec = parse_file(yaml.safe_load(_yaml_blocks(REPO / "README.md")[0])).spec
    assert spec.engine.type == VLLM
    assert all(pool.accelerator is not None for pool in (spec.prefill, spec.decode))


def test_the_yaml_of_the_page_on_autoscaling_is_of_valid_resources() -> None:
    blocks = _yaml_blocks(REPO / "docs/autoscaling.md")
    assert len(blocks) == 3
    for block in blocks:
        part = yaml.safe_load(block)
        parse_file(good(**part.get("spec", part)))


def test_the_page_on_engines_has_a_resource_of_each() -> None:
    blocks = _yaml_blocks(REPO / "docs/engines.md")
    assert [parse_file(yaml.safe_load(block)).spec.engine.type for block in blocks] == [*ADAPTED]


def test_the_page_on_engines_names_every_reason_of_a_failing_engine() -> None:
    text = (REPO / "docs/engines.md").read_text()
    reasons = [value for name, value in vars(problems).items() if name.isupper() and re.match(r"[A-Z]", str(value))]
    reasons += [last_words.POD_SECURITY_LEVEL, last_words.NO_ACCELERATOR, last_words.READ_ONLY]
    assert len(reasons) > 9
    assert [reason for reason in reasons if f"`{reason}`" not in text] == []


def _conditions_made(path: Path) -> set[str]:
    """Return the types and the reasons of conditions that a module gives as they are."""
    found: set[object] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "kind":
            found |= {n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Condition", "NetworkCheck"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {word for word in map(str, found - {True, False}) if re.fullmatch(r"([A-Z]+[a-z]+)+[A-Z]*", word)}


def test_the_pages_for_users_name_every_condition_and_every_reason() -> None:
    status = REPO / "operator/disagg_operator/status"
    words = {word for module in ("conditions", "network_check") for word in _conditions_made(status / f"{module}.py")}
    assert {"Degraded", "PairsHealthy", "RdmaResourceMissing"} <= words
    words |= {*changes._WARNINGS, *unsettled.RECONCILE_FAILURES}
    words |= {value for name, value in vars(telling).items() if name.isupper() and isinstance(value, str)}
    words |= {zero_state.DRY_RUN, zero_state.PEAK, zero_state.ROLE_FLIP, zero_state.ROUTERS_SILENT}
    words |= {drain_ends.DRAIN_TIMED_OUT, drain_ends.DRAIN_UNANSWERED}
    pages = "".join(
        (REPO / f"docs/{name}.md").read_text()
        for name in ("operator", "engines", "permissions", "rollouts", "networks")
    )
    assert [word for word in sorted(words - _GOOD) if f"`{word}`" not in pages] == []


def test_the_page_on_scalers_names_every_field_condition_and_reason() -> None:
    text = (REPO / "docs/scaler.md").read_text()
    folder = REPO / "operator/disagg_operator/controller/scalers"
    words = _conditions_made(folder / "scaler_status.py")
    words |= {value for name, value in vars(scale_targets).items() if name.isupper() and isinstance(value, str)}
    assert {"AbleToScale", "RightMissing", "TargetsFree"} <= words
    assert [word for word in sorted(words) if f"`{word}`" not in text] == []
    fields = [*DisaggScalerSpec.model_fields, *PoolMetrics.model_fields, *ScaledPool.model_fields]
    names = {to_camel(name) for name in fields}
    assert [name for name in sorted(names) if name not in text] == []


def test_the_quickstart_is_short() -> None:
    assert len((REPO / "examples/quickstart.yaml").read_text().splitlines()) <= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_targets_and_files_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)`", text)) <= targets
    for name in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (page.parent / name).exists(), name
    for name in re.findall(r"`((?:examples|scripts|docs|models|helm|e2e)/[\w./-]+)`", text):
        assert (REPO / name).exists(), name


def test_the_page_on_architecture_names_every_room_on_its_floor() -> None:
    """The floors of a package are those that import-linter keeps, from the top."""
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = (REPO / "docs/architecture.md").read_text().partition("## The floors")[2].partition("## The rules")[0]
    blocks = dict(re.findall(r"### (\w+)\n.*?```\n(.*?)```", floors, re.DOTALL))
    for contract in contracts:
        [container] = contract.get("containers", [""])
        if (block := blocks.get(container.removeprefix("disagg_").capitalize())) is None:
            continue
        rows = [re.match(r"\w+( *\| *\w+)*", line) for line in block.splitlines()]
        at = {room: i for i, row in enumerate(rows) if row for room in re.findall(r"\w+", row[0])}
        rooms = [floor.split(" | ") for floor in contract["layers"] if floor != "__main__"]
        assert at.keys() == {room for floor in rooms for room in floor}, container
        for above, below in itertools.pairwise(rooms):
            assert max(at[room] for room in above) < min(at[room] for room in below), container


def test_where_a_change_goes_names_files_that_exist() -> None:
    text = (REPO / "docs/contributing.md").read_text()
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == 13
    named = re.findall(r"`((?:operator|worker|tests)/[\w./-]+)`", text)
    assert [name for name in named if not (REPO / name).exists()] == []


def test_the_policy_is_used_alone_as_the_page_on_autoscaling_shows() -> None:
    """The standard library is enough: the policy runs without site-packages."""
    (block,) = re.findall(r"```python\n(.*?)```", (REPO / "docs/autoscaling.md").read_text(), re.DOTALL)
    paths = [str(REPO / "operator"), str(REPO / "worker")]
    argv = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{block}"]
    found = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    moves = [
        re.fullmatch(r"(\d+) s: (\d)\+(\d) -> (\d)\+(\d): prefill: .+; decode: .+", line)
        for line in found.stdout.splitlines()
    ]
    assert all(moves)
    last = moves[-1]
    assert last is not None
    assert 4 <= int(last[4]) <= 8  # 2.9 workers of work
    assert 3 <= int(last[5]) <= 8  # 2.2


def test_the_page_on_autoscaling_names_every_series_that_is_read_and_every_number() -> None:
    text = (REPO / "docs/autoscaling.md").read_text()
    named = set(re.findall(r"`(disagg_(?:router|worker|prefill)_[a-z0-9_]+)`", text))
    assert named == {*READ_OF_ROUTERS, *READ_OF_WORKERS}
    for field in ScalingSpec.model_fields.values():
        assert f"scaling.{field.alias}" in text or field.alias == "policy"
    outcome, _ = guard.step(SETTINGS, POOLS, {}, Folded(observation(0), frozenset()), Predicting())
    assert outcome is not None
    numbers = {name for decision in outcome.decisions.values() for name in decision.numbers}
    assert [name for name in sorted(numbers) if f"`{name}`" not in text] == []
