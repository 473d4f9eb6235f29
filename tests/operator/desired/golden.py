"""The golden files, which have all objects that are rendered from each example.

`make generate` writes them; a test and `make lint` compare them with the code.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from tests.operator.desired.facts import FACTS

from disagg_operator.api import DisaggDeployment, parse_file
from disagg_operator.desired import render

REPO = Path(__file__).resolve().parents[3]
EXAMPLES = ("quickstart", "llama-70b", "llama-8b", "pvc")


def example(name: str) -> DisaggDeployment:
    """Return the resource of examples/NAME.yaml."""
    return parse_file(yaml.safe_load((REPO / "examples" / f"{name}.yaml").read_text()))


def golden_files() -> dict[Path, str]:
    """Return the text that each golden file must have."""
    return {
        REPO / "tests/golden" / f"{name}.yaml": yaml.safe_dump_all(
            render(example(name), FACTS), sort_keys=False, width=120
        )
        for name in EXAMPLES
    }
